//! A terminal: a program on a real pseudo-terminal, and what is on its screen.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    num::NonZero,
    process::{Child, Command, ExitStatus},
    sync::mpsc::{Receiver, channel},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use rustix::{
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{Winsize, tcsetwinsize},
};

/// How long the screen may take to show something.
const PATIENCE: Duration = Duration::from_mins(1);
const ROWS: NonZero<u16> = NonZero::new(30).expect("not 0");
const COLUMNS: NonZero<u16> = NonZero::new(120).expect("not 0");

/// See the module's head.
pub struct Terminal {
    child: Child,
    keys: File,
    output: Receiver<Vec<u8>>,
    screen: vt100::Parser,
}

impl Terminal {
    /// Runs a command on one.
    ///
    /// # Errors
    /// If there are no pseudo-terminals, or the command cannot be started.
    pub fn run(command: Command) -> anyhow::Result<Self> {
        Self::run_on(command, COLUMNS)
    }

    /// The same on one with so many columns.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn run_on(mut command: Command, columns: NonZero<u16>) -> anyhow::Result<Self> {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        tcsetwinsize(&master, Winsize { ws_row: ROWS.get(), ws_col: columns.get(), ws_xpixel: 0, ws_ypixel: 0 })?;
        let slave = File::options().read(true).write(true).open(ptsname(&master, Vec::new())?.to_str()?)?;
        let child = command.stdin(slave.try_clone()?).stdout(slave.try_clone()?).stderr(slave).spawn()?;
        drop(command);
        let keys = File::from(master);
        let mut shown = keys.try_clone()?;
        let (sender, output) = channel();
        std::thread::spawn(move || {
            let mut bytes = [0; 4_096];
            // An error: the other side is closed.
            while let Ok(n @ 1..) = shown.read(&mut bytes) {
                if sender.send(bytes[..n].to_vec()).is_err() {
                    break;
                }
            }
        });
        Ok(Self { child, keys, output, screen: vt100::Parser::new(ROWS, columns, 0) })
    }

    /// Presses keys.
    ///
    /// # Errors
    /// If nobody takes them.
    pub fn press(&mut self, keys: impl AsRef<[u8]>) -> anyhow::Result<()> {
        Ok(self.keys.write_all(keys.as_ref())?)
    }

    /// Sends the program a signal.
    pub fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), signal).expect("our own child");
    }

    /// Waits until what is on the screen is as it is to be.
    ///
    /// # Errors
    /// With the screen, if it never is.
    pub fn wait_for(&mut self, what: &str, is_shown: impl Fn(&str) -> bool) -> anyhow::Result<String> {
        let until = Instant::now() + PATIENCE;
        loop {
            let shown = self.screen.screen().contents();
            if is_shown(&shown) {
                return Ok(shown);
            }
            let left = until.saturating_duration_since(Instant::now());
            let bytes = self.output.recv_timeout(left).with_context(|| format!("no {what} on:\n{shown}"))?;
            self.screen.process(&bytes);
        }
    }

    /// Waits for the program's end; what is on the screen then, lines whole that are longer than a row.
    ///
    /// # Errors
    /// If it fails.
    pub fn shown_at_end(mut self) -> anyhow::Result<String> {
        let status = self.child.wait()?;
        while let Ok(bytes) = self.output.recv_timeout(PATIENCE) {
            self.screen.process(&bytes);
        }
        let shown = self.screen.screen().contents();
        ensure!(status.success(), "{status}: {shown}");
        Ok(shown)
    }

    /// Waits for the program's end, and checks that the terminal is as it was before.
    ///
    /// # Errors
    /// If it is not.
    pub fn end(mut self) -> anyhow::Result<ExitStatus> {
        let status = self.child.wait()?;
        while let Ok(bytes) = self.output.recv_timeout(Duration::from_millis(500)) {
            self.screen.process(&bytes);
        }
        let screen = self.screen.screen();
        ensure!(!screen.alternate_screen() && !screen.hide_cursor(), "the terminal is left in another state");
        Ok(status)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
