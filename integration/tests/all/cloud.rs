//! What the cloud's API says of a flow log is true now: whether it does its work, which version it is, and that nothing was changed
//! which nobody meant to.

use std::{fs, time::Duration};

use integration::{
    http::Answer,
    managed::{CONTRACT, DATACENTER, LISTEN, Managed, NAT, NIC, OTHERS_NIC, SERVER},
};
use serde_json::{Value, json};

/// Windows of a second, so that something is delivered soon.
const SECONDS: &str = "no_pin = true\n[flow_log_defaults]\nwindow = 1\n";

fn flow_logs() -> String {
    format!("/cloudapi/v6/datacenters/{DATACENTER}/servers/{SERVER}/nics/{NIC}/flowlogs")
}

fn body(name: &str) -> Value {
    json!({"properties": {"name": name, "action": "ALL", "direction": "BIDIRECTIONAL", "bucket": "flows/team"}})
}

/// Creates a flow log and waits until it captures; returns its path.
fn create(node: &Managed, name: &str) -> String {
    let made = node.ask_as("ann", "POST", &flow_logs(), Some(&body(name)));
    assert_eq!(made.status, 202, "{made:?}");
    assert_eq!(over(node, &made)["status"], "DONE");
    format!("{}/{}", flow_logs(), made.body["id"].as_str().unwrap())
}

/// How a request ended.
fn over(node: &Managed, accepted: &Answer) -> Value {
    let path = accepted.header("location").unwrap().split("/requests/").nth(1).unwrap().to_owned();
    node.ask("GET", &format!("/flowlog/v1/requests/{path}"), None).body["metadata"].clone()
}

/// Waits until something is so: the agent says how things are every two seconds, and only to who asks.
fn until<T: std::fmt::Debug>(mut look: impl FnMut() -> T, is: impl Fn(&T) -> bool) -> T {
    let mut seen = look();
    for _ in 0..300 {
        if is(&seen) {
            return seen;
        }
        std::thread::sleep(Duration::from_millis(100));
        seen = look();
    }
    panic!("{seen:?}");
}

/// Makes a bucket useless, or useful again.
fn break_bucket(node: &Managed, is_broken: bool) {
    let bucket = node.bucket("flows");
    let kept = node.bucket("kept");
    if is_broken {
        fs::rename(&bucket, kept).unwrap();
        fs::write(&bucket, "no directory").unwrap();
    } else {
        fs::remove_file(&bucket).unwrap();
        fs::rename(kept, bucket).unwrap();
    }
}

#[test]
fn a_flow_log_that_cannot_do_its_work_is_not_available_without_a_word() {
    let node = Managed::new(SECONDS).unwrap();
    let _agent = node.start().unwrap();
    let one = create(&node, "web");
    let metadata = || node.ask_as("ann", "GET", &one, None).body["metadata"].clone();
    let well = |m: &Value| m["state"] == "AVAILABLE" && m["message"].is_null();
    until(metadata, well);
    // Its interface is gone for a while: that is said.
    node.node.exec("ip link set tap0 name tap7").unwrap();
    until(metadata, well);
    node.node.exec("ip link set tap7 name tap0").unwrap();
    // Its NIC leaves the inventory.
    let inventory = node.inventory();
    node.write("inventory.toml", &inventory.replace(NIC, "00000000-0000-4000-8000-0000000000ff")).unwrap();
    let left = until(metadata, |m| m["state"] == "FAILED");
    assert!(left["message"].as_str().unwrap().contains("not in the inventory any more"), "{left}");
    node.write("inventory.toml", &inventory).unwrap();
    until(metadata, well);
    // Its bucket goes.
    let bucket = node.bucket("flows");
    fs::remove_dir_all(&bucket).unwrap();
    fs::write(&bucket, "no directory").unwrap();
    let gone = until(metadata, |m| !well(m));
    assert!(gone["message"].as_str().unwrap().contains("flows"), "{gone}");
}

