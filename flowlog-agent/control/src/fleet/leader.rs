//! Of several servers one carries requests out. It holds a key with a lease; when it goes, another takes its place and goes on from the
//! store. Every step is compared with what it was planned from, so one that does not know yet that it has gone changes nothing twice.

use std::{sync::Arc, time::Duration};

use etcd_client::{Compare, CompareOp, PutOptions, Txn, TxnOp};

use tokio::sync::watch;

use super::claim::Lease;
use crate::{
    etcd::{
        Named,
        connection::{Etcd, EtcdError, in_time},
        keys,
    },
    flow_logs::worker::Worker,
};

/// How often it is tried to become it, and said that we still are.
const EVERY: Duration = Duration::from_secs(3);

/// Works whenever we are it, for ever. Who has not its own name could write nothing, and is not it.
pub(super) async fn lead(etcd: Arc<Etcd>, name: String, worker: Arc<Worker>, mut named: watch::Receiver<Named>) {
    loop {
        // Whoever says so lives as long as we do.
        drop(named.wait_for(|named| *named == Named::Ours).await);
        if let Err(error) = term(&etcd, &name, &worker, &mut named).await {
            tracing::debug!(%error, "requests are not carried out by this server");
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// Works as long as we are it; at once over if another is.
async fn term(
    etcd: &Etcd,
    name: &str,
    worker: &Arc<Worker>,
    named: &mut watch::Receiver<Named>,
) -> Result<(), EtcdError> {
    let mut client = etcd.client().await?;
    let mut lease = Lease::grant(etcd).await?;
    let id = lease.id;
    let key = etcd.key(keys::LEADER);
    let free = Compare::create_revision(key.clone(), CompareOp::Equal, 0);
    let put = TxnOp::put(key, name, Some(PutOptions::new().with_lease(id)));
    let taken = etcd.transact(Txn::new().when(vec![free]).and_then(vec![put])).await;
    if !taken.as_ref().is_ok_and(etcd_client::TxnResponse::succeeded) {
        // What may have been taken without our knowing goes with it.
        let _ = in_time(async { Ok(client.lease_revoke(id).await?) }).await;
        return taken.map(drop);
    }
    tracing::info!("this server carries requests out");
    let alive = async {
        loop {
            tokio::time::sleep(EVERY).await;
            if let Err(error) = lease.keep_alive().await {
                break error;
            }
        }
    };
    tokio::select! {
        error = alive => {
            tracing::warn!(%error, "this server carries no requests out any more");
            Err(error)
        }
        () = async { drop(named.wait_for(|named| *named != Named::Ours).await) } => {
            tracing::warn!("this server carries no requests out any more");
            in_time(async { Ok(client.lease_revoke(id).await?) }).await.map(drop)
        }
        () = worker.carry_out_for_ever() => Ok(()),
    }
}
