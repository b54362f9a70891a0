//! The agent's own log: lines on standard error, with the time in UTC and a level.

use crate::clock;
use crate::core::Level;
use std::io::Write;
use std::time::UNIX_EPOCH;

/// Writes one line. A log that cannot be written stops nothing.
pub fn line(level: Level, text: &str) {
    let since = clock::time_of_day().duration_since(UNIX_EPOCH).unwrap_or_default();
    let level = match level {
        Level::Info => "info",
        Level::Warn => "warning",
        Level::Error => "error",
    };
    let line = format!("{} {level}: {}\n", utc(since.as_secs(), since.subsec_millis()), text.replace('\n', "\\n"));
    // One write, so that lines of several agents with one standard error do not mix.
    drop(std::io::stderr().write_all(line.as_bytes()));
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
