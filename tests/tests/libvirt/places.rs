//! A provider with several places: one connection answers and one does not, a network is not active, a base image is
//! changed while a guest's disk uses it.

use crate::machines::{Machines, config};
use rouse_master::core::event::{ListedHost, Listing, Owner, StartError, Termination};
use rouse_master::hosts::Provider as _;
use rouse_master::hosts::libvirt::Libvirt;
use rouse_tests::contract::{self, ProviderFixture as _};
use std::collections::BTreeSet;
use std::io::Write as _;
use tokio::sync::mpsc;

/// Not those of other tests, which may run at the same time.
const OWNER: &str = "parted/0123456789abcdef0123456789abcdef";
const OTHER: &str = "changed/0123456789abcdef0123456789abcdef";
const INACTIVE: &str = "inactive/0123456789abcdef0123456789abcdef";

#[test]
fn one_connection_that_does_not_answer_hides_no_other() {
    if !crate::may_run() {
        return;
    }
    let _turn = crate::together();
    crate::block_on(async {
        let machines = Machines::new("parted");
        let (deaths, _heard) = mpsc::channel(64);
        let [worker, _] = machines.workers();
        let mut host = contract::host(&machines, &worker);
        let first = machines.observed(OWNER, deaths.clone(), None);
        contract::started(&first, &mut host).await;
        drop(first);

        // The next master has one that is not there, and neither host in its ledger.
        let uri = format!("qemu+unix:///system?socket={}", machines.dir.join("no-socket").display());
        let both = |good: &str| {
            let mut both = config("parted", good);
            both.hosts.extend(config("lost", &good.replace(&machines.virt_host.uri, &uri)).hosts);
            both
        };
        let (dir, section) = (machines.dir.join("consoles"), machines.section.clone());
        let second = Libvirt::new(dir, OWNER, &both(&section), deaths.clone()).unwrap();
        let mut elsewhere = contract::host(&machines, &"lost-1".parse().unwrap());
        contract::order(&second, &mut elsewhere).await.unwrap_err();
        let Listing { machines: listed, unlisted } = second.list().await.unwrap();
        assert_eq!(unlisted.iter().map(|one| one.place.as_deref()).collect::<Vec<_>>(), [Some(uri.as_str())]);
        assert!(unlisted[0].why.contains("no-socket"), "{unlisted:?}");
        let handle = host.handle.clone().unwrap();
        assert_eq!(
            listed,
            [ListedHost {
                host: host.id.clone(),
                handle,
                identity: listed[0].identity.clone(),
                owner: Owner::Ours,
                suspended: false
            }]
        );
        // Its disk is not taken for a leftover, nor is one whose machine may run if nobody answers.
        let nowhere = ListedHost {
            host: elsewhere.id.clone(),
            handle: "none".to_owned(),
            identity: None,
            owner: Owner::Ours,
            suspended: false,
        };
        assert!(second.terminate_listed(&nowhere).await.unwrap_err().contains("no-socket"), "it may run there");
        assert_eq!(machines.machines().len(), 1);
        assert_eq!(second.terminate_listed(&listed[0]).await, Ok(Termination::Gone));
        assert_eq!((machines.machines(), machines.leftovers()), (BTreeSet::new(), BTreeSet::new()));

        // If nothing was ever made nobody has to be asked once the configuration names it no more.
        second.configure(&config("parted", &section));
        assert_eq!(contract::whole_list(&second).await, Ok(Vec::new()));
    });
}

#[test]
fn a_network_that_is_not_active_blames_no_image() {
    if !crate::may_run() {
        return;
    }
    let _turn = crate::together();
    crate::block_on(async {
        let machines = Machines::new("inactive");
        let virt_host = machines.virt_host;
        let description = machines.dir.join("inactive.xml");
        std::fs::write(&description, "<network><name>inactive</name></network>").unwrap();
        virt_host.virsh(&["net-define", description.to_str().unwrap()]);
        let section = machines.section.replace("network = \"bare\"", "network = \"inactive\"");
        let dir = machines.dir.join("consoles");
        let provider = Libvirt::new(dir, INACTIVE, &config("inactive", &section), mpsc::channel(64).0).unwrap();
        let [worker, _] = machines.workers();
        let mut host = contract::host(&machines, &worker);
        contract::order(&provider, &mut host).await.unwrap();
        let refused = provider.start(&host).await;
        assert!(matches!(&refused, Err(StartError::Place(why)) if why.contains("is not active")), "{refused:?}");
        assert_eq!((machines.machines(), machines.leftovers()), (BTreeSet::new(), BTreeSet::new()));
        // Somebody starts it.
        virt_host.virsh(&["net-start", "inactive"]);
        contract::started(&provider, &mut host).await;
        contract::gone(&provider, &host).await;
        virt_host.virsh(&["net-destroy", "inactive"]);
        virt_host.virsh(&["net-undefine", "inactive"]);
    });
}

#[test]
fn a_base_that_changed_under_a_running_guest_is_refused() {
    if !crate::may_run() {
        return;
    }
    let _turn = crate::together();
    crate::block_on(async {
        let machines = Machines::with_own_base("changed");
        let (deaths, _heard) = mpsc::channel(64);
        let [one, other] = machines.workers().map(|worker| contract::host(&machines, &worker));
        let (mut one, mut other) = (one, other);
        let provider = machines.observed(OTHER, deaths, None);
        contract::started(&provider, &mut one).await;
        let left = machines.leftovers();
        std::fs::File::options().append(true).open(&machines.base).unwrap().write_all(&[0; 512]).unwrap();
        contract::order(&provider, &mut other).await.unwrap();
        let Err(StartError::Rejected(why)) = provider.start(&other).await else { panic!("it is refused") };
        assert!(why.contains("was changed in place while a disk that was made over it is in use"), "{why}");
        assert_eq!((machines.machines().len(), machines.leftovers()), (1, left), "and nothing is left of it");
        // Once that guest is gone nothing lies over what it was.
        contract::gone(&provider, &one).await;
        contract::started(&provider, &mut other).await;
        contract::gone(&provider, &other).await;
    });
}
