//! `flowlog inventory import`: what a source of the inventory would bring, without an agent.

use std::{
    fs,
    io::{ErrorKind, Read as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use flowlog_control::inventory::{
    Contract,
    source::{
        import::{HEAD, import},
        spec::{RawSource, SourceKind},
    },
};
use flowlog_kernel::netdev;

use super::{exit::Failure, out};
use crate::config::{ConfigError, Layers, whole};

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  flowlog inventory import libvirt --dry-run --contract acme
  flowlog inventory import names --pattern '^tap(?<vm>\\d+)i(?<nic>\\d+)$' --contract acme --dry-run
  flowlog inventory import ovsdb --config /etc/flowlog/flowlog.toml --to /etc/flowlog/inventory.d/ports.toml")]
pub(super) struct ImportArgs {
    /// names (of interfaces), libvirt (status files of running domains), or ovsdb (the database of Open vSwitch).
    kind: KindArg,
    /// Take the source of this kind from a configuration file instead of the flags below.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["directory", "database", "patterns", "contract", "projects", "labels"])]
    config: Option<PathBuf>,
    /// Of several sources of this kind in that file, the one of this name.
    #[arg(long, value_name = "NAME", requires = "config")]
    source: Option<String>,
    /// Where libvirt keeps its status files [default: /run/libvirt/qemu].
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
    /// Where the database listens [default: /run/openvswitch/db.sock].
    #[arg(long, visible_alias = "socket", value_name = "FILE")]
    database: Option<PathBuf>,
    /// A regular expression over names of interfaces, with named groups; may be repeated.
    #[arg(long = "pattern", value_name = "REGEX")]
    patterns: Vec<String>,
    /// Contract of NICs whose project has none.
    #[arg(long, value_name = "CONTRACT")]
    contract: Option<Contract>,
    /// A project's contract; may be repeated.
    #[arg(long = "project", value_name = "PROJECT=CONTRACT", value_parser = pair)]
    projects: Vec<(String, String)>,
    /// A label of all NICs; may be repeated.
    #[arg(long = "label", value_name = "NAME=VALUE", value_parser = pair)]
    labels: Vec<(String, String)>,
    /// Show what the file would say, and write nothing.
    #[arg(long, required_unless_present = "to", conflicts_with = "to")]
    dry_run: bool,
    /// Write this inventory file, in the place of one that an import has written.
    #[arg(long, value_name = "FILE")]
    to: Option<PathBuf>,
    /// Write it in the place of any file.
    #[arg(long, requires = "to")]
    replace: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum KindArg {
    Names,
    Libvirt,
    Ovsdb,
}

impl From<KindArg> for SourceKind {
    fn from(kind: KindArg) -> Self {
        match kind {
            KindArg::Names => Self::Names,
            KindArg::Libvirt => Self::Libvirt,
            KindArg::Ovsdb => Self::Ovsdb,
        }
    }
}

fn pair(text: &str) -> Result<(String, String), &'static str> {
    let (name, value) = text.split_once('=').ok_or("write it as NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

pub(super) fn run(args: ImportArgs) -> anyhow::Result<ExitCode> {
    let (to, replaces_any) = (args.to.clone(), args.replace);
    if let Some(path) = to.as_deref().filter(|_| !replaces_any) {
        ensure_ours(path)?;
    }
    // What is wrong was said by a flag, or by the file.
    let of_flags = args.config.is_none();
    let wrong = |field| if of_flags { ConfigError::Flag(format!("{field}")) } else { ConfigError::Field(field) };
    let source = args.source()?.check().map_err(wrong)?;
    let names = netdev::all().context("cannot list the interfaces")?.into_iter().map(|dev| dev.name).collect();
    let imported = import(source, names);
    let text = imported.text().map_err(Failure::Wrong)?;
    // What an earlier import has found is better than nothing.
    if imported.is_empty() && !imported.problems.is_empty() {
        return Err(Failure::NotNow(imported.problems.join("; ")).into());
    }
    for words in &imported.problems {
        out::note(words);
    }
    match to {
        None => out::text(&text)?,
        Some(path) => write(&path, &text).with_context(|| format!("cannot write `{}`", path.display()))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// What somebody has written by hand is not replaced.
fn ensure_ours(path: &Path) -> anyhow::Result<()> {
    let mut head = Vec::new();
    let read = fs::File::open(path).and_then(|file| file.take(HEAD.len() as u64).read_to_end(&mut head));
    match read {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot read `{}`, which is to be replaced", path.display())),
        Ok(_) if head == HEAD.as_bytes() => Ok(()),
        Ok(_) => {
            let words = format!(
                "`{}` is there, and no import has written it: name another file, or say `--replace`",
                path.display()
            );
            Err(Failure::Wrong(words).into())
        }
    }
}

/// Beside its place first: an agent may be reading it.
fn write(path: &Path, text: &str) -> std::io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".partial");
    let written = fs::write(&beside, text).and_then(|()| fs::rename(&beside, path));
    if written.is_err() {
        let _ = fs::remove_file(&beside);
    }
    written
}

impl ImportArgs {
    fn source(self) -> anyhow::Result<RawSource> {
        let kind = SourceKind::from(self.kind);
        if let Some(path) = &self.config {
            let layers = Layers { file: Some(path.clone()), ..Layers::default() };
            let sources = layers.read()?.raw.inventory.unwrap_or_default().sources;
            let is_meant =
                |s: &RawSource| s.kind == kind && self.source.as_ref().is_none_or(|n| s.name.as_ref() == Some(n));
            let mut meant = sources.into_iter().filter(is_meant);
            let wrong = |words: &str| Failure::Wrong(format!("`{}` has {words} `{kind}`", path.display()));
            let first = meant.next().ok_or_else(|| wrong("no such source of the kind"))?;
            return match meant.next() {
                Some(_) => Err(wrong("several sources of the kind; name one with --source:").into()),
                None => Ok(first),
            };
        }
        let mut source = RawSource::of(kind);
        // As paths of a command line are meant: from where it is given.
        source.directory = self.directory.as_deref().map(whole).transpose().context("--directory")?;
        source.socket = self.database.as_deref().map(whole).transpose().context("--database")?;
        source.patterns = self.patterns;
        source.contract = self.contract;
        for (project, contract) in self.projects {
            source.contracts.insert(project, contract.parse().map_err(Failure::Usage)?);
        }
        for (name, value) in &self.labels {
            source.labels.insert(name, value).map_err(|field| Failure::Usage(field.to_string()))?;
        }
        Ok(source)
    }
}
