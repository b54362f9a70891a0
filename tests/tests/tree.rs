//! Rules about the whole source tree: which module may import which, which files may read the clock, how long a file
//! may be, and that the first line of each file says what the file is for. The tests look only at the text.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The most lines a file of a program may have; past it, ask what a second module would be called.
const MAX_LINES: usize = 700;

/// The modules of the master that talk to something outside. They know core's types, and never each other.
const ADAPTERS: [&str; 7] = ["blobs", "broker", "hosts", "store", "logs", "mail", "web"];
/// What lies above the adapters.
const UPPER_LAYERS: [&str; 4] = ["driver", "cli", "demo", "main"];

/// One source file: its path below the repository with `/`, and its text.
struct Source {
    path: String,
    text: String,
}

impl Source {
    fn is_test(&self) -> bool {
        let name = self.path.rsplit('/').next().unwrap();
        self.path.starts_with("tests/")
            || self.path.contains("/tests/")
            || self.path.contains("/benches/")
            || name == "tests.rs"
            || name.ends_with("_tests.rs")
            || name.ends_with("_test.rs")
    }

    /// The modules from the crate's root down to this file: `hosts/ec2.rs` is [hosts, ec2], `hosts/mod.rs` is [hosts].
    fn modules(&self) -> Vec<&str> {
        let below = self.path.split_once("/src/").map_or("", |(_, rest)| rest).trim_end_matches(".rs");
        let mut parts: Vec<&str> = below.split('/').collect();
        if matches!(parts.last(), Some(&("mod" | "lib" | "main"))) {
            parts.pop();
        }
        parts
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// Every Rust file of the four crates, in order of path.
fn sources() -> Vec<Source> {
    let root = root();
    let mut found = Vec::new();
    for member in ["agent", "master", "shared", "tests", "images", "contrib"] {
        collect(&root, &root.join(member), &mut found);
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(found.len() > 8, "only {} files found below {}", found.len(), root.display());
    found
}

fn collect(root: &Path, dir: &Path, found: &mut Vec<Source>) {
    // images/ and contrib/ come and go.
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries {
        let entry = entry.unwrap();
        let path = entry.path();
        let name = entry.file_name();
        if entry.file_type().unwrap().is_dir() {
            if name != "target" && !name.to_string_lossy().starts_with('.') {
                collect(root, &path, found);
            }
        } else if path.extension().is_some_and(|e| e == "rs") {
            let below = path.strip_prefix(root).unwrap().to_str().unwrap().replace('\\', "/");
            found.push(Source { path: below, text: fs::read_to_string(&path).unwrap() });
        }
    }
}

/// The text without comments, each line kept in its place. A `//` inside a string is cut as well, unless it follows a
/// colon as in a URL: nothing that is looked for here stands behind one.
fn without_comments(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for line in text.lines() {
        let mut from = 0;
        let cut = loop {
            match line[from..].find("//") {
                Some(at) if line[..from + at].ends_with(':') => from += at + 2,
                Some(at) => break from + at,
                None => break line.len(),
            }
        };
        out.push_str(&line[..cut]);
        out.push('\n');
    }
    out
}

/// The text without a test module at its end.
fn without_inline_tests(text: &str) -> &str {
    let mut from = 0;
    while let Some(at) = text[from..].find("#[cfg(test)]") {
        let at = from + at;
        let next = text[at..].lines().map(str::trim).find(|l| !l.is_empty() && !l.starts_with("#["));
        if next.is_some_and(|l| l.starts_with("mod ") && l.ends_with('{')) {
            return &text[..at];
        }
        from = at + 1;
    }
    text
}

fn is_ident(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn first_ident(text: &str) -> &str {
    let text = text.trim_start();
    &text[..text.find(|c| !is_ident(c)).unwrap_or(text.len())]
}

/// What a path that was begun names next: one name, or the first names within its braces.
fn names_after(text: &str) -> Vec<&str> {
    let text = text.trim_start();
    let Some(group) = text.strip_prefix('{') else { return vec![first_ident(text)] };
    let mut names = Vec::new();
    let mut depth = 0_usize;
    let mut start = 0;
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                names.push(first_ident(&group[start..at]));
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                names.push(first_ident(&group[start..at]));
                start = at + 1;
            }
            _ => {}
        }
    }
    names.retain(|n| !n.is_empty());
    names
}

/// The top-level modules of its own crate that a file names, through `crate::` or through enough `super::`.
fn modules_used(source: &Source) -> BTreeSet<String> {
    let text = without_comments(&source.text);
    let depth = source.modules().len();
    let mut used = BTreeSet::new();
    for (at, _) in text.match_indices("crate::") {
        if !text[..at].ends_with(is_ident) && !text[..at].ends_with('$') {
            used.extend(names_after(&text[at + "crate::".len()..]).into_iter().map(str::to_owned));
        }
    }
    for (at, _) in text.match_indices("super::") {
        if text[..at].ends_with("super::") || text[..at].ends_with(is_ident) {
            continue;
        }
        let rest = &text[at..];
        let mut supers = 0;
        while rest[supers * "super::".len()..].starts_with("super::") {
            supers += 1;
        }
        if supers >= depth {
            used.extend(names_after(&rest[supers * "super::".len()..]).into_iter().map(str::to_owned));
        }
    }
    used
}

fn complain(rule: &str, wrong: &[String]) {
    assert!(wrong.is_empty(), "{rule}:\n  {}", wrong.join("\n  "));
}

#[test]
fn every_file_says_what_it_is_for() {
    let wrong: Vec<String> = sources().into_iter().filter(|s| !s.text.starts_with("//! ")).map(|s| s.path).collect();
    complain("each file begins with a `//!` line that says what it is for", &wrong);
}

/// A file that no other file declares is not compiled, and its tests do not run.
#[test]
fn every_file_is_compiled() {
    let all = sources();
    let declared = |source: &Source| {
        let (dir, name) = source.path.rsplit_once('/').unwrap();
        let name = name.trim_end_matches(".rs");
        let (module, parent) =
            if name == "mod" { dir.rsplit_once('/').map(|(p, n)| (n, p)).unwrap() } else { (name, dir) };
        let below = |other: &Source| other.path.starts_with(parent) || other.path == format!("{parent}.rs");
        let by_name =
            |other: &Source| below(other) && without_comments(&other.text).contains(&format!("mod {module};"));
        let by_path = |other: &Source| other.text.contains("#[path") && other.text.contains(&format!("{name}.rs\"]"));
        all.iter().any(|other| by_name(other) || by_path(other))
    };
    // What cargo finds by itself.
    let root = |path: &str| {
        let parts: Vec<&str> = path.split('/').collect();
        matches!(
            parts[..],
            [.., "src", "lib.rs"] | [.., "src", "bin", _] | [.., "main.rs"] | [_, "tests" | "benches" | "examples", _]
        )
    };
    let wrong: Vec<String> =
        all.iter().filter(|s| !root(&s.path) && !declared(s)).map(|source| source.path.clone()).collect();
    complain("a file is a module of another, or it is not compiled", &wrong);
}

#[test]
fn no_file_is_too_long() {
    let wrong: Vec<String> = sources()
        .iter()
        .filter(|s| !s.is_test())
        .map(|s| (&s.path, without_inline_tests(&s.text).lines().count()))
        .filter(|(_, lines)| *lines > MAX_LINES)
        .map(|(path, lines)| format!("{path}: {lines} lines"))
        .collect();
    complain(&format!("no file has more than {MAX_LINES} lines beside its tests"), &wrong);
}

#[test]
fn crates_import_downwards_only() {
    let forbidden: [(&str, &[&str]); 3] = [
        ("shared", &["rouse_agent", "rouse_master", "rouse_tests"]),
        ("agent", &["rouse_master", "rouse_tests"]),
        ("master", &["rouse_agent", "rouse_tests"]),
    ];
    let mut wrong = Vec::new();
    for (member, others) in forbidden {
        let manifest = fs::read_to_string(root().join(member).join("Cargo.toml")).unwrap();
        for other in others {
            if manifest.lines().any(|l| l.trim_start().starts_with(&other.replace('_', "-"))) {
                wrong.push(format!("{member}/Cargo.toml depends on {other}"));
            }
        }
    }
    for source in sources() {
        let text = without_comments(&source.text);
        for (member, others) in forbidden {
            if !source.path.starts_with(&format!("{member}/")) {
                continue;
            }
            for other in others {
                if text.contains(&format!("{other}::")) || text.contains(&format!("use {other}")) {
                    wrong.push(format!("{} uses {other}", source.path));
                }
            }
        }
    }
    complain("shared <- agent, shared <- master <- tests; agent and master never import each other", &wrong);
}

#[test]
fn shared_has_no_runtime_and_does_no_io() {
    // What its manifest may name, in this order.
    // rustls and webpki are there for the types of their errors, which both programs explain.
    const CRATES: [&str; 9] =
        ["rcgen", "ring", "rmp-serde", "rustls", "serde", "serde_bytes", "thiserror", "url", "webpki"];
    const IO: [&str; 7] =
        ["std::fs", "std::env", "std::process", "std::thread", "TcpStream", "TcpListener", "UdpSocket"];
    let manifest = fs::read_to_string(root().join("shared/Cargo.toml")).unwrap();
    let sections = manifest.split("\n[").filter(|section| section.split(']').next().unwrap().ends_with("dependencies"));
    let named = |section: &str| -> Vec<String> {
        let lines = section.lines().skip(1).filter(|line| !line.is_empty() && !line.starts_with('#'));
        lines.map(|line| line[..line.find(['.', ' ', '=']).unwrap_or(line.len())].to_owned()).collect()
    };
    let mut crates: Vec<String> = sections.flat_map(named).collect();
    crates.sort();
    assert_eq!(crates, CRATES, "the dependencies of shared");
    let mut wrong = Vec::new();
    for source in sources().iter().filter(|source| source.path.starts_with("shared/src/")) {
        let text = without_comments(without_inline_tests(&source.text));
        wrong.extend(IO.iter().filter(|io| text.contains(**io)).map(|io| format!("{}: {io}", source.path)));
    }
    complain("shared is plain data: no files, no sockets, no threads", &wrong);
}

#[test]
fn modules_of_the_master_import_lower_layers_only() {
    let mut wrong = Vec::new();
    for source in sources() {
        if !source.path.starts_with("master/src/") {
            continue;
        }
        let modules = source.modules();
        let Some(&module) = modules.first() else { continue };
        let used = modules_used(&source);
        let forbidden: Vec<&str> = if module == "core" {
            ADAPTERS.iter().chain(&UPPER_LAYERS).chain(&["api", "config", "clock"]).copied().collect()
        } else if module == "api" {
            ADAPTERS.iter().chain(&UPPER_LAYERS).copied().collect()
        } else if ADAPTERS.contains(&module) {
            ADAPTERS.iter().filter(|a| **a != module).chain(&UPPER_LAYERS).copied().collect()
        } else if module == "driver" {
            vec!["cli", "demo", "main"]
        } else {
            continue;
        };
        for name in forbidden {
            if used.contains(name) {
                wrong.push(format!("{} uses crate::{name}", source.path));
            }
        }
    }
    complain("core at the bottom; adapters use core and never each other; driver above them, cli at the top", &wrong);
}

#[test]
fn only_one_file_a_program_reads_the_clock() {
    const READS: [&str; 6] =
        ["Instant::now", "SystemTime::now", ".elapsed()", "clock_gettime", "gettimeofday", "libc::time("];
    let mut wrong = Vec::new();
    for source in sources() {
        if source.is_test() || source.path == "agent/src/clock.rs" || source.path == "master/src/clock.rs" {
            continue;
        }
        let text = without_comments(without_inline_tests(&source.text));
        for (number, line) in text.lines().enumerate() {
            if let Some(read) = READS.iter().find(|r| line.contains(**r)) {
                wrong.push(format!("{}:{}: {read}", source.path, number + 1));
            }
        }
    }
    complain("only agent/src/clock.rs and master/src/clock.rs read the clock", &wrong);
}

/// The checks above pass on a tree that keeps the rules; these show that they would fail on one that does not.
mod the_checks_themselves {
    use super::*;

