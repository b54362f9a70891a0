//! Reads `clouds.yaml` as openstacksdk does: where the file is searched, how it is merged with `secure.yaml`, and which
//! keys an entry may have. A key that rouse does not support is reported by its name as an error.

use super::account::Environment;
use serde_norway::Value;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Endings of the files, in the order in which they are looked for.
const ENDINGS: [&str; 3] = ["yaml", "yml", "json"];
/// What `auth` may have, each with `_` or with `-`.
const AUTH: [&str; 18] = [
    "auth_url",
    "username",
    "user_id",
    "password",
    "project_name",
    "project_id",
    "tenant_name",
    "tenant_id",
    "user_domain_name",
    "user_domain_id",
    "project_domain_name",
    "project_domain_id",
    "domain_name",
    "domain_id",
    "default_domain_name",
    "default_domain_id",
    "application_credential_id",
    "application_credential_secret",
];
/// How keys end that give one service another address, name or region than Keystone's catalogue has.
const OF_ONE_SERVICE: [&str; 7] = [
    "_endpoint_override",
    "_endpoint",
    "_endpoint_type",
    "_interface",
    "_service_type",
    "_service_name",
    "_region_name",
];

/// One cloud's entry, with what `secure.yaml` adds to it.
pub(super) struct Entry(Value);

impl Entry {
    /// The entry named `name` of the first file that there is.
    ///
    /// # Errors
    /// Why there is none, or what in it is not supported; never with a value of it.
    pub(super) fn find(name: &str, env: Environment<'_>) -> Result<Self, String> {
        let own = env("OS_CLIENT_CONFIG_FILE").filter(|path| !path.is_empty());
        let own = own.map(|path| expand(&path, env)).transpose()?.filter(|path| path.is_file());
        let clouds = first("clouds", own.clone(), env)?;
        // openstacksdk looks in its places alone. Beside a file of one's own is where everybody would look.
        let secure = env("OS_CLIENT_SECURE_FILE").filter(|path| !path.is_empty());
        let secure = secure.map(|path| expand(&path, env)).transpose()?.filter(|path| path.is_file());
        let beside = || {
            let own = own.as_ref()?;
            ENDINGS.iter().map(|ending| own.with_file_name(format!("secure.{ending}"))).find(|path| path.is_file())
        };
        let secure = first("secure", secure.or_else(beside), env)?;
        let (path, all) = match (clouds, secure) {
            (Some((path, mut all)), Some((_, more))) => {
                merge(&mut all, more);
                (path, all)
            }
            (Some(found), None) | (None, Some(found)) => found,
            (None, None) => {
                let places: Vec<String> = directories(env).iter().map(|p| p.display().to_string()).collect();
                return Err(format!(
                    "cloud {name:?} not found: there is no clouds.yaml, clouds.yml or clouds.json in any of {}",
                    places.join(", ")
                ));
            }
        };
        let entry = all["clouds"][name].clone();
        if !entry.is_mapping() {
            return Err(format!("cloud {name:?} not found in {}", path.display()));
        }
        let unusable = |why: String| format!("cloud {name:?} of {} is not usable: {why}", path.display());
        check(&entry).map_err(unusable)?;
        Ok(Self(entry))
    }

    /// The value of a key, in `auth` or beside it.
    pub(super) fn get(&self, key: &str) -> Option<String> {
        let dashed = key.replace('_', "-");
        let of = |table: &Value| text(&table[key]).or_else(|| text(&table[dashed.as_str()]));
        of(&self.0["auth"]).or_else(|| of(&self.0)).filter(|value| !value.is_empty())
    }

    /// The region: the first of `regions`, otherwise of `region_name`, which may be a list too.
    pub(super) fn region(&self) -> Option<String> {
        let first = |list: &Value| match list {
            Value::Sequence(all) => all.first().and_then(|item| text(item).or_else(|| text(&item["name"]))),
            one => text(one).and_then(|names| names.split(',').next().map(|name| name.trim().to_owned())),
        };
        first(&self.0["regions"]).or_else(|| first(&self.0["region_name"])).filter(|region| !region.is_empty())
    }
}

/// Refuses what would make openstacksdk talk to another place, or in another way.
fn check(entry: &Value) -> Result<(), String> {
    for (key, value) in entry.as_mapping().into_iter().flatten() {
        let Some(key) = key.as_str().filter(|_| is_set(value)) else { continue };
        match key.replace('-', "_").as_str() {
            "verify" if is_no(value) => {
                return Err("verify: false is not supported; name the authority instead: cacert".to_owned());
            }
            "insecure" if !is_no(value) => {
                return Err("insecure is not supported; name the authority instead: cacert".to_owned());
            }
            "profile" | "cloud" => {
                return Err(format!("the profile of a vendor ({key}) is not supported; give auth_url itself"));
            }
            "cert" | "key" => return Err(format!("a client certificate ({key}) is not supported")),
            "vendor_hook" => return Err(format!("{key} is not supported")),
            "identity_api_version" if text(value).is_some_and(|version| version.starts_with('2')) => {
                return Err("identity_api_version: rouse needs version 3 of Keystone".to_owned());
            }
            "auth" if !value.is_mapping() => return Err("auth is not a mapping".to_owned()),
            "auth" => check_auth(value)?,
            "regions" => check_regions(value)?,
            other if OF_ONE_SERVICE.iter().any(|ending| other.ends_with(ending)) => {
                return Err(format!("{key} is not supported; rouse takes each service from Keystone's catalogue"));
            }
            _ => {}
        }
    }
    Ok(())
}

