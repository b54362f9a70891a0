//! The first pass: parses TOML with the position of every value. Its reader records each error and continues.

use super::keys::Section;
use super::problem::Problem;
use super::shorten;
use rouse_shared::exposure::{Groups, exposure};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Looks up a variable of the environment.
pub(super) type Environment<'d> = &'d dyn Fn(&str) -> Option<String>;

/// What a pass records. Sorted by position; each error once, however many workers of a template have it.
pub(super) struct Notes<'d> {
    file: &'d Path,
    text: &'d str,
    line_starts: Vec<usize>,
    errors: RefCell<BTreeSet<Problem>>,
    warnings: RefCell<BTreeSet<Problem>>,
    /// What relative paths are relative to.
    pub(super) base: PathBuf,
    /// Used for `{ env = … }`.
    pub(super) env: Environment<'d>,
    /// The position and the key of the first secret in the text itself.
    literal: RefCell<Option<(usize, String)>>,
    /// The groups that may read secrets.
    pub(super) groups: Groups,
}

impl<'d> Notes<'d> {
    pub(super) fn new(file: &'d Path, text: &'d str, base: PathBuf, env: Environment<'d>) -> Self {
        let groups = Groups::These(Vec::new());
        let line_starts = std::iter::once(0).chain(text.match_indices('\n').map(|(i, _)| i + 1)).collect();
        let (errors, warnings, literal) = Default::default();
        Self { file, text, line_starts, errors, warnings, base, env, literal, groups }
    }

    fn note(&self, at: usize, key: &str, message: String) -> Problem {
        let line = self.line_starts.partition_point(|start| *start <= at);
        let start = self.line_starts.get(line.saturating_sub(1)).copied().unwrap_or(0);
        let before = self.text.get(start..at).unwrap_or("");
        let (file, key) = (self.file.to_owned(), key.to_owned());
        Problem { file, line, column: before.chars().count() + 1, key, message }
    }

    pub(super) fn error(&self, at: usize, key: &str, message: impl Into<String>) {
        let error = self.note(at, key, message.into());
        self.errors.borrow_mut().insert(error);
    }

    pub(super) fn warn(&self, at: usize, key: &str, message: impl Into<String>) {
        let warning = self.note(at, key, message.into());
        self.warnings.borrow_mut().insert(warning);
    }

    pub(super) fn errors(&self) -> usize {
        self.errors.borrow().len()
    }

    /// Notes an error if the text has a secret in it that others can read in this file.
    pub(super) fn check_file(&self, file: &Metadata) {
        if let Some((at, key)) = &*self.literal.borrow()
            && let Some(why) = self.exposed(self.file, file)
        {
            self.error(*at, key, why);
        }
    }

    /// Why a file must not have a secret in it.
    pub(super) fn exposed(&self, path: &Path, file: &Metadata) -> Option<String> {
        // What is no regular file, such as a pipe, is nobody else's.
        if file.is_file() { exposure(path, file.mode(), file.gid(), &self.groups) } else { None }
    }

    /// The line of a position, from 1.
    pub(super) fn line(&self, at: usize) -> usize {
        self.line_starts.partition_point(|start| *start <= at)
    }

    /// The errors and the warnings.
    pub(super) fn finish(self) -> (Vec<Problem>, Vec<Problem>) {
        (self.errors.into_inner().into_iter().collect(), self.warnings.into_inner().into_iter().collect())
    }
}

/// Keys of earlier versions, and what each is called now.
const RENAMED: [(&str, &str); 1] = [("limits.quarantine_after", "mail_after_failed_starts")];

/// Maximum number of lines with wrong syntax that are reported, because in a file of another kind every line is wrong.
const MOST_LINES: usize = 20;

/// Parses `text`, and records the first syntax error of each line.
pub(super) fn parse<'d>(text: &'d str, notes: &Notes<'_>) -> Option<Spanned<DeTable<'d>>> {
    let (root, errors) = DeTable::parse_recoverable(text);
    let mut lines = BTreeSet::new();
    for error in &errors {
        let at = error.span().map_or(0, |span| span.start);
        if lines.len() < MOST_LINES && lines.insert(notes.line(at)) {
            notes.error(at, "", format!("not TOML: {}", error.message()));
        }
    }
    errors.is_empty().then_some(root)
}

/// The worker whose section is being read, for `{name}`.
#[derive(Clone, Copy)]
pub(super) struct Member<'d> {
    /// Its name.
    pub(super) name: &'d str,
    /// Number of workers in the section.
    pub(super) of: usize,
}

