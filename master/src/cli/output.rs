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
    bytes(table(rows).to_string().as_bytes())
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

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let width = |column: usize| {
            let cells = self.rows.iter().map(|row| row[column].chars().count());
            cells.chain([self.head[column].len()]).max().unwrap_or(0)
        };
        let widths: Vec<_> = (0..self.head.len()).map(width).collect();
        let head = self.head.iter().map(|cell| (*cell).to_owned()).collect();
        for row in std::iter::once(&head).chain(&self.rows) {
            let cells: Vec<_> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
            writeln!(f, "{}", cells.join("  ").trim_end())?;
        }
        Ok(())
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
