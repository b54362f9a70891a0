//! Every limit of the master's communication with the broker, each with its reason.

use rouse_shared::limits::MAX_MESSAGE;
use std::time::Duration;

/// Control messages that are delivered and not yet acknowledged. With commits of 10 ms this still allows 25,000 per
/// second. Of the largest control messages this many take 64 MiB; larger messages are dropped as soon as they are read.
pub const CONTROL_PREFETCH: u16 = 256;

/// Log chunks delivered and not yet written: 64 of 64 KiB are 4 MiB.
pub const LOG_PREFETCH: u16 = 64;

/// Submitted builds delivered and not yet committed.
pub const BUILDS_PREFETCH: u16 = 200;

/// Events of the broker delivered and not yet seen.
pub const EVENTS_PREFETCH: u16 = 1_000;

/// Log bytes that wait in the broker. If there are more, agents get nacks and wait. So the broker's disk does not fill
/// while the master is away.
pub const LOG_QUEUE_BYTES: i64 = 256 << 20;

/// Control messages that wait in the broker while the master is away. The oldest, which matter least, are dropped
/// first.
pub const CONTROL_QUEUE_LENGTH: i64 = 200_000;

/// Bytes of control messages that wait in the broker, for the same reason as [`LOG_QUEUE_BYTES`].
pub const CONTROL_QUEUE_BYTES: i64 = 256 << 20;

/// Events of the broker that wait for the master. A lost one only delays something until a lease ends.
pub const EVENTS_QUEUE_LENGTH: i64 = 10_000;

/// How often the master looks for queues of a cluster that it does not read any more.
pub const UNREAD_QUEUES: Duration = Duration::from_secs(10);

/// Largest number of messages that wait to be sent.
pub const OUTBOUND_MESSAGES: usize = 8_192;

/// Largest number of messages, and of bytes, that wait to be sent to the agents of one worker, so that there is room for
/// those of the others.
pub const OUTBOUND_TO_ONE: (usize, usize) = (OUTBOUND_MESSAGES / 4, OUTBOUND_BYTES / 4);

/// Largest number of bytes that wait to be sent: room for a few of the largest messages.
pub const OUTBOUND_BYTES: usize = 64 << 20;

/// Largest number of messages that are passed to the socket at once.
pub const PUBLISH_BATCH: usize = 256;

/// Number of bytes at which such a batch is closed.
pub const PUBLISH_BATCH_BYTES: usize = 4 << 20;

/// Largest message that the private broker accepts, bytes: the limit of the wire, and room for properties.
pub const BROKER_MAX_MESSAGE: usize = MAX_MESSAGE + (64 << 10);

/// Number of connections whose user is remembered, to know which worker's connection has closed.
pub const KNOWN_CONNECTIONS: usize = 100_000;

/// Number of refusals and senders of dropped messages that are remembered, so that each is logged only once.
pub const REMEMBERED_LOG_LINES: usize = 1_000;

/// How long the private broker remembers an answer about an agent, which it needs several times for each connection. An
/// agent that is blocked can connect again for this long.
pub const AUTH_CACHE: Duration = Duration::from_secs(30);

/// Interval of AMQP heartbeats, seconds. A dead peer is noticed after about three of them.
pub const AMQP_HEARTBEAT: u16 = 10;
/// The same for the connections of a master that others stand by for. A stopped master keeps the queues until the broker
/// misses two of them, which is to be before its lease is over.
pub const SHARED_HEARTBEAT: u16 = 5;

/// Size of a frame, bytes. lapin keeps room for 64 frames in each direction of each connection, so with the usual 128
/// KiB an idle master would take tens of megabytes. Log throughput is the same from 8 KiB on.
pub const FRAME_MAX: u32 = 16 << 10;

/// When a worker is probed after one of its connections has closed: at once, and again later. The broker reports the
/// end of a connection before it has removed the connection's queue, and messages to the queue in between are lost
/// silently.
pub const CLOSED_PROBES: [Duration; 3] = [Duration::ZERO, Duration::from_millis(100), Duration::from_secs(2)];

/// Time limit for connecting to one broker and declaring everything there.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);

/// Time limit for TCP alone, unless the URL has another: enough for two lost packets.
pub const TCP_TIMEOUT: Duration = Duration::from_secs(5);

/// Time limit for the submission queue, and the pause before the next try: a quorum queue may wait for its quorum.
pub const BUILDS_TIMEOUT: Duration = Duration::from_secs(10);
/// See [`BUILDS_TIMEOUT`].
pub const BUILDS_RETRY: Duration = Duration::from_secs(5);

/// Interval at which the master checks whether the broker accepts messages. If it does not, agents may continue past
/// their lease, and the master must know long before that.
pub const ALARM_PROBE: Duration = Duration::from_secs(3);

/// Shortest and longest pause between tries to connect.
pub const RECONNECT: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// How long the core may take to decide whether a worker may connect. After that the broker is asked to try again.
pub const ADMISSION_TIMEOUT: Duration = Duration::from_secs(5);

/// Most connections to the server that the broker asks. RabbitMQ opens one for each question that it has at the same
/// time, of which there are thousands when all agents come back.
pub const AUTH_CONNECTIONS: usize = 4_096;

/// Largest body of a request from the broker, bytes.
pub const AUTH_BODY: usize = 64 << 10;

/// How long a private broker may take to start: 4 to 20 s, and much more on a loaded machine with many queues.
pub const NODE_READY: Duration = Duration::from_secs(180);

/// How long to wait for the port of a previous broker after its master was killed.
pub const PORT_PATIENCE: Duration = Duration::from_secs(5);

/// Time from the declaration of a quorum queue until its name is certainly on disk. RabbitMQ 3.10 writes it half a
/// second later. The queue of a broker that is killed before never finds its leader again.
pub const FIRST_FLUSH: Duration = Duration::from_secs(2);

/// Time between SIGTERM and SIGKILL for the private broker, which takes 1 to 6 s to end.
pub const NODE_STOP: Duration = Duration::from_secs(20);

/// Shortest and longest pause before a private node that died is started again.
pub const NODE_RESTART: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));

/// If a private broker was ready for this long, its next death counts as the first one.
pub const NODE_SETTLED: Duration = Duration::from_secs(60);

/// Free space of the disk below which a private broker accepts no messages, bytes. Its alarms come last: the master
/// takes no new builds, and then no logs, when there is still several times as much. Its memory has no such limit of
/// ours: the queues are bounded, and it may use most of the machine's.
pub const DISK_FREE_LIMIT: u64 = 8_000_000;

/// Number of file descriptors below which the master warns. With 1,024, new connections hang after 832.
pub const LOW_DESCRIPTORS: u64 = 4_096;

/// File descriptors that epmd and a private node get at most. epmd allocates memory for each that it may have, and
/// Erlang closes each of them before it runs another program: with the 1,073,741,816 that some containers have, this
/// takes gigabytes and minutes.
pub const MOST_DESCRIPTORS: u64 = 1_000_000;
