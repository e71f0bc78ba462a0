//! A value in a payload → a sample of its rule's type.
//!
//! Integers are taken exactly, never by way of a float; floats are the binary64 nearest to the text, and an `f32` the
//! binary32 nearest to that. A number that the type cannot hold, and a value of another kind, is a TYPE_ERROR; JSON
//! `null` is the device's way to say "not available" and so a DEVICE_ERROR.
//!
//! Limits: objects and arrays nest at most 32 deep, looked at before anything is parsed; a text has at most 4,096 bytes.

use alloc::boxed::Box;

use serde_json::Value as Json;

use crate::mqtt::config::ValueType;
use crate::reading::{Sample, Status};
use crate::value::Value;

/// Deepest nesting of objects and arrays.
pub(crate) const MAX_DEPTH: usize = 32;
/// Longest text of a reading, in bytes.
pub(crate) const MAX_TEXT: usize = 4_096;

/// A value as published.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Raw<'a> {
    Null,
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(&'a str),
    Other,
}

/// Whether `json` nests at most [`MAX_DEPTH`] deep; what is no JSON may pass.
pub(crate) fn is_shallow(json: &[u8]) -> bool {
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    for byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => {
                depth += 1;
                if depth > MAX_DEPTH {
                    return false;
                }
            }
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    true
}

/// The sample of a value within JSON.
pub(crate) fn from_json(json: &Json, ty: ValueType) -> Sample {
    let raw = match json {
        Json::Null => Raw::Null,
        Json::Bool(value) => Raw::Bool(*value),
        Json::Number(number) => match (number.as_i64(), number.as_u64(), number.as_f64()) {
            (Some(number), ..) => Raw::Int(number.into()),
            (_, Some(number), _) => Raw::Int(number.into()),
            (.., Some(number)) => Raw::Float(number),
            _ => Raw::Other,
        },
        Json::String(text) => Raw::Text(text),
        Json::Array(_) | Json::Object(_) => Raw::Other,
    };
    sample(raw, ty)
}

/// The sample of a payload that is the value itself; `None` if there is nothing in it.
pub(crate) fn from_scalar(payload: &[u8], ty: ValueType) -> Option<Sample> {
    let Ok(text) = core::str::from_utf8(payload) else { return Some(Sample::bare(Status::TypeError)) };
    if ty == ValueType::String {
        return Some(sample(Raw::Text(text), ty));
    }
    let text = text.trim();
    let raw = match (text, text.parse::<i128>(), text.parse::<f64>()) {
        ("", ..) => return None,
        ("null", ..) => Raw::Null,
        ("true", ..) => Raw::Bool(true),
        ("false", ..) => Raw::Bool(false),
        (_, Ok(number), _) => Raw::Int(number),
        // An overflowing number would be read as infinity; only the word means that.
        (_, _, Ok(number)) if number.is_finite() || !text.bytes().any(|byte| byte.is_ascii_digit()) => {
            Raw::Float(number)
        }
        _ => Raw::Text(text),
    };
    Some(sample(raw, ty))
}

fn sample(raw: Raw<'_>, ty: ValueType) -> Sample {
    let wrong = Sample::bare(Status::TypeError);
    let bits = match (ty, raw) {
        (_, Raw::Null) => return Sample::bare(Status::DeviceError),
        (ValueType::String, Raw::Text(text)) if text.len() <= MAX_TEXT => {
            return Sample { status: Status::Good, value: Value::Text(Box::from(text)) };
        }
        (ValueType::Bool, raw) => boolean(raw).map(u64::from),
        (ValueType::F32, Raw::Int(number)) => f32_bits(number as f64),
        (ValueType::F32, Raw::Float(number)) => f32_bits(number),
        (ValueType::F64, Raw::Int(number)) => Some((number as f64).to_bits()),
        (ValueType::F64, Raw::Float(number)) => Some(number.to_bits()),
        (ty, Raw::Int(number)) => integer(number, ty),
        (ty, Raw::Float(number)) => whole(number).and_then(|number| integer(number, ty)),
        _ => None,
    };
    bits.map_or(wrong, Sample::good)
}

fn boolean(raw: Raw<'_>) -> Option<bool> {
    match raw {
        Raw::Bool(value) => Some(value),
        Raw::Int(0) => Some(false),
        Raw::Int(1) => Some(true),
        Raw::Text(text) if text.eq_ignore_ascii_case("on") || text.eq_ignore_ascii_case("true") => Some(true),
        Raw::Text(text) if text.eq_ignore_ascii_case("off") || text.eq_ignore_ascii_case("false") => Some(false),
        _ => None,
    }
}

/// 21.0 is an integer; beyond 2^53 a float cannot tell which one it was.
fn whole(number: f64) -> Option<i128> {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    #[expect(clippy::cast_possible_truncation, reason = "below 2^53")]
    let integer = (-EXACT..=EXACT).contains(&number).then_some(number as i64)?;
    #[expect(clippy::cast_precision_loss, reason = "below 2^53")]
    let back = integer as f64;
    #[expect(clippy::float_cmp, reason = "exactly whole or not")]
    (back == number).then(|| integer.into())
}

