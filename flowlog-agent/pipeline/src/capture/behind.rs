//! Which neighbours are behind which ports of bridges, and which devices are on top of which interfaces: when to look, and telling the
//! programs.

use flowlog_ebpf::abi;
use flowlog_model::{MonoNs, Now, WatchSpec, interface::OnTop};

use super::resolution::Resolution;
use crate::{
    books::Books,
    source::{Node, SourceError},
};

/// Looks come no faster than this: on a large network something changes all the time, and a look reads whole tables.
const PAUSE_NS: u64 = 100_000_000;

/// See the module's head.
pub(super) struct Behind {
    /// When the last look was.
    looked: MonoNs,
    /// Something may have changed since.
    is_expected: bool,
    /// Devices on top of watched interfaces.
    on_top: Vec<OnTop>,
    /// Neighbours that the programs have no room for.
    without_room: usize,
}

impl Default for Behind {
    fn default() -> Self {
        Self { looked: MonoNs(0), is_expected: true, on_top: Vec::new(), without_room: 0 }
    }
}

impl Behind {
    /// Interfaces have been looked at: this is on top of those that are watched.
    pub(super) fn stack(&mut self, found: &Resolution) {
        self.on_top.clone_from(&found.on_top);
        self.is_expected = true;
    }

    /// Something may have changed.
    pub(super) fn expect(&mut self) {
        self.is_expected = true;
    }

    /// Time until the next look.
    pub(super) fn look_in_ns(&self, now: Now) -> u64 {
        let since = now.mono.0.saturating_sub(self.looked.0);
        if self.is_expected { PAUSE_NS.saturating_sub(since) } else { u64::MAX }
    }

    /// Looks, if it is time to.
    pub(super) fn look<N: Node>(&mut self, books: &mut Books<N>, now: Now) -> Result<(), SourceError> {
        if self.look_in_ns(now) > 0 {
            return Ok(());
        }
        self.is_expected = false;
        self.looked = now.mono;
        let Books { source, ledger, .. } = books;
        let specs: Vec<WatchSpec> = ledger.watched().map(|(_, w)| w.spec.clone()).collect();
        let without_room = source.set_behind(&specs, &self.on_top)?;
        if without_room > self.without_room {
            let max = abi::BEHIND_MAX;
            tracing::warn!(
                neighbours = without_room,
                max,
                "too many neighbours are behind ports of bridges: what is refused on its way to some is not counted at their port"
            );
        }
        self.without_room = without_room;
        Ok(())
    }
}
