//! `rouse journal`: lists what people have done. The notes of operations are added here too.

use super::args::{Note, When};
use super::client::Client;
use super::error::CliError;
use super::output::{Table, listing, or_dash};
use crate::api;
use rouse_shared::Timestamp;

/// Number of entries in one request.
const PAGE: usize = 1_000;

impl Note {
    /// A path with the note as its query.
    pub(super) fn added_to(&self, path: &str) -> String {
        match &self.note {
            None => path.to_owned(),
            Some(note) => {
                let query = form_urlencoded::Serializer::new(String::new()).append_pair("note", note).finish();
                format!("{path}?{query}")
            }
        }
    }
}

/// Lists the entries, newest first, with as many requests as needed.
pub(super) async fn run(
    client: &Client,
    (since, target): (Option<When>, Option<&str>),
    limit: usize,
    as_json: bool,
    now: Timestamp,
) -> Result<(), CliError> {
    let mut rows: Vec<api::JournalEntry> = Vec::new();
    while rows.len() < limit {
        let wanted = (limit - rows.len()).min(PAGE);
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.append_pair("limit", &wanted.to_string());
        query.extend_pairs(since.map(|when| ("since", api::Time(when.at(now)).to_string())));
        query.extend_pairs(target.map(|target| ("target", target)));
        query.extend_pairs(rows.last().map(|last| ("before", &last.id)));
        let page: Vec<api::JournalEntry> = client.get(&format!("/api/journal?{}", query.finish())).await?;
        let whole = page.len() >= wanted;
        rows.extend(page);
        if !whole {
            break;
        }
    }
    let head = ["TIME", "WHO", "FROM", "ACTION", "TARGET", "NOTE"];
    let row = |entry: &api::JournalEntry| {
        [
            entry.at.to_string(),
            entry.who.clone(),
            entry.from.clone(),
            entry.action.as_str().to_owned(),
            or_dash(entry.target.as_ref()),
            or_dash(entry.note.as_ref()),
        ]
    };
    Ok(listing(&rows, as_json, |rows| Table::new(head, rows.iter().map(row)), "nobody has done anything")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_part_of_the_query() {
        let note = |note: Option<&str>| Note { note: note.map(str::to_owned) }.added_to("/api/x");
        assert_eq!(note(None), "/api/x");
        assert_eq!(note(Some("new disk & fan")), "/api/x?note=new+disk+%26+fan");
    }
}
