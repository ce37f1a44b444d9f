//! What a package must do on a node: be installed, run confined by the real systemd, capture and deliver every packet, be upgraded without
//! missing one, be seen when it hangs, and go without a trace. The witness is the interface's own counters; the objects are read by another
//! reader than flowlog's.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, ensure};

use super::{
    Made, REVISION, VERSION,
    formats::{self, Out},
    guest::Guest,
    tables,
};
use crate::{
    setup,
    util::{output, root, run as run_command, step},
};

/// `CAP_NET_ADMIN`, `CAP_PERFMON`, `CAP_BPF`, and no others.
const CAPABILITIES: &str = "000000c000001000";
/// The interface that is captured.
const INTERFACE: &str = "tap0";
/// What every bpf file system has.
const BPFFS: [&str; 2] = ["maps.debug", "progs.debug"];
/// Where objects land.
pub(super) const TARGET: &str = "/srv/flowlog";
/// Pings a second, each two packets on the interface.
const PING: &str = "ip netns exec far ping -q -i 0.01";
/// Packets in all rows that are flows, of the objects below a directory; by pyarrow.
const SUM: &str = "import pathlib, sys, pyarrow.parquet as p, pyarrow.compute as c\n\
                   files = pathlib.Path(sys.argv[1]).rglob('*.parquet')\n\
                   tables = (p.read_table(f, partitioning=None, filters=[('log_status', '=', 'OK')]) for f in files)\n\
                   print(sum(c.sum(t['packets']).as_py() or 0 for t in tables))";

/// All of it.
pub(super) fn run(made: &Made) -> anyhow::Result<()> {
    setup::python_packages()?;
    let out = Out { dir: &made.dir, arch: made.binary.arch };
    let newer = out.deb(&made.tree, &made.binary, REVISION + 1, &formats::abi()?)?;
    // The same program, which its package says is of another ABI.
    let other = out.deb(&made.tree, &made.binary, REVISION + 2, "other")?;
    let guest = Guest::boot(&made.dir)?;
    let done = try_it(&guest, &[&*made.deb, &*newer, &*other, &*made.catalog_deb]);
    if done.is_err() {
        let log = guest.run("journalctl --no-pager --lines 60 --unit 'flowlog*'").unwrap_or_default();
        println!("{log}");
    }
    done?;
    println!("package test: 1 passed, 0 failed");
    Ok(())
}

fn try_it(guest: &Guest, debs: &[&Path]) -> anyhow::Result<()> {
    for deb in debs {
        fs::copy(deb, guest.path("/root").join(deb.file_name().context("a file")?))?;
    }
    let before = files(guest)?;
    install(guest)?;
    configure(guest)?;
    tables::install(guest)?;
    let captured = Captured::start(guest)?;
    confinement(guest)?;
    step("an upgrade under traffic");
    let traffic = captured.traffic("20")?;
    let first = agent(guest)?;
    guest.run(&format!("dpkg --install /root/flowlog_{VERSION}-{}_*.deb", REVISION + 1))?;
    let second = agent(guest)?;
    ensure!(first != second, "the agent was not started again");
    reload(guest, &second)?;
    hang(guest, &second)?;
    all_answered(traffic)?;
    step("an upgrade to another ABI");
    guest.run(&format!("dpkg --install /root/flowlog_{VERSION}-{}_*.deb", REVISION + 2))?;
    guest.run("journalctl --unit flowlog-detach | grep -q 'Finished'")?;
    ensure!(agent(guest)? != second);
    step("the end: nothing is missing, nothing is left");
    guest.run("dpkg --remove flowlog")?;
    captured.ensure_complete()?;
    tables::ensure_complete(guest)?;
    ensure!(guest.run("ls -A /sys/fs/bpf")?.lines().all(|name| BPFFS.contains(&name)), "pins are left");
    ensure!(!guest.run("bpftool net show")?.contains(INTERFACE), "hooks are left");
    tables::purge(guest)?;
    guest.run("dpkg --purge flowlog")?;
    guest.refuse("getent passwd flowlog")?;
    guest.refuse("systemctl cat flowlog.service")?;
    let left: Vec<_> = files(guest)?.difference(&before).cloned().collect();
    ensure!(left.is_empty(), "files are left: {left:?}");
    role(guest)
}