#[test]
fn a_body_that_means_nothing_is_refused_and_what_changes_nothing_leaves_no_trace() {
    let node = Managed::new("no_pin = true").unwrap();
    let _agent = node.start().unwrap();
    let one = create(&node, "web");
    let look = || (node.ask_as("ann", "GET", &one, None), node.ask("GET", "/flowlog/v1/audit", None).body);
    let before = look();
    let fields = json!(["web2", "INGRESS", "ALL", "flows"]);
    for (method, path, body, words) in [
        ("PATCH", one.as_str(), json!({"properties": {"name": "web2"}}), "unknown field `properties`"),
        ("PATCH", &one, json!({"name": null}), "null"),
        ("PATCH", &one, json!({"nmae": "web2"}), "unknown field `nmae`"),
        ("PATCH", &one, json!(null), "must be an object"),
        ("PATCH", &one, fields.clone(), "must be an object"),
        ("PATCH", &one, json!({}), "names no field"),
        ("PUT", &one, json!([{"name": "web2"}]), "must be an object"),
        ("PUT", &one, json!({"properties": fields}), "sequence"),
        ("PUT", &one, json!({"properties": null}), "null"),
        ("PUT", &one, json!({"properties": body("web2")["properties"], "colour": 1}), "unknown field `colour`"),
        ("POST", &flow_logs(), json!({"properties": fields}), "sequence"),
        ("POST", "/flowlog/v1/provision", json!([[], "2"]), "must be an object"),
    ] {
        let answer = node.ask_as("ann", method, path, Some(&body));
        assert!(answer.status == 422 && answer.words().contains(words), "{method} {body}: {answer:?}");
    }
    // The fields it has, alone, all, and as they were read.
    let mut as_read = before.0.body.clone();
    as_read["properties"]["name"] = json!("web");
    for (method, body) in [("PATCH", json!({"name": "web"})), ("PUT", body("web")), ("PUT", as_read)] {
        let answer = node.ask_as("ann", method, &one, Some(&body));
        assert_eq!((answer.status, over(&node, &answer)["status"].as_str()), (202, Some("DONE")), "{answer:?}");
    }
    let after = look();
    assert_eq!((after.0.body, after.1), (before.0.body, before.1));
}

#[test]
fn only_the_version_that_was_seen_is_changed_and_only_for_ones_own_contract() {
    let node = Managed::new("no_pin = true").unwrap();
    let _agent = node.start().unwrap();
    let one = create(&node, "web");
    let etag = || {
        let answer = node.ask_as("ann", "GET", &one, None);
        let tag = answer.header("etag").unwrap().to_owned();
        assert_eq!(tag, format!("\"{}\"", answer.body["metadata"]["etag"].as_str().unwrap()));
        tag
    };
    let seen = etag();
    let rename = |head: &str, name: &str| node.ask_with(head, "PATCH", &one, Some(&json!({"name": name})));
    let changed = rename(&format!("if-match: {seen}"), "first");
    assert_eq!((changed.status, changed.header("etag").map(str::to_owned)), (202, Some(etag())));
    assert_ne!(seen, etag());
    // Somebody else has been quicker.
    for (method, body) in [("PATCH", Some(json!({"name": "second"}))), ("PUT", Some(body("second"))), ("DELETE", None)]
    {
        let late = node.ask_with(&format!("if-match: {seen}"), method, &one, body.as_ref());
        assert!(late.status == 412 && late.words().contains("has changed"), "{late:?}");
    }
    assert_eq!(node.ask_as("ann", "GET", &one, None).body["properties"]["name"], "first");
    assert_eq!(rename("if-match: *", "second").status, 202);
    let asked = |head: &str| node.ask_with(head, "GET", &one, None);
    assert_eq!(asked(&format!("x-contract-number: {CONTRACT}")).status, 200);
    let other = asked("x-contract-number: 2");
    assert!(other.status == 403 && other.words().contains(CONTRACT), "{other:?}");
    // Links lead where the client has been, whatever it calls that (`Host` is `node` here).
    let listed = node.ask_as("ann", "GET", &format!("{}?depth=1", flow_logs()), None);
    assert!(!listed.body.to_string().contains("//node") && listed.body["href"].as_str().unwrap().contains(LISTEN));
    let made = rename("x-forwarded-host: evil.example.com", "third");
    assert!(!format!("{made:?}").contains("evil") && made.header("location").unwrap().contains(LISTEN), "{made:?}");
}

