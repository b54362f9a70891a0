//! Looks up users and groups by name.

use std::ffi::CString;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_and_groups_have_ids() {
        assert_eq!((user("root"), group("root")), (Some(0), Some(0)));
        assert_eq!((user("no-such-user"), group("no-such-group"), user("a\0b")), (None, None, None));
    }
}
