//! Running commands and finding the repository.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, ensure};

/// Root of the repository that `cargo xtask` was called in, which need not be the one this binary was built in: clones may
/// share a target folder.
pub(crate) fn root() -> PathBuf {
    let manifest = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    Path::new(&manifest).parent().expect("xtask lies in the workspace").to_owned()
}

/// Where cargo puts what it builds.
pub(crate) fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |dir| root().join(dir))
}

/// The agent as `cargo build` makes it.
pub(crate) fn agent_binary() -> PathBuf {
    target().join("debug/flowlog")
}

/// Prints one step, so that a long command is never a silent one.
pub(crate) fn step(what: &str) {
    eprintln!("==> {what}");
}

/// A command as one would type it. What it has in its environment may be long, and is in the sources.
fn typed(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// Runs a command to its end; an error names the command and its status.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<()> {
    let status = command.status().with_context(|| format!("cannot start {}", typed(command)))?;
    ensure!(status.success(), "{} failed: {status}", typed(command));
    Ok(())
}

/// Runs a command and returns its trimmed standard output.
pub(crate) fn output(command: &mut Command) -> anyhow::Result<String> {
    let out = command.output().with_context(|| format!("cannot start {}", typed(command)))?;
    ensure!(
        out.status.success(),
        "{} failed: {}\n{}",
        typed(command),
        out.status,
        String::from_utf8_lossy(&out.stderr)
    );
    Ok(String::from_utf8(out.stdout)?.trim().to_owned())
}

/// Whether `program` can be started.
pub(crate) fn has(program: &str) -> bool {
    env::var_os("PATH").is_some_and(|path| {
        env::split_paths(&path)
            .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")])
            .any(|d| d.join(program).is_file())
    })
}

/// Cargo of the pinned toolchain, in the repository.
pub(crate) fn cargo() -> Command {
    let mut c = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    c.current_dir(root());
    c
}

/// All files below `dirs`, sorted.
pub(crate) fn files_below(dirs: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut todo = dirs.to_vec();
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).with_context(|| format!("cannot list {}", dir.display()))? {
            let path = entry?.path();
            if path.is_dir() { todo.push(path) } else { files.push(path) }
        }
    }
    files.sort();
    Ok(files)
}

/// Every file of the work tree that git does not ignore, from the root.
pub(crate) fn tracked() -> anyhow::Result<Vec<String>> {
    let mut git = Command::new("git");
    git.current_dir(root()).args(["ls-files", "--cached", "--others", "--exclude-standard"]);
    let listed = output(&mut git)?;
    Ok(listed.lines().filter(|name| root().join(name).is_file()).map(str::to_owned).collect())
}
