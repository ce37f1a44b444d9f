//! A name that one process of a region has at a time: a node's id, a server's name. Whoever has it holds a key with its lease; another one of
//! that name writes nothing to etcd, says so, and takes the name over when the key is gone.
//!
//! ```text
//!   ours by lease --------------------------------------------> write
//!   no key -------------------------------------------> create it
//!   ours, of an earlier lease; of an earlier agent of
//!   this state directory; of a server that was beside
//!   us and is dead -----------------------------------> take it over
//!   anybody else's -----------------------------------> taken: nothing is written, asked again
//! ```
#![allow(clippy::disallowed_methods, reason = "runtime timers only: how long a name is another's")]

use std::{os::unix::fs::MetadataExt as _, sync::Arc, time::Duration};

use etcd_client::{Compare, CompareOp, KeyValue, LeaseKeepAliveStream, LeaseKeeper, Txn, TxnOp, TxnOpResponse};
use rustix::process::Pid;
use serde::{Deserialize, Serialize};
use tokio::{sync::watch, time::Instant};
use uuid::Uuid;

use crate::etcd::{
    Named,
    connection::{Etcd, EtcdError, in_time, unchanged},
};

/// How long somebody is taken to be there after they were heard of last.
pub(super) const LEASE_SECS: i64 = 15;
/// Who has held a name for so long while somebody else wanted it is alive: what somebody left who was killed is gone by then.
const ALIVE_AFTER: Duration = Duration::from_secs(20);

/// Where a process is, for others there: in one boot of one machine, and one namespace of processes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Beside {
    boot: String,
    pids: u64,
}

impl Beside {
    /// Where this one is; `None`: that cannot be read.
    fn here() -> Option<Self> {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?.trim().to_owned();
        Some(Self { boot, pids: std::fs::metadata("/proc/self/ns/pid").ok()?.ino() })
    }
}

/// Who has a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Holder {
    /// The process.
    pub run: Uuid,
    /// The state directory; `None`: it has none.
    pub instance: Option<Uuid>,
    pub host: String,
    pub pid: u32,
    /// Of whoever has no state directory.
    #[serde(default)]
    pub beside: Option<Beside>,
}

impl Holder {
    /// This process.
    pub(super) fn this(instance: Option<Uuid>) -> Self {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let beside = if instance.is_none() { Beside::here() } else { None };
        Self { run: Uuid::new_v4(), instance, host, pid: std::process::id(), beside }
    }

    /// Whether what `other` left is ours: an earlier agent of this state directory has ended, as two cannot have it.
    fn follows(&self, other: &Self) -> bool {
        self.instance.is_some() && (self.instance, &self.host) == (other.instance, &other.host) || self.sees_dead(other)
    }

    /// Whether `other` was here and is not any more.
    fn sees_dead(&self, other: &Self) -> bool {
        let pid = i32::try_from(other.pid).ok().and_then(Pid::from_raw);
        let is_gone = |pid| rustix::process::test_kill_process(pid) == Err(rustix::io::Errno::SRCH);
        self.beside.is_some() && self.beside == other.beside && pid.is_some_and(is_gone)
    }
}

/// See the module's head.
pub(super) struct Claim {
    pub etcd: Arc<Etcd>,
    /// Below the prefix.
    key: String,
    /// What the name is, for sentences: "agent with the `node_id` `n1`".
    what: String,
    who: Holder,
    /// Who has the name, from what its key holds.
    holder_of: fn(&[u8]) -> Option<Holder>,
    /// It was ours, and somebody has taken it who cannot be an agent that followed us.
    is_lost: bool,
    /// Since when it is somebody else's, and whose.
    taken: Option<(Instant, Option<Holder>)>,
    state: watch::Sender<Named>,
}

impl Claim {
    pub(super) fn new(
        etcd: Arc<Etcd>,
        key: String,
        what: String,
        who: Holder,
        holder_of: fn(&[u8]) -> Option<Holder>,
        state: watch::Sender<Named>,
    ) -> Self {
        Self { etcd, key, what, who, holder_of, is_lost: false, taken: None, state }
    }

    /// Its key, as etcd has it.
    pub(super) fn key(&self) -> String {
        self.etcd.key(&self.key)
    }

    pub(super) fn who(&self) -> &Holder {
        &self.who
    }

