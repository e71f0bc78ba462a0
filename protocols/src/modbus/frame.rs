//! Frames: a question as bytes, and whether bytes are its answer.
//!
//! Between schedule and line. On TCP a frame is an MBAP header (Modbus Messaging on TCP/IP V1.0b, 3.1.3) and a PDU; on a
//! serial line it is unit, PDU and CRC (`frame/rtu.rs`):
//!
//! ```text
//!  0      2      4      6    7        8            9
//!  | transaction | protocol 0 | length | unit | function | byte count | data …      answer
//!  | transaction | protocol 0 | length | unit | function + 0x80 | code              exception
//!  | transaction | protocol 0 | 6      | unit | function | address | count          question, 12 bytes
//! ```
//! `length` counts what follows it, from `unit` on. Everything but the CRC is big-endian.
//!
//! Every field of an answer is compared with its question, in release builds too: a short, foreign or stale answer is
//! a [`Doubt`], never a value. Only the data themselves cannot be checked; TCP has no checksum of ours to ask.
//!
//! Limits: a PDU is at most 253 bytes, a frame at most 260.

pub(crate) mod rtu;

use core::ops::Deref;

use crate::modbus::config::Framing;
use crate::modbus::plan::Request;

/// Longest PDU in bytes (V1.1b3, 4.1).
pub const MAX_PDU: usize = 253;
/// Longest frame in bytes: 7 of header, 253 of PDU.
pub const MAX_FRAME: usize = 260;

/// A PDU: a function and what belongs to it.
pub type Pdu = heapless::Vec<u8, MAX_PDU>;

/// A frame as on the wire.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frame(heapless::Vec<u8, MAX_FRAME>);

impl Deref for Frame {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl Frame {
    /// `pdu` to `unit`, packed. `transaction` is of TCP only.
    #[must_use]
    pub fn pack(framing: Framing, unit: u8, pdu: &[u8], transaction: u16) -> Self {
        let pdu = pdu.get(..MAX_PDU).unwrap_or(pdu);
        let mut bytes = heapless::Vec::new();
        // They fit: 7 or 3 bytes beside the longest PDU.
        match framing {
            Framing::Tcp => {
                let [t1, t0] = transaction.to_be_bytes();
                let length = u8::try_from(pdu.len() + 1).unwrap_or(u8::MAX);
                let _ = bytes.extend_from_slice(&[t1, t0, 0, 0, 0, length, unit]);
                let _ = bytes.extend_from_slice(pdu);
            }
            Framing::Rtu => {
                let _ = bytes.push(unit);
                let _ = bytes.extend_from_slice(pdu);
                let crc = rtu::crc(&bytes).to_le_bytes();
                let _ = bytes.extend_from_slice(&crc);
            }
        }
        Self(bytes)
    }
}

/// The PDU that reads `count` registers or bits from `address` on.
#[must_use]
pub fn read(function: u8, address: u16, count: u16) -> [u8; 5] {
    let ([a1, a0], [c1, c0]) = (address.to_be_bytes(), count.to_be_bytes());
    [function, a1, a0, c1, c0]
}

/// How an answer's PDU ends, as its question tells (V1.1b3, 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expect {
    /// Functions 1 to 4: a byte count, which is this, and the data.
    Data(u8),
    /// So many bytes behind the function: what writes bring back, and states of a fixed size.
    Fixed(u8),
    /// A byte count that only the device knows: its identification, mixed reads.
    Counted,
    /// Function 43/14: objects with a length each.
    Identification,
    /// Nothing is known: the header says it on TCP, silence on a serial line.
    Open,
}

impl Expect {
    /// Of the answer to this PDU.
    pub(crate) fn of(pdu: &[u8]) -> Self {
        match *pdu {
            [1 | 2, _, _, c1, c0] => {
                Self::Data(u8::try_from(u16::from_be_bytes([c1, c0]).div_ceil(8)).unwrap_or(u8::MAX))
            }
            [3 | 4, _, _, c1, c0] => {
                Self::Data(u8::try_from(u16::from_be_bytes([c1, c0]).saturating_mul(2)).unwrap_or(u8::MAX))
            }
            [5 | 6 | 11 | 15 | 16, ..] => Self::Fixed(4),
            [7, ..] => Self::Fixed(1),
            [22, ..] => Self::Fixed(6),
            [12 | 17 | 20 | 21 | 23, ..] => Self::Counted,
            [0x2B, 0x0E, ..] => Self::Identification,
            _ => Self::Open,
        }
    }

