//! Measures a master with thousands of workers: they attach, run builds, and come back after the broker and the master
//! were restarted.

use crate::Outcome;
use crate::latency::wait_for;
use crate::raw;
use crate::stand::{Load, Stand};
use crate::table::Table;
use crate::time::{Memory, Watch, cpu, percentile};
use serde_json::json;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Numbers of workers.
const SIZES: [usize; 3] = [1_000, 5_000, 10_000];
/// The largest of them.
pub const MOST: usize = 10_000;
/// How long idle workers are watched, after as long for everything to settle.
const IDLE: Duration = Duration::from_secs(15);
/// Builds of the backlog.
const BUILDS: usize = 20_000;
/// Lone builds whose dispatch is timed.
const SAMPLES: usize = 200;
/// Between two of them.
const PAUSE: Duration = Duration::from_millis(10);
/// For the backlog to be run, and for all workers to be back.
const LONG: Duration = Duration::from_secs(300);
/// Interval of the requests that show how long the master's loop is busy.
const ASK: Duration = Duration::from_millis(10);

pub async fn scale(stand: &mut Stand, table: &mut Table) -> Outcome {
    for workers in SIZES {
        let raw = stand.raw_loads(workers).await?;
        let reference = slowest(&raw);
        end(raw).await?;
        let before = cpu(stand.master_pid());
        let mut loads = stand.loads(workers).await?;
        stand.idle(workers as u64).await?;
        let (seconds, attaching) = (slowest(&loads), cpu(stand.master_pid()) - before);
        let reference_text = format!("raw connections {reference:.1} s; master {attaching:.1} s of CPU");
        let ratio = format!("{:.1}", seconds / reference);
        let goal = if workers == MOST { "60 s" } else { "" };
        table.row(&format!("{workers} workers attach at once"), format!("{seconds:.1} s"), reference_text, ratio, goal);
        idle(stand, workers, table).await?;
        dispatch(stand, workers, "idle", table).await?;
        backlog(stand, workers, table).await?;
        let what = format!("broker killed: {workers} workers are back");
        // SAFETY: the process is the stand's broker, which is alive.
        unsafe { libc::kill(stand.broker_pid()?.cast_signed(), libc::SIGKILL) };
        back(stand, &mut loads, Watch::start(), &what, table).await?;
        let what = format!("master restarted: {workers} workers are back");
        stand.restart_master().await?;
        back(stand, &mut loads, Watch::start(), &what, table).await?;
        end(loads).await?;
        stand.idle(0).await?;
    }
    Ok(())
}

fn slowest(loads: &[Load]) -> f64 {
    loads.iter().map(|load| load.seconds).fold(0.0, f64::max)
}

async fn end(loads: Vec<Load>) -> Outcome {
    for load in loads {
        load.end().await?;
    }
    Ok(())
}

/// What it costs that they are there.
async fn idle(stand: &Stand, workers: usize, table: &mut Table) -> Outcome {
    let (master, broker) = (stand.master_pid(), stand.broker_pid()?);
    tokio::time::sleep(IDLE).await;
    let (watch, before) = (Watch::start(), (cpu(master), cpu(broker)));
    tokio::time::sleep(IDLE).await;
    let used = |pid, before| (cpu(pid) - before) / watch.seconds() * 100.0;
    let figure = format!("{:.1}% of a core", used(master, before.0));
    let reference = format!("broker {:.0}%", used(broker, before.1));
    let goal = if workers == MOST { "below 10%" } else { "" };
    table.row(&format!("master CPU, {workers} idle workers"), figure, reference, String::new(), goal);
    let figure = format!("{:.0} MB", Memory::of(master)?.now);
    let reference = format!("broker {:.0} MB", Memory::of(broker)?.now);
    table.row(&format!("master RSS, {workers} idle workers"), figure, reference, String::new(), "");
    Ok(())
}

