//! What may keep packets from the hooks: looking at it from time to time, saying once what has changed, and putting hooks in front again.
//!
//! Nobody tells of programs that are attached by links. What is found goes into the log, the status, and the object of the window in
//! which it was found. It is no event: a window that an agent makes of the journal of one that crashed does not have it.

use std::collections::{BTreeMap, BTreeSet};

use flowlog_model::{IfaceId, MonoNs, Now, WatchSpec, hiding::Hiding, rule::Direction};

use crate::{books::Books, source::Node};

/// So often somebody looks.
const LOOK_NS: u64 = 4_000_000_000;
/// Interfaces that are looked at in one go: each costs a few system calls. Of more, some at a time, in turns.
const LOOKED_AT_ONCE: usize = 64;
/// Times that a hook is put in front again. Whoever goes in front so often wants to be there, and would not give in.
const RESTORED_MAX: u32 = 10;

/// What is known of one interface.
#[derive(Default)]
struct Seen {
    now: Hiding,
    /// In the open window.
    window: Hiding,
    /// How often our hooks were put in front again, by direction.
    restored: [u32; 2],
}

/// See the module's head.
pub(super) struct Hidden {
    /// By interface id, as in records.
    seen: BTreeMap<String, Seen>,
    looked: MonoNs,
    /// The interface that was looked at last.
    last: IfaceId,
}

impl Hidden {
    pub(super) fn new(now: Now) -> Self {
        Self { seen: BTreeMap::new(), looked: now.mono, last: IfaceId(0) }
    }

    /// Whether it is time to look.
    pub(super) fn is_due(&self, now: Now) -> bool {
        now.mono.0.saturating_sub(self.looked.0) >= LOOK_NS
    }

    /// Looks at the next interfaces, of those that this process has hooked.
    pub(super) fn look<N: Node>(&mut self, books: &mut Books<N>, is_hooked: impl Fn(IfaceId) -> bool) {
        self.looked = books.source.now().mono;
        let hooked = books.ledger.watched().map(|(id, _)| id).filter(|id| is_hooked(*id));
        let mut ids: Vec<IfaceId> = hooked.collect();
        let captured: BTreeSet<&str> = books.ledger.watched().map(|(_, w)| w.spec.interface_id.as_str()).collect();
        self.seen.retain(|interface_id, _| captured.contains(interface_id.as_str()));
        ids.sort_by_key(|id| (*id <= self.last, *id));
        ids.truncate(LOOKED_AT_ONCE);
        self.look_at(books, &ids);
        self.last = ids.last().copied().unwrap_or(IfaceId(0));
    }

    /// Looks at these.
    pub(super) fn look_at<N: Node>(&mut self, books: &mut Books<N>, ids: &[IfaceId]) {
        let Books { source, ledger, .. } = books;
        for id in ids {
            let Some(w) = ledger.get(*id) else { continue };
            let Some(mut found) = source.hiding(&w.spec) else { continue };
            let seen = self.seen.entry(w.spec.interface_id.clone()).or_default();
            seen.window.add(&found);
            if found != seen.now {
                say(&w.spec, &seen.now, &found);
            }
            for direction in Direction::BOTH {
                let in_front = &mut found.in_front[direction.index()];
                let restored = &mut seen.restored[direction.index()];
                if !in_front.is_empty() && go_first(source, &w.spec, direction, restored) {
                    in_front.clear();
                }
            }
            seen.now = found;
        }
    }

    /// What there was in the window that ends.
    pub(super) fn turn(&mut self, interface_id: &str) -> Hiding {
        let Some(seen) = self.seen.get_mut(interface_id) else { return Hiding::default() };
        std::mem::replace(&mut seen.window, seen.now.clone())
    }

    /// What there is on an interface.
    pub(super) fn now(&self, interface_id: &str) -> Hiding {
        self.seen.get(interface_id).map(|seen| seen.now.clone()).unwrap_or_default()
    }
}

/// Puts a hook in front again, if that is wanted; whether it is there.
fn go_first<N: Node>(node: &mut N, spec: &WatchSpec, direction: Direction, restored: &mut u32) -> bool {
    if *restored == RESTORED_MAX {
        return false;
    }
    let interface = spec.interface.as_str();
    match node.go_first(spec, direction) {
        Ok(true) => {
            *restored += 1;
            tracing::info!(interface, %direction, "our hook is in front again");
            if *restored == RESTORED_MAX {
                tracing::warn!(interface, %direction, times = *restored, "others keep going in front: our hook gives way from now on");
            }
            true
        }
        Ok(false) => false,
        Err(error) => {
            tracing::warn!(interface, %direction, %error, "our hook stays behind others");
            *restored = RESTORED_MAX;
            false
        }
    }
}

/// Says what has changed on an interface.
fn say(spec: &WatchSpec, before: &Hiding, now: &Hiding) {
    let interface = spec.interface.as_str();
    let (was, programs) = (before.front_words(), now.front_words());
    if programs.is_empty() && !was.is_empty() {
        tracing::info!(interface, was, "nobody is in front of our hooks any more");
    } else if programs != was {
        tracing::warn!(
            interface,
            programs,
            was,
            "somebody else is in front of our hooks: what they take for themselves is in no flow"
        );
    }
    let (was, offload) = (before.offload_words(), now.offload_words());
    if offload.is_empty() && !was.is_empty() {
        tracing::info!(interface, was, "nothing is carried past our hooks any more");
    } else if offload != was {
        tracing::warn!(interface, offload, was, "packets may be carried past our hooks: they are in no flow");
    }
}
