//! The core: decides everything, does nothing. `handle(now, Event) -> Vec<Effect>`, without clock, files or network.

pub mod build;
pub mod event;
pub mod plan;
pub mod record;
pub mod view;
