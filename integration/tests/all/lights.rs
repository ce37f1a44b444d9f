//! The green light: what is green can be provisioned, what cannot be is red before it is tried, and nobody is red for another's
//! mistakes.

use integration::{
    managed::{DATACENTER, Managed, NAT, NIC, NLB, SERVER},
    net::Netns,
};
use serde_json::{Value, json};

/// Checks a draft; returns its mark, and why it has that.
fn light(node: &Managed, id: &str) -> (String, String) {
    let checked = node.ask("POST", &format!("/flowlog/v1/flowlogs/{id}/validate"), None);
    assert_eq!(checked.status, 200, "{checked:?}");
    shown(&checked.body)
}

fn shown(summary: &Value) -> (String, String) {
    (summary["mark"].as_str().unwrap().to_owned(), summary["why"].to_string())
}

fn provision(node: &Managed, ids: &[&str]) -> (String, String) {
    node.finish(&node.ask("POST", "/flowlog/v1/provision", Some(&json!({"flow_logs": ids}))))
}

/// An interface whose index is another one's, too, in another namespace.
fn same_index(ns: &Netns, name: &str) {
    ns.exec(&format!("ip link add {name} index 7777 type veth peer name {name}p")).unwrap();
}

#[test]
fn green_can_be_provisioned_and_what_another_has_is_red_before_it_is_tried() {
    let node = Managed::new("no_pin = true").unwrap();
    let _agent = node.start().unwrap();
    let id = |n: u32| format!("00000000-0000-4000-8000-0000000000{n}");
    // Another NIC with the same tap.
    node.add_nic(&id(21), "{ name = 'tap0' }").unwrap();
    let one = node.draft(NIC, "one", "flows");
    let rival = node.draft(&id(21), "rival", "flows");
    assert_eq!(light(&node, &one).0, "green");
    // Of what is promised, and of what is captured.
    for promised in [true, false] {
        let (mark, why) = light(&node, &rival);
        assert!(mark == "red" && why.contains("tap0 is captured as"), "{mark} {why}");
        if promised {
            let (result, message) = provision(&node, &[&one]);
            assert_eq!(result, "DONE", "{message}");
        }
    }
    let (result, message) = provision(&node, &[&rival]);
    assert!(result == "FAILED" && message.contains("tap0 is captured as"), "{message}");
    // It was the other's alone.
    let gone = node.ask("DELETE", &format!("/flowlog/v1/flowlogs/{one}"), None);
    assert_eq!(node.finish(&gone).0, "DONE");
    assert_eq!(light(&node, &rival).0, "green");
    assert_eq!(provision(&node, &[&rival]).0, "DONE");
}

#[test]
fn interfaces_of_one_index_in_two_namespaces_are_green_and_captured_both() {
    let node = Managed::new("no_pin = true\nfollow_namespaces = true").unwrap();
    let _agent = node.start().unwrap();
    let id = |n: u32| format!("00000000-0000-4000-8000-0000000000{n}");
    same_index(&node.node, "here0");
    same_index(&node.far, "there0");
    node.add_nic(&id(22), "{ name = 'here0' }").unwrap();
    node.add_nic(&id(23), &format!("{{ name = 'there0', netns = '{}' }}", node.far.name())).unwrap();
    let here = node.draft(&id(22), "here", "flows");
    let there = node.draft(&id(23), "there", "flows");
    for log in [&here, &there] {
        assert_eq!(light(&node, log).0, "green");
    }
    assert_eq!(provision(&node, &[&here, &there]).0, "DONE");
    let shown = node.summary(&there);
    assert!(shown.to_string().contains(node.far.name()), "{shown}");
}

#[test]
fn a_good_draft_does_not_turn_red_for_its_neighbour_in_a_batch() {
    let node = Managed::new("no_pin = true\n[kernel]\ninterfaces_max = 2").unwrap();
    let _agent = node.start().unwrap();
    let web = node.draft(NIC, "web", "flows");
    let again = node.draft(NIC, "again", "flows");
    let nat = node.draft(NAT, "nat", "flows");
    let nlb = node.draft(NLB, "nlb", "flows");
    let missing = node.draft(NAT, "missing", "no-such-bucket");
    let (result, message) = provision(&node, &[&web, &missing, &again, &nat, &nlb]);
    assert_eq!(result, "FAILED", "{message}");
    let marks = || [&web, &missing, &again, &nat, &nlb].map(|id| shown(&node.summary(id)));
    let found = marks();
    for (n, (mark, words)) in
        [("green", "[]"), ("red", "no-such-bucket"), ("red", "flow log `web`"), ("green", "[]"), ("red", "room for 0")]
            .into_iter()
            .enumerate()
    {
        assert!(found[n].0 == mark && found[n].1.contains(words), "{n}: {found:?}");
    }
    // A green light that is older keeps its place, whatever the order.
    assert_eq!(provision(&node, &[&again, &web]).0, "FAILED");
    assert_eq!(shown(&node.summary(&web)).0, "green");
    assert_eq!(provision(&node, &[&web, &nat]).0, "DONE");
}

#[test]
fn a_create_that_failed_does_not_hold_the_one_place_of_its_parent() {
    let node = Managed::new("no_pin = true").unwrap();
    let _agent = node.start().unwrap();
    let all = format!("/cloudapi/v6/datacenters/{DATACENTER}/servers/{SERVER}/nics/{NIC}/flowlogs");
    let create = |bucket: &str| {
        let properties = json!({"name": "web", "action": "ALL", "direction": "BIDIRECTIONAL", "bucket": bucket});
        node.ask("POST", &all, Some(&json!({"properties": properties})))
    };
    let over = |made: &integration::http::Answer| {
        let path = made.header("location").unwrap().split("/requests/").nth(1).unwrap().to_owned();
        node.ask("GET", &format!("/flowlog/v1/requests/{path}"), None).body["metadata"]["status"].clone()
    };
    let failed = create("no-such-bucket");
    assert_eq!(over(&failed), "FAILED");
    let one = |id: &Value| node.ask("GET", &format!("{all}/{}", id.as_str().unwrap()), None).body["metadata"].clone();
    assert_eq!(one(&failed.body["id"])["state"], "FAILED");
    let good = create("flows");
    assert_eq!(good.status, 202, "{good:?}");
    assert_eq!(over(&good), "DONE");
    assert_eq!(one(&good.body["id"])["state"], "AVAILABLE");
    assert_eq!(create("flows").status, 409, "one is active");
    // The one that failed says so until it is deleted, and cannot be tried again beside the other.
    let body = json!({"properties": {"name": "web", "action": "ALL", "direction": "BIDIRECTIONAL", "bucket": "flows"}});
    let again = node.ask("PUT", &format!("{all}/{}", failed.body["id"].as_str().unwrap()), Some(&body));
    assert_eq!(over(&again), "FAILED");
    assert!(one(&failed.body["id"])["message"].as_str().unwrap().contains("takes one"));
}
