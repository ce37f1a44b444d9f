//! The paths of the repository that its files name exist.
//!
//! In prose (comments of `*.rs` and `*.toml`, `*.md` outside of fenced blocks, all of `*.txt`) a path is a word that ends as one of
//! [`ENDINGS`]. It may be written from the root, from the file that names it, or as the tail of a path that exists. In code, which is
//! full of other things with a `/`, and in prose as well, a path is a word that begins with one of the repository's own folders: so
//! it is from the root.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
};

use anyhow::{Context as _, ensure};

use super::promises;
use crate::util::{root, step, tracked};

/// Endings of words that are paths of the repository.
const ENDINGS: [&str; 6] = [".rs", ".md", ".toml", ".txt", ".patch", "/"];
/// Paths that are not the repository's, and whose they are.
const ELSEWHERE: &[(&str, &str)] = &[
    ("bucket/", "the form of a target"),
    ("prefix/", "the form of an object's key"),
    (".tools/", "where `cargo xtask setup` installs; git ignores it"),
    ("integration/faults", "a feature, as cargo takes it: package, then name"),
];

/// A word that does not name what it should.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stale {
    pub file: String,
    pub line: usize,
    pub word: String,
    pub why: &'static str,
}

impl fmt::Display for Stale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, line, word, why } = self;
        write!(f, "{file}:{line}: `{word}` {why}")
    }
}

/// Everything that is named exists, every promise is listed once with what shows it, and no exception has outlived its use.
pub(crate) fn check() -> anyhow::Result<()> {
    step("paths and promises in comments, documents and literals");
    let names = tracked()?;
    let tree = Tree::new(names.iter().map(String::as_str));
    let mut texts = BTreeMap::new();
    for name in names.iter().filter(|n| Kind::of(n).is_some()) {
        let text = fs::read_to_string(root().join(name)).with_context(|| format!("cannot read {name}"))?;
        texts.insert(name.as_str(), text);
    }
    let listed = promises::listed(texts.get(promises::FILE).map_or("", String::as_str))?;
    let mut stale = promises::unshown(&listed, &texts);
    let mut used = BTreeSet::new();
    for (name, text) in &texts {
        stale.extend(stale_paths(name, text, &tree, &mut used));
        stale.extend(promises::stale(name, text, &listed));
    }
    let lines: Vec<String> = stale.iter().map(ToString::to_string).collect();
    ensure!(lines.is_empty(), "{}", lines.join("\n"));
    let unused: Vec<&str> = ELSEWHERE.iter().map(|(path, _)| *path).filter(|path| !used.contains(path)).collect();
    ensure!(unused.is_empty(), "nobody names these any more, take them out of ELSEWHERE: {}", unused.join(", "));
    Ok(())
}

/// All paths of the repository; those of folders end in `/`.
struct Tree {
    paths: BTreeSet<String>,
    /// Every tail of them that begins behind a `/`.
    tails: BTreeSet<String>,
}

impl Tree {
    fn new<'a>(files: impl IntoIterator<Item = &'a str>) -> Self {
        let mut paths = BTreeSet::new();
        for file in files {
            paths.extend(file.match_indices('/').map(|(at, _)| file[..=at].to_owned()));
            paths.insert(file.to_owned());
        }
        let tails =
            |path: &String| path.match_indices('/').map(|(at, _)| path[at + 1..].to_owned()).collect::<Vec<_>>();
        let tails = paths.iter().flat_map(tails).filter(|tail| !tail.is_empty()).collect();
        Self { paths, tails }
    }

    /// Whether a word begins with one of the repository's folders, and there is nothing there. A file's ending may be left out.
    fn lacks(&self, word: &str) -> bool {
        let word = word.trim_end_matches('/');
        let is_rooted = word.split_once('/').is_some_and(|(top, _)| self.paths.contains(&format!("{top}/")));
        let has = |path: String| self.paths.range(path.clone()..).next().is_some_and(|p| p.starts_with(&path));
        is_rooted && !self.paths.contains(word) && !has(format!("{word}/")) && !has(format!("{word}."))
    }

    /// Whether `file` may mean something by `path`.
    fn has(&self, file: &str, path: &str) -> bool {
        let path = path.strip_prefix("./").unwrap_or(path);
        let folder = file.rfind('/').map_or("", |at| &file[..=at]);
        let beside = joined(folder, path);
        self.paths.contains(path) || self.tails.contains(path) || beside.is_some_and(|p| self.paths.contains(&p))
    }
}

