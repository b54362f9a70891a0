//! One connection to libvirt, kept up on a thread of its own. A libvirtd that is frozen costs its own hosts time and
//! nobody else's: opening waits on that thread alone, keepalive ends calls that are never answered, and who asks
//! meanwhile is told after a few seconds.

use super::events::{self, LifecycleEvent};
use crate::clock;
use rouse_shared::Timestamp;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, watch};
use tracing::{info, warn};
use virt::connect::Connect;
use virt::error::{Error, ErrorNumber};

/// Seconds between questions whether libvirtd is still there, and how many may stay without an answer: a frozen one is
/// given up after eight seconds.
const KEEPALIVE: (i32, u32) = (2, 3);
/// How long a call waits for a connection that is not up: longer than libvirtd takes to start again.
const PATIENCE: Duration = Duration::from_secs(5);
/// First pause after an opening that failed; doubled up to [`PAUSE_MOST`].
const PAUSE_FIRST: Duration = Duration::from_millis(500);
/// Longest pause between two tries to open.
const PAUSE_MOST: Duration = Duration::from_secs(10);
/// Words to a keeper that may wait: each connection is closed once, and the link ends once.
const WORDS: usize = 8;
/// Calls that are under way on one connection at a time: libvirtd itself serves five clients' calls at once by default.
const CALLS: usize = 5;

/// The kind of an error. One that this libvirt's bindings have no name for is a failure like any other.
pub fn code_of(error: &Error) -> ErrorNumber {
    error.code().unwrap_or(ErrorNumber::OperationFailed)
}

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// There is no connection: nothing was asked.
    #[error("{0}")]
    Unreachable(String),
    /// A fault of our own interrupted it: whether it was carried out is unknown.
    #[error("{0}")]
    Interrupted(String),
    /// What libvirt says.
    #[error("{}", .0.message())]
    Libvirt(Error),
}

impl From<Error> for LinkError {
    fn from(error: Error) -> Self {
        Self::Libvirt(error)
    }
}

impl LinkError {
    /// Whether libvirt says that there is no such domain.
    pub fn no_domain(&self) -> bool {
        matches!(self, Self::Libvirt(error) if code_of(error) == ErrorNumber::NoDomain)
    }
}

/// How a connection stands.
#[derive(Clone)]
enum Standing {
    /// It is being opened; how the last one ended, where there was one.
    Opening { since: Timestamp, last: Option<String> },
    /// It is up.
    Up(Arc<Connect>),
}

/// What the keeper is told.
enum Word {
    /// The connection is closed.
    Closed(&'static str),
    /// Nobody needs it any more.
    End,
}

/// A connection, opened again whenever it is lost.
pub struct Link {
    uri: String,
    standing: watch::Receiver<Standing>,
    words: SyncSender<Word>,
    calls: Arc<Semaphore>,
}

impl Link {
    /// Begins to open it. What happens to its domains is told through `lives`, and so is each time that it came up,
    /// since what happened before that was not heard.
    ///
    /// # Errors
    /// Where there can be no thread.
    pub fn open(uri: &str, lives: mpsc::Sender<(String, LifecycleEvent)>) -> std::io::Result<Self> {
        events::run()?;
        let (told, standing) = watch::channel(Standing::Opening { since: clock::now(), last: None });
        let (words, heard) = sync_channel(WORDS);
        let keeper = Keeper { uri: uri.to_owned(), told, words: words.clone(), lives };
        std::thread::Builder::new().name("libvirt".to_owned()).spawn(move || keeper.keep(&heard))?;
        Ok(Self { uri: uri.to_owned(), standing, words, calls: Arc::new(Semaphore::new(CALLS)) })
    }

    /// The connection, once it is up.
    async fn up(&self) -> Result<Arc<Connect>, LinkError> {
        let mut standing = self.standing.clone();
        let up = standing.wait_for(|standing| matches!(standing, Standing::Up(_)));
        if let Ok(Ok(standing)) = tokio::time::timeout(PATIENCE, up).await.map(|up| up.map(|s| s.clone()))
            && let Standing::Up(connect) = standing
        {
            return Ok(connect);
        }
        let why = match self.standing.borrow().clone() {
            Standing::Opening { since, last } => {
                let seconds = clock::now().since(since).as_secs();
                last.unwrap_or_else(|| format!("no answer for {seconds} s: it is frozen, or not there"))
            }
            Standing::Up(_) => "it came up just now".to_owned(),
        };
        Err(LinkError::Unreachable(format!("libvirt at {} cannot be reached: {why}", self.uri)))
    }

