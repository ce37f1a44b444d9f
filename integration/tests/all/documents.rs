//! Every command of the documents does what they say it is for: it is run here, in a place that is prepared for it, or by the test that is named
//! beside it. A command that is in neither part fails this.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use integration::agent::binary;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A command of a document, with the line that it is on.
#[derive(Debug)]
struct Said {
    file: String,
    line: usize,
    command: String,
}

/// What is behind a prompt in blocks of the kind `console`, without the words about it. A line that ends with `\` goes on.
fn commands(file: &str, text: &str) -> Vec<Said> {
    let mut all: Vec<Said> = Vec::new();
    let (mut is_console, mut goes_on) = (false, false);
    for (line, words) in (1..).zip(text.lines()) {
        if words.trim_start().starts_with("```") {
            is_console = !is_console && words.trim() == "```console";
            continue;
        }
        let behind = words.strip_prefix("# ").or_else(|| words.strip_prefix("$ "));
        let Some(words) = behind.or_else(|| goes_on.then(|| words.trim_start())).filter(|_| is_console) else {
            continue;
        };
        let (words, more) = words.strip_suffix('\\').map_or((words, false), |words| (words, true));
        // Two spaces or more are in front of what is said of it.
        let words = words.split("  #").next().unwrap_or_default().trim_end();
        match all.last_mut().filter(|_| goes_on) {
            Some(said) => said.command.extend([" ", words]),
            None => all.push(Said { file: file.to_owned(), line, command: words.to_owned() }),
        }
        goes_on = more;
    }
    all
}

fn documents() -> Vec<(String, String)> {
    let markdown = |dir: &str| {
        let files = fs::read_dir(root().join(dir)).unwrap().map(|entry| entry.unwrap().path());
        files.filter(|file| file.extension().is_some_and(|e| e == "md")).collect::<Vec<_>>()
    };
    let mut files = [markdown("."), markdown("docs"), markdown("docs/examples/ansible")].concat();
    files.sort();
    let named = |file: PathBuf| {
        let name = file.strip_prefix(root()).unwrap().display().to_string();
        (name, fs::read_to_string(file).unwrap())
    };
    files.into_iter().map(named).collect()
}

/// Commands that are not run here: the document, how they begin, and what runs them: a test, or a step of a verb.
const ELSEWHERE: &[(&str, &str, &str)] = &[
    ("docs/first-flow-log.md", "", "the_first_flow_log_of_the_documents_is_there_as_they_say"),
    // Verbs of this repository, which CI runs; that each is one, with these flags, is a test of its own.
    ("", "cargo xtask ", "every_command_that_is_written_down_is_one"),
    ("README.md", "cargo build --release", "ensure_fresh"),
    ("CONTRIBUTING.md", "rustup toolchain install", ".ci/run"),
    // In a Debian that boots: `cargo xtask package test`.
    ("docs/examples/ansible/README.md", "ansible-playbook ", "role"),
    ("docs/operating.md", "dpkg --install flowlog_", "install"),
    ("docs/operating.md", "editor /etc/flowlog/flowlog.toml", "install"),
    ("docs/operating.md", "flowlog check --config /etc/flowlog/flowlog.toml", "install"),
    ("docs/operating.md", "systemctl ", "install"),
    (
        "docs/fleet.md",
        "FLOWLOG_SOCKET=/run/flowlog/",
        "a_node_moves_into_a_region_and_back_by_restarts_and_every_packet_is_counted_once",
    ),
    ("docs/iceberg.md", "dpkg --install flowlog-catalog_", "ensure_complete"),
    ("docs/iceberg.md", "editor /etc/flowlog-catalog/catalog.toml", "ensure_complete"),
    ("docs/iceberg.md", "systemctl ", "ensure_complete"),
    // With buckets, engines, switches and hypervisors.
    ("docs/command-line.md", "flowlog read -o csv --since 2026-11-27", "a_bucket_is_read_as_a_directory_is"),
    ("docs/queries.md", "flowlog sql duckdb ", "every_query_of_the_documents_is_what_is_printed"),
    (
        "docs/inventory.md",
        "flowlog inventory import libvirt ",
        "nics_of_a_guest_are_captured_from_its_start_to_its_stop_and_those_that_are_plugged_in_meanwhile",
    ),
    (
        "docs/inventory.md",
        "flowlog inventory import ovsdb ",
        "an_import_asks_the_database_without_an_agent_and_says_when_there_is_none",
    ),
    ("docs/iceberg.md", "flowlog-catalog --once", "engines_say_the_same_of_a_table_as_of_its_objects"),
    (
        "docs/iceberg.md",
        "cargo build --locked --package flowlog-catalog",
        "engines_say_the_same_of_a_table_as_of_its_objects",
    ),
    // A measurement, by hand.
    ("docs/iceberg.md", "python3 integration/engines/many.py", "integration/engines/many.py"),
    ("docs/iceberg.md", "/usr/bin/time -v target/release/flowlog-catalog", "integration/engines/many.py"),
    // With an API and somebody who sends.
    ("docs/live.md", "flowlog observe", "conditions_choose_flows_and_not_turns_the_next_one_round"),
    ("docs/live.md", "flowlog top", "top_shows_the_largest_of_each_kind_once_and_in_each_stretch_of_time"),
];

