//! What an operator does with a region's server and its nodes: a server that reads its configuration again, and a node that moves into a region
//! and out of it again. The witness of its packets is nftables.

use std::fs;

use integration::{
    agent::{Agent, binary},
    fleet::{Region, nic},
    managed::{CONTRACT, DATACENTER, SERVER as VM},
};
use rustix::process::Signal;
use serde_json::json;

use super::fleet::{SERVER, captured_on, landed, path};

/// The length of windows that flow logs have which a server has made last.
fn window_secs(region: &Region, server: &str, id: &str) -> u64 {
    let export = region.ask(server, "GET", "/flowlog/v1/export", None).body;
    let all = export["flow_logs"].as_array().unwrap();
    all.iter().find(|f| f["id"] == id).unwrap()["settings"]["window_secs"].as_u64().unwrap()
}

#[test]
fn a_server_reads_its_configuration_again_and_what_it_cannot_be_leaves_everything_as_it_was() {
    let region = Region::new(1, 1).unwrap();
    let mut server = region.serve(SERVER).unwrap();
    let _agent = region.start(1).unwrap();
    let nic = nic(1);
    region.arrive(&nic, 1).unwrap();
    region.known(SERVER, &nic);
    let draft = |server: &str, bucket: &str| {
        let draft = json!({"resource": nic, "name": bucket, "direction": "INGRESS", "action": "ALL", "bucket": bucket});
        let made = region.ask(server, "POST", "/flowlog/v1/flowlogs", Some(&draft));
        assert_eq!(made.status, 201, "{made:?}");
        made.body["id"].as_str().unwrap().to_owned()
    };
    let validated = |server: &str, id: &str| {
        assert_eq!(region.ask(server, "POST", &format!("{}/validate", path(id)), None).status, 200);
        region.ask(server, "GET", &path(id), None).body["state"] == "validated"
    };
    let [early, others] = ["flows", "others"].map(|bucket| draft(SERVER, bucket));
    assert_eq!(window_secs(&region, SERVER, &early), 86_400);
    assert!(!validated(SERVER, &others), "there is no such bucket yet");
    // Elsewhere: the socket, the figures, whose buckets are whose; and other defaults.
    let elsewhere = region.path("elsewhere");
    fs::create_dir_all(elsewhere.join(format!("{CONTRACT}/others"))).unwrap();
    region.write("others.toml", &format!("[buckets]\ndirectory = '{}'\n", elsewhere.display())).unwrap();
    let first = region.control_config(SERVER);
    let second = first
        .replace(&format!("{SERVER}.sock"), "second.sock")
        .replace(&format!("{SERVER}.metrics"), "second.metrics")
        .replace("buckets.toml", "others.toml")
        .replace("window = '1d'", "window = '1h'");
    let reload = |server: &mut Agent, text: &str, words: &str| {
        region.write(&format!("{SERVER}.toml"), text).unwrap();
        server.signal(Signal::HUP);
        server.wait_for(words).unwrap()
    };
    let said = reload(&mut server, &second, "SIGHUP: ");
    for key in ["api.socket", "metrics.listen", "inventory.file", "flow_log_defaults.window"] {
        assert!(said.contains(key), "{key}: {said}");
    }
    let answers = || region.ask("second", "GET", "/flowlog/v1/inventory", None).status;
    assert_eq!(answers(), 200);
    let figures = |name: &str| integration::http::unix_text(&region.path(name), "/metrics");
    region.until("figures are there", || figures("second.metrics").is_ok(), |is_there| *is_there);
    for gone in [format!("{SERVER}.sock"), format!("{SERVER}.metrics")] {
        region.until("nothing is left", || region.path(&gone).exists(), |is_there| !*is_there);
    }
    region.until("its bucket is there", || validated("second", &others), |is_valid| *is_valid);
    assert_eq!(window_secs(&region, "second", &draft("second", "flows")), 3_600);
    // What is decided at the start, what is no configuration, and an address that is taken: nothing of it is in force.
    for (wrong, words) in [
        (
            second.replace("[inventory]", "etcd_prefix = '/other'\n[inventory]").replace("second.sock", "third.sock"),
            "rules.etcd_prefix",
        ),
        (format!("{second}nonsense = 1\n"), "nonsense"),
        (
            second.replace("second.sock", "n1/agent.sock").replace("second.metrics", "third.metrics"),
            "another process serves it",
        ),
    ] {
        let said = reload(&mut server, &wrong, "the configuration is what it was: ");
        assert!(said.contains(words), "{said}");
        assert_eq!(answers(), 200);
        assert!(figures("second.metrics").is_ok());
        for never in ["third.sock", "third.metrics"] {
            assert!(!region.path(never).exists(), "{never}");
        }
    }
    // And it still can be what it was at first.
    reload(&mut server, &first, "inventory.file");
    region.until("it is back", || region.path(&format!("{SERVER}.sock")).exists(), |is_there| *is_there);
    assert_eq!(region.ask(SERVER, "GET", "/flowlog/v1/inventory", None).status, 200);
}

