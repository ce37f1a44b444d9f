//! The flow logs of a region, in etcd: several servers change them, every node reads them.
//!
//! A change is one transaction that compares every key it writes with what it was planned from, and the keys of the contracts whose other
//! flow logs it was checked against: so of two servers one wins, and the other plans anew. What is known comes from the feed alone, also of
//! our own changes; who has made one waits until it has come by.
//!
//! A transaction without an answer is sent again as it is, with the same id: it compares the key of its writer as well, and so is made once at
//! most. That key then says whether it was made.
#![allow(clippy::disallowed_methods, reason = "runtime timers only: how long an answer is waited for")]

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use etcd_client::{Compare, GetOptions, SortOrder, SortTarget, Txn, TxnOp, TxnOpResponse, TxnResponse};
use serde::Serialize;
use tokio::{sync::watch, time::Instant};
use uuid::Uuid;

use super::{
    AUDIT_KEPT_MAX, AuditEntry, Backend, Change, CommitError, Committed, Compared, FlowLogStore, FlowLogStoreError,
    PARTS_MAX, SharedStore, audits,
    memory::{Told, ToldValue},
    understood::{NotUnderstood, forget_problem, stand_in, understood},
};
use crate::{
    etcd::{
        Named,
        connection::{Etcd, EtcdError, unchanged},
        feed::{Entry, Fed, Feed, KeyChange, News, Position},
        keys::{self, RuleKey},
    },
    flow_logs::{flow_log::FlowLog, shares::Shares},
    inventory::Contract,
};

/// How long an answer is waited for, over all tries.
const COMMIT_MAX: Duration = Duration::from_secs(10);
/// How long it is waited until a change has come by.
const TOLD_MAX: Duration = Duration::from_secs(5);
/// A server looks whether the audit log is full when it has written as much of it as this part of what is kept: until then there may be as
/// much more.
const LOOK_AFTER_PARTS: usize = 1_000;
/// Pause before a transaction is sent again.
const AGAIN: Duration = Duration::from_millis(200);

/// Who changes flow logs in etcd.
#[derive(Clone, Debug)]
pub(crate) struct Writer {
    /// No two that write at the same time have one name.
    pub name: String,
    /// Its plans look at other flow logs of a contract as well: those of API servers. A node looks at the one that it changes.
    pub plans_contracts: bool,
    /// Whether it is, here: else nothing is written.
    pub named: watch::Receiver<Named>,
}

/// See the module's head.
struct EtcdBackend {
    etcd: Arc<Etcd>,
    writer: Writer,
    /// When our key was last changed.
    last: Mutex<i64>,
    /// How far the feed is.
    told: watch::Receiver<i64>,
    audit_max: usize,
    /// Entries of the audit log that we have written since it was looked how many there are; at first more than any.
    unlooked: AtomicUsize,
}

/// Feeds a store for ever.
pub(crate) struct StoreFeed {
    feed: Feed,
    keeper: Keeper,
}

impl StoreFeed {
    pub(crate) async fn run(self) {
        self.feed.run(self.keeper).await;
    }

    /// Says when all there is has been read for the first time.
    pub(crate) fn told(&self) -> watch::Receiver<i64> {
        self.keeper.told.subscribe()
    }
}

/// The store of a region: empty until it is fed.
pub(crate) fn in_etcd(etcd: &Arc<Etcd>, writer: Writer) -> (SharedStore, StoreFeed) {
    in_etcd_with(etcd, writer, AUDIT_KEPT_MAX)
}

/// The same, with so many entries of the audit log.
fn in_etcd_with(etcd: &Arc<Etcd>, writer: Writer, audit_max: usize) -> (SharedStore, StoreFeed) {
    let (told, heard) = watch::channel(0);
    let backend = EtcdBackend::new(etcd, writer, heard, audit_max);
    let store = SharedStore::new(FlowLogStore::of(Arc::new(backend), BTreeMap::new(), BTreeMap::new()));
    let keeper = Keeper { store: store.clone(), loading: Vec::new(), told };
    (store, StoreFeed { feed: Feed::new(etcd.clone(), keys::RULES, None), keeper })
}

impl FlowLogStore {
    /// The store of a node: it holds what it is given, and changes what it carries out. `told` is how far whoever gives it has come.
    pub(crate) fn in_etcd(etcd: &Arc<Etcd>, writer: Writer, told: watch::Receiver<i64>) -> Self {
        let backend = EtcdBackend::new(etcd, writer, told, AUDIT_KEPT_MAX);
        Self::of(Arc::new(backend), BTreeMap::new(), BTreeMap::new())
    }

