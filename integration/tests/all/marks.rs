//! P1: a REJECT row says which rule it was, where the operator's rules mark what they refuse.
//!
//! Every test compares with named counters of the rules that set the marks. No rule of the operator's is changed by the agent.

use std::{net::UdpSocket, path::Path};

use aya::programs::TcAttachType;
use integration::{
    agent::{Agent, binary},
    claims::{BYTES, NONE, PACKETS, PAYLOAD, sum},
    features,
    others::{Other, Place},
    rows::{Objects, Sum},
    skip_unless,
    stacks::Routed,
    traffic,
};

/// Refused packets and bytes of UDP to port 7 on `in0`, by mark and rule.
fn refused(landed: &Objects) -> Vec<(i64, String, Sum)> {
    let rows = landed.rows.iter().filter(|r| r.action == "REJECT" && r.protocol == 17 && r.interface == "node-in0");
    let mut all: Vec<_> = rows.map(|r| (r.mark, r.rule.clone(), (r.packets, r.bytes))).collect();
    all.sort();
    all
}

/// Starts the agent on `in0` and `out0` with these lines in its configuration.
fn start(net: &Routed, dir: &Path, lines: &str) -> Agent {
    let file = dir.join("flowlog.toml");
    let (state, objects) = (dir.join("state"), dir.join("objects"));
    let text = format!(
        "node_id = 'node'\nno_pin = true\nstate_dir = '{}'\n{lines}\n[[flow_log]]\ninterfaces = ['in0', 'out0']\nwindow = 3600\ntarget = '{}'\n",
        state.display(),
        objects.display()
    );
    std::fs::write(&file, text).unwrap();
    let mut command = net.router.command(binary());
    command.args(["run", "--config"]).arg(file);
    let mut agent = Agent::attend(command, tempfile::tempdir().unwrap()).unwrap();
    agent.wait_for("capturing").unwrap();
    agent
}

fn stop(mut agent: Agent, dir: &Path) -> Objects {
    agent.end().unwrap();
    Objects::below(&dir.join("objects")).unwrap()
}

/// Two rules that refuse packets of one flow by their size, each with a mark of its own.
fn two_rules(mark: &str) -> String {
    let rule = |bytes: u64, value: &str, counter: &str| {
        format!("  udp dport 7 ip length {bytes} {mark} set {value} counter name {counter} drop;\n")
    };
    let rules = [rule(BYTES, "0x1012", "small"), rule(BYTES + 10, "0x2034", "large")].concat();
    format!(
        "table ip t {{\n counter small {{ }}\n counter large {{ }}\n chain c {{\n  type filter hook forward priority 0;\n{rules} }}\n}}\n"
    )
}

/// Sends packets of two sizes in turns, all of one flow; returns what the two rules have counted.
fn two_sizes(net: &Routed) -> [Sum; 2] {
    net.client.run(|| {
        let socket = UdpSocket::bind("10.2.0.2:0").unwrap();
        for _ in 0..PACKETS {
            socket.send_to(&[0; PAYLOAD], "10.3.0.2:7").unwrap();
            socket.send_to(&[0; PAYLOAD + 10], "10.3.0.2:7").unwrap();
        }
    });
    ["small", "large"].map(|counter| net.router.nft_counter("ip t", counter).unwrap())
}

const LARGE: Sum = (PACKETS as u64, PACKETS as u64 * (BYTES + 10));

#[test]
fn two_rules_that_refuse_one_flow_have_a_row_each_with_its_mark() {
    // One slot for all that is refused as well.
    for slots in ["4096", "16"] {
        let net = Routed::new().unwrap();
        net.router.nft(&two_rules("meta mark")).unwrap();
        let agent = Agent::start(&net.router, &["in0", "out0"], &["--refused-slots", slots]).unwrap();
        assert_eq!(two_sizes(&net), [sum(PACKETS), LARGE]);
        let landed = agent.stop().unwrap();
        let of = |mark, sum| (mark, "netfilter".to_owned(), sum);
        assert_eq!(refused(&landed), [of(0x1012, sum(PACKETS)), of(0x2034, LARGE)], "{:#?}", landed.rows);
        assert_eq!(landed.on("out0").flows("REJECT"), landed.on("in0").flows("REJECT"));
        assert_eq!(landed.on("in0").udp(7, "ingress", "ACCEPT"), NONE);
    }
}

