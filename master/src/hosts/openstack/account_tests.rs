//! Accounts: precedence, missing keys, and errors that contain no secrets.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::config::{Config, HostConfig};
use std::path::Path;

fn section(keys: &str) -> OpenstackConfig {
    let text = format!(
        "[master]\nname = \"ci\"\n[[worker]]\nname = \"w\"\npassword = \"p\"\n[worker.openstack]\nflavor = \"1\"\nimage = \"i\"\n{keys}"
    );
    let config = Config::parse(&text, Path::new("rouse.toml")).unwrap();
    match config.hosts.into_values().next().unwrap() {
        HostConfig::Openstack(section) => *section,
        other => panic!("{other:?}"),
    }
}

const WHOLE: &str = "os_username = \"user\"\nos_password = \"pw\"\nos_tenant_name = \"tenant\"\nos_auth_url = \"http://127.0.0.1:5000/v3/\"\n";

fn nothing(_: &str) -> Option<String> {
    None
}

#[test]
fn a_whole_section_needs_nothing_else() {
    let account = Account::of(&section(WHOLE), &nothing).unwrap();
    assert_eq!((account.auth_url.as_str(), account.interface), ("http://127.0.0.1:5000/v3", Interface::Public));
    let default = || Named::Id("default".to_owned());
    let login = Login::Password {
        user: Named::Name("user".to_owned()),
        user_domain: default(),
        password: Secret::new("pw"),
        project: Some(Named::Name("tenant".to_owned())),
        project_domain: default(),
    };
    assert_eq!(account.login, login);
}

#[test]
fn the_environment_fills_what_is_missing() {
    let env = |name: &str| {
        let value = match name {
            "OS_AUTH_URL" => "https://cloud.example.com:5000",
            "OS_USERNAME" => "other",
            "OS_PASSWORD" => "secret",
            "OS_PROJECT_ID" => "p1",
            "OS_USER_DOMAIN_NAME" => "people",
            "OS_REGION_NAME" => "north",
            "OS_ENDPOINT_TYPE" => "internalURL",
            "OS_CACERT" => "/etc/ca.pem",
            "OS_CLOUD" => "",
            _ => return None,
        };
        Some(value.to_owned())
    };
    let account = Account::of(&section("os_username = \"user\""), &env).unwrap();
    assert_eq!((account.region.as_deref(), account.interface), (Some("north"), Interface::Internal));
    assert_eq!(account.ca.as_deref(), Some(Path::new("/etc/ca.pem")));
    let Login::Password { user, password, project, user_domain, .. } = account.login else { panic!() };
    assert_eq!((user, password.expose()), (Named::Name("user".to_owned()), "secret"));
    assert_eq!((project, user_domain), (Some(Named::Id("p1".to_owned())), Named::Name("people".to_owned())));
}

#[test]
fn what_nobody_has_is_named() {
    let error = Account::of(&section("os_auth_url = \"http://127.0.0.1:5000\""), &nothing).unwrap_err();
    assert!(error.contains("os_username") && error.contains("OS_USERNAME"), "{error}");
    let half = |name: &str| (name == "OS_APPLICATION_CREDENTIAL_ID").then(|| "id".to_owned());
    let error = Account::of(&section(""), &half).unwrap_err();
    assert!(error.contains("os_application_credential_secret"), "{error}");
}

/// The account of the cloud `here` of such a file, with a `secure.yaml` beside it.
fn of_yaml(clouds: &str, secure: &str, keys: &str) -> Result<Account, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("clouds.yaml");
    std::fs::write(&path, clouds).unwrap();
    if !secure.is_empty() {
        std::fs::write(dir.path().join("secure.yaml"), secure).unwrap();
    }
    let file = path.display().to_string();
    let env = move |name: &str| match name {
        "OS_CLIENT_CONFIG_FILE" => Some(file.clone()),
        "HOME" => Some("/home/ci".to_owned()),
        // Of another account: nothing of it may be mixed in.
        "OS_PASSWORD" => Some("of-the-environment".to_owned()),
        _ => None,
    };
    Account::of(&section(&format!("cloud = \"here\"\n{keys}")), &env)
}

