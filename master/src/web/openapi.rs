//! The description of the API, for `/openapi.json`. A test compares it with the table of routes.

use super::{DEFAULT_LIST, MAX_LIST};
use serde_json::{Value, json};

/// The whole document.
pub(super) fn document(version: &str) -> Value {
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "rouse",
            "version": version,
            "description": "Builds, workers and hosts of a rouse master. Ids are text, times RFC 3339 in UTC, durations \
                seconds. What changes something needs the master's token; off loopback reading needs it too. Errors are \
                objects with `error`, and `field` where one field is at fault. On loopback 421 answers a Host that is not.",
        },
        "components": {
            "securitySchemes": { "token": { "type": "http", "scheme": "bearer" } },
            "schemas": schemas(),
        },
        "paths": {
            "/api/builds": {
                "get": operation("Builds, newest first.", ok(array("Build")), &[400], json!([
                    query("state", state(&["queued", "starting", "running", "success", "failure", "cancelled", "lost"]), "Only those in this state."),
                    query("limit", json!({ "type": "integer", "minimum": 1, "maximum": MAX_LIST, "default": DEFAULT_LIST }), "So many at most."),
                    query("before", text(), "Only those that are older than the build of this number."),
                ])),
                "post": writes("Submit a build.", json!({ "201": answer("The build is accepted, and kept.", json!({
                    "type": "object", "properties": { "id": text() }, "required": ["id"],
                })) }), &[400, 413], Some("Submission")),
            },
            "/api/builds/{id}": {
                "parameters": [path("id", text(), "The build's number.")],
                "get": operation("One build: steps, attempts, hosts, times, evidence.", ok(reference("BuildInFull")), &[404], json!([])),
            },
            "/api/builds/{id}/why": {
                "parameters": [path("id", text(), "The build's number.")],
                "get": operation("Why the build has not started, or what has become of it.", ok(reference("Why")), &[404], json!([])),
            },
            "/api/builds/{id}/steps/{step}/log": {
                "parameters": [
                    path("id", text(), "The build's number."),
                    path("step", json!({ "type": "integer", "minimum": 1 }), "The step, from 1."),
                ],
                "get": operation(
                    "A step's log, as bytes. Honours Range; a range of a log that is followed is answered as RFC 8673 has it.",
                    json!({ "200": bytes("The log."), "206": bytes("The range of it.") }),
                    &[400, 404, 416],
                    json!([
                        query("follow", json!({ "enum": ["0", "1"], "default": "0" }), "1: go on until the step's log is whole. Waits for the step to begin; a stream that is cut in the middle is to be asked for again from there."),
                        query("attempt", json!({ "type": "integer", "minimum": 1 }), "Which attempt, from 1; the last one where it is absent."),
                    ]),
                ),
            },
            "/api/builds/{id}/cancel": {
                "parameters": [path("id", text(), "The build's number.")],
                "post": writes("Cancel a build.", json!({ "200": answer("It will end, if it has not.", object()) }), &[404, 409], None),
            },
            "/api/workers": { "get": operation("Every worker, by name.", ok(array("Worker")), &[], json!([])) },
            "/api/workers/{name}/{operation}": {
                "parameters": [
                    path("name", text(), "The worker."),
                    path("operation", json!({ "enum": ["pause", "resume", "drain"] }), "pause: no new builds; resume: work again; drain: pause, then terminate its host when idle."),
                ],
                "post": writes("Ask something of a worker.", json!({ "200": answer("It is asked.", object()) }), &[404, 409], None),
            },
            "/api/hosts": { "get": operation("Every host that is not gone.", ok(array("Host")), &[], json!([])) },
            "/api/mails": { "get": operation("The mails about missing workers that the relay has not taken yet, oldest first.", ok(array("Mail")), &[], json!([])) },
            "/api/audit": {
                "get": operation("Hold the ledger against what the clouds list under our name, now. Takes a second where something differs.", ok(reference("Audit")), &[409, 503], json!([])),
                "post": writes("The same, and put right what differs: within 45 s, then what still differs is told.", ok(reference("Audit")), &[400, 409, 503], Some("AuditOrder")),
            },
            "/api/events": {
                "get": operation(
                    "Every change from now on: events `build`, `worker` and `host`. A client that is too slow gets `lagged` and the end.",
                    json!({ "200": { "description": "The stream.", "content": { "text/event-stream": {} } } }),
                    &[],
                    json!([]),
                ),
            },
            "/metrics": {
                "get": operation(
                    "Figures for Prometheus.",
                    json!({ "200": { "description": "The figures.", "content": { "text/plain": {} } } }),
                    &[],
                    json!([]),
                ),
            },
            "/healthz": { "get": operation("Whether the master can do its work.", ok(object()), &[503], json!([])) },
            "/": {
                "get": {
                    "summary": "A page for people, made of the rest of this. Needs no token.",
                    "responses": { "200": { "description": "The page.", "content": { "text/html": {} } } },
                    "parameters": [],
                },
            },
            "/openapi.json": { "get": operation("This document.", ok(object()), &[], json!([])) },
        },
    })
}

