//! A tree as `.deb`, `.rpm` and `.tar.zst`, each by the tool that owns the format.

use std::{
    fmt::Write as _,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context as _;
use sha2::{Digest as _, Sha256};

use super::{
    REVISION, VERSION,
    binary::Binary,
    tree::{CATALOG_CONFIGURATION, CONFIGURATION, DOC, Tree},
};
use crate::{
    util::{output, root, run as run_command},
    vm::Arch,
};

const SUMMARY: &str = "eBPF flow logs: every packet of an interface, accepted or refused";
const CATALOG_SUMMARY: &str = "delivered flow logs as tables of Apache Iceberg";
const MAINTAINER: &str = "The authors of flowlog <flowlog@localhost>";

/// What dpkg runs.
const SCRIPTS: [&str; 4] = ["preinst", "postinst", "prerm", "postrm"];
/// The same of the package of tables: nothing is pinned there that an earlier program would have to end.
const CATALOG_SCRIPTS: [&str; 3] = ["postinst", "prerm", "postrm"];

/// The ABI between programs and agent: what is pinned for another one is not taken over.
pub(super) fn abi() -> anyhow::Result<String> {
    let lock = fs::read_to_string(root().join("flowlog-ebpf/abi.lock"))?;
    let version = lock.lines().find_map(|line| line.strip_prefix("ABI_VERSION "));
    Ok(version.context("abi.lock has no version")?.to_owned())
}

/// Where packages go.
pub(super) struct Out<'a> {
    pub(super) dir: &'a Path,
    pub(super) arch: Arch,
}

