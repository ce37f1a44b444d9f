//! Commands in the documents are understood by the command line.

use std::{fs, path::Path};

use clap::CommandFactory as _;
use flowlog_model::live::FlowEvent;

use super::{Cli, tests::words};

/// What prompts and paths may be in front of a command.
const FRONT: [&str; 4] = ["# ", "$ ", "sudo ", "target/release/"];

/// Command lines of `flowlog` in blocks of code, each with the number of its first line. A line that ends with `\\` goes on.
fn commands(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut is_code = false;
    let mut begun = None::<(usize, String)>;
    for (number, line) in (1..).zip(text.lines()) {
        if line.trim_start().starts_with("```") {
            is_code = !is_code;
            continue;
        }
        let (whole, goes_on) = match line.strip_suffix('\\') {
            Some(part) => (part.trim_end(), true),
            None => (line, false),
        };
        let (first, joined) = match begun.take() {
            Some((first, before)) => (first, format!("{before} {}", whole.trim_start_matches("# ").trim())),
            None if is_code => {
                let mut rest = whole.trim_start();
                while let Some(behind) = FRONT.iter().find_map(|front| rest.strip_prefix(front)) {
                    rest = behind.trim_start();
                }
                if !rest.starts_with("flowlog ") && !rest.contains("<(flowlog ") {
                    continue;
                }
                (number, rest.to_owned())
            }
            None => continue,
        };
        if goes_on {
            begun = Some((first, joined));
        } else {
            found.push((first, joined.split("  #").next().unwrap_or_default().trim_end().to_owned()));
        }
    }
    found
}

#[test]
fn every_command_in_the_documents_is_understood() {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let docs = fs::read_dir(root.join("docs")).expect("docs").map(|entry| entry.expect("an entry").path());
    let documents = docs.chain([root.join("README.md")]).filter(|path| path.extension().is_some_and(|e| e == "md"));
    let mut seen = 0;
    for document in documents {
        let text = fs::read_to_string(&document).expect("a document");
        for (line, command) in commands(&text) {
            // Ids are cut short in documents.
            let whole = command.replace("5c1b7c1e-…", "5c1b7c1e-0000-4000-8000-000000000001");
            let parsed = Cli::command().try_get_matches_from(words(&whole));
            parsed.unwrap_or_else(|error| panic!("{}:{line}: `{command}`: {error}", document.display()));
            seen += 1;
        }
    }
    assert!(seen > 20, "{seen}: they are looked for in the wrong places");
}

#[test]
fn every_line_of_a_stream_in_the_documents_is_one() {
    let document = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/live.md");
    let text = fs::read_to_string(document).expect("the document");
    let lines = text.split("```json\n").skip(1).flat_map(|rest| rest.split("```").next().unwrap_or_default().lines());
    let parsed: Vec<FlowEvent> =
        lines.map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"))).collect();
    assert!(
        matches!(parsed.as_slice(), [FlowEvent::Windows { .. }, FlowEvent::Flow(_), FlowEvent::Lost { .. }]),
        "{parsed:?}"
    );
}

#[test]
fn a_command_is_found_with_its_prompt_its_comment_and_what_follows_on_the_next_line() {
    let text = "flowlog no\n```console\n# target/release/flowlog run -i a \\\n      --target ./x   # words\nelse\n$ flowlog stop\n```\n";
    assert_eq!(commands(text), [(3, "flowlog run -i a --target ./x".to_owned()), (6, "flowlog stop".to_owned())]);
}
