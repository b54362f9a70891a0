//! End-to-end: the real programs, a real broker, and what a user sees of them.
//!
//! Most tests share one master, each with its own workers. Tests that end a master or its broker have their own.

#![allow(clippy::unwrap_used)]

mod alarms;
mod audit;
mod cancel;
mod clock;
mod cluster;
mod dead_man;
mod demo;
mod disk;
mod floods;
mod hostile;
mod ipv6;
mod latent;
mod leases;
mod mail;
mod metrics;
mod outages;
mod own_broker;
#[cfg(feature = "postgres")]
mod postgresql;
mod refusals;
mod reload;
mod retention;
mod rogue;
mod rotation;
mod sandbox;
#[cfg(feature = "postgres")]
mod standby;
mod standing;
mod submission_queue;
mod tls;
mod tokens;

use rouse_tests::harness::{Keeper, Master, kept, latent as a_latent, scratch, standing as a_standing};
use serde_json::json;
use std::fs;
use std::sync::OnceLock;

/// The master that most tests share.
fn shared() -> &'static Master {
    static SHARED: OnceLock<Master> = OnceLock::new();
    SHARED.get_or_init(|| Master::of_keeper(&kept()["master"]))
}

#[test]
#[ignore = "keeps the shared master for the other tests, which start it"]
fn keeper() {
    let Some(keeper) = Keeper::here() else { return };
    let mute = scratch("mute");
    let master = Master::start_private("shared", &shared_workers());
    keeper.serve(&json!({ "master": master.description() }), |request| panic!("nobody may {request} it"));
    master.end();
    fs::remove_dir_all(mute).unwrap();
}

fn shared_workers() -> String {
    // Heartbeats that tests do not wait long for, and a lease that a busy machine does not break.
    let patient = "keepalive_interval = 2\nlease = 40\n";
    let quick = "keepalive_interval = 1\nlease = 4\n";
    let mut text = String::new();
    for name in ["talk", "steps", "cancel", "lists", "held", "stopped", "twins", "wrong", "flood", "bytes", "inbox"] {
        text += &a_standing(name, patient);
    }
    text += &a_standing("facts", &format!("{patient}properties = {{ os = \"plan9\", \"disk-kind\" = \"fast\" }}"));
    text += &a_standing("pair", &format!("{patient}max_builds = 2"));
    text += &a_standing("single", &format!("{patient}max_builds = 1"));
    for name in ["killed-1", "killed-2"] {
        text += &a_standing(name, &format!("{quick}properties = {{ pool = \"killed\" }}"));
    }
    for name in ["frozen-1", "frozen-2"] {
        text += &a_standing(name, &format!("{quick}properties = {{ pool = \"frozen\" }}"));
    }
    text += &a_standing("reborn", patient);
    text += &a_standing("losing", quick);
    text += &a_latent("idle", "build_wait_timeout = 2");
    text += &a_latent("dying", &format!("{patient}build_wait_timeout = 1"));
    text += &a_latent("at-once", "build_wait_timeout = 0");
    text += &a_latent("stays", "build_wait_timeout = -1");
    text += &a_latent("a-second", "build_wait_timeout = 1");
    text += &a_latent("used-up", "build_wait_timeout = 60\nmax_uses = 2");
    text += &a_latent("many-{1..3}", "build_wait_timeout = 1\nmax_builds = 1\nproperties = { pool = \"many\" }");
    text += &a_latent("ready-{1..3}", "build_wait_timeout = 1\nmin_idle = 1");
    text += &a_standing("no-agent", "[worker.process]\nagent = \"/nowhere/rouse-agent\"");
    text += &a_standing("mute", "missing_timeout = 2\n[worker.process]\nagent = \"MUTE\"");
    let mute = mute_agent();
    text.replace("MUTE", &mute)
}

/// A program that starts as an agent does, says something and never attaches.
fn mute_agent() -> String {
    use std::os::unix::fs::PermissionsExt as _;
    let path = scratch("mute").join("agent");
    fs::write(&path, "#!/bin/sh\necho the network is unreachable\nexec sleep 1000\n").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path.display().to_string()
}
