//! The data of an answer → one sample for each point of its request.
//!
//! Between frame check and filter; pure. Registers are put into the order that the point declares
//! ([`Order`](crate::modbus::register::Order) has the table) and kept as raw bits: scale, sentinel and valid range are
//! applied behind this file. A text ends at its first NUL and loses the spaces at its end; one that is not UTF-8 is a
//! TYPE_ERROR. Nothing panics: what is not there is a TYPE_ERROR too, though the frame check has seen to it.

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::modbus::plan::{PlannedPoint, Request};
use crate::modbus::register::{Order, RegisterType};
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
    #[expect(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "the width is the type's")]
    #[expect(clippy::cast_sign_loss, reason = "INT travels as the i64's own bits")]
    let bits = match point.ty {
        RegisterType::String(characters) => return text(bytes, usize::from(characters)),
        RegisterType::Bool => return Sample::bare(Status::TypeError),
        RegisterType::U16 => ordered(bytes, Order::ABCD),
        RegisterType::I16 => ordered(bytes, Order::ABCD) as u16 as i16 as i64 as u64,
        RegisterType::U32 | RegisterType::F32 => ordered(bytes, point.order),
        RegisterType::I32 => ordered(bytes, point.order) as u32 as i32 as i64 as u64,
        RegisterType::U64 | RegisterType::I64 | RegisterType::F64 => ordered(bytes, point.order),
    };
    Sample::good(bits)
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

fn text(bytes: &[u8], characters: usize) -> Sample {
    let bytes = bytes.get(..characters).unwrap_or(bytes);
    let bytes = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    match core::str::from_utf8(bytes) {
        Ok(text) => Sample { status: Status::Good, value: Value::Text(Box::from(text.trim_end_matches(' '))) },
        Err(_) => Sample::bare(Status::TypeError),
    }
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
        let text = |bytes: &[u8]| one(RegisterType::String(6), Order::DCBA, bytes);
        let is = |text: &str| Sample { status: Status::Good, value: Value::Text(text.into()) };
        assert_eq!(text(b"PM-3  "), is("PM-3"));
        assert_eq!(text(b"PM-3\0x"), is("PM-3"));
        assert_eq!(text(b"PM-3XY"), is("PM-3XY"));
        assert_eq!(text(b" a\0\0\0\0"), is(" a"));
        assert_eq!(text(&[0; 6]), is(""));
        assert_eq!(text(&[0xFF; 6]), Sample::bare(Status::TypeError));
        assert_eq!(
            one(RegisterType::String(3), Order::ABCD, b"abcd"),
            is("abc"),
            "an odd length leaves half a register"
        );
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
                RegisterType::U64, RegisterType::I64, RegisterType::F32, RegisterType::F64, RegisterType::String(9),
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
