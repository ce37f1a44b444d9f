//! The books of a window, and packets without a row of their own.

use flowlog_ebpf::abi::Count;
use flowlog_model::{rule::Direction, status::WindowBooks};

use super::{
    Span,
    xdp::{XDP_DROPPED, XDP_FORWARDED},
};

/// Why packets are in no row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LossReason {
    /// The ring buffer was full.
    RingFull,
    /// IP that cannot be parsed.
    Malformed,
    /// Packets in ACCEPT rows that may have been refused, or were: it could not be shown, or the ring was full when it was
    /// to be told. These packets *are* in rows; they are reported and not added to the sum.
    VerdictUnknown,
    /// The spool had no room for their flows; these are the totals.
    SpoolFull,
    /// Their flows could not be made into rows; these are the totals.
    NotEncoded,
}

impl LossReason {
    /// All of them, in the order of their numbers.
    pub(crate) const ALL: [Self; 5] =
        [Self::RingFull, Self::Malformed, Self::VerdictUnknown, Self::SpoolFull, Self::NotEncoded];

    /// As in the column `skip_reason`.
    #[must_use]
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::RingFull => "ring_full",
            Self::Malformed => "malformed",
            Self::VerdictUnknown => "verdict_unknown",
            Self::SpoolFull => "spool_full",
            Self::NotEncoded => "not_encoded",
        }
    }
}

/// Packets without a row of their own: becomes a SKIPDATA row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loss {
    /// Way through the interface.
    pub direction: Direction,
    /// Known to have been refused. Malformed packets have no known verdict.
    pub refused: bool,
    pub reason: LossReason,
    pub count: Count,
}

/// The books of one window, packets and bytes, both directions together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Balance {
    /// Frames the hooks saw.
    pub seen: Count,
    /// Of these: not IP.
    pub non_ip: Count,
    /// Refused packets that no hook had counted in this window.
    pub refused_unseen: Count,
    pub refused: Count,
    /// Packets and bytes in ACCEPT rows.
    pub accepted_rows: Count,
    /// Packets and bytes in REJECT rows.
    pub rejected_rows: Count,
    /// In SKIPDATA rows that add to the sum.
    pub lost: Count,
    /// Of these: known to have been refused.
    pub refused_lost: Count,
    /// Refused packets that stand in ACCEPT rows (see [`LossReason::VerdictUnknown`]).
    pub verdict_unknown: Count,
    /// Taken back from flows beyond what they had: records are missing, or refusals name other flows than their hook.
    pub deficit: Count,
    /// Refused packets that may be in no REJECT row, since the ring was full for them or for their refusal: so many at most.
    pub untold: Count,
    /// In ACCEPT rows, and died on their way.
    pub died: Count,
    /// Of these: in the column `lost_packets` of their rows.
    pub died_rows: Count,
    /// Of these: in no column, since the ring was full or the rows had no room.
    pub died_untold: Count,
    /// Died on their way after the window of their row was closed. In none of the others.
    pub died_late: Count,
    /// The programs' own counts went down with the host: there is nothing to compare the rows with.
    pub unverified: bool,
    /// Packets that somebody else's XDP program dropped before any hook, by the driver's count. No hook saw them, so they are
    /// in no other entry and not in the difference. Drivers count no bytes of them: 0.
    pub xdp_dropped: Count,
    /// The same, of those that it sent back or redirected.
    pub xdp_forwarded: Count,
}

