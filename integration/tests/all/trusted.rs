//! Files that others than their owner may read or write are not relied on.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use integration::{
    agent::Agent,
    managed::{Managed, NIC},
    net::Pair,
};

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// The agent ends, and says of a file what its mode is and should be.
fn assert_refused(mut agent: Agent, path: &Path, mode: u32, remedy: &str) {
    let line = agent.wait_for(&format!("mode {mode:04o} lets others")).unwrap();
    assert!(line.contains(&format!("make it `{remedy} {}`", path.display())), "{line}");
    assert_eq!(agent.wait().unwrap(), Some(78));
    assert_eq!(agent.log().lines().count(), 1, "{}", agent.log());
}

#[test]
fn files_that_others_may_read_or_write_are_refused_at_the_start_with_mode_and_remedy() {
    let managed = Managed::new("").unwrap();
    managed.with_tls().unwrap();
    for (name, bad, remedy) in [
        ("flowlog.toml", 0o666, "chmod go-w"),
        ("inventory.toml", 0o646, "chmod go-w"),
        ("inventory.d", 0o777, "chmod go-w"),
        ("principals.toml", 0o664, "chmod go-w"),
        ("tls.key", 0o644, "chmod 600"),
        ("tls.key", 0o660, "chmod 600"),
    ] {
        let path = managed.path(name);
        let good = fs::metadata(&path).unwrap().permissions();
        chmod(&path, bad);
        assert_refused(managed.spawn(&[]).unwrap(), &path, bad, remedy);
        assert!(!managed.path("bpf/flowlog").exists(), "pins are left");
        fs::set_permissions(&path, good).unwrap();
    }
    managed.start().unwrap().end().unwrap();
}

#[test]
fn credentials_that_others_may_read_are_refused_at_the_start() {
    let pair = Pair::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let credentials = dir.path().join("credentials");
    fs::write(&credentials, "aws_access_key_id = K\naws_secret_access_key = S\n").unwrap();
    chmod(&credentials, 0o604);
    let args = ["--target", "s3://flows", "--s3-credentials", credentials.to_str().unwrap()];
    assert_refused(Agent::spawn(&pair.a, &["eth0"], &args).unwrap(), &credentials, 0o604, "chmod 600");
    // The same as systemd hands them over (`LoadCredential=s3:…`), where no file is named.
    let handed_over = dir.path().join("s3");
    fs::rename(&credentials, &handed_over).unwrap();
    let variables = [("CREDENTIALS_DIRECTORY", dir.path().to_str().unwrap())];
    let agent = Agent::spawn_env(&pair.a, &["eth0"], &["--target", "s3://flows"], &variables).unwrap();
    assert_refused(agent, &handed_over, 0o604, "chmod 600");
}

#[test]
fn what_others_may_write_is_not_read_again_and_what_it_said_before_holds() {
    let managed = Managed::new("no_pin = true").unwrap();
    let mut agent = managed.start().unwrap();
    let contract = || managed.ask_as("ann", "GET", "/flowlog/v1/inventory", None);
    assert_eq!(contract().status, 200);
    // Somebody may write, and has: nobody is to be known any more.
    let principals = managed.path("principals.toml");
    let inventory = managed.path("inventory.toml");
    let before = fs::read_to_string(&principals).unwrap();
    chmod(&principals, 0o666);
    fs::write(&principals, "").unwrap();
    let alarm = agent.wait_for("those from before still hold").unwrap();
    assert!(alarm.contains("ERROR") && alarm.contains("chmod go-w"), "{alarm}");
    assert_eq!(contract().status, 200);
    chmod(&inventory, 0o666);
    fs::write(&inventory, "").unwrap();
    let alarm = agent.wait_for("what it said before still holds").unwrap();
    assert!(alarm.contains("ERROR") && alarm.contains("chmod go-w"), "{alarm}");
    assert!(contract().body.to_string().contains(NIC));
    // Mended, they are read again.
    fs::write(&principals, before.replace("'ann'", "'anna'")).unwrap();
    chmod(&principals, 0o644);
    while contract().status == 200 {
        std::thread::yield_now();
    }
    assert_eq!(managed.ask_as("anna", "GET", "/flowlog/v1/inventory", None).status, 200);
}
