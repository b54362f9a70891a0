//! What may be the address of a database.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::config::Config;

fn parse(text: &str) -> Result<PostgresUrl, String> {
    PostgresUrl::parse(text, Path::new("/etc/rouse"))
}

#[test]
fn addresses_of_databases() {
    let url = parse("postgres://rouse:a%40b%2F@db.example.org/rouse").unwrap();
    assert_eq!(
        (url.place().as_str(), url.user.as_str(), url.database.as_str()),
        ("db.example.org:5432", "rouse", "rouse")
    );
    assert_eq!((url.password.as_ref().unwrap().expose(), url.ssl_mode), ("a@b/", SslMode::Prefer));
    for (text, place) in [
        ("postgresql://u@[::1]:5433/d", "[::1]:5433"),
        ("postgres://u@a,b:1,c/d", "a:5432,b:1,c:5432"),
        ("postgres://u@/d?host=/run/postgresql&port=5433", "/run/postgresql/.s.PGSQL.5433"),
        ("postgres://u@%2Frun%2Fpostgresql/d", "/run/postgresql/.s.PGSQL.5432"),
        ("postgres://h/?user=u&dbname=d&password=hunter2", "h:5432"),
    ] {
        let url = parse(text).unwrap();
        assert_eq!((url.place().as_str(), url.user.as_str(), url.database.as_str()), (place, "u", "d"), "{text}");
        assert!(!format!("{url:?}").contains("hunter2"));
    }
    for (text, expected) in [
        ("postgres:rouse", "not the address of a database"),
        ("mysql://u@h/d", "not the address of a database"),
        ("postgres://u:hunter2@h", "names no database"),
        ("postgres://u:hunter2@h/d/e", "only the name of the database"),
        ("postgres://h/d", "names no user"),
        ("postgres://u@/d", "names no host"),
        ("postgres://u@h:x/d", "a port is a number"),
        ("postgres://u:hunter2@h/d?sslmode=allow", "must be one of disable, prefer, require, verify-ca, verify-full"),
        ("postgres://u@h/d?sslcert=a.pem", "rouse cannot log in with a certificate"),
        ("postgres://u@h/d?target_session_attrs=any", "rouse does not have this parameter"),
        ("postgres://u@h/d?sslrootcert=a.pem", "no effect unless"),
        ("postgres://u:hunter2%zz@h/d", "two hexadecimal digits"),
        ("postgres://u:hunter2 @h/d", "spaces"),
        ("postgres://u:hunter2#@h/d", "write %23"),
    ] {
        let error = parse(text).unwrap_err();
        assert!(error.contains(expected) && !error.contains("hunter2"), "{text}: {error}");
    }
}

#[test]
fn no_weaker_protection_than_was_asked_for() {
    let mode = |more: &str| parse(&format!("postgres://u@h/d?{more}")).unwrap();
    assert_eq!(mode("sslmode=verify-full").ssl_mode, SslMode::VerifyFull);
    let url = mode("sslmode=require&sslrootcert=ca.pem");
    assert_eq!((url.ssl_mode, url.root_cert), (SslMode::VerifyCa, Some("/etc/rouse/ca.pem".into())));
    assert_eq!(mode("sslmode=verify-full&sslrootcert=system").root_cert, None);
    let warnings = |url: &str| {
        let config = Config::parse(&format!("[store]\nurl = {url:?}\n"), Path::new("/rouse.toml")).unwrap();
        config.warnings.iter().filter(|warning| warning.message.contains("verify-full")).count()
    };
    assert_eq!(warnings("postgres://u@192.0.2.1/d"), 1);
    assert_eq!(warnings("postgres://u@192.0.2.1/d?sslmode=require"), 1);
    assert_eq!(warnings("postgres://u@192.0.2.1/d?sslmode=verify-full"), 0);
    assert_eq!(warnings("postgres://u@127.0.0.1/d") + warnings("postgres://u@/d?host=/run/postgresql"), 0);
}

#[test]
fn another_login_leads_to_the_same_database() {
    let url = |text| parse(text).unwrap();
    let first = url("postgres://u:a@h/d");
    assert!(first.leads_to_the_same_as(&url("postgres://v:b@h/d?sslmode=verify-full")));
    for other in ["postgres://u:a@g/d", "postgres://u:a@h/e", "postgres://u:a@h:1/d"] {
        assert!(!first.leads_to_the_same_as(&url(other)), "{other}");
    }
}
