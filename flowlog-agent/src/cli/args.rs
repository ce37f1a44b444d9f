//! The flags of the commands that capture, and what configuration they make.

use std::path::PathBuf;

use flowlog_kernel::{Sizes, pins::PIN_DIR_DEFAULT};
use flowlog_model::{
    HookKind, S3Options,
    amount::parse_duration,
    rule::{Action, Directions},
    xdp::XdpLevel,
};
use flowlog_pipeline::spool::Limits;

use crate::{
    config::{
        ConfigError, LAYOUT_DEFAULT, NAME_DEFAULT, RawConfig, RawFlowLog, STATE_DIR_DEFAULT, WINDOW_SECS_DEFAULT,
    },
    log::LogArgs,
};

/// A length of time in whole seconds.
fn secs<T: TryFrom<u64>>(text: &str) -> Result<T, String> {
    let time = parse_duration(text).map_err(|how| how.to_string())?;
    let whole = (time.subsec_nanos() == 0).then_some(time.as_secs());
    whole.and_then(|secs| secs.try_into().ok()).ok_or_else(|| "use whole seconds, and not so many".to_owned())
}

/// Which agent is meant.
#[derive(clap::Args)]
pub(super) struct StateArgs {
    /// The agent's state directory, where undelivered objects wait.
    #[arg(long, value_name = "DIR", env = "STATE_DIRECTORY", default_value = STATE_DIR_DEFAULT)]
    pub(super) state_dir: PathBuf,
}

/// Which capture is meant.
#[derive(clap::Args)]
struct PinArgs {
    /// Where the capture is pinned.
    #[arg(long, value_name = "DIR", default_value = PIN_DIR_DEFAULT)]
    pin_dir: PathBuf,
}

#[derive(clap::Args)]
pub(super) struct DetachArgs {
    #[command(flatten)]
    pub(super) state: StateArgs,
    /// Take pin directory and the way to the buckets from the file that `run` was given.
    #[arg(long, value_name = "FILE", conflicts_with = "pin_dir")]
    config: Option<PathBuf>,
    #[command(flatten)]
    pin: PinArgs,
    #[command(flatten)]
    s3: S3Args,
    #[command(flatten)]
    pub(super) log: LogArgs,
}

/// The way to the buckets.
#[derive(clap::Args)]
#[group(conflicts_with = "config")]
#[allow(clippy::struct_field_names, reason = "fields are named as the flags are")]
struct S3Args {
    /// S3 server; AWS if absent. Credentials: `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`, or a file.
    #[arg(long, value_name = "URL")]
    s3_endpoint: Option<String>,
    /// S3 region.
    #[arg(long, value_name = "REGION")]
    s3_region: Option<String>,
    /// Bucket in the path, not in the host name.
    #[arg(long)]
    s3_path_style: bool,
    /// Allow an http:// endpoint.
    #[arg(long)]
    s3_allow_http: bool,
    /// File with S3 credentials in the AWS format; re-read when it changes.
    #[arg(long, value_name = "FILE")]
    s3_credentials: Option<PathBuf>,
    /// Put objects without the ACL that lets the bucket's owner read them.
    #[arg(long)]
    s3_no_acl: bool,
}

impl S3Args {
    fn into_raw(self, raw: &mut RawConfig) {
        raw.s3 = S3Options {
            endpoint: self.s3_endpoint,
            region: self.s3_region,
            path_style: self.s3_path_style,
            allow_http: self.s3_allow_http,
            credentials_file: self.s3_credentials,
            acl: !self.s3_no_acl,
        };
    }
}

/// Where no file with credentials is configured, the one that systemd has handed over is meant (`LoadCredential=s3:…`).
fn with_credentials(mut raw: RawConfig) -> RawConfig {
    let handed_over = || Some(PathBuf::from(std::env::var_os("CREDENTIALS_DIRECTORY")?).join("s3"));
    raw.s3.credentials_file = raw.s3.credentials_file.or_else(|| handed_over().filter(|file| file.is_file()));
    raw
}

