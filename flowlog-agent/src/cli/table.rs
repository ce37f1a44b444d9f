//! Tables for people. On a terminal a row is one line: what does not fit is cut short in the columns that may be, and the least important ones are
//! left out; where that does not do either, each row is folded into lines of its own. On a pipe nothing is cut, left out or folded.

use std::fmt::Write as _;

use comfy_table::{CellAlignment, ColumnConstraint, ContentArrangement, Width, presets};
use flowlog_model::text::printable;

use crate::log::takes_colours;

/// A column: its heading, and what becomes of it where there is little room.
#[derive(Clone, Copy, Debug)]
pub(super) struct Column {
    heading: &'static str,
    kind: Kind,
    /// Characters that are left of it where it is cut short.
    cut_to: u16,
    /// How soon it is left out where the others do not fit; 0: never.
    spare: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Whole,
    Cut,
    Number,
}

impl Column {
    const fn new(heading: &'static str, kind: Kind) -> Self {
        Self { heading, kind, cut_to: CUT_CHARS_MIN, spare: 0 }
    }

    /// Words; whole, however narrow the terminal is.
    pub(super) const fn whole(heading: &'static str) -> Self {
        Self::new(heading, Kind::Whole)
    }

    /// Words that are cut short where there is no room.
    pub(super) const fn cut(heading: &'static str) -> Self {
        Self::new(heading, Kind::Cut)
    }

    /// A number.
    pub(super) const fn number(heading: &'static str) -> Self {
        Self::new(heading, Kind::Number)
    }

    /// So many characters are left of it at least.
    pub(super) const fn at_least(mut self, chars: u16) -> Self {
        self.cut_to = chars;
        self
    }

    /// It is left out where the others do not fit; the last of these first.
    pub(super) const fn spare(self) -> Self {
        self.sooner(1)
    }

    /// The same, before all that are left out less soon.
    pub(super) const fn sooner(mut self, spare: u8) -> Self {
        self.spare = spare;
        self
    }

    /// How few characters it takes, if its longest cell has so many.
    fn least(&self, longest: u16) -> u16 {
        let heading = u16::try_from(self.heading.len()).unwrap_or(u16::MAX);
        match self.kind {
            Kind::Cut => heading.max(self.cut_to).min(longest),
            Kind::Whole | Kind::Number => longest,
        }
    }
}

/// Characters of a cell, at most, on a pipe too: several times the longest key that a store takes. (The table's own arithmetic ends at 65,535 in a
/// line.)
const CELL_CHARS_MAX: usize = 4_096;
/// Characters that are left of a column that is cut short, if it says nothing else.
const CUT_CHARS_MIN: u16 = 6;
/// Between columns.
const GAP_CHARS: u16 = 2;

/// A colour that says how something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Colour {
    Green,
    Yellow,
    Red,
}

/// One cell.
pub(super) struct Cell(String, Option<Colour>);

impl Cell {
    /// In a colour, where there are colours.
    pub(super) fn coloured(words: impl Into<String>, colour: Colour) -> Self {
        Self(words.into(), Some(colour))
    }
}

impl<S: ToString + ?Sized> From<&S> for Cell {
    fn from(words: &S) -> Self {
        Self(words.to_string(), None)
    }
}

/// A row of cells out of whatever can be shown.
macro_rules! cells {
    ($($cell:expr),* $(,)?) => { vec![$($crate::cli::table::Cell::from(&$cell)),*] };
}
pub(super) use cells;

/// See the module's head.
pub(super) struct Table {
    inner: comfy_table::Table,
    columns: Vec<Column>,
    rows: Vec<Vec<Cell>>,
    has_colours: bool,
}

impl Table {
    /// For standard output, as it is.
    pub(super) fn new(columns: &[Column]) -> Self {
        Self::of_width(columns, None, has_colours())
    }

    /// With so many characters in a line, whatever standard output is; `None`: as it is.
    pub(super) fn of_width(columns: &[Column], width: Option<u16>, has_colours: bool) -> Self {
        let mut inner = comfy_table::Table::new();
        inner.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
        inner.set_truncation_indicator("…");
        if let Some(width) = width {
            inner.force_no_tty().set_width(width);
        }
        inner.set_header(columns.iter().map(|column| column.heading));
        Self { inner, columns: columns.to_vec(), rows: Vec::new(), has_colours }
    }

