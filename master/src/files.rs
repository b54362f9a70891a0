//! Files that are replaced as a whole, and directories that are removed with what builds have left in them.

use rustix::mount::{UnmountFlags, unmount};
use rustix::process::geteuid;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Creates a directory with this mode, if it does not exist. One that an earlier version has created gets the mode too.
///
/// # Errors
/// If it cannot be created, or belongs to somebody else and has another mode.
pub fn make_dir(dir: &Path, mode: u32) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(mode).create(dir)?;
    // The umask may have taken something away.
    match fs::metadata(dir)?.permissions().mode() & 0o777 {
        now if now == mode => Ok(()),
        _ => fs::set_permissions(dir, fs::Permissions::from_mode(mode)),
    }
}

/// Writes `bytes` beside `path`, syncs them and renames the file to `path`: whoever reads it, also after a crash, finds
/// the old content or the new one, never a part. Only its owner may read it.
///
/// # Errors
/// If the directory does not take it; the old file is still there then, unless only the last sync failed.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    // The rename itself is on the disk only once the directory is.
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}

/// The text in a file: 32 hexadecimal digits, generated and written the first time.
///
/// # Errors
/// If the file cannot be read, is empty, or cannot be created.
pub fn kept_hex(path: &Path) -> io::Result<String> {
    match fs::read_to_string(path) {
        Ok(text) if text.trim().is_empty() => {
            Err(io::Error::other("the file is empty; remove it to have a new one made"))
        }
        Ok(text) => Ok(text.trim().to_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => write_random_hex(path),
        Err(error) => Err(error),
    }
}

/// Writes 32 random hexadecimal digits into a file, as [`replace`] does, and returns them.
///
/// # Errors
/// As [`replace`], and if there are no random numbers.
pub fn write_random_hex(path: &Path) -> io::Result<String> {
    let text = random_hex()?;
    replace(path, format!("{text}\n").as_bytes())?;
    Ok(text)
}

/// 32 random hexadecimal digits: 128 bits.
///
/// # Errors
/// If there are no random numbers.
pub fn random_hex() -> io::Result<String> {
    let mut raw = [0_u8; 16];
    getrandom::fill(&mut raw).map_err(io::Error::other)?;
    Ok(hex::encode(raw))
}

/// 64 random hexadecimal digits: 256 bits.
///
/// # Errors
/// If there are no random numbers.
pub fn random_token() -> io::Result<String> {
    let mut raw = [0_u8; 32];
    getrandom::fill(&mut raw).map_err(io::Error::other)?;
    Ok(hex::encode(raw))
}

/// Removes a directory, if it exists, with all that builds have left in it. `rm` does it: a build can make a tree that is
/// deep enough to overflow the stack of a program that walks down into it, and `rm` does not walk it so.
///
/// # Errors
/// If something is mounted in it and cannot be detached: nothing is removed then, because that could be the machine's
/// own directories. If `rm` cannot be run, or cannot remove everything.
pub fn remove_tree(dir: &Path) -> io::Result<()> {
    let dir = match dir.canonicalize() {
        Ok(dir) => dir,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    // The last one first: it may be mounted on one before it.
    for mounted in mounts_below(&dir, &fs::read("/proc/self/mountinfo")?).iter().rev() {
        let detached = unmount(mounted.as_path(), UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        detached
            .map_err(|e| io::Error::other(format!("cannot detach what is mounted on {}: {e}", mounted.display())))?;
    }
    match run("rm", &["-rf"], &dir) {
        // Some tools make their caches read-only, which stops anyone but root.
        Err(_) if !geteuid().is_root() => run("chmod", &["-R", "u+rwX"], &dir).and_then(|()| run("rm", &["-rf"], &dir)),
        removed => removed,
    }
}

/// Runs a program on a directory.
fn run(program: &str, arguments: &[&str], dir: &Path) -> io::Result<()> {
    let output = Command::new(program).args(arguments).arg("--").arg(dir).stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(said.lines().next().unwrap_or("it has failed without a message").to_owned()))
}

/// The mount points below a directory, from the text of `/proc/self/mountinfo` (proc_pid_mountinfo(5): the fifth field,
/// in which blanks, tabs, line feeds and backslashes are three octal digits after a backslash).
fn mounts_below(dir: &Path, mountinfo: &[u8]) -> Vec<PathBuf> {
    let points = mountinfo.split(|byte| *byte == b'\n').filter_map(|line| line.split(|byte| *byte == b' ').nth(4));
    points.map(|point| PathBuf::from(unescaped(point))).filter(|point| point.starts_with(dir)).collect()
}

fn unescaped(field: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let octal = after.get(..3).filter(|_| *first == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        if let Some(byte) = octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            bytes.push(byte);
            rest = &after[3..];
        } else {
            bytes.push(*first);
            rest = after;
        }
    }
    OsString::from_vec(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_file_is_replaced_as_a_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        replace(&path, b"a longer text").unwrap();
        replace(&path, b"short").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"short");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing stays beside it");
        assert!(replace(&dir.path().join("none/state"), b"").is_err());
    }

    #[test]
    fn a_directory_has_its_mode_also_if_it_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        for mode in [0o711, 0o700, 0o711] {
            make_dir(&path, mode).unwrap();
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, mode);
        }
    }

    #[test]
    fn a_tree_of_many_levels_is_removed() {
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir(&tree).unwrap();
        let mut directory = File::open(&tree).unwrap();
        for _level in 0..20_000 {
            rustix::fs::mkdirat(&directory, c"d", rustix::fs::Mode::RWXU).unwrap();
            let open = rustix::fs::openat(&directory, c"d", rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty());
            directory = File::from(open.unwrap());
        }
        drop(directory);
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
        remove_tree(&tree).expect("removed already");
    }

    #[test]
    fn a_cache_that_is_read_only_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir_all(tree.join("-a/b c")).unwrap();
        fs::write(tree.join("-a/b c/file"), "").unwrap();
        for name in ["-a/b c", "-a"] {
            fs::set_permissions(tree.join(name), fs::Permissions::from_mode(0o500)).unwrap();
        }
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
    }

    #[test]
    fn mounts_below_a_directory_are_found() {
        let text = b"36 35 98:0 / / rw - ext4 /dev/a rw\n\
            37 36 0:1 / /srv/a\\040b/c rw - tmpfs t rw\n\
            38 36 0:1 / /srv/a\\040b/c\\134040 rw - tmpfs t rw\n\
            39 36 0:1 / /srv/a\\040bc rw - tmpfs t rw\n";
        let found = mounts_below(Path::new("/srv/a b"), text);
        assert_eq!(found, [Path::new("/srv/a b/c"), Path::new("/srv/a b/c\\040")]);
    }

    #[test]
    fn what_is_mounted_in_it_stays_whole() {
        let dir = tempfile::tempdir().unwrap();
        let (tree, other) = (dir.path().join("tree"), dir.path().join("other"));
        fs::create_dir_all(tree.join("mount")).unwrap();
        fs::create_dir(&other).unwrap();
        fs::write(other.join("file"), "").unwrap();
        if rustix::mount::mount_bind(&other, tree.join("mount")).is_err() {
            eprintln!("not checked: only root may mount");
            return;
        }
        remove_tree(&tree).unwrap();
        assert!(!tree.exists() && other.join("file").exists());
    }
}
