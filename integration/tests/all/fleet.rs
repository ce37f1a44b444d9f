//! Rules for a fleet: flow logs in etcd, servers without a kernel, nodes that carry out what concerns them; and flow logs that move between
//! stores. etcd is Debian's.

use std::time::Duration;

use integration::{
    agent::Agent,
    fleet::{Region, nic},
    http::Answer,
    managed::{Managed, NAT, NIC, NLB},
    traffic,
};
use serde_json::{Value, json};

/// The server of most tests.
pub(super) const SERVER: &str = "control";

fn provision(node: &Managed, ids: &[&str]) {
    let done = node.finish(&node.ask("POST", "/flowlog/v1/provision", Some(&json!({"flow_logs": ids}))));
    assert_eq!(done.0, "DONE", "{done:?}");
}

/// What of a flow log must be the same in another store.
fn kept(node: &Managed, id: &str) -> Value {
    let summary = node.summary(id);
    let fields = ["id", "state", "key_name", "version", "properties", "settings", "created", "modified", "parent"];
    Value::Object(fields.iter().map(|f| ((*f).to_owned(), summary[f].clone())).collect())
}

#[test]
fn flow_logs_move_to_another_store_with_their_ids_and_states_and_are_captured_there() {
    let (old, new) = (Managed::new("").unwrap(), Managed::new("").unwrap());
    let _running = [old.start().unwrap(), new.start().unwrap()];
    let [active, validated, draft] = [(NIC, "web"), (NAT, "nat"), (NLB, "nlb")].map(|(r, n)| old.draft(r, n, "flows"));
    provision(&old, &[&active]);
    assert_eq!(
        old.ask("PATCH", &format!("/flowlog/v1/flowlogs/{active}"), Some(&json!({"name": "renamed"}))).status,
        200
    );
    assert_eq!(old.ask("POST", &format!("/flowlog/v1/flowlogs/{validated}/validate"), None).status, 200);
    let (code, exported, words) = old.command(&["rule", "export"]).unwrap();
    assert_eq!(code, Some(0), "{words}");
    new.write("rules.json", &exported).unwrap();
    let import = || new.command(&["rule", "import", new.path("rules.json").to_str().unwrap()]).unwrap();
    let (code, said, words) = import();
    assert_eq!((code, said.as_str()), (Some(0), "3 imported, 0 here already\n"), "{words}");
    for (id, state) in [(&active, "active"), (&validated, "validated"), (&draft, "draft")] {
        assert_eq!(kept(&new, id), kept(&old, id));
        assert_eq!(new.summary(id)["state"], state);
    }
    while new.hooked().unwrap() != ["tap0"] {
        std::thread::yield_now();
    }
    assert_eq!(import().1, "0 imported, 3 here already\n");
    // What has changed since, or is in the way, is not written over.
    assert_eq!(new.ask("PATCH", &format!("/flowlog/v1/flowlogs/{draft}"), Some(&json!({"name": "other"}))).status, 200);
    let (code, _, words) = import();
    assert!(code != Some(0) && words.contains("is another version"), "{code:?} {words}");
    assert_eq!(new.ask_as("ann", "GET", "/flowlog/v1/export", None).status, 403);
}

/// How a request ended, and what was said.
pub(super) fn finished(region: &Region, server: &str, answer: &Answer) -> (String, String) {
    assert_eq!(answer.status, 202, "{answer:?}");
    let path = answer.header("location").unwrap().split("/cloudapi").nth(1).unwrap().to_owned();
    let status = || region.ask(server, "GET", &format!("/cloudapi{path}"), None).body["metadata"].clone();
    let is_over = |m: &Value| m["status"] == "DONE" || m["status"] == "FAILED";
    let done = region.until("the request is over", status, is_over);
    (done["status"].as_str().unwrap().to_owned(), done["message"].to_string())
}

/// Creates a flow log of a NIC and waits until that is done; its id.
pub(super) fn created(region: &Region, server: &str, nic: &str, name: &str) -> String {
    let answer = region.create(server, nic, name);
    assert_eq!(finished(region, server, &answer).0, "DONE");
    answer.body["id"].as_str().unwrap().to_owned()
}

pub(super) fn path(id: &str) -> String {
    format!("/flowlog/v1/flowlogs/{id}")
}

fn renamed(region: &Region, id: &str, name: &str) -> Answer {
    region.ask(SERVER, "PATCH", &path(id), Some(&json!({"name": name})))
}

/// Waits until a node knows a flow log by this name; `Null`: until it knows none.
pub(super) fn known_as(region: &Region, n: usize, id: &str, name: &Value) {
    let called = || region.ask_node(n, "GET", &path(id), None).body["properties"]["name"].clone();
    region.until("the node knows", called, |now| now == name);
}

