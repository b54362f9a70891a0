//! Durations as people write them: whole seconds, or a text such as `1h30m`.

use std::time::Duration;

/// The longest duration that is taken: ten years. What is longer is a slip, and sums of it stay far from overflow.
pub const LONGEST: Duration = Duration::from_secs(3650 * 86_400);

const UNITS: [(char, u64); 5] = [('w', 604_800), ('d', 86_400), ('h', 3_600), ('m', 60), ('s', 1)];

/// The duration that `text` gives as numbers with units: `90s`, `5m`, `1h30m`, `7d`, `2w`.
///
/// # Errors
/// In a sentence, what would be right, where it is none or longer than [`LONGEST`].
pub fn parse(text: &str) -> Result<Duration, String> {
    let bad = || format!("{:?} is not a duration: write 300, \"5m\" or \"1h30m\"", shorten(text));
    let mut seconds: u64 = 0;
    let mut number: Option<u64> = None;
    let mut last = u64::MAX;
    for c in text.chars() {
        if let Some(digit) = c.to_digit(10) {
            let next = number.unwrap_or(0).checked_mul(10).and_then(|n| n.checked_add(digit.into()));
            number = Some(next.ok_or_else(too_long)?);
            continue;
        }
        // Each unit at most once, the larger before the smaller: anything else is more likely a slip.
        let (_, unit) = UNITS.into_iter().find(|(name, size)| *name == c && *size < last).ok_or_else(bad)?;
        let part = number.take().ok_or_else(bad)?.checked_mul(unit);
        seconds = part.and_then(|p| seconds.checked_add(p)).ok_or_else(too_long)?;
        last = unit;
    }
    if number.is_some() || last == u64::MAX {
        return Err(bad());
    }
    from_seconds(seconds)
}

/// The duration of so many seconds.
///
/// # Errors
/// Where it is longer than [`LONGEST`].
pub fn from_seconds(seconds: u64) -> Result<Duration, String> {
    Some(Duration::from_secs(seconds)).filter(|d| *d <= LONGEST).ok_or_else(too_long)
}

/// As people write it: `1h30m`. Parts of a second are left out.
pub fn show(duration: Duration) -> String {
    let mut rest = duration.as_secs();
    let mut text = String::new();
    for (name, size) in UNITS {
        if rest >= size && name != 'w' {
            text.push_str(&format!("{}{name}", rest / size));
            rest %= size;
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

fn too_long() -> String {
    "this is longer than ten years, the most that is taken".to_owned()
}

/// The beginning of a text, for a message.
pub(crate) fn shorten(text: &str) -> String {
    const MOST: usize = 60;
    if text.chars().count() <= MOST { text.to_owned() } else { text.chars().take(MOST).chain(['…']).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_with_units() {
        for (text, seconds) in [
            ("0s", 0),
            ("90s", 90),
            ("5m", 300),
            ("1h30m", 5_400),
            ("7d", 604_800),
            ("1w1d1h1m1s", 694_861),
            ("007m", 420),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in
            ["", "5", "m", "5x", "5m3", "1m1h", "1m1m", "-5m", "1.5h", " 5m", "5 m", "5M", "10000000000000000000000s"]
        {
            assert!(parse(text).is_err(), "{text:?} was taken");
        }
        assert!(parse("3651d").is_err());
        assert_eq!(parse("3650d"), Ok(LONGEST));
    }

    #[test]
    fn shown_and_read_again() {
        for seconds in [0, 1, 59, 60, 90, 3_600, 5_400, 86_400, 90_061] {
            let duration = Duration::from_secs(seconds);
            assert_eq!(parse(&show(duration)), Ok(duration));
        }
    }
}
