//! The files of a package, as they lie on a node.

use std::{
    fs,
    fs::FileTimes,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime},
};

use anyhow::Context as _;

use super::{binary::Binary, notices};
use crate::util::{files_below, output, root, run as run_command, tracked};

/// Where the sources of a package's own files lie.
const SOURCES: &str = "flowlog-agent/package";
/// What is copied from there, and where to.
const FILES: [(&str, &str); 5] = [
    ("flowlog.service", "usr/lib/systemd/system/flowlog.service"),
    ("flowlog-detach.service", "usr/lib/systemd/system/flowlog-detach.service"),
    ("sysusers.conf", "usr/lib/sysusers.d/flowlog.conf"),
    ("tmpfiles.conf", "usr/lib/tmpfiles.d/flowlog.conf"),
    ("flowlog.toml", "etc/flowlog/flowlog.toml"),
];
/// The same of the package of tables.
const CATALOG_FILES: [(&str, &str); 2] = [
    ("flowlog-catalog.service", "usr/lib/systemd/system/flowlog-catalog.service"),
    ("catalog.toml", CATALOG_CONFIGURATION),
];
/// Its document with those that it leads to, and the licences.
const CATALOG_DOCUMENTS: [&str; 5] =
    ["docs/iceberg.md", "docs/records.md", "docs/queries.md", "LICENSE-MIT", "LICENSE-APACHE"];
/// Documents of the repository's root.
const DOCUMENTS: [&str; 6] =
    ["README.md", "CHANGELOG.md", "SECURITY.md", "ARCHITECTURE.md", "LICENSE-MIT", "LICENSE-APACHE"];
pub(super) const DOC: &str = "usr/share/doc/flowlog";
/// The configuration, which a user changes.
pub(super) const CONFIGURATION: &str = "etc/flowlog/flowlog.toml";
pub(super) const CATALOG_CONFIGURATION: &str = "etc/flowlog-catalog/catalog.toml";

/// Where families of distributions look for what they do not agree on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    Debian,
    Rpm,
}

pub(super) struct Tree {
    pub(super) root: PathBuf,
    /// Seconds since 1970 that every file has.
    pub(super) epoch: String,
}

impl Tree {
    /// Makes it, with times that do not depend on when it is made.
    pub(super) fn make(dir: &Path, binary: &Binary, layout: Layout, epoch: &str) -> anyhow::Result<Self> {
        let tree = Self { root: dir.to_owned(), epoch: epoch.to_owned() };
        tree.put("usr/bin/flowlog", &[])?;
        binary.copy_to(&tree.root.join("usr/bin/flowlog"))?;
        for (from, to) in FILES {
            tree.put(to, &fs::read(root().join(SOURCES).join(from)).context(from)?)?;
        }
        tree.shells(binary, layout)?;
        tree.manuals(binary)?;
        tree.documents(binary, layout)?;
        tree.finish()?;
        Ok(tree)
    }

    /// The same of the package of tables.
    pub(super) fn of_catalog(dir: &Path, binary: &Binary, layout: Layout, epoch: &str) -> anyhow::Result<Self> {
        let tree = Self { root: dir.to_owned(), epoch: epoch.to_owned() };
        let name = binary.program.name;
        tree.put(&format!("usr/bin/{name}"), &[])?;
        binary.copy_to(&tree.root.join("usr/bin").join(name))?;
        for (from, to) in CATALOG_FILES {
            tree.put(to, &fs::read(root().join(SOURCES).join(from)).context(from)?)?;
        }
        for (shell, path) in completions(layout, name) {
            tree.put(&path, output(binary.command().args(["--completions", shell]))?.as_bytes())?;
        }
        let manual = format!("usr/share/man/man1/{name}.1");
        tree.put(&manual, output(binary.command().arg("--manual"))?.as_bytes())?;
        run_command(Command::new("gzip").args(["--best", "--no-name"]).arg(tree.root.join(manual)))?;
        let doc = format!("{DOC}-catalog");
        for document in CATALOG_DOCUMENTS {
            let file = Path::new(document).file_name().context("a name")?.to_string_lossy();
            tree.put(&format!("{doc}/{file}"), &fs::read(root().join(document))?)?;
        }
        tree.notices(binary, &doc, layout)?;
        tree.finish()?;
        Ok(tree)
    }

