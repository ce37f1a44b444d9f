//! A clean Debian that boots on this machine's kernel: the real systemd as the first process of a container, with a bpf file system of its
//! own and a network without anything in it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};

use crate::{
    setup,
    util::{output, run as run_command, step},
};

/// The release, whose systemd knows `Type=notify-reload`.
const SUITE: &str = "trixie";
/// What the image has besides Debian's base: an init, and what the test calls.
const PACKAGES: &str = "systemd,systemd-sysv,iproute2,iputils-ping,bpftool,ansible-core,python3-apt";
/// `systemd-analyze security` says so much at most, of 10.
const EXPOSURE_MAX: f64 = 2.0;
/// A boot takes a second.
const BOOT_MAX: Duration = Duration::from_mins(2);
/// How often it is looked whether the container's first process is there: nobody tells.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// A container; it ends with this.
pub(super) struct Guest {
    nspawn: Child,
    /// The container's first process, as this machine numbers it.
    init: u32,
    pub(super) root: PathBuf,
    bpffs: PathBuf,
}

impl Guest {
    /// Makes the image, unless there is one, and boots a copy of it.
    pub(super) fn boot(dir: &Path) -> anyhow::Result<Self> {
        setup::containers()?;
        // With other packages it is another image.
        let image = dir.with_file_name(format!("{SUITE},{PACKAGES}.tar"));
        if !image.is_file() {
            step(&format!("a clean Debian: {SUITE} with {PACKAGES} (a minute)"));
            let part = image.with_extension("part.tar");
            let mut make = Command::new("mmdebstrap");
            make.args(["--quiet", "--variant=minbase", &format!("--include={PACKAGES}"), SUITE]).arg(&part);
            run_command(make.env_remove("APT_CONFIG"))?;
            fs::rename(part, &image)?;
        }
        let [root, bpffs] = ["root", "bpf"].map(|name| dir.join(name));
        for folder in [&root, &bpffs] {
            fs::create_dir_all(folder)?;
        }
        run_command(Command::new("tar").arg("-xpf").arg(&image).arg("-C").arg(&root))?;
        run_command(Command::new("mount").args(["-t", "bpf", "bpf"]).arg(&bpffs))?;
        step("booting it");
        let log = fs::File::create(dir.join("console.log"))?;
        let mut nspawn = Command::new("systemd-nspawn");
        nspawn
            .arg(format!("--directory={}", root.display()))
            .args(["--boot", "--quiet", "--register=no", "--keep-unit", "--private-network", "--console=pipe"])
            .args(["--machine=flowlog-package", "--kill-signal=SIGRTMIN+3"])
            .args(["--capability=CAP_BPF,CAP_NET_ADMIN,CAP_PERFMON", "--system-call-filter=bpf"])
            .arg(format!("--bind={}:/sys/fs/bpf", bpffs.display()))
            // Control groups as today's systemd wants them, whatever this machine has.
            .env("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY", "1")
            .stdin(Stdio::null())
            .stderr(log.try_clone()?)
            .stdout(log);
        let mut guest = Self { nspawn: nspawn.spawn().context("cannot start systemd-nspawn")?, init: 0, root, bpffs };
        guest.wait_for_init()?;
        Ok(guest)
    }

    fn wait_for_init(&mut self) -> anyhow::Result<()> {
        let end = Instant::now() + BOOT_MAX;
        let children = format!("/proc/{0}/task/{0}/children", self.nspawn.id());
        while Instant::now() < end {
            if let Some(status) = self.nspawn.try_wait()? {
                bail!("systemd-nspawn ended: {status}; console.log has its words");
            }
            let first = fs::read_to_string(&children).unwrap_or_default();
            if let Some(init) = first.split_whitespace().next().and_then(|pid| pid.parse().ok()) {
                self.init = init;
                // Waits until it has booted; says so even if a unit of Debian's own has failed.
                let booted = self.command("systemctl is-system-running --wait").output()?;
                let said = String::from_utf8_lossy(&booted.stdout);
                if ["running", "degraded"].contains(&said.trim()) {
                    return Ok(());
                }
            }
            thread::sleep(LOOK_EVERY);
        }
        bail!("it has not booted within {} s; console.log has its words", BOOT_MAX.as_secs())
    }

    /// A line for the container's shell.
    pub(super) fn command(&self, line: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--all", "--target", &self.init.to_string(), "sh", "-ec", line]);
        command.env("LC_ALL", "C").env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").stdin(Stdio::null());
        command
    }

    /// Runs one, and returns what it says.
    pub(super) fn run(&self, line: &str) -> anyhow::Result<String> {
        output(&mut self.command(line))
    }

    /// Runs one that has to fail.
    pub(super) fn refuse(&self, line: &str) -> anyhow::Result<()> {
        let done = self.command(line).output()?;
        ensure!(!done.status.success(), "`{line}` should fail, and said: {}", String::from_utf8_lossy(&done.stdout));
        Ok(())
    }

    /// What systemd makes of a unit's confinement is little enough.
    pub(super) fn ensure_confined(&self, unit: &str) -> anyhow::Result<()> {
        let said = self.run(&format!("systemd-analyze security {unit}.service --no-pager"))?;
        let last = said.lines().find(|l| l.contains("Overall exposure")).context("an exposure")?;
        let level: f64 = last.split(": ").nth(1).and_then(|l| l.split(' ').next()).context("a level")?.parse()?;
        step(&format!("{unit}: exposure {level}"));
        ensure!(level <= EXPOSURE_MAX, "{said}");
        Ok(())
    }

    /// A path of the container, as this machine sees it.
    pub(super) fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // The container's first process outlives systemd-nspawn, where that is killed; with it go all others.
        if self.init != 0 {
            let _ = Command::new("kill").args(["-KILL", &self.init.to_string()]).status();
        }
        let _ = self.nspawn.kill();
        let _ = self.nspawn.wait();
        let _ = Command::new("umount").arg("--lazy").arg(&self.bpffs).status();
    }
}