fn operation(summary: &str, mut responses: Value, errors: &[u16], parameters: Value) -> Value {
    for status in errors {
        responses[status.to_string()] = answer("Why not.", reference("Error"));
    }
    responses["401"] = answer("The token is missing or wrong.", reference("Error"));
    json!({ "summary": summary, "responses": responses, "parameters": parameters })
}

fn writes(summary: &str, responses: Value, errors: &[u16], body: Option<&str>) -> Value {
    // A disk without room refuses every wish.
    let errors: Vec<u16> = errors.iter().copied().chain([507]).collect();
    let mut whole = operation(summary, responses, &errors, json!([]));
    whole["security"] = json!([{ "token": [] }]);
    if let Some(name) = body {
        whole["requestBody"] =
            json!({ "required": true, "content": { "application/json": { "schema": reference(name) } } });
    }
    whole
}

fn ok(schema: Value) -> Value {
    json!({ "200": answer("As asked.", schema) })
}

fn answer(description: &str, schema: Value) -> Value {
    json!({ "description": description, "content": { "application/json": { "schema": schema } } })
}

fn bytes(description: &str) -> Value {
    json!({ "description": description, "content": { "text/plain": {} } })
}

fn query(name: &str, schema: Value, description: &str) -> Value {
    json!({ "name": name, "in": "query", "schema": schema, "description": description })
}

fn path(name: &str, schema: Value, description: &str) -> Value {
    json!({ "name": name, "in": "path", "required": true, "schema": schema, "description": description })
}

