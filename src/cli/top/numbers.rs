//! Figures as they stand in a column.

use super::text::Glyphs;
use crate::cli::check::grouped;

/// What stands where a node does not tell.
pub(super) const UNKNOWN: &str = "-";

/// A count with its thousands apart; one that is wider than `width` in thousands, millions and so on: `12.3 M`.
pub(super) fn count(number: u64, width: usize) -> String {
    let whole = grouped(number);
    if whole.len() <= width || number < 1_000 {
        return whole;
    }
    let units = [
        ("E", 1_000_000_000_000_000_000u64),
        ("P", 1_000_000_000_000_000),
        ("T", 1_000_000_000_000),
        ("G", 1_000_000_000),
        ("M", 1_000_000),
        ("k", 1_000),
    ];
    units
        .into_iter()
        .find(|(_, factor)| number >= *factor)
        .map_or(whole, |(unit, factor)| tenths(number, factor, unit))
}

/// Microseconds: `340 µs`, `1.2 ms`, `3.4 s`.
pub(super) fn micros(number: u64, glyphs: &Glyphs) -> String {
    match number {
        0..1_000 => format!("{number} {}", glyphs.micro),
        1_000..1_000_000 => tenths(number, 1_000, "ms"),
        _ => tenths(number, 1_000_000, "s"),
    }
}

/// The age of news: `0.3 s`, `42 s`, then as [`span`].
pub(super) fn age(ms: u64) -> String {
    match ms {
        0..10_000 => tenths(ms, 1_000, "s"),
        _ => span(ms / 1_000),
    }
}

/// A span of time by its two greatest units: `42 s`, `5m 12s`, `3h 4m`, `12d 7h`.
pub(super) fn span(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => format!("{}m {}s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{}h {}m", seconds / 3_600, seconds % 3_600 / 60),
        _ => format!("{}d {}h", seconds / 86_400, seconds % 86_400 / 3_600),
    }
}

/// Tenths of a percent: `12.3 %`.
pub(super) fn percent(permille: u64) -> String {
    tenths(permille, 10, "%")
}

/// Seconds since 1970 as the time of a day: `14:03:07 UTC`.
pub(super) fn time_of_day(unix_s: u64) -> String {
    let second = unix_s % 86_400;
    format!(
        "{:02}:{:02}:{:02} UTC",
        second / 3_600,
        second % 3_600 / 60,
        second % 60
    )
}

fn tenths(number: u64, factor: u64, unit: &str) -> String {
    let tenths = u128::from(number) * 10 / u128::from(factor);
    format!("{}.{} {unit}", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_is_whole_while_it_fits() {
        assert_eq!(count(1_234_567, 9), "1,234,567");
        assert_eq!(count(1_234_567, 8), "1.2 M");
        assert_eq!(count(999, 1), "999");
        assert_eq!(count(1_000, 4), "1.0 k");
        assert_eq!(count(u64::MAX, 20), "18.4 E");
    }

    #[test]
    fn times_have_the_unit_that_suits() {
        let micros = |number| micros(number, &Glyphs::UNICODE);
        assert_eq!(micros(0), "0 µs");
        assert_eq!(micros(999), "999 µs");
        assert_eq!(micros(1_250), "1.2 ms");
        assert_eq!(micros(3_400_000), "3.4 s");
        assert_eq!(age(310), "0.3 s");
        assert_eq!(age(10_000), "10 s");
        assert_eq!(span(59), "59 s");
        assert_eq!(span(60), "1m 0s");
        assert_eq!(span(3_600), "1h 0m");
        assert_eq!(span(90_000), "1d 1h");
        assert_eq!(time_of_day(1_700_000_000), "22:13:20 UTC");
        assert_eq!(percent(1_234), "123.4 %");
    }
}
