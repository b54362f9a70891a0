//! Measures what must not grow with what waits or is over, as curves: dispatch while builds of other kinds wait, and
//! listings while ended builds pile up.

use crate::Outcome;
use crate::http::gauge;
use crate::raw;
use crate::scale::dispatched;
use crate::stand::Stand;
use crate::table::Table;
use crate::time::{Memory, Watch, percentile};
use plotters::prelude::{
    ChartBuilder, Circle, IntoDrawingArea as _, IntoLogRange as _, LineSeries, Palette, Palette99, SVGBackend,
};
use plotters::style::{Color as _, WHITE};
use serde_json::json;
use std::path::Path;
use std::time::Duration;

/// Builds of one kind that wait.
const WAITING: [usize; 3] = [10, 1_000, 100_000];
/// Kinds of further builds that wait, one of each.
const KINDS: usize = 3_000;
/// Builds that have ended.
const ENDED: [usize; 4] = [1_000, 10_000, 100_000, 1_000_000];
/// Workers that run them.
const RUNNING: usize = 20;
/// How often a listing is asked for.
const LISTINGS: usize = 50;
/// For builds to be submitted or run.
const LONG: Duration = Duration::from_secs(1_200);
/// Where the curves are drawn, if the directory exists.
const DRAWING: &str = "docs/scale.svg";

