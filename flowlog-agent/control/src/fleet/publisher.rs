//! Says what a node has and how it is doing: the one in a key that stays, the other in a key that goes with the node's lease.
#![allow(clippy::disallowed_methods, reason = "runtime timers only: how often something is told")]

use std::{sync::Arc, time::Duration};

use etcd_client::{LeaseKeepAliveStream, LeaseKeeper, PutOptions, Txn, TxnOp};
use flowlog_model::status::Status;
use tokio::{sync::watch, time::Instant};

use super::said::{NodeResources, NodeStatus, Puzzles, sent};
use crate::{
    etcd::{
        connection::{Etcd, EtcdError, in_time},
        keys,
    },
    inventory::load::Loaded,
};

/// How long a node is taken to be there after it was heard of last.
pub(super) const LEASE_SECS: i64 = 15;
/// How often it is heard of.
const ALIVE_EVERY: Duration = Duration::from_secs(4);
/// What is counted is told at least so often, if it has changed; what is not as it was, at once.
const COUNTS_EVERY: Duration = Duration::from_secs(60);
/// Least between two times that something is told.
const TOLD_EVERY: Duration = Duration::from_millis(500);
/// Pause before another try.
const AGAIN: Duration = Duration::from_secs(2);

/// See the module's head.
pub(super) struct Publisher {
    pub etcd: Arc<Etcd>,
    pub node: String,
    pub inventory: watch::Receiver<Arc<Loaded>>,
    pub status: watch::Receiver<Arc<Status>>,
    /// Flow logs that this node does not understand.
    pub not_understood: watch::Receiver<Puzzles>,
}

/// What was told last.
#[derive(Default)]
struct Told {
    resources: Option<Vec<u8>>,
    status: Option<NodeStatus>,
    at: Option<Instant>,
}

impl Publisher {
    /// For ever.
    pub(super) async fn run(mut self) {
        loop {
            let error = match self.while_leased().await {
                Err(error) => error,
                Ok(never) => match never {},
            };
            tracing::warn!("the region is not told how this node is doing: {error}");
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn while_leased(&mut self) -> Result<std::convert::Infallible, EtcdError> {
        let mut client = self.etcd.client().await?;
        let lease = in_time(async { Ok(client.lease_grant(LEASE_SECS, None).await?) }).await?.id();
        let (mut keeper, mut stream) = in_time(async { Ok(client.lease_keep_alive(lease).await?) }).await?;
        let mut told = Told::default();
        let mut alive = tokio::time::interval(ALIVE_EVERY);
        let mut tell = tokio::time::interval(TOLD_EVERY);
        tell.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = alive.tick() => keep_alive(&mut keeper, &mut stream).await?,
                _ = tell.tick() => self.tell(&mut told, lease).await?,
            }
        }
    }

    /// Tells what is new.
    async fn tell(&mut self, told: &mut Told, lease: i64) -> Result<(), EtcdError> {
        let mut parts = Vec::new();
        let status = {
            let now = NodeStatus::of(&self.node, &self.status.borrow_and_update(), &self.not_understood.borrow());
            let is_due = told.at.is_none_or(|at| at.elapsed() >= COUNTS_EVERY);
            let is_new = told.status.as_ref().is_none_or(|before| {
                before.shape() != now.shape() || before.trouble != now.trouble || (is_due && *before != now)
            });
            is_new.then_some(now)
        };
        if let Some(status) = &status {
            let key = self.etcd.key(&keys::status(&self.node));
            if let Some(value) = sent(status) {
                parts.push(TxnOp::put(key, value, Some(PutOptions::new().with_lease(lease))));
            } else {
                tracing::error!("how this node is doing is too much for one value of etcd: not told");
            }
        }
        let resources = (told.resources.is_none() || self.inventory.has_changed().unwrap_or(false)).then(|| {
            let loaded = self.inventory.borrow_and_update().clone();
            let resources = loaded.inventory.resources.values().cloned().collect();
            sent(&NodeResources { resources })
        });
        let resources = match resources {
            Some(None) => {
                tracing::error!("what this node has is too much for one value of etcd: not told");
                None
            }
            other => other.flatten().filter(|now| told.resources.as_ref() != Some(now)),
        };
        if let Some(value) = &resources {
            parts.push(TxnOp::put(self.etcd.key(&keys::resources(&self.node)), value.clone(), None));
        }
        if parts.is_empty() {
            return Ok(());
        }
        self.etcd.transact(Txn::new().and_then(parts)).await?;
        if resources.is_some() {
            told.resources = resources;
        }
        if status.is_some() {
            (told.status, told.at) = (status, Some(Instant::now()));
        }
        Ok(())
    }
}

/// Says once that we are there, and hears that the lease still is.
pub(super) async fn keep_alive(keeper: &mut LeaseKeeper, stream: &mut LeaseKeepAliveStream) -> Result<(), EtcdError> {
    in_time(async {
        keeper.keep_alive().await?;
        match stream.message().await? {
            Some(answer) if answer.ttl() > 0 => Ok(()),
            _ => Err(EtcdError::Away("the lease is over".to_owned())),
        }
    })
    .await
}
