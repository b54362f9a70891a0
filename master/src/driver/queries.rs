//! Answers queries from the core's state and, for ended builds, from the ledger.

use super::event_loop::EventLoop;
use super::reader::{Listing, unreadable};
use crate::clock;
use crate::core::of_status;
use crate::core::view::{BuildView, Why};
use crate::web::{Health, NoBuild, Query};
use rouse_shared::BuildId;

impl EventLoop {
    /// Answers a query. The client may have gone away, which is not an error.
    pub(super) fn answer(&mut self, query: Query) {
        let core = &self.core;
        match query {
            Query::Build { id, reply } => drop(reply.send(self.build(id))),
            Query::Builds { filter, reply } => {
                let live = core.live_builds(&filter);
                self.reader.list(Listing { filter, live, reply });
            }
            Query::Why { id, reply } => drop(reply.send(self.why(id))),
            Query::Workers { reply } => drop(reply.send(core.worker_views(clock::now()))),
            Query::Hosts { reply } => drop(reply.send(core.host_views(clock::now()))),
            Query::Places { reply } => drop(reply.send(core.place_views())),
            Query::Journal { filter, reply } => self.reader.journal(filter, reply),
            Query::Mails { reply } => drop(reply.send(core.mails())),
            Query::Uploads { reply } => drop(reply.send(self.executor.uploads.view())),
            Query::Health { reply } => {
                let ledger = self.commit_error.clone().map_or_else(|| self.disk_space.for_work(), Err);
                let alarm = core.alarm().map(str::to_owned);
                drop(reply.send(Health { broker: self.executor.link_is_up(), alarm, ledger }));
            }
            Query::Metrics { reply } => drop(reply.send(self.metrics())),
        }
    }

    fn build(&self, id: BuildId) -> Result<BuildView, NoBuild> {
        if let Some(live) = self.core.build(id) {
            return Ok(live);
        }
        let unreadable = |error| NoBuild::Unreadable(unreadable(error));
        match self.store.build(id).map_err(unreadable)? {
            Some(build) => {
                let upload_trouble = self.executor.uploads.trouble(id);
                Ok(BuildView { state: build.status.state(), build, upload_trouble })
            }
            None if id <= self.store.highest_deleted().map_err(unreadable)? => Err(NoBuild::Deleted),
            None => Err(NoBuild::Unknown),
        }
    }

    fn why(&self, id: BuildId) -> Result<Why, NoBuild> {
        if let Some(why) = self.core.why(clock::now(), id) {
            return Ok(why);
        }
        let view = self.build(id)?;
        let mut sentence = of_status(&view.build.status).ok_or(NoBuild::Unknown)?;
        sentence.extend(view.upload_trouble.map(|trouble| format!("; {trouble}")));
        Ok(Why { sentence, next_try: None })
    }
}
