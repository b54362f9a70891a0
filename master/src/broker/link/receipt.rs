//! Acknowledgements, which are collected for each channel and sent together.

use super::connect::in_order;
use crate::sync::lock;
use lapin::Channel;
use lapin::options::BasicAckOptions;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::Notify;

/// The receipt of one delivery. If it is dropped without an acknowledgement, the broker delivers again after the next
/// reconnection. Has no effect after its connection has ended.
#[must_use = "a delivery that is never acknowledged comes again"]
pub struct Receipt {
    acks: Arc<Acks>,
    tag: u64,
}

impl fmt::Debug for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Receipt").field(&self.tag).finish()
    }
}

impl Receipt {
    /// Acknowledges the delivery. Does not wait.
    pub fn ack(self) {
        self.acks.ack(self.tag);
    }
}

/// Acknowledges all. Those of one channel are sent together.
pub fn ack_all(receipts: Vec<Receipt>) {
    for receipt in receipts {
        receipt.ack();
    }
}

/// The deliveries of one channel of one connection. Limited by the channel's prefetch.
pub(super) struct Acks {
    state: Mutex<State>,
    more: Notify,
}

#[derive(Default)]
struct State {
    /// Delivered, and not acknowledged yet.
    outstanding: BTreeSet<u64>,
    /// To be acknowledged next.
    pending: Vec<u64>,
}

/// The acknowledgements of one round.
#[derive(Debug, PartialEq, Eq, Default)]
struct Round {
    /// Everything up to this tag.
    up_to: Option<u64>,
    /// Further single deliveries.
    single: Vec<u64>,
}

impl Acks {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), more: Notify::new() })
    }

    /// Registers a delivery.
    pub(super) fn receipt(self: &Arc<Self>, tag: u64) -> Receipt {
        self.lock().outstanding.insert(tag);
        Receipt { acks: self.clone(), tag }
    }

    fn ack(&self, tag: u64) {
        self.lock().pending.push(tag);
        self.more.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Sends acknowledgements until the channel fails. Returns the reason.
    pub(super) async fn run(self: Arc<Self>, channel: Channel) -> String {
        loop {
            self.more.notified().await;
            let round = self.lock().round();
            let acks = round.up_to.iter().map(|tag| (*tag, true)).chain(round.single.iter().map(|tag| (*tag, false)));
            let sent = acks.map(|(tag, multiple)| channel.basic_ack(tag, BasicAckOptions { multiple }));
            for result in in_order(sent).await {
                if let Err(error) = result {
                    return format!("an acknowledgement failed: {error}");
                }
            }
        }
    }
}

impl State {
    fn round(&mut self) -> Round {
        let mut pending = std::mem::take(&mut self.pending);
        pending.sort_unstable();
        for tag in &pending {
            self.outstanding.remove(tag);
        }
        // One frame acknowledges everything before the oldest unacknowledged delivery.
        let held = self.outstanding.first().copied().unwrap_or(u64::MAX);
        let below = pending.partition_point(|tag| *tag < held);
        let single = pending.split_off(below);
        Round { up_to: pending.pop(), single }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acknowledgements_are_joined_up_to_the_oldest_that_is_held() {
        let acks = Acks::new();
        let mut receipts: Vec<Option<Receipt>> = (1..=6).map(|tag| Some(acks.receipt(tag))).collect();
        let mut take = |tag: usize| receipts[tag - 1].take().unwrap();
        ack_all(vec![take(2), take(1), take(4)]);
        assert_eq!(acks.lock().round(), Round { up_to: Some(2), single: vec![4] });
        take(5).ack();
        assert_eq!(acks.lock().round(), Round { up_to: None, single: vec![5] });
        ack_all(vec![take(6), take(3)]);
        assert_eq!(acks.lock().round(), Round { up_to: Some(6), single: vec![] });
        assert_eq!(acks.lock().round(), Round::default());
        assert!(acks.lock().outstanding.is_empty());
    }
}
