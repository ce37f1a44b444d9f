//! The cloud's API: its published client works unchanged, everybody gets what they may have and nothing else, and nobody
//! can hold it up.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use integration::{
    cgroups::Memory,
    http,
    managed::{ALB, CONTRACT, DATACENTER, LISTEN, Managed, NAT, NIC, NLB, OTHERS_NIC, PASSWORD, SERVER, as_user},
    traffic,
};
use rustix::net::{AddressFamily, SocketType};
use serde_json::{Value, json};

const PACKETS: usize = 20;

fn flow_logs() -> String {
    format!("/cloudapi/v6/datacenters/{DATACENTER}/servers/{SERVER}/nics/{NIC}/flowlogs")
}

fn body(name: &str) -> Value {
    json!({"properties": {"name": name, "action": "ALL", "direction": "BIDIRECTIONAL", "bucket": "flows/team"}})
}

/// Runs a step of the published client, in the node's namespace.
fn sdk(node: &Managed, step: &str, ca: &Path, ids: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = root.with_file_name(".tools").join("python/bin/python");
    assert!(python.exists(), "run `cargo xtask setup`, or `cargo xtask test`");
    let out = Command::new("ip")
        .args(["netns", "exec", node.node.name()])
        .arg(python)
        .arg(root.join("sdk/acceptance.py"))
        .args([step, &format!("https://{LISTEN}/cloudapi/v6")])
        .arg(ca)
        .args([DATACENTER, SERVER, NIC, NAT, NLB, ALB, ids])
        .output()
        .unwrap();
    assert!(out.status.success(), "{step}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap().trim().to_owned()
}

#[test]
fn the_published_client_does_everything_it_can_on_a_node_that_really_captures() {
    let node = Managed::new("").unwrap();
    let ca = node.with_tls().unwrap();
    let agent = node.start().unwrap();
    let ids = sdk(&node, "create", &ca, "{}");
    assert_eq!(node.hooked().unwrap(), ["tap0", "natgw0", "nlb0", "alb0"]);
    for n in 1..=4 {
        node.far.run(|| traffic::udp(&format!("10.{n}.0.1:9"), PACKETS, 50)).unwrap();
    }
    let received = |interface: &str| node.node.statistic(interface, "rx_packets").unwrap();
    while !["tap0", "natgw0", "nlb0", "alb0"].iter().all(|i| received(i) >= PACKETS as u64) {
        std::thread::yield_now();
    }
    let ids = sdk(&node, "rename", &ca, &ids);
    let ids = sdk(&node, "refused", &ca, &ids);
    sdk(&node, "delete", &ca, &ids);
    assert_eq!(node.hooked().unwrap(), Vec::<String>::new());
    drop(agent);
    // Deleted, flushed, delivered: under the names of the beginning, whatever they were called later.
    let spooled: Vec<_> = std::fs::read_dir(node.path("state/spool")).into_iter().flatten().flatten().collect();
    let landed = node.landed("flows").unwrap();
    assert!(landed.keys.iter().all(|k| k.starts_with("sdk/sdk-")), "{:?} {spooled:?}", landed.keys);
    for (id, side) in [(NIC, "egress"), (NAT, "ingress"), (NLB, "ingress"), (ALB, "ingress")] {
        // What comes in at a guest's tap is what the guest sends.
        let seen = landed.sum(|r| r.dport == 9 && r.interface == id && r.direction == side).0;
        assert_eq!(seen, PACKETS as u64, "{id} {side}");
    }
}

#[test]
fn everybody_sees_and_changes_what_they_may_and_nothing_else_exists() {
    let node = Managed::new("no_pin = true").unwrap();
    let _agent = node.start().unwrap();
    let all = flow_logs();
    let made = node.ask_as("ann", "POST", &all, Some(&body("web")));
    assert_eq!(made.status, 202, "{made:?}");
    let id = made.body["id"].as_str().unwrap().to_owned();
    let one = format!("{all}/{id}");
    let request = made.header("location").unwrap().replace(&format!("http://{LISTEN}"), "");
    // (who, GET, PATCH of the name, PATCH of the bucket, POST, DELETE of what is not there)
    let absent = format!("{all}/00000000-0000-4000-8000-00000000eeee");
    let over = node.ask("GET", &request.replace("/cloudapi/v6", "/flowlog/v1"), None);
    assert_eq!(over.body["metadata"]["status"], "DONE", "{over:?}");
    assert_eq!(node.ask_as("ann", "GET", &one, None).body["metadata"]["state"], "AVAILABLE");
    for (who, statuses) in [
        ("ann", [200, 202, 422, 409, 404]),
        ("bob", [200, 202, 422, 409, 404]),
        ("eve", [200, 403, 403, 403, 404]),
        ("joe", [200, 202, 403, 403, 404]),
        ("kim", [200, 202, 422, 409, 404]),
        ("mal", [404, 404, 404, 404, 404]),
        ("nobody", [401, 401, 401, 401, 401]),
    ] {
        let asked = [
            node.ask_as(who, "GET", &one, None),
            node.ask_as(who, "PATCH", &one, Some(&json!({"name": "web2"}))),
            node.ask_as(who, "PATCH", &one, Some(&json!({"bucket": "other"}))),
            node.ask_as(who, "POST", &all, Some(&body("another"))),
            node.ask_as(who, "DELETE", &absent, None),
        ];
        assert_eq!(asked.iter().map(|a| a.status).collect::<Vec<_>>(), statuses, "{who}: {asked:?}");
        let named = asked.iter().filter(|a| a.status >= 400);
        assert!(named.clone().all(|a| a.body["httpStatus"] == a.status && !a.words().is_empty()), "{who}: {asked:?}");
    }
    for (path, ann, mal) in [
        (request.as_str(), 200, 404),
        (&format!("/cloudapi/v6/datacenters/{DATACENTER}"), 200, 404),
        (&format!("/cloudapi/v6/datacenters/{DATACENTER}/natgateways/{NAT}"), 200, 404),
        (&format!("/cloudapi/v6/datacenters/{}", DATACENTER.replace("d1", "d2")), 404, 200),
        (&format!("/cloudapi/v6/datacenters/{DATACENTER}/servers/{SERVER}/nics/{OTHERS_NIC}"), 404, 404),
        (&format!("/cloudapi/v6/datacenters/{DATACENTER}/natgateways/{NLB}"), 404, 404),
    ] {
        let answers = ["ann", "mal"].map(|who| node.ask_as(who, "GET", path, None).status);
        assert_eq!(answers, [ann, mal], "{path}");
    }
    assert_eq!(node.ask_as("mal", "GET", "/cloudapi/v6/requests", None).body["items"], json!([]));
    // Every change is in the audit log, with who made it; users do not read it, and strangers find nothing in it.
    let log = node.ask_as("bob", "GET", "/flowlog/v1/audit", None);
    let entries: Vec<String> =
        log.body["entries"].as_array().unwrap().iter().map(|e| format!("{} {}", e["stamp"]["by"], e["what"])).collect();
    for (who, what) in [("ann", "flow log `web` created"), ("ann", "active"), ("ann", "renamed from `web` to `web2`")] {
        assert!(entries.iter().any(|e| e.contains(who) && e.contains(what)), "{who} {what}: {entries:#?}");
    }
    // Those who came later gave it the name it had.
    assert_eq!(entries.iter().filter(|e| e.contains("renamed")).count(), 1, "{entries:#?}");
    assert_eq!(node.ask_as("kim", "GET", "/flowlog/v1/audit", None).status, 403);
    assert_eq!(node.ask_as("mal", "GET", "/flowlog/v1/audit", None).body["entries"], json!([]));
}

#[test]
fn on_the_nodes_own_socket_the_kernel_says_who_is_asking() {
    let node = Managed::new("no_pin = true").unwrap();
    let _agent = node.start().unwrap();
    std::fs::set_permissions(node.dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let socket = node.path("agent.sock");
    let ask = || {
        let answer = http::unix(&socket, "GET", "/flowlog/v1/inventory", None).unwrap();
        format!("{} {}", answer.head, answer.body)
    };
    let root = as_user(0, ask);
    assert!(root.contains(NIC) && root.contains(OTHERS_NIC), "{root}");
    let ann = as_user(60_001, ask);
    assert!(ann.contains(NIC) && !ann.contains(OTHERS_NIC), "{ann}");
    let mal = as_user(60_006, ask);
    assert!(!mal.contains(NIC) && mal.contains(OTHERS_NIC), "{mal}");
    assert!(as_user(61_000, ask).contains("401 unauthorized"));
}

#[test]
fn whatever_is_sent_is_answered_with_json_or_cut_and_costs_nobody_else_anything() {
    let node = Managed::new("no_pin = true").unwrap();
    let _agent = node.start().unwrap();
    let all = flow_logs();
    // Queries are tolerated on every verb.
    let odd =
        "?pretty=true&depth=9&limit=7&offset=0&order-by=name&orderBy=name&filter.name=x&filter.properties.name=%00";
    assert_eq!(node.ask_as("ann", "GET", &format!("{all}{odd}"), None).body["limit"], 7);
    let made = node.ask_as("ann", "POST", &format!("{all}{odd}"), Some(&body("web")));
    assert_eq!(made.status, 202, "{made:?}");
    for (method, path, body, status) in [
        ("GET", "/nowhere", None, 404),
        ("GET", "/cloudapi/v6/nowhere", None, 404),
        ("DELETE", all.as_str(), None, 405),
        ("POST", all.as_str(), Some(json!(7)), 422),
        ("POST", all.as_str(), Some(json!({"properties": {"name": 7}})), 422),
        ("POST", all.as_str(), Some(json!({"properties": {}})), 422),
        ("POST", all.as_str(), Some(json!({"properties": {"name": "x".repeat(100_000)}})), 413),
        ("PATCH", "/cloudapi/v6/requests", None, 405),
    ] {
        let answer = node.ask_as("ann", method, path, body.as_ref());
        assert_eq!(
            (answer.status, &answer.body["httpStatus"]),
            (status, &json!(status)),
            "{method} {path}: {answer:?}"
        );
        assert!(!answer.words().is_empty(), "{answer:?}");
    }
    let raw = |bytes: &[u8]| node.node.run(|| http::exchange(&mut TcpStream::connect(LISTEN).unwrap(), bytes));
    let broken = format!(
        "POST {all} HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer x\r\ncontent-length: 1\r\n\r\n{{"
    );
    assert_eq!(raw(broken.as_bytes()).unwrap().status, 401, "who is asking comes first");
    assert!(raw(&[0; 64]).is_err() || raw(&[0; 64]).unwrap().status == 400);
    // Somebody who says nothing holds nobody up; with its head unfinished, it is cut.
    let mut silent = node.node.run(|| TcpStream::connect(LISTEN).unwrap());
    silent.write_all(b"GET / HTTP/1.1\r\n").unwrap();
    // A crowd from one address takes its share of the places, and no more: others are served meanwhile.
    let crowd: Vec<TcpStream> = node.node.run(|| {
        let from_another_address = |_| {
            let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
            rustix::net::bind(&socket, &SocketAddr::from(([127, 0, 0, 9], 0))).unwrap();
            rustix::net::connect(&socket, &LISTEN.parse::<SocketAddr>().unwrap()).unwrap();
            TcpStream::from(socket)
        };
        (0..300).map(from_another_address).collect()
    });
    assert_eq!(node.ask("GET", "/flowlog/v1/inventory", None).status, 200);
    let document = node.ask_as("ann", "GET", "/openapi.json", None).body;
    assert!(document["openapi"].as_str().unwrap().starts_with("3."));
    assert!(
        document["paths"]
            [all.replace(DATACENTER, "{datacenter}").replace(SERVER, "{server}").replace(NIC, "{resource}")]["post"]
            .is_object()
    );
    drop(crowd);
    let since = Instant::now();
    silent.set_read_timeout(Some(Duration::from_mins(1))).unwrap();
    let mut rest = Vec::new();
    let _ = silent.read_to_end(&mut rest);
    assert!(since.elapsed() < Duration::from_secs(45), "cut after {:?}", since.elapsed());
}

#[test]
fn too_many_requests_and_too_many_guesses_are_told_when_to_come_back() {
    let node = Managed::new("no_pin = true").unwrap();
    let _agent = node.start().unwrap();
    let path = format!("/cloudapi/v6/datacenters/{DATACENTER}");
    let flood = |credentials: &str, most: usize| {
        node.node.run(|| {
            (0..most)
                .map(|_| http::tcp(LISTEN, Some(credentials), "GET", &path, None).unwrap())
                .find(|a| a.status == 429)
        })
    };
    let guess = flood("Bearer 00", 200).expect("guesses are limited");
    assert!(guess.header("retry-after").unwrap().parse::<u64>().unwrap() >= 1, "{guess:?}");
    assert_eq!(guess.body["httpStatus"], 429);
    // From the same address, who knows is let in: by a token as ever, by a password as soon as its turn comes.
    let (token, hash) = flowlog_control::flow_logs::principals::new_token();
    let principal = format!(
        "[[principal]]\nid = '{NIC}'\nname = 'robot'\ncontract = '{CONTRACT}'\nrole = 'owner'\ntoken_hashes = ['{hash}']\n"
    );
    node.write("principals.toml", &principal).unwrap();
    let bearer = format!("Bearer {token}");
    let known = || node.node.run(|| http::tcp(LISTEN, Some(&bearer), "GET", &path, None).unwrap());
    let since = Instant::now();
    while known().status != 200 {
        assert!(since.elapsed() < Duration::from_secs(20), "{:?}", known());
        std::thread::sleep(Duration::from_millis(500));
    }
    let many = flood(&bearer, 2_000).expect("requests are limited");
    assert!(
        many.header("retry-after").unwrap().parse::<u64>().unwrap() >= 1 && many.words().contains("too many requests")
    );
}

#[test]
fn a_field_that_nobody_knows_is_refused_and_changes_nothing() {
    let node = Managed::new("no_pin = true").unwrap();
    let _agent = node.start().unwrap();
    let id = node.draft(NIC, "web", "flows");
    let before = node.summary(&id);
    let typo = json!({"name": "other", "buckett": "flows/x"});
    let draft =
        json!({"resource": NIC, "name": "a", "direction": "INGRESS", "action": "ALL", "bucket": "flows", "colour": 1});
    for (method, path, body, field) in [
        ("PATCH", format!("/flowlog/v1/flowlogs/{id}"), &typo, "buckett"),
        ("PATCH", format!("/flowlog/v1/flowlogs/{id}"), &json!({}), "names no field"),
        ("PATCH", format!("{}/{id}", flow_logs()), &typo, "buckett"),
        ("POST", "/flowlog/v1/flowlogs".to_owned(), &draft, "colour"),
        ("POST", "/flowlog/v1/flowlogs".to_owned(), &json!({"resource": NIC, "name": "a"}), "missing field"),
    ] {
        let answer = node.ask(method, &path, Some(body));
        assert!(answer.status == 422 && answer.words().contains(field), "{method} {path}: {answer:?}");
    }
    assert_eq!(node.summary(&id), before);
}

/// A login of a principal, in the form of Basic.
fn basic(who: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{who}:{password}")))
}

#[test]
fn while_guesses_are_limited_a_right_password_gets_the_same_answer_and_others_are_let_in() {
    let node = Managed::new("no_pin = true").unwrap();
    let _agent = node.start().unwrap();
    let path = format!("/cloudapi/v6/datacenters/{DATACENTER}");
    let ask = |who: &str, password: &str| {
        node.node.run(|| http::tcp(LISTEN, Some(&basic(who, password)), "GET", &path, None).unwrap().status)
    };
    // The victim has just been here: its password is remembered.
    assert_eq!(ask("ann", PASSWORD), 200);
    let answers: Vec<u16> = (0..60).map(|n| ask("ann", &format!("guess {n}"))).collect();
    let limited = answers.iter().position(|status| *status == 429).expect("guesses are limited");
    assert!(answers[..limited].iter().all(|status| *status == 401), "{answers:?}");
    // At once, before a further try is allowed.
    let while_limited = (0..100).find_map(|_| (ask("ann", "wrong") == 429).then(|| ask("ann", PASSWORD)));
    assert_eq!(while_limited, Some(429), "the right password shows");
    assert_eq!(ask("bob", PASSWORD), 200, "others behind the address");
    let since = Instant::now();
    while ask("ann", PASSWORD) != 200 {
        assert!(since.elapsed() < Duration::from_secs(5), "the victim is locked out for longer than seconds");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn whoever_guesses_and_resets_two_thousand_times_costs_no_memory_and_keeps_nobody_out() {
    let node = Managed::new("no_pin = true").unwrap();
    // What needs more is ended by the kernel.
    let memory = Memory::new(96 << 20, false).unwrap();
    let mut agent = node.start_within(&memory).unwrap();
    let idle = agent.memory_kib("VmRSS");
    let request = |n: usize| {
        format!(
            "GET /cloudapi/v6/requests HTTP/1.1\r\nHost: x\r\nAuthorization: {}\r\n\r\n",
            basic(&format!("user{}", n % 500), "guess")
        )
    };
    node.node.run(|| {
        for n in 0..2_000 {
            let mut stream = std::net::TcpStream::connect(LISTEN).unwrap();
            std::io::Write::write_all(&mut stream, request(n).as_bytes()).unwrap();
            // Closed with a reset.
            rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
        }
    });
    // Somebody who knows is let in very soon, from the same address as well.
    let bob = basic("bob", PASSWORD);
    let is_in = || {
        let answer = node.node.run(|| http::tcp(LISTEN, Some(&bob), "GET", "/cloudapi/v6/requests", None));
        answer.is_ok_and(|a| a.status == 200)
    };
    let since = Instant::now();
    while !is_in() {
        assert!(since.elapsed() < Duration::from_secs(10), "kept out");
        std::thread::sleep(Duration::from_millis(100));
    }
    let peak = agent.memory_kib("VmHWM");
    assert!(peak < idle + (64 << 10), "{idle} KiB idle, {peak} at its peak");
    // What was taken for hashing is given back.
    let since = Instant::now();
    while agent.memory_kib("VmRSS") > idle + (16 << 10) {
        assert!(since.elapsed() < Duration::from_secs(20), "{} KiB, {idle} idle", agent.memory_kib("VmRSS"));
        std::thread::sleep(Duration::from_millis(100));
    }
    agent.end().unwrap();
}
