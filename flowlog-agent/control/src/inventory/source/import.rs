//! What a source would bring, without an agent: as an inventory file, for people to look at, or to keep.

use std::{collections::BTreeMap, fmt::Write as _};

use flowlog_model::{Labels, interface::Selector, rule::Side, text::printable};
use serde::Serialize;
use uuid::Uuid;

use super::{
    follow::Sources,
    spec::{SourceSpec, UnownedNic},
};
use crate::inventory::{
    Resource,
    load::{Loader, Places},
};

/// The first line of a file that is made from what a source has found: one that begins with it may be replaced by the next one.
pub const HEAD: &str = "# Written by `flowlog inventory import`, which replaces it.\n";

/// What a source has found.
pub struct Imported {
    resources: Vec<Resource>,
    unowned: Vec<UnownedNic>,
    /// Why something is missing.
    pub problems: Vec<String>,
}

/// Looks once. `names` are those of the interfaces there are.
#[must_use]
pub fn import(source: SourceSpec, names: Vec<String>) -> Imported {
    let sources = Sources::open(vec![source], names, None);
    let loaded = Loader::new(Places::default()).with(&sources).load();
    let (inventory, problems) = (loaded.inventory, loaded.problems);
    Imported { resources: inventory.resources.into_values().collect(), unowned: inventory.unowned, problems }
}

/// A NIC, as inventory files have it.
#[derive(Serialize)]
struct Nic<'a> {
    id: Uuid,
    #[serde(skip_serializing_if = "str::is_empty")]
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    server: Option<Uuid>,
    datacenter: Uuid,
    contract: &'a str,
    side: Side,
    translations: bool,
    interface: Selector,
    #[serde(skip_serializing_if = "Labels::is_empty")]
    labels: Labels,
}

impl Imported {
    /// Whether there is nothing to write down.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.resources.is_empty()
    }

    /// As a file of the inventory; what is nobody's is a remark in it.
    ///
    /// # Errors
    /// None that is known: all of it can be written.
    pub fn text(&self) -> Result<String, String> {
        let nics = self.resources.iter().filter_map(|resource| {
            let [interface] = &resource.interfaces[..] else { return None };
            Some(Nic {
                id: resource.id,
                name: &resource.name,
                server: resource.server,
                datacenter: resource.datacenter,
                contract: resource.contract.as_str(),
                side: resource.side,
                translations: resource.translations,
                interface: interface.selector.clone(),
                labels: resource.labels.clone(),
            })
        });
        let file = BTreeMap::from([("nic", nics.collect::<Vec<_>>())]);
        let nics = if self.is_empty() { String::new() } else { toml::to_string(&file).map_err(|e| e.to_string())? };
        let mut text = format!("{HEAD}{nics}");
        for words in self.unowned.iter().map(ToString::to_string) {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "# {}", printable(&words));
        }
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::source::spec::RawSource;

    #[test]
    fn what_is_imported_is_read_as_a_file_that_says_the_same() {
        let text = r"
            kind = 'names'
            patterns = ['^(?<project>[a-z]+)(?<vm>\d+)i(?<nic>\d+)$', '^port(?<port>\d+)$']
            contracts = { acme = '31960002' }
            labels = { env = 'prod' }
            translations = true";
        let source: RawSource = toml::from_str(text).expect("a source");
        let names = ["acme7i0", "acme7i1", "other8i0", "port9", "lo"].map(str::to_owned).to_vec();
        let imported = import(source.check().expect("good"), names);
        assert_eq!((imported.resources.len(), imported.unowned.len(), imported.problems.len()), (2, 2, 0));
        let text = imported.text().expect("text");
        assert!(text.starts_with(HEAD) && !text.contains('\\'), "{text}");
        assert!(
            text.contains("# nic ") && text.contains("project `other`") && text.contains("it has no project"),
            "{text}"
        );
        let dir = tempfile::tempdir().expect("tempdir");
        let file = dir.path().join("i.toml");
        std::fs::write(&file, &text).expect("write");
        let places = Places { file: Some(file), ..Places::default() };
        let loaded = Loader::new(places).load();
        assert_eq!(loaded.problems, Vec::<String>::new(), "{text}");
        let read: Vec<Resource> = loaded.inventory.resources.into_values().collect();
        let expected = imported.resources.into_iter().map(|r| Resource { source: None, ..r });
        assert_eq!(read, expected.collect::<Vec<_>>());
    }
}
