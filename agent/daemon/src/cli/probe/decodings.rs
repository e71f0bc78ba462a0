//! What two or four registers may mean: every number type in every order, and whether it looks like a value.
//!
//! A value that was measured is seldom astronomically large or small, and moves by little from one second to the next. The
//! same registers read in a wrong order are mostly one or the other. These are marks for people, nothing is chosen by them.

use tributary_protocols::modbus::decode::decode;
use tributary_protocols::modbus::plan::{PlannedPoint, Request};
use tributary_protocols::modbus::register::{Order, RegisterType, Table};
use tributary_protocols::value::Value;

/// A number of 32 or 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    U32,
    I32,
    F32,
    U64,
    I64,
    F64,
}

/// One of them in one order.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Decoding {
    /// The last value read.
    pub(super) text: String,
    /// Whether it looks like a value.
    pub(super) plausible: bool,
    /// Whether its bits are a usual mark of "not available".
    absent: bool,
    /// How it moved, if it was read more than once and did.
    moved: Option<Moved>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moved {
    Smoothly,
    ByLeaps,
}

impl Kind {
    pub(super) const ALL: [Self; 6] = [Self::U32, Self::I32, Self::F32, Self::U64, Self::I64, Self::F64];

    /// In registers.
    pub(super) const fn width(self) -> u16 {
        self.register_type().width()
    }

    pub(super) fn of_width(width: u16) -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(move |kind| kind.width() == width)
    }

    pub(super) const fn register_type(self) -> RegisterType {
        match self {
            Self::U32 => RegisterType::U32,
            Self::I32 => RegisterType::I32,
            Self::F32 => RegisterType::F32,
            Self::U64 => RegisterType::U64,
            Self::I64 => RegisterType::I64,
            Self::F64 => RegisterType::F64,
        }
    }

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::U32 => "u32",
            Self::I32 => "i32",
            Self::F32 => "f32",
            Self::U64 => "u64",
            Self::I64 => "i64",
            Self::F64 => "f64",
        }
    }

    fn real(self, bits: u64) -> f64 {
        match self {
            Self::U32 | Self::U64 => bits as f64,
            Self::I32 | Self::I64 => bits.cast_signed() as f64,
            Self::F32 => f32::from_bits(bits as u32).into(),
            Self::F64 => f64::from_bits(bits),
        }
    }

    fn text(self, bits: u64) -> String {
        let short = (1e-4..1e9).contains(&self.real(bits).abs()) || self.real(bits) == 0.0;
        match self {
            Self::U32 | Self::U64 => bits.to_string(),
            Self::I32 | Self::I64 => bits.cast_signed().to_string(),
            Self::F32 if short => f32::from_bits(bits as u32).to_string(),
            Self::F32 => format!("{:e}", f32::from_bits(bits as u32)),
            Self::F64 if short => f64::from_bits(bits).to_string(),
            Self::F64 => format!("{:e}", f64::from_bits(bits)),
        }
    }

    fn is_plausible(self, bits: u64) -> bool {
        let real = self.real(bits).abs();
        match self {
            Self::F32 | Self::F64 => real == 0.0 || (1e-4..1e9).contains(&real),
            // Counters reach far, measurements do not; less than 65,536 would have fitted into one register.
            Self::U32 | Self::I32 => real < 1e8,
            Self::U64 | Self::I64 => real < 1e13,
        }
    }

    /// All ones, the most negative, the most positive; for floats what is no number.
    fn is_absent(self, bits: u64) -> bool {
        match self {
            Self::F32 | Self::F64 => !self.real(bits).is_finite(),
            Self::U32 | Self::I32 => [0xFFFF_FFFF, 0x8000_0000, 0x7FFF_FFFF].contains(&(bits & 0xFFFF_FFFF)),
            Self::U64 | Self::I64 => [u64::MAX, 1 << 63, u64::MAX >> 1].contains(&bits),
        }
    }
}

/// What the registers from `start` on mean as `kind` in `order`, in the last of `reads`, and how it moved in them.
pub(super) fn decodings(reads: &[Vec<u8>], start: u16, kind: Kind, order: Order) -> Decoding {
    let ty = kind.register_type();
    let point = PlannedPoint { index: 0, offset: start, ty, order, slice: None };
    let request = Request { table: Table::Holding, address: 0, count: 0, period_ms: 1, points: vec![point] };
    let bits = |data: &Vec<u8>| match decode(&request, data).pop().map(|sample| sample.value) {
        Some(Value::Bits(bits)) => bits,
        _ => 0,
    };
    let all: Vec<u64> = reads.iter().map(bits).collect();
    let last = all.last().copied().unwrap_or(0);
    let moved = all.iter().any(|bits| *bits != last).then(|| {
        let leap = all.windows(2).any(|pair| {
            let (from, to) = (kind.real(pair[0]), kind.real(pair[1]));
            let step = (to - from).abs();
            step.is_nan() || step > 0.2 * from.abs().max(to.abs()).max(10.0)
        });
        if leap { Moved::ByLeaps } else { Moved::Smoothly }
    });
    Decoding {
        text: kind.text(last),
        plausible: kind.is_plausible(last) && !kind.is_absent(last) && moved != Some(Moved::ByLeaps),
        absent: kind.is_absent(last),
        moved,
    }
}

impl Decoding {
    /// With its marks.
    pub(super) fn show(&self) -> String {
        let mark = match self.moved {
            Some(Moved::Smoothly) => "~",
            Some(Moved::ByLeaps) => "!",
            None => "",
        };
        let looks = match (self.absent, self.plausible) {
            (true, _) => " n/a",
            (false, true) => " *",
            (false, false) => "",
        };
        format!("{}{looks}{mark}", self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_right_order_stands_out() {
        // 230.5 as f32 is 43668000.
        let data = vec![0x80, 0x00, 0x43, 0x66];
        let plausible = |kind: Kind| {
            let of = |order: &Order| decodings(std::slice::from_ref(&data), 0, kind, *order).plausible;
            Order::ALL.into_iter().filter(of).collect::<Vec<_>>()
        };
        assert_eq!(plausible(Kind::F32), [Order::CDAB]);
        assert_eq!(decodings(&[data], 0, Kind::F32, Order::CDAB).show(), "230.5 *");
    }

    #[test]
    fn what_moves_says_how() {
        let read = |value: f32| value.to_be_bytes().to_vec();
        let reads = [read(49.98), read(50.01), read(49.99)];
        assert_eq!(decodings(&reads, 0, Kind::F32, Order::ABCD).show(), "49.99 *~");
        assert_eq!(decodings(&reads, 0, Kind::F32, Order::DCBA).moved, Some(Moved::ByLeaps));
    }

    #[test]
    fn marks_of_absence_are_no_values() {
        assert_eq!(decodings(&[vec![0xFF; 4]], 0, Kind::U32, Order::ABCD).show(), "4294967295 n/a");
        assert_eq!(decodings(&[vec![0x7F, 0xC0, 0, 0]], 0, Kind::F32, Order::ABCD).show(), "NaN n/a");
        // Fewer registers than the type takes: nothing there, and no panic.
        assert_eq!(decodings(&[vec![1, 2]], 0, Kind::F64, Order::ABCD).text, "0");
        assert_eq!(decodings(&[], 3, Kind::U32, Order::ABCD).text, "0");
    }
}
