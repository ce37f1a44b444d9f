//! Showing those who look what the capture holds: emptying the caches of what they look at, and going through the open windows.

use std::{cmp::Reverse, collections::BinaryHeap};

use flowlog_model::{
    IfaceId, Now,
    live::{Batch, Begun, FlowLine, RECENT_MAX, RecentAsk, Verdict, What, filter::InterfaceFacts},
    sweep::{Cursor, Scope, Swept},
};

use crate::{
    books::Books,
    error::CaptureError,
    live::{
        LineNames, Waiting, earliest,
        line::{Place, Seen},
        tally::Tally,
        tap::Places,
    },
    source::Source,
    window::Ledger,
};

/// Blocks taken from the ring at once while the caches are emptied.
const BLOCKS_AT_ONCE: usize = 2_048;

/// Does what is due for those who look: tells the programs of whom they look at, empties the caches of that, and answers those who wait.
///
/// # Errors
/// If the journal cannot take what was in the caches. That caches cannot be emptied is said, and is no error: windows do not depend on it.
pub(super) fn look<S: Source>(books: &mut Books<S>, now: Now) -> Result<(), CaptureError> {
    if books.tap.due_in_ns(now) > 0 {
        return Ok(());
    }
    let waiting = books.tap.take_waiting(now);
    let places = books.tap.places(&books.ledger);
    let wanted = books.tap.live().wanted(places.iter().map(|(id, place)| (*id, place.account_id(), place.facts())));
    for id in books.tap.observed.symmetric_difference(&wanted) {
        books.source.set_observed(IfaceId(*id), wanted.contains(id));
    }
    books.tap.observed = wanted;
    if !books.tap.observed.is_empty() {
        empty_caches(books)?;
    }
    let flows = waiting.map_or(0, |one| begin(books, &places, one, now));
    books.tap.note_look(now, flows);
    Ok(())
}

/// Brings what the caches hold of observed interfaces into their windows.
fn empty_caches<S: Source>(books: &mut Books<S>) -> Result<(), CaptureError> {
    let mut at = Cursor::default();
    loop {
        let swept = match books.source.sweep(Scope::Observed, at) {
            Ok(swept) => swept,
            Err(error) => {
                tracing::warn!(%error, "cannot show what the caches hold");
                return Ok(());
            }
        };
        books.drain(BLOCKS_AT_ONCE);
        books.commit()?;
        match swept {
            Swept::Done => break,
            Swept::RingFull(cursor) => at = cursor,
        }
    }
    // The ring looks empty while another CPU is writing a record in front of ours.
    let end = books.source.produced();
    while books.source.position() < end {
        books.drain(BLOCKS_AT_ONCE);
        books.commit()?;
    }
    Ok(())
}

/// Answers one who waits, and lets its stream begin; returns how many flows it has gone through. If there is no room for a beginning, it
/// waits on.
fn begin<S: Source>(books: &Books<S>, places: &Places, one: Waiting, now: Now) -> u64 {
    let follows = match one.ask.what {
        What::Flows { follow, .. } => follow,
        What::Top { every, .. } => every.is_some(),
    };
    if follows && !books.tap.begin(one.number) {
        books.tap.put_back(one);
        return 0;
    }
    let Some(names) = &books.tap.names else { return 0 };
    let walk = Walk { ledger: &books.ledger, places, names, now };
    let since_secs = walk.since_secs(&one);
    let (begun, flows) = match one.ask.what {
        What::Flows { recent: Some(recent), .. } => (walk.flows(&one, recent), walk.len(&one)),
        What::Top { every: None, entries } => (walk.top(&one, entries), walk.len(&one)),
        _ => (Begun::default(), 0),
    };
    let unknown = walk.unknown(&one);
    // Whoever does not wait any more needs no answer.
    let _ = one.begun.send(Begun { since_secs, unknown, ..begun });
    flows
}

/// Going through the open windows, for one who waits.
struct Walk<'a> {
    ledger: &'a Ledger,
    places: &'a Places,
    names: &'a LineNames,
    now: Now,
}

