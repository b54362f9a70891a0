//! Images. A broken image costs little, the master notices when it is repaired, and another image behind the same name
//! is tried carefully.

use super::*;
use crate::core::event::StartError;

/// Twenty workers of one image, and a hundred builds for them.
fn crowd() -> Bench {
    let names: Vec<String> = (1..=20).map(|n| format!("l{n}")).collect();
    let mut bench = Bench::quietly(plan(names.iter().map(|n| latent(n)).collect()));
    for _ in 0..100 {
        bench.submit(anywhere());
    }
    bench
}

/// Hosts that their provider has been asked to make, and for which there is no answer yet.
fn ordered(bench: &Bench) -> Vec<String> {
    let waits = |live: &&crate::core::LiveHost| live.host.state == HostState::Ordered && live.host.launch.is_some();
    bench.core.hosts.values().filter(waits).map(|live| live.host.worker.to_string()).collect()
}

fn all_fail(bench: &mut Bench) -> usize {
    let workers = ordered(bench);
    for worker in &workers {
        let host = bench.host(worker);
        let result = Err(StartError::Rejected("no such image".to_owned()));
        bench.event("start ended: no such image", Event::StartEnded { host, number: 0, result });
    }
    workers.len()
}

fn all_attach(bench: &mut Bench) -> usize {
    let workers = ordered(bench);
    for worker in &workers {
        bench.wake(worker);
    }
    workers.len()
}

#[test]
fn a_broken_image_is_tried_by_a_handful_and_recovers_by_itself() {
    let mut bench = crowd();
    let mut hosts = Vec::new();
    let began = bench.now;
    while bench.now.since(began) < secs(3_600) {
        match all_fail(&mut bench) {
            0 => bench.pass(5),
            some => hosts.push(some),
        }
    }
    // Pauses of 15, 30, 60, 120, 240, 480, 960 s and so on: about eight rounds in an hour.
    assert_eq!(&hosts[..4], &[3, 3, 3, 1], "few at once, then one probe at a time");
    assert!((7..=9).contains(&hosts.len()), "{hosts:?}");
    assert_eq!(bench.core.images.len(), 1);

    // The image is mended: the next probe attaches, and everybody follows.
    while ordered(&bench).is_empty() {
        bench.pass(60);
    }
    assert_eq!(all_attach(&mut bench), 1);
    assert!(ordered(&bench).len() >= 15, "{:?}", ordered(&bench));
}

#[test]
fn an_image_that_works_lets_everybody_start() {
    let mut bench = crowd();
    assert_eq!(ordered(&bench).len(), 3, "none has attached yet");
    all_attach(&mut bench);
    assert_eq!(ordered(&bench).len(), 17);
    all_attach(&mut bench);
    assert_eq!(bench.core.hosts.len(), 20);
}

#[test]
fn another_image_behind_the_same_name_has_to_prove_itself() {
    let mut bench = Bench::quietly(with_images(&["l1", "l2", "l3", "l4", "l5", "l6"]));
    bench.submit(on("l1"));
    bench.wake("l1");
    bench.image = "newer";
    for worker in ["l2", "l3", "l4", "l5", "l6"] {
        bench.submit(on(worker));
    }
    assert_eq!(ordered(&bench).len(), 3);
    let waiting = bench.core.why(bench.now, BuildId(6)).unwrap().sentence;
    assert!(
        waiting.contains("3 hosts of image image are starting, and no more are started until one of them attaches"),
        "{waiting}"
    );
    all_attach(&mut bench);
    assert_eq!(ordered(&bench).len(), 2);
}

#[test]
fn a_pause_outlives_the_master_and_an_operator_ends_it() {
    let mut bench = crowd();
    all_fail(&mut bench);
    bench.restart();
    assert_eq!(ordered(&bench).len(), 0);
    bench.operate("l1", Operation::Resume);
    assert_eq!(ordered(&bench).len(), 3);
}

fn with_images(workers: &[&str]) -> Plan {
    plan(workers.iter().map(|w| latent(w)).collect())
}
