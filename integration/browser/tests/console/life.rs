//! From the login to the deletion, on a node that captures real traffic.

use flowlog_browser::{Browser, Driver};
use integration::{
    claims::until,
    managed::{Managed, NIC},
};

use super::{at, is_well, log_in};

#[test]
fn a_flow_log_lives_from_login_to_deletion() {
    let node = Managed::new("no_pin = true\n[flow_log_defaults]\nwindow = 1\n").unwrap();
    let _certificate = node.with_tls().unwrap();
    node.node.nft("table inet t { chain c { type filter hook input priority 0; udp dport 9 drop; }; }").unwrap();
    let _agent = node.start().unwrap();
    let _driver = Driver::start(&node.node).unwrap();
    node.node.run(|| {
        let browser = Browser::open((1_280, 1_000), false).unwrap();
        browser.go(&at(&format!("/console/resources/{NIC}")));
        browser.reads("h1", "flowlog");
        is_well(&browser);
        // Wrong, then right: and then where it was going.
        browser.fill("#name", "ann");
        browser.fill("#password", "guess");
        browser.press("Log in");
        browser.reads("[role=alert]", "do not belong together");
        browser.fill("#password", integration::managed::PASSWORD);
        browser.press("Log in");
        browser.reads("h1", "NIC");
        is_well(&browser);
        false_inputs(&browser);
        provision(&browser);
        capture(&node, &browser);
        rename(&browser);
        delete(&node, &browser);
        browser.press("Log out");
        browser.reads("h1", "flowlog");
        browser.go(&at("/"));
        browser.reads("h1", "flowlog");
        assert!(browser.has("#password"));
    });
}

/// Everything that is wrong stands at its field, and stays there until it is right.
fn false_inputs(browser: &Browser) {
    browser.fill("#new-name", "web/1");
    browser.fill("#new-bucket", "flows/a/b");
    browser.press("Add flow log");
    browser.reads(".field.wrong", "may not contain");
    browser.reads(".field.wrong:has([name=bucket])", "prefix");
    assert_eq!(browser.attribute("[name=name]", "aria-invalid").as_deref(), Some("true"));
    assert!(!browser.has(".field.wrong [name=direction]"));
    browser.reads("#drafts", "1 draft");
    browser.sees("a.leaf[aria-current] .light.hollow.red");
    is_well(browser);
    browser.picture("mistakes");
    // What the store would say is known before provisioning, too.
    browser.fill("[name=name]", "web");
    browser.fill("[name=bucket]", "nobodys-bucket");
    browser.press("Save and check");
    browser.reads(".field.wrong", "does not exist");
    assert!(!browser.has(".field.wrong [name=name]"));
    browser.fill("[name=bucket]", "flows/team");
    browser.choose("[name=action]", "ALL");
    browser.press("Save and check");
    browser.reads("main", "All checks have passed");
    browser.sees("a.leaf[aria-current] .light.hollow.green");
    is_well(browser);
}

fn provision(browser: &Browser) {
    browser.press("Provision changes");
    browser.reads("main", "will be captured");
    is_well(browser);
    browser.picture("provision");
    browser.click("form.provision button");
    browser.reads("#request", "Done");
    browser.reads("#drafts", "No drafts");
    is_well(browser);
    browser.picture("provisioned");
    browser.press("web");
    browser.reads(".state", "Capturing");
}

