//! The agent's event loop: it passes events to the core, and effects to the link, the runner, the logs and the disk.

mod dead_man;
mod disk_mark;
mod perform;
mod power;
mod remove_tree;
mod session_file;
mod workdir;

use crate::build_logs::{BuildLogs, LogSent};
use crate::config::AgentConfig;
use crate::core::{Core, Event, Level, Settings, words};
use crate::diagnostics::log;
use crate::identity::{self, Identity, IdentityError};
use crate::link::{LinkEvent, Target};
use crate::network::Changes;
use crate::runner::users::UserError;
use crate::runner::{Cgroups, Runner, StepEvent, Update, users, wait_for_leftovers};
use crate::{clock, notices, vitals};
use dead_man::DeadMan;
use perform::Performer;
use rouse_shared::error::Chain;
use rouse_shared::message::{CloudNotice, Facts};
use rouse_shared::{Nonce, Timestamp};
use session_file::SessionFile;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use sysinfo::System;
use thiserror::Error;
use tokio::sync::mpsc;
use tokio::task::JoinError;
use workdir::WorkDir;
pub use workdir::WorkDirError;

/// Capacity of the channels from the links and from the log sender.
const QUEUE: usize = 1_024;
/// Time between reports that processes of an earlier agent are still running.
const LEFTOVERS: Duration = Duration::from_secs(5);
/// Pause between attempts to start, if the agent may not give up.
const START_RETRY: Duration = Duration::from_secs(5);
/// Shortest suspension that is noticed: the two clocks are read one after the other.
const SHORTEST_SUSPENSION: Duration = Duration::from_secs(1);

