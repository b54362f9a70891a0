//! Builds over HTTP: submit, list, show, why, cancel.

use super::auth::Identity;
use super::error::{ApiError, Body, NoParams, Params, Segments};
use super::journal::NoteParams;
use super::{App, BuildFilter, DEFAULT_LIST, MAX_LIST, NoBuild, Query, views};
use crate::access::Right;
use crate::api;
use crate::core::build::{Build, BuildSpec, BuildState, Requirement};
use crate::core::event::{Command, Reply};
use crate::core::journal::Caller;
use crate::core::view::BuildView;
use crate::submission;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use rouse_shared::{BuildId, WorkerName};
use serde::Deserialize;
use std::sync::Arc;
use utoipa::IntoParams;

/// Submit a build.
#[utoipa::path(
    post, path = "/api/builds", request_body = api::Submission,
    responses(
        (status = 201, description = "The build is accepted and saved.", body = api::AcceptedBuild),
        (status = 413, description = "The build is too large.", body = api::Error),
    ),
)]
pub(super) async fn submit_build(
    State(app): State<Arc<App>>,
    identity: Identity,
    _: Params<NoParams>,
    Body(body): Body,
) -> Result<(StatusCode, Json<api::AcceptedBuild>), ApiError> {
    let spec = submission::from_json(&body)
        .map_err(|submission::Invalid { field, reason }| ApiError::Invalid { field: Some(field), reason })?;
    submit(&app, identity.caller, Arc::new(spec)).await
}

async fn submit(
    app: &App,
    by: Caller,
    spec: Arc<BuildSpec>,
) -> Result<(StatusCode, Json<api::AcceptedBuild>), ApiError> {
    match app.command(by, Command::Submit { spec, message_id: None }).await? {
        Reply::Accepted(id) => Ok((StatusCode::CREATED, Json(api::AcceptedBuild { id: api::Id(id) }))),
        Reply::Unavailable(reason) => Err(ApiError::NoSpace(reason)),
        Reply::Refused { field, reason } => Err(ApiError::Invalid { field, reason }),
        Reply::NotFound(reason) => Err(ApiError::field("worker", reason)),
        Reply::Done | Reply::Audit(_) => Err(ApiError::mismatch()),
    }
}

/// Most properties in one query.
const MAX_PROPERTIES: usize = 16;

#[derive(Default, Deserialize, IntoParams)]
#[serde(try_from = "Vec<(String, String)>")]
#[into_params(parameter_in = Query)]
pub(super) struct ListParams {
    /// Only builds in this state.
    #[param(value_type = Option<BuildState>, required = false)]
    state: Option<String>,
    /// Only builds whose last attempt was assigned to this worker.
    #[param(pattern = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
    worker: Option<String>,
    /// Only builds with this name. `*` stands for any text, and `?` for one character.
    #[param(min_length = 1)]
    name: Option<String>,
    /// Only builds that require this property of their worker, such as `os=linux`; can be given several times.
    #[param(value_type = Option<Vec<String>>, required = false, pattern = "^[^=]+=.*$", max_items = 16)]
    r#where: Vec<String>,
    /// Maximum number of results.
    #[param(value_type = Option<usize>, required = false, minimum = 1, maximum = 1000, default = 100)]
    limit: Option<String>,
    /// Only builds that are older than this one.
    #[param(pattern = "^[0-9]{1,18}$")]
    before: Option<String>,
    /// Only builds that were accepted at this time or later.
    #[param(value_type = Option<api::Time>, required = false)]
    since: Option<String>,
    /// Only builds that were accepted before this time.
    #[param(value_type = Option<api::Time>, required = false)]
    until: Option<String>,
}

/// By hand, because only `where` may be repeated.
impl TryFrom<Vec<(String, String)>> for ListParams {
    type Error = String;

    fn try_from(pairs: Vec<(String, String)>) -> Result<Self, String> {
        let mut params = Self::default();
        for (key, value) in pairs {
            let field = match key.as_str() {
                "state" => &mut params.state,
                "worker" => &mut params.worker,
                "name" => &mut params.name,
                "limit" => &mut params.limit,
                "before" => &mut params.before,
                "since" => &mut params.since,
                "until" => &mut params.until,
                "where" => {
                    params.r#where.push(value);
                    continue;
                }
                _ => {
                    let known = "state, worker, name, where, limit, before, since, until";
                    return Err(format!("unknown parameter {key:?}; known here are {known}"));
                }
            };
            if field.replace(value).is_some() {
                return Err(format!("{key} is given twice"));
            }
        }
        Ok(params)
    }
}

