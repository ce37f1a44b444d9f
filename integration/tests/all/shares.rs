//! Contracts do not touch each other: whatever one of them, or a crowd of strangers, asks for, the others are answered, and the
//! operator always gets in.

use std::{
    io::Read as _,
    net::{SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use integration::{
    http,
    managed::{DATACENTER, LISTEN, Managed, NIC, OTHERS_NIC, PASSWORD, SERVER, as_user},
};
use rustix::net::{AddressFamily, SocketType};
use serde_json::{Value, json};

/// Idle connections from an address, as many as it may have.
fn crowd(from: u8) -> Vec<TcpStream> {
    let connect = |_| {
        let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        rustix::net::bind(&socket, &SocketAddr::from(([127, 0, 0, from], 0))).unwrap();
        rustix::net::connect(&socket, &LISTEN.parse::<SocketAddr>().unwrap()).unwrap();
        TcpStream::from(socket)
    };
    (0..64).map(connect).collect()
}

/// Connections that the other side has not closed.
fn still_open(crowd: &mut [TcpStream]) -> usize {
    let is_open = |stream: &mut TcpStream| {
        stream.set_nonblocking(true).unwrap();
        stream.read(&mut [0]).is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock)
    };
    crowd.iter_mut().filter_map(|s| is_open(s).then_some(())).count()
}

#[test]
fn a_crowd_that_holds_every_connection_makes_room_for_whoever_comes() {
    let node = Managed::new("no_pin = true").unwrap();
    let _agent = node.start().unwrap();
    let mut held: Vec<TcpStream> = node.node.run(|| (2..=5).flat_map(crowd).collect());
    let path = format!("/cloudapi/v6/datacenters/{DATACENTER}");
    assert_eq!(node.ask_as("ann", "GET", &path, None).status, 200);
    // The crowd had not been cut for its silence by then: that takes half a minute.
    let open = node.node.run(|| still_open(&mut held));
    assert!((200..256).contains(&open), "{open} of 256 are open");
}

#[test]
fn users_of_the_node_that_hold_every_connection_of_its_socket_do_not_keep_the_operator_out() {
    let node = Managed::new("no_pin = true").unwrap();
    let _agent = node.start().unwrap();
    std::fs::set_permissions(node.dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let socket = node.path("agent.sock");
    let connect = || (0..64).map(|_| UnixStream::connect(&socket).unwrap()).collect::<Vec<_>>();
    let held: Vec<UnixStream> = (61_000..61_005).flat_map(|uid| as_user(uid, connect)).collect();
    let mut mine: Vec<UnixStream> = (0..80).map(|_| UnixStream::connect(&socket).unwrap()).collect();
    assert_eq!(node.ask("GET", "/flowlog/v1/inventory", None).status, 200);
    let is_open = |stream: &mut UnixStream| {
        stream.set_nonblocking(true).unwrap();
        stream.read(&mut [0]).is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock)
    };
    assert!(mine.iter_mut().all(is_open), "the operator's own are cut");
    let open = held.into_iter().filter_map(|mut s| is_open(&mut s).then_some(())).count();
    assert!((150..=256).contains(&open), "{open} are open");
}

fn basic(who: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{who}:{password}")))
}

/// What a quiet customer asks; each is a path, and how long every answer took.
fn ask_quietly(node: &Managed, paths: &[String], times: usize) -> Vec<Duration> {
    let mut took = Vec::new();
    for path in std::iter::repeat_n(paths, times).flatten() {
        let since = Instant::now();
        let answer = node.ask_as("mal", "GET", path, None);
        took.push(since.elapsed());
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
    }
    took.sort();
    took
}

/// Asks for changes and lists without a pause, as fast as answers come, and opens more connections than it may.
fn flood(path: &str, is_over: &AtomicBool, asked: &AtomicU64) {
    let mut n = 0_u64;
    while !is_over.load(Ordering::Relaxed) {
        n += 1;
        let name = json!({"name": format!("web{n}")});
        let (method, path, body) = match n % 4 {
            0 => ("GET", "/flowlog/v1/audit", None),
            1 => ("GET", "/cloudapi/v6/requests?depth=3", None),
            _ => ("PATCH", path, Some(&name)),
        };
        let who = if n % 64 == 63 {
            basic(&format!("nobody{n}"), "guess")
        } else {
            basic(["ann", "bob", "kim"][n as usize % 3], PASSWORD)
        };
        // One that is cut is asked again.
        let _ = http::tcp(LISTEN, Some(&who), method, path, body);
        asked.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn a_flood_by_one_contract_leaves_anothers_requests_history_and_answers_as_they_were() {
    let node = Managed::new("no_pin = true").unwrap();
    std::fs::create_dir_all(node.path("buckets/2/flows")).unwrap();
    let _agent = node.start().unwrap();
    let create = |who: &str, path: &str| {
        let properties = json!({"name": "web", "action": "ALL", "direction": "BIDIRECTIONAL", "bucket": "flows"});
        let made = node.ask_as(who, "POST", path, Some(&json!({"properties": properties})));
        assert_eq!(made.status, 202, "{made:?}");
        let request =
            made.header("location").unwrap().split("/cloudapi").nth(1).map(|p| format!("/cloudapi{p}")).unwrap();
        let over = node.ask("GET", &request.replace("/cloudapi/v6", "/flowlog/v1"), None);
        assert_eq!(over.body["metadata"]["status"], "DONE", "{over:?}");
        (format!("{path}/{}", made.body["id"].as_str().unwrap()), request)
    };
    let all = |nic: &str, n: u32| {
        let dc = DATACENTER.replace("d1", &format!("d{n}"));
        let server = SERVER.replace("a1", &format!("a{n}"));
        format!("/cloudapi/v6/datacenters/{dc}/servers/{server}/nics/{nic}/flowlogs")
    };
    let (loud, _) = create("ann", &all(NIC, 1));
    let (own, request) = create("mal", &all(OTHERS_NIC, 2));
    let paths = [request, own, "/flowlog/v1/audit".to_owned()];
    let look = || paths.iter().map(|p| node.ask_as("mal", "GET", p, None).body).collect::<Vec<Value>>();
    let before = look();
    let alone = ask_quietly(&node, &paths, 30);
    let is_over = AtomicBool::new(false);
    let asked = AtomicU64::new(0);
    let among = std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| node.node.run(|| flood(&loud, &is_over, &asked)));
        }
        // Passwords are looked at once, which takes a while.
        while asked.load(Ordering::Relaxed) < 500 {
            std::thread::yield_now();
        }
        let among = ask_quietly(&node, &paths, 30);
        assert_eq!(node.ask("GET", "/flowlog/v1/inventory", None).status, 200);
        is_over.store(true, Ordering::Relaxed);
        among
    });
    assert_eq!(look(), before);
    let p99 = |took: &[Duration]| took[took.len() * 99 / 100];
    eprintln!(
        "a quiet customer's answers, p99: {:?} alone, {:?} among {} requests of another contract",
        p99(&alone),
        p99(&among),
        asked.load(Ordering::Relaxed)
    );
}