/// How a command that is run here ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ends {
    /// By itself, with the code 0.
    Well,
    /// When somebody ends it: it shows something again and again.
    Never,
    /// It captures: when it does, it is ended.
    Captures,
}

/// Commands that are run here, by how they begin; all others of `flowlog` that the documents have must be in the list above.
const HERE: &[(&str, &str, Ends)] = &[
    ("README.md", "target/release/flowlog run ", Ends::Captures),
    ("README.md", "target/release/flowlog status --watch", Ends::Never),
    ("README.md", "target/release/flowlog read ./flows", Ends::Well),
    ("docs/appliances.md", "flowlog run --interface out0 ", Ends::Captures),
    ("docs/command-line.md", "flowlog status --watch", Ends::Never),
    ("docs/command-line.md", "flowlog status", Ends::Well),
    ("docs/command-line.md", "flowlog read ", Ends::Well),
    ("docs/command-line.md", "source <(flowlog completions bash)", Ends::Well),
    ("docs/inventory.md", "flowlog inventory import names ", Ends::Well),
    ("docs/queries.md", "flowlog sql ", Ends::Well),
    ("docs/trace.md", "flowlog trace -i tap0 ", Ends::Well),
];

/// Where the commands are run: nothing of the machine's own is there to be changed, and everything that the documents name is.
const PLACE: &str = r#"set -u
mount --make-rprivate /
for dir in /var/lib /run /etc/flowlog; do [ -d $dir ] && mount -t tmpfs tmpfs $dir; done
mount -t bpf bpf /sys/fs/bpf
mkdir -p /var/lib /run/netns target/release
ip link set lo up
ip link add eth0 type veth peer name tap0; ip link set eth0 up; ip link set tap0 up
ip netns add natgw1; ip -n natgw1 link add out0 type veth peer name in0; ip -n natgw1 link set out0 up
ln -s $(command -v flowlog) target/release/flowlog
captures() {
    ( eval "exec $1" ) 2> captures.log & pid=$!
    for i in $(seq 600); do grep -q capturing captures.log && break; kill -0 $pid 2> /dev/null || break; sleep 0.1; done
    grep -q capturing captures.log || { cat captures.log; return 1; }
    flowlog detach > /dev/null; wait $pid
}
never() { timeout --signal INT 2 bash -c "$1"; [ $? -ne 1 ]; }
begin() { flowlog run --interface eth0 --target ./landed --no-pin 2> agent.log & for i in $(seq 600); do grep -q capturing agent.log && break; sleep 0.1; done; }
"#;

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[test]
fn every_command_of_the_documents_is_run_here_or_by_the_test_that_is_named_beside_it() {
    let all: Vec<Said> = documents().iter().flat_map(|(file, text)| commands(file, text)).collect();
    assert!(all.len() > 100, "{} commands", all.len());
    let sources = sources();
    let (mut here, mut elsewhere) = (Vec::new(), vec![0; ELSEWHERE.len()]);
    for said in &all {
        let fits =
            |file: &str, begins: &str| (file.is_empty() || said.file == file) && said.command.starts_with(begins);
        if let Some(at) = ELSEWHERE.iter().position(|(file, begins, _)| fits(file, begins)) {
            elsewhere[at] += 1;
        } else if let Some((.., ends)) = HERE.iter().find(|(file, begins, _)| fits(file, begins)) {
            here.push((said, *ends));
        } else {
            panic!("{}:{}: nothing runs `{}`: say here what does", said.file, said.line, said.command);
        }
    }
    for ((file, begins, by), uses) in ELSEWHERE.iter().zip(elsewhere) {
        assert!(uses > 0, "{file} has no `{begins}…` any more");
        let is_there = if by.contains('/') { root().join(by).exists() } else { sources.contains(&format!("fn {by}(")) };
        assert!(is_there, "{file}: `{begins}…` is run by `{by}`, which is not there");
    }
    for (file, begins, _) in HERE {
        assert!(
            here.iter().any(|(s, _)| s.file == *file && s.command.starts_with(begins)),
            "{file} has no `{begins}…`"
        );
    }
    run(&here);
}

