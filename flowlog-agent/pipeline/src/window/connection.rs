//! What a flow shows of its connection: who opened it, whether it began or ended in the window, how long its handshake took.
//! Pure. What the window does not show is `None`.

use flowlog_model::NS_PER_SEC;

use super::{
    Span,
    table::{Flow, Totals},
};

/// TCP's flags that end a connection (RFC 9293, section 3.1).
const FIN: u8 = 1 << 0;
const RST: u8 = 1 << 2;
const TCP: u8 = 6;

/// A flow without connections is over, or was not there before, after so long without a packet of either direction: the kernel's connection
/// tracking forgets a stream of UDP after the same time (`nf_conntrack_udp_timeout_stream`, `net/netfilter/nf_conntrack_proto_udp.c`).
pub(crate) const IDLE_SECS: u64 = 120;

/// See the columns of the same names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Connection {
    pub initiator: Option<bool>,
    pub state: Option<FlowState>,
    pub end: Option<EndCause>,
    pub rtt_us: Option<u32>,
}

/// Which part of a flow a row is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowState {
    /// It began in this window.
    Begin,
    /// Neither its beginning nor its end is in this window.
    Continue,
    /// It ended in this window.
    End,
    /// It began and ended in this window.
    Whole,
}

impl FlowState {
    /// In the order of [`NAMES`](Self::NAMES).
    const fn of(begins: bool, ends: bool) -> Self {
        match (begins, ends) {
            (true, false) => Self::Begin,
            (false, false) => Self::Continue,
            (false, true) => Self::End,
            (true, true) => Self::Whole,
        }
    }

    /// As in the column `flow_state`.
    pub(crate) const NAMES: [&str; 4] = ["begin", "continue", "end", "whole"];
}

/// How a flow's end showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndCause {
    /// One side has closed a TCP connection.
    Fin,
    /// One side has broken it off.
    Rst,
    /// No packet for [`IDLE_SECS`].
    Idle,
}

impl EndCause {
    /// As in the column `end_cause`.
    pub(crate) const NAMES: [&str; 3] = ["fin", "rst", "idle"];
}

/// When a window's packets were counted, monotonic ns.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stretch {
    from_ns: u64,
    /// `None`: it ended early, and what came later is in another object.
    to_ns: Option<u64>,
}

impl Stretch {
    /// Of a window.
    #[must_use]
    pub(crate) fn of(span: &Span, flushed_early: bool) -> Self {
        let open_for = span.end_secs.saturating_mul(NS_PER_SEC).saturating_sub(span.opened.wall.0);
        let to_ns = span.opened.mono.0.saturating_add_signed(open_for);
        Self { from_ns: span.opened.mono.0, to_ns: (!flushed_early && !span.ends_early).then_some(to_ns) }
    }
}

impl Connection {
    /// Of a flow and its other direction, if that was captured.
    #[must_use]
    pub(crate) fn of(flow: &Flow, twin: Option<&Flow>, stretch: Stretch) -> Self {
        if flow.proto != TCP {
            return Self::without_handshake(flow, twin, stretch);
        }
        let opener = |flow: &Flow| match (flow.totals.flags_unsure, flow.totals.handshake) {
            (false, h) if h.opens != h.answers => Some(h.opens),
            _ => None,
        };
        let mine = opener(flow);
        let theirs = twin.and_then(opener);
        let initiator = mine.or(theirs.map(|opens| !opens)).or_else(|| tracked(flow, twin));
        let Some(flags) = flow.tcp_flags().filter(|_| !flow.refused) else {
            return Self { initiator, ..Self::default() };
        };
        let both = flags | twin.and_then(Flow::tcp_flags).unwrap_or(0);
        let end = if both & RST != 0 { Some(EndCause::Rst) } else { (both & FIN != 0).then_some(EndCause::Fin) };
        let seen = |flow: &Flow| flow.totals.handshake.opens || flow.totals.handshake.answers;
        let begins = seen(flow) || twin.is_some_and(seen);
        let rtt_us = match (mine, theirs, twin) {
            (Some(opens), Some(other), Some(twin)) if opens != other => {
                let (syn, answer) = if opens { (flow, twin) } else { (twin, flow) };
                took(syn.totals.handshake.at_us, answer.totals.handshake.at_us)
            }
            _ => None,
        };
        Self { initiator, state: Some(FlowState::of(begins, end.is_some())), end, rtt_us }
    }