/// List builds, newest first.
#[utoipa::path(
    get, path = "/api/builds", params(ListParams),
    responses((status = 200, description = "The builds.", body = Vec<api::Build>)),
)]
pub(super) async fn list_builds(
    State(app): State<Arc<App>>,
    Params(params): Params<ListParams>,
) -> Result<Json<Vec<api::Build>>, ApiError> {
    let filter = params.filter()?;
    let builds = app.query(|reply| Query::Builds { filter, reply }).await?.map_err(ApiError::Internal)?;
    Ok(Json(builds.iter().map(views::build).collect()))
}

impl ListParams {
    fn filter(self) -> Result<BuildFilter, ApiError> {
        let state = self.state.map(|text| {
            BuildState::ALL.into_iter().find(|state| state.as_str() == text).ok_or_else(|| {
                let known = BuildState::ALL.map(BuildState::as_str).join(", ");
                ApiError::field("state", format!("{text:?} is not a state of a build: {known}"))
            })
        });
        let worker = self.worker.map(|text| {
            text.parse::<WorkerName>().map_err(|error| ApiError::field("worker", format!("{text:?}: {error}")))
        });
        if self.name.as_deref() == Some("") {
            return Err(ApiError::field("name", "must not be empty: builds without a name cannot be selected"));
        }
        let property = |text: String| match text.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
            Some(_) | None => Err(ApiError::field("where", format!("{text:?} is not a property: write KEY=VALUE"))),
        };
        if self.r#where.len() > MAX_PROPERTIES {
            return Err(ApiError::field("where", format!("must be given at most {MAX_PROPERTIES} times")));
        }
        let before = self.before.map(|text| {
            text.parse::<BuildId>()
                .map_err(|_| ApiError::field("before", format!("{text:?} is not the number of a build")))
        });
        let limit = match self.limit.map(|text| text.parse::<usize>().map_err(|_| text)) {
            None => DEFAULT_LIST,
            Some(Ok(limit)) if (1..=MAX_LIST).contains(&limit) => limit,
            Some(Ok(limit)) => return Err(ApiError::field("limit", format!("must be 1 to {MAX_LIST}, not {limit}"))),
            Some(Err(text)) => return Err(ApiError::field("limit", format!("must be 1 to {MAX_LIST}, not {text:?}"))),
        };
        let time = |field, text: String| {
            api::Time::parse(&text).map(|time| time.0).map_err(|error| {
                ApiError::field(field, format!("{text:?} is not a time such as 2026-11-23T12:00:00Z: {error}"))
            })
        };
        Ok(BuildFilter {
            since: self.since.map(|text| time("since", text)).transpose()?,
            until: self.until.map(|text| time("until", text)).transpose()?,
            state: state.transpose()?,
            worker: worker.transpose()?,
            name: self.name,
            properties: self.r#where.into_iter().map(property).collect::<Result<_, _>>()?,
            before: before.transpose()?,
            limit,
        })
    }
}

/// The build that a path names.
pub(super) async fn find(app: &App, id: &str) -> Result<BuildView, ApiError> {
    let number = number(id)?;
    let found = app.query(|reply| Query::Build { id: number, reply }).await?;
    found.map_err(|why| ApiError::no_build(id, why))
}

fn number(id: &str) -> Result<BuildId, ApiError> {
    id.parse().map_err(|_| ApiError::no_build(id, NoBuild::Unknown))
}

/// Show one build: steps, attempts, hosts, times, evidence.
#[utoipa::path(
    get, path = "/api/builds/{id}", params(("id" = api::Id, Path, description = "The build's number.")),
    responses(
        (status = 200, description = "The build.", body = api::BuildInFull),
        (status = 404, description = "There is no such build.", body = api::Error),
    ),
)]
pub(super) async fn show_build(
    State(app): State<Arc<App>>,
    Segments(id): Segments<String>,
    _: Params<NoParams>,
) -> Result<Json<api::BuildInFull>, ApiError> {
    Ok(Json(views::build_in_full(&find(&app, &id).await?)))
}

