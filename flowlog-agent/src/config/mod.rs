//! What the agent is told to do: the command line's flags or a TOML file, turned into checked rules.

#[cfg(test)]
mod documents;
mod flags;
mod keys;
mod layers;
mod marks;
mod raw;
mod rules;
mod select;
#[cfg(test)]
mod shipped;
mod sizes;
#[cfg(test)]
mod table;
mod values;

use std::path::PathBuf;

pub(crate) use flags::{CaptureFlags, EndFlags, StoreFlags};
use flowlog_control::{
    etcd::EtcdOptions,
    flow_logs::{flow_log::Settings, templates::Templates},
    inventory::{
        load::Places,
        source::spec::{self as sources, SourceKind, SourceSpec},
    },
    metrics::Endpoint,
    serve::ApiOptions,
};
use flowlog_kernel::{Moves, Sizes, pins::PIN_DIR_DEFAULT};
use flowlog_model::{
    CaptureSpec, HookKind, Labels, S3Options,
    amount::{Secs, Size},
    interface::{NetnsName, Selector},
    rule::{Action, Directions, Format, InvalidField, Layout, Location, Name, Rule, Side, Target, key_part, subsecond},
    xdp::XdpLevel,
};
use flowlog_pipeline::spool::Limits;
pub(crate) use keys::needs_restart;
pub(crate) use layers::{Layers, Merged, Setting};
pub(crate) use marks::Marks;
use raw::RawInventory;
pub(crate) use raw::{RawConfig, RawFlowLog, RawSizes};
use values::{host_name, window};

/// Default window: 10 minutes, as cloud flow logs have it.
pub(crate) const WINDOW_SECS_DEFAULT: u32 = 600;
/// Default of `layout`, as it is written.
pub(crate) const LAYOUT_DEFAULT: &str = Layout::Hive.as_str();
/// Default of `format`, as it is written.
pub(crate) const FORMAT_DEFAULT: &str = Format::Parquet.as_str();
/// Default name of the implicit rule.
pub(crate) const NAME_DEFAULT: &str = "flowlog";
pub(crate) const STATE_DIR_DEFAULT: &str = "/var/lib/flowlog";
/// Default of the node's own socket.
pub(crate) const SOCKET_DEFAULT: &str = "/run/flowlog/agent.sock";
/// Largest configuration file that is read.
const CONFIG_BYTES_MAX: u64 = 1 << 20;
/// Default cap on flows in open windows. What each takes is in `agent/memory.rs`.
pub(crate) const FLOWS_MAX_DEFAULT: usize = 2_000_000;
/// Below it, objects are all overhead.
pub(crate) const FLOWS_MAX_MIN: usize = 1_000;

/// A whole configuration, checked as far as that goes without looking at the system.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Config {
    pub captures: Vec<CaptureSpec>,
    pub node_id: String,
    pub state_dir: PathBuf,
    /// Where the capture is pinned, so that it outlives the agent; `None`: it does not.
    pub pin_dir: Option<PathBuf>,
    /// What the spool may hold.
    pub spool: Limits,
    pub sizes: Sizes,
    /// Flows in the open windows of all interfaces before the largest is written early.
    pub flows_max: usize,
    /// Interfaces that were captured here are looked for in other network namespaces, too: the agent keeps what that takes.
    pub follow_namespaces: bool,
    /// Interfaces of other network namespaces may be captured: followed ones, or those whose namespace is named.
    pub enters_namespaces: bool,
    /// Our tcx hooks are put in front again where somebody else's program went in front of them.
    pub restore_order: bool,
    /// How closely it is looked at what other people's native XDP programs do.
    pub xdp: XdpLevel,
    /// Drop reasons that count as something else than by default.
    pub reasons: Moves,
    /// Which mark of a refused packet is recorded, and which rules are known by it.
    pub marks: Marks,
    /// How to reach buckets.
    pub s3: S3Options,
    /// Where figures are served for Prometheus.
    pub metrics: Option<Endpoint>,
    /// Rules from a store, managed through the API; `None`: only those above.
    pub manage: Option<Manage>,
}

