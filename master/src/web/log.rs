//! A step's log as bytes: the whole log, a range of it, or the log until it is complete (`follow=1`).

use super::error::{ApiError, Params, Segments};
use super::{App, NoBuild, Query, builds};
use crate::core::event::Change;
use crate::core::view::BuildView;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use rouse_shared::message::{Outcome, StepState};
use rouse_shared::{AttemptId, BuildId};
use serde::Deserialize;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::sync::watch;
use utoipa::IntoParams;

/// Bytes of one read and of one piece of the response.
const PIECE: usize = 64 << 10;
/// Bytes of one read from a blob store, and of one piece of such a response: each read is a request.
const STORED_PIECE: u64 = 1 << 20;
/// First pause before the build is checked after a followed log has fallen silent. The end of a step is not announced
/// in any other way.
const FIRST_LOOK: Duration = Duration::from_millis(25);
/// Longest pause between such checks.
const LAST_LOOK: Duration = Duration::from_millis(500);
/// Means "as far as it will grow" in the answer to a range that is followed, see RFC 8673.
const VERY_LARGE: u64 = i64::MAX as u64;

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct LogParams {
    /// 1: stream the log from its start until it is complete. If the stream is interrupted, request the rest as a range.
    #[param(pattern = "^(0|1|false|true)$")]
    follow: Option<String>,
    /// Which attempt, from 1. Default: the last one.
    #[param(minimum = 1)]
    attempt: Option<u32>,
}

/// Read a step's log.
///
/// The response is the log, byte for byte. Supports `Range`; a range of a log that is followed is answered as in RFC
/// 8673.
#[utoipa::path(
    get, path = "/api/builds/{id}/steps/{step}/log",
    params(
        ("id" = crate::api::Id, Path, description = "The build's number."),
        ("step" = u32, Path, description = "The step, from 1.", minimum = 1),
        LogParams,
    ),
    responses(
        (status = 200, description = "The log.", body = String, content_type = "text/plain"),
        (status = 206, description = "A range of the log.", body = String, content_type = "text/plain"),
        (status = 404, description = "There is no such build, attempt, step or log.", body = crate::api::Error),
        (status = 410, description = "The log was deleted by retention.", body = crate::api::Error),
        (status = 416, description = "The range is past the end of the log."),
        (status = 503, description = "The master is ending or did not answer in time, or the log is in a blob store that does not answer.", body = crate::api::Error),
    ),
)]
pub(super) async fn read_log(
    State(app): State<Arc<App>>,
    Segments((id, step)): Segments<(String, String)>,
    Params(params): Params<LogParams>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let follow = match params.follow.as_deref() {
        None | Some("0" | "false") => false,
        Some("1" | "true") => true,
        Some(other) => {
            return Err(ApiError::field("follow", format!("must be 1 or 0, not {other:?}")));
        }
    };
    // Subscribe before the build is read, so that no later change is missed.
    let changes = app.changes.subscribe();
    let view = builds::find(&app, &id).await?;
    let index = index(&view, &step)?;
    if let Some(number) = params.attempt
        && (!follow || view.state.is_final())
        && !view.build.status.attempts.iter().any(|attempt| attempt.number == number)
    {
        return Err(ApiError::NotFound(format!("build {id} has no attempt {number}")));
    }
    let mut reader = Reader::new(app, view.build.id, index, params.attempt, changes);
    reader.find(view.clone()).await?;
    let there = reader.there();
    if there == 0 && reader.had_bytes && view.build.logs_deleted.is_some() {
        return Err(ApiError::Gone(format!("the log of step {} of build {id} was deleted by retention", index + 1)));
    }
    if there == 0 && reader.left > 0 {
        let (step, left) = (index + 1, reader.left);
        let why = format!("the log of step {step} of build {id} had {left} bytes, but it no longer exists");
        return Err(ApiError::NotFound(why));
    }
    let range = headers.get(header::RANGE).and_then(|value| Range::parse(value.to_str().ok()?));
    if follow { Ok(followed(reader, range, there)) } else { Ok(whole(reader, range, there)) }
}

/// The index of a step in a path, where steps are counted from 1.
fn index(view: &BuildView, step: &str) -> Result<u32, ApiError> {
    let count = view.build.spec.steps.len();
    let number = step.parse::<u32>().ok().filter(|number| usize::try_from(*number).is_ok_and(|n| n >= 1 && n <= count));
    number.map(|number| number - 1).ok_or_else(|| {
        ApiError::NotFound(format!("build {} has the steps 1 to {count}, but no step {step}", view.build.id))
    })
}

