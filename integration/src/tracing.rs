//! `flowlog trace` as a process. There is one at a time on a node: whoever has one here has the only one of the tests.

use std::{
    io::{BufRead as _, BufReader, Read},
    process::{Child, ChildStderr, Stdio},
    sync::{Mutex, MutexGuard, PoisonError, mpsc},
    time::Duration,
};

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};

use crate::{agent::binary, net::Netns};

/// How long a line may take. Loading takes seconds on a busy machine.
const PATIENCE: Duration = Duration::from_mins(3);

static ONLY: Mutex<()> = Mutex::new(());

/// A tracer that is at work.
pub struct Tracing {
    child: Child,
    said: mpsc::Receiver<String>,
    lines: Vec<String>,
    errors: BufReader<ChildStderr>,
    /// What it has said on standard error.
    pub notes: String,
    _only: MutexGuard<'static, ()>,
}

impl Tracing {
    /// Starts `flowlog trace ARGS` inside a namespace, and waits until it traces.
    ///
    /// # Errors
    /// With its words if it ends instead.
    pub fn start(ns: &Netns, args: &[&str]) -> anyhow::Result<Self> {
        let only = ONLY.lock().unwrap_or_else(PoisonError::into_inner);
        let mut command = ns.command(binary());
        let mut child = command.arg("trace").args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let stdout = BufReader::new(child.stdout.take().context("stdout")?);
        let (sender, said) = mpsc::channel();
        std::thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|l| sender.send(l)));
        let errors = BufReader::new(child.stderr.take().context("stderr")?);
        let mut tracing = Self { child, said, lines: Vec::new(), errors, notes: String::new(), _only: only };
        tracing.wait_for_note("tracing ")?;
        Ok(tracing)
    }

    /// Waits for a line that contains all of these.
    ///
    /// # Errors
    /// With all lines, if it does not come.
    pub fn wait_for(&mut self, words: &[&str]) -> anyhow::Result<String> {
        let has_all = |line: &String| words.iter().all(|w| line.contains(w));
        loop {
            if let Some(line) = self.lines.iter().find(|l| has_all(l)) {
                return Ok(line.clone());
            }
            let line = self.said.recv_timeout(PATIENCE);
            self.lines.push(line.with_context(|| format!("no {words:?} in:\n{}", self.lines.join("\n")))?);
        }
    }

    /// Waits until it has said something on standard error.
    ///
    /// # Errors
    /// With what it has said, if it ends before that.
    pub fn wait_for_note(&mut self, words: &str) -> anyhow::Result<()> {
        while !self.notes.contains(words) {
            let read = self.errors.read_line(&mut self.notes)?;
            anyhow::ensure!(read > 0, "it has ended without `{words}`: {}", self.notes);
        }
        Ok(())
    }

    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it as `kill -9` does.
    ///
    /// # Errors
    /// If it cannot be waited for.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Ends it as Ctrl-C does; see [`wait`](Self::wait).
    ///
    /// # Errors
    /// If it does not exit with 0.
    pub fn stop(self) -> anyhow::Result<(Vec<String>, String)> {
        kill_process(Pid::from_child(&self.child), Signal::INT)?;
        self.wait()
    }

    /// Waits for its end; returns all of its lines, and what it has said on standard error.
    ///
    /// # Errors
    /// If it does not exit with 0.
    pub fn wait(self) -> anyhow::Result<(Vec<String>, String)> {
        let (code, lines, notes) = self.ended()?;
        anyhow::ensure!(code == Some(0), "{code:?}: {notes}");
        Ok((lines, notes))
    }

    /// The same, with whatever exit code it has.
    ///
    /// # Errors
    /// If it cannot be waited for.
    pub fn ended(mut self) -> anyhow::Result<(Option<i32>, Vec<String>, String)> {
        self.errors.read_to_string(&mut self.notes)?;
        let status = self.child.wait()?;
        self.lines.extend(self.said.iter());
        Ok((status.code(), std::mem::take(&mut self.lines), std::mem::take(&mut self.notes)))
    }
}

impl Drop for Tracing {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
