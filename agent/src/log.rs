//! The agent's own log: lines on standard error, with the time in UTC and a level.

use crate::clock;
use crate::core::Level;
use std::io::{self, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, UNIX_EPOCH};

/// Lines that wait for standard error, at most.
const WAITING: usize = 1_000;
/// How long the last lines may take at the end of the program.
const LAST: Duration = Duration::from_secs(1);
/// Of the thread that writes: it calls nothing that needs more.
const STACK: usize = 128 << 10;

/// What the thread that writes is given.
enum Item {
    Line(String),
    /// Everything before is written.
    Written(SyncSender<()>),
}

static WRITER: OnceLock<SyncSender<Item>> = OnceLock::new();
/// Lines that found no room since the last that did.
static LOST: AtomicU64 = AtomicU64::new(0);

/// From now on a thread writes the lines: a pipe that nobody reads, or a log service that hangs with its disk, must not
/// keep the agent from its timers. Without it they are written where they are said.
///
/// # Errors
/// Where there can be no thread.
pub fn start() -> io::Result<()> {
    let (writer, items) = sync_channel(WAITING);
    thread::Builder::new().name("log".to_owned()).stack_size(STACK).spawn(move || {
        for item in items {
            match item {
                Item::Line(line) => write(&line),
                // In vain where it took so long that nobody waits any more.
                Item::Written(told) => drop(told.try_send(())),
            }
        }
    })?;
    // Started twice, the first goes on, and the second ends with its channel.
    drop(WRITER.set(writer));
    Ok(())
}

/// Waits until all lines are written, for a second at most. To be called before the program ends or becomes another.
pub fn finish() {
    if let Some(writer) = WRITER.get() {
        let (told, written) = sync_channel(1);
        if writer.try_send(Item::Written(told)).is_ok() {
            // What is not written by then is lost.
            written.recv_timeout(LAST).ok();
        }
    }
}

/// Says one line. A log that cannot be written stops nothing: what finds no room is counted and left out.
pub fn line(level: Level, text: &str) {
    let line = told(level, text);
    let Some(writer) = WRITER.get() else { return write(&line) };
    let lost = LOST.swap(0, Ordering::Relaxed);
    let line = match lost {
        0 => line,
        _ => told(Level::Error, &format!("{lost} lines could not be written and are lost")) + &line,
    };
    if writer.try_send(Item::Line(line)).is_err() {
        LOST.fetch_add(lost + 1, Ordering::Relaxed);
    }
}

fn told(level: Level, text: &str) -> String {
    let since = clock::time_of_day().duration_since(UNIX_EPOCH).unwrap_or_default();
    let level = match level {
        Level::Info => "info",
        Level::Warn => "warning",
        Level::Error => "error",
    };
    format!("{} {level}: {}\n", utc(since.as_secs(), since.subsec_millis()), text.replace('\n', "\\n"))
}

fn write(lines: &str) {
    // One write, so that lines of several agents with one standard error do not mix.
    drop(io::stderr().write_all(lines.as_bytes()));
}

/// RFC 3339, from seconds since 1970.
fn utc(seconds: u64, milliseconds: u32) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Days from 1 March of year 0, in eras of 400 years: leap days come last, so months are regular.
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
    use super::utc;

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