fn whole(mut reader: Reader, range: Option<Range>, there: u64) -> Response {
    reader.end = Some(End::AsItIs);
    reader.until = there;
    let mut response = match range {
        None => StatusCode::OK.into_response(),
        Some(range) => match range.within(there) {
            Some((first, last)) => {
                reader.offset = first;
                reader.until = last + 1;
                let content = format!("bytes {first}-{last}/{there}");
                (StatusCode::PARTIAL_CONTENT, [(header::CONTENT_RANGE, content)]).into_response()
            }
            None => {
                let content = format!("bytes */{there}");
                return (StatusCode::RANGE_NOT_SATISFIABLE, [(header::CONTENT_RANGE, content)]).into_response();
            }
        },
    };
    response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(reader.until - reader.offset));
    body(response, reader)
}

fn followed(mut reader: Reader, range: Option<Range>, there: u64) -> Response {
    let response = match range {
        None => StatusCode::OK.into_response(),
        Some(range) => {
            let (first, last) = match range {
                Range::From(first) => (first, VERY_LARGE),
                Range::Between(first, last) => (first, last.min(VERY_LARGE)),
                Range::Last(count) => (there.saturating_sub(count), VERY_LARGE),
            };
            reader.offset = first;
            reader.until = last.saturating_add(1);
            let content = format!("bytes {first}-{last}/*");
            (StatusCode::PARTIAL_CONTENT, [(header::CONTENT_RANGE, content)]).into_response()
        }
    };
    body(response, reader)
}

fn body(mut response: Response, reader: Reader) -> Response {
    let pieces = stream::try_unfold(reader, |mut reader| async move {
        Ok::<_, io::Error>(reader.next().await?.map(|piece| (piece, reader)))
    });
    *response.body_mut() = Body::from_stream(pieces);
    let headers = response.headers_mut();
    // Browsers must show the output as text and not run it.
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    response
}

/// When the log is complete.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    /// The step has ended, and this is the length of its log.
    Length(u64),
    /// The attempt has ended, and no more bytes will come.
    AsItIs,
}

/// Reads one log from an offset, and waits for more bytes until it is complete.
struct Reader {
    app: Arc<App>,
    build: BuildId,
    step: u32,
    /// The requested attempt, or the first one that was seen.
    attempt: Option<u32>,
    changes: broadcast::Receiver<Change>,
    source: Option<Source>,
    /// Where the log is instead, if it is in a blob store.
    stored: Option<Stored>,
    offset: u64,
    /// The offset at which to stop.
    until: u64,
    end: Option<End>,
    /// Length of the log when its attempt had ended, so that a log that was deleted since is not sent as empty.
    left: u64,
    /// Whether its attempt has ended and may have left some of it.
    had_bytes: bool,
    pause: Duration,
}

/// A log in a blob store.
#[derive(Clone)]
struct Stored {
    store: Arc<str>,
    attempt: AttemptId,
    length: u64,
}

struct Source {
    path: PathBuf,
    file: Option<Arc<File>>,
    bytes: watch::Receiver<u64>,
}

impl Reader {
    fn new(
        app: Arc<App>,
        build: BuildId,
        step: u32,
        attempt: Option<u32>,
        changes: broadcast::Receiver<Change>,
    ) -> Self {
        Self {
            app,
            build,
            step,
            attempt,
            changes,
            source: None,
            stored: None,
            offset: 0,
            until: u64::MAX,
            end: None,
            left: 0,
            had_bytes: false,
            pause: FIRST_LOOK,
        }
    }

    /// The number of bytes that are available.
    fn there(&mut self) -> u64 {
        match &self.stored {
            Some(stored) => stored.length,
            None => self.source.as_mut().map_or(0, |source| *source.bytes.borrow_and_update()),
        }
    }

    /// Updates from the build where its log is, and when it is complete.
    async fn find(&mut self, view: BuildView) -> Result<(), ApiError> {
        self.look(&view);
        if view.build.logs_store.is_some() || !view.state.is_final() || self.there() > 0 {
            return self.find_stored(&view).await;
        }
        // If there is no file, it was perhaps uploaded and removed since the build was read.
        match self.app.query(|reply| Query::Build { id: self.build, reply }).await? {
            Ok(view) => self.find_stored(&view).await,
            Err(_) => Ok(()),
        }
    }