/// The bits of an integer that the type can hold: an i64's own for signed ones, as INT travels.
pub(crate) fn integer(number: i128, ty: ValueType) -> Option<u64> {
    let (low, high) = match ty {
        ValueType::U16 => (0, u16::MAX.into()),
        ValueType::I16 => (i16::MIN.into(), i16::MAX.into()),
        ValueType::U32 => (0, u32::MAX.into()),
        ValueType::I32 => (i32::MIN.into(), i32::MAX.into()),
        ValueType::I64 => (i64::MIN.into(), i64::MAX.into()),
        ValueType::U64 => (0, i128::from(u64::MAX)),
        ValueType::Bool | ValueType::F32 | ValueType::F64 | ValueType::String => return None,
    };
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "INT travels as the i64's own bits")]
    (low..=high).contains(&number).then_some(number as u64)
}

/// A finite number that would round to infinity does not fit.
pub(crate) fn f32_bits(number: f64) -> Option<u64> {
    #[expect(clippy::cast_possible_truncation, reason = "to the nearest binary32, as documented")]
    let narrow = number as f32;
    (narrow.is_finite() || !number.is_finite()).then(|| narrow.to_bits().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scalar(text: &str, ty: ValueType) -> Sample {
        from_scalar(text.as_bytes(), ty).expect(text)
    }

    #[test]
    fn integers_are_exact() {
        use ValueType::{I16, I64, U16, U64};
        for (text, ty, bits) in [
            ("9007199254740993", I64, Some(9_007_199_254_740_993)),
            ("-9223372036854775808", I64, Some(i64::MIN as u64)),
            ("18446744073709551615", U64, Some(u64::MAX)),
            ("18446744073709551616", U64, None),
            ("9223372036854775808", I64, None),
            ("-1", U64, None),
            ("-1", I16, Some(u64::MAX)),
            ("65536", U16, None),
            ("21.0", U16, Some(21)),
            ("21.5", U16, None),
            ("1e3", U16, Some(1_000)),
            ("1e300", I64, None),
            ("true", U16, None),
        ] {
            let expected = bits.map_or(Sample::bare(Status::TypeError), Sample::good);
            assert_eq!(scalar(text, ty), expected, "{text}");
            if text != "18446744073709551616" {
                let json = serde_json::from_str(text).expect(text);
                assert_eq!(from_json(&json, ty), expected, "{text} in JSON");
            }
        }
    }

    #[test]
    fn floats_are_the_nearest() {
        // The last two are where a hasty parser is off by one.
        for text in [
            "0.1",
            "1e22",
            "5e-324",
            "1.7976931348623157e308",
            "9007199254740993",
            "0.30000000000000004",
            "90.42225290942383",
            "19.243053591130522",
        ] {
            let expected = Sample::good(text.parse::<f64>().expect(text).to_bits());
            assert_eq!(scalar(text, ValueType::F64), expected);
            assert_eq!(from_json(&serde_json::from_str(text).expect(text), ValueType::F64), expected, "{text}");
        }
        assert_eq!(scalar("-0.0", ValueType::F64), Sample::good((-0.0_f64).to_bits()));
        assert_eq!(scalar("NaN", ValueType::F64), Sample::good(f64::NAN.to_bits()));
        assert_eq!(scalar("1e999", ValueType::F64), Sample::bare(Status::TypeError));
        assert_eq!(scalar("0.1", ValueType::F32), Sample::good(0.1_f32.to_bits().into()));
        assert_eq!(scalar("1e39", ValueType::F32), Sample::bare(Status::TypeError));
    }

    #[test]
    fn booleans_and_texts() {
        for (text, expected) in [("true", 1), ("0", 0), ("ON", 1), ("off", 0), (" 1\n", 1)] {
            assert_eq!(scalar(text, ValueType::Bool), Sample::good(expected), "{text}");
        }
        assert_eq!(scalar("2", ValueType::Bool), Sample::bare(Status::TypeError));
        let text = Sample { status: Status::Good, value: Value::Text(" é\n".into()) };
        assert_eq!(scalar(" é\n", ValueType::String), text, "a text is taken as it is");
        assert_eq!(scalar(&"x".repeat(MAX_TEXT + 1), ValueType::String), Sample::bare(Status::TypeError));
        assert_eq!(from_scalar(&[0xFF], ValueType::String), Some(Sample::bare(Status::TypeError)));
        assert_eq!(from_scalar(b" ", ValueType::F64), None);
        assert_eq!(from_json(&Json::Null, ValueType::F64), Sample::bare(Status::DeviceError));
        assert_eq!(from_json(&Json::from("21.5"), ValueType::F64), Sample::bare(Status::TypeError));
    }

    #[test]
    fn depth_is_seen_without_parsing() {
        let nested = |depth: usize| alloc::format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(is_shallow(nested(32).as_bytes()));
        assert!(!is_shallow(nested(33).as_bytes()));
        assert!(is_shallow(alloc::format!("{:?}", "[".repeat(100)).as_bytes()), "brackets in a text");
        assert!(is_shallow(br#"{"a\"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[":1}"#));
    }
}