    /// Of a protocol that opens and closes nothing: by its pauses.
    fn without_handshake(flow: &Flow, twin: Option<&Flow>, stretch: Stretch) -> Self {
        if flow.refused {
            return Self { initiator: tracked(flow, twin), ..Self::default() };
        }
        let first_ns = twin.map_or(flow.totals.first_ns, |t| t.totals.first_ns.min(flow.totals.first_ns));
        let last_ns = twin.map_or(flow.totals.last_ns, |t| t.totals.last_ns.max(flow.totals.last_ns));
        let is_long = |ns: u64| ns >= IDLE_SECS * NS_PER_SEC.unsigned_abs();
        let begins = is_long(first_ns.saturating_sub(stretch.from_ns));
        let ends = stretch.to_ns.is_some_and(|to_ns| is_long(to_ns.saturating_sub(last_ns)));
        // Where neither shows, it may have been there before, or not.
        let state = (begins || ends).then(|| FlowState::of(begins, ends));
        Self { initiator: tracked(flow, twin), state, end: ends.then_some(EndCause::Idle), rtt_us: None }
    }
}

/// Whether the flow's source opened the connection, as connection tracking has it.
fn tracked(flow: &Flow, twin: Option<&Flow>) -> Option<bool> {
    let said = |flow: &Flow| {
        let Totals { is_original, is_reply, .. } = flow.totals;
        (is_original != is_reply).then_some(is_original)
    };
    said(flow).or_else(|| twin.and_then(said).map(|original| !original))
}

/// Microseconds between two times of which the upper bits are missing; `None`: the second was the earlier one.
fn took(from_us: u32, to_us: u32) -> Option<u32> {
    let took = to_us.wrapping_sub(from_us);
    (took <= u32::MAX / 2).then_some(took)
}

#[cfg(test)]
mod tests {
    use flowlog_ebpf::abi::handshake;
    use flowlog_model::{MonoNs, Now, WallNs, rule::Direction};

    use super::*;
    use crate::window::{Addresses, Handshake, WindowClock};

    const SEC: u64 = 1_000_000_000;
    const UDP: u8 = 17;

    fn flow(proto: u8, tcp_flags: u8, begins_with: u8, at_us: u32) -> Flow {
        let word = handshake(begins_with);
        let handshake =
            Handshake { opens: word == flowlog_ebpf::abi::OPENS, answers: word == flowlog_ebpf::abi::ANSWERS, at_us };
        let totals = Totals {
            first_ns: 200 * SEC,
            last_ns: 300 * SEC,
            packets: 3,
            bytes: 180,
            tcp_flags,
            handshake,
            ..Totals::default()
        };
        Flow {
            addresses: Addresses::V4(1, 2),
            sport: 40_000,
            dport: 443,
            vlan: 0,
            reason: 0,
            proto,
            direction: Direction::Ingress,
            refused: false,
            mark: 0,
            totals,
        }
    }

    fn stretch(from_secs: u64, to_secs: u64) -> Stretch {
        Stretch { from_ns: from_secs * SEC, to_ns: Some(to_secs * SEC) }
    }

    fn tcp(flags: u8, begins_with: u8, at_us: u32) -> Flow {
        flow(TCP, flags, begins_with, at_us)
    }

    #[test]
    fn every_way_a_tcp_connection_shows_says_who_opened_it_and_what_became_of_it() {
        use EndCause::{Fin, Rst};
        use FlowState::{Begin, Continue, End, Whole};
        let syn = |flags: u8| tcp(flags | 0x02, 0x02, 100);
        let answer = |flags: u8| tcp(flags | 0x12, 0x12, 350);
        let middle = |flags: u8| tcp(flags | 0x10, 0x10, 0);
        let cases = [
            // flow, its twin; who, state, cause, time
            (syn(0x10), Some(answer(0)), (Some(true), Some(Begin), None, Some(250))),
            (answer(0x01), Some(syn(0x11)), (Some(false), Some(Whole), Some(Fin), Some(250))),
            (syn(0), None, (Some(true), Some(Begin), None, None)),
            (answer(0), None, (Some(false), Some(Begin), None, None)),
            (syn(0), Some(tcp(0x14, 0x14, 0)), (Some(true), Some(Whole), Some(Rst), None)),
            (middle(0), Some(middle(0x01)), (None, Some(End), Some(Fin), None)),
            (middle(0x05), None, (None, Some(End), Some(Rst), None)),
            (middle(0), Some(middle(0)), (None, Some(Continue), None, None)),
            // The flow's own SYN was in the window before; its other direction tells.
            (middle(0), Some(answer(0)), (Some(true), Some(Begin), None, None)),
            (middle(0), Some(syn(0)), (Some(false), Some(Begin), None, None)),
            // Both opened (RFC 9293, figure 8): nobody answered.
            (syn(0), Some(syn(0)), (Some(true), Some(Begin), None, None)),
        ];
        for (number, (flow, twin, (initiator, state, end, rtt_us))) in cases.into_iter().enumerate() {
            let got = Connection::of(&flow, twin.as_ref(), stretch(0, 600));
            assert_eq!(got, Connection { initiator, state, end, rtt_us }, "case {number}");
        }
    }

