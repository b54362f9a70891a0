//! A master that is killed takes its node with it.

use crate::harness::{DEADLINE, auth_server, free_address, log_text, processes_of, scratch, settings, until};
use rouse_master::broker::Node;
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

const DIR: &str = "ROUSE_TEST_NODE_DIR";
const READY: &str = "the node is ready";

/// Not a test: what [`a_killed_master_leaves_nothing_behind`] runs as the master.
#[tokio::test]
#[ignore = "run by another test"]
async fn own_a_node() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let (auth, _refusals) = auth_server().await;
    let node = Node::start(settings(dir.as_ref(), free_address(), &auth)).await.unwrap();
    // On a line of its own, whatever the test runner has printed.
    println!("\n{READY}");
    std::future::pending::<()>().await;
    drop(node);
}

#[tokio::test]
async fn a_killed_master_leaves_nothing_behind() {
    let dir = scratch("owner");
    let mut master = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "owner::own_a_node", "--ignored", "--nocapture"])
        .env(DIR, &dir)
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(master.stdout.take().unwrap()).lines();
    let ready = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            if line == READY {
                return true;
            }
        }
        false
    };
    assert!(tokio::time::timeout(2 * DEADLINE, ready).await.unwrap_or(false), "{}", log_text());
    let names: Vec<String> = processes_of(&dir).into_iter().map(|(_, name)| name).collect();
    for needed in ["beam.smp", "epmd", "erl_child_setup"] {
        assert!(names.iter().any(|name| name == needed), "{needed} is not in {names:?}");
    }
    master.kill().await.unwrap();
    until("nothing is left", || processes_of(&dir).is_empty()).await;
}
