//! What every backend promises: the same tests for each of them.

use std::collections::BTreeSet;

use flowlog_model::FlowLogId;
use uuid::Uuid;

use super::{AUDIT_KEPT_MAX, AuditEntry, Change, FlowLogStoreError, SharedStore};
use crate::flow_logs::{
    Refused,
    editor::audit,
    flow_log::{FlowLog, State, tests::sample},
    request::{Progress, Request, Work},
};

/// A place that stores are opened at, one after the other or, where the backend allows it, several at a time.
pub(super) trait Opens {
    /// Opens what is there; of the audit log, so many entries are kept.
    async fn open_with(&self, audit_max: usize) -> SharedStore;

    /// Opens what is there.
    async fn open(&self) -> SharedStore {
        self.open_with(AUDIT_KEPT_MAX).await
    }
}

/// A flow log of a contract.
fn flow_log(n: u128, contract: &str, state: State) -> FlowLog {
    FlowLog { id: FlowLogId(Uuid::from_u128(n)), contract: contract.parse().expect("a contract"), state, ..sample() }
}

fn put(flow_log: &FlowLog, what: &str) -> Vec<Change> {
    vec![Change::Put(Box::new(flow_log.clone())), audit(&flow_log.created, flow_log, what)]
}

fn request(n: u128, progress: Progress) -> Request {
    let FlowLog { id, contract, created, .. } = sample();
    let message = String::new();
    let (work, ended) = (Work::Delete(id), Vec::new());
    Request { id: Uuid::from_u128(n), contract, work, progress, message, asked: created, number: 0, ended }
}

async fn words(store: &SharedStore, most: usize, contract: Option<&str>) -> Vec<String> {
    let contract = contract.map(|c| c.parse().expect("a contract"));
    let entries = store.audit(most, contract.as_ref()).await.expect("the audit log");
    entries.into_iter().map(|AuditEntry { what, .. }| what).collect()
}

/// All of them.
pub(super) async fn every_promise(place: &impl Opens) {
    what_is_written_is_there_when_it_is_opened_again(place).await;
    what_is_refused_leaves_nothing(place).await;
    the_audit_log_is_told_newest_first_and_by_contract(place).await;
    an_audit_log_that_is_full_forgets_the_oldest_of_whoever_has_the_most(place).await;
    what_many_change_at_once_is_changed_by_each(&[place.open().await]).await;
}

async fn what_is_written_is_there_when_it_is_opened_again(place: &impl Opens) {
    let store = place.open().await;
    assert!(store.lock().flow_logs().is_empty());
    let draft = flow_log(1, "1", State::Draft);
    store.write(|_| put(&draft, "draft added")).await.expect("a draft");
    let asked = [request(7, Progress::Queued), request(8, Progress::Done)];
    store.write(|_| asked.iter().map(|r| Change::Request(Box::new(r.clone()))).collect()).await.expect("requests");
    let active = flow_log(2, "1", State::Active);
    store.write(|_| vec![Change::Import(Box::new(active.clone()))]).await.expect("another store's");
    drop(store);
    let store = place.open().await;
    {
        let known = store.lock();
        assert_eq!(known.flow_logs().values().collect::<Vec<_>>(), [&draft, &active]);
        assert_eq!(known.requests().values().collect::<Vec<_>>(), [&asked[0], &asked[1]]);
        assert_eq!(known.open_requests().collect::<Vec<_>>(), [&asked[0]]);
        assert!(known.is_busy(draft.id) && !known.is_busy(active.id));
    }
    assert_eq!(words(&store, 9, None).await, ["draft added"]);
    store.write(|_| vec![Change::Remove(draft.id), Change::Forget(asked[0].id)]).await.expect("gone");
    drop(store);
    let store = place.open().await;
    let known = store.lock();
    assert_eq!((known.flow_logs().len(), known.requests().len(), known.open_requests().count()), (1, 1, 0));
}

async fn what_is_refused_leaves_nothing(place: &impl Opens) {
    let store = place.open().await;
    let before: Vec<FlowLog> = store.lock().flow_logs().values().cloned().collect();
    let audited = words(&store, 99, None).await;
    let good = flow_log(3, "1", State::Draft);
    let leap = flow_log(4, "1", State::Active);
    let both = || put(&good, "good").into_iter().chain(put(&leap, "leap")).collect();
    let refused = store.write(|_| both()).await;
    assert!(matches!(refused, Err(FlowLogStoreError::Leap { .. })), "{refused:?}");
    let refused = store.change::<()>(|_| Err(Refused::Conflict("no".to_owned()))).await;
    assert!(matches!(refused, Err(Refused::Conflict(_))));
    let moving = flow_log(5, "1", State::Provisioning);
    assert!(store.write(|_| vec![Change::Import(Box::new(moving.clone()))]).await.is_err(), "half of somebody's work");
    drop(store);
    let store = place.open().await;
    assert_eq!(store.lock().flow_logs().values().cloned().collect::<Vec<_>>(), before);
    assert_eq!(words(&store, 99, None).await, audited);
}