    /// Finds the log in the blob store that the build names, if it names one. A file that is open is read to its end.
    async fn find_stored(&mut self, view: &BuildView) -> Result<(), ApiError> {
        let opened = self.source.as_ref().is_some_and(|source| source.file.is_some());
        let (Some(store), Some(number), false) = (&view.build.logs_store, self.attempt, opened) else { return Ok(()) };
        let attempt = AttemptId { build: self.build, number };
        let length = self.app.logs.stored_length(store, attempt, self.step).await;
        let length = length.map_err(|why| self.unreadable(&why))?;
        self.stored = Some(Stored { store: store.clone(), attempt, length });
        Ok(())
    }

    fn unreadable(&self, why: &str) -> ApiError {
        let (step, build) = (self.step + 1, self.build);
        ApiError::Unavailable(format!(
            "the log of step {step} of build {build} cannot be read now: {why}; try again later"
        ))
    }

    /// Updates from the build whether the attempt exists and when its log is complete.
    fn look(&mut self, view: &BuildView) {
        let status = &view.build.status;
        let attempt = match self.attempt {
            Some(number) => status.attempts.iter().find(|attempt| attempt.number == number),
            None => status.attempts.last(),
        };
        let Some(attempt) = attempt else {
            if view.state.is_final() {
                self.end = Some(End::AsItIs);
            }
            return;
        };
        self.attempt = Some(attempt.number);
        let id = AttemptId { build: self.build, number: attempt.number };
        // The writer of the log has gone. There may be another one.
        if self.source.as_ref().is_none_or(|source| source.bytes.has_changed().is_err()) {
            let path = self.app.logs.path(id, self.step);
            let file = self.source.take().and_then(|source| source.file);
            self.source = Some(Source { path, file, bytes: self.app.logs.watch(id, self.step) });
        }
        let report = usize::try_from(self.step).ok().and_then(|index| attempt.steps.get(index));
        let kept = attempt.cut_logs.iter().find(|(step, _)| *step == self.step).map(|(_, bytes)| *bytes);
        if attempt.ended.is_some()
            && let Some(Outcome::Success | Outcome::Failure(_) | Outcome::Cancelled) = attempt.outcome
        {
            self.left = kept.or(report.map(|report| report.log_length)).unwrap_or(0);
            self.had_bytes = self.left > 0;
        } else {
            // What a lost attempt has printed, nobody has counted.
            self.had_bytes = attempt.ended.is_some() && report.is_some();
        }
        self.end = match report {
            _ if attempt.ended.is_some() => Some(End::AsItIs),
            Some(report) if report.state != StepState::Running => Some(End::Length(kept.unwrap_or(report.log_length))),
            None if attempt.outcome.is_some() => Some(End::Length(0)),
            Some(_) | None => None,
        };
    }

