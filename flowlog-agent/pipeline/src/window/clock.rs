//! When windows begin and end.
//!
//! Windows are aligned to multiples of their length in UTC. The wall clock can step, so it only *labels* windows;
//! the monotonic clock limits how long one is open:
//!
//! * it ends when the wall clock reaches its end (also by a step forward: what was skipped never happened, so
//!   nothing is missing), or when it has been open for its whole length by the monotonic clock (a step back);
//! * the next one gets the label of the wall clock, but never an earlier one than its predecessor. After a step
//!   back, labels hold still, as further parts of the same window, until the wall clock has caught up. So no two
//!   windows overlap, none is negative, and every packet is in exactly one.

use flowlog_host::clock::tick_ns;
use flowlog_model::{MonoNs, NS_PER_SEC, Now, WallNs};
use serde::{Deserialize, Serialize};

/// A window, open or closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// Label: aligned start, seconds since 1970.
    pub start_secs: i64,
    /// Label: end (exclusive), seconds since 1970.
    pub end_secs: i64,
    /// Tells parts of one window apart: the millisecond within the window at which the part began.
    pub sequence: u64,
    /// When it was opened.
    pub opened: Now,
    /// It does not begin at its start (agent started, previous part was flushed).
    pub begins_late: bool,
    /// It does not reach its end (agent stopped, clock stepped, memory cap).
    pub ends_early: bool,
    /// It was closed well after its end (the agent was stopped, or the machine suspended): it holds packets of later.
    pub ends_late: bool,
    /// Length of the kernel's timer tick, to which packets' times are true.
    #[serde(default)]
    pub tick_ns: u64,
}

impl Span {
    /// Wall-clock time of a packet, from the coarse clock that the hooks read.
    ///
    /// That clock shows the last whole tick of the timekeeper, and is brought forward by a timer interrupt that may come
    /// anywhere between two of them: it is behind by something between nothing and two ticks. So one is added, and the
    /// error is less than one, in either direction. It must not lead out of the window: no packet passed before that was
    /// opened, and none is moved past its end.
    #[inline]
    #[must_use]
    pub(crate) fn wall_of_tick(&self, mono: MonoNs) -> WallNs {
        let end = self.end_secs.saturating_mul(NS_PER_SEC);
        let coarse = self.wall(mono).0;
        let tick = i64::try_from(self.tick_ns).unwrap_or(0);
        let likely = if coarse < end { coarse.saturating_add(tick).min(end - 1) } else { coarse };
        WallNs(likely.max(self.opened.wall.0))
    }

    /// Wall-clock time of a monotonic instant, by the offset between the clocks when the window was opened.
    #[inline]
    #[must_use]
    pub fn wall(&self, mono: MonoNs) -> WallNs {
        WallNs(i64::try_from(mono.0).unwrap_or(i64::MAX).saturating_add(self.opened.wall_minus_mono()))
    }
}

/// Opens and closes the windows of one interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WindowClock {
    secs: i64,
    open: Span,
}

/// A window may begin this much after its label without being marked: the agent's timer is not exact.
const PUNCTUAL_NS: i64 = 2 * NS_PER_SEC;

impl WindowClock {
    /// Opens the first window. `window_secs` must have passed `rule::window_secs`.
    #[must_use]
    pub fn new(window_secs: u32, now: Now) -> Self {
        let secs = i64::from(window_secs);
        Self { secs, open: open(secs, None, now) }
    }

    /// Goes on with a window that an earlier agent had opened.
    #[must_use]
    pub(crate) fn resume(window_secs: u32, open: Span) -> Self {
        Self { secs: i64::from(window_secs), open }
    }

    /// The open window, if from its beginning on windows had another length.
    #[must_use]
    pub(crate) fn with_length(&self, window_secs: u32) -> Span {
        let secs = i64::from(window_secs);
        let Span { start_secs, sequence, opened, .. } = self.open;
        // After a step back of the wall clock labels hold, whatever their length.
        if secs == self.secs || opened.wall.secs() < start_secs {
            return self.open;
        }
        let other = open(secs, None, opened);
        // Another one may have been opened in the same millisecond: this one comes after it.
        Span { sequence: other.sequence.max(sequence), ..other }
    }

    #[must_use]
    pub fn current(&self) -> &Span {
        &self.open
    }

    /// Whether the open window must end.
    #[must_use]
    pub(crate) fn is_due(&self, now: Now) -> bool {
        let whole = u64::try_from(self.secs * NS_PER_SEC).unwrap_or(u64::MAX);
        now.wall.secs() >= self.open.end_secs || now.mono.0.saturating_sub(self.open.opened.mono.0) >= whole
    }