impl Walk<'_> {
    /// Flows that are gone through for one who waits.
    fn len(&self, one: &Waiting) -> u64 {
        let seen = self.ledger.watched().filter(|(id, _)| self.places.get(&id.0).is_some_and(|p| one.takes(p)));
        seen.map(|(_, w)| w.open_table().flow_count() as u64).sum()
    }

    /// What is asked for by a name that nothing has that it may look at.
    fn unknown(&self, one: &Waiting) -> Vec<String> {
        let seen = self.places.values().filter(|p| one.ask.sight.sees(p.account_id()));
        let interfaces: Vec<InterfaceFacts> = seen.map(Place::facts).collect();
        one.ask.filter.unknown(&interfaces, &self.names.reasons)
    }

    /// Each flow that is asked for.
    fn each(&self, one: &Waiting, mut each: impl FnMut(&Seen, &Place, Option<&str>)) {
        for (id, watched) in self.ledger.watched() {
            let Some(place) = self.places.get(&id.0).filter(|p| one.takes(p)) else { continue };
            let table = watched.open_table();
            for number in table.numbers() {
                let Some((flow, is_lost)) = table.open_flow(number) else { continue };
                let verdict = match (is_lost, flow.refused) {
                    (true, _) => Verdict::Lost,
                    (false, true) => Verdict::Rejected,
                    (false, false) => Verdict::Accepted,
                };
                // Tables have taken back what was refused.
                let Some(seen) = Seen::of_flow(flow, verdict, false, place) else { continue };
                let reason = seen.reason(self.names);
                if one.ask.filter.takes(&seen.facts(place, reason.as_deref())) {
                    each(&seen, place, reason.as_deref());
                }
            }
        }
    }

    /// The latest flows, the oldest of them first.
    fn flows(&self, one: &Waiting, recent: RecentAsk) -> Begun {
        let earliest = earliest(&recent, self.now.mono);
        let most = recent.last.min(RECENT_MAX);
        let mut latest = BinaryHeap::<Reverse<(u64, usize)>>::new();
        let mut lines = Vec::<Option<FlowLine>>::new();
        let mut free = Vec::new();
        let mut left_out = 0;
        self.each(one, |seen, place, reason| {
            let last_ns = seen.flow.totals.last_ns;
            if last_ns < earliest || most == 0 {
                return;
            }
            if latest.len() == most {
                left_out += 1;
                match latest.peek() {
                    Some(Reverse((oldest, _))) if *oldest >= last_ns => return,
                    _ => free.extend(latest.pop().map(|Reverse((_, at))| at)),
                }
            }
            let line = Some(seen.line(place, reason.map(str::to_owned), self.names, self.now));
            let at = free.pop().unwrap_or(lines.len());
            if at == lines.len() {
                lines.push(line);
            } else {
                lines[at] = line;
            }
            latest.push(Reverse((last_ns, at)));
        });
        let in_order = latest.into_sorted_vec().into_iter().rev();
        let lines = in_order.filter_map(|Reverse((_, at))| lines[at].take()).collect();
        // Fewer than there are were asked for: nothing is missing.
        let left_out = if recent.last <= RECENT_MAX { 0 } else { left_out };
        Begun { batch: Some(Batch::Flows(lines)), left_out, ..Begun::default() }
    }

    /// Sums of all flows.
    fn top(&self, one: &Waiting, entries: usize) -> Begun {
        let mut tally = Tally::default();
        self.each(one, |seen, place, reason| tally.add(seen, place, reason));
        let interval_ms = self.since_secs(one).map_or(0, |since| self.now.wall.secs().saturating_sub(since));
        let interval_ms = u64::try_from(interval_ms).unwrap_or(0) * 1_000;
        let report = tally.report(entries, interval_ms, self.now);
        Begun { batch: Some(Batch::Top(Box::new(report))), ..Begun::default() }
    }

    /// Since when all open windows count that it may look at.
    fn since_secs(&self, one: &Waiting) -> Option<i64> {
        let seen = self.ledger.watched().filter(|(id, _)| self.places.get(&id.0).is_some_and(|p| one.takes(p)));
        seen.map(|(_, w)| w.clock.current().start_secs).max()
    }
}
