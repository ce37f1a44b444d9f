//! Figures for Prometheus: what they say, who gets them, and what the real Prometheus makes of them.

use std::{
    collections::BTreeSet,
    fs,
    io::{Read, Write},
    net::{TcpStream, UdpSocket},
    os::unix::{fs::PermissionsExt as _, net::UnixStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use integration::{
    agent::{Agent, binary, run_to_end},
    http,
    managed::Managed,
    net::{Netns, Pair, address, sh, veth},
    traffic,
};
use serde_json::Value;

/// Drops UDP to port 7 of any host, and counts it.
const REFUSING: &str = "table inet t {\n counter refused { }\n chain c { type filter hook input priority 0; \
                        udp dport 7 counter name refused drop; }\n}\n";
/// Where the agent serves them, in its namespace.
const ADDRESS: &str = "127.0.0.1:9469";
/// Longer than Prometheus takes to start on a busy machine.
const PATIENCE: Duration = Duration::from_mins(1);

/// Two hosts on a cable, and an agent on one of them that serves figures.
fn measured(args: &[&str]) -> (Pair, Agent) {
    let pair = Pair::new().unwrap();
    for ns in [&pair.a, &pair.b] {
        ns.sysctl("net.ipv6.conf.eth0.disable_ipv6", "1").unwrap();
    }
    pair.a.nft(REFUSING).unwrap();
    let agent = Agent::start(&pair.a, &["eth0"], &[&["--metrics-listen", ADDRESS], args].concat()).unwrap();
    (pair, agent)
}

/// Status and body.
fn ask(stream: &mut (impl Read + Write), path: &str) -> (u16, String, String) {
    http::exchange_text(stream, &http::request("GET", path, "", None)).unwrap()
}

/// The same, from within a namespace.
fn get(ns: &Netns, address: &str, path: &str) -> (u16, String) {
    let (status, _, body) = ns.run(|| ask(&mut TcpStream::connect(address).unwrap(), path));
    (status, body)
}

fn scrape(ns: &Netns) -> String {
    let (status, text) = get(ns, ADDRESS, "/metrics");
    assert_eq!(status, 200, "{text}");
    text
}

/// Sum of a metric's samples that have all of these in their labels.
fn sum(text: &str, name: &str, labels: &[&str]) -> u64 {
    let samples = text.lines().filter_map(|l| l.split_once(' ')).filter(|(sample, _)| {
        sample.split('{').next() == Some(name) && labels.iter().all(|label| sample.contains(label))
    });
    let values: Vec<f64> = samples.map(|(_, value)| value.parse().unwrap()).collect();
    assert!(!values.is_empty(), "no {name} {labels:?} in:\n{text}");
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counts")]
    let sum = values.iter().sum::<f64>() as u64;
    sum
}

#[test]
fn what_is_scraped_of_an_open_window_is_what_interface_and_firewall_count() {
    let (pair, agent) = measured(&[]);
    // Nothing is answered, and nothing but this comes in.
    let _open = pair.a.run(|| UdpSocket::bind("0.0.0.0:9")).unwrap();
    let rx = || pair.a.statistic("eth0", "rx_packets").unwrap();
    let before = rx();
    assert_eq!(sum(&scrape(&pair.a), "flowlog_seen_packets_total", &["direction=\"ingress\""]), 0);
    let mut told = 0;
    for round in 1..=3 {
        pair.b.run(|| {
            traffic::udp("10.1.0.1:9", 50, 100).unwrap();
            traffic::udp("10.1.0.1:7", 30, 100).unwrap();
        });
        pair.wait_until_quiet();
        let text = scrape(&pair.a);
        let of = |name, labels: &[&str]| sum(&text, name, labels);
        let ingress = "direction=\"ingress\"";
        assert_eq!(of("flowlog_seen_packets_total", &[ingress]), rx() - before);
        let (refused, refused_bytes) = pair.a.nft_counter("inet t", "refused").unwrap();
        assert_eq!(refused, 30 * round);
        let rejected = [ingress, "verdict=\"rejected\""];
        assert_eq!(of("flowlog_packets_total", &rejected), refused);
        assert_eq!(of("flowlog_bytes_total", &rejected), refused_bytes);
        let accepted = of("flowlog_packets_total", &[ingress, "verdict=\"accepted\""]);
        assert!(accepted >= told, "{accepted} after {told}");
        told = accepted;
        // Seen, and taken back when it was refused: the same to the packet as long as nobody looks in between.
        assert_eq!(accepted + refused + of("flowlog_non_ip_packets_total", &[ingress]), rx() - before);
    }
    let rows = agent.stop().unwrap();
    let landed: u64 =
        rows.rows.iter().filter(|r| r.direction == "ingress" && r.action == "ACCEPT").map(|r| r.packets).sum();
    assert_eq!(landed, told);
}

#[test]
fn refused_logins_are_counted_and_good_ones_are_not() {
    let node = Managed::new(&format!("no_pin = true\nmetrics = {{ listen = '{ADDRESS}' }}")).unwrap();
    let mut agent = node.start().unwrap();
    let refused = || sum(&scrape(&node.node), "flowlog_refused_logins_total", &[]);
    assert_eq!(node.ask_as("ann", "GET", "/flowlog/v1/flowlogs", None).status, 200);
    assert_eq!(refused(), 0);
    for count in 1..=3 {
        assert_eq!(node.ask_as("a stranger", "GET", "/flowlog/v1/flowlogs", None).status, 401);
        assert_eq!(refused(), count);
    }
    agent.end().unwrap();
}

#[test]
fn runs_of_programs_are_counted_while_the_kernel_keeps_statistics() {
    const SWITCH: &str = "/proc/sys/kernel/bpf_stats_enabled";
    let before = fs::read_to_string(SWITCH).unwrap();
    let (pair, agent) = measured(&[]);
    fs::write(SWITCH, "1").unwrap();
    let rx = || pair.a.statistic("eth0", "rx_packets").unwrap();
    let begun = rx();
    pair.b.run(|| traffic::udp("10.1.0.1:9", 200, 100)).unwrap();
    pair.wait_until_quiet();
    let received = rx() - begun;
    let text = scrape(&pair.a);
    fs::write(SWITCH, before.trim()).unwrap();
    let runs = sum(&text, "flowlog_program_runs_total", &["program=\"flowlog_tc_ingress"]);
    assert!(received >= 200 && (received..received + 200).contains(&runs), "{received} {runs}");
    let seconds =
        text.lines().find(|l| l.starts_with("flowlog_program_run_seconds_total{program=\"flowlog_tc_ingress"));
    assert!(seconds.is_some_and(|l| !l.ends_with(" 0") && !l.ends_with(" 0.0")), "{seconds:?}");
    agent.stop().unwrap();
}

#[test]
fn closed_windows_and_deliveries_are_counted_and_the_agent_is_well_and_ready() {
    let (pair, mut agent) = measured(&["--window", "1"]);
    pair.b.run(|| traffic::udp("10.1.0.1:7", 30, 100)).unwrap();
    agent.wait_for("delivered").unwrap();
    let began = Instant::now();
    let text = loop {
        let text = scrape(&pair.a);
        if sum(&text, "flowlog_delivered_objects_total", &[]) > 0
            && sum(&text, "flowlog_rows_total", &["kind=\"reject\""]) > 0
        {
            break text;
        }
        assert!(began.elapsed() < PATIENCE, "{text}");
    };
    // In windows that are closed by now.
    assert_eq!(sum(&text, "flowlog_packets_total", &["direction=\"ingress\"", "verdict=\"rejected\""]), 30);
    assert_eq!(sum(&text, "flowlog_balance_difference_packets_total", &[]), 0);
    assert_eq!(sum(&text, "flowlog_lost_packets_total", &[]), 0);
    assert_eq!(sum(&text, "flowlog_capture_state", &["state=\"attached\""]), 1);
    assert_eq!(sum(&text, "flowlog_delivery_state", &["state=\"delivering\""]), 1);
    assert!(sum(&text, "flowlog_upload_duration_seconds_count", &["store=\"file://"]) > 0);
    for path in ["/healthz", "/readyz"] {
        assert_eq!(get(&pair.a, ADDRESS, path), (200, "ok\n".to_owned()));
    }
    assert_eq!(get(&pair.a, ADDRESS, "/").0, 404);
    agent.end().unwrap();
}

#[test]
fn counters_of_an_interface_that_is_made_again_begin_anew_and_not_with_those_of_the_one_before() {
    let (pair, mut agent) = measured(&[]);
    let _open = pair.a.run(|| UdpSocket::bind("0.0.0.0:9")).unwrap();
    let labels = ["direction=\"ingress\"", "verdict=\"accepted\""];
    let send = |packets| {
        pair.b.run(|| traffic::udp("10.1.0.1:9", packets, 100)).unwrap();
        pair.wait_until_quiet();
    };
    send(50);
    assert_eq!(sum(&scrape(&pair.a), "flowlog_packets_total", &labels), 50);
    // Nobody looks while it is away.
    pair.a.exec("ip link del eth0").unwrap();
    agent.wait_for("the interface is gone").unwrap();
    veth((&pair.a, "eth0"), (&pair.b, "eth0")).unwrap();
    for (ns, n) in [(&pair.a, 1), (&pair.b, 2)] {
        ns.sysctl("net.ipv6.conf.eth0.disable_ipv6", "1").unwrap();
        address(ns, "eth0", &format!("10.1.0.{n}/16")).unwrap();
    }
    let mac = pair.a.mac("eth0").unwrap().map(|b| format!("{b:02x}")).join(":");
    pair.b.exec(&format!("ip neigh replace 10.1.0.1 lladdr {mac} dev eth0 nud permanent")).unwrap();
    agent.wait_for("the interface is back").unwrap();
    send(7);
    let text = scrape(&pair.a);
    assert_eq!(sum(&text, "flowlog_packets_total", &labels), 7);
    assert_eq!(sum(&text, "flowlog_capture_state", &["state=\"attached\""]), 1);
}

#[test]
fn figures_are_served_on_a_socket_of_the_agents_group_and_on_no_other_address() {
    let pair = Pair::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("run/metrics.sock");
    // Nothing is made for it but the socket.
    let args =
        ["run", "--interface", "eth0", "--target", "./o", "--no-pin", "--metrics-listen", socket.to_str().unwrap()];
    let (code, _, error) = run_to_end(&pair.a, &args, dir.path()).unwrap();
    assert!(code == Some(78) && error.contains("there is no directory `"), "{code:?} {error}");
    assert!(!socket.parent().unwrap().exists());
    fs::create_dir(socket.parent().unwrap()).unwrap();
    let agent = Agent::start(&pair.a, &["eth0"], &["--metrics-listen", socket.to_str().unwrap()]).unwrap();
    let accepting = |accept: &str| {
        let request = http::request("GET", "/metrics", accept, None);
        let (status, head, text) = http::exchange_text(&mut UnixStream::connect(&socket).unwrap(), &request).unwrap();
        assert_eq!(status, 200);
        (head.to_ascii_lowercase(), text)
    };
    let (head, text) = accepting("accept: application/openmetrics-text;version=1.0.0,text/plain;q=0.5\r\n");
    assert!(head.contains("content-type: application/openmetrics-text; version=1.0.0"), "{head}");
    assert!(text.ends_with("# EOF\n") && text.contains("# TYPE flowlog_rows counter\n"), "{text}");
    let (head, text) = accepting("");
    assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
    assert!(!text.contains("# EOF") && text.contains("# TYPE flowlog_rows_total counter\n"), "{text}");
    judge(&text);
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o660);
    drop(agent);
    for (wrong, words) in [("0.0.0.0:9469", "loopback"), ("metrics.sock", "absolute path")] {
        let args = ["run", "--interface", "eth0", "--target", "./o", "--no-pin", "--metrics-listen", wrong];
        let (code, _, error) = run_to_end(&pair.a, &args, dir.path()).unwrap();
        assert_eq!(code, Some(64), "{error}");
        assert!(error.contains("metrics.listen") && error.contains(wrong) && error.contains(words), "{error}");
    }
    // Somebody has it already.
    let taken = pair.a.run(|| std::net::TcpListener::bind(ADDRESS)).unwrap();
    let args = ["run", "--interface", "eth0", "--target", "./o", "--no-pin", "--metrics-listen", ADDRESS];
    let (code, _, error) = run_to_end(&pair.a, &args, dir.path()).unwrap();
    assert!(code == Some(78) && error.contains(ADDRESS) && error.contains("in use"), "{code:?} {error}");
    drop(taken);
}

fn documents() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("docs")
}

