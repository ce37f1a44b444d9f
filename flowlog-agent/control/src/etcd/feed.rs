//! All of a prefix, then every change in order: one watch, for ever.
//!
//! ```text
//!          +---------- compacted, another history ----------+
//!          v                                                |
//!   LOAD (pages of one revision) -> Begin, Page…, End -> WATCH from the next revision -> Changes, …
//!          ^                                                |
//!          +---- broken: same history? from where it was <--+
//! ```
//!
//! Whoever is fed keeps what was said last while etcd is away, and may keep the [`Position`] with it: a feed that begins there says what has
//! changed since, or all of it again where that is not known any more.
//!
//! A cluster that was restored from a backup has another history, with revisions that were given out before. That is found out whenever a
//! watch begins: the revision has gone back, the cluster is another one, or the last change that was seen is not in it.
#![allow(clippy::disallowed_methods, reason = "runtime timers only: how long a watch may be silent")]

use std::{sync::Arc, time::Duration};

use etcd_client::{EventType, GetOptions, KeyValue, SortOrder, SortTarget, WatchOptions, WatchResponse};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::connection::{ANSWER_BYTES_MAX, Etcd, EtcdError, in_time};

/// Keys of one page.
const PAGE_KEYS: i64 = 500;
/// How often a watch is asked whether it is alive. A member that has lost the others says nothing by itself.
const ASKED_EVERY: Duration = Duration::from_secs(10);
/// How long it may be silent then.
const SILENT_MAX: Duration = Duration::from_secs(25);
/// Pauses before another try: short first, as a member that has gone leaves others.
const PAUSE_MIN: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// What etcd calls a watch that a message is of no one of: an answer to whoever asked for progress. Its revision may be ahead of changes
/// that are still to come (etcd-io/etcd#15220, in 3.4 until 3.4.25): it says that somebody is there, and no more.
const NO_WATCH: i64 = -1;

/// How far a feed has come, and how it is told whether that is the same history.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Position {
    pub cluster_id: u64,
    /// Everything up to this one is known; 0: nothing.
    pub revision: i64,
    /// The last change that was seen.
    pub seen: Option<Seen>,
}

/// A change that was seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Seen {
    key: String,
    revision: i64,
    digest: [u8; 32],
}

/// A key that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Below the prefix of all keys.
    pub name: String,
    pub value: Vec<u8>,
    /// When it was last changed.
    pub revision: i64,
}

/// A change of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum KeyChange {
    Put(Entry),
    Delete(String),
}

/// What a feed says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum News {
    /// All there is comes now, and nothing else holds. Why it is not only what has changed.
    Begin(&'static str),
    /// A part of it.
    Page(Vec<Entry>),
    /// That was all, as of this position.
    End(Position),
    /// What has changed, and up to where that is.
    Changes(Vec<KeyChange>, Position),
}

/// Who is fed.
pub(crate) trait Fed: Send {
    /// Takes the next. What cannot be kept is said again from where it was kept last.
    ///
    /// # Errors
    /// In words.
    fn take(&mut self, news: News) -> Result<(), String>;
}

/// See the module's head.
pub(crate) struct Feed {
    etcd: Arc<Etcd>,
    /// Below the prefix of all keys.
    below: &'static str,
    at: Position,
}

impl Feed {
    /// Feeds from a position on; without one, from the beginning.
    pub(crate) fn new(etcd: Arc<Etcd>, below: &'static str, at: Option<Position>) -> Self {
        Self { etcd, below, at: at.unwrap_or_default() }
    }

    /// For ever.
    pub(crate) async fn run(mut self, mut fed: impl Fed) {
        let mut pauses = Pauses::default();
        loop {
            let kept = self.at.clone();
            match self.follow(&mut fed).await {
                Ended::Anew(why) => {
                    tracing::warn!(prefix = self.below, "{why}: all of it is read again");
                    self.at = Position::default();
                }
                Ended::Broken(error) => {
                    self.etcd.forget();
                    self.etcd.is_away(&error);
                }
                Ended::NotKept(words) => {
                    tracing::error!("{words}; will try again");
                    self.at = Position::default();
                }
            }
            let pause = pauses.next(self.at != kept);
            tokio::time::sleep(pause).await;
        }
    }

    /// Loads if that is needed, and watches until something ends it.
    async fn follow(&mut self, fed: &mut impl Fed) -> Ended {
        if self.at.revision > 0 {
            match self.is_same_history().await {
                Ok(None) => {}
                Ok(Some(why)) => {
                    self.at = Position::default();
                    return match self.load(fed, why).await {
                        Ok(()) => self.watch(fed).await,
                        Err(ended) => ended,
                    };
                }
                Err(error) => return Ended::Broken(error),
            }
        } else if let Err(ended) = self.load(fed, "nothing was known").await {
            return ended;
        }
        self.watch(fed).await
    }

