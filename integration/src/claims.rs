//! What the rows of one interface must say about one port, next to what a witness says.

use std::time::{Duration, Instant};

use crate::rows::{Objects, Sum};

pub const NONE: Sum = (0, 0);

/// As many as most tests send.
pub const PACKETS: usize = 40;
pub const PAYLOAD: usize = 100;
/// What an IPv4 UDP packet with that payload has.
pub const BYTES: u64 = 128;

/// So many of them.
#[must_use]
pub fn sum(packets: usize) -> Sum {
    (packets as u64, packets as u64 * BYTES)
}

/// How long a witness may take to see the last packet.
const PATIENCE: Duration = Duration::from_secs(10);

/// Rules that count into `refused` and then do `what` with UDP to port 7, in a chain on `hook` of `family`.
#[must_use]
pub fn rules(family: &str, hook: &str, what: &str) -> String {
    // A kernel may have no `meta` expression for bridges.
    let udp = if family == "bridge" { "ip protocol udp" } else { "meta l4proto udp" };
    format!(
        "table {family} t {{\n counter refused {{ }}\n chain c {{ type filter hook {hook} priority 0; policy accept; {udp} udp dport 7 counter name refused {what}; }}\n}}\n"
    )
}

/// Waits until `enough` holds; there is no event for it.
///
/// # Panics
/// If it does not within ten seconds.
pub fn until(what: &str, enough: impl Fn() -> bool) {
    let since = Instant::now();
    while !enough() {
        assert!(since.elapsed() < PATIENCE, "{what} did not happen");
        std::thread::yield_now();
    }
}

impl Objects {
    /// The rows of one interface.
    #[must_use]
    pub fn on(&self, interface: &str) -> Self {
        let id = format!("node-{interface}");
        let rows = self.rows.iter().filter(|r| r.interface == id).cloned().collect();
        Self { keys: Vec::new(), rows, metadata: Vec::new() }
    }

    /// What is in the OK rows of UDP to this port, with this action.
    #[must_use]
    pub fn udp(&self, port: i64, direction: &str, action: &str) -> Sum {
        let flow = |r: &crate::rows::Row| r.protocol == 17 && r.dport == port && r.direction == direction;
        self.sum(|r| flow(r) && r.status == "OK" && r.action == action)
    }

    /// Packets in ACCEPT rows whose verdict is not known.
    #[must_use]
    pub fn unknown(&self, direction: &str) -> Sum {
        self.sum(|r| r.status == "SKIPDATA" && r.skip == "verdict_unknown" && r.direction == direction)
    }

    fn excerpt(&self) -> String {
        let some = self.rows.iter().filter(|r| r.status != "NODATA").take(12);
        some.map(|r| format!("{r:?}")).collect::<Vec<_>>().join("\n")
    }
}

/// Rows of one interface and direction.
#[derive(Clone, Copy, Debug)]
pub struct Passage<'a> {
    pub interface: &'a str,
    /// As rows have it: `ingress` or `egress`.
    pub direction: &'a str,
}

#[must_use]
pub fn into(interface: &str) -> Passage<'_> {
    Passage { interface, direction: "ingress" }
}

#[must_use]
pub fn out_of(interface: &str) -> Passage<'_> {
    Passage { interface, direction: "egress" }
}

/// Checks that exactly the refused packets of UDP to `port` are REJECT, and exactly the others ACCEPT.
///
/// # Panics
/// If not.
pub fn assert_exact(landed: &Objects, place: Passage<'_>, port: i64, refused: Sum, passed: Sum) {
    let on = landed.on(place.interface);
    let found = ["REJECT", "ACCEPT"].map(|a| on.udp(port, place.direction, a));
    let unknown = on.unknown(place.direction);
    assert_eq!(
        found,
        [refused, passed],
        "{place:?} port {port}: REJECT, ACCEPT (unknown {unknown:?})\n{}",
        on.excerpt()
    );
}

/// Checks that of `seen` packets of UDP to `port`, of which `refused` may have been refused, no more than those are
/// REJECT, the others ACCEPT, and that those neither shown nor known are counted as unknown.
///
/// # Panics
/// If not.
pub fn assert_not_guessed(landed: &Objects, place: Passage<'_>, port: i64, refused: Sum, seen: Sum) {
    let on = landed.on(place.interface);
    let [reject, accept] = ["REJECT", "ACCEPT"].map(|a| on.udp(port, place.direction, a));
    let unknown = on.unknown(place.direction);
    let report = format!(
        "{place:?} port {port}: REJECT {reject:?} ACCEPT {accept:?} unknown {unknown:?}, refused {refused:?} seen {seen:?}\n{}",
        on.excerpt()
    );
    assert!(reject.0 <= refused.0 && reject.1 <= refused.1, "more than were refused: {report}");
    assert_eq!((reject.0 + accept.0, reject.1 + accept.1), seen, "in no row, or in two: {report}");
    assert!(reject.0 + unknown.0 >= refused.0, "neither shown nor said: {report}");
    assert!(reject.1 + unknown.1 >= refused.1, "neither shown nor said: {report}");
}
