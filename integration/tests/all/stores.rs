//! Stores that fail: exactly once all the same, one rule's trouble is not another's, and everybody can see whose it is.

use std::{
    net::TcpListener,
    time::{Duration, Instant},
};

use flowlog_model::{S3Options, rule::Location};
use flowlog_pipeline::upload::{Bucket, BucketError, Outcome};
use integration::{
    agent::Agent,
    claims::until,
    faulty::{Fault, Proxy},
    rows::Objects,
    s3,
};

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

fn proxy() -> Proxy {
    let endpoint = s3::server().options().endpoint.unwrap();
    Proxy::start(endpoint.trim_start_matches("http://")).unwrap()
}

fn through(proxy: &Proxy) -> S3Options {
    S3Options { endpoint: Some(proxy.endpoint()), ..s3::server().options() }
}

/// Replies of a store in trouble: status, code, message, and words that must be in the error.
const REPLIES: [(u16, &str, &str, &str); 8] = [
    (500, "InternalError", "We encountered an internal error.", "InternalError"),
    (503, "SlowDown", "Reduce your request rate.", "SlowDown"),
    (429, "TooManyRequests", "Too many requests.", "TooManyRequests"),
    (
        403,
        "RequestTimeTooSkewed",
        "The difference between the request time and the server's time is too large.",
        "clock",
    ),
    (403, "ExpiredToken", "The provided token has expired.", "refuses the credentials"),
    (404, "NoSuchBucket", "The specified bucket does not exist.", "does not exist"),
    (400, "AuthorizationHeaderMalformed", "the region 'us-east-1' is wrong; expecting 'eu-central-3'", "eu-central-3"),
    (301, "PermanentRedirect", "The bucket must be addressed using another endpoint.", ""),
];

#[test]
fn a_store_in_trouble_is_named_and_gets_each_object_once_when_it_is_well_again() {
    let server = s3::server();
    let proxy = proxy();
    let bucket = server.new_bucket();
    let store = Bucket::open(&Location::Bucket(bucket.clone()), &through(&proxy)).unwrap();
    let body = b"some bytes".repeat(1_000);
    for (status, code, message, words) in REPLIES {
        let key = format!("p/{status}-{code}.parquet");
        proxy.fail(Fault::Reply(status, code, message), "");
        let error = block_on(store.deliver(&key, body.clone())).expect_err(code).to_string();
        assert!(error.contains(words) && !error.contains('\n'), "{code}: {error}");
        assert!(proxy.hits() > 0);
        proxy.fail(Fault::None, "");
        assert_eq!(block_on(store.deliver(&key, body.clone())).unwrap(), Outcome::Stored, "{code}");
        assert_eq!(server.get(&bucket, &key), body);
    }
}

#[test]
fn a_reply_of_success_with_an_error_in_it_is_not_believed() {
    let server = s3::server();
    let proxy = proxy();
    let bucket = server.new_bucket();
    let store = Bucket::open(&Location::Bucket(bucket.clone()), &through(&proxy)).unwrap();
    proxy.fail(Fault::Reply(200, "InternalError", "Please try again."), "");
    let outcome = block_on(store.deliver("p/a.parquet", b"bytes".to_vec()));
    assert!(outcome.is_err(), "{outcome:?}");
    proxy.fail(Fault::None, "");
    assert_eq!(block_on(store.deliver("p/a.parquet", b"bytes".to_vec())).unwrap(), Outcome::Stored);
    assert_eq!(server.get(&bucket, "p/a.parquet"), b"bytes");
}

