//! What the programs must know to tell packets apart: which interfaces are stacked on which, and whether packets may be numbered.

use flowlog_ebpf::abi;
use flowlog_model::interface::NetDev;

use super::{Capture, resolution::Resolution};
use crate::{error::CaptureError, source::Node};

impl<N: Node> Capture<N> {
    /// Tells the programs which interfaces are stacked on which.
    pub(super) fn stack(&mut self, found: &Resolution) -> Result<(), CaptureError> {
        let no_room = self.books.source.set_stacked(&found.stacked)?;
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
    pub(super) fn number(&mut self, found: &Resolution) {
        let devs: Vec<&NetDev> = found.wanted.values().map(|w| &w.dev).collect();
        let users = self.books.source.number_users(&devs);
        if self.users.as_ref() == Some(&users) {
            return;
        }
        let before = self.no_numbers();
        let node = &mut self.books.source;
        node.set_numbers_missing(users.reader.is_some() || users.writer.is_some());
        let now = if users.reader.is_some() { abi::NO_NUMBERS } else { 0 };
        if before != now {
            for (id, w) in self.books.ledger.watched() {
                let flags = node.flags(w.spec.ifindex) & !abi::NO_NUMBERS;
                node.set_flags(id, w.spec.ifindex, flags | now);
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
