//! Figures in the text form of Prometheus and `OpenMetrics`. Every name is here, once: with its help it is the documentation, and
//! `docs/metrics.md` is compared with it.
//!
//! Names and units are as <https://prometheus.io/docs/practices/naming/> has them. Labels have as many values as there are flow logs on the
//! node, and stores, and fixed words.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use flowlog_model::{
    figures::{CaptureFigures, Figures, Latencies, LiveFigures, NodeFigures, Traffic},
    status::{CaptureState, Leaving, RouteState, RouteStatus, RuleStatus, Status},
};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _, MetricEncoder, NoLabelSet},
    metrics::MetricType,
    registry::Registry,
};

/// Of the form.
pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Names and values of labels.
type Labels<'a> = Vec<(&'static str, &'a str)>;

/// Stores that are named in figures of what has ended: they may be as many as customers have had.
const STORES_MAX: usize = 64;
/// What the others are called together.
const OTHER_STORES: &str = "others";

/// Figures as text.
#[must_use]
pub(super) fn text(figures: Figures) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Told(figures)));
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = prometheus_client::encoding::text::encode(&mut out, &registry);
    out
}

#[derive(Debug)]
struct Told(Figures);

impl Collector for Told {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut out = Out(encoder);
        let Figures { status, is_running, live } = &self.0;
        out.agent(status, *is_running)?;
        out.captures(status)?;
        out.deliveries(status)?;
        out.leaving(&status.leaving)?;
        match live {
            Some(LiveFigures { captures, node }) => {
                out.traffic(status, captures)?;
                out.node(node)
            }
            None => Ok(()),
        }
    }
}

/// The labels of a flow log on an interface.
fn labels(rule: &RuleStatus) -> Labels<'_> {
    vec![
        ("flow_log", rule.rule.as_str()),
        ("interface", rule.interface.as_str()),
        ("interface_id", rule.interface_id.as_str()),
    ]
}

fn with<'a>(mut labels: Labels<'a>, more: &[(&'static str, &'a str)]) -> Labels<'a> {
    labels.extend(more);
    labels
}

/// Every state of a delivery.
const ROUTE_STATES: [&str; 5] = ["idle", "delivering", "retrying", "degraded", "blocked"];

fn word(state: &RouteState) -> &'static str {
    match state {
        RouteState::Idle => "idle",
        RouteState::Delivering => "delivering",
        RouteState::Retrying { .. } => "retrying",
        RouteState::Degraded { .. } => "degraded",
        RouteState::Blocked { .. } => "blocked",
    }
}

/// Where families are written to.
struct Out<'a>(DescriptorEncoder<'a>);

