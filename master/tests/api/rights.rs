//! Who may do what: each right with each route, the owners of builds, and users that a proxy names.

use crate::fake::{Fake, NOON, TOKEN};
use crate::http::client;
use reqwest::{Method, RequestBuilder, StatusCode};
use rouse_master::access::{NamedToken, RemoteUser, Right, Rights, Rules, TokenHash};
use rouse_master::core::journal::{Action, Entry, Principal, PrincipalKind};
use rouse_shared::BuildId;
use serde_json::{Value, json};

/// The tokens of the tests: the name and the text are the same.
const TOKENS: [(&str, &[Right]); 5] = [
    ("reader", &[Right::Read]),
    ("builder", &[Right::Build]),
    ("operator", &[Right::Operate]),
    ("both", &[Right::Build, Right::Operate]),
    ("boss", &[Right::Admin]),
];

fn rules() -> Rules {
    let named = |(name, may): (&str, &[Right])| NamedToken {
        name: name.to_owned(),
        hash: TokenHash::of(name),
        may: Rights::of(may.iter().copied()),
    };
    Rules { tokens: TOKENS.map(named).to_vec(), remote_user: None }
}

async fn fake() -> Fake {
    let fake = Fake::start_with(true).await;
    fake.access.configure(rules());
    fake.add_fleet();
    fake
}

/// A build that this token has submitted.
fn add_build(fake: &Fake, id: u64, name: &str, kind: PrincipalKind) {
    fake.add(id, &["compile"]);
    fake.change(id, |status| status.submitter = Some(Principal { name: name.to_owned(), kind }));
}

fn with(request: RequestBuilder, token: Option<&str>) -> RequestBuilder {
    match token {
        Some(token) => request.bearer_auth(token),
        None => request,
    }
}

async fn answer(request: RequestBuilder) -> (u16, Value) {
    let response = request.send().await.unwrap();
    (response.status().as_u16(), response.json().await.unwrap_or_default())
}

/// The routes, and the rights that the document says they need: one of them is enough, and none for everybody.
async fn routes(fake: &Fake) -> Vec<(Method, String, Vec<Right>)> {
    let (_, document) = answer(client().get(fake.url("/openapi.json"))).await;
    let mut routes = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let text = operation["description"].as_str().unwrap_or_default();
            let line = text.lines().find_map(|line| line.strip_prefix("Needs the right "));
            let needs = line.map(|line| line.split(';').next().unwrap()).unwrap_or_default();
            let rights = Right::ALL.into_iter().filter(|right| needs.contains(&format!("`{}`", right.as_str())));
            let method: Method = method.to_uppercase().parse().unwrap();
            routes.push((method, path.clone(), rights.collect()));
        }
    }
    routes
}

#[tokio::test]
async fn each_right_opens_its_routes_and_no_others() {
    let fake = fake().await;
    let routes = routes(&fake).await;
    let open: Vec<_> = routes.iter().filter(|(.., rights)| rights.is_empty()).map(|(_, path, _)| &**path).collect();
    assert_eq!(open, ["/", "/healthz", "/openapi.json"], "a route without a right");
    let own = (TOKEN, &[Right::Admin][..]);
    for (number, (token, may)) in (1..).zip(TOKENS.into_iter().chain([own])) {
        let name = if token == TOKEN { "admin" } else { token };
        for (method, path, rights) in &routes {
            add_build(&fake, number, name, PrincipalKind::Token);
            let target = path.replace("/builds/{id}", &format!("/builds/{number}")).replace("{step}", "1");
            let target = target.replace("{name}", "w1").replace("{operation}", "pause").replace("{id}", "x");
            let body = if path == "/api/audit" { "{}" } else { "" };
            let request = client().request(method.clone(), fake.url(&target)).body(body);
            // Streams do not end.
            let response = request.bearer_auth(token).send().await.unwrap();
            let allowed = rights.is_empty()
                || rights.contains(&Right::Read)
                || may.contains(&Right::Admin)
                || rights.iter().any(|right| may.contains(right));
            let status = response.status();
            assert_ne!(status, StatusCode::UNAUTHORIZED, "{token}: {method} {path}");
            assert_eq!(status != StatusCode::FORBIDDEN, allowed, "{token}: {method} {path}");
            if !allowed {
                let error = response.json::<Value>().await.unwrap()["error"].to_string();
                let words = rights.iter().map(|right| format!("`{}`", right.as_str())).collect::<Vec<_>>().join(" or ");
                assert!(error.contains(name) && error.contains(&words), "{method} {path}: {error}");
            }
        }
    }
    for (method, path, rights) in &routes {
        for token in [None, Some("stranger"), Some("")] {
            let request = client().request(method.clone(), fake.url(&path.replace(['{', '}'], "")));
            let (status, answer) = answer(with(request, token)).await;
            assert_eq!(status == 401, !rights.is_empty(), "{token:?}: {method} {path}: {answer}");
        }
    }
}

