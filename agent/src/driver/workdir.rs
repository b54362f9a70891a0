//! The directories of attempts: made fresh, kept below `work_dir`, removed without a trace.
//!
//! ```text
//! work_dir/12.1/build    where steps run
//! work_dir/12.1/tmp      TMPDIR
//! work_dir/.spool/12.1   logs, for the agent's own user only
//! work_dir/.gone/        what is being removed
//! ```

use crate::core::Level;
use crate::diagnostics::log;
use crate::runner::users::{self, User};
use crate::spool;
use rouse_shared::AttemptId;
use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Component, Path, PathBuf};

/// Where attempts live.
#[derive(Clone, Debug)]
pub(super) struct WorkDir {
    root: PathBuf,
    /// Numbers what is being removed.
    removed: u64,
}

impl WorkDir {
    /// Makes what is missing and removes what an earlier life has left. Nothing of that life may run any more.
    ///
    /// # Errors
    /// In words: where the directory cannot be made or is not the agent's to use.
    pub(super) fn open(root: &Path) -> Result<Self, String> {
        let failed = |path: &Path, e: io::Error| format!("make {}: {e}", path.display());
        // Others may pass through to their own build, and see nothing.
        DirBuilder::new().recursive(true).mode(0o711).create(root).map_err(|e| failed(root, e))?;
        let root = root.canonicalize().map_err(|e| failed(root, e))?;
        fs::set_permissions(&root, Permissions::from_mode(0o711)).map_err(|e| failed(&root, e))?;
        let mut this = Self { root, removed: 0 };
        for dir in [this.spool_dir(), this.gone()] {
            remove_tree(&dir);
            DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(|e| failed(&dir, e))?;
        }
        let entries = fs::read_dir(&this.root).map_err(|e| format!("list {}: {e}", this.root.display()))?;
        let left: Vec<_> = entries.filter_map(|e| e.ok()?.file_name().into_string().ok()).collect();
        for name in left.iter().filter(|name| is_attempt(name)) {
            if let Some(gone) = this.set_aside(&this.root.join(name)) {
                remove_tree(&gone);
            }
        }
        Ok(this)
    }

    /// Held by everything that runs here, so that the next life can tell whether it is gone.
    pub(super) fn lock_file(root: &Path) -> PathBuf {
        root.join("lock")
    }

