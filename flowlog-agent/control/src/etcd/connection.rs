//! A connection to etcd: one client for all, of one member. After a failure it is made again, of the next member, so that files that were
//! renewed are read, and a member that has gone is left. Every call has an end.
//!
//! All members at once are no good here: the client's balancer takes whichever is ready first, and one that has gone is ready to refuse at
//! once, before the others have said hello.

use std::{
    pin::Pin,
    sync::{
        Arc, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use etcd_client::{Client, Compare, Error, GetOptions, GetResponse, Txn, TxnResponse};
use tokio::sync::watch;
use uuid::Uuid;

use super::options::EtcdOptions;

/// How long one call may take: a member that does not answer in this time is left for another.
pub(crate) const ATTEMPT: Duration = Duration::from_secs(3);
/// Largest answer that is read: a page of the largest values that etcd keeps by default.
pub(crate) const ANSWER_BYTES_MAX: usize = 64 << 20;

/// What can go wrong.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum EtcdError {
    /// A file of ours cannot be used.
    #[error("{0}")]
    Options(String),
    /// It refuses: asking again is of no use. Nothing was changed.
    #[error("etcd refuses: {0}")]
    Refused(String),
    /// It does not answer, or has not said what became of it.
    #[error("etcd does not answer: {0}")]
    Away(String),
    /// What was asked for is no longer kept.
    #[error("etcd has compacted that revision")]
    Compacted,
    /// A revision that it has not come to: its history is another one.
    #[error("etcd has not come to that revision")]
    Future,
}

impl From<Error> for EtcdError {
    fn from(error: Error) -> Self {
        // Codes of gRPC, as numbers: 3 INVALID_ARGUMENT, 7 PERMISSION_DENIED, 8 RESOURCE_EXHAUSTED, 9 FAILED_PRECONDITION,
        // 11 OUT_OF_RANGE, 16 UNAUTHENTICATED. (Their type is of a package that nothing else here needs.)
        match error {
            Error::GRpcStatus(status) => {
                let words = status.message().to_owned();
                match i32::from(status.code()) {
                    11 if words.contains("compacted") => Self::Compacted,
                    11 if words.contains("future") => Self::Future,
                    3 | 7 | 8 | 9 | 11 | 16 => Self::Refused(words),
                    _ => Self::Away(words),
                }
            }
            Error::InvalidArgs(words) => Self::Options(words),
            other => Self::Away(causes(&other)),
        }
    }
}

/// An error with what is behind it: that a transport failed says nothing.
fn causes(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let more = cause.to_string();
        if !words.contains(&more) {
            words = format!("{words}: {more}");
        }
        next = cause.source();
    }
    words
}

/// How the connection is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum EtcdHealth {
    /// Nothing has been heard yet.
    #[default]
    Unknown,
    Fine,
    /// Why not, and since when, Unix seconds.
    Away {
        why: String,
        since_secs: i64,
    },
}

impl EtcdHealth {
    /// Why it does not answer, if it does not.
    #[must_use]
    pub fn words(&self) -> Option<String> {
        match self {
            Self::Unknown => Some("etcd has not been reached yet".to_owned()),
            Self::Fine => None,
            Self::Away { why, since_secs } => Some(format!(
                "{why} (for {} s)",
                flowlog_host::clock::now().wall.secs().saturating_sub(*since_secs).max(0)
            )),
        }
    }
}

/// See the module's head.
pub(crate) struct Etcd {
    options: EtcdOptions,
    client: std::sync::Mutex<Option<Client>>,
    /// Which member is next, counted on for ever.
    member: AtomicUsize,
    health: watch::Sender<EtcdHealth>,
}

impl Etcd {
    #[must_use]
    pub(crate) fn new(options: EtcdOptions) -> Arc<Self> {
        // Each begins somewhere else: members have as many of them.
        let first = usize::from(Uuid::new_v4().as_bytes()[0]);
        let (client, health) = Default::default();
        Arc::new(Self { options, client, member: AtomicUsize::new(first), health })
    }

