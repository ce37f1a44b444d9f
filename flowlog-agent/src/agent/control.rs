//! `flowlog control`: API and console for the nodes of a region, without a kernel, and so without root.

use std::sync::Arc;

use flowlog_control::{
    api::RefusedLogins,
    fleet::region::{self, RegionParts},
    metrics,
    serve::listen,
};
use flowlog_kernel::heap;
use tokio::sync::{mpsc, watch};

use super::{
    error::AgentError,
    managed::{Files, Probe},
    service::Service,
    signals::{Hangups, Stop},
};
use crate::config::Config;

/// Serves until SIGTERM or SIGINT. Nothing is lost with it: all that it knows is in etcd.
///
/// # Errors
/// If a file, an address or a certificate cannot be used.
pub(crate) async fn serve(config: Config) -> Result<(), AgentError> {
    let Config { node_id: name, s3, metrics, manage, .. } = config;
    let manage = manage.ok_or(AgentError::NoRegion)?;
    let etcd = manage.etcd.clone().ok_or(AgentError::NoRegion)?;
    let (mut stop, mut hangups, service) = (Stop::new()?, Hangups::new()?, Service::new());
    let (files, watching) = Files::open(&manage, None)?;
    let listening = listen(&manage.api)?;
    let figures = metrics.as_ref().map(metrics::listen).transpose()?;
    let again = watching.start()?;
    let (_s3, reached) = watch::channel(s3);
    let buckets = Files::buckets(Some(files.inventory.clone()), reached);
    let (_settings, settings) = watch::channel(manage.settings.clone());
    let Files { inventory, principals, .. } = files;
    let buckets = Arc::new(Probe(Arc::new(buckets)));
    let parts = RegionParts { etcd, name, inventory, principals, buckets, settings };
    let (control, worker) = region::plane(parts);
    let counted = worker.figures();
    let (_changes, changes) = mpsc::channel(1);
    let serving = async {
        service.serving();
        if let Err(error) = listening.run(Arc::new(control), heap::give_back, RefusedLogins::default(), changes).await {
            tracing::error!(%error, "the API is not served");
        }
    };
    let telling = async {
        match figures {
            Some(listener) => {
                if let Err(error) = listener.run_of_region(Arc::new(counted)).await {
                    tracing::error!(%error, "metrics are not served");
                }
            }
            None => std::future::pending().await,
        }
    };
    let reading = async {
        loop {
            hangups.next().await;
            // Without an answer nobody reads them any more, which is in the log.
            let _ = again.ask().await;
            tracing::info!("SIGHUP: inventory and principals were read again; anything else takes a restart");
        }
    };
    tokio::select! {
        () = stop.asked() => tracing::info!("stopping"),
        () = async { tokio::join!(worker.run(serving), telling); } => {}
        () = reading => {}
    }
    Ok(())
}
