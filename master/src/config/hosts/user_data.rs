//! `user_data`: what an operator gives to a machine in addition to the agent's boot data.
//!
//! Both are parts of one MIME message, which cloud-init reads. User data for a program other than cloud-init cannot be
//! part of this message, because that program would find a message instead of its own format. This module refuses such
//! user data.

use crate::config::document::Value;
use crate::config::keys;
use crate::config::read::read_bytes;

impl Value<'_> {
    /// User data: a text, or the content of the file that `{ file = … }` names. Nothing if it is empty, as if the key
    /// were absent.
    pub(super) fn user_data(&self) -> Option<String> {
        let bytes = if self.is_text() {
            self.text()?.into_bytes()
        } else {
            let table = self.table("a string or { file = \"path\" }", &keys::FILE)?;
            let content = table.required("file", "file = \"path\"", |file| {
                let path = file.path()?;
                match read_bytes(&path) {
                    Ok(bytes) => Some(bytes),
                    Err(why) => file.error(format!("cannot read {}: {why}", path.display())),
                }
            });
            table.finish();
            content?
        };
        if let Some(what) = foreign(&bytes) {
            return self.error(format!(
                "{what}, and cannot be combined with the agent's boot data: both become parts of one MIME message, which only \
                 cloud-init reads"
            ));
        }
        match String::from_utf8(bytes) {
            Ok(text) if text.contains('\0') => self.error("must not contain a NUL character"),
            Ok(text) => Some(text).filter(|text| !text.is_empty()),
            Err(_) => self.error("must be UTF-8 text"),
        }
    }
}

/// What user data are, where a part of a MIME message is not what their reader expects.
fn foreign(bytes: &[u8]) -> Option<&'static str> {
    let packed: [(&[u8], &str); 7] = [
        (b"\x1f\x8b", "this is compressed (gzip); write it in clear"),
        (b"BZh", "this is compressed (bzip2); write it in clear"),
        (b"\xfd7zXZ", "this is compressed (xz); write it in clear"),
        (b"\x28\xb5\x2f\xfd", "this is compressed (zstd); write it in clear"),
        (b"PK\x03\x04", "this is an archive (zip); write it in clear"),
        (b"H4sI", "this is the base64 of something compressed (gzip); write it in clear"),
        (b"\xef\xbb\xbf", "this begins with a byte order mark, which hides its kind from cloud-init; remove it"),
    ];
    if let Some((_, what)) = packed.iter().find(|(magic, _)| bytes.starts_with(magic)) {
        return Some(what);
    }
    let text = String::from_utf8_lossy(bytes).trim_start().to_ascii_lowercase();
    let begins = |words: &[&str]| words.iter().any(|word| text.starts_with(word));
    // What cloud-init knows by its first line is its own, whatever else is in it.
    if begins(&["#!", "#cloud-", "#include", "#part-handler", "#upstart-job", "content-type:", "mime-version:"])
        || text.starts_with("## template:")
    {
        return None;
    }
    let tags = ["<powershell>", "<script>", "<persist>", "<powershellarguments>"];
    if tags.iter().any(|tag| text.contains(tag)) || begins(&["#ps1", "rem cmd"]) {
        return Some("this is for Windows (EC2Launch or cloudbase-init)");
    }
    let lines = || text.lines().map(str::trim_end).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let has = |words: &[&str]| lines().any(|line| words.iter().any(|word| line.starts_with(word)));
    if text.starts_with('{') && text.contains("\"ignition\"") {
        return Some("this is for Ignition (Fedora CoreOS, Flatcar)");
    }
    if has(&["variant: fcos", "variant: flatcar", "variant: openshift", "variant: r4e", "variant: fiot"]) {
        return Some("this is a Butane file, for Ignition (Fedora CoreOS, Flatcar)");
    }
    if lines().next().is_some_and(|line| line.starts_with("[settings") || line.starts_with("settings.")) {
        return Some("this is for Bottlerocket");
    }
    if has(&["version: v1alpha1"]) && has(&["machine:"]) {
        return Some("this is for Talos");
    }
    if has(&["version: 1.0", "version: 1.1"]) && has(&["tasks:"]) {
        return Some("this is for Windows (EC2Launch v2)");
    }
    match text.chars().next() {
        Some('{' | '[') => Some("this is JSON, which cloud-init does not read"),
        Some('<') => Some("this is XML, which cloud-init does not read"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cloud_init_takes_apart_is_taken() {
        for good in [
            "",
            "#!/bin/sh\necho '<script>'",
            "#cloud-config\nruncmd: ['{\"ignition\": 1}']\n",
            "## template: jinja\n#cloud-config\n{}",
            "#cloud-boothook\n#!/bin/sh\n",
            "#include\nhttps://example.org/x\n",
            "#cloud-config-archive\n- {}\n",
            "Content-Type: multipart/mixed; boundary=\"x\"\nMIME-Version: 1.0\n\n--x--\n",
            "key=value\n",
        ] {
            assert_eq!(foreign(good.as_bytes()), None, "{good:?}");
        }
    }

    #[test]
    fn what_another_program_reads_is_named() {
        for (bad, word) in [
            (&b"{\"ignition\": {\"version\": \"3.4.0\"}}"[..], "Ignition"),
            (b"\n  { \"ignition\" : {} }", "Ignition"),
            (b"variant: fcos\nversion: 1.5.0\n", "Butane"),
            (b"<powershell>\nGet-Date\n</powershell>", "Windows"),
            (b"<PowerShell>", "Windows"),
            (b"#ps1_sysnative\nGet-Date\n", "Windows"),
            (b"version: 1.1\ntasks:\n- task: executeScript\n", "Windows"),
            (b"\x1f\x8b\x08\0", "gzip"),
            (b"H4sIAAAA", "gzip"),
            (b"[settings.kubernetes]\n", "Bottlerocket"),
            (b"version: v1alpha1\nmachine:\n  type: worker\n", "Talos"),
            (b"{\"a\": 1}", "JSON"),
            (b"<?xml version='1.0'?>", "XML"),
            (b"\xef\xbb\xbf#cloud-config\n", "byte order mark"),
        ] {
            assert!(foreign(bad).is_some_and(|what| what.contains(word)), "{:?}", String::from_utf8_lossy(bad));
        }
    }
}
