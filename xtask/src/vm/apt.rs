//! Debian's archive, seen through an apt folder of our own: other suites and architectures than this machine's, and
//! nothing of it ever installed. The mirror is the one this machine's own apt uses.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, ensure};

use crate::util::{output, run as run_command, step};

/// Where the kernels of the series come from: the releases that have 6.1 and 6.12, and what is newer.
const SUITES: [&str; 4] = ["bookworm", "trixie", "trixie-backports", "sid"];
/// Kernels of a release are updated here first.
const SECURITY_SUITES: [&str; 2] = ["bookworm-security", "trixie-security"];
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Lists younger than this are good enough: a kernel is a few days old anyway.
const LISTS_AGE_MAX: Duration = Duration::from_hours(24);

/// One package, one version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Package {
    pub name: String,
    pub version: String,
    /// Names of what it depends on, first alternatives only.
    pub depends: Vec<String>,
}

impl Package {
    /// All numbers of the version, for comparing: `6.12.118-1` is newer than `6.12.95-1~bpo12+1`.
    pub(crate) fn order(&self) -> Vec<u64> {
        let numbers = self.version.split(|c: char| !c.is_ascii_digit());
        numbers.filter_map(|n| n.parse().ok()).collect()
    }
}

/// The folder. Commands get it by a variable of their own; it is never in our environment, where an `apt-get install`
/// would take it for this machine's.
pub(crate) struct Archive {
    config: PathBuf,
    arch: &'static str,
}

impl Archive {
    /// Opens the folder for one Debian architecture, with lists that are not older than a day.
    pub(crate) fn open(dir: &Path, arch: &'static str) -> anyhow::Result<Self> {
        let dir = dir.join(arch);
        for part in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(dir.join(part))?;
        }
        fs::write(dir.join("status"), "")?;
        fs::write(dir.join("sources.list"), sources(arch)?)?;
        let config = dir.join("apt.conf");
        fs::write(&config, configuration(&dir, arch))?;
        let archive = Self { config, arch };
        archive.update(&dir.join("updated"))?;
        Ok(archive)
    }

    fn update(&self, stamp: &Path) -> anyhow::Result<()> {
        let age = fs::metadata(stamp).and_then(|m| m.modified()).ok().and_then(|t| t.elapsed().ok());
        if age.is_some_and(|a| a < LISTS_AGE_MAX) {
            return Ok(());
        }
        step(&format!("package lists of {} ({})", SUITES.join(", "), self.arch));
        match (run_command(self.command("apt-get").args(["update", "-qq"])), age) {
            (Ok(()), _) => Ok(fs::write(stamp, "")?),
            (Err(error), Some(_)) => {
                step(&format!("going on with old package lists: {error}"));
                Ok(())
            }
            (Err(error), None) => Err(error).context("cannot read the archive's package lists"),
        }
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("APT_CONFIG", &self.config).env("LC_ALL", "C");
        command
    }

    /// All packages whose names match a regular expression.
    pub(crate) fn search(&self, pattern: &str) -> anyhow::Result<Vec<Package>> {
        let found = output(self.command("apt-cache").args(["search", "--names-only", pattern]))?;
        let mut names: Vec<&str> = found.lines().filter_map(|l| l.split_whitespace().next()).collect();
        names.sort_unstable();
        names.dedup();
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let stanzas = output(self.command("apt-cache").arg("show").args(names))?;
        Ok(stanzas.split("\n\n").filter_map(package).collect())
    }

    /// The architecture its packages are of.
    pub(crate) fn arch(&self) -> &'static str {
        self.arch
    }

    /// Packages and all they need, as an empty machine would have to install them.
    pub(crate) fn closure(&self, names: &[&str]) -> anyhow::Result<Vec<Package>> {
        let mut simulate = self.command("apt-get");
        simulate.args(["install", "--simulate", "-qq", "--no-install-recommends"]).args(names);
        let plan = output(&mut simulate)?;
        // `Inst NAME (VERSION SUITES [ARCHITECTURE])`
        let package = |line: &str| {
            let (name, rest) = line.strip_prefix("Inst ")?.split_once(" (")?;
            let version = rest.split_whitespace().next()?;
            Some(Package { name: name.to_owned(), version: version.to_owned(), depends: Vec::new() })
        };
        Ok(plan.lines().filter_map(package).collect())
    }

    /// Downloads packages and unpacks them into `folder`, where `finish` does what is left to do. Whole or not at all: the
    /// folder gets its name last.
    pub(crate) fn unpack(
        &self,
        packages: &[Package],
        folder: &Path,
        finish: impl FnOnce(&Path) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut part = folder.as_os_str().to_owned();
        part.push(".part");
        let part = PathBuf::from(part);
        let debs = part.join("debs");
        if part.exists() {
            fs::remove_dir_all(&part)?;
        }
        fs::create_dir_all(&debs)?;
        let wanted = packages.iter().map(|p| format!("{}:{}={}", p.name, self.arch, p.version));
        let mut download = self.command("apt-get");
        run_command(download.args(["download", "-qq"]).args(wanted).current_dir(&debs))?;
        let root = part.join("root");
        let mut files = fs::read_dir(&debs)?.map(|e| Ok(e?.path())).collect::<anyhow::Result<Vec<_>>>()?;
        // First the one that says what `/bin` and `/lib` are links to.
        files.sort_by_key(|f| !f.file_name().is_some_and(|n| n.to_string_lossy().starts_with("base-files_")));
        for deb in files {
            run_command(Command::new("dpkg").arg("-x").arg(deb).arg(&root))?;
        }
        finish(&root)?;
        fs::rename(&root, folder)?;
        Ok(fs::remove_dir_all(&part)?)
    }
}