#[test]
fn an_object_whose_upload_is_cut_anywhere_is_stored_once_and_whole() {
    let server = s3::server();
    let proxy = proxy();
    let bucket = server.new_bucket();
    let store = Bucket::open(&Location::Bucket(bucket.clone()), &through(&proxy)).unwrap();
    let body: Vec<u8> = (0..1u32 << 18).flat_map(u32::to_le_bytes).collect();
    for at in (0..body.len()).step_by(64 << 10) {
        let key = format!("p/cut-{at}.parquet");
        proxy.fail(Fault::CutAfter(at), "");
        assert!(block_on(store.deliver(&key, body.clone())).is_err(), "cut at {at}");
        proxy.fail(Fault::None, "");
        assert_eq!(block_on(store.deliver(&key, body.clone())).unwrap(), Outcome::Stored, "cut at {at}");
        assert!(server.get(&bucket, &key) == body, "cut at {at}");
    }
    // Stored, and nobody said so.
    proxy.fail(Fault::LoseReply, "");
    assert_eq!(block_on(store.deliver("p/lost.parquet", body.clone())).unwrap(), Outcome::AlreadyThere);
    proxy.fail(Fault::Slow(2 << 20), "");
    assert_eq!(block_on(store.deliver("p/slow.parquet", body.clone())).unwrap(), Outcome::Stored);
    proxy.fail(Fault::Down, "");
    let error = block_on(store.deliver("p/down.parquet", body)).unwrap_err();
    assert!(matches!(error, BucketError::Other { .. }), "{error:?}");
}

/// An agent with two rules, each with a bucket of its own, both behind the proxy.
struct TwoRules {
    proxy: Proxy,
    buckets: [String; 2],
    cables: [s3::CableToHere; 2],
    dir: tempfile::TempDir,
    agent: Agent,
}

const SECRET: &str = "SKTEST";

impl TwoRules {
    fn start(window: u32) -> Self {
        Self::with_credentials(window, false)
    }

    /// `handed_over`: the configuration names none, and systemd's `LoadCredential=` has put them where it does.
    fn with_credentials(window: u32, handed_over: bool) -> Self {
        let server = s3::server();
        let proxy = proxy();
        let buckets = [server.new_bucket(), server.new_bucket()];
        let cables = [s3::CableToHere::new().unwrap(), s3::CableToHere::new().unwrap()];
        let dir = tempfile::tempdir().unwrap();
        let given = dir.path().join("given");
        std::fs::create_dir(&given).unwrap();
        let credentials = given.join("s3");
        server.write_credentials(&credentials, "AKTEST", SECRET);
        let named =
            if handed_over { String::new() } else { format!("credentials_file = '{}'\n", credentials.display()) };
        let mut text = format!(
            "node_id = 'n'\nno_pin = true\nstate_dir = '{}'\n[s3]\nendpoint = '{}'\nregion = 'us-east-1'\npath_style = true\n\
             allow_http = true\n{named}",
            dir.path().join("state").display(),
            proxy.endpoint(),
        );
        for (name, (bucket, cable)) in ["one", "two"].iter().zip(buckets.iter().zip(&cables)) {
            let log = format!(
                "[[flow_log]]\nname = '{name}'\ninterfaces = ['{}']\ntarget = 's3://{bucket}'\nwindow = {window}\nnodata = false\n",
                cable.interface
            );
            text.push_str(&log);
        }
        let config = dir.path().join("flowlog.toml");
        std::fs::write(&config, text).unwrap();
        let mut variables = vec![("FLOWLOG_LOG", "trace")];
        variables.extend(handed_over.then(|| ("CREDENTIALS_DIRECTORY", given.to_str().unwrap())));
        let mut agent = Agent::with_config(&config, &variables).unwrap();
        agent.wait_for("capturing").unwrap();
        Self { proxy, buckets, cables, dir, agent }
    }

    /// The rule's delivery, as `flowlog status` tells it, once it is in `state`.
    fn wait_for_state(&self, rule: &str, state: &str) -> serde_json::Value {
        let dir = self.dir.path().join("state");
        let mut seen = serde_json::Value::Null;
        for _ in 0..300 {
            let out = std::process::Command::new(integration::agent::binary())
                .args(["status", "--output", "json", "--state-dir", dir.to_str().unwrap()])
                .output()
                .unwrap();
            if let Ok(status) = serde_json::from_slice::<serde_json::Value>(&out.stdout) {
                assert_eq!(status["running"], true);
                let rules = status["rules"].as_array().unwrap();
                seen = rules.iter().find(|r| r["rule"] == rule).unwrap()["delivery"].clone();
                if seen["state"] == state {
                    return seen;
                }
            }
            // The status is a file that is read: there is no event to wait for.
            std::thread::sleep(Duration::from_millis(100));
        }
        panic!("{rule} is not {state}: {seen}");
    }

