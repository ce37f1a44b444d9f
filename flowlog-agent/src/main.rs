//! The agent's binary: parse, run, say what went wrong in one line.

use std::process::ExitCode;

fn main() -> ExitCode {
    #[cfg(feature = "faults")]
    if let Err(error) = flowlog_host::fault::arm() {
        eprintln!("{error}");
        return ExitCode::FAILURE;
    }
    flowlog_agent::cli::main()
}
