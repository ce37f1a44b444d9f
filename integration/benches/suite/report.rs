//! What was measured: tables for the terminal and the docs, JSON for programs.

use std::fmt::Write as _;

use serde::Serialize;

/// One figure: the best and the median of several rounds. They differ by what else the machine did.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Figure {
    pub best: f64,
    pub median: f64,
}

impl Figure {
    /// Of rounds in which less is better.
    pub(crate) fn least(rounds: &[f64]) -> Self {
        let sorted = sorted(rounds);
        Self { best: sorted[0], median: sorted[sorted.len() / 2] }
    }

    /// Of rounds in which more is better.
    pub(crate) fn most(rounds: &[f64]) -> Self {
        let sorted = sorted(rounds);
        Self { best: sorted[sorted.len() - 1], median: sorted[sorted.len() / 2] }
    }

    /// A figure that is not repeated.
    pub(crate) fn once(value: f64) -> Self {
        Self { best: value, median: value }
    }

    pub(crate) fn minus(self, other: Self) -> Self {
        Self { best: self.best - other.best, median: self.median - other.median }
    }
}

fn sorted(rounds: &[f64]) -> Vec<f64> {
    let mut sorted = rounds.to_vec();
    sorted.sort_by(f64::total_cmp);
    assert!(!sorted.is_empty(), "at least one round");
    sorted
}

/// A table: one row a thing, one column a circumstance.
#[derive(Debug, Serialize)]
pub(crate) struct Table {
    pub title: String,
    pub unit: &'static str,
    pub note: String,
    pub columns: Vec<String>,
    pub rows: Vec<(String, Vec<Option<Figure>>)>,
    /// Chart of this table: columns are numbers of flows.
    pub chart: bool,
    pub decimals: usize,
}

impl Table {
    pub(crate) fn new(title: impl Into<String>, unit: &'static str, note: impl Into<String>, columns: &[&str]) -> Self {
        let columns = columns.iter().map(|c| (*c).to_owned()).collect();
        Self { title: title.into(), unit, note: note.into(), columns, rows: Vec::new(), chart: false, decimals: 1 }
    }

    pub(crate) fn row(&mut self, name: impl Into<String>, figures: Vec<Option<Figure>>) {
        self.rows.push((name.into(), figures));
    }
}

/// What was wanted, and what came out.
#[derive(Debug, Serialize)]
pub(crate) struct Target {
    pub what: String,
    pub goal: String,
    pub measured: String,
    pub met: bool,
}

#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    pub machine: Vec<String>,
    pub tables: Vec<Table>,
    pub targets: Vec<Target>,
}

impl Report {
    /// Adds a table and shows it.
    pub(crate) fn table(&mut self, table: Table) {
        println!("{}", markdown(&table));
        self.tables.push(table);
    }

    /// Compares with a target: `at_most` or at least.
    pub(crate) fn target(&mut self, what: impl Into<String>, measured: f64, unit: &str, limit: f64, at_most: bool) {
        let goal = format!("{} {limit} {unit}", if at_most { "<=" } else { ">=" });
        let met = if at_most { measured <= limit } else { measured >= limit };
        self.targets.push(Target { what: what.into(), goal, measured: format!("{measured:.2} {unit}"), met });
    }

    /// The targets as a table.
    pub(crate) fn summary(&self) -> String {
        let mut text = "### Targets\n\n| what | goal | measured | |\n|---|---|---|---|\n".to_owned();
        for t in &self.targets {
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} |",
                t.what,
                t.goal,
                t.measured,
                if t.met { "met" } else { "**missed**" }
            );
        }
        text
    }

    /// All of it as Markdown.
    pub(crate) fn markdown(&self) -> String {
        let machine = self.machine.join("\n- ");
        let tables: String = self.tables.iter().map(|t| markdown(t) + "\n").collect();
        format!("### Machine\n\n- {machine}\n\n{}\n{tables}", self.summary())
    }
}

/// A Markdown table. A cell is the median, with the best in brackets where it differs.
fn markdown(table: &Table) -> String {
    let mut text = format!("### {} ({})\n\n", table.title, table.unit);
    if !table.note.is_empty() {
        let _ = writeln!(text, "{}\n", table.note);
    }
    let _ = writeln!(text, "| | {} |", table.columns.join(" | "));
    let _ = writeln!(text, "|---|{}", "---|".repeat(table.columns.len()));
    let digits = table.decimals;
    for (name, figures) in &table.rows {
        let cells = figures.iter().map(|f| match f {
            None => "-".to_owned(),
            Some(f) if (f.best - f.median).abs() < f64::EPSILON => format!("{:.digits$}", f.median),
            Some(f) => format!("{:.digits$} ({:.digits$})", f.median, f.best),
        });
        let _ = writeln!(text, "| {name} | {} |", cells.collect::<Vec<_>>().join(" | "));
    }
    text
}

/// Kernel, processor, memory: what the figures depend on.
pub(crate) fn machine() -> Vec<String> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        text.lines().find(|l| l.starts_with(name)).and_then(|l| l.split(':').nth(1)).unwrap_or("?").trim().to_owned()
    };
    let cpu = read("/proc/cpuinfo");
    let memory = read("/proc/meminfo");
    let uname = rustix::system::uname();
    vec![
        format!("Linux {} ({})", uname.release().to_string_lossy(), uname.machine().to_string_lossy()),
        format!("{} x {}", cpu.lines().filter(|l| l.starts_with("processor")).count(), field(&cpu, "model name")),
        format!("{} of memory", field(&memory, "MemTotal")),
        format!("flowlog {}", env!("CARGO_PKG_VERSION")),
    ]
}
