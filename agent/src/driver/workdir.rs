//! The directories of attempts: created fresh below `work_dir` and removed completely.
//!
//! ```text
//! work_dir/12.1/build    work directory of the steps
//! work_dir/12.1/tmp      TMPDIR
//! work_dir/.spool/12.1   logs, readable for the agent's own user only
//! work_dir/.gone/        what is being removed
//! ```

use crate::core::Level;
use crate::diagnostics::log;
use crate::driver::remove_tree::{detach_at, remove_tree};
use crate::runner::users::User;
use crate::spool;
use rouse_shared::AttemptId;
use rouse_shared::exposure::foreign_directory;
use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Component, Path, PathBuf};
use thiserror::Error;

/// Why a directory cannot be used for attempts.
#[derive(Debug, Error)]
pub enum WorkDirError {
    /// A directory or file cannot be created.
    #[error("{} cannot be created", .0.display())]
    Create(PathBuf, #[source] io::Error),
    /// A directory cannot be given to the user of steps.
    #[error("{} cannot be given to the user of the build", .0.display())]
    Owner(PathBuf, #[source] io::Error),
    /// A directory cannot be opened or listed, or its mode cannot be set.
    #[error("{} cannot be used", .0.display())]
    Use(PathBuf, #[source] io::Error),
    /// Another user could replace what is in it.
    #[error("{0}")]
    Foreign(String),
    /// A step's `workdir` leads out of the build's directory.
    #[error("workdir {0:?} is not below the build's own directory")]
    Outside(String),
    /// A step's `workdir` cannot be created.
    #[error("workdir {0:?} cannot be created")]
    Step(String, #[source] io::Error),
    /// A step's `workdir` is a file.
    #[error("workdir {0:?} is not a directory")]
    NotADirectory(String),
}

/// The directory below which attempts run.
#[derive(Clone, Debug)]
pub(super) struct WorkDir {
    root: PathBuf,
    /// Counts what was moved to `.gone`, for its names there.
    removed: u64,
}

impl WorkDir {
    /// Creates what is missing and removes the files of an earlier agent, none of whose processes may run any more.
    ///
    /// # Errors
    /// If the directory cannot be created, or does not belong to the agent's user.
    pub(super) fn open(root: &Path) -> Result<Self, WorkDirError> {
        let create = |path: &Path| {
            let path = path.to_owned();
            move |error| WorkDirError::Create(path, error)
        };
        let open = |path: &Path| {
            let path = path.to_owned();
            move |error| WorkDirError::Use(path, error)
        };
        // Users of steps may pass through to their own build, and list nothing.
        DirBuilder::new().recursive(true).mode(0o711).create(root).map_err(create(root))?;
        let root = root.canonicalize().map_err(open(root))?;
        fs::set_permissions(&root, Permissions::from_mode(0o711)).map_err(open(&root))?;
        let mut this = Self { root, removed: 0 };
        for dir in [this.spool_dir(), this.gone()] {
            remove(&dir);
            DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(create(&dir))?;
        }
        let entries = fs::read_dir(&this.root).map_err(open(&this.root))?;
        let left: Vec<_> = entries.filter_map(|e| e.ok()?.file_name().into_string().ok()).collect();
        for name in left.iter().filter(|name| is_attempt(name)) {
            if let Some(gone) = this.set_aside(&this.root.join(name)) {
                remove(&gone);
            }
        }
        Ok(this)
    }

    /// The file that everything that runs here holds locked, so that the next agent notices whether it has ended.
    pub(super) fn lock_file(root: &Path) -> PathBuf {
        root.join("lock")
    }

    /// Creates the work directory and the lock file. No user of steps may open the file, because it could hold the
    /// lock.
    ///
    /// # Errors
    /// If one of them cannot be created, or if another user could replace what is in the directory: an agent that is root
    /// would follow the links there.
    pub(super) fn make_lock_file(root: &Path) -> Result<(), WorkDirError> {
        let create = |path: &Path, error| WorkDirError::Create(path.to_owned(), error);
        DirBuilder::new().recursive(true).mode(0o711).create(root).map_err(|e| create(root, e))?;
        let meta = fs::metadata(root).map_err(|error| WorkDirError::Use(root.to_owned(), error))?;
        let own = rustix::process::geteuid().as_raw();
        if let Some(why) = foreign_directory(root, meta.uid(), meta.mode(), &[own]) {
            return Err(WorkDirError::Foreign(why));
        }
        let path = Self::lock_file(root);
        OpenOptions::new().append(true).create(true).mode(0o600).open(&path).map_err(|e| create(&path, e))?;
        fs::set_permissions(&path, Permissions::from_mode(0o600)).map_err(|e| create(&path, e))
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

    /// The file for the step's output.
    pub(super) fn spool_file(&self, attempt: AttemptId, step: u32) -> PathBuf {
        spool::step_file(&self.spool_dir(), attempt, step)
    }

    /// The directory for the attempt's temporary files.
    pub(super) fn tmp(&self, attempt: AttemptId) -> PathBuf {
        self.attempt(attempt).join("tmp")
    }

    /// The work directory of the attempt's steps.
    pub(super) fn build(&self, attempt: AttemptId) -> PathBuf {
        self.attempt(attempt).join("build")
    }

    /// Creates the attempt's directories for `user`.
    ///
    /// # Errors
    /// If one of them exists or cannot be created.
    pub(super) fn make(&self, attempt: AttemptId, user: Option<&User>) -> Result<(), WorkDirError> {
        let spool = spool::attempt_dir(&self.spool_dir(), attempt);
        let mut made = Vec::new();
        for path in [spool, self.attempt(attempt), self.build(attempt), self.tmp(attempt)] {
            if let Err(error) = DirBuilder::new().mode(0o700).create(&path) {
                return Err(WorkDirError::Create(path, error));
            }
            made.push(path);
        }
        // The outermost last: its owner may replace the others by links. The spool stays the agent's own.
        if let Some(user) = user {
            for path in made.iter().skip(1).rev() {
                chown(path, Some(user.uid), Some(user.gid)).map_err(|e| WorkDirError::Owner(path.clone(), e))?;
            }
        }
        Ok(())
    }

    /// The directory of a step, below the attempt's own; created if it does not exist.
    ///
    /// # Errors
    /// If `workdir` leads out of the build's directory, or cannot be created.
    pub(super) fn step_dir(
        &self,
        attempt: AttemptId,
        workdir: &str,
        user: Option<&User>,
    ) -> Result<PathBuf, WorkDirError> {
        let base = self.build(attempt);
        let outside = || WorkDirError::Outside(workdir.to_owned());
        let mut path = base.clone();
        // Other processes of that user may replace a directory by a link at any moment. With the user's own permissions
        // the link leads nowhere that they could not go themselves.
        let _as_user = user.map(User::access_files);
        for component in Path::new(workdir).components() {
            match component {
                Component::CurDir => continue,
                Component::Normal(name) => path.push(name),
                Component::ParentDir | Component::RootDir | Component::Prefix(_) => return Err(outside()),
            }
            // Level by level, because earlier steps may have put links anywhere.
            let failed = |error| WorkDirError::Step(workdir.to_owned(), error);
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
                return Err(WorkDirError::NotADirectory(workdir.to_owned()));
            }
        }
        Ok(path)
    }

    /// Removes everything of the attempt. Its names are free at once; the files are removed in the background, because
    /// that may take longer than a heartbeat may wait.
    pub(super) fn remove(&mut self, attempt: AttemptId) {
        if let Err(error) = spool::remove_attempt(&self.spool_dir(), attempt) {
            log(Level::Warn, &format!("the logs of {attempt} cannot be removed: {error}"));
        }
        if let Some(gone) = self.set_aside(&self.attempt(attempt)) {
            tokio::task::spawn_blocking(move || remove(&gone));
        }
    }

    /// Moves a directory to `.gone`. `None` if there is no such directory.
    fn set_aside(&mut self, path: &Path) -> Option<PathBuf> {
        loop {
            self.removed += 1;
            let gone = self.gone().join(self.removed.to_string());
            match fs::rename(path, &gone) {
                Ok(()) => return Some(gone),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
                // Something of an earlier agent could not be removed.
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
                // A build has mounted something on it, which only root can.
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy && detach_at(path).is_ok() => {}
                Err(error) => {
                    log(Level::Error, &format!("{} cannot be moved away: {error}", path.display()));
                    return None;
                }
            }
        }
    }
}

/// Whether a name has the form of an [`AttemptId`]: the agent removes nothing else in the directory.
fn is_attempt(name: &str) -> bool {
    let number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    name.split_once('.').is_some_and(|(build, attempt)| number(build) && number(attempt))
}

fn remove(path: &Path) {
    if let Err(error) = remove_tree(path) {
        log(Level::Error, &format!("{} cannot be removed: {error}", path.display()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rouse_shared::BuildId;

    #[test]
    fn a_workdir_stays_below_the_build() {
        let dir = tempfile::tempdir().expect("a directory");
        let work = WorkDir::open(dir.path()).expect("opened");
        let id = AttemptId { build: BuildId(12), number: 1 };
        work.make(id, None).expect("made");
        assert!(work.make(id, None).is_err(), "made twice, so it is not fresh");
        let build = work.build(id);
        let step_dir = |workdir| work.step_dir(id, workdir, None).expect("below the build");
        assert_eq!(step_dir(""), build);
        assert_eq!(step_dir("./a/b/"), build.join("a/b"));
        assert_eq!(step_dir("a"), build.join("a"));
        std::os::unix::fs::symlink("/", build.join("out")).expect("linked");
        std::os::unix::fs::symlink("a", build.join("in")).expect("linked");
        fs::write(build.join("file"), "").expect("written");
        assert_eq!(step_dir("in/b"), build.join("a/b"));
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
        // The thread is root again afterwards. A directory that is not the user's stays as it is.
        fs::create_dir(work.build(id).join("roots")).expect("made");
        assert_eq!(fs::metadata(work.build(id).join("roots")).expect("there").uid(), 0);
        assert!(work.step_dir(id, "roots/new", Some(&user)).is_err());
        assert!(!work.build(id).join("roots/new").exists());
    }

    #[test]
    fn a_directory_that_others_can_write_to_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let tried = || WorkDir::make_lock_file(dir.path());
        tried().expect("made");
        fs::set_permissions(dir.path(), Permissions::from_mode(0o777)).expect("opened to all");
        assert!(tried().expect_err("refused").to_string().contains("chmod o-w"));
        fs::set_permissions(dir.path(), Permissions::from_mode(0o711)).expect("closed");
        if !rustix::process::geteuid().is_root() {
            eprintln!("not checked: only root can give a directory away");
            return;
        }
        chown(dir.path(), Some(54_321), None).expect("given away");
        fs::remove_file(dir.path().join("lock")).expect("removed");
        std::os::unix::fs::symlink(dir.path().join("elsewhere"), dir.path().join("lock")).expect("linked");
        assert!(tried().expect_err("refused").to_string().contains("id 54321"));
        assert!(!dir.path().join("elsewhere").exists());
    }

    #[test]
    fn an_earlier_agent_leaves_nothing_and_other_files_stay() {
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
