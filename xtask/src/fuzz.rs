//! `cargo xtask fuzz verdicts [OPTIONS]`: random networks, rules and traffic, for as long as one likes.

use anyhow::{Context as _, bail};

use crate::{
    build, setup,
    util::{cargo, run as run_command, step},
};

const USAGE: &str = "\
usage: cargo xtask fuzz verdicts [OPTIONS]

  --minutes N      run seeds until the time is over
  --seed N         the (first) seed; without --minutes and --count this one only
  --count N        as many seeds
  --features LIST  what networks may contain: `all`, `simple`, or names; `-NAME` leaves one out (all,-protosock)
  --minimise       leave out of a failing network whatever the failure does not need (a minute for each)
  --flows LIST     of a seed's flows only these, by number
  --watch LIST     watch these interfaces
  --quiet          without sockets that look at packets or refuse them for themselves";

/// Sets up, builds, and runs the test `fuzz_verdicts` with the options in its environment.
pub fn run(args: &[String]) -> anyhow::Result<()> {
    let Some(("verdicts", options)) = args.split_first().map(|(what, rest)| (what.as_str(), rest)) else {
        bail!("what to fuzz?\n{USAGE}");
    };
    let mut test = cargo();
    test.args(["test", "--locked", "-p", "integration", "--features", "flowlog-agent/faults", "--test", "all", "--"]);
    test.args(["random::fuzz_verdicts", "--exact", "--ignored", "--nocapture"]);
    let mut options = options.iter();
    while let Some(option) = options.next() {
        let name = match option.as_str() {
            "--minutes" | "--seed" | "--count" | "--features" | "--flows" | "--watch" => &option[2..],
            "--minimise" | "--quiet" => {
                test.env(format!("FLOWLOG_FUZZ_{}", option[2..].to_uppercase()), "1");
                continue;
            }
            other => bail!("unknown option `{other}`\n{USAGE}"),
        };
        let value = options.next().with_context(|| format!("{option} needs a value\n{USAGE}"))?;
        test.env(format!("FLOWLOG_FUZZ_{}", name.to_uppercase()), value);
    }
    setup::require_root("fuzz")?;
    setup::network_tools()?;
    build::ensure_fresh()?;
    step("building the agent and the tests (minutes the first time)");
    run_command(cargo().args(["build", "--locked", "--package", "flowlog-agent", "--features", "faults"]))?;
    step("random networks");
    run_command(&mut test)
}
