//! A name from DHCP, as dhclient provides it: the agent uses the name, and runs a build under it. Other tests cover
//! busybox's client and systemd-networkd, with guests and the built image.

use crate::system::system;
use rouse_tests::harness::{DEADLINE, PASSWORD, Process, holds_within, program};
use rouse_tests::virt::run;
use std::fs;
use std::path::Path;
use std::process::Command;

/// Standing workers of the system's.
pub const WORKERS: [&str; 2] = ["leased-1", "leased-2"];
const CARD: &str = "rouse-card";

/// What a machine does that has been installed with dhclient, and with a host name that many machines have. What it
/// changes is its own; $1 says who sets the host name.
const MACHINE: &str = r#"
set -eu
hostname localhost
mount -t tmpfs tmpfs /var/lib/dhcp
mount -t tmpfs tmpfs /run
cp -a /etc /run/etc
mount --bind /run/etc /etc
cat >/run/script <<'END'
#!/bin/sh
# Takes the address, and neither name nor servers.
case $reason in
    PREINIT) ip link set "$interface" up ;;
    BOUND | REBOOT) ip address add "$new_ip_address/$new_subnet_mask" dev "$interface" ;;
esac
END
chmod 755 /run/script
ip link set lo up
# It is put in from outside.
until ip link show rouse-card >/dev/null 2>&1; do sleep 0.05; done
script=/run/script
if [ "$1" = dhclient ]; then script=$(command -v dhclient-script); fi
dhclient -1 -sf "$script" rouse-card
echo "its host name is $(hostname)"
exec "$2"
"#;

#[test]
fn dhclients_name_is_taken_from_the_machine_or_from_its_lease() {
    if !crate::may_run() {
        return;
    }
    let _turn = crate::together();
    let system = system();
    let network = system.virt_host.virsh(&["net-dumpxml", "rouse"]);
    let bridge = network.split_once("<bridge name='").unwrap().1.split('\'').next().unwrap();
    let ip = |arguments: &[&str]| run(Command::new("ip").args(arguments));
    for (worker, who) in WORKERS.into_iter().zip(["dhclient", "nobody"]) {
        let number = worker.rsplit('-').next().unwrap();
        let (port, mac) = ("rouse-port", format!("52:54:00:1e:a5:0{number}"));
        let entry = format!("<host mac='{mac}' name='{worker}' ip='10.150.31.{number}'/>");
        system.virt_host.virsh(&["net-update", "rouse", "add", "ip-dhcp-host", &entry, "--live"]);
        ip(&["link", "add", port, "type", "veth", "peer", "name", CARD, "address", &mac]);
        ip(&["link", "set", port, "master", bridge, "up"]);
        let mut machine = Command::new("unshare");
        machine.args(["--net", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]);
        machine.args(["sh", "-c", MACHINE, "sh", who]).arg(program("rouse-agent")).env_clear();
        machine.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("ROUSE_AGENT_IDENTITY", "hostname");
        machine.env("ROUSE_AGENT_PASSWORD", PASSWORD).env("ROUSE_AGENT_BROKER", &system.broker);
        machine.env("ROUSE_AGENT_WORK_DIR", system.master.dir.join(format!("work-{worker}")));
        let machine = Process::start(machine, &system.master.dir, worker);
        // Of this thread, since the process's first one is outside of the tests' network.
        let network_of = |who: &str| fs::read_link(format!("/proc/{who}/ns/net")).unwrap();
        let pid = machine.pid().to_string();
        system.master.until("it has a network of its own", || network_of(&pid) != network_of("thread-self"));
        ip(&["link", "set", CARD, "netns", &pid]);
        let build = system.master.detach(&["--worker", worker, "--", "hostname"]);
        let said = || String::from_utf8_lossy(&machine.out()).into_owned() + &machine.err();
        assert!(holds_within(DEADLINE, || system.master.state(&build) == "success"), "it is not called so: {}", said());
        assert_eq!(system.log(&build).trim(), if who == "dhclient" { worker } else { "localhost" }, "{}", said());
        drop(machine);
        // It goes with the machine's network, some time later.
        system.master.until("its card is gone", || !Path::new("/sys/class/net").join(port).exists());
    }
}
