//! What is written about commands is what they take: every `cargo xtask …` in what people and CI copy from, and in what sources say
//! and print.

use std::fs;

use clap::{CommandFactory as _, Parser as _};

use crate::{
    Cli, Verb,
    util::{root, tracked},
};

const COMMAND: &str = "cargo xtask";
/// What CI runs.
const SCRIPT: &str = ".ci/run";
/// Its commands are made up.
const THIS: &str = "xtask/src/usage.rs";

/// The pieces of a file that may be commands; none of a file of another kind.
fn pieces(file: &str, text: &str) -> Vec<String> {
    match file.rsplit_once('.').map(|(_, ending)| ending) {
        _ if file == THIS => Vec::new(),
        _ if file == SCRIPT => lines(text),
        Some("md") => code(text),
        Some("rs" | "toml" | "txt") => quoted(text),
        _ => Vec::new(),
    }
}

/// All of a script.
fn lines(script: &str) -> Vec<String> {
    script.lines().map(ToOwned::to_owned).collect()
}

/// What is code in a Markdown text: each line of a fenced block, each span between backticks (which may go on in the next
/// line).
fn code(markdown: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (n, part) in markdown.split("```").enumerate() {
        if n % 2 == 1 {
            found.extend(lines(part));
        } else {
            found.extend(part.split('`').skip(1).step_by(2).map(ToOwned::to_owned));
        }
    }
    found
}

/// What stands between backticks or quotes around each command of a source, in comments (where it may go on in the next line) and
/// literals.
fn quoted(source: &str) -> Vec<String> {
    let mark = |line: &str| line.trim_start().trim_start_matches(['/', '!', '#']).to_owned();
    let text = source.lines().map(mark).collect::<Vec<_>>().join("\n");
    let around = |(at, _): (usize, &str)| {
        let open = text[..at].rfind(['`', '"'])?;
        let close = at + text[at..].find(char::from(text.as_bytes()[open]))?;
        let inside = &text[open + 1..close];
        // Behind a mark that closes there is a space, or a bracket.
        inside.starts_with(|c: char| !c.is_whitespace()).then(|| inside.to_owned())
    };
    text.match_indices(COMMAND).filter_map(around).collect()
}

/// The words after `cargo xtask` in a piece of code, without a comment behind them. A placeholder for a value stands for a
/// number; nothing is left of one in brackets.
fn words(code: &str) -> Option<Vec<String>> {
    let (before, command) = code.split_once(COMMAND)?;
    // A prompt or variables may stand before it; a line that only speaks of it has other words there.
    let is_command = before.split_whitespace().all(|w| matches!(w, "#" | "$" | "sudo" | "-E") || w.contains('='));
    if !is_command {
        return None;
    }
    let words = command.split_whitespace().take_while(|w| !w.starts_with('#'));
    let placeholder = |w: &str| w.starts_with('{') || w.chars().all(|c| c.is_ascii_uppercase() || c == '_' || c == '.');
    Some(
        words
            .filter(|w| !w.starts_with('[') && !w.ends_with(']') && *w != "…")
            .map(|w| if placeholder(w) { "1".to_owned() } else { w.to_owned() })
            .collect(),
    )
}

/// The commands among pieces of code, but for those whose verb is a placeholder.
fn commands(code: &[String]) -> Vec<Vec<String>> {
    code.iter().filter_map(|c| words(c)).filter(|w| w.first().is_some_and(|verb| verb != "1")).collect()
}

#[test]
fn the_commands_are_put_together_rightly() {
    Cli::command().debug_assert();
}

/// Commands of a file that are none, and how many it has.
fn refused(file: &str, text: &str) -> (Vec<String>, usize) {
    let commands = commands(&pieces(file, text));
    let parse =
        |words: &Vec<String>| Cli::try_parse_from(["xtask"].into_iter().chain(words.iter().map(String::as_str)));
    let refused = commands.iter().filter_map(|words| {
        let error = parse(words).err()?;
        Some(format!("{file}: {COMMAND} {}: {error}", words.join(" ")))
    });
    (refused.collect(), commands.len())
}

#[test]
fn every_command_that_is_written_down_is_one() {
    let mut wrong = Vec::new();
    for file in tracked().expect("the repository's files") {
        // Some are objects.
        let Ok(text) = fs::read_to_string(root().join(&file)) else { continue };
        let (refused, commands) = refused(&file, &text);
        wrong.extend(refused);
        if ["CONTRIBUTING.md", "docs/performance.md", SCRIPT].contains(&file.as_str()) {
            assert!(commands >= 4, "{file} has lost its commands");
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_command_that_is_none_is_found_wherever_it_stands() {
    let wrong = |file, text| refused(file, text).0.len();
    assert_eq!(wrong("a.rs", "/// See `cargo xtask\n/// checks` and `cargo xtask check`.\n"), 1);
    assert_eq!(
        wrong("a.rs", "bail!(\"run `cargo xtask fuzz` now\");\nprintln!(\"sudo -E cargo xtask vm --every\");"),
        2
    );
    assert_eq!(
        wrong("a.rs", "format!(\"cargo xtask {verb}\"); format!(\"cargo xtask fuzz verdicts --seed {}\", 1);"),
        0
    );
    assert_eq!(wrong("a.toml", "# By `cargo xtask benches`.\n"), 1);
    assert_eq!(wrong("a.md", "`cargo xtask demo now`\n```\n# cargo xtask vm --test\n```\n"), 2);
    assert_eq!(wrong("a.bin", "`cargo xtask demo now`"), 0);
}

#[test]
fn commands_are_found_in_spans_and_blocks_and_nowhere_else() {
    let text = "cargo xtask prose `cargo xtask fuzz verdicts\n--minutes N` `cargo xtask VERB`\n```console\n\
                # X=1 cargo xtask test NAME [MORE...] # words\nrun cargo xtask other\n```\n`cargo xtask check`";
    let found: Vec<String> = commands(&code(text)).iter().map(|w| w.join(" ")).collect();
    assert_eq!(found, ["fuzz verdicts --minutes 1", "test 1", "check"]);
}

fn parse(words: &str) -> Result<Verb, clap::Error> {
    let cli = Cli::try_parse_from(["xtask"].into_iter().chain(words.split_whitespace()))?;
    Ok(cli.verb.expect("a verb"))
}

#[test]
fn everything_behind_bench_is_the_suites() {
    for words in ["bench --quick packet --only kinds", "bench --help", "bench packet -h", "bench"] {
        let Ok(Verb::Bench(args)) = parse(words) else { panic!("{words}") };
        let passed: Vec<&str> = args.suite.iter().filter_map(|a| a.to_str()).collect();
        assert_eq!(passed.join(" "), words.trim_start_matches("bench").trim_start());
    }
}

#[test]
fn options_of_the_test_runner_pass_and_help_is_ours() {
    let Ok(Verb::Test(args)) = parse("test random --nocapture --skip x") else { panic!("refused") };
    assert_eq!(args.filter, ["random", "--nocapture", "--skip", "x"]);
    let Ok(Verb::Test(args)) = parse("test --nocapture") else { panic!("refused") };
    assert_eq!(args.filter, ["--nocapture"]);
    assert_eq!(parse("test --help").err().map(|e| e.kind()), Some(clap::error::ErrorKind::DisplayHelp));
}

#[test]
fn unknown_options_and_machines_are_refused() {
    for words in ["vm --every", "vm --arch riscv64", "vm --test", "fuzz", "fuzz verdicts --seed x", "demo now", "tests"]
    {
        assert!(parse(words).is_err(), "{words}");
    }
}
