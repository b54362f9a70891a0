//! Looks up users by name: in `/etc/passwd` and `/etc/group`, and then in the directory services of the machine (LDAP,
//! SSSD, systemd).
//!
//! The agent parses the files itself, because the lookup of the C library loads plugins, and a static program cannot do
//! that. For users that are not in the files, the agent runs the machine's own programs `getent` and `id`.

use std::fs;
use std::io::{self, Read};
use std::marker::PhantomData;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;
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

/// Longest time for the answer of a directory service, in pauses of [`PAUSE`]. The agent's heartbeats wait for it.
const PAUSES: u32 = 500;
const PAUSE: Duration = Duration::from_millis(10);
/// Exit code of `getent` if there is no such entry.
const NO_ENTRY: i32 = 2;

/// Why steps cannot run as a user.
#[derive(Debug, Error)]
pub enum UserError {
    /// Neither `/etc/passwd` nor any service of the machine knows this name.
    #[error("there is no user {0:?}, neither in /etc/passwd nor for getent")]
    Unknown(String),
    /// `/etc/passwd` does not list this name, and the machine cannot be asked for it.
    #[error("there is no user {0:?} in /etc/passwd, and {1}")]
    NoAnswer(String, String),
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

/// The user with the login name `name`. Waits up to five seconds for a directory service, if the files do not have it.
///
/// # Errors
/// If there is none, one of the two files cannot be read, or the service does not answer.
pub fn lookup(name: &str) -> Result<User, UserError> {
    match find(name, &read("/etc/passwd")?, &read("/etc/group")?) {
        Err(UserError::Unknown(_)) => ask(name, &run),
        found => found,
    }
}

/// Runs a program, and returns its exit code and what it printed, or why there is no answer (with the name of the
/// program).
fn run(program: &str, arguments: &[&str]) -> Result<(Option<i32>, String), String> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(|error| format!("{program} cannot be run: {error}"))?;
    for _ in 0..PAUSES {
        match child.try_wait() {
            Ok(None) => std::thread::sleep(PAUSE),
            Ok(Some(status)) => {
                let mut text = String::new();
                let read = child.stdout.take().map(|mut out| out.read_to_string(&mut text)).transpose();
                return read
                    .map(|_| (status.code(), text))
                    .map_err(|error| format!("{program} cannot be read: {error}"));
            }
            Err(error) => return Err(format!("{program} cannot be waited for: {error}")),
        }
    }
    // It may have ended just now.
    child.kill().and_then(|()| child.wait()).ok();
    Err(format!("{program} has no answer within {} s", PAUSE.as_secs_f32() * PAUSES as f32))
}

/// Runs a program with arguments: its exit code and what it printed, or why there is no answer.
type Run<'r> = &'r dyn Fn(&str, &[&str]) -> Result<(Option<i32>, String), String>;

/// The user that the machine's own programs know.
fn ask(name: &str, run: Run<'_>) -> Result<User, UserError> {
    // Programs take a number for an id, and a hyphen for an option.
    if name.is_empty() || name.starts_with('-') || name.bytes().all(|b| b.is_ascii_digit()) {
        return Err(UserError::Unknown(name.to_owned()));
    }
    let no_answer = |why: String| UserError::NoAnswer(name.to_owned(), why);
    let entry = match run("getent", &["passwd", name]).map_err(no_answer)? {
        (Some(0), entry) => entry,
        (Some(NO_ENTRY), _) => return Err(UserError::Unknown(name.to_owned())),
        (code, _) => return Err(no_answer(format!("getent passwd ends with {code:?}"))),
    };
    // A service may know the user by another spelling, such as name@domain. The first line is the answer.
    let login = entry.split(':').next().unwrap_or_default().to_owned();
    let user = find(&login, &entry, "").map_err(|_| no_answer("getent's answer is no line of passwd".to_owned()))?;
    let (code, groups) = run("id", &["-G", name]).map_err(no_answer)?;
    let mut all = vec![user.gid];
    for group in groups.split_whitespace() {
        let group = group.parse().map_err(|_| no_answer("the answer of id -G is no list of numbers".to_owned()))?;
        if !all.contains(&group) {
            all.push(group);
        }
    }
    if code == Some(0) { Ok(User { groups: all, ..user }) } else { Err(no_answer(format!("id -G ends with {code:?}"))) }
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
    fn who_is_not_in_the_files_is_asked_for() {
        let answers = |program: &str, arguments: &[&str]| match (program, arguments) {
            ("getent", ["passwd", "ci"]) => {
                Ok((Some(0), "ci@example.org:*:70001:70000:CI:/home/ci:/bin/bash\n".to_owned()))
            }
            ("getent", ["passwd", "odd"]) => Ok((Some(0), "no line\n".to_owned())),
            ("getent", ["passwd", "slow"]) => Err("getent has no answer within 5 s".to_owned()),
            ("getent", ["passwd", "broken"]) => Ok((None, String::new())),
            ("getent", _) => Ok((Some(2), String::new())),
            ("id", ["-G", "ci"]) => Ok((Some(0), "70000 998 70001\n".to_owned())),
            other => panic!("{other:?}"),
        };
        let user = ask("ci", &answers).expect("it is known");
        assert_eq!((user.name.as_str(), user.uid, user.gid), ("ci@example.org", 70001, 70000));
        assert_eq!((user.groups, user.home), (vec![70000, 998, 70001], PathBuf::from("/home/ci")));
        for (name, part) in [("odd", "no line of passwd"), ("slow", "within 5 s"), ("broken", "getent passwd ends")] {
            let told = ask(name, &answers).expect_err("it has no answer").to_string();
            assert!(told.contains(part), "{told}");
        }
        for name in ["nobody-here", "", "0", "--help"] {
            assert!(matches!(ask(name, &answers), Err(UserError::Unknown(_))), "{name:?}");
        }
    }

    #[test]
    fn programs_are_asked_and_not_waited_for_without_end() {
        assert_eq!(run("sh", &["-c", "echo a; exit 2"]), Ok((Some(2), "a\n".to_owned())));
        assert!(run("/nonexistent/getent", &[]).is_err_and(|why| why.contains("cannot be run")));
        assert!(run("sleep", &["60"]).is_err_and(|why| why.contains("no answer within 5 s")));
    }

    #[test]
    fn what_is_not_a_login_name_is_no_user() {
        for name in ["", "broken", "# a note", "buil", "build:x"] {
            assert!(matches!(find(name, PASSWD, GROUP), Err(UserError::Unknown(_))), "{name:?}");
        }
    }
}
