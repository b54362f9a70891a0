//! Builds over HTTP: submit, list, show, why, cancel.

use super::answer::{Failure, NoParams, Params};
use super::{App, BuildQuery, Call, DEFAULT_LIST, MAX_BODY, MAX_LIST, json};
use crate::core::build::BuildState;
use crate::core::event::Reply;
use crate::core::view::BuildView;
use crate::submission;
use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use rouse_shared::BuildId;
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;

pub(super) async fn submit(
    State(app): State<Arc<App>>,
    _: Params<NoParams>,
    body: Result<Bytes, BytesRejection>,
) -> Result<(StatusCode, Json<Value>), Failure> {
    let body = body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            Failure::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the build has more than {MAX_BODY} bytes"))
        }
        status => Failure::new(status, rejection.body_text()),
    })?;
    let spec = submission::from_json(&body)
        .map_err(|submission::Invalid { field, reason }| Failure::invalid(Some(field), reason))?;
    match app.ask(|reply| Call::Submit { spec: Arc::new(spec), reply }).await? {
        Reply::Accepted(id) => Ok((StatusCode::CREATED, Json(json!({ "id": id.to_string() })))),
        Reply::Unavailable(reason) => Err(Failure::no_room(reason)),
        Reply::Refused { field, reason } => Err(Failure::invalid(field, reason)),
        Reply::NotFound(reason) => Err(Failure::invalid(Some("worker".to_owned()), reason)),
        Reply::Done | Reply::Audit(_) => {
            Err(Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "the master took the build without a number"))
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListParams {
    state: Option<String>,
    limit: Option<usize>,
    before: Option<String>,
}

pub(super) async fn list(
    State(app): State<Arc<App>>,
    Params(params): Params<ListParams>,
) -> Result<Json<Value>, Failure> {
    let query = params.query()?;
    let builds = app
        .ask(|reply| Call::Builds { query, reply })
        .await?
        .map_err(|error| Failure::new(StatusCode::INTERNAL_SERVER_ERROR, error))?;
    Ok(Json(builds.iter().map(json::build).collect()))
}

impl ListParams {
    fn query(self) -> Result<BuildQuery, Failure> {
        let invalid = |field: &str, reason: String| Failure::invalid(Some(field.to_owned()), reason);
        let state = self.state.map(|text| {
            BuildState::ALL.into_iter().find(|state| state.as_str() == text).ok_or_else(|| {
                let known = BuildState::ALL.map(BuildState::as_str).join(", ");
                invalid("state", format!("{text:?} is not a state of a build: {known}"))
            })
        });
        let before = self.before.map(|text| {
            text.parse::<BuildId>().map_err(|_| invalid("before", format!("{text:?} is not the number of a build")))
        });
        let limit = self.limit.unwrap_or(DEFAULT_LIST);
        if !(1..=MAX_LIST).contains(&limit) {
            return Err(invalid("limit", format!("a limit is 1 to {MAX_LIST}, not {limit}")));
        }
        Ok(BuildQuery { state: state.transpose()?, limit, before: before.transpose()? })
    }
}

/// The build that a path names.
pub(super) async fn find(app: &App, id: &str) -> Result<BuildView, Failure> {
    let number = number(id)?;
    app.ask(|reply| Call::Build { id: number, reply }).await?.ok_or_else(|| Failure::no_build(id))
}

fn number(id: &str) -> Result<BuildId, Failure> {
    id.parse().map_err(|_| Failure::no_build(id))
}

pub(super) async fn show(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    _: Params<NoParams>,
) -> Result<Json<Value>, Failure> {
    Ok(Json(json::build_in_full(&find(&app, &id).await?)))
}

pub(super) async fn why(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    _: Params<NoParams>,
) -> Result<Json<Value>, Failure> {
    let number = number(&id)?;
    let why = app.ask(|reply| Call::Why { id: number, reply }).await?.ok_or_else(|| Failure::no_build(&id))?;
    Ok(Json(json::why(number, &why)))
}

pub(super) async fn cancel(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    _: Params<NoParams>,
) -> Result<Json<Value>, Failure> {
    let build = number(&id)?;
    done(app.ask(|reply| Call::Cancel { build, reply }).await?)?;
    Ok(Json(json!({ "id": build.to_string() })))
}

/// An answer that brings nothing but whether it was done.
pub(super) fn done(answer: Reply) -> Result<(), Failure> {
    match answer {
        Reply::Done | Reply::Accepted(_) | Reply::Audit(_) => Ok(()),
        Reply::NotFound(reason) => Err(Failure::not_found(reason)),
        Reply::Unavailable(reason) => Err(Failure::no_room(reason)),
        Reply::Refused { reason, .. } => Err(Failure::new(StatusCode::CONFLICT, reason)),
    }
}
