//! Why the kernel does not take a program, in a line: the verifier's log has thousands.

use std::{fs, io};

/// Lines with which a log ends after it has said what is wrong.
const STATISTICS: [&str; 4] = ["processed ", "verification time ", "stack depth ", "mark_precise: "];
/// Present in the initial network namespace only.
const JIT: &str = "/proc/sys/net/core/bpf_jit_enable";

/// What went wrong, and what to do if it is not the program's fault. `None` if the verifier was never asked: then the
/// kernel's answer is about us.
pub(super) fn words(error: &io::Error, log: &str) -> Option<String> {
    let last = last_line(log)?;
    tracing::debug!("the verifier's log:\n{log}");
    let jit = if log.contains("non-JITed") || jit_is_off() {
        "; the kernel's JIT compiler is off, and these programs need it: set the sysctl net.core.bpf_jit_enable to 1"
    } else {
        ""
    };
    Some(format!("the verifier refused it: {last} ({error}){jit}"))
}

/// The line of a log that says why.
fn last_line(log: &str) -> Option<&str> {
    let said = log.lines().map(str::trim).filter(|l| !l.is_empty());
    let mut said = said.filter(|l| !STATISTICS.iter().any(|s| l.starts_with(s)));
    said.next_back()
}

/// Whether this kernel interprets programs, as far as can be seen from here.
pub(super) fn jit_is_off() -> bool {
    fs::read_to_string(JIT).is_ok_and(|value| value.trim() == "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
func#0 @0
0: R1=ctx() R10=fp0
; let at = data + offset;
12: (0f) r1 += r2
math between map_value pointer and register with unbounded min value is not allowed
verification time 412 usec
stack depth 192+240
processed 13 insns (limit 1000000) max_states_per_insn 0 total_states 1 peak_states 1 mark_read 1
";

    #[test]
    fn the_line_that_says_why_is_found() {
        let refused = io::Error::from_raw_os_error(libc::EACCES);
        let words = words(&refused, LOG).expect("a log");
        assert!(words.contains("math between map_value pointer"), "{words}");
        assert!(!words.contains("processed") && words.lines().count() == 1, "{words}");
    }

    #[test]
    fn a_missing_jit_is_named_and_an_empty_log_is_no_refusal_by_the_verifier() {
        let refused = io::Error::from_raw_os_error(libc::EINVAL);
        let named = words(&refused, "callbacks are not allowed in non-JITed programs\n").expect("a log");
        assert!(named.contains("net.core.bpf_jit_enable"), "{named}");
        assert_eq!(words(&refused, ""), None);
    }
}
