//! The examples of the documents are read by whatever reads such files from a user.

use std::{fs, path::Path};

use flowlog_control::{
    flow_logs::principals::{self, Principals},
    inventory::load::{Loader, Places},
};

use super::Layers;

/// Which file a block of TOML is an example of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Example {
    Configuration,
    Inventory,
    Principals,
}

impl Example {
    fn of(text: &str) -> Self {
        let has = |table: &str| text.lines().any(|line| line.starts_with(table));
        if has("[[principal]]") {
            Self::Principals
        } else if ["[buckets]", "[[nic]]", "[[nat_gateway]]"].into_iter().any(has) {
            Self::Inventory
        } else {
            Self::Configuration
        }
    }

    /// Reads it from a file, as the agent does; the error says what is wrong with it.
    fn read(self, file: &Path) -> Result<(), String> {
        match self {
            Self::Configuration => {
                let layers = Layers { file: Some(file.to_owned()), ..Layers::default() };
                let checked = layers.read().and_then(|merged| merged.raw.check());
                checked.map(drop).map_err(|error| error.to_string())
            }
            Self::Inventory => {
                let problems = Loader::new(Places { file: Some(file.to_owned()), dir: None, enters_namespaces: true })
                    .load()
                    .problems;
                if problems.is_empty() { Ok(()) } else { Err(problems.join("; ")) }
            }
            Self::Principals => Principals::read(file).map(drop),
        }
    }
}

/// Blocks of a document that are marked as TOML, each with the number of its first line.
fn blocks(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut block = None::<(usize, String)>;
    for (number, line) in (1..).zip(text.lines()) {
        match &mut block {
            None if line == "```toml" => block = Some((number + 1, String::new())),
            None => {}
            Some(_) if line.starts_with("```") => found.extend(block.take()),
            Some((_, lines)) => lines.extend([line, "\n"]),
        }
    }
    found
}

#[test]
fn every_example_in_the_documents_is_understood() {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let docs = fs::read_dir(root.join("docs")).expect("docs").map(|entry| entry.expect("an entry").path());
    let documents = docs.chain([root.join("README.md")]).filter(|path| path.extension().is_some_and(|e| e == "md"));
    let hash = principals::hash_password("a long password").expect("a hash");
    let dir = tempfile::tempdir().expect("tempdir");
    let mut seen = Vec::new();
    for document in documents {
        let text = fs::read_to_string(&document).expect("a document");
        // The program of tables has a configuration of its own, and its tests.
        let ours = blocks(&text).into_iter().filter(|(_, block)| !block.starts_with("# /etc/flowlog-catalog/"));
        for (line, block) in ours {
            let example = Example::of(&block);
            // Secrets are cut short in documents.
            let block = block.replace("$argon2id$…", &hash).replace("9f86d08…", &"9f".repeat(32));
            let file = dir.path().join("example.toml");
            fs::write(&file, block).expect("write");
            example.read(&file).unwrap_or_else(|error| panic!("{}:{line}: {error}", document.display()));
            seen.push(example);
        }
    }
    seen.sort();
    seen.dedup();
    assert_eq!(seen, [Example::Configuration, Example::Inventory, Example::Principals], "one of each at least");
}
