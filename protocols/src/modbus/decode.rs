//! The data of an answer → one sample for each point of its request.
//!
//! Between frame check and filter; pure. Registers are put into the order that the point declares
//! ([`Order`](crate::modbus::register::Order) has the table) and kept as raw bits: scale, sentinel and valid range are
//! applied behind this file. A text ends at its first NUL or 0xFF and loses the spaces at its end; one that is not UTF-8
//! is a TYPE_ERROR, as are decimal digits above 9. Nothing panics: what is not there is a TYPE_ERROR too, though the frame check has seen to it.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;

use crate::modbus::config::Slice;
use crate::modbus::plan::{PlannedPoint, Request};
use crate::modbus::register::{Layout, Order, RegisterType};
use crate::reading::{Sample, Status};
use crate::value::Value;

/// One sample for each point of `request`, in its order. `data` are the bytes behind the byte count.
#[must_use]
pub fn decode(request: &Request, data: &[u8]) -> Vec<Sample> {
    let bits = request.table.is_bits();
    request.points.iter().map(|point| if bits { bit(point, data) } else { registers(point, data) }).collect()
}

/// The status that an exception means for all points of its request (V1.1b3, 7): 2 says that there is no such
/// register; every other code is the device's, or its gateway's, error.
#[must_use]
pub const fn exception_status(code: u8) -> Status {
    match code {
        2 => Status::NotConfigured,
        _ => Status::DeviceError,
    }
}

/// What people call an exception code.
#[must_use]
pub const fn exception_name(code: u8) -> &'static str {
    match code {
        1 => "illegal function",
        2 => "illegal data address",
        3 => "illegal data value",
        4 => "server device failure",
        5 => "acknowledge",
        6 => "server device busy",
        8 => "memory parity error",
        10 => "gateway path unavailable",
        11 => "gateway target failed to respond",
        _ => "unknown exception",
    }
}

fn bit(point: &PlannedPoint, data: &[u8]) -> Sample {
    match data.get(usize::from(point.offset / 8)) {
        Some(byte) => Sample::good(u64::from(byte >> (point.offset % 8) & 1)),
        None => Sample::bare(Status::TypeError),
    }
}

fn registers(point: &PlannedPoint, data: &[u8]) -> Sample {
    let start = usize::from(point.offset) * 2;
    let Some(bytes) = data.get(start..start + usize::from(point.ty.width()) * 2) else {
        return Sample::bare(Status::TypeError);
    };
    let bits = match point.ty {
        RegisterType::String(layout, characters) => return text(bytes, layout, usize::from(characters)),
        RegisterType::Bytes(count) => return hex(bytes.get(..usize::from(count)).unwrap_or(bytes)),
        RegisterType::Bool => return Sample::bare(Status::TypeError),
        RegisterType::U8High | RegisterType::I8High => ordered(bytes, Order::ABCD) >> 8,
        ty if ty.width() == 1 => ordered(bytes, Order::ABCD),
        _ => ordered(bytes, point.order),
    };
    match raw(point.ty, bits) {
        Some(bits) => Sample::good(point.slice.map_or(bits, |slice| slice.of(bits))),
        None => Sample::bare(Status::TypeError),
    }
}

/// What the bits that stand in the registers are as the bits of a value; `None` if they are no value of this type.
pub(crate) fn raw(ty: RegisterType, bits: u64) -> Option<u64> {
    let unused = 64 - ty.bits().clamp(1, 64);
    // What is above the type's bits belongs to others: a half register's other half.
    let bits = bits << unused >> unused;
    if ty.is_bcd() {
        let digits = (0..16).map(|at| bits >> (60 - 4 * at) & 0xF);
        return digits.into_iter().try_fold(0, |number, digit| (digit < 10).then_some(number * 10 + digit));
    }
    Some(match ty {
        RegisterType::F16 => half(bits).into(),
        _ if ty.is_signed() => ((bits << unused).cast_signed() >> unused).cast_unsigned(),
        _ => bits,
    })
}