    /// The length of the answer's PDU that begins here, function included; `None` if that cannot be seen yet.
    pub(crate) fn length(self, pdu: &[u8]) -> Option<usize> {
        if pdu.first()? & 0x80 != 0 {
            return Some(2);
        }
        match self {
            Self::Data(count) => Some(2 + usize::from(count)),
            Self::Fixed(count) => Some(1 + usize::from(count)),
            Self::Counted => Some(2 + usize::from(*pdu.get(1)?)),
            Self::Identification => {
                // Function, MEI type, code, conformity, more follows, next object, number of objects.
                let mut at = 7;
                for _ in 0..*pdu.get(6)? {
                    at += 2 + usize::from(*pdu.get(at + 1)?);
                }
                Some(at)
            }
            Self::Open => None,
        }
    }
}

/// What a PDU that belongs to the question's unit and function says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Said<'a> {
    /// Exactly what was asked for.
    All(&'a [u8]),
    /// Registers or bits, whole and consistent, but fewer than asked for.
    Less,
    /// The exception code.
    No(u8),
}

/// What `pdu` answers to a question of this function.
pub(crate) fn answer(pdu: &[u8], function: u8, expect: Expect) -> Result<Said<'_>, Doubt> {
    match *pdu {
        [got, code] if got == function | 0x80 => Ok(Said::No(code)),
        [got, ref rest @ ..] if got == function | 0x80 => Err(Doubt::ByteCount { got: rest.len(), expected: 1 }),
        [got, ..] if got != function => Err(Doubt::Function { got, expected: function }),
        [_, ref rest @ ..] => match expect {
            Expect::Data(expected) => {
                let expected = usize::from(expected);
                match rest.split_first() {
                    Some((count, data)) if usize::from(*count) != data.len() && usize::from(*count) == expected => {
                        Err(Doubt::ByteCount { got: data.len(), expected })
                    }
                    Some((count, data)) if usize::from(*count) == expected => Ok(Said::All(data)),
                    Some((count, data))
                        if data.len() == usize::from(*count)
                            && (1..expected).contains(&data.len())
                            && (function <= 2 || data.len() % 2 == 0) =>
                    {
                        Ok(Said::Less)
                    }
                    Some((count, _)) => Err(Doubt::ByteCount { got: usize::from(*count), expected }),
                    None => Err(Doubt::ByteCount { got: 0, expected }),
                }
            }
            Expect::Fixed(_) | Expect::Counted if expect.length(pdu) != Some(pdu.len()) => {
                let expected = expect.length(pdu).unwrap_or(2);
                Err(Doubt::ByteCount { got: rest.len(), expected: expected.saturating_sub(1) })
            }
            _ => Ok(Said::All(rest)),
        },
        [] => Err(Doubt::ByteCount { got: 0, expected: 1 }),
    }
}

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
    /// The checksum of a serial frame is wrong.
    #[error("a frame damaged on the line: its CRC is wrong")]
    Crc,
    /// Another master on the line asked for the same at the same time.
    #[error("another master asks on this line")]
    Master,
}

/// The question as bytes, on TCP.
#[must_use]
pub fn question(request: &Request, unit: u8, transaction: u16) -> Frame {
    Frame::pack(Framing::Tcp, unit, &read(request.table.function(), request.address, request.count), transaction)
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
    let [t1, t0, _, _, _, _, its_unit, pdu @ ..] = frame else {
        return Err(Doubt::Size { announced: 9, got: frame.len() });
    };
    let its_transaction = u16::from_be_bytes([*t1, *t0]);
    if its_transaction != transaction {
        return Err(Doubt::Transaction { got: its_transaction, expected: transaction });
    }
    if *its_unit != unit {
        return Err(Doubt::Unit { got: *its_unit, expected: unit });
    }
    let expect = Expect::of(&read(request.table.function(), request.address, request.count));
    match answer(pdu, request.table.function(), expect)? {
        Said::All(rest) => Ok(Answer::Data(rest)),
        Said::No(code) => Ok(Answer::Exception(code)),
        Said::Less => Err(Doubt::ByteCount { got: pdu.len().saturating_sub(2), expected: data_length(request) }),
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
        assert_eq!(*frame, [0xAB, 0xCD, 0, 0, 0, 6, 7, 4, 0x12, 0x34, 0, 0x7D]);
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