#[test]
fn an_entry_and_its_secrets_are_put_together() {
    let clouds = "clouds:\n  here:\n    auth:\n      auth_url: https://cloud.example.com/identity\n      \
                  username: ci\n      project_name: 7\n    region_name: R\n    interface: admin\n";
    let secure = "clouds:\n  here:\n    auth:\n      password: 12345\n";
    let account = of_yaml(clouds, secure, "").unwrap();
    assert_eq!((account.region.as_deref(), account.interface), (Some("R"), Interface::Admin));
    let Login::Password { password, project, .. } = account.login else { panic!() };
    assert_eq!((password.expose(), project), ("12345", Some(Named::Name("7".to_owned()))));
    let error = of_yaml(clouds, "", "").unwrap_err();
    assert!(error.contains("os_password"), "{error}");
    assert_eq!(of_yaml(clouds, secure, "os_region_name = \"S\"").unwrap().region.as_deref(), Some("S"));
}

#[test]
fn an_application_credential_is_taken() {
    let clouds = "clouds:\n  here:\n    auth_type: v3applicationcredential\n    auth:\n      auth_url: https://x\n      \
                  application_credential_id: a\n      application_credential_secret: s\n";
    let account = of_yaml(clouds, "", "").unwrap();
    assert_eq!(account.login, Login::Application { id: "a".to_owned(), secret: Secret::new("s") });
}

#[test]
fn errors_in_files_are_reported_without_their_values() {
    for (clouds, expected) in [
        ("clouds: {}\n", "\"here\""),
        ("clouds:\n  here: [hush\n", "not YAML, line"),
        ("hush", "not a YAML mapping"),
        ("clouds:\n  here:\n    verify: false\n", "verify"),
        ("clouds:\n  here:\n    verify: no\n", "verify"),
        ("clouds:\n  here:\n    insecure: true\n", "insecure"),
        ("clouds:\n  here:\n    profile: vendor\n", "profile"),
        ("clouds:\n  here:\n    cert: /hush.pem\n", "cert"),
        ("clouds:\n  here:\n    compute_endpoint_override: http://hush\n", "compute_endpoint_override"),
        ("clouds:\n  here:\n    block_storage_service_type: hush\n", "block_storage_service_type"),
        ("clouds:\n  here:\n    regions: [{name: A, values: {auth: {password: hush}}}]\n", "regions"),
        ("clouds:\n  here:\n    auth: {trust_id: hush}\n", "auth.trust_id"),
        ("clouds:\n  here:\n    auth_type: v3token\n", "v3token"),
        ("clouds:\n  here:\n    identity_api_version: 2\n", "identity_api_version"),
        ("clouds:\n  here:\n    <<: hush\n", "<<"),
    ] {
        let error = of_yaml(clouds, "", "").unwrap_err();
        assert!(error.contains(expected) && !error.contains("hush"), "{error}");
    }
}

#[test]
fn anchors_are_merged_as_deep_as_they_go() {
    let clouds = "base: &b {user_domain_name: people, username: nobody}\n\
                  auth: &a {<<: *b, auth_url: \"https://{region_name}.example.com/v3\", username: u, password: p}\n\
                  more: &m {interface: admin, region_name: overridden}\n\
                  rest: &c {region_name: R, interface: internal}\n\
                  clouds: {here: {<<: [*c, *m], auth: {<<: *a, project-name: p, project_domain_id: d}}}\n";
    let account = of_yaml(clouds, "", "").unwrap();
    assert_eq!((account.region.as_deref(), account.interface), (Some("R"), Interface::Internal));
    assert_eq!(account.auth_url, "https://R.example.com/v3");
    let Login::Password { user, user_domain, project, project_domain, .. } = account.login else { panic!() };
    assert_eq!((user, user_domain), (Named::Name("u".to_owned()), Named::Name("people".to_owned())));
    assert_eq!((project, project_domain), (Some(Named::Name("p".to_owned())), Named::Id("d".to_owned())));
}

