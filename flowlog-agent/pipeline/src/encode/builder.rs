//! The columns of a row group while they are being built.

use flowlog_model::{MonoNs, NS_PER_SEC, rule::Direction};

use super::{
    Names, ObjectInfo,
    batch::{BATCH, Batch},
    ends::EndColumns,
    labels::{Label, Labels, NULL},
    numbers::{NearNumbers, Numbers},
    rows::Xdp,
    schema::{self, ColumnId},
    sparse::{ConnectionColumns, LostColumns, RuleColumns},
    values::{Column, Found, Known},
};
use crate::window::{
    Addresses, Connection, Flow, FlowTable, Loss, LossReason,
    connection::Stretch,
    info::GAP,
    xdp::{XDP_DROPPED, XDP_FORWARDED},
};

/// What flows are made into rows with.
#[derive(Clone, Copy)]
pub(super) struct RowsFrom<'a> {
    pub(super) table: &'a FlowTable,
    pub(super) stretch: Stretch,
    pub(super) names: &'a Names,
}

/// Columns that are being built.
pub(super) struct Builder<'a> {
    info: &'a ObjectInfo,
    ends: EndColumns,
    protocol: Numbers,
    packets: NearNumbers,
    bytes: Vec<i64>,
    start: NearNumbers,
    end: NearNumbers,
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
    reason: Found<u16>,
    skip: Known,
    lost: LostColumns,
    rule: RuleColumns,
    connection: ConnectionColumns,
    rows: usize,
}

/// What a row is about, by code.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum LogStatus {
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

/// Appends the codes of a batch.
fn codes(labels: &mut Labels, flows: &[Flow], mut code: impl FnMut(&Flow) -> u32) {
    let mut found = [0; BATCH];
    for (found, flow) in found.iter_mut().zip(flows) {
        *found = code(flow);
    }
    labels.extend(&found[..flows.len()]);
}

/// The same of numbers.
fn codes_of(numbers: &mut NearNumbers, flows: &[Flow], number: impl Fn(&Flow) -> i64) {
    let mut found = [0; BATCH];
    for (found, flow) in found.iter_mut().zip(flows) {
        *found = numbers.code(number(flow));
    }
    numbers.labels.extend(&found[..flows.len()]);
}

