//! `cargo xtask package`: the agent, and the program of tables, as `.deb`, `.rpm` and `.tar.zst`, in `target/package/MACHINE`;
//! `cargo xtask package test`: both `.deb` in a clean Debian.
//!
//! One tree of files becomes all of them, by the tools that own the formats: `dpkg-deb`, `rpmbuild`, `tar`. Nothing in them depends on when
//! they are made: times are those of the commit.
//!
//! * [`binary`]: the program, its symbols, and what it needs; [`notices`]: whose work is in it;
//! * [`tree`]: the files; [`formats`]: the packages;
//! * [`guest`], [`install`], [`tables`]: a clean Debian that boots, and what the packages must do there.

mod binary;
mod formats;
mod guest;
mod install;
mod notices;
mod tables;
mod tree;

use std::{fs, path::PathBuf, process::Command};

use anyhow::Context as _;

use crate::{
    build, setup,
    util::{output, root, step, target},
    vm::Arch,
};
use binary::{AGENT, Binary, CATALOG};
use tree::{Layout, Tree};

/// The version of what is packaged.
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Which packaging of that version it is.
const REVISION: u32 = 1;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: Option<What>,
    /// Machine that the packages are for; another than this one is cross compiled
    #[arg(long, value_enum, default_value_t = Arch::here())]
    arch: Arch,
    /// Cargo's profile that it is built with; another one than this is for trying packages
    #[arg(long, default_value = binary::PROFILE)]
    profile: String,
}

#[derive(clap::Subcommand)]
enum What {
    /// Install it in a clean Debian that boots, capture, upgrade under traffic, purge (root)
    Test,
}

/// Builds all packages, and tries them if that is asked for.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    if args.what.is_some() {
        setup::require_root("package test")?;
    }
    setup::packagers(args.arch != Arch::here())?;
    build::ensure_fresh()?;
    let made = make(args)?;
    match args.what {
        Some(What::Test) => install::run(&made),
        None => Ok(()),
    }
}

/// What [`make`] has made, as far as somebody goes on with it.
struct Made {
    dir: PathBuf,
    tree: Tree,
    binary: Binary,
    deb: PathBuf,
    catalog_deb: PathBuf,
}

fn make(Args { arch, profile, .. }: &Args) -> anyhow::Result<Made> {
    let arch = *arch;
    let dir = target().join("package").join(arch.name());
    if dir.exists() {
        fs::remove_dir_all(&dir).with_context(|| dir.display().to_string())?;
    }
    fs::create_dir_all(&dir)?;
    let binary = Binary::build(AGENT, arch, profile, &dir)?;
    let catalog = Binary::build(CATALOG, arch, profile, &dir)?;
    let epoch = output(Command::new("git").current_dir(root()).args(["log", "-1", "--format=%ct"]))?;
    let tree = Tree::make(&dir.join("tree"), &binary, Layout::Debian, &epoch)?;
    let rpm_tree = Tree::make(&dir.join("tree-rpm"), &binary, Layout::Rpm, &epoch)?;
    let catalog_tree = Tree::of_catalog(&dir.join("tree-catalog"), &catalog, Layout::Debian, &epoch)?;
    let catalog_rpm_tree = Tree::of_catalog(&dir.join("tree-catalog-rpm"), &catalog, Layout::Rpm, &epoch)?;
    step("packages");
    let out = formats::Out { dir: &dir, arch };
    let catalog_deb = out.catalog_deb(&catalog_tree, &catalog)?;
    let deb = out.deb(&tree, &binary, REVISION, &formats::abi()?)?;
    let mut made = vec![deb.clone(), out.debug_deb(&binary, &epoch)?, out.rpm(&rpm_tree, AGENT.name)?];
    made.extend(out.archives(&tree, &binary)?);
    let catalog_rpm = out.rpm(&catalog_rpm_tree, CATALOG.name)?;
    made.extend([catalog_deb.clone(), out.debug_deb(&catalog, &epoch)?, catalog_rpm]);
    made.extend(out.archives(&catalog_tree, &catalog)?);
    formats::sums(&dir, &made)?;
    for file in &made {
        println!("{:>10} {}", fs::metadata(file)?.len(), file.display());
    }
    for binary in [&binary, &catalog] {
        let [built, stripped] = [&binary.built, &binary.stripped].map(|f| fs::metadata(f).map_or(0, |m| m.len()));
        println!("{}: {stripped} bytes, {built} with its symbols", binary.program.name);
    }
    Ok(Made { dir, tree, binary, deb, catalog_deb })
}
