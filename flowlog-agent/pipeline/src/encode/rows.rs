//! Building the columns of an object.

use flowlog_model::{
    MonoNs, NS_PER_SEC,
    rule::{Action, Direction},
};

pub use super::order::{CHOSEN, Order};
use super::{
    Names, ObjectInfo, RowCounts,
    address::RowAddress,
    labels::{Label, Labels, NULL},
    numbers::Numbers,
    order::by_service,
    schema::{self, ColumnId},
    sparse::{ConnectionColumns, LostColumns, OtherSideColumns, RuleColumns},
    values::{Column, Found, Known},
};
use crate::window::{
    Addresses, Balance, Connection, Flow, FlowTable, Loss, LossReason, Lost, OtherSide, Settled,
    connection::Stretch,
    info::GAP,
    xdp::{XDP_DROPPED, XDP_FORWARDED},
};

/// The rows a rule wants of a window.
pub struct Rows<'a> {
    /// All flows of the window.
    pub(super) table: &'a FlowTable,
    /// Numbers of the flows with the wanted verdict.
    flows: Vec<u32>,
    /// The books of the whole window, before the rule's choice.
    pub balance: Balance,
    losses: Vec<Loss>,
    /// Packets that only somebody else's XDP program has seen.
    xdp: Vec<Xdp>,
    /// Whether there is a row for a gap.
    gap: bool,
    counts: RowCounts,
    /// Flows whose other side is known, and those of several connections with different ones.
    pub(super) translated: (usize, usize),
}

impl<'a> Rows<'a> {
    /// Keeps what the rule wants, in the order it is written in. A direction that it does not want was counted only if the rule before it did:
    /// for the moment until the programs are told.
    #[must_use]
    pub fn select(info: &ObjectInfo, settled: &'a Settled, order: Order) -> Self {
        let Settled { table, losses, balance, short: _ } = settled;
        let mut losses = losses.clone();
        let wanted = |refused: bool| match info.rule.action {
            Action::Any => true,
            Action::Accepted => !refused,
            Action::Rejected => refused,
        };
        let goes = |direction: Direction| info.rule.directions.includes(info.side.owners(direction));
        // Packets of unknown verdict are reported to rules that want one action only as well.
        losses.retain(|l| goes(l.direction) && (wanted(l.refused) || l.reason == LossReason::VerdictUnknown));
        let xdp: Vec<Xdp> = Xdp::of(info).filter(|x| wanted(x.refused)).collect();
        let mut counts = RowCounts { skipped: losses.len() + xdp.len(), ..RowCounts::default() };
        let mut translated = (0, 0);
        let mut keyed = Vec::with_capacity(table.flow_count());
        for number in table.numbers() {
            let Some(flow) = table.flow(number).filter(|f| goes(f.direction) && wanted(f.refused)) else { continue };
            *(if flow.refused { &mut counts.rejected } else { &mut counts.accepted }) += 1;
            match table.other_side(&flow) {
                Some(OtherSide::Is(..)) => translated.0 += 1,
                Some(OtherSide::Several) => translated.1 += 1,
                None => {}
            }
            let key = if order == Order::Start { flow.totals.first_ns } else { by_service(&flow) };
            keyed.push((key, number));
        }
        keyed.sort_unstable();
        let flows = keyed.into_iter().map(|(_, number)| number).collect();
        counts.skipped += usize::from(info.gap.is_some());
        Self { table, flows, balance: *balance, losses, xdp, gap: info.gap.is_some(), counts, translated }
    }

    /// Whether there is nothing but, perhaps, a NODATA row.
    #[must_use]
    pub(crate) fn is_empty(&self) -> bool {
        self.flows.is_empty() && self.losses.is_empty() && self.xdp.is_empty() && !self.gap
    }