fn check_auth(auth: &Value) -> Result<(), String> {
    for (key, value) in auth.as_mapping().into_iter().flatten() {
        let known = key.as_str().is_some_and(|key| AUTH.contains(&key.replace('-', "_").as_str()));
        if !known && is_set(value) {
            let key = text(key).unwrap_or_default();
            return Err(format!(
                "auth.{key} is not supported; log in with a password or an application credential's id"
            ));
        }
    }
    Ok(())
}

fn check_regions(regions: &Value) -> Result<(), String> {
    let items = regions.as_sequence().ok_or("regions is not a list")?;
    match items.iter().any(|item| item.is_mapping() && is_set(&item["values"])) {
        true => Err("regions with values of their own are not supported; make an entry for each".to_owned()),
        false => Ok(()),
    }
}

fn is_set(value: &Value) -> bool {
    !value.is_null() && value.as_str() != Some("")
}

/// As YAML 1.1 writes it too, which openstacksdk reads.
fn is_no(value: &Value) -> bool {
    let word = text(value).unwrap_or_default().to_ascii_lowercase();
    matches!(word.as_str(), "false" | "no" | "off" | "n" | "0")
}

/// A word or a number, as it would be written.
fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(yes) => Some(if *yes { "True" } else { "False" }.to_owned()),
        Value::Null | Value::Sequence(_) | Value::Mapping(_) | Value::Tagged(_) => None,
    }
}

/// Where files are looked for, in this order.
fn directories(env: Environment<'_>) -> Vec<PathBuf> {
    let set = |name: &str| env(name).filter(|value| !value.is_empty());
    let home = set("HOME").map(|home| Path::new(&home).join(".config"));
    let site = set("XDG_CONFIG_DIRS").and_then(|all| all.split(':').next().map(PathBuf::from));
    let bases = [set("XDG_CONFIG_HOME").map(PathBuf::from), home, Some(site.unwrap_or_else(|| "/etc/xdg".into()))];
    let mut all = vec![PathBuf::from(".")];
    for base in bases.into_iter().flatten().chain([PathBuf::from("/etc")]) {
        let directory = base.join("openstack");
        if !all.contains(&directory) {
            all.push(directory);
        }
    }
    all
}

/// The first of the files `kind.yaml` that there is: `own`, if it is given, or one in the usual places.
fn first(kind: &str, own: Option<PathBuf>, env: Environment<'_>) -> Result<Option<(PathBuf, Value)>, String> {
    let places = directories(env);
    let usual = places.iter().flat_map(|dir| ENDINGS.iter().map(move |ending| dir.join(format!("{kind}.{ending}"))));
    let mut forbidden = None;
    for path in own.into_iter().chain(usual).filter(|path| path.is_file()) {
        match std::fs::read_to_string(&path) {
            Ok(text) => return parse(&path, &text).map(|value| Some((path, value))),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            // As openstacksdk does it: another place may have one for us.
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                forbidden.get_or_insert_with(|| format!("cannot read {}: {error}", path.display()));
            }
            Err(error) => return Err(format!("cannot read {}: {error}", path.display())),
        }
    }
    forbidden.map_or(Ok(None), Err)
}

/// A mapping; the places that it lacks can be looked at, and are null.
fn parse(path: &Path, text: &str) -> Result<Value, String> {
    let mut value: Value = serde_norway::from_str(text).map_err(|error| {
        let place = error.location().map_or_else(String::new, |at| format!(", line {}", at.line()));
        format!("{} is not YAML{place}", path.display())
    })?;
    unfold(&mut value).map_err(|why| format!("{}: {why}", path.display()))?;
    match value {
        // An empty file.
        Value::Null => Ok(Value::Mapping(serde_norway::Mapping::new())),
        value if value.is_mapping() => Ok(value),
        _ => Err(format!("{} is not a YAML mapping", path.display())),
    }
}

/// Carries out the merge keys (`<<: *anchor`), the innermost first: what is merged may merge something itself.
fn unfold(value: &mut Value) -> Result<(), String> {
    match value {
        Value::Mapping(mapping) => {
            for (_, child) in mapping.iter_mut() {
                unfold(child)?;
            }
            let all = match mapping.remove("<<") {
                None => return Ok(()),
                Some(Value::Sequence(all)) => all,
                Some(one) => vec![one],
            };
            for one in all {
                let Value::Mapping(one) = one else {
                    return Err("a merge key (<<) has something else than a mapping or a list of mappings".to_owned());
                };
                for (key, value) in one {
                    mapping.entry(key).or_insert(value);
                }
            }
            Ok(())
        }
        Value::Sequence(all) => all.iter_mut().try_for_each(unfold),
        Value::Tagged(tagged) => unfold(&mut tagged.value),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Ok(()),
    }
}

/// Puts `more` over `into`, key by key.
fn merge(into: &mut Value, more: Value) {
    match (into, more) {
        (Value::Mapping(into), Value::Mapping(more)) => {
            for (key, value) in more {
                match into.get_mut(&key) {
                    Some(known) => merge(known, value),
                    None => drop(into.insert(key, value)),
                }
            }
        }
        (into, more) => *into = more,
    }
}

/// A path with `~` for the user's home.
///
/// # Errors
/// The path, if it names the home of a user that cannot be determined.
pub(super) fn expand(path: &str, env: Environment<'_>) -> Result<PathBuf, String> {
    let Some(rest) = path.strip_prefix('~') else { return Ok(PathBuf::from(path)) };
    if !rest.is_empty() && !rest.starts_with('/') {
        return Err(format!("{path}: the home directory of another user is not supported; write the full path"));
    }
    let home = env("HOME").filter(|home| !home.is_empty()).map(PathBuf::from).or_else(std::env::home_dir);
    let home = home.ok_or_else(|| format!("{path}: there is no HOME"))?;
    Ok(home.join(rest.trim_start_matches('/')))
}