#[test]
fn regions_domains_and_a_home_are_taken_as_openstacksdk_takes_them() {
    let clouds = "clouds:\n  here:\n    cacert: ~/ca.pem\n    regions: [A, {name: B}]\n    region_name: C\n    compute_api_version: 2.1\n    \
                  auth: {auth_url: https://x, username: u, password: p, project_name: p, domain_name: d}\n";
    let account = of_yaml(clouds, "", "").unwrap();
    assert_eq!((account.region.as_deref(), account.ca.as_deref()), (Some("A"), Some(Path::new("/home/ci/ca.pem"))));
    let Login::Password { user_domain, project_domain, .. } = account.login else { panic!() };
    assert_eq!((user_domain, project_domain), (Named::Name("d".to_owned()), Named::Name("d".to_owned())));
    let told = of_yaml(&clouds.replace("~/", "~root/"), "", "").unwrap_err();
    assert!(told.contains("~root/ca.pem"), "{told}");
}

/// Files below one directory, and the account that a master there has.
fn of_places(files: &[(&str, &str)], set: &[(&str, &str)]) -> Result<Account, String> {
    let dir = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    let below = |path: &str| dir.path().join(path).display().to_string();
    let env = |name: &str| match (name, set.iter().find(|(key, _)| *key == name)) {
        (_, Some((_, path))) => Some(below(path)),
        ("HOME", None) => Some(below("home")),
        ("XDG_CONFIG_DIRS", None) => Some(format!("{}:/nowhere", below("xdg"))),
        _ => None,
    };
    Account::of(&section("cloud = \"here\""), &env)
}

#[test]
fn files_are_found_where_openstacksdk_finds_them() {
    let clouds = |url: &str| format!("clouds: {{here: {{auth: {{auth_url: \"{url}\", username: u}}}}}}\n");
    let (one, two) = (clouds("https://one"), clouds("https://two"));
    let secure = "clouds: {here: {auth: {password: p}}}\n";
    let url = |files: &[(&str, &str)], set: &[(&str, &str)]| of_places(files, set).map(|account| account.auth_url);
    let own = ("home/.config/openstack/secure.yml", secure);
    // The home before the site, .yaml before .yml, and the secrets in another place than the rest.
    let both = [("home/.config/openstack/clouds.yml", &*one), ("xdg/openstack/clouds.yaml", &*two), own];
    assert_eq!(url(&both, &[]).unwrap(), "https://one");
    let kinds = [("home/.config/openstack/clouds.yml", &*one), ("home/.config/openstack/clouds.yaml", &*two), own];
    assert_eq!(url(&kinds, &[]).unwrap(), "https://two");
    assert_eq!(url(&[("xdg/openstack/clouds.json", &*one), own], &[]).unwrap(), "https://one");
    assert_eq!(url(&both, &[("XDG_CONFIG_HOME", "x")]).unwrap(), "https://one", "both homes are looked at");
    // Files that are named, and one that is named and is not there.
    let named = [("c/my.yaml", &*two), ("s/my.yaml", secure), ("home/.config/openstack/clouds.yaml", &*one)];
    let set = [("OS_CLIENT_CONFIG_FILE", "c/my.yaml"), ("OS_CLIENT_SECURE_FILE", "s/my.yaml")];
    assert_eq!(url(&named, &set).unwrap(), "https://two");
    let gone = [("OS_CLIENT_CONFIG_FILE", "gone"), ("OS_CLIENT_SECURE_FILE", "s/my.yaml")];
    assert_eq!(url(&named, &gone).unwrap(), "https://one");
    let told = url(&[], &[]).unwrap_err();
    assert!(told.contains("clouds.yml") && told.contains("home/.config/openstack"), "{told}");
}
