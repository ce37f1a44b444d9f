//! `cargo xtask setup`: installs what the other verbs need. Every step is printed and can be repeated.
//!
//! Inside the repository: `.tools/` (bpf-linker; cargo-deny; a Python environment for the second Parquet reader). Outside
//! it, announced: the rustup component `rust-src`, and Debian packages if a needed command is missing.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail};

use crate::util::{cargo, has, output, root, run as run_command, step};

/// Links with an LLVM that it is shown at its build.
const BPF_LINKER: &str = "0.13.0";
/// Must be the LLVM of the compiler in `rust-toolchain.toml`.
const LLVM_FEATURE: &str = "llvm-23";
/// A new release may know new rules: those are for whoever raises this.
const CARGO_DENY: &str = "0.20.2";
/// What tests import, and the package that has it: a second Parquet reader, two SQL engines that ask the footers in ways of their own, the
/// published client of the cloud API, and a bucket owner's client, which can set policies. Pinned, so that a new release cannot change
/// what the tests mean.
const PYTHON: [(&str, &str); 5] = [
    ("pyarrow.parquet", "pyarrow==26.0.1"),
    ("datafusion", "datafusion==55.0.0"),
    ("duckdb", "duckdb==2.0.1"),
    ("ionoscloud", "ionoscloud==6.1.13"),
    ("boto3", "boto3==1.44.8"),
];

/// The same for `cargo xtask engines`: engines and readers that take long to install or to start. Spark is the newest version that there is a
/// package with Iceberg's jar for; it runs on Java 17.
const ENGINES: [(&str, &str); 9] = [
    ("pyarrow.parquet", "pyarrow==26.0.1"),
    ("datafusion", "datafusion==55.0.0"),
    ("duckdb", "duckdb==2.0.1"),
    ("chdb", "chdb==4.4.0"),
    ("fastparquet", "fastparquet==2026.9.0"),
    ("pyspark", "pyspark==3.5.9"),
    ("pyiceberg.catalog.sql", "pyiceberg[sql-sqlite]==0.12.0"),
    ("snowpark_connect_deps_iceberg", "snowpark-connect-deps-iceberg==1.0.3"),
    // Parses what is for engines that there is no package of.
    ("sqlglot", "sqlglot==30.30.0"),
];

/// The newest `DuckDB` that there is a package of its Iceberg extension for. `DuckDB` takes an extension of its own version alone, and looks at
/// the signature of its makers.
const TABLES: [(&str, &str); 3] = [
    ("duckdb", "duckdb==1.5.5"),
    ("duckdb_extension_avro", "duckdb-extension-avro==1.5.5"),
    ("duckdb_extension_iceberg", "duckdb-extension-iceberg==1.5.5"),
];

pub(crate) fn run() -> anyhow::Result<()> {
    protocols()?;
    bpf()?;
    cargo_deny()?;
    network_tools()?;
    python_packages()?;
    servers()?;
    browser()?;
    step("setup is complete");
    Ok(())
}

/// What rebuilding the eBPF objects needs.
pub(crate) fn bpf() -> anyhow::Result<()> {
    let sysroot = PathBuf::from(output(Command::new("rustc").args(["--print", "sysroot"]).current_dir(root()))?);
    if !sysroot.join("lib/rustlib/src/rust/library/core").is_dir() {
        step("rustup component add rust-src (outside the repository: the pinned toolchain)");
        run_command(Command::new("rustup").args(["component", "add", "rust-src"]).current_dir(root()))?;
    }
    if is_installed(&linker(), BPF_LINKER) {
        return Ok(());
    }
    step(&format!("cargo install bpf-linker {BPF_LINKER} into .tools/ (a few minutes)"));
    run_command(
        cargo()
            .args(["install", "--locked", "--quiet", &format!("bpf-linker@{BPF_LINKER}"), "--no-default-features"])
            .args(["--features", LLVM_FEATURE, "--root"])
            .arg(root().join(".tools"))
            .env("LLVM_PREFIX", compilers_llvm(&sysroot)?),
    )
}

/// A folder that looks like an installation of LLVM, with the library that the compiler itself uses: another one may not
/// understand what the compiler has written, and `bpf-linker` does not notice (aya-rs/bpf-linker#319). rustup brings that library without
/// `llvm-config`; upstream takes an LLVM from Rust's CI instead (aya-rs/bpf-linker#322).
fn compilers_llvm(sysroot: &Path) -> anyhow::Result<PathBuf> {
    let prefix = root().join(".tools/llvm");
    let lib = prefix.join("lib");
    fs::create_dir_all(&lib)?;
    let files = fs::read_dir(sysroot.join("lib"))?.collect::<Result<Vec<_>, _>>()?;
    let library = files.iter().find(|f| f.file_name().to_string_lossy().starts_with("libLLVM.so"));
    let library = library.with_context(|| {
        format!("{} has no libLLVM; install the toolchain of `rust-toolchain.toml` with rustup", sysroot.display())
    })?;
    for link in [OsString::from("libLLVM.so"), library.file_name()] {
        let link = lib.join(link);
        if link.symlink_metadata().is_ok() {
            fs::remove_file(&link)?;
        }
        std::os::unix::fs::symlink(library.path(), &link)?;
    }
    Ok(prefix)
}

