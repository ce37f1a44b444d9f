//! What comments and documents name exists: paths of the repository, and promises, which ARCHITECTURE.md defines.
//!
//! Looked at are the comments of `*.rs` and `*.toml`, and `*.md` outside of fenced blocks. A path is a word that ends as one of
//! [`ENDINGS`]. It may be written from the root, from the file that names it, or as the tail of a path that exists.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
};

use anyhow::{Context as _, ensure};

use crate::util::{output, root, step};

/// Where the promises are listed.
const PROMISES: &str = "ARCHITECTURE.md";
/// How a line of that list begins, up to the promise's name.
const PROMISE_HEAD: &str = "- **";
/// Endings of words that are paths of the repository.
const ENDINGS: [&str; 6] = [".rs", ".md", ".toml", ".txt", ".patch", "/"];
/// Paths that are not the repository's, and whose they are.
const ELSEWHERE: &[(&str, &str)] = &[
    ("flowlog.toml", "the configuration that a user writes"),
    ("bucket/", "the form of a target"),
    ("prefix/", "the form of an object's key"),
    (".tools/", "where `cargo xtask setup` installs; git ignores it"),
];

/// A word that names nothing.
#[derive(Debug, PartialEq, Eq)]
struct Stale {
    file: String,
    line: usize,
    word: String,
    why: &'static str,
}

impl fmt::Display for Stale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, line, word, why } = self;
        write!(f, "{file}:{line}: `{word}` {why}")
    }
}

/// Everything that is named exists, every promise is listed once with what shows it, and no exception has outlived its use.
pub(crate) fn check() -> anyhow::Result<()> {
    step("paths and promises in comments and documents");
    let names = files()?;
    let tree = Tree::new(names.iter().map(String::as_str));
    let mut texts = BTreeMap::new();
    for name in names.iter().filter(|n| Kind::of(n).is_some()) {
        let text = fs::read_to_string(root().join(name)).with_context(|| format!("cannot read {name}"))?;
        texts.insert(name.as_str(), text);
    }
    let listed = promises(texts.get(PROMISES).map_or("", String::as_str))?;
    let mut stale = Vec::new();
    let mut used = BTreeSet::new();
    for (name, text) in &texts {
        stale.extend(stale_paths(name, text, &tree, &mut used));
        stale.extend(stale_promises(name, text, &listed));
    }
    let lines: Vec<String> = stale.iter().map(ToString::to_string).collect();
    ensure!(lines.is_empty(), "{}", lines.join("\n"));
    let unused: Vec<&str> = ELSEWHERE.iter().map(|(path, _)| *path).filter(|path| !used.contains(path)).collect();
    ensure!(unused.is_empty(), "nobody names these any more, take them out of ELSEWHERE: {}", unused.join(", "));
    Ok(())
}

/// Every file of the work tree that git does not ignore.
fn files() -> anyhow::Result<Vec<String>> {
    let mut git = std::process::Command::new("git");
    git.current_dir(root()).args(["ls-files", "--cached", "--others", "--exclude-standard"]);
    let listed = output(&mut git)?;
    Ok(listed.lines().filter(|name| root().join(name).is_file()).map(str::to_owned).collect())
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

/// How prose is told from the rest of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Rust,
    Toml,
    Markdown,
}

impl Kind {
    fn of(file: &str) -> Option<Self> {
        match file.rsplit_once('.')?.1 {
            "rs" => Some(Self::Rust),
            "toml" => Some(Self::Toml),
            "md" => Some(Self::Markdown),
            _ => None,
        }
    }
}

/// The prose of a file: line numbers from 1, and what is written there.
fn prose(kind: Kind, text: &str) -> Vec<(usize, &str)> {
    let mut fenced = false;
    let mut of = |line| match kind {
        Kind::Rust => comment(line, "//"),
        Kind::Toml => comment(line, "#"),
        Kind::Markdown => {
            let fence = str::trim_start(line).starts_with("```");
            fenced ^= fence;
            (!fence && !fenced).then_some(line)
        }
    };
    text.lines().enumerate().filter_map(|(n, line)| Some((n + 1, of(line)?))).collect()
}

/// What is behind the first `mark` of a line that is not in a string of that line.
fn comment<'a>(line: &'a str, mark: &str) -> Option<&'a str> {
    let mut quoted = false;
    let mut escaped = false;
    for (at, c) in line.char_indices() {
        if !quoted && line[at..].starts_with(mark) {
            return Some(&line[at + mark.len()..]);
        }
        quoted ^= c == '"' && !escaped;
        escaped = c == '\\' && !escaped;
    }
    None
}

