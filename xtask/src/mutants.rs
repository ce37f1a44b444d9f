//! `cargo xtask mutants`: does every promise have a test that can fail? Breaks the sources on purpose, one place at a
//! time and in a copy, and runs the test that must notice.
//!
//! Each mutant is a patch in `xtask/mutants/`. Its first line says who must notice: the package and the name of the test.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail, ensure};

use crate::{
    build, setup,
    util::{files_below, root, run as run_command, step},
};

/// Folder whose files are in the eBPF objects.
const PROGRAMS: &str = "flowlog-ebpf/src";
/// Package of the tests on the real kernel; all others are a library's own.
const KERNEL_TESTS: &str = "integration";
/// A test of the kernel that no mutant of the programs may fail: it loads them, and refuses nothing. A program that the verifier
/// refuses fails every test, and shows nothing.
const LOADS: &str = "non_ip_frames_are_counted_as_such_and_never_as_flows";
const FAULTS: &str = "integration/faults";

/// One way to break flowlog.
struct Mutant {
    name: String,
    patch: PathBuf,
    /// It is one of the eBPF programs.
    is_program: bool,
    noticed_by: Test,
}

/// The test that must fail.
struct Test {
    package: String,
    name: String,
}

impl Mutant {
    fn read(patch: PathBuf) -> anyhow::Result<Self> {
        let text = fs::read_to_string(&patch)?;
        let name = patch.file_stem().context("a name")?.to_string_lossy().into_owned();
        let head = text.lines().next().and_then(|l| l.strip_prefix("noticed by: ")?.split_once(' '));
        let (package, promise) = head.with_context(|| format!("{name}: begin with `noticed by: PACKAGE TEST`"))?;
        let is_program = text.lines().any(|l| l.strip_prefix("+++ b/").is_some_and(|f| f.starts_with(PROGRAMS)));
        let noticed_by = Test { package: package.to_owned(), name: promise.to_owned() };
        Ok(Self { name, patch, is_program, noticed_by })
    }

    /// Breaks the tree at `tree`, or only looks whether it could.
    fn apply(&self, tree: &Path, options: &[&str]) -> anyhow::Result<()> {
        let above = tree.parent().context("a folder above")?;
        // Without a repository around it, git takes paths as they are.
        run_command(
            Command::new("git")
                .arg("apply")
                .args(options)
                .arg(&self.patch)
                .current_dir(tree)
                .env("GIT_CEILING_DIRECTORIES", above),
        )
        .with_context(|| format!("{}: its patch does not fit (any more)", self.name))
    }
}

fn all() -> anyhow::Result<Vec<Mutant>> {
    files_below(&[root().join("xtask/mutants")])?.into_iter().map(Mutant::read).collect()
}

/// Every patch fits the sources as they are.
pub(crate) fn check() -> anyhow::Result<()> {
    step("mutants");
    all()?.iter().try_for_each(|m| m.apply(&root(), &["--check"]))
}

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only mutants whose names contain one of these
    #[arg(value_name = "NAME")]
    filter: Vec<String>,
}

/// Runs those whose names contain a word of the filter, or all.
pub(crate) fn run(Args { filter }: &Args) -> anyhow::Result<()> {
    let copy = root().join("target/mutants/tree");
    let mut mutants = all()?;
    mutants.retain(|m| filter.is_empty() || filter.iter().any(|f| m.name.contains(f.as_str())));
    ensure!(!mutants.is_empty(), "no mutant has that name");
    setup::bpf()?;
    let mut survivors = Vec::new();
    for mutant in &mutants {
        step(&mutant.name);
        fresh_copy(&copy)?;
        mutant.apply(&copy, &[])?;
        if mutant.is_program {
            let objects = root().join("target/mutants/bpf");
            build::objects_of(&copy, &objects, &copy.join("flowlog-ebpf/prebuilt"))?;
            let loads = Test { package: KERNEL_TESTS.to_owned(), name: LOADS.to_owned() };
            ensure!(passes(&copy, &loads)?, "{}: its programs do not load", mutant.name);
        }
        if passes(&copy, &mutant.noticed_by)? {
            println!("SURVIVED  {}", mutant.name);
            survivors.push(mutant.name.as_str());
        } else {
            println!("noticed   {}", mutant.name);
        }
    }
    let tried = mutants.len();
    if !survivors.is_empty() {
        bail!("{} of {tried} mutants were not noticed: {}", survivors.len(), survivors.join(", "));
    }
    println!("\nall {tried} mutants were noticed");
    Ok(())
}

/// The tracked files of this tree, and no others. Those that are the same are left alone, so that only what changed is built
/// again.
fn fresh_copy(copy: &Path) -> anyhow::Result<()> {
    let out = Command::new("git").args(["ls-files", "-z"]).current_dir(root()).output()?;
    let tracked = String::from_utf8(out.stdout)?;
    let names: BTreeSet<&str> = tracked.split('\0').filter(|n| !n.is_empty()).collect();
    if copy.is_dir() {
        for old in files_below(&[copy.to_owned()])? {
            if old.strip_prefix(copy).is_ok_and(|n| !names.contains(&*n.to_string_lossy())) {
                fs::remove_file(old)?;
            }
        }
    }
    for name in names {
        let from = root().join(name);
        let to = copy.join(name);
        let Ok(bytes) = fs::read(&from) else { continue };
        if fs::read(&to).ok().as_ref() != Some(&bytes) {
            fs::create_dir_all(to.parent().context("a folder")?)?;
            fs::write(&to, bytes)?;
        }
    }
    Ok(())
}

/// Whether a test passes. A mutant that does not build is a mistake in its patch.
fn passes(copy: &Path, test: &Test) -> anyhow::Result<bool> {
    let cargo = |args: &[&str]| -> anyhow::Result<(bool, String)> {
        let out = Command::new("cargo")
            .args(args)
            .current_dir(copy)
            .env("CARGO_TARGET_DIR", root().join("target/mutants/target"))
            .env("RUST_BACKTRACE", "0")
            .output()?;
        Ok((out.status.success(), String::from_utf8_lossy(&out.stderr).into_owned()))
    };
    let build = |args: &[&str]| -> anyhow::Result<()> {
        let (built, log) = cargo(args)?;
        ensure!(built, "the mutant does not build:\n{log}");
        Ok(())
    };
    let Test { package, name } = test;
    let mut args = vec!["test", "-q", "-p", package];
    if package == KERNEL_TESTS {
        build(&["build", "-q", "-p", "flowlog-agent", "--features", "faults"])?;
        args.extend(["--features", FAULTS, "--test", "all"]);
    } else {
        args.push("--lib");
    }
    build(&[&args[..], &["--no-run"]].concat())?;
    Ok(cargo(&[&args[..], &["--", name]].concat())?.0)
}