/// Waits until it is captured on a node, and the cloud's clients see it as available.
pub(super) fn captured_on(region: &Region, n: usize, nic: &str, id: &str) {
    let there = (format!("n{n}"), "attached".to_owned());
    region.until("it is captured there", || region.captured(SERVER, id), |now| *now == there);
    region.until("it is available", || region.state(SERVER, nic, id), |now| now.0 == "AVAILABLE");
}

pub(super) fn send(region: &Region, n: usize, packets: usize) {
    let before = region.nodes[n - 1].statistic("tap0", "rx_packets").unwrap();
    region.far.run(|| traffic::udp(&format!("10.{n}.0.1:9"), packets, 50)).unwrap();
    while region.nodes[n - 1].statistic("tap0", "rx_packets").unwrap() < before + packets as u64 {
        std::thread::yield_now();
    }
}

/// Ends agents and captures; packets to port 9 that landed, by node.
pub(super) fn landed(region: &Region, agents: Vec<Agent>) -> Vec<u64> {
    let count = agents.len();
    for (n, mut agent) in (1..).zip(agents) {
        agent.signal(rustix::process::Signal::TERM);
        agent.wait().unwrap();
        region.detach(n).unwrap();
    }
    let landed = region.landed().unwrap();
    (1..=count).map(|n| landed.sum(|r| r.dport == 9 && r.node == format!("n{n}")).0).collect()
}

#[test]
fn a_nic_that_moves_between_nodes_takes_its_capture_along_and_every_packet_is_counted_once() {
    let region = Region::new(3, 3).unwrap();
    let _server = region.serve(SERVER).unwrap();
    let agents = Vec::from_iter((1..=3).map(|n| region.start(n).unwrap()));
    let nic = nic(1);
    region.arrive(&nic, 1).unwrap();
    region.known(SERVER, &nic);
    let id = created(&region, SERVER, &nic, "web");
    captured_on(&region, 1, &nic, &id);
    let version = region.ask(SERVER, "GET", &path(&id), None).body["version"].clone();
    let traffic = region.traffic(1);
    for step in [1, 2, 3, 1].windows(2) {
        let [from, to] = [step[0], step[1]];
        region.arrive(&nic, to).unwrap();
        // The next node captures it before packets come that way, and nobody has asked for anything.
        let there = || region.ask_node(to, "GET", &path(&id), None).body["captures"][0]["capture"]["state"].clone();
        region.until("the next node captures it", there, |state| state == "attached");
        traffic.moves_to(to);
        // What is on its way arrives.
        std::thread::sleep(Duration::from_millis(100));
        region.leave(&nic, from).unwrap();
        captured_on(&region, to, &nic, &id);
    }
    let sent = traffic.stop();
    assert_eq!(region.ask(SERVER, "GET", &path(&id), None).body["version"], version, "nothing was started again");
    assert!(sent[1..=3].iter().all(|n| *n > 0), "{sent:?}");
    assert_eq!(landed(&region, agents), sent[1..=3], "packets by the node whose tap they went through");
}

#[test]
fn two_nodes_that_have_one_nic_are_said_and_one_that_is_not_heard_of_holds_nothing_up() {
    let region = Region::new(2, 1).unwrap();
    let mut server = region.serve(SERVER).unwrap();
    let mut agents = Vec::from_iter((1..=2).map(|n| region.start(n).unwrap()));
    let nic = nic(1);
    region.arrive(&nic, 1).unwrap();
    region.known(SERVER, &nic);
    let id = created(&region, SERVER, &nic, "web");
    captured_on(&region, 1, &nic, &id);
    region.arrive(&nic, 2).unwrap();
    let said = region.until("it is said", || region.state(SERVER, &nic, &id), |(_, words)| words.contains("as well"));
    assert!(said.0 == "AVAILABLE" && said.1.contains("n1") && said.1.contains("n2"), "{said:?}");
    server.wait_for(&format!("NIC {nic} is on nodes")).unwrap();
    let figures = || {
        let socket = region.path(&format!("{SERVER}.metrics"));
        integration::http::unix_text(&socket, "/metrics").unwrap_or_default()
    };
    region.until("it is counted", figures, |text| text.contains("flowlog_region_claimed_twice 1"));
    region.leave(&nic, 1).unwrap();
    captured_on(&region, 2, &nic, &id);
    // Its node is gone: that is said, and a deletion does not wait for it.
    agents[1].kill().unwrap();
    region.until(
        "it is not heard of",
        || region.state(SERVER, &nic, &id),
        |(_, words)| words.contains("is not heard of"),
    );
    let deleted = region.ask(SERVER, "DELETE", &path(&id), None);
    assert_eq!(deleted.status, 202, "{deleted:?}");
    region.until("it is gone", || region.ask(SERVER, "GET", &path(&id), None).status, |status| *status == 404);
    agents[1] = region.start(2).unwrap();
    known_as(&region, 2, &id, &Value::Null);
    // On a node flow logs are looked at, and changed elsewhere.
    let draft = json!({"resource": nic, "name": "x", "direction": "INGRESS", "action": "ALL", "bucket": "flows"});
    let refused = region.ask_node(2, "POST", "/flowlog/v1/flowlogs", Some(&draft));
    assert!(refused.status == 409 && refused.words().contains("flowlog control"), "{refused:?}");
}

