//! Serial frames (Modbus over serial line V1.02, 2.5.1): where in what came an answer is.
//!
//! ```text
//!  | unit | function | byte count | data … | CRC low | CRC high      answer
//!  | unit | function + 0x80 | code | CRC low | CRC high              exception, 5 bytes
//!  | unit | function | address | count | CRC low | CRC high          question, 8 bytes
//! ```
//!
//! The standard ends a frame by a silence of 3.5 characters. No user of a serial port sees such silences: adapters hand
//! on what came every 16 ms, and a busy machine reads late. So an answer is found by what is known of it before it
//! comes, unit, function and length, wherever it begins, and believed if its CRC is right: 40 bits for a value.
//! Noise before it, an echo, others' frames are passed over. What fails its CRC is never a value.

use crc::{CRC_16_MODBUS, Crc, Table};

use crate::modbus::frame::{Expect, MAX_PDU};

/// Unit and CRC.
pub(crate) const AROUND: usize = 3;
/// Longest frame.
pub(crate) const MAX: usize = MAX_PDU + AROUND;

const CRC: Crc<u16, Table<1>> = Crc::<u16, Table<1>>::new(&CRC_16_MODBUS);

/// Of a frame without its last two bytes, which are this, low byte first.
pub(crate) fn crc(bytes: &[u8]) -> u16 {
    CRC.checksum(bytes)
}

/// The CRC that a frame ends with.
pub(crate) fn crc_of(frame: &[u8]) -> u16 {
    frame.last_chunk::<2>().map_or(0, |its| u16::from_le_bytes(*its))
}

/// Whether these bytes end with their CRC.
pub(crate) fn intact(frame: &[u8]) -> bool {
    frame.split_last_chunk::<2>().is_some_and(|(body, its)| body.len() >= 2 && crc(body).to_le_bytes() == *its)
}

/// What an answer looks like before it comes. Two questions with one shape have answers that cannot be told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) unit: u8,
    pub(crate) function: u8,
    pub(crate) expect: Expect,
}

impl Shape {
    /// Of the answer to this PDU.
    pub(crate) fn of(unit: u8, pdu: &[u8]) -> Self {
        Self { unit, function: pdu.first().copied().unwrap_or(0), expect: Expect::of(pdu) }
    }

    /// Whether an answer to the one may be taken for an answer to the other, exceptions apart.
    pub(crate) fn is_like(self, other: Self) -> bool {
        let data = |expect| matches!(expect, Expect::Data(_));
        self.unit == other.unit
            && self.function == other.function
            && (self.expect == other.expect || !data(self.expect) || !data(other.expect))
    }

    /// Whether an exception to the one may be taken for an exception to the other.
    pub(crate) fn is_kin(self, other: Self) -> bool {
        self.unit == other.unit && self.function == other.function
    }
}

/// Whether an answer begins here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Here {
    /// No.
    Not,
    /// Perhaps, its end is not there yet.
    Begun,
    /// It is, over so many bytes.
    Whole(usize),
    /// It was: header and length fit, but not the CRC.
    Damaged,
}

/// Whether an answer of this shape begins with these bytes.
pub(crate) fn begins(bytes: &[u8], shape: Shape) -> Here {
    let [unit, pdu @ ..] = bytes else { return Here::Not };
    if *unit != shape.unit {
        return Here::Not;
    }
    match (pdu, shape.expect) {
        ([], _) => return Here::Begun,
        ([function, ..], _) if *function == shape.function | 0x80 => {}
        ([function, ..], _) if *function != shape.function => return Here::Not,
        ([_, count, ..], Expect::Data(expected)) if *count != expected => return Here::Not,
        ([_, mei, ..], Expect::Identification) if *mei != 0x0E => return Here::Not,
        _ => {}
    }
    match shape.expect.length(pdu).map(|length| length + AROUND) {
        Some(length) if length > MAX => Here::Not,
        Some(length) => match bytes.get(..length) {
            Some(frame) if intact(frame) => Here::Whole(length),
            Some(_) => Here::Damaged,
            None => Here::Begun,
        },
        None => Here::Begun,
    }
}

/// The length of the answer of this unit and function that begins here, if it is whole and has another byte count.
pub(crate) fn other_count(bytes: &[u8], shape: Shape) -> Option<usize> {
    let [unit, function, count, ..] = *bytes else { return None };
    let length = usize::from(count) + 2 + AROUND;
    let fits = unit == shape.unit && function == shape.function && matches!(shape.expect, Expect::Data(_));
    (fits && bytes.get(..length).is_some_and(intact)).then_some(length)
}

/// A question that reads and begins here, as another master would ask it.
pub(crate) fn foreign_question(bytes: &[u8]) -> Option<Shape> {
    let frame = bytes.get(..8)?;
    let [unit, ref pdu @ .., _, _] = *frame else { return None };
    (matches!(pdu.first(), Some(1..=4)) && intact(frame)).then(|| Shape::of(unit, pdu))
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use proptest::prelude::*;

    use super::*;
    use crate::modbus::config::Framing;
    use crate::modbus::frame::{Frame, read};

    #[test]
    fn a_question_is_eight_bytes() {
        // The example of many manuals: unit 1, holding registers 0 and 1.
        assert_eq!(*Frame::pack(Framing::Rtu, 1, &read(3, 0, 2), 0), [1, 3, 0, 0, 0, 2, 0xC4, 0x0B]);
    }

    #[test]
    fn each_answer_ends_where_its_function_says() {
        let whole = |question: &[u8], answer: &[u8]| {
            let frame = Frame::pack(Framing::Rtu, 7, answer, 0);
            let shape = Shape::of(7, question);
            assert_eq!(begins(&frame, shape), Here::Whole(frame.len()), "{question:x?}");
            for cut in 1..frame.len() {
                assert_eq!(begins(&frame[..cut], shape), Here::Begun, "{question:x?} cut at {cut}");
            }
            let mut damaged = frame.to_vec();
            *damaged.last_mut().expect("some") ^= 1;
            assert_eq!(begins(&damaged, shape), Here::Damaged);
            assert_eq!(begins(&frame, Shape { unit: 8, ..shape }), Here::Not);
        };
        whole(&read(3, 0, 2), &[3, 4, 1, 2, 3, 4]);
        whole(&read(1, 0, 9), &[1, 2, 1, 0]);
        whole(&read(3, 0, 2), &[0x83, 2]);
        whole(&[6, 0, 1, 0, 2], &[6, 0, 1, 0, 2]);
        whole(&[16, 0, 1, 0, 1, 2, 0, 9], &[16, 0, 1, 0, 1]);
        whole(&[17], &[17, 3, 9, 0xFF, 1]);
        whole(&[0x2B, 0x0E, 1, 0], &[0x2B, 0x0E, 1, 1, 0, 0, 2, 0, 2, b'A', b'B', 1, 1, b'C']);
        whole(&[0x2B, 0x0E, 1, 0], &[0xAB, 1]);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), question in proptest::collection::vec(any::<u8>(), 0..9)) {
            let shape = Shape::of(bytes.first().copied().unwrap_or(0), &question);
            if let Here::Whole(length) = begins(&bytes, shape) {
                prop_assert!(intact(&bytes[..length]));
            }
            let _: (Option<usize>, Option<Shape>) = (other_count(&bytes, shape), foreign_question(&bytes));
            let _: Vec<u8> = bytes;
        }
    }
}
