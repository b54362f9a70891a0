//! `[worker.openstack]`: a server of OpenStack Nova.

use crate::config::document::{Table, Value};
use crate::config::{Secret, keys, url};
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

const IN_CLEAR: &str =
    "begins with http://, so passwords and the tokens of hosts cross the network in clear: use https://";

/// How an OpenStack host is made. Credentials that are absent come from the `OS_*` environment or the `clouds.yaml`
/// entry.
#[derive(Clone, PartialEq, Debug)]
pub struct OpenstackConfig {
    /// Ids or names, which are tried in order if the cloud has no capacity. At least one.
    pub flavors: Vec<String>,
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
    /// Sent in addition to the agent's boot data.
    pub user_data: Option<String>,
    /// Availability zones, which are tried in order if there is no capacity. Empty: the cloud chooses.
    pub availability_zones: Vec<String>,
    /// Boot from a volume of so many gigabytes; absent: from the image itself.
    pub boot_volume_gb: Option<u32>,
    /// Take a floating address from this pool.
    pub floating_ip_pool: Option<String>,
    /// Give the server a config drive: for images and networks without a metadata service.
    pub config_drive: bool,
    /// USD an hour.
    pub price_per_hour: Option<f64>,
}

impl OpenstackConfig {
    /// Where its hosts are created: cloud, user, project and region, as far as the section names them.
    pub fn place(&self) -> String {
        let cloud = self.cloud.as_ref().or(self.os_auth_url.as_ref());
        let mut place = cloud.map_or("the cloud of the environment", String::as_str).to_owned();
        let user = self.os_username.as_ref().map(|name| format!("user {name}"));
        let project = self.os_tenant_name.as_ref().map(|name| format!("project {name}"));
        let credential = self.application_credential.as_ref().map(|(id, _)| format!("application credential {id}"));
        let region = self.os_region_name.as_ref().map(|name| format!("region {name}"));
        for part in [user, project, credential, region].into_iter().flatten() {
            place.push_str(", ");
            place.push_str(&part);
        }
        place
    }
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

/// As a person would name it.
impl fmt::Display for OpenstackImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => f.write_str(id),
            Self::Name { regex, pick: ImagePick::Newest } => write!(f, "the newest named {regex}"),
            Self::Name { regex, pick: ImagePick::Oldest } => write!(f, "the oldest named {regex}"),
            Self::Command(words) => write!(f, "what {} picks", words.join(" ")),
        }
    }
}

/// Which of several images.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ImagePick {
    /// The one made last.
    Newest,
    /// The one made first.
    Oldest,
}

/// Keys that do not shape a new host.
pub(super) const NOT_OF_THE_HOST: &[&str] = &[
    "os_username",
    "os_password",
    "os_user_domain",
    "os_cacert",
    "os_application_credential_id",
    "os_application_credential_secret",
    "price_per_hour",
];