/// A table whose keys are read one by one. Keys that are never read are unknown.
pub(super) struct Table<'d> {
    pub(super) notes: &'d Notes<'d>,
    pub(super) path: String,
    pub(super) at: usize,
    pub(super) member: Option<Member<'d>>,
    pub(super) map: &'d DeTable<'d>,
    /// The keys that may be read, all of which must be.
    keys: &'static Section,
    asked: RefCell<Vec<&'static str>>,
}

impl<'d> Table<'d> {
    pub(super) fn root(notes: &'d Notes<'d>, map: &'d DeTable<'d>, keys: &'static Section) -> Self {
        Self { notes, path: String::new(), at: 0, member: None, map, keys, asked: RefCell::default() }
    }

    /// An empty table for a section that is absent.
    pub(super) fn absent(&self, key: &str, keys: &'static Section, empty: &'d DeTable<'d>) -> Table<'d> {
        let (path, at) = (self.path_of(key), self.at);
        Table { notes: self.notes, path, at, member: self.member, map: empty, keys, asked: RefCell::default() }
    }

    /// The same table, read for this worker.
    pub(super) fn member(from: &Table<'d>, member: Option<Member<'d>>) -> Self {
        let (path, at) = (from.path.clone(), from.at);
        Table { notes: from.notes, path, at, member, map: from.map, keys: from.keys, asked: RefCell::default() }
    }

    pub(super) fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// The value of a key, which counts as known from now on.
    pub(super) fn get(&self, key: &'static str) -> Option<Value<'d>> {
        debug_assert!(self.keys.keys.iter().any(|k| k.name == key), "{} is not in config/keys.rs", self.path_of(key));
        self.asked.borrow_mut().push(key);
        let (found, value) = self.map.get_key_value(key)?;
        // The span of a table is its header, so the key is the better position.
        let at = if value.get_ref().is_table() { found.span().start } else { value.span().start };
        Some(Value { notes: self.notes, path: self.path_of(key), at, member: self.member, value: value.get_ref() })
    }

    /// The value of a key as `read` makes it; an error is noted if the key is missing.
    pub(super) fn required<T>(
        &self,
        key: &'static str,
        example: &str,
        read: impl FnOnce(&Value<'d>) -> Option<T>,
    ) -> Option<T> {
        let value = self.get(key);
        if value.is_none() {
            self.missing(key, example);
        }
        read(&value?)
    }

    /// Notes that a key is missing.
    pub(super) fn missing(&self, key: &str, example: &str) {
        self.notes.error(self.at, &self.path_of(key), format!("missing: write {example}"));
    }

    /// The value of a key as `read` makes it.
    pub(super) fn optional<T>(&self, key: &'static str, read: impl FnOnce(&Value<'d>) -> Option<T>) -> Option<T> {
        read(&self.get(key)?)
    }

    /// The value of a key as `read` makes it, or the default. After an error too; then the configuration is not used.
    pub(super) fn or<T>(&self, key: &'static str, default: T, read: impl FnOnce(&Value<'d>) -> Option<T>) -> T {
        self.optional(key, read).unwrap_or(default)
    }

    /// Records every key that was not read as unknown.
    pub(super) fn finish(&self) {
        let known = self.asked.borrow();
        for key in self.keys.keys {
            debug_assert!(known.contains(&key.name), "{} of config/keys.rs is never read", self.path_of(key.name));
        }
        for (key, value) in self.map {
            let name = key.get_ref().as_ref();
            if known.contains(&name) {
                continue;
            }
            let kind = if value.get_ref().is_table() { "section" } else { "key" };
            let renamed = RENAMED.iter().find(|(old, _)| *old == self.path_of(name)).map(|(_, new)| *new);
            if let Some(new) = renamed {
                let path = self.path_of(name);
                self.notes.error(key.span().start, &path, format!("is called `{new}` now"));
                continue;
            }
            let hint = match nearest(name, &known) {
                Some(near) => format!("did you mean `{near}`?"),
                None => {
                    let mut all: Vec<_> = known.iter().map(|k| format!("`{k}`")).collect();
                    all.sort();
                    all.dedup();
                    format!("known here are {}", all.join(", "))
                }
            };
            let path = self.path_of(&shorten(name));
            self.notes.error(key.span().start, &path, format!("unknown {kind}; {hint}"));
        }
    }

    /// All values as a text that depends on nothing else: not on order, spelling or comments. Omits the keys in
    /// `except`.
    pub(super) fn canonical(&self, except: &[&str]) -> String {
        let mut entries: Vec<_> = self
            .map
            .iter()
            .filter(|(key, _)| !except.contains(&key.get_ref().as_ref()))
            .map(|(key, value)| format!("{:?}={}", key.get_ref(), canonical(value.get_ref(), self.member)))
            .collect();
        entries.sort();
        entries.join("\n")
    }
}

fn canonical(value: &DeValue<'_>, member: Option<Member<'_>>) -> String {
    match value {
        DeValue::String(text) => format!("{:?}", substitute(text, member)),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix()).unwrap_or(0).to_string(),
        DeValue::Float(number) => number.as_str().parse::<f64>().unwrap_or(0.0).to_string(),
        DeValue::Boolean(yes) => yes.to_string(),
        DeValue::Datetime(time) => time.to_string(),
        DeValue::Array(items) => {
            let items: Vec<_> = items.iter().map(|item| canonical(item.get_ref(), member)).collect();
            format!("[{}]", items.join(","))
        }
        DeValue::Table(map) => {
            let mut entries: Vec<_> = map
                .iter()
                .map(|(key, value)| format!("{:?}={}", key.get_ref(), canonical(value.get_ref(), member)))
                .collect();
            entries.sort();
            format!("{{{}}}", entries.join(","))
        }
    }
}