/// A path as seen from a folder; none if it leads out of the repository.
fn joined(folder: &str, path: &str) -> Option<String> {
    let mut parts: Vec<&str> = folder.split('/').filter(|part| !part.is_empty()).collect();
    for part in path.split('/') {
        match part {
            "." => {}
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

/// How prose is told from the rest of a file, which is code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Rust,
    Toml,
    Markdown,
    Text,
}

impl Kind {
    fn of(file: &str) -> Option<Self> {
        match file.rsplit_once('.')?.1 {
            "rs" => Some(Self::Rust),
            "toml" => Some(Self::Toml),
            "md" => Some(Self::Markdown),
            "txt" => Some(Self::Text),
            _ => None,
        }
    }
}

/// A line of a file: its number, from 1, and what is code and prose in it.
#[derive(Debug, PartialEq, Eq)]
struct Line<'a> {
    number: usize,
    code: &'a str,
    prose: &'a str,
}

fn lines(kind: Kind, text: &str) -> Vec<Line<'_>> {
    let mut fenced = false;
    let mut parted = |line| match kind {
        Kind::Rust => parts(line, "//"),
        Kind::Toml => parts(line, "#"),
        Kind::Text => ("", line),
        Kind::Markdown => {
            let fence = str::trim_start(line).starts_with("```");
            fenced ^= fence;
            if fenced || fence { (line, "") } else { ("", line) }
        }
    };
    let numbered = |(n, line)| {
        let (code, prose) = parted(line);
        Line { number: n + 1, code, prose }
    };
    text.lines().enumerate().map(numbered).collect()
}

/// What is before and behind the first `mark` of a line that is not in a string of that line.
fn parts<'a>(line: &'a str, mark: &str) -> (&'a str, &'a str) {
    let mut quoted = false;
    let mut escaped = false;
    for (at, c) in line.char_indices() {
        if !quoted && line[at..].starts_with(mark) {
            return (&line[..at], &line[at + mark.len()..]);
        }
        quoted ^= c == '"' && !escaped;
        escaped = c == '\\' && !escaped;
    }
    (line, "")
}

/// The words of a text that may be paths: no patterns, no URLs, nothing from the root of a machine.
fn words(text: &str) -> impl Iterator<Item = &str> {
    let words = text.split(|c: char| c.is_whitespace() || "`()[],;\"'|=#!?".contains(c));
    let words = words.map(|word| word.trim_end_matches(['.', ':']));
    let plain = |word: &str| word.chars().all(|c| c.is_ascii_alphanumeric() || "_-./".contains(c));
    words.filter(move |word| plain(word) && !word.starts_with('/'))
}

/// Those that look like paths, wherever they begin.
pub(super) fn paths(text: &str) -> impl Iterator<Item = &str> {
    let named =
        |word: &str, ending: &str| word.strip_suffix(ending).is_some_and(|w| w.ends_with(char::is_alphanumeric));
    words(text).filter(move |word| ENDINGS.iter().any(|ending| named(word, ending)))
}