/// Runs commands one after the other, as a shell has them.
fn run(here: &[(&Said, Ends)]) {
    let dir = tempfile::tempdir().unwrap();
    let sample = root().join("integration/objects/sample").canonicalize().unwrap();
    std::os::unix::fs::symlink(sample, dir.path().join("flows")).unwrap();
    let step = |(said, ends): &(&Said, Ends)| {
        let command = match ends {
            Ends::Well => said.command.clone(),
            Ends::Never => format!("never {}", quoted(&said.command)),
            Ends::Captures => format!("captures {}", quoted(&said.command.replace("./flows", "./landed"))),
        };
        let named = quoted(&format!("{}:{}: {}", said.file, said.line, said.command));
        format!("( {command} ) > out 2>&1 || {{ echo FAILED {named}; cat out; }}\necho DONE {named}\n")
    };
    // While captures come and go there is no other agent.
    let of = |captures: bool| here.iter().filter(move |(_, e)| (*e == Ends::Captures) == captures).map(step);
    let mut script = PLACE.to_owned();
    script.extend(of(true));
    script += "begin\n";
    script.extend(of(false));
    script += "flowlog stop\n";
    let path = format!("{}:{}", binary().parent().unwrap().display(), std::env::var("PATH").unwrap());
    let mut command = Command::new("unshare");
    command.args(["--net", "--mount", "bash", "-c", &script]).current_dir(&dir).env("PATH", path);
    let out = command.output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert_eq!(said.matches("DONE ").count(), here.len(), "{said}");
    assert!(!said.contains("FAILED ") && out.status.success(), "{said}");
}

/// All sources with tests, and those of the verbs.
fn sources() -> String {
    fn below(dir: &Path, all: &mut String) {
        for entry in fs::read_dir(dir).unwrap().flatten().map(|entry| entry.path()) {
            if entry.is_dir() {
                below(&entry, all);
            } else if entry.extension().is_some_and(|e| e == "rs") {
                *all += &fs::read_to_string(&entry).unwrap();
            }
        }
    }
    let mut all = String::new();
    for dir in ["integration/tests", "xtask/src", "flowlog-agent/src"] {
        below(&root().join(dir), &mut all);
    }
    all
}

#[test]
fn a_command_is_what_is_behind_a_prompt_up_to_the_words_about_it() {
    let text = "# no\n```console\n# a b   # words\n$ c \\\n    d\nprinted\n```\n```toml\n# no\n```\n";
    let all: Vec<_> = commands("x", text).into_iter().map(|said| (said.line, said.command)).collect();
    assert_eq!(all, [(3, "a b".to_owned()), (4, "c d".to_owned())]);
}
