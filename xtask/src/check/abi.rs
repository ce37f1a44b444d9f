//! The kernel/user ABI does not change behind its version: `flowlog-ebpf/abi.lock` has the version and a hash of what it
//! stands for. Comments and layout of the text are left out of the hash, since they move nothing in a map.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, bail, ensure};
use sha2::{Digest as _, Sha256};

use crate::util::{files_below, root, step};

/// Everything in it crosses the boundary.
const SOURCES: &str = "flowlog-ebpf/src/abi";
const LOCK: &str = "flowlog-ebpf/abi.lock";
const VERSION: &str = "ABI_VERSION";
const RECORD: &str = "`cargo xtask check --record-abi`";

#[derive(Debug, PartialEq, Eq)]
struct Abi {
    version: u32,
    hash: String,
}

/// How the sources stand to what is recorded.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Recorded,
    /// Not the same, and no new version either.
    NotRaised,
    /// A new version, with or without a change that shows.
    NotRecorded,
}

/// The sources are what is recorded under their version.
pub(crate) fn check() -> anyhow::Result<()> {
    step("ABI");
    let now = sources()?;
    let text = fs::read_to_string(path()).with_context(|| format!("cannot read {LOCK}: run {RECORD}"))?;
    let recorded = Abi::parse(&text)?;
    match compare(&now, &recorded) {
        Outcome::Recorded => Ok(()),
        Outcome::NotRaised => bail!(not_raised(&recorded)),
        Outcome::NotRecorded => bail!(
            "{VERSION} is {}, {LOCK} is of version {}: run {RECORD} and commit {LOCK}",
            now.version,
            recorded.version
        ),
    }
}

/// Writes down what the sources are, unless that would hide a change.
pub(crate) fn record() -> anyhow::Result<()> {
    let now = sources()?;
    if let Ok(text) = fs::read_to_string(path()) {
        let recorded = Abi::parse(&text)?;
        ensure!(compare(&now, &recorded) != Outcome::NotRaised, not_raised(&recorded));
    }
    fs::write(path(), now.to_text())?;
    step(&format!("{LOCK} has version {}; commit it", now.version));
    Ok(())
}

fn not_raised(recorded: &Abi) -> String {
    format!("the ABI changed: raise {VERSION} in {SOURCES}/mod.rs above {} and run {RECORD}", recorded.version)
}

fn path() -> PathBuf {
    root().join(LOCK)
}

fn compare(now: &Abi, recorded: &Abi) -> Outcome {
    if now == recorded {
        Outcome::Recorded
    } else if now.version > recorded.version {
        Outcome::NotRecorded
    } else {
        Outcome::NotRaised
    }
}

impl Abi {
    /// Of the texts of all its files.
    fn of<'a>(sources: impl IntoIterator<Item = &'a str>) -> anyhow::Result<Self> {
        let code: String = sources.into_iter().map(stripped).collect();
        let (versions, rest): (Vec<&str>, Vec<&str>) = code.lines().partition(|line| version(line).is_some());
        let [line] = versions[..] else { bail!("{SOURCES} must have one line `pub const {VERSION}: u32 = N;`") };
        let version = version(line).context("a version")?;
        let digest = Sha256::digest(rest.join("\n"));
        let hash = digest.iter().flat_map(|byte| [byte >> 4, byte & 15]).filter_map(|n| char::from_digit(n.into(), 16));
        let hash = hash.collect();
        Ok(Self { version, hash })
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        let parsed = || {
            let (first, hash) = text.split_once('\n')?;
            let version = first.strip_prefix(VERSION)?.trim().parse().ok()?;
            Some(Self { version, hash: hash.trim().strip_prefix("SHA-256 ")?.to_owned() })
        };
        parsed().with_context(|| format!("cannot understand {LOCK}: take it from git again"))
    }

    fn to_text(&self) -> String {
        format!("{VERSION} {}\nSHA-256 {}\n", self.version, self.hash)
    }
}

fn sources() -> anyhow::Result<Abi> {
    let mut files = files_below(&[root().join(SOURCES)])?;
    files.retain(|f| f.extension().is_some_and(|e| e == "rs"));
    let read = |f: &PathBuf| fs::read_to_string(f).with_context(|| format!("cannot read {}", f.display()));
    let texts = files.iter().map(read).collect::<anyhow::Result<Vec<_>>>()?;
    Abi::of(texts.iter().map(String::as_str))
}

