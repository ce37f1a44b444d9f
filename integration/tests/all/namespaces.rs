//! Appliances: interfaces of network namespaces of their own, whose indexes are those of others as well.
//!
//! Every test ends with [`Agent::stop`], which fails if the books of a window do not balance.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

use integration::{
    agent::{Agent, binary, run_to_end},
    claims::{BYTES, NONE, PAYLOAD, assert_exact, into, out_of, rules, sum, until},
    features,
    net::{Netns, Pair, address, sh, veth},
    rows::Objects,
    traffic,
};

/// Namespaces of appliances beside each other.
const MANY: usize = 200;

/// Where an interface is, as the configuration names it.
enum At<'a> {
    Here,
    Named(&'a str),
}

/// A configuration with a flow log on `eth0` in each of these places.
fn config(dir: &Path, places: &[At<'_>], each: &str, all: &str) -> String {
    let shown = dir.display();
    let mut text = format!("node_id = \"node\"\nstate_dir = \"{shown}/state\"\n{all}\n");
    for place in places {
        let netns = match place {
            At::Here => String::new(),
            At::Named(name) => format!("netns = \"{name}\""),
        };
        write!(
            text,
            "[[flow_log]]\ninterfaces = [\"eth0\"]\n{netns}\ntarget = \"{shown}/objects\"\nwindow = 86400\n{each}\n"
        )
        .unwrap();
    }
    text
}

/// An agent in `ns` with this configuration.
fn spawn(ns: &Netns, places: &[At<'_>], each: &str, all: &str) -> Agent {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("flowlog.toml");
    std::fs::write(&file, config(dir.path(), places, each, all)).unwrap();
    let mut command = ns.command(binary());
    command.args(["run", "--config"]).arg(file);
    Agent::attend(command, dir).unwrap()
}

fn start(ns: &Netns, places: &[At<'_>], each: &str, all: &str) -> Agent {
    let mut agent = spawn(ns, places, each, all);
    agent.wait_for("capturing").unwrap();
    agent
}

/// Name of a namespace's interface in rows, behind the node's.
fn eth0_of(ns: &Netns) -> String {
    format!("{}-eth0", ns.name())
}

/// Waits until the firewall of `ns` has refused so many.
fn wait_until_refused(ns: &Netns, packets: usize) {
    until("the last refusal", || ns.nft_counter("inet t", "refused").unwrap().0 == packets as u64);
}

/// Sends to ports 7 and 9 of the pair's first host, and from it.
fn traffic(pair: &Pair, refused: usize, passed: usize) {
    pair.b.run(|| {
        traffic::udp("10.1.0.1:7", refused, PAYLOAD).unwrap();
        traffic::udp("10.1.0.1:9", passed, PAYLOAD).unwrap();
    });
    pair.a.run(|| traffic::udp("10.1.0.2:9", passed + 1, PAYLOAD)).unwrap();
}

#[test]
fn a_gateway_and_a_port_of_the_same_index_are_two_interfaces() {
    for hook in ["tc", "clsact", "xdp"] {
        let node = Pair::new().unwrap();
        let gateway = Pair::new().unwrap();
        let index = |ns: &Netns| ns.exec("cat /sys/class/net/eth0/ifindex").unwrap();
        assert_eq!(index(&node.a), index(&gateway.a), "the first interfaces of two namespaces");
        for pair in [&node, &gateway] {
            pair.a.nft(&rules("inet", "input", "drop")).unwrap();
        }
        let places = [At::Here, At::Named(gateway.a.name())];
        let agent = start(&node.a, &places, &format!("hook = \"{hook}\""), "no_pin = true");
        traffic(&node, 40, 5);
        traffic(&gateway, 30, 7);
        wait_until_refused(&node.a, 40);
        wait_until_refused(&gateway.a, 30);
        let landed = agent.stop().unwrap();
        let theirs = eth0_of(&gateway.a);
        for (interface, refused, passed) in [("eth0", 40, 5), (theirs.as_str(), 30, 7)] {
            assert_exact(&landed, into(interface), 7, sum(refused), NONE);
            assert_exact(&landed, into(interface), 9, NONE, sum(passed));
            assert_exact(&landed, out_of(interface), 9, NONE, sum(passed + 1));
        }
    }
}

#[test]
fn what_is_refused_on_its_way_through_an_appliance_is_refused_on_both_its_interfaces() {
    // A gateway with two interfaces; what goes out through the second is refused in forward, and so on its way in as well.
    let [client, gateway, server] = ["client", "gateway", "server"].map(|role| Netns::new(role).unwrap());
    veth((&client, "eth0"), (&gateway, "eth0")).unwrap();
    veth((&gateway, "eth1"), (&server, "eth0")).unwrap();
    for (ns, interface, ip) in [
        (&client, "eth0", "10.2.0.2/24"),
        (&gateway, "eth0", "10.2.0.1/24"),
        (&gateway, "eth1", "10.3.0.1/24"),
        (&server, "eth0", "10.3.0.2/24"),
    ] {
        address(ns, interface, ip).unwrap();
    }
    gateway.sysctl("net.ipv4.ip_forward", "1").unwrap();
    client.exec("ip route add default via 10.2.0.1").unwrap();
    gateway.nft(&rules("inet", "forward", "drop")).unwrap();
    let node = Netns::new("node").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let text = config(dir.path(), &[At::Named(gateway.name())], "", "no_pin = true")
        .replace("[\"eth0\"]", "[\"eth0\", \"eth1\"]");
    let file = dir.path().join("flowlog.toml");
    std::fs::write(&file, text).unwrap();
    let mut command = node.command(binary());
    command.args(["run", "--config"]).arg(file);
    let mut agent = Agent::attend(command, dir).unwrap();
    agent.wait_for("capturing").unwrap();
    client.run(|| traffic::udp("10.3.0.2:7", 40, PAYLOAD)).unwrap();
    client.run(|| traffic::udp("10.3.0.2:9", 5, PAYLOAD)).unwrap();
    wait_until_refused(&gateway, 40);
    let landed = agent.stop().unwrap();
    let [inside, outside] = ["eth0", "eth1"].map(|interface| format!("{}-{interface}", gateway.name()));
    assert_exact(&landed, into(&inside), 7, sum(40), NONE);
    assert_exact(&landed, out_of(&outside), 7, sum(40), NONE);
    assert_exact(&landed, into(&inside), 9, NONE, sum(5));
    assert_exact(&landed, out_of(&outside), 9, NONE, sum(5));
}

#[test]
fn a_namespace_is_found_by_its_path_and_what_is_not_there_is_said_by_name() {
    let node = Netns::new("node").unwrap();
    let pair = Pair::new().unwrap();
    // As a container's runtime names it: by a process that is in it.
    let mut inside = pair.a.command("sleep").arg("600").spawn().unwrap();
    let path = format!("/proc/{}/ns/net", inside.id());
    let same = |a: &str, b: &str| {
        std::fs::metadata(a).ok().map(|m| std::os::unix::fs::MetadataExt::ino(&m))
            == std::fs::metadata(b).ok().map(|m| std::os::unix::fs::MetadataExt::ino(&m))
    };
    until("the process is inside", || same(&path, &format!("/run/netns/{}", pair.a.name())));
    let agent = start(&node, &[At::Named(&path)], "", "no_pin = true");
    traffic(&pair, 3, 5);
    let landed = agent.stop().unwrap();
    let interface = format!("proc-{}-ns-net-eth0", inside.id());
    assert_exact(&landed, into(&interface), 9, NONE, sum(5));
    assert_exact(&landed, out_of(&interface), 9, NONE, sum(6));
    inside.kill().unwrap();
    inside.wait().unwrap();

    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("s");
    let refused = |netns: &str, interface: &str| {
        let state = state.to_str().unwrap();
        let args =
            ["run", "-i", interface, "--netns", netns, "-t", "./f", "--state-dir", state, "--no-pin", "--no-nodata"];
        let (code, _, said) = run_to_end(&node, &args, dir.path()).unwrap();
        assert_ne!(code, Some(0));
        said
    };
    let said = refused("no-such-place", "eth0");
    assert!(said.contains("`no-such-place`") && said.contains("/run/netns/no-such-place"), "{said}");
    let said = refused(pair.a.name(), "eth7");
    assert!(said.contains("`eth7`") && said.contains(pair.a.name()) && said.contains("eth0"), "{said}");
    let said = refused("/etc/passwd", "eth0");
    assert!(said.contains("there is no network namespace at /etc/passwd"), "{said}");
    let said = refused("../x", "eth0");
    assert!(said.contains("netns `../x`"), "{said}");
}

#[test]
fn an_appliance_is_captured_from_when_it_is_there_until_it_is_gone_and_again() {
    let node = Netns::new("node").unwrap();
    let outside = Netns::new("outside").unwrap();
    let appliance = Netns::new("appliance").unwrap();
    sh(&format!("ip netns del {}", appliance.name())).unwrap();
    let mut agent = start(&node, &[At::Named(appliance.name())], "wait = true", "no_pin = true");
    for _ in 0..3 {
        sh(&format!("ip netns add {}", appliance.name())).unwrap();
        veth((&appliance, "eth0"), (&outside, "eth0")).unwrap();
        for ns in [&appliance, &outside] {
            ns.sysctl("net.ipv6.conf.eth0.disable_ipv6", "1").unwrap();
        }
        address(&appliance, "eth0", "10.1.0.1/16").unwrap();
        address(&outside, "eth0", "10.1.0.2/16").unwrap();
        agent.wait_for("watching").unwrap();
        outside.run(|| traffic::udp("10.1.0.1:9", 10, PAYLOAD)).unwrap();
        until("all have come in", || appliance.statistic("eth0", "rx_packets").unwrap() >= 10);
        // It has no process: its namespace ends with its name, unless somebody keeps it.
        sh(&format!("ip netns del {}", appliance.name())).unwrap();
        agent.wait_for("the interface is gone").unwrap();
        until("the other end of the cable is gone, too", || outside.exec("ip link show eth0").is_err());
    }
    sh(&format!("ip netns add {}", appliance.name())).unwrap();
    let landed = agent.stop().unwrap();
    let id = format!("node-{}", eth0_of(&appliance));
    let came_in = landed.sum(|r| r.interface == id && r.dport == 9 && r.direction == "ingress");
    assert_eq!(came_in, (30, 30 * BYTES));
    assert_eq!(landed.rows.iter().filter(|r| r.skip == "gap").count(), 2);
}

/// Namespaces with an interface of the same index each, on cables to one namespace outside.
fn many(outside: &Netns) -> Vec<Netns> {
    let appliance = |n: usize| {
        let ns = Netns::new("many").unwrap();
        veth((&ns, "eth0"), (outside, &format!("v{n}"))).unwrap();
        ns.sysctl("net.ipv6.conf.eth0.disable_ipv6", "1").unwrap();
        ns
    };
    (0..MANY).map(appliance).collect()
}

#[test]
fn hundreds_of_appliances_are_captured_each_for_itself() {
    let node = Netns::new("node").unwrap();
    let outside = Netns::new("outside").unwrap();
    let all = many(&outside);
    let places: Vec<At<'_>> = all.iter().map(|ns| At::Named(ns.name())).collect();
    // No `wait`: it says that it captures when all are hooked.
    let agent = start(&node, &places, "", "no_pin = true");
    for (n, ns) in all.iter().enumerate() {
        let interface = format!("v{n}");
        let frame = traffic::udp4(
            (outside.mac(&interface).unwrap(), ns.mac("eth0").unwrap()),
            ([10, 1, 0, 2].into(), 5),
            ([10, 1, 0, 1].into(), 9),
            PAYLOAD,
        );
        outside.run(|| traffic::Raw::open(&interface).and_then(|raw| raw.send(&vec![frame; n + 1]))).unwrap();
    }
    for (n, ns) in all.iter().enumerate() {
        until("all have come in", || ns.statistic("eth0", "rx_packets").unwrap() > n as u64);
    }
    let landed = agent.stop().unwrap();
    for (n, ns) in all.iter().enumerate() {
        assert_exact(&landed, into(&eth0_of(ns)), 9, NONE, sum(n + 1));
    }
}

/// A place for pins: `ip netns exec` hides the one of the machine.
struct Bpffs(PathBuf);

impl Bpffs {
    fn new(at: &Path) -> Self {
        let place = at.join("bpf");
        std::fs::create_dir(&place).unwrap();
        sh(&format!("mount -t bpf bpf {}", place.display())).unwrap();
        Self(place)
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        let _ = sh(&format!("umount -l {}", self.0.display()));
    }
}

/// What landed in a directory that several agents have written to.
fn landed(dir: &Path) -> Objects {
    Objects::below(&dir.join("objects")).unwrap()
}

#[test]
fn nothing_is_missed_in_an_appliance_while_agents_take_over_from_each_other() {
    for hook in ["tc", "clsact", "xdp"] {
        if hook == "xdp" && features::guest() {
            continue;
        }
        let node = Netns::new("node").unwrap();
        let pair = Pair::new().unwrap();
        pair.a.nft(&rules("inet", "input", "drop")).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let bpffs = Bpffs::new(dir.path());
        let pins = bpffs.0.join("flowlog");
        let all = format!("pin_dir = \"{}\"", pins.display());
        let file = dir.path().join("flowlog.toml");
        let text = config(dir.path(), &[At::Named(pair.a.name())], &format!("hook = \"{hook}\""), &all);
        std::fs::write(&file, text).unwrap();
        let run = |verb: &str| {
            let mut command = node.command(binary());
            command.args([verb, "--config"]).arg(&file);
            Agent::attend(command, tempfile::tempdir().unwrap()).unwrap()
        };
        let mut agent = run("run");
        agent.wait_for("capturing").unwrap();
        for _ in 0..3 {
            traffic(&pair, 20, 10);
            agent.kill().unwrap();
            traffic(&pair, 20, 10);
            agent = run("run");
            agent.wait_for("capturing").unwrap();
        }
        wait_until_refused(&pair.a, 120);
        agent.kill().unwrap();
        let mut last = run("detach");
        assert_eq!(last.wait().unwrap(), Some(0), "{}", last.log());
        assert!(!pins.exists());
        let landed = landed(dir.path());
        let interface = eth0_of(&pair.a);
        assert_exact(&landed, into(&interface), 7, sum(120), NONE);
        assert_exact(&landed, into(&interface), 9, NONE, sum(60));
        assert_exact(&landed, out_of(&interface), 9, NONE, sum(66));
        // Nothing of ours is left there.
        assert!(!pair.a.exec("tc filter show dev eth0 ingress").unwrap_or_default().contains("flowlog"));
    }
}
