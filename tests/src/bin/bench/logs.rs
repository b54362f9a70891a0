//! Measures how fast output travels from a step to the master's disk.

use crate::Outcome;
use crate::http::{Client, gauge};
use crate::raw;
use crate::stand::{PATIENCE, Stand, end};
use crate::table::Table;
use crate::time::{Memory, Watch, cpu};
use rouse_shared::limits::{LOG_CHUNK, LOG_WINDOW};
use serde_json::json;
use std::time::Duration;

/// Bytes of the long log.
const LONG: usize = 256 << 20;
const LINES: u64 = 1_000_000;
/// Bytes that `seq` prints of them.
const SEQUENCE: u64 = 6_888_896;
const ROUNDS: usize = 3;

/// Runs one build to its end; its number and the seconds it took.
async fn run(client: &mut Client, command: &str) -> Outcome<(String, f64)> {
    let done = "rouse_builds{state=\"success\"}";
    let before = gauge(&client.get("/metrics").await?, done);
    let watch = Watch::start();
    let id = client.submit(&json!({ "worker": "one", "step": [{ "run": command }] })).await?;
    while gauge(&client.get("/metrics").await?, done) == before {
        if watch.elapsed() > PATIENCE {
            return Err(format!("build {id} did not end").into());
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok((id, watch.seconds()))
}

pub async fn logs(stand: &Stand, table: &mut Table) -> Outcome {
    let url = stand.raw_url()?;
    let mut agent = stand.agent("one")?;
    stand.idle(1).await?;
    let (master, agent_pid) = (stand.master_pid(), agent.id().unwrap_or(0));
    let mut client = stand.client().await?;
    let (mut best, mut raw_best, mut small_best, mut pipe_best) = (0.0_f64, 0.0_f64, 0.0_f64, 0.0_f64);
    let mut processor = String::new();
    Memory::forget_peak(master)?;
    Memory::forget_peak(agent_pid)?;
    let print =
        format!("yes 'a line of a log, as compilers and tests print them: seventy characters' | head -c {LONG}");
    for _ in 0..ROUNDS {
        let before = (cpu(master), cpu(agent_pid));
        let (id, seconds) = run(&mut client, &print).await?;
        let there = stand.log_length(&id);
        if there != LONG as u64 {
            return Err(format!("the log of build {id} has {there} bytes instead of {LONG}").into());
        }
        if LONG as f64 / seconds / 1e6 > best {
            best = LONG as f64 / seconds / 1e6;
            let (m, a) = (cpu(master) - before.0, cpu(agent_pid) - before.1);
            processor = format!("processor seconds in {seconds:.2}: master {m:.2}, agent {a:.2}");
        }
        let (count, window) = (LONG / LOG_CHUNK, LOG_WINDOW / LOG_CHUNK);
        raw_best = raw_best.max(raw::bytes(&url, "", LOG_CHUNK, window, count).await?);
        small_best = small_best.max(raw::bytes(&url, "?frame_max=8192", LOG_CHUNK, window, count).await?);
        let watch = Watch::start();
        let command = format!("{print} | cat > {}", stand.work().join("pipe").display());
        tokio::process::Command::new("sh").args(["-c", &command]).status().await?;
        pipe_best = pipe_best.max(LONG as f64 / watch.seconds() / 1e6);
    }
    let peaks = (Memory::of(master)?.peak, Memory::of(agent_pid)?.peak);
    let reference = format!(
        "raw broker {raw_best:.0} MB/s, {small_best:.0} with the agent's frames; pipe to file {pipe_best:.0} MB/s; {processor}"
    );
    let ratio = format!("{:.0}% of the raw broker", best / raw_best * 100.0);
    table.row("268 MB of log lines", format!("{best:.0} MB/s"), reference, ratio, "100 MB/s, 60%");
    let figure = format!("master {:.1} MB, agent {:.1} MB", peaks.0, peaks.1);
    table.row("peak RSS during that", figure, String::new(), String::new(), "master 40 MB");

    Memory::forget_peak(master)?;
    let mut lines = 0.0_f64;
    for _ in 0..ROUNDS {
        let (id, seconds) = run(&mut client, &format!("seq {LINES}")).await?;
        let there = stand.log_length(&id);
        if there != SEQUENCE {
            return Err(format!("the log of build {id} has {there} bytes instead of {SEQUENCE}").into());
        }
        lines = lines.max(LINES as f64 / seconds);
    }
    let reference = format!("master's peak RSS {:.1} MB", Memory::of(master)?.peak);
    table.row(
        "a million short lines",
        format!("{lines:.0} lines/s"),
        reference,
        String::new(),
        "3,000,000 lines/s, 40 MB",
    );
    end(&mut agent, libc::SIGTERM).await?;
    stand.idle(0).await?;
    Ok(())
}
