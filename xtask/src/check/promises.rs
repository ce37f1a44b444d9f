//! The promises, which ARCHITECTURE.md lists: each is listed once with what shows it, and no file names another one.
//!
//! What shows a promise is a test. A fuzz target or a benchmark may stand beside it: they are not run with every change.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::ensure;

use super::text::{Stale, paths};

/// Where the promises are listed.
pub(super) const FILE: &str = "ARCHITECTURE.md";
/// How a line of that list begins, up to the promise's name.
const HEAD: &str = "- **";
/// Where the files lie that are listed without a folder.
const TESTS: &str = "integration/tests/all/";
/// Where what may stand beside a test lies, and what makes a file there one.
const BESIDE: [(&str, &str); 2] =
    [("flowlog-ebpf/fuzz/fuzz_targets/", "fuzz_target!("), ("integration/benches/suite/", "")];

/// A promise's name, and what is listed as showing it.
pub(super) type Listed<'a> = BTreeMap<&'a str, BTreeSet<&'a str>>;

/// The list of promises. Each is there once, and names at least one file.
pub(super) fn listed(architecture: &str) -> anyhow::Result<Listed<'_>> {
    let mut listed = Listed::new();
    for item in architecture.split(&format!("\n{HEAD}")).skip(1) {
        let Some(name) = item.split_whitespace().next().filter(|name| numbers(name).next().is_some()) else {
            continue;
        };
        let end = item.find("\n\n").unwrap_or(item.len());
        let files: BTreeSet<&str> = paths(&item[..end]).collect();
        ensure!(!files.is_empty(), "{FILE}: {name} names no file that shows it");
        ensure!(listed.insert(name, files).is_none(), "{FILE} lists {name} twice");
    }
    ensure!(!listed.is_empty(), "{FILE} lists no promise: lines that begin with `{HEAD}P1 `");
    Ok(listed)
}

/// Numbers of promises in a text, with the line of each.
fn numbers(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let word = |c: char| !(c.is_alphanumeric() || c == '_');
    let is_promise = |w: &&str| w.len() == 2 && w.starts_with('P') && w.ends_with(|c: char| c.is_ascii_digit());
    text.lines().enumerate().flat_map(move |(n, line)| line.split(word).filter(is_promise).map(move |w| (n + 1, w)))
}

/// Promises that a file names and that are not listed.
pub(super) fn stale(file: &str, text: &str, listed: &Listed<'_>) -> Vec<Stale> {
    let unknown = numbers(text).filter(|(_, word)| !listed.contains_key(word));
    let why = "is no promise of ARCHITECTURE.md";
    unknown.map(|(line, word)| Stale { file: file.to_owned(), line, word: word.to_owned(), why }).collect()
}

/// What a listed file is worth.
#[derive(Debug, PartialEq, Eq)]
enum Shows {
    Test,
    Beside,
    Nothing(&'static str),
}

/// Files that are listed for promises and show nothing, and promises without a test. `texts` has the files of the repository.
pub(super) fn unshown(listed: &Listed<'_>, texts: &BTreeMap<&str, String>) -> Vec<Stale> {
    let architecture = texts.get(FILE).map_or("", String::as_str);
    let stale = |promise: &str, word: &str, why| {
        let item = architecture.lines().skip_while(|line| !line.starts_with(&format!("{HEAD}{promise} ")));
        let line = architecture.lines().count() - item.skip_while(|line| !line.contains(word)).count() + 1;
        Stale { file: FILE.to_owned(), line, word: word.to_owned(), why }
    };
    let mut found = Vec::new();
    for (promise, files) in listed {
        let mut is_tested = false;
        for file in files {
            match shows(file, texts) {
                Shows::Test => is_tested = true,
                Shows::Beside => {}
                Shows::Nothing(why) => found.push(stale(promise, file, why)),
            }
        }
        if !is_tested {
            found.push(stale(promise, promise, "is a promise without a test"));
        }
    }
    found
}

fn shows(file: &str, texts: &BTreeMap<&str, String>) -> Shows {
    let own = format!("{TESTS}{file}");
    let tail = format!("/{file}");
    let means = |name: &str| if file.contains('/') { name == file || name.ends_with(&tail) } else { name == own };
    let mut found = texts.iter().filter(|(name, _)| means(name));
    let (Some((name, text)), None) = (found.next(), found.next()) else {
        return Shows::Nothing("is not one file (without a folder: in integration/tests/all/)");
    };
    let is_beside = |(folder, mark): &(&str, &str)| name.starts_with(folder) && text.contains(mark);
    if text.lines().any(|line| line.trim() == "#[test]") {
        Shows::Test
    } else if BESIDE.iter().any(is_beside) {
        Shows::Beside
    } else {
        Shows::Nothing("is listed for a promise and has no test")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn promises_are_listed_once_each_with_a_file() {
        let list =
            |items: [&str; 2]| format!("# A\n\n- **Other.** b\n\n- **P{}\n- **P{}\n\nEnd c.rs", items[0], items[1]);
        let text = list(["1 One.** `a.rs`", "2 Two.**\n  `b.rs`"]);
        let known = listed(&text).expect("a list");
        assert_eq!(known.len(), 2);
        assert!(listed(&list(["1 One.** `a.rs`", "1 Again.** `b.rs`"])).is_err());
        assert!(listed(&list(["1 One.** `a.rs`", "2 Two.** nothing"])).is_err());
        assert!(listed("none").is_err());
        let text = format!("// promise P{}\nlet (_P{}, P{}7) = \"P{}\";", 2, 9, 9, 9);
        let unknown = stale("a.rs", &text, &known);
        assert!(matches!(&unknown[..], [Stale { line: 2, word, .. }] if word.ends_with('9')), "{unknown:?}");
    }

    #[test]
    fn what_is_listed_is_a_test() {
        let test = "#[cfg(test)]\nmod tests {\n    #[test]\n    fn a() {}\n}\n";
        let listing = "# A\n\n- **P1 One.** `pins.rs`, `low/b.rs`; `packet.rs`,\n  `fuzz_targets/packet.rs`\n- **P2 Two.** `ways.rs`: \
                       `suite/packet.rs`\n- **P3 Three.** `two/d.rs`\n\n";
        let texts: BTreeMap<&str, String> = [
            (FILE, listing),
            ("integration/tests/all/pins.rs", test),
            ("agent/low/b.rs", test),
            ("flowlog-ebpf/fuzz/fuzz_targets/packet.rs", "fuzz_target!(|a: ()| {});"),
            ("integration/tests/all/ways.rs", "// #[test]\nfn help() {}"),
            ("integration/benches/suite/packet.rs", ""),
            ("x/two/d.rs", test),
            ("y/two/d.rs", test),
        ]
        .map(|(name, text)| (name, text.to_owned()))
        .into();
        let found = unshown(&listed(listing).expect("a list"), &texts);
        let found: Vec<String> = found.iter().map(ToString::to_string).collect();
        let ambiguous = "is not one file (without a folder: in integration/tests/all/)";
        assert_eq!(
            found,
            [
                format!("ARCHITECTURE.md:3: `packet.rs` {ambiguous}"),
                "ARCHITECTURE.md:5: `ways.rs` is listed for a promise and has no test".to_owned(),
                "ARCHITECTURE.md:5: `P2` is a promise without a test".to_owned(),
                format!("ARCHITECTURE.md:6: `two/d.rs` {ambiguous}"),
                "ARCHITECTURE.md:6: `P3` is a promise without a test".to_owned(),
            ]
        );
    }
}
