//! The oracle: sends packets, remembers each, and reads everything that landed against that.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use crate::{net::Pair, rows::Objects, traffic};

/// Source, source port, destination port.
type Tuple = (String, i64, i64);

/// What was sent, and where it must be found.
#[derive(Debug, Default)]
pub struct Oracle {
    sent: BTreeMap<Tuple, u64>,
    /// Packets sent to [`REFUSED`].
    pub refused: u64,
    pub total: u64,
}

/// The firewall refuses packets to this port.
pub const REFUSED: u16 = 20_000;
/// And lets those to this one through.
pub const ACCEPTED: u16 = 20_001;
const PAYLOAD: usize = 22;
/// Layer-3 bytes of every packet.
pub const L3_BYTES: u64 = 28 + PAYLOAD as u64;
/// Bursts sent even if the script is over at once.
const BURSTS_MIN: u32 = 20;
/// Frames in a burst: fewer than any queue on the way takes.
const BURST: usize = 50;

/// Says, when it is dropped, that it is over.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Oracle {
    /// Sends packets of `flows` flows, a burst every `pause`, while `script` runs, which is told how many were sent so
    /// far; waits until they have arrived.
    ///
    /// # Errors
    /// What `script` says.
    pub fn watch(
        pair: &Pair,
        flows: u32,
        pause: Duration,
        script: impl FnOnce(&AtomicU64) -> anyhow::Result<()>,
    ) -> anyhow::Result<Self> {
        pair.a.nft(&format!(
            "table inet oracle {{ counter refused {{ }}\n chain c {{ type filter hook input priority 0; udp dport {REFUSED} counter name refused drop; }}\n}}"
        ))?;
        let over = AtomicBool::new(false);
        let sent = AtomicU64::new(0);
        let (oracle, result) = std::thread::scope(|scope| {
            let sender = scope.spawn(|| pair.b.run(|| Self::send(pair, flows, pause, &over, &sent)));
            // A script that panics ends the sender as well, or nobody would hear of it.
            let ending = Ending(&over);
            let result = script(&sent);
            drop(ending);
            (sender.join().expect("the sender"), result)
        });
        result?;
        pair.wait_until_quiet();
        oracle
    }

    fn send(pair: &Pair, flows: u32, pause: Duration, over: &AtomicBool, sent: &AtomicU64) -> anyhow::Result<Self> {
        let macs = (pair.b.mac("eth0")?, pair.a.mac("eth0")?);
        let raw = traffic::Raw::open("eth0")?;
        let mut oracle = Self::default();
        let mut next = (0..flows).cycle();
        let mut bursts = 0..BURSTS_MIN;
        while bursts.next().is_some() || !over.load(Ordering::Relaxed) {
            let mut frames = Vec::with_capacity(BURST);
            for i in next.by_ref().take(BURST) {
                // No route leads back to these sources: nothing is answered.
                let source = Ipv4Addr::from(0x0ac8_0000 + (i >> 10));
                let sport = 1_024 + u16::try_from(i & 0x3ff)?;
                let dport = if i % 3 == 0 { REFUSED } else { ACCEPTED };
                frames.push(traffic::udp4(macs, (source, sport), ([10, 1, 0, 1].into(), dport), PAYLOAD));
                *oracle.sent.entry((source.to_string(), i64::from(sport), i64::from(dport))).or_default() += 1;
                oracle.refused += u64::from(dport == REFUSED);
                oracle.total += 1;
            }
            raw.send(&frames)?;
            sent.store(oracle.total, Ordering::Relaxed);
            std::thread::sleep(pause);
        }
        Ok(oracle)
    }

    /// Compares: packets lost, packets too many (duplicated, or with the wrong verdict), and one line about each of the
    /// first few.
    #[must_use]
    pub fn compare(&self, landed: &Objects) -> Difference {
        let mut found: BTreeMap<(Tuple, String), u64> = BTreeMap::new();
        for row in landed.rows.iter().filter(|r| r.status == "OK") {
            let tuple = (row.src.clone(), row.sport, row.dport);
            *found.entry((tuple, row.action.clone())).or_default() += row.packets;
        }
        let mut difference = Difference { skipped: landed.lost().0, ..Difference::default() };
        for (tuple, sent) in &self.sent {
            let action = if tuple.2 == i64::from(REFUSED) { "REJECT" } else { "ACCEPT" };
            let got = found.remove(&(tuple.clone(), action.to_owned())).unwrap_or(0);
            difference.lost += sent.saturating_sub(got);
            difference.duplicated += got.saturating_sub(*sent);
            if got != *sent && difference.examples.len() < 10 {
                difference.examples.push(format!("{tuple:?}: {sent} sent, {got} {action}"));
            }
        }
        for ((tuple, action), got) in found {
            difference.unexpected += got;
            if difference.examples.len() < 10 {
                difference.examples.push(format!("{tuple:?}: {got} {action}, none sent"));
            }
        }
        difference
    }
}

/// The result of a comparison.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Sent, in no row.
    pub lost: u64,
    /// In more rows than sent.
    pub duplicated: u64,
    /// Never sent, or with the other verdict.
    pub unexpected: u64,
    pub skipped: u64,
    pub examples: Vec<String>,
}