    /// Makes this transaction if the name is ours, or can be; whether it is. Its parts write our key with this lease.
    ///
    /// # Errors
    /// If etcd does not answer.
    pub(super) async fn write(&mut self, lease: i64, parts: Vec<TxnOp>) -> Result<bool, EtcdError> {
        let key = self.etcd.key(&self.key);
        let ours = Compare::lease(key.clone(), CompareOp::Equal, lease);
        let Some(found) = self.tried(ours, parts.clone()).await? else { return Ok(self.is_ours()) };
        let next = match &found {
            None => Compare::create_revision(key, CompareOp::Equal, 0),
            Some(kv) if self.may_take((self.holder_of)(kv.value()).as_ref()) => unchanged(&key, kv.mod_revision()),
            Some(kv) => {
                self.is_taken((self.holder_of)(kv.value()));
                return Ok(false);
            }
        };
        // Somebody may have been faster: it is tried again with what they have made of it.
        match self.tried(next, parts).await? {
            None => Ok(self.is_ours()),
            Some(_) => Ok(false),
        }
    }

    /// Whether it is still ours, by its lease; where it is not, whose it is comes out when it is written next.
    ///
    /// # Errors
    /// If etcd does not answer.
    pub(super) async fn is_held(&self, lease: i64) -> Result<bool, EtcdError> {
        let ours = Compare::lease(self.etcd.key(&self.key), CompareOp::Equal, lease);
        Ok(self.tried(ours, Vec::new()).await?.is_none())
    }

    /// Makes a transaction on a condition; else what our key holds.
    async fn tried(&self, when: Compare, parts: Vec<TxnOp>) -> Result<Option<Option<KeyValue>>, EtcdError> {
        let get = TxnOp::get(self.etcd.key(&self.key), None);
        let answer = self.etcd.transact(Txn::new().when(vec![when]).and_then(parts).or_else(vec![get])).await?;
        if answer.succeeded() {
            return Ok(None);
        }
        let found = answer.op_responses().into_iter().find_map(|op| match op {
            TxnOpResponse::Get(found) => Some(found),
            _ => None,
        });
        Ok(Some(found.and_then(|mut found| found.take_kvs().into_iter().next())))
    }

    fn may_take(&self, other: Option<&Holder>) -> bool {
        other.is_some_and(|other| other.run == self.who.run || (!self.is_lost && self.who.follows(other)))
    }

    fn is_ours(&mut self) -> bool {
        self.state.send_if_modified(|now| {
            let was = std::mem::replace(now, Named::Ours);
            if let Named::Taken(_) = was {
                tracing::info!("no other {} holds `{}` in etcd any more: it is this one's", self.what, self.key);
            }
            was != Named::Ours
        });
        (self.is_lost, self.taken) = (false, None);
        true
    }

    fn is_taken(&mut self, by: Option<Holder>) {
        self.is_lost |= *self.state.borrow() == Named::Ours;
        let since = match &self.taken {
            Some((since, before)) if *before == by => *since,
            _ => Instant::now(),
        };
        let is_alive = self.is_lost || since.elapsed() >= ALIVE_AFTER;
        let words = self.words(by.as_ref(), is_alive);
        self.taken = Some((since, by));
        self.state.send_if_modified(|now| {
            let next = Named::Taken(words);
            let is_new = *now != next;
            if let (true, Named::Taken(words)) = (is_new, &next) {
                if is_alive {
                    tracing::error!("{words}");
                } else {
                    tracing::warn!("{words}");
                }
            }
            *now = next;
            is_new
        });
    }

    fn words(&self, by: Option<&Holder>, is_alive: bool) -> String {
        let Self { what, key, .. } = self;
        let other = by.map_or_else(
            || "one of an earlier version".to_owned(),
            |Holder { host, pid, .. }| format!("process {pid} on host `{host}`"),
        );
        let who = format!("another {what} holds `{key}` in etcd, {other}");
        if is_alive {
            format!(
                "{who}, and is alive: give one of the two another `node_id`; until then this one writes nothing to etcd"
            )
        } else {
            format!(
                "{who}: if that has ended, its lease does in {LEASE_SECS} s; until then this one writes nothing to etcd"
            )
        }
    }
}

/// A lease that is kept alive.
pub(super) struct Lease {
    pub id: i64,
    keeper: LeaseKeeper,
    stream: LeaseKeepAliveStream,
}

impl Lease {
    pub(super) async fn grant(etcd: &Etcd) -> Result<Self, EtcdError> {
        let mut client = etcd.client().await?;
        let id = in_time(async { Ok(client.lease_grant(LEASE_SECS, None).await?) }).await?.id();
        let (keeper, stream) = in_time(async { Ok(client.lease_keep_alive(id).await?) }).await?;
        Ok(Self { id, keeper, stream })
    }

    /// Says once that we are there, and hears that the lease still is.
    pub(super) async fn keep_alive(&mut self) -> Result<(), EtcdError> {
        in_time(async {
            self.keeper.keep_alive().await?;
            match self.stream.message().await? {
                Some(answer) if answer.ttl() > 0 => Ok(()),
                _ => Err(EtcdError::Away("the lease is over".to_owned())),
            }
        })
        .await
    }
}