    /// A key as etcd has it.
    pub(crate) fn key(&self, name: &str) -> String {
        format!("{}/{name}", self.options.prefix)
    }

    /// How it is doing, now and later.
    pub(crate) fn health(&self) -> watch::Receiver<EtcdHealth> {
        self.health.subscribe()
    }

    pub(super) fn is_fine(&self) {
        self.health.send_if_modified(|now| {
            let was = std::mem::replace(now, EtcdHealth::Fine);
            if let EtcdHealth::Away { .. } = was {
                tracing::info!("etcd answers again");
            }
            was != EtcdHealth::Fine
        });
    }

    pub(super) fn is_away(&self, error: &EtcdError) {
        let why = error.to_string();
        self.health.send_if_modified(|now| {
            if let EtcdHealth::Away { why: before, .. } = now {
                return std::mem::replace(before, why.clone()) != why;
            }
            tracing::error!("{why}; what is known of the flow logs holds meanwhile");
            let since_secs = flowlog_host::clock::now().wall.secs();
            *now = EtcdHealth::Away { why: why.clone(), since_secs };
            true
        });
    }

    /// The client; made, if there is none.
    ///
    /// # Errors
    /// If a file cannot be used, or the credentials are refused.
    pub(crate) async fn client(&self) -> Result<Client, EtcdError> {
        if let Some(client) = self.made().clone() {
            return Ok(client);
        }
        let options = self.options.connect_options()?;
        let members = &self.options.endpoints;
        let member = &members[self.member.load(Ordering::Relaxed) % members.len()];
        let connecting = Box::pin(Client::connect([member], Some(options)));
        let made = in_time(async { Ok(connecting.await?) }).await;
        match made {
            Ok(client) => {
                *self.made() = Some(client.clone());
                Ok(client)
            }
            Err(error) => {
                self.member.fetch_add(1, Ordering::Relaxed);
                Err(error)
            }
        }
    }

    fn made(&self) -> std::sync::MutexGuard<'_, Option<Client>> {
        self.client.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next call makes a new one, of the next member.
    pub(crate) fn forget(&self) {
        // Several may have met the same failure: they leave one member, not as many.
        if self.made().take().is_some() {
            self.member.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What is below a key, or at it.
    ///
    /// # Errors
    /// If there is no answer in time.
    pub(crate) async fn get(&self, key: &str, options: GetOptions) -> Result<GetResponse, EtcdError> {
        let mut client = self.client().await?.kv_client().max_decoding_message_size(ANSWER_BYTES_MAX);
        self.noted(in_time(async { Ok(client.get(key, Some(options)).await?) }).await)
    }

    /// One transaction, once.
    ///
    /// # Errors
    /// If there is no answer in time: it may have been made all the same.
    pub(crate) async fn transact(&self, transaction: Txn) -> Result<TxnResponse, EtcdError> {
        let mut client = self.client().await?;
        self.noted(in_time(async { Ok(client.txn(transaction).await?) }).await)
    }

    fn noted<T>(&self, result: Result<T, EtcdError>) -> Result<T, EtcdError> {
        match &result {
            Err(EtcdError::Away(_)) => self.forget(),
            Err(_) => {}
            Ok(_) => self.is_fine(),
        }
        result
    }
}

/// A call that is given up after a while. Those of the client are large: on the heap they make none of ours so.
pub(crate) fn in_time<'a, T: Send + 'a>(
    call: impl Future<Output = Result<T, EtcdError>> + Send + 'a,
) -> Pin<Box<dyn Future<Output = Result<T, EtcdError>> + Send + 'a>> {
    let call = Box::pin(call);
    Box::pin(async move {
        let answer = tokio::time::timeout(ATTEMPT, call).await;
        answer.unwrap_or_else(|_| Err(EtcdError::Away(format!("no answer in {} s", ATTEMPT.as_secs()))))
    })
}

/// That a key is as it was last changed; 0: that it is not there.
pub(crate) fn unchanged(key: &str, revision: i64) -> Compare {
    Compare::mod_revision(key, etcd_client::CompareOp::Equal, revision)
}
