//! `[[token]]` and `[remote_user]`: who may use the API besides the holder of the master's own token.

use super::document::{Table, Value};
use super::{MasterConfig, keys, shorten};
use crate::access::{HashError, NamedToken, OWN_TOKEN, RemoteUser, Right, Rights, Rules, TokenHash};
use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;

/// The file with the master's own token, in the state directory.
const OWN_FILE: &str = "api-token";
/// Longest name of a token, characters.
const MAX_NAME: usize = 63;

/// Reads both.
pub(super) fn read(root: &Table<'_>, master: &MasterConfig) -> Rules {
    let sections = root.optional("token", |v| v.items("a list of sections: write [[token]], with two brackets"));
    let mut tokens = Tokens { own: own_token(master), ..Tokens::default() };
    for part in sections.unwrap_or_default() {
        let Some(mut table) = part.table("a section: write [[token]]", &keys::TOKEN) else { continue };
        table.path = "token".to_owned();
        tokens.section(&table);
    }
    Rules { tokens: tokens.read, remote_user: remote_user(root) }
}

/// Whether this can be the name of a token.
pub fn is_token_name(name: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    (1..=MAX_NAME).contains(&name.len()) && name.chars().all(fits)
}

/// The hash of the master's own token, as far as it is known now: the file is made when the master is started.
fn own_token(master: &MasterConfig) -> Option<TokenHash> {
    match &master.api_token {
        Some(token) => Some(TokenHash::of(token.expose())),
        None => fs::read_to_string(master.state_dir.join(OWN_FILE)).ok().map(|token| TokenHash::of(token.trim())),
    }
}

#[derive(Default)]
struct Tokens {
    read: Vec<NamedToken>,
    /// The line of each name, and the name and the line of each hash.
    names: BTreeMap<String, usize>,
    hashes: BTreeMap<TokenHash, (String, usize)>,
    own: Option<TokenHash>,
}

impl Tokens {
    fn section(&mut self, table: &Table<'_>) {
        let name = table.required("name", "name = \"…\"", |v| self.name(v));
        let hash = table.required("hash", "hash = \"sha256:…\", which `rouse token new NAME` prints", |v| {
            self.hash(v, name.as_deref().unwrap_or("another one"))
        });
        let may = table.required("may", "may = [\"build\"]", rights);
        table.finish();
        if let (Some(name), Some(hash), Some(may)) = (name, hash, may) {
            self.read.push(NamedToken { name, hash, may });
        }
    }

    fn name(&mut self, value: &Value<'_>) -> Option<String> {
        let name = value.word()?;
        if !is_token_name(&name) {
            return value.error("must be 1 to 63 of letters, digits, '-', '_' and '.'");
        }
        if name == OWN_TOKEN {
            return value.error(format!("{OWN_TOKEN:?} is the master's own token: choose another name"));
        }
        if let Some(line) = self.names.get(&name) {
            return value.error(format!("a token named {name} is given on line {line} already: names are unique"));
        }
        self.names.insert(name.clone(), value.notes.line(value.at));
        Some(name)
    }

    fn hash(&mut self, value: &Value<'_>, name: &str) -> Option<TokenHash> {
        let hash: Result<TokenHash, HashError> = value.word()?.parse();
        let hash = hash.map_or_else(|error| value.error(error.to_string()), Some)?;
        if self.own == Some(hash) {
            return value.error("is the hash of the master's own token, which has every right: make another token");
        }
        if let Some((other, line)) = self.hashes.get(&hash) {
            return value
                .error(format!("is the hash of the token {other} on line {line} too: each needs its own token"));
        }
        self.hashes.insert(hash, (name.to_owned(), value.notes.line(value.at)));
        Some(hash)
    }
}

/// A list of rights that is not empty.
fn rights(value: &Value<'_>) -> Option<Rights> {
    let choices = Right::ALL.map(|right| (right.as_str(), right));
    let before = value.notes.errors();
    let rights = value.list(|v| v.choice(&choices))?;
    if rights.is_empty() && value.notes.errors() == before {
        return value.error("must have at least one right: write [\"read\"]");
    }
    Some(Rights::of(rights))
}

fn remote_user(root: &Table<'_>) -> Option<RemoteUser> {
    let table = root.optional("remote_user", |v| v.table("a section: write [remote_user]", &keys::REMOTE_USER))?;
    let trusted_proxies = table.required("trusted_proxies", "trusted_proxies = [\"192.0.2.1\"]", |v| {
        let before = v.notes.errors();
        let proxies = v.one_or_list(proxy)?;
        if proxies.is_empty() && v.notes.errors() == before {
            return v.error("must have at least one address: without a proxy, leave [remote_user] out");
        }
        Some(proxies)
    });
    let may = table.required("may", "may = [\"read\"]", rights);
    table.finish();
    Some(RemoteUser { trusted_proxies: trusted_proxies?, may: may? })
}

fn proxy(value: &Value<'_>) -> Option<IpAddr> {
    let text = value.word()?;
    let Ok(address) = text.parse::<IpAddr>() else {
        return value.error(format!(
            "{:?} is not an address: write \"192.0.2.1\" or \"2001:db8::1\", without a port",
            shorten(&text)
        ));
    };
    if address.to_canonical().is_loopback() {
        value.warn("every user of this machine can connect from there and call themselves what they like");
    }
    if address.is_unspecified() {
        return value.error("is no address that anybody connects from: give that of the proxy");
    }
    Some(address)
}
