//! The console, as people use it.
#![allow(clippy::disallowed_methods, reason = "tests and tools read clocks to measure and to wait")]
#![allow(clippy::unwrap_used, reason = "tests")]

mod console {
    mod customers;
    mod life;
    mod looks;
    mod operator;

    use flowlog_browser::Browser;
    use integration::managed::{LISTEN, PASSWORD};

    /// A path of the console, over TLS.
    fn at(path: &str) -> String {
        format!("https://{LISTEN}{path}")
    }

    fn log_in(browser: &Browser, name: &str) {
        browser.go(&at("/console/login"));
        browser.fill("#name", name);
        browser.fill("#password", PASSWORD);
        browser.press("Log in");
        browser.reads("h1", "Flow logs");
    }

    /// What is wrong with the page that is seen: nothing for whom it is hard to see or to click, and nothing that the policy refuses.
    fn is_well(browser: &Browser) {
        assert_eq!(browser.barriers(), [""; 0], "{}", browser.url());
        assert_eq!(browser.complaints(), [""; 0], "{}", browser.url());
        let script = "return performance.getEntriesByType('resource').map((e) => e.name).filter((n) => !n.startsWith(location.origin))";
        assert_eq!(browser.run(script, vec![]), serde_json::json!([]), "something came from elsewhere");
        let wide = "return document.documentElement.scrollWidth > document.documentElement.clientWidth";
        assert_eq!(browser.run(wide, vec![]), false, "{} is wider than the window", browser.url());
    }
}
