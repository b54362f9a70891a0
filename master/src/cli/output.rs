//! What the commands print: results on stdout, rouse's own words on stderr, never a panic where nobody reads any more.

use rouse_shared::{Timestamp, duration};
use serde_json::Value;
use std::io::{self, Write as _};
use std::time::UNIX_EPOCH;

/// Says something on stderr.
pub(super) fn say(text: &str) {
    // Where stderr is closed there is nobody left to tell.
    writeln!(io::stderr(), "rouse: {text}").ok();
}

/// Puts bytes on stdout as they are, at once.
pub(super) fn bytes(bytes: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes)?;
    stdout.flush()
}

/// Puts a line on stdout.
pub(super) fn line(text: &str) -> io::Result<()> {
    bytes(format!("{text}\n").as_bytes())
}

/// Puts JSON on stdout, for people to read as well.
pub(super) fn json(value: &Value) -> io::Result<()> {
    line(&format!("{value:#}"))
}

/// Puts a listing on stdout: as JSON, or as a table; of an empty table, a word on stderr.
pub(super) fn listing(
    rows: &[Value],
    as_json: bool,
    table: impl FnOnce(&[Value]) -> Table,
    none: &str,
) -> io::Result<()> {
    if as_json {
        return json(&Value::Array(rows.to_vec()));
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

/// Without what would move the cursor or begin a new line: names are written by others.
pub(super) fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// The text of a field; a dash where there is none.
pub(super) fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) if text.is_empty() => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => value.to_string(),
    }
}

/// A time as the API writes it.
pub(super) fn moment(value: &Value) -> Option<Timestamp> {
    let time = humantime::parse_rfc3339(value.as_str()?).ok()?;
    let since = time.duration_since(UNIX_EPOCH).ok()?;
    Some(Timestamp(u64::try_from(since.as_millis()).ok()?))
}

/// How long ago.
pub(super) fn ago(value: &Value, now: Timestamp) -> String {
    moment(value).map_or_else(|| "-".to_owned(), |at| format!("{} ago", duration::rough(now.since(at))))
}

/// From one moment to another, or to now.
pub(super) fn between(from: &Value, to: &Value, now: Timestamp) -> String {
    moment(from).map_or_else(|| "-".to_owned(), |from| duration::rough(moment(to).unwrap_or(now).since(from)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["1", "a name\nof two lines"], ["200", "-"]].map(|row| row.map(str::to_owned));
        let table = Table::new(["ID", "NAME"], rows.into_iter());
        assert_eq!(table.to_string(), "ID   NAME\n1    a name of two lines\n200  -\n");
    }

    #[test]
    fn ages_have_two_units() {
        let now = moment(&json!("2026-11-23T12:00:00.000Z")).expect("a time");
        for (at, expected) in [
            (json!("2026-11-23T11:59:59.500Z"), "0s ago"),
            (json!("2026-11-23T11:57:00.000Z"), "3m ago"),
            (json!("2026-11-23T08:50:00.000Z"), "3h10m ago"),
            (json!("2026-11-20T09:00:00.000Z"), "3d3h ago"),
            (json!("2026-11-23T12:00:05.000Z"), "0s ago"),
            (Value::Null, "-"),
        ] {
            assert_eq!(ago(&at, now), expected, "{at}");
        }
    }
}
