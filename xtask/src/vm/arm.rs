//! A root for arm64 guests: this machine's programs are not theirs. Packages of the archive, unpacked and never installed,
//! and the agent and its tests cross compiled beside them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context as _;

use super::{apt::Archive, kernels::Kernel};
use crate::{
    setup, test,
    test::Programs,
    util::{root as repository, run as run_command, step},
};

pub(super) const TARGET: &str = "aarch64-unknown-linux-gnu";
pub(super) const COMPILER: &str = "aarch64-linux-gnu-gcc";
/// What the script of a guest and the tests call.
const PACKAGES: [&str; 10] =
    ["base-files", "bash", "coreutils", "dash", "iproute2", "iputils-ping", "kmod", "mount", "nftables", "util-linux"];
/// What tests read from the repository.
const FILES: [&str; 2] = ["integration/verified_instructions.txt", "flowlog-ebpf/prebuilt/flowlog.bpf.o"];
/// Where the guest finds agent and tests: beside each other as cargo puts them.
const PROGRAMS: &str = "flowlog/debug";

/// Cross compiles agent and tests.
pub(crate) fn programs() -> anyhow::Result<Programs> {
    setup::cross_compiler(TARGET, COMPILER)?;
    step(&format!("building the agent and the tests for {TARGET}"));
    let linker = ("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", COMPILER);
    test::programs_for(Some(TARGET), &[linker])
}

/// Makes the root, and puts the programs and the kernels' modules into it. Returns it, and where the programs are inside.
pub(crate) fn root(
    dir: &Path,
    archive: &Archive,
    programs: &Programs,
    kernels: &[Kernel],
) -> anyhow::Result<(PathBuf, Programs)> {
    let root = dir.join("root-arm64");
    if !root.is_dir() {
        step(&format!("a root file system for arm64: {}", PACKAGES.join(", ")));
        let packages = archive.closure(&PACKAGES)?;
        archive.unpack(&packages, &root, |root| {
            ["dev", "proc", "sys", "run", "tmp", "root"].iter().try_for_each(|d| Ok(fs::create_dir_all(root.join(d))?))
        })?;
    }
    for kernel in kernels {
        let modules = root.join("usr/lib/modules").join(&kernel.release);
        if !modules.is_dir() {
            fs::create_dir_all(modules.parent().context("a parent")?)?;
            run_command(Command::new("cp").arg("-a").arg(kernel.modules.join(&kernel.release)).arg(&modules))?;
        }
    }
    for file in FILES {
        let file = repository().join(file);
        copy(&file, &inside(&root, &file))?;
    }
    let name = programs.tests.file_name().context("the test binary's name")?;
    let there = Programs {
        agent: Path::new("/").join(PROGRAMS).join("flowlog"),
        tests: Path::new("/").join(PROGRAMS).join("deps").join(name),
    };
    copy(&programs.agent, &inside(&root, &there.agent))?;
    copy(&programs.tests, &inside(&root, &there.tests))?;
    Ok((root, there))
}

/// The host's path of what the guest sees at `path`.
fn inside(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to.parent().context("a parent")?)?;
    fs::copy(from, to).map(drop).with_context(|| format!("{} to {}", from.display(), to.display()))
}
