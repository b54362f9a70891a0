//! Polls EC2's notices about the end of an instance: the interruption of a spot instance, which comes two minutes
//! ahead, and the earlier recommendation to replace the instance.

use crate::core::Level;
use crate::diagnostics::log;
use crate::http::Server;
use crate::identity::CloudError;
use crate::identity::ec2::Metadata;
use rouse_shared::error::Chain;
use rouse_shared::message::CloudNotice;
use serde::Deserialize;
use std::time::Duration;
use tokio::sync::mpsc;

/// The polling interval that AWS recommends.
const EVERY: Duration = Duration::from_secs(5);
/// Largest notice, bytes; EC2's have about 70.
const MAX_NOTICE: usize = 4 << 10;
/// Longest word or time within a notice, bytes.
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

/// Polls every five seconds until nobody listens, and passes each new notice on.
pub(crate) async fn watch(server: Server, listener: mpsc::Sender<CloudNotice>) {
    let mut service = Metadata::new(server);
    let (mut last, mut failing) = (None, false);
    loop {
        match look(&mut service).await {
            Ok(notice) => {
                if failing {
                    log(Level::Info, "EC2's metadata service answers again");
                }
                failing = false;
                if notice != last {
                    // That a notice was withdrawn is not passed on: its consequences are not undone.
                    if let Some(notice) = &notice
                        && listener.send(notice.clone()).await.is_err()
                    {
                        return;
                    }
                    last = notice;
                }
            }
            Err(error) => {
                if !failing {
                    let text = format!("notices of this instance's end cannot be read: {}", Chain(&error));
                    log(Level::Warn, &text);
                }
                failing = true;
            }
        }
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            () = listener.closed() => return,
        }
    }
}

/// The gravest current notice.
async fn look(service: &mut Metadata) -> Result<Option<CloudNotice>, CloudError> {
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

fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, CloudError> {
    serde_json::from_slice(body).map_err(|_| CloudError::Odd("a notice is malformed"))
}

fn word(text: String) -> Result<String, CloudError> {
    let plain = text.len() <= MAX_WORD && text.bytes().all(|b| b.is_ascii_graphic());
    if plain { Ok(text) } else { Err(CloudError::Odd("a notice has invalid characters or is too long")) }
}

#[cfg(test)]
mod tests;
