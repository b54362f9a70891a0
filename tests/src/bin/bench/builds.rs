//! Measures how many builds run per second.

use crate::Outcome;
use crate::http::gauge;
use crate::raw;
use crate::stand::{PATIENCE, Stand, end};
use crate::table::Table;
use crate::time::{Watch, cpu};
use serde_json::json;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Builds a second from the first submitted to the last ended, and milliseconds of the master's processor time a build.
async fn run(stand: &Stand, kind: &str, count: usize) -> Outcome<(f64, f64)> {
    let done = "rouse_builds{state=\"success\"}";
    let mut client = stand.client().await?;
    let before = gauge(&client.get("/metrics").await?, done);
    let build = json!({ "where": { "kind": kind }, "step": [{ "run": ["true"] }] }).to_string();
    let (watch, used) = (Watch::start(), cpu(stand.master_pid()));
    let url = stand.raw_url()?;
    let submitting = tokio::spawn(async move { raw::submit(&url, &build, count).await });
    loop {
        let ended = gauge(&client.get("/metrics").await?, done) - before;
        if ended >= count as u64 {
            break;
        }
        if watch.elapsed() > PATIENCE {
            return Err(format!("{ended} of {count} builds have ended").into());
        }
        // Seldom enough that counting thousands of waiting builds for the answer is no part of what is measured.
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    let seconds = watch.seconds();
    submitting.await??;
    Ok((count as f64 / seconds, (cpu(stand.master_pid()) - used) * 1e3 / count as f64))
}

/// How often a second `true` can be run here, by two at once.
fn spawns() -> Outcome<f64> {
    let watch = Watch::start();
    let spawn = move || -> std::io::Result<u32> {
        let mut count = 0;
        while watch.seconds() < 2.0 {
            Command::new("true").stdin(Stdio::null()).stdout(Stdio::null()).status()?;
            count += 1;
        }
        Ok(count)
    };
    let threads: Vec<_> = (0..2).map(|_| std::thread::spawn(spawn)).collect();
    let mut all = 0;
    for thread in threads {
        all += thread.join().map_err(|_| "a thread panicked")??;
    }
    Ok(f64::from(all) / watch.seconds())
}

pub async fn builds(stand: &Stand, table: &mut Table) -> Outcome {
    let spawns = tokio::task::spawn_blocking(|| spawns().map_err(|e| e.to_string())).await??;
    for (workers, count, goal) in [(1, 300, ""), (20, 2_000, "800")] {
        let mut agents = Vec::new();
        for worker in 1..=workers {
            agents.push(stand.agent(&format!("real-{worker:02}"))?);
        }
        stand.idle(workers).await?;
        run(stand, "real", count / 10).await?;
        let (rate, used) = run(stand, "real", count).await?;
        for mut agent in agents {
            end(&mut agent, libc::SIGTERM).await?;
        }
        stand.idle(0).await?;
        let reference = format!("`true` spawned {spawns:.0} times a second; master {used:.2} ms of CPU a build");
        let ratio = format!("{:.0}% of the spawns", rate / spawns * 100.0);
        table.row(&format!("builds of `true`, {workers} worker(s)"), format!("{rate:.0} /s"), reference, ratio, goal);
    }
    let messages = raw::messages(&stand.raw_url()?, 200, 50_000).await?;
    for (workers, count, goal) in [(1, 1_000, ""), (20, 10_000, "3,000"), (200, 10_000, "3,000")] {
        let load = stand.load(workers).await?;
        stand.idle(workers as u64).await?;
        run(stand, "load", count / 10).await?;
        let (rate, used) = run(stand, "load", count).await?;
        load.end().await?;
        stand.idle(0).await?;
        let reference = format!("{messages:.0} raw messages a second; master {used:.2} ms of CPU a build");
        let ratio = format!("{:.0}% of four messages a build", rate * 4.0 / messages * 100.0);
        let what = format!("builds that spawn nothing, {workers} worker(s)");
        table.row(&what, format!("{rate:.0} /s"), reference, ratio, goal);
    }
    Ok(())
}
