//! Blob stores: where the logs of ended builds are kept if `[blobs]` names one. A directory, or a bucket of S3.
//!
//! A store is known by its URL. The ledger has the URL, the region and the endpoint of each store that logs are in,
//! and never credentials. The store that the configuration names is used with the settings there, even if its region or
//! endpoint was another one before: whoever moves a store moves its objects. Any other store is used with what the ledger
//! has and with the credentials of the configuration.

mod directory;
mod fault;
mod location;
#[cfg(feature = "s3")]
mod s3;
#[cfg(test)]
mod tests;

use crate::config::{BlobsConfig, StoreUrl};
use crate::sync::lock;
use bytes::Bytes;
use fault::Fault;
use futures_util::stream::TryStreamExt as _;
pub use location::{Location, address};
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt as _, PutPayload};
use rouse_shared::{AttemptId, BuildId};
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Bytes of one part of an upload: the smallest that S3 takes. An upload has one part in memory.
const PART: u64 = 5 << 20;
/// Parts that S3 takes at most. Larger logs have larger parts.
const MOST_PARTS: u64 = 10_000;
/// How long a store may take to answer a reader. An upload may take longer: it has parts of several megabytes.
const READ: Duration = Duration::from_secs(20);
/// How long the deletion of a build's logs may take.
const DELETE: Duration = Duration::from_secs(60);
/// Deletions at the same time.
const DELETIONS: usize = 8;

/// Why a store did not do what it was asked for, in words for an operator: whose fault it is, and what to do.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct StoreError(pub String);

/// Why a log was not uploaded.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// The store's fault: others would fail as well.
    #[error("{0}")]
    Store(StoreError),
    /// The file on the master's disk cannot be read, or it changes.
    #[error("its file cannot be read")]
    File(#[source] io::Error),
}

/// The blob stores of one master.
pub struct Blobs {
    /// The generated id of the master. Every key contains it, so that two masters with one bucket share nothing.
    master: String,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    config: Option<BlobsConfig>,
    /// The stores that are in use, by what the ledger calls them.
    open: BTreeMap<String, Arc<dyn ObjectStore>>,
}

impl Blobs {
    /// The stores of the master with this generated id.
    pub fn new(master: &str, config: Option<BlobsConfig>) -> Self {
        Self { master: master.to_owned(), inner: Mutex::new(Inner { config, open: BTreeMap::new() }) }
    }

    /// Uses a new configuration from now on.
    pub fn configure(&self, config: Option<BlobsConfig>) {
        let mut inner = lock(&self.inner);
        if inner.config != config {
            *inner = Inner { config, open: BTreeMap::new() };
        }
    }

    /// The store that the configuration names, as the ledger calls it; nothing if logs stay on the master's disk.
    pub fn current(&self) -> Option<Location> {
        lock(&self.inner).config.as_ref().map(Location::of)
    }

    /// Uses this store for a location, in place of the one that the location names.
    #[cfg(test)]
    pub fn put_in_place(&self, location: &str, store: Arc<dyn ObjectStore>) {
        lock(&self.inner).open.insert(location.to_owned(), store);
    }

    async fn open(&self, location: &str) -> Result<Arc<dyn ObjectStore>, StoreError> {
        let config = {
            let inner = lock(&self.inner);
            if let Some(open) = inner.open.get(location) {
                return Ok(open.clone());
            }
            inner.config.clone()
        };
        let store = open(&settings(location, config.as_ref())?, &self.master).await?;
        let mut inner = lock(&self.inner);
        if inner.config == config {
            inner.open.insert(location.to_owned(), store.clone());
        }
        Ok(store)
    }

    fn build(&self, build: BuildId) -> Key {
        // A thousand builds for each directory, as on the master's disk.
        Key::from(format!("{}/logs/{}/{build}", self.master, build.0 / 1_000))
    }

    fn key(&self, attempt: AttemptId, step: u32) -> Key {
        self.build(attempt.build).join(attempt.number.to_string()).join(format!("{step}.log"))
    }

