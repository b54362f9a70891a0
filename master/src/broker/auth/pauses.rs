//! Delays the answer to a wrong password, the longer the more of them come for one name. A right password is answered at
//! once, so nobody can keep an agent out by sending wrong ones in its name. The pause only slows down who guesses over few
//! connections: what keeps a password from being guessed is its length, and `rouse check` warns of short ones.

use crate::clock;
use crate::sync::lock;
use rouse_shared::Timestamp;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Semaphore;

/// Wrong passwords in a row that are answered at once: somebody has mistyped it.
pub const FREE: u32 = 3;
/// The first pause. It doubles with each wrong password.
const FIRST: Duration = Duration::from_millis(50);
/// The longest pause. RabbitMQ lets up to five questions wait for the answer to another one, so that an agent that is right
/// waits as well, and for no more than 15 s: it must be far shorter.
const LONGEST: Duration = Duration::from_millis(500);
/// After this time without a wrong password, a name begins anew.
const FORGOTTEN: Duration = Duration::from_secs(600);
/// Names that are remembered.
const NAMES: usize = 1_000;
/// Answers that wait at the same time. More are sent at once, so that enough connections are left for those who are
/// right.
pub const WAITING: usize = 256;

/// The wrong passwords of each name. Cheap to clone.
#[derive(Clone)]
pub struct Pauses {
    wrong: Arc<Mutex<HashMap<String, (u32, Timestamp)>>>,
    waiting: Arc<Semaphore>,
    longest: Duration,
}

impl Default for Pauses {
    fn default() -> Self {
        Self::up_to(LONGEST)
    }
}

impl Pauses {
    /// With another longest pause.
    pub fn up_to(longest: Duration) -> Self {
        Self { wrong: Arc::default(), waiting: Arc::new(Semaphore::new(WAITING)), longest }
    }

    /// Counts a wrong password, and waits before it is answered.
    pub async fn wrong(&self, name: &str) {
        let pause = self.count(name, clock::now());
        if let Ok(_permit) = self.waiting.try_acquire() {
            tokio::time::sleep(pause).await;
        }
    }

    fn count(&self, name: &str, now: Timestamp) -> Duration {
        let mut wrong = lock(&self.wrong);
        if wrong.len() >= NAMES && !wrong.contains_key(name) {
            wrong.retain(|_, (_, last)| now.since(*last) < FORGOTTEN);
            if wrong.len() >= NAMES {
                wrong.clear();
            }
        }
        let (times, last) = wrong.entry(name.to_owned()).or_insert((0, now));
        if now.since(*last) >= FORGOTTEN {
            *times = 0;
        }
        (*times, *last) = (times.saturating_add(1), now);
        match times.checked_sub(FREE + 1) {
            None => Duration::ZERO,
            Some(doubled) => FIRST.saturating_mul(2_u32.saturating_pow(doubled)).min(self.longest),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_grows_and_is_forgotten() {
        let (pauses, now) = (Pauses::default(), Timestamp(1_000_000));
        let of = |name: &str, now| u64::try_from(pauses.count(name, now).as_millis()).unwrap_or(u64::MAX);
        let grown: Vec<u64> = (0..10).map(|_| of("w1", now)).collect();
        assert_eq!(grown, [0, 0, 0, 50, 100, 200, 400, 500, 500, 500]);
        assert_eq!(of("w2", now), 0, "each name has its own");
        assert_eq!(of("w1", now + FORGOTTEN), 0);
    }

    #[test]
    fn the_memory_is_bounded() {
        let pauses = Pauses::default();
        for name in 0..3 * NAMES {
            pauses.count(&format!("w{name}"), Timestamp(0));
        }
        assert!(lock(&pauses.wrong).len() <= NAMES);
    }
}
