//! `rouse audit`: prints the differences between the ledger and the lists of the providers.

use super::args::Note;
use super::client::Client;
use super::error::CliError;
use super::exit::Exit;
use super::output::{self, Table, or_dash, say};
use crate::api;

/// Runs an audit, and prints what it has found. Returns the exit code.
pub(super) async fn run(
    client: &Client,
    (fix, adopt): (bool, bool),
    note: &Note,
    as_json: bool,
) -> Result<Exit, CliError> {
    let report: api::Audit = if fix {
        client.post_json(&note.added_to("/api/audit"), &api::AuditRequest { fix, adopt }).await?
    } else {
        client.get("/api/audit").await?
    };
    let (clean, differences) = (report.clean, &report.differences);
    if as_json {
        output::json(&report)?;
    } else {
        if !differences.is_empty() {
            let head = ["KIND", "PROVIDER", "HANDLE", "HOST", "OWNER", "DONE", "WHY"];
            output::bytes(Table::new(head, differences.iter().map(row)).to_string().as_bytes())?;
        }
        let verdict = if clean { "nothing differs" } else { "the ledger and the providers differ" };
        let still = if fix && !differences.is_empty() { if clean { " any more" } else { " still" } } else { "" };
        let counts = format!("{} in the ledger, {} listed", report.hosts, report.listed);
        say(&format!("{verdict}{still}: {counts}"));
    }
    Ok(if clean { Exit::Success } else { Exit::Failure })
}

fn row(difference: &api::Difference) -> [String; 7] {
    [
        difference.kind.as_str().to_owned(),
        difference.provider.as_str().to_owned(),
        or_dash(difference.handle.as_ref()),
        or_dash(difference.host.as_ref()),
        or_dash(difference.owner.as_ref()),
        if difference.done { "yes" } else { "no" }.to_owned(),
        difference.why.clone(),
    ]
}
