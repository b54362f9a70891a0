//! OpenStack's metadata: from the config drive if the machine has one, otherwise from the metadata service.

use super::{BootText, CloudError, Machine, config_drive};
use crate::http::Server;
use rouse_shared::limits::MAX_BOOT_DATA;
use rouse_shared::message::Proof;
use serde::Deserialize;
use std::path::Path;

/// Largest `meta_data.json`, bytes: it holds keys, files and random numbers besides the little that is read here.
pub(super) const MAX_META_DATA: usize = 1 << 20;
/// Largest user data, bytes; Nova's limit is 64 KiB.
pub(super) const MAX_USER_DATA: usize = 2 * MAX_BOOT_DATA;

#[derive(Deserialize)]
struct MetaData {
    uuid: String,
}

/// The UUID of this server and its user data.
pub(super) async fn look(server: &Server, root: &Path) -> Result<Machine, CloudError> {
    match config_drive::look(root).await {
        Err(CloudError::NoDrive) => from_service(server).await,
        // If the drive is unusable, there may be another source. If there is none, the error of the drive is reported.
        Err(drive) => from_service(server).await.map_err(|_| drive),
        found => found,
    }
}

async fn from_service(server: &Server) -> Result<Machine, CloudError> {
    const META_DATA: &str = "/openstack/latest/meta_data.json";
    const USER_DATA: &str = "/openstack/latest/user_data";
    let meta_data = server.get(META_DATA, &[], MAX_META_DATA).await?;
    if meta_data.status != 200 {
        return Err(CloudError::Status(META_DATA.to_owned(), meta_data.status));
    }
    let user_data = server.get(USER_DATA, &[], MAX_USER_DATA).await?;
    let user_data = match user_data.status {
        200 => user_data.body,
        404 => Vec::new(),
        status => return Err(CloudError::Status(USER_DATA.to_owned(), status)),
    };
    machine(&meta_data.body, BootText::in_user_data("the server's user data", &user_data))
}

/// The machine that `meta_data.json` describes.
pub(super) fn machine(meta_data: &[u8], boot: Option<BootText>) -> Result<Machine, CloudError> {
    let meta_data: MetaData =
        serde_json::from_slice(meta_data).map_err(|_| CloudError::Odd("meta_data.json is malformed"))?;
    let uuid = meta_data.uuid.trim().to_ascii_lowercase();
    if uuid.is_empty() || uuid.len() > 64 || !uuid.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-') {
        return Err(CloudError::Odd("meta_data.json has an invalid uuid"));
    }
    Ok(Machine { host: Some(format!("uuid:{uuid}")), proof: Proof::default(), boot, is_ec2: false })
}
