//! `rouse cancel`: cancels the builds that a user names, or all that meet conditions.

use super::args::{CancelFilter, Note};
use super::client::Client;
use super::error::CliError;
use super::exit::Exit;
use super::output::{plain, say};
use super::terminate::confirmed;
use crate::api;
use crate::core::build::BuildState;

/// Number of builds in one request.
const PAGE: usize = 1_000;
/// Builds that are named before the user confirms; the others are counted.
const SHOWN: usize = 10;

/// Cancels these builds; if there are none, those that fit.
pub(super) async fn run(
    client: &Client,
    ids: &[u64],
    filter: &CancelFilter,
    note: &Note,
    yes: bool,
) -> Result<Exit, CliError> {
    if !ids.is_empty() {
        // A build that has ended in the meantime must not keep the others.
        let mut refused = Ok(Exit::Success);
        for id in ids {
            match cancel(client, *id, note).await {
                Err(CliError::Refused(why)) => {
                    if let Err(CliError::Refused(before)) = std::mem::replace(&mut refused, Err(CliError::Refused(why)))
                    {
                        say(&plain(&before));
                    }
                }
                done => done?,
            }
        }
        return refused;
    }
    let builds = matching(client, filter).await?;
    if builds.is_empty() {
        say("there are no such builds");
        return Ok(Exit::Success);
    }
    if !yes && takes_all(filter) {
        say(&plain(&consequences(&builds)));
        if !confirmed("cancel")? {
            say("nothing was done");
            return Ok(Exit::Failure);
        }
    }
    for build in builds {
        match cancel(client, build.id.0.0, note).await {
            Err(CliError::Refused(why)) => say(&plain(&why)),
            done => done?,
        }
    }
    Ok(Exit::Success)
}

async fn cancel(client: &Client, id: u64, note: &Note) -> Result<(), CliError> {
    let cancelled: api::AcceptedBuild = client.post(&note.added_to(&format!("/api/builds/{id}/cancel"))).await?;
    say(&format!("build {} is being cancelled", cancelled.id));
    Ok(())
}

/// Whether the conditions are met by builds of every kind: no worker, no property, and a name that everything fits.
fn takes_all(filter: &CancelFilter) -> bool {
    let any_name = filter.name.as_ref().is_none_or(|name| name.chars().all(|c| matches!(c, '*' | '?')));
    any_name && filter.worker.is_none() && filter.properties.is_empty()
}

/// The builds that meet the conditions and have not ended, oldest first.
async fn matching(client: &Client, filter: &CancelFilter) -> Result<Vec<api::Build>, CliError> {
    let states = match filter.state {
        Some(state) => vec![state],
        None => BuildState::ALL.into_iter().filter(|state| !state.is_final()).collect(),
    };
    let mut found: Vec<api::Build> = Vec::new();
    for state in states {
        let mut before = None;
        loop {
            let page: Vec<api::Build> = client.get(&format!("/api/builds?{}", query(filter, state, before))).await?;
            before = page.last().map(|last| last.id.0.0);
            let whole = page.len() >= PAGE;
            found.extend(page);
            if !whole {
                break;
            }
        }
    }
    // A build may have changed its state between two requests.
    found.sort_by_key(|build| build.id);
    found.dedup_by_key(|build| build.id);
    Ok(found)
}

fn query(filter: &CancelFilter, state: BuildState, before: Option<u64>) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.append_pair("limit", &PAGE.to_string()).append_pair("state", state.as_str());
    query.extend_pairs(filter.worker.iter().map(|worker| ("worker", worker.as_str())));
    query.extend_pairs(filter.name.iter().map(|name| ("name", name)));
    query.extend_pairs(before.iter().map(|before| ("before", before.to_string())));
    query.extend_pairs(filter.properties.iter().map(|(key, value)| ("where", format!("{key}={value}"))));
    query.finish()
}

fn consequences(builds: &[api::Build]) -> String {
    let named = |build: &api::Build| match build.name.as_str() {
        "" => build.id.to_string(),
        name => format!("{} ({name})", build.id),
    };
    let shown: Vec<_> = builds.iter().take(SHOWN).map(named).collect();
    let more = match builds.len().saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!(", and {more} more"),
    };
    let count = if builds.len() == 1 { "1 build".to_owned() } else { format!("{} builds", builds.len()) };
    format!("the conditions let every name through: this cancels {count}: {}{more}", shown.join(", "))
}
