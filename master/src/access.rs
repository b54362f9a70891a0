//! Who may do what over the API: the rights, the tokens that have them, and the proxies that are believed.

use crate::sync::lock;
use sha2::{Digest as _, Sha256};
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::{Arc, Mutex};

/// The name of the master's own token, which has every right.
pub const OWN_TOKEN: &str = "admin";

/// A right over the API.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Right {
    /// Read everything but the journal.
    Read,
    /// Submit builds; cancel and repeat one's own.
    Build,
    /// Work on workers, hosts, places and all builds.
    Operate,
    /// Everything.
    Admin,
}

impl Right {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Read, Self::Build, Self::Operate, Self::Admin];

    /// As it is written in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Build => "build",
            Self::Operate => "operate",
            Self::Admin => "admin",
        }
    }

    const fn bit(self) -> u8 {
        match self {
            Self::Read => 1,
            Self::Build => 2,
            Self::Operate => 4,
            Self::Admin => 8,
        }
    }
}

/// Some rights. Everybody who has any may read, because nobody can follow a build or look at a host otherwise.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rights(u8);

impl Rights {
    /// Those of the master's own token.
    pub const EVERY: Self = Self(Right::Admin.bit());

    /// These, and the right to read.
    pub fn of(rights: impl IntoIterator<Item = Right>) -> Self {
        Self(rights.into_iter().fold(Right::Read.bit(), |all, right| all | right.bit()))
    }

    /// Whether they include this one.
    pub fn allow(self, right: Right) -> bool {
        self.0 & (right.bit() | Right::Admin.bit()) != 0
    }
}

impl fmt::Display for Rights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = Right::ALL.into_iter().filter(|right| self.0 & right.bit() != 0).map(Right::as_str);
        f.write_str(&names.collect::<Vec<_>>().join(", "))
    }
}

/// The SHA-256 of a token. A token has 256 random bits, so nobody finds it by trying, however fast the hash is. A slow
/// hash protects passwords that people choose; here, it would only slow every request down.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct TokenHash([u8; 32]);

/// What the text of a hash begins with.
const PREFIX: &str = "sha256:";

impl TokenHash {
    /// The hash of this token.
    pub fn of(token: &str) -> Self {
        Self(Sha256::digest(token).into())
    }

    /// Whether both are equal, in a time that does not depend on where they differ.
    fn is(&self, other: &Self) -> bool {
        let differing = self.0.iter().zip(&other.0).fold(0, |seen, (a, b)| seen | (a ^ b));
        std::hint::black_box(differing) == 0
    }
}

impl fmt::Display for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", hex::encode(self.0))
    }
}

/// Why a text is not the hash of a token.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HashError {
    /// It begins with something else.
    #[error("must be \"sha256:\" and 64 hexadecimal digits: `rouse token new NAME` prints it")]
    Prefix,
    /// It has another number of digits.
    #[error("has {0} characters after \"sha256:\" and not 64: `rouse token new NAME` prints the whole hash")]
    Length(usize),
    /// It has something else between the digits.
    #[error("has a character that is not a hexadecimal digit: `rouse token new NAME` prints the hash")]
    Digit,
}

impl FromStr for TokenHash {
    type Err = HashError;

    fn from_str(text: &str) -> Result<Self, HashError> {
        let digits = text.strip_prefix(PREFIX).ok_or(HashError::Prefix)?;
        let mut bytes = [0; 32];
        hex::decode_to_slice(digits, &mut bytes).map_err(|error| match error {
            hex::FromHexError::InvalidHexCharacter { .. } => HashError::Digit,
            hex::FromHexError::OddLength | hex::FromHexError::InvalidStringLength => {
                HashError::Length(digits.chars().count())
            }
        })?;
        Ok(Self(bytes))
    }
}

/// A token of the configuration.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NamedToken {
    /// Its name, which is unique.
    pub name: String,
    /// The hash of the token, which is unique too.
    pub hash: TokenHash,
    /// What its holder may do.
    pub may: Rights,
}

/// The proxies that say who a user is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RemoteUser {
    /// The addresses that they connect from.
    pub trusted_proxies: Vec<IpAddr>,
    /// What their users may do.
    pub may: Rights,
}

/// Who may use the API besides the holder of the master's own token.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Rules {
    /// `[[token]]`
    pub tokens: Vec<NamedToken>,
    /// `[remote_user]`; absent: no proxy is believed.
    pub remote_user: Option<RemoteUser>,
}

