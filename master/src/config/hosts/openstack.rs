//! `[worker.openstack]`: a server of OpenStack Nova.

use crate::config::Secret;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// How an OpenStack host is made. Credentials that are absent come from the `OS_*` environment or the `clouds.yaml` entry.
#[derive(Clone, PartialEq, Debug)]
pub struct OpenstackConfig {
    /// Id or name.
    pub flavor: String,
    /// What it boots.
    pub image: OpenstackImage,
    /// Entry of `clouds.yaml`.
    pub cloud: Option<String>,
    /// User.
    pub os_username: Option<String>,
    /// Password.
    pub os_password: Option<Secret>,
    /// Project.
    pub os_tenant_name: Option<String>,
    /// Domain of the user.
    pub os_user_domain: Option<String>,
    /// Domain of the project.
    pub os_project_domain: Option<String>,
    /// Keystone.
    pub os_auth_url: Option<String>,
    /// Region.
    pub os_region_name: Option<String>,
    /// PEM file of what the cloud's certificates are signed by.
    pub os_cacert: Option<PathBuf>,
    /// Id and secret, instead of user and password.
    pub application_credential: Option<(String, Secret)>,
    /// Under `metadata` in the metadata service.
    pub meta: BTreeMap<String, String>,
    /// Ids or names; empty: as the cloud chooses.
    pub networks: Vec<String>,
    /// Key pair.
    pub key_name: Option<String>,
    /// Ids or names.
    pub security_groups: Vec<String>,
    /// Sent beside the agent's own boot data.
    pub user_data: Option<String>,
    /// Availability zone.
    pub availability_zone: Option<String>,
    /// Boot from a volume of so many gigabytes; absent: from the image itself.
    pub boot_volume_gb: Option<u32>,
    /// Take a floating address from this pool.
    pub floating_ip_pool: Option<String>,
    /// USD an hour.
    pub price_per_hour: Option<f64>,
}

/// Which image an OpenStack host boots.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum OpenstackImage {
    /// Id or name.
    Id(String),
    /// Of those whose whole name matches (already anchored).
    Name {
        /// The expression.
        regex: String,
        /// Which of them.
        pick: ImagePick,
    },
    /// What this program prints: it gets the list of images as JSON on standard input. At least one word.
    Command(Vec<String>),
}

/// Which of several images.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ImagePick {
    /// The one made last.
    Newest,
    /// The one made first.
    Oldest,
}
