//! What hosts cost, and the limit on the cost of a day. Days are in UTC.

use super::record::{Host, Record};
use super::timers::Timer;
use super::{Core, Effect, Timestamp};
use rouse_shared::HostId;
use std::time::Duration;

/// Milliseconds of a day.
const DAY: u64 = 86_400_000;

/// What was spent on hosts that are gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Spent {
    /// The day, counted from the Unix epoch.
    pub day: u64,
    /// Millionths of a USD.
    pub micros: u64,
}

/// The price of a time, USD.
fn usd(per_hour: f64, time: Duration) -> f64 {
    per_hour * time.as_secs_f64() / 3_600.0
}

/// What a host has cost until now, USD; none if its provider knows no price.
pub(super) fn cost(host: &Host, now: Timestamp) -> Option<f64> {
    cost_since(host, Timestamp(0), now).map(|usd| host.paid + usd)
}

fn cost_since(host: &Host, since: Timestamp, now: Timestamp) -> Option<f64> {
    let price = host.launch.as_ref()?.price?;
    if host.suspended.is_some() {
        return Some(0.0);
    }
    // A host that its provider never accepted has cost nothing. The cost up to its last suspension is already counted.
    let begin = host.resumed.or(host.booted).unwrap_or(now).max(since);
    Some(usd(price, host.terminated.unwrap_or(now).since(begin)))
}

impl Core {
    /// USD since midnight: hosts that are gone, and those that are alive.
    fn spent_today(&self, now: Timestamp) -> f64 {
        let day = now.0 / DAY;
        #[expect(
            clippy::cast_precision_loss,
            reason = "whole numbers of millionths up to nine thousand million USD are exact"
        )]
        let gone = if self.spent.day == day { self.spent.micros as f64 / 1e6 } else { 0.0 };
        let midnight = Timestamp(day * DAY);
        gone + self.hosts.values().filter_map(|live| cost_since(&live.host, midnight, now)).sum::<f64>()
    }

    /// A host is gone: adds its cost to the day's.
    pub(super) fn settle(&mut self, now: Timestamp, id: &HostId) {
        let Some(live) = self.hosts.get_mut(id) else { return };
        live.host.cost = cost(&live.host, now);
        let day = now.0 / DAY;
        let Some(today) = cost_since(&live.host, Timestamp(day * DAY), now).filter(|usd| *usd > 0.0) else { return };
        if self.spent.day != day {
            self.spent = Spent { day, micros: 0 };
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is above zero, and saturates")]
        let micros = (today * 1e6).ceil() as u64;
        self.spent.micros = self.spent.micros.saturating_add(micros);
        self.out.push(Effect::Save(Record::Spent(self.spent)));
    }

    /// Whether `limits.max_spend_per_day` allows another host. If not, a sentence that says so, and when it will.
    pub(super) fn may_spend(&self, now: Timestamp) -> Result<(), (String, Timestamp)> {
        let Some(most) = self.plan.max_spend_per_day else { return Ok(()) };
        let spent = self.spent_today(now);
        if spent < most {
            return Ok(());
        }
        let tomorrow = Timestamp((now.0 / DAY + 1) * DAY);
        Err((
            format!(
                "limits.max_spend_per_day allows {most} USD, and {spent:.2} USD have been spent since midnight UTC"
            ),
            tomorrow,
        ))
    }

    /// The same, and sets a timer for the next day.
    pub(super) fn may_spend_or_wait(&mut self, now: Timestamp) -> bool {
        match self.may_spend(now) {
            Ok(()) => true,
            Err((_, tomorrow)) => {
                self.timers.set(Timer::Day, tomorrow);
                false
            }
        }
    }
}
