//! The agent's binary: parse, run, say what went wrong in one line.

use std::process::ExitCode;

fn main() -> ExitCode {
    flowlog_agent::cli::main()
}
