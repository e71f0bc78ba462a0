//! Raw bits that mean "not available", as the bits of a point's values.

use alloc::format;
use alloc::string::String;

use crate::modbus::config::Slice;
use crate::modbus::decode::raw;
use crate::modbus::register::RegisterType;
use crate::number::Number;

/// A sentinel as the bits of its point's values: of an i16 0x8000 becomes the bits of the i64 −32768, of an f16 0x7E00
/// those of a NaN. A negative number means the signed value itself. Of a slice it is the slice's value.
pub(super) fn sentinel(number: Number, ty: RegisterType, slice: Option<Slice>) -> Result<u64, (String, String)> {
    let width = slice.map_or(ty.bits(), |slice| slice.width.into());
    if width == 0 {
        return Err(("a text has no sentinels".into(), "remove `bad`".into()));
    }
    let Some(bits) = number.as_int() else {
        return Err((
            format!("{number} is not raw bits"),
            "the bits as a whole number: of an f32 0xC61C3C00 means -9999.0".into(),
        ));
    };
    let low = if ty.is_signed() { -(1_i128 << (width - 1)) } else { 0 };
    if !(low..1_i128 << width).contains(&bits) {
        return Err((
            format!("{number} does not fit into the {width} bits of {ty}"),
            format!("0 to {:#X}", (1_i128 << width) - 1),
        ));
    }
    let bits = u64::try_from(bits & ((1_i128 << width) - 1)).unwrap_or(u64::MAX);
    if slice.is_some() {
        return Ok(bits);
    }
    raw(ty, bits).ok_or_else(|| {
        let message = format!("{bits:#X} is no {ty}: its digits are 0 to 9");
        (message, "remove it: digits above 9 are a TYPE_ERROR anyway".into())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_become_the_values_that_they_are() {
        let of = |number: i128, ty| sentinel(Number::Int(number), ty, None);
        assert_eq!(of(0x8000, RegisterType::I16), Ok((-32_768_i64).cast_unsigned()));
        assert_eq!(of(-1, RegisterType::I24), Ok(u64::MAX));
        assert_eq!(of(0x80_0000, RegisterType::I24), Ok((-8_388_608_i64).cast_unsigned()));
        assert_eq!(of(0xFF, RegisterType::I8High), Ok(u64::MAX));
        assert_eq!(of(0x7E00, RegisterType::F16), Ok(0x7FC0_0000));
        assert_eq!(of(0x7FC0_0000, RegisterType::F32), Ok(0x7FC0_0000));
        assert_eq!(of(0x9999, RegisterType::Bcd16), Ok(9_999));
        assert!(of(0xFFFF, RegisterType::Bcd16).is_err_and(|(message, _)| message.contains("digits")));
        assert!(of(0x1_0000, RegisterType::U16).is_err() && of(-1, RegisterType::U16).is_err());
        let slice = Some(Slice { shift: 4, width: 3 });
        assert_eq!(sentinel(Number::Int(7), RegisterType::U16, slice), Ok(7));
        assert!(sentinel(Number::Int(8), RegisterType::U16, slice).is_err());
    }
}
