//! `flowlog check`.

use std::process::ExitCode;

use flowlog_kernel::probe::{self, Finding};

use super::out::say;

pub(super) fn run(interfaces: &[String]) -> anyhow::Result<ExitCode> {
    let findings = probe::machine(interfaces);
    for Finding { what, state, detail } in &findings {
        say!("{:<7} {what:<28} {detail}", state.to_string())?;
    }
    let missing = findings.iter().filter(|f| f.state == probe::State::Missing).count();
    if missing == 0 {
        say!("\nflowlog can run here")?;
        return Ok(ExitCode::SUCCESS);
    }
    say!("\nflowlog cannot run here: {missing} missing")?;
    Ok(ExitCode::FAILURE)
}
