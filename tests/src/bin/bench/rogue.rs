//! Measures how much longer a dispatch takes while the agent of another worker does harm.

use crate::Outcome;
use crate::latency::{running, wait_for, worker_is};
use crate::stand::{PASSWORD, PATIENCE, Stand, end};
use crate::table::Table;
use crate::time::{Watch, percentile};
use rouse_tests::rogue::{Hostile, Rogue};
use serde_json::json;
use std::path::Path;
use std::time::Duration;
use tokio::task::JoinHandle;

/// Interval at which a rogue that keeps within the limits sends its messages, and how many of each kind: together 2,600
/// messages, 14 MB of reports and 20 MB of logs each second.
const TICK: Duration = Duration::from_millis(10);
const HEARTBEATS: u64 = 22;
const CHUNKS: u64 = 3;
const REPORTS: u64 = 1;

/// How long a rogue waits until it is let in.
const ATTACH: Duration = Duration::from_secs(5);

/// Attaches as the worker `rogue`, and does harm until it is aborted or its connection is closed.
async fn rogue(stand: &Stand, within_limits: bool) -> Outcome<JoinHandle<u64>> {
    let mut client = stand.client().await?;
    let build = json!({ "worker": "rogue", "retries": 0, "queue_timeout": "5s", "step": [{ "run": ["true"] }] });
    let watch = Watch::start();
    let mut rogue = loop {
        let hostile = Hostile::connect(&stand.broker(), "rogue", PASSWORD).await?;
        client.submit(&build).await?;
        // The lease of the rogue before it may not be over.
        match tokio::time::timeout(ATTACH, Rogue::attach(hostile, || ())).await {
            Ok(rogue) => break rogue?,
            Err(_) if watch.elapsed() < PATIENCE => {}
            Err(_) => return Err("the rogue is not let in".into()),
        }
    };
    Ok(tokio::spawn(async move {
        for n in 0.. {
            let sent = if within_limits { tick(&mut rogue, n).await } else { rogue.act(n).await };
            if sent.is_err() {
                return n;
            }
        }
        0
    }))
}

async fn tick(rogue: &mut Rogue, n: u64) -> lapin::Result<()> {
    tokio::time::sleep(TICK).await;
    for of in 0..HEARTBEATS {
        rogue.heartbeat(n * HEARTBEATS + of).await?;
    }
    for of in 0..CHUNKS {
        rogue.chunk(n * CHUNKS + of).await?;
    }
    for _ in 0..REPORTS {
        rogue.long_report().await?;
    }
    Ok(())
}

pub async fn measure(stand: &Stand, program: &Path, table: &mut Table) -> Outcome {
    let mut changes = stand.listen().await?;
    let mut agent = stand.agent("one")?;
    wait_for(&mut changes, worker_is("one", "idle")).await?;
    let mut alone = running(stand, &mut changes, program).await?;
    for (what, within_limits) in [("within its limits", true), ("without limits", false)] {
        let harm = rogue(stand, within_limits).await?;
        let mut beside = running(stand, &mut changes, program).await?;
        if within_limits && harm.is_finished() {
            return Err("the rogue was blocked, although it kept within its limits".into());
        }
        harm.abort();
        let [before, after] = [&mut alone, &mut beside].map(|times| percentile(times, 0.99));
        table.row(
            &format!("submit → command running, p99, beside a rogue agent {what}"),
            format!("{after:.2} ms"),
            format!("alone {before:.2} ms"),
            format!("{:.1}", after / before),
            "2",
        );
    }
    end(&mut agent, libc::SIGTERM).await?;
    Ok(())
}