impl Rules {
    /// The token of which this is the text. Each one is compared, so that the time tells nothing.
    pub fn token(&self, text: &str) -> Option<&NamedToken> {
        let given = TokenHash::of(text);
        self.tokens.iter().fold(None, |found, token| if token.hash.is(&given) { Some(token) } else { found })
    }

    /// What the users of the proxy at this address may do, if it is a trusted one.
    pub fn proxied(&self, address: IpAddr) -> Option<Rights> {
        let remote = self.remote_user.as_ref()?;
        // A socket for both families has addresses of the older one in another form.
        let known = remote.trusted_proxies.iter().any(|proxy| proxy.to_canonical() == address.to_canonical());
        known.then_some(remote.may)
    }
}

/// The rules that are in effect, which a reload replaces.
#[derive(Clone, Debug, Default)]
pub struct Access(Arc<Mutex<Arc<Rules>>>);

impl Access {
    /// These rules.
    pub fn new(rules: Rules) -> Self {
        Self(Arc::new(Mutex::new(Arc::new(rules))))
    }

    /// The rules of a new configuration.
    pub fn configure(&self, rules: Rules) {
        *lock(&self.0) = Arc::new(rules);
    }

    /// The rules that are in effect now.
    pub fn rules(&self) -> Arc<Rules> {
        lock(&self.0).clone()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn whoever_has_a_right_may_read_and_admin_may_everything() {
        let may = |rights: &[Right]| Right::ALL.map(|right| Rights::of(rights.iter().copied()).allow(right));
        assert_eq!(may(&[Right::Read]), [true, false, false, false]);
        assert_eq!(may(&[Right::Build]), [true, true, false, false]);
        assert_eq!(may(&[Right::Operate]), [true, false, true, false]);
        assert_eq!(may(&[Right::Build, Right::Operate]), [true, true, true, false]);
        assert_eq!(may(&[Right::Admin]), [true; 4]);
        assert_eq!(Right::ALL.map(|right| Rights::EVERY.allow(right)), [true; 4]);
        assert_eq!(Rights::of([Right::Operate]).to_string(), "read, operate");
    }

    #[test]
    fn a_hash_is_read_as_it_is_written() {
        let hash = TokenHash::of("secret");
        let text = "sha256:2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";
        assert_eq!(hash.to_string(), text);
        assert_eq!(text.parse(), Ok(hash));
        let digits = text.trim_start_matches(PREFIX);
        for (wrong, error) in [
            (digits.to_owned(), HashError::Prefix),
            (format!("{PREFIX}{}", &digits[1..]), HashError::Length(63)),
            (format!("{text}00"), HashError::Length(66)),
            (PREFIX.to_owned(), HashError::Length(0)),
            (format!("{PREFIX}x{}", &digits[1..]), HashError::Digit),
        ] {
            assert_eq!(wrong.parse::<TokenHash>(), Err(error), "{wrong}");
        }
    }

    #[test]
    fn only_the_whole_token_is_known_and_only_a_listed_proxy_is_believed() {
        let named = |name: &str| NamedToken {
            name: name.to_owned(),
            hash: TokenHash::of(&format!("{name}-secret")),
            may: Rights::of([Right::Build]),
        };
        let trusted_proxies = ["192.0.2.1", "2001:db8::1"].map(|address| address.parse().unwrap()).to_vec();
        let remote_user = Some(RemoteUser { trusted_proxies, may: Rights::of([Right::Read]) });
        let rules = Rules { tokens: vec![named("a"), named("b")], remote_user };
        let found = |text| rules.token(text).map(|token| token.name.as_str());
        assert_eq!((found("a-secret"), found("b-secret")), (Some("a"), Some("b")));
        for wrong in ["", "a", "a-secre", "a-secrets", "A-secret", &named("a").hash.to_string()] {
            assert_eq!(found(wrong), None, "{wrong}");
        }
        for (address, trusted) in [
            ("192.0.2.1", true),
            ("::ffff:192.0.2.1", true),
            ("2001:db8::1", true),
            ("192.0.2.2", false),
            ("127.0.0.1", false),
        ] {
            assert_eq!(rules.proxied(address.parse().unwrap()).is_some(), trusted, "{address}");
        }
        assert_eq!(Rules::default().proxied("192.0.2.1".parse().unwrap()), None);
    }
}
