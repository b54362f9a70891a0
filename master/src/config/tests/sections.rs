//! Values that the sections of providers take from elsewhere: from files, and in the form in which other programs print
//! them.

use super::*;

fn ec2_with(line: &str) -> String {
    format!("{MASTER}{}[worker.ec2]\ninstance_type = \"m5.large\"\n{line}\n", standing(""))
}

#[test]
fn owners_of_images_are_written_as_aws_and_its_users_write_them() {
    for (written, expected) in [
        ("99720109477", &["099720109477"][..]),
        ("\"099720109477\"", &["099720109477"]),
        (
            "[\"0997-2010-9477\", \"self\", 111111111111, \"aws-marketplace\"]",
            &["099720109477", "self", "111111111111", "aws-marketplace"],
        ),
        ("\"amazon\"", &["amazon"]),
    ] {
        let config = good(&ec2_with(&format!("valid_ami_owners = {written}")));
        let HostConfig::Ec2(ec2) = host(&config, "w") else { panic!() };
        let owners = expected.iter().map(|owner| (*owner).to_owned()).collect();
        assert_eq!(ec2.image, hosts::Ec2Image::Last { owners, location: None }, "{written}");
    }
    for wrong in ["\"Canonical\"", "\"99720109477\"", "\"\"", "[\"0997201094770\"]", "1000000000000", "[]"] {
        let told = errors(&ec2_with(&format!("valid_ami_owners = {wrong}")));
        assert_eq!(told.len(), 1, "{wrong}: {told:?}");
    }
}

#[test]
fn user_data_come_from_a_file_too_and_must_be_cloud_inits() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("user-data");
    let section = ec2_with(&format!("ami = \"ami-1\"\nuser_data = {{ file = {path:?} }}"));
    let fingerprint = |config: &Config| worker(config, "w").latent.as_ref().unwrap().fingerprint;
    std::fs::write(&path, "#!/bin/sh\n").unwrap();
    let before = good(&section);
    let HostConfig::Ec2(ec2) = host(&before, "w") else { panic!() };
    assert_eq!(ec2.user_data.as_deref(), Some("#!/bin/sh\n"));
    std::fs::write(&path, "#!/bin/sh\ntrue\n").unwrap();
    assert_ne!(fingerprint(&good(&section)), fingerprint(&before), "hosts with the old script are replaced");
    for (bytes, word) in [
        (&b"{\"ignition\": {\"version\": \"3.4.0\"}}"[..], "Ignition"),
        (b"\x1f\x8b\x08\0\0\0", "gzip"),
        (b"\xff\xfe", "UTF-8"),
    ] {
        std::fs::write(&path, bytes).unwrap();
        let told = errors(&section);
        assert!(told.len() == 1 && told[0].contains("worker.ec2.user_data") && told[0].contains(word), "{told:?}");
    }
    let told = errors(&ec2_with("ami = \"ami-1\"\nuser_data = \"<powershell>\""));
    assert!(told.len() == 1 && told[0].contains("Windows"), "{told:?}");
}

#[test]
fn a_description_of_several_machines_fixes_nothing_that_only_one_can_have() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("dumped.xml");
    let xml = "<domain>\n<devices>\n<interface>\n<mac address='52:54:00:00:00:01'/>\n</interface>\n\
               <graphics type='vnc' port='5901'/>\n</devices>\n</domain>\n";
    std::fs::write(&path, xml).unwrap();
    let section = |name: &str, file: &str| {
        format!(
            "[[worker]]\nname = \"{name}\"\npassword = \"x\"\nrun_as = \"b\"\n[worker.libvirt]\nconnection = \"qemu:///system\"\n\
             hd_image = \"/d/{{name}}.qcow2\"\nxml = {{ file = {file:?} }}\n"
        )
    };
    let dumped = path.display().to_string();
    assert_eq!(errors(&(MASTER.to_owned() + &section("t", &dumped))), Vec::<String>::new(), "one may have it all");
    for text in [section("t-{1..3}", &dumped), section("t-1", &dumped) + &section("t-2", &dumped)] {
        let told = errors(&(MASTER.to_owned() + &text));
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(told[0].contains(&format!("{dumped}:4: the hardware address 52:54:00:00:00:01")), "{told:?}");
        assert!(told[1].contains(":6: the graphics port 5901") && told[1].contains("t-1 and of t-2"), "{told:?}");
    }
    // Each its own file, with values of its own.
    for number in ["1", "2"] {
        let own = xml.replace("00:01", &format!("00:0{number}")).replace("5901", &format!("590{number}"));
        std::fs::write(dir.path().join(format!("t-{number}.xml")), own).unwrap();
    }
    let own = dir.path().join("{name}.xml").display().to_string();
    assert_eq!(errors(&(MASTER.to_owned() + &section("t-{1..2}", &own))), Vec::<String>::new());
}
