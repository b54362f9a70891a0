//! `[blobs]`: where the logs of ended builds are kept, if not in the state directory.

use super::document::{Table, Value};
use super::general::section;
use super::{Secret, keys, url};
use ::url::Url;
use std::path::{Path, PathBuf};
use toml::de::DeTable;

#[cfg(test)]
#[path = "tests/blobs.rs"]
mod tests;

const IN_CLEAR: &str = "begins with http://, so logs cross the network in clear: use https://";
/// Shortest and longest name of a bucket, in characters.
const BUCKET: std::ops::RangeInclusive<usize> = 3..=63;

/// A blob store, and how to log in to it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BlobsConfig {
    /// Its address, as the file has it: `file:///…` or `s3://bucket/prefix`. It is the store's name in the ledger.
    pub url: String,
    /// The same, parsed.
    pub store: StoreUrl,
    /// Absent: the credentials chain's, otherwise us-east-1.
    pub region: Option<String>,
    /// The URL of a store that is compatible with S3; if it is set, nothing else is ever called.
    pub endpoint_url: Option<String>,
    /// Key id and key; absent: environment, credentials file, IAM role.
    pub credentials: Option<(String, Secret)>,
    /// A profile of the credentials file.
    pub profile: Option<String>,
}

/// The address of a blob store.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum StoreUrl {
    /// A directory, by its absolute path.
    Directory(PathBuf),
    /// A bucket of S3.
    S3 {
        /// Its name.
        bucket: String,
        /// What the keys begin with: segments separated by `/`, or nothing.
        prefix: String,
    },
}

impl StoreUrl {
    /// Reads `file:///directory` or `s3://bucket/prefix`.
    ///
    /// # Errors
    /// What is wrong with it. The message does not repeat it, because it may contain a password.
    pub fn parse(text: &str) -> Result<Self, String> {
        const NEEDED: &str = "write \"file:///directory\" or \"s3://bucket/prefix\"";
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err(format!("not the address of a store: {NEEDED}"));
        };
        if text.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err("an address must not contain spaces or line breaks".to_owned());
        }
        if rest.contains(['?', '#']) {
            return Err("nothing comes after the path: region and endpoint_url are keys of [blobs]".to_owned());
        }
        if rest.split('/').next().is_some_and(|authority| authority.contains('@')) {
            return Err(
                "must not contain credentials: use identifier and secret_identifier, the environment or a profile"
                    .into(),
            );
        }
        match scheme {
            "file" if !rest.starts_with('/') => {
                Err("the path must be absolute: write \"file:///directory\"".to_owned())
            }
            "file" => {
                let path = Url::parse(text).ok().and_then(|url| url.to_file_path().ok());
                let path = path.ok_or("the path cannot be read: write \"file:///directory\"")?;
                if path == Path::new("/") {
                    Err("must name a directory below /".to_owned())
                } else {
                    Ok(Self::Directory(path))
                }
            }
            "s3" => {
                let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
                let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
                if bucket.is_empty() {
                    return Err("names no bucket: write \"s3://bucket/prefix\"".to_owned());
                }
                if !BUCKET.contains(&bucket.len()) || !bucket.chars().all(fits) {
                    return Err("the name of a bucket has 3 to 63 of letters, digits, '-', '_' and '.'".to_owned());
                }
                let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
                if !prefix.is_empty() && prefix.split('/').any(|part| matches!(part, "" | "." | "..")) {
                    return Err("the prefix must not have empty segments, \".\" or \"..\"".to_owned());
                }
                Ok(Self::S3 { bucket: bucket.to_owned(), prefix: prefix.to_owned() })
            }
            _ => Err(format!("there is no such kind of store: {NEEDED}")),
        }
    }
}

pub(super) fn read<'d>(root: &Table<'d>, state_dir: &Path, empty: &'d DeTable<'d>) -> Option<BlobsConfig> {
    let table = section(root, "blobs", &keys::BLOBS, empty);
    let store = table.optional("store", |v| {
        let text = v.word()?;
        let store = StoreUrl::parse(&text).map_or_else(|why| v.error(why), Some)?;
        if matches!(&store, StoreUrl::Directory(dir) if dir.starts_with(state_dir.join("logs"))) {
            return v.error("is where the master keeps the logs that are not in a store yet: choose another directory");
        }
        Some((text, store))
    });
    let config = BlobsConfig {
        region: table.optional("region", |v| v.word_or_empty()),
        endpoint_url: table.optional("endpoint_url", |v| {
            let text = v.word_or_empty()?;
            if url::is_in_clear(&text) {
                v.warn(IN_CLEAR);
            }
            // It is stored in the ledger.
            if text.contains('@') {
                return v.error("must not contain credentials: use identifier and secret_identifier");
            }
            url::web(&text).map_or_else(|why| v.error(why), |()| Some(text))
        }),
        credentials: super::hosts::aws_credentials(&table),
        profile: table.optional("profile", |v| v.word_or_empty()),
        url: String::new(),
        store: StoreUrl::Directory(PathBuf::new()),
    };
    let needs_s3 = !matches!(store, Some((_, StoreUrl::S3 { .. })));
    if needs_s3 && !(table.get("store").is_some() && store.is_none()) {
        let unused = |v: Value<'_>| v.warn("has no effect without a store that begins with s3://");
        ["region", "endpoint_url", "identifier", "profile"]
            .into_iter()
            .filter_map(|key| table.get(key))
            .for_each(unused);
    }
    table.finish();
    let (url, store) = store?;
    Some(BlobsConfig { url: without_slash(&url), store, ..config })
}

/// One name for `s3://bucket/prefix` and `s3://bucket/prefix/`.
fn without_slash(url: &str) -> String {
    url.strip_suffix('/').unwrap_or(url).to_owned()
}
