//! What the programs must know to tell packets apart: which interfaces are stacked on which, and whether packets may be numbered.

use flowlog_ebpf::abi;

use super::Capture;
use crate::{
    agent::{
        AgentError,
        wanted::{Found, Wanted},
    },
    netdev::{
        netns::Netns,
        traffic_control::{self, Users},
    },
};

impl Capture {
    /// Tells the programs which interfaces are stacked on which.
    pub(super) fn stack(&mut self, found: &Found) -> Result<(), AgentError> {
        let no_room = self.books.source.kernel.set_above(&found.stacked)?;
        if no_room > self.unstacked {
            tracing::warn!(
                pairs = no_room,
                max = abi::ABOVE_MAX,
                "too many interfaces are stacked on others: refusals behind some count as unknown"
            );
        }
        self.unstacked = no_room;
        Ok(())
    }

    /// [`abi::NO_NUMBERS`], while packets are not numbered.
    pub(super) fn no_numbers(&self) -> u16 {
        let reader = self.users.as_ref().is_some_and(|u| u.reader.is_some());
        if reader { abi::NO_NUMBERS } else { 0 }
    }

    /// Whether the hooks may number packets, and whether the numbers are there when packets die: it depends on who else
    /// uses the field.
    pub(super) fn number(&mut self, found: &Found) {
        let mut users = Users::default();
        let mut namespaces: Vec<&Netns> = Vec::new();
        for Wanted { dev, .. } in found.wanted.values() {
            if !namespaces.contains(&&dev.netns) {
                namespaces.push(&dev.netns);
            }
        }
        for netns in namespaces {
            let inside = found.wanted.values().filter(|w| w.dev.netns == *netns);
            let watched: Vec<u32> = inside.map(|w| w.dev.index).collect();
            match netns.enter(|| traffic_control::users(&watched)).flatten() {
                Ok(Users { reader, writer }) => {
                    users.reader = users.reader.or(reader);
                    users.writer = users.writer.or(writer);
                }
                Err(error) => tracing::warn!(%error, "cannot ask who uses skb->tc_index"),
            }
        }
        if self.users.as_ref() == Some(&users) {
            return;
        }
        let kernel = &self.books.source.kernel;
        kernel.set_numbers_missing(users.reader.is_some() || users.writer.is_some());
        let now = if users.reader.is_some() { abi::NO_NUMBERS } else { 0 };
        if self.no_numbers() != now {
            for (id, w) in self.books.ledger.watched() {
                let flags = kernel.flags(w.subject.ifindex) & !abi::NO_NUMBERS;
                kernel.set_flags(id, w.subject.ifindex, flags | now);
            }
        }
        match (&users.reader, &users.writer) {
            (Some((kind, index)), _) => tracing::warn!(
                kind,
                index,
                "this traffic control reads skb->tc_index: packets get no numbers, and more verdicts are unknown"
            ),
            (None, Some((kind, index))) => tracing::info!(
                kind,
                index,
                "a filter on the same hook takes the numbers of the packets it accepts: more verdicts are unknown"
            ),
            (None, None) if self.users.is_some() => tracing::info!("packets are numbered again"),
            (None, None) => {}
        }
        self.users = Some(users);
    }
}
