//! The agent's own log: lines on standard error, with the time in UTC and a level.

use crate::clock;
use crate::core::Level;
use std::io::{self, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, UNIX_EPOCH};

/// Largest number of lines that wait for standard error.
const WAITING: usize = 1_000;
/// How long the end of the program waits for room in the queue, and then again for the lines to be written.
const LAST: Duration = Duration::from_secs(1);
/// Time between checks for room.
const LOOK: Duration = Duration::from_millis(10);
/// Stack of the thread that writes, bytes: it calls nothing that needs more.
const STACK: usize = 128 << 10;

static LOG: OnceLock<Log> = OnceLock::new();

/// Starts the thread that writes the lines, so that a pipe that nobody reads, or a log service that hangs, cannot delay
/// the agent's timers. Until then the caller of [`log`] writes them. Panics are logged in the same way.
///
/// # Errors
/// If no thread can be started.
pub fn start() -> io::Result<()> {
    // On a second call the first thread goes on, and the second ends with its channel.
    drop(LOG.set(Log::start(write)?));
    std::panic::set_hook(Box::new(|panic| {
        log(Level::Error, &panic.to_string());
        finish();
    }));
    Ok(())
}

/// Logs one line. Never waits: a line for which there is no room is counted and left out.
pub fn log(level: Level, text: &str) {
    let line = format_line(level, text);
    match LOG.get() {
        Some(writer) => writer.line(line),
        None => write(&line),
    }
}

/// Waits until all lines are written, for at most two seconds. Call it before the program ends or executes another.
pub fn finish() {
    if let Some(log) = LOG.get() {
        log.finish();
    }
}

/// The thread that writes, and the queue to it.
struct Log {
    items: SyncSender<Item>,
    /// Lines that found no room since the last one that did.
    lost: AtomicU64,
}

enum Item {
    Lines(String),
    /// Requests a message once everything before it is written.
    Flush(SyncSender<()>),
}

impl Log {
    fn start(mut write: impl FnMut(&str) + Send + 'static) -> io::Result<Self> {
        let (items, given) = sync_channel(WAITING);
        thread::Builder::new().name("log".to_owned()).stack_size(STACK).spawn(move || {
            for item in given {
                match item {
                    Item::Lines(lines) => write(&lines),
                    // Fails if it took so long that nobody waits any more.
                    Item::Flush(done) => drop(done.try_send(())),
                }
            }
        })?;
        Ok(Self { items, lost: AtomicU64::new(0) })
    }

    fn line(&self, line: String) {
        let lost = self.lost.swap(0, Ordering::Relaxed);
        if self.items.try_send(Item::Lines(gap(lost) + &line)).is_err() {
            self.lost.fetch_add(lost + 1, Ordering::Relaxed);
        }
    }

    fn finish(&self) {
        let (done, written) = sync_channel(1);
        let lost = self.lost.swap(0, Ordering::Relaxed);
        let mut looks = LAST.as_millis() / LOOK.as_millis();
        for mut item in [Item::Lines(gap(lost)), Item::Flush(done)] {
            while let Err(TrySendError::Full(back) | TrySendError::Disconnected(back)) = self.items.try_send(item) {
                if looks == 0 {
                    if let Item::Lines(_) = back {
                        self.lost.fetch_add(lost, Ordering::Relaxed);
                    }
                    return;
                }
                looks -= 1;
                item = back;
                thread::sleep(LOOK);
            }
        }
        // Lines that are not written by then are lost.
        written.recv_timeout(LAST).ok();
    }
}

/// A line that reports how many lines are missing; empty if none is.
fn gap(lost: u64) -> String {
    match lost {
        0 => String::new(),
        _ => format_line(Level::Error, &format!("{lost} lines could not be written and are lost")),
    }
}

fn format_line(level: Level, text: &str) -> String {
    let since = clock::time_of_day().duration_since(UNIX_EPOCH).unwrap_or_default();
    let level = match level {
        Level::Info => "info",
        Level::Warn => "warning",
        Level::Error => "error",
    };
    format!("{} {level}: {}\n", utc(since.as_secs(), since.subsec_millis()), text.replace('\n', "\\n"))
}

fn write(lines: &str) {
    // A single write, so that the lines of several agents that share standard error do not mix.
    drop(io::stderr().write_all(lines.as_bytes()));
}

/// A time in UTC by RFC 3339, from seconds since 1970.
fn utc(seconds: u64, milliseconds: u32) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Days since 1 March of year 0, in eras of 400 years: leap days come last, so months are regular.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3_600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milliseconds:03}Z")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[test]
    fn what_finds_no_room_is_counted_and_the_end_waits_for_what_does() {
        let (gate, opened) = sync_channel::<()>(0);
        let said = Arc::new(Mutex::new(String::new()));
        let (begun, begins) = sync_channel(1);
        let log = Log::start({
            let said = Arc::clone(&said);
            move |lines| {
                begun.try_send(()).ok();
                // Shut until the gate is gone.
                opened.recv().ok();
                said.lock().expect("nobody panics").push_str(lines);
            }
        })
        .expect("a thread");
        log.line("first\n".to_owned());
        begins.recv().expect("it hangs at the first");
        for number in 0..WAITING + 5 {
            log.line(format!("{number}\n"));
        }
        // It comes back although nothing can be written.
        log.finish();
        drop(gate);
        while !said.lock().expect("nobody panics").contains("999\n") {
            thread::yield_now();
        }
        log.line("last\n".to_owned());
        log.finish();
        let said = said.lock().expect("nobody panics").clone();
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!((lines[0], lines[1], lines[WAITING]), ("first", "0", "999"));
        assert_eq!(lines.len(), WAITING + 3, "{:?}", &lines[WAITING..]);
        assert!(lines[WAITING + 1].ends_with(" error: 5 lines could not be written and are lost"));
        assert_eq!(lines[WAITING + 2], "last");
    }

    #[test]
    fn days_are_counted_right() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.007Z"),
            (951_782_399, "2000-02-28T23:59:59.007Z"),
            (951_782_400, "2000-02-29T00:00:00.007Z"),
            (1_709_251_200, "2024-03-01T00:00:00.007Z"),
            (1_735_689_599, "2024-12-31T23:59:59.007Z"),
        ] {
            assert_eq!(utc(seconds, 7), text);
        }
    }
}
