//! What the configuration says of a source, `[[inventory.source]]`, and what the NICs that it finds become.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
};

use flowlog_model::{
    Labels,
    interface::Selector,
    rule::{InvalidField, Side, key_part},
    text::quotable,
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{FoundNic, identity, names::NamePattern};
use crate::inventory::{Contract, Interface, Kind, Resource, file::fit_name};

/// Where libvirt keeps the status of running domains.
pub const LIBVIRT_DIR_DEFAULT: &str = "/run/libvirt/qemu";
/// Where the database of Open vSwitch listens.
pub const OVSDB_SOCKET_DEFAULT: &str = "/run/openvswitch/db.sock";
/// Sources of one node: each has a thread, and a place in the metrics.
pub const SOURCES_MAX: usize = 16;
/// Patterns of one source: each is tried on each interface.
const PATTERNS_MAX: usize = 32;

/// What a source asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SourceKind {
    /// Names of interfaces.
    Names,
    /// Status files of libvirt.
    Libvirt,
    /// The database of Open vSwitch.
    Ovsdb,
}

impl SourceKind {
    /// As it is written.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Names => "names",
            Self::Libvirt => "libvirt",
            Self::Ovsdb => "ovsdb",
        }
    }
}

impl fmt::Display for SourceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A source, as written.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawSource {
    pub kind: SourceKind,
    /// What it is called in problems and metrics; its kind, if absent.
    pub name: Option<String>,
    /// Of `libvirt`: where the status files are.
    pub directory: Option<PathBuf>,
    /// Of `ovsdb`: where the database listens.
    pub socket: Option<PathBuf>,
    /// Of `names`: regular expressions with named groups.
    #[serde(default)]
    pub patterns: Vec<String>,
    /// Contract of NICs whose project is not among `contracts`.
    pub contract: Option<Contract>,
    /// Contracts by project.
    #[serde(default)]
    pub contracts: BTreeMap<String, Contract>,
    /// Data centers by contract.
    #[serde(default)]
    pub datacenters: BTreeMap<Contract, Uuid>,
    /// Labels of all its NICs.
    #[serde(default)]
    pub labels: Labels,
    /// Which side of the interfaces this node sees: a guest's, if absent.
    pub side: Option<Side>,
    #[serde(default)]
    pub translations: bool,
}

/// Where a source looks.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum SourcePlace {
    Names(Vec<NamePattern>),
    Libvirt(PathBuf),
    Ovsdb(PathBuf),
}

/// A source, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct SourceSpec {
    pub name: String,
    pub(crate) place: SourcePlace,
    contract: Option<Contract>,
    contracts: BTreeMap<String, Contract>,
    datacenters: BTreeMap<Contract, Uuid>,
    labels: Labels,
    side: Side,
    translations: bool,
}

/// A NIC that is nobody's: its project is not mapped to a contract. It takes no flow log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnownedNic {
    pub id: Uuid,
    pub name: String,
    /// Its interface.
    pub interface: String,
    /// The project that no contract is named for.
    pub project: Option<String>,
    /// Who has found it.
    pub source: String,
}

impl fmt::Display for UnownedNic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, interface, project, source, .. } = self;
        let (interface, project) = (quotable(interface), project.as_deref().map(quotable));
        write!(f, "nic {id} ({interface}) of source {source} is nobody's: ")?;
        match project {
            Some(project) => write!(f, "no contract is named for its project `{project}`"),
            None => f.write_str("it has no project, and the source no `contract`"),
        }
    }
}

impl RawSource {
    /// One of a kind, about which nothing else is said.
    #[must_use]
    pub fn of(kind: SourceKind) -> Self {
        Self {
            kind,
            name: None,
            directory: None,
            socket: None,
            patterns: Vec::new(),
            contract: None,
            contracts: BTreeMap::new(),
            datacenters: BTreeMap::new(),
            labels: Labels::default(),
            side: None,
            translations: false,
        }
    }

