//! Every key of the configuration, once: with its flag, its default, and whether it can change while the agent runs. Flags, what
//! `flowlog check` shows, what a reload refuses, and docs/configuration.md are made from this table; tests compare it with what is read.

use flowlog_kernel::pins::PIN_DIR_DEFAULT;
use flowlog_model::rule::{Format, Layout};

use super::{FORMAT_DEFAULT, LAYOUT_DEFAULT, NAME_DEFAULT, STATE_DIR_DEFAULT};

/// What is written behind a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Text,
    /// A path of this machine.
    Path,
    Number,
    /// A length of time: seconds, or with a unit.
    Time,
    /// A number of bytes, or one with a unit.
    Size,
    /// `true` or `false`.
    Switch,
    /// One of these.
    Word(&'static [&'static str]),
    /// An address and a port.
    Address,
    /// Several texts.
    List,
    /// A table of names.
    Table,
}

impl Form {
    /// What it is called in documents.
    #[cfg(test)]
    pub(crate) const fn unit(self) -> &'static str {
        match self {
            Self::Text | Self::Word(_) => "text",
            Self::Path => "path",
            Self::Number => "number",
            Self::Time => "time",
            Self::Size => "size",
            Self::Switch => "true, false",
            Self::Address => "address",
            Self::List => "list of text",
            Self::Table => "table",
        }
    }
}

/// What holds where nothing is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fallback {
    /// This, as it would be written.
    Is(&'static str),
    /// What these words say.
    Words(&'static str),
}

/// Whether a key can change while the agent runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Takes {
    /// A reload applies it.
    Reload,
    /// It takes a new start, which misses no packet.
    Restart,
    /// It takes the end of the capture, and a new one.
    Detach,
}

impl Takes {
    /// What to do to change it.
    #[cfg(test)]
    pub(crate) const fn words(self) -> &'static str {
        match self {
            Self::Reload => "reload",
            Self::Restart => "restart",
            Self::Detach => "detach",
        }
    }
}

/// Where a flag stands in the help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Group {
    FlowLog,
    Node,
    Limits,
    Listeners,
    Store,
    Kernel,
}

impl Group {
    pub(crate) const fn heading(self) -> &'static str {
        match self {
            Self::FlowLog => "Flow log",
            Self::Node => "Node",
            Self::Limits => "Limits",
            Self::Listeners => "Listeners",
            Self::Store => "Object store",
            Self::Kernel => "Kernel",
        }
    }
}

/// The flag of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Flag {
    pub name: &'static str,
    pub short: Option<char>,
    /// What stands for its value in the help.
    pub value: &'static str,
    pub group: Group,
    /// It switches its key off.
    pub is_negative: bool,
}

/// See the module's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ConfigKey {
    /// The table it is in; empty: none.
    pub table: &'static str,
    pub name: &'static str,
    /// What it was called before, and may still be.
    pub old_name: Option<&'static str>,
    pub form: Form,
    pub flag: Option<Flag>,
    pub default: Fallback,
    pub takes: Takes,
    /// What it says.
    pub help: &'static str,
    /// The same, of a flag that switches it off.
    pub flag_help: &'static str,
}

impl ConfigKey {
    const fn new(table: &'static str, name: &'static str, form: Form, default: Fallback, help: &'static str) -> Self {
        let takes = Takes::Restart;
        Self { table, name, old_name: None, form, flag: None, default, takes, help, flag_help: help }
    }

    const fn applies(self) -> Self {
        Self { takes: Takes::Reload, ..self }
    }

    const fn takes_detach(self) -> Self {
        Self { takes: Takes::Detach, ..self }
    }

    const fn was(self, old_name: &'static str) -> Self {
        Self { old_name: Some(old_name), ..self }
    }

    const fn flag(self, group: Group, name: &'static str, value: &'static str) -> Self {
        Self { flag: Some(Flag { name, short: None, value, group, is_negative: false }), ..self }
    }

