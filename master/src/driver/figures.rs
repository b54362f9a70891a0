//! Collects the figures for `/metrics` from the state of the core and of the adapters.

use super::event_loop::EventLoop;
use crate::clock;
use crate::core::build::BuildState;
use crate::core::event::Change;
use crate::web::{Figure, Metrics};
use rouse_shared::error::Chain;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use tracing::error;

fn figure(name: &'static str, value: u64) -> Figure {
    Figure { name, value: value as f64 }
}

impl EventLoop {
    /// Reads from the ledger how many builds have ended. Later ends are counted as they are published.
    pub(super) fn load_ended(&mut self) {
        match self.store.count_ended() {
            Ok(counts) => self.ended = counts,
            Err(error) => error!("{}", Chain(&error)),
        }
    }

    /// Counts the build if the change is the end of one.
    pub(super) fn count_ended(&mut self, change: &Change) {
        if let Some(state) = ended(change) {
            *self.ended.entry(state).or_default() += 1;
        }
    }

    pub(super) fn metrics(&mut self) -> Metrics {
        let now = clock::now();
        let meters = self.meters.text(self.core.tally(), self.core.costs(now));
        let core = &self.core;
        let counts = core.counts();
        let desired = counts.builds.values().sum();
        let oldest = counts.oldest_queued.map_or(0.0, |since| now.since(since).as_secs_f64());
        let mut builds = counts.builds;
        let deleted = core.deleted();
        let left = |state, count: &u64| count.saturating_sub(deleted.builds.get(state).copied().unwrap_or(0));
        builds.extend(self.ended.iter().map(|(state, count)| (*state, left(state, count))));
        let (orphans, foreign_machines) = core.foreign_counts();
        let (waiting, mails) = core.mail_count();
        let mut figures = vec![
            figure("rouse_desired_builds", desired),
            Figure { name: "rouse_oldest_queued_seconds", value: oldest },
            figure("rouse_leases_expired_total", core.tally().expired_leases),
            figure("rouse_broker_up", u64::from(self.executor.link_is_up())),
            figure("rouse_broker_blocked", u64::from(core.alarm().is_some())),
            figure("rouse_builds_deleted_total", deleted.builds.values().sum()),
            figure("rouse_build_logs_deleted_total", deleted.logs),
            figure("rouse_log_chunks_unexpected_total", self.executor.logs.unexpected()),
            figure("rouse_orphans", orphans as u64),
            figure("rouse_lingering_machines", core.lingering_count() as u64),
            figure("rouse_foreign_machines", foreign_machines as u64),
            figure("rouse_illegal_events_total", core.illegal_events()),
            figure("rouse_mails_waiting", waiting as u64),
            figure("rouse_mails_sent_total", mails.sent),
            figure("rouse_mail_tries_failed_total", mails.failed),
            figure("rouse_mail_recipients_given_up_total", mails.given_up),
        ];
        figures.extend(self.link_figures());
        figures.extend(self.upload_figures());
        let places = core.place_views();
        let (connections, hellos) = self.executor.refusals.counts();
        let refusals = BTreeMap::from([("connection", connections), ("hello", hellos)]);
        let mut capacity = BTreeMap::new();
        let mut idle = BTreeMap::new();
        for worker in self.config.plan.workers.values() {
            *capacity.entry(worker.template.clone()).or_default() += u64::from(worker.max_builds.unwrap_or(1));
            idle.insert(worker.template.clone(), counts.idle.get(&worker.template).copied().unwrap_or(0));
        }
        let (workers, hosts) = (counts.workers, counts.hosts);
        Metrics { builds, workers, hosts, places, refusals, capacity, idle, figures, meters }
    }

    fn upload_figures(&self) -> Vec<Figure> {
        let Some(uploads) = self.executor.uploads.figures() else { return Vec::new() };
        vec![
            figure("rouse_blob_store_down", u64::from(uploads.down)),
            figure("rouse_log_uploads_waiting", uploads.waiting),
            figure("rouse_log_uploads_waiting_bytes", uploads.bytes),
            figure("rouse_log_uploads_total", uploads.uploaded),
            figure("rouse_log_uploads_failed_total", uploads.failed),
        ]
    }

    fn link_figures(&self) -> Vec<Figure> {
        let Some(link) = self.executor.link.borrow().clone() else { return Vec::new() };
        let dropped = link.dropped();
        vec![
            figure("rouse_messages_malformed_total", dropped.malformed.load(Ordering::Relaxed)),
            figure("rouse_messages_blocked_total", dropped.blocked.load(Ordering::Relaxed)),
            figure("rouse_messages_unsent_total", link.unsent()),
        ]
    }
}

/// The state of the build whose end this change is.
fn ended(change: &Change) -> Option<BuildState> {
    match change {
        Change::Build { state, .. } if state.is_final() => Some(*state),
        Change::Build { .. } | Change::Worker { .. } | Change::Host { .. } => None,
    }
}
