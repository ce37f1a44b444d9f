//! Does an attached hook run? An attach can succeed and the program never see a packet (another program in
//! front ends the processing, the driver by-passes the hook). The witness is the interface's own packet counter.

use flowlog_ebpf::abi::Truth;
use flowlog_model::{interface::Counters, rule::Direction, xdp::XdpMode};

use crate::{source::Node, window::ledger::Watched};

/// Packets an interface may count before a hook that has seen none is called dead: a few can pass between reading
/// the counter and the attach.
const PACKETS_UNSEEN_MAX: u64 = 16;

/// What is known about one hook.
#[derive(Clone, Debug)]
pub(crate) struct HookCheck {
    direction: Direction,
    before: Counters,
    state: State,
    /// It has been seen running before: the log says so once.
    ran: bool,
    /// The last look found packets that the hook had not counted.
    is_suspect: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// No packet yet, on either count.
    Waiting,
    /// It has counted packets.
    Runs,
    /// The interface has counted packets, the hook none.
    Dead,
}

impl HookCheck {
    /// `before` are the interface's counters from before the attach.
    #[must_use]
    pub(crate) fn new(direction: Direction, before: Counters) -> Self {
        Self { direction, before, state: State::Waiting, ran: false, is_suspect: false }
    }

    /// Whether there is nothing more to find out for now.
    #[must_use]
    pub(crate) fn is_settled(&self) -> bool {
        self.state != State::Waiting
    }

    /// Compares the hook's count of the open window with the interface's.
    pub(crate) fn look<N: Node>(&mut self, node: &N, w: &Watched, truth: &Truth) {
        let spec = &w.spec;
        let interface = spec.interface.as_str();
        let seen = truth.hook[self.direction.index()].seen.packets;
        let Ok(now) = node.counters(&spec.namespace(), spec.ifindex) else { return };
        let at = self.direction.index();
        let passed = now.packets[at].saturating_sub(self.before.packets[at]);
        let direction = self.direction;
        if seen > 0 {
            if !self.ran {
                tracing::info!(interface, %direction, seen, "hook runs");
            }
            self.state = State::Runs;
            self.ran = true;
            self.is_suspect = false;
        } else if passed > PACKETS_UNSEEN_MAX && !w.xdp.programs().iter().any(|p| p.mode == XdpMode::Driver) {
            // What a driver's program takes is in the interface's counters, sent back or received, and no hook's.
            // The hook's count was read before the interface's: what came in between is in its next one.
            if !std::mem::replace(&mut self.is_suspect, true) {
                return;
            }
            let in_front = node.hiding(spec).map(|found| found.front_words());
            tracing::warn!(interface, %direction, passed, in_front, "hook is attached but sees nothing: another program ends the chain before it");
            self.state = State::Dead;
        }
    }

    /// At the end of a window: was anything by-passed all the time?
    pub(crate) fn window_closed<N: Node>(&mut self, node: &N, w: &Watched, truth: &Truth) {
        if self.state == State::Waiting {
            self.look(node, w, truth);
        }
        if let Ok(now) = node.counters(&w.spec.namespace(), w.spec.ifindex) {
            self.before = now;
        }
        self.state = State::Waiting;
    }
}