    /// Why what is known is not of this history; `None`: it is.
    async fn is_same_history(&self) -> Result<Option<&'static str>, EtcdError> {
        let Some(seen) = &self.at.seen else {
            // Nothing was ever there.
            let found = self.etcd.get(&self.etcd.key(self.below), GetOptions::new().with_keys_only()).await?;
            let now = found.header().map_or((0, 0), |h| (h.cluster_id(), h.revision()));
            return Ok((now.0 != self.at.cluster_id || now.1 < self.at.revision).then_some("etcd has another history"));
        };
        let key = self.etcd.key(&seen.key);
        let now = self.etcd.get(&key, GetOptions::new()).await?;
        let (cluster_id, revision) = now.header().map_or((0, 0), |h| (h.cluster_id(), h.revision()));
        if cluster_id != self.at.cluster_id {
            return Ok(Some("this is another etcd cluster"));
        }
        if revision < self.at.revision {
            return Ok(Some("etcd's revision has gone back: it was restored from a backup"));
        }
        let is_it = |kv: &KeyValue| kv.mod_revision() == seen.revision && digest(kv.value()) == seen.digest;
        if now.kvs().first().is_some_and(is_it) {
            return Ok(None);
        }
        match self.etcd.get(&key, GetOptions::new().with_revision(seen.revision)).await {
            Ok(then) if then.kvs().first().is_some_and(is_it) => Ok(None),
            Ok(_) | Err(EtcdError::Future) => Ok(Some("etcd has another history: it was restored from a backup")),
            Err(EtcdError::Compacted) => Ok(Some("etcd has compacted what is known")),
            Err(error) => Err(error),
        }
    }

    /// Says all there is, as of one revision.
    async fn load(&mut self, fed: &mut impl Fed, why: &'static str) -> Result<(), Ended> {
        let take = |fed: &mut dyn Fed, news| fed.take(news).map_err(Ended::NotKept);
        let prefix = self.etcd.key(self.below);
        let (mut from, end) = (prefix.clone(), end_of(&prefix));
        let mut at = Position::default();
        take(fed, News::Begin(why))?;
        loop {
            let options = GetOptions::new()
                .with_range(end.clone())
                .with_limit(PAGE_KEYS)
                .with_sort(SortTarget::Key, SortOrder::Ascend)
                .with_revision(at.revision);
            let mut page = match self.etcd.get(&from, options).await {
                Ok(page) => page,
                Err(EtcdError::Compacted) => return Err(Ended::Anew("etcd was compacted while it was read")),
                Err(error) => return Err(Ended::Broken(error)),
            };
            if at.revision == 0 {
                let header = page.header();
                at.revision = header.map_or(0, etcd_client::ResponseHeader::revision);
                at.cluster_id = header.map_or(0, etcd_client::ResponseHeader::cluster_id);
            }
            let more = page.more();
            let entries: Vec<Entry> = page.take_kvs().into_iter().filter_map(|kv| self.entry(kv)).collect();
            let last = entries.last().map(|e| self.etcd.key(&e.name));
            for entry in &entries {
                saw(&mut at, &entry.name, entry.revision, &entry.value);
            }
            take(fed, News::Page(entries))?;
            match last.filter(|_| more) {
                // The first key behind it.
                Some(last) => from = format!("{last}\0"),
                None => break,
            }
        }
        take(fed, News::End(at.clone()))?;
        self.at = at;
        self.etcd.is_fine();
        Ok(())
    }

    /// Says every change from the position on.
    async fn watch(&mut self, fed: &mut impl Fed) -> Ended {
        let options =
            WatchOptions::new().with_prefix().with_start_revision(self.at.revision + 1).with_progress_notify();
        let key = self.etcd.key(self.below);
        let begun = async {
            let mut client = self.etcd.client().await?.watch_client().max_decoding_message_size(ANSWER_BYTES_MAX);
            in_time(async { Ok(client.watch(key, Some(options)).await?) }).await
        };
        let mut stream = match begun.await {
            Ok(stream) => stream,
            Err(error) => return Ended::Broken(error),
        };
        let mut asked = tokio::time::interval(ASKED_EVERY);
        let mut heard = tokio::time::Instant::now();
        loop {
            tokio::select! {
                message = stream.message() => {
                    heard = tokio::time::Instant::now();
                    match message {
                        Ok(Some(message)) => {
                            if let Err(ended) = self.hear(&message, fed) {
                                return ended;
                            }
                        }
                        Ok(None) => return Ended::Broken(EtcdError::Away("the watch has ended".to_owned())),
                        Err(error) => return Ended::Broken(error.into()),
                    }
                }
                _ = asked.tick() => {
                    if heard.elapsed() > SILENT_MAX {
                        return Ended::Broken(EtcdError::Away("the watch is silent".to_owned()));
                    }
                    if let Err(error) = stream.request_progress().await {
                        return Ended::Broken(error.into());
                    }
                }
            }
        }
    }

    fn hear(&mut self, message: &WatchResponse, fed: &mut impl Fed) -> Result<(), Ended> {
        if message.compact_revision() > 0 {
            return Err(Ended::Anew("etcd has compacted what was to be watched"));
        }
        if message.canceled() {
            return Err(Ended::Broken(EtcdError::Away(message.cancel_reason().to_owned())));
        }
        self.etcd.is_fine();
        let Some(header) = message.header() else { return Ok(()) };
        if message.created() || message.watch_id() == NO_WATCH {
            return Ok(());
        }
        // The header's revision is ahead where more changes are still to come. Only where there are none it is how far this is.
        let said = message.events().iter().filter_map(etcd_client::Event::kv).map(KeyValue::mod_revision).max();
        let revision = said.unwrap_or_else(|| header.revision()).max(self.at.revision);
        let mut at = Position { revision, ..self.at.clone() };
        let mut changes = Vec::new();
        for event in message.events() {
            let Some(kv) = event.kv() else { continue };
            let Some(Entry { name, value, revision }) = self.entry(kv.clone()) else { continue };
            match event.event_type() {
                EventType::Put => {
                    saw(&mut at, &name, revision, &value);
                    changes.push(KeyChange::Put(Entry { name, value, revision }));
                }
                EventType::Delete => changes.push(KeyChange::Delete(name)),
            }
        }
        // Without changes it is a note that there are none up to here: that is worth keeping, so that a compaction is no loss.
        fed.take(News::Changes(changes, at.clone())).map_err(Ended::NotKept)?;
        self.at = at;
        Ok(())
    }

    fn entry(&self, kv: KeyValue) -> Option<Entry> {
        let revision = kv.mod_revision();
        let (key, value) = kv.into_key_value();
        let key = String::from_utf8(key).ok()?;
        let name = key.strip_prefix(&self.etcd.key(""))?.to_owned();
        Some(Entry { name, value, revision })
    }
}