    /// How long until [`is_due`](Self::is_due), if the wall clock does not step.
    #[must_use]
    pub(crate) fn due_in_ns(&self, now: Now) -> u64 {
        let by_wall = (self.open.end_secs * NS_PER_SEC).saturating_sub(now.wall.0);
        let by_mono = self.secs * NS_PER_SEC
            - i64::try_from(now.mono.0.saturating_sub(self.open.opened.mono.0)).unwrap_or(i64::MAX);
        u64::try_from(by_wall.min(by_mono)).unwrap_or(0)
    }

    /// Ends the open window now and opens the next; returns the ended one.
    pub(crate) fn turn(&mut self, now: Now) -> Span {
        let mut closed = self.open;
        let shortfall = (closed.end_secs * NS_PER_SEC).saturating_sub(now.wall.0);
        // A step forward also cuts a window short, although the wall clock is past its end.
        let open_ns = i64::try_from(now.mono.0.saturating_sub(closed.opened.mono.0)).unwrap_or(i64::MAX);
        let owed_ns = (closed.end_secs * NS_PER_SEC).saturating_sub(closed.opened.wall.0);
        closed.ends_early = shortfall > 0 || open_ns < owed_ns.saturating_sub(PUNCTUAL_NS);
        // By the monotonic clock: a step forward makes no packet late.
        closed.ends_late = open_ns > owed_ns.saturating_add(PUNCTUAL_NS);
        self.open = open(self.secs, Some(&closed), now);
        closed
    }
}