impl<'a> Builder<'a> {
    pub(super) fn new(info: &'a ObjectInfo, rows: usize) -> Self {
        let times = if info.rule.subsecond { rows } else { 0 };
        let from = info.span.start_secs;
        Self {
            info,
            ends: EndColumns::new(rows),
            protocol: Numbers::new(rows),
            packets: NearNumbers::counts(rows),
            bytes: Vec::with_capacity(rows),
            start: NearNumbers::seconds(from, rows),
            end: NearNumbers::seconds(from, rows),
            action: Known::names(&["ACCEPT", "REJECT"], rows),
            status: Known::names(&LogStatus::NAMES, rows),
            direction: Known::names(&Direction::BOTH.map(|hook| info.side.owners(hook).as_str()), rows),
            tcp_flags: Numbers::new(rows),
            icmp_type: Numbers::new(rows),
            icmp_code: Numbers::new(rows),
            family: Known::names(&["IPv4", "IPv6"], rows),
            vlan: Numbers::new(rows),
            start_ns: Vec::with_capacity(times),
            end_ns: Vec::with_capacity(times),
            reason: Found::with_room(rows),
            skip: Known::names(&SKIP, rows),
            lost: LostColumns::default(),
            rule: RuleColumns::default(),
            connection: ConnectionColumns::new(rows),
            rows: 0,
        }
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// Takes flows from the front of `left` and makes rows of them, until a dictionary is as long as it may be.
    pub(super) fn take(&mut self, left: &mut &[u32], dictionary_bytes: usize, from: RowsFrom<'_>) {
        let mut batch = Batch::default();
        loop {
            let room = self.ends.room(left.len(), dictionary_bytes);
            let Some(some) = left.split_off(..room).filter(|some| !some.is_empty()) else { return };
            batch.gather(from.table, some);
            self.ends.flows(&batch, from.table);
            self.flows(&batch, from);
        }
    }

    /// What is no part of [`EndColumns`]. Column by column, so that what a column needs is at hand for all rows.
    fn flows(&mut self, batch: &Batch, RowsFrom { table, stretch, names }: RowsFrom<'_>) {
        let flows = batch.flows();
        self.seldom(batch, table, names);
        self.times(flows);
        self.protocol.extend(flows, |f| Some(u16::from(f.proto)));
        self.tcp_flags.extend(flows, |f| f.tcp_flags().map(u16::from));
        self.icmp_type.extend(flows, |f| f.icmp().map(|(kind, _)| kind));
        self.icmp_code.extend(flows, |f| f.icmp().map(|(_, code)| code));
        self.vlan.extend(flows, |f| (f.vlan != 0).then_some(f.vlan));
        codes_of(&mut self.packets, flows, |f| signed(f.totals.packets));
        self.bytes.extend(flows.iter().map(|f| signed(f.totals.bytes)));
        codes(&mut self.action.0, flows, |f| u32::from(f.refused));
        self.status.0.repeat(LogStatus::Ok as u32, flows.len());
        codes(&mut self.direction.0, flows, |f| u32::from(f.direction == Direction::Egress));
        codes(&mut self.family.0, flows, |f| u32::from(matches!(f.addresses, Addresses::V6(..))));
        self.skip.0.repeat(NULL, flows.len());
        self.connection.extend(self.rows, batch.pairs().map(|(flow, twin)| Connection::of(flow, twin, stretch)));
        self.rows += flows.len();
    }

    fn times(&mut self, flows: &[Flow]) {
        let Self { info, start, end, .. } = self;
        let wall = |ns| info.span.wall_of_tick(MonoNs(ns));
        codes_of(start, flows, |f| wall(f.totals.first_ns).secs());
        codes_of(end, flows, |f| wall(f.totals.last_ns).secs());
        if info.rule.subsecond {
            // Never before the part of the window that it is in.
            let begin = info.span.opened.wall.0;
            let ns = |ns| rounded(wall(ns).0).max(begin);
            self.start_ns.extend(flows.iter().map(|f| ns(f.totals.first_ns)));
            self.end_ns.extend(flows.iter().map(|f| ns(f.totals.last_ns)));
        }
    }

    /// What few flows have.
    fn seldom(&mut self, batch: &Batch, table: &FlowTable, names: &Names) {
        if table.has_lost() {
            for (row, (number, flow)) in (self.rows..).zip(batch.numbered()) {
                if let Some(died) = table.lost(number, flow) {
                    self.lost.push(row, died, &names.reason);
                }
            }
        }
        let flows = batch.flows();
        let reason = &mut self.reason;
        let mut found = [NULL; BATCH];
        for (row, (code, flow)) in found.iter_mut().zip(flows).enumerate().filter(|(_, (_, flow))| flow.refused) {
            *code = reason.code(flow.reason, |reason| (names.reason)(*reason).map(Label::Text));
            self.rule.push(self.rows + row, self.info, flow, names);
        }
        reason.labels.extend(&found[..flows.len()]);
    }

    /// A row that is no flow: everything about packets is null, times are the window's. Packets, bytes, action,
    /// direction and skip reason are the caller's, if there are any.
    pub(super) fn no_flow(&mut self, status: LogStatus) {
        self.no_flow_between(status, self.info.span.start_secs, self.info.span.end_secs);
    }

    fn no_flow_between(&mut self, status: LogStatus, from: i64, to: i64) {
        self.ends.push_none();
        for numbers in
            [&mut self.protocol, &mut self.tcp_flags, &mut self.icmp_type, &mut self.icmp_code, &mut self.vlan]
        {
            numbers.push(None);
        }
        self.start.push(from);
        self.end.push(to);
        if self.info.rule.subsecond {
            self.start_ns.push(from.saturating_mul(NS_PER_SEC));
            self.end_ns.push(to.saturating_mul(NS_PER_SEC));
        }
        self.status.0.push(status as u32);
        self.family.0.push(NULL);
        self.reason.labels.push(NULL);
        if status == LogStatus::NoData {
            for known in [&mut self.action, &mut self.direction, &mut self.skip] {
                known.0.push(NULL);
            }
        }
        self.rows += 1;
    }

    pub(super) fn loss(&mut self, loss: &Loss) {
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

    pub(super) fn xdp(&mut self, xdp: &Xdp) {
        self.no_flow(LogStatus::SkipData);
        self.packets.push(signed(xdp.packets));
        self.action.0.push(u32::from(xdp.refused));
        self.direction.0.push(0);
        let code = SKIP_GAP + if xdp.refused { 1 } else { 2 };
        self.skip.0.push(u32::try_from(code).unwrap_or(NULL));
    }

    pub(super) fn gap(&mut self, from: i64, to: i64) {
        self.no_flow_between(LogStatus::SkipData, from, to);
        self.action.0.push(NULL);
        self.direction.0.push(NULL);
        self.skip.0.push(u32::try_from(SKIP_GAP).unwrap_or(NULL));
    }

    pub(super) fn finish(mut self) -> Vec<Column> {
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
            ColumnId::SrcAddr => labels(&mut self.ends.src.labels),
            ColumnId::DstAddr => labels(&mut self.ends.dst.labels),
            ColumnId::SrcPort => labels(&mut self.ends.sport.labels),
            ColumnId::DstPort => labels(&mut self.ends.dport.labels),
            ColumnId::Protocol => labels(&mut self.protocol.labels),
            ColumnId::Packets => Column::Labels(self.packets.take(n)),
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
            ColumnId::PktSrcAddr => Column::Labels(self.ends.other_side.src.take(n)),
            ColumnId::PktDstAddr => Column::Labels(self.ends.other_side.dst.take(n)),
            ColumnId::PktSrcPort => Column::Labels(self.ends.other_side.sport.take(n)),
            ColumnId::PktDstPort => Column::Labels(self.ends.other_side.dport.take(n)),
            ColumnId::Initiator => Column::Labels(self.connection.initiator.take(n)),
            ColumnId::FlowState => Column::Labels(self.connection.state.take(n)),
            ColumnId::EndCause => Column::Labels(self.connection.end.take(n)),
            ColumnId::RttUs => Column::Labels(self.connection.rtt_us.take(n)),
        }
    }
}
