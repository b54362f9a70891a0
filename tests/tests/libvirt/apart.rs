//! Guests of one network: none can speak to another as its neighbour, or for another.

use crate::system::{LibvirtSystem, system};
use rouse_tests::harness::text;
use rouse_tests::virt::BRIDGE;

/// The address that the network has for a worker.
fn address(system: &LibvirtSystem, worker: &str) -> String {
    let network = system.virt_host.virsh(&["net-dumpxml", "rouse"]);
    let line = network.lines().find(|line| line.contains(&format!("name='{worker}'"))).unwrap();
    line.split("ip='").nth(1).unwrap().split('\'').next().unwrap().to_owned()
}

#[test]
fn a_guest_reaches_no_other_and_cannot_take_its_address() {
    if !crate::may_run() {
        return;
    }
    let _turn = crate::together();
    let system = system();
    let [one, other] = ["apart-1", "apart-2"].map(|worker| address(system, worker));
    let waits = |build: &str| {
        system.until_said(build, "begun");
        text(&system.master.show(build)["worker"])
    };
    let neighbour = system.master.detach(&["--where", "pool=apart", "--", "sh", "-c", "echo begun; sleep 600"]);
    let theirs = if waits(&neighbour) == "apart-1" { one.clone() } else { other.clone() };
    let own = if theirs == one { other } else { one };
    // As root in the guest, which may do everything with its card. Its own address shows that the network works.
    let script = format!(
        "asks() {{ ping -c 3 -W 2 -I $1 $2 >/dev/null && echo $3 is answered || echo $3 is not answered; }}\n\
         asks {own} {BRIDGE} own\n\
         asks {own} {theirs} neighbour\n\
         ip addr add {theirs}/18 dev eth0\n\
         asks {theirs} {BRIDGE} stolen\n\
         asks {own} {BRIDGE} own"
    );
    let build = system.master.detach(&["--where", "pool=apart", "--", "sh", "-c", &script]);
    system.until(&build, "success");
    let said = system.log(&build);
    let expected = ["own is answered", "neighbour is not answered", "stolen is not answered", "own is answered"];
    assert_eq!(said.lines().collect::<Vec<_>>(), expected);
    system.master.rouse(&["cancel", &neighbour]).ended(0);
    system.until_clean(&["apart-1", "apart-2"]);
}
