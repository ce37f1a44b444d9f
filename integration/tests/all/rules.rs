//! The life of a flow log: nothing captures before it is provisioned, all or none is, and whatever happens to the agent in
//! between, the kernel's attachments equal the store.

use std::collections::BTreeSet;

use aya::programs::TcAttachType;
use flowlog_host::fault::STORE_POINTS;
use integration::{
    managed::{ALB, Managed, NAT, NIC, NLB, OTHERS_NIC},
    others::{Other, Place},
    s3,
};
use serde_json::{Value, json};

const PACKETS: usize = 20;

fn provision(node: &Managed, ids: &[&str]) -> (String, String) {
    node.finish(&node.ask("POST", "/flowlog/v1/provision", Some(&json!({"flow_logs": ids}))))
}

fn delete(node: &Managed, id: &str) {
    assert_eq!(node.finish(&node.ask("DELETE", &format!("/flowlog/v1/flowlogs/{id}"), None)).0, "DONE");
}

fn state(node: &Managed, id: &str) -> String {
    node.summary(id)["state"].as_str().unwrap_or("gone").to_owned()
}

/// Checks a draft; returns its state, its mark, and the fields and rules of what is wrong.
fn validate(node: &Managed, id: &str) -> (String, String, Vec<String>) {
    let checked = node.ask("POST", &format!("/flowlog/v1/flowlogs/{id}/validate"), None).body;
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let problems = checked["problems"].as_array().into_iter().flatten();
    let problems = problems.map(|p| format!("{}: {}", text(&p["field"]), text(&p["rule"]))).collect();
    (text(&checked["state"]), text(&checked["mark"]), problems)
}

#[test]
fn a_draft_captures_nothing_until_it_is_provisioned_and_deleting_it_delivers_the_rest() {
    let node = Managed::new("").unwrap();
    let mut agent = node.start().unwrap();
    let id = node.draft(NIC, "web", "flows/team");
    assert_eq!((state(&node, &id).as_str(), node.summary(&id)["mark"].as_str()), ("draft", Some("yellow")));
    let checked = node.ask("POST", &format!("/flowlog/v1/flowlogs/{id}/validate"), None);
    assert_eq!((checked.body["state"].as_str(), checked.body["mark"].as_str()), (Some("validated"), Some("green")));
    assert_eq!(node.hooked().unwrap(), Vec::<String>::new());
    assert_eq!(walk(&node), Vec::<String>::new(), "a probe leaves nothing");
    node.send(1, "tap0", PACKETS).unwrap();
    assert_eq!(provision(&node, &[&id]).0, "DONE");
    assert_eq!((state(&node, &id).as_str(), node.hooked().unwrap()), ("active", vec!["tap0".to_owned()]));
    node.send(1, "tap0", PACKETS).unwrap();
    // Only its name can be changed, and its keys do not follow.
    let path = format!("/flowlog/v1/flowlogs/{id}");
    let renamed = node.ask("PATCH", &path, Some(&json!({"name": "renamed"})));
    assert_eq!((renamed.status, renamed.body["key_name"].as_str()), (200, Some("web")));
    for (field, value) in [("direction", "EGRESS"), ("action", "REJECTED"), ("bucket", "flows/other"), ("name", "a/b")]
    {
        let answer = node.ask("PATCH", &path, Some(&json!({field: value})));
        assert_eq!(answer.status, 422, "{answer:?}");
        assert!(answer.words().contains(field) && answer.words().contains(value), "{answer:?}");
    }
    // The name is kept over a restart, and so is the prefix.
    agent.kill().unwrap();
    agent = node.start().unwrap();
    assert_eq!(node.summary(&id)["properties"]["name"], "renamed");
    node.send(1, "tap0", PACKETS).unwrap();
    delete(&node, &id);
    assert_eq!((node.summary(&id), node.hooked().unwrap()), (Value::Null, vec![]));
    node.send(1, "tap0", PACKETS).unwrap();
    agent.wait_for("delivered").unwrap();
    let landed = node.landed("flows").unwrap();
    assert_eq!(landed.sum(|r| r.dport == 9 && r.direction == "egress").0, 2 * PACKETS as u64);
    assert!(landed.keys.iter().all(|k| k.starts_with("team/web/year=")), "{:?}", landed.keys);
    // The next one on the same NIC writes no key twice.
    let again = node.draft(NIC, "web", "flows/team");
    assert_eq!(provision(&node, &[&again]).0, "DONE");
    node.send(1, "tap0", PACKETS).unwrap();
    delete(&node, &again);
    agent.wait_for("delivered").unwrap();
    let landed = node.landed("flows").unwrap();
    assert_eq!(landed.sum(|r| r.dport == 9 && r.direction == "egress").0, 3 * PACKETS as u64);
}