pub(super) fn read(table: &Table<'_>) -> Option<OpenstackConfig> {
    let flavors = table.required("flavor", "flavor = \"…\", an id or a name", |v| {
        let flavors = v.one_or_list(|v| v.word())?;
        if flavors.is_empty() { v.error("must have at least one flavor") } else { Some(flavors) }
    });
    let image = table.required("image", "image = \"…\", an id or a name", image);
    let application_credential = application_credential(table);
    let os_auth_url = table.optional("os_auth_url", |v| {
        let text = v.word_or_empty()?;
        if url::is_in_clear(&text) {
            v.warn(IN_CLEAR);
        }
        url::web(&text).map_or_else(|why| v.error(why), |()| Some(text))
    });
    Some(OpenstackConfig {
        cloud: table.optional("cloud", |v| v.word_or_empty()),
        os_username: table.optional("os_username", |v| v.word_or_empty()),
        os_password: table.optional("os_password", |v| v.secret()),
        os_tenant_name: table.optional("os_tenant_name", |v| v.word_or_empty()),
        os_user_domain: table.optional("os_user_domain", |v| v.word_or_empty()),
        os_project_domain: table.optional("os_project_domain", |v| v.word_or_empty()),
        os_auth_url,
        os_region_name: table.optional("os_region_name", |v| v.word_or_empty()),
        os_cacert: table.optional("os_cacert", |v| v.readable()),
        application_credential,
        meta: table.or("meta", BTreeMap::new(), |v| {
            v.texts(|name| if name.is_empty() { Err("must not be empty".to_owned()) } else { Ok(()) })
        }),
        networks: table.or("networks", Vec::new(), |v| v.one_or_list(|v| v.word())),
        key_name: table.optional("key_name", |v| v.word_or_empty()),
        security_groups: table.or("security_groups", Vec::new(), |v| v.one_or_list(|v| v.word())),
        user_data: table.optional("user_data", |v| v.user_data()),
        availability_zones: table.or("availability_zone", Vec::new(), |v| match v.is_text() {
            true => v.word_or_empty().map(|zone| vec![zone]),
            false => v.one_or_list(|v| v.word()),
        }),
        boot_volume_gb: table.optional("boot_volume_gb", |v| v.whole(0)).filter(|gb| *gb > 0),
        floating_ip_pool: table.optional("floating_ip_pool", |v| v.word_or_empty()),
        config_drive: table.or("config_drive", false, |v| v.boolean()),
        price_per_hour: table.optional("price_per_hour", |v| v.number()),
        flavors: flavors?,
        image: image?,
    })
}

fn application_credential(table: &Table<'_>) -> Option<(String, Secret)> {
    let id = table.get("os_application_credential_id");
    let secret = table.get("os_application_credential_secret");
    if let Some(given) = id.as_ref().or(secret.as_ref()) {
        for key in ["os_username", "os_password"] {
            if table.map.contains_key(key) {
                given.error::<()>(format!("replaces user and password: leave out this key, or {key}"));
            }
        }
    }
    match (id, secret) {
        (Some(id), Some(secret)) => {
            let (id, secret) = (id.word(), secret.secret());
            Some((id?, secret?))
        }
        (Some(id), None) => id.error("needs os_application_credential_secret as well"),
        (None, Some(secret)) => secret.error("needs os_application_credential_id as well"),
        (None, None) => None,
    }
}

fn image(value: &Value<'_>) -> Option<OpenstackImage> {
    if value.is_text() {
        return value.word().map(OpenstackImage::Id);
    }
    const SHAPE: &str = "an id or a name, { name_regex = \"…\", pick = \"newest\" } or { command = [\"…\"] }";
    let table = value.table(SHAPE, &keys::IMAGE)?;
    let (regex, command, pick) = (table.get("name_regex"), table.get("command"), table.get("pick"));
    table.finish();
    match (regex, command) {
        (Some(regex), None) => {
            let choices = [("newest", ImagePick::Newest), ("oldest", ImagePick::Oldest)];
            let pick = pick.map_or(Some(ImagePick::Newest), |v| v.choice(&choices));
            let regex = regex.regex(|text| format!("^(?:{text})$"));
            Some(OpenstackImage::Name { regex: regex?, pick: pick? })
        }
        (None, Some(command)) => {
            if let Some(pick) = pick {
                pick.error::<()>("only beside name_regex: the command picks by itself");
            }
            let mut words = command.list(|v| v.text())?;
            let Some(program) = command.items("a list")?.first().and_then(Value::program) else {
                return command.error("must begin with a program");
            };
            if let (Some(first), Some(program)) = (words.first_mut(), program.to_str()) {
                *first = program.to_owned();
            }
            Some(OpenstackImage::Command(words))
        }
        (Some(_), Some(_)) => value.error("has both name_regex and command: one of them is enough"),
        (None, None) => value.error(format!("expected {SHAPE}")),
    }
}