    /// Packets to port 9 that landed in a bucket.
    fn landed(&self, number: usize) -> u64 {
        let server = s3::server();
        let dir = tempfile::tempdir().unwrap();
        for (i, key) in server.keys(&self.buckets[number]).iter().enumerate() {
            std::fs::write(dir.path().join(i.to_string()), server.get(&self.buckets[number], key)).unwrap();
        }
        Objects::below(dir.path()).unwrap().sum(|r| r.dport == 9 && r.direction == "ingress").0
    }

    /// Waits until so many of them have landed.
    fn wait_until_landed(&self, number: usize, packets: u64) {
        let mut landed = 0;
        for _ in 0..200 {
            landed = self.landed(number);
            if landed == packets {
                return;
            }
            // The server has no event for it.
            std::thread::sleep(Duration::from_millis(100));
        }
        panic!("{landed} of {packets} packets landed in bucket {number}");
    }

    /// Ends it; nobody may have said the secret.
    fn end(&mut self) -> String {
        self.agent.signal(rustix::process::Signal::TERM);
        assert_eq!(self.agent.wait().unwrap(), Some(0), "{}", self.agent.log());
        let log = self.agent.log();
        assert!(!log.contains(SECRET), "a secret in the log");
        log
    }
}

#[test]
fn credentials_that_a_service_manager_hands_over_open_the_store() {
    let mut node = TwoRules::with_credentials(1, true);
    node.cables[1].send(25).unwrap();
    node.wait_until_landed(1, 25);
    node.end();
}

#[test]
fn one_rules_trouble_is_its_own_and_visible_and_everything_arrives_once_in_the_end() {
    let mut node = TwoRules::start(1);
    let faults = [
        (Fault::Down, "retrying"),
        (Fault::Reply(503, "SlowDown", "Reduce your request rate."), "retrying"),
        (Fault::LoseReply, "delivering"),
        (Fault::Reply(403, "InvalidAccessKeyId", "The key does not exist."), "blocked"),
    ];
    for (n, (fault, state)) in faults.into_iter().enumerate() {
        let down = fault == Fault::Down;
        node.proxy.fail(fault, if down { "" } else { &node.buckets[0] });
        for cable in &node.cables {
            cable.send(25).unwrap();
        }
        let delivery = node.wait_for_state("one", state);
        if state != "delivering" {
            assert!(delivery["error"].as_str().is_some_and(|e| !e.is_empty()), "{delivery}");
            assert!(delivery["since_secs"].as_i64().is_some_and(|s| s > 1_700_000_000), "{delivery}");
        }
        if !down {
            // The other rule's objects arrive meanwhile.
            node.wait_until_landed(1, 25 * (n as u64 + 1));
            node.wait_for_state("two", "delivering");
        }
        node.proxy.fail(Fault::None, "");
        node.wait_for_state("one", "delivering");
    }
    node.end();
    assert_eq!([node.landed(0), node.landed(1)], [100, 100]);
}

#[test]
fn a_reply_that_does_not_end_or_leads_elsewhere_or_drips_costs_no_memory_and_troubles_no_other_rule() {
    let mut node = TwoRules::start(1);
    let elsewhere = TcpListener::bind("127.0.0.1:0").unwrap();
    elsewhere.set_nonblocking(true).unwrap();
    let to = format!("http://{}/elsewhere", elsewhere.local_addr().unwrap());
    let before = node.agent.memory_kib("VmHWM");
    let faults = [
        (Fault::Endless(""), "retrying", "more than 65536 bytes"),
        (Fault::Endless("Content-Length: 9223372036854775807\r\n"), "retrying", "more than 65536 bytes"),
        (Fault::Redirect(to.clone()), "blocked", to.as_str()),
        (Fault::Drip, "retrying", "bytes a second"),
    ];
    for (n, (fault, state, words)) in faults.into_iter().enumerate() {
        node.proxy.fail(fault.clone(), &node.buckets[0]);
        for cable in &node.cables {
            cable.send(25).unwrap();
        }
        let delivery = node.wait_for_state("one", state);
        node.wait_until_landed(1, 25 * (n as u64 + 1));
        node.wait_for_state("two", "delivering");
        let visit = elsewhere.accept().map(|(_, who)| who);
        assert!(visit.is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock), "{fault:?} led elsewhere");
        let peak = node.agent.memory_kib("VmHWM");
        assert!(peak < before + (16 << 10), "{fault:?}: {before} KiB before, {peak} at the peak");
        assert!(delivery["error"].as_str().unwrap().contains(words), "{fault:?}: {delivery}");
        node.proxy.fail(Fault::None, "");
        node.wait_for_state("one", "delivering");
    }
    node.end();
    assert_eq!([node.landed(0), node.landed(1)], [100, 100]);
}