/// Why the agent could not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// The async runtime cannot be created.
    #[error("the async runtime cannot be created")]
    Runtime(#[source] io::Error),
    /// SIGTERM and SIGINT cannot be handled.
    #[error("signals cannot be handled")]
    Signals(#[source] io::Error),
    /// The work directory cannot be used.
    #[error(transparent)]
    WorkDir(#[from] WorkDirError),
    /// Steps cannot run as the configured user.
    #[error("run_as cannot be used")]
    RunAs(#[source] UserError),
    /// The lock file cannot be locked.
    #[error("{} cannot be locked", .0.display())]
    Lock(PathBuf, #[source] io::Error),
    /// A blocking part of the start was aborted.
    #[error("a part of the start was aborted")]
    Aborted(#[from] JoinError),
    /// The agent has no identity.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The broker's address is invalid; why.
    #[error("the broker's address cannot be used: {0}")]
    Broker(String),
    /// The machine's memory and load cannot be read; why.
    #[error("the memory and load of this machine cannot be read: {0}")]
    Vitals(String),
    /// The kernel gives no random numbers; why.
    #[error("the kernel provides no random numbers: {0}")]
    Random(getrandom::Error),
    /// The zygote cannot be started from this program.
    #[error("{} cannot be started as the parent of steps", .0.display())]
    Runner(PathBuf, #[source] io::Error),
}

/// How an agent has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// It is not to be started again.
    ForGood,
    /// The program must be executed again, as after a boot of the machine.
    ToRestart,
}

/// What the loop waits for.
enum Input {
    Link(u64, LinkEvent),
    Log(LogSent),
    Step(Update),
    Notice(CloudNotice),
    Network,
    Terminate,
    Timer,
}

/// Runs an agent until it ends; each message of `terminate` is one SIGTERM. `program` is this crate's own program,
/// which the runner starts again as the parent of steps.
///
/// # Errors
/// If it cannot start, unless it must keep trying to power an unwanted host off in the end.
pub async fn run(
    config: AgentConfig,
    program: PathBuf,
    mut terminate: mpsc::Receiver<()>,
) -> Result<Ended, StartError> {
    let (started, suspended, running) = (clock::now(), clock::suspended(), clock::running());
    // Before anything else, because everything else may hang or fail.
    let dead_man = config.latent.then(|| {
        // If the directory cannot be created, `begin` reports it.
        drop(WorkDir::make_lock_file(&config.work_dir));
        DeadMan::arm(&config.work_dir, running)
    });
    let began = match &dead_man {
        Some(dead_man) => dead_man.began().map(|began| started - running.since(began)),
        None => Some(started),
    };
    // A machine that is to power itself off when nobody wants it must not stay on because its agent cannot start.
    let stays_on = config.latent && !config.power_off_command.is_empty();
    let beginning = async {
        loop {
            match begin(&config, &program, began.unwrap_or(started), began.is_some(), suspended).await {
                Err(error) if stays_on => {
                    log(Level::Error, &format!("cannot start: {}; retrying", Chain(&error)));
                }
                begun => return begun,
            }
            tokio::time::sleep(START_RETRY).await;
        }
    };
    // The timer of a host that no master accepts covers the start too: a host may never get a name.
    let patience = match began {
        Some(began) if config.latent => (began + config.power_off_after).since(started),
        Some(_) | None => Duration::MAX,
    };
    let begun = tokio::select! {
        begun = tokio::time::timeout(patience, beginning) => begun,
        _ = terminate.recv() => return Ok(Ended::ForGood),
    };
    let Ok(begun) = begun else {
        log(Level::Error, "the agent could not start in time: powering off");
        power::off(&config.power_off_command, &mut terminate).await;
        return Ok(Ended::ForGood);
    };
    Ok(begun?.live(&config, dead_man, terminate).await)
}

/// An agent that has an identity.
struct Agent {
    core: Core,
    performer: Performer,
    links: mpsc::Receiver<(u64, LinkEvent)>,
    logs: mpsc::Receiver<LogSent>,
    steps: mpsc::Receiver<Update>,
    notices: mpsc::Receiver<CloudNotice>,
    network: Changes,
    /// How long the machine has been suspended since it booted, as far as the core knows.
    suspended: Duration,
}

async fn begin(
    config: &AgentConfig,
    program: &Path,
    started: Timestamp,
    armed: bool,
    suspended: Duration,
) -> Result<Agent, StartError> {
    let lock_file = WorkDir::lock_file(&config.work_dir);
    WorkDir::make_lock_file(&config.work_dir)?;
    if let Some(user) = &config.run_as {
        // Otherwise every build that is given to this agent would be lost at once.
        users::usable(user).map_err(StartError::RunAs)?;
    }
    wait_until_leftovers_end(&lock_file).await?;
    // Before anything is started, and before the files of what is ended by this are removed.
    let cgroups = tokio::task::spawn_blocking(Cgroups::take).await?;
    // On another thread: the files of an earlier agent may take long to remove, and the timers run meanwhile.
    let root = config.work_dir.clone();
    let work = tokio::task::spawn_blocking(move || WorkDir::open(&root)).await??;

    // Before anything needs a network, so that no change is missed.
    let network = Changes::listen();
    let identity = identity::identify(config).await?;
    let Identity { worker, host, mut proof, user, password, broker, trust, power_off_after, is_ec2 } = identity;
    proof.disk = disk_mark::keep(work.root(), &user);
    log(Level::Info, &format!("this is worker {worker} on host {host}"));
    let target = Target::parse(&broker, trust).map_err(|why| StartError::Broker(why.to_string()))?;
    let session_file = SessionFile::new(work.root(), worker.clone(), host.clone());
    let mut system = System::new();
    let settings = Settings {
        worker: worker.clone(),
        identity: host,
        proof,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        facts: Facts {
            cgroups: cgroups.as_ref().ok().map(Cgroups::enforced),
            no_cgroups: cgroups.as_ref().err().map(|why| words::cut_word(Chain(why).to_string())),
            needs_run_as: config.run_as.is_none() && rustix::process::geteuid().is_root(),
            ..vitals::facts(&mut system)
        },
        password,
        secret: session_file.read(),
        latent: config.latent,
        started,
        power_off_after: if armed { power_off_after.unwrap_or(config.power_off_after) } else { Duration::MAX },
        run_as: config.run_as.clone(),
    };
    let core = Core::new(settings, nonce()?);
    match &cgroups {
        Ok(cgroups) => log(Level::Info, &format!("each step gets {cgroups}")),
        Err(why) => {
            log(Level::Warn, &format!("steps have no cgroups, so their limits are not enforced: {}", Chain(why)))
        }
    }
    let (runner, steps) = Runner::start(program, &lock_file, cgroups.as_ref().ok())
        .map_err(|error| StartError::Runner(program.to_owned(), error))?;
    let (link_events, links) = mpsc::channel(QUEUE);
    let (log_events, logs) = mpsc::channel(QUEUE);
    let (notices_in, notices) = mpsc::channel(1);
    if is_ec2 {
        tokio::spawn(notices::watch(config.metadata.clone(), notices_in));
    }
    let performer = Performer::new(
        BuildLogs::start(&worker, log_events),
        perform::Parts {
            worker,
            target,
            runner,
            work,
            session_file,
            system,
            link_events,
            max_log: config.max_log_size,
        },
    );
    Ok(Agent { core, performer, links, logs, steps, notices, network, suspended })
}

/// Waits until nothing that an earlier agent has started runs: only then may a hello list no attempts.
async fn wait_until_leftovers_end(lock_file: &Path) -> Result<(), StartError> {
    loop {
        let file = lock_file.to_owned();
        let gone = tokio::task::spawn_blocking(move || wait_for_leftovers(&file, LEFTOVERS)).await;
        match gone {
            Ok(Ok(true)) => return Ok(()),
            Ok(Ok(false)) => {
                log(Level::Warn, "waiting for an earlier agent or its steps, which still use the work directory");
            }
            Ok(Err(error)) => return Err(StartError::Lock(lock_file.to_owned(), error)),
            Err(error) => return Err(error.into()),
        }
    }
}

fn nonce() -> Result<Nonce, StartError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(StartError::Random)?;
    Ok(Nonce(hex::encode(bytes)))
}

impl Agent {
    async fn live(
        mut self,
        config: &AgentConfig,
        mut dead_man: Option<DeadMan>,
        mut terminate: mpsc::Receiver<()>,
    ) -> Ended {
        let mut more = Vec::new();
        let mut end = self.turn(Event::Start, &mut more);
        while end.is_none() {
            let input = self.next(&mut terminate).await;
            if let Some(event) = self.event(input) {
                end = self.turn(event, &mut more);
                if let (Some(dead_man), Some(standing)) = (&mut dead_man, self.core.standing()) {
                    dead_man.attached(standing);
                }
            }
        }
        self.performer.close().await;
        match end {
            Some(perform::End::PowerOff) => power::off(&config.power_off_command, &mut terminate).await,
            Some(perform::End::Restart) => return Ended::ToRestart,
            Some(perform::End::Exit) | None => {}
        }
        Ended::ForGood
    }

    /// Handles one event, and those that its effects cause at once.
    fn turn(&mut self, event: Event, more: &mut Vec<Event>) -> Option<perform::End> {
        let mut end = None;
        let suspended = clock::suspended();
        let mut next = Some(event);
        if let Some(suspension) = suspended.checked_sub(self.suspended).filter(|s| *s >= SHORTEST_SUSPENSION) {
            self.suspended = suspended;
            more.extend(next.replace(Event::Resumed(suspension)));
        }
        while let Some(event) = next {
            for effect in self.core.handle(clock::now(), event) {
                end = end.or(self.performer.perform(effect, more));
            }
            next = (!more.is_empty()).then(|| more.remove(0));
        }
        end
    }

    async fn next(&mut self, terminate: &mut mpsc::Receiver<()>) -> Input {
        let wakeup = self.core.next_wakeup().map(|at| at.since(clock::now()));
        let timer = async {
            match wakeup {
                // The runtime's timers stand still while the machine is suspended, and the core's clock does not. So
                // they are set again every few seconds.
                Some(pause) => tokio::time::sleep(pause.min(Duration::from_secs(10))).await,
                None => std::future::pending().await,
            }
        };
        // In this order: what ends the agent or a link first, and the many confirmations of logs last.
        tokio::select! {
            biased;
            Some(()) = terminate.recv() => Input::Terminate,
            Some((number, event)) = self.links.recv() => Input::Link(number, event),
            Some(notice) = self.notices.recv() => Input::Notice(notice),
            Some(update) = self.steps.recv() => Input::Step(update),
            () = timer => Input::Timer,
            () = self.network.next() => Input::Network,
            Some(sent) = self.logs.recv() => Input::Log(sent),
        }
    }

    /// Updates the log sender and the performer, and returns the event for the core if there is one.
    fn event(&mut self, input: Input) -> Option<Event> {
        match input {
            Input::Terminate => Some(Event::Terminate),
            Input::Timer => Some(Event::Tick),
            Input::Notice(notice) => Some(Event::Notice(notice)),
            Input::Network => Some(Event::NetworkChanged),
            Input::Log(LogSent { attempt, step, offset }) => Some(Event::LogSent { attempt, step, offset }),
            Input::Link(connection, event) => match event {
                LinkEvent::Up { connection: amqp } => {
                    self.performer.link_is_up(connection, amqp);
                    Some(Event::LinkUp { connection })
                }
                LinkEvent::Blocked(why) => Some(Event::LinkBlocked { connection, why }),
                LinkEvent::Unblocked => Some(Event::LinkUnblocked { connection }),
                LinkEvent::Message(message) => Some(Event::FromMaster { connection, message }),
                LinkEvent::Malformed(why) => {
                    log(Level::Warn, &format!("ignoring a message: {why}"));
                    None
                }
                LinkEvent::Down { refused, why } => {
                    self.performer.link_is_down(connection);
                    Some(Event::LinkDown { connection, refused, why })
                }
            },
            Input::Step(Update { attempt, step, event }) => match event {
                StepEvent::Started => Some(Event::StepStarted { attempt, step }),
                StepEvent::Output { length } => {
                    self.performer.output(attempt, step, length);
                    None
                }
                StepEvent::Ended { state, log_length, log_cut, took, usage, unclean } => {
                    self.performer.output(attempt, step, log_length);
                    Some(Event::StepEnded { attempt, step, state, log_length, log_cut, took, usage, unclean })
                }
            },
        }
    }
}
