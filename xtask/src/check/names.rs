//! No two types of one name in one crate that more than one module can see: whoever reads the name knows the type.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context as _, ensure};

use crate::util::{root, step, tracked};

/// Names that each of several modules has one of, where they are, and why.
const FAMILIES: &[(&str, &str, &str)] = &[
    ("xtask/src/", "Args", "each verb has its own, and is called by its module's name"),
    ("integration/benches/", "Options", "each benchmark has its own, and is called by its module's name"),
];
/// What a type is declared with.
const KEYWORDS: [&str; 5] = ["struct", "enum", "trait", "type", "union"];

/// Looks at all files.
pub(crate) fn check() -> anyhow::Result<()> {
    step("one type for each name");
    let files = tracked()?;
    let mut found: BTreeMap<(&str, String), Vec<&str>> = BTreeMap::new();
    for file in files.iter().filter(|f| Path::new(f).extension().is_some_and(|e| e == "rs")) {
        let text = fs::read_to_string(root().join(file)).with_context(|| format!("cannot read {file}"))?;
        for name in text.lines().filter_map(declared) {
            let is_family = FAMILIES.iter().any(|(at, of, _)| file.starts_with(at) && *of == name);
            if !is_family {
                found.entry((crate_of(file), name.to_owned())).or_default().push(file);
            }
        }
    }
    let twice = found.iter().filter(|(_, files)| files.len() > 1);
    let lines: Vec<String> = twice
        .map(|((at, name), files)| {
            format!("{at}: `{name}` is {} types, in {}; rename one", files.len(), files.join(", "))
        })
        .collect();
    ensure!(lines.is_empty(), "{}", lines.join("\n"));
    Ok(())
}

/// The type that a line declares for other modules.
fn declared(line: &str) -> Option<&str> {
    let rest = line.trim_start().strip_prefix("pub")?;
    let rest = rest.strip_prefix('(').map_or(Some(rest), |inner| Some(inner.split_once(')')?.1))?;
    let (keyword, rest) = rest.trim_start().split_once(' ')?;
    let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
    KEYWORDS.contains(&keyword).then_some(&rest[..end])
}

/// What is compiled together with a file: its folder up to `src`, or one of those with programs of their own.
pub(super) fn crate_of(file: &str) -> &str {
    for folder in ["src/bin/", "benches/", "tests/", "src/"] {
        if let Some(at) = file.find(folder) {
            let end = at + folder.len();
            // A program is a file or a folder of its own.
            let own = if folder == "src/" { Some(0) } else { file[end..].find('/') };
            return own.map_or(file, |own| &file[..end + own]);
        }
    }
    file
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn declarations_are_found_whoever_may_see_them_and_private_ones_are_not() {
        for (line, name) in [
            ("pub struct Flow<'a> {", Some("Flow")),
            ("    pub(super) enum Kind {", Some("Kind")),
            ("pub(in crate::a) type Id = u32;", Some("Id")),
            ("pub trait Source: Send {", Some("Source")),
            ("struct Private;", None),
            ("pub fn structure() {", None),
            ("// pub struct Old;", None),
        ] {
            assert_eq!(declared(line), name, "{line}");
        }
    }

    #[test]
    fn a_program_is_a_crate_of_its_own() {
        for (file, at) in [
            ("flowlog-agent/model/src/rule/target.rs", "flowlog-agent/model/src/"),
            ("flowlog-ebpf/src/bin/flowlog/tc.rs", "flowlog-ebpf/src/bin/flowlog"),
            ("flowlog-ebpf/src/bin/testkit.rs", "flowlog-ebpf/src/bin/testkit.rs"),
            ("flowlog-ebpf/src/packet.rs", "flowlog-ebpf/src/"),
            ("integration/benches/suite/main.rs", "integration/benches/suite"),
            ("integration/tests/all/api.rs", "integration/tests/all"),
        ] {
            assert_eq!(crate_of(file), at);
        }
    }
}
