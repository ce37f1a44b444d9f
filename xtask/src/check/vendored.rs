//! What is others' work in folders of the name `vendor`: each file is in the folder's manifest, is byte for byte what the manifest says,
//! and has its licence beside it. And our pages are made without what would let text become markup or code.

use std::{collections::BTreeMap, fmt::Write as _, fs};

use anyhow::{Context as _, ensure};
use sha2::{Digest as _, Sha256};

use crate::util::{root, step, tracked};

/// Name of a manifest; a folder that has none has nothing of others.
const MANIFEST: &str = "vendor/manifest.toml";
/// Where pages are made.
const PAGES: &str = "flowlog-agent/control/src/console/";
/// What pages are made without, and why.
const NOT_IN_PAGES: [(&str, &str); 4] = [
    ("PreEscaped", "all text is escaped, without exception"),
    (" style=", "the policy allows no style in a page"),
    (" onclick=", "the policy allows no script in a page"),
    (" hx-on", "the policy allows no script in a page"),
];

/// All of it.
pub(crate) fn check() -> anyhow::Result<()> {
    step("what is vendored, and how pages are made");
    let files = tracked()?;
    let mut wrong = Vec::new();
    let manifests: Vec<&String> = files.iter().filter(|f| f.ends_with(MANIFEST)).collect();
    ensure!(!manifests.is_empty(), "no {MANIFEST} is tracked");
    for manifest in manifests {
        let folder = manifest.strip_suffix("manifest.toml").unwrap_or(manifest);
        let text = fs::read_to_string(root().join(manifest)).with_context(|| manifest.clone())?;
        let mut listed = listed(&text);
        for file in files.iter().filter(|f| f.starts_with(folder) && *f != manifest) {
            let bytes = fs::read(root().join(file)).with_context(|| file.clone())?;
            match listed.remove(&file[folder.len()..]) {
                None => wrong.push(format!("{file} is not in {manifest}")),
                Some(Some(hash)) if hash != sha256(&bytes) => {
                    wrong.push(format!("{file} is not what {manifest} says: {} instead of {hash}", sha256(&bytes)));
                }
                Some(_) => {}
            }
        }
        wrong.extend(listed.into_keys().map(|name| format!("{manifest} has `{name}`, which is not there")));
    }
    for file in files.iter().filter(|f| f.starts_with(PAGES)) {
        let text = fs::read_to_string(root().join(file)).with_context(|| file.clone())?;
        let found = NOT_IN_PAGES.iter().filter(|(words, _)| text.contains(words));
        wrong.extend(found.map(|(words, why)| format!("{file} has `{}`: {why}", words.trim())));
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// Files of a manifest, with their hashes: a licence has none.
fn listed(manifest: &str) -> BTreeMap<String, Option<String>> {
    let mut listed = BTreeMap::new();
    let mut name = None;
    let mut in_file = false;
    for line in manifest.lines().map(str::trim) {
        if line.starts_with('[') {
            in_file = line == "[[package.file]]";
        }
        let Some((key, value)) = line.split_once(" = ") else { continue };
        let value = value.trim_matches('"').to_owned();
        match key {
            "name" if in_file => name = Some(value),
            "sha256" => drop(name.take().map(|name| listed.insert(name, Some(value)))),
            "licence_file" => drop(listed.insert(value, None)),
            _ => {}
        }
    }
    listed
}

fn sha256(bytes: &[u8]) -> String {
    let mut hex = String::new();
    for byte in Sha256::digest(bytes) {
        // Writing to a String cannot fail.
        let _ = write!(hex, "{byte:02x}");
    }
    hex
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_lists_files_with_hashes_and_licences() {
        let text =
            "[[package]]\nname = \"a\"\nlicence_file = \"L\"\n\n[[package.file]]\nname = \"a.js\"\nsha256 = \"00\"\n";
        let listed = listed(text);
        assert_eq!(Vec::from_iter(&listed), [(&"L".to_owned(), &None), (&"a.js".to_owned(), &Some("00".to_owned()))]);
        assert_eq!(sha256(b""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }

    #[test]
    fn this_repository_has_what_its_manifests_say() {
        check().expect("manifests and pages");
    }
}
