//! Which places are remembered, under which names, and for how long.

use super::*;
use crate::config::{OpenstackConfig, Secret};
use crate::hosts::openstack::account::{Interface, Login};

/// An account of a cloud that does not exist.
fn account(user: &str) -> Account {
    let login = Login::Application { id: user.to_owned(), secret: Secret::new("s") };
    let auth_url = "http://127.0.0.1:1/v3".to_owned();
    Account { auth_url, login, region: None, interface: Interface::Public, ca: None }
}

fn named(unlisted: &[UnlistedPlace]) -> Vec<&str> {
    unlisted.iter().filter_map(|one| one.place.as_deref()).collect()
}

#[tokio::test]
async fn a_place_of_before_hides_itself_alone_until_it_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("places");
    // As an earlier version has written it, without a name.
    std::fs::write(&file, "p1 north\n").unwrap();
    let clouds = Clouds::new(file.clone()).unwrap();
    clouds.note("p2 south", "a cloud").unwrap();
    clouds.note("p2 south", "the same cloud").unwrap();
    clouds.note("p3 west", "lost").unwrap();
    drop(clouds);
    let clouds = Clouds::new(file.clone()).unwrap();
    let cloud = clouds.configure(vec![("lost".to_owned(), account("u"))]).remove(0).unwrap();
    let places = clouds.places().await;
    assert!(places.reached.is_empty());
    assert_eq!(named(&places.unlisted), ["lost", "the project p1 in the region north", "a cloud", "the same cloud"]);
    assert!(places.unlisted[0].why.contains("127.0.0.1"), "{:?}", places.unlisted);
    assert_eq!(places.hidden, ["p1", "p2", "p3"].map(str::to_owned).into());
    // A place in the configuration is not given up. Of two names, the other one stays.
    for name in ["lost", "a cloud", "the project p1 in the region north", "nowhere"] {
        clouds.give_up(name);
    }
    assert!(clouds.knows(&cloud));
    let places = clouds.places().await;
    assert_eq!(named(&places.unlisted), ["lost", "the same cloud"]);
    assert_eq!(places.hidden, ["p2", "p3"].map(str::to_owned).into());
    clouds.configure(Vec::new());
    clouds.give_up("lost");
    assert!(!clouds.knows(&cloud), "nobody looks at its servers any more");
    let places = Clouds::new(file).unwrap().places().await;
    assert_eq!(named(&places.unlisted), ["the same cloud"], "over a restart too");
}

#[test]
fn a_place_has_one_name() {
    let text = "[[worker]]\nname = \"w\"\npassword = \"x\"\n[worker.openstack]\nflavor = \"1\"\nimage = \"i\"\n\
                os_auth_url = \"http://c/v3\"\nos_username = \"ci\"\nos_tenant_name = \"t\"\nos_region_name = \"r\"\n";
    let config = crate::config::Config::parse(text, std::path::Path::new("rouse.toml")).unwrap();
    let (worker, section) = config.sections::<OpenstackConfig>().next().unwrap();
    let latent = config.plan.workers[worker].latent.clone().unwrap();
    assert_eq!(section.place(), "http://c/v3, user ci, project t, region r");
    assert_eq!(&*latent.place, section.place().as_str());
}
