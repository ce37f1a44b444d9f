//! Runs a program whose system calls are filtered as systemd filters those of a unit (`SystemCallFilter=`): `filtered FILE PROGRAM ARGS…`. The
//! file has the names of the calls that are allowed, one a line; the others are EPERM. `cargo xtask test --as-service` writes it.

use std::{env, ffi::OsString, fs, os::unix::process::CommandExt as _, process::Command};

use anyhow::{Context as _, ensure};
use seccompiler::{BpfProgram, TargetArch};
use serde_json::json;

fn main() -> anyhow::Result<()> {
    let mut args = env::args_os().skip(1);
    let names = fs::read_to_string(args.next().context("a file")?)?;
    let program = args.next().context("a program")?;
    let args: Vec<OsString> = args.collect();
    // It sets `no_new_privs` first.
    seccompiler::apply_filter(&filter(&names)?)?;
    Err(Command::new(program).args(args).exec().into())
}

fn filter(names: &str) -> anyhow::Result<BpfProgram> {
    let arch: TargetArch = env::consts::ARCH.try_into()?;
    let compile = |names: &[&str]| {
        let calls: Vec<_> = names.iter().map(|name| json!({ "syscall": name })).collect();
        let filter = json!({ "mismatch_action": { "errno": libc::EPERM }, "match_action": "allow", "filter": calls });
        seccompiler::compile_from_json(json!({ "all": filter }).to_string().as_bytes(), arch)
    };
    // Some are another machine's.
    let known: Vec<&str> = names.lines().filter(|name| compile(&[name]).is_ok()).collect();
    ensure!(known.contains(&"bpf"), "an agent without bpf(2) does nothing");
    compile(&known)?.remove("all").context("a filter")
}
