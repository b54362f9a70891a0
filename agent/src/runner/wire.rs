//! The messages between the agent, the zygote and the supervisors.

use super::Job;
use rouse_shared::codec;
use rouse_shared::message::{Limits, StepState, Usage};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

/// From agent to supervisor: send SIGTERM, and later SIGKILL.
pub const STOP: u8 = b'T';
/// From agent to supervisor: send SIGKILL.
pub const KILL: u8 = b'K';
/// From agent to supervisor: the last [`Frame::Output`] is handled, and another one may follow.
pub const SEEN: u8 = b'S';

/// A [`Job`] as its supervisor receives it. Paths are bytes, because they need not be UTF-8.
#[derive(Serialize, Deserialize)]
pub struct StepJob {
    pub run: Vec<String>,
    pub cwd: Vec<u8>,
    pub env: BTreeMap<String, String>,
    pub run_as: Option<String>,
    pub timeout: Option<Duration>,
    pub silence: Option<Duration>,
    pub spool: Vec<u8>,
    pub max_log: u64,
    pub limits: Limits,
}

impl StepJob {
    /// The part of `job` that its supervisor needs.
    pub fn new(job: Job) -> Self {
        Self {
            run: job.run,
            cwd: job.cwd.as_os_str().as_bytes().to_vec(),
            env: job.env,
            run_as: job.run_as,
            timeout: job.timeout,
            silence: job.silence,
            spool: job.spool.as_os_str().as_bytes().to_vec(),
            max_log: job.max_log,
            limits: job.limits,
        }
    }
}

/// From supervisor to agent: a length (4 bytes, little endian), and then that many bytes of MessagePack.
///
/// At most one `Output` is unanswered, and the others are sent once each, so the socket never fills.
#[derive(Serialize, Deserialize)]
pub enum Frame {
    /// The command was executed.
    Started,
    /// The spool file has this many bytes.
    Output { length: u64 },
    /// The step is over. No process of it is left, unless the machine is `unclean`.
    Ended { state: StepState, log_length: u64, log_cut: u64, took_ms: u64, usage: Option<Usage>, unclean: bool },
    /// From the zygote on behalf of a supervisor that was killed. No process of the step is left, unless the machine is
    /// `unclean`.
    Lost { why: String, unclean: bool },
}

impl Frame {
    /// The end of a step whose command was never executed.
    pub fn never_ran(state: StepState, took_ms: u64) -> Self {
        Self::Ended { state, log_length: 0, log_cut: 0, took_ms, usage: None, unclean: false }
    }

    /// The frame's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let body = codec::encode(self);
        let mut bytes = (body.len() as u32).to_le_bytes().to_vec();
        bytes.extend(body);
        bytes
    }

    /// Removes the first complete frame from `bytes`.
    ///
    /// # Errors
    /// If `bytes` do not begin with a frame.
    pub fn take(bytes: &mut Vec<u8>) -> Result<Option<Self>, codec::DecodeError> {
        let Some(head) = bytes.first_chunk::<4>() else { return Ok(None) };
        let end = (u32::from_le_bytes(*head) as usize).saturating_add(4);
        if end > rouse_shared::limits::MAX_MESSAGE {
            return Err(codec::DecodeError::TooLarge(end));
        }
        let Some(body) = bytes.get(4..end) else { return Ok(None) };
        let frame = codec::decode(body)?;
        bytes.drain(..end);
        Ok(Some(frame))
    }
}
