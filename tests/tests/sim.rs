//! Runs many seeds of the simulation, on every processor.
//!
//! `ROUSE_SIM_SEED=n` runs one seed and prints what happens. `ROUSE_SIM_SEEDS=n` runs that many, beginning at
//! `ROUSE_SIM_FROM`. `ROUSE_SIM_SURVEY=1` continues after a failure and lists all failures. `ROUSE_SIM_BREAK=Name`
//! breaks them all on purpose.

use rouse_tests::sim::{self, Break, Summary, Violation};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Seeds in which each deliberate fault has to be noticed at the latest.
const NOTICED_WITHIN: u64 = 1_000;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} must be a number and is {text:?}")))
}

fn broken() -> Option<Break> {
    let name = std::env::var("ROUSE_SIM_BREAK").ok()?;
    let known = Break::ALL.into_iter().find(|broken| format!("{broken:?}") == name);
    Some(known.unwrap_or_else(|| panic!("ROUSE_SIM_BREAK must be one of {:?} and is {name:?}", Break::ALL)))
}

/// Does `work` with each number below `count`, in order, spread over the processors; stops if it returns false.
fn each(count: u64, work: impl Fn(u64) -> bool + Sync) {
    let next = AtomicU64::new(0);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= count {
                        return;
                    }
                    if !work(index) {
                        next.store(count, Ordering::Relaxed);
                    }
                }
            });
        }
    });
}

fn replay(seed: u64) {
    let (played, transcript) = sim::play_with_transcript(seed, broken());
    match std::env::var("ROUSE_SIM_TRANSCRIPT") {
        Ok(path) => std::fs::write(&path, transcript.join("\n")).expect("the transcript can be written"),
        Err(_) => println!("{}", transcript.join("\n")),
    }
    match played {
        Ok(summary) => println!("seed {seed} holds: {summary:?}"),
        Err(violation) => panic!("{violation}"),
    }
}

#[test]
fn everything_holds_whatever_goes_wrong() {
    if let Some(seed) = number("ROUSE_SIM_SEED") {
        return replay(seed);
    }
    let (from, seeds) = (number("ROUSE_SIM_FROM").unwrap_or(0), number("ROUSE_SIM_SEEDS").unwrap_or(2_000));
    let (survey, broken) = (number("ROUSE_SIM_SURVEY").is_some(), broken());
    let sum = Mutex::new((Summary::default(), Vec::<Box<Violation>>::new()));
    each(seeds, |index| {
        let played = sim::run(from + index, broken);
        let mut sum = sum.lock().expect("nobody panics with it");
        match played {
            Ok(summary) => sum.0.add(&summary),
            Err(violation) => {
                if survey {
                    println!("{}: {}", violation.seed, violation.what);
                }
                sum.1.push(violation);
                return survey;
            }
        }
        true
    });
    let (sum, failed) = sum.into_inner().expect("nobody panics with it");
    if let Some(first) = failed.iter().map(|violation| violation.seed).min().filter(|_| !survey) {
        let (again, transcript) = sim::play_with_transcript(first, broken);
        println!("{}", transcript[transcript.len().saturating_sub(200)..].join("\n"));
        panic!("{}", again.expect_err("a seed plays the same way twice"));
    }
    assert!(failed.is_empty(), "{} of {seeds} seeds do not hold", failed.len());
    println!("{seeds} seeds hold: {sum:?}");
}

/// The first violation in which the fault is noticed. The seed of the last run is tried first, since most changes to the
/// code do not change it.
fn notice(broken: Break) -> Option<Box<Violation>> {
    let last = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("noticed-{broken:?}"));
    let known = std::fs::read_to_string(&last).ok().and_then(|text| text.parse().ok());
    let seeds = known.into_iter().filter(|seed| *seed < NOTICED_WITHIN).chain(0..NOTICED_WITHIN);
    let caught = seeds.into_iter().find_map(|seed: u64| sim::run(seed, Some(broken)).err())?;
    std::fs::write(&last, caught.seed.to_string()).expect("cargo has made the directory");
    Some(caught)
}

#[test]
fn what_is_broken_on_purpose_is_noticed() {
    if number("ROUSE_SIM_SEED").is_some() || broken().is_some() {
        return;
    }
    let noticed = Mutex::new(Vec::new());
    each(Break::ALL.len() as u64, |index| {
        let broken = Break::ALL[index as usize];
        let caught = notice(broken);
        noticed.lock().expect("nobody panics with it").push((index, broken, caught));
        true
    });
    let mut noticed = noticed.into_inner().expect("nobody panics with it");
    noticed.sort_by_key(|(index, ..)| *index);
    for (_, broken, caught) in &noticed {
        match caught {
            Some(caught) => println!("{broken:?}: noticed in seed {}: {}", caught.seed, caught.what),
            None => println!("{broken:?}: NOT NOTICED"),
        }
    }
    let missed: Vec<_> = noticed.iter().filter(|(.., caught)| caught.is_none()).map(|(_, broken, _)| broken).collect();
    assert!(missed.is_empty(), "nothing was noticed within {NOTICED_WITHIN} seeds of {missed:?}");
}
