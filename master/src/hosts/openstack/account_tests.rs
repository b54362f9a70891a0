//! Accounts: precedence, missing keys, and secrets that errors do not contain.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::config::{Config, HostConfig};

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
        ("clouds:\n  here:\n    profile: vendor\n", "profile"),
    ] {
        let error = of_yaml(clouds, "", "").unwrap_err();
        assert!(error.contains(expected) && !error.contains("hush"), "{error}");
    }
}
