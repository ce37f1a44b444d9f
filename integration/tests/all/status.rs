//! P8: since when something is captured, what landed last, and what the last window came to. The witnesses are the store, the interface's
//! counter, and the clock.

use std::{
    fs,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use integration::{claims::until, node::Node, rows::Objects, traffic};
use serde_json::Value;

const FLOWS: u16 = 1_500;
/// More flows than this end a window early: so one ends without any clock.
const FLOWS_MAX: &str = "1000";

fn now_secs() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs().cast_signed()
}

/// What the agent with this process id says of the one rule there is; `null`: nothing yet.
fn said(node: &Node, pid: u32) -> Value {
    let status = fs::read(node.state().join("status.json")).unwrap_or_default();
    let status: Value = serde_json::from_slice(&status).unwrap_or_default();
    if status["pid"] == pid { status["rules"][0].clone() } else { Value::Null }
}

#[test]
fn since_when_what_landed_last_and_the_books_of_the_last_window_are_true_and_outlive_the_agent() {
    let node = Node::new(&["--window", "1d", "--no-nodata", "--flows-max", FLOWS_MAX, "--cache-slots", "16"]).unwrap();
    let before = now_secs();
    let mut agent = node.start().unwrap();
    let begun = now_secs();
    let macs = (node.pair.b.mac("eth0").unwrap(), node.pair.a.mac("eth0").unwrap());
    let frames: Vec<_> = (0..FLOWS)
        .map(|p| traffic::udp4(macs, ([10, 200, 0, 1].into(), 1_000 + p), ([10, 1, 0, 1].into(), 9), 10))
        .collect();
    node.pair.b.run(|| traffic::Raw::open("eth0").unwrap().send(&frames)).unwrap();
    let pid = agent.pid();
    until("an object is said to have landed", || said(&node, pid)["delivery"]["last_object"].is_object());
    let delivered = now_secs();
    let first = said(&node, pid);
    let since = first["since_secs"].as_i64().unwrap();
    assert!((before..=begun).contains(&since), "{before} {begun}: {first}");
    let landed = Objects::below(&node.objects()).unwrap();
    let object = &first["delivery"]["last_object"];
    assert_eq!(landed.keys, [object["key"].as_str().unwrap()]);
    let file = fs::metadata(node.objects().join(&landed.keys[0])).unwrap();
    assert_eq!(object["bytes"], file.len());
    assert!((begun..=delivered).contains(&object["at_secs"].as_i64().unwrap()), "{object}");
    let books = &first["last_window"];
    let packets = |name: &str| books[format!("{name}_packets")].as_u64().unwrap();
    assert_eq!(packets("accepted"), landed.flows("ACCEPT").0, "{books}");
    assert_eq!(packets("seen"), packets("accepted") + packets("lost") + packets("non_ip"), "{books}");
    assert!(packets("seen") >= 1_000 && packets("rejected") == 0, "{books}");
    assert_eq!((&books["difference_packets"], &books["difference_bytes"]), (&0.into(), &0.into()));
    let (code, table, _) = node.command(&["status"]).unwrap();
    assert_eq!(code, Some(0));
    for words in ["capturing since 20", "; last object ", " KiB", " seen = ", ", difference 0"] {
        assert!(table.contains(words), "{words}: {table}");
    }
    // The next agent has counted nothing of its own, and knows it all the same.
    agent.kill().unwrap();
    std::thread::sleep(Duration::from_millis(1_100));
    let mut next = node.start().unwrap();
    let pid = next.pid();
    until("the next agent says something", || said(&node, pid).is_object());
    let second = said(&node, pid);
    assert_eq!((&second["windows"], &second["delivery"]["delivered"]), (&0.into(), &0.into()), "{second}");
    assert_eq!(second["since_secs"], since, "the capture went on");
    assert_eq!(second["delivery"]["last_object"], *object);
    assert_eq!(second["last_window"], *books);
    // Another capture is none of that one: it begins now.
    next.end().unwrap();
    node.detach().unwrap();
    let again = node.start().unwrap();
    let pid = again.pid();
    until("the capture has begun anew", || said(&node, pid)["since_secs"].is_i64());
    assert!(said(&node, pid)["since_secs"].as_i64().unwrap() > since);
    drop(again);
    node.detach().unwrap();
}