    pub(super) fn put(&self, path: &str, bytes: &[u8]) -> anyhow::Result<()> {
        let path = self.root.join(path);
        fs::create_dir_all(path.parent().context("a folder")?)?;
        fs::write(&path, bytes).with_context(|| path.display().to_string())
    }

    fn shells(&self, binary: &Binary, layout: Layout) -> anyhow::Result<()> {
        for (shell, path) in completions(layout, binary.program.name) {
            self.put(&path, output(binary.command().args(["completions", shell]))?.as_bytes())?;
        }
        Ok(())
    }

    fn manuals(&self, binary: &Binary) -> anyhow::Result<()> {
        let dir = self.root.join("usr/share/man/man1");
        fs::create_dir_all(&dir)?;
        run_command(binary.command().arg("manuals").arg(&dir))?;
        run_command(Command::new("gzip").args(["--best", "--no-name"]).args(files_below(&[dir])?))
    }

    fn documents(&self, binary: &Binary, layout: Layout) -> anyhow::Result<()> {
        let sources = root();
        let examples = format!("{SOURCES}/examples/");
        for name in tracked()? {
            let to = match name.strip_prefix(&examples) {
                Some(rest) => format!("{DOC}/examples/{rest}"),
                // Pictures are for who reads on the web.
                None if name.starts_with("docs/examples/") => format!("{DOC}/{}", name.trim_start_matches("docs/")),
                None if name.starts_with("docs/") && Path::new(&name).extension().is_some_and(|e| e == "md") => {
                    format!("{DOC}/{name}")
                }
                None if DOCUMENTS.contains(&name.as_str()) => format!("{DOC}/{name}"),
                None => continue,
            };
            self.put(&to, &fs::read(sources.join(&name))?)?;
        }
        self.notices(binary, DOC, layout)
    }

    /// Whose work is in the program.
    fn notices(&self, binary: &Binary, doc: &str, layout: Layout) -> anyhow::Result<()> {
        self.put(&format!("{doc}/NOTICES"), notices::text(binary.program, binary.arch)?.as_bytes())?;
        let notices = self.root.join(doc).join("NOTICES");
        run_command(Command::new("gzip").args(["--best", "--no-name"]).arg(notices))?;
        match layout {
            Layout::Debian => {
                let copyright = fs::read(root().join(SOURCES).join("deb/copyright"))?;
                self.put(&format!("{doc}/copyright"), &copyright)
            }
            Layout::Rpm => Ok(()),
        }
    }

    /// Modes and times of everything.
    pub(super) fn finish(&self) -> anyhow::Result<()> {
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(self.epoch.parse().context("a time")?);
        let times = FileTimes::new().set_accessed(time).set_modified(time);
        let mut folders = vec![self.root.clone()];
        for file in files_below(std::slice::from_ref(&self.root))? {
            let mode = if file.starts_with(self.root.join("usr/bin")) { 0o755 } else { 0o644 };
            fs::set_permissions(&file, fs::Permissions::from_mode(mode))?;
            fs::File::open(&file)?.set_times(times)?;
            let above = file.ancestors().skip(1).take_while(|dir| *dir != self.root);
            folders.extend(above.map(Path::to_owned));
        }
        for folder in folders {
            fs::set_permissions(&folder, fs::Permissions::from_mode(0o755))?;
            fs::File::open(&folder)?.set_times(times)?;
        }
        Ok(())
    }

    /// Paths of all files, from the root of a node.
    pub(super) fn files(&self) -> anyhow::Result<Vec<String>> {
        let files = files_below(std::slice::from_ref(&self.root))?;
        files.iter().map(|file| Ok(format!("/{}", file.strip_prefix(&self.root)?.display()))).collect()
    }
}

/// Where shells look for what they complete of a command.
fn completions(layout: Layout, name: &str) -> [(&'static str, String); 3] {
    let zsh = match layout {
        Layout::Debian => "vendor-completions",
        Layout::Rpm => "site-functions",
    };
    [
        ("bash", format!("usr/share/bash-completion/completions/{name}")),
        ("zsh", format!("usr/share/zsh/{zsh}/_{name}")),
        ("fish", format!("usr/share/fish/vendor_completions.d/{name}.fish")),
    ]
}
