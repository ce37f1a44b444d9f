//! Exit codes, for every command: a script can tell what is wrong without reading words.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, process::Output};

use integration::{
    agent::binary,
    managed::{Managed, NAT, NIC, OTHERS_NIC},
};

/// Exit code, arguments, and words that must be on standard error.
type Line<'a> = (i32, &'a [&'a str], &'a str);

/// Whether an exit is as expected, and said on one line.
fn check((code, args, words): Line<'_>, out: &Output) {
    let stdout = String::from_utf8_lossy(&out.stdout);
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(code), "{args:?}: {stdout}{stderr}");
    assert!(stderr.contains(words), "{args:?}: {stderr}");
    // Usage takes more lines, and a light that is not green is no error.
    let said = stderr.lines().filter(|l| l.starts_with("flowlog: ")).count();
    assert!([0, 1, 3, 64].contains(&code) || said == 1, "{args:?}: {stderr}");
    for cause in ["No such file", "Permission denied", "Connection refused", "not permitted"] {
        assert!(stderr.matches(cause).count() <= 1, "{args:?}: said twice: {stderr}");
    }
}

/// Runs a command of the agent, on a node or beside it, as a user of the machine or as root.
fn run(managed: &Managed, user: Option<u32>, program: &Path, args: &[&str]) -> Output {
    let mut command = match user {
        Some(id) => {
            let id = id.to_string();
            let mut command = managed.node.command(Path::new("setpriv"));
            command.args(["--reuid", &id, "--regid", &id, "--clear-groups"]).arg(program);
            command
        }
        None => managed.node.command(program),
    };
    command.args(args).env("FLOWLOG_SOCKET", managed.path("agent.sock")).stdin(std::process::Stdio::null());
    command.output().unwrap()
}

#[test]
fn exit_codes_are_those_of_the_readme() {
    let managed = Managed::new("").unwrap();
    let agent = managed.start().unwrap();
    let id = managed.draft(NIC, "web", "flows");
    let _ = (managed.draft(NAT, "twice", "flows"), managed.draft(NAT, "twice", "flows"));
    let others = managed.draft(OTHERS_NIC, "other", "none");
    let text = |name: &str| managed.path(name).display().to_string();
    let state = text("state");
    let none = text("none");
    let long = "n".repeat(2_000);
    fs::write(managed.path("odd.parquet"), "no parquet").unwrap();
    fs::write(managed.path("odd.toml"), "window = 7\n").unwrap();
    let odd = text("odd.parquet");
    let flipped = text("flipped.parquet");
    let mut bytes = fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("objects/v3-plain.parquet")).unwrap();
    bytes[4..400].iter_mut().for_each(|byte| *byte ^= 0xff);
    fs::write(&flipped, bytes).unwrap();
    let (pipe, words) = (text("pipe.parquet"), text("words.log.gz"));
    managed.node.exec(&format!("mkfifo {pipe}")).unwrap();
    fs::write(&words, "").unwrap();
    let made = text("made");
    let wrong = text("odd.toml");
    let config = text("flowlog.toml");
    let table: &[Line<'_>] = &[
        (0, &["rule", "list"], ""),
        (0, &["rule", "show", "web"], ""),
        (0, &["inventory", "list"], ""),
        (0, &["completions", "zsh"], ""),
        (0, &["credential", "token"], ""),
        (0, &["--help"], ""),
        (0, &["stop", "--state-dir", &none], ""),
        (1, &["rule", "validate", "other"], ""),
        (1, &["check", "--interface", "no-such-if"], ""),
        (64, &["rule", "--nonsense"], "--nonsense"),
        (64, &["run"], "--interface"),
        (64, &["read"], "PATHS"),
        (64, &["completions", "tcl"], "tcl"),
        (65, &["rule", "rename", "web", &long], "must be at most"),
        (65, &["rule", "add", "--resource", NIC, "--name", &long, "--bucket", "flows"], "must be at most"),
        (65, &["rule", "show", "twice"], "2 flow logs have the name"),
        (65, &["rule", "provision"], "name one with `--contract`"),
        (65, &["rule", "provision", &others], "not provisioned"),
        (65, &["credential", "password"], "at least 12 bytes"),
        (65, &["read", &odd], "cannot read"),
        (65, &["read", &flipped], "cannot read"),
        (65, &["read", &pipe], "is a pipe, and no object"),
        (65, &["read", "/dev/null"], "is a device, and no object"),
        (65, &["read", &words], "is a text object: `zcat` shows it"),
        (64, &["read", "s3://"], "s3://"),
        (64, &["read", "s3:flows"], "s3:flows"),
        (64, &["read", "--where", "dstport = 22 and", &odd], "there is no condition"),
        (64, &["sql", "duckdb", "--target", "./x", "--table", "select"], "is a word of SQL"),
        (64, &["sql", "duckdb", "--target", "s3://"], "s3://"),
        (64, &["run", "--interface", "lo", "--target", "s3://"], "s3://"),
        (64, &["run", "--interface", "lo", "--target", &none, "--window", "7s"], "window `7s`"),
        (64, &["run", "--interface", "lo", "--target", &none, "--direction", "both"], "both"),
        (64, &["check", "--interface", "lo", "--target", &none, "--window", "7s"], "window `7s`"),
        (78, &["read", "--s3-endpoint", "http://127.0.0.1:1", "s3://flows"], "plain http is off"),
        (
            78,
            &[
                "run",
                "--interface",
                "lo",
                "--target",
                "s3://flows",
                "--s3-endpoint",
                "http://127.0.0.1:1",
                "--state-dir",
                &made,
                "--no-pin",
            ],
            "plain http is off",
        ),
        (
            78,
            &["run", "--interface", "lo", "--target", "/proc/x", "--state-dir", &made, "--no-pin"],
            "directory `/proc/x` cannot be used",
        ),
        (66, &["rule", "show", "nobody"], "no flow log has the name"),
        (66, &["rule", "show", OTHERS_NIC], "does not exist"),
        (66, &["status", "--state-dir", &none], "no agent has run"),
        (66, &["read", &none], "cannot read"),
        (69, &["rule", "list", "--socket", &none], "cannot reach the agent"),
        (69, &["inventory", "list", "--socket", &none], "cannot reach the agent"),
        (78, &["run", "--config", &none], "config `"),
        (78, &["run", "--config", &wrong], "unknown field `window`"),
        (75, &["run", "--config", &config], "in use by process"),
        (78, &["run", "--interface", "no-such-if", "--target", &none, "--state-dir", &none, "--no-pin"], "no-such-if"),
        (78, &["detach", "--config", &wrong], "unknown field `window`"),
    ];
    for line in table {
        check(*line, &run(&managed, None, &binary(), line.1));
    }
    what_others_of_the_machine_are_told(&managed, &id);
    assert_eq!(managed.command(&["status", "--state-dir", &state]).unwrap().0, Some(0));
    drop(agent);
    while managed.command(&["status", "--state-dir", &state]).unwrap().0 == Some(0) {
        std::thread::yield_now();
    }
    assert_eq!(managed.command(&["status", "--state-dir", &state]).unwrap().0, Some(3));
}