impl Config {
    /// Whether files are read that may be another user's.
    #[must_use]
    pub(crate) fn reads_others_files(&self) -> bool {
        self.manage.iter().flat_map(|m| &m.sources).any(|s| s.kind() == SourceKind::Libvirt)
    }

    /// Whether anybody wants the other side of address translations. Rules from a store may at any time.
    #[must_use]
    pub(crate) fn may_want_translations(&self) -> bool {
        self.manage.as_ref().is_some_and(Manage::has_inventory) || self.captures.iter().any(|c| c.translations)
    }
}

/// Where rules come from that are not in the configuration, and how they are managed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Manage {
    pub places: Places,
    /// Where the flow logs are; `None`: in a file of this node.
    pub etcd: Option<EtcdOptions>,
    /// What the hypervisor knows.
    pub sources: Vec<SourceSpec>,
    /// Flow logs by selection.
    pub templates: Templates,
    /// Who may do what; nobody but the node's operator if absent.
    pub principals: Option<PathBuf>,
    /// For new flow logs.
    pub settings: Settings,
    /// Where the API is served.
    pub api: ApiOptions,
}

impl Manage {
    /// Whether there are interfaces whose flow logs can be managed.
    #[must_use]
    fn has_inventory(&self) -> bool {
        self.places.file.is_some() || self.places.dir.is_some() || !self.sources.is_empty()
    }
}

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// A field breaks a rule.
    #[error(transparent)]
    Field(#[from] InvalidField),
    /// The file cannot be read.
    #[error("config `{}`: {source}", path.display())]
    Unreadable { path: PathBuf, source: std::io::Error },
    /// What is in it cannot be used.
    #[error("config `{}`: {problem}", path.display())]
    File { path: PathBuf, problem: String },
    /// A flag says what cannot be, or nothing.
    #[error("{0}")]
    Flag(String),
}

impl RawConfig {
    /// As [`check`](Self::check), for commands that capture nothing new.
    pub(crate) fn check_without_captures(mut self) -> Result<Config, ConfigError> {
        self.flow_logs.clear();
        self.check_with(0)
    }

    /// Checks everything that can be checked without looking at the system.
    pub(crate) fn check(self) -> Result<Config, ConfigError> {
        let captures_min = usize::from(self.inventory.is_none());
        self.check_with(captures_min)
    }

    fn manage(&self) -> Result<Option<Manage>, InvalidField> {
        let api = &self.api;
        let inventory = match &self.inventory {
            Some(RawInventory { file: None, dir: None, sources }) if sources.is_empty() => {
                return Err(InvalidField::new(
                    "inventory",
                    "",
                    "name its `file`, its `dir`, a `[[inventory.source]]`, or several",
                ));
            }
            // Without one there are no flow logs to manage; the others can be looked at.
            None if api.socket.is_none() && api.listen.is_none() && self.rules.etcd.is_empty() => return Ok(None),
            inventory => inventory.clone().unwrap_or_default(),
        };
        let defaults = &self.flow_log_defaults;
        let tls = match (&api.tls_certificate, &api.tls_key) {
            (Some(certificate), Some(key)) => Some((certificate.clone(), key.clone())),
            (None, None) => None,
            _ => {
                return Err(InvalidField::new(
                    "api.tls_certificate",
                    "",
                    "give `tls_certificate` and `tls_key`, or neither",
                ));
            }
        };
        if let Some(listen) = api.listen.filter(|a| tls.is_none() && !a.ip().is_loopback()) {
            let rule = "passwords and tokens would cross the network in the clear: give `tls_certificate` and `tls_key`, or listen \
                        on a loopback address";
            return Err(InvalidField::new("api.listen", listen.to_string(), rule));
        }
        if let Some(url) = api.public_url.as_ref().filter(|u| !u.starts_with("https://") && !u.starts_with("http://")) {
            return Err(InvalidField::new("api.public_url", url, "write it as `https://host[:port]`"));
        }
        let format = defaults.format.as_deref().map_or(Ok(Format::default()), str::parse)?;
        Ok(Some(Manage {
            places: Places {
                file: inventory.file,
                dir: inventory.dir,
                // The static flow logs say so as well.
                enters_namespaces: self.follow_namespaces || self.flow_logs.iter().any(|log| log.netns.is_some()),
            },
            etcd: self.rules.check()?,
            sources: sources::check_all(&inventory.sources)?,
            templates: select::templates(&self.flow_logs)?,
            principals: api.principals.clone(),
            settings: Settings {
                subsecond: subsecond("flow_log_defaults.subsecond", defaults.subsecond.unwrap_or(false), format)?,
                format,
                window_secs: window("flow_log_defaults.window", defaults.window.as_ref())?,
                hook: defaults.hook.as_deref().map_or(Ok(HookKind::default()), str::parse)?,
                nodata: defaults.nodata.unwrap_or(true),
                layout: defaults.layout.as_deref().map_or(Ok(Layout::default()), str::parse)?,
            },
            api: ApiOptions {
                socket: api.socket.clone().unwrap_or_else(|| PathBuf::from(SOCKET_DEFAULT)),
                listen: api.listen,
                tls,
                node: self.node_id.clone().unwrap_or_else(host_name),
                public_url: api.public_url.clone(),
            },
        }))
    }

