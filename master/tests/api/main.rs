//! The HTTP API and the commands over real sockets, against a master whose state the tests set.
#![allow(clippy::unwrap_used, reason = "tests")]

mod commands;
mod doors;
mod fake;
mod following;
mod http;
mod page;
mod retention;
mod rights;
mod stored;
