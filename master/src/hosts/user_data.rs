//! A machine's user data: the agent's boot data, and the operator's own user data for cloud-init.
//!
//! Boot data are a block of comment lines. Without user data of the operator, they are in an otherwise empty
//! `#cloud-config`. With user data of the operator, both are parts of one MIME message, and cloud-init recognises the
//! format of the operator's part by its first line. Therefore cloud-init does what it would have done without rouse, an
//! image without cloud-init is not affected, and the agent finds its block in either form.

use rouse_shared::boot::{BootData, comment_block};

/// The user data would be too long.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("user data is {bytes} bytes; the limit is {limit}")]
pub struct UserDataError {
    /// Bytes that there would be.
    bytes: usize,
    /// Bytes that the cloud takes.
    limit: usize,
}

/// The user data of a host: its boot data, and the operator's own if there are any. `limit` is what the cloud takes,
/// bytes before any encoding.
///
/// # Errors
/// If both together are longer than `limit`.
pub fn compose(boot: &BootData, own: Option<&str>, limit: usize) -> Result<String, UserDataError> {
    // A list of texts and numbers: it cannot fail to be written.
    let toml = toml::to_string(boot).unwrap_or_default();
    let ours = format!("#cloud-config\n{}{{}}\n", comment_block(&toml));
    let text = match own.filter(|own| !own.trim().is_empty()) {
        None => ours,
        Some(own) => message(&format!("rouse-{}", boot.host), &ours, own),
    };
    if text.len() > limit { Err(UserDataError { bytes: text.len(), limit }) } else { Ok(text) }
}

fn message(boundary: &str, ours: &str, own: &str) -> String {
    // What is a MIME entity already has its headers with it; of all else cloud-init looks at the first line.
    let entity = own.lines().next().is_some_and(|line| {
        let line = line.to_ascii_lowercase();
        line.starts_with("content-type:") || line.starts_with("mime-version:")
    });
    let head = "Content-Type: text/plain; charset=\"utf-8\"\nContent-Transfer-Encoding: 8bit\n\n";
    let own_head = if entity { "" } else { head };
    let end = if own.ends_with('\n') { "" } else { "\n" };
    format!(
        "Content-Type: multipart/mixed; boundary=\"{boundary}\"\nMIME-Version: 1.0\n\n\
         --{boundary}\n{head}{ours}\n--{boundary}\n{own_head}{own}{end}\n--{boundary}--\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use rouse_shared::HostId;
    use rouse_shared::boot::find_block;

    const LIMIT: usize = 16_384;

    fn boot() -> BootData {
        BootData {
            name: "w7".parse().unwrap(),
            host: HostId("h0123456789abcdef".to_owned()),
            broker: "amqps://mq.example.org/rouse".to_owned(),
            ca: Some("-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n".to_owned()),
            token: "t0".to_owned(),
            identity: None,
            power_off_after: Some(1_200),
        }
    }

    /// The agent's side of it.
    fn read(text: &str) -> BootData {
        toml::from_str(&find_block(text).unwrap()).unwrap()
    }

    #[test]
    fn alone_they_are_an_empty_cloud_config() {
        for own in [None, Some(""), Some(" \n")] {
            let text = compose(&boot(), own, LIMIT).unwrap();
            assert_eq!(read(&text), boot());
            let rest: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
            assert_eq!((text.lines().next().unwrap(), rest.as_slice()), ("#cloud-config", ["{}"].as_slice()));
        }
    }

    #[test]
    fn the_operators_own_is_a_part_of_its_own() {
        let text = compose(&boot(), Some("#!/bin/sh\necho hello"), LIMIT).unwrap();
        assert_eq!(read(&text), boot());
        let parts: Vec<&str> = text.split("--rouse-h0123456789abcdef").collect();
        assert_eq!((parts.len(), parts[3]), (4, "--\n"));
        assert!(parts[2].ends_with("8bit\n\n#!/bin/sh\necho hello\n\n"), "{}", parts[2]);
    }

    #[test]
    fn a_message_of_the_operators_stays_one() {
        let own = "Content-Type: multipart/mixed; boundary=\"x\"\nMIME-Version: 1.0\n\n--x\n\n#!/bin/sh\n--x--\n";
        let text = compose(&boot(), Some(own), LIMIT).unwrap();
        assert_eq!(read(&text), boot());
        assert!(text.contains(&format!("--rouse-h0123456789abcdef\n{own}\n--rouse")), "{text}");
    }

    #[test]
    fn what_the_cloud_would_refuse_is_reported_before() {
        let own = "x".repeat(LIMIT);
        let error = compose(&boot(), Some(&own), LIMIT).unwrap_err();
        assert!(error.to_string().contains("16384") && error.bytes > LIMIT);
    }
}
