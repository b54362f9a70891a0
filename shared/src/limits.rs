//! Every limit of the protocol, each with its reason.

use std::time::Duration;

/// The version of the protocol, sent in hello. It is raised only by a change that is not additive.
pub const PROTOCOL: u16 = 1;

/// Largest message that either side decodes, bytes. The largest carries a build's commands and environment. Linux takes
/// at most 128 KiB for one argument and 2 MiB for all of them, so 4 MiB holds every build that could start.
pub const MAX_MESSAGE: usize = 4 << 20;

/// Deepest nesting of a message that either side decodes. Ours have at most about ten levels, and each level costs
/// stack.
pub const MAX_DEPTH: usize = 64;

/// Largest log chunk, bytes. Large enough that the broker's cost per message (about 30 µs) is small compared with
/// copying it, and small enough that a whole window of chunks takes little memory.
pub const LOG_CHUNK: usize = 64 << 10;

/// Largest message with a log chunk, bytes: the chunk, and room for its session, its numbers and future fields. The master
/// holds many of them at once, so nothing else in them may be long.
pub const MAX_LOG: usize = LOG_CHUNK + (1 << 10);

/// Maximum number of log bytes of one step that an agent has sent and the broker has not confirmed.
pub const LOG_WINDOW: usize = 2 << 20;

/// Largest message from an agent to the master apart from log chunks, bytes. A report of [`MAX_STEPS`] steps takes up to
/// 80 KiB and its texts up to [`MAX_REPORT_TEXT`]; a hello takes up to [`MAX_HELLO_REPORTS`] and 48 KiB of documents.
pub const MAX_CONTROL: usize = 256 << 10;

/// Maximum number of steps in a build: a report lists them all and must fit [`MAX_CONTROL`].
pub const MAX_STEPS: usize = 1_000;

/// Maximum number of attempts that an agent has at once, and lists in its hello: far more than a machine can run, and a
/// limit to what an agent can make the master do at once, and a master an agent.
pub const MAX_ATTEMPTS: usize = 1_000;

/// Size of the reports in a hello above which it lists only which attempts there are, bytes. The reports follow.
pub const MAX_HELLO_REPORTS: usize = 128 << 10;

/// Maximum number of steps in all reports of a hello together: as many as fit [`MAX_HELLO_REPORTS`], of about 30 bytes
/// at least.
pub const MAX_HELLO_STEPS: usize = MAX_HELLO_REPORTS / 30;

/// Longest time from the end of an agent's lease until none of its steps runs. Supervisors kill at once when the lease
/// ends, so this covers a machine that is slow to schedule them. The master waits as long before it retries a build.
pub const KILL_MARGIN: Duration = Duration::from_secs(5);

/// Longest time until an agent notices that its connection is dead: the AMQP library looks every 5 s whether nothing
/// has come for 20 s, and 5 s are added. An agent whose broker accepts nothing knows of the broker only what was true
/// then, so it extends no lease that is not longer.
pub const BLOCKED_DETECTION: Duration = Duration::from_secs(30);

/// Between SIGTERM and SIGKILL when a step is cancelled or timed out.
pub const TERM_TO_KILL: Duration = Duration::from_secs(5);

/// Number of settled attempts that an agent remembers, so that a late copy of a request does not run one again.
pub const REMEMBERED_ATTEMPTS: usize = 4_096;

/// Longest reason or error text in a message, bytes; longer ones are cut.
pub const MAX_TEXT: usize = 2_000;

/// Maximum size of all such texts in the report of one attempt, bytes. Those of further steps are left out.
pub const MAX_REPORT_TEXT: usize = 64 << 10;

/// Longest word in a hello or a notice, bytes: a version, an identity, a host name (64 on Linux), an operating system.
pub const MAX_WORD: usize = 255;

/// Length of the random part of a [`crate::Nonce`], hexadecimal digits.
pub const NONCE_DIGITS: usize = 32;

/// Cuts a text to at most so many bytes, between characters.
pub fn cut(text: &mut String, most: usize) {
    let mut end = text.len().min(most);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
}

/// The smallest limit of a step's memory, bytes: with less, no program starts.
pub const LEAST_MEMORY: u64 = 1 << 20;

/// The largest limit of a step's processes: Linux has no more.
pub const MOST_PIDS: u64 = 4_194_304;

/// Largest boot data that either side handles, bytes: what the largest carrier holds (Nova's user data 64 KiB, EC2's
/// 16 KiB).
pub const MAX_BOOT_DATA: usize = 64 << 10;

/// Largest document or signature in [`crate::message::Proof`], bytes: EC2's are below 3 KiB.
pub const MAX_IDENTITY_DOCUMENT: usize = 16 << 10;