/// The binary32 that a binary16 is, exactly; the payload of a NaN stays in its highest bits.
fn half(bits: u64) -> u32 {
    let bits = u32::try_from(bits & 0xFFFF).unwrap_or(0);
    let (sign, exponent, fraction) = (bits >> 15 << 31, bits >> 10 & 0x1F, bits & 0x3FF);
    let magnitude = match (exponent, fraction) {
        (0, 0) => 0,
        (0, _) => {
            // Subnormal: the highest bit of the fraction becomes the hidden one.
            let shift = fraction.leading_zeros() - 21;
            (113 - shift) << 23 | (fraction << shift & 0x3FF) << 13
        }
        (0x1F, _) => 0x7F80_0000 | fraction << 13,
        _ => (exponent + 112) << 23 | fraction << 13,
    };
    sign | magnitude
}

impl Slice {
    /// These bits of a number, as a number.
    #[must_use]
    pub fn of(self, bits: u64) -> u64 {
        let mask = u64::MAX.checked_shr(64 - u32::from(self.width.min(64))).unwrap_or(0);
        bits.checked_shr(self.shift.into()).unwrap_or(0) & mask
    }
}

/// The number that up to four registers form.
fn ordered(bytes: &[u8], order: Order) -> u64 {
    let register = |pair: &[u8]| match *pair {
        [high, low] if order.low_byte_first() => u64::from(u16::from_be_bytes([low, high])),
        [high, low] => u64::from(u16::from_be_bytes([high, low])),
        _ => 0,
    };
    let pairs = bytes.chunks_exact(2);
    match order.low_register_first() {
        true => pairs.rev().fold(0, |number, pair| number << 16 | register(pair)),
        false => pairs.fold(0, |number, pair| number << 16 | register(pair)),
    }
}

fn text(bytes: &[u8], layout: Layout, characters: usize) -> Sample {
    let pairs = bytes.chunks_exact(2);
    let letters: Vec<u8> = match layout {
        Layout::HighFirst => bytes.to_vec(),
        Layout::LowFirst => pairs.flat_map(|pair| pair.iter().rev().copied()).collect(),
        Layout::Low => pairs.filter_map(|pair| pair.last().copied()).collect(),
        Layout::High => pairs.filter_map(|pair| pair.first().copied()).collect(),
    };
    let letters = letters.get(..characters).unwrap_or(&letters);
    // 0xFF begins no character: it is what an empty memory reads as.
    let letters = letters.split(|byte| matches!(byte, 0 | 0xFF)).next().unwrap_or_default();
    match core::str::from_utf8(letters) {
        Ok(text) => Sample { status: Status::Good, value: Value::Text(Box::from(text.trim_end_matches(' '))) },
        Err(_) => Sample::bare(Status::TypeError),
    }
}

