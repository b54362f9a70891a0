//! Readers for each kind of value: they check type and range, and record errors.

use super::document::{Value, substitute};
use super::{keys, shorten};
use rouse_shared::{Secret, duration, size};
use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::io::Read as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use toml::de::DeValue;

/// Largest file that a key may name, bytes. Secrets, certificate bundles and descriptions of domains are far smaller.
const MAX_FILE: u64 = 1 << 20;

impl Value<'_> {
    /// Any text, `{name}` filled in.
    pub(super) fn text(&self) -> Option<String> {
        let DeValue::String(text) = self.value else { return self.wrong("a string") };
        Some(substitute(text, self.member))
    }

    /// A text on one line that is not empty.
    pub(super) fn word(&self) -> Option<String> {
        let text = self.text()?;
        if text.trim().is_empty() {
            return self.error("must not be empty");
        }
        if text.chars().any(char::is_control) {
            return self.error("must be on one line, without control characters");
        }
        Some(text)
    }

    /// A text on one line; none if it is empty, as if the key were absent.
    pub(super) fn word_or_empty(&self) -> Option<String> {
        if self.text()?.is_empty() { None } else { self.word() }
    }

    pub(super) fn boolean(&self) -> Option<bool> {
        let DeValue::Boolean(yes) = self.value else { return self.wrong("true or false") };
        Some(*yes)
    }

    fn integer(&self, expected: &str) -> Option<i64> {
        let DeValue::Integer(number) = self.value else { return self.wrong(expected) };
        match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => Some(number),
            Err(_) => self.error("this number is too large"),
        }
    }

    /// A whole number from `least` on.
    pub(super) fn whole(&self, least: u32) -> Option<u32> {
        let number = self.integer("a whole number")?;
        match u32::try_from(number) {
            Ok(number) if number >= least => Some(number),
            Err(_) if number > 0 => self.error(format!("must be at most {}, not {number}", u32::MAX)),
            _ => self.error(format!("must be at least {least}, not {number}")),
        }
    }

    /// A whole number, which may be negative.
    pub(super) fn signed(&self) -> Option<i32> {
        let number = self.integer("a whole number")?;
        let fits = i32::try_from(number).ok();
        fits.or_else(|| self.error(format!("must be {} to {}, not {number}", i32::MIN, i32::MAX)))
    }

    /// A whole number that fits 64 bits, not negative.
    pub(super) fn large(&self) -> Option<u64> {
        let number = self.integer("a whole number")?;
        u64::try_from(number).ok().or_else(|| self.error(format!("must not be negative, not {number}")))
    }

    /// A number from 0 on, with or without a point.
    pub(super) fn number(&self) -> Option<f64> {
        let number = match self.value {
            DeValue::Float(number) => number.as_str().parse::<f64>().ok(),
            DeValue::Integer(number) => number.as_str().parse::<f64>().ok().filter(|_| number.radix() == 10),
            DeValue::String(_) | DeValue::Boolean(_) | DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => {
                return self.wrong("a number");
            }
        };
        match number {
            Some(number) if number.is_finite() && number >= 0.0 => Some(number),
            _ => self.error("must be a plain number that is not negative"),
        }
    }

    /// A duration of at least `least`.
    pub(super) fn duration(&self, least: Duration) -> Option<Duration> {
        let duration = match self.value {
            DeValue::String(_) => {
                let text = self.text()?;
                // A number in quotes is more likely a mistake than a number of seconds.
                if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
                    return self.error(format!("{:?} has no unit: write {text} or \"{text}s\"", shorten(&text)));
                }
                duration::parse(&text)
            }
            DeValue::Integer(_) => match u64::try_from(self.integer("")?) {
                Ok(seconds) => duration::from_seconds(seconds),
                Err(_) => Err("must not be negative: write 300, \"5m\" or \"1h30m\"".to_owned()),
            },
            DeValue::Float(_) | DeValue::Boolean(_) | DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => {
                return self.wrong("whole seconds, or a string such as \"5m\" or \"1h30m\"");
            }
        };
        match duration {
            Ok(duration) if duration < least => {
                self.error(format!("must be at least {}, not {}", duration::exact(least), duration::exact(duration)))
            }
            Ok(duration) => Some(duration),
            Err(message) => self.error(message),
        }
    }

    /// Bytes: a whole number, or a text with a unit.
    pub(super) fn size(&self, least: u64) -> Option<u64> {
        let size = match self.value {
            DeValue::String(_) => size::parse(&self.text()?),
            DeValue::Integer(_) => u64::try_from(self.integer("")?).map_err(|_| "must not be negative".to_owned()),
            DeValue::Float(_) | DeValue::Boolean(_) | DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => {
                return self.wrong("a number of bytes, or a string such as \"64MB\" or \"1GiB\"");
            }
        };
        match size {
            Ok(size) if size < least => self.error(format!("must be at least {least} bytes")),
            Ok(size) => Some(size),
            Err(message) => self.error(message),
        }
    }

    /// A duration, or nothing for a negative number, which stands for never.
    pub(super) fn duration_or_never(&self) -> Option<Option<Duration>> {
        if matches!(self.value, DeValue::Integer(_)) && self.integer("")? < 0 {
            return Some(None);
        }
        self.duration(Duration::ZERO).map(Some)
    }

    /// A list of what `read` reads. An error in one item does not end it.
    pub(super) fn list<T>(&self, read: impl Fn(&Self) -> Option<T>) -> Option<Vec<T>> {
        Some(self.items("a list")?.iter().filter_map(read).collect())
    }

    /// A list of what `read` reads, or one without brackets.
    pub(super) fn one_or_list<T>(&self, read: impl Fn(&Self) -> Option<T>) -> Option<Vec<T>> {
        if matches!(self.value, DeValue::Array(_)) { self.list(read) } else { read(self).map(|one| vec![one]) }
    }

    /// A table of texts.
    pub(super) fn texts(&self, check_key: impl Fn(&str) -> Result<(), String>) -> Option<BTreeMap<String, String>> {
        let table = self.table("a table of strings, such as { os = \"linux\" }", &keys::FREE)?;
        let mut texts = BTreeMap::new();
        for (key, value) in table.map {
            let name = key.get_ref().to_string();
            let path = table.path_of(&shorten(&name));
            if let Err(message) = check_key(&name) {
                self.notes.error(key.span().start, &path, message);
            }
            let at = value.span().start;
            let value = Value { path, at, value: value.get_ref(), ..self.clone() };
            let text = value.text().and_then(|text| {
                if text.chars().any(char::is_control) {
                    return value.error("must be on one line, without control characters");
                }
                Some(text)
            });
            texts.extend(text.map(|text| (name, text)));
        }
        Some(texts)
    }

    /// An address and a port.
    pub(super) fn address(&self) -> Option<SocketAddr> {
        let text = self.word()?;
        text.parse().ok().or_else(|| {
            self.error(format!(
                "{:?} is not an address with a port: write \"127.0.0.1:8090\" or \"[::1]:8090\"",
                shorten(&text)
            ))
        })
    }

    /// A path; a relative one is below the configuration's directory.
    pub(super) fn path(&self) -> Option<PathBuf> {
        Some(self.notes.base.join(self.word()?))
    }

    /// A program: a path, or a bare name for `PATH`.
    pub(super) fn program(&self) -> Option<PathBuf> {
        let text = self.word()?;
        Some(if text.contains('/') { self.notes.base.join(text) } else { PathBuf::from(text) })
    }

    /// The path of a file that is there and can be read.
    pub(super) fn readable(&self) -> Option<PathBuf> {
        let path = self.path()?;
        self.content_of(&path)?;
        Some(path)
    }

    fn content_of(&self, path: &Path) -> Option<String> {
        match read_file(path) {
            Ok((content, _)) => Some(content),
            Err(why) => self.error(format!("cannot read {}: {why}", path.display())),
        }
    }

    /// The same of a file that others must not be able to read.
    fn secret_in(&self, path: &Path) -> Option<String> {
        match read_file(path) {
            Ok((content, metadata)) => match self.notes.exposed(path, &metadata) {
                None => Some(content),
                Some(why) => self.error(why),
            },
            Err(why) => self.error(format!("cannot read {}: {why}", path.display())),
        }
    }

    /// The content of the file that `{ file = … }` names, if the value is such a table.
    pub(super) fn file_content(&self, expected: &str) -> Option<String> {
        let table = self.table(expected, &keys::FILE)?;
        let content = table.required("file", "file = \"path\"", |file| file.content_of(&file.path()?));
        table.finish();
        content
    }

    /// A string, `{ file = "path" }` or `{ env = "NAME" }`; never empty. Others must not be able to read it.
    pub(super) fn secret(&self) -> Option<Secret> {
        self.note_secret();
        self.perhaps_secret()
    }

    /// The same of a text that may have no secret in it. The caller calls [`Value::note_secret`] if it has one.
    pub(super) fn perhaps_secret(&self) -> Option<Secret> {
        let text = if self.is_text() {
            self.text()?
        } else {
            let expected = "a string, { file = \"path\" } or { env = \"NAME\" }";
            let table = self.table(expected, &keys::SECRET_SOURCE)?;
            let (file, env) = (table.get("file"), table.get("env"));
            table.finish();
            match (file, env) {
                (Some(file), None) => {
                    let content = file.secret_in(&file.path()?)?;
                    // Editors and `echo` add a newline, which is not part of the secret.
                    let content = content.strip_suffix('\n').unwrap_or(&content);
                    content.strip_suffix('\r').unwrap_or(content).to_owned()
                }
                (None, Some(env)) => {
                    let name = env.word()?;
                    match (self.notes.env)(&name) {
                        Some(text) => text,
                        None => {
                            return env.error(format!("the environment has no {name}: set it, or write {expected}"));
                        }
                    }
                }
                (Some(_), Some(_)) => return self.error("has both file and env: one of them is enough"),
                (None, None) => return self.error(format!("expected {expected}")),
            }
        };
        if text.is_empty() {
            return self.error("must not be empty");
        }
        if text.contains('\0') {
            return self.error("must not contain a NUL character");
        }
        Some(Secret::new(text))
    }

    /// An e-mail address.
    pub(super) fn email(&self) -> Option<String> {
        let text = self.word()?;
        if is_address(&text) {
            Some(text)
        } else {
            self.error(format!("{:?} is not an e-mail address: write \"user@host.example.org\"", shorten(&text)))
        }
    }

    /// A regular expression. `wrap` makes the expression that is kept.
    pub(super) fn regex(&self, wrap: impl FnOnce(&str) -> String) -> Option<String> {
        let text = self.word()?;
        // First without `wrap`, so that an unmatched parenthesis cannot pair up with one of `wrap`.
        if let Err(error) = regex::Regex::new(&text) {
            let last = error.to_string().lines().last().unwrap_or_default().trim().to_owned();
            let why = last.strip_prefix("error: ").unwrap_or(&last);
            return self.error(format!("not a regular expression: {why}"));
        }
        Some(wrap(&text))
    }

    /// One of these words. An earlier name of one is refused with a message that names the new one.
    pub(super) fn choice_since_renamed<T: Copy>(&self, choices: &[(&str, T)], renamed: &[(&str, &str)]) -> Option<T> {
        let text = self.text()?;
        match renamed.iter().find(|(old, _)| *old == text) {
            Some((old, new)) => self.error(format!("\"{old}\" is called \"{new}\" now")),
            None => self.choice(choices),
        }
    }

    /// One of these words.
    pub(super) fn choice<T: Copy>(&self, choices: &[(&str, T)]) -> Option<T> {
        let text = self.text()?;
        if let Some((_, choice)) = choices.iter().find(|(word, _)| *word == text) {
            return Some(*choice);
        }
        let words: Vec<_> = choices.iter().map(|(word, _)| format!("\"{word}\"")).collect();
        self.error(format!("expected one of {}, not {:?}", words.join(", "), shorten(&text)))
    }
}

fn read_file(path: &Path) -> std::io::Result<(String, Metadata)> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    let text = String::from_utf8(read_all(file)?).map_err(|_| std::io::Error::other("it is not UTF-8 text"))?;
    Ok((text, metadata))
}

/// The content of a file that a key names.
pub(super) fn read_bytes(path: &Path) -> std::io::Result<Vec<u8>> {
    read_all(File::open(path)?)
}

fn read_all(mut file: File) -> std::io::Result<Vec<u8>> {
    let mut content = Vec::new();
    // A directory can be opened, but not read; a device may never end.
    file.by_ref().take(MAX_FILE + 1).read_to_end(&mut content)?;
    if content.len() as u64 > MAX_FILE {
        return Err(std::io::Error::other("it is larger than 1 MiB"));
    }
    Ok(content)
}

/// Whether mail can be sent to or from this address.
pub(super) fn is_address(text: &str) -> bool {
    text.parse::<lettre::Address>().is_ok()
}