/// Explain why a build has not started, what it is doing, or how it ended.
#[utoipa::path(
    get, path = "/api/builds/{id}/why", params(("id" = api::Id, Path, description = "The build's number.")),
    responses(
        (status = 200, description = "Why, in one sentence.", body = api::Why),
        (status = 404, description = "There is no such build.", body = api::Error),
    ),
)]
pub(super) async fn explain_build(
    State(app): State<Arc<App>>,
    Segments(id): Segments<String>,
    _: Params<NoParams>,
) -> Result<Json<api::Why>, ApiError> {
    let number = number(&id)?;
    let found = app.query(|reply| Query::Why { id: number, reply }).await?;
    let why = found.map_err(|why| ApiError::no_build(&id, why))?;
    Ok(Json(views::why(number, why)))
}

/// Submit a build again.
///
/// The new build has the steps, the environment and all other settings of the old one, which may have ended or not. With
/// `worker` in the body, it runs on that worker instead of where the old one could run. Its submitter is who sends this
/// request. Somebody who has not the right `operate` can submit only their own builds again.
#[utoipa::path(
    post, path = "/api/builds/{id}/rerun", params(("id" = api::Id, Path, description = "The build's number.")),
    request_body = api::RerunRequest,
    responses(
        (status = 201, description = "The new build is accepted and saved.", body = api::AcceptedBuild),
        (status = 404, description = "There is no such build.", body = api::Error),
        (status = 413, description = "The body is too large.", body = api::Error),
    ),
)]
pub(super) async fn rerun_build(
    State(app): State<Arc<App>>,
    Segments(id): Segments<String>,
    identity: Identity,
    _: Params<NoParams>,
    Body(body): Body,
) -> Result<(StatusCode, Json<api::AcceptedBuild>), ApiError> {
    let request: api::RerunRequest = if body.is_empty() {
        api::RerunRequest::default()
    } else {
        serde_json::from_slice(&body)
            .map_err(|error| ApiError::Invalid { field: None, reason: format!("the body is invalid: {error}") })?
    };
    let Build { mut spec, status, .. } = find(&app, &id).await?.build;
    identity.check_owner(&id, status.submitter.as_ref())?;
    if let Some(worker) = request.worker {
        let worker = worker.parse().map_err(|error| ApiError::field("worker", format!("{worker:?}: {error}")))?;
        Arc::make_mut(&mut spec).requirement = Requirement::Worker(worker);
    }
    submit(&app, identity.caller, spec).await
}

/// Cancel a build.
///
/// Somebody who has not the right `operate` can cancel only their own builds.
#[utoipa::path(
    post, path = "/api/builds/{id}/cancel",
    params(("id" = api::Id, Path, description = "The build's number."), NoteParams),
    responses(
        (status = 200, description = "The build is being cancelled.", body = api::AcceptedBuild),
        (status = 404, description = "There is no such build, or it has ended.", body = api::Error),
    ),
)]
pub(super) async fn cancel_build(
    State(app): State<Arc<App>>,
    Segments(id): Segments<String>,
    identity: Identity,
    Params(note): Params<NoteParams>,
) -> Result<Json<api::AcceptedBuild>, ApiError> {
    let build = number(&id)?;
    if !identity.may(Right::Operate) {
        identity.check_owner(&id, find(&app, &id).await?.build.status.submitter.as_ref())?;
    }
    done(app.command(note.of(identity)?, Command::CancelBuild(build)).await?)?;
    Ok(Json(api::AcceptedBuild { id: api::Id(build) }))
}

/// The result of a command that returns no data.
pub(super) fn done(reply: Reply) -> Result<(), ApiError> {
    match reply {
        Reply::Done => Ok(()),
        Reply::NotFound(reason) => Err(ApiError::NotFound(reason)),
        Reply::Unavailable(reason) => Err(ApiError::NoSpace(reason)),
        Reply::Refused { reason, .. } => Err(ApiError::Conflict(reason)),
        Reply::Accepted(_) | Reply::Audit(_) => Err(ApiError::mismatch()),
    }
}
