//! The journal of operations over HTTP, and the notes that explain operations.

use super::auth::Identity;
use super::error::{ApiError, Params};
use super::{App, DEFAULT_LIST, MAX_LIST, Query, views};
use crate::api;
use crate::core::journal::{Caller, Filter};
use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use std::sync::Arc;
use utoipa::IntoParams;

/// Longest note, characters.
const MAX_NOTE: usize = 500;

/// The parameters of operations.
#[derive(Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct NoteParams {
    /// Why this is done, for the journal: one line without control characters.
    #[param(max_length = 500, pattern = "^[^\\u0000-\\u001f\\u007f-\\u009f]*$")]
    note: Option<String>,
}

impl NoteParams {
    /// Who requests an operation, with the reason.
    ///
    /// # Errors
    /// If the reason is too long, or no text.
    pub(super) fn of(self, identity: Identity) -> Result<Caller, ApiError> {
        let note = self.note.map(|note| note.trim().to_owned()).filter(|note| !note.is_empty());
        if let Some(note) = &note
            && (note.chars().count() > MAX_NOTE || note.chars().any(char::is_control))
        {
            let why = format!("must be on one line of at most {MAX_NOTE} characters, without control characters");
            return Err(ApiError::field("note", why));
        }
        Ok(Caller { note, ..identity.caller })
    }
}

#[derive(Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct JournalParams {
    /// Only entries of this time or later.
    #[param(value_type = Option<api::Time>, required = false)]
    since: Option<String>,
    /// Only entries about this worker, host, place or build.
    target: Option<String>,
    /// Maximum number of results.
    #[param(value_type = Option<usize>, required = false, minimum = 1, maximum = 1000, default = 100)]
    limit: Option<String>,
    /// Only entries that are older than this one.
    #[param(pattern = "^[0-9]{1,18}$")]
    before: Option<String>,
}

impl JournalParams {
    fn filter(self) -> Result<Filter, ApiError> {
        let since = self.since.map(|text| {
            api::Time::parse(&text).map(|time| time.0).map_err(|error| {
                ApiError::field("since", format!("{text:?} is not a time such as 2026-11-23T12:00:00Z: {error}"))
            })
        });
        let limit = match self.limit {
            None => DEFAULT_LIST,
            Some(text) => text
                .parse()
                .ok()
                .filter(|limit| (1..=MAX_LIST).contains(limit))
                .ok_or_else(|| ApiError::field("limit", format!("must be 1 to {MAX_LIST}, not {text:?}")))?,
        };
        let before = self.before.map(|text| {
            text.parse::<u64>()
                .map_err(|_| ApiError::field("before", format!("{text:?} is not the number of an entry")))
        });
        Ok(Filter { since: since.transpose()?, before: before.transpose()?, target: self.target, limit })
    }
}

/// List the operations that people have carried out, newest first.
///
/// The master keeps the newest 10,000.
#[utoipa::path(
    get, path = "/api/journal", params(JournalParams),
    responses((status = 200, description = "The entries.", body = Vec<api::JournalEntry>)),
)]
pub(super) async fn list_journal(
    State(app): State<Arc<App>>,
    Params(params): Params<JournalParams>,
) -> Result<Json<Vec<api::JournalEntry>>, ApiError> {
    let filter = params.filter()?;
    let entries = app.query(|reply| Query::Journal { filter, reply }).await?.map_err(ApiError::Internal)?;
    Ok(Json(entries.into_iter().map(views::journal_entry).collect()))
}
