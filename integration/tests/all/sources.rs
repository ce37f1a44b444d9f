//! NICs that names of interfaces tell of, and flow logs by selection.

use std::fs;

use integration::{
    managed::{CONTRACT, Managed, NIC, plug_in},
    sourced::{OWNER, Sourced, TEMPLATE},
};
use rustix::process::Signal;
use serde_json::json;

const PACKETS: usize = 20;
const NAMES: &str = "[[inventory.source]]\nkind = 'names'\npatterns = ['^tap(?<vm>\\d+)i(?<nic>\\d+)$']\ncontract = '7'\nlabels = { env = 'prod' }\n";

fn unplug(node: &Sourced, interface: &str) {
    node.managed.node.exec(&format!("ip link del {interface}")).unwrap();
}

/// What the agent says of its captures.
fn said(node: &Sourced) -> String {
    let state = node.managed.path("state");
    node.managed.command(&["status", "--state-dir", state.to_str().unwrap(), "--output", "json"]).unwrap().1
}

/// Packets of port 9 that the guest was sent, in what has landed.
fn packets(landed: &integration::rows::Objects) -> u64 {
    landed.sum(|r| r.dport == 9 && r.direction == "egress").0
}

#[test]
fn a_vm_that_starts_is_captured_by_selection_with_nobody_doing_anything_and_not_any_more_when_it_is_gone() {
    let node = Sourced::new("no_pin = true", NAMES, "{ label.env = 'prod' }").unwrap();
    let (ns, far) = (&node.managed.node, &node.managed.far);
    // One is there already, one comes.
    plug_in(ns, far, "tap100i0", 20).unwrap();
    let mut agent = node.managed.start().unwrap();
    let first = node.found("tap100i0");
    plug_in(ns, far, "tap101i0", 21).unwrap();
    agent.wait_for("watching interface=\"tap101i0\"").unwrap();
    for (n, interface) in [(20, "tap100i0"), (21, "tap101i0")] {
        node.managed.send(n, interface, PACKETS).unwrap();
    }
    // Everybody who shows it says by which flow log it is covered.
    let nic = node.found("tap101i0");
    assert_eq!(
        (&nic["selected_by"], &nic["contract"], &nic["source"]),
        (&json!(TEMPLATE), &json!(OWNER), &json!("names"))
    );
    assert_eq!(nic["labels"], json!({"env": "prod", "nic": "0", "vm": "101"}));
    let (code, table, _) = node.managed.command(&["inventory", "list"]).unwrap();
    assert!(code == Some(0) && table.contains("all (by selection)"), "{table}");
    let status = said(&node);
    assert!(status.contains(nic["id"].as_str().unwrap()), "{status}");
    // What the configuration does not select, and what is no VM's, is left alone.
    assert_eq!(node.found("tap0")["selected_by"], json!(null));
    // A VM moves away, and comes back: it is the same one, and not the same as any other.
    unplug(&node, "tap100i0");
    node.lost("tap100i0");
    // The main loop hears of both by itself: only when it has ended the capture is the next one another.
    let id = first["id"].as_str().unwrap();
    node.until("still captured", |s| (!said(s).contains(id)).then_some(()));
    plug_in(ns, far, "tap100i0", 20).unwrap();
    assert_eq!(node.found("tap100i0")["id"], first["id"]);
    assert_ne!(first["id"], nic["id"]);
    agent.wait_for("watching interface=\"tap100i0\"").unwrap();
    node.managed.send(20, "tap100i0", PACKETS).unwrap();
    agent.end().unwrap();
    let landed = node.landed().unwrap();
    assert_eq!(packets(&landed), 3 * PACKETS as u64, "{:#?}", landed.rows);
    let of = |vm: &str| landed.metadata.iter().filter(|m| m.get("flowlog.label.vm").is_some_and(|v| v == vm)).count();
    assert!(of("100") == 2 && of("101") == 1, "{:#?}", landed.metadata);
    assert!(landed.metadata.iter().all(|m| m["flowlog.label.env"] == "prod"));
    assert!(landed.keys.iter().all(|k| k.starts_with("all/")), "{:#?}", landed.keys);
}

