//! The contract of the providers, kept by libvirt.

use crate::ground::Machines;
use rouse_tests::contract;

#[tokio::test(flavor = "multi_thread")]
async fn libvirt_keeps_the_contract() {
    if !crate::may_run() {
        return;
    }
    let _turn = crate::together();
    let machines = Machines::new("contract");
    let before = std::fs::read(&machines.base).unwrap();
    contract::holds(&machines).await;
    assert!(std::fs::read(&machines.base).unwrap() == before, "the base image is never written to");
}
