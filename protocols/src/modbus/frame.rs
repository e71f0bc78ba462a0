//! Modbus TCP frames: a question as bytes, and whether bytes are its answer.
//!
//! Between schedule and socket. A frame is an MBAP header (Modbus Messaging on TCP/IP V1.0b, 3.1.3) and a PDU:
//!
//! ```text
//!  0      2      4      6    7        8            9
//!  | transaction | protocol 0 | length | unit | function | byte count | data …      answer
//!  | transaction | protocol 0 | length | unit | function + 0x80 | code              exception
//!  | transaction | protocol 0 | 6      | unit | function | address | count          question, 12 bytes
//! ```
//! `length` counts what follows it, from `unit` on. Everything is big-endian.
//!
//! Every field of an answer is compared with its question, in release builds too: a short, foreign or stale answer is
//! a [`Doubt`], never a value. Only the data themselves cannot be checked; TCP has no checksum of ours to ask.
//!
//! Limits: a PDU is at most 253 bytes, a frame at most 260.

use crate::modbus::plan::Request;

/// Longest frame in bytes: 7 of header, 253 of PDU.
pub const MAX_FRAME: usize = 260;

/// An answer that fits its question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer<'a> {
    /// Registers, high byte first; or bits, the first in the lowest bit. Exactly as much as was asked for.
    Data(&'a [u8]),
    /// The device, or a gateway in its place, said no: the exception code.
    Exception(u8),
}

/// Why bytes are not the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Doubt {
    /// The header's protocol is not 0.
    #[error("protocol {0} instead of 0")]
    Protocol(u16),
    /// The header announces a frame that cannot be.
    #[error("a frame of {0} bytes behind its length, where 3 to 254 are possible")]
    Length(u16),
    /// Fewer or more bytes than the header announces.
    #[error("{got} bytes where the header announces {announced}")]
    Size {
        /// By the header, header included.
        announced: usize,
        /// That were there.
        got: usize,
    },
    /// The answer to another question.
    #[error("transaction {got} instead of {expected}")]
    Transaction {
        /// Of the answer.
        got: u16,
        /// Of the question.
        expected: u16,
    },
    /// Another device answered.
    #[error("unit {got} answered instead of {expected}")]
    Unit {
        /// Of the answer.
        got: u8,
        /// Of the question.
        expected: u8,
    },
    /// Another question was answered.
    #[error("function {got:#04x} instead of {expected:#04x}")]
    Function {
        /// Of the answer.
        got: u8,
        /// Of the question.
        expected: u8,
    },
    /// More or less than was asked for.
    #[error("{got} bytes of data instead of {expected}")]
    ByteCount {
        /// As the answer states, or as it has.
        got: usize,
        /// What was asked for.
        expected: usize,
    },
    /// So many stale answers that the device cannot be followed.
    #[error("a flood of stale answers")]
    Flood,
    /// Bytes that nobody asked for.
    #[error("an answer without a question")]
    Unasked,
}

/// The question as bytes.
#[must_use]
pub fn question(request: &Request, unit: u8, transaction: u16) -> [u8; 12] {
    let [t1, t0] = transaction.to_be_bytes();
    let [a1, a0] = request.address.to_be_bytes();
    let [c1, c0] = request.count.to_be_bytes();
    [t1, t0, 0, 0, 0, 6, unit, request.table.function(), a1, a0, c1, c0]
}

/// How long the frame is that begins here; `None` if that cannot be seen yet.
///
/// # Errors
/// No frame begins like this.
pub fn length(bytes: &[u8]) -> Result<Option<usize>, Doubt> {
    if let [_, _, p1, p0, ..] = *bytes
        && (p1, p0) != (0, 0)
    {
        return Err(Doubt::Protocol(u16::from_be_bytes([p1, p0])));
    }
    let [_, _, _, _, l1, l0, ..] = *bytes else { return Ok(None) };
    let length = u16::from_be_bytes([l1, l0]);
    // Unit, function, and a byte count or exception code at least; unit and the longest PDU at most.
    if !(3..=254).contains(&length) {
        return Err(Doubt::Length(length));
    }
    Ok(Some(6 + usize::from(length)))
}

/// The transaction of a frame.
#[must_use]
pub fn transaction(bytes: &[u8]) -> Option<u16> {
    match *bytes {
        [t1, t0, ..] => Some(u16::from_be_bytes([t1, t0])),
        _ => None,
    }
}

/// Bytes of data that a request brings.
#[must_use]
pub fn data_length(request: &Request) -> usize {
    match request.table.is_bits() {
        true => usize::from(request.count).div_ceil(8),
        false => usize::from(request.count) * 2,
    }
}

