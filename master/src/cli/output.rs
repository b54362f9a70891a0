//! Output of the commands: results go to stdout, messages of rouse to stderr. A closed output causes no panic.

use crate::api::Time;
use rouse_shared::{Timestamp, duration};
use serde::Serialize;
use std::io::{self, Write as _};

/// Prints a message on stderr.
pub(super) fn say(text: &str) {
    // If stderr is closed, nobody reads it.
    writeln!(io::stderr(), "rouse: {text}").ok();
}

/// Writes bytes unchanged to stdout, at once.
pub(super) fn bytes(bytes: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes)?;
    stdout.flush()
}

/// Writes a line to stdout.
pub(super) fn line(text: &str) -> io::Result<()> {
    bytes(format!("{text}\n").as_bytes())
}

/// Writes indented JSON to stdout.
pub(super) fn json<T: Serialize + ?Sized>(value: &T) -> io::Result<()> {
    line(&serde_json::to_string_pretty(value)?)
}

/// Writes a list to stdout, as JSON or as a table. If the table is empty, a message goes to stderr.
pub(super) fn listing<T: Serialize>(
    rows: &[T],
    as_json: bool,
    table: impl FnOnce(&[T]) -> Table,
    none: &str,
) -> io::Result<()> {
    if as_json {
        return json(rows);
    }
    if rows.is_empty() {
        say(none);
        return Ok(());
    }
    // In a pipe, each line stays whole, whatever its length.
    let stdout = console::Term::stdout();
    let width = stdout.size_checked().filter(|_| stdout.is_term()).map(|(_, columns)| usize::from(columns));
    bytes(table(rows).render(width, console::colors_enabled()).as_bytes())
}

/// Columns that are as wide as their widest cell.
pub(super) struct Table {
    head: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table whose rows have a cell for each of `head`.
    pub(super) fn new<const N: usize>(head: [&'static str; N], rows: impl Iterator<Item = [String; N]>) -> Self {
        Self { head: head.to_vec(), rows: rows.map(|row| row.into_iter().map(|cell| plain(&cell)).collect()).collect() }
    }
}

/// Between two columns.
const GAP: &str = "  ";
/// No column is made narrower than this to fit a terminal.
const NARROW: usize = 6;

impl Table {
    /// The table as text. If it is wider than `terminal`, the widest columns are cut. With `colours`, states have colours.
    fn render(&self, terminal: Option<usize>, colours: bool) -> String {
        let mut widths = self.widths();
        let gaps = GAP.len() * widths.len().saturating_sub(1);
        while terminal.is_some_and(|terminal| widths.iter().sum::<usize>() + gaps > terminal)
            && let Some(widest) = widths.iter_mut().max().filter(|width| **width > NARROW)
        {
            *widest -= 1;
        }
        let state = self.head.iter().position(|title| *title == "STATE");
        let head = self.head.iter().map(|cell| (*cell).to_owned()).collect();
        let mut text = String::new();
        for (number, row) in std::iter::once(&head).chain(&self.rows).enumerate() {
            let mut line = String::new();
            // Blanks at the end of a line would be in the way of whoever copies it.
            let used = row.iter().rposition(|cell| !cell.is_empty()).map_or(0, |last| last + 1);
            for (column, (cell, width)) in row.iter().zip(&widths).enumerate().take(used) {
                let cell = cut(cell, *width);
                let padding = if column + 1 == used { 0 } else { width.saturating_sub(cell.chars().count()) };
                let style = colour(&cell).filter(|_| colours && number > 0 && state == Some(column));
                let cell = style.map_or(cell.clone(), |style| style.force_styling(true).apply_to(&cell).to_string());
                line.push_str(if column == 0 { "" } else { GAP });
                line.push_str(&cell);
                line.extend(std::iter::repeat_n(' ', padding));
            }
            text.push_str(line.trim_end_matches(' '));
            text.push('\n');
        }
        text
    }

    fn widths(&self) -> Vec<usize> {
        let width = |column: usize| {
            let cells = self.rows.iter().map(|row| row[column].chars().count());
            cells.chain([self.head[column].len()]).max().unwrap_or(0)
        };
        (0..self.head.len()).map(width).collect()
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.render(None, false))
    }
}

/// A cell that is no wider than this.
fn cut(cell: &str, width: usize) -> String {
    if cell.chars().count() <= width {
        return cell.to_owned();
    }
    cell.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

/// The colour of a state of a build, worker, host or place.
fn colour(state: &str) -> Option<console::Style> {
    let style = console::Style::new();
    match state {
        "success" | "idle" | "ready" | "healthy" => Some(style.green()),
        "failure" | "lost" | "missing" => Some(style.red()),
        "running" | "busy" => Some(style.cyan()),
        "starting" | "booting" | "resuming" | "draining" | "backoff" | "pausing" | "paused" => Some(style.yellow()),
        "cancelled" | "asleep" | "offline" | "suspended" => Some(style.dim()),
        _ => None,
    }
}

/// A text without control characters, because names come from others.
pub(super) fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// A text for people; a dash if there is none.
pub(super) fn or_dash<T: ToString>(value: Option<&T>) -> String {
    value.map(T::to_string).filter(|text| !text.is_empty()).unwrap_or_else(|| "-".to_owned())
}

/// The age of a time.
pub(super) fn ago(at: Option<Time>, now: Timestamp) -> String {
    at.map_or_else(|| "-".to_owned(), |at| format!("{} ago", duration::rough(now.since(at.0))))
}

/// The time from one moment to another, or to now.
pub(super) fn between(from: Option<Time>, to: Option<Time>, now: Timestamp) -> String {
    from.map_or_else(|| "-".to_owned(), |from| duration::rough(to.map_or(now, |to| to.0).since(from.0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["1", "a name\nof two lines"], ["200", "-"]].map(|row| row.map(str::to_owned));
        let table = Table::new(["ID", "NAME"], rows.into_iter());
        assert_eq!(table.to_string(), "ID   NAME\n1    a name of two lines\n200  -\n");
    }

    #[test]
    fn a_table_fits_the_terminal_and_only_states_have_colours() {
        let rows = [["1", "a long name of a build", "success"], ["2", "b", "queued"]].map(|row| row.map(str::to_owned));
        let table = Table::new(["ID", "NAME", "STATE"], rows.into_iter());
        let line = |width| table.render(Some(width), false).lines().nth(1).map(str::to_owned).unwrap_or_default();
        assert_eq!(line(35), "1   a long name of a build  success");
        assert_eq!(line(25), "1   a long name…  success");
        // As narrow as it gets.
        assert_eq!(line(5), "1   a lon…  succe…");
        let coloured = table.render(None, true);
        assert!(coloured.contains("\u{1b}[32msuccess\u{1b}[0m"), "{coloured:?}");
        assert_eq!(coloured.matches('\u{1b}').count(), 2, "{coloured:?}");
    }

    #[test]
    fn ages_have_two_units() {
        let now = Timestamp(1_795_435_200_000);
        for (before, expected) in
            [(500, "0s ago"), (180_000, "3m ago"), (190 * 60_000, "3h10m ago"), (75 * 3_600_000, "3d3h ago")]
        {
            assert_eq!(ago(Some(Time(Timestamp(now.0 - before))), now), expected);
        }
        assert_eq!(ago(Some(Time(Timestamp(now.0 + 5_000))), now), "0s ago");
        assert_eq!(ago(None, now), "-");
    }
}
