//! A guest's output on its serial port, made safe to show on a terminal.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;

/// Number of bytes at the end that are evidence.
const TAIL: u64 = 8 << 10;

/// The end of the file; none if it is empty.
pub fn tail(path: &Path) -> Option<String> {
    let mut file = File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL))).ok()?;
    let mut bytes = Vec::new();
    file.take(TAIL).read_to_end(&mut bytes).ok()?;
    let text = plain(&String::from_utf8_lossy(&bytes));
    (!text.trim().is_empty()).then_some(text)
}

/// The text without control sequences: firmware and boot loaders move the cursor.
fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\u{1b}' => {
                // A sequence is `[`, parameters, and one final character; others have two characters.
                if chars.next_if_eq(&'[').is_some() {
                    while chars.next_if(|c| ('\u{20}'..='\u{3f}').contains(c)).is_some() {}
                }
                chars.next();
            }
            '\n' | '\t' => out.push(c),
            c if c.is_control() => {}
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_steers_a_terminal_is_left_out() {
        let said = "\u{1b}c\u{1b}[?7l\u{1b}[2J\u{1b}[0mSeaBIOS\r\n\u{7}No bootable device.\tx\u{1b}[";
        assert_eq!(plain(said), "SeaBIOS\nNo bootable device.\tx");
    }
}
