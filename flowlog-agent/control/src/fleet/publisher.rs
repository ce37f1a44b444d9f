//! Says what a node has and how it is doing: the one in a key that stays, the other in a key that goes with the node's lease.
#![allow(clippy::disallowed_methods, reason = "runtime timers only: how often something is told")]

use std::{sync::Arc, time::Duration};

use etcd_client::{PutOptions, TxnOp};
use flowlog_model::status::Status;
use tokio::{sync::watch, time::Instant};

use super::{
    claim::{Claim, Lease},
    said::{NodeResources, NodeStatus, Puzzles, sent},
};
use crate::{
    etcd::{connection::EtcdError, keys},
    inventory::load::Loaded,
};

/// How often it is heard of.
const ALIVE_EVERY: Duration = Duration::from_secs(4);
/// What is counted is told at least so often, if it has changed; what is not as it was, at once.
const COUNTS_EVERY: Duration = Duration::from_secs(60);
/// Least between two times that something is told.
const TOLD_EVERY: Duration = Duration::from_millis(500);
/// How often it is looked whether what was told is still there, and ours.
const CHECKED_EVERY: Duration = Duration::from_secs(12);
/// Pause before another try.
const AGAIN: Duration = Duration::from_secs(2);

/// See the module's head.
pub(super) struct Publisher {
    /// The node's id, which one agent has.
    pub claim: Claim,
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
        let mut lease = Lease::grant(&self.claim.etcd).await?;
        let mut told = Told::default();
        let mut alive = tokio::time::interval(ALIVE_EVERY);
        let mut tell = tokio::time::interval(TOLD_EVERY);
        let mut check = tokio::time::interval(CHECKED_EVERY);
        tell.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = alive.tick() => lease.keep_alive().await?,
                _ = tell.tick() => {
                    if !self.tell(&mut told, lease.id).await? {
                        told = Told::default();
                        tokio::time::sleep(AGAIN).await;
                    }
                }
                _ = check.tick() => {
                    if !self.claim.is_held(lease.id).await? {
                        told = Told::default();
                    }
                }
            }
        }
    }

    /// Tells what is new, unless another agent has the node's id; `false`: one has.
    async fn tell(&mut self, told: &mut Told, lease: i64) -> Result<bool, EtcdError> {
        let etcd = self.claim.etcd.clone();
        let mut parts = Vec::new();
        let resources = self.new_resources(told);
        let status = {
            let now = NodeStatus::of(&self.node, &self.status.borrow_and_update(), &self.not_understood.borrow());
            let now = NodeStatus { holder: Some(self.claim.who().clone()), ..now };
            let is_due = told.at.is_none_or(|at| at.elapsed() >= COUNTS_EVERY);
            // With what it has goes how that is doing, as that key says whose both are.
            let is_new = resources.is_some()
                || told.status.as_ref().is_none_or(|before| {
                    before.shape() != now.shape() || before.trouble != now.trouble || (is_due && *before != now)
                });
            is_new.then_some(now)
        };
        if let Some(status) = &status {
            let key = etcd.key(&keys::status(&self.node));
            if let Some(value) = sent(status) {
                parts.push(TxnOp::put(key, value, Some(PutOptions::new().with_lease(lease))));
            } else {
                tracing::error!("how this node is doing is too much for one value of etcd: not told");
            }
        }
        if let Some(value) = &resources {
            parts.push(TxnOp::put(etcd.key(&keys::resources(&self.node)), value.clone(), None));
        }
        if status.is_none() {
            return Ok(true);
        }
        if !self.claim.write(lease, parts).await? {
            return Ok(false);
        }
        if resources.is_some() {
            told.resources = resources;
        }
        if status.is_some() {
            (told.status, told.at) = (status, Some(Instant::now()));
        }
        Ok(true)
    }

    /// What the node has, if that has not been told.
    fn new_resources(&mut self, told: &Told) -> Option<Vec<u8>> {
        if told.resources.is_some() && !self.inventory.has_changed().unwrap_or(false) {
            return None;
        }
        let loaded = self.inventory.borrow_and_update().clone();
        let resources = loaded.inventory.resources.values().cloned().collect();
        let now = sent(&NodeResources { resources });
        if now.is_none() {
            tracing::error!("what this node has is too much for one value of etcd: not told");
        }
        now.filter(|now| told.resources.as_ref() != Some(now))
    }
}
