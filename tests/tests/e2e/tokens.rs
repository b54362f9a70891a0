//! A token with a name: made, taken into use by a reload, and refused where it has no right. The journal knows it all.

use rouse_tests::harness::{DEADLINE, Master, program, request, standing};
use std::process::Command;

#[test]
fn a_new_token_builds_and_does_nothing_else() {
    let master = Master::start("tokens", &standing("w", ""));
    let _agent = master.agent("w");
    let config = master.config();
    let config = config.to_str().unwrap();
    // Without consent, nothing is written.
    let before = std::fs::read_to_string(config).unwrap();
    let only_shown = master.rouse(&["token", "new", "shown", "--may", "read", "-c", config]).ended(0).text();
    assert!(only_shown.starts_with("[[token]]\nname = \"shown\"\nhash = \"sha256:"), "{only_shown}");
    assert_eq!(std::fs::read_to_string(config).unwrap(), before);

    let new = ["token", "new", "ci-bot", "--may", "build", "-c", config, "--write"];
    let said = master.rouse(&new).ended(0).text();
    let token = said.lines().last().unwrap().to_owned();
    assert_eq!(token.len(), 64, "{said}");
    let text = std::fs::read_to_string(config).unwrap();
    assert!(text.contains("name = \"ci-bot\"") && !text.contains(&token), "{text}");
    assert!(!master.log().contains(&token));
    master.rouse(&new).ended(2);

    let as_bot = |arguments: &[&str]| {
        let mut command = Command::new(program("rouse"));
        command.args(arguments).current_dir(&master.dir).env("ROUSE_TOKEN", &token);
        let output = command.env("ROUSE_SERVER", format!("http://{}", master.http)).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    // At once, because the command has reloaded the master.
    let (code, out, err) = as_bot(&["build", "--", "echo", "built"]);
    assert_eq!((code, out.as_str()), (Some(0), "built\n"), "{err}");
    let shown = master.rouse(&["show", "1", "--json"]).ended(0).json();
    assert_eq!(shown["submitter"], "ci-bot");
    assert_eq!(master.rouse(&["builds", "--json"]).ended(0).json()[0]["submitter"], "ci-bot");

    let other = master.detach(&["--where", "nothing=fits", "--", "true"]);
    for (arguments, right) in [
        (&["drain", "w"][..], "operate"),
        (&["token", "rotate"], "admin"),
        (&["cancel", &other], "operate"),
        (&["rerun", &other], "operate"),
        (&["journal"], "operate"),
    ] {
        let (code, _, err) = as_bot(arguments);
        assert_eq!(code, Some(4), "{arguments:?}: {err}");
        assert!(err.contains("ci-bot") && err.contains(&format!("`{right}`")), "{arguments:?}: {err}");
    }
    let status = |token: &str| request(master.http, "POST", "/api/workers/w/drain", Some(token), "").unwrap().status;
    assert_eq!((status(&token), status("nobody's")), (403, 401));

    master.rouse(&["pause", "w", "--note", "new disk"]).ended(0);
    master.rouse(&["cancel", &other]).ended(0);
    master.rouse(&["resume", "nobody"]).ended(4);
    master.signal(libc::SIGHUP);
    let journal = |more: &[&str]| {
        let arguments = [&["journal", "--since", "1d", "--json"], more].concat();
        let listed = master.rouse(&arguments).ended(0).json();
        let line = |entry: &serde_json::Value| {
            let field = |name: &str| entry[name].as_str().unwrap_or("-").to_owned();
            format!("{} {} {} {}", field("who"), field("action"), field("target"), field("note"))
        };
        listed.as_array().unwrap().iter().map(line).collect::<Vec<_>>()
    };
    let expected = [
        "SIGHUP reload - -".to_owned(),
        format!("admin cancel {other} -"),
        "admin pause w new disk".to_owned(),
        "admin reload - -".to_owned(),
    ];
    master.until("the signal is in the journal", || journal(&[]).len() == expected.len());
    assert_eq!(journal(&[]), expected);
    assert_eq!(journal(&["--target", "w"]), expected[2..3]);

    // All of it survives the master.
    master.terminate();
    master.begin();
    assert_eq!(journal(&[]), expected);
    assert_eq!(as_bot(&["why", "1"]).0, Some(0));
    master.begin_rouse(&["resume", "w"]).wait(DEADLINE).ended(0);
    assert_eq!(journal(&["--limit", "1"]), ["admin resume w -"]);
}