/// A curve: its name, and its points.
struct Curve(&'static str, Vec<(f64, f64)>);

impl Curve {
    fn add(&mut self, x: usize, y: f64) {
        // The axis is logarithmic.
        self.1.push((x.max(1) as f64, y));
    }
}

pub async fn curves(stand: &mut Stand, table: &mut Table) -> Outcome {
    let [mut half, mut most] = ["submit → ended, p50", "submit → ended, p99"].map(|name| Curve(name, Vec::new()));
    let load = stand.load(1).await?;
    stand.idle(1).await?;
    let empty = Memory::of(stand.master_pid())?.now;
    let mut waiting = 0;
    for count in WAITING {
        submit(stand, count - waiting, |_| json!({ "worker": "never", "step": [{ "run": ["true"] }] })).await?;
        waiting = count;
        let (p50, p99) = row(stand, &format!("{count} builds wait for another worker"), table).await?;
        half.add(count, p50);
        most.add(count, p99);
    }
    let full = Memory::of(stand.master_pid())?.now;
    let figure = format!("{:.2} kB", (full - empty) * 1e3 / waiting as f64);
    let reference = format!("master RSS {empty:.1} → {full:.1} MB");
    table.row("master RSS per waiting build", figure, reference, String::new(), "");
    submit(
        stand,
        KINDS,
        |n| json!({ "where": { "kind": "never", "pool": n.to_string() }, "step": [{ "run": ["true"] }] }),
    )
    .await?;
    row(stand, &format!("{} builds of {} kinds wait", waiting + KINDS, KINDS + 1), table).await?;
    load.end().await?;
    let watch = Watch::start();
    stand.restart_master().await?;
    let figure = format!("{:.1} s", watch.seconds());
    table.row(
        &format!("master restarted with {} waiting builds", waiting + KINDS),
        figure,
        String::new(),
        String::new(),
        "",
    );
    cancel_all(stand).await?;
    let mut listing = Curve("GET /api/builds, p50", Vec::new());
    let mut filtered = Curve("GET /api/builds?name=&worker=&state=, p50", Vec::new());
    let load = stand.load(RUNNING).await?;
    stand.idle(RUNNING as u64).await?;
    let (watch, mut ended) = (Watch::start(), 0);
    for count in ENDED {
        run(stand, count - ended).await?;
        ended = count;
        let paths = [
            ("a listing of 50 builds", "/api/builds?limit=50", &mut listing),
            ("the same with filters", "/api/builds?limit=50&name=none&worker=load-00001&state=failure", &mut filtered),
        ];
        for (what, path, curve) in paths {
            let mut times = ask(stand, path).await?;
            let figure = percentile(&mut times, 0.5);
            curve.add(count, figure);
            let reference = format!("p99 {:.2} ms", percentile(&mut times, 0.99));
            let what = format!("{what}, {count} ended builds");
            table.row(&what, format!("{figure:.2} ms"), reference, String::new(), "");
        }
    }
    let figure = format!("{:.0} /s", ended as f64 / watch.seconds());
    table.row(&format!("{ended} builds run"), figure, String::new(), String::new(), "");
    load.end().await?;
    let watch = Watch::start();
    stand.restart_master().await?;
    let figure = format!("{:.1} s", watch.seconds());
    table.row(&format!("master restarted with {ended} ended builds"), figure, String::new(), String::new(), "");
    let drawing = Path::new(DRAWING);
    if drawing.parent().is_some_and(Path::is_dir) {
        draw(drawing, &[half, most, listing, filtered]).map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// A row about lone builds while others wait: p50 and p99, milliseconds.
async fn row(stand: &Stand, while_what: &str, table: &mut Table) -> Outcome<(f64, f64)> {
    let mut times = dispatched(stand).await?;
    let (p50, p99) = (percentile(&mut times, 0.5), percentile(&mut times, 0.99));
    let what = format!("submit → ended, {while_what}");
    table.row(&what, format!("{p50:.2} ms"), format!("p99 {p99:.2} ms"), String::new(), "flat");
    Ok((p50, p99))
}

/// Submits builds, and waits until the master has them.
async fn submit(stand: &Stand, count: usize, build: impl Fn(usize) -> serde_json::Value) -> Outcome {
    let queued = "rouse_builds{state=\"queued\"}";
    let mut client = stand.client().await?;
    let before = gauge(&client.get("/metrics").await?, queued);
    let all = (0..count).map(|number| build(number).to_string());
    raw::submit_all(&stand.raw_url()?, all).await?;
    reach(stand, queued, before + count as u64).await
}

/// Runs builds that spawn nothing.
async fn run(stand: &Stand, count: usize) -> Outcome {
    let done = "rouse_builds{state=\"success\"}";
    let before = gauge(&stand.client().await?.get("/metrics").await?, done);
    let build = json!({ "where": { "kind": "load" }, "step": [{ "run": ["true"] }] }).to_string();
    raw::submit(&stand.raw_url()?, &build, count).await?;
    reach(stand, done, before + count as u64).await
}

async fn reach(stand: &Stand, name: &str, count: u64) -> Outcome {
    let (mut client, watch) = (stand.client().await?, Watch::start());
    loop {
        let now = gauge(&client.get("/metrics").await?, name);
        if now >= count {
            return Ok(());
        }
        if watch.elapsed() > LONG {
            return Err(format!("{name} is {now} and does not become {count}").into());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Cancels what waits.
async fn cancel_all(stand: &Stand) -> Outcome {
    let mut client = stand.client().await?;
    loop {
        let listed: serde_json::Value =
            serde_json::from_str(&client.get("/api/builds?state=queued&limit=1000").await?)?;
        let ids: Vec<&str> = listed.as_array().into_iter().flatten().filter_map(|build| build["id"].as_str()).collect();
        if ids.is_empty() {
            return Ok(());
        }
        for id in ids {
            client.post(&format!("/api/builds/{id}/cancel")).await?;
        }
    }
}

/// Milliseconds of each answer.
async fn ask(stand: &Stand, path: &str) -> Outcome<Vec<f64>> {
    let mut client = stand.client().await?;
    let mut times = Vec::new();
    for _ in 0..LISTINGS {
        let watch = Watch::start();
        client.get(path).await?;
        times.push(watch.seconds() * 1e3);
    }
    Ok(times)
}

/// Draws curves over numbers of builds, in milliseconds.
fn draw(path: &Path, curves: &[Curve]) -> Outcome {
    let points = || curves.iter().flat_map(|curve| &curve.1);
    let right = points().map(|(x, _)| *x).fold(10.0, f64::max);
    let top = points().map(|(_, y)| *y).fold(1.0, f64::max) * 1.1;
    let root = SVGBackend::new(path, (720, 420)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(50)
        .build_cartesian_2d((10.0..right).log_scale(), 0.0..top)?;
    chart
        .configure_mesh()
        .x_desc("builds that wait for another worker, or have ended")
        .y_desc("milliseconds")
        .x_label_formatter(&|x| format!("{x:.0}"))
        .draw()?;
    for (number, Curve(name, points)) in curves.iter().enumerate() {
        let colour = Palette99::pick(number).to_rgba();
        let line = LineSeries::new(points.iter().copied(), colour.stroke_width(2));
        chart.draw_series(line)?.label(*name).legend(move |(x, y)| Circle::new((x + 8, y), 4, colour.filled()));
        chart.draw_series(points.iter().map(|point| Circle::new(*point, 3, colour.filled())))?;
    }
    chart.configure_series_labels().background_style(WHITE.mix(0.8)).border_style(WHITE).draw()?;
    root.present()?;
    Ok(())
}
