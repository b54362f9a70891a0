//! Many workers in one process, for measuring the broker and the master: the agent's own core and link, and a runner
//! that runs nothing and reports success at once.
//!
//! `load-agent PREFIX COUNT WIDTH BROKER PASSWORD` runs the workers PREFIX1 to PREFIXCOUNT, with numbers padded to
//! WIDTH digits. It prints `attached SECONDS`, counted from its start, when all workers have been welcomed. If the link
//! of one is lost, it prints this again when all are attached again. When its standard input ends, its workers take
//! leave and it exits. `load-agent --raw COUNT URL` only connects, declares and consumes COUNT times, for a comparison
//! without a master.

use lapin::options::{BasicConsumeOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Connection, ConnectionProperties};
use rouse_agent::clock;
use rouse_agent::core::{Core, Effect, Event, RunStep, Settings};
use rouse_agent::link::{Link, LinkEvent, Login, Target};
use rouse_shared::message::{Facts, StepState, ToAgent};
use rouse_shared::{Nonce, Timestamp, WorkerName, codec};
use std::collections::VecDeque;
use std::io::Read as _;
use std::process::ExitCode;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// Descriptors that a connection takes: its socket, and that of what wakes it.
const DESCRIPTORS: u64 = 2;
/// Descriptors that the process takes besides.
const OWN_DESCRIPTORS: u64 = 64;

/// Events of one worker that wait for it.
const WAITING: usize = 64;

/// For all workers to take leave.
const LEAVING: Duration = Duration::from_secs(10);

/// Whether a worker is attached now.
struct Attached(bool);

fn main() -> ExitCode {
    let started = clock::now();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let result = match (runtime, arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice()) {
        (Ok(runtime), ["--raw", count, url]) => runtime.block_on(raw(started, count, url)),
        (Ok(runtime), [prefix, count, width, broker, password]) => {
            runtime.block_on(load(started, prefix, count, width, broker, password))
        }
        (Ok(_), _) => {
            Err("usage: load-agent PREFIX COUNT WIDTH BROKER PASSWORD | load-agent --raw COUNT URL".to_owned())
        }
        (Err(error), _) => Err(format!("cannot start its runtime: {error}")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("load-agent: {why}");
            ExitCode::from(2)
        }
    }
}

fn number(text: &str) -> Result<usize, String> {
    text.parse().map_err(|_| format!("{text:?} is not a number"))
}

/// Raises the limit of open files as far as so many connections need.
///
/// # Errors
/// If the hard limit is lower.
fn raise_limit(connections: usize) -> Result<(), String> {
    let need = connections as u64 * DESCRIPTORS + OWN_DESCRIPTORS;
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: getrlimit writes into the struct, and setrlimit reads it.
    let raised = unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
        limit.rlim_cur = limit.rlim_cur.max(need.min(limit.rlim_max));
        libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit)
    };
    if raised != 0 || limit.rlim_cur < need {
        let most = limit.rlim_max.saturating_sub(OWN_DESCRIPTORS) / DESCRIPTORS;
        return Err(format!(
            "{connections} connections need {need} open files, and the hard limit is {} (`ulimit -Hn`), which is enough \
             for {most}: start several load agents, each with some of the workers",
            limit.rlim_max
        ));
    }
    Ok(())
}

fn tell(started: Timestamp) {
    println!("attached {:.3}", clock::now().since(started).as_secs_f64());
}

/// Blocks until nobody writes to standard input any more.
async fn end_of_input() {
    let read = tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new()));
    // However it ends, there is nobody left to work for.
    drop(read.await);
}

