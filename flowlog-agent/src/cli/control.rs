//! `flowlog control`.

use std::{path::PathBuf, process::ExitCode};

use super::run;
use crate::{agent::control, config::Layers, log::LogArgs};

/// How it is used, below its flags.
pub(super) const EXAMPLES: &str = "\
The configuration needs `[rules] etcd`, and `[api]`; its inventory says whose buckets are whose. docs/fleet.md has the picture.

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
    let config = layers.read()?.raw.check_without_captures()?;
    run::runtime()?.block_on(control::serve(config))?;
    Ok(ExitCode::SUCCESS)
}