/// The node's configuration, of its own store.
fn alone(region: &Region) -> String {
    let config = fs::read_to_string(region.path("n1/flowlog.toml")).unwrap();
    let (head, rest) = config.split_once("[rules]").unwrap();
    let (_, inventory) = rest.split_once("[inventory]").unwrap();
    format!("{head}[inventory]{inventory}[flow_log_defaults]\nwindow = '1d'\n")
}

/// `flowlog rule export` of one store, and `import` into another, as docs/fleet.md has them; what the latter says, or why it refuses.
fn carried(region: &Region, from: &str, to: &str) -> Result<String, String> {
    let line = format!(
        "FLOWLOG_SOCKET={} {binary} rule export > rules.json\nFLOWLOG_SOCKET={} {binary} rule import rules.json",
        region.path(from).display(),
        region.path(to).display(),
        binary = binary().display()
    );
    let done = region.hub.command("sh").args(["-ec", &line]).current_dir(region.dir.path()).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    if done.status.success() { Ok(text(done.stdout)) } else { Err(text(done.stderr)) }
}

#[test]
fn a_node_moves_into_a_region_and_back_by_restarts_and_every_packet_is_counted_once() {
    let region = Region::new(1, 1).unwrap();
    let fleet = fs::read_to_string(region.path("n1/flowlog.toml")).unwrap();
    region.write("n1/flowlog.toml", &alone(&region)).unwrap();
    let own = fs::read_to_string(region.path("n1/flowlog.toml")).unwrap();
    let mut agent = region.start(1).unwrap();
    let nic = nic(1);
    region.arrive(&nic, 1).unwrap();
    let list = || region.ask_node(1, "GET", "/flowlog/v1/inventory", None).body.to_string();
    region.until("the NIC is known", list, |text| text.contains(&nic));
    let flow_logs = format!("/cloudapi/v6/datacenters/{DATACENTER}/servers/{VM}/nics/{nic}/flowlogs");
    let properties = json!({"name": "web", "direction": "BIDIRECTIONAL", "action": "ALL", "bucket": "flows"});
    let made = region.ask_node(1, "POST", &flow_logs, Some(&json!({"properties": properties})));
    assert_eq!(made.status, 202, "{made:?}");
    let id = made.body["id"].as_str().unwrap().to_owned();
    let attached = || region.ask_node(1, "GET", &path(&id), None).body["captures"][0]["capture"]["state"].clone();
    region.until("it is captured", attached, |state| state == "attached");
    let witness = "table inet w {\n counter passed { }\n chain c { type filter hook prerouting priority -400; udp dport 9 counter name passed; }\n}";
    region.nodes[0].nft(witness).unwrap();
    let passed = || region.nodes[0].nft_counter("inet w", "passed").unwrap().0;
    let traffic = region.traffic(1);
    let restart = |agent: &mut Agent, config: &str| {
        region.write("n1/flowlog.toml", config).unwrap();
        agent.signal(Signal::TERM);
        agent.wait().unwrap();
        *agent = region.start(1).unwrap();
    };
    // Into the region.
    let _server = region.serve(SERVER).unwrap();
    let imported = carried(&region, "n1/agent.sock", "control.sock");
    assert_eq!(imported.as_deref(), Ok("1 imported, 0 here already\n"));
    restart(&mut agent, &fleet);
    captured_on(&region, 1, &nic, &id);
    let renamed = region.ask(SERVER, "PATCH", &path(&id), Some(&json!({"name": "in-the-region"})));
    assert_eq!(renamed.status, 200, "{renamed:?}");
    let name = || region.ask_node(1, "GET", &path(&id), None).body["properties"]["name"].clone();
    region.until("the node has it from the region", name, |name| name == "in-the-region");
    // And back: the file has it as it was, and keeps that.
    restart(&mut agent, &own);
    region.until("it is captured", attached, |state| state == "attached");
    assert_eq!(name(), "web");
    let refused = carried(&region, "control.sock", "n1/agent.sock").unwrap_err();
    assert!(refused.contains("is another version"), "{refused}");
    let sent = traffic.stop()[1];
    region.until("all of it is in", passed, |n| *n >= sent);
    let counted = passed();
    assert_eq!(landed(&region, vec![agent]), [counted], "packets that have passed, by the node's objects");
    assert_eq!(counted, sent);
}