#[test]
fn a_rule_is_named_by_its_mark_under_the_mask() {
    let lines = "rule_mark = { mask = 0xff }\nverdict_marks = { 0x12 = 'sg-ssh', 77 = 'nobody' }";
    let net = Routed::new().unwrap();
    net.router.nft(&two_rules("meta mark")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let agent = start(&net, dir.path(), lines);
    assert_eq!(two_sizes(&net), [sum(PACKETS), LARGE]);
    let landed = stop(agent, dir.path());
    let expected = [(0x12, "sg-ssh".to_owned(), sum(PACKETS)), (0x34, "netfilter".to_owned(), LARGE)];
    assert_eq!(refused(&landed), expected, "{:#?}", landed.rows);
}

#[test]
fn the_mark_of_the_connection_is_taken_if_that_is_wanted() {
    for (from, expected) in [("connection", [0x1012, 0x2034]), ("packet", [-1, -1]), ("nothing", [-1, -1])] {
        let net = Routed::new().unwrap();
        net.router.nft(&two_rules("ct mark")).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let agent = start(&net, dir.path(), &format!("rule_mark = {{ from = '{from}' }}"));
        assert_eq!(two_sizes(&net), [sum(PACKETS), LARGE]);
        let landed = stop(agent, dir.path());
        let marks: Vec<i64> = refused(&landed).iter().map(|(mark, ..)| *mark).collect();
        if from == "connection" {
            assert_eq!(marks, expected, "{:#?}", landed.rows);
        } else {
            assert_eq!(marks, [-1], "one row: {:#?}", landed.rows);
        }
        assert_eq!(landed.on("in0").flows("REJECT"), (2 * PACKETS as u64, sum(PACKETS).1 + LARGE.1), "{from}");
    }
}

#[test]
fn what_is_refused_without_a_mark_names_the_part_of_the_kernel() {
    let net = Routed::new().unwrap();
    net.router
        .nft("table ip t {\n counter refused { }\n chain c { type filter hook input priority 0; udp dport 7 counter name refused drop; }\n}\n")
        .unwrap();
    let agent = Agent::start(&net.router, &["in0", "out0"], &[]).unwrap();
    net.client.run(|| traffic::udp("10.2.0.1:7", PACKETS, PAYLOAD)).unwrap();
    let landed = agent.stop().unwrap();
    assert_eq!(net.router.nft_counter("ip t", "refused").unwrap(), sum(PACKETS));
    assert_eq!(refused(&landed), [(-1, "netfilter".to_owned(), sum(PACKETS))], "{:#?}", landed.rows);
}

#[test]
fn a_program_that_drops_is_named_by_its_id_and_a_filter_by_its_name_too() {
    skip_unless!(features::tcx(), "programs before ours need tcx links (Linux 6.6)");
    let cases = [
        (Place::TcxFirst, "tc_drop", "tc"),
        (Place::TcxLast, "tc_drop", "tc"),
        (Place::Clsact, "tc_drop", "tc"),
        (Place::XdpGeneric, "xdp_drop", "xdp"),
    ];
    for (place, program, subsystem) in cases {
        let net = Routed::new().unwrap();
        let agent = Agent::start(&net.router, &["in0", "out0"], &[]).unwrap();
        let other = Other::attach_to(&net.router, c"in0", program, TcAttachType::Ingress, place).unwrap();
        // What the test kit drops: UDP to port 7.
        net.client.run(|| traffic::udp("10.3.0.2:7", PACKETS, PAYLOAD)).unwrap();
        let landed = agent.stop().unwrap();
        assert_eq!(other.counters().unwrap().1, PACKETS as u64, "{place:?}");
        let id = other.id(program).unwrap();
        let name = if place == Place::Clsact { format!(":{program}") } else { String::new() };
        let expected = [(-1, format!("{subsystem}:{id}{name}"), sum(PACKETS))];
        assert_eq!(refused(&landed), expected, "{place:?}: {:#?}", landed.rows);
    }
}
