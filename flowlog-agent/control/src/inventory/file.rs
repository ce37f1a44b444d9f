//! The form of inventory files: TOML or JSON, the same for the main file and for drop-ins.
//!
//! ```toml
//! [[nic]]
//! id = "5c1b7c1e-0a55-4e1c-9d2f-0f6f0c5ad001"
//! server = "…"
//! datacenter = "…"
//! contract = "31960002"
//! interface = { name = "tap0" }        # or { mac = "02:00:00:aa:bb:cc" }, { index = 7 }; with netns = "gw1" in that namespace
//!
//! [[bucket]]
//! name = "flows-a"                     # or the beginning of names: "team-a-*"
//! contract = "31960002"
//! ```

use std::path::{Path, PathBuf};

use flowlog_host::trust::{self, Kind as FileKind};
use flowlog_model::{
    Labels, S3Options,
    interface::{By, Selector},
    rule::Side,
};
use serde::Deserialize;
use uuid::Uuid;

use super::{
    BucketPlace, Contract, Interface, Kind, Resource,
    buckets::{Owned, Pattern, Reach},
};

/// Largest file that is read: 10,000 NICs take 3 MiB.
const FILE_BYTES_MAX: u64 = 16 << 20;
/// Longest interface name (`IFNAMSIZ` less its end).
const INTERFACE_NAME_BYTES_MAX: usize = 15;
/// Public interfaces of one gateway or balancer: each is a place in the kernel's maps.
const INTERFACES_MAX: usize = 64;
/// Longest name of a resource: it is only shown.
const RESOURCE_NAME_BYTES_MAX: usize = 255;

/// A file, as written.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct File {
    #[serde(default)]
    nic: Vec<Nic>,
    #[serde(default)]
    nat_gateway: Vec<Gateway>,
    #[serde(default)]
    network_load_balancer: Vec<Gateway>,
    #[serde(default)]
    application_load_balancer: Vec<Gateway>,
    pub(super) buckets: Option<RawBuckets>,
    #[serde(default)]
    bucket: Vec<RawBucket>,
    #[serde(default)]
    contract: Vec<RawContract>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Nic {
    id: Uuid,
    #[serde(default)]
    name: String,
    /// Without one it is not below a server in the cloud's API.
    server: Option<Uuid>,
    datacenter: Uuid,
    contract: Contract,
    interface: Selector,
    /// A guest's, unless said otherwise.
    side: Option<Side>,
    /// Rows have the other side of address translations; not unless said otherwise.
    translations: Option<bool>,
    #[serde(default)]
    labels: Labels,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Gateway {
    id: Uuid,
    #[serde(default)]
    name: String,
    datacenter: Uuid,
    contract: Contract,
    public_interfaces: Vec<Selector>,
    /// The appliance's own, unless said otherwise.
    side: Option<Side>,
    /// Rows have the other side of address translations, unless said otherwise.
    translations: Option<bool>,
    #[serde(default)]
    labels: Labels,
}

/// A directory, or how the server is reached. (`deny_unknown_fields` and `flatten` agree at one level only, serde-rs/serde#2384: there is a
/// test.)
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawBuckets {
    directory: Option<PathBuf>,
    #[serde(flatten)]
    s3: S3Options,
}

/// A contract's bucket, or several.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawBucket {
    name: Pattern,
    contract: Contract,
    #[serde(flatten)]
    reach: Reach,
}

/// What all buckets of a contract have in common.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawContract {
    id: Contract,
    buckets: Reach,
}

impl RawBucket {
    fn check(&self) -> Result<Owned, String> {
        let Self { name, contract, reach } = self.clone();
        reach.check().map_err(|words| format!("bucket `{name}` of contract {contract}: {words}"))?;
        Ok(Owned { pattern: name, contract, reach })
    }
}

impl RawContract {
    fn check(&self) -> Result<(Contract, Reach), String> {
        self.buckets.check().map_err(|words| format!("contract {}: buckets: {words}", self.id))?;
        Ok((self.id.clone(), self.buckets.clone()))
    }
}

impl RawBuckets {
    pub(super) fn check(&self) -> Result<BucketPlace, String> {
        if let Some(dir) = &self.directory {
            if self.s3 != S3Options::default() || !dir.is_absolute() {
                return Err("buckets: give either `endpoint`, or `directory` as an absolute path".to_owned());
            }
            return Ok(BucketPlace::Directory(dir.clone()));
        }
        Ok(BucketPlace::S3(self.s3.clone()))
    }
}

impl File {
    /// Reads a file: JSON if its name says so, else TOML.
    ///
    /// # Errors
    /// In words, on one line.
    pub(crate) fn read(path: &Path) -> Result<Self, String> {
        let text = read_text(path)?;
        if path.extension().is_some_and(|e| e == "json") {
            return serde_json::from_str(&text).map_err(|e| e.to_string());
        }
        toml::from_str(&text).map_err(|e| crate::toml_error(&text, &e))
    }

    /// Its resources, and what is wrong with others.
    pub(super) fn resources(&self) -> (Vec<Resource>, Vec<String>) {
        let nics = self.nic.iter().map(Nic::check);
        let gateways = [
            (Kind::NatGateway, &self.nat_gateway),
            (Kind::NetworkLoadBalancer, &self.network_load_balancer),
            (Kind::ApplicationLoadBalancer, &self.application_load_balancer),
        ];
        let gateways = gateways.into_iter().flat_map(|(kind, all)| all.iter().map(move |g| g.check(kind)));
        parted(nics.chain(gateways))
    }

