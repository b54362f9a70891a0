//! `make bench`: measures rouse, and in the same run the broker and the machine alone.
//!
//! `bench ROUSE AGENT LOAD_AGENT [PART ...]` starts a private master and runs the parts one after another. The parts
//! are size, idle, thousand, latency, wake, attach, logs, builds, rogue, crash, scale and curves. If none is named, all run except
//! `scale` (up to 10,000 workers) and `curves` (up to 1,000,000 builds). docs/benchmarks.md describes how each figure is measured.

mod builds;
mod curves;
mod http;
mod latency;
mod logs;
mod many;
mod raw;
mod rogue;
mod scale;
mod stand;
mod table;
mod time;

use stand::{Programs, Stand};
use std::path::PathBuf;
use std::process::ExitCode;
use table::Table;

/// What a measurement may fail with: it ends the run, since what comes after would be measured on a broken master.
type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

/// In their order: what looks at an idle master comes first.
const PARTS: [&str; 12] =
    ["size", "idle", "thousand", "latency", "wake", "attach", "logs", "builds", "rogue", "crash", "scale", "curves"];

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1).peekable();
    if arguments.next_if(|first| first == "print-time").is_some() {
        println!("{}", time::nanoseconds());
        return ExitCode::SUCCESS;
    }
    let mut path = || arguments.next().map(|path| std::path::absolute(path).unwrap_or_default());
    let (Some(rouse), Some(agent), Some(load_agent)) = (path(), path(), path()) else {
        eprintln!("usage: bench ROUSE AGENT LOAD_AGENT [PART ...]; parts: {}", PARTS.join(" "));
        return ExitCode::from(2);
    };
    let parts: Vec<String> = arguments.collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let measured = match runtime {
        Ok(runtime) => runtime.block_on(run(Programs { rouse, agent, load_agent }, &parts)),
        Err(error) => Err(error.into()),
    };
    match measured {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(programs: Programs, parts: &[String]) -> Outcome {
    if let Some(unknown) = parts.iter().find(|part| !PARTS.contains(&part.as_str())) {
        return Err(format!("there is no part {unknown:?}; parts: {}", PARTS.join(" ")).into());
    }
    let long = ["scale", "curves"];
    let wanted =
        |part: &str| if parts.is_empty() { !long.contains(&part) } else { parts.iter().any(|named| named == part) };
    let most = if wanted("scale") { scale::MOST } else { 1_000 };
    eprintln!("bench: starting a master with a private broker");
    let mut stand = Stand::start(programs, most).await?;
    let mut table = Table::default();
    let program: PathBuf = std::env::current_exe()?;
    for part in PARTS.into_iter().filter(|part| wanted(part)) {
        eprintln!("bench: {part}");
        match part {
            "size" => many::size(&stand, &mut table)?,
            "idle" => many::idle(&stand, &mut table).await?,
            "latency" => latency::latency(&stand, &program, &mut table).await?,
            "wake" => latency::wake(&stand, &program, &mut table).await?,
            "attach" => latency::attach(&stand, &mut table).await?,
            "logs" => logs::logs(&stand, &mut table).await?,
            "builds" => builds::builds(&stand, &mut table).await?,
            "rogue" => rogue::measure(&stand, &program, &mut table).await?,
            "thousand" => many::attach(&stand, 1_000, &mut table).await?,
            "crash" => many::crash(&mut stand, &mut table).await?,
            "curves" => curves::curves(&mut stand, &mut table).await?,
            "scale" => scale::scale(&mut stand, &mut table).await?,
            _ => {}
        }
    }
    stand.stop().await?;
    table.print();
    Ok(())
}