    /// Uploads a step's log from a file of this length, and has the store confirm the length. May be repeated. Never has
    /// more than a part of it in memory.
    ///
    /// # Errors
    /// If the store or the disk fails, or the file has another length. There may be something of it in the store.
    pub async fn upload(
        &self,
        location: &str,
        (attempt, step): (AttemptId, u32),
        path: &Path,
        length: u64,
    ) -> Result<(), UploadError> {
        let failed = |fault: Fault| UploadError::Store(fault.explain(location));
        let store = self.open(location).await.map_err(UploadError::Store)?;
        let key = self.key(attempt, step);
        let file = Arc::new(File::open(path).map_err(UploadError::File)?);
        let size = PART.max(length.div_ceil(MOST_PARTS));
        if length <= size {
            let bytes = part(file.clone(), 0, length).await.map_err(UploadError::File)?;
            store.put(&key, PutPayload::from_bytes(bytes)).await.map_err(|e| failed(e.into()))?;
        } else {
            let mut upload = store.put_multipart(&key).await.map_err(|e| failed(e.into()))?;
            let mut parts = async || {
                for from in (0..length).step_by(usize::try_from(size).unwrap_or(usize::MAX)) {
                    let bytes = part(file.clone(), from, size.min(length - from)).await.map_err(UploadError::File)?;
                    let sent = upload.put_part(PutPayload::from_bytes(bytes)).await;
                    sent.map_err(|e| failed(e.into()))?;
                }
                upload.complete().await.map(drop).map_err(|e| failed(e.into()))
            };
            if let Err(error) = parts().await {
                // What is left of it would cost money. If this fails too, the bucket's lifecycle rule removes it.
                drop(upload.abort().await);
                return Err(error);
            }
        }
        let now = file.metadata().map_err(UploadError::File)?.len();
        if now != length {
            return Err(UploadError::File(io::Error::other(format!("it had {length} bytes, and now it has {now}"))));
        }
        let stored = store.head(&key).await.map_err(|e| failed(e.into()))?.size;
        if stored != length {
            return Err(failed(Fault::WrongSize { sent: length, stored }));
        }
        Ok(())
    }

    /// The length of a step's log in a store; 0 if there is none.
    ///
    /// # Errors
    /// If the store does not answer.
    pub async fn length(&self, location: &str, attempt: AttemptId, step: u32) -> Result<u64, StoreError> {
        let store = self.open(location).await?;
        let key = self.key(attempt, step);
        match within(READ, store.head(&key)).await {
            Ok(found) => Ok(found.size),
            Err(fault) if fault.is_missing() => Ok(0),
            Err(fault) => Err(fault.explain(location)),
        }
    }

    /// A range of a step's log, which must not be larger than a few megabytes.
    ///
    /// # Errors
    /// If the store does not answer, or has nothing of this range.
    pub async fn read(
        &self,
        location: &str,
        attempt: AttemptId,
        step: u32,
        range: Range<u64>,
    ) -> Result<Bytes, StoreError> {
        let store = self.open(location).await?;
        let key = self.key(attempt, step);
        within(READ, store.get_range(&key, range)).await.map_err(|fault| fault.explain(location))
    }

    /// Deletes all logs of a build from a store. May be repeated.
    ///
    /// # Errors
    /// If the store does not answer, or does not permit it. Some of them may be gone.
    pub async fn delete(&self, location: &str, build: BuildId) -> Result<(), StoreError> {
        let store = self.open(location).await?;
        let prefix = self.build(build);
        let store = &store;
        // What answers everything with a page of HTML would pass for an empty list. Nobody has written this object.
        match within(READ, store.head(&prefix.clone().join("none"))).await {
            Err(fault) if fault.is_missing() => {}
            Err(fault) => return Err(fault.explain(location)),
            Ok(_) => return Err(Fault::NoStore.explain(location)),
        }
        let gone = store.list(Some(&prefix)).map_err(Fault::from).try_for_each_concurrent(DELETIONS, async |found| {
            match within(READ, store.delete(&found.location)).await {
                Err(fault) if !fault.is_missing() => Err(fault),
                Ok(()) | Err(_) => Ok(()),
            }
        });
        let gone = tokio::time::timeout(DELETE, gone).await.unwrap_or(Err(Fault::Late(DELETE)));
        gone.map_err(|fault| fault.explain(location))
    }
}

