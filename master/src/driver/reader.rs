//! Reads the ledger on a separate thread, with a connection of its own: a listing may take long, and must delay neither
//! heartbeats nor commits.

use super::error::MasterError;
use crate::core::build::BuildState;
use crate::core::journal::{Entry, Filter};
use crate::core::view::{BuildFilter, BuildView};
use crate::store::{Store, StoreError};
use rouse_shared::error::Chain;
use std::collections::BTreeSet;
use tokio::sync::{mpsc, oneshot};
use tracing::error;

/// Largest number of listings that wait.
const WAITING: usize = 64;

/// A listing of builds.
pub(super) struct Listing {
    /// Selects the builds.
    pub filter: BuildFilter,
    /// Those of them that have not ended, newest first.
    pub live: Vec<BuildView>,
    /// Gets the builds, or why the ledger cannot be read.
    pub reply: oneshot::Sender<Result<Vec<BuildView>, String>>,
}

/// What is read.
enum Reading {
    Builds(Listing),
    /// Entries of the journal.
    Journal(Filter, JournalReply),
}

type JournalReply = oneshot::Sender<Result<Vec<Entry>, String>>;

/// Why a reading was not begun.
const TOO_MANY: &str = "too many listings wait for the ledger; try again";

/// Passes on to the thread what is to be read.
pub(super) struct Reader(mpsc::Sender<Reading>);

impl Reader {
    /// Starts the thread. It ends when this is dropped.
    pub(super) fn spawn(store: Store) -> Result<Self, MasterError> {
        let (readings, mut waiting) = mpsc::channel::<Reading>(WAITING);
        let body = move || {
            while let Some(reading) = waiting.blocking_recv() {
                // The client may have gone away, which is not an error.
                match reading {
                    Reading::Builds(Listing { filter, live, reply }) => {
                        drop(reply.send(list(&store, &filter, live).map_err(unreadable)));
                    }
                    Reading::Journal(filter, reply) => {
                        drop(reply.send(store.journal(&filter).map_err(unreadable)));
                    }
                }
            }
        };
        let thread = std::thread::Builder::new().name("reader".to_owned()).spawn(body);
        thread.map(|_| Self(readings)).map_err(|e| MasterError::new("cannot start a thread", &e))
    }

    /// Passes a listing on. If too many wait, it is answered with an error.
    pub(super) fn list(&self, listing: Listing) {
        self.read(Reading::Builds(listing));
    }

    /// The same for entries of the journal.
    pub(super) fn journal(&self, filter: Filter, reply: JournalReply) {
        self.read(Reading::Journal(filter, reply));
    }

    fn read(&self, reading: Reading) {
        // If the thread is gone, so is the caller's answer.
        match self.0.try_send(reading) {
            Err(mpsc::error::TrySendError::Full(Reading::Builds(listing))) => {
                drop(listing.reply.send(Err(TOO_MANY.to_owned())));
            }
            Err(mpsc::error::TrySendError::Full(Reading::Journal(_, reply))) => {
                drop(reply.send(Err(TOO_MANY.to_owned())));
            }
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => {}
        }
    }
}

/// The newest of the builds that live, and of those that have ended. One that has ended since it was seen alive is listed
/// as it was then.
fn list(store: &Store, filter: &BuildFilter, live: Vec<BuildView>) -> Result<Vec<BuildView>, StoreError> {
    let mut views = live;
    if filter.state.is_none_or(BuildState::is_final) {
        let alive: BTreeSet<_> = views.iter().map(|view| view.build.id).collect();
        let ended = store.ended_builds(filter)?.into_iter().filter(|build| !alive.contains(&build.id));
        views.extend(ended.map(|build| BuildView { state: build.status.state(), build, upload_trouble: None }));
        views.sort_by_key(|view| std::cmp::Reverse(view.build.id));
        views.truncate(filter.limit);
    }
    Ok(views)
}

/// The text of an error of the ledger. It is logged here too, because the client may not be the operator.
pub(super) fn unreadable(error: StoreError) -> String {
    let text = Chain(&error).to_string();
    error!("{text}");
    text
}
