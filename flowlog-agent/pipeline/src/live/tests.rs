use std::time::Duration;

use flowlog_ebpf::abi::{FAMILY_V4, Ip4, Key, Meta, Record4, Stats, class};
use flowlog_model::{
    Epoch, HookKind, IfaceId, MonoNs, Now, WallNs, WatchSpec,
    live::{Ask, Batch, Begun, LiveError, OBSERVERS_EACH, OBSERVERS_MAX, RecentAsk, Sight, What, filter::FlowFilter},
    rule::{Action, Rule, Side},
};

use super::{BLOCKS_MAX, LineNames, Live, Observer, tap::Tap};
use crate::window::{Event, Ledger, WindowClock, block};

const NOW: Now = Now { mono: MonoNs(5_000_000_000), wall: WallNs(1_700_000_000_000_000_000) };
const ADDRESS: Ip4 = Ip4::from_ne_bytes([10, 0, 0, 1]);

fn spec(nic: u16, rule: Rule) -> WatchSpec {
    WatchSpec {
        interface: format!("tap{nic}"),
        ifindex: nic.into(),
        hook: HookKind::Tc,
        rule,
        node_id: "n".to_owned(),
        account_id: Some(format!("contract-{nic}")),
        interface_id: format!("nic-{nic}"),
        side: Side::Host,
        netns_inum: 0,
        netns: None,
        mac: None,
        translations: false,
        labels: flowlog_model::Labels::default(),
    }
}

/// A ledger that watches interfaces 1 and 2 of two contracts, and what shows it.
struct Node {
    ledger: Ledger,
    live: Live,
    tap: Tap,
}

impl Node {
    fn new() -> Self {
        Self::with(&Rule::sample(600))
    }

    fn with(rule: &Rule) -> Self {
        let (live, ends) = Live::new();
        let names = LineNames {
            reasons: Vec::new(),
            reason: Box::new(|index| Some(format!("REASON_{index}"))),
            rule: Box::new(|mark, _| (mark != 0).then(|| format!("mark {mark}"))),
        };
        let mut node = Self { ledger: Ledger::default(), live, tap: ends.start(names).expect("a thread") };
        (1..=2).for_each(|nic| node.watch(nic, spec(nic, rule.clone())));
        node
    }

    fn watch(&mut self, id: u16, spec: WatchSpec) {
        let span = *WindowClock::new(600, NOW).current();
        let spec = Box::new(spec);
        self.apply(Event::Watch { id: IfaceId(id), spec, span, epoch: Epoch(1), gap: None, since_secs: None });
    }

    fn apply(&mut self, event: Event) {
        self.tap.note(&event);
        self.ledger.apply(event);
    }

    /// Somebody looks, and its stream has begun.
    fn observe(&mut self, sight: Sight, what: What) -> Observer {
        let observer = self.live.observe(Ask { sight, filter: FlowFilter::default(), what }).expect("room");
        let waiting = self.tap.take_waiting(NOW).expect("it waits");
        assert!(self.tap.begin(waiting.number));
        observer
    }

    /// A block with one record.
    fn send(&mut self, nic: u16, of_class: u8, packets: u64) {
        let meta = Meta {
            sport: 4_431,
            dport: 22,
            iface: nic,
            reason: 7 * u16::from(of_class != class::PASSED),
            proto: 6,
            flags: Meta::pack(0, of_class),
            epoch: 1,
            ..Meta::default()
        };
        let stats = Stats { packets, bytes: 100 * packets, first_ns: 1, last_ns: 2, ..Stats::default() };
        let record = Record4 { key: Key { src: ADDRESS, dst: ADDRESS + 1, meta }, stats };
        let mut bytes = Vec::new();
        block::write(&mut bytes, FAMILY_V4, &[record]);
        self.ledger.block(&bytes);
        self.tap.block(&bytes, &self.ledger);
    }
}

const FOLLOW: What = What::Flows { recent: None, follow: true };

fn of(nic: u16) -> Sight {
    Sight::Contract(format!("contract-{nic}"))
}

async fn next(observer: &mut Observer) -> Batch {
    tokio::time::timeout(Duration::from_secs(10), observer.next()).await.expect("in time").expect("a batch")
}

/// Interface, action and packets of the next flow.
async fn flow(observer: &mut Observer) -> (String, String, u64) {
    let Batch::Flows(mut lines) = next(observer).await else { panic!("no flows") };
    let line = lines.pop().filter(|_| lines.is_empty()).expect("one");
    (line.interface_id, line.action, line.packets)
}

