//! `flowlog control`.

use std::{path::PathBuf, process::ExitCode};

use super::run;
use crate::{
    agent::{Plan, control},
    config::Layers,
    log::LogArgs,
};

/// How it is used, below its flags.
pub(super) const EXAMPLES: &str = "\
The configuration needs `[rules] etcd`, and `[api]`; its inventory says whose buckets are whose. docs/fleet.md has the picture.

SIGHUP (`systemctl reload`, where it is a unit) has the configuration read again, and the inventory: the log says what has changed, or why
nothing has.

Examples:
  flowlog control --config /etc/flowlog/control.toml";

#[derive(clap::Args)]
pub(super) struct ControlArgs {
    /// Configuration in TOML.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    #[command(flatten)]
    log: LogArgs,
}

pub(super) fn run(args: &ControlArgs) -> anyhow::Result<ExitCode> {
    args.log.start()?;
    let layers = Layers { file: Some(args.config.clone()), ..Layers::default() };
    let merged = layers.read()?;
    let config = merged.raw.clone().check_without_captures()?;
    run::runtime()?.block_on(control::serve(Plan { layers, merged, config }))?;
    Ok(ExitCode::SUCCESS)
}
