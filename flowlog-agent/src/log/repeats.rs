//! The same message, again and again: said a few times in a minute, and then counted. How many were left out is said when the minute is
//! over.
//!
//! Warnings and errors only: what is told as information happened, and each time is news. The same are messages of one place in the sources
//! with the same words, names and numbers; but how often something was tried is no news.

use std::{
    collections::HashMap,
    fmt::Debug,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::{LazyLock, Mutex, PoisonError},
};

use flowlog_host::clock;
use flowlog_model::MonoNs;
use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id, Record},
};
use tracing_subscriber::{Layer, layer::Context};

/// So often the same is said in a minute.
const SAID_MAX: u32 = 3;
/// How long it is counted what was said.
const MINUTE_NS: u64 = 60_000_000_000;
/// Messages that are told apart at most; more are said however often they come. Each takes 100 bytes or so.
const KNOWN_MAX: usize = 1_024;
/// As much of a message is told again: the rest was said.
const WORDS_CHARS_MAX: usize = 200;

/// Fields that count how often, or say when again.
const COUNTS: [&str; 4] = ["passed", "retry_in_ms", "times", "tries"];

static SAID: LazyLock<Mutex<Said>> = LazyLock::new(Mutex::default);

/// What was said in the last minute.
#[derive(Default)]
struct Said(HashMap<u64, Entry>);

struct Entry {
    since: MonoNs,
    times: u32,
    /// What it says, once some were left out.
    words: String,
}

impl Said {
    /// Whether a message is to be said.
    fn is_news(&mut self, key: u64, now: MonoNs, words: impl FnOnce() -> String) -> bool {
        if !self.0.contains_key(&key) && self.0.len() >= KNOWN_MAX {
            self.0.retain(|_, e| !e.is_over(now) || e.left_out() > 0);
            if self.0.len() >= KNOWN_MAX {
                return true;
            }
        }
        let entry = self.0.entry(key).or_insert(Entry { since: now, times: 0, words: String::new() });
        if entry.is_over(now) && entry.left_out() == 0 {
            *entry = Entry { since: now, times: 0, words: String::new() };
        }
        entry.times = entry.times.saturating_add(1);
        if entry.times == SAID_MAX + 1 {
            entry.words = words();
        }
        entry.times <= SAID_MAX
    }

    /// What was left out in minutes that are over, and what it said.
    fn take(&mut self, now: MonoNs) -> Vec<(u32, String)> {
        let over: Vec<u64> = self.0.iter().filter(|(_, e)| e.is_over(now)).map(|(key, _)| *key).collect();
        let entries = over.into_iter().filter_map(|key| self.0.remove(&key));
        entries.filter(|e| e.left_out() > 0).map(|e| (e.left_out(), e.words)).collect()
    }
}

impl Entry {
    fn is_over(&self, now: MonoNs) -> bool {
        now.0.saturating_sub(self.since.0) >= MINUTE_NS
    }

    fn left_out(&self) -> u32 {
        self.times.saturating_sub(SAID_MAX)
    }
}

/// Says how many messages were left out in minutes that are over. Called now and then.
pub(crate) fn tell() {
    // Not while it is locked: what is said here comes by again.
    let left_out = SAID.lock().unwrap_or_else(PoisonError::into_inner).take(clock::now().mono);
    for (times, words) in left_out {
        tracing::info!(times, words, "was said again in a minute, and left out");
    }
}

/// Hands the same message on a few times in a minute.
///
/// A layer around another, and no filter: a filter that says no to an event leaves its mark on the next one (tokio-rs/tracing, the
/// assertion in `FilterState::event_enabled`).
pub(super) struct Few<L>(pub L);

impl<S: Subscriber, L: Layer<S>> Layer<S> for Few<L> {
    fn on_layer(&mut self, subscriber: &mut S) {
        self.0.on_layer(subscriber);
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        if is_news(event) {
            self.0.on_event(event, context);
        }
    }

    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        self.0.on_new_span(attributes, id, context);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        self.0.on_record(id, values, context);
    }

    fn on_enter(&self, id: &Id, context: Context<'_, S>) {
        self.0.on_enter(id, context);
    }

    fn on_exit(&self, id: &Id, context: Context<'_, S>) {
        self.0.on_exit(id, context);
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        self.0.on_close(id, context);
    }
}

fn is_news(event: &Event<'_>) -> bool {
    if *event.metadata().level() > Level::WARN {
        return true;
    }
    let mut hash = DefaultHasher::new();
    event.metadata().callsite().hash(&mut hash);
    let mut names = Names(hash);
    event.record(&mut names);
    let words = || {
        let mut words = Words(String::new());
        event.record(&mut words);
        words.0.chars().take(WORDS_CHARS_MAX).collect()
    };
    SAID.lock().unwrap_or_else(PoisonError::into_inner).is_news(names.0.finish(), clock::now().mono, words)
}

/// What makes a message the same.
struct Names(DefaultHasher);

impl Visit for Names {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if !COUNTS.contains(&field.name()) {
            field.name().hash(&mut self.0);
            format!("{value:?}").hash(&mut self.0);
        }
    }
}

/// What a message says.
struct Words(String);

impl Visit for Words {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        use std::fmt::Write as _;
        // Writing to a String cannot fail.
        let _ = match field.name() {
            "message" => write!(self.0, "{value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_is_said_three_times_in_a_minute_and_what_was_left_out_is_told_when_it_is_over() {
        let mut said = Said::default();
        let at = |secs: u64| MonoNs(secs * 1_000_000_000);
        let mut says = |key, secs| said.is_news(key, at(secs), || format!("message {key}"));
        assert_eq!([says(1, 0), says(1, 1), says(1, 2), says(1, 3), says(1, 59)], [true, true, true, false, false]);
        assert!(says(2, 3), "another message");
        assert!(!says(1, 61), "nobody has told yet");
        assert_eq!(said.take(at(59)), []);
        assert_eq!(said.take(at(63)), [(3, "message 1".to_owned())]);
        assert!(said.0.is_empty());
        assert!(said.is_news(1, at(64), String::new));
    }

    #[test]
    fn what_is_remembered_is_bounded_and_nothing_is_held_back_for_it() {
        let mut said = Said::default();
        for key in 0..10_000 {
            assert!(said.is_news(key, MonoNs(0), String::new));
        }
        assert_eq!(said.0.len(), KNOWN_MAX);
        assert!((0..9).all(|_| said.is_news(9_999, MonoNs(1), String::new)));
        // Room again, when the minute is over.
        assert!(said.is_news(20_000, MonoNs(MINUTE_NS), String::new) && said.0.len() == 1);
    }
}
