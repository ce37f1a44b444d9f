//! `cargo xtask build`: the eBPF objects and the release agent; `cargo xtask build-ebpf`: only the objects. Two verbs in one file,
//! because one is the other and one command more.
//!
//! The object is checked in (`flowlog-ebpf/prebuilt/`), so that building the agent needs no eBPF tool chain. It is
//! reproducible bit for bit: `cargo xtask check` rebuilds and compares it.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, ensure};

use crate::{
    setup,
    util::{cargo, files_below, output, root, run as run_command, step},
};

const TARGET: &str = "bpfel-unknown-none";
/// The programs, those that stand for other people's in the tests, and those of the benchmark: `NAME.bpf.o`, and the binary of
/// `flowlog-ebpf` that it is.
pub(crate) const OBJECTS: [(&str, &str); 4] =
    [("flowlog", "flowlog-programs"), ("trace", "trace"), ("testkit", "testkit"), ("bench", "bench")];
/// File with the fingerprint of the sources the objects were built from.
const FINGERPRINT: &str = "SOURCES";

/// Rebuilds the checked-in object, then the agent.
pub(crate) fn run() -> anyhow::Result<()> {
    ebpf()?;
    agent()
}

/// Rebuilds the checked-in objects.
pub(crate) fn ebpf() -> anyhow::Result<()> {
    setup::bpf()?;
    objects(&prebuilt())
}

/// Where the checked-in object lies.
pub(crate) fn prebuilt() -> PathBuf {
    root().join("flowlog-ebpf/prebuilt")
}

/// Builds the release agent.
pub(crate) fn agent() -> anyhow::Result<()> {
    step("building the agent (release)");
    run_command(cargo().args(["build", "--release", "--locked", "--package", "flowlog-agent"]))
}

/// Fails if the checked-in object was not built from the sources in this tree.
pub(crate) fn ensure_fresh() -> anyhow::Result<()> {
    let recorded = fs::read_to_string(prebuilt().join(FINGERPRINT)).unwrap_or_default();
    ensure!(
        recorded.trim() == fingerprint()?,
        "flowlog-ebpf changed since its object was built; run `cargo xtask build` and commit flowlog-ebpf/prebuilt"
    );
    Ok(())
}

/// FNV-1a over everything the object is built from.
fn fingerprint() -> anyhow::Result<String> {
    let root = root();
    let mut files = files_below(&[root.join("flowlog-ebpf/src")])?;
    files.extend([
        root.join("flowlog-ebpf/Cargo.toml"),
        root.join("rust-toolchain.toml"),
        root.join("xtask/src/build.rs"),
    ]);
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for file in files {
        for byte in fs::read(&file).with_context(|| format!("cannot read {}", file.display()))? {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
    }
    Ok(format!("{hash:016x}"))
}

/// Builds the objects into `dest`.
pub(crate) fn objects(dest: &Path) -> anyhow::Result<()> {
    step("building the eBPF objects");
    objects_of(&root(), &root().join("target/bpf"), dest)?;
    fs::write(dest.join(FINGERPRINT), format!("{}\n", fingerprint()?))?;
    Ok(())
}

/// Folder of the tool chain that a tree is built with.
fn sysroot(tree: &Path) -> anyhow::Result<String> {
    output(Command::new("rustc").args(["--print", "sysroot"]).current_dir(tree))
}

/// A verb of cargo (`build`, `clippy`) on the programs of the sources in `tree`.
///
/// One nested cargo with the same stable compiler; `RUSTC_BOOTSTRAP` (for `-Z build-std`) is set for that process
/// only. Paths are remapped, so the bytes do not depend on where the checkout or the tool chain lies.
pub(crate) fn nested(tree: &Path, target_dir: &Path, verb: &str) -> anyhow::Result<Command> {
    let cargo_home = env::var_os("CARGO_HOME")
        .map_or_else(|| PathBuf::from(env::var_os("HOME").unwrap_or_default()).join(".cargo"), PathBuf::from);
    let remap = |from: &Path, to: &str| format!("--remap-path-prefix={}={to}", from.display());
    let flags = [
        "--cfg=bpf_target_arch=\"x86_64\"".to_owned(),
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        // Linux 5.1: 32-bit arithmetic and jumps, without the shifts that clear the upper half of a register.
        "-Ctarget-cpu=v3".to_owned(),
        // Packet headers are not aligned; BPF on x86-64 and arm64 loads them anyway.
        "-Clink-arg=--cpu-features=+allows-misaligned-mem-access".to_owned(),
        remap(tree, "/flowlog"),
        remap(target_dir, "/target"),
        remap(&cargo_home.join("registry/src"), "/cargo"),
        remap(Path::new(&sysroot(tree)?), "/rust"),
    ];
    let mut command = cargo();
    command
        .current_dir(tree)
        .args([verb, "--quiet", "--locked", "--release", "--package", "flowlog-ebpf", "--bins"])
        .args(["--target", TARGET, "-Zbuild-std=core", "--target-dir"])
        .arg(target_dir)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", setup::linker())
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .env_remove("RUSTC_WORKSPACE_WRAPPER");
    Ok(command)
}

/// Builds the objects of the sources in `tree` into `dest`.
pub(crate) fn objects_of(tree: &Path, target_dir: &Path, dest: &Path) -> anyhow::Result<()> {
    let sysroot = sysroot(tree)?;
    let host = output(Command::new("rustc").args(["--print", "host-tuple"]).current_dir(tree))?;
    run_command(&mut nested(tree, target_dir, "build")?)?;
    fs::create_dir_all(dest)?;
    for (name, binary) in OBJECTS {
        let object = dest.join(format!("{name}.bpf.o"));
        fs::copy(target_dir.join(TARGET).join("release").join(binary), &object)?;
        run_command(
            Command::new(format!("{sysroot}/lib/rustlib/{host}/bin/rust-objcopy"))
                .arg("--strip-debug")
                .arg(&object)
                .env("LD_LIBRARY_PATH", format!("{sysroot}/lib")),
        )?;
        refuse_panics(&object)?;
    }
    Ok(())
}

/// A reachable panic links silently, and only the verifier of some user's kernel would refuse it.
fn refuse_panics(object: &Path) -> anyhow::Result<()> {
    let bytes = fs::read(object)?;
    for symbol in [b"panicking".as_slice(), b"rust_begin_unwind"] {
        ensure!(
            !bytes.windows(symbol.len()).any(|w| w == symbol),
            "{}: a panic path survived optimisation (symbol {})",
            object.display(),
            String::from_utf8_lossy(symbol)
        );
    }
    Ok(())
}
