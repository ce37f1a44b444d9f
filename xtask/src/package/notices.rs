//! Whose work is in the program, and under which licences: that is to be said wherever it is passed on.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use serde_json::Value;

use super::binary::Program;
use crate::{
    util::{cargo, output},
    vm::Arch,
};

/// What files with licences and notices are called, by how their names begin.
const NAMES: [&str; 5] = ["license", "licence", "copying", "copyright", "notice"];

/// The text: each crate with its licence, then every licence's text once.
pub(super) fn text(program: Program, arch: Arch) -> anyhow::Result<String> {
    let linked = linked(program, arch)?;
    let mut all = String::from("The program is linked from these packages, beside flowlog's own.\n\n");
    let mut texts = BTreeMap::<String, Vec<String>>::new();
    for Package { name, licence, folder } in &linked {
        let _ = writeln!(all, "{name}: {licence}");
        for text in licences(folder)? {
            texts.entry(text).or_default().push(name.clone());
        }
    }
    for (text, of) in texts {
        let _ = write!(all, "\n{}\nOf {}:\n\n{}\n", "-".repeat(80), of.join(", "), text.trim_end());
    }
    Ok(all)
}

struct Package {
    /// With its version.
    name: String,
    licence: String,
    folder: PathBuf,
}

/// Packages of others that are linked, as cargo lists them.
fn linked(program: Program, arch: Arch) -> anyhow::Result<Vec<Package>> {
    let tree = ["tree", "--locked", "--package", program.package, "--edges", "normal", "--prefix", "none"];
    let mut list = cargo();
    list.args(tree).args(["--format", "{p}", "--target", arch.triple()]);
    // `NAME vVERSION (more)`
    let listed = output(&mut list)?;
    let names: BTreeSet<(&str, &str)> = listed
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            Some((words.next()?, words.next()?.strip_prefix('v')?))
        })
        .collect();
    let metadata: Value = serde_json::from_str(&output(cargo().args(["metadata", "--locked", "--format-version=1"]))?)?;
    let packages = metadata["packages"].as_array().context("packages")?;
    let mut linked = Vec::new();
    for package in packages.iter().filter(|p| !p["source"].is_null()) {
        let word = |key: &str| package[key].as_str().unwrap_or_default();
        if names.contains(&(word("name"), word("version"))) {
            linked.push(Package {
                name: format!("{} {}", word("name"), word("version")),
                licence: word("license").to_owned(),
                folder: Path::new(word("manifest_path")).parent().context("a folder")?.to_owned(),
            });
        }
    }
    Ok(linked)
}

/// Texts of the licence files in a package's folder.
fn licences(folder: &Path) -> anyhow::Result<Vec<String>> {
    let mut texts = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        let name = path.file_name().map(|n| n.to_string_lossy().to_lowercase()).unwrap_or_default();
        if path.is_file() && NAMES.iter().any(|begin| name.starts_with(begin)) {
            texts.push(String::from_utf8_lossy(&fs::read(&path)?).into_owned());
        }
    }
    texts.sort();
    Ok(texts)
}