    /// The flows, in their order.
    pub(super) fn flows(&self) -> impl Iterator<Item = Flow> + '_ {
        self.flows.iter().filter_map(|number| self.table.flow(*number))
    }

    /// Whether packets are in no flow's row.
    #[must_use]
    pub(super) fn skips_packets(&self) -> bool {
        !self.losses.is_empty() || !self.xdp.is_empty()
    }

    /// How many there are, without a NODATA row.
    #[must_use]
    pub(crate) fn len(&self) -> usize {
        self.counts.accepted + self.counts.rejected + self.counts.skipped
    }

    #[must_use]
    pub(crate) fn counts(&self) -> RowCounts {
        self.counts
    }

    /// The columns of all row groups. A group ends after `rows_max` rows, or when a dictionary is `dictionary_bytes` long.
    pub(crate) fn groups<'b>(
        &'b self,
        info: &'b ObjectInfo,
        names: &'b Names,
        rows_max: usize,
        dictionary_bytes: usize,
    ) -> impl Iterator<Item = Vec<Column>> + 'b {
        let mut flows = self.flows.iter();
        let stretch = Stretch::of(&info.span, info.flushed_early);
        let flow_groups = std::iter::from_fn(move || {
            let mut b = Builder::new(info, rows_max.min(flows.len()));
            for number in flows.by_ref() {
                if let Some(flow) = self.table.flow(*number) {
                    if let Some(OtherSide::Is(addresses, sport, dport)) = self.table.other_side(&flow) {
                        let port = |n| if flow.is_icmp() { 0 } else { n };
                        b.other_side.push(b.rows, addresses, port(sport), port(dport));
                    }
                    let connection = Connection::of(&flow, self.table.twin(*number).as_ref(), stretch);
                    b.connection.push(b.rows, &connection);
                    b.flow(&flow, self.table.lost(*number, &flow), names);
                }
                if b.rows == rows_max || b.dictionary_bytes() >= dictionary_bytes {
                    break;
                }
            }
            (b.rows > 0).then(|| b.finish())
        });
        let rest = std::iter::once_with(move || {
            let mut b = Builder::new(info, self.losses.len());
            self.losses.iter().for_each(|loss| b.loss(loss));
            if self.is_empty() {
                b.no_flow(LogStatus::NoData);
            }
            (b.rows > 0).then(|| b.finish())
        });
        // A group of its own: drivers count no bytes.
        let xdp = (!self.xdp.is_empty()).then(|| {
            let mut b = Builder::new(info, self.xdp.len());
            self.xdp.iter().for_each(|xdp| b.xdp(xdp));
            b.finish()
        });
        // A group of its own: unlike any other row it has no count of packets.
        let gap = info.gap.map(|(from, to)| {
            let mut b = Builder::new(info, 1);
            b.gap(from, to);
            b.finish()
        });
        flow_groups.chain(rest.flatten()).chain(xdp).chain(gap)
    }
}

/// Packets that somebody else's XDP program dropped or forwarded on their way in.
struct Xdp {
    refused: bool,
    packets: u64,
}

impl Xdp {
    /// Those of a window, if the rule wants what comes in.
    fn of(info: &ObjectInfo) -> impl Iterator<Item = Self> {
        let wanted = info.rule.directions.includes(info.side.owners(Direction::Ingress));
        let counts = [(true, info.xdp.dropped.packets), (false, info.xdp.forwarded.packets)];
        let found = counts.into_iter().filter(move |(_, packets)| wanted && *packets > 0);
        found.map(|(refused, packets)| Self { refused, packets })
    }
}

/// Columns that are being built.
struct Builder<'a> {
    info: &'a ObjectInfo,
    src: Found<RowAddress>,
    dst: Found<RowAddress>,
    sport: Numbers,
    dport: Numbers,
    protocol: Numbers,
    packets: Vec<i64>,
    bytes: Vec<i64>,
    start: Found<i64>,
    end: Found<i64>,
    action: Known,
    status: Known,
    direction: Known,
    tcp_flags: Numbers,
    icmp_type: Numbers,
    icmp_code: Numbers,
    family: Known,
    vlan: Numbers,
    start_ns: Vec<i64>,
    end_ns: Vec<i64>,
    reason: Found<Option<u16>>,
    skip: Known,
    lost: LostColumns,
    rule: RuleColumns,
    other_side: OtherSideColumns,
    connection: ConnectionColumns,
    rows: usize,
}

