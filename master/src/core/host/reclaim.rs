//! A cloud takes a host back. EC2 announces the interruption of a spot instance two minutes ahead, and before that may
//! recommend to replace the instance.

use crate::core::event::Level;
use crate::core::record::HostState;
use crate::core::timers::Timer;
use crate::core::{Core, Timestamp};
use rouse_shared::message::CloudNotice;
use rouse_shared::{HostId, SessionId, WorkerName};
use std::time::Duration;

/// Time from the notice to the end. The time in the notice is by the cloud's clock, so the master counts itself; the
/// agent checks for notices every five seconds.
const NOTICE: Duration = Duration::from_secs(115);
/// How long before the end the master terminates the host. So the host is known to be gone, and its builds run
/// elsewhere, when the cloud would have ended it.
const MARGIN: Duration = Duration::from_secs(30);
/// Shortest time between two notices of the same kind that are taken up: agents look every five seconds.
const NOTICE_PAUSE: Duration = Duration::from_secs(5);

impl Core {
    /// A cloud has announced the end of a host. The host gets no new builds from now on. After an interruption, what
    /// runs may end while there is time.
    pub(in crate::core) fn on_notice(
        &mut self,
        now: Timestamp,
        worker: &WorkerName,
        session: &SessionId,
        notice: CloudNotice,
    ) {
        let Some(live) = self.live_mut(worker, session) else { return };
        let is_news = match (&live.notice, &notice) {
            (None, _) | (Some((CloudNotice::Rebalance { .. }, _)), CloudNotice::Interruption { .. }) => true,
            // The cloud has moved its time. It comes again with each heartbeat, so it may wait.
            (Some((known, at)), new) => known != new && now.since(*at) >= NOTICE_PAUSE,
        };
        if !is_news {
            return;
        }
        let text = match &notice {
            CloudNotice::Rebalance { at } => {
                format!("the cloud may take back the host of {worker} (announced at {at:.40})")
            }
            CloudNotice::Interruption { action, at } => {
                format!("the cloud takes back the host of {worker}: {action:.20} at {at:.40}")
            }
        };
        live.notice = Some((notice.clone(), now));
        self.note(Level::Warn, text.clone());
        // The machine of a standing worker is not the master's to end.
        let Some(host) = self.workers.get(worker).and_then(|w| w.host.clone()) else { return };
        if let CloudNotice::Interruption { .. } = notice {
            self.timers.set_once(Timer::Reclaim(host.clone()), now + (NOTICE - MARGIN));
        }
        self.drain_host(&host, &text);
    }

    /// The time is over. Terminates the host; its builds run elsewhere once it is gone.
    pub(in crate::core) fn on_reclaim(&mut self, now: Timestamp, id: &HostId) {
        let Some(live) = self.hosts.get(id) else { return };
        match live.host.state {
            HostState::Ready | HostState::Draining => self.terminate_host(now, id, "its cloud takes it back"),
            HostState::Ordered
            | HostState::Booting
            | HostState::Suspending
            | HostState::Suspended
            | HostState::Resuming
            | HostState::Terminating
            | HostState::Terminated => {}
        }
    }
}
