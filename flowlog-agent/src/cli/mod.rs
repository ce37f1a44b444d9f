//! The command line. Parsing and exit codes only; what a command does is in the file of its name.

mod args;
mod check;
mod client;
mod complete;
mod console;
mod control;
mod credential;
mod detach;
#[cfg(test)]
mod documents;
mod exit;
mod import;
mod inventory;
mod observe;
mod out;
mod read;
mod reload;
mod rule;
mod run;
mod sql;
mod status;
mod stop;
mod table;
mod top;
mod trace;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use args::{DETACH_EXAMPLES, DetachArgs, RUN_EXAMPLES, RunArgs, StateArgs};
use clap::{CommandFactory as _, Parser, Subcommand, builder::PossibleValuesParser, error::ErrorKind};

use crate::log;

/// eBPF flow logs: every packet of an interface, accepted or refused, as Parquet in object storage.
#[derive(Parser)]
#[command(name = "flowlog", version, max_term_width = 110, after_help = exit::help())]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Capture. After SIGTERM or Ctrl-C the capture goes on in the kernel for the next `run`, or ends with `--no-pin`.
    #[command(after_help = RUN_EXAMPLES)]
    Run(Box<RunArgs>),
    /// End the running agent; its capture goes on in the kernel, for the next `run`.
    #[command(after_help = "Examples:\n  flowlog stop\n  flowlog stop --state-dir ./state")]
    Stop(StateArgs),
    /// End the capture: end the running agent, deliver what is captured, remove every hook and pin.
    #[command(after_help = DETACH_EXAMPLES)]
    Detach(Box<DetachArgs>),
    /// Say how every rule is doing.
    Status(status::StatusArgs),
    /// Flow logs of the running agent: add, validate, provision, list, show, rename, delete, audit.
    Rule(rule::RuleArgs),
    /// Show live flows: those of the open windows, and those that come.
    Observe(Box<observe::ObserveArgs>),
    /// Show the largest interfaces, flows, talkers and drop reasons, live.
    Top(Box<top::TopArgs>),
    /// What the running agent knows to be on this node; and what it could know.
    Inventory(inventory::InventoryArgs),
    /// Show what the running agent has, in a browser: flow logs to look at, add, provision, rename and delete.
    Console(console::ConsoleArgs),
    /// Serve API and console for all nodes of a region: what is in etcd, without a kernel and without root.
    #[command(after_help = control::EXAMPLES)]
    Control(control::ControlArgs),
    /// Make a password's hash, or a token, for the file of principals.
    #[command(
        subcommand,
        after_help = "Examples:\n  flowlog credential token\n  flowlog credential password < password.txt"
    )]
    Credential(credential::Credential),
    /// Print completions for a shell: commands, flags, and names of interfaces and flow logs.
    #[command(after_help = "\
Examples:
  source <(flowlog completions bash)
  flowlog completions zsh > ~/.zfunc/_flowlog
  flowlog completions fish > ~/.config/fish/completions/flowlog.fish")]
    Completions {
        /// The shell.
        #[arg(value_parser = PossibleValuesParser::new(complete::shells()))]
        shell: String,
    },
    /// Write manual pages into a directory: for packages.
    #[command(hide = true)]
    Manuals {
        /// The directory.
        dir: PathBuf,
    },
    /// Say what this kernel and machine can do, and what is missing. Changes nothing.
    #[command(after_help = check::EXAMPLES)]
    Check(Box<check::CheckArgs>),
    /// Have the running agent read its configuration again, and say what has changed; or why nothing has.
    #[command(after_help = reload::EXAMPLES)]
    Reload(StateArgs),
    /// Say what becomes of single packets: how they were parsed and counted, which died, where and why. As root, beside a running agent.
    Trace(trace::TraceArgs),
    /// Print delivered objects: as tables with their balance, as CSV, JSON or text; or the sums of their books.
    Read(Box<read::ReadArgs>),
    /// Print what an engine has to be told of delivered objects: the table, a view of the clouds' 14 columns, and queries.
    Sql(sql::SqlArgs),
}