/// A user whom nobody knows, and one who may not, while an agent of root runs.
fn what_others_of_the_machine_are_told(managed: &Managed, id: &str) {
    const NOBODY: u32 = 65_534;
    const EVE: u32 = 60_003;
    let copy = managed.path("flowlog");
    let theirs = managed.path("theirs");
    fs::copy(binary(), &copy).unwrap();
    fs::create_dir(&theirs).unwrap();
    std::os::unix::fs::chown(&theirs, Some(NOBODY), Some(NOBODY)).unwrap();
    fs::set_permissions(managed.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    for private in ["private.toml", "private/none"] {
        fs::create_dir_all(managed.path(private).parent().unwrap()).unwrap();
        fs::write(managed.path(private), "").unwrap();
    }
    fs::set_permissions(managed.path("private.toml"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(managed.path("private"), fs::Permissions::from_mode(0o700)).unwrap();
    let text = |name: &str| managed.path(name).display().to_string();
    let state = text("state");
    let config = text("private.toml");
    let inside = text("private/none");
    let theirs = text("theirs");
    let socket = text("private/agent.sock");
    let fresh = text("fresh");
    let of_theirs = ["run", "--interface", "tap0", "--no-pin", "--target", &theirs, "--state-dir"];
    let own = [&of_theirs[..], &[theirs.as_str()]].concat();
    let roots = [&of_theirs[..], &[fresh.as_str()]].concat();
    let table: &[(u32, Line<'_>)] = &[
        (NOBODY, (77, &["rule", "list"], "Unauthorized")),
        (NOBODY, (77, &["inventory", "list"], "Unauthorized")),
        (EVE, (77, &["rule", "delete", id], "create flow logs")),
        (EVE, (77, &["rule", "audit"], "owners and administrators")),
        (NOBODY, (77, &["rule", "list", "--socket", &socket], "cannot reach the agent")),
        (NOBODY, (77, &["stop", "--state-dir", &state], "cannot signal the agent")),
        (NOBODY, (77, &["stop", "--state-dir", &inside], "cannot look at")),
        (NOBODY, (77, &["status", "--state-dir", &state], "status.json")),
        (NOBODY, (77, &["detach", "--state-dir", &state], "cannot")),
        (NOBODY, (77, &["read", &inside], "cannot read")),
        (NOBODY, (77, &["run", "--config", &config], "config `")),
        (NOBODY, (77, &["detach", "--config", &config], "config `")),
        (NOBODY, (77, &roots, "state directory")),
        (NOBODY, (77, &own, "run as root")),
        (NOBODY, (1, &["check"], "")),
    ];
    for (user, line) in table {
        check(*line, &run(managed, Some(*user), &copy, line.1));
    }
}
