//! `flowlog console`: the node's own console, on loopback, for whoever has the link.

use std::{
    io::{BufRead as _, BufReader},
    process::Stdio,
};

use flowlog_browser::{Browser, Driver};
use integration::{
    agent::binary,
    managed::{Managed, NIC, OTHERS_NIC},
};

use super::is_well;

#[test]
fn the_link_of_flowlog_console_opens_the_node_once_in_one_browser() {
    let node = Managed::new("no_pin = true").unwrap();
    let mut agent = node.start().unwrap();
    let _driver = Driver::start(&node.node).unwrap();
    let _draft = node.draft(NIC, "web", "flows");
    let mut command = node.node.command(binary());
    command.args(["console", "--no-open", "--socket"]).arg(node.path("agent.sock")).stdout(Stdio::piped());
    let mut console = command.spawn().unwrap();
    let mut link = String::new();
    BufReader::new(console.stdout.as_mut().unwrap()).read_line(&mut link).unwrap();
    let link = link.trim();
    let home = link.split("?token").next().unwrap();
    node.node.run(|| {
        let other = Browser::open((800, 600), false).unwrap();
        other.go(home);
        other.reads("body", "belongs to whoever started it");
        let browser = Browser::open((1_440, 1_000), true).unwrap();
        browser.go(link);
        browser.reads("h1", "Flow logs");
        assert!(!browser.url().contains("token"), "it is not in the history of pages");
        other.go(link);
        other.reads("body", "has been used");
        // All contracts, and the node.
        for id in [NIC, OTHERS_NIC] {
            browser.sees(&format!("a.leaf[href='/console/resources/{id}']"));
        }
        assert!(!browser.has("form[action='/console/logout']"));
        browser.press("Node");
        browser.reads("#node", "Kernel");
        is_well(&browser);
        browser.picture("node");
        // A form works through it, and after the agent has come back, as soon as its page is new.
        browser.press("Provision changes");
        browser.reads("main", "will be captured");
        browser.click("form.provision button");
        browser.reads("#request", "Done");
        agent.signal(rustix::process::Signal::KILL);
        agent.wait().unwrap();
        browser.reads("#lost", "connection to the node is lost");
        let _back = node.start().unwrap();
        browser.press("Node");
        browser.reads("table", "web");
        is_well(&browser);
    });
    console.kill().unwrap();
    console.wait().unwrap();
}