#[test]
fn what_happens_to_etcd_ends_no_capture_and_loses_and_repeats_no_change() {
    let mut region = Region::new(1, 3).unwrap();
    let _server = region.serve(SERVER).unwrap();
    let mut agent = region.start(1).unwrap();
    let nic = nic(1);
    region.arrive(&nic, 1).unwrap();
    region.known(SERVER, &nic);
    let id = created(&region, SERVER, &nic, "web");
    captured_on(&region, 1, &nic, &id);
    send(&region, 1, 10);
    // One of three members is killed.
    region.etcd.kill(1);
    region.until("a change is made", || renamed(&region, &id, "two-of-three"), |a| a.status == 200);
    known_as(&region, 1, &id, &json!("two-of-three"));
    region.etcd.begin(1).unwrap();
    // None of them answers: what is known is read, a change is refused with the reason, and an agent starts with what is on its disk.
    region.etcd.freeze(true);
    let refused = renamed(&region, &id, "nobody-hears");
    assert!(refused.status == 503 && refused.words().contains("etcd does not answer"), "{refused:?}");
    assert_eq!(region.ask(SERVER, "GET", &path(&id), None).body["properties"]["name"], "two-of-three");
    send(&region, 1, 10);
    agent.kill().unwrap();
    agent = region.start(1).unwrap();
    send(&region, 1, 10);
    let there = || region.ask_node(1, "GET", &path(&id), None).body["captures"][0]["capture"]["state"].clone();
    region.until("it is captured", there, |state| state == "attached");
    region.etcd.freeze(false);
    region.until("a change is made", || renamed(&region, &id, "heard"), |a| a.status == 200);
    known_as(&region, 1, &id, &json!("heard"));
    // What was known is compacted while the node is away.
    agent.signal(rustix::process::Signal::TERM);
    agent.wait().unwrap();
    assert_eq!(renamed(&region, &id, "compacted").status, 200);
    assert_eq!(renamed(&region, &id, "compacted-twice").status, 200);
    region.etcd.ctl(0, &["compact", &region.etcd.revision().unwrap().to_string()]).unwrap();
    agent = region.start(1).unwrap();
    known_as(&region, 1, &id, &json!("compacted-twice"));
    send(&region, 1, 10);
    // A backup is restored: what came after it has never been.
    let saved = region.path("saved.db");
    region.etcd.save(&saved).unwrap();
    assert_eq!(renamed(&region, &id, "after-the-backup").status, 200);
    known_as(&region, 1, &id, &json!("after-the-backup"));
    region.etcd.restore(&saved).unwrap();
    known_as(&region, 1, &id, &json!("compacted-twice"));
    let called = || region.ask(SERVER, "GET", &path(&id), None).body["properties"]["name"].clone();
    region.until("the server knows", called, |name| *name == json!("compacted-twice"));
    region.until("a change is made", || renamed(&region, &id, "restored"), |a| a.status == 200);
    known_as(&region, 1, &id, &json!("restored"));
    captured_on(&region, 1, &nic, &id);
    send(&region, 1, 10);
    assert_eq!(landed(&region, vec![agent]), [50]);
}