    /// Holds these from now on; whether that is anything else than before.
    pub(crate) fn hold(&mut self, own: Vec<Held>) -> bool {
        let told = |Held { flow_log, revision, not_understood }: Held| {
            let key = RuleKey::FlowLog { parent: flow_log.parent.id, id: flow_log.id };
            let of = Box::new(flow_log);
            match not_understood {
                None => Told { key, value: Some(ToldValue::FlowLog(of)), revision },
                Some(why) => {
                    let revision = why.revision;
                    Told {
                        key,
                        value: Some(ToldValue::NotUnderstood { instead: of, is_stand_in: false, why }),
                        revision,
                    }
                }
            }
        };
        let told: Vec<Told> = own.into_iter().map(told).collect();
        let is_new = self.differs(&told);
        if is_new {
            self.replace(told);
        }
        is_new
    }
}

/// A flow log that a node holds.
pub(crate) struct Held {
    /// As it was understood last.
    pub flow_log: FlowLog,
    /// When that was written.
    pub revision: i64,
    /// What has been written since, if that is not understood.
    pub not_understood: Option<NotUnderstood>,
}

/// Takes what the feed says over into memory.
struct Keeper {
    store: SharedStore,
    loading: Vec<Told>,
    told: watch::Sender<i64>,
}

impl Fed for Keeper {
    fn take(&mut self, news: News) -> Result<(), String> {
        match news {
            News::Begin(_) => self.loading.clear(),
            News::Page(entries) => self.loading.extend(entries.into_iter().filter_map(told)),
            News::End(Position { revision, .. }) => {
                self.store.lock().replace(std::mem::take(&mut self.loading));
                self.told.send_replace(revision);
            }
            News::Changes(changes, Position { revision, .. }) => {
                let changes: Vec<Told> = changes.into_iter().filter_map(changed).collect();
                if !changes.is_empty() {
                    self.store.lock().hear(changes);
                }
                self.told.send_replace(revision);
            }
        }
        Ok(())
    }
}

fn changed(change: KeyChange) -> Option<Told> {
    match change {
        KeyChange::Put(entry) => told(entry),
        KeyChange::Delete(name) => Some(Told { key: RuleKey::of(&name)?, value: None, revision: 0 }),
    }
}

/// What a key says.
fn told(Entry { name, value, revision }: Entry) -> Option<Told> {
    let key = RuleKey::of(&name)?;
    let value = match &key {
        RuleKey::FlowLog { parent, id } => match understood((*parent, *id), &value, revision) {
            Ok(flow_log) => ToldValue::FlowLog(Box::new(flow_log)),
            Err(why) => {
                tracing::error!("{}; what was understood last is shown", why.words());
                let instead = Box::new(stand_in((*parent, *id), &value));
                ToldValue::NotUnderstood { instead, is_stand_in: true, why }
            }
        },
        RuleKey::Request(_) => match serde_json::from_slice(&value) {
            Ok(request) => ToldValue::Request(request),
            Err(error) => {
                tracing::error!(%error, "`{name}` in etcd is not understood: the request is not carried out by this server");
                ToldValue::Mark
            }
        },
        RuleKey::Contract(_) => ToldValue::Mark,
    };
    Some(Told { key, value: Some(value), revision })
}

impl EtcdBackend {
    fn new(etcd: &Arc<Etcd>, writer: Writer, told: watch::Receiver<i64>, audit_max: usize) -> Self {
        let (etcd, last, unlooked) = (etcd.clone(), Mutex::new(0), AtomicUsize::new(audit_max));
        Self { etcd, writer, last, told, audit_max, unlooked }
    }

    fn last(&self) -> i64 {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_last(&self, revision: i64) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = revision;
    }