#[test]
fn a_flow_log_of_its_own_takes_the_place_of_the_one_by_selection_and_gives_it_back() {
    let node = Sourced::new("no_pin = true", NAMES, "{}").unwrap();
    let mut agent = node.managed.start().unwrap();
    let selected_by = |node: &Sourced| node.nic("tap0").unwrap()["selected_by"].clone();
    assert_eq!(selected_by(&node), json!(TEMPLATE));
    node.managed.send(1, "tap0", PACKETS).unwrap();
    // A draft takes nothing's place.
    let id = node.managed.draft(NIC, "own", "flows");
    assert_eq!(selected_by(&node), json!(TEMPLATE));
    let provisioned = node.managed.ask("POST", "/flowlog/v1/provision", Some(&json!({"flow_logs": [id]})));
    assert_eq!(node.managed.finish(&provisioned).0, "DONE");
    assert_eq!(selected_by(&node), json!(null));
    node.managed.send(1, "tap0", 2 * PACKETS).unwrap();
    let deleted = node.managed.ask("DELETE", &format!("/flowlog/v1/flowlogs/{id}"), None);
    assert_eq!(node.managed.finish(&deleted).0, "DONE");
    assert_eq!(selected_by(&node), json!(TEMPLATE));
    node.managed.send(1, "tap0", 4 * PACKETS).unwrap();
    agent.end().unwrap();
    let by_selection = node.landed().unwrap();
    let of_tap0 = by_selection.sum(|r| r.dport == 9 && r.direction == "egress" && r.interface == NIC).0;
    assert_eq!(of_tap0, 5 * PACKETS as u64);
    assert_eq!(packets(&node.managed.landed("flows").unwrap()), 2 * PACKETS as u64);
}

#[test]
fn labels_are_those_of_the_inventory_now_and_what_is_not_selected_any_more_is_not_captured() {
    let node =
        Sourced::new("no_pin = true", "", &format!("{{ contract = '{CONTRACT}', kind = 'nic', label.env = 'prod' }}"))
            .unwrap();
    let labelled = |labels: &str| {
        let inventory = node.managed.inventory();
        let line = "interface = { name = 'tap0' }\n";
        node.managed.write("inventory.toml", &inventory.replace(line, &format!("{line}labels = {labels}\n"))).unwrap();
    };
    labelled("{ env = 'prod', team = 'a' }");
    let mut agent = node.managed.start().unwrap();
    node.managed.send(1, "tap0", PACKETS).unwrap();
    // Another label, and it is still selected: nothing ends.
    labelled("{ env = 'prod', team = 'b' }");
    node.until("the label", |s| (s.nic("tap0")?["labels"]["team"] == "b").then_some(()));
    node.managed.send(1, "tap0", PACKETS).unwrap();
    labelled("{ env = 'test', team = 'b' }");
    node.until("selected", |s| s.nic("tap0")?["selected_by"].is_null().then_some(()));
    node.until("unhooked", |s| (!s.managed.hooked().unwrap().contains(&"tap0".to_owned())).then_some(()));
    node.managed.send(1, "tap0", 8 * PACKETS).unwrap();
    agent.end().unwrap();
    let landed = node.landed().unwrap();
    assert_eq!(packets(&landed), 2 * PACKETS as u64);
    let [object] = &landed.metadata[..] else { panic!("{:#?}", landed.metadata) };
    assert_eq!((object["flowlog.label.team"].as_str(), object["flowlog.label.env"].as_str()), ("b", "prod"));
}

#[test]
fn a_file_knows_a_nic_better_than_its_name_and_a_nic_of_no_contract_is_nobodys() {
    let sources = "[[inventory.source]]\nkind = 'names'\nname = 'owned'\npatterns = ['^tap(?<nic>\\d)$']\ncontract = '7'\n\
                   [[inventory.source]]\nkind = 'names'\nname = 'projects'\npatterns = ['^(?<project>[a-z]+)-(?<nic>\\d+)$']\n\
                   contracts = { acme = '8' }\n";
    let node = Sourced::new("no_pin = true", sources, "{}").unwrap();
    let (ns, far) = (&node.managed.node, &node.managed.far);
    plug_in(ns, far, "acme-1", 20).unwrap();
    plug_in(ns, far, "other-2", 21).unwrap();
    let mut agent = node.managed.start().unwrap();
    assert_eq!((&node.found("tap0")["id"], &node.found("acme-1")["contract"]), (&json!(NIC), &json!("8")));
    let inventory = node.inventory();
    assert_eq!(inventory["problems"], json!([]));
    let [nobodys] = &inventory["unowned"].as_array().unwrap()[..] else { panic!("{inventory:#}") };
    assert_eq!((&nobodys["interface"], &nobodys["project"]), (&json!("other-2"), &json!("other")));
    let (_, table, _) = node.managed.command(&["inventory", "list"]).unwrap();
    assert!(table.contains("no contract is named for its project `other`"), "{table}");
    let stranger = node.managed.ask_as("ann", "GET", "/flowlog/v1/inventory", None).body;
    assert_eq!(stranger["unowned"], json!([]));
    agent.signal(Signal::TERM);
    agent.wait().unwrap();
    let log = agent.log();
    assert_eq!(log.matches("a file has nic").count(), 1, "{log}");
    assert_eq!(log.matches("is nobody's").count(), 1, "{log}");
}

