//! The master's side of the broker with a real RabbitMQ: private node, permissions, link, TLS.
//!
//! Each test has a process, and a node's start takes longer than most of what is tested. Therefore one test makes all
//! checks that can share a node.
#![allow(clippy::unwrap_used)]

mod auth;
mod harness;
mod ipv6;
mod life;
mod link;
mod owner;
mod throughput;

use std::panic::catch_unwind;

/// Makes checks one after the other, each in a runtime of its own; the names of those that failed.
macro_rules! failed {
    ($($check:path),+ $(,)?) => {{
        let mut failed = Vec::new();
        $(
            println!("{}", stringify!($check));
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            if catch_unwind(|| runtime.block_on($check())).is_err() {
                failed.push(stringify!($check));
            }
        )+
        failed
    }};
}

/// Each has its own worker names. One that fails does not prevent the others.
#[test]
fn agents_reach_only_what_is_theirs_and_messages_go_both_ways() {
    let failed = failed![
        auth::wrong_passwords_and_unknown_names_are_refused_alike_and_logged_with_their_address,
        auth::wrong_passwords_delay_nobody_who_is_right,
        auth::an_agent_reaches_nothing_but_its_own,
        auth::a_lie_about_the_sender_is_refused_by_the_broker,
        auth::a_message_beyond_all_measure_stops_at_the_broker,
        link::an_agent_says_hello_and_is_answered_in_its_own_queue,
        link::what_is_no_message_is_counted_and_disturbs_nobody,
        link::builds_are_taken_and_answered_and_events_go_out,
        link::dead_letters_are_counted_for_the_owner_of_their_queue,
    ];
    assert!(failed.is_empty(), "{failed:?}; the panics above say why");
}
