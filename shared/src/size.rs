//! Sizes as people write them in configurations.

/// The number of bytes in a text: a plain number, or one with `kB`, `MB`, `GB` (powers of 1000) or `KiB`, `MiB`, `GiB`
/// (of 1024), for which `K`, `M`, `G` are short, as in systemd.
///
/// # Errors
/// A sentence that says what is wrong with the text.
pub fn parse(text: &str) -> Result<u64, String> {
    let wrong =
        || format!("{text:?} is not a size: write a number of bytes, or one with a unit, like \"64MB\" or \"1GiB\"");
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let number: u64 = text[..digits].parse().map_err(|_| wrong())?;
    let unit = match text[digits..].trim() {
        "" | "B" => 1,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "KiB" | "K" => 1 << 10,
        "MiB" | "M" => 1 << 20,
        "GiB" | "G" => 1 << 30,
        _ => return Err(wrong()),
    };
    number.checked_mul(unit).ok_or_else(wrong)
}

/// The number of bytes for people, with one decimal: `512 B`, `1.5 MiB`, `8.0 GiB`.
pub fn show(bytes: u64) -> String {
    let units = [("GiB", 1u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match units.into_iter().find(|(_, unit)| bytes >= *unit) {
        Some((name, unit)) => format!("{:.1} {name}", bytes as f64 / unit as f64),
        None => format!("{bytes} B"),
    }
}

/// A limit for people: as [`show`], without a decimal if it is 0.
pub fn show_limit(bytes: u64) -> String {
    show(bytes).replace(".0 ", " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_shown() {
        for (text, bytes) in [("8G", 8 << 30), ("8GiB", 8 << 30), ("1 MB", 1_000_000), ("64K", 65_536), ("7", 7)] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for wrong in ["", "G", "8g", "8T ", "-1", "99999999999G"] {
            parse(wrong).expect_err(wrong);
        }
        for (bytes, text, limit) in
            [(8 << 30, "8.0 GiB", "8 GiB"), (1_600_000, "1.5 MiB", "1.5 MiB"), (1023, "1023 B", "1023 B")]
        {
            assert_eq!((show(bytes).as_str(), show_limit(bytes).as_str()), (text, limit));
        }
    }
}
