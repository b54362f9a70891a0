//! Removes a directory that a build has filled: of any depth, with anything in it.
//!
//! A build can make a tree that is deep enough to overflow the stack, or to use up the file descriptors, of a program
//! that walks down into it. So this never walks down: each directory that it finds in a subdirectory moves up to the
//! top, and no more than three directories are open at a time.

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, IFlags, Mode, OFlags, RenameFlags, chmodat, fchmod, fstat, ioctl_getflags,
    ioctl_setflags, openat, renameat_with, statat, unlinkat,
};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::geteuid;
use std::collections::VecDeque;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// How often the contents of one directory are removed. More than once is necessary if the file system leaves out
/// entries of a directory that changes while it is read.
const MAX_PASSES: u32 = 16;
/// How many mounts on one directory are detached. They can be stacked.
const MAX_MOUNTS: u32 = 64;

/// Removes `path` with all that is in it. Links are not followed. What is mounted in the tree is detached, if the agent
/// is root; it is never entered.
///
/// # Errors
/// The first error, if something cannot be removed. Everything else is removed all the same.
pub(super) fn remove_tree(path: &Path) -> io::Result<()> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let Some(top) = open(CWD, &name)? else { return Ok(()) };
    let mut tree = Tree { top, waiting: VecDeque::new(), moved: 0, error: None };
    for _pass in 0..MAX_PASSES {
        tree.empty(None)?;
        while let Some(directory) = tree.waiting.pop_front() {
            if let Err(error) = tree.remove_below_top(&directory) {
                tree.error.get_or_insert(error);
            }
        }
        match unlinkat(CWD, &name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::NOTEMPTY | Errno::EXIST) if tree.error.is_none() => {}
            Err(error) => return Err(tree.error.unwrap_or(error).into()),
        }
    }
    Err(Errno::NOTEMPTY.into())
}

struct Tree {
    top: OwnedFd,
    /// Directories in `top`.
    waiting: VecDeque<CString>,
    /// How many directories were moved up, for their names.
    moved: u64,
    /// Why something could not be removed.
    error: Option<Errno>,
}

impl Tree {
    /// Removes a directory of `top`, and moves those in it to `top`.
    fn remove_below_top(&mut self, name: &CStr) -> Result<(), Errno> {
        for _pass in 0..MAX_PASSES {
            if remove_entry(self.top.as_fd(), name, true)? {
                return Ok(());
            }
            let Some(directory) = open(self.top.as_fd(), name)? else { return Ok(()) };
            self.empty(Some(directory.as_fd()))?;
        }
        Err(Errno::NOTEMPTY)
    }

    /// Removes what is in a directory, `top` itself if none is given. Directories that are not empty are moved to
    /// `top`, and wait there.
    fn empty(&mut self, directory: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
        let from = directory.unwrap_or(self.top.as_fd());
        let mut found = Vec::new();
        for entry in Dir::read_from(from)? {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            match remove_entry(from, name, entry.file_type() == FileType::Directory) {
                Ok(true) => {}
                Ok(false) => found.push(name.to_owned()),
                Err(error) => self.error = self.error.or(Some(error)),
            }
        }
        for name in found {
            match directory {
                None => self.waiting.push_back(name),
                Some(directory) => match self.move_up(directory, &name) {
                    Ok(moved) => self.waiting.push_back(moved),
                    Err(error) => self.error = self.error.or(Some(error)),
                },
            }
        }
        Ok(())
    }