fn reference(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

fn array(name: &str) -> Value {
    json!({ "type": "array", "items": reference(name) })
}

fn object() -> Value {
    json!({ "type": "object" })
}

fn text() -> Value {
    json!({ "type": "string" })
}

fn state(states: &[&str]) -> Value {
    json!({ "type": "string", "enum": states })
}

fn maybe(kind: &str) -> Value {
    json!({ "type": [kind, "null"] })
}

fn schemas() -> Value {
    let builds = ["queued", "starting", "running", "success", "failure", "cancelled", "lost"];
    let workers =
        ["offline", "asleep", "starting", "idle", "busy", "draining", "paused", "missing", "backoff", "quarantined"];
    let (integer, table) = (json!({ "type": "integer" }), json!({ "type": "object", "additionalProperties": text() }));
    let duration = json!({ "type": ["integer", "string"], "description": "Seconds, or with a unit: 5m, 1h30m." });
    json!({
        "Error": { "type": "object", "properties": { "error": text(), "field": text() }, "required": ["error"] },
        "Submission": { "type": "object", "required": ["step"], "properties": {
            "name": text(), "worker": text(), "where": table, "priority": integer, "retries": integer,
            "timeout": duration, "env": table,
            "step": { "type": "array", "minItems": 1, "items": { "type": "object", "required": ["run"], "properties": {
                "name": text(),
                "run": { "type": ["string", "array"], "items": text(), "description": "A program and its arguments, or one string for sh -c." },
                "workdir": text(), "env": table, "timeout": duration, "silence": duration, "always": { "type": "boolean" },
            } } },
        } },
        "Build": { "type": "object", "properties": {
            "id": text(), "name": text(), "state": state(&builds), "worker": maybe("string"), "attempts": integer,
            "priority": integer, "created": text(), "started": maybe("string"), "finished": maybe("string"),
            "reason": maybe("string"),
        } },
        "BuildInFull": { "allOf": [reference("Build"), { "type": "object", "properties": {
            "wanted_worker": maybe("string"), "where": maybe("object"), "retries": integer, "timeout": maybe("number"),
            "cancel_requested": { "type": "boolean" },
            "steps": { "type": "array", "items": object(), "description": "What was asked for: number, name, run, always." },
            "tries": { "type": "array", "items": reference("Attempt") },
            "evidence": { "type": "array", "items": object(), "description": "Hosts that were started for it and never attached: host, worker, at, why, console." },
        } }] },
        "Attempt": { "type": "object", "properties": {
            "number": integer, "worker": text(), "host": maybe("string"),
            "state": state(&["starting", "running", "success", "failure", "cancelled", "lost", "declined"]),
            "reason": maybe("string"), "ordered": text(), "started": maybe("string"), "ended": maybe("string"),
            "steps": { "type": "array", "items": reference("Step") },
        } },
        "Step": { "type": "object", "properties": {
            "number": integer, "name": text(),
            "state": state(&["pending", "running", "success", "failure", "timed_out", "silent", "stopped", "skipped", "lost", "not_started"]),
            "exit_code": maybe("integer"), "signal": maybe("integer"), "reason": maybe("string"),
            "started": maybe("string"), "duration": maybe("number"), "log_length": maybe("integer"),
            "log_thrown_away": maybe("integer"), "log_lacks_end": { "type": "boolean" },
        } },
        "Why": { "type": "object", "properties": { "id": text(), "sentence": text(), "next_try": maybe("string") } },
        "Worker": { "type": "object", "properties": {
            "name": text(), "kind": state(&["standing", "latent"]), "provider": maybe("string"),
            "state": state(&workers), "since": text(), "running": integer, "max_builds": maybe("integer"),
            "host": maybe("string"), "agent_version": maybe("string"), "properties": table,
            "last_failure": maybe("string"), "next_try": maybe("string"), "facts": maybe("object"), "vitals": maybe("object"),
            "last_heard": maybe("string"), "refused": maybe("object"),
        } },
        "Host": { "type": "object", "properties": {
            "id": text(), "worker": text(), "provider": text(), "handle": maybe("string"),
            "state": state(&["ordered", "booting", "ready", "draining", "suspending", "suspended", "resuming", "terminating"]),
            "created": text(), "stopped_since": maybe("string"),
            "booted": maybe("string"), "attached": maybe("string"), "uses": integer, "build": maybe("string"),
            "why": maybe("string"), "cost": maybe("number"),
        } },
        "Mail": { "type": "object", "properties": {
            "id": text(), "created": text(), "tries": integer, "next_try": text(), "error": maybe("string"),
            "waiting": { "type": "array", "items": text(), "description": "The recipients that still wait." },
            "tells": { "type": "array", "items": text(), "description": "What it tells, a sentence each." },
        } },
        "AuditOrder": { "type": "object", "properties": {
            "fix": { "type": "boolean", "description": "Terminate orphans, and take hosts for gone that no list has any more." },
            "adopt": { "type": "boolean", "description": "With fix: stop machines of our name and another id too." },
        } },
        "Audit": { "type": "object", "properties": {
            "clean": { "type": "boolean", "description": "Nothing differs, or nothing any more." },
            "hosts": integer, "listed": integer,
            "differences": { "type": "array", "items": { "type": "object", "properties": {
                "kind": state(&["orphan", "foreign", "missing", "running", "list_failed"]), "provider": text(),
                "handle": maybe("string"), "host": maybe("string"), "owner": maybe("string"), "why": text(),
                "done": { "type": "boolean", "description": "This audit has put it right." },
            } } },
        } },
    })
}
