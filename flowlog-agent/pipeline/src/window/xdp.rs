//! What other people's XDP programs did in a window: packets that none of our hooks can have seen.
//!
//! The witness are the driver's own counters. They are looked at when a watch begins, when programs come, change or go, and at
//! the end of each window; what has been added since the last look belongs to the open window. A look is an event, so a
//! window's counts are the same after a restart.
//!
//! What our own programs have seen them do (`XdpLevel`) is in rows already. Only what the driver has counted beyond that is left to say.

use std::fmt;

use flowlog_model::xdp::{Named, XdpLevel, XdpMode, XdpProgram, XdpReading, XdpView, words};
use serde::{Deserialize, Serialize};

/// Packets that a program dropped: a `skip_reason`, and an entry of the books.
pub(crate) const XDP_DROPPED: &str = "xdp_dropped";
/// Packets that it sent back or redirected: likewise.
pub(crate) const XDP_FORWARDED: &str = "xdp_forwarded";
/// Programs that are named of one window. One that is attached anew every second tells nobody more.
const PROGRAMS_MAX: usize = 16;

/// Packets of a window, as far as they are known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct XdpCount {
    /// So many at least.
    pub packets: u64,
    /// Perhaps more: there is no counter, or it began anew.
    pub is_partial: bool,
}

/// `7`, `unknown`, or `>=7`.
impl fmt::Display for XdpCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self { packets, is_partial: false } => write!(f, "{packets}"),
            Self { packets: 0, is_partial: true } => f.write_str("unknown"),
            Self { packets, is_partial: true } => write!(f, ">={packets}"),
        }
    }
}

impl XdpCount {
    /// Adds what has been counted between two looks, but for what we have counted ourselves. A counter that was not there, is not there any more or shows less than before
    /// has begun anew somewhere in between: what it had added is not known, and nothing is made up. `is_native`: somebody's program may
    /// have added something.
    fn add(
        &mut self,
        before: Option<&Named>,
        now: Option<&Named>,
        Ours { added: ours, ahead }: Ours<'_>,
        is_native: bool,
    ) {
        let (Some(before), Some(now)) = (before, now) else {
            // There was a counter, or there is one now.
            self.is_partial |= is_native && before.or(now).is_some();
            *ahead = 0;
            return;
        };
        let mut added = 0u64;
        let mut is_whole = before.keys().all(|name| now.contains_key(name));
        for (name, now) in now {
            match (before.get(name), *now) {
                (None, 0) => {}
                (Some(before), now) if now >= *before => added = added.saturating_add(now - before),
                _ => is_whole = false,
            }
        }
        self.is_partial |= is_native && !is_whole;
        let known = ours.saturating_add(*ahead);
        self.packets = self.packets.saturating_add(added.saturating_sub(known));
        // How much a counter that has begun anew is behind ours is not known.
        *ahead = if is_whole { known.saturating_sub(added) } else { 0 };
    }
}

/// What we have counted ourselves of what a driver counts.
struct Ours<'a> {
    /// Since the last look.
    added: u64,
    /// How much more it was than the driver's count, at the last look: the driver counts a packet after us.
    ahead: &'a mut u64,
}

/// How much a count of ours has grown. One that shows less began anew, with the maps that it is in.
fn grown(before: u64, now: u64) -> u64 {
    now.checked_sub(before).unwrap_or(now)
}

/// See the module's head. Empty if nobody's program was on the interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct XdpWindow {
    /// All programs that were seen.
    pub programs: Vec<XdpProgram>,
    /// More of them, which are not named.
    pub unnamed: usize,
    /// Packets that they dropped or aborted in the driver.
    pub dropped: XdpCount,
    /// Packets that they sent back or redirected in the driver.
    pub forwarded: XdpCount,
    /// The driver.
    pub driver: String,
}