    /// Does something that calls libvirt, on a thread that may block. It is done to its end even if nobody waits for it
    /// any more.
    ///
    /// # Errors
    /// What the work says, or that there is no connection.
    pub async fn call<T, E>(&self, work: impl FnOnce(&Connect) -> Result<T, E> + Send + 'static) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<LinkError> + Send + 'static,
    {
        let connect = self.up().await.map_err(E::from)?;
        let permit = self.calls.clone().acquire_owned().await;
        let permit = permit.map_err(|_| LinkError::Unreachable("the connection is closed".to_owned()))?;
        let ended = tokio::task::spawn_blocking(move || {
            let result = work(&connect);
            drop(permit);
            result
        });
        ended
            .await
            .unwrap_or_else(|error| Err(E::from(LinkError::Interrupted(format!("the call was interrupted: {error}")))))
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // A keeper that waits for a frozen libvirtd hears it later, and one that has ended needs it not.
        drop(self.words.try_send(Word::End));
    }
}

/// What holds a connection up.
struct Keeper {
    uri: String,
    told: watch::Sender<Standing>,
    words: SyncSender<Word>,
    lives: mpsc::Sender<(String, LifecycleEvent)>,
}

impl Keeper {
    fn keep(self, heard: &std::sync::mpsc::Receiver<Word>) {
        let mut pause = PAUSE_FIRST;
        let mut complained = false;
        loop {
            match self.open() {
                Ok((connect, ear)) => {
                    if complained {
                        info!("libvirt at {} answers again", self.uri);
                    }
                    (pause, complained) = (PAUSE_FIRST, true);
                    self.told.send_replace(Standing::Up(connect.clone()));
                    // Nobody who listens, or too much to tell: the next audit looks as well.
                    drop(self.lives.try_send((self.uri.clone(), LifecycleEvent::Connected)));
                    let word = heard.recv().unwrap_or(Word::End);
                    drop(ear);
                    let why = match word {
                        Word::Closed(why) => why,
                        Word::End => return,
                    };
                    warn!("the connection to libvirt at {} is lost: {why}", self.uri);
                    self.opening(Some(why.to_owned()));
                }
                Err(error) => {
                    let why = error.message().to_owned();
                    if !std::mem::replace(&mut complained, true) {
                        warn!("libvirt at {} cannot be reached: {why}; retrying", self.uri);
                    }
                    self.opening(Some(why));
                    match heard.recv_timeout(pause) {
                        Ok(Word::End) | Err(RecvTimeoutError::Disconnected) => return,
                        Ok(Word::Closed(_)) | Err(RecvTimeoutError::Timeout) => {}
                    }
                    pause = (pause * 2).min(PAUSE_MOST);
                }
            }
        }
    }

    fn opening(&self, last: Option<String>) {
        self.told.send_replace(Standing::Opening { since: clock::now(), last });
    }

    fn open(&self) -> Result<(Arc<Connect>, events::Ear), Error> {
        let connect = Connect::open(Some(&self.uri))?;
        match connect.set_keep_alive(KEEPALIVE.0, KEEPALIVE.1) {
            // A driver within our own process has no link that could freeze.
            Err(error) if code_of(&error) != ErrorNumber::NoSupport => return Err(error),
            Ok(_) | Err(_) => {}
        }
        let (words, lives, uri) = (self.words.clone(), self.lives.clone(), self.uri.clone());
        let closed = Box::new(move |why| drop(words.try_send(Word::Closed(why))));
        let on_lifecycle = Box::new(move |life| drop(lives.try_send((uri.clone(), life))));
        let ear = events::Ear::new(&connect, closed, on_lifecycle)?;
        Ok((Arc::new(connect), ear))
    }
}