/// Files in the bucket.
fn walk(node: &Managed) -> Vec<String> {
    let mut files = Vec::new();
    let mut todo = vec![node.bucket("flows")];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { todo.push(path) } else { files.push(path.display().to_string()) }
        }
    }
    files
}

#[test]
fn everything_that_is_wrong_is_said_at_once_with_field_value_and_remedy() {
    let node = Managed::new("no_pin = true\n[kernel]\ninterfaces_max = 3").unwrap();
    let _agent = node.start().unwrap();
    let problems = |id: &str| -> Vec<(String, String)> {
        let checked = node.ask("POST", &format!("/flowlog/v1/flowlogs/{id}/validate"), None).body;
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        let all = checked["problems"].as_array().unwrap();
        assert_eq!(checked["mark"] == "red", !all.is_empty(), "{checked}");
        all.iter().map(|p| (text(&p["field"]), format!("{} {}", text(&p["value"]), text(&p["rule"])))).collect()
    };
    let fields = |id: &str| problems(id).into_iter().map(|(field, _)| field).collect::<Vec<_>>();
    let first = node.draft(NIC, "first", "flows");
    assert_eq!(problems(&first), vec![]);
    let bad = json!({"resource": NIC, "name": "w\u{435}b", "direction": "up", "action": "maybe", "bucket": "Big/a/b"});
    let bad = node.ask("POST", "/flowlog/v1/flowlogs", Some(&bad)).body["id"].as_str().unwrap().to_owned();
    let found = problems(&bad);
    let named: Vec<&str> = found.iter().map(|(field, _)| field.as_str()).collect();
    assert_eq!(named, ["name", "direction", "action", "bucket", "prefix", "interface"], "{found:?}");
    assert!(found[0].1.contains("U+0435") && found[5].1.contains("has the flow log `first`"), "{found:?}");
    let missing = node.draft(NAT, "nat", "no-such-bucket");
    assert!(problems(&missing)[0].1.contains("does not exist, is not contract"), "{:?}", problems(&missing));
    // The name of a bucket of another contract: no other words for it.
    let [closed, absent] = ["flows", "no-such-bucket"].map(|bucket| {
        let words = format!("{:?}", problems(&node.draft(OTHERS_NIC, "x", bucket)));
        words.replace(bucket, "…")
    });
    assert!(closed.contains("does not exist, is not contract 2's"), "{closed}");
    assert_eq!(closed, absent);
    // Room for three interfaces.
    let nat = node.draft(NAT, "n", "flows");
    let nlb = node.draft(NLB, "l", "flows");
    let alb = node.draft(ALB, "a", "flows");
    assert_eq!(provision(&node, &[&first, &nat, &nlb]).0, "DONE");
    assert_eq!(fields(&alb), ["memory"]);
    // A NIC that leaves the inventory is not known any more.
    let others = node.draft(OTHERS_NIC, "x", "flows");
    let inventory = node.inventory();
    let without = inventory
        .replace(&format!("[[nic]]\nid = '{OTHERS_NIC}'"), "[[nic]]\nid = '00000000-0000-4000-8000-0000000000ff'");
    node.write("inventory.toml", &without).unwrap();
    let known = |id: &str| node.ask("GET", "/flowlog/v1/inventory", None).body.to_string().contains(id);
    while known(OTHERS_NIC) {
        std::thread::yield_now();
    }
    assert_eq!(fields(&others), ["interface", "bucket", "memory"]);
}

