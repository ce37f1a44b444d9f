//! Of several servers one carries requests out. It holds a key with a lease; when it goes, another takes its place and goes on from the
//! store. Every step is compared with what it was planned from, so one that does not know yet that it has gone changes nothing twice.

use std::{sync::Arc, time::Duration};

use etcd_client::{Compare, CompareOp, PutOptions, Txn, TxnOp};

use super::publisher::{LEASE_SECS, keep_alive};
use crate::{
    etcd::{
        connection::{Etcd, EtcdError, in_time},
        keys,
    },
    flow_logs::worker::Worker,
};

/// How often it is tried to become it, and said that we still are.
const EVERY: Duration = Duration::from_secs(3);

/// Works whenever we are it, for ever.
pub(super) async fn lead(etcd: Arc<Etcd>, name: String, worker: Arc<Worker>) {
    loop {
        if let Err(error) = term(&etcd, &name, &worker).await {
            tracing::debug!(%error, "requests are not carried out by this server");
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// Works as long as we are it; at once over if another is.
async fn term(etcd: &Etcd, name: &str, worker: &Arc<Worker>) -> Result<(), EtcdError> {
    let mut client = etcd.client().await?;
    let lease = in_time(async { Ok(client.lease_grant(LEASE_SECS, None).await?) }).await?.id();
    let key = etcd.key(keys::LEADER);
    let free = Compare::create_revision(key.clone(), CompareOp::Equal, 0);
    let put = TxnOp::put(key, name, Some(PutOptions::new().with_lease(lease)));
    let taken = etcd.transact(Txn::new().when(vec![free]).and_then(vec![put])).await;
    if !taken.as_ref().is_ok_and(etcd_client::TxnResponse::succeeded) {
        // What may have been taken without our knowing goes with it.
        let _ = in_time(async { Ok(client.lease_revoke(lease).await?) }).await;
        return taken.map(drop);
    }
    tracing::info!("this server carries requests out");
    let (mut keeper, mut stream) = in_time(async { Ok(client.lease_keep_alive(lease).await?) }).await?;
    let alive = async {
        loop {
            tokio::time::sleep(EVERY).await;
            if let Err(error) = keep_alive(&mut keeper, &mut stream).await {
                break error;
            }
        }
    };
    tokio::select! {
        error = alive => {
            tracing::warn!(%error, "this server carries no requests out any more");
            Err(error)
        }
        () = worker.carry_out_for_ever() => Ok(()),
    }
}