impl Out<'_> {
    fn family<'s>(&'s mut self, name: &'s str, help: &str, kind: MetricType) -> Result<MetricEncoder<'s>, fmt::Error> {
        self.0.encode_descriptor(name, help, None, kind)
    }

    /// A family of counters; `_total` is added to its name.
    fn counters<'l>(&mut self, name: &str, help: &str, of: impl IntoIterator<Item = (Labels<'l>, u64)>) -> fmt::Result {
        let mut family = self.family(name, help, MetricType::Counter)?;
        of.into_iter().try_for_each(|(labels, value)| {
            family.encode_family(&labels)?.encode_counter::<NoLabelSet, u64, u64>(&value, None)
        })
    }

    /// Likewise, of seconds.
    fn seconds<'l>(&mut self, name: &str, help: &str, of: impl IntoIterator<Item = (Labels<'l>, f64)>) -> fmt::Result {
        let mut family = self.family(name, help, MetricType::Counter)?;
        of.into_iter().try_for_each(|(labels, value)| {
            family.encode_family(&labels)?.encode_counter::<NoLabelSet, f64, u64>(&value, None)
        })
    }

    fn gauges<'l>(&mut self, name: &str, help: &str, of: impl IntoIterator<Item = (Labels<'l>, f64)>) -> fmt::Result {
        let mut family = self.family(name, help, MetricType::Gauge)?;
        of.into_iter().try_for_each(|(labels, value)| family.encode_family(&labels)?.encode_gauge(&value))
    }

    fn gauge(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        prometheus_client::metrics::gauge::ConstGauge::new(value).encode(self.family(name, help, MetricType::Gauge)?)
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let counter = prometheus_client::metrics::counter::ConstCounter::new(value);
        counter.encode(self.family(name, help, MetricType::Counter)?)
    }

    /// The agent itself.
    fn agent(&mut self, status: &Status, is_running: bool) -> fmt::Result {
        let version = vec![("version", env!("CARGO_PKG_VERSION"))];
        self.gauges("flowlog_build_info", "Version of what wrote this; always 1.", [(version, 1.0)])?;
        self.gauge(
            "flowlog_running",
            "1 if an agent is running, 0 if this is what the last one left.",
            bit(is_running),
        )?;
        let written = seconds(status.written_secs);
        self.gauge("flowlog_status_timestamp_seconds", "When the status last changed.", written)?;
        let help = "1 if the state directory takes nothing, so that nothing is delivered.";
        self.gauge("flowlog_state_directory_trouble", help, bit(status.trouble.is_some()))?;
        self.gauge("flowlog_spool_bytes", "Objects in the spool, waiting for delivery.", float(status.spool_bytes))?;
        let oldest = status.deliveries().filter_map(|d| d.oldest_secs).min();
        let help = "When the oldest object in the spool was made. Absent while it is empty.";
        self.gauges("flowlog_spool_oldest_timestamp_seconds", help, oldest.map(|secs| (Vec::new(), seconds(secs))))?;
        let help = "1 if the spool is full, so that windows leave their totals only.";
        self.gauge("flowlog_spool_full", help, bit(status.spool_full.is_some()))?;
        let help = "Objects that were put aside: somebody must look at them.";
        self.gauge("flowlog_quarantined_objects", help, float(status.quarantined as u64))?;
        let flows = status.rules.iter().map(|r| r.flows as u64).sum();
        self.gauge("flowlog_flows", "Flows in open windows.", float(flows))
    }

    /// What is captured, and what was counted in windows that are closed.
    fn captures(&mut self, status: &Status) -> fmt::Result {
        let rules = &status.rules;
        let by_state = rules.iter().flat_map(|rule| {
            let state = match rule.capture {
                CaptureState::Attached { .. } => "attached",
                CaptureState::Waiting { .. } => "waiting",
                CaptureState::Trouble { .. } => "trouble",
                CaptureState::Unknown => "unknown",
            };
            ["attached", "waiting", "trouble", "unknown"]
                .map(|one| (with(labels(rule), &[("state", one)]), bit(one == state)))
        });
        self.gauges("flowlog_capture_state", "1 for the state that the capture is in, 0 for the others.", by_state)?;
        let of = |count: fn(&RuleStatus) -> u64| rules.iter().map(move |rule| (labels(rule), count(rule)));
        self.counters("flowlog_windows", "Windows that were closed.", of(|r| r.counts.windows))?;
        let rows = rules.iter().flat_map(|rule| {
            let counts = &rule.counts;
            [("accept", counts.accepted_rows), ("reject", counts.rejected_rows), ("skipdata", counts.skipped_rows)]
                .map(|(kind, rows)| (with(labels(rule), &[("kind", kind)]), rows))
        });
        self.counters("flowlog_rows", "Rows in objects of closed windows.", rows)?;
        let losses = rules.iter().flat_map(|rule| {
            let named = rule.counts.losses.named();
            named.map(|(reason, packets)| (with(labels(rule), &[("reason", reason)]), packets))
        });
        let help = "Packets of closed windows without a row of their own; with `verdict_unknown` they have one.";
        self.counters("flowlog_lost_packets", help, losses)?;
        let help = "Packets by which the books of closed windows did not balance. Anything but 0 is a bug.";
        self.counters("flowlog_balance_difference_packets", help, of(|r| r.counts.difference_packets))?;
        let foreign = rules.iter().flat_map(|rule| {
            let counts = &rule.counts;
            [("dropped", counts.xdp_dropped_packets), ("forwarded", counts.xdp_forwarded_packets)]
                .map(|(what, packets)| (with(labels(rule), &[("what", what)]), packets))
        });
        let help = "Packets that somebody else's XDP program took before any hook, by the driver's count.";
        self.counters("flowlog_foreign_xdp_packets", help, foreign)?;
        let failed = rules.iter().flat_map(|rule| {
            let counts = &rule.counts;
            [("put_aside", counts.windows_put_aside), ("without_object", counts.windows_without_object)]
                .map(|(what, windows)| (with(labels(rule), &[("what", what)]), windows))
        });
        self.counters("flowlog_failed_windows", "Windows whose object could not be spooled, or not be made.", failed)?;
        let open = rules.iter().filter(|r| r.window_start > 0).map(|r| (labels(r), seconds(r.window_start)));
        self.gauges("flowlog_window_start_timestamp_seconds", "When the open window began.", open)
    }

    /// What becomes of objects.
    fn deliveries(&mut self, status: &Status) -> fmt::Result {
        let rules = &status.rules;
        let by_state = rules.iter().flat_map(|rule| {
            let state = word(&rule.delivery.state);
            ROUTE_STATES.map(|one| (with(labels(rule), &[("state", one)]), bit(one == state)))
        });
        self.gauges("flowlog_delivery_state", "1 for the state that delivery is in, 0 for the others.", by_state)?;
        let of = |count: fn(&RuleStatus) -> u64| rules.iter().map(move |rule| (labels(rule), count(rule)));
        self.counters("flowlog_delivered_objects", "Objects delivered.", of(|r| r.delivery.delivered))?;
        let help = "Tries to deliver objects of the flow log that failed, whatever the interface.";
        self.counters("flowlog_upload_failures", help, of(|r| r.delivery.failures))?;
        let gauges = |count: fn(&RuleStatus) -> u64| rules.iter().map(move |rule| (labels(rule), float(count(rule))));
        self.gauges(
            "flowlog_waiting_objects",
            "Objects that wait for delivery.",
            gauges(|r| r.delivery.waiting as u64),
        )?;
        self.gauges("flowlog_waiting_bytes", "Bytes of these objects.", gauges(|r| r.delivery.waiting_bytes))?;
        let oldest = rules.iter().filter_map(|r| Some((labels(r), seconds(r.delivery.oldest_secs?))));
        let help = "When the oldest of these objects was made. Absent while there are none.";
        self.gauges("flowlog_waiting_oldest_timestamp_seconds", help, oldest)
    }

    /// What captures that have ended still have to deliver, by store: each of them would be a series of its own for ever.
    fn leaving(&mut self, all: &[Leaving]) -> fmt::Result {
        let stores: BTreeSet<&str> = all.iter().map(|l| l.store.as_str()).collect();
        let named: BTreeSet<&str> = stores.into_iter().take(STORES_MAX).collect();
        let mut by_store = BTreeMap::<&str, Vec<&RouteStatus>>::new();
        for Leaving { store, delivery, .. } in all {
            let store = named.get(store.as_str()).copied().unwrap_or(OTHER_STORES);
            by_store.entry(store).or_default().push(delivery);
        }
        let of = |store| vec![("store", store)];
        let sums = |count: fn(&RouteStatus) -> u64| {
            let sum = move |all: &Vec<&RouteStatus>| float(all.iter().map(|d| count(d)).sum());
            by_store.iter().map(move |(store, all)| (of(*store), sum(all)))
        };
        let help = "Objects of captures that have ended, which wait for delivery.";
        self.gauges("flowlog_leaving_objects", help, sums(|d| d.waiting as u64))?;
        self.gauges("flowlog_leaving_bytes", "Bytes of these objects.", sums(|d| d.waiting_bytes))?;
        let oldest = |all: &Vec<&RouteStatus>| all.iter().filter_map(|d| d.oldest_secs).min();
        let times = by_store.iter().filter_map(|(store, all)| Some((of(*store), seconds(oldest(all)?))));
        let help = "When the oldest of these objects was made. Absent while there are none.";
        self.gauges("flowlog_leaving_oldest_timestamp_seconds", help, times)?;
        let by_state = by_store.iter().flat_map(|(store, all)| {
            ROUTE_STATES.map(|one| {
                let count = all.iter().filter(|d| word(&d.state) == one).count();
                (with(of(*store), &[("state", one)]), float(count as u64))
            })
        });
        let help = "Captures that have ended and have objects to deliver, by how that is doing.";
        self.gauges("flowlog_leaving_captures", help, by_state)
    }

    /// What the programs have counted up to now.
    fn traffic(&mut self, status: &Status, captures: &[CaptureFigures]) -> fmt::Result {
        let by_id: BTreeMap<&str, &RuleStatus> = status.rules.iter().map(|r| (r.interface_id.as_str(), r)).collect();
        let all: Vec<(&RuleStatus, &'static str, Traffic)> = captures
            .iter()
            .filter_map(|c| Some((*by_id.get(c.interface_id.as_str())?, c)))
            .flat_map(|(rule, c)| {
                c.traffic.iter().map(move |(direction, traffic)| (rule, direction.as_str(), *traffic))
            })
            .collect();
        let verdicts = |of: fn(&flowlog_model::figures::Volume) -> u64| {
            all.iter().flat_map(move |(rule, direction, t)| {
                [("accepted", &t.accepted), ("rejected", &t.rejected)].map(|(verdict, volume)| {
                    (with(labels(rule), &[("direction", direction), ("verdict", verdict)]), of(volume))
                })
            })
        };
        let help = "IP packets by verdict, in open windows as well.";
        self.counters("flowlog_packets", help, verdicts(|v| v.packets))?;
        self.counters("flowlog_bytes", "Their bytes, without link headers.", verdicts(|v| v.bytes))?;
        let one = |of: fn(&Traffic) -> u64| {
            all.iter().map(move |(rule, direction, t)| (with(labels(rule), &[("direction", direction)]), of(t)))
        };
        self.counters("flowlog_seen_packets", "Frames that the hooks saw, IP or not.", one(|t| t.seen.packets))?;
        self.counters("flowlog_non_ip_packets", "Frames that are not IP.", one(|t| t.non_ip.packets))?;
        let help = "Accepted packets that died on their way, for no firewall's reason.";
        self.counters("flowlog_died_packets", help, one(|t| t.died.packets))?;
        let overdue = captures
            .iter()
            .filter_map(|c| Some((labels(by_id.get(c.interface_id.as_str())?), c.overdue.as_secs_f64())));
        let help = "By how much the window that should have been closed last is late. 0 while all is well.";
        self.gauges("flowlog_window_lag_seconds", help, overdue)
    }

    /// What has limits, and what it costs.
    fn node(&mut self, node: &NodeFigures) -> fmt::Result {
        self.gauge("flowlog_ring_bytes", "Size of the ring buffer.", float(node.ring_bytes))?;
        let help = "The most that was found in the ring buffer since the last scrape.";
        self.gauge("flowlog_ring_used_bytes", help, float(node.ring_used_bytes))?;
        let help = "Records that have left the kernel's flow caches.";
        self.counter("flowlog_records", help, node.records)?;
        self.gauge("flowlog_journal_bytes", "Size of the journal.", float(node.journal_bytes))?;
        self.counter("flowlog_refused_logins", "Logins that were refused.", node.logins_refused)?;
        let sources = || node.sources.iter().map(|s| (vec![("kind", s.kind), ("source", s.name.as_str())], s));
        let help = "1 if the last look of a source of the inventory found all there is.";
        self.gauges("flowlog_inventory_source_up", help, sources().map(|(labels, s)| (labels, bit(s.is_up))))?;
        let nics = sources().map(|(labels, s)| (labels, float(s.nics as u64)));
        self.gauges("flowlog_inventory_source_nics", "NICs that a source knows of, whoever they belong to.", nics)?;
        let help = "Looks of a source that failed, or left something out.";
        self.counters("flowlog_inventory_source_failures", help, sources().map(|(labels, s)| (labels, s.failures)))?;
        let programs = || node.programs.iter().map(|p| (vec![("program", p.name.as_str())], p));
        let help = "How often a program has run, while the kernel keeps statistics (kernel.bpf_stats_enabled).";
        self.counters("flowlog_program_runs", help, programs().map(|(labels, p)| (labels, p.runs)))?;
        let times = programs().map(|(labels, p)| (labels, p.run_time.as_secs_f64()));
        self.seconds("flowlog_program_run_seconds", "For how long, likewise.", times)?;
        let help = "How long uploads took, by store.";
        let mut family = self.family("flowlog_upload_duration_seconds", help, MetricType::Histogram)?;
        node.uploads.iter().try_for_each(|(store, latencies)| {
            let labels = [("store", store.as_str())];
            histogram(&mut family.encode_family(&labels)?, latencies)
        })
    }
}