/// What `frame` answers to `request`, asked of `unit` as `transaction`.
///
/// # Errors
/// It is not the answer to that question.
pub fn check<'a>(frame: &'a [u8], request: &Request, unit: u8, transaction: u16) -> Result<Answer<'a>, Doubt> {
    match length(frame)? {
        Some(announced) if announced == frame.len() => {}
        Some(announced) => return Err(Doubt::Size { announced, got: frame.len() }),
        None => return Err(Doubt::Size { announced: 9, got: frame.len() }),
    }
    let [t1, t0, _, _, _, _, its_unit, function, rest @ ..] = frame else {
        return Err(Doubt::Size { announced: 9, got: frame.len() });
    };
    let its_transaction = u16::from_be_bytes([*t1, *t0]);
    if its_transaction != transaction {
        return Err(Doubt::Transaction { got: its_transaction, expected: transaction });
    }
    if *its_unit != unit {
        return Err(Doubt::Unit { got: *its_unit, expected: unit });
    }
    let expected = request.table.function();
    match (*function, rest) {
        (got, [code]) if got == expected | 0x80 => Ok(Answer::Exception(*code)),
        (got, rest) if got == expected | 0x80 => Err(Doubt::ByteCount { got: rest.len(), expected: 1 }),
        (got, _) if got != expected => Err(Doubt::Function { got, expected }),
        (_, rest) => {
            let expected = data_length(request);
            match rest.split_first() {
                Some((count, data)) if usize::from(*count) == expected && data.len() == expected => {
                    Ok(Answer::Data(data))
                }
                Some((count, data)) if usize::from(*count) == expected => {
                    Err(Doubt::ByteCount { got: data.len(), expected })
                }
                Some((count, _)) => Err(Doubt::ByteCount { got: usize::from(*count), expected }),
                None => Err(Doubt::ByteCount { got: 0, expected }),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;
    use alloc::vec::Vec;

    use proptest::prelude::*;

    use super::*;
    use crate::modbus::register::Table;

    fn request(table: Table, count: u16) -> Request {
        Request { table, address: 0x1234, count, period_ms: 1_000, points: Vec::new() }
    }

    fn answer(count: u8) -> Vec<u8> {
        let mut frame = vec![0xAB, 0xCD, 0, 0, 0, count + 3, 7, 3, count];
        frame.extend(0..count);
        frame
    }

    #[test]
    fn a_question_is_twelve_bytes() {
        let frame = question(&request(Table::Input, 0x7D), 7, 0xABCD);
        assert_eq!(frame, [0xAB, 0xCD, 0, 0, 0, 6, 7, 4, 0x12, 0x34, 0, 0x7D]);
    }

    #[test]
    fn each_field_is_compared() {
        let request = request(Table::Holding, 2);
        let good = answer(4);
        assert_eq!(check(&good, &request, 7, 0xABCD), Ok(Answer::Data(&[0, 1, 2, 3])));
        let with = |index: usize, byte: u8| {
            let mut frame = good.clone();
            frame[index] = byte;
            check(&frame, &request, 7, 0xABCD).expect_err("changed")
        };
        assert_eq!(with(1, 0xCC), Doubt::Transaction { got: 0xABCC, expected: 0xABCD });
        assert_eq!(with(3, 1), Doubt::Protocol(1));
        assert_eq!(with(4, 1), Doubt::Length(0x107));
        assert_eq!(with(5, 6), Doubt::Size { announced: 12, got: 13 });
        assert_eq!(with(6, 8), Doubt::Unit { got: 8, expected: 7 });
        assert_eq!(with(7, 4), Doubt::Function { got: 4, expected: 3 });
        assert_eq!(with(8, 2), Doubt::ByteCount { got: 2, expected: 4 });
        assert_eq!(check(&answer(6), &request, 7, 0xABCD), Err(Doubt::ByteCount { got: 6, expected: 4 }));
    }

    #[test]
    fn exceptions_are_two_bytes() {
        let request = request(Table::Coil, 9);
        assert_eq!(check(&[0, 1, 0, 0, 0, 3, 7, 0x81, 2], &request, 7, 1), Ok(Answer::Exception(2)));
        let long = [0, 1, 0, 0, 0, 4, 7, 0x81, 2, 0];
        assert_eq!(check(&long, &request, 7, 1), Err(Doubt::ByteCount { got: 2, expected: 1 }));
        let foreign = [0, 1, 0, 0, 0, 3, 7, 0x83, 2];
        assert_eq!(check(&foreign, &request, 7, 1), Err(Doubt::Function { got: 0x83, expected: 1 }));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), count in 1_u16..=125) {
            let _ = length(&bytes);
            if let Ok(Answer::Data(data)) = check(&bytes, &request(Table::Holding, count), 7, 1) {
                prop_assert_eq!(data.len(), usize::from(count) * 2);
            }
        }

        #[test]
        fn an_answer_cut_or_lengthened_is_refused(count in 1_u8..=125, change in 1_usize..20, cut: bool) {
            let mut frame = answer(count * 2);
            if cut { frame.truncate(frame.len() - change.min(frame.len())) } else { frame.extend(vec![0; change]) }
            prop_assert!(check(&frame, &request(Table::Holding, count.into()), 7, 0xABCD).is_err());
        }
    }
}