impl XdpWindow {
    /// Whether there is nothing to say.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.programs.is_empty() && self.dropped.packets == 0 && self.forwarded.packets == 0
    }

    /// The programs, for people: `driver id=55 name=foo`.
    #[must_use]
    pub fn programs_words(&self) -> String {
        let named = words(&self.programs);
        if self.unnamed == 0 { named } else { format!("{named} and {} more", self.unnamed) }
    }

    /// The counts, for people: `dropped=7 forwarded=unknown driver=tun`.
    #[must_use]
    pub fn counts_words(&self) -> String {
        let driver = if self.driver.is_empty() { "unknown" } else { &self.driver };
        format!("dropped={} forwarded={} driver={driver}", self.dropped, self.forwarded)
    }

    /// What the counters have come to since the last look is not known.
    pub(crate) fn lose(&mut self) {
        let is_native = self.programs.iter().any(|p| p.mode != XdpMode::Generic);
        self.dropped.is_partial |= is_native;
        self.forwarded.is_partial |= is_native;
    }

    /// What a look finds: programs, and whether there are counters of what they do. The driver's are about neither what the card drops
    /// nor what the stack's program forwards.
    fn note(&mut self, found: &XdpReading) {
        let XdpReading { programs, counters, view, .. } = found;
        self.driver.clone_from(&counters.driver);
        for program in programs {
            let (dropped, forwarded) = match program.mode {
                XdpMode::Driver if view.level == XdpLevel::Wrap => (true, true),
                XdpMode::Driver => (counters.dropped.is_some(), counters.forwarded.is_some()),
                XdpMode::Generic => (true, false),
                XdpMode::Offload => (false, false),
            };
            self.dropped.is_partial |= !dropped;
            self.forwarded.is_partial |= !forwarded;
            if self.programs.contains(program) {
                continue;
            }
            if self.programs.len() < PROGRAMS_MAX {
                self.programs.push(program.clone());
            } else {
                self.unnamed += 1;
            }
        }
    }
}

/// The XDP of one interface, as the looks so far tell it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct XdpTally {
    /// The last look; `None`: nobody has looked.
    last: Option<XdpReading>,
    /// How much more we had counted than the driver, at the last look: dropped, forwarded.
    #[serde(default)]
    ahead: [u64; 2],
    /// The open window.
    window: XdpWindow,
}

impl XdpTally {
    /// Programs that were attached at the last look.
    #[must_use]
    pub(crate) fn programs(&self) -> &[XdpProgram] {
        self.last.as_ref().map_or(&[], |last| &last.programs)
    }

    /// How closely it is looked at them.
    #[must_use]
    pub(crate) fn view(&self) -> XdpView {
        self.last.as_ref().map(|last| last.view.clone()).unwrap_or_default()
    }

    /// Whether nobody has looked yet.
    #[must_use]
    pub(crate) fn is_unread(&self) -> bool {
        self.last.is_none()
    }

    /// Whether a look says anything new.
    #[must_use]
    pub(crate) fn is_news(&self, reading: &XdpReading) -> bool {
        self.last.as_ref() != Some(reading)
    }

    /// Whether packets are, or may be, dropped or forwarded uncounted; in words.
    #[must_use]
    pub(crate) fn uncounted(&self) -> Option<String> {
        let last = self.last.as_ref().filter(|last| last.programs.iter().any(|p| p.mode != XdpMode::Generic))?;
        let counters = &last.counters;
        if last.view.level == XdpLevel::Wrap || (counters.dropped.is_some() && counters.forwarded.is_some()) {
            return None;
        }
        let driver = if counters.driver.is_empty() { "a driver without a name" } else { &counters.driver };
        Some(format!("{driver} does not count all that XDP programs drop and forward"))
    }