    /// The next piece; none at the end.
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            let there = self.there().min(self.until);
            if self.offset < there {
                let was_stored = self.stored.is_some();
                let piece = self.piece(there).await?;
                if self.stored.is_some() && !was_stored {
                    continue;
                }
                if !piece.is_empty() {
                    self.offset += piece.len() as u64;
                    self.pause = FIRST_LOOK;
                    return Ok(Some(piece));
                }
            }
            let done = self.offset >= self.until
                || match self.end {
                    Some(End::AsItIs) => true,
                    Some(End::Length(length)) => self.offset >= length,
                    None => false,
                };
            if done {
                return Ok(None);
            }
            self.wait().await?;
        }
    }

    /// Up to [`PIECE`] bytes from the reader's position. Reads on a thread for blocking work.
    async fn piece(&mut self, there: u64) -> io::Result<Bytes> {
        if let Some(stored) = &self.stored {
            let range = self.offset..there.min(self.offset + STORED_PIECE);
            let read = self.app.logs.stored_range(&stored.store, stored.attempt, self.step, range).await;
            return read.map_err(io::Error::other);
        }
        let Some(source) = &mut self.source else { return Ok(Bytes::new()) };
        let (offset, path, file) = (self.offset, source.path.clone(), source.file.clone());
        let wanted = usize::try_from(there - offset).unwrap_or(usize::MAX).min(PIECE);
        let read = move || -> io::Result<_> {
            let file = match file {
                Some(file) => file,
                None => Arc::new(File::open(path)?),
            };
            let mut piece = vec![0; wanted];
            let length = file.read_at(&mut piece, offset)?;
            piece.truncate(length);
            Ok((file, Bytes::from(piece)))
        };
        match tokio::task::spawn_blocking(read).await.map_err(io::Error::other)? {
            Ok((file, piece)) => {
                source.file = Some(file);
                Ok(piece)
            }
            // It was uploaded, and the file was removed before it was opened.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let view = self.app.query(|reply| Query::Build { id: self.build, reply }).await;
                if let Ok(view) = view.map_err(io::Error::other)? {
                    self.find_stored(&view).await.map_err(io::Error::other)?;
                }
                if self.stored.is_some() { Ok(Bytes::new()) } else { Err(error) }
            }
            Err(error) => Err(error),
        }
    }

    /// Waits until there are more bytes, or until the build was checked again.
    async fn wait(&mut self) -> io::Result<()> {
        let mut closing = self.app.closing.clone();
        let pause = tokio::time::sleep(self.pause);
        tokio::pin!(pause);
        loop {
            let grown = grown(self.source.as_mut());
            tokio::select! {
                // Breaks off the response, so that the client knows that this was not the end and continues later.
                _ = closing.wait_for(|closed| *closed) => return Err(io::Error::other("the master is ending")),
                () = grown => return Ok(()),
                () = &mut pause => {
                    self.pause = (self.pause * 2).min(LAST_LOOK);
                    break;
                }
                change = self.changes.recv() => match change {
                    Ok(Change::Build { id, .. }) if id == self.build => break,
                    Ok(Change::Build { .. } | Change::Worker { .. } | Change::Host { .. }) => {}
                    Err(RecvError::Lagged(_)) => break,
                    Err(RecvError::Closed) => return Err(io::Error::other("the master is ending")),
                },
            }
        }
        let id = self.build;
        let view = self.app.query(|reply| Query::Build { id, reply }).await;
        match view.map_err(io::Error::other)? {
            Ok(view) => self.find(view).await.map_err(io::Error::other)?,
            Err(NoBuild::Unknown | NoBuild::Deleted) => self.end = Some(End::AsItIs),
            Err(NoBuild::Unreadable(why)) => return Err(io::Error::other(why)),
        }
        Ok(())
    }
}

/// Completes when there are more bytes. Never completes without a writer; then only another check helps.
async fn grown(source: Option<&mut Source>) {
    let alive = match source {
        Some(source) => source.bytes.changed().await.is_ok(),
        None => false,
    };
    if !alive {
        std::future::pending().await
    }
}

/// One range of bytes in a request. Several ranges and other units are ignored, as HTTP allows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Range {
    From(u64),
    Between(u64, u64),
    Last(u64),
}

impl Range {
    fn parse(value: &str) -> Option<Self> {
        let (first, last) = value.trim().strip_prefix("bytes=")?.split_once('-')?;
        match (first.trim(), last.trim()) {
            ("", last) => last.parse().ok().map(Self::Last),
            (first, "") => first.parse().ok().map(Self::From),
            (first, last) => {
                let (first, last) = (first.parse().ok()?, last.parse().ok()?);
                (first <= last).then_some(Self::Between(first, last))
            }
        }
    }

    /// The first and the last of its bytes that are available.
    fn within(self, length: u64) -> Option<(u64, u64)> {
        let end = length.checked_sub(1)?;
        match self {
            Self::From(first) => (first <= end).then_some((first, end)),
            Self::Between(first, last) => (first <= end).then_some((first, last.min(end))),
            Self::Last(0) => None,
            Self::Last(count) => Some((length.saturating_sub(count), end)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Range;

    #[test]
    fn ranges_are_read_as_http_has_them() {
        for (text, length, expected) in [
            ("bytes=0-", 10, Some((0, 9))),
            ("bytes=3-5", 10, Some((3, 5))),
            ("bytes=3-50", 10, Some((3, 9))),
            ("bytes=-4", 10, Some((6, 9))),
            ("bytes=-40", 10, Some((0, 9))),
            ("bytes=-0", 10, None),
            ("bytes=10-", 10, None),
            ("bytes=0-", 0, None),
        ] {
            assert_eq!(Range::parse(text).expect("a range").within(length), expected, "{text} of {length}");
        }
        for passed_over in ["bytes=5-3", "bytes=1-2,4-5", "lines=1-2", "bytes=", "bytes=-", "bytes=a-b"] {
            assert_eq!(Range::parse(passed_over), None, "{passed_over}");
        }
    }
}