    fn check_with(self, captures_min: usize) -> Result<Config, ConfigError> {
        let manage = self.manage()?;
        let node_id = match self.node_id {
            Some(id) => key_part("node_id", &id)?,
            None => host_name(),
        };
        let mut captures = Vec::new();
        if let Some(log) = self.flow_logs.iter().find(|log| log.select.is_some() && self.inventory.is_none()) {
            let name = log.name.as_deref().unwrap_or(NAME_DEFAULT);
            return Err(InvalidField::new("select", name, "selects from the inventory: add `[inventory]`").into());
        }
        for log in self.flow_logs.iter().filter(|log| log.select.is_none()) {
            captures.extend(log.check()?);
        }
        if captures.len() < captures_min {
            return Err(InvalidField::new("interface", "", "name at least one interface to capture").into());
        }
        for (i, c) in captures.iter().enumerate() {
            if captures[..i].iter().any(|other| other.interface == c.interface) {
                let rule = "has two flow logs; an interface takes one";
                return Err(InvalidField::new("interface", c.interface.to_string(), rule).into());
            }
            let id = c.id(&node_id);
            if let Some(other) = captures[..i].iter().find(|other| other.id(&node_id) == id) {
                let rule = format!(
                    "is the id of interface {} and of interface {} in keys and rows; give one of them an `interface_id`",
                    other.interface, c.interface
                );
                return Err(InvalidField::new("interface_id", id, rule).into());
            }
        }
        let sizes = self.kernel.check(captures.len())?;
        let flows_max = self.flows_max.unwrap_or(FLOWS_MAX_DEFAULT);
        if flows_max < FLOWS_MAX_MIN {
            return Err(InvalidField::new(
                "flows_max",
                flows_max.to_string(),
                format!("must be at least {FLOWS_MAX_MIN}"),
            )
            .into());
        }
        let state_dir = self.state_dir.unwrap_or_else(|| PathBuf::from(STATE_DIR_DEFAULT));
        let default = Limits::default();
        let spool = Limits {
            bytes_max: self.spool.bytes_max.map_or(default.bytes_max, |Size(bytes)| bytes),
            age_secs_max: self.spool.age_max.map_or(default.age_secs_max, |Secs(secs)| secs),
        };
        let pin_dir = self.pin_dir.unwrap_or_else(|| PathBuf::from(PIN_DIR_DEFAULT));
        let pin_dir = (!self.no_pin).then_some(pin_dir);
        let follow_namespaces = self.follow_namespaces;
        let enters_namespaces = follow_namespaces || captures.iter().any(|c| c.interface.netns.is_some());
        let xdp: XdpLevel = self.xdp.as_deref().map(str::parse).transpose()?.unwrap_or_default();
        if xdp == XdpLevel::Wrap && pin_dir.is_none() {
            let rule = "needs pins: without, an agent that is killed would leave an interface without its owner's program; leave `no_pin` out";
            return Err(InvalidField::new("xdp", xdp.as_str(), rule).into());
        }
        let marks = Marks::check(&self.rule_mark, &self.verdict_marks)?;
        let reasons = Moves::new(&self.reasons.rejected, &self.reasons.lost, &self.reasons.ignored)?;
        Ok(Config {
            captures,
            node_id,
            state_dir,
            pin_dir,
            spool,
            sizes,
            flows_max,
            follow_namespaces,
            enters_namespaces,
            restore_order: self.restore_order,
            xdp,
            reasons,
            marks,
            s3: self.s3,
            metrics: self.metrics.listen.as_deref().map(str::parse).transpose()?,
            manage,
        })
    }
}

