//! Every metric: its name, type, labels and meaning. docs/metrics.md is made from this table.

/// The types of metrics.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Only grows, from zero when the master starts. Its name ends with `_total`.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts values by size. Its series end with `_bucket`, `_sum` and `_count`.
    Histogram,
}

impl Kind {
    /// As `/metrics` has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// One metric.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Description {
    /// Its full name.
    pub name: &'static str,
    /// Its type.
    pub kind: Kind,
    /// Its labels.
    pub labels: &'static [&'static str],
    /// What it means, in sentences.
    pub help: &'static str,
}

const fn metric(name: &'static str, kind: Kind, labels: &'static [&'static str], help: &'static str) -> Description {
    Description { name, kind, labels, help }
}

use Kind::{Counter, Gauge, Histogram};

/// All of them.
#[rustfmt::skip]
pub const ALL: &[Description] = &[
    metric("rouse_info", Gauge, &["version"], "The version of the master."),
    metric("rouse_broker_up", Gauge, &[], "Whether the master is connected to the broker."),
    metric("rouse_broker_blocked", Gauge, &[], "Whether the broker accepts no messages, because it has too little memory or disk."),
    metric("rouse_builds", Gauge, &["state"], "Builds by state."),
    metric("rouse_workers", Gauge, &["state"], "Workers by state."),
    metric("rouse_hosts", Gauge, &["state"], "Hosts by state."),
    metric("rouse_desired_builds", Gauge, &[], "Builds that have not ended. All of them would run if there were enough capacity."),
    metric("rouse_capacity_builds", Gauge, &["template"], "Builds that the workers of the template may run at the same time, if all of them are awake. A worker without max_builds counts as one."),
    metric("rouse_idle_workers", Gauge, &["template"], "Idle workers of the template."),
    metric("rouse_oldest_queued_seconds", Gauge, &[], "How long the build that has waited longest has been queued; 0 if none is."),
    metric("rouse_build_wait_seconds", Histogram, &["template"], "Time from being queued until an agent reports that the build runs, by the template that runs it. Again for each further attempt."),
    metric("rouse_build_duration_seconds", Histogram, &["outcome", "template"], "Time from the start of the last attempt until the end of the build, if the build was started."),
    metric("rouse_builds_ended_total", Counter, &["outcome", "template"], "Builds that have ended, by the template of the last attempt. The template is empty for builds that no worker was assigned to."),
    metric("rouse_builds_deleted_total", Counter, &[], "Ended builds that retention has deleted."),
    metric("rouse_build_logs_deleted_total", Counter, &[], "Ended builds whose logs retention has deleted."),
    metric("rouse_host_starts_total", Counter, &["provider", "template"], "Hosts that were ordered. Resumed hosts are not counted."),
    metric("rouse_host_start_failures_total", Counter, &["place", "template", "kind"], "Hosts that were ordered or resumed and never attached, by kind of failure."),
    metric("rouse_host_phase_seconds", Histogram, &["provider", "template", "phase"], "Time that a host has spent in a phase of its life. It is observed when the phase ends."),
    metric("rouse_provider_call_seconds", Histogram, &["provider", "call", "outcome"], "Duration of the calls to the provider, by outcome."),
    metric("rouse_spent_usd_total", Counter, &["provider", "template", "market"], "What hosts with a known price have cost, USD. The market is spot or on-demand."),
    metric("rouse_place_pausing", Gauge, &["place"], "Whether the place starts no hosts for now, by place."),
    metric("rouse_leases_expired_total", Counter, &[], "Leases that ended because nothing was heard from the agent."),
    metric("rouse_refusals_total", Counter, &["at"], "Agents that were refused: at their connection or at their hello."),
    metric("rouse_orphans", Gauge, &[], "Machines with the master's name and id that are not in the ledger."),
    metric("rouse_lingering_machines", Gauge, &[], "Hosts and orphans that are still there 7 minutes after the master first asked for their termination."),
    metric("rouse_foreign_machines", Gauge, &[], "Machines with the master's name and another id."),
    metric("rouse_loop_turn_seconds", Histogram, &[], "Duration of one turn of the master's loop without its commit."),
    metric("rouse_commit_seconds", Histogram, &[], "Duration of the commits to the ledger, including repeated tries."),
    metric("rouse_illegal_events_total", Counter, &[], "Events that cannot happen in the state of their host. Each one is a bug in rouse."),
    metric("rouse_mails_waiting", Gauge, &[], "Mails that the relay has not yet accepted for every recipient."),
    metric("rouse_mails_sent_total", Counter, &[], "Mails that the relay has accepted."),
    metric("rouse_mail_tries_failed_total", Counter, &[], "Tries after which a mail still had recipients to wait for."),
    metric("rouse_mail_recipients_given_up_total", Counter, &[], "Recipients for whom the master has given up a mail."),
    metric("rouse_blob_store_down", Gauge, &[], "Whether the last upload of logs has failed."),
    metric("rouse_log_uploads_waiting", Gauge, &[], "Ended builds whose logs are not in the blob store yet."),
    metric("rouse_log_uploads_waiting_bytes", Gauge, &[], "Bytes of the logs that wait to be uploaded."),
    metric("rouse_log_uploads_total", Counter, &[], "Ended builds whose logs were uploaded."),
    metric("rouse_log_uploads_failed_total", Counter, &[], "Tries to upload the logs of a build that failed."),
    metric("rouse_log_chunks_unexpected_total", Counter, &[], "Log chunks that belong to no running attempt."),
    metric("rouse_messages_malformed_total", Counter, &[], "Messages that were dropped because they are malformed or of an unknown kind."),
    metric("rouse_messages_blocked_total", Counter, &[], "Messages that were dropped because their sender is blocked after it has sent too much."),
    metric("rouse_messages_unsent_total", Counter, &[], "Messages that could not be passed to the broker and were dropped."),
];

/// The description of a metric.
///
/// # Panics
/// If the table does not have it.
pub fn of(name: &str) -> &'static Description {
    ALL.iter().find(|metric| metric.name == name).unwrap_or_else(|| panic!("the table of metrics lacks {name}"))
}