    /// What is to be written, as parts of a transaction.
    fn parts(&self, id: Uuid, changes: &[Change], compared: &Compared) -> Result<Vec<TxnOp>, FlowLogStoreError> {
        let put = |name: &str, value: &[u8]| TxnOp::put(self.etcd.key(name), value, None);
        let delete = |name: &str| TxnOp::delete(self.etcd.key(name), None);
        let mark = id.to_string();
        let mut parts = vec![put(&keys::writer(&self.writer.name), mark.as_bytes())];
        for (n, change) in changes.iter().enumerate() {
            parts.push(match change {
                Change::Put(f) | Change::Import(f) => {
                    let mut written = f.clone();
                    forget_problem(&mut written);
                    put(&RuleKey::FlowLog { parent: f.parent.id, id: f.id }.name(), &json(&written)?)
                }
                Change::Remove(id) => {
                    let is_it = |key: &&RuleKey| matches!(key, RuleKey::FlowLog { id: of, .. } if of == id);
                    // One that is not known is gone.
                    let Some(key) = compared.iter().map(|(key, _)| key).find(is_it) else { continue };
                    delete(&key.name())
                }
                Change::Request(r) => put(&RuleKey::Request(r.id).name(), &json(r)?),
                Change::Forget(id) => delete(&RuleKey::Request(*id).name()),
                Change::Audit(entry) => {
                    let at_ms = flowlog_host::clock::now().wall.0 / 1_000_000;
                    put(&keys::audit(&entry.contract, at_ms, id, n), &json(entry)?)
                }
            });
        }
        for (key, _) in compared.iter().filter(|(key, _)| matches!(key, RuleKey::Contract(_))) {
            parts.push(put(&key.name(), mark.as_bytes()));
        }
        if parts.len() > PARTS_MAX { Err(FlowLogStoreError::TooMany { parts: parts.len() }) } else { Ok(parts) }
    }

    /// Waits until the feed has come as far as this, for a while.
    async fn wait_for(&self, revision: i64) {
        let mut told = self.told.clone();
        let come = told.wait_for(|now| *now >= revision);
        if tokio::time::timeout(TOLD_MAX, come).await.is_err() {
            tracing::warn!("etcd's watch is behind: what is shown is older than what was changed");
        }
    }

    /// After so many new entries: forgets what is too much of the audit log, now and then. What fails is done with the next look.
    async fn look_after_audit_log(&self, written: usize) {
        let unlooked = self.unlooked.fetch_add(written, Ordering::Relaxed).saturating_add(written);
        if written == 0 || unlooked <= self.audit_max / LOOK_AFTER_PARTS {
            return;
        }
        self.unlooked.store(0, Ordering::Relaxed);
        if let Err(error) = self.forget_surplus().await {
            tracing::warn!(%error, "cannot see whether the audit log is full; it is looked again after some changes");
        }
    }

    /// Names alone are read, and those only where there are too many. Two servers at once forget the same.
    async fn forget_surplus(&self) -> Result<(), EtcdError> {
        let below = self.etcd.key(keys::AUDIT);
        let counted = self.etcd.get(&below, GetOptions::new().with_prefix().with_count_only()).await?;
        if usize::try_from(counted.count()).unwrap_or(0) <= self.audit_max {
            return Ok(());
        }
        let found = self.etcd.get(&below, GetOptions::new().with_prefix().with_keys_only()).await?;
        // Oldest first; those of one transaction in its order.
        let mut all: Vec<_> = found.kvs().iter().collect();
        all.sort_unstable_by_key(|kv| (kv.mod_revision(), kv.key()));
        let mut shares = Shares::default();
        for (number, kv) in (0..).zip(&all) {
            let name = kv.key().strip_prefix(below.as_bytes()).and_then(|name| std::str::from_utf8(name).ok());
            if let Some(contract) = name.and_then(|name| name.split_once('/')?.0.parse().ok()) {
                shares.push(&contract, number);
            }
        }
        let surplus = shares.forget_past(self.audit_max);
        let keys = surplus.iter().filter_map(|(_, number)| all.get(usize::try_from(*number).ok()?));
        let parts: Vec<TxnOp> = keys.map(|kv| TxnOp::delete(kv.key(), None)).collect();
        for some in parts.chunks(PARTS_MAX) {
            self.etcd.transact(Txn::new().and_then(some)).await?;
        }
        Ok(())
    }

    /// What an answer means: whether the transaction was made, now or when it was sent before.
    async fn settle(&self, id: Uuid, answer: &TxnResponse) -> Result<Committed, CommitError> {
        let revision = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
        if answer.succeeded() {
            self.set_last(revision);
            self.wait_for(revision).await;
            return Ok(Committed::Told);
        }
        let ours = answer.op_responses().into_iter().find_map(|op| match op {
            TxnOpResponse::Get(found) => Some(found),
            _ => None,
        });
        let ours = ours.as_ref().and_then(|found| found.kvs().first());
        self.set_last(ours.map_or(0, etcd_client::KeyValue::mod_revision));
        // Whatever was faster is to be known before anything is planned anew.
        self.wait_for_what_is_known(revision).await;
        match ours {
            Some(kv) if kv.value() == id.to_string().as_bytes() => Ok(Committed::Told),
            _ => Err(CommitError::Conflict),
        }
    }

