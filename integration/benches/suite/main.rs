//! flowlog's benchmark: `cargo xtask bench`. Prints tables; compares with what was wanted; asserts nothing about time.
//!
//! * [`lines`]: the cache lines of a packet;
//! * [`packet`]: what the programs cost, by `BPF_PROG_TEST_RUN`; with [`lab`], the programs behind one driver, and [`peer`], somebody
//!   else's object among them;
//! * [`wire`], [`floods`]: real interfaces and the real agent; with [`lane`], the network and the traffic generator, and [`beside`],
//!   another agent;
//! * [`live`]: what somebody who looks costs;
//! * [`soak`]: half an hour at the highest rate;
//! * [`rules`]: many flow logs on one node;
//! * [`model`]: what a machine with many CPUs and interfaces would need, by formulae that are checked here;
//! * [`fleet`]: many flow logs and nodes on one etcd;
//! * [`agent`]: the agent's stages; with [`records`], a realistic window, and [`memory`], an allocator that counts;
//! * [`frames`]: the packets; [`report`]: tables, JSON, Markdown; [`plot`]: charts.
#![allow(clippy::disallowed_methods, reason = "tests and tools read clocks to measure and to wait")]
#![allow(missing_docs, clippy::missing_panics_doc, reason = "a program of its own")]

mod agent;
mod beside;
mod fleet;
mod floods;
mod frames;
mod lab;
mod lane;
mod lines;
mod live;
mod memory;
mod model;
mod packet;
mod peer;
mod plot;
mod records;
mod report;
mod rules;
mod soak;
mod wire;

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Parser;

/// Measures flowlog on this machine; without a verb, everything.
#[derive(Parser)]
#[command(name = "cargo xtask bench")]
struct Cli {
    #[command(subcommand)]
    what: Option<What>,
    /// Also write everything as JSON
    #[arg(long, global = true, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Also write everything as Markdown
    #[arg(long, global = true, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Also draw charts (SVG)
    #[arg(long, global = true, value_name = "DIR")]
    plots: Option<PathBuf>,
    /// A few rounds only, to see that everything runs
    #[arg(long, global = true)]
    quick: bool,
    /// Given by `cargo bench`
    #[arg(long, hide = true, global = true)]
    bench: bool,
}

#[derive(clap::Subcommand)]
enum What {
    /// The cache lines that a packet costs, by what they are of; not measured, but counted
    Lines,
    /// The programs, packet by packet
    Packet(packet::Options),
    /// Real interfaces: rates, latency, floods, memory, idle CPU
    Wire(wire::Options),
    /// Live flows: the agent with and without somebody who looks
    Live(live::Options),
    /// Half an hour at the highest rate: loss, memory, descriptors, CPU, and the books at the end (only if it is named)
    Soak(soak::Options),
    /// The agent's stages: drain, merge, encode, close
    Agent(agent::Options),
    /// Many flow logs on one node: start, memory, idle CPU
    Rules(rules::Options),
    /// What 128 CPUs, 500 interfaces and 20 M packets a second would need; checked against this machine (only if it is named)
    Model(model::Options),
    /// Many flow logs and nodes on one etcd: start, memory, changes (only if it is named)
    Fleet(fleet::Options),
}

#[global_allocator]
static ALLOCATOR: memory::Counted = memory::Counted;

/// The options of a verb that was not named: its defaults.
fn defaults<T: clap::Args>() -> anyhow::Result<T> {
    let matches = T::augment_args(clap::Command::new("")).try_get_matches_from([""])?;
    Ok(T::from_arg_matches(&matches)?)
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let mut report = report::Report { machine: report::machine(), ..report::Report::default() };
    let all = match cli.what {
        Some(what) => vec![what],
        None => {
            vec![
                What::Lines,
                What::Packet(defaults()?),
                What::Agent(defaults()?),
                What::Wire(defaults()?),
                What::Live(defaults()?),
                What::Rules(defaults()?),
            ]
        }
    };
    for what in all {
        match what {
            What::Lines => lines::run(&mut report)?,
            What::Packet(options) => packet::run(&if cli.quick { options.quick() } else { options }, &mut report)?,
            What::Wire(options) => {
                let options = if cli.quick { options.quick() } else { options };
                let mut network = wire::run(&options, &mut report)?;
                if !options.only_forwarded {
                    floods::run(&mut network, &options, &mut report)?;
                }
            }
            What::Live(options) => live::run(&if cli.quick { options.quick() } else { options }, &mut report)?,
            What::Soak(options) => soak::run(&if cli.quick { options.quick() } else { options }, &mut report)?,
            What::Rules(options) => rules::run(&if cli.quick { options.quick() } else { options }, &mut report)?,
            What::Model(options) => model::run(&if cli.quick { options.quick() } else { options }, &mut report)?,
            What::Fleet(options) => fleet::run(&if cli.quick { options.quick() } else { options }, &mut report)?,
            What::Agent(options) => agent::run(&if cli.quick { options.quick() } else { options }, &mut report)?,
        }
    }
    println!("{}", report.summary());
    if let Some(path) = cli.json {
        std::fs::write(&path, serde_json::to_string_pretty(&report)?).with_context(|| path.display().to_string())?;
    }
    if let Some(path) = cli.markdown {
        std::fs::write(&path, report.markdown()).with_context(|| path.display().to_string())?;
    }
    if let Some(dir) = cli.plots {
        std::fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
        report.tables.iter().filter(|t| t.chart).try_for_each(|table| plot::chart(&dir, table))?;
    }
    Ok(())
}
