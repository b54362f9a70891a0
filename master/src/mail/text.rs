//! The text of a mail. The same news always give the same text.

use crate::core::mail::{Item, What};
use rouse_shared::Timestamp;
use std::time::{Duration, UNIX_EPOCH};

/// Largest number of names in a subject.
const NAMES: usize = 3;
/// Longest line in characters. Longer lines would have to be encoded, which is hard to read: 76 with the end of the line.
const COLUMNS: usize = 75;

/// The items of each kind, in the order of the mail.
#[derive(Default)]
struct Sorted<'i> {
    missing: Vec<&'i Item>,
    back: Vec<&'i Item>,
    orphans: Vec<&'i Item>,
    paused: Vec<&'i Item>,
    serving: Vec<&'i Item>,
    lingering: Vec<&'i Item>,
    gone: Vec<&'i Item>,
    broker: Vec<&'i Item>,
}

fn sort(items: &[Item]) -> Sorted<'_> {
    let mut sorted = Sorted::default();
    for item in items {
        match item.what {
            What::Missing { .. } => sorted.missing.push(item),
            What::Back { .. } => sorted.back.push(item),
            What::Orphan { .. } => sorted.orphans.push(item),
            What::PlacePaused { .. } => sorted.paused.push(item),
            What::PlaceBack { .. } => sorted.serving.push(item),
            What::Lingering { .. } => sorted.lingering.push(item),
            What::LingeringOver { .. } => sorted.gone.push(item),
            What::BrokerBlocked { .. } | What::BrokerUnblocked { .. } => sorted.broker.push(item),
        }
    }
    sorted
}

fn name(item: &Item) -> &str {
    match &item.what {
        What::Missing { worker, .. } | What::Back { worker, .. } => worker.as_str(),
        What::Orphan { handle, .. } => handle,
        What::PlacePaused { place, .. } | What::PlaceBack { place, .. } => place,
        What::Lingering { machine, .. } | What::LingeringOver { machine, .. } => machine,
        What::BrokerBlocked { .. } => "accepts no messages",
        What::BrokerUnblocked { .. } => "accepts messages again",
    }
}

fn moment(at: Timestamp) -> String {
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(at.0 / 1000)).to_string()
}

pub(super) fn subject(master: &str, items: &[Item]) -> String {
    let Sorted { missing, back, orphans, paused, serving, lingering, gone, broker } = sort(items);
    let part = |what: &str, some: &[&Item]| match some {
        [] => None,
        few if few.len() <= NAMES => {
            Some(format!("{what}: {}", few.iter().map(|i| name(i)).collect::<Vec<_>>().join(", ")))
        }
        many => Some(format!("{what}: {} and {} more", name(many[0]), many.len() - 1)),
    };
    let parts = [
        part("broker", &broker),
        part("missing", &missing),
        part("back", &back),
        part("orphan", &orphans),
        part("not terminated", &lingering),
        part("terminated at last", &gone),
        part("no hosts from", &paused),
        part("hosts again from", &serving),
    ];
    format!("[rouse {master}] {}", parts.into_iter().flatten().collect::<Vec<_>>().join("; "))
}

pub(super) fn body(master: &str, items: &[Item]) -> String {
    let Sorted { missing, back, orphans, paused, serving, lingering, gone, broker } = sort(items);
    let mut out = String::new();
    for (head, some) in [
        ("The broker:", broker),
        ("Workers that are missing:", missing),
        ("Workers that are back:", back),
        ("Machines of this master that are not in the ledger (orphans):", orphans),
        ("Machines that could not be terminated, and may cost money:", lingering),
        ("Machines that are gone now:", gone),
        ("Places that start no hosts (builds wait for them):", paused),
        ("Places that start hosts again:", serving),
    ] {
        if some.is_empty() {
            continue;
        }
        paragraph(&mut out, "", head);
        for item in some {
            paragraph(&mut out, "  ", name(item));
            paragraph(&mut out, "      ", &details(item));
        }
        out.push('\n');
    }
    paragraph(&mut out, "", &format!("Reported by the rouse master {master}."));
    paragraph(&mut out, "", "`rouse workers`, `rouse hosts` and `rouse places` show the current state.");
    out
}

/// Wraps a text into lines that need no encoding. A provider's message may have line breaks of its own.
fn paragraph(out: &mut String, indent: &str, text: &str) {
    let mut column = 0;
    for word in text.split_whitespace() {
        let length = word.chars().count();
        if column == 0 || column + 1 + length > COLUMNS {
            out.push_str(if column == 0 { "" } else { "\n" });
            out.push_str(indent);
            column = indent.len();
        } else {
            out.push(' ');
            column += 1;
        }
        out.push_str(word);
        column += length;
    }
    out.push('\n');
}

fn details(item: &Item) -> String {
    let at = moment(item.at);
    match &item.what {
        What::Missing { why, .. } => format!("{why} (at {at})"),
        What::Back { missing_since, .. } => format!("since {at}; it was missing from {}", moment(*missing_since)),
        What::PlacePaused { provider, why, since, .. } => {
            format!("{}, since {}: {why}", provider.as_str(), moment(*since))
        }
        What::PlaceBack { provider, since, .. } => {
            format!("{}, since {at}; it was paused from {}", provider.as_str(), moment(*since))
        }
        What::Orphan { provider, host, terminated, .. } => {
            let then = if *terminated {
                "it is being terminated"
            } else {
                "it is left running, because audit.on_orphan is \"report\""
            };
            format!("a machine of {} with the owner tag of {host}, found at {at}; {then}", provider.as_str())
        }
        What::Lingering { provider, host, why, since, .. } => {
            format!("{}, host {host}, asked to end at {}: {why}", provider.as_str(), moment(*since))
        }
        What::LingeringOver { provider, host, since, .. } => {
            format!("{}, host {host}, since {at}; it was first asked to end at {}", provider.as_str(), moment(*since))
        }
        What::BrokerBlocked { why } => format!(
            "{why} (at {at}); builds that run go on for {} minutes at least if their lease is not short, and nothing is \
             started until there is room",
            crate::core::BLOCKED_MINUTES
        ),
        What::BrokerUnblocked { since } => format!("at {at}; it had accepted none since {}", moment(*since)),
    }
}
