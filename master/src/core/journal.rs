//! The journal of operations: what people have done with workers, hosts, builds and the master, and who it was.
//!
//! An entry is committed in the same transaction as what it is about. The ledger keeps the newest [`KEPT`] of them.

use super::Core;
use super::audit::AuditMode;
use super::event::{Command, Effect, Operation, Reply, RequestId};
use super::record::Record;
use rouse_shared::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Entries that the ledger keeps. With some hundred bytes each, they take a few megabytes.
pub const KEPT: u64 = 10_000;

/// Who has requested something. Two are the same only if the kind is the same too: a user of the machine is not the
/// token with this name.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Principal {
    /// The name, for people.
    pub name: String,
    /// Where the name comes from.
    pub kind: PrincipalKind,
}

/// Where the name of somebody comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum PrincipalKind {
    /// It is the name of a token in the configuration, or `admin` for the master's own token.
    Token,
    /// It is a user of the master's machine, who came through the socket of the commands.
    Local,
    /// A trusted proxy has sent it.
    Proxy,
    /// It is the user of the broker who has put a build into the submission queue.
    Queue,
    /// It is a signal to the process of the master.
    Signal,
}

/// Who requests something, and what is known of the request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Caller {
    /// Who.
    pub principal: Principal,
    /// The address that the request came from, or what it came through.
    pub from: String,
    /// Why, if the caller has said it.
    pub note: Option<String>,
}

impl Caller {
    /// Whoever has sent a signal to the process of the master. The kernel does not say who it was.
    pub fn signal(name: &str) -> Self {
        let principal = Principal { name: name.to_owned(), kind: PrincipalKind::Signal };
        Self { principal, from: "signal".to_owned(), note: None }
    }
}

/// What can be done, as far as the journal has it. Submissions are not in it, because a build has its submitter.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// A worker gets no new builds.
    Pause,
    /// A worker is taken back into use.
    Resume,
    /// A worker is paused, and its host is terminated.
    Drain,
    /// A host is terminated.
    Terminate,
    /// A host is given up.
    ForgetHost,
    /// A place is given up, with its hosts.
    ForgetPlace,
    /// A build is cancelled.
    Cancel,
    /// An audit fixes the differences that it finds.
    AuditFix,
    /// An audit also terminates foreign machines.
    AuditAdopt,
    /// The master's own token is replaced.
    RotateToken,
    /// The configuration is read again.
    Reload,
}

impl Action {
    /// As it is written in listings.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Drain => "drain",
            Self::Terminate => "terminate",
            Self::ForgetHost => "forget-host",
            Self::ForgetPlace => "forget-place",
            Self::Cancel => "cancel",
            Self::AuditFix => "audit-fix",
            Self::AuditAdopt => "audit-adopt",
            Self::RotateToken => "rotate-token",
            Self::Reload => "reload",
        }
    }
}

/// One entry.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// Its number, which grows.
    pub id: u64,
    /// When.
    pub at: Timestamp,
    /// What.
    pub action: Action,
    /// The worker, host, place or build; absent if it concerns the master.
    pub target: Option<String>,
    /// Who.
    pub principal: Principal,
    /// From where.
    pub from: String,
    /// Why, if the caller has said it.
    pub note: Option<String>,
}

/// Selects entries.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Filter {
    /// Only those of this time or later.
    pub since: Option<Timestamp>,
    /// Only those that are older than this one.
    pub before: Option<u64>,
    /// Only those about this worker, host, place or build.
    pub target: Option<String>,
    /// At most so many, the newest.
    pub limit: usize,
}

/// What a command is in the journal, and what it is about; nothing if it changes nothing, or is a submission.
fn of(command: &Command) -> Option<(Action, Option<String>)> {
    Some(match command {
        Command::Submit { .. } | Command::Audit(AuditMode::Look) => return None,
        Command::CancelBuild(build) => (Action::Cancel, Some(build.to_string())),
        Command::Operate { worker, operation } => {
            let action = match operation {
                Operation::Pause => Action::Pause,
                Operation::Resume => Action::Resume,
                Operation::Drain => Action::Drain,
            };
            (action, Some(worker.to_string()))
        }
        Command::TerminateHost(host) => (Action::Terminate, Some(host.to_string())),
        Command::ForgetHost(host) => (Action::ForgetHost, Some(host.to_string())),
        Command::ForgetPlace(place) => (Action::ForgetPlace, Some(place.clone())),
        Command::Audit(AuditMode::Fix) => (Action::AuditFix, None),
        Command::Audit(AuditMode::Adopt) => (Action::AuditAdopt, None),
        Command::Record(action) => (*action, None),
    })
}

impl Core {
    /// Carries a command out, and writes it into the journal unless it is refused.
    pub(super) fn on_command(&mut self, now: Timestamp, request: RequestId, by: Caller, command: Command) {
        let entry = of(&command);
        let before = self.out.len();
        match command {
            Command::Submit { spec, message_id } => {
                self.on_submit(now, request, spec, message_id, by.principal.clone())
            }
            Command::CancelBuild(build) => self.on_cancel(now, request, build),
            Command::Operate { worker, operation } => self.on_operate(now, request, &worker, operation),
            Command::TerminateHost(host) => self.on_operate_host(now, request, &host),
            Command::ForgetHost(host) => self.on_forget_host(now, request, &host),
            Command::ForgetPlace(place) => self.on_forget_place(now, request, &place),
            Command::Audit(mode) => self.on_audit(now, request, mode),
            Command::Record(_) => self.reply(request, Reply::Done),
        }
        let refused =
            self.out.iter().skip(before).any(|effect| {
                matches!(effect, Effect::Reply { reply: Reply::NotFound(_) | Reply::Refused { .. }, .. })
            });
        if let Some((action, target)) = entry.filter(|_| !refused) {
            self.last_entry += 1;
            let Caller { principal, from, note } = by;
            let entry = Entry { id: self.last_entry, at: now, action, target, principal, from, note };
            self.out.push(Effect::Save(Record::Entry(entry)));
        }
    }
}