#[test]
fn a_store_that_takes_an_upload_too_slowly_is_cut_long_before_the_whole_of_it_could_take() {
    let server = s3::server();
    let proxy = proxy();
    let store = Bucket::open(&Location::Bucket(server.new_bucket()), &through(&proxy)).unwrap();
    // Fast enough for TCP, which ends a connection that does not move at all.
    proxy.fail(Fault::Slow(20_000), "");
    // At the slowest pace that is good enough it would take four minutes.
    let since = Instant::now();
    let body = vec![7; 60 << 20];
    let error = block_on(store.deliver("p/slow-drip.parquet", body)).unwrap_err().to_string();
    assert!(error.contains("bytes a second"), "{error}");
    assert!(since.elapsed() < Duration::from_mins(1), "after {:?}", since.elapsed());
}

#[test]
fn expired_credentials_block_a_rule_until_the_file_has_new_ones() {
    let mut node = TwoRules::start(1);
    let credentials = node.dir.path().join("given/s3");
    s3::server().write_credentials(&credentials, "AKTEST", "rotated-away");
    node.cables[0].send(25).unwrap();
    let delivery = node.wait_for_state("one", "blocked");
    assert!(delivery["error"].as_str().unwrap().contains("refuses the credentials"), "{delivery}");
    s3::server().write_credentials(&credentials, "AKTEST", SECRET);
    node.wait_for_state("one", "delivering");
    let log = node.end();
    assert!(!log.contains("rotated-away"));
    assert_eq!(node.landed(0), 25);
}

#[test]
fn somebody_elses_object_under_our_key_is_kept_and_ours_put_aside_with_an_alarm() {
    let mut node = TwoRules::start(2);
    // The keys of whole windows are known beforehand.
    let server = s3::server();
    let bucket = node.buckets[0].clone();
    node.proxy.fail(Fault::Down, "");
    node.cables[0].send(25).unwrap();
    // Wait until objects are in the spool, then take their keys.
    let spool = node.dir.path().join("state/spool");
    let name = |e: std::fs::DirEntry| e.file_name().to_string_lossy().into_owned();
    let spooled = || {
        let dir =
            std::fs::read_dir(&spool).ok()?.flatten().find(|e| e.file_name().to_string_lossy().contains(&bucket))?;
        std::fs::read_dir(dir.path()).ok()?.flatten().map(name).find(|n| n.ends_with(".parquet"))
    };
    until("an object is in the spool", || spooled().is_some());
    let file = spooled();
    let key = file.unwrap().replace("%2F", "/").replace("%3D", "=");
    let store = Bucket::open(&Location::Bucket(bucket.clone()), &server.options()).unwrap();
    block_on(store.deliver(&key, b"somebody else's".to_vec())).unwrap();
    node.proxy.fail(Fault::None, "");
    node.agent.wait_for("the store holds other bytes under this key").unwrap();
    assert_eq!(server.get(&bucket, &key), b"somebody else's");
    let aside = node.dir.path().join("state/quarantine");
    assert_eq!(std::fs::read_dir(aside).unwrap().count(), 1);
    let delivery = node.wait_for_state("one", "delivering");
    assert_eq!(delivery["quarantined"], 1, "{delivery}");
    node.end();
}
