//! The program of a package: built with everything that makes it small, without symbols, which are in a file of their own.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, ensure};

use crate::{
    setup,
    util::{cargo, output, run as run_command, step, target},
    vm::Arch,
};

/// The profile in the workspace's manifest that packages are built with.
pub(super) const PROFILE: &str = "dist";
/// Libraries that the packages say they need; a program that wants another one needs more than that.
const LIBRARIES: [&str; 4] = ["libc.so.6", "libgcc_s.so.1", "libm.so.6", "ld-linux"];

/// A program that has a package: what cargo calls its package, and what it is called itself, as is the package that it is installed from.
///
/// Each is built by itself: together, cargo would give what both link the features that either wants, and the agent would have some of tables.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Program {
    pub(super) package: &'static str,
    pub(super) name: &'static str,
}

pub(super) const AGENT: Program = Program { package: "flowlog-agent", name: "flowlog" };
pub(super) const CATALOG: Program = Program { package: "flowlog-catalog", name: "flowlog-catalog" };

pub(super) struct Binary {
    pub(super) program: Program,
    pub(super) arch: Arch,
    /// As it was linked.
    pub(super) built: PathBuf,
    pub(super) stripped: PathBuf,
    /// Its symbols.
    pub(super) debug: PathBuf,
    /// What debuggers find the symbols by.
    pub(super) build_id: String,
    /// The oldest GNU C library that has all it calls.
    pub(super) libc: String,
}

impl Binary {
    pub(super) fn build(program: Program, arch: Arch, profile: &str, dir: &Path) -> anyhow::Result<Self> {
        step(&format!("building {} for packages, {} (minutes)", program.name, arch.name()));
        let mut compile = cargo();
        compile.args(["build", "--profile", profile, "--locked", "--package", program.package]);
        let mut folder = target();
        if arch != Arch::here() {
            let triple = arch.triple();
            let compiler = arch.cross_compiler().context("nobody has compiled for that machine from this one yet")?;
            setup::cross_compiler(triple, compiler)?;
            let variable = format!("CARGO_TARGET_{}_LINKER", triple.replace('-', "_").to_uppercase());
            compile.args(["--target", triple]).env(variable, compiler);
            folder.push(triple);
        }
        run_command(&mut compile)?;
        // Cargo's own has another folder than name.
        let built = folder.join(if profile == "dev" { "debug" } else { profile }).join(program.name);
        let stripped = dir.join(program.name);
        let debug = dir.join(format!("{}.debug", program.name));
        let objcopy = || Command::new(arch.tool("objcopy"));
        run_command(objcopy().arg("--only-keep-debug").arg(&built).arg(&debug))?;
        run_command(objcopy().arg("--strip-all").arg(&built).arg(&stripped))?;
        let asked = |flags: &[&str]| output(Command::new(arch.tool("readelf")).args(flags).arg(&built));
        let build_id = build_id(&asked(&["--notes"])?).context("the linker made no build id")?;
        ensure_libraries(&asked(&["--dynamic"])?)?;
        let libc = newest_libc(&asked(&["--version-info"])?).context("it calls no GNU C library")?;
        Ok(Self { program, arch, built, stripped, debug, build_id, libc })
    }

    /// Runs it, by an emulator if it is another machine's.
    pub(super) fn command(&self) -> Command {
        if self.arch == Arch::here() {
            return Command::new(&self.stripped);
        }
        let mut command = Command::new(format!("qemu-{}-static", self.arch.name()));
        command.args(["-L", &format!("/usr/{}-linux-gnu", self.arch.name())]).arg(&self.stripped);
        command
    }

    /// Puts it into a tree, readable for all.
    pub(super) fn copy_to(&self, path: &Path) -> anyhow::Result<()> {
        fs::copy(&self.stripped, path).map(drop).with_context(|| path.display().to_string())
    }
}

/// From `readelf --notes`: `Build ID: 0123abcd`.
fn build_id(notes: &str) -> Option<String> {
    let id = notes.lines().find_map(|line| line.trim().strip_prefix("Build ID: "))?;
    (id.len() > 2).then(|| id.to_owned())
}

/// From `readelf --dynamic`: `(NEEDED) Shared library: [libc.so.6]`.
fn ensure_libraries(dynamic: &str) -> anyhow::Result<()> {
    let needed = dynamic.lines().filter_map(|line| line.split_once("Shared library: [")?.1.split(']').next());
    let unknown: Vec<&str> = needed.filter(|name| !LIBRARIES.iter().any(|known| name.starts_with(known))).collect();
    ensure!(unknown.is_empty(), "the program wants libraries that no package says: {}", unknown.join(", "));
    Ok(())
}

/// From `readelf --version-info`: `Name: GLIBC_2.34`.
fn newest_libc(versions: &str) -> Option<String> {
    let named = versions.split("GLIBC_").skip(1).map(|rest| rest.split(|c: char| !(c.is_ascii_digit() || c == '.')));
    let numbers = named.filter_map(|mut rest| {
        let (major, minor) = rest.next()?.split_once('.')?;
        Some((major.parse::<u32>().ok()?, minor.split('.').next()?.parse::<u32>().ok()?))
    });
    numbers.max().map(|(major, minor)| format!("{major}.{minor}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_readelf_says_of_a_program_is_understood() {
        let notes = "  GNU 0x14 NT_GNU_BUILD_ID\n    Build ID: 65a5a4bd\n";
        assert_eq!(build_id(notes).as_deref(), Some("65a5a4bd"));
        assert_eq!(build_id("no notes"), None);
        let versions = "  0x10: Name: GLIBC_2.9  Flags: none\n  0x20: Name: GLIBC_2.34  Flags: none\n  Name: GLIBC_2.3.4 Name: GCC_4.2.0";
        assert_eq!(newest_libc(versions).as_deref(), Some("2.34"));
        assert_eq!(newest_libc("Name: GCC_3.0"), None);
        let needed = |name: &str| format!(" 0x0001 (NEEDED)  Shared library: [{name}]\n");
        assert!(ensure_libraries(&(needed("libc.so.6") + &needed("ld-linux-aarch64.so.1"))).is_ok());
        let error = ensure_libraries(&needed("libssl.so.3")).expect_err("unknown").to_string();
        assert!(error.ends_with("libssl.so.3"), "{error}");
    }
}