async fn load(
    started: Timestamp,
    prefix: &str,
    count: &str,
    width: &str,
    broker: &str,
    password: &str,
) -> Result<(), String> {
    let (count, width) = (number(count)?, number(width)?);
    raise_limit(count)?;
    let (sender, mut attached) = mpsc::channel(WAITING);
    let (end, ending) = watch::channel(false);
    // Held by each worker and each link: closed when the last message has left.
    let (done, mut all_done) = mpsc::channel(1);
    for index in 1..=count {
        let worker: WorkerName = format!("{prefix}{index:0width$}").parse().map_err(|e| format!("{e}"))?;
        // One for each: it knows how patient the worker is.
        let target = Target::parse(broker, rouse_agent::tls::Trust::Authorities(None))?;
        let worker = Worker::new(worker, password, target, sender.clone(), done.clone());
        tokio::spawn(worker.run(ending.clone()));
    }
    drop((done, sender));
    let mut now = 0_usize;
    let ended = end_of_input();
    tokio::pin!(ended);
    loop {
        tokio::select! {
            Some(Attached(yes)) = attached.recv() => {
                now = if yes { now + 1 } else { now.saturating_sub(1) };
                if yes && now == count {
                    tell(started);
                }
            }
            () = &mut ended => break,
        }
    }
    end.send_replace(true);
    let leaving = async {
        // The workers tell that they are detached, and then that they are no more.
        while attached.recv().await.is_some() {}
        all_done.recv().await
    };
    tokio::time::timeout(LEAVING, leaving).await.map(drop).map_err(|_| "not every worker could take leave".to_owned())
}

async fn raw(started: Timestamp, count: &str, url: &str) -> Result<(), String> {
    let count = number(count)?;
    raise_limit(count)?;
    let (sender, mut connected) = mpsc::channel(WAITING);
    for index in 0..count {
        let (url, sender) = (format!("{url}?frame_max=8192&heartbeat=10"), sender.clone());
        tokio::spawn(async move {
            let made = raw_one(&url, index).await.map_err(|e| e.to_string());
            // The other side goes only when the process does.
            drop(sender.send(made).await);
        });
    }
    let mut kept = Vec::with_capacity(count);
    while kept.len() < count {
        match connected.recv().await {
            Some(made) => kept.push(made?),
            None => return Err("a connection was not reported".to_owned()),
        }
    }
    tell(started);
    end_of_input().await;
    Ok(())
}

