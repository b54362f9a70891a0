//! Sizes, durations and secrets as configurations write them.

use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// A number of bytes: a plain number, or with `kB`, `MB`, `GB` (powers of 1000) or `KiB`, `MiB`, `GiB` (of 1024).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!("{text:?} is not a size: write a number of bytes, or one with a unit, like \"64MB\" or \"1GiB\"")
        };
        let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let number: u64 = text[..digits].parse().map_err(|_| wrong())?;
        let unit = match text[digits..].trim() {
            "" | "B" => 1,
            "kB" | "KB" => 1_000,
            "MB" => 1_000_000,
            "GB" => 1_000_000_000,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            _ => return Err(wrong()),
        };
        number.checked_mul(unit).map(Size).ok_or_else(wrong)
    }
}

/// A length of time: whole seconds, or numbers with `d`, `h`, `m`, `s`, `ms`, the largest first, like `1h30m`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Span(pub Duration);

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a duration: write whole seconds, or units, like \"20m\" or \"1h30m\"");
        if let Ok(seconds) = text.parse() {
            return Ok(Span(Duration::from_secs(seconds)));
        }
        let mut rest = text;
        let mut total = 0u64;
        let mut smaller_than = u64::MAX;
        while !rest.is_empty() {
            let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            let number: u64 = rest[..digits].parse().map_err(|_| wrong())?;
            rest = &rest[digits..];
            let letters = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_lowercase()).len();
            let unit = match &rest[..letters] {
                "d" => 86_400_000,
                "h" => 3_600_000,
                "m" => 60_000,
                "s" => 1_000,
                "ms" => 1,
                _ => return Err(wrong()),
            };
            if unit >= smaller_than {
                return Err(wrong());
            }
            smaller_than = unit;
            rest = &rest[letters..];
            total = number.checked_mul(unit).and_then(|ms| total.checked_add(ms)).ok_or_else(wrong)?;
        }
        if text.is_empty() { Err(wrong()) } else { Ok(Span(Duration::from_millis(total))) }
    }
}

/// A number or a text, parsed.
struct NumberOrText<T>(&'static str, fn(u64) -> T);

impl<T: FromStr<Err = String>> Visitor<'_> for NumberOrText<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
        u64::try_from(number).map(self.1).map_err(|_| E::custom("it must not be below 0"))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NumberOrText("a size, like \"64MB\"", Size))
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NumberOrText("a duration, like \"20m\" or 1200", |s| Span(Duration::from_secs(s))))
    }
}

/// Where a secret is to be had.
#[derive(Clone, PartialEq, Eq)]
pub enum Secret {
    /// It is written there.
    Text(String),
    /// The content of a file, without the line's end.
    File(PathBuf),
    /// The content of a variable of the environment.
    Env(String),
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Secret::Text(_) => f.write_str("(hidden)"),
            Secret::File(path) => write!(f, "{{ file = {path:?} }}"),
            Secret::Env(name) => write!(f, "{{ env = {name:?} }}"),
        }
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SecretVisitor;
        impl<'de> Visitor<'de> for SecretVisitor {
            type Value = Secret;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string, { file = \"path\" } or { env = \"NAME\" }")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Secret, E> {
                Ok(Secret::Text(text.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Secret, A::Error> {
                let mut found = None;
                while let Some(key) = map.next_key::<String>()? {
                    let value: String = map.next_value()?;
                    let secret = match key.as_str() {
                        "file" => Secret::File(value.into()),
                        "env" => Secret::Env(value),
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

impl Secret {
    /// The secret itself.
    ///
    /// # Errors
    /// In words: where the file or the variable cannot be read, or is empty.
    pub fn reveal(&self, env: &dyn Fn(&str) -> Option<String>) -> Result<String, String> {
        let (text, source) = match self {
            Secret::Text(text) => (text.clone(), "the password".to_owned()),
            Secret::File(path) => {
                let text = std::fs::read_to_string(path).map_err(|e| format!("read {}: {e}", path.display()))?;
                (text.trim_end_matches(['\r', '\n']).to_owned(), path.display().to_string())
            }
            Secret::Env(name) => {
                let text = env(name).ok_or_else(|| format!("read ${name}: it is not set"))?;
                (text, format!("${name}"))
            }
        };
        if text.is_empty() { Err(format!("use {source}: it is empty")) } else { Ok(text) }
    }
}