    /// Adds a row. Whatever is in it, it can do nothing to a terminal.
    pub(super) fn row(&mut self, cells: Vec<Cell>) {
        let all: Vec<Cell> = cells.into_iter().map(|Cell(words, c)| Cell(cut(&printable(&words)), c)).collect();
        let cells = all.iter().map(|Cell(words, colour)| {
            let cell = comfy_table::Cell::new(words);
            match colour.filter(|_| self.has_colours) {
                Some(colour) => cell.fg(colour.into()),
                None => cell,
            }
        });
        let mut row = comfy_table::Row::from(cells.collect::<Vec<_>>());
        row.max_height(1);
        self.inner.add_row(row);
        self.rows.push(all);
    }

    /// Each row as lines of its own, headings in front.
    fn folded(&self) -> String {
        let width = self.columns.iter().map(|c| c.heading.len()).max().unwrap_or_default();
        let mut out = String::new();
        for (n, row) in self.rows.iter().enumerate() {
            out += if n == 0 { "" } else { "\n" };
            for (Column { heading, .. }, Cell(words, colour)) in self.columns.iter().zip(row) {
                let words = match colour.filter(|_| self.has_colours) {
                    Some(colour) => coloured(words, colour),
                    None => words.clone(),
                };
                // Writing to a String cannot fail.
                let _ = writeln!(out, "{heading:<width$}  {words}");
            }
        }
        out
    }

    /// Its lines.
    pub(super) fn lines(self) -> String {
        self.lines_and_left_out().0
    }

    /// Its lines, and headings of the columns that there was no room for.
    pub(super) fn lines_and_left_out(mut self) -> (String, Vec<&'static str>) {
        let room = self.inner.width().unwrap_or(u16::MAX);
        let least: Vec<u16> = self
            .columns
            .iter()
            .zip(self.inner.column_max_content_widths())
            .map(|(c, longest)| c.least(longest))
            .collect();
        let mut needed = least.iter().fold(0, |sum: u16, chars| sum.saturating_add(chars.saturating_add(GAP_CHARS)));
        let mut left_out = vec![false; self.columns.len()];
        let mut soonest: Vec<usize> = (0..self.columns.len()).filter(|at| self.columns[*at].spare > 0).collect();
        soonest.sort_by_key(|at| std::cmp::Reverse((self.columns[*at].spare, *at)));
        for at in soonest {
            if needed > room {
                needed -= least[at] + GAP_CHARS;
                left_out[at] = true;
            }
        }
        let columns = self.columns.iter().zip(&least).zip(self.inner.column_iter_mut());
        for (((of, least), column), left_out) in columns.zip(&left_out) {
            column.set_padding((0, GAP_CHARS));
            if of.kind == Kind::Number {
                column.set_cell_alignment(CellAlignment::Right);
            }
            if *left_out {
                column.set_constraint(ColumnConstraint::Hidden);
            } else if of.kind == Kind::Cut {
                column.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(least + GAP_CHARS)));
            } else {
                column.set_constraint(ColumnConstraint::ContentWidth);
            }
        }
        if needed > room && !self.rows.is_empty() {
            return (self.folded(), Vec::new());
        }
        let mut out = self.inner.trim_fmt();
        out.push('\n');
        let left_out = self.columns.iter().zip(left_out).filter_map(|(of, is)| is.then_some(of.heading));
        (out, left_out.collect())
    }
}

impl From<Colour> for comfy_table::Color {
    fn from(colour: Colour) -> Self {
        match colour {
            Colour::Green => Self::Green,
            Colour::Yellow => Self::Yellow,
            Colour::Red => Self::Red,
        }
    }
}

/// Words that are no longer than a cell may be.
fn cut(words: &str) -> String {
    match words.char_indices().nth(CELL_CHARS_MAX) {
        None => words.to_owned(),
        Some((end, _)) => format!("{}…", &words[..end]),
    }
}

/// Lines as wide as this, or as the terminal: a longer one goes on below, between two words and a little to the right.
pub(super) fn fitted(text: &str, width: Option<u16>) -> String {
    fitted_to(text, width.or_else(|| comfy_table::Table::new().width()))
}

