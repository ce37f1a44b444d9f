//! Nodes that only watch, for measuring what a thousand of them cost: each has a connection and a feed of its own, as a node has.
#![allow(clippy::disallowed_methods, reason = "it is for measuring")]

use std::time::Instant;

use tokio::sync::mpsc;

use crate::etcd::{
    EtcdOptions,
    connection::Etcd,
    feed::{Fed, Feed, News, Position},
    keys,
};

/// How far somebody is who has read all there is.
#[derive(Clone, Debug, Default)]
pub struct Rehearsed {
    /// Flow logs, and bytes of them.
    pub flow_logs: usize,
    pub bytes: usize,
    at: Position,
}

/// Reads all there is, as a node does that knows nothing.
///
/// # Errors
/// If it ends before that.
pub async fn read(options: EtcdOptions) -> Result<Rehearsed, String> {
    let (read, mut done) = mpsc::unbounded_channel();
    let feed = Feed::new(Etcd::new(options), keys::FLOW_LOGS, None).run(Reading { so_far: Rehearsed::default(), read });
    let task = tokio::spawn(feed);
    let read = done.recv().await.ok_or_else(|| "the feed has ended".to_owned());
    task.abort();
    read
}

/// Watches from there on, as a node does that was away for a moment; says of every change when it came. For ever.
pub async fn watch(options: EtcdOptions, from: Rehearsed, heard: mpsc::UnboundedSender<Instant>) {
    Feed::new(Etcd::new(options), keys::FLOW_LOGS, Some(from.at)).run(Hearing { heard }).await;
}

struct Reading {
    so_far: Rehearsed,
    read: mpsc::UnboundedSender<Rehearsed>,
}

impl Fed for Reading {
    fn take(&mut self, news: News) -> Result<(), String> {
        match news {
            News::Page(entries) => {
                self.so_far.flow_logs += entries.len();
                self.so_far.bytes += entries.iter().map(|e| e.value.len()).sum::<usize>();
            }
            News::End(at) => drop(self.read.send(Rehearsed { at, ..self.so_far.clone() })),
            News::Begin(_) | News::Changes(..) => {}
        }
        Ok(())
    }
}

struct Hearing {
    heard: mpsc::UnboundedSender<Instant>,
}

impl Fed for Hearing {
    fn take(&mut self, news: News) -> Result<(), String> {
        if let News::Changes(changes, _) = news
            && !changes.is_empty()
        {
            // Nobody listens at the end of a measurement.
            let _ = self.heard.send(Instant::now());
        }
        Ok(())
    }
}
