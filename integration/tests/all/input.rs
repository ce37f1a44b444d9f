//! Bad input: one line that names field, value and remedy; the documented exit code; nothing attached.

use std::process::Command;

use integration::{
    agent::{Agent, binary, run_to_end},
    features,
    net::Pair,
    skip_unless,
};

fn refused(args: &[&str], code: i32, expected: &[&str]) {
    let pair = Pair::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (status, _, stderr) = run_to_end(&pair.a, args, dir.path()).unwrap();
    assert_eq!(status, Some(code), "{args:?}\n{stderr}");
    for part in expected {
        assert!(stderr.contains(part), "{args:?}: `{part}` not in\n{stderr}");
    }
    assert!(!stderr.contains("attached"), "{stderr}");
    if code != 64 {
        assert_eq!(stderr.lines().filter(|l| l.starts_with("flowlog: ")).count(), 1, "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "one line: {stderr}");
    }
}

#[test]
fn bad_input_is_refused_by_name_before_anything_is_attached() {
    let run = |more: &[&'static str]| [&["run", "-i", "eth0"][..], more].concat();
    refused(&["run", "-i", "eth7", "-t", "./f"], 78, &["interface `eth7`", "no such interface", "eth0, lo"]);
    refused(&run(&["-t", "/proc/version"]), 78, &["target `file:///proc/version`", "is not a directory"]);
    refused(&run(&["-t", "./f", "--prefix", "a/b"]), 64, &["prefix `a/b`", "may not contain `/`"]);
    refused(&run(&["-t", "./f", "--prefix", "a%2Fb"]), 64, &["prefix `a%2Fb`", "`%2F`"]);
    refused(&run(&["-t", "./f", "--window", "0"]), 64, &["window `0`", "at least 1 second"]);
    refused(&run(&["-t", "./f", "--name", "a/b"]), 64, &["name `a/b`"]);
    refused(
        &run(&["-t", "./f", "--hook", "x"]),
        64,
        &["invalid value 'x' for '--hook <HOOK>'", "tc, tcx, clsact, xdp"],
    );
    refused(&run(&["-t", "./f", "--ring-bytes", "8M"]), 64, &["means 1000s to some and 1024s to others", "`8M`"]);
    refused(&run(&["-t", "ftp://x"]), 64, &["target `ftp://x`", "s3://bucket"]);
    refused(&["run", "--config", "none.toml"], 78, &["config `none.toml`"]);
    refused(&run(&["-t", "s3://flows", "--s3-endpoint", "http://127.0.0.1:1"]), 78, &["plain http is off"]);
    refused(&["run", "-i", "eth0"], 64, &["--target"]);
    refused(&["run", "--window", "60"], 64, &["--config", "--interface"]);
    refused(&["run", "-i", "eth0", "-t", "./f", "--colour"], 64, &["--colour"]);
}

#[test]
fn a_missing_capability_is_named() {
    let pair = Pair::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    // The binary lies where only root may read; a copy does not.
    let copy = dir.path().join("flowlog");
    std::fs::copy(integration::agent::binary(), &copy).unwrap();
    let line = format!(
        "setpriv --reuid 65534 --regid 65534 --clear-groups {} run -i eth0 --no-pin --state-dir {d}/s -t {d}/f",
        copy.display(),
        d = dir.path().display()
    );
    let error = pair.a.exec(&line).unwrap_err().to_string();
    assert!(error.contains("run as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON"), "{error}");
}

#[test]
fn check_says_what_the_machine_can_do() {
    let pair = Pair::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (status, out, _) = run_to_end(&pair.a, &["check", "--interface", "eth0"], dir.path()).unwrap();
    assert_eq!(status, Some(0), "{out}");
    for what in [
        "flowlog's programs",
        "kernel symbols",
        "BTF",
        "tc attachment",
        "ring buffer",
        "xdp",
        "CAP_BPF",
        "memory",
        "interface eth0",
    ] {
        assert!(out.contains(what), "{what} not in\n{out}");
    }
    assert!(out.contains("are accepted"), "{out}");
    assert!(out.contains("xdp: native"), "veth has XDP of its own: {out}");
    let (_, out, _) = run_to_end(&pair.a, &["check", "--interface", "lo"], dir.path()).unwrap();
    let none = if features::xdp_features() { "xdp: generic" } else { "xdp: native if the driver has it" };
    assert!(out.contains(none), "the loopback has none: {out}");
    let (status, out, _) = run_to_end(&pair.a, &["check", "--interface", "eth9"], dir.path()).unwrap();
    assert_eq!(status, Some(1), "{out}");
    assert!(out.contains("MISSING interface eth9"), "{out}");
}

/// `check` in a namespace where a file of `/proc` reads as `text`.
fn check_with(pair: &Pair, file: &str, text: &str) -> (Option<i32>, String) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), text).unwrap();
    let fake = dir.path().join("file");
    let agent = binary();
    let script = format!("mount --bind {} {file} && exec {} check", fake.display(), agent.display());
    let command = ["netns", "exec", pair.a.name(), "unshare", "--mount", "sh", "-c", &script];
    let out = Command::new("ip").args(command).output().unwrap();
    (out.status.code(), String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr))
}