    fn used(path: &str, text: &str) -> Vec<String> {
        modules_used(&Source { path: path.to_owned(), text: text.to_owned() }).into_iter().collect()
    }

    #[test]
    fn paths_are_found_in_every_form() {
        assert_eq!(used("master/src/hosts/ec2.rs", "use crate::store::Ledger;"), ["store"]);
        assert_eq!(
            used("master/src/hosts/ec2.rs", "use crate::{\n  core::{self, Host},\n  mail,\n};"),
            ["core", "mail"]
        );
        assert_eq!(used("master/src/hosts/ec2.rs", "let x = super::super::web::page();"), ["web"]);
        assert_eq!(used("master/src/store.rs", "use super::mail;"), ["mail"]);
        assert!(used("master/src/hosts/ec2.rs", "use super::registry; // crate::store").is_empty());
        assert!(used("master/src/hosts/ec2.rs", "other_crate::store()").is_empty());
    }

    #[test]
    fn comments_are_cut_and_urls_are_not() {
        assert_eq!(without_comments("a // b\n\"http://x\" + y // z\n"), "a \n\"http://x\" + y \n");
    }

    #[test]
    fn test_modules_are_cut_at_the_end_only() {
        assert_eq!(without_inline_tests("a\n#[cfg(test)]\nmod tests;\nb"), "a\n#[cfg(test)]\nmod tests;\nb");
        assert_eq!(without_inline_tests("a\n#[cfg(test)]\n#[allow(x)]\nmod tests {\n}\n"), "a\n");
    }
}

#[test]
fn the_tests_that_security_md_names_exist() {
    let text = fs::read_to_string(root().join("SECURITY.md")).unwrap();
    let lists =
        text.split("Tests: ").skip(1).map(|rest| rest.split("\n- ").next().unwrap().split("\n\n").next().unwrap());
    let words = lists.flat_map(|list| list.split('`').skip(1).step_by(2));
    let named: BTreeSet<&str> = words.filter(|word| !word.contains(' ')).collect();
    assert!(named.len() > 40, "{named:?}");
    let mut tests = BTreeSet::new();
    for source in sources() {
        let mut is_test = false;
        for line in source.text.lines().map(str::trim) {
            if let Some((_, name)) = line.split_once("fn ").filter(|_| is_test) {
                tests.insert(name.split('(').next().unwrap().to_owned());
                is_test = false;
            }
            is_test |= line.starts_with("#[test]") || line.starts_with("#[tokio::test");
        }
    }
    let wrong: Vec<_> = named.into_iter().filter(|name| !tests.contains(*name)).map(str::to_owned).collect();
    complain("SECURITY.md names tests that do not exist", &wrong);
}
