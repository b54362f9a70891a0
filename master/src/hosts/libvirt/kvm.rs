//! Tests whether hardware virtualisation works. Some nested machines offer it, but their guests hang, so libvirt's
//! capabilities prove nothing. The test runs a machine without a disk: its firmware finds nothing to boot from and
//! restarts, which ends the machine.

use super::xml;
use std::time::Duration;
use virt::connect::Connect;
use virt::sys;

/// The processor of machines that use it. On some nested machines exactly this one does not work, so the test uses it
/// too.
pub const CPU: &str = "<cpu mode='host-passthrough'/>";
/// Time limit for the firmware. With hardware virtualisation it takes half a second; a machine that takes longer than
/// this is no faster than an emulated one.
const LIMIT: Duration = Duration::from_secs(5);
/// Interval of the checks.
const LOOK: Duration = Duration::from_millis(50);

/// Runs the test. `name` is the name of the machine.
pub fn works(connect: &Connect, name: &str) -> bool {
    let offered = connect.capabilities().ok().and_then(|text| xml::parse(&text).ok()).is_some_and(|capabilities| {
        let guests = xml::elements(&capabilities).filter(|e| e.name == "guest").filter_map(|g| g.get_child("arch"));
        let mut domains = guests.filter(|a| xml::attribute(a, None, "name") == Some("x86_64")).flat_map(xml::elements);
        domains.any(|e| e.name == "domain" && xml::attribute(e, None, "type") == Some("kvm"))
    });
    if !offered {
        return false;
    }
    let machine = format!(
        "<domain type='kvm'><name>{name}</name><memory unit='MiB'>32</memory><vcpu>1</vcpu>{CPU}\
         <os><type arch='x86_64' machine='q35'>hvm</type><bios rebootTimeout='0'/></os><on_reboot>destroy</on_reboot>\
         <devices><controller type='usb' model='none'/><memballoon model='none'/></devices></domain>"
    );
    // If this process ends during the test, so does the machine.
    let Ok(domain) = connect.create_domain_xml(&machine, sys::VIR_DOMAIN_START_AUTODESTROY) else { return false };
    for _ in 0..LIMIT.as_millis() / LOOK.as_millis() {
        std::thread::sleep(LOOK);
        if !domain.is_active().unwrap_or(false) {
            return true;
        }
    }
    if let Err(error) = domain.destroy() {
        tracing::debug!("the test machine {name} could not be ended: {error}");
    }
    false
}