/// The words of a text that look like paths of the repository: no patterns, no URLs, nothing from the root of a machine.
fn paths(text: &str) -> impl Iterator<Item = &str> {
    let words = text.split(|c: char| c.is_whitespace() || "`()[],;\"'|=#!?".contains(c));
    let words = words.map(|word| word.trim_end_matches(['.', ':']));
    let plain = |word: &str| word.chars().all(|c| c.is_ascii_alphanumeric() || "_-./".contains(c));
    words.filter(move |word| {
        let named =
            ENDINGS.iter().any(|e| word.strip_suffix(e).is_some_and(|w| w.ends_with(|c: char| c.is_alphanumeric())));
        named && plain(word) && !word.starts_with('/')
    })
}

/// Paths that a file names and that do not exist. `used` gets the exceptions that were needed.
fn stale_paths(file: &str, text: &str, tree: &Tree, used: &mut BTreeSet<&'static str>) -> Vec<Stale> {
    let mut stale = Vec::new();
    let Some(kind) = Kind::of(file) else { return stale };
    for (line, words) in prose(kind, text) {
        for word in paths(words).filter(|word| !tree.has(file, word)) {
            match ELSEWHERE.iter().find(|(path, _)| *path == word) {
                Some((path, _)) => drop(used.insert(path)),
                None => stale.push(Stale { file: file.to_owned(), line, word: word.to_owned(), why: "does not exist" }),
            }
        }
    }
    stale
}

/// Numbers of promises in a text, with the line of each.
fn promises_in(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let word = |c: char| !(c.is_alphanumeric() || c == '_');
    let is_promise = |w: &&str| w.len() == 2 && w.starts_with('P') && w.ends_with(|c: char| c.is_ascii_digit());
    text.lines().enumerate().flat_map(move |(n, line)| line.split(word).filter(is_promise).map(move |w| (n + 1, w)))
}

/// Promises that a file names and that are not listed.
fn stale_promises(file: &str, text: &str, listed: &BTreeSet<String>) -> Vec<Stale> {
    let unknown = promises_in(text).filter(|(_, word)| !listed.contains(*word));
    let why = "is no promise of ARCHITECTURE.md";
    unknown.map(|(line, word)| Stale { file: file.to_owned(), line, word: word.to_owned(), why }).collect()
}

/// The list of promises. Each is there once, and names at least one file.
fn promises(architecture: &str) -> anyhow::Result<BTreeSet<String>> {
    let mut listed = BTreeSet::new();
    for item in architecture.split(&format!("\n{PROMISE_HEAD}")).skip(1) {
        let Some(name) = item.split_whitespace().next().filter(|name| promises_in(name).next().is_some()) else {
            continue;
        };
        let end = item.find("\n\n").unwrap_or(item.len());
        ensure!(paths(&item[..end]).next().is_some(), "{PROMISES}: {name} names no file that shows it");
        ensure!(listed.insert(name.to_owned()), "{PROMISES} lists {name} twice");
    }
    ensure!(!listed.is_empty(), "{PROMISES} lists no promise: lines that begin with `{PROMISE_HEAD}P1 `");
    Ok(listed)
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
        let rust = "let a = \"// no\\\" // no\"; // yes\ncode();\n/// too";
        assert_eq!(prose(Kind::Rust, rust), [(1, " yes"), (3, "/ too")]);
        assert_eq!(prose(Kind::Toml, "a = \"#\"\nb = 1 # yes"), [(2, " yes")]);
        assert_eq!(prose(Kind::Markdown, "a\n```toml\nb\n```\nc"), [(1, "a"), (5, "c")]);
    }

    #[test]
    fn what_is_gone_is_named_with_file_line_and_word() {
        let tree = Tree::new(FILES);
        let text = "//! See docs/rules.md.\n\n// As in `window/gone.rs`.\nlet s = \"other.rs\";\n";
        let stale = stale_paths("agent/src/lib.rs", text, &tree, &mut BTreeSet::new());
        let words: Vec<String> = stale.iter().map(ToString::to_string).collect();
        assert_eq!(words, ["agent/src/lib.rs:3: `window/gone.rs` does not exist"]);
    }

    #[test]
    fn promises_are_listed_once_each_with_a_file() {
        let list =
            |items: [&str; 2]| format!("# A\n\n- **Other.** b\n\n- **P{}\n- **P{}\n\nEnd c.rs", items[0], items[1]);
        let listed = promises(&list(["1 One.** `a.rs`", "2 Two.**\n  `b.rs`"])).expect("a list");
        assert_eq!(listed.len(), 2);
        assert!(promises(&list(["1 One.** `a.rs`", "1 Again.** `b.rs`"])).is_err());
        assert!(promises(&list(["1 One.** `a.rs`", "2 Two.** nothing"])).is_err());
        assert!(promises("none").is_err());
        let text = format!("// promise P{}\nlet (_P{}, P{}7) = \"P{}\";", 2, 9, 9, 9);
        let unknown = stale_promises("a.rs", &text, &listed);
        assert!(matches!(&unknown[..], [Stale { line: 2, word, .. }] if word.ends_with('9')), "{unknown:?}");
    }
}
