//! The agent's one loop: events to the core, effects to the link, the runner, the logs and the disk.

mod dead_man;
mod disk_mark;
mod perform;
mod power;
mod session_file;
mod workdir;

use crate::config::AgentConfig;
use crate::core::{Core, Event, Level, Settings};
use crate::identity::{self, Identity};
use crate::link::{LinkEvent, Target};
use crate::logs::{LogSent, Logs};
use crate::network::Changes;
use crate::runner::{Runner, StepEvent, Update, users, wait_for_leftovers};
use crate::{clock, log, notices, vitals};
use dead_man::DeadMan;
use perform::Performer;
use rouse_shared::error::Chain;
use rouse_shared::message::CloudNotice;
use rouse_shared::{Nonce, Timestamp};
use session_file::SessionFile;
use std::path::{Path, PathBuf};
use std::time::Duration;
use sysinfo::System;
use tokio::sync::mpsc;
use workdir::WorkDir;

/// Events of links and of the log sender that wait for the loop.
const QUEUE: usize = 1_024;
/// Between looks whether an earlier life's processes are gone.
const LEFTOVERS: Duration = Duration::from_secs(5);
/// Between tries to begin, where the agent may not simply give up.
const BEGIN_AGAIN: Duration = Duration::from_secs(5);
/// Shorter sleep is none: the two clocks are read one after the other.
const WORTH_TELLING: Duration = Duration::from_secs(1);

/// Why the agent could not begin, in words that stand alone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StartError(pub String);

/// How an agent has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// It is not to be started again.
    ForGood,
    /// Its program is to begin anew, as after a boot of the machine.
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

/// Runs an agent until it ends; each message of `terminate` is one SIGTERM. `program` is this crate's own program, which
/// the runner starts anew as the parent of steps.
///
/// # Errors
/// Where it cannot begin: no identity, no directory to work in, no runner.
pub async fn run(
    config: AgentConfig,
    program: PathBuf,
    mut terminate: mpsc::Receiver<()>,
) -> Result<Ended, StartError> {
    let (started, slept, awake) = (clock::now(), clock::slept(), clock::awake());
    // Before anything else, so that nothing that hangs or fails can come before it.
    let dead_man = config.latent.then(|| {
        // That there is no directory for it is said by what needs it more.
        drop(WorkDir::make_lock_file(&config.work_dir));
        DeadMan::arm(&config.work_dir, awake)
    });
    let began = match &dead_man {
        Some(dead_man) => dead_man.began().map(|began| started - awake.since(began)),
        None => Some(started),
    };
    // A machine that is to be switched off when nobody wants it must not stay on because its agent cannot begin.
    let stays_on = config.latent && !config.power_off_command.is_empty();
    let beginning = async {
        loop {
            match begin(&config, &program, began.unwrap_or(started), began.is_some(), slept).await {
                Err(error) if stays_on => log::line(Level::Error, &format!("{}; trying again", error.0)),
                begun => return begun,
            }
            tokio::time::sleep(BEGIN_AGAIN).await;
        }
    };
    // The timer of a host that nobody calls covers this as well: a host may never get a name.
    let patience = match began {
        Some(began) if config.latent => (began + config.power_off_after).since(started),
        Some(_) | None => Duration::MAX,
    };
    let begun = tokio::select! {
        begun = tokio::time::timeout(patience, beginning) => begun,
        _ = terminate.recv() => return Ok(Ended::ForGood),
    };
    let Ok(begun) = begun else {
        log::line(Level::Error, "this host's agent could not begin in time: powering off");
        power::off(&config.power_off_command, &mut terminate).await;
        return Ok(Ended::ForGood);
    };
    Ok(begun?.live(&config, dead_man, terminate).await)
}

/// An agent that knows who it is.
struct Agent {
    core: Core,
    performer: Performer,
    links: mpsc::Receiver<(u64, LinkEvent)>,
    logs: mpsc::Receiver<LogSent>,
    steps: mpsc::Receiver<Update>,
    notices: mpsc::Receiver<CloudNotice>,
    network: Changes,
    /// What the core was told of the machine's sleep, since the boot.
    slept: Duration,
}