    const fn short(self, group: Group, (short, name): (char, &'static str), value: &'static str) -> Self {
        Self { flag: Some(Flag { name, short: Some(short), value, group, is_negative: false }), ..self }
    }

    const fn switch_off(self, group: Group, name: &'static str, flag_help: &'static str) -> Self {
        let flag = Some(Flag { name, short: None, value: "true|false", group, is_negative: true });
        Self { flag, flag_help, ..self }
    }

    /// As people write it: `spool.bytes_max`.
    #[must_use]
    pub(crate) fn path(&self) -> String {
        if self.table.is_empty() { self.name.to_owned() } else { format!("{}.{}", self.table, self.name) }
    }

    /// Whether this is what it is called where its value breaks a rule.
    #[must_use]
    pub(crate) fn is_called(&self, field: &str) -> bool {
        let is_its = self.name == field || self.name.strip_suffix('s') == Some(field);
        self.path() == field || (self.is_of_flow_log() && is_its)
    }

    /// Whether it is of a flow log of the file.
    #[must_use]
    pub(crate) fn is_of_flow_log(&self) -> bool {
        self.table == FLOW_LOG
    }
}

/// What to do about what cannot change while the agent runs.
const NEEDS_RESTART: &str = "restart to change it: the capture goes on meanwhile, and no packet is missed";
/// The same, of what the kernel's half has been made with.
const NEEDS_DETACH: &str =
    "`flowlog detach` ends the capture that was made with it, and the next start begins one with the new value";
/// The same where nothing is pinned: the agent's end is that of the capture.
const NEEDS_RESTART_UNPINNED: &str = "restart to change it; nothing is pinned, so the capture ends with this agent, and packets until the next start are in no object";

impl Takes {
    /// What to do about what a reload cannot apply; `None`: it can.
    #[must_use]
    pub(crate) const fn remedy(self, is_pinned: bool) -> Option<&'static str> {
        match self {
            Self::Reload => None,
            Self::Restart | Self::Detach if !is_pinned => Some(NEEDS_RESTART_UNPINNED),
            Self::Restart => Some(NEEDS_RESTART),
            Self::Detach => Some(NEEDS_DETACH),
        }
    }
}

/// What to do about what takes a new start, whichever key it is.
#[must_use]
pub(crate) const fn needs_restart(is_pinned: bool) -> &'static str {
    if is_pinned { NEEDS_RESTART } else { NEEDS_RESTART_UNPINNED }
}

impl ConfigKey {
    /// Why a reload cannot apply it; `None`: it can.
    #[must_use]
    pub(crate) fn refused_by_a_reload(&self, is_pinned: bool) -> Option<String> {
        self.takes.remedy(is_pinned).map(|how| format!("{}: {how}", self.path()))
    }

    /// Whether it is a size of the kernel's maps: what is in force may be so without being written.
    pub(crate) fn is_map_size(&self) -> bool {
        const SIZES: [&str; 4] = ["cache_slots", "refused_slots", "ring_bytes", "interfaces_max"];
        self.path().strip_prefix("kernel.").is_some_and(|name| SIZES.contains(&name))
    }
}

/// The table of a flow log; there may be several.
pub(crate) const FLOW_LOG: &str = "flow_log";
/// What customers do not choose for theirs.
pub(crate) const FLOW_LOG_DEFAULTS: &str = "flow_log_defaults";

const DIRECTIONS: Form = Form::Word(&["bidirectional", "ingress", "egress"]);
const ACTIONS: Form = Form::Word(&["any", "accepted", "rejected"]);
const HOOKS: Form = Form::Word(&["tc", "tcx", "clsact", "xdp"]);
const LEVELS: Form = Form::Word(&["counters", "trace", "wrap"]);
const LAYOUTS: Form = Form::Word(Layout::WORDS);
const FORMATS: Form = Form::Word(Format::WORDS);
const MARKS: Form = Form::Word(&["packet", "connection", "nothing"]);

const FALSE: Fallback = Fallback::Is("false");
const TRUE: Fallback = Fallback::Is("true");
const EMPTY: Fallback = Fallback::Is("[]");
const NONE: Fallback = Fallback::Words("none");

use Fallback::{Is, Words};
use Form::{Address, List, Number, Path, Size, Switch, Text, Time};