/// What a row is about, by code.
#[derive(Clone, Copy, PartialEq, Eq)]
enum LogStatus {
    /// A flow.
    Ok,
    /// Packets, or time, that no flow says anything about.
    SkipData,
    /// A window without traffic.
    NoData,
}

impl LogStatus {
    /// As in the column `log_status`.
    const NAMES: [&str; 3] = ["OK", "SKIPDATA", "NODATA"];
}
/// Values of `skip_reason`, by code: losses first.
const SKIP: [&str; LossReason::ALL.len() + 3] = {
    let [a, b, c, d, e] = LossReason::ALL;
    [a.as_str(), b.as_str(), c.as_str(), d.as_str(), e.as_str(), GAP, XDP_DROPPED, XDP_FORWARDED]
};
/// The code of a gap; those of XDP follow.
const SKIP_GAP: usize = LossReason::ALL.len();

/// Nanoseconds are multiples of so many, two to the power of 16: the tick that they are true to is a millisecond at least, and zeros
/// cost nothing.
const STEP_NS: i64 = 1 << 16;

/// Rounded down, within its second.
fn rounded(ns: i64) -> i64 {
    (ns & !(STEP_NS - 1)).max(ns - ns.rem_euclid(NS_PER_SEC))
}

/// Microseconds in a second.
const US_PER_SEC: i64 = 1_000_000;

fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

impl<'a> Builder<'a> {
    fn new(info: &'a ObjectInfo, rows: usize) -> Self {
        let longs = || Vec::with_capacity(rows);
        Self {
            info,
            src: Found::default(),
            dst: Found::default(),
            sport: Numbers::new(rows),
            dport: Numbers::new(rows),
            protocol: Numbers::new(rows),
            packets: longs(),
            bytes: longs(),
            start: Found::default(),
            end: Found::default(),
            action: Known::new(&["ACCEPT", "REJECT"]),
            status: Known::new(&LogStatus::NAMES),
            direction: Known::new(&Direction::BOTH.map(|hook| info.side.owners(hook).as_str())),
            tcp_flags: Numbers::new(rows),
            icmp_type: Numbers::new(rows),
            icmp_code: Numbers::new(rows),
            family: Known::new(&["IPv4", "IPv6"]),
            vlan: Numbers::new(rows),
            start_ns: longs(),
            end_ns: longs(),
            reason: Found::default(),
            skip: Known::new(&SKIP),
            lost: LostColumns::default(),
            rule: RuleColumns::default(),
            other_side: OtherSideColumns::default(),
            connection: ConnectionColumns::default(),
            rows: 0,
        }
    }

    fn dictionary_bytes(&self) -> usize {
        let addresses = self.src.labels.dictionary_bytes().max(self.dst.labels.dictionary_bytes());
        addresses.max(self.other_side.dictionary_bytes())
    }