async fn begin(
    config: &AgentConfig,
    program: &Path,
    started: Timestamp,
    armed: bool,
    slept: Duration,
) -> Result<Agent, StartError> {
    let lock_file = WorkDir::lock_file(&config.work_dir);
    WorkDir::make_lock_file(&config.work_dir)
        .map_err(|e| StartError(format!("failed to make {}: {e}", lock_file.display())))?;
    if let Some(user) = &config.run_as {
        // Else every build that is given to this agent would be lost at once.
        users::usable(user).map_err(|why| StartError(format!("failed to use run_as: {why}")))?;
    }
    reap_leftovers(&lock_file).await?;
    // Beside the loop: what an earlier life has left may take long to remove, and the timers run meanwhile.
    let root = config.work_dir.clone();
    let work = tokio::task::spawn_blocking(move || WorkDir::open(&root)).await;
    let work = work
        .map_err(|e| StartError(format!("failed to open the work directory: {e}")))?
        .map_err(|why| StartError(format!("failed to {why}")))?;

    // From before anything is tried that needs one.
    let network = Changes::listen();
    let identity = identity::identify(config).await.map_err(|e| StartError(Chain(&e).to_string()))?;
    let Identity { worker, host, mut proof, user, password, broker, ca, power_off_after, is_ec2 } = identity;
    proof.disk = disk_mark::keep(work.root(), &user);
    log::line(Level::Info, &format!("this is worker {worker} on host {host}"));
    let target =
        Target::parse(&broker, ca).map_err(|why| StartError(format!("the broker's address cannot be used: {why}")))?;
    let session_file = SessionFile::new(work.root(), worker.clone(), host.clone());
    let mut system = System::new().map_err(|e| StartError(format!("failed to read the state of the machine: {e}")))?;
    let settings = Settings {
        worker: worker.clone(),
        identity: host,
        proof,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        facts: vitals::facts(&mut system),
        password,
        secret: session_file.read(),
        latent: config.latent,
        started,
        power_off_after: if armed { power_off_after.unwrap_or(config.power_off_after) } else { Duration::MAX },
        run_as: config.run_as.clone(),
    };
    let core = Core::new(settings, nonce()?);
    let (runner, steps) = Runner::start(program, &lock_file)
        .map_err(|e| StartError(format!("failed to start {}: {e}", program.display())))?;
    let (link_events, links) = mpsc::channel(QUEUE);
    let (log_events, logs) = mpsc::channel(QUEUE);
    let (notices_in, notices) = mpsc::channel(1);
    if is_ec2 {
        tokio::spawn(notices::watch(config.metadata.clone(), notices_in));
    }
    let performer = Performer::new(
        Logs::start(&worker, log_events),
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
    Ok(Agent { core, performer, links, logs, steps, notices, network, slept })
}

/// Waits until nothing of an earlier life of this agent runs: only then is a hello true that lists nothing.
async fn reap_leftovers(lock_file: &Path) -> Result<(), StartError> {
    loop {
        let file = lock_file.to_owned();
        let gone = tokio::task::spawn_blocking(move || wait_for_leftovers(&file, LEFTOVERS)).await;
        match gone {
            Ok(Ok(true)) => return Ok(()),
            Ok(Ok(false)) => {
                log::line(
                    Level::Warn,
                    "waiting for an earlier agent, or steps of its, that still use the work directory",
                );
            }
            Ok(Err(error)) => return Err(StartError(format!("failed to lock {}: {error}", lock_file.display()))),
            Err(error) => return Err(StartError(format!("failed to wait for an earlier agent: {error}"))),
        }
    }
}

fn nonce() -> Result<Nonce, StartError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|e| StartError(format!("failed to draw random numbers: {e}")))?;
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

    /// One event, and those that its effects bring about at once.
    fn turn(&mut self, event: Event, more: &mut Vec<Event>) -> Option<perform::End> {
        let mut end = None;
        let slept = clock::slept();
        let mut next = Some(event);
        if let Some(more_sleep) = slept.checked_sub(self.slept).filter(|s| *s >= WORTH_TELLING) {
            self.slept = slept;
            more.extend(next.replace(Event::Slept(more_sleep)));
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
                // Timers of the runtime stand still while the machine sleeps, the core's clock does not: look again
                // now and then.
                Some(pause) => tokio::time::sleep(pause.min(Duration::from_secs(10))).await,
                None => std::future::pending().await,
            }
        };
        // In this order: what ends things before what goes on, and logs last, since they are the most.
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

    /// What an input is for the core, after the parts beside it have taken note.
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
                LinkEvent::Message(message) => Some(Event::FromMaster { connection, message }),
                LinkEvent::Garbage(why) => {
                    log::line(Level::Warn, &format!("dropping a message: {why}"));
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
                StepEvent::Ended { state, log_length, log_cut, took } => {
                    self.performer.output(attempt, step, log_length);
                    Some(Event::StepEnded { attempt, step, state, log_length, log_cut, took })
                }
            },
        }
    }
}
