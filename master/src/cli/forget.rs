//! `rouse forget`: explains the consequences, and then gives up a host or a place that is gone for good.

use super::args::Note;
use super::client::Client;
use super::error::CliError;
use super::exit::Exit;
use super::output::{plain, say};
use super::terminate::confirmed;
use crate::api;

/// Gives up a host or a place if the user agrees.
pub(super) async fn run(client: &Client, target: &str, note: &Note, yes: bool) -> Result<Exit, CliError> {
    let hosts: Vec<api::Host> = client.get("/api/hosts").await?;
    if let Some(host) = hosts.iter().find(|host| host.id.0 == target) {
        say(&plain(&of_host(host)));
        if !yes && !confirmed("forget")? {
            say("nothing was done");
            return Ok(Exit::Failure);
        }
        let done: api::ForgottenHost = client.post(&note.added_to(&format!("/api/hosts/{}/forget", host.id))).await?;
        say(&format!("host {} is given up", done.id));
        return Ok(Exit::Success);
    }
    let places: Vec<api::Place> = client.get("/api/places").await?;
    let mut named = places.iter().filter(|place| place.id == target || place.name == target);
    let Some(place) = named.next() else {
        let text = format!("there is no host and no place {target}; `rouse hosts` and `rouse places` list them");
        return Err(CliError::Refused(text));
    };
    if let Some(other) = named.next() {
        let text = format!("{target} is the name of {} and of {}: give the id", place.id, other.id);
        return Err(CliError::Refused(text));
    }
    say(&plain(&of_place(place)));
    if !yes && !confirmed("forget")? {
        say("nothing was done");
        return Ok(Exit::Failure);
    }
    let done: api::ForgottenPlace = client.post(&note.added_to(&format!("/api/places/{}/forget", place.id))).await?;
    say(&format!("place {} is given up", done.id));
    Ok(Exit::Success)
}

fn of_host(host: &api::Host) -> String {
    let machine = host.handle.as_ref().map_or_else(String::new, |handle| format!(" {handle}"));
    format!(
        "forgetting host {} of worker {} ({}{machine}, {}): its machine may still run and cost money, and rouse no longer \
         ends it unless it is seen again as an orphan; its builds are retried elsewhere after its lease and grace",
        host.id,
        host.worker,
        host.provider.as_str(),
        host.state.as_str(),
    )
}

fn of_place(place: &api::Place) -> String {
    format!(
        "forgetting place {} ({}, {}) and its {} host(s): their machines may still run and cost money, and rouse no longer \
         looks there unless the configuration names the place",
        place.name,
        place.provider.as_str(),
        place.state.as_str(),
        place.hosts,
    )
}