async fn the_audit_log_is_told_newest_first_and_by_contract(place: &impl Opens) {
    let store = place.open().await;
    for (n, contract) in [(10, "8"), (11, "9"), (12, "8")] {
        let draft = flow_log(n, contract, State::Draft);
        store.write(|_| put(&draft, &format!("number {n}"))).await.expect("a draft");
    }
    assert_eq!(words(&store, 2, None).await, ["number 12", "number 11"]);
    assert_eq!(words(&store, 9, Some("8")).await, ["number 12", "number 10"]);
    assert_eq!(words(&store, 1, Some("8")).await, ["number 12"]);
    assert!(words(&store, 9, Some("nobodys")).await.is_empty());
}

async fn an_audit_log_that_is_full_forgets_the_oldest_of_whoever_has_the_most(place: &impl Opens) {
    const KEPT: usize = 20;
    let store = place.open_with(KEPT).await;
    let mut others = words(&store, 99, None).await;
    let [quiet, loud, louder] = [(60, "61"), (61, "62"), (62, "62")].map(|(n, of)| flow_log(n, of, State::Draft));
    for n in 0..4 {
        store.write(|_| put(&quiet, &format!("quiet {n}"))).await.expect("a draft");
    }
    for n in 0..30 {
        // Several entries of one change as well.
        let both = [(&loud, "a"), (&louder, "b")];
        let twice = || both.iter().flat_map(|(of, which)| put(of, &format!("loud {n}{which}"))).collect();
        store.write(|_| twice()).await.expect("a draft");
    }
    drop(store);
    let store = place.open_with(KEPT).await;
    let all = words(&store, 99, None).await;
    assert_eq!(all.len(), KEPT, "{all:?}");
    assert_eq!(words(&store, 9, Some("61")).await, ["quiet 3", "quiet 2", "quiet 1", "quiet 0"]);
    let newest = (0..30).rev().flat_map(|n| [format!("loud {n}b"), format!("loud {n}a")]);
    let newest: BTreeSet<String> = newest.take(KEPT - 4 - others.len()).collect();
    assert_eq!(words(&store, 99, Some("62")).await.into_iter().collect::<BTreeSet<_>>(), newest);
    others.retain(|what| !all.contains(what));
    assert!(others.is_empty(), "a flood pushes out its own history, and no other's: {others:?}");
}

/// Each server has tasks that count one flow log's version up; every count is there in the end, and was given once.
pub(super) async fn what_many_change_at_once_is_changed_by_each(servers: &[SharedStore]) {
    const TASKS: u64 = 4;
    const CHANGES: u64 = 10;
    let counted = flow_log(20, "7", State::Draft);
    servers[0].write(|_| put(&counted, "to be counted")).await.expect("a draft");
    for server in servers {
        let mut changes = server.lock().changes();
        while !server.lock().flow_logs().contains_key(&counted.id) {
            changes.changed().await.expect("the store lives");
        }
    }
    let id = counted.id;
    let tasks = servers.iter().flat_map(|s| (0..TASKS).map(|_| s.clone())).map(|store| async move {
        let mut given = Vec::new();
        while given.len() < usize::try_from(CHANGES).expect("few") {
            let plan = |known: &super::FlowLogStore| {
                let mut next = known.flow_logs()[&id].clone();
                next.version += 1;
                Ok((next.version, vec![Change::Put(Box::new(next))]))
            };
            match store.change(plan).await {
                Ok(version) => given.push(version),
                Err(Refused::FlowLogStore(FlowLogStoreError::Contended)) => {}
                Err(error) => panic!("{error}"),
            }
        }
        given
    });
    let given: Vec<u64> = futures_util::future::join_all(tasks).await.into_iter().flatten().collect();
    let total = TASKS * CHANGES * servers.len() as u64;
    assert_eq!(given.iter().copied().collect::<BTreeSet<_>>(), (2..=total + 1).collect());
    // A server is told of the others' changes, and may be a little behind.
    for server in servers {
        let mut changes = server.lock().changes();
        while server.lock().flow_logs()[&id].version < total + 1 {
            changes.changed().await.expect("the store lives");
        }
        assert_eq!(server.lock().flow_logs()[&id].version, total + 1);
    }
}
