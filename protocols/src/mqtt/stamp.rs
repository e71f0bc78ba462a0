//! A stamp in a payload: ISO 8601 with its zone, or a number since 1970.
//!
//! Stamps from 2000 to 2100 are accepted, so that the unit of a number is not guessed: seconds, milliseconds,
//! microseconds and nanoseconds of that century lie in ranges that do not meet. A time without a zone is refused, for
//! it could be any of them. Finer than a millisecond is cut off.

use serde_json::{Number, Value};

use crate::time::Wall;

/// 2000-01-01T00:00Z and 2100-01-01T00:00Z, in seconds.
const FIRST_S: i64 = 946_684_800;
const LAST_S: i64 = 4_102_444_800;

/// The stamp that `value` means.
pub(crate) fn read(value: &Value) -> Option<Wall> {
    match value {
        Value::Number(number) => since_1970(number),
        Value::String(text) => iso_8601(text).or_else(|| since_1970(&text.trim().parse().ok()?)),
        _ => None,
    }
}

fn since_1970(number: &Number) -> Option<Wall> {
    if let Some(number) = number.as_i64() {
        // Units a second, and what makes milliseconds of them.
        let units = [(1, 1_000, 1), (1_000, 1, 1), (1_000_000, 1, 1_000), (1_000_000_000, 1, 1_000_000)];
        let fits = |(a_second, ..): &&(i64, i64, i64)| (FIRST_S * a_second..LAST_S * a_second).contains(&number);
        return units.iter().find(fits).map(|(_, times, by)| Wall(number * times / by));
    }
    let number = number.as_f64()?;
    #[expect(clippy::cast_precision_loss, reason = "bounds below 2^53")]
    let within = |a_second: i64| ((FIRST_S * a_second) as f64..(LAST_S * a_second) as f64).contains(&number);
    #[expect(clippy::cast_possible_truncation, reason = "within the century")]
    match () {
        () if within(1) => Some(Wall((number * 1_000.0 + 0.5) as i64)),
        () if within(1_000) => Some(Wall(number as i64)),
        () => None,
    }
}

/// `2026-11-25T02:24:52.123Z`, a space for the `T`, `+01:00`, `+0100` or `+01` for the `Z`.
fn iso_8601(text: &str) -> Option<Wall> {
    let text = text.trim();
    let bytes = text.as_bytes();
    if !text.is_ascii() || bytes.len() < 20 {
        return None;
    }
    let number = |from: usize, to: usize| -> Option<i64> {
        let digits = text.get(from..to)?;
        digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
    };
    let separators = [(4, "-"), (7, "-"), (10, "Tt "), (13, ":"), (16, ":")];
    if separators.iter().any(|(at, of)| !bytes.get(*at).is_some_and(|byte| of.as_bytes().contains(byte))) {
        return None;
    }
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days = match month {
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        4 | 6 | 9 | 11 => 30,
        2 => 28 + i64::from(leap),
        _ => return None,
    };
    // A leap second is the first of the next minute.
    if !(1..=days).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let mut rest = text.get(19..)?;
    let mut millis = 0;
    if let Some(fraction) = rest.strip_prefix(['.', ',']) {
        let digits = fraction.bytes().take_while(u8::is_ascii_digit).count();
        if digits == 0 {
            return None;
        }
        let digit = |index: usize| {
            fraction.as_bytes().get(index).filter(|_| index < digits).map_or(0, |byte| i64::from(byte - b'0'))
        };
        millis = digit(0) * 100 + digit(1) * 10 + digit(2);
        rest = fraction.get(digits..)?;
    }
    let seconds = days_since_1970(year, month, day) * 86_400 + hour * 3_600 + minute * 60 + second - zone(rest)?;
    (FIRST_S..LAST_S).contains(&seconds).then(|| Wall(seconds * 1_000 + millis))
}

/// Seconds east of Greenwich.
fn zone(text: &str) -> Option<i64> {
    if matches!(text, "Z" | "z") {
        return Some(0);
    }
    let sign = if text.starts_with('+') { 1 } else { -1 };
    let text = text.strip_prefix(['+', '-'])?;
    let (hours, minutes) = match text.len() {
        2 => (text, "00"),
        4 => text.split_at(2),
        5 => text.split_once(':').filter(|(hours, _)| hours.len() == 2)?,
        _ => return None,
    };
    let number = |digits: &str| digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse::<i64>().ok())?;
    let (hours, minutes) = (number(hours)?, number(minutes)?);
    (hours <= 23 && minutes <= 59).then_some(sign * (hours * 3_600 + minutes * 60))
}

/// In the proleptic Gregorian calendar, counting years from March so that the leap day is the last.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    365 * year + year / 4 - year / 100 + year / 400 + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn millis(json: &str) -> Option<i64> {
        read(&serde_json::from_str(json).expect(json)).map(Wall::as_millis)
    }

    #[test]
    fn iso_8601_with_a_zone() {
        for (text, expected) in [
            ("2023-11-14T22:13:20Z", 1_700_000_000_000),
            ("2023-11-14 22:13:20.5z", 1_700_000_000_500),
            ("2023-11-14T22:13:20.123456789Z", 1_700_000_000_123),
            ("2023-11-14T23:13:20,1+01:00", 1_700_000_000_100),
            ("2023-11-14T16:43:20-0530", 1_700_000_000_000),
            ("2023-11-15T00:13:20+02", 1_700_000_000_000),
            ("2000-01-01T00:00:00Z", 946_684_800_000),
            ("2000-02-29T00:00:00Z", 951_782_400_000),
            ("2099-12-31T23:59:59.999Z", 4_102_444_799_999),
            ("2016-12-31T23:59:60Z", 1_483_228_800_000),
        ] {
            assert_eq!(millis(&alloc::format!("{text:?}")), Some(expected), "{text}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for json in [
            "\"2023-11-14T22:13:20\"",
            "\"2023-11-14\"",
            "\"2023-02-29T00:00:00Z\"",
            "\"2023-13-01T00:00:00Z\"",
            "\"2023-11-14T24:00:00Z\"",
            "\"2023-11-14T22:13:20+25:00\"",
            "\"2023-11-14T22:13:20.Z\"",
            "\"1999-12-31T23:59:59Z\"",
            "\"0000-00-00T00:00:00Z\"",
            "\"now\"",
            "\"\"",
            "0",
            "-5",
            "12345",
            "1e300",
            "9223372036854775807",
            "18446744073709551615",
            "true",
            "null",
        ] {
            assert_eq!(millis(json), None, "{json}");
        }
    }

    #[test]
    fn numbers_tell_their_unit() {
        for json in
            ["1700000000", "1700000000000", "1700000000000000", "1700000000000000000", "\"1700000000\"", "1700000000.0"]
        {
            assert_eq!(millis(json), Some(1_700_000_000_000), "{json}");
        }
        assert_eq!(millis("1700000000.123"), Some(1_700_000_000_123));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,40}", digits in "[0-9T:Z+.-]{19,30}") {
            let _ = read(&Value::String(text));
            let _ = read(&Value::String(digits));
        }
    }
}
