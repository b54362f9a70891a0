//! The contract of the providers, with libvirt.

use crate::machines::Machines;
use rouse_tests::contract;

#[test]
fn libvirt_keeps_the_contract() {
    if !crate::may_run() {
        return;
    }
    let _turn = crate::together();
    crate::block_on(async {
        let machines = Machines::new("contract");
        let before = std::fs::read(&machines.base).unwrap();
        contract::holds(&machines).await;
        assert!(std::fs::read(&machines.base).unwrap() == before, "the base image is never written to");
    });
}
