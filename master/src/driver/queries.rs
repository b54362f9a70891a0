//! Answers queries from the core's state and, for ended builds, from the ledger.

use super::event_loop::EventLoop;
use crate::clock;
use crate::core::build::BuildState;
use crate::core::of_status;
use crate::core::view::{BuildView, Why};
use crate::store::{self, StoreError};
use crate::web::{BuildFilter, Health, Query};
use rouse_shared::BuildId;
use rouse_shared::error::Chain;
use tracing::error;

impl EventLoop {
    /// Answers a query. The client may have gone away, which is not an error.
    pub(super) fn answer(&self, query: Query) {
        let core = &self.core;
        match query {
            Query::Build { id, reply } => drop(reply.send(self.build(id).map_err(unreadable))),
            Query::Builds { filter, reply } => drop(reply.send(self.builds(&filter).map_err(unreadable))),
            Query::Why { id, reply } => drop(reply.send(self.why(id).map_err(unreadable))),
            Query::Workers { reply } => drop(reply.send(core.worker_views(clock::now()))),
            Query::Hosts { reply } => drop(reply.send(core.host_views(clock::now()))),
            Query::Places { reply } => drop(reply.send(core.place_views())),
            Query::Mails { reply } => drop(reply.send(core.mails())),
            Query::Health { reply } => {
                let ledger = self.commit_error.clone().map_or_else(|| self.disk_space.for_work(), Err);
                let alarm = core.alarm().map(str::to_owned);
                drop(reply.send(Health { broker: self.executor.link_is_up(), alarm, ledger }));
            }
            Query::Metrics { reply } => drop(reply.send(self.metrics())),
        }
    }

    fn build(&self, id: BuildId) -> Result<Option<BuildView>, StoreError> {
        if let Some(live) = self.core.build(id) {
            return Ok(Some(live));
        }
        let ended = self.store.build(id)?;
        Ok(ended.map(|build| BuildView { state: build.status.state(), build }))
    }

    fn why(&self, id: BuildId) -> Result<Option<Why>, StoreError> {
        if let Some(why) = self.core.why(clock::now(), id) {
            return Ok(Some(why));
        }
        let ended = self.build(id)?;
        let sentence = ended.and_then(|view| of_status(&view.build.status));
        Ok(sentence.map(|sentence| Why { sentence, next_try: None }))
    }

    fn builds(&self, filter: &BuildFilter) -> Result<Vec<BuildView>, StoreError> {
        let matches = |view: &BuildView| {
            filter.state.is_none_or(|state| view.state == state)
                && filter.before.is_none_or(|before| view.build.id < before)
        };
        let live = self.core.live_builds();
        let mut views: Vec<_> = live.filter(matches).take(filter.limit).collect();
        if filter.state.is_none_or(BuildState::is_final) {
            let ended = self.store.ended_builds(store::Query {
                state: filter.state,
                limit: filter.limit,
                before: filter.before,
            })?;
            views.extend(ended.into_iter().map(|build| BuildView { state: build.status.state(), build }));
            views.sort_by_key(|view| std::cmp::Reverse(view.build.id));
            views.truncate(filter.limit);
        }
        Ok(views)
    }
}

/// The text of an error of the ledger. It is logged here too, because the client may not be the operator.
fn unreadable(error: StoreError) -> String {
    let text = Chain(&error).to_string();
    error!("{text}");
    text
}
