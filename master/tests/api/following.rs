//! Following builds from the command line: bytes on stdout, messages on stderr, through retries and restarts.

use crate::commands::{end, result_of, rouse};
use crate::fake::Fake;
use rouse_master::core::build::BuildEnd;
use rouse_shared::message::{Outcome, StepState};
use serde_json::{Value, json};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStderr};
use tokio::time::timeout;

const IN_TIME: Duration = Duration::from_secs(60);

/// Starts `rouse build -- make`; its build is number 1 once this returns.
async fn follow(fake: &Fake, more: &[&str]) -> (Child, Words) {
    let mut child = rouse(fake).arg("build").args(more).args(["--", "make"]).spawn().unwrap();
    let mut words = Words(BufReader::new(child.stderr.take().unwrap()).lines());
    words.until("build 1 is accepted").await;
    (child, words)
}

/// What a command says on stderr.
struct Words(Lines<BufReader<ChildStderr>>);

impl Words {
    /// Reads until a line has this in it.
    async fn until(&mut self, wanted: &str) {
        let mut seen = Vec::new();
        loop {
            let line = timeout(IN_TIME, self.0.next_line()).await;
            let Ok(Ok(Some(line))) = line else { panic!("{wanted:?} is not in {seen:?}") };
            if line.contains(wanted) {
                return;
            }
            seen.push(line);
        }
    }
}

#[tokio::test]
async fn a_build_is_followed_to_its_end() {
    let fake = Fake::start().await;
    fake.world.lock().unwrap().why = "it waits for w1 to wake".to_owned();
    let (mut child, mut words) = follow(&fake, &[]).await;
    let mut stdout = child.stdout.take().unwrap();
    let printed = tokio::spawn(async move {
        let mut printed = Vec::new();
        stdout.read_to_end(&mut printed).await.map(|_| printed)
    });
    words.until("it waits for w1 to wake").await;
    fake.begin(1);
    words.until("attempt 1 is assigned to w1, host h0000000000000001").await;
    words.until("step 1 of 1 (make) begins").await;
    let bytes: Vec<u8> = (0..=255).cycle().take(300_000).collect();
    fake.print(1, 1, 0, &bytes);
    fake.end_step(1, StepState::Exited(0), 300_000, false);
    words.until("step 1 of 1 (make): success after 1.5 s").await;
    fake.end_attempt(1, Outcome::Success, Some(BuildEnd::Success));
    words.until("build 1: success").await;
    assert_eq!(end(child).await.status.code(), Some(0));
    assert!(printed.await.unwrap().unwrap() == bytes, "stdout is not the log to the byte");
}

#[tokio::test]
async fn steps_are_reported_one_by_one() {
    let fake = Fake::start().await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("build.toml");
    let step = |name| format!("[[step]]\nname = \"{name}\"\nrun = \"make {name}\"\n");
    std::fs::write(&file, ["compile", "test", "publish"].map(step).concat()).unwrap();
    let child = rouse(&fake).args(["build", "--file"]).arg(&file).spawn();
    let mut child = child.unwrap();
    let mut words = Words(BufReader::new(child.stderr.take().unwrap()).lines());
    words.until("build 1 is accepted").await;
    fake.begin(1);
    // A step that prints nothing is reported as well.
    words.until("step 1 of 3 (compile) begins").await;
    fake.end_step(1, StepState::Exited(0), 0, true);
    words.until("step 1 of 3 (compile): success").await;
    fake.print(1, 1, 1, b"4 of 5 failed\n");
    words.until("step 2 of 3 (test) begins").await;
    fake.end_step(1, StepState::Exited(4), 14, false);
    fake.end_attempt(
        1,
        Outcome::Failure("test: exit code 4".to_owned()),
        Some(BuildEnd::Failure("test: exit code 4".to_owned())),
    );
    words.until("step 2 of 3 (test): failure after 1.5 s, exit code 4").await;
    words.until("build 1: failure: test: exit code 4").await;
    assert_eq!(result_of(end(child).await), (1, "4 of 5 failed\n".to_owned(), String::new()));
}

#[tokio::test]
async fn each_outcome_has_its_code() {
    for (outcome, ended, code) in [
        (Outcome::Failure("make: exit code 2".to_owned()), BuildEnd::Failure("make: exit code 2".to_owned()), 1),
        (Outcome::Lost("gone".to_owned()), BuildEnd::Lost("its host is gone".to_owned()), 5),
        (Outcome::Cancelled, BuildEnd::Cancelled, 6),
    ] {
        let fake = Fake::start().await;
        let (child, mut words) = follow(&fake, &[]).await;
        fake.begin(1);
        fake.print(1, 1, 0, b"begun");
        words.until("begins").await;
        fake.end_attempt(1, outcome, Some(ended));
        words.until("build 1: ").await;
        assert_eq!(result_of(end(child).await), (code, "begun".to_owned(), String::new()));
    }
}

#[tokio::test]
async fn a_lost_attempt_is_reported_and_the_next_one_followed() {
    let fake = Fake::start().await;
    let (child, mut words) = follow(&fake, &[]).await;
    fake.begin(1);
    fake.print(1, 1, 0, b"first ");
    words.until("begins").await;
    fake.end_attempt(1, Outcome::Lost("its host is gone".to_owned()), None);
    words.until("attempt 1 is lost: its host is gone").await;
    fake.begin(1);
    words.until("attempt 2 is assigned to w1").await;
    fake.print(1, 2, 0, b"second");
    fake.end_step(1, StepState::Exited(0), 6, false);
    fake.end_attempt(1, Outcome::Success, Some(BuildEnd::Success));
    words.until("build 1: success").await;
    assert_eq!(result_of(end(child).await), (0, "first second".to_owned(), String::new()));
}

