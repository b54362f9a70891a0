//! Runs many seeds of the simulation. `ROUSE_SIM_SEED=n` plays one again and prints what happens; `ROUSE_SIM_SEEDS=n`
//! plays that many, from `ROUSE_SIM_FROM`; `ROUSE_SIM_SURVEY=1` goes on after a failure and lists them all.

use rouse_tests::sim::{self, Break, Summary};

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} must be a number and is {text:?}")))
}

#[test]
fn everything_holds_whatever_goes_wrong() {
    if let Some(seed) = number("ROUSE_SIM_SEED") {
        match sim::run(seed, None, true) {
            Ok(summary) => println!("seed {seed} holds: {summary:?}"),
            Err(violation) => {
                if let Ok(path) = std::env::var("ROUSE_SIM_TRANSCRIPT") {
                    std::fs::write(&path, violation.transcript.join("\n")).expect("the transcript can be written");
                }
                panic!("{violation}");
            }
        }
        return;
    }
    let (from, seeds) = (number("ROUSE_SIM_FROM").unwrap_or(0), number("ROUSE_SIM_SEEDS").unwrap_or(500));
    let mut sum = Summary::default();
    let mut failed = 0;
    for seed in from..from + seeds {
        match sim::run(seed, None, false) {
            Ok(summary) => sum.add(&summary),
            Err(violation) if number("ROUSE_SIM_SURVEY").is_some() => {
                failed += 1;
                println!("{seed}: {}", violation.what);
            }
            Err(_) => {
                let again = sim::run(seed, None, true).expect_err("a seed plays the same way twice");
                panic!("{again}");
            }
        }
    }
    assert_eq!(failed, 0, "seeds of {seeds} that do not hold");
    println!("{seeds} seeds hold: {sum:?}");
}

#[test]
fn what_is_broken_on_purpose_is_noticed() {
    for broken in Break::ALL {
        let caught = (0..2_000).find_map(|seed| sim::run(seed, Some(broken), false).err());
        let caught = caught.unwrap_or_else(|| panic!("nothing was noticed of {broken:?}"));
        println!("{broken:?}: noticed at seed {}: {}", caught.seed, caught.what);
    }
}
