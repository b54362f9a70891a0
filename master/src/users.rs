//! Looks up users and groups by name.

use std::ffi::{CStr, CString};
use std::mem::MaybeUninit;
use std::ptr;

/// Room for the members of a group. With more of them, the group counts as unknown.
const BUFFER: usize = 1 << 20;

/// The id of a group, if there is one of this name.
pub fn group(name: &str) -> Option<u32> {
    let name = CString::new(name).ok()?;
    let mut buffer = vec![0; BUFFER];
    let mut entry = MaybeUninit::<libc::group>::uninit();
    let mut found = ptr::null_mut();
    // SAFETY: the pointers are valid for the call, and the length is that of the buffer.
    let failed =
        unsafe { libc::getgrnam_r(name.as_ptr(), entry.as_mut_ptr(), buffer.as_mut_ptr(), buffer.len(), &mut found) };
    if failed != 0 {
        return None;
    }
    // SAFETY: the call has succeeded, so `found` is null or points to `entry`, which the call has filled.
    unsafe { found.as_ref() }.map(|entry| entry.gr_gid)
}

/// The id of a user, if there is one of this name.
pub fn user(name: &str) -> Option<u32> {
    let name = CString::new(name).ok()?;
    let mut buffer = vec![0; BUFFER];
    let mut entry = MaybeUninit::<libc::passwd>::uninit();
    let mut found = ptr::null_mut();
    // SAFETY: the pointers are valid for the call, and the length is that of the buffer.
    let failed =
        unsafe { libc::getpwnam_r(name.as_ptr(), entry.as_mut_ptr(), buffer.as_mut_ptr(), buffer.len(), &mut found) };
    if failed != 0 {
        return None;
    }
    // SAFETY: the call has succeeded, so `found` is null or points to `entry`, which the call has filled.
    unsafe { found.as_ref() }.map(|entry| entry.pw_uid)
}

/// The name of the user with this id, if there is one. May ask a directory service, and then take long.
pub fn name(id: u32) -> Option<String> {
    let mut buffer = vec![0; BUFFER];
    let mut entry = MaybeUninit::<libc::passwd>::uninit();
    let mut found = ptr::null_mut();
    // SAFETY: the pointers are valid for the call, and the length is that of the buffer.
    let failed = unsafe { libc::getpwuid_r(id, entry.as_mut_ptr(), buffer.as_mut_ptr(), buffer.len(), &mut found) };
    if failed != 0 {
        return None;
    }
    // SAFETY: the call has succeeded, so `found` is null or points to `entry`, which the call has filled.
    let entry = unsafe { found.as_ref() }?;
    // SAFETY: the name of an entry is a text in the buffer that ends with a NUL.
    let name = unsafe { CStr::from_ptr(entry.pw_name) };
    name.to_str().ok().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_and_groups_have_ids() {
        assert_eq!((user("root"), group("root")), (Some(0), Some(0)));
        assert_eq!((name(0).as_deref(), name(4_294_967_294)), (Some("root"), None));
        assert_eq!((user("no-such-user"), group("no-such-group"), user("a\0b")), (None, None, None));
    }
}