/// Every word of a text that begins as our metrics do.
fn named(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|w| w.starts_with("flowlog_")).map(str::to_owned).collect()
}

#[test]
fn every_metric_is_documented_and_rules_and_dashboard_name_no_other() {
    let (pair, _agent) = measured(&[]);
    let text = scrape(&pair.a);
    let families: BTreeSet<String> = text
        .lines()
        .filter_map(|l| l.strip_prefix("# TYPE "))
        .filter_map(|l| Some(l.split_once(' ')?.0.to_owned()))
        .collect();
    assert!(families.len() > 30, "{families:?}");
    let documented = named(&fs::read_to_string(documents().join("metrics.md")).unwrap());
    assert_eq!(documented, families);
    for file in ["alerts.yml", "grafana.json"] {
        let used = named(&fs::read_to_string(documents().join("examples").join(file)).unwrap());
        let of_family = |name: &String| families.contains(name) || families.contains(name.trim_end_matches("_bucket"));
        let unknown: Vec<&String> = used.iter().filter(|name| !of_family(name)).collect();
        assert!(unknown.is_empty() && used.len() > 8, "{file}: {unknown:?} of {used:?}");
    }
}

#[test]
fn what_an_agent_left_is_a_text_file_for_a_collector() {
    let (pair, agent) = measured(&["--window", "1"]);
    let state = agent.state();
    let state = state.to_str().unwrap();
    let said = |args: &[&str]| Command::new(binary()).args(args).output().unwrap();
    let out = said(&["status", "--state-dir", state, "--output", "prometheus"]);
    assert!(out.status.success());
    let text = String::from_utf8(out.stdout).unwrap();
    assert_eq!(
        (sum(&text, "flowlog_running", &[]), sum(&text, "flowlog_capture_state", &["state=\"attached\""])),
        (1, 1)
    );
    judge(&text);
    drop((agent, pair));
}