fn package(stanza: &str) -> Option<Package> {
    let field = |name: &str| stanza.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(": "));
    let depends = field("Depends").unwrap_or_default().split(',');
    let depends = depends.filter_map(|d| d.split_whitespace().next()).map(str::to_owned).collect();
    Some(Package { name: field("Package")?.to_owned(), version: field("Version")?.to_owned(), depends })
}

/// This machine's mirrors with our suites.
fn sources(arch: &str) -> anyhow::Result<String> {
    ensure!(Path::new(KEYRING).is_file(), "{KEYRING} is missing: install debian-archive-keyring");
    let targets = output(Command::new("apt-get").env_remove("APT_CONFIG").args([
        "indextargets",
        "--format",
        "$(LABEL) $(REPO_URI)",
        "Created-By: Packages",
    ]))?;
    let mirror = |label: &str| targets.lines().find_map(|l| l.strip_prefix(label)?.strip_prefix(' '));
    let main = mirror("Debian").context(
        "this machine's apt names no Debian mirror: add one to its sources, then `apt-get update`; the kernels are Debian's",
    )?;
    let suites = SUITES.map(|s| (main, s)).into_iter();
    // A mirror without the security archive still has the releases' own kernels.
    let security = mirror("Debian-Security").into_iter().flat_map(|uri| SECURITY_SUITES.map(|s| (uri, s)));
    let lines = suites
        .chain(security)
        .map(|(uri, suite)| format!("deb [arch={arch} target=Packages signed-by={KEYRING}] {uri} {suite} main\n"));
    Ok(lines.collect())
}

/// Nothing of this folder can be installed here by mistake: its apt has no dpkg.
fn configuration(dir: &Path, arch: &str) -> String {
    let dir = dir.display();
    format!(
        "Dir::State \"{dir}\";\nDir::State::lists \"{dir}/lists\";\nDir::State::status \"{dir}/status\";\n\
         Dir::Cache \"{dir}/cache\";\nDir::Etc::sourcelist \"{dir}/sources.list\";\nDir::Etc::sourceparts \"/dev/null\";\n\
         Dir::Etc::preferencesparts \"/dev/null\";\nAPT::Architecture \"{arch}\";\nAPT::Architectures {{ \"{arch}\"; }};\n\
         Dir::Bin::dpkg \"/bin/false\";\nAPT::Sandbox::User \"root\";\nAcquire::Languages \"none\";\n"
    )
}
