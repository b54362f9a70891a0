//! How Nova's servers are interpreted.
#![allow(clippy::unwrap_used)]

use super::*;

fn server_json(status: &str, task: &str) -> Value {
    json!({
        "id": "s1", "created": "2026-01-01T00:00:00Z", "status": status, "OS-EXT-STS:task_state": task,
        "metadata": { "rouse-master": "ci", "rouse-master-id": "m1", "rouse-host": "h1", "rouse-name": "w1" },
        "fault": { "message": "No valid host was found. " },
    })
}

#[test]
fn only_servers_of_our_name_are_taken() {
    let server = Server::of(&server_json("ERROR", ""), "ci").unwrap();
    assert_eq!((server.host.as_str(), server.status), ("h1", Status::Error));
    assert_eq!(server.fault.as_deref(), Some("No valid host was found."));
    assert_eq!(Server::of(&server_json("ERROR", ""), "c"), None);
    assert_eq!(Server::of(&json!({ "id": "s1", "metadata": {}, "name": "rouse-ci" }), "ci"), None);
    let tag = OwnerTag::of("ci/m1");
    assert_eq!(tag.owner(&server.master), Owner::Ours);
    assert_eq!(tag.owner("m2"), Owner::Foreign("m2".to_owned()));
}

#[test]
fn a_place_is_found_once_nova_no_longer_looks_for_one() {
    for (status, task, placed) in
        [("BUILD", "scheduling", false), ("BUILD", "", false), ("BUILD", "spawning", true), ("ACTIVE", "", true)]
    {
        assert_eq!(Server::of(&server_json(status, task), "ci").unwrap().is_placed(), placed, "{status} {task}");
    }
}

#[test]
fn the_owner_tag_is_what_is_looked_for() {
    let metadata = OwnerTag::of("ci/m1").metadata("w1", &HostId("h1".to_owned()));
    assert_eq!(json!(metadata), server_json("", "")["metadata"]);
}

#[test]
fn the_older_of_two_counts() {
    let older = Server::of(&server_json("ACTIVE", ""), "ci").unwrap();
    let mut younger = older.clone();
    (younger.created, younger.id) = ("2026-01-01T00:00:01Z".to_owned(), "s0".to_owned());
    assert!(older < younger);
}
