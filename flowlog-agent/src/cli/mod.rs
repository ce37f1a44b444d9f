//! The command line. Parsing and exit codes only; what a command does is in the file of its name.

mod check;
mod client;
mod credential;
mod detach;
mod inventory;
mod read;
mod rule;
mod run;
mod status;
mod stop;

use std::{path::PathBuf, process::ExitCode};

use clap::{CommandFactory as _, Parser, Subcommand, error::ErrorKind};
use flowlog_kernel::KernelError;
use flowlog_pipeline::upload::BucketError;

use crate::{
    agent::AgentError,
    config::{ConfigError, RawConfig, RawFlowLog, RawS3, STATE_DIR_DEFAULT},
};

/// Exit codes of `sysexits.h`.
const EX_USAGE: u8 = 64;
const EX_SOFTWARE: u8 = 70;
const EX_NOPERM: u8 = 77;
const EX_CONFIG: u8 = 78;

/// eBPF flow logs: every packet of an interface, accepted or refused, as Parquet in object storage.
#[derive(Parser)]
#[command(name = "flowlog", version, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Capture. After SIGTERM or Ctrl-C the capture goes on in the kernel for the next `run`, or ends with `--no-pin`.
    Run(Box<RunArgs>),
    /// End the running agent; its capture goes on in the kernel, for the next `run`.
    Stop(StateArgs),
    /// End the capture: end the running agent, deliver what is captured, remove every hook and pin.
    Detach(Box<DetachArgs>),
    /// Say how every rule is doing.
    Status {
        #[command(flatten)]
        state: StateArgs,
        /// table or json.
        #[arg(long, default_value = "table")]
        output: status::Output,
    },
    /// Flow logs of the running agent: add, validate, provision, list, show, rename, delete.
    Rule(rule::RuleArgs),
    /// What the running agent knows to be on this node.
    Inventory(inventory::InventoryArgs),
    /// Make a password's hash, or a token, for the file of principals.
    #[command(subcommand)]
    Credential(credential::Credential),
    /// Print completions for a shell.
    Completions {
        /// bash, elvish, fish, powershell or zsh.
        shell: clap_complete::Shell,
    },
    /// Say what this kernel and machine can do, and what is missing. Changes nothing.
    Check {
        /// Also look at these interfaces.
        #[arg(long = "interface", value_name = "NAME")]
        interfaces: Vec<String>,
    },
    /// Print delivered objects as a table, with their balance.
    Read {
        /// Parquet files, or directories to search for them.
        #[arg(required = true)]
        paths: Vec<PathBuf>,
        /// Rows to print; 0 for all.
        #[arg(long, default_value_t = 40)]
        rows: usize,
    },
}

/// Flags that a configuration file replaces: all but the state directory, which the service manager may set.
const FLAGS: [&str; 25] = [
    "interfaces",
    "target",
    "prefix",
    "name",
    "direction",
    "action",
    "window",
    "hook",
    "wait",
    "no_nodata",
    "subsecond",
    "layout",
    "node_id",
    "no_pin",
    "spool_bytes_max",
    "spool_age_max",
    "cache_slots",
    "refused_slots",
    "ring_bytes",
    "flows_max",
    "s3_endpoint",
    "s3_region",
    "s3_path_style",
    "s3_allow_http",
    "s3_credentials",
];

/// Which agent is meant.
#[derive(clap::Args)]
struct StateArgs {
    /// Its state directory [default: /var/lib/flowlog].
    #[arg(long, value_name = "DIR", env = "STATE_DIRECTORY")]
    state_dir: Option<PathBuf>,
}

impl StateArgs {
    fn dir(&self) -> PathBuf {
        self.state_dir.clone().unwrap_or_else(|| PathBuf::from(STATE_DIR_DEFAULT))
    }
}

#[derive(clap::Args)]
struct DetachArgs {
    #[command(flatten)]
    state: StateArgs,
    /// Take pin directory and the way to the buckets from the file that `run` was given.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["pin_dir", "s3_endpoint", "s3_region", "s3_path_style", "s3_allow_http", "s3_credentials"])]
    config: Option<PathBuf>,
    /// Where the capture is pinned [default: /sys/fs/bpf/flowlog].
    #[arg(long, value_name = "DIR")]
    pin_dir: Option<PathBuf>,
    #[command(flatten)]
    s3: S3Args,
}

/// The way to the buckets.
#[derive(clap::Args)]
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
}

impl S3Args {
    fn into_raw(self, raw: &mut RawConfig) {
        raw.s3 = RawS3 {
            endpoint: self.s3_endpoint,
            region: self.s3_region,
            path_style: self.s3_path_style,
            allow_http: self.s3_allow_http,
            credentials_file: self.s3_credentials,
        };
    }
}

impl DetachArgs {
    fn into_raw(self) -> Result<RawConfig, ConfigError> {
        let mut raw = match &self.config {
            Some(path) => RawConfig::from_file(path)?,
            None => RawConfig::default(),
        };
        if self.config.is_none() {
            raw.pin_dir = self.pin_dir;
            self.s3.into_raw(&mut raw);
        }
        raw.state_dir = raw.state_dir.or(self.state.state_dir);
        Ok(raw)
    }
}

