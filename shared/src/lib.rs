//! The protocol between the master and its agents: ids, messages, codec, names on the broker, limits. Also what both
//! parse and print in the same way: broker URLs, durations, secrets, chains of errors, certificates: their
//! fingerprints and their faults.
//!
//! Pure: no I/O, no clock, no runtime. Agents live in old machine images, so the protocol only ever grows; [`message`]
//! has the rules.

pub mod boot;
pub mod broker_url;
pub mod certificate;
pub mod codec;
pub mod duration;
pub mod error;
pub mod exposure;
pub mod fingerprint;
pub mod ids;
pub mod limits;
pub mod message;
pub mod names;
mod secret;
pub mod size;
pub mod time;

pub use broker_url::BrokerUrl;
pub use fingerprint::Fingerprint;
pub use ids::{AttemptId, BuildId, HostId, MasterId, Nonce, SessionId, WorkerName};
pub use secret::Secret;
pub use time::Timestamp;
