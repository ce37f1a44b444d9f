//! Building the rows of an object.

use std::{
    fmt::Write as _,
    net::{Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use arrow::{
    array::{ArrayRef, Int32Builder, Int64Builder, RecordBatch, StringBuilder},
    error::ArrowError,
};
use flowlog_ebpf::abi::class;

use super::{ObjectInfo, RowCounts, schema};
use crate::{
    rule::{Action, Direction},
    types::{MonoNs, NS_PER_SEC},
    window::{Addresses, Balance, Flow, Loss, Settled},
};

const TCP: u8 = 6;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

/// The rows a rule wants of a window.
pub struct Rows {
    /// Flows of the wanted verdict.
    pub flows: Vec<Flow>,
    /// The books of the whole window, before the rule's choice.
    pub balance: Balance,
    losses: Vec<Loss>,
}

impl Rows {
    /// Keeps what the rule wants. Unwanted directions were never counted.
    #[must_use]
    pub fn select(info: &ObjectInfo, settled: Settled) -> Self {
        let Settled { mut flows, mut losses, balance } = settled;
        let refused = |f: &Flow| f.meta.class() != class::PASSED;
        match info.rule.action {
            Action::Any => {}
            Action::Accepted => {
                flows.retain(|f| !refused(f));
                losses.retain(|l| !l.refused);
            }
            Action::Rejected => {
                flows.retain(refused);
                losses.retain(|l| l.refused);
            }
        }
        Self { flows, balance, losses }
    }

    /// Whether there is nothing but, perhaps, a NODATA row.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.flows.is_empty() && self.losses.is_empty()
    }

    /// Rows by kind.
    #[must_use]
    pub fn counts(&self) -> RowCounts {
        let rejected = self.flows.iter().filter(|f| f.meta.class() != class::PASSED).count();
        RowCounts { accepted: self.flows.len() - rejected, rejected, skipped: self.losses.len() }
    }

    /// All rows as batches of at most `rows_max` rows.
    pub fn batches<'a>(
        &'a self,
        info: &'a ObjectInfo,
        reason_name: &'a dyn Fn(u16) -> Option<String>,
        rows_max: usize,
    ) -> impl Iterator<Item = Result<RecordBatch, ArrowError>> + 'a {
        let flows = self.flows.chunks(rows_max).map(move |chunk| {
            let mut b = Builder::new(info, chunk.len());
            for flow in chunk {
                b.flow(flow, reason_name);
            }
            b.finish()
        });
        let rest = std::iter::once_with(move || {
            let mut b = Builder::new(info, 1);
            for loss in &self.losses {
                b.loss(loss);
            }
            if self.is_empty() {
                b.no_data();
            }
            b.finish()
        });
        flows.chain(rest.filter(|r| r.as_ref().map_or(true, |batch| batch.num_rows() > 0)))
    }
}

/// Column builders, in schema order where it matters: [`Builder::finish`].
struct Builder<'a> {
    info: &'a ObjectInfo,
    marks: Option<String>,
    text: String,
    src: StringBuilder,
    dst: StringBuilder,
    sport: Int32Builder,
    dport: Int32Builder,
    protocol: Int32Builder,
    packets: Int64Builder,
    bytes: Int64Builder,
    start: Int64Builder,
    end: Int64Builder,
    action: StringBuilder,
    status: StringBuilder,
    direction: StringBuilder,
    tcp_flags: Int32Builder,
    icmp_type: Int32Builder,
    icmp_code: Int32Builder,
    family: StringBuilder,
    vlan: Int32Builder,
    start_ns: Int64Builder,
    end_ns: Int64Builder,
    reason: StringBuilder,
    skip: StringBuilder,
    rows: usize,
}

fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

impl<'a> Builder<'a> {
    fn new(info: &'a ObjectInfo, rows: usize) -> Self {
        let (i32s, i64s) = (|| Int32Builder::with_capacity(rows), || Int64Builder::with_capacity(rows));
        let text = || StringBuilder::with_capacity(rows, rows * 8);
        Self {
            info,
            marks: info.marks(),
            text: String::new(),
            src: StringBuilder::with_capacity(rows, rows * 16),
            dst: StringBuilder::with_capacity(rows, rows * 16),
            sport: i32s(),
            dport: i32s(),
            protocol: i32s(),
            packets: i64s(),
            bytes: i64s(),
            start: i64s(),
            end: i64s(),
            action: text(),
            status: text(),
            direction: text(),
            tcp_flags: i32s(),
            icmp_type: i32s(),
            icmp_code: i32s(),
            family: text(),
            vlan: i32s(),
            start_ns: i64s(),
            end_ns: i64s(),
            reason: text(),
            skip: text(),
            rows: 0,
        }
    }

