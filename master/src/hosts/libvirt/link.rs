//! One connection to libvirt, kept open by a separate thread. A frozen libvirtd delays only its own hosts: opening the
//! connection blocks only that thread, keepalive ends calls that are never answered, and calls fail after a few seconds
//! without a connection.

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

/// Interval of keepalive messages, seconds, and how many may be unanswered. A frozen libvirtd is given up after eight
/// seconds.
const KEEPALIVE: (i32, u32) = (2, 3);
/// How long a call waits for the connection. This is longer than libvirtd takes to restart.
const PATIENCE: Duration = Duration::from_secs(5);
/// First pause after a failed opening. Doubled up to [`PAUSE_MOST`].
const PAUSE_FIRST: Duration = Duration::from_millis(500);
/// Longest pause between two tries to open.
const PAUSE_MOST: Duration = Duration::from_secs(10);
/// Capacity of the channel to a keeper: each connection is closed once, and the link ends once.
const WORDS: usize = 8;
/// Largest number of calls at the same time on one connection. By default libvirtd serves five calls of a client at
/// once.
const CALLS: usize = 5;

/// The kind of an error. A kind that the bindings do not know is treated as any other failure.
pub fn code_of(error: &Error) -> ErrorNumber {
    error.code().unwrap_or(ErrorNumber::OperationFailed)
}

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// There is no connection, so nothing was sent.
    #[error("{0}")]
    Unreachable(String),
    /// A bug in rouse interrupted the call, so its result is unknown.
    #[error("{0}")]
    Interrupted(String),
    /// libvirt's error.
    #[error("{}", .0.message())]
    Libvirt(Error),
}

impl From<Error> for LinkError {
    fn from(error: Error) -> Self {
        Self::Libvirt(error)
    }
}

impl LinkError {
    /// Whether libvirt reports that there is no such domain.
    pub fn no_domain(&self) -> bool {
        matches!(self, Self::Libvirt(error) if code_of(error) == ErrorNumber::NoDomain)
    }
}

/// The state of a connection.
#[derive(Clone)]
enum Standing {
    /// It is being opened; why the last one ended, if there was one.
    Opening { since: Timestamp, last: Option<String> },
    /// It is up.
    Up(Arc<Connect>),
}

/// A message to the keeper.
enum Word {
    /// The connection is closed.
    Closed(&'static str),
    /// The link is no longer needed.
    End,
}

/// A connection that is opened again whenever it is lost.
pub struct Link {
    uri: String,
    standing: watch::Receiver<Standing>,
    words: SyncSender<Word>,
    calls: Arc<Semaphore>,
}

impl Link {
    /// Starts to open it. The events of its domains are sent through `lives`, and so is each opening, because events
    /// before it are lost.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn open(uri: &str, lives: mpsc::Sender<(String, LifecycleEvent)>) -> std::io::Result<Self> {
        events::run()?;
        let (publisher, standing) = watch::channel(Standing::Opening { since: clock::now(), last: None });
        let (words, receiver) = sync_channel(WORDS);
        let keeper = Keeper { uri: uri.to_owned(), publisher, words: words.clone(), lives };
        std::thread::Builder::new().name("libvirt".to_owned()).spawn(move || keeper.keep(&receiver))?;
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
                last.unwrap_or_else(|| format!("no answer for {seconds} s: it is frozen or not running"))
            }
            Standing::Up(_) => "it came up just now".to_owned(),
        };
        Err(LinkError::Unreachable(format!("libvirt at {} cannot be reached: {why}", self.uri)))
    }

    /// Runs work that calls libvirt, on a thread that may block. The work is completed even if the caller stops
    /// waiting.
    ///
    /// # Errors
    /// The error of the work, or that there is no connection.
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
        // A keeper that waits for a frozen libvirtd receives it later. One that has ended does not need it.
        drop(self.words.try_send(Word::End));
    }
}

/// Keeps a connection open.
struct Keeper {
    uri: String,
    publisher: watch::Sender<Standing>,
    words: SyncSender<Word>,
    lives: mpsc::Sender<(String, LifecycleEvent)>,
}

impl Keeper {
    fn keep(self, receiver: &std::sync::mpsc::Receiver<Word>) {
        let mut pause = PAUSE_FIRST;
        let mut complained = false;
        loop {
            match self.open() {
                Ok((connect, ear)) => {
                    if complained {
                        info!("libvirt at {} answers again", self.uri);
                    }
                    (pause, complained) = (PAUSE_FIRST, true);
                    self.publisher.send_replace(Standing::Up(connect.clone()));
                    // If there is no receiver or the channel is full, the next audit checks.
                    drop(self.lives.try_send((self.uri.clone(), LifecycleEvent::Connected)));
                    let word = receiver.recv().unwrap_or(Word::End);
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
                    match receiver.recv_timeout(pause) {
                        Ok(Word::End) | Err(RecvTimeoutError::Disconnected) => return,
                        Ok(Word::Closed(_)) | Err(RecvTimeoutError::Timeout) => {}
                    }
                    pause = (pause * 2).min(PAUSE_MOST);
                }
            }
        }
    }

    fn opening(&self, last: Option<String>) {
        self.publisher.send_replace(Standing::Opening { since: clock::now(), last });
    }

    fn open(&self) -> Result<(Arc<Connect>, events::Ear), Error> {
        let connect = Connect::open(Some(&self.uri))?;
        match connect.set_keep_alive(KEEPALIVE.0, KEEPALIVE.1) {
            // A driver within this process has no connection that could freeze.
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
