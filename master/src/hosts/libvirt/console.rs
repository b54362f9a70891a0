//! A guest's output on its serial port, made safe for a terminal.

use std::fs::File;
use std::io::{self, ErrorKind, Read as _, Seek as _, SeekFrom};
use std::path::Path;

/// Number of bytes at the end that are evidence.
const TAIL: u64 = 8 << 10;

/// The end of what was printed; none if that is nothing. virtlogd puts a file aside when it is long, and the new one is
/// root's: what may not be read is said, since it is no proof that the guest was silent.
pub fn tail(path: &Path) -> Option<String> {
    let newest = end_of(path);
    let mut bytes = newest.as_ref().cloned().unwrap_or_default();
    if bytes.len() < TAIL as usize {
        let mut older = path.as_os_str().to_owned();
        older.push(".0");
        let mut all = end_of(Path::new(&older)).unwrap_or_default();
        all.append(&mut bytes);
        bytes = all.split_off(all.len().saturating_sub(TAIL as usize));
    }
    let text = plain(&String::from_utf8_lossy(&bytes));
    let text = Some(text).filter(|text| !text.trim().is_empty());
    match newest {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            let more = if text.is_some() { "what followed is" } else { "what the guest printed is" };
            let note = format!("[{more} in {}, which the master cannot read: {error}]", path.display());
            Some(text.map_or_else(|| note.clone(), |text| format!("{}\n{note}", text.trim_end())))
        }
        Ok(_) | Err(_) => text,
    }
}

fn end_of(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
    let mut bytes = Vec::new();
    file.take(TAIL).read_to_end(&mut bytes)?;
    Ok(bytes)
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
    fn what_was_put_aside_is_read_too_and_what_cannot_be_read_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let (path, older) = (dir.path().join("h1.console"), dir.path().join("h1.console.0"));
        assert_eq!(tail(&path), None);
        std::fs::write(&path, " \n").unwrap();
        assert_eq!(tail(&path), None);
        std::fs::write(&path, "new\n").unwrap();
        assert_eq!(tail(&path).unwrap(), "new\n");
        std::fs::write(&older, "old\n").unwrap();
        assert_eq!(tail(&path).unwrap(), "old\nnew\n");
        std::fs::write(&path, "x".repeat(10_000)).unwrap();
        assert_eq!(tail(&path).unwrap().len(), TAIL as usize);
        // Root may read everything; nobody reads a directory.
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        let told = tail(&path).unwrap();
        assert!(told.starts_with("old\n[what followed is in ") && told.contains("cannot read"), "{told}");
        std::fs::remove_file(&older).unwrap();
        assert!(tail(&path).unwrap().starts_with("[what the guest printed is in "));
    }

    #[test]
    fn what_steers_a_terminal_is_left_out() {
        let said = "\u{1b}c\u{1b}[?7l\u{1b}[2J\u{1b}[0mSeaBIOS\r\n\u{7}No bootable device.\tx\u{1b}[";
        assert_eq!(plain(said), "SeaBIOS\nNo bootable device.\tx");
    }
}
