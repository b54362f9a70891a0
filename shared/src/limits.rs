//! Every bound of the wire, each with its reason.

use std::time::Duration;

/// The protocol's version, sent in hello. Raised only when a change is not additive.
pub const PROTOCOL: u16 = 1;

/// Largest message that either side decodes, bytes. An order carries a build's commands and environment, the largest
/// thing sent; Linux takes at most 128 KiB for one argument and 2 MiB for all, so 4 MiB holds any build that could start.
pub const MAX_MESSAGE: usize = 4 << 20;

/// Deepest nesting of a message that either side decodes. The deepest of ours has about ten levels; each costs stack.
pub const MAX_DEPTH: usize = 64;

/// Largest log chunk, bytes. Large enough that the broker's cost a message (some 30 µs) is small beside copying it,
/// small enough that a window of them is bounded memory.
pub const LOG_CHUNK: usize = 64 << 10;

/// Log bytes that an agent has sent and that are not yet confirmed, at most. One window a step.
pub const LOG_WINDOW: usize = 2 << 20;

/// Steps in one build, at most: a report lists them all and must fit [`MAX_MESSAGE`].
pub const MAX_STEPS: usize = 1_000;

/// From the end of an agent's lease until nothing of its steps runs, at most: supervisors kill at once at the deadline,
/// so this is for a machine that is slow to schedule them. The master waits for it before it gives a build away.
pub const KILL_MARGIN: Duration = Duration::from_secs(5);

/// Between SIGTERM and SIGKILL when a step is cancelled or timed out.
pub const TERM_TO_KILL: Duration = Duration::from_secs(5);

/// Settled attempts that an agent remembers, so that a late copy of an order starts nothing again.
pub const REMEMBERED_ATTEMPTS: usize = 4_096;

/// Longest reason or error text on the wire, bytes; longer ones are cut.
pub const MAX_TEXT: usize = 2_000;

/// Largest boot data that either side handles, bytes: what the largest carrier takes (Nova's user data and a table of the
/// firmware's are 64 KiB; EC2's user data 16).
pub const MAX_BOOT_DATA: usize = 64 << 10;

/// Largest of the papers in [`crate::message::Proof`], bytes: EC2's are below 3 KiB.
pub const MAX_IDENTITY_DOCUMENT: usize = 16 << 10;