    #[test]
    fn what_is_not_sure_says_nothing() {
        let mut unsure = tcp(0x12, 0x02, 100);
        unsure.totals.flags_unsure = true;
        assert_eq!(Connection::of(&unsure, None, stretch(0, 600)), Connection::default());
        let mut both = tcp(0x12, 0x02, 100);
        both.totals.handshake.answers = true;
        let twin = tcp(0x12, 0x12, 200);
        let got = Connection::of(&both, Some(&twin), stretch(0, 600));
        assert_eq!((got.initiator, got.rtt_us), (Some(true), None), "its twin says who, and nobody how long");
        let backwards = Connection::of(&tcp(0x02, 0x02, 300), Some(&tcp(0x12, 0x12, 200)), stretch(0, 600));
        assert_eq!(backwards.rtt_us, None);
        let wraps = Connection::of(&tcp(0x02, 0x02, u32::MAX - 5), Some(&tcp(0x12, 0x12, 4)), stretch(0, 600));
        assert_eq!(wraps.rtt_us, Some(10));
        let mut refused = tcp(0x02, 0x02, 0);
        refused.refused = true;
        let wanted = Connection { initiator: Some(true), ..Connection::default() };
        assert_eq!(Connection::of(&refused, None, stretch(0, 600)), wanted);
        let later_fragment = Flow { sport: 0, dport: 0, ..tcp(0, 0, 0) };
        assert_eq!(Connection::of(&later_fragment, None, stretch(0, 600)), Connection::default());
    }

    #[test]
    fn without_a_handshake_only_a_pause_shows_a_beginning_or_an_end() {
        use FlowState::{Begin, End, Whole};
        let udp = flow(UDP, 0, 0, 0);
        // Its packets passed from 200 s to 300 s.
        for (from_secs, to_secs, state) in [
            (80, 420, Some(Whole)),
            (81, 420, Some(End)),
            (80, 419, Some(Begin)),
            (81, 419, None),
            (200, 300, None),
            (250, 280, None),
        ] {
            let got = Connection::of(&udp, None, stretch(from_secs, to_secs));
            assert_eq!((got.state, got.initiator, got.rtt_us), (state, None, None), "{from_secs} to {to_secs}");
            assert_eq!(got.end.is_some(), matches!(state, Some(End | Whole)));
        }
        let mut twin = udp;
        twin.totals.first_ns = 190 * SEC;
        twin.totals.last_ns = 310 * SEC;
        assert_eq!(Connection::of(&udp, Some(&twin), stretch(80, 420)).state, None, "the other direction counts");
        let cut = Stretch { to_ns: None, ..stretch(80, 420) };
        assert_eq!(Connection::of(&udp, None, cut).state, Some(Begin), "its end is in another object");
    }

    #[test]
    fn connection_tracking_says_who_opened_where_no_handshake_does() {
        let said = |flow: Flow, original: bool, reply: bool| Flow {
            totals: Totals { is_original: original, is_reply: reply, ..flow.totals },
            ..flow
        };
        let udp = || flow(UDP, 0, 0, 0);
        let middle = || tcp(0x10, 0x10, 0);
        for (flow, twin, initiator) in [
            (said(udp(), true, false), None, Some(true)),
            (said(udp(), false, true), None, Some(false)),
            (udp(), Some(said(udp(), true, false)), Some(false)),
            (said(udp(), true, true), None, None),
            (said(middle(), false, true), None, Some(false)),
            // The packet itself is the better witness: tracking may have begun in the middle.
            (said(tcp(0x02, 0x02, 5), false, true), None, Some(true)),
            (middle(), Some(said(tcp(0x12, 0x12, 5), true, false)), Some(true)),
        ] {
            assert_eq!(Connection::of(&flow, twin.as_ref(), stretch(0, 600)).initiator, initiator, "{flow:?}");
        }
    }

    #[test]
    fn a_window_is_watched_from_its_opening_to_its_end_by_the_wall_clock() {
        let now = Now { mono: MonoNs(5 * SEC), wall: WallNs(630 * NS_PER_SEC) };
        let mut span = *WindowClock::new(60, now).current();
        let whole = Stretch::of(&span, false);
        assert_eq!((whole.from_ns, whole.to_ns), (5 * SEC, Some(35 * SEC)), "630 to 660");
        assert_eq!(Stretch::of(&span, true).to_ns, None);
        span.ends_early = true;
        assert_eq!(Stretch::of(&span, false).to_ns, None);
    }
}
