//! How integers stand for floats: the formulas that encoder and decoder share (columns.md rules 18 and 20).
//!
//! DECIMAL: `double(i) / double(10^e)`, one division; for FLOAT32 the quotient is then rounded once more. A division, not
//! a multiplication by 10^-e, because 10^e is exact and the quotient then is the double nearest to the decimal fraction:
//! what every parser of "21.37" yields.
//!
//! BITS: an integer image of the bits that orders as the floats do, so that neighbouring values have neighbouring images.

/// 10^e, exact as doubles up to here.
pub(crate) const POWERS: [f64; 23] = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20,
    1e21, 1e22,
];

/// Largest magnitude of a DECIMAL integer: up to here a double is exact.
pub(crate) const MAX_DECIMAL: u64 = 1 << 53;

/// Bits of the FLOAT64 that `int` over `power` stands for. `int` must be within [`MAX_DECIMAL`].
#[expect(clippy::cast_precision_loss, reason = "exact up to 2^53")]
pub(crate) const fn double(int: i64, power: f64) -> u64 {
    (int as f64 / power).to_bits()
}

/// Bits of the FLOAT32 that `int` over `power` stands for. `int` must be within [`MAX_DECIMAL`].
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "exact up to 2^53; then rule 18 rounds"
)]
pub(crate) const fn single(int: i64, power: f64) -> u32 {
    ((int as f64 / power) as f32).to_bits()
}

/// Bits of a FLOAT64 to their image, and back.
pub(crate) const fn image64(bits: i64) -> i64 {
    if bits >= 0 { bits } else { bits ^ i64::MAX }
}

/// Bits of a FLOAT32 to their image, and back.
pub(crate) const fn image32(bits: i32) -> i32 {
    if bits >= 0 { bits } else { bits ^ i32::MAX }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_order_as_floats_do() {
        let floats = [f64::NEG_INFINITY, -2.0, -1e-310, -0.0, 0.0, 1e-310, 2.0, f64::INFINITY];
        let images = floats.map(|float| image64(float.to_bits().cast_signed()));
        assert!(images.is_sorted_by(|a, b| a < b), "{images:?}");
        assert_eq!(images.map(image64), floats.map(|float| float.to_bits().cast_signed()));
    }

    #[test]
    fn a_quotient_is_not_a_product() {
        assert_eq!(double(3, POWERS[1]), 0.3_f64.to_bits());
        assert_ne!(3.0 * 0.1, 0.3);
        assert_eq!(single(16_777_217, POWERS[0]), 16_777_216_f32.to_bits(), "nearest, even");
    }
}
