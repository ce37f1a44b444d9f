//! Programs that only tests in guests call, and that this machine need not have: packages of its own release, unpacked into
//! a folder of ours. Installing them would start their services here.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::ensure;

use crate::util::{output, run as run_command, step};

/// Packages, and what each is wanted for: `ovs-dpctl` speaks to Open vSwitch in the kernel, without any daemon; `xdp-filter` has
/// libxdp's dispatcher run its programs.
const PACKAGES: [(&str, &str); 2] = [("openvswitch-switch", "usr/bin/ovs-dpctl"), ("xdp-tools", "usr/sbin/xdp-filter")];

/// Where programs and libraries are below `dir`; downloaded the first time.
pub(crate) fn folder(dir: &Path) -> anyhow::Result<PathBuf> {
    let folder = dir.join("tools");
    for (package, program) in PACKAGES {
        if !folder.join(program).is_file() {
            unpack(package, dir, &folder)?;
            ensure!(folder.join(program).is_file(), "{package} has no {program} any more");
        }
    }
    Ok(folder)
}

fn unpack(package: &str, dir: &Path, folder: &Path) -> anyhow::Result<()> {
    step(&format!("{package} for the guests, unpacked into {}", folder.display()));
    let apt = |program: &str| {
        let mut command = Command::new(program);
        command.env_remove("APT_CONFIG").env("LC_ALL", "C");
        command
    };
    // What is installed here is in the guests' root as well.
    let plan = output(apt("apt-get").args(["install", "--simulate", "-qq", "--no-install-recommends", package]))?;
    let missing: Vec<&str> = plan.lines().filter_map(|l| l.strip_prefix("Inst ")?.split_whitespace().next()).collect();
    let debs = dir.join("tools.part");
    let _ = fs::remove_dir_all(&debs);
    fs::create_dir_all(&debs)?;
    run_command(apt("apt-get").args(["download", "-qq"]).args(missing).current_dir(&debs))?;
    for deb in fs::read_dir(&debs)? {
        run_command(Command::new("dpkg").arg("-x").arg(deb?.path()).arg(folder))?;
    }
    Ok(fs::remove_dir_all(&debs)?)
}

/// Lines of a guest's script after which the programs are found.
pub(crate) fn exports(folder: &Path) -> String {
    let folder = folder.display();
    let libraries = format!("{folder}/usr/lib/{}-linux-gnu", std::env::consts::ARCH);
    format!(
        "export PATH=$PATH:{folder}/usr/bin:{folder}/usr/sbin LD_LIBRARY_PATH={libraries} LIBXDP_OBJECT_PATH={libraries}/bpf\n\
         [ -d $LIBXDP_OBJECT_PATH ] || export LIBXDP_OBJECT_PATH=/usr/lib/{}-linux-gnu/bpf\n",
        std::env::consts::ARCH
    )
}