    /// Makes the work directory and the lock file, which no user of builds may open: who can open it can hold it.
    ///
    /// # Errors
    /// Where one of them cannot be made.
    pub(super) fn make_lock_file(root: &Path) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o711).create(root)?;
        let path = Self::lock_file(root);
        OpenOptions::new().append(true).create(true).mode(0o600).open(&path)?;
        fs::set_permissions(&path, Permissions::from_mode(0o600))
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    fn spool_dir(&self) -> PathBuf {
        self.root.join(".spool")
    }

    fn gone(&self) -> PathBuf {
        self.root.join(".gone")
    }

    fn attempt(&self, attempt: AttemptId) -> PathBuf {
        self.root.join(attempt.to_string())
    }

    /// Where the step's output goes.
    pub(super) fn spool_file(&self, attempt: AttemptId, step: u32) -> PathBuf {
        spool::step_file(&self.spool_dir(), attempt, step)
    }

    /// Where the attempt's temporary files go.
    pub(super) fn tmp(&self, attempt: AttemptId) -> PathBuf {
        self.attempt(attempt).join("tmp")
    }

    /// Where the attempt's steps run.
    pub(super) fn build(&self, attempt: AttemptId) -> PathBuf {
        self.attempt(attempt).join("build")
    }

    /// Makes the attempt's directories, which must not be there yet, for `user`.
    ///
    /// # Errors
    /// In words: where that is not possible.
    pub(super) fn make(&self, attempt: AttemptId, user: Option<&User>) -> Result<(), String> {
        let spool = spool::attempt_dir(&self.spool_dir(), attempt);
        let failed = |path: &Path, e: io::Error| format!("{} could not be made: {e}", path.display());
        DirBuilder::new().mode(0o700).create(&spool).map_err(|e| failed(&spool, e))?;
        let mut made = Vec::new();
        for path in [self.attempt(attempt), self.build(attempt), self.tmp(attempt)] {
            DirBuilder::new().mode(0o700).create(&path).map_err(|e| failed(&path, e))?;
            made.push(path);
        }
        // The outermost last: whoever has it may put links in the place of the others.
        if let Some(user) = user {
            for path in made.iter().rev() {
                chown(path, Some(user.uid), Some(user.gid)).map_err(|e| failed(path, e))?;
            }
        }
        Ok(())
    }

    /// The directory for a step, below the attempt's own; made where it is missing.
    ///
    /// # Errors
    /// In words: where `workdir` leads out of the build's directory, or cannot be made.
    pub(super) fn step_dir(&self, attempt: AttemptId, workdir: &str, user: Option<&User>) -> Result<PathBuf, String> {
        let base = self.build(attempt);
        let outside = || format!("its workdir {workdir:?} is not below the build's own directory");
        let mut path = base.clone();
        // Other processes of that user may swap a directory for a link at any moment: let it lead no further than they
        // may go themselves.
        let _as_user = user.map(User::access_files);
        for component in Path::new(workdir).components() {
            match component {
                Component::CurDir => continue,
                Component::Normal(name) => path.push(name),
                Component::ParentDir | Component::RootDir | Component::Prefix(_) => return Err(outside()),
            }
            // Looked at level by level, since earlier steps may have put links anywhere.
            let failed = |e: io::Error| format!("its workdir {workdir:?} could not be made: {e}");
            match DirBuilder::new().create(&path) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(failed(error)),
            }
            path = path.canonicalize().map_err(failed)?;
            if !path.starts_with(&base) {
                return Err(outside());
            }
            if !path.is_dir() {
                return Err(format!("its workdir {workdir:?} is not a directory"));
            }
        }
        Ok(path)
    }

    /// Removes everything of the attempt. At once out of the way; the files go in the background, since a large tree
    /// takes longer than a heartbeat may wait.
    pub(super) fn remove(&mut self, attempt: AttemptId) {
        if let Err(error) = spool::remove_attempt(&self.spool_dir(), attempt) {
            log(Level::Warn, &format!("the logs of {attempt} could not be removed: {error}"));
        }
        if let Some(gone) = self.set_aside(&self.attempt(attempt)) {
            tokio::task::spawn_blocking(move || remove_tree(&gone));
        }
    }

    /// Moves a directory to where nothing of its name is in the way; absent where there is none.
    fn set_aside(&mut self, path: &Path) -> Option<PathBuf> {
        self.removed += 1;
        let gone = self.gone().join(self.removed.to_string());
        match fs::rename(path, &gone) {
            Ok(()) => Some(gone),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                log(Level::Error, &format!("{} could not be moved away: {error}", path.display()));
                None
            }
        }
    }
}

/// The user of that name; nothing where steps run as the agent's own user.
///
/// # Errors
/// In words: where there is no such user.
pub(super) fn user(name: Option<&str>) -> Result<Option<User>, String> {
    name.map(users::lookup).transpose().map_err(|error| error.to_string())
}

/// Whether a name is one that [`AttemptId`] writes: nothing else in the directory is ours to remove.
fn is_attempt(name: &str) -> bool {
    let number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    name.split_once('.').is_some_and(|(build, attempt)| number(build) && number(attempt))
}

fn remove_tree(path: &Path) {
    let removed = match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && !rustix::process::geteuid().is_root() => {
            // Some tools make their caches read-only; without root that holds us up as well. Root is not held up by it,
            // and must change no modes in a tree that somebody else may be changing.
            open_up(path);
            fs::remove_dir_all(path)
        }
        other => other,
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            log(Level::Error, &format!("{} could not be removed: {error}", path.display()));
        }
        Ok(()) | Err(_) => {}
    }
}

