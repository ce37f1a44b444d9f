//! Clippy, with the lints of the workspace (`Cargo.toml`), of both halves.
//!
//! The workspace is looked at as it is built for the host, where the programs are empty: all of the kernel's half is behind
//! `cfg(target_arch = "bpf")`. So that half is looked at once more, as its objects are built.

use crate::{
    build, setup,
    util::{cargo, root, run as run_command, step},
};

/// A warning is an error.
const STRICT: [&str; 3] = ["--", "-D", "warnings"];

/// Lints that the programs cannot follow, and why. What only one place cannot is allowed there.
const NOT_FOR_PROGRAMS: [(&str, &str); 4] = [
    ("clippy::inline_always", "a call costs a frame of the 512 bytes of stack, and the verifier follows it each time"),
    ("clippy::needless_pass_by_value", "aya's macros hand a program its context by value"),
    (
        "clippy::cast_possible_truncation",
        "registers have 64 bits, the kernel's fields and what its helpers return fewer",
    ),
    (
        "clippy::cast_possible_wrap",
        "programs return i32, and the sign of the distance of two epochs says which is later",
    ),
];

pub(crate) fn check() -> anyhow::Result<()> {
    step("lints (clippy, pedantic)");
    run_command(cargo().args(["clippy", "--locked", "--workspace", "--all-targets", "--quiet"]).args(STRICT))?;
    programs()
}

/// The kernel's half, in a folder of its own: what clippy leaves behind is no object.
fn programs() -> anyhow::Result<()> {
    step("lints of the eBPF programs (clippy, pedantic)");
    setup::bpf()?;
    let allowed = NOT_FOR_PROGRAMS.iter().flat_map(|(lint, _)| ["-A", lint]);
    run_command(build::nested(&root(), &root().join("target/bpf-clippy"), "clippy")?.args(STRICT).args(allowed))
}
