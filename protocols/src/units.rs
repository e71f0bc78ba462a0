//! Durations and sizes as people write them: `"250ms"`, `"48KB"`.
//!
//! A bare number has no unit and is refused: whether `timeout = 1` meant a second or a millisecond is found out on site
//! otherwise. KB, MB and GB are powers of 1,024. Whole numbers only; the largest is 2^64 − 1 ms or bytes.

use alloc::format;
use alloc::string::String;
use core::fmt;
use core::str::FromStr;
use core::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A duration, in whole milliseconds: `"250ms"`, `"10s"`, `"5m"`, `"1h"`, `"1d"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span(u64);

/// An amount of bytes: `"512B"`, `"48KB"`, `"256MB"`, `"1GB"`; KB = 1,024 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Size(u64);

/// Why a text is no duration or size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{expected}; got {text:?}")]
pub struct UnitError {
    expected: &'static str,
    text: String,
}

const SPAN_UNITS: [(&str, u64); 5] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
const SIZE_UNITS: [(&str, u64); 4] = [("KB", 1 << 10), ("MB", 1 << 20), ("GB", 1 << 30), ("B", 1)];
const SPAN_EXPECTED: &str = "expected a duration like \"250ms\" (units: ms, s, m, h, d)";
const SIZE_EXPECTED: &str = "expected a size like \"48KB\" (units: B, KB, MB, GB; KB = 1,024 bytes)";

impl Span {
    /// `millis` milliseconds.
    #[must_use]
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// `secs` seconds.
    #[must_use]
    pub const fn from_secs(secs: u64) -> Self {
        Self(secs.saturating_mul(1_000))
    }

    /// In milliseconds.
    #[must_use]
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// As the standard library's duration.
    #[must_use]
    pub const fn duration(self) -> Duration {
        Duration::from_millis(self.0)
    }
}

impl Size {
    /// `bytes` bytes.
    #[must_use]
    pub const fn from_bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// In bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// In bytes, as a length in memory; saturates where memory is narrower than 64 bits.
    #[must_use]
    pub fn as_len(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

/// `text` = digits, perhaps a space, a unit of `units`.
fn parse(text: &str, units: &[(&str, u64)], expected: &'static str) -> Result<u64, UnitError> {
    let refused = || UnitError { expected, text: text.chars().take(40).collect() };
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit = unit.strip_prefix(' ').unwrap_or(unit);
    let factor = units.iter().find(|(name, _)| *name == unit).map(|(_, factor)| *factor).ok_or_else(refused)?;
    number.parse::<u64>().ok().and_then(|number| number.checked_mul(factor)).ok_or_else(refused)
}

/// The largest unit that divides `value`.
fn show(f: &mut fmt::Formatter<'_>, value: u64, units: &[(&str, u64)]) -> fmt::Result {
    let best = units.iter().filter(|(_, factor)| value != 0 && value.is_multiple_of(*factor)).max_by_key(|unit| unit.1);
    let (unit, factor) = best.copied().unwrap_or(units[0]);
    write!(f, "{}{unit}", value / factor)
}

impl FromStr for Span {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        parse(text, &SPAN_UNITS, SPAN_EXPECTED).map(Self)
    }
}

impl FromStr for Size {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        parse(text, &SIZE_UNITS, SIZE_EXPECTED).map(Self)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show(f, self.0, &SPAN_UNITS)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show(f, self.0, &SIZE_UNITS)
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(feature = "schema")]
mod schema {
    use alloc::borrow::Cow;

    use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

    use super::{Size, Span};

    impl JsonSchema for Span {
        fn schema_name() -> Cow<'static, str> {
            "Span".into()
        }

        fn json_schema(_: &mut SchemaGenerator) -> Schema {
            json_schema!({ "type": "string", "description": "A duration with its unit.", "examples": ["250ms", "10s", "5m", "1h", "1d"] })
        }
    }

    impl JsonSchema for Size {
        fn schema_name() -> Cow<'static, str> {
            "Size".into()
        }

        fn json_schema(_: &mut SchemaGenerator) -> Schema {
            json_schema!({ "type": "string", "description": "Bytes with their unit, KB = 1,024.", "examples": ["48KB", "256MB"] })
        }
    }
}

/// Takes a string and says, when given a bare number, that the unit is missing.
struct Units<T>(&'static str, core::marker::PhantomData<T>);

impl<T: FromStr<Err = UnitError>> de::Visitor<'_> for Units<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.strip_prefix("expected ").unwrap_or(self.0))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
        Err(E::custom(format!("{}; got the bare number {number}", self.0)))
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Units(SPAN_EXPECTED, core::marker::PhantomData))
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Units(SIZE_EXPECTED, core::marker::PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;

    #[test]
    fn spans_read_and_show() {
        for (text, millis) in [("250ms", 250), ("10s", 10_000), ("5m", 300_000), ("1h", 3_600_000), ("1d", 86_400_000)]
        {
            let span: Span = text.parse().expect(text);
            assert_eq!(span.as_millis(), millis);
            assert_eq!(span.to_string(), text);
        }
        assert_eq!("90 s".parse(), Ok(Span::from_secs(90)));
        assert_eq!(Span::from_millis(0).to_string(), "0ms");
        assert_eq!(Span::from_millis(1_500).to_string(), "1500ms");
    }

    #[test]
    fn sizes_read_and_show() {
        for (text, bytes) in [("48KB", 49_152), ("256MB", 268_435_456), ("1GB", 1_073_741_824), ("1000B", 1_000)] {
            let size: Size = text.parse().expect(text);
            assert_eq!(size.bytes(), bytes);
            assert_eq!(size.to_string(), text);
        }
    }

    #[test]
    fn what_is_no_duration_is_refused_with_an_example() {
        for text in ["", "ms", "1", "1.5s", "-1s", "1 week", "1S", "99999999999999999999s", "18446744073709551615d"] {
            let error = text.parse::<Span>().expect_err(text).to_string();
            assert!(error.starts_with("expected a duration like \"250ms\"") && error.contains("got"), "{error}");
        }
        assert!("1kb".parse::<Size>().is_err(), "kb could be 1,000 or bits");
    }

    #[test]
    fn a_bare_number_is_refused_in_a_file() {
        #[derive(Debug, Deserialize)]
        struct File {
            #[expect(dead_code, reason = "only its refusal is looked at")]
            timeout: Span,
        }
        let error = toml::from_str::<File>("timeout = 5").expect_err("no unit").to_string();
        assert!(error.contains("a duration like \"250ms\"") && error.contains("bare number 5"), "{error}");
    }
}