async fn raw_one(url: &str, index: usize) -> lapin::Result<(Connection, Channel, lapin::Consumer)> {
    let connection = Connection::connect(url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    let exclusive = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
    let queue = format!("raw.{}.{index}", std::process::id());
    channel.queue_declare(queue.as_str().into(), exclusive, FieldTable::default()).await?;
    let options = BasicConsumeOptions { no_ack: true, exclusive: true, ..BasicConsumeOptions::default() };
    let consumer = channel.basic_consume(queue.as_str().into(), "".into(), options, FieldTable::default()).await?;
    Ok((connection, channel, consumer))
}

/// Both ends of what the links of a worker tell.
type Events = (mpsc::Sender<(u64, LinkEvent)>, mpsc::Receiver<(u64, LinkEvent)>);

/// One worker.
struct Worker {
    name: WorkerName,
    core: Core,
    target: Target,
    link: Option<(u64, Link)>,
    events: Events,
    done: mpsc::Sender<()>,
    sender: mpsc::Sender<Attached>,
    attached: bool,
    /// To end.
    asked: bool,
}

impl Worker {
    fn new(
        name: WorkerName,
        password: &str,
        target: Target,
        sender: mpsc::Sender<Attached>,
        done: mpsc::Sender<()>,
    ) -> Self {
        let settings = Settings {
            worker: name.clone(),
            identity: format!("load-{name}"),
            proof: Default::default(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            facts: Facts::default(),
            password: password.to_owned(),
            secret: None,
            latent: false,
            started: clock::now(),
            power_off_after: Duration::from_secs(3_600),
            run_as: None,
        };
        // Unlike any other worker's, and unlike any earlier life's.
        let nonce = Nonce(format!("{:016x}{:016x}", clock::now().0 ^ u64::from(std::process::id()) << 40, hash(&name)));
        let core = Core::new(settings, nonce);
        Self {
            name,
            core,
            target,
            link: None,
            events: mpsc::channel(WAITING),
            done,
            sender,
            attached: false,
            asked: false,
        }
    }

    async fn run(mut self, mut ending: watch::Receiver<bool>) {
        let mut waiting = VecDeque::from([Event::Start]);
        loop {
            while let Some(event) = waiting.pop_front() {
                for effect in self.core.handle(clock::now(), event) {
                    if !self.perform(effect, &mut waiting) {
                        return;
                    }
                }
            }
            let pause = self.core.next_wakeup().map_or(Duration::from_secs(10), |at| at.since(clock::now()));
            tokio::select! {
                Some((connection, event)) = self.events.1.recv() => {
                    waiting.extend(self.event(connection, event).await);
                }
                true = async { ending.wait_for(|end| *end).await.is_ok() }, if !self.asked => {
                    self.asked = true;
                    waiting.push_back(Event::Terminate);
                }
                () = tokio::time::sleep(pause) => waiting.push_back(Event::Tick),
            }
        }
    }

    async fn event(&mut self, connection: u64, event: LinkEvent) -> Option<Event> {
        match event {
            LinkEvent::Up { connection: _ } => Some(Event::LinkUp { connection }),
            LinkEvent::Message(message) => {
                if matches!(*message, ToAgent::Welcome(_)) {
                    self.set_attached(true).await;
                }
                Some(Event::FromMaster { connection, message })
            }
            LinkEvent::Blocked(why) => Some(Event::LinkBlocked { connection, why }),
            LinkEvent::Unblocked => Some(Event::LinkUnblocked { connection }),
            LinkEvent::Malformed(why) => {
                eprintln!("load-agent: {}: {why}", self.name);
                None
            }
            LinkEvent::Down { refused, why } => {
                if self.link.as_ref().is_some_and(|(number, _)| *number == connection) {
                    self.link = None;
                    self.set_attached(false).await;
                }
                Some(Event::LinkDown { connection, refused, why })
            }
        }
    }

    async fn set_attached(&mut self, yes: bool) {
        if self.attached != yes {
            self.attached = yes;
            // The other side goes only when the process does.
            drop(self.sender.send(Attached(yes)).await);
        }
    }

    /// False: it ends.
    fn perform(&mut self, effect: Effect, more: &mut VecDeque<Event>) -> bool {
        match effect {
            Effect::Connect { connection, queue, credential } => {
                let login = Login { worker: self.name.clone(), credential, connection, queue };
                let link = Link::open(self.target.clone(), login, self.events.0.clone(), self.done.clone());
                self.link = Some((connection, link));
            }
            Effect::Disconnect { connection } => {
                self.link.take_if(|(number, _)| *number == connection);
            }
            Effect::Send(message) => {
                if let Some((connection, link)) = &self.link
                    && !link.send(codec::encode(&*message))
                {
                    let why = "it takes no more messages".to_owned();
                    more.push_back(Event::LinkDown { connection: *connection, refused: false, why });
                    self.link = None;
                }
            }
            Effect::RunStep(step) => {
                let RunStep { attempt, step, .. } = *step;
                more.push_back(Event::StepStarted { attempt, step });
                let (state, took) = (StepState::Exited(0), Duration::ZERO);
                more.push_back(Event::StepEnded {
                    attempt,
                    step,
                    state,
                    log_length: 0,
                    log_cut: 0,
                    took,
                    usage: None,
                    unclean: false,
                });
            }
            // Every step has ended as soon as it began, and has printed nothing.
            Effect::StopAttempt(_)
            | Effect::KillAttempt(_)
            | Effect::SetDeadline(_)
            | Effect::StoreSecret(_)
            | Effect::ForgetSecret
            | Effect::RemoveAttempt(_)
            | Effect::SendLogFrom { .. } => {}
            Effect::PowerOff { why } | Effect::Exit { why } | Effect::Restart { why } => {
                if !self.asked {
                    eprintln!("load-agent: {} ends: {why}", self.name);
                }
                return false;
            }
            Effect::Log(level, text) => {
                if level >= rouse_agent::core::Level::Error {
                    eprintln!("load-agent: {}: {text}", self.name);
                }
            }
        }
        true
    }
}

fn hash(name: &WorkerName) -> u64 {
    name.as_str().bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3))
}
