//! NICs that libvirt's status files tell of: the real libvirtd, and a QEMU guest that is emulated.

use std::{
    fs,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use integration::{net::Netns, sourced::Sourced};
use serde_json::json;

const VM: &str = "7d2b0d3a-4f5e-4a60-8f57-3a1f2f3c0201";
const PORT: &str = "5c1b7c1e-0a55-4e1c-9d2f-0f6f0c5ad201";
const PROJECT: &str = "0a9d8f1c3b5e4c899a526f1d2e3c0201";

/// A guest without a disk: its firmware waits for ever. Its NICs are on USB, which a guest need not agree to unplug.
fn domain() -> String {
    format!(
        "<domain type='qemu'><name>instance-00000201</name><uuid>{VM}</uuid>
        <metadata><nova:instance xmlns:nova='http://openstack.org/xmlns/libvirt/nova/1.1'><nova:name>web</nova:name>
          <nova:owner><nova:user uuid='u'>bob</nova:user><nova:project uuid='{PROJECT}'>acme</nova:project></nova:owner>
          <nova:ports><nova:port uuid='{PORT}'/></nova:ports></nova:instance></metadata>
        <memory unit='MiB'>64</memory><vcpu>1</vcpu><os><type arch='x86_64' machine='pc'>hvm</type></os>
        <devices><emulator>/usr/bin/qemu-system-x86_64</emulator><memballoon model='none'/>
          <controller type='usb' model='piix3-uhci'/>{}</devices></domain>",
        interface("52:54:00:00:02:01", &format!("tap{}", &PORT[..11]), 1)
    )
}

fn interface(mac: &str, tap: &str, port: u8) -> String {
    format!(
        "<interface type='bridge'><mac address='{mac}'/><source bridge='br0'/><target dev='{tap}'/><model type='usb-net'/><address type='usb' bus='0' port='{port}'/></interface>"
    )
}

/// libvirtd with a `/run/libvirt` and the like of its own, in a namespace; it ends with its guard, and the guests with it.
struct Libvirtd {
    dir: PathBuf,
    daemon: Option<Child>,
}

impl Libvirtd {
    fn start(ns: &Netns, dir: &Path) -> Self {
        let dir = dir.join("libvirt");
        // Sockets below it have short names, and others may not write there.
        for sub in ["run", "lib", "cache", "log", "etc"] {
            fs::create_dir_all(dir.join(sub)).unwrap();
        }
        let config = "unix_sock_group = \"root\"\nauth_unix_rw = \"none\"\nauth_unix_ro = \"none\"\nlog_level = 2\n";
        fs::write(dir.join("etc/libvirtd.conf"), config).unwrap();
        let qemu = "user = \"root\"\ngroup = \"root\"\nsecurity_driver = \"none\"\nremember_owner = 0\nnamespaces = []\n\
                    cgroup_controllers = []\nstdio_handler = \"file\"\n";
        fs::write(dir.join("etc/qemu.conf"), qemu).unwrap();
        // Its user, which another package makes: it looks for it, and then uses what it is configured to.
        for (file, line) in [
            ("passwd", "libvirt-qemu:x:64055:64055::/:/usr/sbin/nologin\n"),
            ("group", "libvirt-qemu:x:64055:\nkvm:x:64056:\n"),
        ] {
            let known = fs::read_to_string(Path::new("/etc").join(file)).unwrap();
            fs::write(dir.join(file), known + line).unwrap();
        }
        let d = dir.display();
        let files = ["passwd", "group"].map(|file| format!("mount --bind {d}/{file} /etc/{file}")).join(" && ");
        let places = [
            ("run", "/run/libvirt"),
            ("lib", "/var/lib/libvirt"),
            ("cache", "/var/cache/libvirt"),
            ("log", "/var/log/libvirt"),
            ("etc", "/etc/libvirt"),
        ];
        let mounts =
            places.map(|(ours, theirs)| format!("mkdir -p {theirs} && mount --bind {d}/{ours} {theirs}")).join(" && ");
        let mut command = ns.command("unshare");
        command.args([
            "--mount",
            "sh",
            "-c",
            &format!("{files} && {mounts} && exec libvirtd --config /etc/libvirt/libvirtd.conf --pid-file {d}/pid"),
        ]);
        command.stdout(Stdio::null()).stderr(fs::File::create(dir.join("stderr")).unwrap()).process_group(0);
        let mut libvirtd = Self { dir, daemon: Some(command.spawn().unwrap()) };
        libvirtd.until("libvirtd does not answer", |l| l.virsh(&["uri"]).0);
        libvirtd
    }

    fn until(&mut self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let since = Instant::now();
        while !is_so(self) {
            let ended = self.daemon.as_mut().and_then(|d| d.try_wait().unwrap());
            let late = since.elapsed() > Duration::from_mins(1);
            let said = || fs::read_to_string(self.dir.join("stderr")).unwrap_or_default();
            assert!(!late && ended.is_none(), "{what}: {ended:?} {}", said());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Where the status files are.
    fn status(&self) -> PathBuf {
        self.dir.join("run/qemu")
    }

    /// Whether a command succeeds, and what it says.
    fn virsh(&self, args: &[&str]) -> (bool, String) {
        let uri = format!("qemu+unix:///system?socket={}", self.dir.join("run/libvirt-sock").display());
        let done = Command::new("virsh").args(["--connect", &uri]).args(args).stdin(Stdio::null()).output().unwrap();
        (done.status.success(), String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned())
    }

    fn ask(&self, args: &[&str]) {
        let (ok, said) = self.virsh(args);
        assert!(ok, "virsh {args:?}: {said}");
    }

    /// What a file of ours says, for `virsh`.
    fn file(&self, name: &str, text: &str) -> String {
        let path = self.dir.join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    }
}

impl Drop for Libvirtd {
    fn drop(&mut self) {
        // Its guest first: that is another process, which libvirtd leaves running.
        let _ = self.virsh(&["destroy", "instance-00000201"]);
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}

#[test]
fn nics_of_a_guest_are_captured_from_its_start_to_its_stop_and_those_that_are_plugged_in_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let status = dir.path().join("libvirt/run/qemu");
    let source = format!(
        "[[inventory.source]]\nkind = 'libvirt'\ndirectory = '{}'\ncontracts = {{ {PROJECT} = '7' }}\n",
        status.display()
    );
    let node = Sourced::new("no_pin = true", &source, "{ contract = '7' }").unwrap();
    // The agent begins before there is a libvirt.
    let mut agent = node.managed.start().unwrap();
    node.problem(Some("No such file or directory"));
    let ns = &node.managed.node;
    ns.exec("ip link add br0 type bridge").unwrap();
    ns.exec("ip link set br0 up").unwrap();
    let libvirtd = Libvirtd::start(ns, dir.path());
    assert_eq!(libvirtd.status(), status);
    node.problem(None);
    // A guest starts. It is Nova's: its tap is called by the port.
    libvirtd.ask(&["create", &libvirtd.file("vm.xml", &domain())]);
    let tap = format!("tap{}", &PORT[..11]);
    agent.wait_for(&format!("watching interface=\"{tap}\"")).unwrap();
    let nic = node.found(&tap);
    assert_eq!((&nic["id"], &nic["server"], &nic["contract"]), (&json!(PORT), &json!(VM), &json!("7")));
    assert_eq!((&nic["labels"]["vm"], &nic["labels"]["project_name"]), (&json!("web"), &json!("acme")));
    let tree = node.tree();
    assert!(tree.contains("all (by selection)") && tree.contains(PORT), "{tree}");
    // A NIC is plugged in.
    let second = libvirtd.file("nic.xml", &interface("52:54:00:00:02:02", "nic-second", 2));
    libvirtd.ask(&["attach-device", "instance-00000201", &second, "--live"]);
    agent.wait_for("watching interface=\"nic-second\"").unwrap();
    let plugged = node.found("nic-second");
    assert_eq!((&plugged["server"], &plugged["selected_by"]), (&json!(VM), &json!("all")));
    let (code, shown, words) =
        node.import(&["libvirt", "--directory", status.to_str().unwrap(), "--contract", "7", "--dry-run"]);
    assert!(code == Some(0) && shown.contains(PORT) && shown.contains("nic-second"), "{shown}{words}");
    // Nobody on the bridge has that address: what is sent there goes to every port.
    ns.exec("ip addr add 10.77.0.1/24 dev br0").unwrap();
    ns.exec("ip neigh replace 10.77.0.9 lladdr 52:54:00:00:09:09 dev br0 nud permanent").unwrap();
    let sent = 7;
    let before = ns.statistic(&tap, "tx_packets").unwrap();
    ns.run(|| integration::traffic::udp("10.77.0.9:9", sent, 50)).unwrap();
    node.until("the guest takes nothing", |_| {
        (ns.statistic(&tap, "tx_packets").unwrap() >= before + sent as u64).then_some(())
    });
    // It is unplugged again, and then the guest is stopped.
    libvirtd.ask(&["detach-device", "instance-00000201", &second, "--live"]);
    node.lost("nic-second");
    libvirtd.ask(&["destroy", "instance-00000201"]);
    node.lost(&tap);
    agent.signal(rustix::process::Signal::TERM);
    assert_eq!(agent.wait().unwrap(), Some(0));
    drop(libvirtd);
    let landed = node.landed().unwrap();
    for id in [PORT, plugged["id"].as_str().unwrap()] {
        // From the guest's side they came in.
        let came = landed.sum(|r| r.dport == 9 && r.direction == "ingress" && r.interface == id).0;
        assert_eq!(came, sent as u64, "{id}: {:#?}", landed.rows);
    }
    assert!(
        landed.metadata.iter().any(|m| m.get("flowlog.label.vm").is_some_and(|vm| vm == "web")),
        "{:#?}",
        landed.metadata
    );
}
