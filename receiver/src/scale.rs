//! From raw to real, by exactly the formula at `Point.exponent` in edge.proto (contract rule 14).
//!
//! `real = s · (factor = 0 ? 1 : factor) + bias` with `s = exponent < 0 ? raw / 10^-exponent : raw · 10^exponent`, in
//! doubles, in this order. Dividing matters: 215 / 10 is the double nearest to 21.5, while 215 · 0.1 is its neighbour.

/// The scale of a point.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scale {
    /// As in the catalogue.
    pub exponent: i32,
    /// As in the catalogue; 0 stands for 1.
    pub factor: f64,
    /// As in the catalogue.
    pub bias: f64,
    power: f64,
}

impl Scale {
    /// The scale of `Point.exponent`, `factor` and `bias`.
    #[must_use]
    pub fn new(exponent: i32, factor: f64, bias: f64) -> Self {
        // Parsed, not multiplied up: the nearest double for every exponent, exact up to 22. Infinite above 308.
        let power = format!("1e{}", exponent.unsigned_abs()).parse().unwrap_or(f64::INFINITY);
        Self { exponent, factor, bias, power }
    }

    /// The real value of `raw`, which is the nearest double to an integer, or the float itself.
    #[must_use]
    pub fn real(&self, raw: f64) -> f64 {
        let scaled = if self.exponent < 0 { raw / self.power } else { raw * self.power };
        let factor = if self.factor == 0.0 { 1.0 } else { self.factor };
        scaled * factor + self.bias
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_formula_divides() {
        assert_eq!(Scale::new(-1, 0.0, 0.0).real(3.0), 0.3);
        assert_ne!(3.0 * 0.1, 0.3, "what a multiplication would give");
        assert_eq!(Scale::new(3, 0.0, 0.0).real(-7.0), -7000.0);
        assert_eq!(Scale::new(0, 0.1, -40.0).real(655.0), 655.0 * 0.1 - 40.0);
        assert_eq!(Scale::new(-2, 0.0, 1.5).real(250.0), 4.0);
        assert_eq!(Scale::new(i32::MIN, 0.0, 0.0).real(1.0), 0.0);
        assert_eq!(Scale::new(i32::MAX, 0.0, 0.0).real(1.0), f64::INFINITY);
        assert!(Scale::new(0, 0.0, 0.0).real(f64::NAN).is_nan());
    }
}
