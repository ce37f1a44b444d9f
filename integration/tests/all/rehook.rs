//! P3: a flow log whose hooks change goes on: no packet is missed, none is counted twice, and there is no gap. Witnesses: what was sent, packet
//! by packet, and the interface's own counters.

use std::{fs, path::Path, sync::atomic::AtomicBool, sync::atomic::Ordering, time::Duration};

use aya::programs::TcAttachType;
use integration::{
    agent::{Agent, binary},
    features,
    net::{Pair, sh, veth},
    node::Node,
    oracle::{Difference, Oracle},
    others::{Other, Place},
    rows::{Objects, metadata},
    skip_unless, traffic,
};
use rustix::process::Signal;

const PAUSE: Duration = Duration::from_millis(4);
const FLOWS: u32 = 2_000;
/// Frames of a burst on their way out.
const BURST: usize = 20;
const PAYLOAD: usize = 50;
/// Nobody sends to this port but [`send_out`].
const OUT: u16 = 4_000;

fn write(node: &Node, more: &str) {
    let (state, pins, objects) = (node.state(), node.pins(), node.objects());
    let head = format!("node_id = 'node'\nstate_dir = '{}'\npin_dir = '{}'\n", state.display(), pins.display());
    let target = objects.display();
    let log =
        format!("[[flow_log]]\ninterfaces = ['eth0']\nname = 'web'\ntarget = '{target}'\nwindow = '1d'\n{more}\n");
    fs::write(node.dir.path().join("flowlog.toml"), head + &log).unwrap();
}

fn spawn(node: &Node, variables: &[(&str, &str)]) -> Agent {
    let mut command = node.pair.a.command(binary());
    command.args(["run", "--config"]).arg(node.dir.path().join("flowlog.toml")).envs(variables.iter().copied());
    Agent::attend(command, tempfile::tempdir().unwrap()).unwrap()
}

fn start(node: &Node) -> Agent {
    let mut agent = spawn(node, &[]);
    agent.wait_for("capturing").unwrap();
    agent
}

fn reload(node: &Node) {
    let (status, out, error) = node.command(&["reload"]).unwrap();
    assert!(status == Some(0) && out.contains("flow log `web` on eth0: changed"), "{status:?} {out}{error}");
}

/// Sends packets out through the interface that is captured, to nobody who would answer.
fn send_out(pair: &Pair, packets: usize) {
    let macs = (pair.a.mac("eth0").unwrap(), pair.b.mac("eth0").unwrap());
    let frame = traffic::udp4(macs, ([10, 200, 0, 9].into(), OUT), ([10, 1, 0, 2].into(), OUT), PAYLOAD);
    pair.a.run(|| traffic::Raw::open("eth0").unwrap().send(&vec![frame; packets])).unwrap();
}

fn received(node: &Node) -> u64 {
    node.pair.a.statistic("eth0", "rx_packets").unwrap()
}

/// No window has a gap, and the books of each close.
fn judge_books(node: &Node, landed: &Objects) {
    let gaps: Vec<_> = landed.rows.iter().filter(|r| r.skip == "gap").collect();
    assert!(gaps.is_empty(), "{gaps:#?}");
    for balance in metadata(&node.objects(), "flowlog.balance").unwrap() {
        assert!(balance.ends_with("difference=0/0"), "{balance}");
    }
}

fn egress(landed: &Objects) -> u64 {
    landed.sum(|r| r.direction == "egress" && r.dport == i64::from(OUT)).0
}

/// All ways from one kind of hook to another that this kernel has.
fn kinds() -> Vec<&'static str> {
    if features::tcx() {
        vec!["tcx", "clsact", "xdp", "clsact", "tcx", "xdp", "tcx", "xdp"]
    } else {
        vec!["clsact", "xdp", "clsact", "xdp"]
    }
}