impl Balance {
    /// Packets and bytes in rows and losses, less what programs saw: 0. Where that adds up although rows are wrong, it is
    /// the deficit that evens it out, or what is in REJECT rows beyond what was refused (or, below zero, is not), or what rows call
    /// lost beyond what died.
    #[must_use]
    pub(crate) fn difference(&self) -> (i128, i128) {
        if self.unverified {
            return (0, 0);
        }
        let [packets, bytes] = [|c: &Count| c.packets, |c: &Count| c.bytes].map(|f: fn(&Count) -> u64| {
            let n = |c: &Count| i128::from(f(c));
            let sum = n(&self.accepted_rows) + n(&self.rejected_rows) + n(&self.lost)
                - (n(&self.seen) - n(&self.non_ip) + n(&self.refused_unseen));
            let rejected = n(&self.rejected_rows) + n(&self.refused_lost) - n(&self.refused);
            let rejected = if (-n(&self.untold)..=0).contains(&rejected) { 0 } else { rejected };
            let died = n(&self.died_rows) + n(&self.died_untold) - n(&self.died);
            [sum, -n(&self.deficit), rejected, died].into_iter().find(|d| *d != 0).unwrap_or(0)
        });
        (packets, bytes)
    }
}

impl Balance {
    /// The same in packets, as it is shown beside the sums of all windows.
    #[must_use]
    pub(crate) fn books(&self, of: &Span) -> WindowBooks {
        let saturated = |n: i128| i64::try_from(n).unwrap_or(if n < 0 { i64::MIN } else { i64::MAX });
        let (packets, bytes) = self.difference();
        let known = |n| (!self.unverified).then(|| saturated(n));
        WindowBooks {
            start_secs: of.start_secs,
            end_secs: of.end_secs,
            seen_packets: self.seen.packets,
            refused_unseen_packets: self.refused_unseen.packets,
            accepted_packets: self.accepted_rows.packets,
            rejected_packets: self.rejected_rows.packets,
            lost_packets: self.lost.packets,
            non_ip_packets: self.non_ip.packets,
            difference_packets: known(packets),
            difference_bytes: known(bytes),
        }
    }
}

/// What the counts of a balance are called where it is written.
pub mod names {
    pub const SEEN: &str = "seen";
    pub const NON_IP: &str = "non_ip";
    pub const REFUSED_UNSEEN: &str = "refused_unseen";
    pub const ACCEPTED_ROWS: &str = "accepted_rows";
    pub const REJECTED_ROWS: &str = "rejected_rows";
    pub const LOST: &str = "lost";
    pub const DIFFERENCE: &str = "difference";
}

/// Where a balance has a count.
type Place = fn(&mut Balance) -> &mut Count;

/// The counts that are written, in their order.
const WRITTEN: [(&str, Place); 16] = [
    (names::SEEN, |b| &mut b.seen),
    (names::NON_IP, |b| &mut b.non_ip),
    ("refused", |b| &mut b.refused),
    (names::REFUSED_UNSEEN, |b| &mut b.refused_unseen),
    (names::ACCEPTED_ROWS, |b| &mut b.accepted_rows),
    (names::REJECTED_ROWS, |b| &mut b.rejected_rows),
    (names::LOST, |b| &mut b.lost),
    ("refused_lost", |b| &mut b.refused_lost),
    (LossReason::VerdictUnknown.as_str(), |b| &mut b.verdict_unknown),
    ("deficit", |b| &mut b.deficit),
    ("died", |b| &mut b.died),
    ("died_rows", |b| &mut b.died_rows),
    ("died_untold", |b| &mut b.died_untold),
    ("died_late", |b| &mut b.died_late),
    (XDP_DROPPED, |b| &mut b.xdp_dropped),
    (XDP_FORWARDED, |b| &mut b.xdp_forwarded),
];

/// The value that a difference has where there is nothing to compare with.
const UNKNOWN: &str = "unknown";

/// `name=packets/bytes` pairs, separated by spaces: the form of the books in object metadata and logs. What is not there is 0.
impl std::fmt::Display for Balance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut of = *self;
        for (name, place) in WRITTEN {
            let count = *place(&mut of);
            if name == names::SEEN || count != Count::default() {
                write!(f, "{name}={}/{} ", count.packets, count.bytes)?;
            }
        }
        if self.unverified {
            return write!(f, "{}={UNKNOWN}", names::DIFFERENCE);
        }
        let (packets, bytes) = self.difference();
        write!(f, "{}={packets}/{bytes}", names::DIFFERENCE)
    }
}