    /// Checks it.
    ///
    /// # Errors
    /// The first field that is wrong.
    pub fn check(&self) -> Result<SourceSpec, InvalidField> {
        let kind = self.kind;
        let name = key_part("inventory.source.name", self.name.as_deref().unwrap_or(kind.as_str()))?;
        let foreign = [
            ("inventory.source.patterns", !self.patterns.is_empty(), SourceKind::Names),
            ("inventory.source.directory", self.directory.is_some(), SourceKind::Libvirt),
            ("inventory.source.socket", self.socket.is_some(), SourceKind::Ovsdb),
        ];
        if let Some((field, _, of)) = foreign.into_iter().find(|(_, is_said, of)| *is_said && *of != kind) {
            return Err(InvalidField::new(
                field,
                kind.as_str(),
                format!("is for a source of the kind `{of}`; leave it out"),
            ));
        }
        let place = match kind {
            SourceKind::Names => SourcePlace::Names(patterns(&self.patterns)?),
            SourceKind::Libvirt => SourcePlace::Libvirt(absolute(
                "inventory.source.directory",
                self.directory.as_deref(),
                LIBVIRT_DIR_DEFAULT,
            )?),
            SourceKind::Ovsdb => {
                SourcePlace::Ovsdb(absolute("inventory.source.socket", self.socket.as_deref(), OVSDB_SOCKET_DEFAULT)?)
            }
        };
        Ok(SourceSpec {
            name,
            place,
            contract: self.contract.clone(),
            contracts: self.contracts.clone(),
            datacenters: self.datacenters.clone(),
            labels: self.labels.clone(),
            side: self.side.unwrap_or(Side::Guest),
            translations: self.translations,
        })
    }
}

fn patterns(all: &[String]) -> Result<Vec<NamePattern>, InvalidField> {
    if !(1..=PATTERNS_MAX).contains(&all.len()) {
        let rule = format!("give 1 to {PATTERNS_MAX} regular expressions with named groups");
        return Err(InvalidField::new("inventory.source.patterns", all.len().to_string(), rule));
    }
    all.iter().map(|text| NamePattern::new(text)).collect()
}

fn absolute(field: &'static str, said: Option<&Path>, default: &str) -> Result<PathBuf, InvalidField> {
    let path = said.unwrap_or(Path::new(default));
    if path.is_absolute() {
        return Ok(path.to_owned());
    }
    Err(InvalidField::new(field, path.display().to_string(), "must be an absolute path"))
}

/// Checks all sources of a node.
///
/// # Errors
/// If one is wrong, two have the same name, or there are too many.
pub fn check_all(raw: &[RawSource]) -> Result<Vec<SourceSpec>, InvalidField> {
    if raw.len() > SOURCES_MAX {
        let rule = format!("a node has {SOURCES_MAX} at most");
        return Err(InvalidField::new("inventory.source", raw.len().to_string(), rule));
    }
    let mut all: Vec<SourceSpec> = Vec::new();
    for source in raw {
        let new = source.check()?;
        if all.iter().any(|other| other.name == new.name) {
            let rule = "two sources have this name; give one of them another `name`";
            return Err(InvalidField::new("inventory.source.name", new.name, rule));
        }
        all.push(new);
    }
    Ok(all)
}

impl SourceSpec {
    /// What it asks.
    #[must_use]
    pub fn kind(&self) -> SourceKind {
        match self.place {
            SourcePlace::Names(_) => SourceKind::Names,
            SourcePlace::Libvirt(_) => SourceKind::Libvirt,
            SourcePlace::Ovsdb(_) => SourceKind::Ovsdb,
        }
    }

    /// Where it is asked; `None`: it is not asked, but told.
    #[must_use]
    pub(super) fn asked_at(&self) -> Option<String> {
        match &self.place {
            SourcePlace::Names(_) => None,
            SourcePlace::Libvirt(path) | SourcePlace::Ovsdb(path) => Some(path.display().to_string()),
        }
    }

    /// Whose a NIC of this project is.
    fn owner(&self, project: Option<&str>) -> Option<&Contract> {
        project.and_then(|p| self.contracts.get(p)).or(self.contract.as_ref())
    }

