//! Listens for what EC2 tells an instance about its end: the interruption of a spot instance, two minutes ahead, and the
//! recommendation to leave it earlier.

use crate::core::Level;
use crate::http::Server;
use crate::identity::Trouble;
use crate::identity::ec2::Metadata;
use crate::log;
use rouse_shared::error::Chain;
use rouse_shared::message::CloudNotice;
use serde::Deserialize;
use std::time::Duration;
use tokio::sync::mpsc;

/// As often as AWS says that one should look.
const EVERY: Duration = Duration::from_secs(5);
/// Bytes of a notice, at most; they have about 70.
const MAX_NOTICE: usize = 4 << 10;
/// Longest word or time in one that is passed on, bytes.
const MAX_WORD: usize = 64;

/// `spot/instance-action`.
#[derive(Deserialize)]
struct Action {
    action: String,
    time: String,
}

/// `events/recommendations/rebalance`.
#[derive(Deserialize)]
struct Rebalance {
    #[serde(rename = "noticeTime")]
    notice_time: String,
}

/// Looks every five seconds until nobody listens, and passes on what is there each time it changes.
pub(crate) async fn watch(server: Server, listener: mpsc::Sender<CloudNotice>) {
    let mut service = Metadata::new(server);
    let (mut last, mut told) = (None, false);
    loop {
        match look(&mut service).await {
            Ok(notice) => {
                if told {
                    log::line(Level::Info, "EC2's metadata service answers again");
                }
                told = false;
                if notice != last {
                    // One that was taken back is not: what it has set off goes its way.
                    if let Some(notice) = &notice
                        && listener.send(notice.clone()).await.is_err()
                    {
                        return;
                    }
                    last = notice;
                }
            }
            Err(trouble) => {
                if !told {
                    log::line(
                        Level::Warn,
                        &format!("no notice of this instance's end can be had: {}", Chain(&trouble)),
                    );
                }
                told = true;
            }
        }
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            () = listener.closed() => return,
        }
    }
}

/// The gravest notice that is there.
async fn look(service: &mut Metadata) -> Result<Option<CloudNotice>, Trouble> {
    if let Some(body) = service.get("/latest/meta-data/spot/instance-action", MAX_NOTICE).await? {
        let Action { action, time } = parse(&body)?;
        return Ok(Some(CloudNotice::Interruption { action: word(action)?, at: word(time)? }));
    }
    let body = service.get("/latest/meta-data/events/recommendations/rebalance", MAX_NOTICE).await?;
    let rebalance = body.map(|body| parse::<Rebalance>(&body)).transpose()?;
    Ok(match rebalance {
        Some(rebalance) => Some(CloudNotice::Rebalance { at: word(rebalance.notice_time)? }),
        None => None,
    })
}

fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Trouble> {
    serde_json::from_slice(body).map_err(|_| Trouble::Odd("a notice is not what it should be"))
}

fn word(text: String) -> Result<String, Trouble> {
    let plain = text.len() <= MAX_WORD && text.bytes().all(|b| b.is_ascii_graphic());
    if plain { Ok(text) } else { Err(Trouble::Odd("a notice has odd words in it")) }
}

#[cfg(test)]
mod tests;