impl RawFlowLog {
    /// What is captured, and where its objects go.
    fn rule(&self) -> Result<Rule, InvalidField> {
        let mut target: Target = self.target.parse()?;
        if let Location::Directory(path) = &mut target.location {
            *path = whole(path).map_err(|e| InvalidField::new("target", &self.target, e.to_string()))?;
        }
        if let Some(prefix) = &self.prefix {
            if target.prefix.is_some() {
                return Err(InvalidField::new("prefix", prefix, "the target has a prefix already; give one of them"));
            }
            target = target.with_prefix(prefix)?;
        }
        let format = self.format.as_deref().map_or(Ok(Format::default()), str::parse)?;
        Ok(Rule {
            id: None,
            name: self.name.as_deref().unwrap_or(NAME_DEFAULT).parse::<Name>()?,
            directions: self.direction.as_deref().map_or(Ok(Directions::default()), str::parse)?,
            action: self.action.as_deref().map_or(Ok(Action::default()), str::parse)?,
            target,
            window_secs: window("window", self.window.as_ref())?,
            nodata: self.nodata.unwrap_or(true),
            subsecond: subsecond("subsecond", self.subsecond.unwrap_or(false), format)?,
            layout: self.layout.as_deref().map_or(Ok(Layout::default()), str::parse)?,
            format,
        })
    }

    fn hook(&self) -> Result<HookKind, InvalidField> {
        self.hook.as_deref().map_or(Ok(HookKind::default()), str::parse)
    }

    fn check(&self) -> Result<Vec<CaptureSpec>, InvalidField> {
        let rule = self.rule()?;
        let hook = self.hook()?;
        if self.interfaces.is_empty() {
            return Err(InvalidField::new(
                "interfaces",
                rule.name.as_str(),
                "name one at least, or `select` from the inventory",
            ));
        }
        let interface_id = self.interface_id.as_deref().map(|id| key_part("interface_id", id)).transpose()?;
        if interface_id.is_some() && self.interfaces.len() != 1 {
            let rule = "belongs to one interface; write one flow log for each";
            return Err(InvalidField::new("interface_id", interface_id.unwrap_or_default(), rule));
        }
        let netns: Option<NetnsName> = self.netns.as_deref().map(str::parse).transpose()?;
        Ok(self
            .interfaces
            .iter()
            .map(|interface| CaptureSpec {
                interface: Selector::name(interface).within(netns.clone()),
                interface_id: interface_id.clone(),
                account_id: self.account_id.clone(),
                hook,
                side: Side::Host,
                wait: self.wait.unwrap_or(false),
                translations: self.translations.unwrap_or(false),
                labels: Labels::default(),
                rule: rule.clone(),
                called: None,
            })
            .collect())
    }
}

