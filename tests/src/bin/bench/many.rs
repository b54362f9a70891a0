//! Measures sizes, and the cost of many workers.

use crate::Outcome;
use crate::stand::{Stand, end};
use crate::table::Table;
use crate::time::{Memory, Watch, cpu};
use std::fs;
use std::time::Duration;
use tokio::net::TcpStream;

/// How long an idle master is watched.
const IDLE: Duration = Duration::from_secs(5);

pub fn size(stand: &Stand, table: &mut Table) -> Outcome {
    let megabytes = |path: &std::path::Path| fs::metadata(path).map(|m| m.len() as f64 / 1e6);
    let (agent, rouse) = (megabytes(&stand.programs.agent)?, megabytes(&stand.programs.rouse)?);
    table.row("agent on disk", format!("{agent:.2} MB"), format!("rouse {rouse:.1} MB"), String::new(), "4 MB");
    Ok(())
}

pub async fn idle(stand: &Stand, table: &mut Table) -> Outcome {
    let pid = stand.master_pid();
    let before = cpu(pid);
    let mut agent = stand.agent("one")?;
    stand.idle(1).await?;
    tokio::time::sleep(IDLE).await;
    let figure = format!("{:.1} MB", Memory::of(agent.id().unwrap_or(0))?.now);
    table.row("agent RSS, idle", figure, String::new(), String::new(), "4 MB");
    end(&mut agent, libc::SIGTERM).await?;
    stand.idle(0).await?;
    let used = (cpu(pid) - before) / IDLE.as_secs_f64() * 100.0;
    let figure = format!("{:.1} MB", Memory::of(pid)?.now);
    table.row("master RSS, idle", figure, format!("{used:.1}% of a core"), String::new(), "25 MB");
    Ok(())
}

pub async fn attach(stand: &Stand, workers: usize, table: &mut Table) -> Outcome {
    let raw = stand.raw_load(workers).await?;
    let reference = raw.seconds;
    raw.end().await?;
    let pid = stand.master_pid();
    let before = (Memory::of(pid)?.now, cpu(pid));
    let load = stand.load(workers).await?;
    let attaching = cpu(pid) - before.1;
    let seconds = load.seconds;
    tokio::time::sleep(IDLE).await;
    let start = (Watch::start(), cpu(pid));
    tokio::time::sleep(IDLE * 2).await;
    let used = (cpu(pid) - start.1) / start.0.seconds() * 100.0;
    let memory = Memory::of(pid)?.now;
    load.end().await?;
    stand.idle(0).await?;
    let ratio = format!("{:.1}", seconds / reference);
    let reference = format!("raw connections {reference:.2} s; master {attaching:.2} s of CPU");
    table.row(&format!("{workers} workers attach"), format!("{seconds:.2} s"), reference, ratio, "2.5 s");
    let figure = format!("{:.1} kB", (memory - before.0) * 1e3 / workers as f64);
    let reference = format!("master RSS {:.1} → {memory:.1} MB", before.0);
    table.row("master RSS per attached worker", figure, reference, String::new(), "5 kB");
    let what = format!("master CPU, {workers} idle workers");
    table.row(&what, format!("{used:.1}% of a core"), String::new(), String::new(), "below 10% with 10,000");
    Ok(())
}

pub async fn crash(stand: &mut Stand, table: &mut Table) -> Outcome {
    let workers = 200;
    let mut load = stand.load(workers).await?;
    stand.idle(workers as u64).await?;
    stand.kill_master().await?;
    tokio::time::sleep(Duration::from_secs(10)).await;
    let start = Watch::start();
    stand.start_master().await?;
    let address = ("127.0.0.1", stand.amqp_port());
    while TcpStream::connect(address).await.is_err() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let broker = start.seconds();
    load.attached().await?;
    let figure = format!("{:.2} s", start.seconds() - broker);
    let reference = format!("the broker itself took {broker:.1} s");
    table.row("master killed and back after 10 s: 200 workers attached", figure, reference, String::new(), "2 s");
    load.end().await.map_err(Into::into)
}