/// All of them, in the order of the shipped file.
pub(crate) const KEYS: &[ConfigKey] = &[
    ConfigKey::new("", "node_id", Text, Words("the host name"), "Id of this node in records and keys")
        .flag(Group::Node, "node-id", "ID"),
    ConfigKey::new("", "state_dir", Path, Is(STATE_DIR_DEFAULT), "Where undelivered objects wait; where STATE_DIRECTORY is set, that directory")
        .flag(Group::Node, "state-dir", "DIR"),
    ConfigKey::new("", "pin_dir", Path, Is(PIN_DIR_DEFAULT), "Where the capture is pinned, so that it outlives the agent")
        .flag(Group::Node, "pin-dir", "DIR")
        .takes_detach(),
    ConfigKey::new("", "no_pin", Switch, FALSE, "End the capture with the agent, and leave nothing behind in the kernel")
        .flag(Group::Node, "no-pin", "true|false")
        .takes_detach(),
    ConfigKey::new(
        "",
        "flows_max",
        Number,
        Words("2000000, or as many as fit into the memory limit"),
        "Flows in memory before the largest window is written early; 300 bytes each at most",
    )
    .flag(Group::Limits, "flows-max", "N")
    .applies(),
    ConfigKey::new(
        "",
        "follow_namespaces",
        Switch,
        FALSE,
        "Follow interfaces that are moved to other network namespaces; needs CAP_SYS_ADMIN and CAP_SYS_PTRACE for good",
    )
    .flag(Group::Node, "follow-namespaces", "true|false"),
    ConfigKey::new(
        "",
        "restore_order",
        Switch,
        FALSE,
        "Put tcx hooks in front again where somebody else's program went in front of them",
    )
    .flag(Group::Node, "restore-order", "true|false")
    .applies(),
    ConfigKey::new(
        "",
        "xdp",
        LEVELS,
        Is("counters"),
        "How closely to look at what other people's native XDP programs do: the driver's counters, trace, or wrap (run them ourselves); \
         the latter two need CAP_SYS_ADMIN for good",
    )
    .flag(Group::Node, "xdp", "LEVEL"),
    ConfigKey::new(
        "spool",
        "bytes_max",
        Size,
        Is("4GiB"),
        "Undelivered objects before windows leave their totals only",
    )
    .flag(Group::Limits, "spool-bytes-max", "SIZE")
    .applies(),
    ConfigKey::new(
        "spool",
        "age_max",
        Time,
        Is("7d"),
        "Age of the oldest undelivered object before windows leave their totals only",
    )
    .flag(Group::Limits, "spool-age-max", "TIME")
    .was("age_secs_max")
    .applies(),
    ConfigKey::new("kernel", "cache_slots", Number, Words("as pinned, else 16384; up to 65536 with more than 16 CPUs, fewer in little memory"), "Flow cache slots for each CPU and address family; a power of two")
        .flag(Group::Kernel, "cache-slots", "N")
        .takes_detach(),
    ConfigKey::new("kernel", "refused_slots", Number, Is("4096"), "Cache slots for refused flows, likewise; a power of two")
        .flag(Group::Kernel, "refused-slots", "N")
        .takes_detach(),
    ConfigKey::new("kernel", "ring_bytes", Size, Words("as pinned, else 32MiB; 8MiB or 16MiB with less than 4GiB of memory, 64MiB with 50 CPUs and more"), "Ring buffer between kernel and agent; a power of two")
        .flag(Group::Kernel, "ring-bytes", "SIZE")
        .takes_detach(),
    ConfigKey::new("kernel", "interfaces_max", Number, Is("512"), "Interfaces that can be watched, at most 65534")
        .flag(Group::Kernel, "interfaces-max", "N")
        .takes_detach(),
    ConfigKey::new("reasons", "rejected", List, EMPTY, "Drop reasons, by name: packets that die for these are REJECT").applies(),
    ConfigKey::new("reasons", "lost", List, EMPTY, "... are ACCEPT, and lost").applies(),
    ConfigKey::new("reasons", "ignored", List, EMPTY, "... are ACCEPT, and nothing else is said of them").applies(),
    ConfigKey::new("rule_mark", "from", MARKS, Is("packet"), "Which mark of a refused packet says the rule of your firewall"),
    ConfigKey::new("rule_mark", "mask", Number, Is("0xffffffff"), "Which bits of it"),
    ConfigKey::new("", "verdict_marks", Form::Table, NONE, "Names of rules, by their mark: `0x12 = \"sg-ssh\"`").applies(),
    ConfigKey::new("s3", "endpoint", Text, Words("AWS"), "URL of the S3 server").flag(Group::Store, "s3-endpoint", "URL").applies(),
    ConfigKey::new("s3", "region", Text, Words("us-east-1"), "S3 region").flag(Group::Store, "s3-region", "REGION").applies(),
    ConfigKey::new("s3", "path_style", Switch, FALSE, "Bucket in the path, not in the host name")
        .flag(Group::Store, "s3-path-style", "true|false")
        .applies(),
    ConfigKey::new("s3", "allow_http", Switch, FALSE, "Allow an http:// endpoint")
        .flag(Group::Store, "s3-allow-http", "true|false")
        .applies(),
    ConfigKey::new(
        "s3",
        "credentials_file",
        Path,
        Words("what systemd hands over as `s3`, else AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        "File with S3 credentials in the AWS format; read again when it changes",
    )
    .flag(Group::Store, "s3-credentials", "FILE")
    .applies(),
    ConfigKey::new("s3", "acl", Switch, TRUE, "Objects have the ACL that lets the bucket's owner read them")
        .switch_off(Group::Store, "s3-no-acl", "Put objects without the ACL that lets the bucket's owner read them")
        .applies(),
    ConfigKey::new("rules", "etcd", List, EMPTY, "Members of the etcd that has the flow logs of a region, as https://host:2379; none: this node has its own"),
    ConfigKey::new("rules", "etcd_ca", Path, Words("the system's authorities"), "Authorities in PEM form that etcd's certificates are signed by"),
    ConfigKey::new("rules", "etcd_certificate", Path, NONE, "Our certificate for etcd, in PEM form"),
    ConfigKey::new("rules", "etcd_key", Path, NONE, "Its key in PEM form"),
    ConfigKey::new("rules", "etcd_credentials", Path, NONE, "File with user:password for etcd"),
    ConfigKey::new("rules", "etcd_prefix", Text, Is("/flowlog/v1"), "What flowlog's keys in etcd begin with"),
    ConfigKey::new("inventory", "file", Path, NONE, "What is on this node, for flow logs that customers manage; its content is read again when it changes").applies(),
    ConfigKey::new("inventory", "dir", Path, NONE, "The same, as a directory of drop-ins").applies(),
    ConfigKey::new("inventory", "source", Form::Table, NONE, "What the hypervisor knows of this node; one `[[inventory.source]]` each"),
    ConfigKey::new("api", "socket", Path, Words("none, with an inventory /run/flowlog/agent.sock"), "The node's own socket, for observe, top and rule")
        .flag(Group::Listeners, "socket", "FILE")
        .applies(),
    ConfigKey::new("api", "principals", Path, Words("none: nobody but root"), "Who may do what; its content is read again when it changes").applies(),
    ConfigKey::new("api", "listen", Address, NONE, "Address of the API, in addition to the socket; without TLS on loopback only").applies(),
    ConfigKey::new("api", "tls_certificate", Path, NONE, "Certificate chain in PEM form; read again when it changes").applies(),
    ConfigKey::new("api", "tls_key", Path, NONE, "Its key in PEM form; read again when it changes").applies(),
    ConfigKey::new("api", "public_url", Text, Words("the address that was reached"), "What links begin with").applies(),
    ConfigKey::new("metrics", "listen", Text, NONE, "Where figures for Prometheus are served: a loopback address, or the absolute path of a socket")
        .flag(Group::Listeners, "metrics-listen", "ADDRESS")
        .applies(),
    ConfigKey::new(FLOW_LOG_DEFAULTS, "window", Time, Is("10m"), "Length of a window of flow logs that customers make").applies(),
    ConfigKey::new(FLOW_LOG_DEFAULTS, "hook", HOOKS, Is("tc"), "How their interfaces are hooked").applies(),
    ConfigKey::new(FLOW_LOG_DEFAULTS, "nodata", Switch, TRUE, "Write an object for a window without traffic").applies(),
    ConfigKey::new(FLOW_LOG_DEFAULTS, "subsecond", Switch, FALSE, "Fill the columns start_ns and end_ns too").applies(),
    ConfigKey::new(FLOW_LOG_DEFAULTS, "layout", LAYOUTS, Is(LAYOUT_DEFAULT), "How keys are made up").applies(),
    ConfigKey::new(FLOW_LOG_DEFAULTS, "format", FORMATS, Is(FORMAT_DEFAULT), "What objects are").applies(),
    ConfigKey::new(FLOW_LOG, "interfaces", List, Words("needed, or `select`"), "Interface to capture; several are so many captures")
        .short(Group::FlowLog, ('i', "interface"), "NAME")
        .applies(),
    ConfigKey::new(FLOW_LOG, "select", Form::Table, NONE, "Instead of interfaces: which resources of the inventory it is for, by contract, kind and label")
        .applies(),
    ConfigKey::new(FLOW_LOG, "netns", Text, Words("the agent's own"), "Network namespace that the interfaces are in: a name of `ip netns`, or a path; needs what follow-namespaces needs")
        .flag(Group::FlowLog, "netns", "NAME")
        .applies(),
    ConfigKey::new(FLOW_LOG, "target", Text, Words("needed"), "Where objects go: s3://bucket[/prefix], file:///dir or ./dir")
        .short(Group::FlowLog, ('t', "target"), "URL")
        .applies(),
    ConfigKey::new(FLOW_LOG, "prefix", Text, NONE, "First part of every object key; no `/`").flag(Group::FlowLog, "prefix", "TEXT").applies(),
    ConfigKey::new(FLOW_LOG, "name", Text, Is(NAME_DEFAULT), "Name of the flow log; follows the prefix in every key")
        .flag(Group::FlowLog, "name", "NAME")
        .applies(),
    ConfigKey::new(FLOW_LOG, "direction", DIRECTIONS, Is("bidirectional"), "Which way packets go, as the interface sees them")
        .flag(Group::FlowLog, "direction", "DIRECTION")
        .applies(),
    ConfigKey::new(FLOW_LOG, "action", ACTIONS, Is("any"), "What became of packets")
        .flag(Group::FlowLog, "action", "ACTION")
        .applies(),
    ConfigKey::new(FLOW_LOG, "window", Time, Is("10m"), "Length of a window; divides a day evenly")
        .flag(Group::FlowLog, "window", "TIME")
        .applies(),
    ConfigKey::new(FLOW_LOG, "hook", HOOKS, Is("tc"), "tc (tcx, else clsact), tcx, clsact, or xdp for ingress (native, else generic)")
        .flag(Group::FlowLog, "hook", "HOOK")
        .applies(),
    ConfigKey::new(FLOW_LOG, "wait", Switch, FALSE, "Interfaces need not exist yet: they are captured when they appear")
        .flag(Group::FlowLog, "wait", "true|false")
        .applies(),
    ConfigKey::new(FLOW_LOG, "translations", Switch, FALSE, "Fill the columns pkt_*: addresses and ports on the other side of an address translation")
        .flag(Group::FlowLog, "translations", "true|false")
        .applies(),
    ConfigKey::new(FLOW_LOG, "nodata", Switch, TRUE, "Write an object for a window without traffic")
        .switch_off(Group::FlowLog, "no-nodata", "Write no object for a window without traffic")
        .applies(),
    ConfigKey::new(FLOW_LOG, "subsecond", Switch, FALSE, "Fill the columns start_ns and end_ns too: objects grow by half")
        .flag(Group::FlowLog, "subsecond", "true|false")
        .applies(),
    ConfigKey::new(FLOW_LOG, "layout", LAYOUTS, Is(LAYOUT_DEFAULT), "Keys with year=…/month=…/day=…/hour=… (hive), with flow_log=NAME in front of that (hive-named), or without (flat)")
        .flag(Group::FlowLog, "layout", "LAYOUT")
        .applies(),
    ConfigKey::new(FLOW_LOG, "format", FORMATS, Is(FORMAT_DEFAULT), "Parquet with all columns, or those that a row has a value in, or gzipped text with the 14 of version 2")
        .flag(Group::FlowLog, "format", "FORMAT")
        .applies(),
    ConfigKey::new(FLOW_LOG, "interface_id", Text, Words("NODE-INTERFACE"), "Id of the interface in records and keys; with one interface only").applies(),
    ConfigKey::new(FLOW_LOG, "account_id", Text, NONE, "Contract of the interface's owner").applies(),
];

/// A key of this table and name.
#[must_use]
pub(crate) fn key(table: &str, name: &str) -> Option<&'static ConfigKey> {
    KEYS.iter().find(|key| (key.table, key.name) == (table, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_reload_promises_that_the_capture_goes_on_only_where_it_does() {
        for key in KEYS {
            let [pinned, unpinned] = [true, false].map(|is_pinned| key.refused_by_a_reload(is_pinned));
            assert_eq!(pinned.is_some(), key.takes != Takes::Reload, "{}", key.path());
            assert_eq!(pinned.is_some(), unpinned.is_some(), "{}", key.path());
            let unpinned = unpinned.unwrap_or_default();
            assert!(!unpinned.contains("no packet is missed") && !unpinned.contains("detach"), "{unpinned}");
        }
    }
}
