//! `cargo xtask fuzz verdicts`: random networks, rules and traffic, for as long as one likes.

use std::process::Command;

use crate::{
    build, setup,
    util::{cargo, run as run_command, step},
};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// REJECT is what the firewall refused, ACCEPT is the rest, on every interface of a random network
    Verdicts(Options),
}

/// The test reads each from `FLOWLOG_FUZZ_NAME`.
#[derive(clap::Args)]
struct Options {
    /// Run seeds until the time is over
    #[arg(long, value_name = "N")]
    minutes: Option<u64>,
    /// The (first) seed; without --minutes and --count this one only
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// As many seeds
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// What networks may contain: `all`, `simple`, or names; `-NAME` leaves one out (all,-protosock)
    #[arg(long, value_name = "LIST", allow_hyphen_values = true)]
    features: Option<String>,
    /// Leave out of a failing network whatever the failure does not need (a minute for each)
    #[arg(long)]
    minimise: bool,
    /// Of a seed's flows only these, by number
    #[arg(long, value_name = "LIST")]
    flows: Option<String>,
    /// Watch these interfaces
    #[arg(long, value_name = "LIST")]
    watch: Option<String>,
    /// Without sockets that look at packets or refuse them for themselves
    #[arg(long)]
    quiet: bool,
}

impl Options {
    /// Hands them to the test; what was not asked for stays unset.
    fn pass_to(&self, test: &mut Command) {
        let number = |n: Option<u64>| n.map(|n| n.to_string());
        let flag = |on: bool| on.then(|| "1".to_owned());
        for (name, value) in [
            ("MINUTES", number(self.minutes)),
            ("SEED", number(self.seed)),
            ("COUNT", number(self.count)),
            ("FEATURES", self.features.clone()),
            ("MINIMISE", flag(self.minimise)),
            ("FLOWS", self.flows.clone()),
            ("WATCH", self.watch.clone()),
            ("QUIET", flag(self.quiet)),
        ] {
            if let Some(value) = value {
                test.env(format!("FLOWLOG_FUZZ_{name}"), value);
            }
        }
    }
}

/// Sets up, builds, and runs the test `fuzz_verdicts` with the options in its environment.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let What::Verdicts(options) = &args.what;
    let mut test = cargo();
    test.args(["test", "--locked", "-p", "integration", "--features", "integration/faults", "--test", "all", "--"]);
    test.args(["random::fuzz_verdicts", "--exact", "--ignored", "--nocapture"]);
    options.pass_to(&mut test);
    setup::require_root("fuzz")?;
    setup::network_tools()?;
    build::ensure_fresh()?;
    step("building the agent and the tests (minutes the first time)");
    run_command(cargo().args(["build", "--locked", "--package", "flowlog-agent", "--features", "faults"]))?;
    step("random networks");
    run_command(&mut test)
}