#[tokio::test]
async fn without_operate_only_ones_own_builds_can_be_cancelled_and_repeated() {
    let fake = fake().await;
    let (_, accepted) = answer(client().post(fake.url("/api/builds")).bearer_auth("builder").body(BUILD)).await;
    assert_eq!(accepted, json!({"id": "1"}));
    add_build(&fake, 2, "both", PrincipalKind::Token);
    // A user of the machine with the name of the token.
    add_build(&fake, 3, "builder", PrincipalKind::Local);
    // Of an earlier version.
    fake.add(4, &["compile"]);
    let post = |token: &'static str, path: String| answer(client().post(fake.url(&path)).bearer_auth(token));
    for id in 2..=4 {
        for verb in ["rerun", "cancel"] {
            let (status, answer) = post("builder", format!("/api/builds/{id}/{verb}")).await;
            assert_eq!(status, 403, "{verb} {id}: {answer}");
            assert!(answer["error"].as_str().unwrap().contains("submitted by somebody else"), "{answer}");
        }
    }
    assert_eq!(post("builder", "/api/builds/1/rerun".to_owned()).await, (201, json!({"id": "5"})));
    assert_eq!(post("builder", "/api/builds/1/cancel".to_owned()).await.0, 200);
    assert_eq!(post("both", "/api/builds/3/rerun".to_owned()).await, (201, json!({"id": "6"})));
    assert_eq!(post("operator", "/api/builds/2/cancel".to_owned()).await.0, 200);
    assert_eq!(post("operator", "/api/builds/2/rerun".to_owned()).await.0, 403, "it is a new build");
    // Whoever repeats a build is its submitter.
    let (_, builds) = answer(client().get(fake.url("/api/builds")).bearer_auth("reader")).await;
    let submitters: Vec<_> = builds.as_array().unwrap().iter().map(|build| &build["submitter"]).collect();
    assert_eq!(
        submitters,
        ["both", "builder", "", "builder", "both", "builder"]
            .map(|name| match name {
                "" => Value::Null,
                name => json!(name),
            })
            .iter()
            .collect::<Vec<_>>()
    );
    assert_eq!(post("both", "/api/audit".to_owned()).await.0, 400);
    let adopt = client().post(fake.url("/api/audit")).body(r#"{"fix": true, "adopt": true}"#);
    assert_eq!(answer(adopt.bearer_auth("operator")).await.0, 403, "the machines may be another master's");
}

const BUILD: &str = r#"{"step": [{"name": "compile", "run": ["make"]}]}"#;

#[tokio::test]
async fn who_has_done_something_is_known_with_the_reason() {
    let fake = fake().await;
    let pause = |query: &str| client().post(fake.url(&format!("/api/workers/w1/pause{query}"))).bearer_auth("operator");
    assert_eq!(answer(pause("?note=new%20disk")).await.0, 200);
    assert_eq!(answer(pause("")).await.0, 200);
    let long = "x".repeat(501);
    for wrong in [format!("?note={long}"), "?note=a%0Ab".to_owned(), "?not=x".to_owned()] {
        let (status, answer) = answer(pause(&wrong)).await;
        assert_eq!(status, 400, "{answer}");
    }
    let rotate = client().post(fake.url("/api/reload?note=x")).bearer_auth("boss");
    assert_eq!(answer(rotate).await, (200, json!({"needs_restart": [], "warnings": []})));
    {
        let world = fake.world.lock().unwrap();
        let operator = Principal { name: "operator".to_owned(), kind: PrincipalKind::Token };
        let notes: Vec<_> = world.callers.iter().map(|by| by.note.as_deref()).collect();
        assert_eq!(notes, [Some("new disk"), None]);
        assert!(world.callers.iter().all(|by| by.principal == operator && by.from == "127.0.0.1"));
        assert_eq!(world.operations.last().unwrap(), "Reload by boss");
    }

    // The socket tells who the user is.
    let socket = reqwest::Client::builder().unix_socket(fake.socket()).build().unwrap();
    let drained = socket.post("http://localhost/api/workers/w1/drain").send().await.unwrap();
    assert_eq!(drained.status(), 200);
    let by = fake.world.lock().unwrap().callers.last().unwrap().clone();
    assert_eq!((by.principal.kind, by.from.as_str()), (PrincipalKind::Local, "socket"));
    let root = rustix::process::geteuid().is_root();
    assert!(!root || by.principal.name == "root", "{by:?}");

    let entry = Entry {
        id: 7,
        at: NOON,
        action: Action::ForgetHost,
        target: Some("h1".to_owned()),
        principal: by.principal.clone(),
        from: by.from,
        note: None,
    };
    fake.world.lock().unwrap().journal.push(entry);
    let listed = json!([{
        "id": "7", "at": "2026-11-23T12:00:00.000Z", "who": by.principal.name, "kind": "local", "from": "socket",
        "action": "forget-host", "target": "h1", "note": null,
    }]);
    let journal = |query: &str| answer(client().get(fake.url(&format!("/api/journal{query}"))).bearer_auth("operator"));
    assert_eq!(journal("?target=h1&since=2026-11-23T00:00:00Z&limit=5&before=9").await, (200, listed));
    assert_eq!(journal("?target=h2").await, (200, json!([])));
    for wrong in ["since=yesterday", "limit=0", "limit=1001", "before=x", "worker=w1"] {
        assert_eq!(journal(&format!("?{wrong}")).await.0, 400, "{wrong}");
    }
}

#[tokio::test]
async fn only_a_trusted_proxy_names_its_users() {
    let fake = fake().await;
    let remote = |proxy: &str| Rules {
        remote_user: Some(RemoteUser {
            trusted_proxies: vec![proxy.parse().unwrap()],
            may: Rights::of([Right::Build]),
        }),
        ..rules()
    };
    let submit = |headers: &[(&'static str, &'static str)]| {
        let request = client().post(fake.url("/api/builds")).body(BUILD);
        answer(headers.iter().fold(request, |request, (name, value)| request.header(*name, *value)))
    };
    let ann = ("Remote-User", "ann");
    assert_eq!(submit(&[ann]).await.0, 401, "no proxy is configured");
    fake.access.configure(remote("192.0.2.1"));
    assert_eq!(submit(&[ann]).await.0, 401, "the proxy is elsewhere");
    let forged = [ann, ("X-Forwarded-For", "192.0.2.1"), ("Forwarded", "for=192.0.2.1")];
    assert_eq!(submit(&forged).await.0, 401, "headers say nothing of where a request comes from");
    fake.access.configure(remote("127.0.0.1"));
    assert_eq!(submit(&[ann, ("X-Forwarded-For", "198.51.100.7")]).await, (201, json!({"id": "1"})));
    let by = fake.world.lock().unwrap().callers.last().unwrap().clone();
    assert_eq!(by.principal, Principal { name: "ann".to_owned(), kind: PrincipalKind::Proxy });
    assert_eq!(by.from, "198.51.100.7");
    assert_eq!(submit(&[]).await.0, 401, "nobody has logged in at the proxy");
    assert_eq!(submit(&[ann, ("Remote-User", "eve")]).await.0, 401, "one of them is the client's own");
    assert_eq!(submit(&[ann, ("Authorization", "Bearer stranger")]).await.0, 401);
    assert_eq!(submit(&[ann, ("Authorization", "Bearer reader")]).await.0, 403, "the token counts");
    // The proxy's own password is nothing of the master's.
    assert_eq!(submit(&[ann, ("Authorization", "Basic YW5uOng=")]).await.0, 201);
    let (status, refused) = submit(&[ann, ("Origin", "http://evil.example.org")]).await;
    assert_eq!((status, refused["error"].as_str().unwrap().contains("another server")), (403, true));
    assert_eq!(submit(&[ann, ("Sec-Fetch-Site", "cross-site")]).await.0, 403);
    assert_eq!(submit(&[ann, ("Sec-Fetch-Site", "same-origin")]).await.0, 201);
    let drain = client().post(fake.url("/api/workers/w1/drain")).header("Remote-User", "ann");
    let (status, refused) = answer(drain).await;
    let error = refused["error"].as_str().unwrap();
    assert!(status == 403 && error.contains("user ann") && error.contains("[remote_user]"), "{status} {error}");
    let other = client().post(fake.url("/api/builds/1/cancel")).header("Remote-User", "eve");
    assert_eq!(answer(other).await.0, 403, "eve is not ann");
    assert!(fake.world.lock().unwrap().builds.contains_key(&BuildId(1)));
}