/// Path of the linker that [`bpf`] installs.
pub(crate) fn linker() -> PathBuf {
    root().join(".tools/bin/bpf-linker")
}

/// What compiles etcd's protocol, whenever the agent is built: its client brings the protocol, and neither a compiler nor what it
/// includes. Every verb that builds the agent calls this, so that a plain `cargo build` works after any of them.
pub(crate) fn protocols() -> anyhow::Result<()> {
    apt(&[("protoc", "protobuf-compiler")])?;
    // The compiler's package has no include files.
    let has_files = ["/usr/include", "/usr/local/include"]
        .iter()
        .any(|dir| Path::new(dir).join("google/protobuf/descriptor.proto").is_file());
    if has_files { Ok(()) } else { install(&["libprotobuf-dev"]) }
}

/// What looks at licences and advisories.
pub(crate) fn cargo_deny() -> anyhow::Result<()> {
    if is_installed(&deny(), CARGO_DENY) {
        return Ok(());
    }
    step(&format!("cargo install cargo-deny {CARGO_DENY} into .tools/ (a minute or two)"));
    // Not optimised: it is built for longer than it ever runs.
    run_command(
        cargo()
            .args(["install", "--locked", "--quiet", "--debug", &format!("cargo-deny@{CARGO_DENY}"), "--root"])
            .arg(root().join(".tools")),
    )
}

/// Path of what [`cargo_deny`] installs.
pub(crate) fn deny() -> PathBuf {
    root().join(".tools/bin/cargo-deny")
}

/// Whether a program is there, and of this version.
fn is_installed(program: &Path, version: &str) -> bool {
    let said = Command::new(program).arg("--version").output();
    said.is_ok_and(|o| String::from_utf8_lossy(&o.stdout).contains(version))
}

/// `ip`, `nft`, `tc`, `ping`: for the demo and the network tests.
pub(crate) fn network_tools() -> anyhow::Result<()> {
    apt(&[("ip", "iproute2"), ("nft", "nftables"), ("ping", "iputils-ping")])
}

/// What tests run in Python: [`PYTHON`].
pub(crate) fn python_packages() -> anyhow::Result<()> {
    environment("python", &PYTHON)
}

/// Engines that read what lands, and its tables: [`ENGINES`], [`TABLES`], and Java for one of them.
pub(crate) fn engines() -> anyhow::Result<()> {
    apt(&[("java", "openjdk-17-jre-headless")])?;
    // Spark's way to a catalog in SQLite.
    if !Path::new("/usr/share/java/sqlite-jdbc.jar").is_file() {
        install(&["libxerial-sqlite-jdbc-java"])?;
    }
    environment("engines", &ENGINES)?;
    environment("tables", &TABLES)
}

/// A Python environment in `.tools/`, with packages; made again where one of them is missing, or of another version.
fn environment(name: &str, packages: &[(&str, &str)]) -> anyhow::Result<()> {
    let venv = root().join(".tools").join(name);
    let python = venv.join("bin/python");
    let (modules, packages): (Vec<_>, Vec<_>) = packages.iter().copied().unzip();
    let stamp = venv.join("flowlog-packages");
    let is_stamped = fs::read_to_string(&stamp).is_ok_and(|text| text == packages.join("\n"));
    let imports = format!("import {}", modules.join(", "));
    if is_stamped && Command::new(&python).args(["-c", &imports]).output().is_ok_and(|o| o.status.success()) {
        return Ok(());
    }
    step(&format!("{} into .tools/{name}, for the tests", packages.join(", ")));
    if !has("python3") {
        apt(&[("python3", "python3")])?;
    }
    if run_command(Command::new("python3").args(["-m", "venv"]).arg(&venv)).is_err() {
        install(&["python3-venv"])?;
        run_command(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv))?;
    }
    let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"];
    run_command(Command::new(&python).args(pip).args(&packages))?;
    Ok(fs::write(stamp, packages.join("\n"))?)
}

/// Real servers, for the tests: Ceph's RADOS gateway, which speaks S3, a proxy, Prometheus, what commands the kernel's load balancer, etcd,
/// and what knows of VMs.
pub(crate) fn servers() -> anyhow::Result<()> {
    let ceph = [("radosgw", "radosgw"), ("ceph-mon", "ceph-mon"), ("ceph-osd", "ceph-osd"), ("ceph", "ceph-common")];
    apt(&ceph)?;
    apt(&[("haproxy", "haproxy"), ("ipvsadm", "ipvsadm"), ("prometheus", "prometheus")])?;
    etcd()?;
    hypervisors()
}