#[tokio::test]
async fn an_observer_sees_its_own_interfaces_and_nobody_elses() {
    let mut node = Node::new();
    let mut all = node.observe(Sight::Node, FOLLOW);
    let mut first = node.observe(of(1), FOLLOW);
    let mut second = node.observe(of(2), FOLLOW);
    node.send(1, class::PASSED, 3);
    node.send(2, class::REFUSED, 5);
    let line = |nic: u16, action: &str, packets| (format!("nic-{nic}"), action.to_owned(), packets);
    assert_eq!(flow(&mut all).await, line(1, "ACCEPT", 3));
    assert_eq!(flow(&mut all).await, line(2, "REJECT", 5));
    assert_eq!(flow(&mut first).await, line(1, "ACCEPT", 3));
    assert_eq!(flow(&mut second).await, line(2, "REJECT", 5));
    // The id becomes another contract's at once, in the order of the blocks.
    node.apply(Event::Unwatch { id: IfaceId(1) });
    node.watch(1, spec(2, Rule::sample(600)));
    node.send(1, class::PASSED, 7);
    assert_eq!(flow(&mut second).await, line(2, "ACCEPT", 7));
    assert_eq!(flow(&mut all).await, line(2, "ACCEPT", 7));
    drop(node);
    assert_eq!(first.next().await, None, "nothing of the other's");
}

#[tokio::test]
async fn a_line_says_why_and_a_rule_that_wants_one_action_shows_no_other() {
    let mut node = Node::with(&Rule { action: Action::Rejected, ..Rule::sample(600) });
    let mut observer = node.observe(Sight::Node, FOLLOW);
    node.send(1, class::PASSED, 1);
    node.send(1, class::LOST, 1);
    node.send(1, class::REFUSED_COUNTED, 2);
    let Batch::Flows(lines) = next(&mut observer).await else { panic!("no flows") };
    let [line] = &lines[..] else { panic!("{lines:?}") };
    assert_eq!((line.action.as_str(), line.reject_reason.as_deref()), ("REJECT", Some("REASON_7")));
    assert_eq!(line.to_string(), "tcp 10.0.0.1:4431 > 11.0.0.1:22");
    assert_eq!((line.interface.as_str(), line.flow_log.as_str(), line.packets, line.bytes), ("tap1", "web", 2, 200));
}

#[tokio::test]
async fn sums_take_refused_packets_out_of_the_accepted_ones_that_held_them() {
    let mut node = Node::new();
    let every = Some(Duration::from_millis(300));
    let mut observer = node.observe(Sight::Node, What::Top { every, entries: 1 });
    node.send(1, class::PASSED, 10);
    node.send(1, class::REFUSED_COUNTED, 4);
    node.send(1, class::LOST, 2);
    node.send(2, class::REFUSED, 1);
    let Batch::Top(report) = next(&mut observer).await else { panic!("no sums") };
    let total = report.total;
    assert_eq!((total.accepted_packets, total.rejected_packets, total.lost_packets), (6, 5, 2), "{report:?}");
    assert_eq!((total.accepted_bytes, total.rejected_bytes), (600, 500));
    let [interface] = &report.interfaces[..] else { panic!("{report:?}") };
    assert_eq!((interface.name.as_str(), interface.label.as_deref()), ("nic-1", Some("web")));
    let [reason] = &report.reasons[..] else { panic!("{report:?}") };
    assert_eq!(
        (reason.name.as_str(), reason.counts.rejected_packets, reason.counts.accepted_packets),
        ("REASON_7", 5, 0)
    );
    assert_eq!(
        (report.talkers[0].name.as_str(), report.flows[0].name.as_str()),
        ("10.0.0.1", "tcp 10.0.0.1:4431 > 11.0.0.1:22 ingress")
    );
    // The next stretch begins with nothing.
    let Batch::Top(next) = next(&mut observer).await else { panic!("no sums") };
    assert_eq!(next.total.packets(), 0);
}

#[tokio::test]
async fn who_does_not_read_loses_its_own_lines_and_is_told_how_many() {
    let mut node = Node::new();
    let mut slow = node.observe(Sight::Node, FOLLOW);
    slow.begun = None;
    let sent = 4 * BLOCKS_MAX as u64;
    (0..sent).for_each(|_| node.send(1, class::PASSED, 1));
    // Whoever comes now gets what comes now, when the hub has been through all of that.
    drop(node.tap);
    let mut got = 0;
    while let Some(Batch::Flows(lines)) = slow.next().await {
        got += lines.len() as u64;
    }
    assert!(got > 0 && got < sent);
    assert_eq!(got + slow.lost(), sent);
    let table = node.ledger.watched().next().expect("an interface").1.open_table();
    let counted: u64 = table.flows().map(|flow| flow.totals.packets).sum();
    assert_eq!(counted, sent, "the capture has them all");
}