/// A text in which `{name}` is replaced by the worker's name.
pub(super) fn substitute(text: &str, member: Option<Member<'_>>) -> String {
    match member {
        Some(member) => text.replace("{name}", member.name),
        None => text.to_owned(),
    }
}

/// One value, with its position and its key's path.
#[derive(Clone)]
pub(super) struct Value<'d> {
    pub(super) notes: &'d Notes<'d>,
    pub(super) path: String,
    pub(super) at: usize,
    pub(super) member: Option<Member<'d>>,
    pub(super) value: &'d DeValue<'d>,
}

impl<'d> Value<'d> {
    /// Notes an error of this value. Returns none, so that a reader can end with it.
    pub(super) fn error<T>(&self, message: impl Into<String>) -> Option<T> {
        self.notes.error(self.at, &self.path, message);
        None
    }

    pub(super) fn warn(&self, message: impl Into<String>) {
        self.notes.warn(self.at, &self.path, message);
    }

    /// Records that the value has the wrong type.
    pub(super) fn wrong<T>(&self, expected: &str) -> Option<T> {
        let found = match self.value {
            DeValue::String(_) => "a string",
            DeValue::Integer(_) => "an integer",
            DeValue::Float(_) => "a number with a point",
            DeValue::Boolean(_) => "true or false",
            DeValue::Datetime(_) => "a date or time",
            DeValue::Array(_) => "a list",
            DeValue::Table(_) => "a table",
        };
        self.error(format!("expected {expected}, found {found}"))
    }

    /// Notes that this value has a secret in it, which is in the file itself if the value is a text.
    pub(super) fn note_secret(&self) {
        if self.is_text() {
            self.notes.literal.borrow_mut().get_or_insert_with(|| (self.at, self.path.clone()));
        }
    }

    pub(super) fn is_text(&self) -> bool {
        self.value.is_str()
    }

    /// The table that this is, of which `keys` are read.
    pub(super) fn table(&self, expected: &str, keys: &'static Section) -> Option<Table<'d>> {
        let DeValue::Table(map) = self.value else { return self.wrong(expected) };
        let (path, at) = (self.path.clone(), self.at);
        Some(Table { notes: self.notes, path, at, member: self.member, map, keys, asked: RefCell::default() })
    }

    /// The items of the list that this is, with their places.
    pub(super) fn items(&self, expected: &str) -> Option<Vec<Value<'d>>> {
        let DeValue::Array(items) = self.value else { return self.wrong(expected) };
        let item = |(i, item): (usize, &'d Spanned<DeValue<'d>>)| Value {
            notes: self.notes,
            path: format!("{}[{i}]", self.path),
            at: item.span().start,
            member: self.member,
            value: item.get_ref(),
        };
        Some(items.iter().enumerate().map(item).collect())
    }
}

/// The known word that is most similar to `word`.
fn nearest<'k>(word: &str, known: &[&'k str]) -> Option<&'k str> {
    let most = (word.chars().count() / 3).max(1);
    let scored = known.iter().map(|k| (strsim::osa_distance(word, k), *k)).filter(|(d, _)| *d <= most);
    scored.min().map(|(_, k)| k)
}
