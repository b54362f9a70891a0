//! Every bound of the master's talk with the broker, each with its reason.

use rouse_shared::limits::MAX_MESSAGE;
use std::time::Duration;

/// Hellos, heartbeats and reports delivered and not yet acknowledged. At a commit of 10 ms this still lets 50,000 a
/// second through, and it bounds what a hostile agent can make the master hold.
pub const CONTROL_PREFETCH: u16 = 512;

/// Log chunks delivered and not yet written: 64 of 64 KiB are 4 MiB.
pub const LOG_PREFETCH: u16 = 64;

/// Submitted builds delivered and not yet committed.
pub const BUILDS_PREFETCH: u16 = 200;

/// Events of the broker delivered and not yet seen.
pub const EVENTS_PREFETCH: u16 = 1_000;

/// Log bytes that wait in the broker. Past it agents get nacks and wait, so a dead master bounds the broker's disk.
pub const LOG_QUEUE_BYTES: i64 = 256 << 20;

/// Control messages that wait in the broker while the master is away; the oldest, worth the least, go first.
pub const CONTROL_QUEUE_LENGTH: i64 = 200_000;

/// Bytes of control messages that wait in the broker, for the same reason as [`LOG_QUEUE_BYTES`].
pub const CONTROL_QUEUE_BYTES: i64 = 256 << 20;

/// Events of the broker that wait for the master; a hint that is lost costs a lease's length, no more.
pub const EVENTS_QUEUE_LENGTH: i64 = 10_000;

/// Messages on their way out of the master, at most.
pub const OUTBOUND_MESSAGES: usize = 8_192;

/// Bytes on their way out of the master, at most: room for a few of the largest orders.
pub const OUTBOUND_BYTES: usize = 64 << 20;

/// Messages handed to the socket at once.
pub const PUBLISH_BATCH: usize = 256;

/// Bytes in such a batch, beyond which it is closed.
pub const PUBLISH_BATCH_BYTES: usize = 4 << 20;

/// Largest message the private node takes, bytes: what the wire allows and room for properties.
pub const BROKER_MAX_MESSAGE: usize = MAX_MESSAGE + (64 << 10);

/// Connections that are remembered by their owner, for telling which worker's connection closed.
pub const KNOWN_CONNECTIONS: usize = 100_000;

/// Different refusals, and senders of dropped messages, that are remembered so as not to log them again and again.
pub const REMEMBERED_LOG_LINES: usize = 1_000;

/// Seconds between AMQP heartbeats; a dead peer is noticed after about three.
pub const AMQP_HEARTBEAT: u16 = 10;

/// Bytes of a frame. lapin keeps room for 64 of them each way for each connection, so at the usual 128 KiB an idle master
/// would hold tens of megabytes; log throughput is the same from 8 KiB on.
pub const FRAME_MAX: u32 = 16 << 10;

/// When a worker is asked after once a connection of its has closed: at once, and again, since the broker tells of the
/// connection before it has removed the connection's queue, and what falls between the two is lost without a word.
pub const CLOSED_PROBES: [Duration; 3] = [Duration::ZERO, Duration::from_millis(100), Duration::from_secs(2)];

/// For connecting to one broker and declaring everything there.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);

/// For the queue of builds to answer, and the pause before it is asked again: a quorum queue may wait for its quorum.
pub const INBOX_TIMEOUT: Duration = Duration::from_secs(10);
/// See [`INBOX_TIMEOUT`].
pub const INBOX_RETRY: Duration = Duration::from_secs(5);

/// Between two looks whether the broker accepts messages. An agent that finds that it does not may go on past its lease,
/// and the master must know long before that.
pub const ALARM_PROBE: Duration = Duration::from_secs(3);

/// Shortest and longest pause between tries to connect.
pub const RECONNECT: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// For the master's core to say whether a worker may come in; past it the broker is told to ask again.
pub const ADMISSION_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest body of a question of the broker's, bytes.
pub const AUTH_BODY: usize = 64 << 10;

/// For a private node to say that it is ready: it takes 4 to 20 s, much more on a loaded machine with many queues.
pub const NODE_READY: Duration = Duration::from_secs(180);

/// For an earlier life's broker to let go of its port after its master was killed.
pub const PORT_PATIENCE: Duration = Duration::from_secs(5);

/// From making a quorum queue until its name is surely on disk: RabbitMQ 3.10 writes it half a second later, and a
/// broker that is killed before has a queue that never finds its leader again.
pub const FIRST_FLUSH: Duration = Duration::from_secs(2);

/// Between SIGTERM and SIGKILL for the private node: it takes 1 to 6 s.
pub const NODE_STOP: Duration = Duration::from_secs(20);

/// Shortest and longest pause before a private node that died is started again.
pub const NODE_RESTART: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));

/// A private node that was ready for so long has recovered: the next death counts as the first.
pub const NODE_SETTLED: Duration = Duration::from_secs(60);

/// Free space of the disk below which a private node accepts no messages, bytes. Its alarms come last: the master takes
/// no new builds, and then no logs, when there is still several times as much. Its memory has no such limit of ours:
/// the queues are bounded, and it may use most of the machine's.
pub const DISK_FREE_LIMIT: u64 = 8_000_000;

/// File descriptors below which the private node is warned about: at 1,024 new connections hang after 832.
pub const LOW_DESCRIPTORS: u64 = 4_096;

/// File descriptors that epmd and a private node get at most. epmd allocates memory for each that it may have, and
/// Erlang closes each of them before it runs another program: with the 1,073,741,816 that some containers have, this
/// takes gigabytes and minutes.
pub const MOST_DESCRIPTORS: u64 = 1_000_000;