#[tokio::test]
async fn a_restart_of_the_master_loses_no_byte() {
    let mut fake = Fake::start().await;
    let (mut child, mut words) = follow(&fake, &[]).await;
    fake.begin(1);
    fake.print(1, 1, 0, b"before ");
    let mut stdout = child.stdout.take().unwrap();
    let mut before = [0; 7];
    timeout(IN_TIME, stdout.read_exact(&mut before)).await.expect("in time").unwrap();
    assert_eq!(&before, b"before ");
    fake.end().await;
    words.until("retrying").await;
    fake.print(1, 1, 0, b"meanwhile ");
    fake.serve().await;
    words.until("the master is back").await;
    fake.print(1, 1, 0, b"after");
    fake.end_step(1, StepState::Exited(0), 22, false);
    fake.end_attempt(1, Outcome::Success, Some(BuildEnd::Success));
    words.until("build 1: success").await;
    let mut rest = String::new();
    timeout(IN_TIME, stdout.read_to_string(&mut rest)).await.expect("in time").unwrap();
    assert_eq!(rest, "meanwhile after");
    assert_eq!(end(child).await.status.code(), Some(0));
}

#[tokio::test]
async fn json_comes_at_the_end_in_place_of_the_log() {
    let fake = Fake::start().await;
    let (child, mut words) = follow(&fake, &["--json"]).await;
    fake.begin(1);
    words.until("assigned to w1").await;
    fake.print(1, 1, 0, b"not to be seen");
    fake.end_step(1, StepState::Exited(3), 14, false);
    fake.end_attempt(1, Outcome::Failure("x".to_owned()), Some(BuildEnd::Failure("x".to_owned())));
    let (code, out, _) = result_of(end(child).await);
    let build: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &build["state"], &build["id"]), (1, &json!("failure"), &json!("1")));
    assert_eq!(build["tries"][0]["steps"][0]["exit_code"], 3);
}

#[tokio::test]
async fn ctrl_c_leaves_the_build_alone() {
    let fake = Fake::start().await;
    let (child, mut words) = follow(&fake, &[]).await;
    fake.begin(1);
    words.until("begins").await;
    let pid = i32::try_from(child.id().unwrap()).unwrap();
    // SAFETY: sends a signal to a child that has not been waited for.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGINT) }, 0);
    words.until("build 1 continues; `rouse cancel 1` cancels it").await;
    assert_eq!(end(child).await.status.code(), Some(130));
}

#[tokio::test]
async fn a_log_is_all_steps_of_the_last_attempt() {
    let fake = Fake::start().await;
    fake.add(1, &["compile", "test"]);
    let log = async |args: &[&str]| result_of(end(rouse(&fake).arg("log").arg("1").args(args).spawn().unwrap()).await);
    let (code, out, err) = log(&[]).await;
    assert_eq!((code, out.as_str()), (0, ""));
    assert!(err.contains("has no log"), "{err}");
    fake.begin(1);
    fake.print(1, 1, 0, b"lost");
    fake.end_attempt(1, Outcome::Lost(String::new()), None);
    fake.begin(1);
    fake.print(1, 2, 0, b"compiled\n");
    fake.end_step(1, StepState::Exited(0), 9, true);
    fake.print(1, 2, 1, b"tes");
    let nothing = String::new;
    assert_eq!(log(&[]).await, (0, "compiled\ntes".to_owned(), nothing()));
    assert_eq!(log(&["--step", "2"]).await, (0, "tes".to_owned(), nothing()));
    assert_eq!(log(&["--attempt", "1"]).await, (0, "lost".to_owned(), nothing()));
    let followed = rouse(&fake).args(["log", "1", "--follow"]).spawn().unwrap();
    fake.print(1, 2, 1, b"ted");
    fake.end_step(1, StepState::Exited(0), 6, false);
    fake.end_attempt(1, Outcome::Success, Some(BuildEnd::Success));
    assert_eq!(result_of(end(followed).await), (0, "compiled\ntested".to_owned(), nothing()));
}

#[tokio::test]
async fn the_log_of_a_step_that_was_deleted_hides_no_other() {
    let fake = Fake::start().await;
    fake.add(1, &["compile", "test", "publish"]);
    fake.begin(1);
    fake.end_step(1, StepState::Exited(0), 9, true);
    fake.print(1, 1, 1, b"tested\n");
    fake.end_step(1, StepState::Exited(0), 7, true);
    fake.end_step(1, StepState::Exited(0), 9, false);
    fake.end_attempt(1, Outcome::Success, Some(BuildEnd::Success));
    for more in [&[][..], &["--follow"]] {
        let (code, out, err) = result_of(end(rouse(&fake).args(["log", "1"]).args(more).spawn().unwrap()).await);
        assert_eq!((code, out.as_str()), (4, "tested\n"), "{err}");
        assert!(err.contains("the log of step 1 of build 1") && err.contains("the log of step 3 of build 1"), "{err}");
    }
}

#[tokio::test]
async fn a_reader_that_goes_away_is_no_failure() {
    let fake = Fake::start().await;
    fake.add(1, &["compile"]);
    fake.begin(1);
    fake.print(1, 1, 0, &vec![b'x'; 4 << 20]);
    let mut child = rouse(&fake).args(["log", "1"]).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut some = [0; 10];
    timeout(IN_TIME, stdout.read_exact(&mut some)).await.expect("in time").unwrap();
    drop(stdout);
    assert_eq!(result_of(end(child).await), (0, String::new(), String::new()));
}