/// The role for Ansible makes a service of a package, and a second run of it changes nothing.
fn role(guest: &Guest) -> anyhow::Result<()> {
    step("the role for Ansible, twice");
    run_command(
        Command::new("cp").arg("-r").arg(root().join("docs/examples/ansible")).arg(guest.path("/root/ansible")),
    )?;
    let variables = format!(
        "flowlog_package: /root/flowlog_{VERSION}-{REVISION}_{{{{ 'amd64' if ansible_architecture == 'x86_64' else 'arm64' }}}}.deb\n\
         flowlog_drop_ins: [local-target.conf]\n\
         flowlog_config: |\n  [[flow_log]]\n  interfaces = [\"{INTERFACE}\"]\n  target = \"{TARGET}\"\n"
    );
    fs::write(guest.path("/root/variables.yml"), variables)?;
    // The user is root already, and the node is this one.
    let play = "cd /root/ansible && LC_ALL=C.UTF-8 ansible-playbook --inventory localhost, --connection local --extra-vars ansible_become=false \
                --extra-vars nodes=localhost --extra-vars @/root/variables.yml site.yml";
    guest.run(play)?;
    guest.run("systemctl is-active flowlog && systemctl is-enabled flowlog && flowlog status | grep -q capturing")?;
    let again = guest.run(play)?;
    ensure!(again.contains("changed=0 "), "a second run changes something: {again}");
    guest.run("dpkg --purge flowlog").map(drop)
}

/// Every file of the container that is not a log, a cache or the object of this test.
fn files(guest: &Guest) -> anyhow::Result<BTreeSet<String>> {
    let list = guest.run(&format!(
        "find / -xdev -not -path '/proc/*' -not -path '/var/log/*' -not -path '/var/cache/*' -not -path '/var/lib/dpkg/*' \
         -not -path '/var/lib/systemd/*' -not -path '/var/tmp/*' -not -path '/tmp/*' -not -path '{TARGET}*' \
         -not -path '/root/*' -not -path '/etc/systemd/system/flowlog*.service.d*'"
    ))?;
    // What the user database leaves when it is written: `/etc/passwd-`.
    Ok(list.lines().filter(|name| !name.ends_with('-')).map(str::to_owned).collect())
}

fn install(guest: &Guest) -> anyhow::Result<()> {
    step("installing it");
    let said = guest.run(&format!("dpkg --install /root/flowlog_{VERSION}-{REVISION}_*.deb"))?;
    ensure!(said.contains("systemctl enable --now flowlog"), "it does not say what to do next: {said}");
    let pins = guest.run("stat --format '%a %U' /sys/fs/bpf/flowlog")?;
    ensure!(pins == "700 flowlog", "{pins}");
    // Nobody has said what to capture.
    guest.refuse("systemctl is-enabled flowlog")?;
    guest.refuse("systemctl is-active flowlog")?;
    guest.run("flowlog --version; zgrep -q 'cache.*slots' /usr/share/man/man1/flowlog-run.1.gz")?;
    guest.run("systemd-analyze verify --man=no /usr/lib/systemd/system/flowlog*.service").map(drop)
}

/// A flow log on an interface whose other end is in a namespace: both know each other, so that no packet is there that is not ours.
fn configure(guest: &Guest) -> anyhow::Result<()> {
    guest.run(&format!(
        "ip netns add far
         ip link add {INTERFACE} type veth peer name eth0 netns far
         echo 1 >/proc/sys/net/ipv6/conf/{INTERFACE}/disable_ipv6
         ip netns exec far sh -c 'echo 1 >/proc/sys/net/ipv6/conf/eth0/disable_ipv6'
         ip address add 10.9.0.1/24 dev {INTERFACE}; ip link set {INTERFACE} up
         ip -n far address add 10.9.0.2/24 dev eth0; ip -n far link set eth0 up
         here=$(cat /sys/class/net/{INTERFACE}/address)
         there=$(ip -n far -br link show eth0 | awk '{{print $3}}')
         ip neighbour replace 10.9.0.2 lladdr $there dev {INTERFACE} nud permanent
         ip -n far neighbour replace 10.9.0.1 lladdr $here dev eth0 nud permanent"
    ))?;
    guest.run(&format!(
        "mkdir -p {TARGET} /etc/systemd/system/flowlog.service.d; chown flowlog: {TARGET}
         cp /usr/share/doc/flowlog/examples/systemd/local-target.conf /etc/systemd/system/flowlog.service.d/
         printf '[Service]\\nWatchdogSec=5\\n' >/etc/systemd/system/flowlog.service.d/impatient.conf
         printf '[[flow_log]]\\ninterfaces = [\"{INTERFACE}\"]\\ntarget = \"{TARGET}\"\\nwindow = 10\\n' >>/etc/flowlog/flowlog.toml
         systemctl daemon-reload"
    ))
    .map(drop)
}

