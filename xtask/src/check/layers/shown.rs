//! The tables of ARCHITECTURE.md that show these rules: what stands between backticks in their first and last columns.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, ensure};

use super::{Forbidden, Member, Owned};

pub(super) const FILE: &str = "ARCHITECTURE.md";
/// Heads of the tables.
const LINKS_NOT: &str = "| crate | job | must not link |";
const NAMED_BY: &str = "| package, and its family | named by these alone |";

/// Where the tables say something else than the rules.
pub(super) fn differences(
    text: &str,
    members: &[Member],
    named_by: &[Owned],
    links_not: &[Forbidden],
) -> anyhow::Result<Vec<String>> {
    let mut rules: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (package, forbidden, _) in links_not {
        rules.entry(package).or_default().extend(*forbidden);
    }
    let mut found = Vec::new();
    for (folder, forbidden) in table(text, LINKS_NOT)? {
        let [folder] = folder[..] else { continue };
        let member = members.iter().find(|m| m.folder == folder).with_context(|| format!("{FILE}: {folder}"))?;
        let rule = rules.remove(member.package.as_str()).unwrap_or_default();
        found.extend(difference(&member.package, "must not link", &forbidden, &rule));
    }
    let mut rules: BTreeMap<&str, BTreeSet<&str>> = named_by
        .iter()
        .map(|(package, owners, _)| (*package, owners.iter().map(|(owner, _)| *owner).collect()))
        .collect();
    for (packages, owners) in table(text, NAMED_BY)? {
        for package in packages {
            let rule = rules.remove(package).with_context(|| format!("{FILE}: {package} is not in NAMED_BY"))?;
            found.extend(difference(package, "is named by", &owners, &rule));
        }
    }
    found.extend(rules.keys().map(|package| format!("{FILE}: {package} is in NAMED_BY and in no table")));
    Ok(found)
}

fn difference(package: &str, what: &str, shown: &[&str], rule: &BTreeSet<&str>) -> Option<String> {
    let listed: BTreeSet<&str> = shown.iter().copied().collect();
    (listed != *rule).then(|| format!("{FILE}: {package} {what} {listed:?} there, {rule:?} in layers.rs"))
}

/// What is between backticks in the first and in the last column of each row.
fn table<'a>(text: &'a str, head: &str) -> anyhow::Result<Vec<(Vec<&'a str>, Vec<&'a str>)>> {
    let rows: Vec<&str> = text.lines().skip_while(|line| *line != head).take_while(|l| l.starts_with('|')).collect();
    ensure!(rows.len() > 2, "{FILE} has lost its table `{head}`");
    let spans = |cell: &'a str| cell.split('`').skip(1).step_by(2).collect::<Vec<_>>();
    let cells = |row: &'a str| Some((row.split('|').nth(1)?, row.split('|').nth_back(1)?));
    Ok(rows[2..].iter().filter_map(|row| cells(row)).map(|(first, last)| (spans(first), spans(last))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_that_says_something_else_is_found() {
        let low = Member { package: "low".to_owned(), folder: "agent/low/".to_owned(), names: BTreeSet::new() };
        let members = [low];
        let rules: &[Owned] = &[("aya", &[("low", "loads")], "one layer"), ("axum", &[], "nobody")];
        let links_not: &[Forbidden] = &[("low", &["arrow"], "small"), ("low", &["hyper"], "quiet")];
        let text = |forbidden: &str, owner: &str| {
            format!(
                "# A\n\n| crate | job | must not link |\n|---|---|---|\n| `agent/low/` | `x` | {forbidden}: small |\n\n\
                 | package, and its family | named by these alone |\n|---|---|\n| `aya` | {owner} |\n| `axum` | nobody |\n"
            )
        };
        let differ = |forbidden, owner| differences(&text(forbidden, owner), &members, rules, links_not);
        assert_eq!(differ("`arrow`, `hyper`", "`low`").expect("tables"), [""; 0]);
        assert_eq!(
            differ("`arrow`", "`low`, `tests`").expect("tables"),
            [
                "ARCHITECTURE.md: low must not link {\"arrow\"} there, {\"arrow\", \"hyper\"} in layers.rs",
                "ARCHITECTURE.md: aya is named by {\"low\", \"tests\"} there, {\"low\"} in layers.rs",
            ]
        );
        assert!(differences("none", &members, rules, links_not).is_err());
    }
}