fn open(secs: i64, previous: Option<&Span>, now: Now) -> Span {
    let aligned = now.wall.secs().div_euclid(secs) * secs;
    let start_secs = previous.map_or(aligned, |p| aligned.max(p.start_secs));
    let into_ns = now.wall.0.saturating_sub(start_secs * NS_PER_SEC);
    let punctual = previous.is_some_and(|p| p.start_secs < start_secs)
        && (0..=PUNCTUAL_NS.min(secs * NS_PER_SEC / 2)).contains(&into_ns);
    let millisecond = u64::try_from(into_ns / 1_000_000).unwrap_or(0);
    let sequence = match previous {
        _ if punctual => 0,
        Some(p) if p.start_secs == start_secs => millisecond.max(p.sequence + 1),
        _ => millisecond,
    };
    Span {
        start_secs,
        end_secs: start_secs + secs,
        sequence,
        opened: now,
        begins_late: !punctual,
        ends_early: false,
        ends_late: false,
        tick_ns: tick_ns(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: i64 = NS_PER_SEC;

    fn now(mono_secs: i64, wall_secs: i64) -> Now {
        Now { mono: MonoNs(u64::try_from(mono_secs * S).expect("positive")), wall: WallNs(wall_secs * S) }
    }

    /// Runs a fake clock from `wall`, one second a tick, with steps `(at tick, seconds)`; returns closed windows.
    fn simulate(window: u32, wall: i64, ticks: i64, steps: &[(i64, i64)]) -> Vec<Span> {
        let mut clock = WindowClock::new(window, now(1_000, wall));
        let mut offset = 0;
        let mut closed = Vec::new();
        for tick in 1..=ticks {
            offset += steps.iter().filter(|(at, _)| *at == tick).map(|(_, by)| by).sum::<i64>();
            let t = now(1_000 + tick, wall + tick + offset);
            if clock.is_due(t) {
                closed.push(clock.turn(t));
            }
        }
        closed.push(clock.turn(now(1_001 + ticks, wall + 1 + ticks + offset)));
        closed
    }

    #[test]
    fn windows_that_open_in_one_millisecond_are_told_apart_whatever_their_length_becomes() {
        let at = |ms: i64| {
            let ns = 1_000 * S + ms * 1_000_000;
            Now { mono: MonoNs(ns.unsigned_abs()), wall: WallNs(ns) }
        };
        let mut clock = WindowClock::new(2, at(0));
        let mut keys = vec![(clock.current().start_secs, clock.current().sequence)];
        for secs in [1, 2, 1, 1, 2, 2, 1] {
            clock.turn(at(1_608));
            clock = WindowClock::resume(secs, clock.with_length(secs));
            keys.push((clock.current().start_secs, clock.current().sequence));
        }
        let all = keys.len();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), all, "{keys:?}");
    }

    /// What must hold whatever the wall clock does.
    fn assert_sound(window: i64, ticks: i64, closed: &[Span]) {
        let mut open_ns = 0;
        for (i, w) in closed.iter().enumerate() {
            assert_eq!(w.start_secs.rem_euclid(window), 0, "aligned: {w:?}");
            assert_eq!(w.end_secs, w.start_secs + window);
            if let Some(next) = closed.get(i + 1) {
                assert!((next.start_secs, next.sequence) > (w.start_secs, w.sequence), "doubled: {w:?} {next:?}");
                open_ns += next.opened.mono.0 - w.opened.mono.0;
                assert!(next.opened.mono.0 - w.opened.mono.0 <= (window * S).unsigned_abs(), "too long: {w:?}");
            }
        }
        let last = closed.last().expect("at least one");
        open_ns += u64::try_from((1_001 + ticks) * S).expect("positive") - last.opened.mono.0;
        assert_eq!(open_ns, u64::try_from((ticks + 1) * S).expect("positive"), "every second is in one window");
    }

    #[test]
    fn times_of_packets_are_true_to_a_tick_and_within_their_window() {
        const TICK: i64 = 4_000_000;
        let mono = 1_000 * S;
        let wall = 1_700_000_000 * S + 2_345_678;
        let opened = Now { mono: MonoNs(mono.unsigned_abs()), wall: WallNs(wall) };
        let span = Span { tick_ns: TICK.unsigned_abs(), ..*WindowClock::new(1, opened).current() };
        for phase in [0, 1, 1_234_567, TICK - 1] {
            for after in (0..S - 2_345_678).step_by(777_777) {
                // The timer interrupt comes `phase` after the timekeeper's ticks, which are at multiples.
                let now = mono + after;
                let interrupt = (now - phase).div_euclid(TICK) * TICK + phase;
                let coarse = interrupt.div_euclid(TICK) * TICK;
                let told = span.wall_of_tick(MonoNs(coarse.unsigned_abs())).0;
                assert!((told - (wall + after)).abs() <= TICK, "{phase} {after} {told}");
                assert!(told >= span.opened.wall.0 && told < span.end_secs * S, "{phase} {after} {told}");
            }
        }
        // One that passed after the window's end, because that was turned late, is not moved back.
        let late = span.wall_of_tick(MonoNs((mono + 2 * S).unsigned_abs())).0;
        assert_eq!(late, wall + 2 * S);
    }

    #[test]
    fn windows_are_aligned_and_seamless() {
        let closed = simulate(60, 1_000_000_037, 600, &[]);
        assert_sound(60, 600, &closed);
        assert!(closed[0].begins_late && !closed[0].ends_early);
        assert_eq!(closed[0].sequence, 1_000_000_037 % 60 * 1_000, "milliseconds into its minute");
        for w in &closed[1..closed.len() - 1] {
            assert!(!w.begins_late && !w.ends_early && w.sequence == 0, "{w:?}");
        }
        assert!(closed.last().expect("last").ends_early);
    }

    #[test]
    fn steps_of_the_wall_clock_make_no_negative_double_or_missing_window() {
        for window in [10, 60, 600] {
            for by in [-7_200, -3_600, -601, -60, -31, -1, 1, 29, 61, 601, 3_600, 7_200] {
                for at in [1, 30, 59, 60, 61, 300] {
                    let closed = simulate(window, 1_700_000_000, 2_000, &[(at, by)]);
                    assert_sound(i64::from(window), 2_000, &closed);
                    let closed = simulate(window, 1_700_000_000, 2_000, &[(at, by), (at + 200, -by)]);
                    assert_sound(i64::from(window), 2_000, &closed);
                }
            }
        }
    }

    #[test]
    fn a_step_forward_ends_the_window_early_and_marks_it() {
        let closed = simulate(600, 1_700_000_400, 900, &[(100, 3_600)]);
        assert!(closed[0].ends_early, "{:?}", closed[0]);
        assert!(closed[1].begins_late, "{:?}", closed[1]);
        assert_eq!(closed[1].start_secs, closed[0].start_secs + 3_600);
    }

    #[test]
    fn after_a_step_back_the_label_holds_until_the_wall_clock_has_caught_up() {
        let closed = simulate(600, 1_700_000_400, 3_000, &[(100, -1_200)]);
        assert_eq!(closed[0].start_secs, closed[1].start_secs);
        assert!(closed[1].begins_late);
        assert!(closed.last().expect("last").start_secs > closed[0].start_secs, "caught up");
    }
}