/// A capture, and what had passed its interface before.
struct Captured<'a> {
    guest: &'a Guest,
    before: u64,
}

impl<'a> Captured<'a> {
    /// Starts the unit: when that is done the capture stands, for that is what systemd waits for.
    fn start(guest: &'a Guest) -> anyhow::Result<Self> {
        step("starting the unit");
        let before = passed(guest)?;
        guest.run("systemctl enable --now flowlog")?;
        Ok(Self { guest, before })
    }

    /// Pings for some seconds, on and on.
    fn traffic(&self, secs: &str) -> anyhow::Result<Child> {
        let line = format!("{PING} -w {secs} 10.9.0.1");
        Ok(self.guest.command(&line).stdout(Stdio::piped()).spawn()?)
    }

    /// All that the interface has counted is in the objects.
    fn ensure_complete(&self) -> anyhow::Result<()> {
        let passed = passed(self.guest)? - self.before;
        let mut python = Command::new(root().join(".tools/python/bin/python"));
        let rows: u64 = output(python.args(["-c", SUM]).arg(self.guest.path(TARGET)))?.parse()?;
        step(&format!("{passed} packets have passed {INTERFACE}, {rows} are in the objects"));
        ensure!(passed > 1_000 && rows == passed);
        Ok(())
    }
}

/// The traffic ends, and nothing of it was lost on its way.
fn all_answered(traffic: Child) -> anyhow::Result<()> {
    let done = traffic.wait_with_output()?;
    let said = String::from_utf8_lossy(&done.stdout);
    ensure!(done.status.success() && said.contains(" 0% packet loss"), "{said}");
    Ok(())
}

/// What the interface itself has counted, both ways.
fn passed(guest: &Guest) -> anyhow::Result<u64> {
    let counts = guest.run(&format!("cd /sys/class/net/{INTERFACE}/statistics; cat rx_packets tx_packets"))?;
    counts.lines().map(|n| Ok(n.parse::<u64>()?)).sum()
}

/// A property of the unit.
fn property(guest: &Guest, name: &str) -> anyhow::Result<String> {
    guest.run(&format!("systemctl show --property {name} --value flowlog"))
}

/// The agent's process id in the container.
fn agent(guest: &Guest) -> anyhow::Result<String> {
    let state = property(guest, "ActiveState")?;
    ensure!(
        state == "active",
        "the unit is {state}: {}",
        guest.run("journalctl --no-pager --lines 20 --unit flowlog")?
    );
    property(guest, "MainPID")
}

/// What the unit says, and what the process really has.
fn confinement(guest: &Guest) -> anyhow::Result<()> {
    ensure!(property(guest, "Type")? == "notify-reload");
    let words = guest.run(
        "for i in $(seq 100); do systemctl show --property StatusText --value flowlog | grep interface && exit; sleep 0.1; done; false",
    )?;
    ensure!(words.starts_with("1 flow log on 1 interface"), "{words}");
    let status = guest.run(&format!("cat /proc/{}/status", agent(guest)?))?;
    let field = |name: &str| status.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(":\t")).unwrap_or_default();
    for name in ["CapPrm", "CapEff", "CapBnd"] {
        ensure!(field(name) == CAPABILITIES, "{name} {}", field(name));
    }
    let user = guest.run("id -u flowlog")?;
    ensure!(field("Uid").split_whitespace().all(|uid| uid == user), "it is user {}", field("Uid"));
    ensure!(field("Seccomp") == "2" && field("NoNewPrivs") == "1");
    guest.ensure_confined("flowlog")
}

/// A reload is over when the agent says so, and it is the same agent.
fn reload(guest: &Guest, agent_before: &str) -> anyhow::Result<()> {
    guest.run("systemctl reload flowlog")?;
    ensure!(agent(guest)? == agent_before, "a reload is no start");
    guest.run("journalctl --unit flowlog | grep -q 'SIGHUP: '").map(drop)
}

/// A process that does not go on is ended by the watchdog, and another one goes on in its place.
fn hang(guest: &Guest, hung: &str) -> anyhow::Result<()> {
    step("an agent that hangs");
    guest.run(&format!(
        "kill -STOP {hung}
         for i in $(seq 300); do
             pid=$(systemctl show --property MainPID --value flowlog)
             [ $pid != 0 ] && [ $pid != {hung} ] && systemctl is-active --quiet flowlog && exit 0
             sleep 0.1
         done; false"
    ))?;
    guest.run("journalctl --unit flowlog | grep -qi 'watchdog timeout'").map(drop)
}