/// Paths that a file names and that do not exist. `used` gets the exceptions that were needed.
fn stale_paths(file: &str, text: &str, tree: &Tree, used: &mut BTreeSet<&'static str>) -> Vec<Stale> {
    let mut stale = Vec::new();
    let Some(kind) = Kind::of(file) else { return stale };
    for Line { number, code, prose } in lines(kind, text) {
        let mut missing: BTreeSet<&str> = paths(prose).filter(|word| !tree.has(file, word)).collect();
        missing.extend(words(code).chain(words(prose)).filter(|word| tree.lacks(word)));
        for word in missing {
            if let Some((path, _)) = ELSEWHERE.iter().find(|(path, _)| *path == word) {
                used.insert(path);
            } else {
                let why = "does not exist";
                stale.push(Stale { file: file.to_owned(), line: number, word: word.to_owned(), why });
            }
        }
    }
    stale
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILES: [&str; 4] = ["ARCHITECTURE.md", "docs/rules.md", "agent/src/window/ledger.rs", "agent/src/lib.rs"];

    fn named(text: &str) -> Vec<&str> {
        paths(text).collect()
    }

    #[test]
    fn this_repository_names_what_exists() {
        check().expect("paths and promises");
    }

    #[test]
    fn paths_are_words_with_an_ending() {
        assert_eq!(
            named("see `window/ledger.rs`, docs/rules.md: and [x](../a.md#part)."),
            ["window/ledger.rs", "docs/rules.md", "../a.md"]
        );
        assert_eq!(named("in `kernel/`; Cargo.toml"), ["kernel/", "Cargo.toml"]);
        for other in ["I/O and kernel/user", "*.rs", ".rs", "/etc/a.toml", "https://a.b/c.md", "spool/<key>.md", "a::b"]
        {
            assert_eq!(named(other), [""; 0], "{other}");
        }
    }

    #[test]
    fn a_path_is_found_from_the_root_from_its_file_and_by_its_tail() {
        let tree = Tree::new(FILES);
        for path in
            ["docs/rules.md", "docs/", "agent/src/", "window/ledger.rs", "ledger.rs", "window/", "./docs/rules.md"]
        {
            assert!(tree.has("agent/src/lib.rs", path), "{path}");
        }
        assert!(tree.has("docs/rules.md", "../ARCHITECTURE.md") && tree.has("docs/rules.md", "../agent/src/lib.rs"));
        for path in ["edger.rs", "agent/ledger.rs", "rules/", "../../ARCHITECTURE.md", "src"] {
            assert!(!tree.has("docs/rules.md", path), "{path}");
        }
    }

    #[test]
    fn prose_is_comments_and_what_is_not_fenced() {
        let parted = |kind, text| lines(kind, text).iter().map(|l| (l.code, l.prose)).collect::<Vec<_>>();
        let rust = "let a = \"// no\\\" // no\"; // yes\ncode();\n/// too";
        assert_eq!(
            parted(Kind::Rust, rust),
            [("let a = \"// no\\\" // no\"; ", " yes"), ("code();", ""), ("", "/ too")]
        );
        assert_eq!(parted(Kind::Toml, "a = \"#\"\nb = 1 # yes"), [("a = \"#\"", ""), ("b = 1 ", " yes")]);
        let fenced = [("", "a"), ("```toml", ""), ("b", ""), ("```", ""), ("", "c")];
        assert_eq!(parted(Kind::Markdown, "a\n```toml\nb\n```\nc"), fenced);
        assert_eq!(parted(Kind::Text, "# a\nb"), [("", "# a"), ("", "b")]);
    }

    #[test]
    fn what_is_gone_is_named_with_file_line_and_word() {
        let tree = Tree::new(FILES);
        let stale = |file, text| {
            let stale = stale_paths(file, text, &tree, &mut BTreeSet::new());
            stale.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let text = "//! See docs/rules.md.\n\n// As in `window/gone.rs`.\nlet s = \"other.rs\";\n";
        assert_eq!(stale("agent/src/lib.rs", text), ["agent/src/lib.rs:3: `window/gone.rs` does not exist"]);
        assert_eq!(stale("a.txt", "lib.rs\n# gone.rs\n"), ["a.txt:2: `gone.rs` does not exist"]);
        let literals = "let s = [\"agent/src\", \"agent/src/\", \"agent/src/lib\", \"a/agent/b\", \"agent/{x}\", \"see agent/gone: no\"];";
        assert_eq!(stale("a.rs", literals), ["a.rs:1: `agent/gone` does not exist"]);
        assert_eq!(stale("a.md", "agent/\n```\nagent/old\n```\n"), ["a.md:3: `agent/old` does not exist"]);
    }
}