    /// The programs, and what has been counted since the last look.
    pub(crate) fn look(&mut self, now: XdpReading) {
        self.window.note(&now);
        if let Some(last) = &self.last {
            // Counters that come and go are nothing to say while there is no program that they could be about.
            let is_native = last.programs.iter().chain(&now.programs).any(|p| p.mode == XdpMode::Driver);
            let [dropped, forwarded] = &mut self.ahead;
            let ours = Ours { added: grown(last.taken.dropped, now.taken.dropped), ahead: dropped };
            let counters = (last.counters.dropped.as_ref(), now.counters.dropped.as_ref());
            self.window.dropped.add(counters.0, counters.1, ours, is_native);
            let ours = Ours { added: grown(last.taken.forwarded, now.taken.forwarded), ahead: forwarded };
            let counters = (last.counters.forwarded.as_ref(), now.counters.forwarded.as_ref());
            self.window.forwarded.add(counters.0, counters.1, ours, is_native);
        }
        self.last = Some(now);
    }

    /// There can be no look.
    pub(crate) fn lose(&mut self) {
        self.window.lose();
        // What the next one finds has been counted at some time since.
        self.last = None;
        self.ahead = [0; 2];
    }

    /// A window ends and the next begins.
    pub(crate) fn turn(&mut self) -> XdpWindow {
        let mut next = XdpWindow::default();
        if let Some(last) = &self.last {
            next.note(last);
        }
        std::mem::replace(&mut self.window, next)
    }
}

#[cfg(test)]
mod tests {
    use flowlog_model::xdp::{XdpCounters, XdpTaken};

    use super::*;

    fn program(id: u32) -> XdpProgram {
        XdpProgram { mode: XdpMode::Driver, id, name: None }
    }

    fn look(programs: &[u32], queues: &[(&str, u64)]) -> XdpReading {
        let named: Named = queues.iter().map(|(name, n)| ((*name).to_owned(), *n)).collect();
        let counters = XdpCounters { driver: "veth".to_owned(), dropped: Some(named.clone()), forwarded: Some(named) };
        let programs = programs.iter().map(|id| program(*id)).collect();
        XdpReading { programs, counters, ..XdpReading::default() }
    }

    fn dropped(tally: &mut XdpTally, reading: XdpReading) -> String {
        tally.look(reading);
        tally.turn().dropped.to_string()
    }

    #[test]
    fn a_window_has_what_was_added_between_its_looks_however_many_there_were() {
        let mut tally = XdpTally::default();
        tally.look(look(&[], &[("a", 100), ("b", 5)]));
        tally.look(look(&[7], &[("a", 101), ("b", 5)]));
        tally.look(look(&[8], &[("a", 110), ("b", 5)]));
        tally.look(look(&[], &[("a", 110), ("b", 7)]));
        let window = tally.turn();
        assert_eq!(window.programs_words(), "driver id=7, driver id=8");
        assert_eq!(window.counts_words(), "dropped=12 forwarded=12 driver=veth");
        assert!(tally.turn().is_empty(), "none is left");
        tally.look(look(&[9], &[("a", 110), ("b", 7)]));
        tally.turn();
        let next = tally.turn();
        assert_eq!((next.programs_words().as_str(), next.dropped.packets), ("driver id=9", 0), "it is still there");
    }

    #[test]
    fn counters_that_begin_anew_make_nothing_up_and_say_so() {
        let mut tally = XdpTally::default();
        tally.look(look(&[7], &[("a", 100), ("b", 50)]));
        // The driver was loaded again: "a" shows less than before, and "b" could have been anything.
        assert_eq!(dropped(&mut tally, look(&[7], &[("a", 3), ("b", 51)])), ">=1");
        assert_eq!(dropped(&mut tally, look(&[7], &[("a", 4), ("b", 51)])), "1", "from there on it is known again");
        // Fewer queues, then more.
        assert_eq!(dropped(&mut tally, look(&[7], &[("a", 6)])), ">=2");
        assert_eq!(dropped(&mut tally, look(&[7], &[("a", 6), ("b", 60)])), "unknown");
        assert_eq!(
            dropped(&mut tally, look(&[7], &[("a", 6), ("b", 60), ("c", 0)])),
            "0",
            "a new one at 0 has lost nothing"
        );
        // Without any program nobody can have dropped anything.
        assert_eq!(dropped(&mut tally, look(&[], &[("a", 6), ("b", 60), ("c", 0)])), "0");
        assert_eq!(dropped(&mut tally, look(&[], &[("d", 9)])), "0");
    }

