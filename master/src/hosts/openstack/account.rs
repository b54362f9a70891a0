//! The account that a worker's section names, completed from `clouds.yaml` or from `OS_*` in the environment.
//!
//! A key in the section always takes precedence. Missing keys come from the entry of `clouds.yaml` that `cloud` (or
//! `OS_CLOUD`) names, otherwise from the environment. They never come from both, so that one account's user is never
//! combined with another account's password.

use super::clouds_yaml::{self, Entry};
use crate::config::{OpenstackConfig, Secret};
use std::path::PathBuf;

/// Reads a variable of the environment.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Something that is identified by id or by name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Named {
    /// Its id.
    Id(String),
    /// Its name.
    Name(String),
}

/// How the master logs in to Keystone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Login {
    /// User and password, for a project.
    Password {
        /// The user.
        user: Named,
        /// The user's domain; ignored if the user is given by id.
        user_domain: Named,
        /// The password.
        password: Secret,
        /// The project; absent: the user's default one.
        project: Option<Named>,
        /// The project's domain; ignored if the project is given by id.
        project_domain: Named,
    },
    /// An application credential, which belongs to a project.
    Application {
        /// Its id.
        id: String,
        /// Its secret.
        secret: Secret,
    },
}

/// Which endpoints of a service are used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Interface {
    /// For everyone.
    Public,
    /// Within the cloud.
    Internal,
    /// For administrators.
    Admin,
}

impl Interface {
    /// Its name in the catalogue.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Internal => "internal",
            Self::Admin => "admin",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        // Older clients wrote publicURL.
        match text.trim_end_matches("URL") {
            "public" => Some(Self::Public),
            "internal" => Some(Self::Internal),
            "admin" => Some(Self::Admin),
            _ => None,
        }
    }
}

/// One account of one cloud.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Account {
    /// Keystone.
    pub auth_url: String,
    /// The login.
    pub login: Login,
    /// The region; absent if there is only one.
    pub region: Option<String>,
    /// Which endpoints.
    pub interface: Interface,
    /// PEM file with the certificate authority of the cloud.
    pub ca: Option<PathBuf>,
}

impl Account {
    /// The account of a section.
    ///
    /// # Errors
    /// What is missing or cannot be read, in a sentence.
    pub fn of(section: &OpenstackConfig, env: Environment<'_>) -> Result<Self, String> {
        let source = match section.cloud.clone().or_else(|| env("OS_CLOUD").filter(|name| !name.is_empty())) {
            Some(name) => Source::Entry(Entry::find(&name, env)?),
            None => Source::Environment(env),
        };
        let get = |key: &str| source.get(key);
        // What a key that is missing is for depends on it, so it is looked at first.
        match get("auth_type").as_deref() {
            None | Some("password" | "v3password" | "v3applicationcredential") => {}
            Some(other) => {
                return Err(format!(
                    "auth_type {other} is not supported; log in with password, v3password or v3applicationcredential"
                ));
            }
        }
        let own_user = section.os_username.is_some();
        let login = match (&section.application_credential, get("application_credential_id").filter(|_| !own_user)) {
            (Some((id, secret)), _) => Login::Application { id: id.clone(), secret: secret.clone() },
            (None, Some(id)) => {
                let secret = needed(get("application_credential_secret"), "os_application_credential_secret")?;
                Login::Application { id, secret: Secret::new(secret) }
            }
            (None, None) => {
                let user = named(section.os_username.clone())
                    .or_else(|| get("user_id").map(Named::Id))
                    .or_else(|| named(get("username")));
                let password = section.os_password.clone().or_else(|| get("password").map(Secret::new));
                let domain = |own: &Option<String>, kind: &str| {
                    let own = own.clone().map(domain_name);
                    own.or_else(|| source.id_or_name(&[kind, "domain", "default_domain"]))
                        .unwrap_or_else(|| domain_name("default".to_owned()))
                };
                Login::Password {
                    user: needed(user, "os_username")?,
                    password: needed(password, "os_password")?,
                    project: named(section.os_tenant_name.clone())
                        .or_else(|| source.id_or_name(&["project", "tenant"])),
                    user_domain: domain(&section.os_user_domain, "user_domain"),
                    project_domain: domain(&section.os_project_domain, "project_domain"),
                }
            }
        };
        let interface = match get("interface").or_else(|| get("endpoint_type")) {
            None => Interface::Public,
            Some(text) => Interface::parse(&text)
                .ok_or_else(|| format!("os_interface must be public, internal or admin, not {text:?}"))?,
        };
        let region = section.os_region_name.clone().or_else(|| source.region());
        let auth_url = needed(section.os_auth_url.clone().or_else(|| get("auth_url")), "os_auth_url")?;
        let auth_url = auth_url.replace("{region_name}", region.as_deref().unwrap_or_default());
        let ca = match section.os_cacert.clone() {
            Some(path) => Some(path),
            None => get("cacert").map(|path| clouds_yaml::expand(&path, env)).transpose()?,
        };
        Ok(Self { auth_url: auth_url.trim_end_matches('/').to_owned(), login, region, interface, ca })
    }
}

fn named(name: Option<String>) -> Option<Named> {
    name.map(Named::Name)
}

fn domain_name(name: String) -> Named {
    // The id of the domain that every Keystone begins with; its name is "Default".
    if name == "default" { Named::Id(name) } else { Named::Name(name) }
}

fn needed<T>(value: Option<T>, key: &str) -> Result<T, String> {
    let variable = key.to_uppercase();
    value.ok_or_else(|| {
        format!("{key} is not set: neither in the worker's section, nor in its cloud, nor in {variable}")
    })
}

/// Where the rest of a section comes from. Both sources have the same keys: `username` is `OS_USERNAME` in the
/// environment.
enum Source<'a> {
    Environment(Environment<'a>),
    Entry(Entry),
}

impl Source<'_> {
    fn get(&self, key: &str) -> Option<String> {
        match self {
            Self::Environment(env) => env(&format!("OS_{}", key.to_uppercase())).filter(|value| !value.is_empty()),
            Self::Entry(entry) => entry.get(key),
        }
    }

    fn region(&self) -> Option<String> {
        match self {
            Self::Environment(_) => self.get("region_name"),
            Self::Entry(entry) => entry.region(),
        }
    }

    /// The first of the kinds that is given, by its id or its name.
    fn id_or_name(&self, kinds: &[&str]) -> Option<Named> {
        kinds.iter().find_map(|kind| {
            let id = self.get(&format!("{kind}_id")).map(Named::Id);
            id.or_else(|| self.get(&format!("{kind}_name")).map(Named::Name))
        })
    }
}

#[cfg(test)]
#[path = "account_tests.rs"]
mod tests;
