//! A domain that claims to be this master's, made by somebody who may create domains on the master's connection.

use crate::machines::Machines;
use rouse_master::core::event::Termination;
use rouse_master::core::record::Host;
use rouse_master::hosts::Provider as _;
use rouse_shared::HostId;
use rouse_tests::contract::{self, ProviderFixture as _};
use std::fs;
use std::path::Path;
use std::time::Duration;
use tokio::sync::mpsc;

/// Not that of other tests, which may run at the same time.
const OWNER: &str = "claims/0123456789abcdef0123456789abcdef";
const DOMAIN: &str = "claims-everything";
const UUID: &str = "5a1c6a2e-0b7e-4d0c-9a57-3b8f6f1e2d11";

/// A domain without a disk, with the owner tag as earlier versions have written it.
fn create(machines: &Machines, host: &str, disk: &Path, console: &Path) {
    let (master, id) = OWNER.split_once('/').unwrap();
    let xml = format!(
        "<domain type='qemu'><name>{DOMAIN}</name><uuid>{UUID}</uuid><memory unit='MiB'>32</memory>\
         <metadata><rouse:host xmlns:rouse='urn:rouse:host:1' master='{master}' id='{id}' host='{host}' uuid='{UUID}' \
         disk='{}' base='{0}' change='1:1:1' console='{}'/></metadata><os><type>hvm</type></os></domain>",
        disk.display(),
        console.display()
    );
    let path = machines.dir.join("claims.xml");
    fs::write(&path, xml).unwrap();
    machines.virt_host.virsh(&["create", &path.display().to_string()]);
}

#[test]
fn the_files_that_a_domain_names_are_neither_read_nor_removed() {
    if !crate::may_run() {
        return;
    }
    let _turn = crate::together();
    crate::block_on(async {
        let machines = Machines::new("claims");
        let precious = machines.dir.join("precious");
        fs::write(&precious, "api-token").unwrap();
        let [worker, _] = machines.workers();
        let of_a_host = |id: &str| Host { id: HostId(id.to_owned()), ..contract::host(&machines, &worker) };
        // An id that is no id would lead to another directory.
        fs::write(machines.dir.join("out.console"), "api-token").unwrap();
        for id in ["h00000000claimed", "../out"] {
            let (deaths, mut heard) = mpsc::channel(64);
            let provider = machines.observed(OWNER, deaths, None);
            create(&machines, id, &precious, &precious);
            let listed = contract::whole_list(&provider).await.unwrap();
            assert_eq!(listed.len(), usize::from(id != "../out"), "{listed:?}");
            machines.virt_host.virsh(&["destroy", DOMAIN]);
            if id != "../out" {
                let death = tokio::time::timeout(Duration::from_secs(60), heard.recv()).await;
                assert_eq!(death.unwrap().map(|death| death.host.0).as_deref(), Some(id));
            }
            // The audit tidies up.
            contract::whole_list(&provider).await.unwrap();
            assert_eq!(provider.console(&of_a_host(id)).await, None, "what the file says is shown");
            assert!(precious.exists() && machines.dir.join("out.console").exists(), "{id}");
        }
        // Ended by the master.
        let (deaths, _heard) = mpsc::channel(64);
        let provider = machines.observed(OWNER, deaths, None);
        create(&machines, "h00000000claimed", &precious, &precious);
        let [listed] = <[_; 1]>::try_from(contract::whole_list(&provider).await.unwrap()).unwrap();
        assert_eq!(provider.terminate_listed(&listed).await, Ok(Termination::Gone));
        assert!(!machines.machines().contains(DOMAIN));
        assert_eq!(fs::read(&precious).unwrap(), b"api-token");
    });
}