impl DetachArgs {
    pub(super) fn into_raw(self) -> Result<RawConfig, ConfigError> {
        let mut raw = match &self.config {
            Some(path) => RawConfig::from_file(path)?,
            None => RawConfig::default(),
        };
        if self.config.is_none() {
            raw.pin_dir = Some(self.pin.pin_dir);
            self.s3.into_raw(&mut raw);
        }
        raw.state_dir = raw.state_dir.or(Some(self.state.state_dir));
        Ok(with_credentials(raw))
    }
}

#[derive(clap::Args)]
pub(super) struct RunArgs {
    /// Take everything from a TOML file instead of the flags below.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    state: StateArgs,
    #[command(flatten)]
    pin: PinArgs,
    #[command(flatten)]
    flags: CaptureArgs,
    #[command(flatten)]
    s3: S3Args,
    #[command(flatten)]
    pub(super) log: LogArgs,
}

/// What a configuration file says instead.
#[derive(clap::Args)]
#[group(conflicts_with = "config")]
#[allow(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
struct CaptureArgs {
    /// Interface to capture; may be repeated.
    #[arg(long = "interface", short, value_name = "NAME", required_unless_present = "config")]
    interfaces: Vec<String>,
    #[arg(
        long,
        short,
        value_name = "URL",
        required_unless_present = "config",
        help = "Where objects go: s3://bucket[/prefix], file:///dir or ./dir"
    )]
    target: Option<String>,
    /// First part of every object key; no `/`.
    #[arg(long)]
    prefix: Option<String>,
    /// Name of the flow log; follows the prefix in every key.
    #[arg(long, default_value = NAME_DEFAULT)]
    name: String,
    #[arg(long, help = Directions::words(), default_value = Directions::default().as_str())]
    direction: String,
    #[arg(long, help = Action::words(), default_value = Action::default().as_str())]
    action: String,
    /// Length of a window: seconds, or 30s, 10m; divides a day evenly.
    #[arg(long, value_name = "TIME", default_value_t = WINDOW_SECS_DEFAULT, value_parser = secs::<u32>)]
    window: u32,
    /// tc (tcx, else clsact), tcx, clsact, or xdp for ingress (native, else generic).
    #[arg(long, default_value = HookKind::default().as_str())]
    hook: String,
    /// Interfaces need not exist yet: they are captured when they appear.
    #[arg(long)]
    wait: bool,
    /// Fill the columns `pkt_*`: addresses and ports on the other side of an address translation.
    #[arg(long)]
    translations: bool,
    /// Write no object for a window without traffic.
    #[arg(long)]
    no_nodata: bool,
    /// Fill the columns `start_ns` and `end_ns` too: objects grow by half.
    #[arg(long)]
    subsecond: bool,
    /// Key layout: hive (year=…/month=…/day=…/hour=…) or flat.
    #[arg(long, default_value = LAYOUT_DEFAULT)]
    layout: String,
    /// Id of this node in records and keys [default: the host name].
    #[arg(long, value_name = "ID")]
    node_id: Option<String>,
    /// End the capture with the agent, and leave nothing behind in the kernel.
    #[arg(long, conflicts_with = "pin_dir")]
    no_pin: bool,
    /// Follow interfaces that are moved to other network namespaces; needs `CAP_SYS_ADMIN` and `CAP_SYS_PTRACE` for good.
    #[arg(long)]
    follow_namespaces: bool,
    /// Put tcx hooks in front again where somebody else's program went in front of them.
    #[arg(long)]
    restore_order: bool,
    /// How closely to look at what other people's native XDP programs do: counters (the driver's), trace, or wrap (run them ourselves); the
    /// latter two need `CAP_SYS_ADMIN` for good.
    #[arg(long, value_name = "LEVEL", default_value = XdpLevel::default().as_str())]
    xdp: String,
    /// Serve the API on this socket: for `observe` and `top`.
    #[arg(long, value_name = "FILE")]
    socket: Option<PathBuf>,
    /// Serve figures for Prometheus on this loopback address, or on the socket with this absolute path.
    #[arg(long, value_name = "ADDRESS")]
    metrics_listen: Option<String>,
    /// Network namespace that the interfaces are in: a name of `ip netns`, or a path; needs what `--follow-namespaces` needs.
    #[arg(long, value_name = "NAME")]
    netns: Option<String>,
    /// Flow cache slots for each CPU; a power of two.
    #[arg(long, value_name = "N", default_value_t = Sizes::default().passed_slots)]
    cache_slots: u32,
    /// Cache slots for refused flows for each CPU; a power of two.
    #[arg(long, value_name = "N", default_value_t = Sizes::default().refused_slots)]
    refused_slots: u32,
    /// Ring buffer size; a power of two.
    #[arg(long, value_name = "BYTES", default_value_t = Sizes::default().ring_bytes)]
    ring_bytes: u32,
    /// Flows in memory before the largest window is written early; 300 bytes each at most.
    #[arg(long, value_name = "N")]
    flows_max: Option<usize>,
    /// Bytes of undelivered objects before windows leave their totals only.
    #[arg(long, value_name = "BYTES", default_value_t = Limits::default().bytes_max)]
    spool_bytes_max: u64,
    /// Age of the oldest undelivered object before windows leave their totals only: seconds, or 30m, 12h.
    #[arg(long, value_name = "TIME", default_value_t = Limits::default().age_secs_max, value_parser = secs::<u64>)]
    spool_age_max: u64,
}