/// Prometheus' own judge of the older form finds nothing wrong, names included.
fn judge(text: &str) {
    let mut judge = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    judge.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let judged = judge.wait_with_output().unwrap();
    let words = String::from_utf8_lossy(&judged.stderr).into_owned() + &String::from_utf8_lossy(&judged.stdout);
    assert!(judged.status.success() && words.is_empty(), "{words}");
}

#[test]
fn connections_that_say_nothing_keep_nobody_from_asking() {
    let (pair, mut agent) = measured(&[]);
    let idle: Vec<TcpStream> = pair.a.run(|| (0..40).map(|_| TcpStream::connect(ADDRESS).unwrap()).collect());
    for path in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(get(&pair.a, ADDRESS, path).0, 200, "{path}");
    }
    drop(idle);
    agent.end().unwrap();
}

/// The real Prometheus, in a namespace, and what it stores.
struct Prometheus<'a> {
    ns: &'a Netns,
    child: Child,
    _dir: tempfile::TempDir,
}

impl Drop for Prometheus<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const PROMETHEUS: &str = "127.0.0.1:9470";

impl<'a> Prometheus<'a> {
    fn start(ns: &'a Netns, rules: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("rules.yml"), rules).unwrap();
        let config = format!(
            "global:\n  scrape_interval: 1s\n  evaluation_interval: 1s\nrule_files: [{}]\nscrape_configs:\n- job_name: flowlog\n  static_configs:\n  - targets: ['{ADDRESS}']\n",
            at("rules.yml").display()
        );
        fs::write(at("prometheus.yml"), config).unwrap();
        let log = fs::File::create(at("log")).unwrap();
        let mut command = ns.command("prometheus");
        command
            .arg(format!("--config.file={}", at("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", at("data").display()))
            .arg(format!("--web.listen-address={PROMETHEUS}"));
        let child = command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        Self { ns, child, _dir: dir }
    }

    /// Asks its API until the answer is as wanted.
    fn until(&self, path: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let began = Instant::now();
        loop {
            let answer = self.ns.run(|| {
                let mut stream = TcpStream::connect(PROMETHEUS).ok()?;
                // To 1.0 it does not answer in chunks.
                http::exchange(&mut stream, format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).ok()
            });
            let body = answer.map(|a| a.body).unwrap_or_default();
            if wanted(&body) {
                return body;
            }
            assert!(began.elapsed() < PATIENCE, "{path}: {body}");
            // It has no event for this.
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

/// The rules of the documents, without their patience: nobody waits ten minutes here.
fn hurried(rules: &str) -> String {
    let hurry =
        |l: &str| if l.trim_start().starts_with("for:") { "    for: 0s\n".to_owned() } else { format!("{l}\n") };
    rules.lines().map(hurry).collect()
}

/// Whether an alert is raised.
fn fires(body: &Value, name: &str) -> bool {
    let all = body["data"]["alerts"].as_array();
    all.is_some_and(|all| all.iter().any(|a| a["labels"]["alertname"] == name && a["state"] == "firing"))
}

#[test]
fn what_a_removed_flow_log_still_owes_is_counted_and_raises_an_alert_while_its_store_is_dead() {
    let rules = fs::read_to_string(documents().join("examples/alerts.yml")).unwrap();
    let pair = Pair::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let write = |interface: &str, target: &str| {
        let text = format!(
            "node_id = 'node'\nno_pin = true\nstate_dir = '{}'\n[metrics]\nlisten = '{ADDRESS}'\n\
             [[flow_log]]\ninterfaces = ['{interface}']\ntarget = '{}'\nwindow = 1\n",
            at("state"),
            at(target)
        );
        fs::write(at("flowlog.toml"), text).unwrap();
    };
    write("eth0", "dead");
    let mut command = pair.a.command(binary());
    command.args(["run", "--config", &at("flowlog.toml")]);
    let mut agent = Agent::attend(command, tempfile::tempdir().unwrap()).unwrap();
    agent.wait_for("delivered").unwrap();
    let prometheus = Prometheus::start(&pair.a, &hurried(&rules));
    // A file is where the store's directory was.
    fs::rename(at("dead"), at("away")).unwrap();
    fs::write(at("dead"), "").unwrap();
    let alerts = "/api/v1/alerts";
    prometheus.until(alerts, |body| fires(body, "FlowlogDeliveryFailing"));
    write("lo", "alive");
    let (code, _, error) = run_to_end(&pair.a, &["reload", "--state-dir", &at("state")], dir.path()).unwrap();
    assert_eq!(code, Some(0), "{error}");
    let told = prometheus
        .until(alerts, |body| fires(body, "FlowlogEndedNotDelivered") && !fires(body, "FlowlogDeliveryFailing"));
    assert!(told.to_string().contains(&format!("file://{}", at("dead"))), "{told}");
    let text = scrape(&pair.a);
    let waiting = sh(&format!("find {} -type f -path *dead*", at("state/spool"))).unwrap();
    let owed = sum(&text, "flowlog_leaving_objects", &["/dead"]);
    assert!(owed > 0 && owed == waiting.lines().count() as u64, "{owed} of {waiting}");
    assert_eq!(sum(&text, "flowlog_leaving_captures", &["/dead", "state=\"retrying\""]), 1, "{text}");
    // The store is well again: nothing is owed any more, and nobody is told of it.
    fs::remove_file(at("dead")).unwrap();
    fs::rename(at("away"), at("dead")).unwrap();
    prometheus.until(alerts, |body| body["status"] == "success" && !fires(body, "FlowlogEndedNotDelivered"));
    assert!(!scrape(&pair.a).contains("flowlog_leaving_objects{"));
    agent.end().unwrap();
}

#[test]
fn prometheus_scrapes_loads_the_rules_and_raises_an_alert_when_the_store_dies() {
    let rules = fs::read_to_string(documents().join("examples/alerts.yml")).unwrap();
    let judged = Command::new("promtool")
        .args(["check", "rules"])
        .arg(documents().join("examples/alerts.yml"))
        .output()
        .unwrap();
    assert!(judged.status.success(), "{}", String::from_utf8_lossy(&judged.stderr));
    let (pair, agent) = measured(&["--window", "1"]);
    let prometheus = Prometheus::start(&pair.a, &hurried(&rules));
    let first = |body: &Value| body["data"]["result"][0]["value"][1].as_str().map(str::to_owned);
    prometheus.until("/api/v1/query?query=up", |body| first(body).as_deref() == Some("1"));
    let kinds = "/api/v1/metadata?metric=flowlog_packets";
    prometheus.until(kinds, |body| body["data"]["flowlog_packets"][0]["type"] == "counter");
    let delivered = "/api/v1/query?query=sum(flowlog_delivered_objects_total)";
    prometheus.until(delivered, |body| first(body).is_some_and(|n| n != "0"));
    let loaded = prometheus.until("/api/v1/rules", |body| body["data"]["groups"][0]["rules"].is_array());
    let rules = loaded["data"]["groups"][0]["rules"].as_array().unwrap().clone();
    assert!(rules.len() > 8 && rules.iter().all(|r| r["health"] != "err"), "{loaded}");
    let alerts = "/api/v1/alerts";
    let quiet = prometheus.until(alerts, |body| body["status"] == "success");
    assert_eq!(quiet["data"]["alerts"].as_array().map(Vec::len), Some(0), "{quiet}");
    // The store dies: a file is where its directory was.
    let objects = agent.objects();
    fs::rename(&objects, objects.with_extension("away")).unwrap();
    fs::write(&objects, b"").unwrap();
    let told = prometheus.until(alerts, |body| fires(body, "FlowlogDeliveryFailing"));
    let labels = &told["data"]["alerts"]
        .as_array()
        .unwrap()
        .iter()
        .find(|a| a["labels"]["alertname"] == "FlowlogDeliveryFailing")
        .unwrap()["labels"];
    assert_eq!((&labels["interface"], &labels["flow_log"]), (&Value::from("eth0"), &Value::from("flowlog")), "{told}");
    // It is well again, and so is the alert.
    fs::remove_file(&objects).unwrap();
    fs::rename(objects.with_extension("away"), &objects).unwrap();
    prometheus.until(alerts, |body| body["status"] == "success" && !fires(body, "FlowlogDeliveryFailing"));
}
