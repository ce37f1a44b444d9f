//! flowlog's benchmark: `cargo xtask bench`. Prints tables; compares with what was wanted; asserts nothing.
//!
//! * [`packet`]: what the programs cost, by `BPF_PROG_TEST_RUN`; with [`lab`], the programs behind one driver;
//! * [`report`]: tables, JSON; [`plot`]: charts.
#![allow(missing_docs, clippy::missing_panics_doc, reason = "a program of its own")]

mod agent;
mod frames;
mod lab;
mod lane;
mod memory;
mod packet;
mod records;
mod report;
mod wire;

use std::path::PathBuf;

use clap::Parser;

/// Measures flowlog on this machine.
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
    /// A few rounds only, to see that everything runs
    #[arg(long, global = true)]
    quick: bool,
    /// Given by `cargo bench`
    #[arg(long, hide = true, global = true)]
    bench: bool,
}

#[derive(clap::Subcommand)]
enum What {
    /// The programs, packet by packet
    Packet(packet::Options),
    /// Real interfaces: rates, latency, floods, memory, idle CPU
    Wire(wire::Options),
    /// The agent's stages: drain, merge, encode, close
    Agent(agent::Options),
}

#[global_allocator]
static ALLOCATOR: memory::Counted = memory::Counted;

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let mut report = report::Report { machine: report::machine(), ..report::Report::default() };
    match cli.what {
        Some(What::Packet(mut options)) => {
            if cli.quick {
                options.quick();
            }
            packet::run(&options, &mut report)?;
        }
        Some(What::Wire(mut options)) => {
            if cli.quick {
                options.quick();
            }
            wire::run(&options, &mut report)?;
        }
        Some(What::Agent(mut options)) => {
            if cli.quick {
                options.quick();
            }
            agent::run(&options, &mut report)?;
        }
        None => anyhow::bail!("name one"),
    }
    println!("{}", report.summary());
    if let Some(path) = cli.json {
        std::fs::write(path, serde_json::to_string_pretty(&report)?)?;
    }
    if let Some(path) = cli.markdown {
        std::fs::write(path, report.markdown())?;
    }
    Ok(())
}
