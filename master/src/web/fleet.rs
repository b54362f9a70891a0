//! Workers, hosts, mails and the master's health over HTTP.

use super::auth::Identity;
use super::builds::done;
use super::error::{ApiError, NoParams, Params, Segments};
use super::journal::NoteParams;
use super::{App, Query, Uploads, views};
use crate::api;
use crate::core::event::{Command, Operation};
use axum::Json;
use axum::extract::State;
use rouse_shared::{HostId, WorkerName};
use serde::Deserialize;
use serde::de::IntoDeserializer as _;
use serde::de::value::Error as ValueError;
use std::sync::Arc;

/// List every worker, by name.
#[utoipa::path(
    get, path = "/api/workers", responses((status = 200, description = "The workers.", body = Vec<api::Worker>)),
)]
pub(super) async fn list_workers(
    State(app): State<Arc<App>>,
    _: Params<NoParams>,
) -> Result<Json<Vec<api::Worker>>, ApiError> {
    let workers = app.query(|reply| Query::Workers { reply }).await?;
    Ok(Json(workers.into_iter().map(views::worker).collect()))
}

/// List every host that is not terminated.
#[utoipa::path(
    get, path = "/api/hosts", responses((status = 200, description = "The hosts.", body = Vec<api::Host>)),
)]
pub(super) async fn list_hosts(
    State(app): State<Arc<App>>,
    _: Params<NoParams>,
) -> Result<Json<Vec<api::Host>>, ApiError> {
    let hosts = app.query(|reply| Query::Hosts { reply }).await?;
    Ok(Json(hosts.into_iter().map(views::host).collect()))
}

/// List the mails that the relay has not accepted yet, oldest first.
#[utoipa::path(
    get, path = "/api/mails", responses((status = 200, description = "The mails.", body = Vec<api::Mail>)),
)]
pub(super) async fn list_mails(
    State(app): State<Arc<App>>,
    _: Params<NoParams>,
) -> Result<Json<Vec<api::Mail>>, ApiError> {
    let mails = app.query(|reply| Query::Mails { reply }).await?;
    Ok(Json(mails.into_iter().map(views::mail).collect()))
}

/// Get the state of the uploads of logs to the blob store.
#[utoipa::path(
    get, path = "/api/log-uploads",
    responses((status = 200, description = "The uploads.", body = api::LogUploads)),
)]
pub(super) async fn show_log_uploads(
    State(app): State<Arc<App>>,
    _: Params<NoParams>,
) -> Result<Json<api::LogUploads>, ApiError> {
    let Uploads { store, waiting, waiting_bytes, trouble } = app.query(|reply| Query::Uploads { reply }).await?;
    Ok(Json(api::LogUploads { store, waiting, waiting_bytes, trouble }))
}

/// Pause, resume or drain a worker.
///
/// `pause`: the worker gets no new builds. `resume`: ends pause, drain and backoff. `drain`: pauses the worker, and
/// terminates its host when it is idle.
#[utoipa::path(
    post, path = "/api/workers/{name}/{operation}",
    params(
        ("name" = String, Path, description = "The worker's name.", pattern = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"),
        ("operation" = Operation, Path, description = "The operation."),
        NoteParams,
    ),
    responses(
        (status = 200, description = "The operation was carried out.", body = api::WorkerOperation),
        (status = 404, description = "There is no such worker or operation.", body = api::Error),
    ),
)]
pub(super) async fn operate_worker(
    State(app): State<Arc<App>>,
    Segments((name, operation)): Segments<(String, String)>,
    identity: Identity,
    Params(note): Params<NoteParams>,
) -> Result<Json<api::WorkerOperation>, ApiError> {
    let operation = Operation::deserialize(operation.as_str().into_deserializer()).map_err(|_: ValueError| {
        ApiError::NotFound("the operations of a worker are pause, resume and drain".to_owned())
    })?;
    let worker: WorkerName = name.parse().map_err(|_| ApiError::NotFound(format!("there is no worker {name:?}")))?;
    done(app.command(note.of(identity)?, Command::Operate { worker: worker.clone(), operation }).await?)?;
    Ok(Json(api::WorkerOperation { name: worker, operation }))
}

/// Terminate a host at once.
///
/// Its builds are retried elsewhere, which does not count as one of their retries. Its worker stays in use.
#[utoipa::path(
    post, path = "/api/hosts/{id}/terminate",
    params(("id" = String, Path, description = "The host's id."), NoteParams),
    responses(
        (status = 200, description = "The host is being terminated.", body = api::TerminatedHost),
        (status = 404, description = "There is no such host.", body = api::Error),
    ),
)]
pub(super) async fn terminate_host(
    State(app): State<Arc<App>>,
    Segments(id): Segments<String>,
    identity: Identity,
    Params(note): Params<NoteParams>,
) -> Result<Json<api::TerminatedHost>, ApiError> {
    let id = HostId(id);
    done(app.command(note.of(identity)?, Command::TerminateHost(id.clone())).await?)?;
    Ok(Json(api::TerminatedHost { id }))
}

/// Give up a host that is gone for good.
///
/// Its machine may still run and cost money. If the machine appears again, it is an orphan. The builds of the host are
/// retried elsewhere after its lease and grace, which does not count as one of their retries. Refused while its agent
/// is attached.
#[utoipa::path(
    post, path = "/api/hosts/{id}/forget",
    params(("id" = String, Path, description = "The host's id."), NoteParams),
    responses(
        (status = 200, description = "The host is given up.", body = api::ForgottenHost),
        (status = 400, description = "Its agent is attached.", body = api::Error),
        (status = 404, description = "There is no such host.", body = api::Error),
    ),
)]
pub(super) async fn forget_host(
    State(app): State<Arc<App>>,
    Segments(id): Segments<String>,
    identity: Identity,
    Params(note): Params<NoteParams>,
) -> Result<Json<api::ForgottenHost>, ApiError> {
    let id = HostId(id);
    done(app.command(note.of(identity)?, Command::ForgetHost(id.clone())).await?)?;
    Ok(Json(api::ForgottenHost { id }))
}

/// Report whether the master can do its work.
#[utoipa::path(
    get, path = "/healthz", responses((status = 200, description = "The master can do its work. Otherwise 503, with the reason.", body = api::Health)),
)]
pub(super) async fn health(State(app): State<Arc<App>>, _: Params<NoParams>) -> Result<Json<api::Health>, ApiError> {
    let health = app.query(|reply| Query::Health { reply }).await?;
    let mut faults = Vec::new();
    if !health.broker {
        faults.push("the link to the broker is down".to_owned());
    }
    if let Some(why) = health.alarm {
        faults.push(format!("the broker accepts no messages ({why}): running builds continue, and nothing is started"));
    }
    if let Err(error) = health.ledger {
        faults.push(format!("the ledger cannot be written: {error}"));
    }
    if faults.is_empty() {
        let settings = &app.settings;
        Ok(Json(api::Health {
            status: api::HealthStatus::Ok,
            master: settings.master_name.clone(),
            version: settings.version.to_owned(),
            role: if app.masters.standby().is_some() { api::Role::Standby } else { api::Role::Active },
        }))
    } else {
        Err(ApiError::Unhealthy(faults.join("; ")))
    }
}
