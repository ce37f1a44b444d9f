//! The command line. Parsing and exit codes only; what a command does is in the file of its name.

mod args;
mod check;
mod client;
mod console;
mod credential;
mod detach;
mod exit;
mod inventory;
mod observe;
mod out;
mod read;
mod rule;
mod run;
mod status;
mod stop;
mod top;
mod trace;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use args::{DetachArgs, RunArgs, StateArgs};
use clap::{CommandFactory as _, Parser, Subcommand, error::ErrorKind};
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
        output: status::StatusForm,
    },
    /// Flow logs of the running agent: add, validate, provision, list, show, rename, delete, audit.
    Rule(rule::RuleArgs),
    /// Show live flows: those of the open windows, and those that come.
    Observe(Box<observe::ObserveArgs>),
    /// Show the largest interfaces, flows, talkers and drop reasons, live.
    Top(Box<top::TopArgs>),
    /// What the running agent knows to be on this node.
    Inventory(inventory::InventoryArgs),
    /// Show what the running agent has, in a browser: flow logs to look at, add, provision, rename and delete.
    Console(console::ConsoleArgs),
    /// Make a password's hash, or a token, for the file of principals.
    #[command(subcommand)]
    Credential(credential::Credential),
    /// Print completions for a shell.
    Completions {
        /// bash, elvish, fish, powershell or zsh.
        shell: clap_complete::Shell,
    },
    /// Write manual pages into a directory: for packages.
    #[command(hide = true)]
    Manuals {
        /// The directory.
        dir: PathBuf,
    },
    /// Say what this kernel and machine can do, and what is missing. Changes nothing.
    Check(check::CheckArgs),
    /// Say what becomes of single packets: how they were parsed and counted, which died, where and why. As root, beside a running agent.
    Trace(trace::TraceArgs),
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

/// Runs the command line; all errors end here, each as one line on standard error.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let help = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            let _ = error.print();
            return if help { ExitCode::SUCCESS } else { ExitCode::from(exit::EX_USAGE) };
        }
    };
    let result = match cli.command {
        Command::Run(args) => run::run(*args),
        Command::Stop(state) => stop::run(&state.state_dir),
        Command::Detach(args) => detach::run(*args),
        Command::Status { state, output } => status::run(&state.state_dir, output),
        Command::Rule(args) => rule::run(args),
        Command::Observe(args) => observe::run(*args),
        Command::Top(args) => top::run(*args),
        Command::Inventory(args) => inventory::run(args),
        Command::Console(args) => console::run(args),
        Command::Credential(what) => credential::run(&what),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "flowlog", &mut script);
            out::text(&String::from_utf8_lossy(&script)).map(|()| ExitCode::SUCCESS)
        }
        Command::Manuals { dir } => manuals(&dir),
        Command::Check(args) => check::run(&args),
        Command::Trace(args) => trace::run(args),
        Command::Read { paths, rows } => read::run(&paths, rows),
    };
    match result {
        Ok(code) => code,
        Err(error) if error.is::<out::Closed>() => ExitCode::SUCCESS,
        Err(error) => {
            out::error(&exit::words(&error));
            exit::code(&error)
        }
    }
}

/// One page for each command, and for each of theirs.
fn manuals(dir: &Path) -> anyhow::Result<ExitCode> {
    let written = clap_mangen::generate_to(Cli::command(), dir);
    written.with_context(|| format!("cannot write manual pages into `{}`", dir.display()))?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_sound() {
        super::Cli::command().debug_assert();
    }
}