    fn flow(&mut self, flow: &Flow, reason_name: &dyn Fn(u16) -> Option<String>) {
        let (meta, totals) = (&flow.meta, &flow.totals);
        self.addresses(&flow.addresses);
        let icmp = matches!((&flow.addresses, meta.proto), (Addresses::V4(..), ICMP) | (Addresses::V6(..), ICMPV6));
        let port = |p: u16| if icmp { 0 } else { i32::from(p) };
        self.sport.append_value(port(meta.sport));
        self.dport.append_value(port(meta.dport));
        self.protocol.append_value(i32::from(meta.proto));
        self.packets.append_value(signed(totals.packets));
        self.bytes.append_value(signed(totals.bytes));
        let (first, last) = (self.info.span.wall(MonoNs(totals.first_ns)), self.info.span.wall(MonoNs(totals.last_ns)));
        self.start.append_value(first.secs());
        self.end.append_value(last.secs());
        self.start_ns.append_value(first.0);
        self.end_ns.append_value(last.0);
        let refused = meta.class() != class::PASSED;
        self.action.append_value(if refused { "REJECT" } else { "ACCEPT" });
        self.status.append_value("OK");
        self.direction.append_value(direction_name(meta.direction()));
        self.tcp_flags.append_option((meta.proto == TCP).then_some(i32::from(totals.tcp_flags)));
        self.icmp_type.append_option(icmp.then_some(i32::from(meta.sport)));
        self.icmp_code.append_option(icmp.then_some(i32::from(meta.dport)));
        self.family.append_value(if matches!(flow.addresses, Addresses::V4(..)) { "IPv4" } else { "IPv6" });
        self.vlan.append_option((meta.vlan != 0).then_some(i32::from(meta.vlan)));
        self.reason.append_option(refused.then(|| reason_name(meta.reason)).flatten());
        self.skip.append_null();
        self.rows += 1;
    }

    fn addresses(&mut self, addresses: &Addresses) {
        let mut put = |builder: &mut StringBuilder, address: &dyn std::fmt::Display| {
            self.text.clear();
            // Writing to a String cannot fail.
            let _ = write!(self.text, "{address}");
            builder.append_value(&self.text);
        };
        match addresses {
            Addresses::V4(src, dst) => {
                put(&mut self.src, &Ipv4Addr::from(*src));
                put(&mut self.dst, &Ipv4Addr::from(*dst));
            }
            Addresses::V6(src, dst) => {
                put(&mut self.src, &Ipv6Addr::from(*src));
                put(&mut self.dst, &Ipv6Addr::from(*dst));
            }
        }
    }

    /// A row that is no flow: everything about packets is null, times are the window's.
    fn no_flow(&mut self, status: &str) {
        for b in [&mut self.src, &mut self.dst, &mut self.family, &mut self.reason] {
            b.append_null();
        }
        for b in [
            &mut self.sport,
            &mut self.dport,
            &mut self.protocol,
            &mut self.tcp_flags,
            &mut self.icmp_type,
            &mut self.icmp_code,
            &mut self.vlan,
        ] {
            b.append_null();
        }
        self.start.append_value(self.info.span.start_secs);
        self.end.append_value(self.info.span.end_secs);
        self.start_ns.append_value(self.info.span.start_secs.saturating_mul(NS_PER_SEC));
        self.end_ns.append_value(self.info.span.end_secs.saturating_mul(NS_PER_SEC));
        self.status.append_value(status);
        self.rows += 1;
    }

    fn loss(&mut self, loss: &Loss) {
        self.no_flow("SKIPDATA");
        self.packets.append_value(signed(loss.count.packets));
        self.bytes.append_value(signed(loss.count.bytes));
        let unknown = loss.reason == crate::window::LossReason::Malformed;
        self.action.append_option((!unknown).then_some(if loss.refused { "REJECT" } else { "ACCEPT" }));
        self.direction.append_value(direction_name(u8::from(loss.direction != Direction::Ingress)));
        self.skip.append_value(loss.reason.as_str());
    }

    fn no_data(&mut self) {
        self.no_flow("NODATA");
        self.packets.append_null();
        self.bytes.append_null();
        self.action.append_null();
        self.direction.append_null();
        self.skip.append_null();
    }

    fn finish(mut self) -> Result<RecordBatch, ArrowError> {
        let n = self.rows;
        let info = self.info;
        let same = |value: Option<&str>| -> ArrayRef {
            let mut b = StringBuilder::with_capacity(n, value.map_or(0, |v| v.len() * n));
            (0..n).for_each(|_| b.append_option(value));
            Arc::new(b.finish())
        };
        let same_i64 = |value: i64| -> ArrayRef { Arc::new(arrow::array::Int64Array::from_value(value, n)) };
        let columns: Vec<ArrayRef> = vec![
            Arc::new(arrow::array::Int32Array::from_value(schema::RECORD_VERSION, n)),
            same(info.account_id.as_deref()),
            same(Some(&info.interface_id)),
            Arc::new(self.src.finish()),
            Arc::new(self.dst.finish()),
            Arc::new(self.sport.finish()),
            Arc::new(self.dport.finish()),
            Arc::new(self.protocol.finish()),
            Arc::new(self.packets.finish()),
            Arc::new(self.bytes.finish()),
            Arc::new(self.start.finish()),
            Arc::new(self.end.finish()),
            Arc::new(self.action.finish()),
            Arc::new(self.status.finish()),
            Arc::new(self.direction.finish()),
            Arc::new(self.tcp_flags.finish()),
            Arc::new(self.icmp_type.finish()),
            Arc::new(self.icmp_code.finish()),
            Arc::new(self.family.finish()),
            Arc::new(self.vlan.finish()),
            Arc::new(self.start_ns.finish()),
            Arc::new(self.end_ns.finish()),
            Arc::new(self.reason.finish()),
            same(Some(info.rule.name.as_str())),
            same(Some(&info.node_id)),
            same_i64(info.span.start_secs),
            same_i64(signed(info.span.sequence)),
            same(self.marks.as_deref()),
            Arc::new(self.skip.finish()),
        ];
        RecordBatch::try_new(schema::schema(), columns)
    }
}

fn direction_name(direction: u8) -> &'static str {
    if direction == 0 { "ingress" } else { "egress" }
}
