//! Measures latencies.

use crate::Outcome;
use crate::raw;
use crate::stand::{Change, PATIENCE, Stand, end, spawn};
use crate::table::Table;
use crate::time::{Watch, nanoseconds, percentile};
use serde_json::{Value, json};
use std::path::Path;
use std::time::Duration;
use tokio::process::Command;
use tokio::sync::mpsc;

const SAMPLES: usize = 300;
/// Thrown away: caches of the broker's and connections are cold.
const WARMUP: usize = 20;
/// Between two samples: what follows a build's end is over by then.
const PAUSE: Duration = Duration::from_millis(10);

/// One build, milliseconds from before it was submitted.
struct Sample {
    accepted: f64,
    running: f64,
    output: f64,
    finished: f64,
}

/// Waits for an event; gives the moment it came.
pub async fn wait_for(changes: &mut mpsc::Receiver<Change>, fits: impl Fn(&str, &Value) -> bool) -> Outcome<Watch> {
    let found = async {
        while let Some(change) = changes.recv().await {
            if fits(&change.kind, &change.data) {
                return Some(change.at);
            }
        }
        None
    };
    tokio::time::timeout(PATIENCE, found).await?.ok_or_else(|| "the master's events ended".into())
}

pub fn worker_is<'a>(name: &'a str, state: &'a str) -> impl Fn(&str, &Value) -> bool + 'a {
    move |kind, data| kind == "worker" && data["name"] == name && data["state"] == state
}

async fn sample(stand: &Stand, changes: &mut mpsc::Receiver<Change>, build: &Value) -> Outcome<Sample> {
    let mut submitting = stand.client().await?;
    let mut following = stand.client().await?;
    let (start, began) = (Watch::start(), nanoseconds());
    let id = submitting.submit(build).await?;
    let accepted = start.seconds() * 1e3;
    following.follow(&format!("/api/builds/{id}/steps/1/log?follow=1")).await?;
    let piece = following.piece().await?;
    let output = start.seconds() * 1e3;
    let printed: u64 = String::from_utf8_lossy(&piece).trim().parse()?;
    let finished =
        wait_for(changes, |kind, data| kind == "build" && data["id"] == *id && data["state"] == "success").await?;
    let running = printed.saturating_sub(began) as f64 / 1e6;
    Ok(Sample { accepted, running, output, finished: finished.since(start) })
}

