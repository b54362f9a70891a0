//! EC2's metadata service, version 2 only. It requires a token, which only a PUT request from the machine itself can
//! get.

use super::{BootText, CloudError, Machine};
use crate::clock;
use crate::http::{HttpError, Server};
use rouse_shared::Timestamp;
use rouse_shared::limits::{MAX_BOOT_DATA, MAX_IDENTITY_DOCUMENT};
use rouse_shared::message::Proof;
use std::time::Duration;

/// Lifetime of a token: the longest that EC2 allows.
const TOKEN_TTL: Duration = Duration::from_secs(21_600);
/// Age at which a token is renewed, well before its end.
const RENEW_AFTER: Duration = Duration::from_secs(10_800);
/// Largest token, bytes; EC2's have 56.
const MAX_TOKEN: usize = 1_024;
/// Largest instance id, bytes; EC2's have 19.
const MAX_ID: usize = 64;
/// Largest user data, bytes: 16 KiB on EC2 itself, but compatible clouds may allow more.
const MAX_USER_DATA: usize = 2 * MAX_BOOT_DATA;

/// The service, and a token for it.
#[derive(Debug)]
pub(crate) struct Metadata {
    server: Server,
    token: Option<(String, Timestamp)>,
}

impl Metadata {
    pub(crate) fn new(server: Server) -> Self {
        Self { server, token: None }
    }

    /// The content of a path; `None` if there is none. Replaces an expired token.
    pub(crate) async fn get(&mut self, path: &str, limit: usize) -> Result<Option<Vec<u8>>, CloudError> {
        let mut fresh = false;
        loop {
            let token = match &self.token {
                Some((token, since)) if clock::now().since(*since) < RENEW_AFTER => token.clone(),
                Some(_) | None => {
                    fresh = true;
                    self.new_token().await?
                }
            };
            let fields = [("X-aws-ec2-metadata-token", token.as_str())];
            let answer = self.server.get(path, &fields, limit).await?;
            match answer.status {
                200 => return Ok(Some(answer.body)),
                404 => return Ok(None),
                401 if !fresh => self.token = None,
                status => return Err(CloudError::Status(path.to_owned(), status)),
            }
        }
    }

    async fn new_token(&mut self) -> Result<String, CloudError> {
        const PATH: &str = "/latest/api/token";
        let ttl = TOKEN_TTL.as_secs().to_string();
        let fields = [("X-aws-ec2-metadata-token-ttl-seconds", ttl.as_str())];
        let answer = self.server.put(PATH, &fields, MAX_TOKEN).await?;
        match answer.status {
            200 => {}
            403 => return Err(CloudError::Off),
            status => return Err(CloudError::Status(PATH.to_owned(), status)),
        }
        let token = String::from_utf8(answer.body).ok().filter(|t| t.bytes().all(|b| b.is_ascii_graphic()));
        let token = token.filter(|t| !t.is_empty()).ok_or(CloudError::Odd("the service's token is invalid"))?;
        self.token = Some((token.clone(), clock::now()));
        Ok(token)
    }

    /// The text at a path; `None` if there is none.
    async fn text(&mut self, path: &str, limit: usize) -> Result<Option<String>, CloudError> {
        let body = match self.get(path, limit).await {
            // A document that is too long counts as missing: the others may be sufficient.
            Err(CloudError::Http(HttpError::TooLong(_))) => None,
            other => other?,
        };
        Ok(body.and_then(|bytes| String::from_utf8(bytes).ok()))
    }
}

/// The id of this instance, the evidence of it, and its user data.
pub(super) async fn look(service: &mut Metadata) -> Result<Machine, CloudError> {
    let id = service.get("/latest/meta-data/instance-id", MAX_ID).await?;
    let id = id.and_then(|id| String::from_utf8(id).ok()).map(|id| id.trim().to_owned());
    let plain = |id: &String| !id.is_empty() && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    let id = id.filter(plain).ok_or(CloudError::Odd("the service gives no valid instance id"))?;
    let user_data = service.get("/latest/user-data", MAX_USER_DATA).await?.unwrap_or_default();
    let path = |name: &str| format!("/latest/dynamic/instance-identity/{name}");
    let proof = Proof {
        disk: None,
        document: service.text(&path("document"), MAX_IDENTITY_DOCUMENT).await?,
        signature: service.text(&path("signature"), MAX_IDENTITY_DOCUMENT).await?,
        rsa2048: service.text(&path("rsa2048"), MAX_IDENTITY_DOCUMENT).await?,
    };
    Ok(Machine {
        host: Some(format!("ec2:{id}")),
        proof,
        boot: BootText::in_user_data("the instance's user data", &user_data),
        is_ec2: true,
    })
}
