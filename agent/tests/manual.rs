//! The manual page `rouse-agent(1)` contains what `rouse-agent --help` prints, with the markup of a manual page.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::Command;

/// The page that a help text makes: its first line, its options, and the paragraphs after them.
fn page(help: &str) -> String {
    let text = |line: &str| {
        let line = line.replace('\\', "\\\\").replace('-', "\\-");
        // A line that begins with one of these would be a request to the typesetter.
        if line.starts_with(['.', '\'']) { format!("\\&{line}") } else { line }
    };
    let mut page = String::from(
        ".\\\" Made from `rouse-agent --help`: ROUSE_BLESS=1 cargo test -p rouse-agent --test manual\n\
         .TH ROUSE\\-AGENT 1\n.SH NAME\nrouse\\-agent \\- the agent that runs rouse\\(aqs builds on a host\n",
    );
    let mut part = "";
    for line in help.lines().filter(|line| !line.is_empty()) {
        let next = if line.starts_with("usage: ") {
            "SYNOPSIS"
        } else if line.starts_with(' ') {
            "OPTIONS"
        } else {
            "DESCRIPTION"
        };
        if part != next {
            page.push_str(&format!(".SH {next}\n"));
            part = next;
        }
        match (part, line.trim().split_once("  ")) {
            ("OPTIONS", Some((option, about))) => {
                page.push_str(&format!(".TP\n.B {}\n{}\n", text(option), text(about.trim())));
            }
            ("DESCRIPTION", _) => page.push_str(&format!("{}\n.PP\n", text(line))),
            (_, _) => page.push_str(&format!("{}\n", text(line.trim_start_matches("usage: ").trim()))),
        }
    }
    page.push_str(".SH SEE ALSO\n.BR rouse (1)\n");
    page
}

#[test]
fn the_manual_page_is_the_help() {
    let help = Command::new(env!("CARGO_BIN_EXE_rouse-agent")).arg("--help").output().unwrap();
    assert!(help.status.success());
    let now = page(&String::from_utf8(help.stdout).unwrap());
    for part in ["SYNOPSIS", "OPTIONS", "DESCRIPTION"] {
        assert_eq!(now.matches(&format!(".SH {part}\n")).count(), 1, "{now}");
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../contrib/man/rouse-agent.1");
    if std::env::var_os("ROUSE_BLESS").is_some() {
        std::fs::write(&path, &now).unwrap();
    }
    assert!(
        now == std::fs::read_to_string(&path).unwrap_or_default(),
        "contrib/man/rouse-agent.1 is not what --help says: ROUSE_BLESS=1 cargo test -p rouse-agent --test manual"
    );
}