#[test]
fn another_kind_of_hook_counts_on_where_the_one_before_ends_both_ways_in_a_flood() {
    let node = Node::new(&[]).unwrap();
    write(&node, &format!("hook = '{}'", kinds()[0]));
    let mut agent = start(&node);
    let before = received(&node);
    let over = AtomicBool::new(false);
    let (oracle, gone) = std::thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let mut gone = 0;
            while !over.load(Ordering::Relaxed) {
                send_out(&node.pair, BURST);
                gone += BURST as u64;
                std::thread::sleep(PAUSE);
            }
            gone
        });
        let oracle = Oracle::watch(&node.pair, FLOWS, PAUSE, |_| {
            for kind in kinds().iter().cycle().skip(1).take(2 * kinds().len()) {
                write(&node, &format!("hook = '{kind}'"));
                reload(&node);
            }
            Ok(())
        });
        over.store(true, Ordering::Relaxed);
        (oracle.unwrap(), sender.join().unwrap())
    });
    node.pair.wait_until_quiet();
    let got = received(&node) - before;
    let log = agent.log();
    assert!(!log.contains("cannot take over from each other"), "{log}");
    agent.end().unwrap();
    let landed = node.detach().unwrap();
    judge_books(&node, &landed);
    let difference = oracle.compare(&landed);
    // What a driver throws away while it is given another program, or none, it has not counted either.
    let thrown = oracle.total - got;
    assert_eq!(
        (difference.lost, difference.duplicated, difference.unexpected),
        (thrown, 0, egress(&landed)),
        "{difference:#?}"
    );
    assert_eq!(egress(&landed), gone, "what went out");
}

#[test]
fn a_direction_comes_and_goes_while_the_other_one_counts_on() {
    let node = Node::new(&[]).unwrap();
    write(&node, "direction = 'ingress'");
    let mut agent = start(&node);
    let before = received(&node);
    let mut wanted = 0;
    let is_hooked =
        |direction: &str| sh(&format!("find {}", node.pins().display())).unwrap().contains(&format!("-{direction}\n"));
    let oracle = Oracle::watch(&node.pair, FLOWS, PAUSE, |_| {
        for (more, counts) in [
            ("direction = 'bidirectional'", true),
            ("direction = 'ingress'", false),
            ("direction = 'bidirectional'\nhook = 'clsact'", true),
            ("direction = 'bidirectional'\nhook = 'tc'", true),
            ("direction = 'ingress'\nhook = 'clsact'", false),
            ("direction = 'bidirectional'\nhook = 'xdp'", true),
            ("direction = 'ingress'\nhook = 'xdp'", false),
            ("direction = 'ingress'", false),
        ] {
            write(&node, more);
            reload(&node);
            send_out(&node.pair, 50);
            wanted += if counts { 50 } else { 0 };
            let by_link = counts && features::tcx() && !more.contains("clsact");
            assert_eq!(is_hooked("egress"), by_link, "{more}: only hooks that are needed stay");
            let filters = node.pair.a.exec("tc filter show dev eth0 egress").unwrap();
            assert_eq!(filters.contains("flowlog"), counts && !by_link, "{more}: {filters}");
        }
        Ok(())
    });
    let oracle = oracle.unwrap();
    let got = received(&node) - before;
    agent.end().unwrap();
    let landed = node.detach().unwrap();
    judge_books(&node, &landed);
    let difference = oracle.compare(&landed);
    assert_eq!((difference.lost, difference.duplicated, difference.unexpected), (oracle.total - got, 0, wanted));
    assert_eq!(egress(&landed), wanted, "from the one answer to the next, and no packet more");
    // And the other way round, with nothing on its way in meanwhile.
    write(&node, "direction = 'egress'");
    let mut agent = start(&node);
    send_out(&node.pair, 30);
    write(&node, "direction = 'bidirectional'");
    reload(&node);
    node.pair.b.run(|| traffic::udp("10.1.0.1:9", 40, PAYLOAD)).unwrap();
    node.pair.wait_until_quiet();
    agent.end().unwrap();
    let landed = node.detach().unwrap();
    judge_books(&node, &landed);
    assert_eq!((egress(&landed) - wanted, landed.sum(|r| r.dport == 9).0), (30, 40));
}

#[test]
fn a_hook_that_cannot_be_attached_leaves_the_window_open_that_there_is() {
    let node = Node::new(&[]).unwrap();
    write(&node, "");
    let mut agent = start(&node);
    let other = Other::attach(&node.pair.a, "xdp_pass", TcAttachType::Ingress, Place::XdpNative).unwrap();
    let oracle = Oracle::watch(&node.pair, FLOWS, PAUSE, |_| {
        write(&node, "hook = 'xdp'");
        let (status, out, error) = node.command(&["reload"])?;
        assert_eq!(status, Some(65), "{out}{error}");
        assert!(error.contains("an interface takes one XDP program"), "{error}");
        Ok(())
    });
    let oracle = oracle.unwrap();
    agent.signal(Signal::TERM);
    assert_eq!(agent.wait().unwrap(), Some(0));
    let landed = node.detach().unwrap();
    judge_books(&node, &landed);
    assert_eq!(oracle.compare(&landed), Difference::default());
    assert_eq!(landed.keys.len(), 1, "one window: {:?}", landed.keys);
    drop(other);
}

