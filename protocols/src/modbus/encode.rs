//! A value → the registers or the bit that a device would have for it: decode, turned round.
//!
//! For simulated devices and for tests. What a point does not cover stays as it is: the other half of a register, the
//! other bits of a field, the top byte of 24 bits. A value that the type cannot hold is cut to its bits; decimal digits
//! are the lowest that fit; a text is cut to its length and padded with NUL.

use crate::modbus::decode::raw;
use crate::modbus::plan::PlannedPoint;
use crate::modbus::register::{Layout, Order, RegisterType};
use crate::value::Value;

/// Writes `value` into `registers`, where the point stands from its offset on. Nothing is written beyond their end, and
/// nothing for [`Value::None`].
pub fn encode(point: &PlannedPoint, value: &Value, registers: &mut [u16]) {
    let start = usize::from(point.offset);
    let Some(registers) = registers.get_mut(start..start + usize::from(point.ty.width())) else { return };
    match (point.ty, value) {
        (RegisterType::String(layout, characters), Value::Text(text)) => {
            put_text(layout, &text.as_bytes()[..text.len().min(characters.into())], registers);
        }
        (RegisterType::Bytes(count), Value::Text(text)) => {
            let digits = text.as_bytes().chunks(2).take(count.into());
            for (at, pair) in digits.enumerate() {
                let digit = |at: usize| pair.get(at).and_then(|digit| char::from(*digit).to_digit(16)).unwrap_or(0);
                let byte = u8::try_from(digit(0) << 4 | digit(1)).unwrap_or(0);
                put_byte(registers, at, byte);
            }
        }
        (ty, Value::Bits(bits)) => {
            let before = number(registers, ty, point.order);
            let mask = u64::MAX >> (64 - ty.bits().clamp(1, 64));
            let bits = match point.slice {
                None => standing(ty, *bits),
                Some(slice) => {
                    let own = u64::MAX.checked_shr(64 - u32::from(slice.width.clamp(1, 64))).unwrap_or(0);
                    let keep = !(own << slice.shift);
                    (before & keep) | (bits & own) << slice.shift
                }
            };
            put_number(registers, ty, point.order, (bits & mask) | (whole(registers, point.order) & !mask));
        }
        _ => {}
    }
}

/// The bits that stand in the registers for a value with these bits.
fn standing(ty: RegisterType, bits: u64) -> u64 {
    if ty.is_bcd() {
        let digits = ty.bits() / 4;
        let mut left = bits;
        return (0..digits).fold(0, |sum, at| {
            let digit = left % 10;
            left /= 10;
            sum | digit << (4 * at)
        });
    }
    if ty == RegisterType::F16 {
        // The binary16 whose binary32 this is, or the nearest below.
        return (0..=0xFFFF_u64)
            .filter(|half| half & 0x8000 == bits >> 16 & 0x8000)
            .filter_map(|half| raw(ty, half).map(|single| (half, single)))
            .filter(|(_, single)| *single <= bits)
            .max_by_key(|(_, single)| *single)
            .map_or(0, |(half, _)| half);
    }
    bits
}

/// What stands there, without what is above the type's bits.
fn number(registers: &[u16], ty: RegisterType, order: Order) -> u64 {
    let bits = whole(registers, order);
    match ty {
        RegisterType::U8High | RegisterType::I8High => bits >> 8,
        _ => bits & u64::MAX >> (64 - ty.bits().clamp(1, 64)),
    }
}

fn whole(registers: &[u16], order: Order) -> u64 {
    let one = |register: &u16| u64::from(swapped(*register, order, registers.len()));
    match order.low_register_first() {
        true => registers.iter().rev().fold(0, |sum, register| sum << 16 | one(register)),
        false => registers.iter().fold(0, |sum, register| sum << 16 | one(register)),
    }
}

/// Single registers are sent high byte first whatever the order.
fn swapped(register: u16, order: Order, width: usize) -> u16 {
    if order.low_byte_first() && width > 1 { register.swap_bytes() } else { register }
}

fn put_number(registers: &mut [u16], ty: RegisterType, order: Order, bits: u64) {
    if let (RegisterType::U8High | RegisterType::I8High, [register]) = (ty, &mut *registers) {
        *register = (*register & 0xFF) | u16::try_from(bits & 0xFF).unwrap_or(0) << 8;
        return;
    }
    let width = registers.len();
    for (place, register) in registers.iter_mut().enumerate() {
        let place = if order.low_register_first() { place } else { width - 1 - place };
        let word = u16::try_from(bits.checked_shr(16 * u32::try_from(place).unwrap_or(4)).unwrap_or(0) & 0xFFFF);
        *register = swapped(word.unwrap_or(0), order, width);
    }
}

fn put_byte(registers: &mut [u16], at: usize, byte: u8) {
    let Some(register) = registers.get_mut(at / 2) else { return };
    let [high, low] = register.to_be_bytes();
    *register = u16::from_be_bytes(if at.is_multiple_of(2) { [byte, low] } else { [high, byte] });
}

