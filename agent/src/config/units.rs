//! Sizes and secrets as they are written in configurations.

use rouse_shared::exposure::{Groups, exposure};
use rouse_shared::{Secret, size};
use rustix::process::getegid;
use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};
use std::fmt;
use std::fs::{File, Metadata};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// A number of bytes, as [`size::parse`] reads it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        size::parse(text).map(Size)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SizeVisitor;

        impl Visitor<'_> for SizeVisitor {
            type Value = Size;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size, like \"64MB\"")
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Size, E> {
                u64::try_from(number).map(Size).map_err(|_| E::custom("it must not be below 0"))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Size, E> {
                text.parse().map_err(E::custom)
            }
        }

        deserializer.deserialize_any(SizeVisitor)
    }
}

/// The source of a secret.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SecretSource {
    /// In the configuration itself.
    Text(Secret),
    /// The content of a file, without the line's end.
    File(PathBuf),
    /// The content of a variable of the environment.
    Env(String),
}

impl<'de> Deserialize<'de> for SecretSource {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SecretVisitor;
        impl<'de> Visitor<'de> for SecretVisitor {
            type Value = SecretSource;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string, { file = \"path\" } or { env = \"NAME\" }")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<SecretSource, E> {
                Ok(SecretSource::Text(Secret::new(text)))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<SecretSource, A::Error> {
                let mut found = None;
                while let Some(key) = map.next_key::<String>()? {
                    let value: String = map.next_value()?;
                    let secret = match key.as_str() {
                        "file" => SecretSource::File(value.into()),
                        "env" => SecretSource::Env(value),
                        other => return Err(de::Error::unknown_field(other, &["file", "env"])),
                    };
                    if found.replace(secret).is_some() {
                        return Err(de::Error::custom("give either file or env, not both"));
                    }
                }
                found.ok_or_else(|| de::Error::custom("give { file = \"path\" } or { env = \"NAME\" }"))
            }
        }
        deserializer.deserialize_any(SecretVisitor)
    }
}

impl SecretSource {
    /// The secret itself.
    ///
    /// # Errors
    /// Why the file or the variable cannot be read, or that it is empty; for people.
    pub fn reveal(&self, env: &dyn Fn(&str) -> Option<String>) -> Result<String, String> {
        let (text, source) = match self {
            Self::Text(text) => (text.expose().to_owned(), "the password".to_owned()),
            Self::File(path) => {
                let (text, exposed) =
                    read_private(path).map_err(|e| format!("{} cannot be read: {e}", path.display()))?;
                if let Some(why) = exposed {
                    return Err(why);
                }
                (text.trim_end_matches(['\r', '\n']).to_owned(), path.display().to_string())
            }
            Self::Env(name) => {
                let text = env(name).ok_or_else(|| format!("${name} is not set"))?;
                (text, format!("${name}"))
            }
        };
        if text.is_empty() { Err(format!("{source} is empty")) } else { Ok(text) }
    }
}

/// The text of a file, and why it must not have a secret in it; none if it may.
///
/// # Errors
/// If it cannot be read.
pub(crate) fn read_private(path: &Path) -> io::Result<(String, Option<String>)> {
    let mut file = File::open(path)?;
    let metadata = file.metadata()?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    Ok((text, exposed(path, &metadata)))
}

/// Why a file must not have a secret in it; none if it may.
pub(crate) fn exposed(path: &Path, file: &Metadata) -> Option<String> {
    // What is no regular file, such as a pipe, is nobody else's.
    if !file.is_file() {
        return None;
    }
    exposure(path, file.mode(), file.gid(), &Groups::These(vec![0, getegid().as_raw()]))
}
