//! The master: starts hosts when builds wait, assigns builds to them, and terminates them when they are idle.

pub mod access;
pub mod api;
pub mod api_token;
#[cfg(any(feature = "ec2", feature = "s3"))]
mod aws;
pub mod blobs;
pub mod broker;
pub mod cli;
pub mod clock;
pub mod config;
pub mod core;
pub mod demo;
pub mod descriptors;
pub mod driver;
pub mod files;
pub mod hosts;
pub mod http_server;
pub mod logs;
pub mod mail;
pub mod metrics;
mod peer;
#[cfg(any(feature = "ec2", feature = "openstack", feature = "s3"))]
mod proxy;
pub mod store;
pub mod submission;
pub mod sync;
pub mod tls;
mod users;
pub mod web;
