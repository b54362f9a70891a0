//! libvirt's events: the ends of domains, and of the connection. The crate `virt` has no safe wrapper for these, so
//! this module makes the few calls itself.

use crate::sync::lock;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::Mutex;
use std::time::Duration;
use virt::connect::Connect;
use virt::error::Error;
use virt::sys;

/// Something that happened to a domain, by its UUID.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LifecycleEvent {
    /// It no longer runs; the reason.
    Stopped(String, &'static str),
    /// It is paused and will not continue by itself; the reason.
    Stuck(String, &'static str),
    /// The connection is up. What happened before is unknown.
    Connected,
}

/// Runs libvirt's event loop on a separate thread, once for this process. Must be called before any connection is
/// opened.
///
/// # Errors
/// If the thread or the loop cannot be started.
pub fn run() -> std::io::Result<()> {
    static RUNS: Mutex<bool> = Mutex::new(false);
    let mut runs = lock(&RUNS);
    if *runs {
        return Ok(());
    }
    // Errors are returned as results. libvirt would print each of them as well.
    virt::error::clear_error_callback();
    virt::event::event_register_default_impl().map_err(|e| std::io::Error::other(e.to_string()))?;
    let turn = || {
        loop {
            if let Err(error) = virt::event::event_run_default_impl() {
                tracing::warn!("libvirt's event loop: {error}");
                std::thread::sleep(Duration::from_secs(1));
            }
        }
    };
    std::thread::Builder::new().name("libvirt-events".to_owned()).spawn(turn)?;
    *runs = true;
    Ok(())
}

type OnClose = Box<dyn Fn(&'static str) + Send>;
type OnLifecycle = Box<dyn Fn(LifecycleEvent) + Send>;

/// Listens to a connection for as long as it lives.
pub struct Ear {
    connect: Connect,
    domains: c_int,
}

impl Ear {
    /// Registers two callbacks: `closed` is called once when the connection is lost, `on_lifecycle` for each end of a
    /// domain. Both are called from the thread of the event loop, and must not block.
    ///
    /// # Errors
    /// If libvirt refuses.
    pub fn new(connect: &Connect, closed: OnClose, on_lifecycle: OnLifecycle) -> Result<Self, Error> {
        // SAFETY: the connection is alive, and libvirt calls `free` once when it will not use `opaque` any more: after
        // a call that succeeded. After one that failed the box is ours again.
        unsafe {
            let opaque = Box::into_raw(Box::new(closed)).cast::<c_void>();
            let result =
                sys::virConnectRegisterCloseCallback(connect.as_ptr(), Some(on_close), opaque, Some(free::<OnClose>));
            if result < 0 {
                drop(Box::from_raw(opaque.cast::<OnClose>()));
                return Err(Error::last_error());
            }
            let opaque = Box::into_raw(Box::new(on_lifecycle)).cast::<c_void>();
            let on_life: unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, c_int, c_int, *mut c_void) =
                on_life;
            // libvirt takes all kinds of callbacks by one type, and calls each with what its kind is called with.
            let callback = std::mem::transmute::<
                unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, c_int, c_int, *mut c_void),
                unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, *mut c_void),
            >(on_life);
            let domains = sys::virConnectDomainEventRegisterAny(
                connect.as_ptr(),
                std::ptr::null_mut(),
                sys::VIR_DOMAIN_EVENT_ID_LIFECYCLE as c_int,
                Some(callback),
                opaque,
                Some(free::<OnLifecycle>),
            );
            if domains < 0 {
                drop(Box::from_raw(opaque.cast::<OnLifecycle>()));
                let error = Error::last_error();
                sys::virConnectUnregisterCloseCallback(connect.as_ptr(), Some(on_close));
                return Err(error);
            }
            Ok(Self { connect: connect.clone(), domains })
        }
    }
}

impl Drop for Ear {
    fn drop(&mut self) {
        // SAFETY: both were registered on this connection, which is alive for as long as we hold it. A connection that
        // is lost has dropped them already, and says so by an error that means nothing here.
        unsafe {
            sys::virConnectDomainEventDeregisterAny(self.connect.as_ptr(), self.domains);
            sys::virConnectUnregisterCloseCallback(self.connect.as_ptr(), Some(on_close));
        }
    }
}

unsafe extern "C" fn free<T>(opaque: *mut c_void) {
    // SAFETY: this is the pointer that `Ear::new` made of a box of this type, and libvirt calls this once.
    drop(unsafe { Box::from_raw(opaque.cast::<T>()) });
}

unsafe extern "C" fn on_close(_: sys::virConnectPtr, reason: c_int, opaque: *mut c_void) {
    // SAFETY: see `Ear::new`.
    let closed = unsafe { &*opaque.cast::<OnClose>() };
    closed(match u32::try_from(reason) {
        Ok(sys::VIR_CONNECT_CLOSE_REASON_EOF) => "libvirtd closed it",
        Ok(sys::VIR_CONNECT_CLOSE_REASON_KEEPALIVE) => "libvirtd does not answer any more",
        Ok(sys::VIR_CONNECT_CLOSE_REASON_CLIENT) => "it was closed by ourselves",
        Ok(_) | Err(_) => "it broke",
    });
}

unsafe extern "C" fn on_life(
    _: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    event: c_int,
    detail: c_int,
    opaque: *mut c_void,
) {
    // SAFETY: see `Ear::new`.
    let on_lifecycle = unsafe { &*opaque.cast::<OnLifecycle>() };
    let mut buffer: [c_char; sys::VIR_UUID_STRING_BUFLEN as usize] = [0; sys::VIR_UUID_STRING_BUFLEN as usize];
    // SAFETY: the domain is alive during the callback, and the buffer has the size that libvirt asks for; it ends with
    // a zero byte if the call succeeds.
    let uuid = unsafe {
        if sys::virDomainGetUUIDString(domain, buffer.as_mut_ptr()) < 0 {
            return;
        }
        CStr::from_ptr(buffer.as_ptr()).to_string_lossy().into_owned()
    };
    let (Ok(event), Ok(detail)) = (u32::try_from(event), u32::try_from(detail)) else { return };
    match (event, detail) {
        (sys::VIR_DOMAIN_EVENT_STOPPED, detail) => on_lifecycle(LifecycleEvent::Stopped(
            uuid,
            match detail {
                sys::VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN => "its guest powered off or rebooted",
                sys::VIR_DOMAIN_EVENT_STOPPED_DESTROYED => "it was destroyed",
                sys::VIR_DOMAIN_EVENT_STOPPED_CRASHED => "its guest crashed",
                sys::VIR_DOMAIN_EVENT_STOPPED_FAILED => "its QEMU ended",
                sys::VIR_DOMAIN_EVENT_STOPPED_MIGRATED => "it was moved to another machine",
                sys::VIR_DOMAIN_EVENT_STOPPED_SAVED => "it was saved to a file",
                _ => "it was stopped",
            },
        )),
        (sys::VIR_DOMAIN_EVENT_CRASHED, _) => on_lifecycle(LifecycleEvent::Stuck(uuid, "its guest crashed")),
        (sys::VIR_DOMAIN_EVENT_SUSPENDED, sys::VIR_DOMAIN_EVENT_SUSPENDED_IOERROR) => {
            on_lifecycle(LifecycleEvent::Stuck(
                uuid,
                "its disk could not be written: the file system that it is on may be full",
            ));
        }
        _ => {}
    }
}