#[test]
fn drafts_are_provisioned_together_all_or_none() {
    let node = Managed::new("no_pin = true").unwrap();
    let mut agent = node.start().unwrap();
    // Another NIC of the contract, which is said to have an interface that is the gateway's.
    let twin = "00000000-0000-4000-8000-00000000000a";
    let mac = node.node.mac("natgw0").unwrap().map(|b| format!("{b:02x}")).join(":");
    node.add_nic(twin, &format!("{{ mac = '{mac}' }}")).unwrap();
    let web = node.draft(NIC, "web", "flows");
    let nat = node.draft(NAT, "nat", "flows");
    assert_eq!(validate(&node, &nat), ("validated".to_owned(), "green".to_owned(), vec![]));
    let both = node.draft(twin, "twin", "flows");
    let (result, message) =
        node.finish(&node.ask("POST", "/flowlog/v1/provision", Some(&json!({"contract": "31960002"}))));
    assert!(result == "FAILED" && message.contains("natgw0 is captured as"), "{message}");
    assert_eq!([&web, &nat, &both].map(|id| state(&node, id)), ["validated", "validated", "draft"]);
    assert_eq!(node.hooked().unwrap(), Vec::<String>::new());
    // One that fails its checks holds the others back as well.
    let bad = node.draft(NLB, "bad", "no-such-bucket");
    assert_eq!(provision(&node, &[&web, &bad]).0, "FAILED");
    assert_eq!([&web, &bad].map(|id| state(&node, id)), ["validated", "draft"]);
    delete(&node, &both);
    delete(&node, &bad);
    assert_eq!(
        node.finish(&node.ask("POST", "/flowlog/v1/provision", Some(&json!({"contract": "31960002"})))).0,
        "DONE"
    );
    assert_eq!(node.hooked().unwrap(), ["tap0", "natgw0"]);
    agent.end().unwrap();
}

/// A program of somebody else where an interface takes one: found out when ours is to be attached, and not before.
fn somebody_elses_xdp(node: &Managed) -> Other {
    let side = TcAttachType::Ingress;
    let place = Place::XdpGeneric;
    Other::attach_to(&node.node, c"nlb0", "xdp_drop", side, place).unwrap()
}

#[test]
fn trouble_that_only_the_kernel_knows_undoes_all_and_is_that_of_the_one_it_is_about() {
    let node = Managed::new("no_pin = true\n[flow_log_defaults]\nhook = 'xdp'").unwrap();
    let _other = somebody_elses_xdp(&node);
    let mut agent = node.start().unwrap();
    let web = node.draft(NIC, "web", "flows");
    let busy = node.draft(NLB, "busy", "flows");
    let (result, message) = provision(&node, &[&web, &busy]);
    assert!(result == "FAILED" && message.contains("an interface takes one XDP program"), "{message}");
    assert_eq!([&web, &busy].map(|id| state(&node, id)), ["validated"; 2]);
    assert_eq!([&web, &busy].map(|id| node.summary(id)["mark"].clone()), ["green", "red"]);
    assert_eq!(node.hooked().unwrap(), Vec::<String>::new(), "undone");
    assert_eq!(provision(&node, &[&web]).0, "DONE");
    agent.end().unwrap();
}

/// What the store says is captured, what it says of the rest, and what the kernel has.
fn compare(node: &Managed, context: &str) {
    let requests = node.ask("GET", "/cloudapi/v6/requests", None).body;
    for id in requests["items"].as_array().unwrap().iter().filter_map(|r| r["id"].as_str()) {
        let over = node.ask("GET", &format!("/flowlog/v1/requests/{id}/status"), None).body;
        let status = over["metadata"]["status"].as_str().unwrap_or_default();
        assert!(["DONE", "FAILED"].contains(&status), "{context}: {over}");
    }
    let all = node.ask("GET", "/flowlog/v1/flowlogs", None).body;
    let states: BTreeSet<&str> = all.as_array().unwrap().iter().filter_map(|f| f["state"].as_str()).collect();
    assert!(states.iter().all(|s| ["draft", "validated", "active"].contains(s)), "{context}: {states:?}");
    let of = |id: &str| match id {
        NIC => "tap0",
        NAT => "natgw0",
        _ => "nlb0",
    };
    let active = all.as_array().unwrap().iter().filter(|f| f["state"] == "active");
    let active: BTreeSet<&str> = active.map(|f| of(f["parent"]["id"].as_str().unwrap())).collect();
    let hooked = node.hooked().unwrap();
    assert_eq!(hooked.iter().map(String::as_str).collect::<BTreeSet<_>>(), active, "{context}");
}