impl Out<'_> {
    /// The Debian package; its scripts take the program for one of `abi`.
    pub(super) fn deb(&self, tree: &Tree, binary: &Binary, revision: u32, abi: &str) -> anyhow::Result<PathBuf> {
        let sources = root().join("flowlog-agent/package/deb");
        for script in SCRIPTS {
            let text = fs::read_to_string(sources.join(script))?.replace("@ABI@", abi);
            tree.put(&format!("DEBIAN/{script}"), text.as_bytes())?;
        }
        tree.put("DEBIAN/conffiles", format!("/{CONFIGURATION}\n").as_bytes())?;
        let depends = format!("Depends: libc6 (>= {}), libgcc-s1, systemd (>= 247)\n", binary.libc);
        let words = "\n Records every packet of a network interface, accepted or refused by the\n \
                     firewall the node really runs, and writes Parquet files straight into\n object storage.\n";
        self.pack(
            tree,
            ("flowlog", revision),
            "-z6",
            &format!("{depends}Section: net\nPriority: optional\nDescription: {SUMMARY}{words}"),
        )
    }

    /// The Debian package of what makes tables.
    pub(super) fn catalog_deb(&self, tree: &Tree, binary: &Binary) -> anyhow::Result<PathBuf> {
        let sources = root().join("flowlog-agent/package/deb/catalog");
        for script in CATALOG_SCRIPTS {
            tree.put(&format!("DEBIAN/{script}"), &fs::read(sources.join(script)).context(script)?)?;
        }
        tree.put("DEBIAN/conffiles", format!("/{CATALOG_CONFIGURATION}\n").as_bytes())?;
        let depends = format!("Depends: libc6 (>= {}), libgcc-s1, systemd (>= 247)\n", binary.libc);
        let words = "\n Tells tables of Apache Iceberg of the objects that flowlog has delivered,\n \
                     without rewriting any.\n";
        let fields = format!("{depends}Section: net\nPriority: optional\nDescription: {CATALOG_SUMMARY}{words}");
        self.pack(tree, (binary.program.name, REVISION), "-z6", &fields)
    }

    /// Symbols, where debuggers look for them by the build id.
    pub(super) fn debug_deb(&self, binary: &Binary, epoch: &str) -> anyhow::Result<PathBuf> {
        let name = binary.program.name;
        let tree = Tree { root: self.dir.join(format!("tree-debug-{name}")), epoch: epoch.to_owned() };
        let (first, rest) = binary.build_id.split_at(2);
        tree.put(&format!("usr/lib/debug/.build-id/{first}/{rest}.debug"), &fs::read(&binary.debug)?)?;
        let copyright = fs::read(root().join("flowlog-agent/package/deb/copyright"))?;
        tree.put(&format!("usr/share/doc/{name}-dbgsym/copyright"), &copyright)?;
        tree.finish()?;
        let depends = format!("Depends: {name} (= {VERSION}-{REVISION})\nSection: debug\nPriority: optional\n");
        // Six times as large, and seldom wanted.
        self.pack(
            &tree,
            (&format!("{name}-dbgsym"), REVISION),
            "-z1",
            &format!("{depends}Description: debug symbols for {name}\n"),
        )
    }

    fn pack(&self, tree: &Tree, (name, revision): (&str, u32), level: &str, fields: &str) -> anyhow::Result<PathBuf> {
        let arch = self.arch.debian();
        let installed: u64 =
            tree.files()?.iter().map(|f| fs::metadata(tree.root.join(&f[1..])).map_or(0, |m| m.len())).sum();
        let control = format!(
            "Package: {name}\nVersion: {VERSION}-{revision}\nArchitecture: {arch}\nMaintainer: {MAINTAINER}\nInstalled-Size: {}\n{fields}",
            installed.div_ceil(1024)
        );
        let files = tree.files()?.into_iter().filter(|f| !f.starts_with("/DEBIAN/")).map(|f| f[1..].to_owned());
        let sums = output(Command::new("md5sum").args(files).current_dir(&tree.root))?;
        tree.put("DEBIAN/control", control.as_bytes())?;
        tree.put("DEBIAN/md5sums", format!("{sums}\n").as_bytes())?;
        tree.finish()?;
        for script in SCRIPTS.map(|s| tree.root.join("DEBIAN").join(s)) {
            if script.exists() {
                fs::set_permissions(script, fs::Permissions::from_mode(0o755))?;
            }
        }
        let deb = self.dir.join(format!("{name}_{VERSION}-{revision}_{arch}.deb"));
        let mut build = Command::new("dpkg-deb");
        build.args(["--build", "--root-owner-group", "-Zxz", level]).arg(&tree.root).arg(&deb);
        run_command(build.env("SOURCE_DATE_EPOCH", &tree.epoch).stdout(std::process::Stdio::null()))?;
        fs::remove_dir_all(tree.root.join("DEBIAN"))?;
        Ok(deb)
    }

    /// The RPM package.
    pub(super) fn rpm(&self, tree: &Tree, name: &str) -> anyhow::Result<PathBuf> {
        let work = self.dir.join("rpmbuild");
        fs::create_dir_all(&work)?;
        let list = work.join("files");
        // Both packages have their configuration in a folder of their own name.
        let mut lines = format!("%defattr(-,root,root,-)\n%dir /etc/{name}\n");
        for file in tree.files()? {
            let kind = match file.strip_prefix('/') {
                Some(CONFIGURATION | CATALOG_CONFIGURATION) => "%config(noreplace) ",
                Some(path) if path.starts_with(DOC) || path.starts_with("usr/share/man") => "%doc ",
                _ => "",
            };
            let _ = writeln!(lines, "{kind}{file}");
        }
        fs::write(&list, lines)?;
        let defined = [
            ("_topdir", work.display().to_string()),
            ("_rpmdir", self.dir.display().to_string()),
            ("_rpmfilename", "%{name}-%{version}-%{release}.%{arch}.rpm".to_owned()),
            ("tree", tree.root.display().to_string()),
            ("list", list.display().to_string()),
            ("version_of", VERSION.to_owned()),
            ("release_of", REVISION.to_string()),
            ("abi", abi()?),
        ];
        let mut build = Command::new("rpmbuild");
        build.args(["-bb", "--quiet", "--target", &format!("{}-linux", self.arch.name())]);
        for (name, value) in defined {
            build.args(["--define", &format!("{name} {value}")]);
        }
        build.arg(root().join(format!("flowlog-agent/package/rpm/{name}.spec"))).env("SOURCE_DATE_EPOCH", &tree.epoch);
        run_command(&mut build)?;
        fs::remove_dir_all(&work)?;
        Ok(self.dir.join(format!("{name}-{VERSION}-{REVISION}.{}.rpm", self.arch.name())))
    }

    /// The same as an archive for everybody else, and one with the symbols.
    pub(super) fn archives(&self, tree: &Tree, binary: &Binary) -> anyhow::Result<[PathBuf; 2]> {
        let name = format!("{}-{VERSION}-{}", binary.program.name, self.arch.name());
        let [all, debug] = ["", "-debug"].map(|what| self.dir.join(format!("{name}{what}.tar.zst")));
        let tar = |archive: &Path, from: &Path, what: &str| {
            let mut tar = Command::new("tar");
            tar.args(["--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--mode=u+rw,go=rX"]);
            tar.arg(format!("--mtime=@{}", tree.epoch)).arg(format!("--transform=s,^\\.,{name},"));
            run_command(
                tar.args(["--use-compress-program", "zstd -12 --quiet", "-cf"])
                    .arg(archive)
                    .arg("-C")
                    .arg(from)
                    .arg(what),
            )
        };
        tar(&all, &tree.root, ".")?;
        let symbols = binary.debug.file_name().context("a file")?.to_string_lossy().into_owned();
        tar(&debug, self.dir, &format!("./{symbols}"))?;
        Ok([all, debug])
    }
}

/// `SHA256SUMS`, as `sha256sum --check` reads it.
pub(super) fn sums(dir: &Path, files: &[PathBuf]) -> anyhow::Result<()> {
    let mut lines = String::new();
    for file in files {
        let hash = Sha256::digest(fs::read(file)?);
        let hex = hash.iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
        let name = file.file_name().context("a file")?.to_string_lossy();
        let _ = writeln!(lines, "{hex}  {name}");
    }
    Ok(fs::write(dir.join("SHA256SUMS"), lines)?)
}