/// The books of a window as they were written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrittenBooks {
    /// Names, packets and bytes, in their order.
    pub entries: Vec<(String, Count)>,
    /// As is written there, or, if that is none, as the entries have it. `None`: there was nothing to compare with.
    pub difference: Option<(i128, i128)>,
}

/// Why books cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` in its books is no count")]
pub struct NoCount(String);

impl WrittenBooks {
    /// Reads what a balance was written as. It is not believed that it has no difference: that is calculated again.
    ///
    /// # Errors
    /// Without a difference, and with an entry that is none.
    pub fn parse(text: &str) -> Result<Self, NoCount> {
        // How many refusals were untold is not written: no lack of them is a difference here.
        let untold = Count { packets: u64::MAX, bytes: u64::MAX };
        let (mut entries, mut written) = (Vec::new(), None);
        let mut sums = Balance { untold, ..Balance::default() };
        let mut knows_all = true;
        for entry in text.split_whitespace() {
            let none = || NoCount(entry.to_owned());
            let (name, value) = entry.split_once('=').ok_or_else(none)?;
            if name == names::DIFFERENCE {
                written = Some(if value == UNKNOWN { None } else { Some(pair::<i128>(value).ok_or_else(none)?) });
                continue;
            }
            let (packets, bytes) = pair(value).ok_or_else(none)?;
            let count = Count { packets, bytes };
            match WRITTEN.iter().find(|(known, _)| *known == name) {
                Some((_, place)) => *place(&mut sums) = count,
                // Of a later version: what it is to be compared with is not known here.
                None => knows_all = false,
            }
            entries.push((name.to_owned(), count));
        }
        let written = written.ok_or_else(|| NoCount(names::DIFFERENCE.to_owned()))?;
        let difference = written.map(|pair| if pair == (0, 0) && knows_all { sums.difference() } else { pair });
        Ok(Self { entries, difference })
    }
}

fn pair<T: std::str::FromStr>(text: &str) -> Option<(T, T)> {
    let (packets, bytes) = text.split_once('/')?;
    Some((packets.parse().ok()?, bytes.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn books_are_read_as_they_were_written_and_their_difference_is_calculated_again() {
        let mut all = Balance::default();
        for (number, (_, place)) in (1..).zip(WRITTEN) {
            *place(&mut all) = Count { packets: number, bytes: 10 * number };
        }
        let read = WrittenBooks::parse(&all.to_string()).expect("books");
        assert_eq!(read.difference, Some(all.difference()));
        let names: Vec<&str> = read.entries.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, WRITTEN.map(|(name, _)| name), "each once, each in its place");
        for ((name, count), (_, place)) in read.entries.iter().zip(WRITTEN) {
            assert_eq!(count, place(&mut all), "{name}");
        }
        for (text, difference) in [
            ("seen=5/50 accepted_rows=5/50 difference=0/0", Some((0, 0))),
            ("seen=7/70 accepted_rows=5/50 difference=0/0", Some((-2, -20))),
            ("seen=5/50 accepted_rows=5/50 difference=1/0", Some((1, 0))),
            ("seen=5/50 accepted_rows=4/40 refused=1/10 difference=unknown", None),
            // Refusals that the ring had no room for.
            ("seen=5/50 accepted_rows=5/50 refused=1/10 difference=0/0", Some((0, 0))),
            ("seen=5/50 accepted_rows=4/40 of_the_future=1/10 difference=0/0", Some((0, 0))),
        ] {
            assert_eq!(WrittenBooks::parse(text).expect("books").difference, difference, "{text}");
        }
        for (text, named) in [
            ("", "difference"),
            ("seen=5/50", "difference"),
            ("seen=5 difference=0/0", "`seen=5`"),
            ("seen=-5/1 difference=0/0", "`seen=-5/1`"),
            ("seen difference=0/0", "`seen`"),
            ("seen=1/1 difference=none", "`difference=none`"),
        ] {
            let error = WrittenBooks::parse(text).expect_err(text).to_string();
            assert!(error.contains(named), "{text}: {error}");
        }
    }
}
