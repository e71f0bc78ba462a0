//! A number in a configuration file that may be written in hexadecimal or as a string.
//!
//! TOML integers end at i64, so a sentinel like 0xFFFF_FFFF_FFFF_FFFF can only be a string; and register tables come
//! with addresses like `"0x10"` and `"40001"`. Both spellings mean the same here.

use core::fmt;
use core::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// An integer exactly, or a float.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Number {
    /// Any i64 or u64.
    Int(i128),
    /// Written with a point or an exponent.
    Float(f64),
}

impl Number {
    /// The integer, if it is one.
    #[must_use]
    pub const fn as_int(self) -> Option<i128> {
        match self {
            Self::Int(number) => Some(number),
            Self::Float(_) => None,
        }
    }
}

/// Why a text is no number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a number like 40001, \"40001\" or \"0x10\"")]
pub struct NumberError;

impl FromStr for Number {
    type Err = NumberError;

    fn from_str(text: &str) -> Result<Self, NumberError> {
        let (negative, digits) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
        let (radix, digits) = digits.strip_prefix("0x").map_or((10, digits), |rest| (16, rest));
        if !digits.starts_with(|first: char| first.is_digit(radix)) || digits.len() > 40 {
            return Err(NumberError);
        }
        let mut number: i128 = 0;
        for digit in digits.chars().filter(|digit| *digit != '_') {
            let digit = digit.to_digit(radix).ok_or(NumberError)?;
            number = number * i128::from(radix) + i128::from(digit);
            if number > i128::from(u64::MAX) {
                return Err(NumberError);
            }
        }
        Ok(Self::Int(if negative { -number } else { number }))
    }
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Int(number) => write!(f, "{number}"),
            Self::Float(number) => write!(f, "{number:?}"),
        }
    }
}

impl Serialize for Number {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match *self {
            Self::Float(number) => serializer.serialize_f64(number),
            Self::Int(number) => match i64::try_from(number) {
                Ok(number) => serializer.serialize_i64(number),
                Err(_) => serializer.collect_str(self),
            },
        }
    }
}

#[cfg(feature = "schema")]
impl schemars::JsonSchema for Number {
    fn schema_name() -> alloc::borrow::Cow<'static, str> {
        "Number".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": ["integer", "number", "string"], "description": "A number, or a string like \"0x10\"." })
    }
}

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Number;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number like 40001, \"40001\" or \"0x10\"")
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Number, E> {
                Ok(Number::Int(number.into()))
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Number, E> {
                Ok(Number::Int(number.into()))
            }

            fn visit_f64<E: de::Error>(self, number: f64) -> Result<Number, E> {
                Ok(Number::Float(number))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Number, E> {
                text.parse().map_err(|_| E::invalid_value(de::Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_both_spellings_and_nothing_else() {
        for (text, number) in [("40001", 40001), ("00001", 1), ("0x10", 16), ("-5", -5), ("0xFFFF_FFFF", 0xFFFF_FFFF)] {
            assert_eq!(text.parse(), Ok(Number::Int(number)), "{text}");
        }
        assert_eq!("0xFFFFFFFFFFFFFFFF".parse(), Ok(Number::Int(u64::MAX.into())));
        for text in ["", "-", "0x", "_1", "1.5", "4x", "0x10000000000000000", "1e3", "+-1"] {
            assert_eq!(text.parse::<Number>(), Err(NumberError), "{text}");
        }
    }
}