#[test]
fn lists_are_as_deep_as_asked_for_filtered_ordered_and_paged() {
    let node = Managed::new("no_pin = true").unwrap();
    let _agent = node.start().unwrap();
    let one = create(&node, "web");
    let failed =
        json!({"properties": {"name": "x", "action": "ALL", "direction": "INGRESS", "bucket": "no-such-bucket"}});
    let nat = format!("/cloudapi/v6/datacenters/{DATACENTER}/natgateways/{NAT}/flowlogs");
    assert_eq!(over(&node, &node.ask_as("kim", "POST", &nat, Some(&failed)))["status"], "FAILED");
    let get = |path: &str| node.ask_as("ann", "GET", path, None);
    let items = |path: &str| get(path).body["items"].as_array().unwrap().clone();
    // Depth: references, fields, and what is below.
    let keys = |v: &Value| v.as_object().unwrap().keys().cloned().collect::<Vec<_>>().join(" ");
    assert_eq!(keys(&items(&flow_logs())[0]), "href id type");
    assert_eq!(items(&format!("{}?depth=1", flow_logs()))[0], get(&one).body);
    let dc =
        |depth: usize| get(&format!("/cloudapi/v6/datacenters/{DATACENTER}?depth={depth}")).body["entities"].clone();
    assert_eq!(dc(0), json!({}));
    assert_eq!(keys(&dc(1)["servers"]["items"][0]), "href id type");
    assert_eq!(dc(2)["servers"]["items"][0]["properties"]["vmState"], "RUNNING");
    let nics = &dc(5)["servers"]["items"][0]["entities"]["nics"]["items"];
    assert_eq!(keys(&nics[0]["entities"]["flowlogs"]["items"][0]), "href id type");
    assert!(!dc(10).to_string().contains(OTHERS_NIC), "nothing of another contract, however deep");
    // Filters and order.
    let requests = |query: &str| items(&format!("/cloudapi/v6/requests?{query}"));
    assert_eq!(requests("").len(), 2);
    let who = |query: &str| requests(query).iter().map(|r| r["metadata"]["createdBy"].clone()).collect::<Vec<_>>();
    assert_eq!(who("depth=1&filter.status=failed"), ["kim"]);
    assert_eq!(who("depth=1&filter.createdBy=ANN&filter.createdBefore=2999-01-01%2000:00:00"), ["ann"]);
    assert_eq!(who("depth=1&orderBy=createdBy"), ["ann", "kim"]);
    assert_eq!(who("depth=1&order-by=createdBy&offset=1&limit=5"), ["kim"]);
    assert_eq!(requests("filter.createdAfter=2999-01-01%2000:00:00").len(), 0);
    // Pages keep what was asked for.
    let first = get("/cloudapi/v6/requests?depth=1&orderBy=createdBy&limit=1").body;
    let next = first["_links"]["next"].as_str().unwrap().split(LISTEN).nth(1).unwrap();
    assert_eq!(items(next)[0]["metadata"]["createdBy"], "kim");
    for bad in ["limit=0", "limit=10001", "offset=-1", "depth=11", "filter.createdAfter=soon"] {
        let answer = get(&format!("/cloudapi/v6/requests?{bad}"));
        assert!(
            answer.status == 422 && answer.words().contains(bad.split(['=', '.']).next_back().unwrap()),
            "{answer:?}"
        );
    }
}

#[test]
fn what_a_deleted_flow_log_still_has_to_deliver_is_visible_until_it_is_there() {
    let node = Managed::new(SECONDS).unwrap();
    let mut agent = node.start().unwrap();
    let one = create(&node, "web");
    let status = || serde_json::from_slice::<Value>(&fs::read(node.path("state/status.json")).unwrap()).unwrap();
    until(status, |s| s["rules"][0]["delivery"]["state"] == "delivering");
    // Under its present name.
    assert_eq!(node.ask_as("ann", "PATCH", &one, Some(&json!({"name": "shop"}))).status, 202);
    until(status, |s| s["rules"][0]["rule"] == "shop");
    break_bucket(&node, true);
    until(status, |s| s["rules"][0]["delivery"]["waiting"].as_u64() > Some(0));
    let deleted = node.ask_as("ann", "DELETE", &one, None);
    assert_eq!(over(&node, &deleted)["status"], "DONE");
    let left = until(status, |s| s["rules"] == json!([]) && s["leaving"][0]["delivery"]["waiting"].as_u64() > Some(0));
    assert_eq!((&left["leaving"][0]["folder"], &left["leaving"][0]["interface_id"]), (&json!("team/web"), &json!(NIC)));
    let state = node.path("state").display().to_string();
    let (_, table, _) = node.command(&["status", "--state-dir", &state]).unwrap();
    assert!(table.lines().any(|l| l.starts_with("team/web") && l.contains("leaving")), "{table}");
    let words = || over(&node, &deleted)["message"].as_str().unwrap().to_owned();
    assert!(words().contains("still to be delivered"), "{}", words());
    break_bucket(&node, false);
    until(words, |w| !w.contains("still"));
    until(status, |s| s["leaving"] == json!([]));
    agent.signal(rustix::process::Signal::TERM);
    assert_eq!(agent.wait().unwrap(), Some(0));
}