/// The number, if a line of code is the version's.
fn version(line: &str) -> Option<u32> {
    let value = line.strip_prefix("pub const ")?.strip_prefix(VERSION)?.strip_prefix(": u32 = ")?;
    value.strip_suffix(';')?.parse().ok()
}

/// The code of a text, one trimmed line each, without comments and empty lines.
fn stripped(source: &str) -> String {
    let code = without_comments(source);
    let lines = code.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.fold(String::new(), |all, line| all + line + "\n")
}

/// Cuts comments out: to the end of the line, or nested between `/*` and `*/`. What looks like one in a string stays. No file of
/// the ABI has raw strings or the characters `'"'`, which this would get wrong.
fn without_comments(source: &str) -> String {
    let mut code = String::new();
    let mut rest = source;
    while let Some(at) = rest.find(['/', '"']) {
        code.push_str(&rest[..at]);
        rest = &rest[at..];
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment(rest)
        } else {
            let kept = if rest.starts_with('"') { string(rest) } else { 1 };
            code.push_str(&rest[..kept]);
            kept
        };
        rest = &rest[length..];
    }
    code + rest
}

/// Length of the comment that a text begins with, which may have others in it.
fn block_comment(text: &str) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while let Some(found) = text[at..].find("/*").into_iter().chain(text[at..].find("*/")).min() {
        depth += if text[at + found..].starts_with("/*") { 1 } else { -1 };
        at += found + 2;
        if depth == 0 {
            return at;
        }
    }
    text.len()
}

/// Length of the string literal that a text begins with.
fn string(text: &str) -> usize {
    let mut escaped = false;
    let end = text.char_indices().skip(1).find(|&(_, c)| {
        let is_end = c == '"' && !escaped;
        escaped = c == '\\' && !escaped;
        is_end
    });
    end.map_or(text.len(), |(at, _)| at + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: &str = "\
//! Head.
pub const ABI_VERSION: u32 = 6;

pub struct Note {
    pub id: u32, // its number
}
";

    fn abi(text: &str) -> Abi {
        Abi::of([text]).expect("an ABI")
    }

    #[test]
    fn only_code_is_left() {
        let source = "/* a /* b */ c */ pub fn f() -> u32 {\n\n    1 / 2 // half\n}\n/// Words.\nconst S: &str = \"a // \\\" /* b\";";
        assert_eq!(stripped(source), "pub fn f() -> u32 {\n1 / 2\n}\nconst S: &str = \"a // \\\" /* b\";\n");
        assert_eq!(stripped("a\n/* never closed"), "a\n");
    }

    #[test]
    fn words_and_empty_lines_are_no_change() {
        let after = BEFORE.replace("Head", "Another head").replace("its number", "WHAT").replace("    pub", "\n  pub");
        assert_ne!(BEFORE, after);
        assert_eq!(compare(&abi(&after), &abi(BEFORE)), Outcome::Recorded);
    }

    #[test]
    fn a_change_under_the_same_version_is_noticed() {
        let after = BEFORE.replace("id: u32", "id: u64");
        assert_eq!(compare(&abi(&after), &abi(BEFORE)), Outcome::NotRaised);
        // An older version has been somebody's already.
        assert_eq!(compare(&abi(&after.replace("= 6", "= 5")), &abi(BEFORE)), Outcome::NotRaised);
    }

    #[test]
    fn a_new_version_wants_to_be_recorded_with_a_change_or_without() {
        for after in [BEFORE.replace("= 6", "= 7"), BEFORE.replace("= 6", "= 7").replace("id: u32", "id: u64")] {
            assert_eq!(abi(&after).version, 7);
            assert_eq!(compare(&abi(&after), &abi(BEFORE)), Outcome::NotRecorded);
        }
        assert_eq!(abi(&BEFORE.replace("= 6", "= 7")).hash, abi(BEFORE).hash);
    }

    #[test]
    fn what_is_written_is_read_again() {
        let abi = abi(BEFORE);
        assert_eq!(Abi::parse(&abi.to_text()).expect("its own text"), abi);
        assert!(Abi::parse("ABI_VERSION six\nSHA-256 00\n").is_err());
        assert!(Abi::of(["pub struct Note;"]).is_err());
    }
}