/// Makes each directory of a tree changeable; follows no links.
fn open_up(path: &Path) {
    let Ok(meta) = fs::symlink_metadata(path) else { return };
    if !meta.is_dir() || fs::set_permissions(path, Permissions::from_mode(0o700)).is_err() {
        return;
    }
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        open_up(&entry.path());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rouse_shared::BuildId;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_workdir_stays_below_the_build() {
        let dir = tempfile::tempdir().expect("a directory");
        let work = WorkDir::open(dir.path()).expect("opened");
        let id = AttemptId { build: BuildId(12), number: 1 };
        work.make(id, None).expect("made");
        assert!(work.make(id, None).is_err(), "made twice, so it is not fresh");
        let build = work.build(id);
        assert_eq!(work.step_dir(id, "", None), Ok(build.clone()));
        assert_eq!(work.step_dir(id, "./a/b/", None), Ok(build.join("a/b")));
        assert_eq!(work.step_dir(id, "a", None), Ok(build.join("a")));
        std::os::unix::fs::symlink("/", build.join("out")).expect("linked");
        std::os::unix::fs::symlink("a", build.join("in")).expect("linked");
        fs::write(build.join("file"), "").expect("written");
        assert_eq!(work.step_dir(id, "in/b", None), Ok(build.join("a/b")));
        for bad in ["..", "a/../..", "/etc", "out", "out/tmp", "file", "a\0b"] {
            assert!(work.step_dir(id, bad, None).is_err(), "{bad:?} was taken");
        }
        assert!(!Path::new("/tmp/out").exists());
    }

    #[test]
    fn the_directories_of_another_user_are_made_with_its_rights() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("not checked: only root can change users");
            return;
        }
        let user = User { name: "x".to_owned(), uid: 54_321, gid: 54_322, groups: vec![54_322], home: "/".into() };
        let dir = tempfile::tempdir().expect("a directory");
        fs::set_permissions(dir.path(), Permissions::from_mode(0o711)).expect("passable");
        let work = WorkDir::open(dir.path()).expect("opened");
        let id = AttemptId { build: BuildId(12), number: 1 };
        work.make(id, Some(&user)).expect("made");
        let made = work.step_dir(id, "a/b", Some(&user)).expect("made");
        for path in [work.attempt(id), work.build(id), work.tmp(id), made.clone(), made.join("..")] {
            let meta = fs::metadata(&path).expect("there");
            assert_eq!((meta.uid(), meta.gid()), (54_321, 54_322), "{}", path.display());
        }
        // Root's again: a directory that is not the user's stays as it is, even where its link is followed.
        fs::create_dir(work.build(id).join("roots")).expect("made");
        assert_eq!(fs::metadata(work.build(id).join("roots")).expect("there").uid(), 0);
        assert!(work.step_dir(id, "roots/new", Some(&user)).is_err());
        assert!(!work.build(id).join("roots/new").exists());
    }

    #[test]
    fn an_earlier_life_leaves_nothing_and_other_files_stay() {
        let dir = tempfile::tempdir().expect("a directory");
        let id = AttemptId { build: BuildId(3), number: 2 };
        let work = WorkDir::open(dir.path()).expect("opened");
        work.make(id, None).expect("made");
        fs::write(work.spool_file(id, 0), "text").expect("written");
        fs::create_dir(work.build(id).join("locked")).expect("made");
        fs::set_permissions(work.build(id).join("locked"), Permissions::from_mode(0o000)).expect("locked");
        fs::write(dir.path().join("keep.txt"), "").expect("written");
        let work = WorkDir::open(dir.path()).expect("opened again");
        assert!(!work.build(id).exists() && !work.spool_file(id, 0).exists());
        assert!(dir.path().join("keep.txt").exists());
        assert_eq!(fs::read_dir(dir.path().join(".gone")).expect("listed").count(), 0);
    }
}