#[test]
fn observers_have_a_limit_and_contracts_a_share_of_it() {
    let (live, _ends) = Live::new();
    let ask = |sight| live.observe(Ask { sight, filter: FlowFilter::default(), what: FOLLOW });
    let of_one: Vec<_> = (0..OBSERVERS_EACH).map(|_| ask(of(1)).expect("room")).collect();
    assert_eq!(ask(of(1)).err(), Some(LiveError::FullForContract));
    let others: Vec<_> = (OBSERVERS_EACH..OBSERVERS_MAX).map(|_| ask(Sight::Node).expect("room")).collect();
    assert_eq!(ask(of(2)).err(), Some(LiveError::Full));
    drop(of_one);
    assert!(ask(of(1)).is_ok());
    drop(others);
    assert!(!live.is_open(), "nobody is left");
}

#[tokio::test]
async fn an_observer_looks_at_sums_without_another_place() {
    let (live, ends) = Live::new();
    let ask = || live.observe(Ask { sight: of(1), filter: FlowFilter::default(), what: FOLLOW });
    let mut all: Vec<_> = (0..OBSERVERS_EACH).map(|_| ask().expect("room")).collect();
    for observer in &mut all {
        live.0.lock().waiting.clear();
        let (report, waited) = tokio::join!(observer.sums(3), async {
            let waiting = ends.tap.take_waiting(NOW).expect("it waits");
            let entries = match waiting.ask.what {
                What::Top { every: None, entries } => entries,
                other => panic!("{other:?}"),
            };
            let batch = Some(Batch::Top(Box::default()));
            waiting.begun.send(Begun { batch, ..Begun::default() }).expect("it listens");
            (waiting.ask.sight, entries)
        });
        assert!(report.is_some() && waited == (of(1), 3));
    }
    assert_eq!(ask().err(), Some(LiveError::FullForContract), "their number is as before");
    // Whoever asks anew has given up the answer before, and takes no more room than that.
    let mut one = all.remove(0);
    for _ in 0..3 {
        assert!(tokio::time::timeout(Duration::from_millis(1), one.sums(1)).await.is_err());
    }
    assert_eq!(live.0.lock().waiting.len(), 1);
    drop((one, all));
    assert!(live.0.lock().waiting.is_empty());
}

#[test]
fn a_large_flow_is_found_among_more_small_ones_than_there_is_room_for() {
    let mut node = Node::new();
    let mut tally = super::tally::Tally::default();
    let places = node.tap.places(&node.ledger);
    let place = places.get(&1).expect("watched");
    let small = 20_000;
    for n in 0..small {
        let address = Ip4::from_ne_bytes([10, 1, 0, 0]).wrapping_add(Ip4::to_be(n));
        for (src, packets) in [(address, 1), (ADDRESS, 2)] {
            let key = Key { src, dst: ADDRESS, meta: Meta { iface: 1, proto: 17, ..Meta::default() } };
            let record = block::Record::V4(Record4 { key, stats: Stats { packets, ..Stats::default() } });
            tally.add(&super::line::Seen::of_record(&record, place).expect("a flow"), place, None);
        }
    }
    let report = tally.report(1, 1_000, NOW);
    let all = u64::from(small);
    assert_eq!((report.flows[0].counts.accepted_packets, report.talkers[0].name.as_str()), (2 * all, "10.0.0.1"));
    assert_eq!(report.total.accepted_packets, 3 * all);
    assert!((all / 2..all).contains(&report.not_told_apart_packets), "{}", report.not_told_apart_packets);
}

#[test]
fn who_asks_again_and_again_waits_as_long_as_the_answers_take_and_not_the_ring() {
    let (live, ends) = Live::new();
    let mut tap = ends.tap;
    let later = |ns| Now { mono: MonoNs(NOW.mono.0 + ns), ..NOW };
    let recent = Some(RecentAsk { last: 1, within: None });
    let ask = |sight| Ask { sight, filter: FlowFilter::default(), what: What::Flows { recent, follow: false } };
    let _two = [of(1), of(2)].map(|sight| live.observe(ask(sight)).expect("room"));
    assert_eq!(tap.due_in_ns(NOW), 0);
    assert_eq!(tap.take_waiting(NOW).map(|w| w.ask.sight), Some(of(1)), "one at a time");
    tap.note_look(NOW, 1_000_000);
    assert!(tap.take_waiting(later(400_000_000)).is_none());
    // Who looks on sees as often as ever what comes.
    assert_eq!(tap.due_in_ns(later(400_000_000)), 100_000_000);
    assert_eq!(tap.take_waiting(later(500_000_000)).map(|w| w.ask.sight), Some(of(2)));
}

#[test]
fn an_interface_that_gets_the_id_of_another_one_is_told_to_the_programs_anew() {
    let mut node = Node::new();
    node.tap.observed = [1, 2].into();
    node.apply(Event::Unwatch { id: IfaceId(1) });
    node.watch(1, spec(1, Rule::sample(600)));
    assert_eq!(node.tap.observed, [2].into());
}