    /// Its contracts' buckets, and what is wrong with others.
    pub(super) fn owned(&self) -> (Vec<Owned>, Vec<String>) {
        parted(self.bucket.iter().map(RawBucket::check))
    }

    /// What contracts' buckets have in common, and what is wrong with others.
    pub(super) fn contracts(&self) -> (Vec<(Contract, Reach)>, Vec<String>) {
        parted(self.contract.iter().map(RawContract::check))
    }
}

/// What is good, and what is wrong with the rest.
fn parted<T>(results: impl Iterator<Item = Result<T, String>>) -> (Vec<T>, Vec<String>) {
    let mut good = Vec::new();
    let mut bad = Vec::new();
    for result in results {
        match result {
            Ok(one) => good.push(one),
            Err(problem) => bad.push(problem),
        }
    }
    (good, bad)
}

/// Reads a file that is not too large, and that nobody but its owner may write.
pub(crate) fn read_text(path: &Path) -> Result<String, String> {
    trust::read(path, FileKind::Orders, FILE_BYTES_MAX).map_err(|e| e.to_string())
}

impl Nic {
    fn check(&self) -> Result<Resource, String> {
        let Self { id, name, server, datacenter, contract, interface, side, translations, labels } = self.clone();
        let problem = |words: String| format!("nic {id}: {words}");
        check_name(&name).and_then(|()| check_selector(&interface)).map_err(problem)?;
        Ok(Resource {
            id,
            kind: Kind::Nic,
            name,
            contract,
            datacenter,
            server,
            side: side.unwrap_or(Side::Guest),
            translations: translations.unwrap_or(false),
            labels,
            source: None,
            interfaces: vec![Interface { id: id.to_string(), selector: interface }],
        })
    }
}

impl Gateway {
    fn check(&self, kind: Kind) -> Result<Resource, String> {
        let Self { id, name, datacenter, contract, public_interfaces, side, translations, labels } = self.clone();
        let problem = |words: String| format!("{kind} {id}: {words}");
        check_name(&name).map_err(problem)?;
        public_interfaces.iter().try_for_each(check_selector).map_err(problem)?;
        let count = public_interfaces.len();
        if count == 0 || count > INTERFACES_MAX {
            return Err(problem(format!("public_interfaces: name 1 to {INTERFACES_MAX}, not {count}")));
        }
        // With several, each needs an id of its own that does not depend on their order.
        let id_of = |s: &Selector| {
            let netns = s.netns.as_ref().map_or_else(String::new, |netns| format!("-{}", netns.in_keys()));
            match &s.by {
                _ if count == 1 => id.to_string(),
                By::Mac(mac) => format!("{id}{netns}-{}", mac.to_string().replace(':', "")),
                By::Index(index) => format!("{id}{netns}-{index}"),
                By::Name(_) | By::Absent => format!("{id}{netns}-{}", s.by),
            }
        };
        let interfaces: Vec<Interface> =
            public_interfaces.iter().map(|s| Interface { id: id_of(s), selector: s.clone() }).collect();
        if let Some(twice) = interfaces.iter().enumerate().find(|(i, x)| interfaces[..*i].contains(x)) {
            return Err(problem(format!("public_interfaces: {} is there twice", twice.1.selector)));
        }
        let side = side.unwrap_or(Side::Host);
        let translations = translations.unwrap_or(true);
        let (server, source) = (None, None);
        Ok(Resource { id, kind, name, contract, datacenter, server, side, translations, labels, source, interfaces })
    }
}

/// As much of a name as is kept, of one that nobody has written for us; whether that is not all of it.
pub(super) fn fit_name(name: &str) -> (String, bool) {
    let mut fit: String = name.chars().filter(|c| !c.is_control()).collect();
    fit.truncate(fit.floor_char_boundary(RESOURCE_NAME_BYTES_MAX));
    let is_cut = fit != name;
    (fit, is_cut)
}

fn check_name(name: &str) -> Result<(), String> {
    if name.len() > RESOURCE_NAME_BYTES_MAX || name.chars().any(char::is_control) {
        return Err(format!("name: at most {RESOURCE_NAME_BYTES_MAX} bytes without control characters"));
    }
    Ok(())
}

fn check_selector(selector: &Selector) -> Result<(), String> {
    match &selector.by {
        By::Name(name) => {
            let allowed = |c: char| c.is_ascii_graphic() && c != '/' && c != ':';
            let good = (1..=INTERFACE_NAME_BYTES_MAX).contains(&name.len()) && name.chars().all(allowed);
            if good && name != "." && name != ".." {
                Ok(())
            } else {
                Err(format!(
                    "interface name `{name}`: 1 to {INTERFACE_NAME_BYTES_MAX} printable characters without `/` or `:`"
                ))
            }
        }
        By::Index(0) => Err("interface index 0: indexes begin at 1".to_owned()),
        By::Mac(mac) if mac.0 == [0; 6] => Err("interface mac: an address of zeros is nobody's".to_owned()),
        By::Absent => Err("interface: give one of `name`, `mac` and `index`".to_owned()),
        By::Mac(_) | By::Index(_) => Ok(()),
    }
}
