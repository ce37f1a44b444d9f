//! The configuration file that packages bring: what is commented out in it is a configuration, and has every key there is.

use std::{collections::BTreeSet, fs};

use super::{Layers, RawConfig, keys::KEYS};

/// Where it lies.
const SHIPPED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/package/flowlog.toml");
/// No key is called this.
const NO_KEY: &str = "no_such_key";

/// Keys and tables are `#key`; sentences are `# Sentence`.
fn uncommented(text: &str) -> String {
    let line = |line: &str| match line.strip_prefix('#') {
        Some(rest) if !rest.is_empty() && !rest.starts_with(' ') => format!("{rest}\n"),
        _ => format!("{line}\n"),
    };
    text.lines().map(line).collect()
}

/// The keys that are understood below a table's head, in the words of the reader itself: `expected one of …`.
pub(super) fn understood(head: &str) -> BTreeSet<String> {
    let error = toml::from_str::<RawConfig>(&format!("{head}\n{NO_KEY} = 1\n")).expect_err("no such key").to_string();
    let (_, list) = error.split_once("expected").unwrap_or_else(|| panic!("`{head}` takes any key: {error}"));
    list.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Keys of a table in the file.
fn written(table: &toml::Table) -> BTreeSet<String> {
    table.keys().cloned().collect()
}

#[test]
fn the_configuration_of_packages_says_nothing_until_it_is_uncommented_and_then_every_key() {
    let text = fs::read_to_string(SHIPPED).expect("the file");
    let as_shipped: toml::Table = toml::from_str(&text).expect("TOML");
    assert!(as_shipped.is_empty(), "{as_shipped:?}");
    let uncommented = uncommented(&text);
    let dir = tempfile::tempdir().expect("tempdir");
    let file = dir.path().join("flowlog.toml");
    fs::write(&file, &uncommented).expect("write");
    let layers = Layers { file: Some(file), ..Layers::default() };
    layers.read().and_then(|merged| merged.raw.check()).expect("a configuration");
    let document: toml::Table = toml::from_str(&uncommented).expect("TOML");
    assert_eq!(written(&document), understood(""));
    compare(&document, "");
}

/// Tables below a table, and those below them: all of an array together have every key.
fn compare(document: &toml::Table, below: &str) {
    for (name, value) in document {
        let path = format!("{below}{name}");
        let (head, tables) = match value {
            toml::Value::Table(table) => (format!("[{path}]"), vec![table]),
            toml::Value::Array(all) if all.iter().all(toml::Value::is_table) => {
                (format!("[[{path}]]"), all.iter().filter_map(toml::Value::as_table).collect())
            }
            _ => continue,
        };
        // Its keys are marks of the operator's own rules; those of tables on one line are not all there.
        if ["verdict_marks", "contracts", "datacenters", "labels", "select"].contains(&name.as_str()) {
            continue;
        }
        let keys: BTreeSet<String> = tables.iter().flat_map(|table| written(table)).collect();
        let old = KEYS.iter().filter(|key| key.table == path).filter_map(|key| key.old_name);
        let mut known = understood(&head);
        known.retain(|key| !old.clone().any(|old| old == key));
        assert_eq!(keys, known, "{head}");
        for table in tables {
            compare(table, &format!("{path}."));
        }
    }
}
