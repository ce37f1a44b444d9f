//! Every page in light and dark, from a telephone to a wall.

use flowlog_browser::{Browser, Driver};
use integration::managed::{Managed, NAT, NIC, NLB};

use super::{at, is_well, log_in};

#[test]
fn every_page_can_be_used_in_light_and_dark_on_any_width() {
    let node = Managed::new("no_pin = true\n[flow_log_defaults]\nwindow = 1\n").unwrap();
    let _certificate = node.with_tls().unwrap();
    let _agent = node.start().unwrap();
    let _driver = Driver::start(&node.node).unwrap();
    let active = node.draft(NIC, "web", "flows/team");
    let body = serde_json::json!({"flow_logs": [active]});
    assert_eq!(node.finish(&node.ask("POST", "/flowlog/v1/provision", Some(&body))).0, "DONE");
    let wrong = node.draft(NAT, &"long-name-without-any-place-to-break".repeat(3), "No Bucket");
    let _draft = node.draft(NLB, "front", "flows");
    let pages = [
        "/".to_owned(),
        format!("/console/resources/{NIC}"),
        format!("/console/resources/{NAT}"),
        format!("/console/flowlogs/{wrong}/delete"),
        "/console/provision".to_owned(),
        "/console/audit".to_owned(),
    ];
    node.node.run(|| {
        for (dark, name) in [(false, "light"), (true, "dark")] {
            let browser = Browser::open((1_280, 1_000), dark).unwrap();
            log_in(&browser, "ann");
            for (n, page) in pages.iter().enumerate() {
                browser.go(&at(page));
                browser.sees("#tree .leaf");
                is_well(&browser);
                browser.picture(&format!("{name}-{n}"));
            }
            for width in [360, 800, 2_560] {
                browser.resize(width, 1_000);
                browser.go(&at(&pages[1]));
                browser.sees(".plot canvas");
                is_well(&browser);
                browser.picture(&format!("{name}-{width}"));
            }
        }
    });
}
