//! Collects the figures for `/metrics`. docs/commands.md lists them.

use super::event_loop::EventLoop;
use crate::core::build::BuildState;
use crate::core::event::Change;
use crate::web::{Figure, Metrics};
use rouse_shared::error::Chain;
use std::sync::atomic::Ordering;
use tracing::error;

fn gauge(name: &'static str, help: &'static str, value: u64) -> Figure {
    Figure { name, help, counter: false, value: value as f64 }
}

fn counter(name: &'static str, help: &'static str, value: u64) -> Figure {
    Figure { name, help, counter: true, value: value as f64 }
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

    pub(super) fn metrics(&self) -> Metrics {
        let core = &self.core;
        let counts = core.counts();
        let mut builds = counts.builds;
        let deleted = core.deleted();
        let left = |state, count: &u64| count.saturating_sub(deleted.builds.get(state).copied().unwrap_or(0));
        builds.extend(self.ended.iter().map(|(state, count)| (*state, left(state, count))));
        let (orphans, foreign_machines) = core.foreign_counts();
        let (waiting, mails) = core.mail_count();
        let mut figures = vec![
            gauge(
                "rouse_broker_up",
                "Whether the master is connected to the broker.",
                u64::from(self.executor.link_is_up()),
            ),
            gauge(
                "rouse_broker_blocked",
                "Whether the broker accepts no messages, because it has too little memory or disk.",
                u64::from(core.alarm().is_some()),
            ),
            counter(
                "rouse_builds_deleted_total",
                "Ended builds that retention has deleted.",
                deleted.builds.values().sum(),
            ),
            counter("rouse_build_logs_deleted_total", "Ended builds whose logs retention has deleted.", deleted.logs),
            counter(
                "rouse_log_chunks_unexpected_total",
                "Log chunks that belong to no running attempt.",
                self.executor.logs.unexpected(),
            ),
            gauge(
                "rouse_orphans",
                "Machines with the master's name and id that are not in the ledger.",
                orphans as u64,
            ),
            gauge(
                "rouse_lingering_machines",
                "Hosts and orphans that are still there 7 minutes after the master first asked for their termination.",
                core.lingering_count() as u64,
            ),
            gauge("rouse_foreign_machines", "Machines with the master's name and another id.", foreign_machines as u64),
            counter(
                "rouse_illegal_events_total",
                "Events that cannot happen in the state of their host. Each one is a bug in rouse.",
                core.illegal_events(),
            ),
            gauge(
                "rouse_mails_waiting",
                "Mails that the relay has not yet accepted for every recipient.",
                waiting as u64,
            ),
            counter("rouse_mails_sent_total", "Mails that the relay has accepted.", mails.sent),
            counter(
                "rouse_mail_tries_failed_total",
                "Tries after which a mail still had recipients to wait for.",
                mails.failed,
            ),
            counter(
                "rouse_mail_recipients_given_up_total",
                "Recipients for whom the master has given up a mail.",
                mails.given_up,
            ),
        ];
        figures.extend(self.link_figures());
        figures.extend(self.upload_figures());
        let places = core.place_views();
        Metrics { builds, workers: counts.workers, hosts: counts.hosts, places, figures }
    }

    fn upload_figures(&self) -> Vec<Figure> {
        let Some(uploads) = self.executor.uploads.figures() else { return Vec::new() };
        vec![
            gauge("rouse_blob_store_down", "Whether the last upload of logs has failed.", u64::from(uploads.down)),
            gauge(
                "rouse_log_uploads_waiting",
                "Ended builds whose logs are not in the blob store yet.",
                uploads.waiting,
            ),
            gauge("rouse_log_uploads_waiting_bytes", "Bytes of the logs that wait to be uploaded.", uploads.bytes),
            counter("rouse_log_uploads_total", "Ended builds whose logs were uploaded.", uploads.uploaded),
            counter(
                "rouse_log_uploads_failed_total",
                "Tries to upload the logs of a build that failed.",
                uploads.failed,
            ),
        ]
    }

    fn link_figures(&self) -> Vec<Figure> {
        let Some(link) = self.executor.link.borrow().clone() else { return Vec::new() };
        let dropped = link.dropped();
        vec![
            counter(
                "rouse_messages_malformed_total",
                "Messages that were dropped because they are malformed or of an unknown kind.",
                dropped.malformed.load(Ordering::Relaxed),
            ),
            counter(
                "rouse_messages_blocked_total",
                "Messages that were dropped because their sender is blocked after it has sent too much.",
                dropped.blocked.load(Ordering::Relaxed),
            ),
            counter(
                "rouse_messages_unsent_total",
                "Messages that could not be passed to the broker and were dropped.",
                link.unsent(),
            ),
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

#[cfg(test)]
mod tests {
    /// The names of the metrics in a source file, without those of its tests.
    fn names(source: &str) -> impl Iterator<Item = &str> {
        let code = source.split("#[cfg(test)]").next().unwrap_or_default();
        let strings = code.split('"').filter(|text| text.starts_with("rouse_"));
        strings.filter(|text| text.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'))
    }

    #[test]
    fn the_documentation_lists_every_metric() {
        let docs = include_str!("../../../docs/commands.md");
        let all: Vec<_> = names(include_str!("figures.rs")).chain(names(include_str!("../web/metrics.rs"))).collect();
        assert!(all.contains(&"rouse_illegal_events_total") && all.contains(&"rouse_info"), "{all:?}");
        for name in all {
            assert!(docs.contains(&format!("`{name}`")), "docs/commands.md does not list {name}");
        }
    }
}