    fn flow(&mut self, flow: &Flow, died: Option<Lost>, names: &Names) {
        let totals = &flow.totals;
        let (src, dst) = RowAddress::both(flow.addresses);
        let v6 = matches!(flow.addresses, Addresses::V6(..));
        let icmp = flow.is_icmp();
        let type_and_code = flow.icmp();
        self.src.push(src, RowAddress::label);
        self.dst.push(dst, RowAddress::label);
        self.sport.push(Some(if icmp { 0 } else { flow.sport }));
        self.dport.push(Some(if icmp { 0 } else { flow.dport }));
        self.protocol.push(Some(u16::from(flow.proto)));
        self.packets.push(signed(totals.packets));
        self.bytes.push(signed(totals.bytes));
        let wall = |ns| self.info.span.wall_of_tick(MonoNs(ns));
        let first = wall(totals.first_ns);
        let last = wall(totals.last_ns);
        self.start.push(first.secs(), |s| Some(Label::Long(*s)));
        self.end.push(last.secs(), |s| Some(Label::Long(*s)));
        if self.info.rule.subsecond {
            // Never before the part of the window that it is in.
            let begin = self.info.span.opened.wall.0;
            self.start_ns.push(rounded(first.0).max(begin));
            self.end_ns.push(rounded(last.0).max(begin));
        }
        self.action.0.push(u32::from(flow.refused));
        self.status.0.push(LogStatus::Ok as u32);
        self.direction.0.push(u32::from(flow.direction == Direction::Egress));
        self.tcp_flags.push(flow.tcp_flags().map(u16::from));
        self.icmp_type.push(type_and_code.map(|(kind, _)| kind));
        self.icmp_code.push(type_and_code.map(|(_, code)| code));
        self.family.0.push(u32::from(v6));
        self.vlan.push((flow.vlan != 0).then_some(flow.vlan));
        let reason = flow.refused.then_some(flow.reason);
        self.reason.push(reason, |r| r.and_then(&names.reason).map(Label::Text));
        self.skip.0.push(NULL);
        if let Some(died) = died {
            self.lost.push(self.rows, died, &names.reason);
        }
        if flow.refused {
            self.rule.push(self.rows, self.info, flow, names);
        }
        self.rows += 1;
    }

    /// A row that is no flow: everything about packets is null, times are the window's. Packets, bytes, action,
    /// direction and skip reason are the caller's, if there are any.
    fn no_flow(&mut self, status: LogStatus) {
        self.no_flow_between(status, self.info.span.start_secs, self.info.span.end_secs);
    }

    fn no_flow_between(&mut self, status: LogStatus, from: i64, to: i64) {
        for found in [&mut self.src, &mut self.dst] {
            found.push(RowAddress::None, RowAddress::label);
        }
        for numbers in [
            &mut self.sport,
            &mut self.dport,
            &mut self.protocol,
            &mut self.tcp_flags,
            &mut self.icmp_type,
            &mut self.icmp_code,
            &mut self.vlan,
        ] {
            numbers.push(None);
        }
        self.start.push(from, |s| Some(Label::Long(*s)));
        self.end.push(to, |s| Some(Label::Long(*s)));
        if self.info.rule.subsecond {
            self.start_ns.push(from.saturating_mul(NS_PER_SEC));
            self.end_ns.push(to.saturating_mul(NS_PER_SEC));
        }
        self.status.0.push(status as u32);
        self.family.0.push(NULL);
        self.reason.push(None, |_| None);
        if status == LogStatus::NoData {
            for known in [&mut self.action, &mut self.direction, &mut self.skip] {
                known.0.push(NULL);
            }
        }
        self.rows += 1;
    }

    fn loss(&mut self, loss: &Loss) {
        self.no_flow(LogStatus::SkipData);
        self.packets.push(signed(loss.count.packets));
        self.bytes.push(signed(loss.count.bytes));
        let unknown = match loss.reason {
            LossReason::Malformed => true,
            LossReason::VerdictUnknown => !loss.refused,
            _ => false,
        };
        self.action.0.push(if unknown { NULL } else { u32::from(loss.refused) });
        self.direction.0.push(u32::from(loss.direction == Direction::Egress));
        self.skip.0.push(loss.reason as u32);
    }

    fn xdp(&mut self, xdp: &Xdp) {
        self.no_flow(LogStatus::SkipData);
        self.packets.push(signed(xdp.packets));
        self.action.0.push(u32::from(xdp.refused));
        self.direction.0.push(0);
        let code = SKIP_GAP + if xdp.refused { 1 } else { 2 };
        self.skip.0.push(u32::try_from(code).unwrap_or(NULL));
    }

    fn gap(&mut self, from: i64, to: i64) {
        self.no_flow_between(LogStatus::SkipData, from, to);
        self.action.0.push(NULL);
        self.direction.0.push(NULL);
        self.skip.0.push(u32::try_from(SKIP_GAP).unwrap_or(NULL));
    }

    fn finish(mut self) -> Vec<Column> {
        schema::COLUMNS.iter().map(|column| self.column(column.id)).collect()
    }

