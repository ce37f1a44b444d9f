//! A node whose capture outlives its agents: two hosts on a cable, a bpf file system, a state directory, and a place
//! for objects, all of which stay while agents come and go.

use std::path::{Path, PathBuf};

use crate::{
    agent::{Agent, run_to_end},
    net::{Pair, sh},
    rows::Objects,
};

/// See the module's head.
pub struct Node {
    /// The hosts; the agent runs on `a` and watches its `eth0`.
    pub pair: Pair,
    /// Everything else; removed on drop.
    pub dir: tempfile::TempDir,
    /// Where captures are pinned.
    bpf: BpfFs,
    /// Flags of every agent.
    pub args: Vec<String>,
}

impl Node {
    /// Makes one whose agents get `args`, too.
    ///
    /// # Errors
    /// Without root.
    pub fn new(args: &[&str]) -> anyhow::Result<Self> {
        let pair = Pair::new()?;
        let dir = tempfile::tempdir()?;
        for ns in [&pair.a, &pair.b] {
            ns.sysctl("net.ipv6.conf.eth0.disable_ipv6", "1")?;
        }
        Ok(Self { pair, dir, bpf: BpfFs::new()?, args: args.iter().map(|a| (*a).to_owned()).collect() })
    }

    /// Its bpf file system.
    #[must_use]
    pub fn bpffs(&self) -> &Path {
        self.bpf.path()
    }

    #[must_use]
    pub fn pins(&self) -> PathBuf {
        self.bpffs().join("flowlog")
    }

    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    #[must_use]
    pub fn objects(&self) -> PathBuf {
        self.dir.path().join("objects")
    }

    /// Starts an agent without waiting for it.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn spawn(&self, variables: &[(&str, &str)]) -> anyhow::Result<Agent> {
        self.spawn_with(&[], variables)
    }

    /// As [`spawn`](Self::spawn), with more flags.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn spawn_with(&self, more: &[&str], variables: &[(&str, &str)]) -> anyhow::Result<Agent> {
        let text = |p: PathBuf| p.to_str().unwrap_or_default().to_owned();
        let pins = text(self.pins());
        let state = text(self.state());
        let objects = text(self.objects());
        let mut args = vec!["--state-dir", &state];
        if !more.contains(&"--no-pin") {
            args.extend(["--pin-dir", &pins]);
        }
        if !self.args.iter().any(|a| a == "--target") {
            args.extend(["--target", &objects]);
        }
        args.extend(self.args.iter().map(String::as_str));
        args.extend(more);
        Agent::spawn_env(&self.pair.a, &["eth0"], &args, variables)
    }

    /// Starts an agent and waits until it captures.
    ///
    /// # Errors
    /// With its log if it ends instead.
    pub fn start(&self) -> anyhow::Result<Agent> {
        let mut agent = self.spawn(&[])?;
        agent.wait_for("capturing")?;
        Ok(agent)
    }

    /// Runs another command of the agent; returns exit code, standard output and standard error.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn command(&self, args: &[&str]) -> anyhow::Result<(Option<i32>, String, String)> {
        let state = self.state();
        let mut all = args.to_vec();
        all.extend(["--state-dir", state.to_str().unwrap_or_default()]);
        run_to_end(&self.pair.a, &all, self.dir.path())
    }

    /// Runs `flowlog detach`; returns what landed.
    ///
    /// # Errors
    /// With its log if it fails, or if anything of the capture is left.
    pub fn detach(&self) -> anyhow::Result<Objects> {
        let pins = self.pins();
        let args = ["detach", "--pin-dir", pins.to_str().unwrap_or_default()];
        let (status, _, log) = self.command(&args)?;
        anyhow::ensure!(status == Some(0) && !log.contains("ERROR"), "detach: {status:?}\n{log}");
        anyhow::ensure!(!pins.exists(), "pins are left: {:?}", std::fs::read_dir(&pins)?.collect::<Vec<_>>());
        Objects::below(&self.objects())
    }
}

/// A bpf file system of its own; it ends with this, and what is pinned there with it.
pub struct BpfFs(tempfile::TempDir);

impl BpfFs {
    /// Mounts one.
    ///
    /// # Errors
    /// Without root.
    pub fn new() -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        sh(&format!("mount -t bpf bpf {}", dir.path().display()))?;
        Ok(Self(dir))
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for BpfFs {
    fn drop(&mut self) {
        let _ = sh(&format!("umount -l {}", self.path().display()));
    }
}
