//! `rouse audit`: what differs between the ledger and the clouds.

use super::Failed;
use super::client::Client;
use super::output::{self, Table, say, text};
use serde_json::{Value, json};

/// Something differs.
const DIFFERS: u8 = 1;

/// Runs an audit, and prints what it has found. Returns the exit code.
pub(super) async fn run(client: &Client, fix: bool, adopt: bool, as_json: bool) -> Result<u8, Failed> {
    let report = if fix {
        client.post("/api/audit", Some(&json!({ "fix": fix, "adopt": adopt }))).await?
    } else {
        client.get("/api/audit").await?
    };
    let (Some(clean), Some(differences)) = (report["clean"].as_bool(), report["differences"].as_array()) else {
        return Err(Failed::Refused("the server did not answer with an audit: is it a rouse master?".to_owned()));
    };
    if as_json {
        output::json(&report)?;
    } else {
        if !differences.is_empty() {
            let head = ["KIND", "PROVIDER", "HANDLE", "HOST", "OWNER", "DONE", "WHY"];
            output::bytes(Table::new(head, differences.iter().map(row)).to_string().as_bytes())?;
        }
        let verdict = if clean { "nothing differs" } else { "ledger and clouds differ" };
        let still = if fix && !differences.is_empty() { if clean { " any more" } else { " still" } } else { "" };
        let counts = format!("{} in the ledger, {} listed", text(&report["hosts"]), text(&report["listed"]));
        say(&format!("{verdict}{still}: {counts}"));
    }
    Ok(if clean { 0 } else { DIFFERS })
}

fn row(difference: &Value) -> [String; 7] {
    let done = if difference["done"] == true { "yes" } else { "no" };
    let cell = |key: &str| text(&difference[key]);
    [cell("kind"), cell("provider"), cell("handle"), cell("host"), cell("owner"), done.to_owned(), cell("why")]
}