/// A path as the whole node knows it: what is written relative is meant from where the command was started.
#[allow(clippy::disallowed_methods, reason = "here the working directory is asked, and nowhere else")]
pub(crate) fn whole(path: &std::path::Path) -> std::io::Result<PathBuf> {
    std::path::absolute(path)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("flowlog.toml");
        fs::write(&path, text).expect("write");
        let layers = Layers { file: Some(path), ..Layers::default() };
        layers.read().and_then(|merged| merged.raw.check()).map_err(|e| e.to_string())
    }

    #[test]
    fn a_small_file_gets_all_defaults() {
        let config = parse("[[flow_log]]\ninterfaces = ['eth0', 'eth1']\ntarget = 's3://flows/team'\n").expect("good");
        assert_eq!(config.captures.len(), 2);
        let rule = &config.captures[1].rule;
        assert_eq!((rule.window_secs, rule.name.as_str(), rule.nodata), (600, "flowlog", true));
        assert_eq!(rule.target.prefix.as_deref(), Some("team"));
        let relative = parse("[[flow_log]]\ninterfaces = ['eth0']\ntarget = './flows'\n").expect("good");
        let whole = relative.captures[0].rule.target.to_string();
        assert!(whole.starts_with("file:///") && whole.ends_with("/flows") && !whole.contains("/./"), "{whole}");
    }

    #[test]
    fn a_file_that_is_too_large_too_deep_or_names_too_many_interfaces_is_refused() {
        let huge = format!("# {}\n", "x".repeat(2 << 20));
        assert!(parse(&huge).expect_err("large").contains("at most 1048576 are read"));
        let deep = format!("node_id = {}{}", "[".repeat(5_000), "]".repeat(5_000));
        assert!(parse(&deep).expect_err("deep").contains("flowlog.toml"));
        let names: Vec<String> = (0..600).map(|n| format!("'tap{n}'")).collect();
        let many = format!("[[flow_log]]\ninterfaces = [{}]\ntarget = '/x'\n", names.join(","));
        assert!(parse(&many).expect_err("many").contains("`kernel.interfaces_max` (512"));
        assert!(parse(&format!("{many}[kernel]\ninterfaces_max = 600\n")).is_ok());
    }

    #[test]
    fn bad_input_names_field_value_and_remedy_on_one_line() {
        let log = |more: &str| format!("[[flow_log]]\ninterfaces = ['e0']\ntarget = '/tmp/x'\n{more}");
        for (text, expected) in [
            (log("window = 0"), "window `0`: must be at least 1 second"),
            (log("window = '7m'"), "window `7m`: must divide a day evenly"),
            (
                log("[inventory]\nfile = '/x'\n[flow_log_defaults]\nwindow = '7m'"),
                "flow_log_defaults.window `7m`: must",
            ),
            (
                log("format = 'text'\nsubsecond = true"),
                "subsecond `true`: objects of `format = \"text\"` have no columns",
            ),
            (
                log("[inventory]\nfile = '/x'\n[flow_log_defaults]\nformat = 'text'\nsubsecond = true"),
                "flow_log_defaults.subsecond `true`: objects of",
            ),
            (log("[kernel]\nring_bytes = '3MiB'"), "kernel.ring_bytes `3MiB`: must be a power of two"),
            (log("prefix = 'a/b'"), "prefix `a/b`: may not contain `/`"),
            (log("prefix = 'a%2Fb'"), "prefix `a%2Fb`: may not contain `/` or `%2F`"),
            (log("direction = 'up'"), "direction `up`: use `ingress`"),
            (log("colour = 'red'"), "line 4: unknown field `colour`"),
            (log("hook = 'magic'"), "hook `magic`: use"),
            (log("[kernel]\ninterfaces_max = 65535"), "kernel.interfaces_max `65535`: must be at most 65534"),
            (log("[kernel]\ncache_slots = 1000"), "kernel.cache_slots `1000`: must be a power of two"),
            ("[[flow_log]]\ninterfaces = ['a','a']\ntarget = '/x'".to_owned(), "interface `a`: has two flow logs"),
            (
                "node_id = 'n'\n[[flow_log]]\ninterfaces = ['z-1']\nnetns = 'q'\ntarget = '/x'\n\
                 [[flow_log]]\ninterfaces = ['1']\nnetns = 'q-z'\ntarget = '/x'"
                    .to_owned(),
                "interface_id `n-q-z-1`: is the id of interface z-1 of network namespace q and of",
            ),
            ("node_id = 'x'".to_owned(), "name at least one interface"),
        ] {
            let error = parse(&text).expect_err(&text);
            assert!(error.contains(expected) && !error.contains('\n'), "{error}");
        }
    }
}
