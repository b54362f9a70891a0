//! The master: starts hosts when builds wait, hands builds out, and lets hosts go.

pub mod cli;
pub mod clock;
pub mod config;
pub mod core;
pub mod submission;
pub mod web;