/// Milliseconds until each of some builds of the worker `one` runs its command.
pub async fn running(stand: &Stand, changes: &mut mpsc::Receiver<Change>, program: &Path) -> Outcome<Vec<f64>> {
    let build = json!({ "worker": "one", "step": [{ "run": [program, "print-time"] }] });
    let mut times = Vec::new();
    for number in 0..SAMPLES + WARMUP {
        let sample = sample(stand, changes, &build).await?;
        if number >= WARMUP {
            times.push(sample.running);
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(times)
}

/// Milliseconds until the same command runs that is only spawned.
async fn spawns(program: &Path) -> Outcome<Vec<f64>> {
    let mut times = Vec::new();
    for _ in 0..SAMPLES {
        let began = nanoseconds();
        let output = std::process::Command::new(program).arg("print-time").output()?;
        let at: u64 = String::from_utf8_lossy(&output.stdout).trim().parse()?;
        times.push(at.saturating_sub(began) as f64 / 1e6);
    }
    Ok(times)
}

fn three(times: &mut [f64]) -> String {
    let [p50, p90, p99] = [0.5, 0.9, 0.99].map(|share| percentile(times, share));
    format!("{p50:.2} / {p90:.2} / {p99:.2} ms")
}

pub async fn latency(stand: &Stand, program: &Path, table: &mut Table) -> Outcome {
    let mut changes = stand.listen().await?;
    let mut agent = stand.agent("one")?;
    wait_for(&mut changes, worker_is("one", "idle")).await?;
    let build = json!({ "worker": "one", "step": [{ "run": [program, "print-time"] }] });
    let mut samples = Vec::new();
    for number in 0..SAMPLES + WARMUP {
        let sample = sample(stand, &mut changes, &build).await?;
        if number >= WARMUP {
            samples.push(sample);
        }
        tokio::time::sleep(PAUSE).await;
    }
    end(&mut agent, libc::SIGTERM).await?;
    let mut round = raw::round_trips(&stand.raw_url()?, SAMPLES).await?;
    let mut spawn = spawns(program).await?;
    let of = |field: fn(&Sample) -> f64| samples.iter().map(field).collect::<Vec<f64>>();
    let reference = format!("round trip {}; spawn {}", three(&mut round), three(&mut spawn));
    let limit = percentile(&mut round, 0.5) + percentile(&mut spawn, 0.5);
    let ratio = |times: &mut [f64]| format!("{:.1} of round trip + spawn", percentile(times, 0.5) / limit);
    for (what, mut times, goal) in [
        ("submit → accepted (committed), p50 / p90 / p99", of(|s| s.accepted), ""),
        ("submit → command running, idle worker", of(|s| s.running), "3 ms p50"),
        ("submit → first output at the user", of(|s| s.output), ""),
        ("submit → finished", of(|s| s.finished), "8 / 15 ms p50 / p90"),
    ] {
        table.row(what, three(&mut times), reference.clone(), ratio(&mut times), goal);
    }
    Ok(())
}

pub async fn wake(stand: &Stand, program: &Path, table: &mut Table) -> Outcome {
    let mut changes = stand.listen().await?;
    let build = json!({ "worker": "host", "step": [{ "run": [program, "print-time"] }] });
    let mut running = Vec::new();
    let mut finished = Vec::new();
    for _ in 0..20 {
        let sample = sample(stand, &mut changes, &build).await?;
        running.push(sample.running);
        finished.push(sample.finished);
        wait_for(&mut changes, worker_is("host", "asleep")).await?;
    }
    let url = stand.raw_url()?;
    let mut attaches = Vec::new();
    for _ in 0..20 {
        attaches.push(raw::attach(&url).await?);
    }
    let ratio = percentile(&mut running, 0.5) / percentile(&mut attaches, 0.5);
    let reference = format!("connect and declare {:.1} ms", percentile(&mut attaches, 0.5));
    let figure = three(&mut running);
    table.row("asleep process host: submit → command running", figure, reference, format!("{ratio:.1}"), "40 ms");
    Ok(())
}

pub async fn attach(stand: &Stand, table: &mut Table) -> Outcome {
    let mut changes = stand.listen().await?;
    let url = stand.raw_url()?;
    let (mut times, mut raws, mut starts) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..20 {
        let start = Watch::start();
        let mut agent = stand.agent("one")?;
        let attached = wait_for(&mut changes, worker_is("one", "idle")).await?;
        times.push(attached.since(start));
        // An agent that ends before it has read its welcome cannot take leave, and its lease would have to run out.
        tokio::time::sleep(PAUSE * 10).await;
        end(&mut agent, libc::SIGTERM).await?;
        wait_for(&mut changes, worker_is("one", "offline")).await?;
        raws.push(raw::attach(&url).await?);
        let start = Watch::start();
        spawn(Command::new(&stand.programs.agent).arg("--version").stdout(std::process::Stdio::null()))?.wait().await?;
        starts.push(start.seconds() * 1e3);
    }
    let reference = format!(
        "connect and declare {:.1} ms; `rouse-agent --version` {:.1} ms",
        percentile(&mut raws, 0.5),
        percentile(&mut starts, 0.5)
    );
    let ratio = percentile(&mut times, 0.5) / (percentile(&mut raws, 0.5) + percentile(&mut starts, 0.5));
    table.row("agent start → attached", three(&mut times), reference, format!("{ratio:.1}"), "28 ms p50");
    Ok(())
}
