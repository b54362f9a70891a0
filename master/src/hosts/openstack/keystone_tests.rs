//! What the catalogue offers to each kind of account.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::hosts::openstack::account::Interface;

fn session() -> Session {
    let endpoint = |interface: &str, region: &str| json!({ "interface": interface, "region_id": region, "url": format!("http://{interface}.{region}.example.com/v2.1") });
    let all: Vec<Value> = ["north", "south"]
        .iter()
        .flat_map(|region| ["public", "internal", "admin"].map(|interface| endpoint(interface, region)))
        .collect();
    let catalogue = json!([
        { "type": "compute", "endpoints": all },
        { "type": "image", "endpoints": [endpoint("public", "north")] },
    ]);
    Session { token: "t".to_owned(), renew_at: clock::now(), project: "p".to_owned(), catalogue }
}

fn account(interface: Interface, region: Option<&str>) -> Account {
    let login = Login::Application { id: "i".to_owned(), secret: crate::config::Secret::new("s") };
    let (auth_url, region) = ("http://example.com".to_owned(), region.map(str::to_owned));
    Account { auth_url, login, region, interface, ca: None }
}

#[test]
fn the_endpoint_is_that_of_interface_and_region() {
    for (interface, region) in
        [(Interface::Public, "north"), (Interface::Internal, "south"), (Interface::Admin, "north")]
    {
        let account = account(interface, Some(region));
        let url = format!("http://{}.{region}.example.com/v2.1", interface.as_str());
        assert_eq!(session().endpoint(Service::Compute, &account).unwrap(), url);
        assert_eq!(session().place(&account).unwrap(), format!("p {region}"));
    }
}

#[test]
fn what_the_catalogue_lacks_is_reported() {
    let error = |service, interface, region| {
        let Err(CloudError::Misconfigured(why)) = session().endpoint(service, &account(interface, region)) else {
            panic!()
        };
        why
    };
    let why = error(Service::Compute, Interface::Public, None);
    assert!(why.contains("north, south") && why.contains("os_region_name"), "{why}");
    let why = error(Service::Image, Interface::Public, Some("south"));
    assert!(why.contains("\"south\"") && why.contains("north"), "{why}");
    let why = error(Service::Image, Interface::Internal, Some("north"));
    assert!(why.contains("no internal endpoint"), "{why}");
    let why = error(Service::Volume, Interface::Public, None);
    assert!(why.contains("Cinder"), "{why}");
    // The only region need not be named.
    assert!(session().endpoint(Service::Image, &account(Interface::Public, None)).is_ok());
}
