//! A store that is a directory, perhaps of a network file system.

use super::StoreError;
use object_store::ObjectStore;
use object_store::local::LocalFileSystem;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::sync::Arc;

/// Opens the directory. It must exist: if it is missing, a file system is probably not mounted. What the master creates
/// in it, only its own user can read.
pub(super) fn open(dir: &Path, master: &str) -> Result<Arc<dyn ObjectStore>, StoreError> {
    let unusable =
        |why: &dyn std::fmt::Display| StoreError(format!("the blob directory {} cannot be used: {why}", dir.display()));
    let own = dir.join(master);
    match DirBuilder::new().mode(0o700).create(&own) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(unusable(&"it does not exist; create it, or mount its file system"));
        }
        Err(error) => return Err(unusable(&error)),
    }
    let store = LocalFileSystem::new_with_prefix(dir).map_err(|error| unusable(&error))?;
    // The logs on the master's disk are removed once they are here. Therefore they must survive a power failure.
    Ok(Arc::new(store.with_fsync(true).with_automatic_cleanup(true)))
}
