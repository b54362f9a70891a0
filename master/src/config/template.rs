//! Names of workers that contain a range: `linux-{01..20}` stands for twenty names.

use rouse_shared::WorkerName;

/// Largest number of workers in one section. A larger number is a typing error: nobody starts that many hosts of one
/// kind.
const MOST: u64 = 10_000;

/// The names that `written` stands for, in the order of their numbers. A range whose ends have a leading zero is padded
/// to the longer of them, as shells do it.
///
/// # Errors
/// In a sentence, what would be right.
pub(super) fn expand(written: &str) -> Result<Vec<WorkerName>, String> {
    let Some((before, rest)) = written.split_once('{') else {
        let one = written.parse::<WorkerName>().map_err(|e| e.to_string())?;
        return Ok(vec![one]);
    };
    const SHAPE: &str = "a template has one range of numbers in it, such as {1..4} or {01..20}";
    let (range, after) = rest.split_once('}').ok_or(SHAPE)?;
    if after.contains(['{', '}']) {
        return Err(SHAPE.to_owned());
    }
    let (first, last) = range.split_once("..").ok_or(SHAPE)?;
    let digits = |text: &str| (1..=9).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    if !digits(first) || !digits(last) {
        return Err(SHAPE.to_owned());
    }
    let number = |text: &str| text.parse::<u64>().map_err(|_| SHAPE.to_owned());
    let (from, to) = (number(first)?, number(last)?);
    if from > to {
        return Err(format!("the range runs backwards: write {{{last}..{first}}}"));
    }
    if to - from >= MOST {
        return Err(format!("{} workers in one section; the maximum is {MOST}", to - from + 1));
    }
    let padded = |text: &str| text.len() > 1 && text.starts_with('0');
    let width = if padded(first) || padded(last) { first.len().max(last.len()) } else { 0 };
    let name = |n: u64| format!("{before}{n:0width$}{after}").parse::<WorkerName>().map_err(|e| e.to_string());
    (from..=to).map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(written: &str) -> Vec<String> {
        expand(written).unwrap_or_default().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn ranges_are_expanded() {
        assert_eq!(names("w"), ["w"]);
        assert_eq!(names("w{1..3}"), ["w1", "w2", "w3"]);
        assert_eq!(names("w-{9..11}-x"), ["w-9-x", "w-10-x", "w-11-x"]);
        assert_eq!(names("w{09..11}"), ["w09", "w10", "w11"]);
        assert_eq!(names("w{0..1}"), ["w0", "w1"]);
        assert_eq!(names("w{5..5}"), ["w5"]);
        assert_eq!(names("{1..2}"), ["1", "2"]);
        let twenty = names("linux-{01..20}");
        assert_eq!((twenty.len(), &*twenty[0], &*twenty[8], &*twenty[19]), (20, "linux-01", "linux-09", "linux-20"));
        assert_eq!(names("w{1..10000}").len(), 10_000);
    }

    #[test]
    fn what_is_no_range_is_refused() {
        for bad in [
            "w{20..1}",
            "w{1..10001}",
            "w{0..999999999}",
            "w{1..9999999999}",
            "w{1..",
            "w{}",
            "w{1}",
            "w{a..b}",
            "w{1..2}}",
            "w{1..2}{1..2}",
            "w{-1..2}",
            "w{1..+2}",
            "W{1..2}",
            "w{1..2}-",
            "w}",
            "",
            "w_{1..2}",
            "{name}",
        ] {
            assert!(expand(bad).is_err(), "{bad:?} was taken");
        }
        let long = format!("{}{{9..10}}", "a".repeat(62));
        assert!(expand(&long).is_err(), "the second name has 64 characters");
    }
}