fn hex(bytes: &[u8]) -> Sample {
    let digit = |digit: u8| char::from_digit(digit.into(), 16).unwrap_or('0');
    let text: String = bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 0xF)]).collect();
    Sample { status: Status::Good, value: Value::Text(text.into()) }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use proptest::prelude::*;

    use super::*;
    use crate::modbus::register::Table;

    fn one(ty: RegisterType, order: Order, data: &[u8]) -> Sample {
        let points = vec![PlannedPoint { index: 0, offset: 0, ty, order, slice: None }];
        let request = Request { table: Table::Holding, address: 0, count: ty.width(), period_ms: 1, points };
        decode(&request, data).remove(0)
    }

    #[test]
    fn the_four_orders_of_32_bits() {
        let wire = [
            (Order::ABCD, [0x12, 0x34, 0x56, 0x78]),
            (Order::CDAB, [0x56, 0x78, 0x12, 0x34]),
            (Order::BADC, [0x34, 0x12, 0x78, 0x56]),
            (Order::DCBA, [0x78, 0x56, 0x34, 0x12]),
        ];
        for (order, bytes) in wire {
            for ty in [RegisterType::U32, RegisterType::I32, RegisterType::F32] {
                assert_eq!(one(ty, order, &bytes), Sample::good(0x1234_5678), "{order:?}");
            }
        }
    }

    #[test]
    fn the_four_orders_of_64_bits() {
        let wire = [
            (Order::ABCD, [1, 2, 3, 4, 5, 6, 7, 8]),
            (Order::CDAB, [7, 8, 5, 6, 3, 4, 1, 2]),
            (Order::BADC, [2, 1, 4, 3, 6, 5, 8, 7]),
            (Order::DCBA, [8, 7, 6, 5, 4, 3, 2, 1]),
        ];
        for (order, bytes) in wire {
            for ty in [RegisterType::U64, RegisterType::I64, RegisterType::F64] {
                assert_eq!(one(ty, order, &bytes), Sample::good(0x0102_0304_0506_0708), "{order:?}");
            }
        }
    }

    #[test]
    fn signs_are_extended() {
        assert_eq!(one(RegisterType::I16, Order::DCBA, &[0x80, 0]), Sample::good(-32_768_i64 as u64));
        assert_eq!(one(RegisterType::U16, Order::DCBA, &[0x80, 0]), Sample::good(0x8000));
        assert_eq!(one(RegisterType::I32, Order::ABCD, &[0xFF; 4]), Sample::good(u64::MAX));
        assert_eq!(one(RegisterType::U32, Order::ABCD, &[0xFF; 4]), Sample::good(0xFFFF_FFFF));
    }

    #[test]
    fn texts_lose_their_padding() {
        let text = |bytes: &[u8]| one(RegisterType::String(Layout::HighFirst, 6), Order::DCBA, bytes);
        let is = |text: &str| Sample { status: Status::Good, value: Value::Text(text.into()) };
        assert_eq!(text(b"PM-3  "), is("PM-3"));
        assert_eq!(text(b"PM-3\0x"), is("PM-3"));
        assert_eq!(text(b"PM-3XY"), is("PM-3XY"));
        assert_eq!(text(b" a\0\0\0\0"), is(" a"));
        assert_eq!(text(&[0; 6]), is(""));
        assert_eq!(text(&[0xFF; 6]), is(""), "an empty memory");
        assert_eq!(text(b"\xE4bc   "), Sample::bare(Status::TypeError), "Latin-1");
        assert_eq!(
            one(RegisterType::String(Layout::HighFirst, 3), Order::ABCD, b"abcd"),
            is("abc"),
            "an odd length leaves half a register"
        );
    }

    #[test]
    fn texts_in_their_layouts() {
        let is = |text: &str| Sample { status: Status::Good, value: Value::Text(text.into()) };
        let text = |layout, characters, bytes: &[u8]| one(RegisterType::String(layout, characters), Order::ABCD, bytes);
        assert_eq!(text(Layout::LowFirst, 5, b"BADC E"), is("ABCDE"));
        assert_eq!(text(Layout::Low, 3, b"\0A\0B\0C"), is("ABC"));
        assert_eq!(text(Layout::High, 3, b"A\0B\0C\0"), is("ABC"));
        assert_eq!(one(RegisterType::Bytes(3), Order::ABCD, &[0xDE, 0xAD, 0x0F, 0xFF]), is("dead0f"));
    }

    #[test]
    fn halves_thirds_and_digits() {
        let number = |ty, order, data: &[u8]| one(ty, order, data);
        let good = |value: i64| Sample::good(value.cast_unsigned());
        use RegisterType as T;
        assert_eq!(number(T::U8High, Order::ABCD, &[0xF1, 0x02]), good(0xF1));
        assert_eq!(number(T::I8High, Order::ABCD, &[0xFF, 0x02]), good(-1));
        assert_eq!(number(T::U8Low, Order::ABCD, &[0xF1, 0x82]), good(0x82));
        assert_eq!(number(T::I8Low, Order::ABCD, &[0xF1, 0x82]), good(-126));
        assert_eq!(number(T::U24, Order::ABCD, &[0xAA, 1, 2, 3]), good(0x01_0203), "the top byte is not ours");
        assert_eq!(number(T::I24, Order::CDAB, &[0xFF, 0xFE, 0, 0xFF]), good(-2));
        assert_eq!(number(T::Bcd8, Order::ABCD, &[0x99, 0x42]), good(42));
        assert_eq!(number(T::Bcd16, Order::ABCD, &[0x12, 0x34]), good(1_234));
        assert_eq!(number(T::Bcd24, Order::ABCD, &[0xFF, 0x12, 0x34, 0x56]), good(123_456));
        assert_eq!(number(T::Bcd32, Order::CDAB, &[0x56, 0x78, 0x12, 0x34]), good(12_345_678));
        assert_eq!(number(T::Bcd16, Order::ABCD, &[0x1A, 0x34]), Sample::bare(Status::TypeError));
    }

    #[test]
    fn half_floats_are_exact() {
        for (bits, value) in [
            (0x3C00, 1.0_f32),
            (0xC000, -2.0),
            (0x7BFF, 65_504.0),
            (0x0001, 2.0_f32.powi(-24)),
            (0x03FF, 1_023.0 * 2.0_f32.powi(-24)),
            (0x0400, 2.0_f32.powi(-14)),
            (0x8000, -0.0),
            (0x7C00, f32::INFINITY),
            (0xFC00, f32::NEG_INFINITY),
        ] {
            assert_eq!(half(bits), value.to_bits(), "{bits:#06x}");
        }
        assert!(f32::from_bits(half(0x7E01)).is_nan());
        // Every value that is one: sign, 11 bits, a power of two.
        for bits in 0..0x7C00_u64 {
            let (exponent, fraction) = (bits >> 10, (bits & 0x3FF) as f32);
            let value = match exponent {
                0 => fraction * 2.0_f32.powi(-24),
                _ => (1_024.0 + fraction) * 2.0_f32.powi(exponent as i32 - 25),
            };
            assert_eq!(half(bits), value.to_bits());
        }
    }

    #[test]
    fn slices_are_bits_of_a_number() {
        let slice = |shift, width| Slice { shift, width }.of(0xF0A5);
        assert_eq!((slice(0, 1), slice(1, 1), slice(4, 4), slice(8, 8)), (1, 0, 0xA, 0xF0));
        assert_eq!(Slice { shift: 0, width: 64 }.of(u64::MAX), u64::MAX);
        assert_eq!((Slice { shift: 64, width: 1 }.of(u64::MAX), Slice { shift: 1, width: 255 }.of(2)), (0, 1));
    }

    #[test]
    fn bits_count_from_the_lowest() {
        let points = (0..10).map(|offset| PlannedPoint {
            index: 0,
            offset,
            ty: RegisterType::Bool,
            order: Order::ABCD,
            slice: None,
        });
        let request = Request { table: Table::Coil, address: 0, count: 10, period_ms: 1, points: points.collect() };
        let samples = decode(&request, &[0b0100_0001, 0b10]);
        let ones: Vec<_> = samples.iter().map(|sample| sample.value == Value::Bits(1)).collect();
        assert_eq!(ones, [true, false, false, false, false, false, true, false, false, true]);
    }

    proptest! {
        #[test]
        fn any_data_give_one_sample_a_point(
            data in proptest::collection::vec(any::<u8>(), 0..300),
            points in proptest::collection::vec((0_u16..140, 0_usize..10), 1..20),
            bits: bool,
        ) {
            let types = [
                RegisterType::Bool, RegisterType::U16, RegisterType::I16, RegisterType::U32, RegisterType::I32,
                RegisterType::U64, RegisterType::I64, RegisterType::F32, RegisterType::F64, RegisterType::String(Layout::Low, 9),
            ];
            let points: Vec<_> = points.into_iter()
                .map(|(offset, ty)| PlannedPoint { index: 0, offset, ty: types[ty], order: Order::CDAB, slice: None })
                .collect();
            let table = if bits { Table::Coil } else { Table::Holding };
            let count = points.len();
            let samples = decode(&Request { table, address: 0, count: 1, period_ms: 1, points }, &data);
            prop_assert_eq!(samples.len(), count);
            prop_assert!(samples.iter().all(|sample| sample.status.has_value() == (sample.value != Value::None)));
        }
    }
}
