//! The master is lost between any two steps of a start and of a termination. The next master, with the same ledger,
//! creates no second machine. Afterwards nothing is left, and nothing else was touched.

use crate::machines::Machines;
use rouse_master::core::event::Termination;
use rouse_master::hosts::Provider as _;
use rouse_tests::contract::{self, ProviderFixture as _};
use std::sync::Arc;
use tokio::sync::mpsc;

/// Not that of other tests, which may run at the same time.
const OWNER: &str = "steps/0123456789abcdef0123456789abcdef";
/// A domain that is nobody's.
const STRANGER: &str = "steps-stranger";
const OF_A_START: [&str; 6] =
    ["disk marked", "disk made", "console made", "boot data written", "domain made", "boot data removed"];
const OF_A_STOP: [&str; 2] = ["domain ended", "disk removed"];

/// Stops the world at a step: what would follow is not done, as if the process had gone.
fn lost_at(at: &'static str) -> Option<rouse_master::hosts::libvirt::Observer> {
    Some(Arc::new(move |step| assert!(step != at, "lost after: {step}")))
}

#[test]
fn a_master_may_be_lost_between_any_two_steps() {
    if !crate::may_run() {
        return;
    }
    let _turn = crate::together();
    crate::block_on(async {
        let machines = Machines::new("steps");
        let (deaths, _heard) = mpsc::channel(64);
        // Somebody else's, on the same libvirtd and in the same directory.
        std::fs::write(machines.dir.join("disks/other.qcow2"), "precious").unwrap();
        let other = format!(
            "<domain type='qemu'><name>{STRANGER}</name><memory unit='MiB'>32</memory><os><type>hvm</type></os></domain>"
        );
        std::fs::write(machines.dir.join("other.xml"), other).unwrap();
        machines.virt_host.virsh(&["create", &machines.dir.join("other.xml").display().to_string()]);
        let (running, files) = (machines.machines(), machines.leftovers());
        let [worker, _] = machines.workers();

        for step in OF_A_START {
            for next in ["starts it again", "stops it", "has it not in its ledger"] {
                let mut host = contract::host(&machines, &worker);
                let first = machines.observed(OWNER, deaths.clone(), lost_at(step));
                contract::order(&first, &mut host).await.unwrap();
                assert!(first.start(&host).await.is_err(), "lost after: {step}");
                drop(first);
                let second = machines.observed(OWNER, deaths.clone(), None);
                match next {
                    "starts it again" => {
                        second.start(&host).await.unwrap_or_else(|e| panic!("{step}: {e:?}"));
                        assert_eq!(machines.machines().len(), running.len() + 1, "{step}, {next}");
                        contract::gone(&second, &host).await;
                    }
                    "stops it" => contract::gone(&second, &host).await,
                    _ => {
                        for listed in contract::whole_list(&second).await.unwrap() {
                            assert_eq!(listed.host, host.id, "{step}: nothing else bears our name");
                            assert_eq!(second.terminate_listed(&listed).await, Ok(Termination::Gone));
                        }
                        // What has no domain is no host: it is tidied up by a list.
                        contract::whole_list(&second).await.unwrap();
                    }
                }
                assert_eq!(machines.machines(), running, "{step}, {next}");
                assert_eq!(machines.leftovers(), files, "{step}, {next}");
            }
        }
        for step in OF_A_STOP {
            let mut host = contract::host(&machines, &worker);
            let first = machines.observed(OWNER, deaths.clone(), lost_at(step));
            contract::started(&first, &mut host).await;
            assert!(first.terminate(&host).await.is_err(), "lost after: {step}");
            drop(first);
            let second = machines.observed(OWNER, deaths.clone(), None);
            contract::gone(&second, &host).await;
            assert_eq!((machines.machines(), machines.leftovers()), (running.clone(), files.clone()), "{step}");
        }
        machines.virt_host.virsh(&["destroy", STRANGER]);
        assert_eq!(std::fs::read(machines.dir.join("disks/other.qcow2")).unwrap(), b"precious");
    });
}
