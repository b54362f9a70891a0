//! Boot data survive every form in which they reach a host, either completely or not at all.
#![allow(clippy::unwrap_used)]

use super::*;

const TOML: &str = "name = \"w7\"\nca = \"\"\"\n-----BEGIN CERTIFICATE-----\n\nMIIB\n\"\"\"\ntoken = \"t0\"\n";

#[test]
fn a_block_is_found_among_other_things() {
    let toml = "name = \"w7\"\nca = \"\"\"\nPEM\n\n# no comment\n\"\"\"\n";
    let block = comment_block(toml);
    assert!(block.lines().all(|line| line.starts_with('#')), "{block}");
    for text in [block.clone(), format!("#cloud-config\r\n{}{{}}\n", block.replace('\n', "\r\n"))] {
        assert_eq!(find_block(&text).as_deref(), Some(toml));
    }
    assert_eq!(find_block(&format!("x\n{block}y\n{block}")).as_deref(), Some(toml), "the first one");
}

#[test]
fn half_a_block_is_none() {
    let block = comment_block("name = \"w7\"\n");
    let cut = &block[..block.len() - 5];
    assert!(block_begins(cut) && block_begins(&block.replace('\n', "\r\n")) && !block_begins("# BEGIN\n"));
    for text in ["", "#!/bin/sh\n", cut, &block.replace("# name", "name"), &block.replace("# -----B", "-----B")] {
        assert_eq!(find_block(text), None, "{text:?}");
    }
}

#[test]
fn strings_of_the_firmware_make_a_whole_in_any_order() {
    let short = oem_strings(TOML);
    assert_eq!(short.len(), 1);
    let read = |strings: &[String]| from_oem_strings(strings.iter().map(String::as_str));
    assert_eq!(read(&short).unwrap().as_deref(), Some(TOML));
    let long = TOML.repeat(40);
    let mut strings = oem_strings(&long);
    assert!(strings.len() > 3 && strings.iter().all(|s| s.len() < 1_024), "{strings:?}");
    strings.reverse();
    strings.insert(1, "another's".to_owned());
    strings.push(strings[0].clone());
    assert_eq!(read(&strings).unwrap(), Some(long));
    assert_eq!(read(&["another's".to_owned()]), Ok(None));
    assert!(oem_strings(&"x".repeat(MAX_BOOT_DATA)).len() <= OEM_STRINGS);
}

#[test]
fn incomplete_strings_are_an_error() {
    let read = |strings: &[&str]| from_oem_strings(strings.iter().copied());
    for (strings, error) in [
        (&["rouse.boot:1/2:AAAA"][..], BootDataError::Pieces(1, 2)),
        (&["rouse.boot:1/2:AAAA", "rouse.boot:2/3:AAAA"], BootDataError::Pieces(1, 3)),
        (&["rouse.boot:1/2:AAAA", "rouse.boot:1/2:BBBB"], BootDataError::Pieces(1, 2)),
        (&["rouse.boot:0/2:AAAA"], BootDataError::BadString),
        (&["rouse.boot:3/2:AAAA"], BootDataError::BadString),
        (&["rouse.boot:1/0:AAAA"], BootDataError::BadString),
        (&["rouse.boot:1/999999999999:AAAA"], BootDataError::BadString),
        (&["rouse.boot:one:AAAA"], BootDataError::BadString),
        (&["rouse.boot:!"], BootDataError::BadBase64),
        (&["rouse.boot:/w=="], BootDataError::BadBase64),
    ] {
        assert_eq!(read(strings), Err(error), "{strings:?}");
    }
}