#[test]
fn an_import_by_names_shows_and_writes_what_an_agent_then_reads() {
    let node = Sourced::new("no_pin = true", "", "{}").unwrap();
    plug_in(&node.managed.node, &node.managed.far, "tap100i0", 20).unwrap();
    let file = node.managed.path("inventory.d/imported.toml");
    let source = ["names", "--pattern", r"^tap(?<vm>\d+)i(?<nic>\d+)$", "--contract", OWNER, "--label", "env=prod"];
    let (code, shown, words) = node.import(&[&source[..], &["--dry-run"]].concat());
    assert!(code == Some(0) && shown.contains("tap100i0") && !file.exists(), "{shown}{words}");
    let to = file.to_str().unwrap();
    assert_eq!(node.import(&[&source[..], &["--to", to]].concat()), (Some(0), String::new(), String::new()));
    assert_eq!(fs::read_to_string(&file).unwrap(), shown);
    let mut agent = node.managed.start().unwrap();
    assert_eq!(node.found("tap100i0")["labels"]["env"], "prod");
    agent.end().unwrap();
    // What an import has written is replaced, what somebody has written is not.
    assert_eq!(node.import(&[&source[..], &["--to", to]].concat()).0, Some(0));
    let (own, inventory) = (node.managed.path("inventory.toml"), node.managed.inventory());
    let own = own.to_str().unwrap();
    let (code, _, words) = node.import(&[&source[..], &["--to", own]].concat());
    assert!(code == Some(65) && words.contains("no import has written it"), "{words}");
    assert_eq!(fs::read_to_string(own).unwrap(), inventory);
    assert_eq!(node.import(&[&source[..], &["--to", own, "--replace"]].concat()).0, Some(0));
    assert_eq!(fs::read_to_string(own).unwrap(), shown);
    // A path of the command line is meant from where it is given, and the database is called as in the configuration, too.
    for flags in [["libvirt", "--directory"], ["ovsdb", "--socket"]] {
        let (code, _, words) = node.import(&[&flags[..], &["no/such", "--dry-run"]].concat());
        let whole = std::env::current_dir().unwrap().join("no/such");
        assert!(code == Some(75) && words.contains(whole.to_str().unwrap()), "{code:?} {words}");
    }
    let (code, _, words) = node.import(&["names", "--pattern", "^tap(", "--dry-run"]);
    assert!(code == Some(64) && words.contains("unclosed group"), "a flag is wrong: {words}");
}

#[test]
fn flow_logs_that_are_made_after_a_reload_have_its_defaults_and_those_before_keep_theirs() {
    let managed = Managed::new("no_pin = true").unwrap();
    let mut agent = managed.start().unwrap();
    let before = managed.draft(NIC, "before", "flows");
    let config = fs::read_to_string(managed.path("flowlog.toml")).unwrap();
    managed.write("flowlog.toml", &format!("{config}[flow_log_defaults]\nwindow = '1m'\nsubsecond = true\n")).unwrap();
    let (code, out, error) = managed.reload().unwrap();
    assert!(code == Some(0) && out.contains("flow_log_defaults.window"), "{out}{error}");
    let after = managed.draft(NIC, "after", "flows");
    for (id, window_secs, subsecond) in [(before, 600, false), (after, 60, true)] {
        let settings = &managed.ask("GET", &format!("/flowlog/v1/flowlogs/{id}"), None).body["settings"];
        assert_eq!((&settings["window_secs"], &settings["subsecond"]), (&window_secs.into(), &subsecond.into()));
    }
    agent.end().unwrap();
}

