//! Keys, from the bytes that a terminal sends for them.
//!
//! Written here because the parsers of libraries keep what they have not understood, and wait for its end: after the beginning of a paste or
//! of a report (`ESC [ 200 ~`, `ESC [ <`, `ESC ]`) they take every key that follows for a part of it, Ctrl-C as well. Here nothing is kept
//! from one read to the next: a terminal sends the bytes of a key at once.

use std::{
    fs::File,
    io::{self, IsTerminal as _, Read as _},
    os::fd::AsFd as _,
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::Duration,
};

use super::view::Key;

const ESCAPE: char = '\u{1b}';
/// A sequence that was torn behind its first byte goes on within so long; else somebody has pressed the key.
const TORN: Duration = Duration::from_millis(25);
/// Bytes of one read: a key has a few, a paste has many.
const READ_BYTES: usize = 1_024;

/// The keyboard of the terminal that we are on.
pub(super) struct Keyboard(Receiver<io::Result<Vec<u8>>>);

impl Keyboard {
    /// Begins to read it, in a thread that ends with the process: nothing else would wake it.
    ///
    /// # Errors
    /// If there is no terminal.
    pub(super) fn open() -> io::Result<Self> {
        let stdin = io::stdin();
        let mut terminal =
            if stdin.is_terminal() { stdin.as_fd().try_clone_to_owned()?.into() } else { File::open("/dev/tty")? };
        let (sender, bytes) = channel();
        thread::spawn(move || {
            let mut buffer = [0; READ_BYTES];
            loop {
                let read = match terminal.read(&mut buffer) {
                    Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                    read => read.map(|n| buffer[..n].to_vec()),
                };
                let is_over = read.is_err();
                if sender.send(read).is_err() || is_over {
                    return;
                }
            }
        });
        Ok(Self(bytes))
    }

    /// The keys that were pressed within this time.
    ///
    /// # Errors
    /// If the terminal is gone.
    pub(super) fn wait(&self, time: Duration) -> io::Result<Vec<Key>> {
        let mut bytes = match self.0.recv_timeout(time) {
            Ok(bytes) => bytes?,
            Err(RecvTimeoutError::Timeout) => return Ok(Vec::new()),
            Err(RecvTimeoutError::Disconnected) => return Err(io::ErrorKind::UnexpectedEof.into()),
        };
        if bytes.ends_with(b"\x1b")
            && let Ok(more) = self.0.recv_timeout(TORN)
        {
            bytes.extend(more?);
        }
        Ok(keys(&bytes))
    }
}

/// The keys of one read. What is none is left out.
fn keys(bytes: &[u8]) -> Vec<Key> {
    let text: String = bytes.utf8_chunks().map(|chunk| chunk.valid()).collect();
    let mut rest = text.chars().peekable();
    let mut keys = Vec::new();
    while let Some(char) = rest.next() {
        keys.extend(match (char, rest.peek()) {
            (ESCAPE, None | Some(&ESCAPE)) => Some(Key::Escape),
            (ESCAPE, Some('[' | 'O')) => {
                rest.next();
                // Numbers, then what it is (ECMA-48, 5.4).
                match rest.find(|c| ('\u{40}'..='\u{7e}').contains(c)) {
                    Some('C') => Some(Key::Next),
                    Some('D' | 'Z') => Some(Key::Previous),
                    _ => None,
                }
            }
            // Alt with a key.
            (ESCAPE, Some(_)) => {
                rest.next();
                None
            }
            ('\u{3}', _) => Some(Key::Interrupt),
            ('\r' | '\n', _) => Some(Key::Enter),
            ('\t', _) => Some(Key::Next),
            ('\u{8}' | '\u{7f}', _) => Some(Key::Backspace),
            (c, _) => Some(c).filter(|c| !c.is_control()).map(Key::Char),
        });
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_keys_are_these_keys_and_others_are_none() {
        let q = Key::Char('q');
        for (bytes, expected) in [
            (&b"q"[..], vec![q]),
            ("\u{e9}".as_bytes(), vec![Key::Char('\u{e9}')]),
            (
                b"\r\n\t\x7f\x08\x03",
                vec![Key::Enter, Key::Enter, Key::Next, Key::Backspace, Key::Backspace, Key::Interrupt],
            ),
            (b"\x1b", vec![Key::Escape]),
            (b"\x1b\x1b[C", vec![Key::Escape, Key::Next]),
            (
                b"\x1b[C\x1b[D\x1b[Z\x1bOC\x1bOD",
                vec![Key::Next, Key::Previous, Key::Previous, Key::Next, Key::Previous],
            ),
            (b"\x1b[1;5Cq", vec![Key::Next, q]),
            (b"\x1b[200~q\x1b[201~", vec![q]),
            // Alt-q, Ctrl-Q and Ctrl-S are not q and s.
            (b"\x1bq\x11\x13", vec![]),
            (b"\xff\xc3q", vec![q]),
        ] {
            assert_eq!(keys(bytes), expected, "{bytes:?}");
        }
        // Whatever was sent before, the next read is read as what it is.
        for begun in [&b"\x1b[200~"[..], b"\x1b[<", b"\x1b[?", b"\x1b]", b"\x1bP", b"\x1b[", b"\x1bO", b"\xc3"] {
            keys(begun);
            assert_eq!(keys(b"q\x03"), [q, Key::Interrupt], "{begun:?}");
        }
    }
}