    /// Moves a directory to `top`; returns its name there.
    fn move_up(&mut self, from: BorrowedFd<'_>, name: &CStr) -> Result<CString, Errno> {
        loop {
            self.moved += 1;
            let new = CString::new(self.moved.to_string()).unwrap_or_default();
            let rename = || renameat_with(from, name, &self.top, &new, RenameFlags::NOREPLACE);
            match with_permission(from, Some(name), || with_flags_cleared(from, name, rename)) {
                Ok(()) => return Ok(new),
                // The build has used this name as well.
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Removes a file, a link or an empty directory. Returns whether it is gone: if not, it is a directory that is not
/// empty.
fn remove_entry(parent: BorrowedFd<'_>, name: &CStr, directory: bool) -> Result<bool, Errno> {
    let mut kind = if directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
    for _mount in 0..MAX_MOUNTS {
        let unlink = || with_flags_cleared(parent, name, || unlinkat(parent, name, kind));
        match with_permission(parent, None, unlink) {
            Ok(()) | Err(Errno::NOENT) => return Ok(true),
            Err(Errno::NOTEMPTY | Errno::EXIST) => return Ok(false),
            // Something is mounted there. The kernel finds this out before it looks whether a directory is empty.
            Err(Errno::BUSY) => detach(parent, name)?,
            // Some file systems do not say in a listing what is a directory.
            Err(Errno::ISDIR | Errno::PERM) if kind.is_empty() => kind = AtFlags::REMOVEDIR,
            Err(Errno::NOTDIR) if !directory => return Err(Errno::PERM),
            Err(error) => return Err(error),
        }
    }
    Err(Errno::BUSY)
}

/// Does something with an entry of a directory that a build which is root may have made immutable (`chattr +i`, `+a`).
fn with_flags_cleared<T>(
    parent: BorrowedFd<'_>,
    name: &CStr,
    attempt: impl Fn() -> Result<T, Errno>,
) -> Result<T, Errno> {
    match attempt() {
        Err(Errno::PERM) if geteuid().is_root() => {
            // It can be the entry, or the directory that it is in.
            let cleared = clear_flags_of(parent, name) | (parent.as_raw_fd() != CWD.as_raw_fd() && clear_flags(parent));
            if cleared { attempt() } else { Err(Errno::PERM) }
        }
        other => other,
    }
}

/// Clears the flags of an entry that keep it from being removed. Not of a file with further links: it may be somebody
/// else's too. Returns whether any was set.
fn clear_flags_of(parent: BorrowedFd<'_>, name: &CStr) -> bool {
    let Ok(stat) = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) else { return false };
    let (kind, links) = (FileType::from_raw_mode(stat.st_mode), stat.st_nlink);
    if kind != FileType::Directory && (kind != FileType::RegularFile || links > 1) {
        return false;
    }
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    openat(parent, name, flags, Mode::empty()).is_ok_and(|file| {
        // The same one, and nothing that is mounted on it.
        fstat(&file).is_ok_and(|now| (now.st_dev, now.st_ino) == (stat.st_dev, stat.st_ino))
            && clear_flags(file.as_fd())
    })
}

fn clear_flags(file: BorrowedFd<'_>) -> bool {
    let Ok(flags) = ioctl_getflags(file) else { return false };
    let without = flags - (IFlags::IMMUTABLE | IFlags::APPEND);
    without != flags && ioctl_setflags(file, without).is_ok()
}

/// Detaches what is mounted on a directory or a file.
pub(super) fn detach_at(path: &Path) -> io::Result<()> {
    Ok(unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?)
}

/// Detaches what is mounted on a directory.
fn detach(parent: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    let mut path = format!("/proc/self/fd/{}/", parent.as_raw_fd()).into_bytes();
    path.extend_from_slice(name.to_bytes());
    unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
}

/// Opens a directory. `None` if it does not exist.
fn open(parent: BorrowedFd<'_>, name: &CStr) -> Result<Option<OwnedFd>, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match with_permission(parent, Some(name), || openat(parent, name, flags, Mode::empty())) {
        Ok(directory) => Ok(Some(directory)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Does something in a directory, and with a subdirectory of it, that may be read-only. Some tools make their caches so,
/// which stops anyone but root. Root does not need to change modes, and must not do so in a tree that somebody else may
/// be changing.
fn with_permission<T>(
    parent: BorrowedFd<'_>,
    directory: Option<&CStr>,
    attempt: impl Fn() -> Result<T, Errno>,
) -> Result<T, Errno> {
    match attempt() {
        Err(Errno::ACCESS) if !geteuid().is_root() => {
            if parent.as_raw_fd() != CWD.as_raw_fd() {
                fchmod(parent, Mode::RWXU)?;
            }
            if let Some(directory) = directory {
                chmodat(parent, directory, Mode::RWXU, AtFlags::empty())?;
            }
            attempt()
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File, Permissions};
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use std::process::Command;

    /// In memory: some file systems take a millisecond for each level.
    fn directory() -> tempfile::TempDir {
        tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory")
    }

    /// A directory below another that has files beside it, which must stay.
    fn in_a_directory(make: impl FnOnce(&Path), check: impl FnOnce(io::Result<()>, &Path)) {
        let dir = directory();
        fs::write(dir.path().join("keep"), "kept").expect("written");
        let tree = dir.path().join("tree");
        fs::create_dir(&tree).expect("made");
        make(&tree);
        check(remove_tree(&tree), &tree);
        assert_eq!(fs::read(dir.path().join("keep")).expect("read"), b"kept");
    }

    fn gone(removed: io::Result<()>, tree: &Path) {
        removed.expect("removed");
        assert!(!tree.exists());
    }

    /// As many directories as a build makes in a fraction of a second, one in the other.
    fn nest(tree: &Path, levels: u32) {
        let mut directory = open(CWD, &CString::new(tree.as_os_str().as_bytes()).expect("a path")).expect("opened");
        for _level in 0..levels {
            let parent = directory.take().expect("there");
            rustix::fs::mkdirat(&parent, c"1", Mode::RWXU).expect("made");
            directory = open(parent.as_fd(), c"1").expect("opened");
        }
        let bottom = directory.expect("there");
        drop(openat(&bottom, c"file", OFlags::CREATE | OFlags::WRONLY, Mode::RUSR).expect("written"));
    }

    #[test]
    fn a_tree_of_many_levels_is_removed() {
        in_a_directory(|tree| nest(tree, 100_000), gone);
    }

    #[test]
    fn directories_with_the_names_that_it_uses_itself_are_removed() {
        let make = |tree: &Path| {
            for name in ["1", "2", "3", "x/1/1", "x/2/1", "1/1/1", "1/2/3"] {
                fs::create_dir_all(tree.join(name)).expect("made");
                fs::write(tree.join(name).join("4"), "").expect("written");
            }
        };
        in_a_directory(make, gone);
    }

    #[test]
    fn links_are_removed_and_not_followed() {
        let other = directory();
        fs::write(other.path().join("file"), "text").expect("written");
        let make = |tree: &Path| {
            fs::create_dir(tree.join("a")).expect("made");
            symlink(other.path(), tree.join("a/link")).expect("linked");
            symlink(other.path(), tree.join("link")).expect("linked");
            symlink("nowhere", tree.join("dangling")).expect("linked");
            fs::hard_link(other.path().join("file"), tree.join("a/hard")).expect("linked");
        };
        in_a_directory(make, gone);
        assert_eq!(fs::read(other.path().join("file")).expect("read"), b"text");
        // The tree itself may have been replaced.
        let dir = tempfile::tempdir().expect("a directory");
        symlink(other.path(), dir.path().join("tree")).expect("linked");
        remove_tree(&dir.path().join("tree")).expect_err("a link is no tree");
        assert!(other.path().join("file").exists());
    }

    #[test]
    fn what_is_not_there_is_removed_already() {
        let dir = tempfile::tempdir().expect("a directory");
        remove_tree(&dir.path().join("tree")).expect("nothing to do");
    }

    /// Runs a program with the tree as its argument, as root or as a user who is not.
    fn run(script: &str, tree: &Path) -> bool {
        Command::new("sh").args(["-ec", script, "sh"]).arg(tree).status().is_ok_and(|status| status.success())
    }

    #[test]
    fn what_is_mounted_in_it_is_detached_and_stays_whole() {
        let other = directory();
        fs::write(other.path().join("file"), "text").expect("written");
        let mounted = std::cell::Cell::new(false);
        let make = |tree: &Path| {
            fs::create_dir_all(tree.join("a/mount")).expect("made");
            fs::create_dir(tree.join("twice")).expect("made");
            let bind = |at: &str| rustix::mount::mount_bind(other.path(), tree.join(at)).is_ok();
            mounted.set(bind("a/mount") && bind("twice") && bind("twice"));
        };
        in_a_directory(make, |removed, tree| {
            if mounted.get() {
                gone(removed, tree);
            } else {
                eprintln!("not checked: only root may mount");
            }
        });
        assert_eq!(fs::read(other.path().join("file")).expect("read"), b"text");
    }

    #[test]
    fn caches_that_are_read_only_are_removed_by_their_owner() {
        let make = |tree: &Path| {
            fs::create_dir_all(tree.join("a/b/c")).expect("made");
            fs::create_dir_all(tree.join("d/e")).expect("made");
            fs::write(tree.join("a/b/c/file"), "").expect("written");
            fs::write(tree.join("d/e/file"), "").expect("written");
            for (name, mode) in
                [("a/b/c", 0o555), ("a/b", 0o555), ("a", 0o444), ("d/e", 0o000), ("d", 0o100), ("", 0o500)]
            {
                fs::set_permissions(tree.join(name), Permissions::from_mode(mode)).expect("set");
            }
        };
        in_a_directory(make, gone);
    }

    /// A FUSE file system whose program does not answer: whoever looks into it waits.
    #[test]
    fn a_file_system_that_does_not_answer_is_detached() {
        use std::os::fd::AsRawFd as _;
        let Ok(device) = File::options().read(true).write(true).open("/dev/fuse") else {
            assert!(std::env::var_os("CI").is_none(), "no FUSE here, and CI must run this");
            eprintln!("not checked: no FUSE here");
            return;
        };
        let mounted = std::cell::Cell::new(false);
        let make = |tree: &Path| {
            fs::create_dir_all(tree.join("a/fuse")).expect("made");
            let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
            let options = CString::new(options).expect("text");
            let flags = rustix::mount::MountFlags::empty();
            mounted.set(rustix::mount::mount("rouse-test", tree.join("a/fuse"), "fuse", flags, &*options).is_ok());
        };
        in_a_directory(make, |removed, tree| {
            if mounted.get() {
                gone(removed, tree);
            } else {
                eprintln!("not checked: only root may mount");
            }
        });
    }

    #[test]
    fn a_file_that_is_mounted_on_another_is_detached() {
        let other = directory();
        fs::write(other.path().join("file"), "text").expect("written");
        let mounted = std::cell::Cell::new(false);
        let make = |tree: &Path| {
            fs::write(tree.join("file"), "").expect("written");
            mounted.set(rustix::mount::mount_bind(other.path().join("file"), tree.join("file")).is_ok());
        };
        in_a_directory(make, |removed, tree| {
            if mounted.get() {
                gone(removed, tree);
            } else {
                eprintln!("not checked: only root may mount");
            }
        });
        assert_eq!(fs::read(other.path().join("file")).expect("read"), b"text");
    }

    #[test]
    fn many_links_to_one_file_are_removed_and_the_file_stays_as_it_is() {
        let other = directory();
        let file = other.path().join("file");
        fs::write(&file, "text").expect("written");
        fs::set_permissions(&file, Permissions::from_mode(0o640)).expect("set");
        let make = |tree: &Path| {
            for number in 0..5_000 {
                let dir = tree.join((number % 10).to_string());
                fs::create_dir_all(&dir).expect("made");
                fs::hard_link(&file, dir.join(number.to_string())).expect("linked");
            }
        };
        in_a_directory(make, gone);
        let meta = fs::metadata(&file).expect("there");
        assert_eq!((meta.nlink(), meta.mode() & 0o777), (1, 0o640));
    }

    #[test]
    fn what_is_immutable_is_removed_by_root() {
        let immutable = std::cell::Cell::new(false);
        let make = |tree: &Path| {
            for name in ["a/b/c", "d/e"] {
                fs::create_dir_all(tree.join(name)).expect("made");
                fs::write(tree.join(name).join("file"), "").expect("written");
            }
            immutable.set(run("chattr +a \"$1/d/e/file\" \"$1/d\"; chattr -R +i \"$1/a\"; chattr +i \"$1\"", tree));
        };
        in_a_directory(make, |removed, tree| {
            if immutable.get() {
                gone(removed, tree);
            } else {
                eprintln!("not checked: this file system has no immutable files, or this user may not make one");
            }
        });
    }

    #[test]
    fn what_cannot_be_removed_does_not_keep_the_rest() {
        let other = directory();
        let make = |tree: &Path| {
            for name in ["a/b", "c/d"] {
                fs::create_dir_all(tree.join(name)).expect("made");
                fs::write(tree.join(name).join("file"), "").expect("written");
            }
        };
        let immutable = std::cell::Cell::new(false);
        let linked = other.path().join("linked");
        let make_immutable = |tree: &Path| {
            make(tree);
            // With a link elsewhere, it may be somebody else's.
            fs::hard_link(tree.join("a/b/file"), &linked).expect("linked");
            immutable.set(run("chattr +i \"$1/a/b/file\"", tree));
        };
        in_a_directory(make_immutable, |removed, tree| {
            if !immutable.get() {
                eprintln!("not checked: this file system has no immutable files, or this user may not make one");
                return;
            }
            removed.expect_err("one file cannot be removed");
            assert!(!tree.join("c").exists());
            assert!(run("chattr -R -i \"$1\"", tree));
            remove_tree(tree).expect("removed");
        });
    }
}
