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

use super::fleet::{SERVER, captured_on, created, finished, known_as, landed, path, send};

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

/// The value of a flow log in etcd, and its key.
fn value(region: &Region, nic: &str, id: &str) -> (String, String) {
    let key = format!("/flowlog/v1/rules/flow-logs/{nic}/{id}");
    let value = region.etcd.ctl(0, &["get", "--print-value-only", &key]).unwrap();
    (key, value.trim_end().to_owned())
}

/// What the operator's API says of a flow log: its mark, and why.
fn why(region: &Region, id: &str) -> (String, String) {
    let summary = region.ask(SERVER, "GET", &path(id), None).body;
    (summary["mark"].as_str().unwrap_or_default().to_owned(), summary["why"].to_string())
}

/// `flowlog rule …` of the server: exit code, what it says, and why not.
fn rule(region: &Region, args: &[&str]) -> (Option<i32>, String, String) {
    let mut command = region.hub.command(binary());
    command.arg("rule").args(args).env("FLOWLOG_SOCKET", region.path(&format!("{SERVER}.sock")));
    let out = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (out.status.code(), text(&out.stdout), text(&out.stderr))
}

#[test]
fn a_value_that_is_not_understood_ends_no_capture_and_is_said_until_one_is_that_is() {
    let region = Region::new(2, 1).unwrap();
    let mut server = region.serve(SERVER).unwrap();
    let mut agents = Vec::from_iter((1..=2).map(|n| region.start(n).unwrap()));
    let nics = [nic(1), nic(2)];
    for (n, nic) in (1..).zip(&nics) {
        region.arrive(nic, n).unwrap();
        region.known(SERVER, nic);
    }
    let id = created(&region, SERVER, &nics[0], "web");
    captured_on(&region, 1, &nics[0], &id);
    send(&region, 1, 10);
    let (key, good) = value(&region, &nics[0], &id);
    let later = good.replace(r#""state":"active""#, r#""state":"paused""#);
    assert_ne!(later, good);
    region.etcd.ctl(0, &["put", &key, &later]).unwrap();
    let words = agents[0].wait_for("is not understood").unwrap();
    assert!(words.contains(&id) && words.contains("paused"), "{words}");
    let is_said = |(mark, why): &(String, String)| {
        mark == "red" && why.contains("paused") && why.contains(&id) && why.contains("node n1 goes on")
    };
    region.until("it is said", || why(&region, &id), is_said);
    let cloud = region.state(SERVER, &nics[0], &id);
    assert!(cloud.0 == "FAILED" && cloud.1.contains("paused"), "{cloud:?}");
    // What is to stay as it is is not known, so a part of it cannot be changed.
    let renamed = region.ask(SERVER, "PATCH", &path(&id), Some(&json!({"name": "other"})));
    assert_eq!(renamed.status, 409, "{renamed:?}");
    // Numbers that no flow log can have are not understood either.
    let mut none: serde_json::Value = serde_json::from_str(&good).unwrap();
    none["settings"]["window_secs"] = json!(0);
    region.etcd.ctl(0, &["put", &key, &none.to_string()]).unwrap();
    region.until("it is said", || why(&region, &id), |(mark, why)| mark == "red" && why.contains("window `0`"));
    send(&region, 1, 10);
    region.etcd.ctl(0, &["put", &key, &later]).unwrap();
    region.until("it is said", || why(&region, &id), is_said);
    send(&region, 1, 10);
    // Also by an agent that has never seen another value than this one, and by a server that has not.
    agents[0].kill().unwrap();
    agents[0] = region.start(1).unwrap();
    let there = || region.ask_node(1, "GET", &path(&id), None).body["captures"][0]["capture"]["state"].clone();
    region.until("it is captured", there, |state| state == "attached");
    send(&region, 1, 10);
    server.kill().unwrap();
    server = region.serve(SERVER).unwrap();
    region.until("it is said", || why(&region, &id), is_said);
    region.etcd.ctl(0, &["put", &key, &good.replace(r#""name":"web""#, r#""name":"again""#)]).unwrap();
    known_as(&region, 1, &id, &json!("again"));
    captured_on(&region, 1, &nics[0], &id);
    region.until("nothing is said", || why(&region, &id), |(mark, why)| mark == "green" && why == "[]");
    send(&region, 1, 10);
    // One that was never understood: nothing is captured, which is said, and it can be deleted.
    let never = "00000000-0000-4000-8000-00000000dead";
    let key = format!("/flowlog/v1/rules/flow-logs/{}/{never}", nics[1]);
    region.etcd.ctl(0, &["put", &key, "damaged"]).unwrap();
    agents[1].wait_for("is not understood").unwrap();
    let is_said = |(mark, why): &(String, String)| mark == "red" && why.contains("node n2 captures nothing");
    region.until("it is said", || why(&region, never), is_said);
    send(&region, 2, 10);
    let (code, said, words) = rule(&region, &["delete", never]);
    assert_eq!((code, said.as_str()), (Some(0), "deleted\n"), "{words}");
    assert_eq!(region.etcd.ctl(0, &["get", "--keys-only", &key]).unwrap().trim(), "");
    drop(server);
    assert_eq!(landed(&region, agents), [50, 0]);
}

#[test]
fn a_flow_log_that_is_not_understood_is_deleted_and_replaced_and_its_capture_follows() {
    let region = Region::new(1, 1).unwrap();
    let mut server = region.serve(SERVER).unwrap();
    let agent = region.start(1).unwrap();
    let nic = nic(1);
    region.arrive(&nic, 1).unwrap();
    region.known(SERVER, &nic);
    let spoil = |id: &str| {
        let (key, good) = value(&region, &nic, id);
        let later = good.replace(r#""direction":"BIDIRECTIONAL""#, r#""direction":"SIDEWAYS""#);
        assert_ne!(later, good);
        region.etcd.ctl(0, &["put", &key, &later]).unwrap();
        region.until("it is said", || why(&region, id), |(mark, why)| mark == "red" && why.contains("SIDEWAYS"));
    };
    let properties = json!({"name": "anew", "direction": "INGRESS", "action": "ALL", "bucket": "flows"});
    let flow_logs = format!("/cloudapi/v6/datacenters/{DATACENTER}/servers/{VM}/nics/{nic}/flowlogs");
    let replace = |id: &str, properties: &serde_json::Value| {
        let answer = region.ask(SERVER, "PUT", &format!("{flow_logs}/{id}"), Some(&json!({"properties": properties})));
        finished(&region, SERVER, &answer)
    };
    let gone = |id: &str| {
        region.until("its capture has ended", || region.ask_node(1, "GET", &path(id), None).status, |s| *s == 404);
        assert_eq!(value(&region, &nic, id).1, "");
    };
    for forgets in [false, true] {
        // Deleted: by a server that has understood it once, and by one that has not.
        let id = created(&region, SERVER, &nic, "web");
        captured_on(&region, 1, &nic, &id);
        spoil(&id);
        if forgets {
            server.kill().unwrap();
            server = region.serve(SERVER).unwrap();
        }
        let (code, said, words) = rule(&region, &["delete", &id]);
        assert_eq!((code, said.as_str()), (Some(0), "deleted\n"), "{words}");
        gone(&id);
        // Replaced: by what it was, as an active flow log keeps all but its name; by one that has not understood it, by anything.
        let id = created(&region, SERVER, &nic, "web");
        captured_on(&region, 1, &nic, &id);
        spoil(&id);
        let mut next = properties.clone();
        if forgets {
            server.kill().unwrap();
            server = region.serve(SERVER).unwrap();
            region.known(SERVER, &nic);
        } else {
            next["direction"] = json!("BIDIRECTIONAL");
        }
        let done = replace(&id, &next);
        assert_eq!(done.0, "DONE", "{done:?}");
        known_as(&region, 1, &id, &json!("anew"));
        captured_on(&region, 1, &nic, &id);
        assert!(value(&region, &nic, &id).1.contains(next["direction"].as_str().unwrap()));
        assert_eq!(rule(&region, &["delete", "anew"]).0, Some(0));
        gone(&id);
    }
    drop(agent);
}

#[test]
fn a_command_that_is_not_answered_in_time_says_what_goes_on_and_how_to_ask_for_it() {
    let region = Region::new(1, 1).unwrap();
    let agent = region.start(1).unwrap();
    let nic = nic(1);
    region.arrive(&nic, 1).unwrap();
    let _server = region.serve(SERVER).unwrap();
    region.known(SERVER, &nic);
    let id = created(&region, SERVER, &nic, "web");
    captured_on(&region, 1, &nic, &id);
    // Its node is heard of, and does nothing.
    agent.signal(Signal::STOP);
    let (code, _, words) = rule(&region, &["delete", "web", "--timeout", "2s"]);
    assert_eq!(code, Some(75), "{words}");
    let request = words.split("flowlog rule request ").nth(1).unwrap().split('`').next().unwrap().to_owned();
    assert!(words.contains("is RUNNING, and goes on"), "{words}");
    agent.signal(Signal::CONT);
    let (code, said, words) = rule(&region, &["request", &request]);
    assert_eq!((code, said.as_str()), (Some(0), "done\n"), "{words}");
    // Nobody answers at all.
    let deaf = std::os::unix::net::UnixListener::bind(region.path("deaf.sock")).unwrap();
    let mut command = region.hub.command(binary());
    command.args(["rule", "list", "--timeout", "1s"]).env("FLOWLOG_SOCKET", region.path("deaf.sock"));
    let out = command.output().unwrap();
    assert_eq!(out.status.code(), Some(75));
    assert!(String::from_utf8_lossy(&out.stderr).contains("no answer in 1 s"));
    drop(deaf);
}

/// What `flowlog status` says of a node's state directory.
fn status(region: &Region, state_dir: &str) -> String {
    let state_dir = region.path(state_dir);
    let out = region.hub.command(binary()).args(["status", "--state-dir"]).arg(state_dir).output().unwrap();
    String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned()
}

#[test]
fn of_two_agents_with_one_node_id_the_second_captures_and_says_so_and_writes_nothing_until_it_is_alone() {
    let region = Region::new(2, 1).unwrap();
    let _server = region.serve(SERVER).unwrap();
    let mut first = region.start(1).unwrap();
    let nic = nic(1);
    region.arrive(&nic, 1).unwrap();
    region.known(SERVER, &nic);
    let id = created(&region, SERVER, &nic, "web");
    captured_on(&region, 1, &nic, &id);
    let held = || region.etcd.ctl(0, &["get", "/flowlog/v1/nodes/n1/resources", "--print-value-only"]).unwrap();
    // One that is started again, also after it was killed, is no other.
    first.kill().unwrap();
    let before = held();
    first = region.start(1).unwrap();
    captured_on(&region, 1, &nic, &id);
    assert!(!status(&region, "n1/state").contains("another agent"));
    let config = fs::read_to_string(region.path("n2/flowlog.toml")).unwrap();
    region.write("n2/flowlog.toml", &config.replace("node_id = 'n2'", "node_id = 'n1'")).unwrap();
    let other = "00000000-0000-4000-8000-00000000beef";
    region.arrive(other, 2).unwrap();
    region.arrive(&nic, 2).unwrap();
    let mut second = region.start(2).unwrap();
    let words = second.wait_for("another agent").unwrap();
    assert!(words.contains("`node_id` `n1`") && words.contains(&format!("process {}", first.pid())), "{words}");
    let there = || region.ask_node(2, "GET", &path(&id), None).body["captures"][0]["capture"]["state"].clone();
    region.until("it captures what it knows", there, |state| state == "attached");
    let words = second.wait_for("and is alive").unwrap();
    assert!(words.contains("give one of the two another `node_id`"), "{words}");
    region.until("it is in its status", || status(&region, "n2/state"), |text| text.contains("another agent"));
    assert_eq!(held(), before, "what the first one has is what the region knows");
    assert!(!region.ask(SERVER, "GET", "/flowlog/v1/inventory", None).body.to_string().contains(other));
    assert_eq!(why(&region, &id).0, "green");
    // It is alone.
    first.signal(Signal::TERM);
    first.wait().unwrap();
    second.wait_for("no other agent").unwrap();
    region.known(SERVER, other);
    region.until("nothing is said", || status(&region, "n2/state"), |text| !text.contains("another agent"));
}

#[test]
fn of_two_servers_with_one_name_the_second_reads_and_says_so_and_changes_nothing_until_it_is_alone() {
    let region = Region::new(1, 1).unwrap();
    let twin = region.control_config("twin").replace("node_id = 'twin'", &format!("node_id = '{SERVER}'"));
    region.write("twin.toml", &twin).unwrap();
    let mut server = region.serve(SERVER).unwrap();
    let _agent = region.start(1).unwrap();
    let nic = nic(1);
    region.arrive(&nic, 1).unwrap();
    region.known(SERVER, &nic);
    let ready = |name: &str| integration::http::unix_text(&region.path(&format!("{name}.metrics")), "/readyz");
    // One that is started again in its place, also after it was killed, is no other.
    for signal in [Signal::TERM, Signal::KILL] {
        server.signal(signal);
        server.wait().unwrap();
        server = region.serve(SERVER).unwrap();
        let answer = region.create(SERVER, &nic, "web");
        assert_eq!(finished(&region, SERVER, &answer).0, "DONE", "{answer:?}");
        assert_eq!(rule(&region, &["delete", "web"]).0, Some(0));
    }
    let mut second = region.spawn_server("twin").unwrap();
    let words = second.wait_for("another server").unwrap();
    assert!(words.contains(&format!("`node_id` `{SERVER}`")), "{words}");
    assert!(words.contains(&format!("process {}", server.pid())), "{words}");
    second.wait_for("serving the region").unwrap();
    region.known("twin", &nic);
    let refused = region.create("twin", &nic, "web");
    assert!(refused.status == 503 && refused.words().contains("another server"), "{refused:?}");
    assert!(ready("twin").is_ok_and(|text| text.contains("another server")) && ready(SERVER).unwrap() == "ok\n");
    let id = created(&region, SERVER, &nic, "web");
    region.until("the second one reads", || region.ask("twin", "GET", &path(&id), None).status, |s| *s == 200);
    second.wait_for("and is alive").unwrap();
    server.kill().unwrap();
    second.wait_for("no other server").unwrap();
    assert_eq!(region.ask("twin", "DELETE", &path(&id), None).status, 202);
    region.until("it is gone", || region.ask("twin", "GET", &path(&id), None).status, |s| *s == 404);
}
