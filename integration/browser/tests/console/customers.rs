//! Two customers at once, somebody who may only look, scripts in names, and a node that goes away.

use flowlog_browser::{Browser, Driver};
use integration::managed::{Managed, NIC, OTHERS_NIC};

use super::{at, is_well, log_in};

#[test]
fn two_customers_at_once_do_not_see_each_other_and_one_who_may_only_look_has_nothing_to_press() {
    let node = Managed::new("no_pin = true").unwrap();
    let _certificate = node.with_tls().unwrap();
    let _agent = node.start().unwrap();
    let _driver = Driver::start(&node.node).unwrap();
    node.node.run(|| {
        let open = |name| {
            let browser = Browser::open((1_280, 900), false).unwrap();
            log_in(&browser, name);
            browser
        };
        let (ann, mal, eve) = (open("ann"), open("mal"), open("eve"));
        ann.go(&at(&format!("/console/resources/{NIC}")));
        ann.fill("#new-name", "ours");
        ann.fill("#new-bucket", "flows");
        ann.press("Add flow log");
        ann.reads("main", "All checks have passed");
        // Whoever looks at the same contract sees it within a few seconds, and the other contract never.
        eve.reads("#tree", "ours");
        eve.go(&at(&format!("/console/resources/{NIC}")));
        eve.reads("main", "takes the privilege to create flow logs");
        assert!(!eve.has("main form button") && !eve.has("a.danger"), "{}", eve.text("main"));
        is_well(&eve);
        mal.go(&at(&format!("/console/resources/{OTHERS_NIC}")));
        mal.reads("#tree", "NIC");
        assert!(!mal.text("body").contains("ours") && mal.text("#drafts").contains("No drafts"));
        mal.go(&at(&format!("/console/resources/{NIC}")));
        mal.reads("h1", "no such thing");
        is_well(&mal);
        // Two changes of one draft: the second is told so.
        let kim = open("kim");
        for browser in [&ann, &kim] {
            browser.go(&at(&format!("/console/resources/{NIC}")));
        }
        kim.fill("[name=name]", "kims");
        kim.press("Save and check");
        kim.reads("section.flow-log h2", "kims");
        ann.fill("[name=name]", "anns");
        ann.press("Save and check");
        ann.reads("main", "has changed");
        is_well(&ann);
    });
}

#[test]
fn scripts_in_names_are_seen_as_text_and_do_nothing() {
    let node = Managed::new("no_pin = true").unwrap();
    let _certificate = node.with_tls().unwrap();
    let inventory = node.inventory();
    let name = "name = '<img src=x onerror=document.title=1><script>document.title=2</script>'\n";
    node.write("inventory.toml", &inventory.replacen("[[nic]]\n", &format!("[[nic]]\n{name}"), 1)).unwrap();
    let _agent = node.start().unwrap();
    let _driver = Driver::start(&node.node).unwrap();
    let script = "\"><script>document.title=3</script><img src=x onerror=document.title=4>";
    let id = node.draft(NIC, script, script);
    node.node.run(|| {
        let browser = Browser::open((1_280, 900), false).unwrap();
        log_in(&browser, "ann");
        for path in [
            "/".to_owned(),
            format!("/console/resources/{NIC}"),
            format!("/console/flowlogs/{id}/delete"),
            "/console/provision".to_owned(),
            "/console/audit".to_owned(),
        ] {
            browser.go(&at(&path));
            browser.reads("#tree", "<img src=x");
            assert!(!browser.has("#tree img") && !browser.has("main img") && !browser.has("body script"), "{path}");
            let title = browser.run("return document.title", vec![]);
            assert!(title.as_str().is_some_and(|t| t.ends_with("· flowlog")), "{title}");
            is_well(&browser);
        }
    });
}

#[test]
fn a_page_says_that_the_node_does_not_answer_and_goes_on_when_it_does() {
    let node = Managed::new("no_pin = true").unwrap();
    let _certificate = node.with_tls().unwrap();
    let mut agent = node.start().unwrap();
    let _driver = Driver::start(&node.node).unwrap();
    node.node.run(|| {
        let browser = Browser::open((1_280, 900), false).unwrap();
        log_in(&browser, "ann");
        agent.signal(rustix::process::Signal::KILL);
        agent.wait().unwrap();
        browser.reads("#lost", "connection to the node is lost");
        browser.picture("lost");
        assert_eq!(browser.barriers(), [""; 0]);
        let _back = node.start().unwrap();
        // Sessions end with the agent: the page leads to the login by itself, and that back in.
        browser.reads("main.login", "Your session is over");
        assert_eq!(browser.barriers(), [""; 0]);
        log_in(&browser, "ann");
        assert!(browser.attribute("#lost", "hidden").is_some());
    });
}
