//! The system's journal: each message as an entry, with its fields.
//!
//! Our own few lines of the journal's protocol (<https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>), because `tracing-journald` leaves the fields out of the
//! text that people read. Field names are in capitals, behind `FLOWLOG_`: `journalctl FLOWLOG_INTERFACE=tap0`.

use std::{
    fmt::{Debug, Write as _},
    os::unix::net::UnixDatagram,
};

use flowlog_model::text::printable;
use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{Layer, layer::Context};

/// Where the journal listens.
const SOCKET: &str = "/run/systemd/journal/socket";
/// What says which file the journal reads: `DEVICE:INODE` (systemd.exec(5)).
const VARIABLE: &str = "JOURNAL_STREAM";

/// See the module's head.
pub(super) struct Journal(UnixDatagram);

impl Journal {
    /// The journal, if it reads standard error. Its socket is opened here: later there may be no right to.
    pub(super) fn of_stderr() -> Option<Self> {
        let named = std::env::var(VARIABLE).ok()?;
        let stat = rustix::fs::fstat(std::io::stderr()).ok()?;
        if named != format!("{}:{}", stat.st_dev, stat.st_ino) {
            return None;
        }
        Self::at(SOCKET)
    }

    fn at(socket: &str) -> Option<Self> {
        let journal = UnixDatagram::unbound().ok()?;
        journal.connect(socket).ok()?;
        // A journal that does not read holds nobody up.
        journal.set_nonblocking(true).ok()?;
        Some(Self(journal))
    }
}

impl<S: Subscriber> Layer<S> for Journal {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut entry = Entry::default();
        event.record(&mut entry);
        let metadata = event.metadata();
        // What does not fit into a datagram, or has nobody to read it, is lost as it would be on a closed standard error.
        let _ = self.0.send(&entry.finish(*metadata.level(), metadata.target()));
    }
}

/// An entry on its way.
#[derive(Default)]
struct Entry {
    message: String,
    fields: String,
    bytes: Vec<u8>,
}

impl Visit for Entry {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let words = format!("{value:?}");
        if field.name() == "message" {
            self.message = words;
            return;
        }
        // Writing to a String cannot fail.
        let _ = write!(self.fields, " {}={}", field.name(), printable(&words));
        self.add(&format!("FLOWLOG_{}", field.name().to_ascii_uppercase()), &words);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }
}

impl Entry {
    /// With its length in front of the value, so that nothing in it can look like another field.
    fn add(&mut self, name: &str, value: &str) {
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(b'\n');
        self.bytes.extend_from_slice(&(value.len() as u64).to_le_bytes());
        self.bytes.extend_from_slice(value.as_bytes());
        self.bytes.push(b'\n');
    }

    fn finish(mut self, level: Level, target: &str) -> Vec<u8> {
        // syslog(3).
        let priority = match level {
            Level::ERROR => "3",
            Level::WARN => "4",
            Level::INFO => "6",
            Level::DEBUG | Level::TRACE => "7",
        };
        let text = format!("{}{}", printable(&self.message), self.fields);
        self.add("MESSAGE", &text);
        self.add("PRIORITY", priority);
        self.add("SYSLOG_IDENTIFIER", "flowlog");
        self.add("FLOWLOG_PART", target);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    /// Fields of an entry, as the journal reads them.
    fn read(mut bytes: &[u8]) -> Vec<(String, String)> {
        let mut fields = Vec::new();
        while let Some(end) = bytes.iter().position(|b| *b == b'\n') {
            let text = |b: &[u8]| String::from_utf8(b.to_vec()).expect("text");
            let length: [u8; 8] = bytes[end + 1..end + 9].try_into().expect("a length");
            let length = usize::try_from(u64::from_le_bytes(length)).expect("small");
            fields.push((text(&bytes[..end]), text(&bytes[end + 9..end + 9 + length])));
            bytes = &bytes[end + 9 + length + 1..];
        }
        fields
    }

    #[test]
    fn an_entry_has_its_fields_and_says_them_and_no_name_makes_another_field() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("socket");
        let socket = UnixDatagram::bind(&path).expect("bind");
        let journal = Journal::at(path.to_str().expect("a path")).expect("connect");
        let subscriber = tracing_subscriber::registry().with(journal);
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(interface = "tap0\nPRIORITY=0", packets = 3, "cannot hook");
        });
        let mut bytes = [0; 4_096];
        let n = socket.recv(&mut bytes).expect("an entry");
        let fields = read(&bytes[..n]);
        let of = |name: &str| fields.iter().filter(|(n, _)| n == name).map(|(_, v)| v.as_str()).collect::<Vec<_>>();
        assert_eq!(of("PRIORITY"), ["4"]);
        assert_eq!(of("FLOWLOG_INTERFACE"), ["tap0\nPRIORITY=0"]);
        assert_eq!(of("FLOWLOG_PACKETS"), ["3"]);
        assert_eq!(of("SYSLOG_IDENTIFIER"), ["flowlog"]);
        let message = of("MESSAGE")[0];
        assert!(message.starts_with("cannot hook interface=tap0") && message.ends_with("packets=3"), "{message}");
        assert!(!message.contains('\n'), "{message}");
    }
}