fn fitted_to(text: &str, width: Option<u16>) -> String {
    let Some(width) = width.map(usize::from) else { return text.to_owned() };
    let mut out = String::new();
    for line in text.lines() {
        let mut used = 0;
        for (at, word) in line.split(' ').enumerate() {
            let chars = word.chars().count();
            if at > 0 && used + 1 + chars > width {
                out += "\n  ";
                used = 2;
            } else if at > 0 {
                out.push(' ');
                used += 1;
            }
            out += word;
            used += chars;
        }
        out.push('\n');
    }
    out
}

/// Words in a colour, where there are colours.
pub(super) fn painted(words: &str, colour: Colour) -> String {
    if has_colours() { coloured(words, colour) } else { words.to_owned() }
}

fn coloured(words: &str, colour: Colour) -> String {
    let number = match colour {
        Colour::Green => 32,
        Colour::Yellow => 33,
        Colour::Red => 31,
    };
    format!("\x1b[{number}m{words}\x1b[0m")
}

/// Whether standard output shows colours.
pub(super) fn has_colours() -> bool {
    takes_colours(&std::io::stdout())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(width: Option<u16>) -> String {
        let columns = [
            Column::whole("NAME"),
            Column::whole("DIRECTION").spare(),
            Column::number("PACKETS"),
            Column::cut("LAST OBJECT"),
        ];
        let mut table = Table::of_width(&columns, width, false);
        table.row(cells!["web", "bidirectional", 5, "a/very/long/key/of/an/object.parquet"]);
        table.row(cells!["\u{1b}[2Jtwo\nlines", "ingress", 1_234_567, "-"]);
        table.lines()
    }

    #[test]
    fn what_is_said_below_a_table_is_as_wide_as_the_terminal() {
        let text = "web on eth0: the oldest object waits for 12 min\n  kept\n";
        assert_eq!(fitted_to(text, None), text);
        let narrow = fitted_to(text, Some(24));
        assert_eq!(
            narrow,
            "web on eth0: the oldest\n  object waits for 12 min\n  kept\n".replace("12 min", "12\n  min")
        );
        assert!(narrow.lines().all(|line| line.chars().count() <= 24), "{narrow}");
    }

    #[test]
    fn a_row_is_a_line_as_wide_as_the_terminal_and_whole_on_a_pipe() {
        let all = table(None);
        assert_eq!(all.lines().count(), 3, "{all}");
        assert!(all.contains("a/very/long/key/of/an/object.parquet") && !all.contains('…'), "{all}");
        let end = |line: usize, words: &str| all.lines().nth(line).and_then(|l| Some(l.find(words)? + words.len()));
        assert_eq!(end(0, "PACKETS"), end(2, "1234567"), "numbers end where their heading does: {all}");
        for (width, has_direction) in [(70, true), (50, false)] {
            let narrow = table(Some(width));
            assert_eq!(narrow.lines().count(), 3, "{narrow}");
            assert!(narrow.lines().all(|line| line.chars().count() <= usize::from(width)), "{narrow}");
            assert!(narrow.contains('…') && narrow.contains("1234567"), "{narrow}");
            assert_eq!(narrow.contains("bidirectional"), has_direction, "{narrow}");
        }
    }

    #[test]
    fn a_table_that_cannot_fit_is_folded_and_nothing_of_it_is_lost() {
        let narrow = table(Some(20));
        let expected = "NAME         web\nDIRECTION    bidirectional\nPACKETS      5\nLAST OBJECT  a/very/long/key/of/an/object.parquet\n\n\
                        NAME         \\u{1b}[2Jtwo\\nlines\nDIRECTION    ingress\n";
        assert!(narrow.starts_with(expected), "{narrow}");
    }

    #[test]
    fn words_of_others_can_do_nothing_to_a_terminal_nor_to_the_table() {
        assert!(!table(None).contains('\u{1b}'));
        let mut table = Table::of_width(&[Column::cut("NAME"), Column::whole("STATE")], None, false);
        table.row(cells!["é".repeat(1 << 20), "x".repeat(70_000)]);
        assert!(table.lines().contains("é…"));
    }
}