#[derive(clap::Args)]
#[allow(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
struct RunArgs {
    /// Take everything from a TOML file instead of the flags below.
    #[arg(long, value_name = "FILE", conflicts_with_all = FLAGS)]
    config: Option<PathBuf>,
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
    /// Name of the flow log; follows the prefix in every key [default: flowlog].
    #[arg(long)]
    name: Option<String>,
    /// ingress, egress or bidirectional [default: bidirectional].
    #[arg(long)]
    direction: Option<String>,
    /// accepted, rejected or any [default: any].
    #[arg(long)]
    action: Option<String>,
    /// Length of a window in seconds; divides a day evenly [default: 600].
    #[arg(long, value_name = "SECONDS")]
    window: Option<u32>,
    /// tc (tcx, else clsact), tcx, clsact, or xdp for ingress (native, else generic) [default: tc].
    #[arg(long)]
    hook: Option<String>,
    /// Interfaces need not exist yet: they are captured when they appear.
    #[arg(long)]
    wait: bool,
    /// Write no object for a window without traffic.
    #[arg(long)]
    no_nodata: bool,
    /// Fill the columns `start_ns` and `end_ns` too: objects grow by half.
    #[arg(long)]
    subsecond: bool,
    /// Key layout: hive (year=…/month=…/day=…/hour=…) or flat [default: hive].
    #[arg(long)]
    layout: Option<String>,
    /// Id of this node in records and keys [default: the host name].
    #[arg(long, value_name = "ID")]
    node_id: Option<String>,
    /// Where undelivered objects wait [default: /var/lib/flowlog].
    #[arg(long, value_name = "DIR", env = "STATE_DIRECTORY")]
    state_dir: Option<PathBuf>,
    /// End the capture with the agent, and leave nothing behind in the kernel.
    #[arg(long, conflicts_with = "pin_dir")]
    no_pin: bool,
    /// Where the capture is pinned [default: /sys/fs/bpf/flowlog].
    #[arg(long, value_name = "DIR")]
    pin_dir: Option<PathBuf>,
    /// Flow cache slots for each CPU; a power of two.
    #[arg(long, value_name = "N")]
    cache_slots: Option<u32>,
    /// Cache slots for refused flows for each CPU; a power of two.
    #[arg(long, value_name = "N")]
    refused_slots: Option<u32>,
    /// Ring buffer size; a power of two.
    #[arg(long, value_name = "BYTES")]
    ring_bytes: Option<u32>,
    /// Flows in memory before the largest window is written early; 70 bytes each, twice.
    #[arg(long, value_name = "N")]
    flows_max: Option<usize>,
    /// Bytes of undelivered objects before windows leave their totals only [default: 4 GiB].
    #[arg(long, value_name = "BYTES")]
    spool_bytes_max: Option<u64>,
    /// Age of the oldest undelivered object before windows leave their totals only [default: a week].
    #[arg(long, value_name = "SECONDS")]
    spool_age_max: Option<u64>,
    #[command(flatten)]
    s3: S3Args,
}

impl RunArgs {
    fn into_raw(self) -> Result<RawConfig, ConfigError> {
        if let Some(path) = &self.config {
            let mut raw = RawConfig::from_file(path)?;
            raw.state_dir = raw.state_dir.or(self.state_dir);
            raw.pin_dir = raw.pin_dir.or(self.pin_dir);
            return Ok(raw);
        }
        let log = RawFlowLog {
            interfaces: self.interfaces,
            target: self.target.unwrap_or_default(),
            prefix: self.prefix,
            name: self.name,
            direction: self.direction,
            action: self.action,
            window: self.window,
            hook: self.hook,
            wait: Some(self.wait),
            nodata: Some(!self.no_nodata),
            subsecond: Some(self.subsecond),
            layout: self.layout,
            ..RawFlowLog::default()
        };
        let mut raw = RawConfig {
            node_id: self.node_id,
            state_dir: self.state_dir,
            no_pin: self.no_pin,
            pin_dir: self.pin_dir,
            flows_max: self.flows_max,
            flow_logs: vec![log],
            ..RawConfig::default()
        };
        raw.spool.bytes_max = self.spool_bytes_max;
        raw.spool.age_secs_max = self.spool_age_max;
        raw.kernel.cache_slots = self.cache_slots;
        raw.kernel.refused_slots = self.refused_slots;
        raw.kernel.ring_bytes = self.ring_bytes;
        self.s3.into_raw(&mut raw);
        Ok(raw)
    }
}

/// Runs the command line; all errors end here, each as one line on standard error.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let help = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            let _ = error.print();
            return if help { ExitCode::SUCCESS } else { ExitCode::from(EX_USAGE) };
        }
    };
    let result = match cli.command {
        Command::Run(args) => run::run(*args),
        Command::Stop(state) => stop::run(&state.dir()),
        Command::Detach(args) => detach::run(*args),
        Command::Status { state, output } => status::run(&state.dir(), output),
        Command::Rule(args) => rule::run(args),
        Command::Inventory(args) => inventory::run(args),
        Command::Credential(what) => credential::run(&what),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "flowlog", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
        Command::Check { interfaces } => Ok(check::run(&interfaces)),
        Command::Read { paths, rows } => read::run(&paths, rows),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("flowlog: {error:#}");
            ExitCode::from(exit_code(&error))
        }
    }
}

fn exit_code(error: &anyhow::Error) -> u8 {
    if error.is::<ConfigError>() {
        return EX_CONFIG;
    }
    match error.downcast_ref::<AgentError>() {
        Some(
            AgentError::Kernel(KernelError::Permission { .. })
            | AgentError::Target { source: BucketError::Denied { .. }, .. },
        ) => EX_NOPERM,
        Some(
            AgentError::NetDev(_)
            | AgentError::Target { .. }
            | AgentError::Spool(_)
            | AgentError::StateDir { .. }
            | AgentError::Rules(_)
            | AgentError::Api(_)
            | AgentError::File { .. }
            | AgentError::OtherPins { .. },
        ) => EX_CONFIG,
        _ => EX_SOFTWARE,
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_sound() {
        super::Cli::command().debug_assert();
    }
}