/// Runs a line of a shell in the namespace of the interface; `false`: it fails.
fn set(node: &Node, line: &str) -> bool {
    node.pair.a.command("sh").args(["-c", line]).output().unwrap().status.success()
}

/// What keeps one kind of hook from following another one, what takes that away, and what is to be said of it.
const OBSTACLES: [(&str, &str, &str, &str, &str); 4] = [
    (
        "tcx",
        "xdp",
        "echo 2 > /sys/class/net/eth0/queues/rx-0/rps_cpus",
        "echo 0 > /sys/class/net/eth0/queues/rx-0/rps_cpus",
        "write 0 to /sys/class/net/eth0/queues/rx-*/rps_cpus",
    ),
    (
        "xdp",
        "clsact",
        "echo 20000 > /sys/class/net/eth0/gro_flush_timeout",
        "echo 0 > /sys/class/net/eth0/gro_flush_timeout",
        "write 0 to /sys/class/net/eth0/gro_flush_timeout",
    ),
    (
        "tcx",
        "clsact",
        "ip link add d0 type dummy && tc qdisc add dev d0 root gred setup DPs 2 default 0",
        "ip link del d0",
        "gred on d0 reads skb->tc_index",
    ),
    (
        "clsact",
        "tcx",
        "ip link add d0 type dummy && tc qdisc add dev d0 root gred setup DPs 2 default 0",
        "ip link del d0",
        "gred on d0 reads skb->tc_index",
    ),
];

#[test]
fn a_reload_that_would_miss_packets_is_refused_with_what_to_do_and_holds_once_that_is_done() {
    skip_unless!(features::tcx(), "this kernel has no tcx links");
    for (from, to, obstruct, clear, words) in OBSTACLES {
        let node = Node::new(&[]).unwrap();
        write(&node, &format!("hook = '{from}'"));
        let mut agent = start(&node);
        if !set(&node, obstruct) {
            features::skipped(&format!("this kernel cannot do `{obstruct}`"));
            continue;
        }
        let before = received(&node);
        let oracle = Oracle::watch(&node.pair, FLOWS, PAUSE, |_| {
            // Another change comes with it: neither holds. Nor does it matter whether the interface may be waited for.
            for more in ["", "wait = true\n"] {
                write(&node, &format!("hook = '{to}'\n{more}[spool]\nbytes_max = '100MiB'"));
                let (status, out, error) = node.command(&["reload"])?;
                assert_eq!(status, Some(65), "{out}{error}");
                for words in [words, "flow log `web` on eth0", "goes on as before", "or restart the agent"] {
                    assert!(error.contains(words), "{words}: {error}");
                }
            }
            anyhow::ensure!(set(&node, clear));
            write(&node, &format!("hook = '{to}'\n[spool]\nbytes_max = '100MiB'"));
            let (status, out, error) = node.command(&["reload"])?;
            assert!(status == Some(0) && out.contains("changed") && out.contains("spool.bytes_max"), "{out}{error}");
            Ok(())
        });
        let oracle = oracle.unwrap();
        let got = received(&node) - before;
        agent.signal(Signal::TERM);
        assert_eq!(agent.wait().unwrap(), Some(0));
        let landed = node.detach().unwrap();
        judge_books(&node, &landed);
        let difference = oracle.compare(&landed);
        assert_eq!(
            (difference.lost, difference.duplicated),
            (oracle.total - got, 0),
            "{from} to {to}: {difference:#?}"
        );
        assert_eq!(landed.keys.len(), 2, "one window before, and one after: {:?}", landed.keys);
    }
}

#[test]
fn a_start_that_would_miss_packets_takes_the_gap_and_marks_it() {
    skip_unless!(features::tcx(), "this kernel has no tcx links");
    let (from, to, obstruct, _, words) = OBSTACLES[0];
    let node = Node::new(&[]).unwrap();
    write(&node, &format!("hook = '{from}'"));
    start(&node).end().unwrap();
    assert!(set(&node, obstruct));
    write(&node, &format!("hook = '{to}'"));
    let mut agent = start(&node);
    let log = agent.log();
    assert!(log.contains("the capture ends here and begins anew, with a gap") && log.contains(words), "{log}");
    agent.signal(Signal::TERM);
    assert_eq!(agent.wait().unwrap(), Some(0));
    let landed = node.detach().unwrap();
    assert_eq!(landed.rows.iter().filter(|r| r.skip == "gap").count(), 1, "{:#?}", landed.rows);
}

