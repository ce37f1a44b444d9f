//! Debian's cloud kernels by series (`6.1`, `7.3`), the newest of each, unpacked below `target/vm/kernels`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, ensure};

use super::{
    Arch,
    apt::{Archive, Package},
};
use crate::util::{output, run as run_command, step};

/// A kernel that can be booted.
#[derive(Clone, Debug)]
pub(crate) struct Kernel {
    /// As people name it: `6.12`.
    pub series: String,
    /// What `uname -r` says.
    pub release: String,
    pub image: PathBuf,
    /// Folder with `RELEASE/modules.dep` in it: the guest's `/lib/modules`.
    pub modules: PathBuf,
}

impl Kernel {
    /// The module and everything it needs, in the order of loading; nothing for what is built in.
    pub(crate) fn module(&self, name: &str) -> anyhow::Result<Vec<PathBuf>> {
        let dir = self.modules.join(&self.release);
        let text = fs::read_to_string(dir.join("modules.dep")).context("modules.dep")?;
        let is_wanted = |path: &str| {
            let file = path.rsplit('/').next().unwrap_or(path);
            file.split('.').next() == Some(name)
        };
        let line = text.lines().filter_map(|l| l.split_once(':')).find(|(path, _)| is_wanted(path));
        let Some((path, needs)) = line else { return Ok(Vec::new()) };
        // The last named is needed first.
        Ok(needs.split_whitespace().rev().chain([path]).map(|p| dir.join(p)).collect())
    }
}

/// What a kernel is made of: one package, or since 6.19 image and modules apart.
#[derive(Clone, Debug)]
struct Candidate {
    series: String,
    order: Vec<u64>,
    packages: Vec<Package>,
}

/// The newest kernel of each series that the archive has whole, oldest series first.
pub(crate) struct Catalogue {
    archive: Archive,
    newest: Vec<Candidate>,
}

impl Catalogue {
    /// Reads the archive's package lists.
    pub(crate) fn open(dir: &Path, arch: Arch) -> anyhow::Result<Self> {
        let archive = Archive::open(&dir.join("apt"), arch.debian())?;
        let pattern = format!("^linux-(image|binary|modules)-[0-9].*-cloud-{}$", arch.debian());
        let all = archive.search(&pattern)?;
        let mut newest: Vec<Candidate> = Vec::new();
        for candidate in all.iter().filter_map(|p| candidate(p, &all)) {
            match newest.iter_mut().find(|c| c.series == candidate.series) {
                Some(other) if other.order < candidate.order => *other = candidate,
                Some(_) => {}
                None => newest.push(candidate),
            }
        }
        newest.sort_by(|a, b| a.order.cmp(&b.order));
        ensure!(!newest.is_empty(), "the archive has no kernel that matches {pattern}");
        Ok(Self { archive, newest })
    }

    /// Where it all comes from.
    pub(crate) fn archive(&self) -> &Archive {
        &self.archive
    }

    /// Every series there is, oldest first.
    pub(crate) fn series(&self) -> Vec<String> {
        self.newest.iter().map(|c| c.series.clone()).collect()
    }

    /// The kernel of a series (or `newest`), downloaded and unpacked if it is not there yet.
    pub(crate) fn get(&self, dir: &Path, series: &str) -> anyhow::Result<Kernel> {
        let found = match series {
            "newest" => self.newest.last(),
            _ => self.newest.iter().find(|c| c.series == series),
        };
        let found = found
            .with_context(|| format!("the archive has no kernel {series}; it has {}", self.series().join(", ")))?;
        let first = &found.packages[0];
        let folder = dir.join("kernels").join(format!("{}_{}", first.name, first.version));
        if !folder.is_dir() {
            step(&format!("kernel {} ({} {})", found.series, first.name, first.version));
            self.archive.unpack(&found.packages, &folder, |root| {
                let (base, release) = modules_of(root)?;
                // Lists of what is built in are in another package since 6.19, and only make it complain.
                run_command(Command::new("depmod").arg("-b").arg(&base).arg(release).stderr(Stdio::null()))
            })?;
        }
        kernel(&found.series, &folder).with_context(|| format!("{} is not a whole kernel", folder.display()))
    }