fn histogram(out: &mut MetricEncoder<'_>, latencies: &Latencies) -> fmt::Result {
    let bounds = Latencies::BOUNDS_MS.iter().map(|ms| float(*ms) / 1e3).chain([f64::INFINITY]);
    let buckets: Vec<(f64, u64)> = bounds.zip(latencies.counts).collect();
    let count = latencies.counts.iter().sum();
    out.encode_histogram::<NoLabelSet>(latencies.sum.as_secs_f64(), count, &buckets, None)
}

fn bit(is_so: bool) -> f64 {
    if is_so { 1.0 } else { 0.0 }
}

#[allow(clippy::cast_precision_loss, reason = "what is above 2^53 needs no last digit")]
fn float(n: u64) -> f64 {
    n as f64
}

#[allow(clippy::cast_precision_loss, reason = "the year 285 million")]
fn seconds(secs: i64) -> f64 {
    secs as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_has_each_figure_under_its_name_with_its_labels_and_ends() {
        let mut figures = Figures::default();
        figures.status.rules.push(RuleStatus {
            rule: "we\"b".to_owned(),
            interface: "tap0".to_owned(),
            interface_id: "nic-1".to_owned(),
            ..RuleStatus::default()
        });
        let without = text(figures.clone());
        assert!(without.contains("flowlog_running 0.0\n") && !without.contains("flowlog_packets"), "{without}");
        let mut node = NodeFigures::default();
        let mut latencies = Latencies::default();
        latencies.note(std::time::Duration::from_millis(30));
        node.uploads.insert("s3://flows".to_owned(), latencies);
        figures.live = Some(LiveFigures { captures: Vec::new(), node });
        let text = text(figures);
        for line in [
            "flowlog_rows_total{flow_log=\"we\\\"b\",interface=\"tap0\",interface_id=\"nic-1\",kind=\"accept\"} 0\n",
            "flowlog_upload_duration_seconds_bucket{le=\"0.02\",store=\"s3://flows\"} 0\n",
            "flowlog_upload_duration_seconds_bucket{le=\"0.05\",store=\"s3://flows\"} 1\n",
            "flowlog_upload_duration_seconds_bucket{le=\"+Inf\",store=\"s3://flows\"} 1\n",
            "flowlog_upload_duration_seconds_count{store=\"s3://flows\"} 1\n",
        ] {
            assert!(text.contains(line), "no {line} in:\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn what_has_ended_and_is_not_delivered_is_summed_up_by_store_and_those_have_a_limit() {
        let leaving = |n: usize, state: RouteState| Leaving {
            store: format!("s3://b{n:03}"),
            folder: "web".to_owned(),
            interface_id: n.to_string(),
            delivery: RouteStatus {
                state,
                waiting: 3,
                waiting_bytes: 7,
                oldest_secs: Some(9),
                ..RouteStatus::default()
            },
        };
        let dead = || RouteState::Retrying { since_secs: 1, tries: 1, error: "gone".to_owned() };
        let mut figures = Figures::default();
        figures.status.leaving = vec![leaving(0, dead()), leaving(0, dead()), leaving(1, RouteState::Delivering)];
        let few = text(figures.clone());
        for line in [
            "flowlog_leaving_objects{store=\"s3://b000\"} 6.0\n",
            "flowlog_leaving_bytes{store=\"s3://b001\"} 7.0\n",
            "flowlog_leaving_oldest_timestamp_seconds{store=\"s3://b000\"} 9.0\n",
            "flowlog_leaving_captures{store=\"s3://b000\",state=\"retrying\"} 2.0\n",
            "flowlog_leaving_captures{store=\"s3://b001\",state=\"retrying\"} 0.0\n",
        ] {
            assert!(few.contains(line), "no {line} in:\n{few}");
        }
        figures.status.leaving = (0..200).map(|n| leaving(n, dead())).collect();
        let many = text(figures);
        let objects: Vec<&str> = many.lines().filter(|l| l.starts_with("flowlog_leaving_objects{")).collect();
        assert_eq!(objects.len(), STORES_MAX + 1, "{objects:#?}");
        let rest = format!("flowlog_leaving_objects{{store=\"others\"}} {}.0", 3 * (200 - STORES_MAX));
        assert!(objects.contains(&rest.as_str()), "{objects:#?}");
    }
}