/// A row about lone builds.
async fn dispatch(stand: &Stand, workers: usize, meanwhile: &str, table: &mut Table) -> Outcome {
    let mut times = dispatched(stand).await?;
    let figure = format!("{:.2} ms", percentile(&mut times, 0.5));
    let reference = format!("p99 {:.2} ms", percentile(&mut times, 0.99));
    let what = format!("submit → ended, {workers} workers, {meanwhile}");
    table.row(&what, figure, reference, String::new(), "");
    Ok(())
}

/// Milliseconds from the submission of each of some lone builds to its end.
pub async fn dispatched(stand: &Stand) -> Outcome<Vec<f64>> {
    let build = json!({ "priority": 1, "where": { "kind": "load" }, "step": [{ "run": ["true"] }] });
    let mut changes = stand.listen().await?;
    let mut times = Vec::new();
    for _ in 0..SAMPLES {
        let mut client = stand.client().await?;
        let start = Watch::start();
        let id = client.submit(&build).await?;
        let ended =
            wait_for(&mut changes, |kind, data| kind == "build" && data["id"] == *id && data["state"] == "success");
        times.push(ended.await?.since(start));
        tokio::time::sleep(PAUSE).await;
    }
    Ok(times)
}

/// Runs many builds, and times lone ones of a higher priority meanwhile.
async fn backlog(stand: &Stand, workers: usize, table: &mut Table) -> Outcome {
    let done = "rouse_builds{state=\"success\"}";
    let count = |metrics: &str| crate::http::gauge(metrics, done);
    let before = count(&stand.client().await?.get("/metrics").await?);
    let build = json!({ "where": { "kind": "load" }, "step": [{ "run": ["true"] }] }).to_string();
    let (over, url) = (Arc::new(AtomicBool::new(false)), stand.raw_url()?);
    let asking = ask(stand, over.clone()).await?;
    let watch = Watch::start();
    let submitting = tokio::spawn(async move { raw::submit(&url, &build, BUILDS).await });
    dispatch(stand, workers, "20,000 builds", table).await?;
    submitting.await??;
    let mut client = stand.client().await?;
    while count(&client.get("/metrics").await?) - before < (BUILDS + SAMPLES) as u64 {
        if watch.elapsed() > LONG {
            return Err("the builds of the backlog have not ended".into());
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    let figure = format!("{:.0} /s", BUILDS as f64 / watch.seconds());
    over.store(true, Ordering::Relaxed);
    let longest = format!("longest answer of the API {:.0} ms", asking.await??);
    table.row(&format!("builds that spawn nothing, {workers} workers"), figure, longest, String::new(), "");
    Ok(())
}

/// Asks the master's loop something small again and again: the longest answer, milliseconds.
async fn ask(stand: &Stand, over: Arc<AtomicBool>) -> Outcome<tokio::task::JoinHandle<std::io::Result<f64>>> {
    let mut client = stand.client().await?;
    Ok(tokio::spawn(async move {
        let mut longest = 0.0_f64;
        while !over.load(Ordering::Relaxed) {
            let watch = Watch::start();
            client.get("/api/hosts").await?;
            longest = longest.max(watch.seconds() * 1e3);
            tokio::time::sleep(ASK).await;
        }
        Ok(longest)
    }))
}

/// Waits until all workers are attached again, and looks whether a lease was lost.
async fn back(stand: &Stand, loads: &mut [Load], since: Watch, what: &str, table: &mut Table) -> Outcome {
    let lost = || fs::read_to_string(stand.path("master.log")).map(|log| log.matches("has expired").count());
    let before = lost()?;
    for load in loads.iter_mut() {
        tokio::time::timeout(LONG, load.attached()).await??;
    }
    stand.idle(loads.iter().map(|load| load.workers as u64).sum()).await?;
    let figure = format!("{:.1} s", since.seconds());
    let expired = lost()? - before;
    table.row(what, figure, format!("{expired} leases expired"), String::new(), "within the lease of 60 s, none");
    Ok(())
}
