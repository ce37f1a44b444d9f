//! The real kernel behind the books: programs, ring, hooks.

use flowlog_ebpf::abi::{self, Truth};

use super::{AgentError, books::Source};
use crate::{
    fault,
    kernel::{
        HookKind, Kernel, Ring,
        sweep::{Cursor, Scope, Swept},
    },
    netdev::NetDev,
    rule::{Action, Direction},
    types::{Epoch, IfaceId},
    window::Subject,
};

/// See the module's head.
pub struct Live {
    pub(super) kernel: Kernel,
    pub(super) ring: Ring,
}

/// Flags of an interface for the programs.
pub(super) fn flags(subject: &Subject, dev: &NetDev) -> u16 {
    let rule = &subject.rule;
    let want = |direction, hook, refused| {
        if !rule.directions.includes(subject.side.owners(direction)) {
            return 0;
        }
        // Accepted is seen less refused, so it needs both; for rejected alone packets are noted and not counted.
        if rule.action == Action::Rejected { refused } else { hook | refused }
    };
    let by_xdp = subject.hook == HookKind::Xdp && rule.action != Action::Rejected;
    want(Direction::Ingress, abi::WANT_INGRESS, abi::WANT_REFUSED_INGRESS)
        | want(Direction::Egress, abi::WANT_EGRESS, abi::WANT_REFUSED_EGRESS)
        | if by_xdp { abi::XDP_INGRESS } else { 0 }
        | if dev.link_header { 0 } else { abi::NO_LINK_HEADER }
        | if dev.bridge { abi::IS_BRIDGE } else { 0 }
}

/// Attaches what a rule needs; returns the directions whose packets are counted.
pub(super) fn attach(kernel: &mut Kernel, subject: &Subject, dev: &NetDev) -> Result<Vec<Direction>, AgentError> {
    let counts = subject.rule.action != Action::Rejected;
    let mut counted = Vec::new();
    for direction in Direction::BOTH {
        if !subject.rule.directions.includes(subject.side.owners(direction)) {
            continue;
        }
        // Where XDP counts, and where nothing is counted, a TC hook notes who the packets are.
        let kind = if subject.hook == HookKind::Xdp { HookKind::Tc } else { subject.hook };
        let hook = kernel.attach(dev, direction, kind)?;
        tracing::info!(interface = dev.name, %direction, %hook, "attached");
        if counts && subject.hook == HookKind::Xdp && direction == Direction::Ingress {
            let hook = kernel.attach(dev, direction, HookKind::Xdp)?;
            tracing::info!(interface = dev.name, %direction, %hook, "attached");
        }
        if counts {
            counted.push(direction);
        }
    }
    Ok(counted)
}

impl Live {
    /// Drops everything that is in the kernel.
    fn empty(&mut self) -> Result<(), AgentError> {
        if !self.kernel.is_pinned() {
            return Ok(());
        }
        self.kernel.unwatch_all();
        self.kernel.wait_for_programs();
        let (mut at, mut dropped) = (Cursor::default(), 0u64);
        loop {
            let swept = self.kernel.sweep(Scope::All, at)?;
            while self.ring.pop().is_some() {
                dropped += 1;
            }
            match swept {
                Swept::RingFull(cursor) => at = cursor,
                Swept::Done => break,
            }
        }
        self.kernel.clear_all_truth()?;
        if dropped > 0 {
            tracing::error!(
                records = dropped,
                "the pinned maps held records, but the state directory has no journal of them: dropped"
            );
        }
        Ok(())
    }
}

impl Source for Live {
    fn read(&mut self) -> Option<(&[u8], u64)> {
        self.ring.read()
    }

    fn position(&self) -> u64 {
        self.ring.position()
    }

    fn produced(&self) -> u64 {
        self.ring.produced()
    }

    fn release(&mut self, position: u64) {
        self.ring.release(position);
    }

    fn set_epoch(&mut self, id: IfaceId, ifindex: u32, epoch: Epoch) {
        self.kernel.set_epoch(id, ifindex, epoch);
    }

    fn set_oldest(&mut self, subject: &Subject, oldest: Epoch) {
        self.kernel.set_oldest(subject.ifindex, oldest);
    }

    fn wait_for_programs(&mut self) {
        self.kernel.wait_for_programs();
    }

    fn sweep(&mut self, scope: Scope, from: Cursor) -> Result<Swept, AgentError> {
        fault::point("sweep_begins");
        Ok(self.kernel.sweep(scope, from)?)
    }

    fn truth(&self, id: IfaceId, epoch: Epoch) -> Result<Truth, AgentError> {
        Ok(self.kernel.truth(id, epoch)?)
    }

    fn clear_truth(&mut self, id: IfaceId, epoch: Epoch) -> Result<(), AgentError> {
        Ok(self.kernel.clear_truth(id, epoch)?)
    }

    fn seek(&mut self, position: u64) -> bool {
        self.ring.seek(position)
    }

    fn forget(&mut self) -> Result<(), AgentError> {
        self.empty()
    }
}