#[test]
fn a_start_does_not_take_the_hook_of_the_agent_before_for_somebody_elses_program() {
    let node = Node::new(&[]).unwrap();
    for (from, to) in [("xdp", "tc"), ("tc", "xdp"), ("xdp", "xdp")] {
        write(&node, &format!("hook = '{from}'"));
        start(&node).end().unwrap();
        write(&node, &format!("hook = '{to}'"));
        let mut agent = start(&node);
        let log = agent.log();
        assert!(!log.contains("somebody else"), "{from} to {to}: {log}");
        agent.end().unwrap();
    }
    let landed = node.detach().unwrap();
    judge_books(&node, &landed);
    assert!(landed.rows.iter().all(|r| !r.skip.starts_with("xdp")), "{:#?}", landed.rows);
}

#[test]
fn another_device_in_the_place_of_one_that_is_gone_is_no_reason_to_refuse() {
    let node = Node::new(&[]).unwrap();
    write(&node, "hook = 'tc'\nwait = true");
    let mut agent = start(&node);
    node.pair.a.exec("ip link del eth0").unwrap();
    agent.wait_for("the interface is gone").unwrap();
    veth((&node.pair.a, "eth0"), (&node.pair.b, "eth0")).unwrap();
    agent.wait_for("the interface is back").unwrap();
    assert!(set(&node, OBSTACLES[0].2));
    // What it steers matters once it is to be hooked otherwise; a flow log that is new on it is not asked.
    write(&node, "hook = 'xdp'\nwait = true");
    let (status, _, error) = node.command(&["reload"]).unwrap();
    assert!(status == Some(65) && error.contains(OBSTACLES[0].4), "{error}");
    fs::write(node.dir.path().join("flowlog.toml"), {
        let text = fs::read_to_string(node.dir.path().join("flowlog.toml")).unwrap();
        text.replace("['eth0']", "['eth1']")
    })
    .unwrap();
    assert_eq!(node.command(&["reload"]).unwrap().0, Some(0));
    write(&node, "hook = 'xdp'\nwait = true");
    assert_eq!(node.command(&["reload"]).unwrap().0, Some(0), "nobody captures there");
    agent.signal(Signal::TERM);
    agent.wait().unwrap();
}

/// Where a change of hooks is killed, and between which.
const POINTS: [(&str, &str, &str); 13] = [
    ("change_hooked", "hook = 'tcx'", "hook = 'xdp'"),
    ("filter_stands_behind", "hook = 'tcx'", "hook = 'clsact'"),
    ("hook_before_filter_is_gone", "hook = 'tcx'", "hook = 'clsact'"),
    ("change_turned", "hook = 'tcx'", "hook = 'clsact'"),
    ("change_recorded", "hook = 'tcx'", "hook = 'clsact'"),
    ("filter_stands_in", "hook = 'clsact'", "hook = 'tcx'"),
    ("hook_is_before_filter", "hook = 'clsact'", "hook = 'tcx'"),
    ("change_recorded", "hook = 'clsact'", "hook = 'xdp'"),
    ("xdp_hand_over", "hook = 'tcx'", "hook = 'xdp'"),
    ("xdp_cpu_handed_over", "hook = 'tcx'", "hook = 'xdp'"),
    ("xdp_hand_over", "hook = 'xdp'", "hook = 'tcx'"),
    ("xdp_cpu_handed_over", "hook = 'xdp'", "hook = 'tcx'"),
    ("change_told", "hook = 'xdp'", "hook = 'clsact'"),
];

#[test]
fn nothing_is_lost_or_doubled_when_the_agent_is_killed_while_hooks_change() {
    skip_unless!(features::tcx(), "this kernel has no tcx links");
    let node = Node::new(&[]).unwrap();
    write(&node, POINTS[0].1);
    start(&node).kill().unwrap();
    let before = received(&node);
    let oracle = Oracle::watch(&node.pair, FLOWS, PAUSE, |_| {
        for (point, from, to) in POINTS {
            write(&node, from);
            // What the last one was killed over is done first; then, perhaps, a change that the file has seen since.
            start(&node).kill()?;
            let mut agent = spawn(&node, &[("FLOWLOG_FAULT", &format!("{point}:1"))]);
            agent.wait_for("capturing")?;
            write(&node, to);
            agent.signal(Signal::HUP);
            agent.wait_for(&format!("killed at {point}"))?;
            agent.wait()?;
        }
        start(&node).kill()
    });
    let oracle = oracle.unwrap();
    let got = received(&node) - before;
    let landed = node.detach().unwrap();
    judge_books(&node, &landed);
    let difference = oracle.compare(&landed);
    assert_eq!(
        (difference.lost, difference.duplicated, difference.unexpected),
        (oracle.total - got, 0, 0),
        "{difference:#?}"
    );
    assert!(!Path::new(&node.pins()).exists());
}