    #[test]
    fn what_we_have_counted_ourselves_is_not_counted_again_and_what_nobody_saw_is() {
        let ours = |driver: u64, ours: u64| XdpReading {
            taken: XdpTaken { dropped: ours, forwarded: ours },
            ..look(&[7], &[("a", driver)])
        };
        let mut tally = XdpTally::default();
        tally.look(ours(100, 40));
        assert_eq!(dropped(&mut tally, ours(110, 50)), "0");
        // The driver has not yet counted five that we have; then it has.
        assert_eq!(dropped(&mut tally, ours(115, 60)), "0");
        assert_eq!(dropped(&mut tally, ours(120, 60)), "0");
        assert_eq!(dropped(&mut tally, ours(123, 61)), "2", "two that we have not seen");
        // Again behind, over several looks, with one that nobody saw in between.
        assert_eq!(dropped(&mut tally, ours(123, 71)), "0");
        assert_eq!(dropped(&mut tally, ours(128, 71)), "0");
        assert_eq!(dropped(&mut tally, ours(134, 71)), "1");
        // Maps that were made anew.
        assert_eq!(dropped(&mut tally, ours(140, 6)), "0");
        // A driver that was loaded again: what it had counted since is not known, nor how far it is behind.
        assert_eq!(dropped(&mut tally, ours(3, 16)), "unknown");
        assert_eq!(dropped(&mut tally, ours(8, 20)), "1");
    }

    #[test]
    fn where_we_run_the_program_nothing_is_unknown_whatever_the_driver_counts() {
        let counters = XdpCounters { driver: "tun".to_owned(), ..XdpCounters::default() };
        let view = XdpView { level: XdpLevel::Wrap, why: None };
        let mut tally = XdpTally::default();
        tally.look(XdpReading { programs: vec![program(7)], counters, view, ..XdpReading::default() });
        assert_eq!(tally.uncounted(), None);
        assert_eq!(tally.turn().counts_words(), "dropped=0 forwarded=0 driver=tun");
    }

    #[test]
    fn what_a_driver_does_not_count_is_not_known() {
        let mut tally = XdpTally::default();
        let counters = XdpCounters { driver: "tun".to_owned(), ..XdpCounters::default() };
        let reading = |programs: &[XdpProgram]| XdpReading {
            programs: programs.to_vec(),
            counters: counters.clone(),
            ..XdpReading::default()
        };
        tally.look(reading(&[]));
        assert_eq!(tally.uncounted(), None, "nobody drops anything");
        tally.look(reading(&[program(7)]));
        assert!(tally.uncounted().is_some_and(|words| words.contains("tun")));
        assert_eq!(tally.turn().counts_words(), "dropped=unknown forwarded=unknown driver=tun");
        // What the stack's program drops is a REJECT; what it forwards is in no counter.
        let generic = XdpProgram { mode: XdpMode::Generic, id: 8, name: Some("other".to_owned()) };
        tally.look(reading(std::slice::from_ref(&generic)));
        tally.turn();
        tally.look(reading(&[generic]));
        let window = tally.turn();
        assert_eq!(window.counts_words(), "dropped=0 forwarded=unknown driver=tun");
        assert_eq!(window.programs_words(), "generic id=8 name=other");
    }

    #[test]
    fn programs_that_keep_changing_are_counted_and_the_first_are_named() {
        let mut tally = XdpTally::default();
        for id in 1..=20 {
            tally.look(look(&[id], &[("a", 0)]));
        }
        let window = tally.turn();
        assert_eq!(window.programs.len(), PROGRAMS_MAX);
        assert!(window.programs_words().ends_with("driver id=16 and 4 more"));
    }
}