/// Why a feed has to begin again.
enum Ended {
    /// From the beginning.
    Anew(&'static str),
    /// From where it was.
    Broken(EtcdError),
    /// Whoever is fed could not keep what was said.
    NotKept(String),
}

fn digest(value: &[u8]) -> [u8; 32] {
    Sha256::digest(value).into()
}

/// Keeps the newest change that was seen.
fn saw(at: &mut Position, name: &str, revision: i64, value: &[u8]) {
    if at.seen.as_ref().is_none_or(|s| s.revision <= revision) {
        at.seen = Some(Seen { key: name.to_owned(), revision, digest: digest(value) });
    }
}

/// The first key behind all that begin with this; prefixes end with a `/`.
fn end_of(prefix: &str) -> String {
    let mut end = prefix.to_owned();
    end.pop();
    end.push('0');
    end
}

/// Longer and longer ones while nothing comes, and none like those of others: a thousand nodes do not come back at once.
#[derive(Default)]
struct Pauses {
    tries: u32,
}

impl Pauses {
    fn next(&mut self, has_come_further: bool) -> Duration {
        self.tries = if has_come_further { 0 } else { self.tries + 1 };
        let longest = PAUSE_MIN.saturating_mul(1 << self.tries.min(8)).min(PAUSE_MAX);
        longest.mul_f64(0.5 + f64::from(random_byte()) / 512.0)
    }
}

fn random_byte() -> u8 {
    uuid::Uuid::new_v4().as_bytes()[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_limit_and_begin_anew_when_something_comes() {
        let mut pauses = Pauses::default();
        let all: Vec<Duration> = (0..20).map(|_| pauses.next(false)).collect();
        assert!(all.iter().all(|p| *p >= PAUSE_MIN / 2 && *p <= PAUSE_MAX), "{all:?}");
        assert!(all[19] >= PAUSE_MAX / 2);
        assert!(pauses.next(true) <= PAUSE_MIN);
    }

    #[test]
    fn the_end_of_a_prefix_is_behind_all_that_begin_with_it() {
        let end = end_of("/flowlog/v1/rules/");
        assert!(end.as_str() > "/flowlog/v1/rules/zzz\u{7f}" && end.as_str() < "/flowlog/v1/rulf");
    }
}