/// The settings for a location of the ledger.
fn settings(location: &str, config: Option<&BlobsConfig>) -> Result<BlobsConfig, StoreError> {
    let known = Location::parse(location).map_err(|why| StoreError(format!("the ledger has no valid store: {why}")))?;
    Ok(match config {
        Some(config) if config.url == known.url => config.clone(),
        other => BlobsConfig {
            credentials: other.and_then(|config| config.credentials.clone()),
            profile: other.and_then(|config| config.profile.clone()),
            store: known.store,
            url: known.url,
            region: known.region,
            endpoint_url: known.endpoint_url,
        },
    })
}

async fn open(config: &BlobsConfig, master: &str) -> Result<Arc<dyn ObjectStore>, StoreError> {
    match &config.store {
        StoreUrl::Directory(dir) => directory::open(dir, master),
        #[cfg(feature = "s3")]
        StoreUrl::S3 { bucket, prefix } => s3::open(config, bucket, prefix).await,
        #[cfg(not(feature = "s3"))]
        StoreUrl::S3 { .. } => {
            Err(StoreError(format!("{} cannot be used: this build of rouse lacks the feature s3", config.url)))
        }
    }
}

/// Writes, reads and deletes a small object, as `rouse check --online` does. Returns what is wrong.
///
/// # Errors
/// The first thing that does not work.
pub async fn probe(config: &BlobsConfig) -> Result<(), StoreError> {
    const TEXT: &[u8] = b"written by rouse check --online\n";
    let mut random = [0_u8; 8];
    getrandom::fill(&mut random).map_err(|e| StoreError(format!("cannot draw random numbers: {e}")))?;
    let name = format!("rouse-check-{}", hex::encode(random));
    let store = open(config, &name).await?;
    let key = Key::from(format!("{name}/probe"));
    let failed = |what: &str, fault: Fault| {
        let StoreError(why) = fault.explain(&config.url);
        StoreError(format!("{why} (when it {what} a small object)"))
    };
    within(READ, store.put(&key, PutPayload::from_static(TEXT))).await.map_err(|fault| failed("wrote", fault))?;
    let read = within(READ, store.get_range(&key, 0..TEXT.len() as u64)).await.map_err(|fault| failed("read", fault));
    let listed = within(READ, store.list(Some(&Key::from(name.as_str()))).try_collect::<Vec<_>>()).await;
    let deleted = within(READ, store.delete(&key)).await.map_err(|fault| failed("deleted", fault));
    if let StoreUrl::Directory(dir) = &config.store {
        drop(std::fs::remove_dir(dir.join(&name)));
    }
    if *read? != *TEXT {
        return Err(StoreError(format!("{} does not return what was written to it", config.url)));
    }
    listed.map_err(|fault| failed("listed", fault))?;
    deleted
}

/// Bytes of a file. Reads on a thread for blocking work.
async fn part(file: Arc<File>, from: u64, length: u64) -> io::Result<Bytes> {
    let read = move || {
        let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
        file.read_exact_at(&mut bytes, from)?;
        Ok(Bytes::from(bytes))
    };
    tokio::task::spawn_blocking(read).await.map_err(io::Error::other)?
}

async fn within<T>(limit: Duration, call: impl Future<Output = object_store::Result<T>>) -> Result<T, Fault> {
    match tokio::time::timeout(limit, call).await {
        Ok(result) => result.map_err(Fault::from),
        Err(_) => Err(Fault::Late(limit)),
    }
}