#[test]
fn hidden_kernel_symbols_are_said_in_words_by_check_and_at_the_start() {
    const SYMBOLS: &str = "/proc/kallsyms";
    let hidden: String = std::fs::read_to_string(SYMBOLS)
        .unwrap()
        .lines()
        .filter_map(|l| l.split_once(' '))
        .fold(String::new(), |all, (_, rest)| all + "0000000000000000 " + rest + "\n");
    let pair = Pair::new().unwrap();
    let (status, out) = check_with(&pair, SYMBOLS, &hidden);
    assert!(out.contains("limited kernel symbols") && out.contains("kptr_restrict"), "{out}");
    assert_eq!(status, Some(0), "it works without: {out}");

    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), &hidden).unwrap();
    let script = format!(
        "mount --bind {0}/file {SYMBOLS} && exec {1} run -i eth0 --no-pin --window 86400 --state-dir {0}/state -t {0}/objects",
        dir.path().display(),
        binary().display()
    );
    let mut command = Command::new("ip");
    command.args(["netns", "exec", pair.a.name(), "unshare", "--mount", "sh", "-c", &script]);
    let mut agent = Agent::attend(command, dir).unwrap();
    let line = agent.wait_for("generic XDP").unwrap();
    assert!(line.contains("WARN") && line.contains("kptr_restrict"), "{line}");
    agent.wait_for("capturing").unwrap();
    agent.end().unwrap();
}

#[test]
fn a_kernel_without_its_jit_compiler_is_named() {
    const JIT: &str = "/proc/sys/net/core/bpf_jit_enable";
    skip_unless!(features::guest() && std::path::Path::new(JIT).exists(), "it is the whole kernel's");
    let before = std::fs::read_to_string(JIT).unwrap();
    if std::fs::write(JIT, "0").is_err() {
        return features::skipped("this kernel cannot do without (CONFIG_BPF_JIT_ALWAYS_ON)");
    }
    let pair = Pair::new().unwrap();
    let mut agent = Agent::spawn(&pair.a, &["eth0"], &[]).unwrap();
    let status = agent.wait();
    let check = Command::new(binary()).arg("check").output();
    std::fs::write(JIT, before).unwrap();
    assert_ne!(status.unwrap(), Some(0));
    assert!(agent.log().contains("net.core.bpf_jit_enable"), "{}", agent.log());
    let check = check.unwrap();
    let out = String::from_utf8_lossy(&check.stdout).into_owned();
    assert!(!check.status.success() && out.contains("net.core.bpf_jit_enable"), "{out}");
}

#[test]
fn a_config_file_does_what_the_flags_do_and_unknown_keys_are_refused() {
    let pair = Pair::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("flowlog.toml");
    let text = format!(
        "node_id = 'n1'\nno_pin = true\nstate_dir = '{d}/state'\n[[flow_log]]\ninterfaces = ['eth0']\ntarget = '{d}/objects'\nprefix = 'p'\n\
         name = 'web'\nwindow = 60\nlayout = 'flat'\ninterface_id = 'nic-7'\n",
        d = dir.path().display()
    );
    std::fs::write(&config, &text).unwrap();
    let mut child = std::process::Command::new("ip")
        .args(["netns", "exec", pair.a.name()])
        .arg(integration::agent::binary())
        .args(["run", "--config"])
        .arg(&config)
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stderr.take().unwrap()));
    assert!(lines.by_ref().any(|l| l.unwrap().contains("capturing")));
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::INT).unwrap();
    lines.for_each(drop);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let objects = integration::rows::Objects::below(&dir.path().join("objects")).unwrap();
    assert_eq!(objects.keys.len(), 1, "{:?}", objects.keys);
    assert!(objects.keys[0].starts_with("p/web/nic-7_") && !objects.keys[0].contains("year="), "{:?}", objects.keys);

    std::fs::write(&config, format!("{text}speed = 'fast'\n")).unwrap();
    let args = ["run", "--config", config.to_str().unwrap()];
    let (status, _, stderr) = run_to_end(&pair.a, &args, dir.path()).unwrap();
    assert_eq!(status, Some(78));
    assert!(stderr.contains("unknown field `speed`"), "{stderr}");
}

#[test]
fn a_second_signal_says_what_it_abandons_and_the_next_start_delivers_it() {
    let pair = Pair::new().unwrap();
    let mut agent = Agent::start(&pair.a, &["eth0"], &[]).unwrap();
    agent.wait_for("the target takes objects").unwrap();
    // The target goes away while the agent runs.
    let objects = agent.objects();
    let aside = objects.with_extension("aside");
    std::fs::rename(&objects, &aside).unwrap();
    std::fs::write(&objects, "not a directory").unwrap();
    agent.signal(rustix::process::Signal::TERM);
    agent.wait_for("cannot deliver").unwrap();
    agent.signal(rustix::process::Signal::TERM);
    let line = agent.wait_for("second signal").unwrap();
    assert!(line.contains("1 objects in the spool"), "{line}");
    assert_eq!(agent.wait().unwrap(), Some(0));
    assert_eq!(std::fs::read_dir(agent.state().join("spool")).unwrap().count(), 1);

    std::fs::remove_file(&objects).unwrap();
    std::fs::rename(&aside, &objects).unwrap();
    let state = agent.state();
    let target = agent.objects();
    let args = ["--state-dir", state.to_str().unwrap(), "--target", target.to_str().unwrap()];
    let mut next = Agent::spawn(&pair.a, &["eth0"], &args).unwrap();
    next.wait_for("delivered").unwrap();
    assert_eq!(integration::rows::Objects::below(&target).unwrap().keys.len(), 1);
}