#[test]
fn an_inventory_and_principals_that_are_elsewhere_after_a_reload_are_read_and_watched_there() {
    let managed = Managed::new("no_pin = true").unwrap();
    let mut agent = managed.start().unwrap();
    let config = fs::read_to_string(managed.path("flowlog.toml")).unwrap();
    let node = Sourced { managed };
    let managed = &node.managed;
    assert_eq!(managed.ask_as("ann", "GET", "/flowlog/v1/flowlogs", None).status, 200);
    // Elsewhere there is one NIC of another label, and nobody who knows a password.
    fs::create_dir(managed.path("other.d")).unwrap();
    let nic = managed.inventory().split("[[nic]]").nth(1).unwrap().to_owned();
    managed.write("other.d/nic.toml", &format!("[[nic]]{nic}labels = {{ env = 'a' }}\n")).unwrap();
    managed.write("nobody.toml", "").unwrap();
    let d = managed.dir.path().display();
    let moved = config
        .replace(&format!("file = '{d}/inventory.toml'\ndir = '{d}/inventory.d'"), &format!("dir = '{d}/other.d'"))
        .replace("principals.toml", "nobody.toml");
    managed.write("flowlog.toml", &moved).unwrap();
    let (code, out, error) = managed.reload().unwrap();
    assert!(code == Some(0) && out.contains("inventory.file") && out.contains("api.principals"), "{out}{error}");
    node.until("read there", |s| (s.nic("tap0")?["labels"]["env"] == "a").then_some(()));
    assert!(node.nic("natgw0").is_none());
    node.until("nobody knows ann", |s| {
        (s.managed.ask_as("ann", "GET", "/flowlog/v1/flowlogs", None).status == 401).then_some(())
    });
    // And watched there, and not where they were.
    managed.write("inventory.toml", "").unwrap();
    managed.write("other.d/nic.toml", &format!("[[nic]]{nic}labels = {{ env = 'b' }}\n")).unwrap();
    node.until("watched there", |s| (s.nic("tap0")?["labels"]["env"] == "b").then_some(()));
    agent.end().unwrap();
}

#[test]
fn another_selection_holds_after_a_reload_without_a_restart() {
    let node = Sourced::new("no_pin = true", NAMES, "{ label.env = 'test' }").unwrap();
    let (ns, far) = (&node.managed.node, &node.managed.far);
    plug_in(ns, far, "tap100i0", 20).unwrap();
    let mut agent = node.managed.start().unwrap();
    assert_eq!(node.found("tap100i0")["selected_by"], json!(null));
    let id = node.found("tap100i0")["id"].as_str().unwrap().to_owned();
    let config = fs::read_to_string(node.managed.path("flowlog.toml")).unwrap();
    let reload = |text: &str| {
        node.managed.write("flowlog.toml", text).unwrap();
        let (code, out, error) = node.managed.reload().unwrap();
        assert!(code == Some(0) && out.contains("flow logs by selection: changed"), "{out}{error}");
    };
    node.managed.send(20, "tap100i0", PACKETS).unwrap();
    reload(&config.replace("env = 'test'", "env = 'prod'"));
    agent.wait_for("watching interface=\"tap100i0\"").unwrap();
    node.managed.send(20, "tap100i0", PACKETS).unwrap();
    reload(&config);
    node.until("still captured", |s| (!said(s).contains(&id)).then_some(()));
    node.managed.send(20, "tap100i0", PACKETS).unwrap();
    agent.end().unwrap();
    assert_eq!(packets(&node.landed().unwrap()), PACKETS as u64, "of the time in which it was selected");
}

#[test]
fn a_selection_whose_hook_cannot_follow_is_refused_and_nothing_of_it_changes() {
    let node = Sourced::new("no_pin = true", NAMES, "{ label.env = 'prod' }").unwrap();
    let (ns, far) = (&node.managed.node, &node.managed.far);
    plug_in(ns, far, "tap100i0", 20).unwrap();
    let mut agent = node.managed.start().unwrap();
    assert_eq!(node.found("tap100i0")["selected_by"], json!(TEMPLATE));
    let config = fs::read_to_string(node.managed.path("flowlog.toml")).unwrap();
    let steer = |cpus: &str| {
        let line = format!("echo {cpus} > /sys/class/net/tap100i0/queues/rx-0/rps_cpus");
        assert!(ns.command("sh").args(["-c", &line]).status().unwrap().success());
    };
    let reload = || {
        node.managed.write("flowlog.toml", &format!("{config}hook = 'xdp'\n")).unwrap();
        node.managed.reload().unwrap()
    };
    steer("2");
    let (code, _, error) = reload();
    assert!(code == Some(65) && error.contains("flow log `all` on tap100i0: TC and XDP cannot take over"), "{error}");
    node.managed.send(20, "tap100i0", PACKETS).unwrap();
    steer("0");
    let (code, out, error) = reload();
    assert!(code == Some(0) && out.contains("flow logs by selection: changed"), "{out}{error}");
    agent.wait_for("the flow log has changed: a new window begins interface=\"tap100i0\"").unwrap();
    node.managed.send(20, "tap100i0", PACKETS).unwrap();
    agent.signal(rustix::process::Signal::TERM);
    assert_eq!(agent.wait().unwrap(), Some(0));
    let landed = node.landed().unwrap();
    assert_eq!(packets(&landed), 2 * PACKETS as u64);
    assert!(landed.rows.iter().all(|r| r.skip != "gap"), "{:#?}", landed.rows);
}
