//! What the programs must know to tell packets apart: which interfaces are stacked on which, and whether packets may be numbered.

use flowlog_ebpf::abi;
use flowlog_model::interface::NetDev;

use super::resolution::Resolution;
use crate::{
    books::Books,
    source::{Node, NumberUsers, SourceError},
};

/// What the programs have been told, and who else has a say in it.
#[derive(Default)]
pub(super) struct Numbering {
    /// Pairs of stacked interfaces that the programs have no room for.
    unstacked: usize,
    /// Who else uses `skb->tc_index`; `None`: nobody has looked yet.
    users: Option<NumberUsers>,
}

impl Numbering {
    /// Tells the programs which interfaces are stacked on which.
    pub(super) fn stack<N: Node>(&mut self, node: &mut N, found: &Resolution) -> Result<(), SourceError> {
        let no_room = node.set_stacked(&found.stacked)?;
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
        if self.reader().is_some() { abi::NO_NUMBERS } else { 0 }
    }

    /// Who else reads what packets would be numbered in: kind and interface.
    pub(super) fn reader(&self) -> Option<&(String, String)> {
        self.users.as_ref().and_then(|u| u.reader.as_ref())
    }

    /// Whether the hooks may number packets, and whether the numbers are there when packets die: it depends on who else
    /// uses the field.
    pub(super) fn number<N: Node>(&mut self, books: &mut Books<N>, found: &Resolution) {
        let devs: Vec<&NetDev> = found.wanted.values().map(|w| &w.dev).collect();
        let Books { source: node, ledger, .. } = books;
        let users = node.number_users(&devs);
        if self.users.as_ref() == Some(&users) {
            return;
        }
        let before = self.no_numbers();
        node.set_numbers_missing(users.reader.is_some() || users.writer.is_some());
        let now = if users.reader.is_some() { abi::NO_NUMBERS } else { 0 };
        if before != now {
            for (id, w) in ledger.watched() {
                let flags = node.flags(w.spec.key()) & !abi::NO_NUMBERS;
                node.set_flags(id, w.spec.key(), flags | now);
            }
        }
        match (&users.reader, &users.writer) {
            (Some((kind, on)), _) => tracing::warn!(
                kind,
                on,
                "this traffic control reads skb->tc_index: packets get no numbers, and more verdicts are unknown"
            ),
            (None, Some((kind, on))) => tracing::info!(
                kind,
                on,
                "a filter on the same hook takes the numbers of the packets it accepts: more verdicts are unknown"
            ),
            (None, None) if self.users.is_some() => tracing::info!("packets are numbered again"),
            (None, None) => {}
        }
        self.users = Some(users);
    }
}