    /// Takes the values of one column out.
    fn column(&mut self, id: ColumnId) -> Column {
        let n = self.rows;
        let info = self.info;
        let same = |value: Option<Label>| Column::Labels(Labels::same(value, n));
        let text = |value: Option<&str>| same(value.map(|v| Label::Text(v.to_owned())));
        let long = |value: i64| same(Some(Label::Long(value)));
        let labels = |labels: &mut Labels| Column::Labels(std::mem::take(labels));
        let longs = |values: &mut Vec<i64>| match std::mem::take(values) {
            // Without values a dictionary is what every reader takes: fastparquet fails on pages of no differences.
            none if none.is_empty() => Column::Labels(Labels::same(None, n)),
            values => Column::Longs(values),
        };
        match id {
            ColumnId::Version => same(Some(Label::Int(schema::RECORD_VERSION))),
            ColumnId::AccountId => text(info.account_id.as_deref()),
            ColumnId::InterfaceId => text(Some(&info.interface_id)),
            ColumnId::SrcAddr => labels(&mut self.src.labels),
            ColumnId::DstAddr => labels(&mut self.dst.labels),
            ColumnId::SrcPort => labels(&mut self.sport.labels),
            ColumnId::DstPort => labels(&mut self.dport.labels),
            ColumnId::Protocol => labels(&mut self.protocol.labels),
            ColumnId::Packets => longs(&mut self.packets),
            ColumnId::Bytes => longs(&mut self.bytes),
            ColumnId::Start => labels(&mut self.start.labels),
            ColumnId::End => labels(&mut self.end.labels),
            ColumnId::Action => labels(&mut self.action.0),
            ColumnId::LogStatus => labels(&mut self.status.0),
            ColumnId::FlowDirection => labels(&mut self.direction.0),
            ColumnId::TcpFlags => labels(&mut self.tcp_flags.labels),
            ColumnId::IcmpType => labels(&mut self.icmp_type.labels),
            ColumnId::IcmpCode => labels(&mut self.icmp_code.labels),
            ColumnId::Family => labels(&mut self.family.0),
            ColumnId::VlanId => labels(&mut self.vlan.labels),
            ColumnId::StartNs => longs(&mut self.start_ns),
            ColumnId::EndNs => longs(&mut self.end_ns),
            ColumnId::RejectReason => labels(&mut self.reason.labels),
            ColumnId::RuleId => text(Some(&info.rule.label())),
            ColumnId::NodeId => text(Some(&info.node_id)),
            ColumnId::WindowStart => long(info.span.start_secs.saturating_mul(US_PER_SEC)),
            ColumnId::Sequence => long(signed(info.span.sequence)),
            ColumnId::WindowMarks => text(info.marks().as_deref()),
            ColumnId::SkipReason => labels(&mut self.skip.0),
            ColumnId::LostPackets => Column::Labels(self.lost.packets.take(n)),
            ColumnId::LostBytes => Column::Labels(self.lost.bytes.take(n)),
            ColumnId::LostReason => Column::Labels(self.lost.reason.take(n)),
            ColumnId::RuleMark => Column::Labels(self.rule.mark.take(n)),
            ColumnId::VerdictRule => Column::Labels(self.rule.name.take(n)),
            ColumnId::PktSrcAddr => Column::Labels(self.other_side.src.take(n)),
            ColumnId::PktDstAddr => Column::Labels(self.other_side.dst.take(n)),
            ColumnId::PktSrcPort => Column::Labels(self.other_side.sport.take(n)),
            ColumnId::PktDstPort => Column::Labels(self.other_side.dport.take(n)),
            ColumnId::Initiator => Column::Bools(self.connection.initiator(n)),
            ColumnId::FlowState => Column::Labels(self.connection.state.take(n)),
            ColumnId::EndCause => Column::Labels(self.connection.end.take(n)),
            ColumnId::RttUs => Column::Labels(self.connection.rtt_us.take(n)),
        }
    }
}