    /// The revision of an answer counts changes of other prefixes as well, of which the feed says nothing: it is waited for as long as a
    /// change takes to come by, and no longer.
    async fn wait_for_what_is_known(&self, revision: i64) {
        const COMES_BY: Duration = Duration::from_millis(100);
        let mut told = self.told.clone();
        let _ = tokio::time::timeout(COMES_BY, told.wait_for(|now| *now >= revision)).await;
    }
}

#[async_trait]
impl Backend for EtcdBackend {
    async fn commit(&self, changes: &[Change], compared: Compared) -> Result<Committed, CommitError> {
        if let Some(words) = self.writer.named.borrow().words() {
            return Err(CommitError::Failed(FlowLogStoreError::Away(words)));
        }
        let compared: Compared = compared
            .into_iter()
            .filter(|(key, _)| self.writer.plans_contracts || !matches!(key, RuleKey::Contract(_)))
            .collect();
        let id = Uuid::new_v4();
        let parts = self.parts(id, changes, &compared).map_err(CommitError::Failed)?;
        let own = self.etcd.key(&keys::writer(&self.writer.name));
        let mut conditions: Vec<Compare> =
            compared.iter().map(|(key, revision)| unchanged(&self.etcd.key(&key.name()), *revision)).collect();
        conditions.push(unchanged(&own, self.last()));
        let transaction = Txn::new().when(conditions).and_then(parts).or_else(vec![TxnOp::get(own, None)]);
        let until = Instant::now() + COMMIT_MAX;
        // It was sent, and may have been made.
        let mut is_sent = false;
        loop {
            let words = match self.etcd.transact(transaction.clone()).await {
                Ok(answer) => {
                    let committed = self.settle(id, &answer).await?;
                    self.look_after_audit_log(audits(changes).count()).await;
                    return Ok(committed);
                }
                Err(EtcdError::Away(words)) => {
                    is_sent |= !is_before_it_was_sent(&words);
                    words
                }
                Err(error) if is_sent => error.to_string(),
                Err(error) => return Err(CommitError::Failed(FlowLogStoreError::Refused(error.to_string()))),
            };
            if Instant::now() + AGAIN >= until {
                let words = EtcdError::Away(words).to_string();
                let failed = if is_sent { FlowLogStoreError::Unknown(words) } else { FlowLogStoreError::Away(words) };
                return Err(CommitError::Failed(failed));
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn audit(&self, most: usize, contract: Option<&Contract>) -> Result<Vec<AuditEntry>, FlowLogStoreError> {
        let options = GetOptions::new()
            .with_prefix()
            .with_limit(i64::try_from(most).unwrap_or(i64::MAX))
            .with_sort(SortTarget::Mod, SortOrder::Descend);
        let found = self.etcd.get(&self.etcd.key(&keys::audits(contract)), options).await;
        let found = found.map_err(|e| FlowLogStoreError::Away(e.to_string()))?;
        Ok(found.kvs().iter().filter_map(|kv| serde_json::from_slice(kv.value()).ok()).collect())
    }
}

/// Nobody was there to take it: then nothing was changed.
fn is_before_it_was_sent(words: &str) -> bool {
    words.contains("Connection refused") || words.contains("tcp connect error")
}

fn json(value: &impl Serialize) -> Result<Vec<u8>, FlowLogStoreError> {
    serde_json::to_vec(value).map_err(|e| FlowLogStoreError::Refused(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::{
        super::suite::{Opens, every_promise, what_many_change_at_once_is_changed_by_each},
        *,
    };
    use crate::etcd::server::Server;

    async fn opened(server: &Server, name: &str, audit_max: usize) -> SharedStore {
        let (_, named) = watch::channel(Named::Ours);
        let writer = Writer { name: name.to_owned(), plans_contracts: true, named };
        let (store, feed) = in_etcd_with(&server.etcd(), writer, audit_max);
        let mut told = feed.told();
        tokio::spawn(feed.run());
        told.wait_for(|revision| *revision > 0).await.expect("it is read");
        store
    }

    impl Opens for Server {
        async fn open_with(&self, audit_max: usize) -> SharedStore {
            opened(self, "suite", audit_max).await
        }
    }

    #[tokio::test]
    async fn etcd_keeps_every_promise_of_a_store() {
        every_promise(&Server::start().await).await;
    }

    #[tokio::test]
    async fn of_two_servers_that_change_the_same_both_never_win() {
        let server = Server::start().await;
        let servers = [opened(&server, "a", AUDIT_KEPT_MAX).await, opened(&server, "b", AUDIT_KEPT_MAX).await];
        what_many_change_at_once_is_changed_by_each(&servers).await;
    }
}