#[test]
fn killed_between_any_two_transitions_the_kernels_attachments_equal_the_store() {
    let node = Managed::new("[flow_log_defaults]\nhook = 'xdp'").unwrap();
    let _other = somebody_elses_xdp(&node);
    // Every transaction of the script below, and every step between them.
    let times = |point: &str| if point.starts_with("rules_commit") { 1..=14 } else { 1..=1 };
    let faults = STORE_POINTS.iter().flat_map(|p| times(p).map(move |n| format!("{p}:{n}")));
    for fault in faults {
        let mut agent = node.spawn(&[("FLOWLOG_FAULT", &fault)]).unwrap();
        agent.wait_for("capturing").unwrap();
        // Two are provisioned, one of them is deleted, and a third is refused and undone. Any answer may be the last.
        let ask = |method: &str, path: &str, body: Option<&Value>| {
            integration::http::unix(&node.path("agent.sock"), method, path, body).ok().filter(|a| a.status < 300)
        };
        let finish = |id: Option<String>| {
            let path = format!("/flowlog/v1/requests/{}", id?);
            let status = ask("GET", &path, None)?.body["metadata"]["status"].as_str()?.to_owned();
            ["DONE", "FAILED"].contains(&status.as_str()).then_some(())
        };
        let draft = |resource: &str, bucket: &str| {
            let draft = json!({"resource": resource, "name": "r", "direction": "BIDIRECTIONAL", "action": "ALL", "bucket": bucket});
            Some(ask("POST", "/flowlog/v1/flowlogs", Some(&draft))?.body["id"].as_str()?.to_owned())
        };
        let id = |a: Option<integration::http::Answer>| Some(a?.body["id"].as_str()?.to_owned());
        let script = || {
            let nic = draft(NIC, "flows")?;
            let nat = draft(NAT, "flows")?;
            finish(id(ask("POST", "/flowlog/v1/provision", Some(&json!({"flow_logs": [nic, nat]})))))?;
            finish(id(ask("DELETE", &format!("/flowlog/v1/flowlogs/{nic}"), None)))?;
            // Trouble that only the kernel knows.
            let busy = draft(NLB, "flows")?;
            finish(id(ask("POST", "/flowlog/v1/provision", Some(&json!({"flow_logs": [busy]})))))
        };
        let _ = script();
        agent.wait_for("killed at").unwrap_or_else(|e| panic!("{fault} is never reached: {e:#}"));
        agent.wait().unwrap();
        // Whatever was interrupted is finished or undone by the next one.
        let mut next = node.start().unwrap();
        compare(&node, &fault);
        let all = node.ask("GET", "/flowlog/v1/flowlogs", None).body;
        for f in all.as_array().unwrap() {
            delete(&node, f["id"].as_str().unwrap());
        }
        compare(&node, &fault);
        next.kill().unwrap();
    }
}

#[test]
fn the_command_line_shows_and_does_what_a_person_wants() {
    let node = Managed::new("no_pin = true").unwrap();
    let _agent = node.start().unwrap();
    let run = |args: &[&str]| node.command(args).unwrap();
    let (code, inventory, _) = run(&["inventory", "list"]);
    assert!(code == Some(0) && inventory.contains(NIC) && inventory.contains(" tap0 "), "{inventory}");
    let add = ["rule", "add", "--resource", NIC, "--name", "web", "--bucket", "flows/team"];
    let (code, added, _) = run(&add);
    assert!(code == Some(0) && added.contains("draft") && added.contains("yellow"), "{added}");
    let (code, checked, _) = run(&["rule", "validate", "web"]);
    assert!(code == Some(0) && checked.contains("validated") && checked.contains("green"), "{checked}");
    assert_eq!(run(&["rule", "provision"]), (Some(0), "provisioned\n".to_owned(), String::new()));
    let (_, shown, _) = run(&["rule", "show", "web"]);
    assert!(shown.contains("tap0 (index"), "{shown}");
    for words in [
        "state          active  ● green",
        "bucket         flows/team",
        "last object",
        "lag            0 s",
        "accepted, 0 rejected, 0 lost",
    ] {
        assert!(shown.contains(words), "{words}: {shown}");
    }
    let (code, _, error) = run(&["rule", "show", "nothing"]);
    assert!(code != Some(0) && error.contains("no flow log has the name or id `nothing`"), "{error}");
    assert_eq!(run(&["rule", "rename", "web", "site"]).0, Some(0));
    let (_, json, _) = run(&["rule", "list", "--output", "json"]);
    let listed: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(listed[0]["properties"]["name"], "site");
    // Drafts take nothing's place.
    for name in ["early", "earlier", "earliest"] {
        assert_eq!(run(&["rule", "add", "--resource", NIC, "--name", name, "--bucket", "flows"]).0, Some(0));
    }
    let (_, inventory, _) = run(&["inventory", "list"]);
    assert!(inventory.contains("site") && !inventory.contains("earl"), "{inventory}");
    let (_, table, _) = run(&["rule", "list"]);
    assert!(table.contains(" bidirectional ") && table.contains(" any "), "the command line's words: {table}");
    assert_eq!(run(&["rule", "delete", "site"]), (Some(0), "deleted\n".to_owned(), String::new()));
    assert!(run(&["rule", "audit"]).1.contains("renamed from `web` to `site`"));
    let (code, bash, _) = run(&["completions", "bash"]);
    assert!(code == Some(0) && bash.contains("FLOWLOG_COMPLETE") && bash.contains("complete "));
}