    /// A busybox that needs no libraries, unpacked like a kernel.
    pub(crate) fn busybox(&self, dir: &Path) -> anyhow::Result<PathBuf> {
        let mut found = self.archive.search("^busybox-static$")?;
        found.sort_by_key(Package::order);
        let package = found.pop().context("the archive has no busybox-static")?;
        let folder = dir.join(format!("busybox-{}_{}", self.archive.arch(), package.version));
        if !folder.is_dir() {
            self.archive.unpack(&[package], &folder, |_| Ok(()))?;
        }
        let places = ["usr/bin/busybox", "bin/busybox"].map(|p| folder.join(p));
        places.into_iter().find(|p| p.is_file()).context("no busybox in its package")
    }
}

/// The kernel that an image package stands for, if all its parts are there.
fn candidate(image: &Package, all: &[Package]) -> Option<Candidate> {
    image.name.strip_prefix("linux-image-")?;
    let parts: Vec<&String> =
        image.depends.iter().filter(|d| d.starts_with("linux-binary-") || d.starts_with("linux-modules-")).collect();
    let packages = if parts.is_empty() {
        vec![image.clone()]
    } else {
        let part = |name: &String| all.iter().find(|p| p.name == *name && p.version == image.version).cloned();
        parts.into_iter().map(part).collect::<Option<Vec<_>>>()?
    };
    let order = image.order();
    let series = format!("{}.{}", order.first()?, order.get(1)?);
    Some(Candidate { series, order, packages })
}

/// Where `lib/modules` lies, and its only release.
fn modules_of(root: &Path) -> anyhow::Result<(PathBuf, String)> {
    for base in [root.join("usr"), root.to_owned()] {
        let Ok(mut found) = fs::read_dir(base.join("lib/modules")) else { continue };
        let release = found.next().context("no release below lib/modules")??.file_name();
        return Ok((base, release.to_string_lossy().into_owned()));
    }
    anyhow::bail!("no lib/modules in {}", root.display())
}

fn kernel(series: &str, folder: &Path) -> anyhow::Result<Kernel> {
    let (base, release) = modules_of(folder)?;
    let modules = base.join("lib/modules");
    let images = [folder.join(format!("boot/vmlinuz-{release}")), modules.join(&release).join("vmlinuz")];
    let image = images.into_iter().find(|p| p.is_file()).context("no image")?;
    Ok(Kernel { series: series.to_owned(), release, image, modules })
}

/// The plain bytes of a module, whatever it is compressed with.
pub(crate) fn plain_module(path: &Path) -> anyhow::Result<Vec<u8>> {
    let tool = match path.extension().and_then(|e| e.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => return fs::read(path).with_context(|| path.display().to_string()),
    };
    let out = Command::new(tool).arg("-dc").arg(path).output().with_context(|| format!("cannot start {tool}"))?;
    ensure!(out.status.success(), "{tool} -dc {}: {}", path.display(), String::from_utf8_lossy(&out.stderr));
    Ok(out.stdout)
}

/// Whether this processor can run other people's kernels by itself: a device alone is not enough, there are machines
/// whose `/dev/kvm` runs guests made for it only.
pub(crate) fn kvm() -> bool {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = cpu.lines().find(|l| l.starts_with("flags")).unwrap_or_default();
    let able = flags.split_whitespace().any(|f| f == "vmx" || f == "svm");
    able && fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok()
}

/// Cores of this machine.
pub(crate) fn cores() -> usize {
    output(&mut Command::new("nproc")).ok().and_then(|n| n.parse().ok()).unwrap_or(1)
}