fn capture(node: &Managed, browser: &Browser) {
    node.send(1, "tap0", 50).unwrap();
    node.far.exec("ping -c 3 -i 0.2 10.1.0.1").unwrap();
    // The page renews itself.
    browser.reads("[id^=summary-]", "50 rejected");
    browser.reads(".state", "delivering; last object");
    browser.reads(".books", "difference 0");
    browser.sees("a.leaf[aria-current] .light.green:not(.hollow)");
    browser.sees(".plot canvas");
    let utc = browser.attribute("main time", "title").unwrap();
    assert!(utc.ends_with("UTC") && !browser.text("main time").contains("UTC"), "in the reader's zone");
    live(node, browser);
    is_well(browser);
    // As a page is that somebody opens now: the chart has what was counted.
    browser.resize(1_280, 1_620);
    browser.reload();
    browser.reads("figure", "rejected");
    browser.click(".watch > summary");
    browser.reads(".sums", "packets rejected");
    std::thread::scope(|scope| {
        // Something in each window, as on a node that is used.
        scope.spawn(|| node.far.exec("ping -q -c 200 -i 0.05 10.1.0.1").unwrap());
        let is_empty = || browser.text(".books").contains(": 0 seen");
        until("a window had something", || !is_empty());
        node.send(1, "tap0", 12).unwrap();
        browser.reads(".live", "×12");
        // Sums are of open windows, every three seconds; these windows have one.
        until("sums of an open window", || {
            node.send(1, "tap0", 12).unwrap();
            browser.text(".sums").contains("NETFILTER_DROP")
        });
        browser.picture("captured");
    });
    browser.resize(1_280, 1_000);
    let landed = node.landed("flows").unwrap();
    assert!(!landed.keys.is_empty(), "nothing has landed");
}

/// What is refused is on the screen while somebody looks, and waits while that is paused.
fn live(node: &Managed, browser: &Browser) {
    browser.click(".watch > summary");
    // The first sums: from now on somebody looks.
    browser.reads(".sums", "packets rejected");
    node.send(1, "tap0", 7).unwrap();
    browser.reads(".live", "udp 10.1.0.2:");
    let line = browser.text(".live");
    assert!(line.contains("> 10.1.0.1:9") && line.contains("NETFILTER_DROP") && line.contains("×7"), "{line}");
    browser.press("Pause");
    node.send(1, "tap0", 3).unwrap();
    browser.reads(".note", "1 lines not shown");
    assert_eq!(browser.text(".live"), line);
    browser.press("Pause");
    node.send(1, "tap0", 2).unwrap();
    browser.reads(".live", "×2");
}

fn rename(browser: &Browser) {
    browser.fill("[id^=rename-]", "a/b");
    browser.press("Rename");
    browser.reads("main", "may not contain");
    is_well(browser);
    browser.run("history.back()", vec![]);
    browser.fill("[id^=rename-]", "shop");
    browser.press("Rename");
    browser.reads("section.flow-log h2", "shop");
    browser.reads("[id^=summary-]", "Keys begin with");
    browser.reads("a.leaf[aria-current]", "shop");
}

fn delete(node: &Managed, browser: &Browser) {
    browser.press("Delete");
    browser.reads("main", "stay in flows/team");
    is_well(browser);
    browser.press("Keep it");
    browser.reads(".state", "Capturing");
    browser.press("Delete");
    browser.click("form.actions button.danger");
    browser.reads("#request", "Done");
    browser.click("a.leaf");
    browser.reads("main", "No flow log");
    assert_eq!(node.hooked().unwrap(), [""; 0]);
    browser.press("Audit log");
    for words in ["draft added", "active", "renamed from `web` to `shop`", "deleted"] {
        browser.reads("table", words);
    }
    is_well(browser);
    browser.picture("audit");
}

#[test]
fn keys_and_search_find_a_flow_log_without_a_mouse() {
    let node = Managed::new("no_pin = true").unwrap();
    let _certificate = node.with_tls().unwrap();
    let _agent = node.start().unwrap();
    let _driver = Driver::start(&node.node).unwrap();
    let _draft = node.draft(NIC, "needle", "flows");
    node.node.run(|| {
        let browser = Browser::open((1_280, 900), false).unwrap();
        log_in(&browser, "ann");
        browser.keys("/");
        browser.keys("needle");
        let alone = "return document.querySelectorAll('#tree .leaf').length";
        browser.reads("#tree", "needle");
        let is_alone = (0..100).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(50));
            browser.run(alone, vec![]) == 1
        });
        assert!(is_alone, "{}", browser.text("#tree"));
        // Down from the search into the tree, and in.
        browser.keys("\u{e015}");
        browser.keys("\u{e007}");
        browser.reads("h1", "NIC");
        assert!(browser.url().contains(NIC));
        browser.keys("/");
        browser.keys("nothing of the kind");
        browser.reads("#tree", "Nothing is found");
        is_well(&browser);
    });
}