impl RunArgs {
    pub(super) fn into_raw(self) -> Result<RawConfig, ConfigError> {
        let Self { config, state: StateArgs { state_dir }, pin: PinArgs { pin_dir }, flags, s3, log: _ } = self;
        if let Some(path) = &config {
            let mut raw = RawConfig::from_file(path)?;
            raw.state_dir = raw.state_dir.or(Some(state_dir));
            raw.pin_dir = raw.pin_dir.or(Some(pin_dir));
            return Ok(raw);
        }
        let mut raw = RawConfig { state_dir: Some(state_dir), pin_dir: Some(pin_dir), ..flags.into_raw() };
        s3.into_raw(&mut raw);
        Ok(raw)
    }
}

impl CaptureArgs {
    fn into_raw(self) -> RawConfig {
        let log = RawFlowLog {
            interfaces: self.interfaces,
            netns: self.netns,
            target: self.target.unwrap_or_default(),
            prefix: self.prefix,
            name: Some(self.name),
            direction: Some(self.direction),
            action: Some(self.action),
            window: Some(self.window),
            hook: Some(self.hook),
            wait: Some(self.wait),
            translations: Some(self.translations),
            nodata: Some(!self.no_nodata),
            subsecond: Some(self.subsecond),
            layout: Some(self.layout),
            ..RawFlowLog::default()
        };
        let mut raw = RawConfig {
            node_id: self.node_id,
            no_pin: self.no_pin,
            follow_namespaces: self.follow_namespaces,
            restore_order: self.restore_order,
            xdp: Some(self.xdp),
            flows_max: self.flows_max,
            flow_logs: vec![log],
            ..RawConfig::default()
        };
        raw.api.socket = self.socket;
        raw.metrics.listen = self.metrics_listen;
        raw.spool.bytes_max = Some(self.spool_bytes_max);
        raw.spool.age_secs_max = Some(self.spool_age_max);
        raw.kernel.cache_slots = Some(self.cache_slots);
        raw.kernel.refused_slots = Some(self.refused_slots);
        raw.kernel.ring_bytes = Some(self.ring_bytes);
        raw
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_of_time_is_of_whole_seconds_where_it_is_counted_in_them() {
        assert_eq!((secs::<u32>("600"), secs::<u32>("10m"), secs::<u64>("1d")), (Ok(600), Ok(600), Ok(86_400)));
        assert!(secs::<u32>("500ms").is_err() && secs::<u32>("4294967296").is_err() && secs::<u32>("soon").is_err());
    }
}
