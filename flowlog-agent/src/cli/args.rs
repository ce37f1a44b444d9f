//! The arguments of the commands that capture, and what configuration they make.

use std::path::PathBuf;

use crate::{
    config::{CaptureFlags, ConfigError, EndFlags, Layers, STATE_DIR_DEFAULT},
    log::LogArgs,
};

/// How `flowlog run` is used, below its flags.
pub(super) const RUN_EXAMPLES: &str = "\
Every flag wins over the file's key. Flags of a flow log make one beside those of the file if there is an --interface; without, they say \
their key in every flow log of the file. Lengths of time are seconds, or 30s, 10m, 1h30m; sizes are bytes, or 8MiB, 2GB. \
docs/configuration.md has every key.

Examples:
  flowlog run --interface eth0 --target ./flows
  flowlog run -i eth0 -i eth1 -t s3://flows/team-a --s3-region eu-central-1 --window 1m
  flowlog run --config /etc/flowlog/flowlog.toml
  flowlog run --config /etc/flowlog/flowlog.toml --node-id node-17 --window 1m";

/// How `flowlog detach` is used.
pub(super) const DETACH_EXAMPLES: &str = "\
Examples:
  flowlog detach
  flowlog detach --config /etc/flowlog/flowlog.toml";

/// Which agent is meant.
#[derive(clap::Args)]
pub(super) struct StateArgs {
    /// The agent's state directory, where undelivered objects wait.
    #[arg(long, value_name = "DIR", env = "STATE_DIRECTORY", default_value = STATE_DIR_DEFAULT)]
    pub(super) state_dir: PathBuf,
}

#[derive(clap::Args)]
pub(super) struct DetachArgs {
    /// Configuration that `run` was given: where the capture is pinned, and the way to the buckets. Flags win over it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    flags: EndFlags,
    #[command(flatten)]
    pub(super) log: LogArgs,
}

impl DetachArgs {
    pub(super) fn layers(&self) -> Layers {
        Layers { file: self.config.clone(), given: self.flags.0.clone() }
    }
}

#[derive(clap::Args)]
pub(super) struct RunArgs {
    /// Configuration in TOML. Flags win over it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    flags: CaptureFlags,
    #[command(flatten)]
    pub(super) log: LogArgs,
}

impl RunArgs {
    /// What is to be captured.
    ///
    /// # Errors
    /// If nothing says so.
    pub(super) fn layers(&self) -> Result<Layers, ConfigError> {
        let given = self.flags.0.clone();
        if self.config.is_none() && !given.makes_a_flow_log() {
            let words = "name what is to be captured: `--interface NAME --target URL`, or `--config FILE`; see `flowlog run --help`";
            return Err(ConfigError::Flag(words.to_owned()));
        }
        Ok(Layers { file: self.config.clone(), given })
    }
}
