//! The configuration file, as written: TOML, unknown keys refused. Checking it is in [`super`].

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf};

use flowlog_control::inventory::{Kind as ResourceKind, source::spec::RawSource};
use flowlog_model::{
    Labels, S3Options,
    amount::{Secs, Size, Written},
};
use serde::Deserialize;

/// The file, as written. Flags fill the same structure.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawConfig {
    /// Node id; the host name if absent.
    pub node_id: Option<String>,
    pub state_dir: Option<PathBuf>,
    /// See [`super::Config::pin_dir`].
    pub pin_dir: Option<PathBuf>,
    /// End the capture with the agent.
    #[serde(default)]
    pub no_pin: bool,
    /// See [`super::Config::flows_max`].
    pub flows_max: Option<usize>,
    /// See [`super::Config::follow_namespaces`].
    #[serde(default)]
    pub follow_namespaces: bool,
    /// See [`super::Config::restore_order`].
    #[serde(default)]
    pub restore_order: bool,
    /// `counters`, `trace`, `wrap`: see [`super::Config::xdp`].
    pub xdp: Option<String>,
    /// Limits of the spool.
    #[serde(default)]
    pub spool: RawSpool,
    #[serde(default)]
    pub kernel: RawSizes,
    /// What drop reasons count as.
    #[serde(default)]
    pub reasons: RawReasons,
    /// Which mark of a refused packet is recorded.
    #[serde(default)]
    pub rule_mark: RawMark,
    /// Names of rules by their mark, which is a number in quotes: decimal, or hexadecimal behind `0x`.
    #[serde(default)]
    pub verdict_marks: BTreeMap<String, String>,
    #[serde(default)]
    pub s3: S3Options,
    /// Where the flow logs are that customers manage.
    #[serde(default)]
    pub rules: RawRules,
    /// What is on this node.
    pub inventory: Option<RawInventory>,
    #[serde(default)]
    pub api: RawApi,
    #[serde(default)]
    pub metrics: RawMetrics,
    /// For flow logs that are made through the API.
    #[serde(default)]
    pub flow_log_defaults: RawDefaults,
    #[serde(default, rename = "flow_log")]
    pub flow_logs: Vec<RawFlowLog>,
}

/// The table `[kernel]` of the file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawSizes {
    /// Slots of the flow cache for each CPU.
    pub cache_slots: Option<u32>,
    /// Slots of the refused cache for each CPU.
    pub refused_slots: Option<u32>,
    /// Size of the ring buffer.
    pub ring_bytes: Option<Written<Size>>,
    /// Interfaces that can be watched.
    pub interfaces_max: Option<u16>,
}

/// The table `[reasons]` of the file: names of drop reasons, as in docs/reasons.md.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawReasons {
    /// Packets that die for these are REJECT.
    #[serde(default)]
    pub rejected: Vec<String>,
    /// Packets that die for these are ACCEPT, and lost.
    #[serde(default)]
    pub lost: Vec<String>,
    /// Packets that die for these are ACCEPT, and nothing else is said of them.
    #[serde(default)]
    pub ignored: Vec<String>,
}

/// The table `[rule_mark]` of the file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawMark {
    /// `packet`, `connection` or `nothing`.
    pub from: Option<String>,
    /// Bits of it that count.
    pub mask: Option<u32>,
}

/// The table `[spool]` of the file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawSpool {
    /// Bytes before windows leave their totals only.
    pub bytes_max: Option<Size>,
    /// Age of the oldest object before windows leave their totals only. `age_secs_max` was its name.
    #[serde(alias = "age_secs_max")]
    pub age_max: Option<Secs>,
}

/// The table `[rules]` of the file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawRules {
    /// URLs of etcd's members; without any the flow logs are the node's own.
    #[serde(default)]
    pub etcd: Vec<String>,
    /// See [`super::EtcdOptions`].
    pub etcd_ca: Option<PathBuf>,
    pub etcd_certificate: Option<PathBuf>,
    pub etcd_key: Option<PathBuf>,
    pub etcd_credentials: Option<PathBuf>,
    pub etcd_prefix: Option<String>,
}

/// `[inventory]`. With it, flow logs are managed through the API, which is served then in any case.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawInventory {
    pub file: Option<PathBuf>,
    /// The directory of drop-ins.
    pub dir: Option<PathBuf>,
    /// What the hypervisor knows.
    #[serde(default, rename = "source")]
    pub sources: Vec<RawSource>,
}

/// The table `[api]` of the file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawApi {
    /// The node's own socket.
    pub socket: Option<PathBuf>,
    /// Who may do what.
    pub principals: Option<PathBuf>,
    pub listen: Option<SocketAddr>,
    /// Certificate chain in PEM form.
    pub tls_certificate: Option<PathBuf>,
    /// Its key in PEM form.
    pub tls_key: Option<PathBuf>,
    /// See [`super::ApiOptions::public_url`].
    pub public_url: Option<String>,
}

/// The table `[metrics]` of the file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawMetrics {
    /// Loopback address, or absolute path of a socket, on which figures are served.
    pub listen: Option<String>,
}

/// The table `[flow_log_defaults]` of the file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawDefaults {
    pub window: Option<Written<Secs>>,
    /// `tc`, `tcx`, `clsact`, `xdp`.
    pub hook: Option<String>,
    /// Write an object for a window without traffic.
    pub nodata: Option<bool>,
    /// Times to the nanosecond as well as to the second.
    pub subsecond: Option<bool>,
    /// How keys are made up: `hive` or `flat`.
    pub layout: Option<String>,
    pub format: Option<String>,
}

/// One of the tables `[[flow_log]]` of the file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawFlowLog {
    /// Names of interfaces; one capture for each.
    #[serde(default)]
    pub interfaces: Vec<String>,
    /// Instead: what of the inventory it is for.
    pub select: Option<RawSelect>,
    /// The network namespace that they are in: a name of `ip netns`, or a path.
    pub netns: Option<String>,
    pub target: String,
    /// First part of every key.
    pub prefix: Option<String>,
    /// Name of the rule.
    pub name: Option<String>,
    /// One of `ingress`, `egress`, `bidirectional`.
    pub direction: Option<String>,
    /// One of `accepted`, `rejected`, `any`.
    pub action: Option<String>,
    pub window: Option<Written<Secs>>,
    /// `tc`, `tcx`, `clsact`, `xdp`.
    pub hook: Option<String>,
    /// The interface need not exist at the start.
    pub wait: Option<bool>,
    /// Rows have the other side of address translations.
    pub translations: Option<bool>,
    /// Write an object for a window without traffic.
    pub nodata: Option<bool>,
    /// Times to the nanosecond as well as to the second.
    pub subsecond: Option<bool>,
    /// How keys are made up: `hive` or `flat`.
    pub layout: Option<String>,
    pub format: Option<String>,
    /// Inventory id; only with one interface.
    pub interface_id: Option<String>,
    pub account_id: Option<String>,
}

/// `select` of a flow log.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawSelect {
    pub contract: Option<String>,
    /// `nic`, `nat_gateway`, …
    pub kind: Option<ResourceKind>,
    #[serde(default)]
    pub label: Labels,
}
