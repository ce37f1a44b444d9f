//! What is known about a window besides its flows.

use flowlog_model::{
    Labels,
    hiding::Hiding,
    rule::{Rule, Side},
};

use super::{Span, XdpWindow};

/// Everything an object says besides its rows.
#[derive(Clone, Debug)]
pub struct ObjectInfo {
    pub rule: Rule,
    /// Node it was captured on.
    pub node_id: String,
    /// Contract or account of the customer, if known.
    pub account_id: Option<String>,
    /// Id of the interface in the cloud's inventory; `NODE-INTERFACE` if there is none.
    pub interface_id: String,
    /// Which side of it was seen.
    pub side: Side,
    pub span: Span,
    /// The memory cap was reached, so the window comes in several objects.
    pub flushed_early: bool,
    /// It holds packets of an earlier window: refused, or recorded, only after that one was closed.
    pub late: bool,
    /// Packets may have passed uncounted, from and to (Unix seconds): the host went down, or hooks were gone.
    pub gap: Option<(i64, i64)>,
    /// Who else was at the hooks of the interface when the window was over.
    pub foreign: Foreign,
    /// What other people's XDP programs did.
    pub xdp: XdpWindow,
    /// Its rows have the other side of address translations.
    pub translations: bool,
    /// What its resource is known by.
    pub labels: Labels,
    /// What else may have kept packets from the hooks.
    pub hiding: Hiding,
}

/// Programs and filters of others at the hooks of an interface, in words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Foreign {
    /// On tc, by direction.
    pub tc: [Vec<String>; 2],
    /// On XDP.
    pub xdp: Vec<String>,
}

/// Packets may have passed uncounted: a mark of a window, and `skip_reason` of the row that says when.
pub(crate) const GAP: &str = "gap";

impl ObjectInfo {
    /// One of a window about which nothing is unusual, for tests and benchmarks of later stages.
    #[must_use]
    pub fn sample(rule: Rule, node_id: &str, interface_id: &str, span: Span) -> Self {
        Self {
            rule,
            node_id: node_id.to_owned(),
            account_id: None,
            interface_id: interface_id.to_owned(),
            side: Side::Host,
            span,
            flushed_early: false,
            late: false,
            gap: None,
            foreign: Foreign::default(),
            xdp: XdpWindow::default(),
            translations: false,
            labels: Labels::default(),
            hiding: Hiding::default(),
        }
    }

    /// What is unusual about the window, as in the column `window_marks`; `None` if it is whole.
    #[must_use]
    pub(crate) fn marks(&self) -> Option<String> {
        let marks = [
            (self.span.begins_late, "begins_late"),
            (self.span.ends_early, "ends_early"),
            (self.span.ends_late, "ends_late"),
            (self.flushed_early, "flushed_early"),
            (self.late, "late"),
            (self.gap.is_some(), GAP),
        ];
        let set: Vec<&str> = marks.iter().filter(|(on, _)| *on).map(|(_, name)| *name).collect();
        (!set.is_empty()).then(|| set.join(","))
    }
}

#[cfg(test)]
mod tests {
    use flowlog_model::{MonoNs, Now, WallNs};

    use super::*;
    use crate::window::WindowClock;

    #[test]
    fn everything_unusual_about_a_window_is_marked_and_a_whole_window_is_not() {
        let mut span = *WindowClock::new(60, Now { mono: MonoNs(0), wall: WallNs(0) }).current();
        span.begins_late = false;
        let whole = ObjectInfo::sample(Rule::sample(60), "n", "n-eth0", span);
        assert_eq!(whole.marks(), None);
        span.begins_late = true;
        span.ends_early = true;
        span.ends_late = true;
        let odd = ObjectInfo { span, flushed_early: true, late: true, gap: Some((1, 2)), ..whole };
        assert_eq!(odd.marks().as_deref(), Some("begins_late,ends_early,ends_late,flushed_early,late,gap"));
    }
}
