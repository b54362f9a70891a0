//! Boot data survive every form in which they reach a host, either completely or not at all.
#![allow(clippy::unwrap_used)]

use super::*;

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