#[test]
fn of_two_servers_one_carries_requests_out_and_both_never_give_a_nic_away() {
    let region = Region::new(1, 1).unwrap();
    region.write("other.toml", &region.control_config("other")).unwrap();
    let mut servers = [region.serve(SERVER).unwrap(), region.serve("other").unwrap()];
    let _agent = region.start(1).unwrap();
    let nic = nic(1);
    region.arrive(&nic, 1).unwrap();
    for server in [SERVER, "other"] {
        region.known(server, &nic);
    }
    for round in 0..5 {
        let (region, nic) = (&region, &nic);
        let answers: Vec<Answer> = std::thread::scope(|scope| {
            let asked = [SERVER, "other"].map(|server| scope.spawn(move || region.create(server, nic, server)));
            asked.map(|a| a.join().unwrap()).into()
        });
        let mut codes: Vec<u16> = answers.iter().map(|a| a.status).collect();
        codes.sort_unstable();
        assert_eq!(codes, [202, 409], "round {round}: {answers:?}");
        let good = answers.iter().find(|a| a.status == 202).unwrap();
        let id = good.body["id"].as_str().unwrap();
        // Whichever server is asked, and whichever carries it out.
        for server in [SERVER, "other"] {
            let seen = || region.state(server, nic, id).0;
            region.until("it is available", seen, |state| state == "AVAILABLE");
        }
        assert_eq!(region.ask("other", "DELETE", &path(id), None).status, 202);
        for server in [SERVER, "other"] {
            region.until("it is gone", || region.ask(server, "GET", &path(id), None).status, |status| *status == 404);
        }
    }
    // The one that carries requests out is killed: the other goes on.
    servers[0].kill().unwrap();
    let answer = region.create("other", &nic, "survived");
    assert_eq!(finished(&region, "other", &answer).0, "DONE");
}

#[test]
fn flow_logs_move_from_a_nodes_file_into_etcd_and_back() {
    let node = Managed::new("").unwrap();
    let _agent = node.start().unwrap();
    let [active, draft] = [(NIC, "web"), (NAT, "nat")].map(|(r, n)| node.draft(r, n, "flows"));
    provision(&node, &[&active]);
    let region = Region::new(1, 1).unwrap();
    let _server = region.serve(SERVER).unwrap();
    let exported = node.ask("GET", "/flowlog/v1/export", None).body;
    for (field, wrong) in
        [("version", json!(u64::MAX)), ("settings", json!({"window_secs": 0})), ("key_name", json!("../x"))]
    {
        let mut spoiled = exported.clone();
        match (&mut spoiled["flow_logs"][1][field], wrong) {
            (serde_json::Value::Object(fields), serde_json::Value::Object(wrong)) => fields.extend(wrong),
            (value, wrong) => *value = wrong,
        }
        let refused = region.ask(SERVER, "POST", "/flowlog/v1/import", Some(&spoiled));
        assert!((400..500).contains(&refused.status), "{field}: {refused:?}");
    }
    let imported = region.ask(SERVER, "POST", "/flowlog/v1/import", Some(&exported));
    assert_eq!(imported.body, json!({"imported": 2, "already": 0}), "{imported:?}");
    let back = region.ask(SERVER, "GET", "/flowlog/v1/export", None).body;
    assert_eq!(back, exported);
    // Its NIC comes to a node of the region, and is captured there.
    region.arrive(NIC, 1).unwrap();
    let _other = region.start(1).unwrap();
    let there = ("n1".to_owned(), "attached".to_owned());
    region.until("it is captured there", || region.captured(SERVER, &active), |now| *now == there);
    let new = Managed::new("").unwrap();
    let _new = new.start().unwrap();
    assert_eq!(new.ask("POST", "/flowlog/v1/import", Some(&back)).body["imported"], 2);
    assert_eq!((kept(&new, &active), kept(&new, &draft)), (kept(&node, &active), kept(&node, &draft)));
}

#[test]
fn etcd_that_wants_a_certificate_and_a_password_gets_both_and_a_wrong_password_is_said() {
    let mut region = Region::new(1, 1).unwrap();
    region.etcd.wants_certificates().unwrap();
    for args in
        [&["user", "add", "root:flowlog-s3cret"][..], &["user", "grant-role", "root", "root"], &["auth", "enable"]]
    {
        region.etcd.ctl(0, args).unwrap();
    }
    let certificate =
        format!("etcd_certificate = '{}'\netcd_key = '{}'\n", region.etcd.ca().display(), region.etcd.key().display());
    let with = |name: &str, password: &str| {
        region.write(&format!("{name}.password"), &format!("root:{password}\n")).unwrap();
        let file = region.path(&format!("{name}.password"));
        std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let more = format!("{certificate}etcd_credentials = '{}'\n[inventory]", file.display());
        region.write(&format!("{name}.toml"), &region.control_config(name).replace("[inventory]", &more)).unwrap();
    };
    with("good", "flowlog-s3cret");
    let _good = region.serve("good").unwrap();
    with("bad", "guessed");
    let mut bad = region.spawn_server("bad").unwrap();
    let words = bad.wait_for("etcd refuses").unwrap();
    assert!(words.contains("authentication failed") && !words.contains("guessed"), "{words}");
    // Without the certificate nobody is let in at all.
    let mut stranger = region.spawn_server(SERVER).unwrap();
    stranger.wait_for("etcd does not answer").unwrap();
}
