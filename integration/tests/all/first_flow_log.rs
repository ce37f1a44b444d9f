//! The way of somebody new: docs/first-flow-log.md, line by line, as a shell has it. What it prints is what the document says.

use std::{fs, path::Path, process::Command};

use integration::agent::binary;

/// Commands, and what they print; an empty part is not compared.
struct Step {
    line: usize,
    commands: String,
    printed: Vec<String>,
}

/// The blocks of a document: each `console` with the `text` behind it.
fn steps(document: &str) -> Vec<Step> {
    let mut all: Vec<Step> = Vec::new();
    let mut block = None;
    for (number, line) in (1..).zip(document.lines()) {
        match (block, line) {
            (None, "```console") => {
                all.push(Step { line: number, commands: String::new(), printed: Vec::new() });
                block = Some("console");
            }
            (None, "```text") => block = Some("text"),
            (None, other) => assert!(!other.starts_with("```"), "line {number}: neither commands nor what they print"),
            (Some(_), "```") => block = None,
            (Some("console"), command) => {
                let command = command.strip_prefix("# ").unwrap_or_else(|| panic!("line {number}: no prompt"));
                // People wait for the log; here it is looked at again and again.
                let waits = "for i in $(seq 600); do grep -q capturing agent.log && break; sleep 0.1; done\n";
                let step = all.last_mut().unwrap();
                if command.starts_with("sleep 2") {
                    step.commands += waits;
                } else {
                    step.commands.extend([command, "\n"]);
                }
            }
            (Some(_), printed) => all.last_mut().unwrap().printed.push(printed.to_owned()),
        }
    }
    all
}

/// Whether a line has these words in this order; `…` is anything, also within a word.
fn has(line: &str, words: &str) -> bool {
    let mut rest = line;
    words.split_whitespace().flat_map(|word| word.split('…')).filter(|part| !part.is_empty()).all(|part| {
        let found = rest.find(part).map(|at| &rest[at + part.len()..]);
        rest = found.unwrap_or(rest);
        found.is_some()
    })
}

#[test]
fn the_first_flow_log_of_the_documents_is_there_as_they_say() {
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/first-flow-log.md");
    let steps = steps(&fs::read_to_string(document).unwrap());
    assert!(steps.len() >= 8, "{} blocks", steps.len());
    // In namespaces of its own: the names that it gives away may be somebody else's outside.
    let mut script =
        "set -m; mount --make-rprivate /; mkdir -p /run/netns; mount -t tmpfs tmpfs /run/netns; ip link set lo up\n"
            .to_owned();
    for step in &steps {
        script.extend(["echo @@", &step.line.to_string(), "\n", &step.commands]);
    }
    let dir = tempfile::tempdir().unwrap();
    let path = format!("{}:{}", binary().parent().unwrap().display(), std::env::var("PATH").unwrap());
    let mut command = Command::new("unshare");
    command.args(["--net", "--mount", "bash", "-c", &script]).current_dir(&dir).env("PATH", path);
    let out = command.output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout);
    let said = format!("{text}\n{}", String::from_utf8_lossy(&out.stderr));
    for Step { line, printed, .. } in &steps {
        let (_, after) = text.split_once(&format!("@@{line}\n")).unwrap_or_else(|| panic!("line {line}:\n{said}"));
        let lines: Vec<&str> = after.split("@@").next().unwrap().lines().collect();
        for words in printed {
            assert!(lines.iter().any(|line| has(line, words)), "behind line {line} there is no `{words}`:\n{said}");
        }
    }
    assert!(out.status.success(), "{said}");
    let left: Vec<_> = fs::read_dir(&dir).unwrap().flatten().map(|e| e.file_name()).collect();
    assert!(left.is_empty(), "all of it is away again: {left:?}");
}

#[test]
fn a_line_has_its_words_in_their_order() {
    assert!(has("  20:01:02 OK tcp 10.0.0.1:4711 > x", "OK tcp 10.0.0.1:… > x"));
    assert!(!has("a b", "b a") && !has("a", "a b"));
}
