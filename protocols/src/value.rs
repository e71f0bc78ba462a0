//! What a point holds: its type and its value, as bits.
//!
//! Values travel as the device gave them: registers as raw integers, floats as IEEE bits (a signalling NaN moved
//! through a floating point register may come out quiet). The scale stays in the catalogue (contract rule 14); only
//! filters and statistics ask for the [`real`](Scale::real) number.

use alloc::boxed::Box;

/// The type of a point on the wire; the numbers are those of `Point.Type` in the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum PointType {
    /// 0 or 1.
    Bool = 1,
    /// Up to 64 bits, signed.
    Int = 2,
    /// 64 bits, unsigned.
    Uint64 = 3,
    /// IEEE binary32.
    Float32 = 4,
    /// IEEE binary64.
    Float64 = 5,
    /// Text.
    String = 6,
    /// An integer whose values have names.
    Enum = 7,
}

/// A value, or none where the status says that there is none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Value {
    /// The status alone speaks.
    #[default]
    None,
    /// The bits of a number, read by the point's type: BOOL 0 or 1, INT and ENUM an `i64` cast to `u64`, UINT64 itself,
    /// FLOAT32 the binary32 pattern in the low 32 bits, FLOAT64 the binary64 pattern.
    Bits(u64),
    /// The text of a STRING point.
    Text(Box<str>),
}

/// How a raw number becomes a real one: `real = s · (factor = 0 ? 1 : factor) + bias` with
/// `s = exponent < 0 ? raw / 10^-exponent : raw · 10^exponent`, in doubles, in this order (edge.proto, `Point.exponent`).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Scale {
    /// Power of ten; 0 when `factor` scales.
    pub exponent: i32,
    /// Multiplier; 0 stands for 1.
    pub factor: f64,
    /// Added last.
    pub bias: f64,
}

/// The exponent that a point of INT brings for another's scale: -10 to 10, as SunSpec allows.
#[must_use]
pub fn exponent(bits: u64) -> Option<i32> {
    i32::try_from(bits.cast_signed()).ok().filter(|e| (-10..=10).contains(e))
}

impl Scale {
    /// This scale times 10^e: of integers in the exponent where that scales, else in the factor.
    #[must_use]
    pub fn times_ten_to(self, ty: PointType, e: i32) -> Self {
        let integer = !matches!(ty, PointType::Float32 | PointType::Float64);
        if e == 0 || integer && self.factor == 0.0 {
            return Self { exponent: self.exponent.saturating_add(e), ..self };
        }
        let factor = if self.factor == 0.0 { 1.0 } else { self.factor };
        let ten = power_of_ten(e.unsigned_abs());
        Self { factor: if e < 0 { factor / ten } else { factor * ten }, ..self }
    }

    /// The real value of `bits` under type `ty`; `None` for text.
    #[must_use]
    pub fn real(&self, ty: PointType, bits: u64) -> Option<f64> {
        #[expect(clippy::cast_possible_wrap, reason = "INT travels as the i64's own bits")]
        #[expect(clippy::cast_precision_loss, reason = "the contract's formula is in doubles")]
        let raw = match ty {
            PointType::Bool | PointType::Int | PointType::Enum => bits as i64 as f64,
            PointType::Uint64 => bits as f64,
            #[expect(clippy::cast_possible_truncation, reason = "FLOAT32 sits in the low 32 bits")]
            PointType::Float32 => f64::from(f32::from_bits(bits as u32)),
            PointType::Float64 => f64::from_bits(bits),
            PointType::String => return None,
        };
        let scaled = match self.exponent {
            0 => raw,
            e if e < 0 => raw / power_of_ten(e.unsigned_abs()),
            e => raw * power_of_ten(e.unsigned_abs()),
        };
        let factor = if self.factor == 0.0 { 1.0 } else { self.factor };
        Some(scaled * factor + self.bias)
    }
}

/// 10^e as the double nearest to it: exact up to 22 (the last exact one).
fn power_of_ten(e: u32) -> f64 {
    const EXACT: [f64; 23] = [
        1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19,
        1e20, 1e21, 1e22,
    ];
    EXACT.get(e as usize).copied().unwrap_or_else(|| libm_pow10(e))
}

/// Beyond 10^22 by repeated exact steps; the configuration refuses such exponents, the catalogue may still carry one.
fn libm_pow10(e: u32) -> f64 {
    let mut power = 1e22;
    for _ in 22..e.min(400) {
        power *= 10.0;
    }
    power
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn real_divides_for_negative_exponents() {
        let scale = Scale { exponent: -1, factor: 0.0, bias: 0.0 };
        assert_eq!(scale.real(PointType::Int, 3), Some(0.3), "3 / 10, not 3 * 0.1");
        let scale = Scale { exponent: 0, factor: 0.5, bias: -40.0 };
        assert_eq!(scale.real(PointType::Int, (-10_i64) as u64), Some(-45.0));
    }

    #[test]
    fn floats_keep_their_bits() {
        let scale = Scale::default();
        assert_eq!(scale.real(PointType::Float32, u64::from(1.5_f32.to_bits())), Some(1.5));
        assert_eq!(scale.real(PointType::String, 0), None);
    }
}