/// Runs the command line; all errors end here, each as one line on standard error.
#[must_use]
pub fn main() -> ExitCode {
    complete::answer(completed);
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let help = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            let _ = error.print();
            return if help { ExitCode::SUCCESS } else { ExitCode::from(exit::EX_USAGE) };
        }
    };
    let result = match cli.command {
        Command::Run(args) => run::run(&args),
        Command::Stop(state) => stop::run(&state.state_dir),
        Command::Detach(args) => detach::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Rule(args) => rule::run(args),
        Command::Observe(args) => observe::run(*args),
        Command::Top(args) => top::run(*args),
        Command::Inventory(args) => inventory::run(args),
        Command::Console(args) => console::run(args),
        Command::Control(args) => control::run(&args),
        Command::Credential(what) => credential::run(&what),
        Command::Completions { shell } => completions(&shell),
        Command::Manuals { dir } => manuals(&dir),
        Command::Reload(state) => reload::run(&state.state_dir),
        Command::Check(args) => check::run(*args),
        Command::Trace(args) => trace::run(args),
        Command::Read(args) => read::run(&args),
        Command::Sql(args) => sql::run(&args),
    };
    match result {
        Ok(code) => code,
        Err(error) if error.is::<out::Closed>() => ExitCode::SUCCESS,
        Err(error) => {
            let words = exit::words(&error);
            if !log::last_words(&words) {
                out::error(&words);
            }
            exit::code(&error)
        }
    }
}

/// The command line with what shells are told of values; flags that say keys are made from their table, which knows nothing of this node.
fn completed() -> clap::Command {
    let told = |command: clap::Command| command.mut_arg("interface", |arg| arg.add(complete::interfaces()));
    Cli::command().mut_subcommand("run", told).mut_subcommand("check", told)
}

fn completions(shell: &str) -> anyhow::Result<ExitCode> {
    let script = complete::script(shell).context("there is no such shell")?;
    out::text(&script.context("cannot write the script")?)?;
    Ok(ExitCode::SUCCESS)
}

/// One page for each command, and for each of theirs.
fn manuals(dir: &Path) -> anyhow::Result<ExitCode> {
    let written = clap_mangen::generate_to(Cli::command(), dir);
    written.with_context(|| format!("cannot write manual pages into `{}`", dir.display()))?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use clap::{Command, CommandFactory as _};

    use super::Cli;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    /// Words as a shell makes them of a line: quoted ones are one, and what goes into a file or comes out of one is the shell's.
    pub(super) fn words(line: &str) -> Vec<String> {
        let quoted = line.split('\'').enumerate().flat_map(|(at, part)| match at % 2 {
            0 => part.split_whitespace().map(str::to_owned).collect(),
            _ => vec![part.to_owned()],
        });
        let all = quoted.map(|word| word.trim_start_matches("<(").trim_end_matches(')').to_owned());
        all.skip_while(|word| word != "flowlog")
            .take_while(|word| !matches!(word.as_str(), "|" | "<" | ">" | "2>" | "&"))
            .collect()
    }

    #[test]
    fn every_command_has_examples_and_each_is_understood() {
        let cli = Cli::command();
        let visible = |command: &&Command| !command.is_hide_set();
        for command in cli.get_subcommands().filter(visible) {
            let name = command.get_name();
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let (_, examples) = help.split_once("Examples:\n").unwrap_or_else(|| panic!("`{name}` has no examples"));
            let lines: Vec<&str> = examples.lines().take_while(|line| line.starts_with("  ")).collect();
            assert!(lines.iter().all(|line| line.contains(&format!("flowlog {name}"))), "`{name}`: {lines:?}");
            for line in lines {
                let parsed = cli.clone().try_get_matches_from(words(line));
                parsed.unwrap_or_else(|error| panic!("{line}: {error}"));
            }
        }
    }
}
