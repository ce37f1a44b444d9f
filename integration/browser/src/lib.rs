//! A browser that a test drives: Debian's Chromium, in the network namespace of the node, from which nothing leads elsewhere.
#![forbid(unsafe_code)]
#![allow(clippy::missing_panics_doc, reason = "a test that does not find what it looks for is over")]

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::{Child, Stdio},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use fantoccini::{Client, ClientBuilder, Locator, elements::Element, wd::WebDriverCompatibleCommand};
use flowlog_lab::Netns;
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

/// How long a page may take to show something.
const PATIENCE: Duration = Duration::from_secs(20);
/// Where the driver listens, in the node's namespace.
const DRIVER: &str = "http://127.0.0.1:9515";
/// What looks for barriers in a page: WCAG 2.2, levels A and AA.
const AXE: &str = include_str!("../vendor/axe.min.js");
const AXE_RUN: &str = "const done = arguments[arguments.length - 1];
    axe.run(document, { runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice'] })
        .then((found) => done(found.violations.map((v) => v.id + ': ' + v.nodes.map((n) => n.html + ' ' + n.failureSummary).join(' | '))))
        .catch((error) => done([String(error)]));";

/// Asks the driver for what pages have put into the browser's console: what the policy refused is there as well.
#[derive(Debug)]
struct GetLog;

impl WebDriverCompatibleCommand for GetLog {
    fn endpoint(&self, base: &url::Url, session: Option<&str>) -> Result<url::Url, url::ParseError> {
        base.join(&format!("session/{}/se/log", session.unwrap_or_default()))
    }

    fn method_and_body(&self, _: &url::Url) -> (http::Method, Option<String>) {
        (http::Method::POST, Some(json!({ "type": "browser" }).to_string()))
    }
}

/// What drives browsers; ends with its last use.
pub struct Driver(Child);

impl Driver {
    /// Starts it in a namespace.
    ///
    /// # Errors
    /// If it is not installed: `cargo xtask setup`.
    pub fn start(ns: &Netns) -> anyhow::Result<Self> {
        let mut command = ns.command("chromedriver");
        command.arg("--port=9515").stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().context("chromedriver")?;
        let lines = BufReader::new(child.stdout.take().context("its output")?);
        let is_up = lines.lines().map_while(Result::ok).any(|line| line.contains("started successfully"));
        ensure!(is_up, "chromedriver has ended");
        Ok(Self(child))
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// One browser, with cookies of its own. Made, used and dropped in the namespace of its driver.
pub struct Browser {
    client: Option<Client>,
    runtime: Runtime,
    _profile: tempfile::TempDir,
}

impl Browser {
    /// Opens one of this size; a dark one is of somebody who prefers that.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn open((width, height): (u32, u32), is_dark: bool) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let profile = tempfile::tempdir()?;
        let mut args = vec![
            "--headless=new".to_owned(),
            // As root there is none.
            "--no-sandbox".to_owned(),
            "--disable-gpu".to_owned(),
            "--disable-dev-shm-usage".to_owned(),
            "--disable-background-networking".to_owned(),
            "--hide-scrollbars".to_owned(),
            "--lang=en-GB".to_owned(),
            format!("--window-size={width},{height}"),
            format!("--user-data-dir={}", profile.path().display()),
        ];
        if is_dark {
            args.push("--blink-settings=preferredColorScheme=0".to_owned());
        }
        let wanted = json!({
            "acceptInsecureCerts": true,
            "goog:loggingPrefs": { "browser": "ALL" },
            "goog:chromeOptions": { "args": args },
        });
        let wanted = wanted.as_object().cloned().context("an object")?;
        let client = runtime.block_on(ClientBuilder::new(HttpConnector::new()).capabilities(wanted).connect(DRIVER))?;
        runtime.block_on(client.set_window_size(width, height))?;
        Ok(Self { client: Some(client), runtime, _profile: profile })
    }

    fn client(&self) -> &Client {
        self.client.as_ref().expect("open")
    }

    /// Goes to a URL.
    pub fn go(&self, url: &str) {
        self.runtime.block_on(self.client().goto(url)).expect("a page");
    }

    /// Where it is.
    #[must_use]
    pub fn url(&self) -> String {
        self.runtime.block_on(self.client().current_url()).expect("a URL").to_string()
    }

    pub fn reload(&self) {
        self.runtime.block_on(self.client().refresh()).expect("a page");
    }

    pub fn resize(&self, width: u32, height: u32) {
        self.runtime.block_on(self.client().set_window_size(width, height)).expect("a size");
    }

    /// Waits until there is something.
    pub fn sees(&self, css: &str) {
        drop(self.find(css));
    }

    /// Waits for what a CSS selector finds.
    #[must_use]
    pub fn find(&self, css: &str) -> Element {
        let found = self.runtime.block_on(self.client().wait().at_most(PATIENCE).for_element(Locator::Css(css)));
        found.unwrap_or_else(|e| panic!("no `{css}` at {}: {e}\n{}", self.url(), self.text("body")))
    }

    /// Whether there is something now.
    #[must_use]
    pub fn has(&self, css: &str) -> bool {
        !self.runtime.block_on(self.client().find_all(Locator::Css(css))).expect("an answer").is_empty()
    }

    /// The text of the first that is found, as it is seen; empty if there is none.
    #[must_use]
    pub fn text(&self, css: &str) -> String {
        let script = "const e = document.querySelector(arguments[0]); return e ? e.innerText : '';";
        self.run(script, vec![json!(css)]).as_str().unwrap_or_default().to_owned()
    }

    /// Waits until a part of the page says something.
    pub fn reads(&self, css: &str, words: &str) {
        let until = async {
            loop {
                let script = "const e = document.querySelector(arguments[0]); return e ? e.innerText : '';";
                let text = self.client().execute(script, vec![json!(css)]).await;
                if text.is_ok_and(|t| t.as_str().is_some_and(|t| t.contains(words))) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        let read = self.runtime.block_on(async { tokio::time::timeout(PATIENCE, until).await });
        assert!(read.is_ok(), "`{css}` does not read `{words}` at {}:\n{}", self.url(), self.text("body"));
    }

    /// Presses a link or button by what it says.
    pub fn press(&self, words: &str) {
        let xpath = format!("//*[self::a or self::button][contains(normalize-space(.), '{words}')]");
        let element = self.runtime.block_on(self.client().wait().at_most(PATIENCE).for_element(Locator::XPath(&xpath)));
        let element = element.unwrap_or_else(|e| panic!("no `{words}` at {}: {e}\n{}", self.url(), self.text("body")));
        self.runtime.block_on(element.click()).unwrap_or_else(|e| panic!("`{words}`: {e}"));
    }

    /// Clicks what a CSS selector finds.
    pub fn click(&self, css: &str) {
        let element = self.find(css);
        self.runtime.block_on(element.click()).unwrap_or_else(|e| panic!("`{css}`: {e}"));
    }

    /// Types into a field in the place of what is there.
    pub fn fill(&self, css: &str, text: &str) {
        let element = self.find(css);
        self.runtime.block_on(async {
            element.clear().await.expect("a field");
            element.send_keys(text).await.expect("a field");
        });
    }

    /// Types wherever the focus is.
    pub fn keys(&self, text: &str) {
        self.runtime.block_on(async {
            let element = self.client().active_element().await.expect("a focus");
            element.send_keys(text).await.expect("keys");
        });
    }

    pub fn choose(&self, css: &str, value: &str) {
        let element = self.find(css);
        self.runtime.block_on(element.select_by_value(value)).expect("a choice");
    }

    /// The value of an attribute or property of what is found.
    #[must_use]
    pub fn attribute(&self, css: &str, name: &str) -> Option<String> {
        let element = self.find(css);
        self.runtime.block_on(element.attr(name)).expect("an answer")
    }

    /// Runs a script in the page.
    #[allow(clippy::must_use_candidate, reason = "some are run for what they do")]
    pub fn run(&self, script: &str, args: Vec<Value>) -> Value {
        self.runtime.block_on(self.client().execute(script, args)).expect("a script")
    }

    /// What pages have done wrong since the last time, as the browser's own console has it; not what the network did.
    #[must_use]
    pub fn complaints(&self) -> Vec<String> {
        let said = self.runtime.block_on(self.client().issue_cmd(GetLog)).expect("a log");
        let entries = said.as_array().into_iter().flatten();
        let words = entries.map(|e| format!("{}: {}", e["source"].as_str().unwrap_or_default(), e["message"]));
        words.filter(|w| !w.starts_with("network")).collect()
    }

    /// What keeps somebody from using the page, by WCAG 2.2 AA.
    #[must_use]
    pub fn barriers(&self) -> Vec<String> {
        self.runtime.block_on(async {
            self.client().execute(AXE, vec![]).await.expect("axe");
            let found = self.client().execute_async(AXE_RUN, vec![]).await.expect("axe");
            found.as_array().into_iter().flatten().map(|v| v.as_str().unwrap_or_default().to_owned()).collect()
        })
    }

    /// Keeps what is seen, in the folder `console` of the target folder.
    pub fn picture(&self, name: &str) {
        let png = self.runtime.block_on(self.client().screenshot()).expect("a picture");
        let dir = pictures();
        fs::create_dir_all(&dir).expect("a folder");
        fs::write(dir.join(format!("{name}.png")), png).expect("a file");
    }
}

/// Where pictures are kept.
fn pictures() -> PathBuf {
    let me = std::env::current_exe().expect("own path");
    me.ancestors().nth(3).expect("target folder").join("console")
}

impl Drop for Browser {
    fn drop(&mut self) {
        if let Some(client) = self.client.take() {
            let _ = self.runtime.block_on(client.close());
        }
    }
}
