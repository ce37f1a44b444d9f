//! Within a crate the imports of its modules make no cycle: whoever drives imports what it drives, and not the other way round.
//!
//! A module is a file or folder right below `src/`, or below a program's own folder; files of one folder are one stage. The crate's root (`lib.rs`, `main.rs`) may import
//! everything, and a name that it re-exports stands for the module that has it. Unit tests may look anywhere.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use anyhow::{Context as _, ensure};

use super::names::crate_of;
use crate::util::{root, step, tracked};

/// Modules of a crate, and which others each imports.
type Imports = BTreeMap<String, BTreeSet<String>>;

/// Looks at every crate.
pub(crate) fn check() -> anyhow::Result<()> {
    step("imports without cycles");
    let mut crates: BTreeMap<String, Vec<(String, String)>> = BTreeMap::new();
    for file in tracked()? {
        let at = crate_of(&file);
        if let Some(path) = file[at.len()..].trim_start_matches('/').strip_suffix(".rs") {
            let text = fs::read_to_string(root().join(&file)).with_context(|| format!("cannot read {file}"))?;
            crates.entry(at.to_owned()).or_default().push((path.to_owned(), text));
        }
    }
    let cycles = crates.iter().filter_map(|(folder, files)| {
        let cycle = cycle(&imports(files))?;
        Some(format!("{folder}: {} imports itself: {}", cycle[0], cycle.join(" -> ")))
    });
    let cycles: Vec<String> = cycles.collect();
    ensure!(cycles.is_empty(), "{}", cycles.join("\n"));
    Ok(())
}

/// What imports what, from the files of a crate: paths below `src/` without their ending, and contents.
fn imports(files: &[(String, String)]) -> Imports {
    let module = |path: &str| path.split('/').next().unwrap_or(path).to_owned();
    let is_root = |path: &str| matches!(path, "lib" | "main");
    let modules: BTreeSet<String> = files.iter().filter(|(p, _)| !is_root(p)).map(|(p, _)| module(p)).collect();
    let mut moved = BTreeMap::new();
    for (_, text) in files.iter().filter(|(p, _)| is_root(p)) {
        for statement in code(text).split(';') {
            let Some((_, path)) = statement.split_once("use ").filter(|(before, _)| before.contains("pub")) else {
                continue;
            };
            let Some((from, names)) = path.split_once("::").filter(|(from, _)| modules.contains(*from)) else {
                continue;
            };
            let names = names.split(|c: char| !is_word(c)).filter(|n| !n.is_empty());
            moved.extend(names.map(|name| (name.to_owned(), from.to_owned())));
        }
    }
    let mut found = Imports::new();
    for (path, text) in files.iter().filter(|(p, _)| !is_root(p)) {
        let text = code(text);
        let mut named = after(&text, "crate::");
        // One folder down, `super` is the folder.
        if !path.contains('/') || path.ends_with("/mod") && path.matches('/').count() == 1 {
            named.extend(after(&text, "super::"));
        }
        let from = module(path);
        let others = named.into_iter().map(|name| moved.get(&name).cloned().unwrap_or(name));
        let others = others.filter(|name| modules.contains(name) && *name != from);
        found.entry(from.clone()).or_default().extend(others);
    }
    found
}

/// What is no comment and no unit test.
fn code(text: &str) -> String {
    let end = text.find("#[cfg(test)]\nmod tests").unwrap_or(text.len());
    let lines = text[..end].lines().map(|line| line.split_once("//").map_or(line, |(code, _)| code));
    lines.collect::<Vec<_>>().join("\n")
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// First names of the paths that follow a prefix: one, or those of a list in braces.
fn after(text: &str, prefix: &str) -> Vec<String> {
    let mut names = Vec::new();
    for (at, _) in text.match_indices(prefix) {
        if text[..at].ends_with(is_word) || text[..at].ends_with("::") {
            continue;
        }
        let rest = &text[at + prefix.len()..];
        let word = |s: &str| s.chars().take_while(|c| is_word(*c)).collect::<String>();
        let Some(list) = rest.strip_prefix('{') else {
            names.push(word(rest));
            continue;
        };
        let mut depth = 0;
        let mut begins = true;
        for (i, c) in list.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => begins = true,
                c if begins && is_word(c) => {
                    names.push(word(&list[i..]));
                    begins = false;
                }
                _ => {}
            }
        }
    }
    names
}

/// A way from a module back to itself, if there is one.
fn cycle(imports: &Imports) -> Option<Vec<String>> {
    imports.keys().find_map(|start| {
        let mut seen = BTreeSet::new();
        let mut ways = vec![vec![start.clone()]];
        while let Some(way) = ways.pop() {
            for next in way.last().and_then(|last| imports.get(last)).into_iter().flatten() {
                let longer: Vec<String> = way.iter().chain([next]).cloned().collect();
                if next == start {
                    return Some(longer);
                }
                if seen.insert(next.clone()) {
                    ways.push(longer);
                }
            }
        }
        None
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(all: &[(&str, &str)]) -> Vec<(String, String)> {
        all.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect()
    }

    #[test]
    fn a_cycle_is_found_through_lists_folders_and_names_of_the_root() {
        let root = ("lib", "pub mod a;\nmod b;\nmod c;\npub use c::{Thing, other::Else};\n");
        let b = ("b/mod", "use crate::{Thing, x};\n");
        for (a, c, found) in [
            ("use super::{b::{X, c}, Y};", "use std::fmt;", None),
            ("use super::{X, b};", "mod x;\n use crate::a::f;", Some("a -> b -> c -> a")),
            ("fn f() { crate::b::g() }", "pub use super::a;", Some("a -> b -> c -> a")),
            // use crate::b is what a comment, a test and another crate may say.
            ("// use crate::b;", "use crate::a;", None),
            ("#[cfg(test)]\nmod tests {\n use crate::b;\n}", "use crate::a;", None),
            ("use other_crate::b;", "use crate::a;", None),
        ] {
            let imports = imports(&files(&[root, ("a", a), b, ("c", c)]));
            let cycle = cycle(&imports).map(|c| c.join(" -> "));
            assert_eq!(cycle.as_deref(), found, "{a} {c}: {imports:?}");
        }
    }
}