    /// What a NIC becomes that it has found. Labels that cannot be kept are left out, and said.
    ///
    /// # Errors
    /// If it is nobody's.
    pub(crate) fn resource(&self, nic: &FoundNic, problems: &mut Vec<String>) -> Result<Resource, UnownedNic> {
        let id = nic.identity.id();
        let Some(contract) = self.owner(nic.project.as_deref()).cloned() else {
            return Err(UnownedNic {
                id,
                name: nic.name.clone(),
                interface: nic.interface.clone(),
                project: nic.project.clone(),
                source: self.name.clone(),
            });
        };
        let mut labels = self.labels.clone();
        let project = nic.project.as_deref().map(|project| ("project", project));
        let known = nic.labels.iter().map(|(name, value)| (name.as_ref(), value.as_str()));
        let groups = nic.groups.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        for (name, value) in project.into_iter().chain(known).chain(groups) {
            // What the configuration says of all of them goes before what one is found with.
            if labels.get(name).is_some() {
                continue;
            }
            if let Err(error) = labels.insert(name, value) {
                problems.push(format!("source {}: nic {id}: {error}; left out", self.name));
            }
        }
        let (name, is_cut) = fit_name(&nic.name);
        if is_cut {
            problems
                .push(format!("source {}: nic {id}: its name is too long, or has control characters; cut", self.name));
        }
        Ok(Resource {
            id,
            kind: Kind::Nic,
            name,
            datacenter: self
                .datacenters
                .get(&contract)
                .copied()
                .unwrap_or_else(|| identity::datacenter(contract.as_str())),
            contract,
            server: nic.server,
            side: nic.side.unwrap_or(self.side),
            translations: self.translations,
            labels,
            source: Some(self.name.clone()),
            interfaces: vec![Interface { id: id.to_string(), selector: Selector::name(&nic.interface) }],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::source::names;

    fn parse(text: &str) -> Result<SourceSpec, String> {
        let raw: RawSource = toml::from_str(text).map_err(|e| e.message().to_owned())?;
        raw.check().map_err(|e| e.to_string())
    }

    const PATTERN: &str = r"patterns = ['^(?<project>[a-z]+)(?<vm>\d+)i(?<nic>\d+)$']";

    #[test]
    fn a_source_has_what_its_kind_takes_and_nothing_else() {
        assert_eq!(parse("kind = 'libvirt'").expect("good").place, SourcePlace::Libvirt(LIBVIRT_DIR_DEFAULT.into()));
        assert_eq!(parse("kind = 'ovsdb'").expect("good").place, SourcePlace::Ovsdb(OVSDB_SOCKET_DEFAULT.into()));
        for (bad, words) in [
            ("kind = 'xen'", "unknown variant `xen`, expected one of `names`, `libvirt`, `ovsdb`"),
            ("kind = 'names'", "give 1 to 32"),
            ("kind = 'libvirt'\nsocket = '/x'", "is for a source of the kind `ovsdb`"),
            ("kind = 'ovsdb'\nsocket = 'db.sock'", "must be an absolute path"),
            ("kind = 'libvirt'\nname = 'a/b'", "inventory.source.name `a/b`"),
            ("kind = 'libvirt'\nlabels = { 'a b' = 'x' }", "label `a b`"),
            ("kind = 'libvirt'\ncolour = 1", "unknown field `colour`"),
        ] {
            let error = parse(bad).expect_err(bad);
            assert!(error.contains(words), "{error}");
        }
        let twice = [RawSource::of(SourceKind::Libvirt), RawSource::of(SourceKind::Libvirt)];
        assert!(check_all(&twice).expect_err("twice").to_string().contains("two sources have this name"));
    }

    #[test]
    fn a_nic_is_its_projects_contracts_else_the_default_s_else_nobodys() {
        let mut problems = Vec::new();
        let mut become_of = |text: &str, name: &str| {
            let spec = parse(&format!("kind = 'names'\n{PATTERN}\n{text}")).expect(text);
            let SourcePlace::Names(patterns) = &spec.place else { panic!("names") };
            let nic = names::find(patterns, [name].into_iter()).nics.remove(0);
            spec.resource(&nic, &mut problems)
        };
        let mapped = "contracts = { acme = '31960002' }";
        let owned = become_of(mapped, "acme7i0").expect("owned");
        assert_eq!((owned.contract.as_str(), owned.labels.get("project")), ("31960002", Some("acme")));
        assert_eq!((owned.labels.get("vm"), owned.name.as_str()), (Some("7"), "7"));
        let nobodys = become_of(mapped, "other7i0").expect_err("nobody's");
        assert_eq!((nobodys.project.as_deref(), nobodys.interface.as_str()), (Some("other"), "other7i0"));
        let default = format!("contract = '1'\n{mapped}\nlabels = {{ vm = 'all', env = 'prod' }}");
        let owned = become_of(&default, "other7i0").expect("owned");
        assert_eq!((owned.contract.as_str(), owned.labels.get("vm")), ("1", Some("all")));
        // One data center for each contract, which stays the same.
        let again = become_of(mapped, "acme8i0").expect("owned");
        assert_eq!(again.datacenter, identity::datacenter("31960002"));
        assert_ne!(again.datacenter, owned.datacenter);
        assert!(problems.is_empty(), "{problems:?}");
    }

    #[test]
    fn a_name_that_files_could_not_have_is_cut_and_that_is_said() {
        let spec = RawSource { contract: Some("7".parse().expect("a contract")), ..RawSource::of(SourceKind::Libvirt) };
        let mut nic =
            names::find(&[names::NamePattern::new(r"^t(?<nic>\d)$").expect("good")], ["t1"].into_iter()).nics.remove(0);
        nic.name = format!("{}ü{}", "n".repeat(254), "n".repeat(45));
        let mut problems = Vec::new();
        let kept = spec.check().expect("good").resource(&nic, &mut problems).expect("owned");
        assert_eq!(kept.name, "n".repeat(254), "no half of a letter");
        assert!(problems.len() == 1 && problems[0].contains("its name is too long"), "{problems:?}");
    }
}
