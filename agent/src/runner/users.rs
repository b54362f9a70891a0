//! Users by name, from `/etc/passwd` and `/etc/group`.
//!
//! The agent parses the files itself: the lookup of the C library loads plugins, which a static program cannot. So
//! users that only a directory service knows are unknown here.

use std::fs;
use std::io;
use std::marker::PhantomData;
use std::path::PathBuf;
use thiserror::Error;

/// A user that steps can run as.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct User {
    /// Login name.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// Id of the primary group.
    pub gid: u32,
    /// Ids of all groups, the primary one first.
    pub groups: Vec<u32>,
    /// Home directory.
    pub home: PathBuf,
}

impl User {
    /// Until the value is dropped, this thread opens and creates files as the user, with the user's permissions.
    /// Without effect if the thread may not change its user.
    pub fn access_files(&self) -> FileAccess {
        // SAFETY: no memory is involved. Both are of the calling thread alone, and give the id there was.
        unsafe {
            // The group first, as when a process changes for good.
            let gid = libc::setfsgid(self.gid) as u32;
            FileAccess { uid: libc::setfsuid(self.uid) as u32, gid, _thread: PhantomData }
        }
    }
}

/// See [`User::access_files`].
#[derive(Debug)]
pub struct FileAccess {
    uid: u32,
    gid: u32,
    /// Not to be dropped by another thread.
    _thread: PhantomData<*const ()>,
}

impl Drop for FileAccess {
    fn drop(&mut self) {
        // SAFETY: as above.
        unsafe {
            libc::setfsuid(self.uid);
            libc::setfsgid(self.gid);
        }
    }
}

/// Checks whether this process may run steps as the user of that name.
///
/// # Errors
/// If it may not, or there is no such user.
pub fn usable(name: &str) -> Result<(), UserError> {
    let user = lookup(name)?;
    let own = rustix::process::geteuid();
    if own.is_root() || own.as_raw() == user.uid { Ok(()) } else { Err(UserError::NotPermitted(user.name)) }
}

/// Why steps cannot run as a user.
#[derive(Debug, Error)]
pub enum UserError {
    /// `/etc/passwd` does not list this name.
    #[error("there is no user {0:?} in /etc/passwd")]
    Unknown(String),
    /// A file cannot be read.
    #[error("{0} cannot be read")]
    Unreadable(&'static str, #[source] io::Error),
    /// This process may not become the user of this name.
    #[error("only root can run steps as user {0:?}")]
    NotPermitted(String),
}

fn read(file: &'static str) -> Result<String, UserError> {
    let bytes = fs::read(file).map_err(|error| UserError::Unreadable(file, error))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The user with the login name `name`.
///
/// # Errors
/// If there is none, or one of the two files cannot be read.
pub fn lookup(name: &str) -> Result<User, UserError> {
    find(name, &read("/etc/passwd")?, &read("/etc/group")?)
}

fn find(name: &str, passwd: &str, group: &str) -> Result<User, UserError> {
    let entry = passwd.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let &[login, _, uid, gid, _, home, _] = fields.as_slice() else { return None };
        (login == name).then_some(())?;
        Some((uid.parse().ok()?, gid.parse().ok()?, home))
    });
    let (uid, gid, home) = entry.ok_or_else(|| UserError::Unknown(name.to_owned()))?;
    let mut groups = vec![gid];
    for line in group.lines() {
        let fields: Vec<&str> = line.split(':').collect();
        let &[_, _, id, members] = fields.as_slice() else { continue };
        let Ok(id) = id.parse() else { continue };
        if !groups.contains(&id) && members.split(',').any(|member| member == name) {
            groups.push(id);
        }
    }
    Ok(User { name: name.to_owned(), uid, gid, groups, home: home.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\n# a note\nbroken\nbuild:x:1001:1002::/home/build:/bin/sh\n";
    const GROUP: &str = "root:x:0:\ndocker:x:998:other,build\nbuild:x:1002:build\nbuilders:x:997:builder\n";

    #[test]
    fn a_user_has_its_groups_and_no_others() {
        let user = find("build", PASSWD, GROUP).expect("it is there");
        assert_eq!((user.uid, user.gid, user.groups), (1001, 1002, vec![1002, 998]));
        assert_eq!(user.home, PathBuf::from("/home/build"));
    }

    #[test]
    fn what_is_not_a_login_name_is_no_user() {
        for name in ["", "broken", "# a note", "buil", "build:x"] {
            assert!(matches!(find(name, PASSWD, GROUP), Err(UserError::Unknown(_))), "{name:?}");
        }
    }
}
