//! `flowlog check`.

use std::process::ExitCode;

use flowlog_kernel::probe::{self, Finding};

pub(super) fn run(interfaces: &[String]) -> ExitCode {
    let findings = probe::machine(interfaces);
    for Finding { what, state, detail } in &findings {
        println!("{:<7} {what:<28} {detail}", state.to_string());
    }
    let missing = findings.iter().filter(|f| f.state == probe::State::Missing).count();
    if missing == 0 {
        println!("\nflowlog can run here");
        return ExitCode::SUCCESS;
    }
    println!("\nflowlog cannot run here: {missing} missing");
    ExitCode::FAILURE
}