fn put_text(layout: Layout, letters: &[u8], registers: &mut [u16]) {
    registers.fill(0);
    for (at, letter) in letters.iter().enumerate() {
        let place = match layout {
            Layout::HighFirst => at,
            Layout::LowFirst => at ^ 1,
            Layout::Low => 2 * at + 1,
            Layout::High => 2 * at,
        };
        put_byte(registers, place, *letter);
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use proptest::prelude::*;

    use super::*;
    use crate::modbus::config::Slice;
    use crate::modbus::decode::decode;
    use crate::modbus::plan::Request;
    use crate::modbus::register::Table;
    use crate::reading::Sample;

    fn read(point: PlannedPoint, registers: &[u16]) -> Sample {
        let data: Vec<u8> = registers.iter().flat_map(|register| register.to_be_bytes()).collect();
        let request = Request { table: Table::Holding, address: 0, count: 1, period_ms: 1, points: alloc::vec![point] };
        decode(&request, &data).remove(0)
    }

    /// What such a type can hold, made of any bits.
    fn fitting(ty: RegisterType, any: u64) -> u64 {
        match ty {
            _ if ty.is_bcd() => any % 10_u64.pow(ty.bits() / 4),
            _ => raw(ty, any).unwrap_or(0),
        }
    }

    proptest! {
        #[test]
        fn what_is_encoded_decodes_to_itself(
            before: [u16; 6], any: u64, ty in 1..RegisterType::NUMBERS.len(), order in 0_usize..4, offset in 0_u16..2,
        ) {
            let (ty, order) = (RegisterType::NUMBERS[ty], Order::ALL[order]);
            let point = PlannedPoint { index: 0, offset, ty, order, slice: None };
            let (mut registers, bits) = (before, fitting(ty, any));
            encode(&point, &Value::Bits(bits), &mut registers);
            prop_assert_eq!(read(point, &registers), Sample::good(bits), "{}", ty);
            let (start, end) = (usize::from(offset), usize::from(offset + ty.width()));
            prop_assert_eq!((&registers[..start], &registers[end..]), (&before[..start], &before[end..]));
        }

        #[test]
        fn a_slice_leaves_the_other_bits(before: [u16; 4], any: u64, wide: bool, shift in 0_u8..64, width in 1_u8..=64) {
            let ty = if wide { RegisterType::U64 } else { RegisterType::U16 };
            let bits = if wide { 64 } else { 16 };
            let shift = shift % bits;
            let slice = Slice { shift, width: width.min(bits - shift) };
            let point = PlannedPoint { index: 0, offset: 0, ty, order: Order::DCBA, slice: Some(slice) };
            let whole = PlannedPoint { slice: None, ..point };
            let value = slice.of(any << shift);
            let mut registers = before;
            encode(&point, &Value::Bits(value), &mut registers);
            prop_assert_eq!(read(point, &registers), Sample::good(value));
            let Value::Bits(was) = read(whole, &before).value else { panic!("a number") };
            let Value::Bits(is) = read(whole, &registers).value else { panic!("a number") };
            let own = (u64::MAX >> (64 - slice.width)) << shift;
            prop_assert_eq!(was & !own, is & !own);
        }

        #[test]
        fn texts_come_back(text in "[ -~]{0,12}", layout in 0_usize..4, before: [u16; 14]) {
            let layout = [Layout::HighFirst, Layout::LowFirst, Layout::Low, Layout::High][layout];
            let ty = RegisterType::String(layout, 12);
            let point = PlannedPoint { index: 0, offset: 1, ty, order: Order::ABCD, slice: None };
            let mut registers = before;
            encode(&point, &Value::Text(text.as_str().into()), &mut registers);
            prop_assert_eq!(read(point, &registers).value, Value::Text(text.trim_end_matches(' ').into()));
        }

        #[test]
        fn nothing_is_written_beyond_the_end(offset: u16, any: u64, length in 0_usize..4) {
            let point = PlannedPoint { index: 0, offset, ty: RegisterType::U64, order: Order::ABCD, slice: None };
            let mut registers = [7_u16; 4];
            encode(&point, &Value::Bits(any), &mut registers[..length]);
            prop_assert_eq!(&registers[length..], &[7_u16; 4][length..]);
        }
    }

    #[test]
    fn bytes_are_written_as_they_are_shown() {
        let point = PlannedPoint { index: 0, offset: 0, ty: RegisterType::Bytes(3), order: Order::ABCD, slice: None };
        let mut registers = [0x1111_u16, 0x2222];
        encode(&point, &Value::Text("dead0f".into()), &mut registers);
        assert_eq!(registers, [0xDEAD, 0x0F22]);
        assert_eq!(read(point, &registers).value, Value::Text("dead0f".into()));
    }
}
