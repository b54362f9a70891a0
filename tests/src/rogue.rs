//! Who does harm at the broker: somebody with the password of a worker, and an agent that the master has let in.

use futures_util::StreamExt as _;
use lapin::options::{BasicConsumeOptions, BasicPublishOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use rouse_shared::limits::{LOG_CHUNK, MAX_ATTEMPTS, MAX_STEPS, MAX_TEXT};
use rouse_shared::message::{
    AttemptReport, Facts, Heartbeat, Hello, LogChunk, Proof, Report, StepReport, StepState, ToAgent, ToMaster, Vitals,
};
use rouse_shared::names::{AGENTS, agent_queue, control_key, log_key};
use rouse_shared::{AttemptId, BuildId, Nonce, SessionId, WorkerName, codec};
use std::sync::atomic::{AtomicU64, Ordering};

/// Number of those that this program has connected.
static RUNS: AtomicU64 = AtomicU64::new(0);

/// What anybody may do at the broker with the password of a worker.
pub struct Hostile {
    /// In whose name it acts.
    pub worker: WorkerName,
    /// Its connection.
    pub connection: Connection,
    /// Its channel.
    pub channel: Channel,
    nonce: Nonce,
    password: String,
}

impl Hostile {
    /// Connects in a worker's name. `url` is that of the broker, without user and password.
    ///
    /// # Errors
    /// If the broker does not let it in.
    ///
    /// # Panics
    /// If that is no name of a worker.
    pub async fn connect(url: &str, worker: &str, password: &str) -> lapin::Result<Self> {
        let url = url.replace("://", &format!("://{worker}:{password}@"));
        let connection = Connection::connect(&url, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        let run = RUNS.fetch_add(1, Ordering::Relaxed);
        let nonce = Nonce(format!("{:016x}{run:016x}", std::process::id()));
        let worker = worker.parse().expect("a name");
        Ok(Self { worker, connection, channel, nonce, password: password.to_owned() })
    }

    /// Publishes under a key, in its own name.
    ///
    /// # Errors
    /// If its connection is closed.
    pub async fn publish(&self, key: &str, body: &[u8]) -> lapin::Result<()> {
        let properties = BasicProperties::default().with_user_id(self.worker.as_str().into());
        let options = BasicPublishOptions::default();
        self.channel.basic_publish(AGENTS.into(), key.into(), options, body, properties).await?;
        Ok(())
    }

    /// Sends a message to the master.
    ///
    /// # Errors
    /// As [`Hostile::publish`].
    pub async fn say(&self, message: &ToMaster) -> lapin::Result<()> {
        self.publish(&control_key(&self.worker), &codec::encode(message)).await
    }

    /// A hello of this number.
    pub fn hello(&self, connection: u64) -> Hello {
        let nonce = self.nonce.clone();
        Hello {
            protocol: rouse_shared::limits::PROTOCOL,
            version: "0.1.0".to_owned(),
            connection,
            queue: agent_queue(&self.worker, &nonce, connection),
            identity: self.worker.to_string(),
            nonce,
            credential: self.password.clone(),
            master: None,
            attempts: Vec::new(),
            facts: Facts::default(),
            leaving: false,
            proof: Proof::default(),
        }
    }
}

/// An agent that has been let in, and whose session it is.
pub struct Rogue {
    hostile: Hostile,
    session: SessionId,
    /// The attempt that it has been given.
    pub attempt: AttemptId,
    revision: u32,
    connection: u64,
}

impl Rogue {
    /// Attaches as the worker, and takes a build, which `submit` submits.
    ///
    /// # Errors
    /// If its connection ends before that.
    pub async fn attach(hostile: Hostile, submit: impl FnOnce()) -> lapin::Result<Self> {
        let hello = hostile.hello(1);
        let queue = hello.queue.clone();
        let options = QueueDeclareOptions { exclusive: true, ..Default::default() };
        hostile.channel.queue_declare(queue.as_str().into(), options, FieldTable::default()).await?;
        let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
        let table = FieldTable::default();
        let mut answers = hostile.channel.basic_consume(queue.as_str().into(), "".into(), options, table).await?;
        hostile.say(&ToMaster::Hello(Box::new(hello))).await?;
        submit();
        let mut session = None;
        while let Some(delivery) = answers.next().await {
            match codec::decode::<ToAgent>(&delivery?.data) {
                Ok(ToAgent::Welcome(welcome)) => session = Some(welcome.session),
                Ok(ToAgent::RunAttempt(request)) => {
                    let Some(session) = session else { continue };
                    return Ok(Self { hostile, session, attempt: request.attempt, revision: 0, connection: 1 });
                }
                _ => {}
            }
        }
        Err(lapin::ErrorKind::InvalidConnectionState(lapin::ConnectionState::Closed).into())
    }

    /// The `n`th of what it may say at its largest, each of another kind.
    ///
    /// # Errors
    /// Once its connection is closed.
    pub async fn act(&mut self, n: u64) -> lapin::Result<()> {
        match n % 4 {
            0 => self.long_hello().await,
            1 => self.long_report().await,
            2 => self.heartbeat(n).await,
            _ => self.chunk(n / 4).await,
        }
    }

    /// A hello that lists as many attempts as it may. The master knows none of them.
    ///
    /// # Errors
    /// Once its connection is closed.
    pub async fn long_hello(&mut self) -> lapin::Result<()> {
        self.connection += 1;
        let mut hello = self.hostile.hello(self.connection);
        let unknown = |n: u64| AttemptId { build: BuildId(1 << 40 | n), number: 1 };
        let claim = |n| AttemptReport { attempt: unknown(n), revision: 1, steps: Vec::new(), outcome: None };
        hello.attempts = (0..MAX_ATTEMPTS as u64).map(claim).collect();
        self.hostile.say(&ToMaster::Hello(Box::new(hello))).await
    }

    /// A report of as many steps as a build may have, each with a text.
    ///
    /// # Errors
    /// Once its connection is closed.
    pub async fn long_report(&mut self) -> lapin::Result<()> {
        self.revision += 1;
        let state = StepState::NotStarted("\n".repeat(MAX_TEXT / 16));
        let step = StepReport { state, started_ms: 0, took_ms: 0, log_length: u64::MAX, log_cut: 0, usage: None };
        let steps = vec![step; MAX_STEPS];
        let attempt = AttemptReport { attempt: self.attempt, revision: self.revision, steps, outcome: None };
        let session = self.session.clone();
        self.hostile.say(&ToMaster::Report(Box::new(Report { session, attempt }))).await
    }

    /// A heartbeat, with nonsense in it.
    ///
    /// # Errors
    /// Once its connection is closed.
    pub async fn heartbeat(&self, seq: u64) -> lapin::Result<()> {
        let vitals = Vitals { load: f32::NAN, ..Vitals::default() };
        self.hostile
            .say(&ToMaster::Heartbeat(Heartbeat { session: self.session.clone(), seq, vitals, unclean: None }))
            .await
    }

    /// The `n`th piece of an endless log.
    ///
    /// # Errors
    /// Once its connection is closed.
    pub async fn chunk(&self, n: u64) -> lapin::Result<()> {
        let (session, attempt, offset) = (self.session.clone(), self.attempt, n * LOG_CHUNK as u64);
        let chunk = LogChunk { session, attempt, step: 0, offset, bytes: vec![b'x'; LOG_CHUNK] };
        self.hostile.publish(&log_key(&self.hostile.worker), &codec::encode(&chunk)).await
    }
}