#[test]
fn a_flow_log_goes_to_the_bucket_at_the_server_that_the_inventory_names() {
    let server = s3::server();
    let bucket = server.new_bucket();
    let others = server.new_bucket();
    let cable = s3::CableToHere::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let options = server.options();
    let d = dir.path().display();
    let interface = &cable.interface;
    let endpoint = options.endpoint.unwrap();
    let credentials = options.credentials_file.unwrap();
    let inventory = format!(
        "[buckets]\nendpoint = '{endpoint}'\nregion = 'us-east-1'\npath_style = true\nallow_http = true\n\
         credentials_file = '{}'\n[[bucket]]\nname = '*'\ncontract = '1'\n[[bucket]]\nname = '{others}'\ncontract = '2'\n\
         [[nic]]\nid = '{NIC}'\nserver = '{NAT}'\ndatacenter = '{NLB}'\ncontract = '1'\n\
         interface = {{ name = '{interface}' }}\n",
        credentials.display()
    );
    std::fs::write(dir.path().join("inventory.toml"), inventory).unwrap();
    let config = format!(
        "node_id = 'node'\nstate_dir = '{d}/state'\nno_pin = true\n[inventory]\nfile = '{d}/inventory.toml'\n\
         [api]\nsocket = '{d}/agent.sock'\n"
    );
    std::fs::write(dir.path().join("flowlog.toml"), config).unwrap();
    let mut agent = integration::agent::Agent::with_config(&dir.path().join("flowlog.toml"), &[]).unwrap();
    agent.wait_for("capturing").unwrap();
    let ask = |method: &str, path: &str, body: Option<&Value>| {
        integration::http::unix(&dir.path().join("agent.sock"), method, path, body).unwrap()
    };
    let draft = |bucket: &str| {
        let draft = json!({"resource": NIC, "name": "s3", "direction": "EGRESS", "action": "ALL", "bucket": bucket});
        ask("POST", "/flowlog/v1/flowlogs", Some(&draft)).body["id"].as_str().unwrap().to_owned()
    };
    let validate = |id: &str| ask("POST", &format!("/flowlog/v1/flowlogs/{id}/validate"), None).body;
    // The store says no to the first, the inventory to the second, which exists: the same words for both.
    let [missing, closed] = ["no-such-bucket-here", others.as_str()].map(|bucket| {
        let problems = validate(&draft(bucket))["problems"].to_string();
        problems.replace(bucket, "…")
    });
    assert!(missing.contains("does not exist, is not contract 1's"), "{missing}");
    assert_eq!(closed, missing);
    assert_eq!(server.keys(&others), Vec::<String>::new());
    let id = draft(&format!("{bucket}/team"));
    assert_eq!(validate(&id)["state"], "validated");
    assert_eq!(server.keys(&bucket), Vec::<String>::new(), "a probe leaves nothing");
    ask("POST", "/flowlog/v1/provision", Some(&json!({"flow_logs": [id]})));
    agent.wait_for("watching").unwrap();
    cable.send(PACKETS).unwrap();
    agent.signal(rustix::process::Signal::TERM);
    assert_eq!(agent.wait().unwrap(), Some(0));
    let keys = server.keys(&bucket);
    assert!(keys.len() == 1 && keys[0].starts_with("team/s3/year="), "{keys:?}");
    let got = tempfile::tempdir().unwrap();
    std::fs::write(got.path().join("o.parquet"), server.get(&bucket, &keys[0])).unwrap();
    let landed = integration::rows::Objects::below(got.path()).unwrap();
    assert_eq!(landed.sum(|r| r.dport == 9 && r.direction == "egress").0, PACKETS as u64, "as the guest sees it");
}
