//! Workers, hosts and the master's health over HTTP.

use super::answer::{Failure, NoParams, Params};
use super::builds::done;
use super::{App, Call, json};
use crate::core::event::Operation;
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use rouse_shared::WorkerName;
use serde_json::{Value, json};
use std::sync::Arc;

pub(super) async fn workers(State(app): State<Arc<App>>, _: Params<NoParams>) -> Result<Json<Value>, Failure> {
    let workers = app.ask(|reply| Call::Workers { reply }).await?;
    Ok(Json(workers.iter().map(json::worker).collect()))
}

pub(super) async fn hosts(State(app): State<Arc<App>>, _: Params<NoParams>) -> Result<Json<Value>, Failure> {
    let hosts = app.ask(|reply| Call::Hosts { reply }).await?;
    Ok(Json(hosts.iter().map(json::host).collect()))
}

pub(super) async fn mails(State(app): State<Arc<App>>, _: Params<NoParams>) -> Result<Json<Value>, Failure> {
    let mails = app.ask(|reply| Call::Mails { reply }).await?;
    Ok(Json(mails.iter().map(json::mail).collect()))
}

pub(super) async fn operate(
    State(app): State<Arc<App>>,
    Path((name, operation)): Path<(String, String)>,
    _: Params<NoParams>,
) -> Result<Json<Value>, Failure> {
    let wanted = match operation.as_str() {
        "pause" => Operation::Pause,
        "resume" => Operation::Resume,
        "drain" => Operation::Drain,
        _ => return Err(Failure::not_found("a worker takes pause, resume and drain")),
    };
    let worker: WorkerName = name.parse().map_err(|_| Failure::not_found(format!("there is no worker {name:?}")))?;
    done(app.ask(|reply| Call::Operate { worker, operation: wanted, reply }).await?)?;
    Ok(Json(json!({ "name": name, "operation": operation })))
}

/// 200 while the master can do its work, else 503 and why it cannot.
pub(super) async fn health(State(app): State<Arc<App>>, _: Params<NoParams>) -> Result<Json<Value>, Failure> {
    let health = app.ask(|reply| Call::Health { reply }).await?;
    let mut faults = Vec::new();
    if !health.broker {
        faults.push("the link to the broker is down".to_owned());
    }
    if let Err(error) = health.ledger {
        faults.push(format!("the ledger cannot be written: {error}"));
    }
    if faults.is_empty() {
        let settings = &app.settings;
        Ok(Json(json!({ "status": "ok", "master": settings.master_name, "version": settings.version })))
    } else {
        Err(Failure::new(StatusCode::SERVICE_UNAVAILABLE, faults.join("; ")))
    }
}
