//! What is refused in the sections of tokens and proxies.

use super::{MASTER, errors, good, warnings};
use crate::access::TokenHash;

fn token(name: &str, text: &str) -> String {
    format!("[[token]]\nname = {name:?}\nhash = \"{}\"\nmay = [\"read\"]\n", TokenHash::of(text))
}

#[test]
fn a_token_is_not_the_masters_own_nor_anothers() {
    let dir = tempfile::tempdir().unwrap();
    let own = "[master]\nname = \"ci\"\napi_token = \"mine\"\n";
    let wrong = errors(&format!("{own}{}", token("a", "mine")));
    assert_eq!(wrong.len(), 1, "{wrong:?}");
    assert!(wrong[0].contains(":6:8: token.hash: is the hash of the master's own token"), "{wrong:?}");
    // The one that the master has made.
    let master = format!("[master]\nname = \"ci\"\nstate_dir = {:?}\n", dir.path());
    assert_eq!(errors(&format!("{master}{}", token("a", "made"))), [] as [&str; 0]);
    std::fs::write(dir.path().join("api-token"), "made\n").unwrap();
    assert_eq!(errors(&format!("{master}{}", token("a", "made"))).len(), 1);

    let twice = errors(&format!("{MASTER}{}{}", token("a", "x"), token("b", "x")));
    assert!(twice[0].contains(":9:8: token.hash: is the hash of the token a on line 5 too"), "{twice:?}");
    assert_eq!(good(&format!("{MASTER}{}{}", token("a", "x"), token("b", "y"))).access.tokens.len(), 2);
}

#[test]
fn a_proxy_on_this_machine_is_warned_of() {
    let remote = |proxies: &str| format!("{MASTER}[remote_user]\ntrusted_proxies = {proxies}\nmay = [\"read\"]\n");
    assert_eq!(warnings(&remote("\"192.0.2.1\"")).len(), 0);
    for local in ["\"127.0.0.1\"", "[\"192.0.2.1\", \"::1\"]", "\"::ffff:127.0.0.1\""] {
        let found = warnings(&remote(local));
        assert!(found.len() == 1 && found[0].contains("every user of this machine"), "{local}: {found:?}");
    }
    assert!(errors(&remote("[]"))[0].contains("must have at least one address"));
    assert!(errors(&remote("\"192.0.2.1:80\""))[0].contains("without a port"));
}