/// etcd, and what commands it. Where there is a service manager, the package starts one for this machine, which nothing here uses.
pub(crate) fn etcd() -> anyhow::Result<()> {
    apt(&[("etcd", "etcd-server"), ("etcdctl", "etcd-client")])
}

/// What knows of VMs: libvirt with QEMU, and the database of Open vSwitch. None of these packages starts anything.
fn hypervisors() -> anyhow::Result<()> {
    apt(&[("ovsdb-server", "openvswitch-common"), ("virsh", "libvirt-clients"), ("libvirtd", "libvirt-daemon")])?;
    apt(&[("qemu-system-x86_64", "qemu-system-x86"), ("virt-qemu-run", "libvirt-daemon-driver-qemu")])
}

/// A browser, and what drives it.
pub(crate) fn browser() -> anyhow::Result<()> {
    apt(&[("chromium", "chromium"), ("chromedriver", "chromium-driver")])
}

/// What boots other kernels: an emulator, its file server, and what reads and unpacks their modules.
pub(crate) fn guests(emulator: &str, package: &str, has_file_server: bool) -> anyhow::Result<()> {
    apt(&[(emulator, package), ("depmod", "kmod"), ("xz", "xz-utils")])?;
    // A part of QEMU until bookworm.
    if has_file_server || Path::new("/usr/lib/qemu/virtiofsd").is_file() { Ok(()) } else { install(&["virtiofsd"]) }
}

/// What makes packages; and what runs the program of another machine, which writes its own manual.
pub(crate) fn packagers(is_foreign: bool) -> anyhow::Result<()> {
    apt(&[("dpkg-deb", "dpkg"), ("rpmbuild", "rpm"), ("zstd", "zstd"), ("objcopy", "binutils")])?;
    if is_foreign { apt(&[("qemu-aarch64-static", "qemu-user-static")]) } else { Ok(()) }
}

/// What makes a clean Debian, and boots it.
pub(crate) fn containers() -> anyhow::Result<()> {
    apt(&[("mmdebstrap", "mmdebstrap"), ("systemd-nspawn", "systemd-container"), ("nsenter", "util-linux")])
}

/// A compiler and libraries for another machine: C's from Debian, Rust's from rustup.
pub(crate) fn cross_compiler(target: &str, compiler: &str) -> anyhow::Result<()> {
    apt(&[(compiler, "gcc-aarch64-linux-gnu")])?;
    if !Path::new("/usr/aarch64-linux-gnu/include").is_dir() {
        install(&["libc6-dev-arm64-cross"])?;
    }
    let installed = output(Command::new("rustup").args(["target", "list", "--installed"]).current_dir(root()))?;
    if installed.lines().any(|t| t == target) {
        return Ok(());
    }
    step(&format!("rustup target add {target} (outside the repository: the pinned toolchain)"));
    run_command(Command::new("rustup").args(["target", "add", target]).current_dir(root()))
}

/// Installs the packages whose commands are missing.
fn apt(needed: &[(&str, &str)]) -> anyhow::Result<()> {
    let missing: Vec<&str> = needed.iter().filter(|(command, _)| !has(command)).map(|(_, package)| *package).collect();
    if missing.is_empty() { Ok(()) } else { install(&missing) }
}

fn install(packages: &[&str]) -> anyhow::Result<()> {
    if !has("apt-get") {
        bail!("please install these packages with your package manager, then repeat: {}", packages.join(" "));
    }
    step(&format!("apt-get install {} (outside the repository)", packages.join(" ")));
    let sudo = |args: &[&str]| {
        let mut c = if is_root() { Command::new(args[0]) } else { Command::new("sudo") };
        if is_root() {
            c.args(&args[1..])
        } else {
            c.args(args)
        };
        // Somebody else's apt folder would make this machine another one.
        c.env("DEBIAN_FRONTEND", "noninteractive").env_remove("APT_CONFIG");
        c
    };
    let mut args = vec!["apt-get", "install", "-qq", "-y", "--no-install-recommends"];
    args.extend_from_slice(packages);
    // A fresh machine has no package lists yet; a used one may have old ones.
    if run_command(sudo(&args).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null())).is_err() {
        run_command(sudo(&["apt-get", "update", "-qq"]).stdout(std::process::Stdio::null()))?;
        run_command(sudo(&args).stdout(std::process::Stdio::null())).context("apt-get install")?;
    }
    Ok(())
}

/// Fails unless we are root, which a verb that loads eBPF programs and makes network namespaces needs.
pub(crate) fn require_root(verb: &str) -> anyhow::Result<()> {
    anyhow::ensure!(
        is_root(),
        "`{verb}` loads eBPF programs and makes network namespaces: run as root, or `sudo -E cargo xtask {verb}`"
    );
    Ok(())
}

fn is_root() -> bool {
    output(Command::new("id").arg("-u")).is_ok_and(|id| id == "0")
}
