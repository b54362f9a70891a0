//! Durations as people write and read them: whole seconds, or numbers with units such as `1h30m`.

use serde::de::{self, Deserialize, Deserializer, Visitor};
use std::fmt;
use std::time::Duration;

/// The longest duration that is accepted: ten years. A longer one is a mistake, and sums of it stay far from overflow.
pub const LONGEST: Duration = Duration::from_secs(3_650 * 86_400);

/// The units with their milliseconds, the largest first.
const UNITS: [(&str, u64); 6] =
    [("w", 604_800_000), ("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];
/// Characters of a wrong text that its error quotes.
const QUOTED: usize = 60;

/// The duration that `text` gives: whole seconds such as `300`, or numbers with the units `w`, `d`, `h`, `m`, `s` and
/// `ms` such as `1h30m`, each unit at most once and the larger before the smaller.
///
/// # Errors
/// A sentence that says what is accepted, if `text` is anything else or longer than [`LONGEST`].
pub fn parse(text: &str) -> Result<Duration, String> {
    let wrong = || {
        let more = if text.chars().count() > QUOTED { "…" } else { "" };
        let quoted = text.chars().take(QUOTED).chain(more.chars()).collect::<String>();
        format!("{quoted:?} is not a duration: write 300, \"5m\" or \"1h30m\"")
    };
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.parse().map_err(|_| too_long()).and_then(from_seconds);
    }
    let mut rest = text;
    let mut units = &UNITS[..];
    let mut total = 0_u64;
    while !rest.is_empty() {
        let (number, after) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?);
        let (unit, after) = after.split_at(after.find(|c: char| !c.is_ascii_lowercase()).unwrap_or(after.len()));
        // Only smaller units may follow: anything else is more likely a mistake.
        let at = units.iter().position(|(name, _)| *name == unit).ok_or_else(wrong)?;
        let size = units[at].1;
        units = &units[at + 1..];
        if number.is_empty() {
            return Err(wrong());
        }
        let part = number.parse::<u64>().ok().and_then(|number| number.checked_mul(size));
        total = part.and_then(|part| total.checked_add(part)).ok_or_else(too_long)?;
        rest = after;
    }
    if text.is_empty() { Err(wrong()) } else { bounded(Duration::from_millis(total)) }
}

/// The duration of a number of seconds.
///
/// # Errors
/// A sentence, if it is longer than [`LONGEST`].
pub fn from_seconds(seconds: u64) -> Result<Duration, String> {
    bounded(Duration::from_secs(seconds))
}

fn bounded(duration: Duration) -> Result<Duration, String> {
    if duration <= LONGEST { Ok(duration) } else { Err(too_long()) }
}

fn too_long() -> String {
    "a duration must not be longer than ten years".to_owned()
}

/// The duration in the form that [`parse`] reads, to the millisecond: `1h30m`, `7d`, `250ms`, `0s`.
pub fn exact(duration: Duration) -> String {
    join(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX), UNITS.len())
}

/// The duration for people, in whole seconds and at most two units that follow one another, rounded down: `42s`,
/// `1h30m`, `3d4h`. The page's `formatDuration()` prints the same.
pub fn rough(duration: Duration) -> String {
    join(duration.as_secs().saturating_mul(1_000), 2)
}

/// The first `most` units from the largest that is needed; days are the largest.
fn join(mut rest: u64, most: usize) -> String {
    let days = &UNITS[1..];
    let first = days.iter().position(|(_, size)| rest >= *size).unwrap_or(days.len());
    let mut text = String::new();
    for (name, size) in days.iter().skip(first).take(most) {
        if rest >= *size {
            text.push_str(&format!("{}{name}", rest / size));
            rest %= size;
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

/// A duration in a document: a number of seconds, or a text that [`parse`] reads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HumanDuration(pub Duration);

impl<'de> Deserialize<'de> for HumanDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct DurationVisitor;

        impl Visitor<'_> for DurationVisitor {
            type Value = HumanDuration;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("whole seconds, or a string such as \"5m\" or \"1h30m\"")
            }

            fn visit_u64<E: de::Error>(self, seconds: u64) -> Result<HumanDuration, E> {
                from_seconds(seconds).map(HumanDuration).map_err(E::custom)
            }

            fn visit_i64<E: de::Error>(self, seconds: i64) -> Result<HumanDuration, E> {
                match u64::try_from(seconds) {
                    Ok(seconds) => self.visit_u64(seconds),
                    Err(_) => Err(E::custom("must not be negative")),
                }
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<HumanDuration, E> {
                parse(text).map(HumanDuration).map_err(E::custom)
            }
        }

        deserializer.deserialize_any(DurationVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_parsed() {
        for (text, ms) in [
            ("0", 0),
            ("90", 90_000),
            ("0s", 0),
            ("90s", 90_000),
            ("5m", 300_000),
            ("1h30m", 5_400_000),
            ("7d", 604_800_000),
            ("250ms", 250),
            ("1m250ms", 60_250),
            ("1w1d1h1m1s1ms", 694_861_001),
            ("007m", 420_000),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_millis(ms)), "{text}");
        }
    }

    #[test]
    fn what_is_no_duration_is_quoted() {
        for text in ["", "m", "ms", "5x", "5m3", "1m1h", "1m1m", "1ms1s", "-5m", "1.5h", " 5m", "5 m", "5M", "5é", "٣s"]
        {
            let error = parse(text).unwrap_err();
            assert_eq!(error, format!("{text:?} is not a duration: write 300, \"5m\" or \"1h30m\""));
        }
        let error = parse(&"x".repeat(1_000)).unwrap_err();
        assert!(error.contains("x…\"") && error.chars().count() < 130, "{error}");
    }

    #[test]
    fn ten_years_are_the_longest() {
        assert_eq!(parse("3650d"), Ok(LONGEST));
        let huge = "9".repeat(30);
        for text in ["3650d1ms", "522w", "315360001", &huge, &format!("{huge}s"), "18446744073709551615ms"] {
            assert_eq!(parse(text), Err("a duration must not be longer than ten years".to_owned()), "{text}");
        }
    }

    #[test]
    fn exact_texts_are_parsed_to_the_same() {
        for (ms, text) in [
            (0, "0s"),
            (1, "1ms"),
            (59_000, "59s"),
            (60_000, "1m"),
            (90_250, "1m30s250ms"),
            (5_400_000, "1h30m"),
            (86_400_000, "1d"),
            (90_061_000, "1d1h1m1s"),
            (1_209_600_000, "14d"),
        ] {
            let duration = Duration::from_millis(ms);
            assert_eq!(exact(duration), text);
            assert_eq!(parse(text), Ok(duration));
        }
    }

    #[test]
    fn rough_texts_have_two_units() {
        for (seconds, text) in [
            (0, "0s"),
            (42, "42s"),
            (90, "1m30s"),
            (3_600, "1h"),
            (3_659, "1h"),
            (5_459, "1h30m"),
            (86_400 + 3_599, "1d"),
            (273_600, "3d4h"),
            (864_000, "10d"),
        ] {
            assert_eq!(rough(Duration::from_secs(seconds)), text);
        }
        assert_eq!(rough(Duration::from_millis(1_999)), "1s");
    }
}
