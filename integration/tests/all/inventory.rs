//! The inventory is read again when it changes, and captures follow it.

use std::time::{Duration, Instant};

use integration::{
    managed::{Managed, NIC, plug_in},
    net::Netns,
};
use serde_json::json;

const PACKETS: usize = 20;
const VM: &str = "00000000-0000-4000-8000-00000000000b";

/// A drop-in for one VM, as its tooling writes it.
fn drop_in(node: &Managed, interface: &str) {
    let inventory = node.inventory();
    let nic = inventory.split("[[nic]]").nth(1).unwrap().replace(NIC, VM).replace("name = 'tap0'", interface);
    node.write("inventory.d/vm.toml", &format!("[[nic]]{nic}")).unwrap();
}

fn wait_for(node: &Managed, id: &str, words: &str) {
    let since = Instant::now();
    loop {
        let summary = node.summary(id).to_string();
        if summary.contains(words) {
            return;
        }
        assert!(since.elapsed() < Duration::from_secs(30), "no `{words}` in {summary}");
        // Status has no event: it is asked for.
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn unplug(ns: &Netns, interface: &str) {
    ns.exec(&format!("ip link del {interface}")).unwrap();
}

#[test]
fn a_flow_log_waits_for_its_vm_and_follows_it_wherever_the_inventory_says_it_is() {
    let node = Managed::new("no_pin = true").unwrap();
    let mut agent = node.start().unwrap();
    drop_in(&node, "name = 'tap20'");
    let known = || node.ask("GET", "/flowlog/v1/inventory", None).body.to_string().contains(VM);
    while !known() {
        std::thread::yield_now();
    }
    let id = node.draft(VM, "vm", "flows");
    assert_eq!(node.finish(&node.ask("POST", "/flowlog/v1/provision", Some(&json!({"flow_logs": [id]})))).0, "DONE");
    wait_for(&node, &id, "waiting for interface tap20");
    assert_eq!(node.summary(&id)["mark"], "yellow");
    // The VM starts.
    let since = Instant::now();
    plug_in(&node.node, &node.far, "tap20", 20).unwrap();
    agent.wait_for("watching interface=\"tap20\"").unwrap();
    eprintln!("watched after {:?}", since.elapsed());
    node.send(20, "tap20", PACKETS).unwrap();
    // It is started again on another tap, which is known by its address.
    plug_in(&node.node, &node.far, "tap21", 21).unwrap();
    let mac = node.node.mac("tap21").unwrap().map(|b| format!("{b:02x}")).join(":");
    drop_in(&node, &format!("mac = '{mac}'"));
    agent.wait_for("watching interface=\"tap21\"").unwrap();
    node.send(21, "tap21", PACKETS).unwrap();
    // A slip of the tooling ends nothing.
    node.write("inventory.d/vm.toml", "[[nic]]\nid = 'x'\n").unwrap();
    agent.wait_for("still holds").unwrap();
    node.send(21, "tap21", PACKETS).unwrap();
    // The VM leaves the node, and comes back.
    std::fs::remove_file(node.path("inventory.d/vm.toml")).unwrap();
    wait_for(&node, &id, "not in the inventory");
    unplug(&node.node, "tap21");
    plug_in(&node.node, &node.far, "tap22", 22).unwrap();
    drop_in(&node, "name = 'tap22'");
    agent.wait_for("watching interface=\"tap22\"").unwrap();
    wait_for(&node, &id, "\"state\":\"attached\"");
    node.send(22, "tap22", PACKETS).unwrap();
    // Its log has the slip as an error.
    agent.signal(rustix::process::Signal::TERM);
    assert_eq!(agent.wait().unwrap(), Some(0));
    let landed = node.landed("flows").unwrap();
    // From the guest's side.
    assert_eq!(landed.sum(|r| r.dport == 9 && r.direction == "egress").0, 4 * PACKETS as u64);
    assert_eq!(landed.rows.iter().filter(|r| r.skip == "gap").count(), 2);
    assert!(landed.rows.iter().all(|r| r.interface == VM), "{:#?}", landed.rows);
}

#[test]
fn a_pipe_among_the_drop_ins_is_a_problem_and_nobody_waits_for_it() {
    let node = Managed::new("no_pin = true").unwrap();
    let mut agent = node.start().unwrap();
    let pipe = node.path("inventory.d/a-pipe.toml");
    let (kind, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR);
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, kind, mode, 0).unwrap();
    // What comes after it is read all the same.
    drop_in(&node, "name = 'tap20'");
    let (since, mut said) = (Instant::now(), String::new());
    while !(said.contains(VM) && said.contains("a-pipe.toml: is no regular file")) {
        assert!(since.elapsed() < Duration::from_secs(30), "{said}");
        said = node.ask("GET", "/flowlog/v1/inventory", None).body.to_string();
    }
    agent.wait_for("a-pipe.toml: is no regular file").unwrap();
}

#[test]
fn what_is_wrong_with_the_inventory_is_said_once_until_it_is_wrong_in_another_way() {
    let node = Managed::new("no_pin = true").unwrap();
    node.write("inventory.d/broken.toml", "[[nic]]\nid = 7\n").unwrap();
    let mut agent = node.start().unwrap();
    // A NIC comes, and a flow log with it: by then everything that begins has begun.
    drop_in(&node, "name = 'tap20'");
    while !node.ask("GET", "/flowlog/v1/inventory", None).body.to_string().contains(VM) {
        std::thread::yield_now();
    }
    let id = node.draft(VM, "vm", "flows");
    assert_eq!(node.finish(&node.ask("POST", "/flowlog/v1/provision", Some(&json!({"flow_logs": [id]})))).0, "DONE");
    let said =
        |agent: &mut integration::agent::Agent| agent.log().lines().filter(|line| line.contains("broken.toml")).count();
    assert_eq!(said(&mut agent), 1);
    node.write("inventory.d/broken.toml", "[[nic]]\nname = 7\n").unwrap();
    agent.wait_for("broken.toml").unwrap();
    assert_eq!(said(&mut agent), 2, "{}", agent.log());
}
