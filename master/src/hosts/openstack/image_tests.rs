//! Choosing an image.
#![allow(clippy::unwrap_used)]

use super::*;

fn image(id: &str, name: &str, created: &str) -> Value {
    json!({ "id": id, "name": name, "created_at": created, "status": "active", "size": 7, "min_ram": 1, "os": "debian" })
}

#[test]
fn ids_are_distinguished_from_names() {
    assert!(is_uuid("8ac9d4a4-5e03-48b0-acde-77a0345a9ab1") && is_uuid("8AC9D4A4-5E03-48B0-ACDE-77A0345A9AB1"));
    for name in ["", "rouse-base", "8ac9d4a4-5e03-48b0-acde-77a0345a9abx", "8ac9d4a45e03-48b0-acde-77a0345a9ab1-"] {
        assert!(!is_uuid(name), "{name}");
    }
}

#[test]
fn the_newest_or_oldest_of_those_that_match() {
    let all = [
        image("c", "rouse-base-2", "2026-03-01T00:00:00Z"),
        image("a", "rouse-base-1", "2026-01-01T00:00:00Z"),
        image("d", "my-rouse-base-3", "2026-04-01T00:00:00Z"),
        image("b", "rouse-base-3", "2026-03-01T00:00:00Z"),
    ];
    let pick = |regex: &str, pick| matching(&all, &format!("^(?:{regex})$"), pick);
    assert_eq!(pick("rouse-base-.*", ImagePick::Oldest).unwrap(), "a");
    assert_eq!(pick("rouse-base-.*", ImagePick::Newest).unwrap(), "c", "made in the same second: the greater id");
    let error = pick("rouse-image-.*", ImagePick::Newest).unwrap_err();
    assert!(error.contains("of the 4") && error.contains("rouse-image-.*"), "{error}");
}

#[test]
fn a_program_gets_the_fields_of_glance_and_of_the_owner() {
    let error = described(&image("a", "n", "2026-01-01T00:00:00Z"));
    let expected = json!({
        "id": "a", "name": "n", "status": "active", "created": "2026-01-01T00:00:00Z", "size": 7,
        "properties": { "min_ram": 1 }, "metadata": { "os": "debian" },
    });
    assert_eq!(error, expected);
}

async fn run(script: &str, list: &str) -> Result<String, String> {
    ask(&["/bin/sh".to_owned(), "-c".to_owned(), script.to_owned()], list.to_owned()).await
}

#[tokio::test]
async fn a_program_gets_the_list_and_prints_one_id() {
    assert_eq!(run("cat", "an-id").await.unwrap(), "an-id");
    // More than a pipe holds, in both directions, and some of it never read.
    let long = "x".repeat(1 << 20);
    assert_eq!(run("head -c 3; echo >&2 noise", &long).await.unwrap(), "xxx");
    assert!(run("cat; cat /dev/zero | head -c 1000000 >&2; exit 3", &long).await.unwrap_err().contains("3"));
}

#[tokio::test]
async fn errors_of_a_program_are_reported() {
    for (script, expected) in [
        ("echo first >&2; echo there is no such image >&2; exit 4", "exit status: 4: there is no such image"),
        ("exit 4", "exit status: 4"),
        ("true", "no id"),
        ("echo a b", "2 words"),
    ] {
        let error = run(script, "[]").await.unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
    let error = ask(&["/nonexistent/find-image".to_owned()], String::new()).await.unwrap_err();
    assert!(error.contains("cannot be run"), "{error}");
}

#[tokio::test]
async fn a_program_that_takes_too_long_is_ended_with_what_it_has_started() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pids");
    let script = format!("sleep 600 & echo $$ $! >{}; wait", file.display());
    let words = ["/bin/sh", "-c", &script].map(str::to_owned);
    let error = ask_within(Duration::from_secs(1), &words, String::new()).await.unwrap_err();
    assert_eq!(error, "it took longer than 1 s");
    let pids = std::fs::read_to_string(file).unwrap();
    // Gone, or about to be collected.
    let runs =
        |pid: &str| std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|text| !text.contains(") Z "));
    for _ in 0..100 {
        if !pids.split_whitespace().any(runs) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("one of {pids} still runs");
}
