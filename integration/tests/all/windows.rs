//! Windows on a real agent: alignment, marks, NODATA. What the wall clock can do to them is tested with a fake clock
//! in `flowlog_pipeline::window::clock`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use integration::{agent::Agent, net::Pair, traffic};

#[test]
fn records_belong_to_the_window_in_which_the_packet_passed() {
    let pair = Pair::new().unwrap();
    let mut agent = Agent::start(&pair.a, &["eth0"], &["--window", "1", "--subsecond"]).unwrap();
    for port in 5_000..5_004 {
        agent.wait_for("window closed").unwrap();
        pair.b.run(|| traffic::udp(&format!("10.1.0.1:{port}"), 10, 10)).unwrap();
    }
    let landed = agent.stop().unwrap();
    let mut whole = 0;
    for row in landed.rows.iter().filter(|r| r.status == "OK") {
        let start = row.window_start * 1_000_000_000;
        let end = (row.window_start + 1) * 1_000_000_000;
        // The agent turns the window within milliseconds of its end; here it shares two CPUs with floods.
        let slack = 900_000_000;
        assert!(row.start_ns >= start && row.end_ns < end + slack && row.end_ns >= row.start_ns, "{row:?}");
        whole += u64::from(row.marks.is_empty());
    }
    assert!(whole > 0, "{:#?}", landed.rows);
    for port in 5_000..5_004 {
        assert_eq!(landed.sum(|r| r.dport == port).0, 10);
    }
    let last = landed.rows.iter().max_by_key(|r| r.window_start).unwrap();
    assert!(last.marks.contains("ends_early"), "{last:?}");
    let first = landed.rows.iter().min_by_key(|r| r.window_start).unwrap();
    assert!(first.marks.contains("begins_late"), "{first:?}");
}

#[test]
fn times_of_packets_are_true_to_the_timer_tick_and_within_their_window() {
    let pair = Pair::new().unwrap();
    let mut agent = Agent::start(&pair.a, &["eth0"], &["--window", "1", "--subsecond"]).unwrap();
    let now = || i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos()).unwrap();
    let mut sent = Vec::new();
    for window in 0..3 {
        agent.wait_for("window closed").unwrap();
        for port in (5_000 + 40 * window..).take(40) {
            let before = now();
            pair.b.run(|| traffic::udp(&format!("10.1.0.1:{port}"), 1, 10)).unwrap();
            sent.push((port, before, now()));
            // Somewhere else in the tick.
            std::thread::sleep(Duration::from_micros(1_300));
        }
    }
    let landed = agent.stop().unwrap();
    let tick = i64::try_from(flowlog_host::clock::tick_ns()).unwrap();
    assert!(tick > 0);
    let mut late = 0;
    for (port, before, after) in sent {
        let row = landed.rows.iter().find(|r| r.dport == port && r.direction == "ingress").unwrap();
        assert!(row.start_ns >= row.window_start * 1_000_000_000, "before its window: {row:?}");
        assert!(row.start_ns > before - tick, "{} ns before it was sent: {row:?}", before - row.start_ns);
        late += u32::from(row.start_ns > after + tick);
    }
    // A packet may wait for its softirq; most do not.
    assert!(late <= 12, "{late} of 120 are late by more than a tick");
    for row in landed.rows.iter().filter(|r| r.status == "OK") {
        assert!(row.start_ns >= row.window_start * 1_000_000_000 && row.end_ns >= row.start_ns, "{row:?}");
    }
}

#[test]
fn a_window_without_traffic_is_one_nodata_row_unless_switched_off() {
    for (args, rows) in [(vec![], 1), (vec!["--no-nodata"], 0)] {
        let pair = Pair::new().unwrap();
        for ns in [&pair.a, &pair.b] {
            ns.sysctl("net.ipv6.conf.eth0.disable_ipv6", "1").unwrap();
        }
        let agent = Agent::start(&pair.a, &["eth0"], &args).unwrap();
        let landed = agent.stop().unwrap();
        assert_eq!(landed.rows.len(), rows, "{:#?}", landed.rows);
        assert!(landed.rows.iter().all(|r| r.status == "NODATA" && r.src.is_empty()));
    }
}

#[test]
fn a_window_with_too_many_flows_is_flushed_early_and_marked() {
    let pair = Pair::new().unwrap();
    let mut agent = Agent::start(&pair.a, &["eth0"], &["--flows-max", "1000", "--cache-slots", "16"]).unwrap();
    let macs = (pair.b.mac("eth0").unwrap(), pair.a.mac("eth0").unwrap());
    let frames: Vec<_> = (0..5_000)
        .map(|p| traffic::udp4(macs, ([10, 200, 0, 1].into(), 1_000 + p), ([10, 1, 0, 1].into(), 9), 10))
        .collect();
    pair.b.run(|| traffic::Raw::open("eth0").unwrap().send(&frames)).unwrap();
    agent.wait_for("window closed").unwrap();
    let landed = agent.stop().unwrap();
    assert!(landed.keys.len() > 1, "{:?}", landed.keys);
    assert_eq!(landed.sum(|r| r.dport == 9).0, 5_000);
    assert!(landed.rows.iter().any(|r| r.marks.contains("flushed_early")));
}
