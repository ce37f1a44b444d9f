//! The agent as a process.

use std::{
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    time::Duration,
};

use anyhow::{Context as _, ensure};

use crate::{features, net::Netns, rows::Objects};

/// How long an event may take before a test gives up on it. Loading takes seconds on a busy machine.
const PATIENCE: Duration = Duration::from_mins(1);
/// The same on an emulated processor that others share.
const PATIENCE_IN_A_GUEST: Duration = Duration::from_mins(3);

/// Set by `cargo xtask test --as-service`: a script that runs the agent as its systemd unit would.
pub const AS_SERVICE: &str = "FLOWLOG_AS_SERVICE";

/// Path of the agent's binary: beside the test's own, where `cargo xtask test` has built it.
///
/// # Panics
/// If it is not there.
#[must_use]
pub fn binary() -> PathBuf {
    let me = std::env::current_exe().expect("own path");
    let built = me.ancestors().nth(2).expect("target folder").join("flowlog");
    let path = std::env::var_os(AS_SERVICE).map_or(built, PathBuf::from);
    assert!(path.is_file(), "{} is missing: run `cargo build`, or `cargo xtask test`", path.display());
    path
}

/// A running agent with a directory of its own for state and objects.
pub struct Agent {
    child: Child,
    dir: tempfile::TempDir,
    lines: mpsc::Receiver<String>,
    log: Vec<String>,
}

impl Agent {
    /// Starts `flowlog run --interface … ARGS` inside a namespace, storing into a local directory, and waits
    /// until it captures.
    ///
    /// # Errors
    /// With its log if it ends instead.
    pub fn start(ns: &Netns, interfaces: &[&str], args: &[&str]) -> anyhow::Result<Self> {
        let mut agent = Self::spawn(ns, interfaces, args)?;
        agent.wait_for("capturing")?;
        Ok(agent)
    }

    /// As [`start`](Self::start), without waiting.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn spawn(ns: &Netns, interfaces: &[&str], args: &[&str]) -> anyhow::Result<Self> {
        Self::spawn_with(ns.command(binary()), interfaces, args)
    }

    /// As [`spawn`](Self::spawn), in the namespace the tests run in.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn spawn_here(interfaces: &[&str], args: &[&str]) -> anyhow::Result<Self> {
        Self::spawn_with(Command::new(binary()), interfaces, args)
    }

    /// As [`spawn`](Self::spawn), with variables in its environment.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn spawn_env(
        ns: &Netns,
        interfaces: &[&str],
        args: &[&str],
        variables: &[(&str, &str)],
    ) -> anyhow::Result<Self> {
        let mut command = ns.command(binary());
        command.envs(variables.iter().copied());
        Self::spawn_with(command, interfaces, args)
    }

    /// Starts `flowlog run --config FILE` in the namespace the tests run in.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn with_config(config: &Path, variables: &[(&str, &str)]) -> anyhow::Result<Self> {
        let mut command = Command::new(binary());
        command.args(["run", "--config"]).arg(config).envs(variables.iter().copied());
        Self::attend(command, tempfile::tempdir()?)
    }

    fn spawn_with(mut command: Command, interfaces: &[&str], args: &[&str]) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        command.arg("run");
        if !args.contains(&"--state-dir") {
            command.arg("--state-dir").arg(dir.path().join("state"));
        }
        if !args.contains(&"--target") {
            command.arg("--target").arg(dir.path().join("objects"));
        }
        for interface in interfaces {
            command.args(["--interface", interface]);
        }
        // What a test leaves in the kernel would outlive it.
        if !args.contains(&"--pin-dir") && !args.contains(&"--no-pin") {
            command.arg("--no-pin");
        }
        // A window that no test lives to see the end of, unless it asks for a shorter one.
        if !args.contains(&"--window") {
            command.args(["--window", "86400"]);
        }
        command.args(["--node-id", "node"]).args(args);
        Self::attend(command, dir)
    }

    /// Starts any command and follows its log.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn attend(mut command: Command, dir: tempfile::TempDir) -> anyhow::Result<Self> {
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        let stderr = BufReader::new(child.stderr.take().context("stderr")?);
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|l| sender.send(l)));
        Ok(Self { child, dir, lines, log: Vec::new() })
    }

    /// Waits for a line of the log that contains `text`.
    ///
    /// # Errors
    /// With the log, if the agent ends or stays silent.
    pub fn wait_for(&mut self, text: &str) -> anyhow::Result<String> {
        let patience = if features::guest() { PATIENCE_IN_A_GUEST } else { PATIENCE };
        loop {
            let line = self.lines.recv_timeout(patience);
            let line = line.with_context(|| format!("no `{text}` in:\n{}", self.log.join("\n")))?;
            self.log.push(line.clone());
            if line.contains(text) {
                return Ok(line);
            }
        }
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).expect("our own child");
    }

    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A number of its `status` in `/proc`, in KiB.
    ///
    /// # Panics
    /// If the kernel has no such number, or the agent has ended.
    #[must_use]
    pub fn memory_kib(&self, what: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("it runs");
        let line = status.lines().find(|l| l.starts_with(what)).expect("a number of that name");
        line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("a number")
    }

    /// Stops it with SIGTERM, checks that it exits 0 and that its books balance, and returns what landed.
    ///
    /// # Errors
    /// With its log otherwise.
    pub fn stop(mut self) -> anyhow::Result<Objects> {
        self.end()?;
        Objects::below(&self.objects()).with_context(|| self.log.join("\n"))
    }

    /// As [`stop`](Self::stop), leaving what landed unread.
    ///
    /// # Errors
    /// With its log otherwise.
    pub fn end(&mut self) -> anyhow::Result<()> {
        self.signal(rustix::process::Signal::TERM);
        let status = self.wait()?;
        let log = self.log.join("\n");
        ensure!(status == Some(0), "exit status {status:?}:\n{log}");
        ensure!(!log.contains("ERROR"), "{log}");
        Ok(())
    }

    /// Waits for its end; returns the exit code.
    ///
    /// # Errors
    /// If it cannot be waited for.
    pub fn wait(&mut self) -> anyhow::Result<Option<i32>> {
        Ok(self.ended()?.code())
    }

    /// As [`wait`](Self::wait); also says which signal it was.
    ///
    /// # Errors
    /// If it cannot be waited for.
    pub fn ended(&mut self) -> anyhow::Result<ExitStatus> {
        let status = self.child.wait()?;
        self.log.extend(self.lines.iter());
        Ok(status)
    }

    /// Ends it as `kill -9` does, and waits for that.
    ///
    /// # Errors
    /// If it cannot be waited for.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.signal(rustix::process::Signal::KILL);
        self.wait().map(drop)
    }

    /// Everything it has said so far.
    pub fn log(&mut self) -> String {
        self.log.extend(self.lines.try_iter());
        self.log.join("\n")
    }

    /// Where its objects land.
    #[must_use]
    pub fn objects(&self) -> PathBuf {
        self.dir.path().join("objects")
    }

    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs the agent's binary to its end; returns exit code, standard output and standard error.
///
/// # Errors
/// If it cannot be started.
pub fn run_to_end(ns: &Netns, args: &[&str], dir: &Path) -> anyhow::Result<(Option<i32>, String, String)> {
    let out = ns.command(binary()).args(args).current_dir(dir).env("STATE_DIRECTORY", dir.join("state")).output()?;
    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    Ok((out.status.code(), text(&out.stdout), text(&out.stderr)))
}
