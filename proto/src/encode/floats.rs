//! Which integers stand for the floats of a column: decimals, or images of the bits (columns.md rules 18 to 20).
//!
//! Most instruments think in decimals: a double that is 21.37 is 2137 over 10^2, and 2137 moves by small steps. So the
//! number of digits is sought that the values have; the few that have none (NaN, −0.0, sums of rounding errors) are
//! exceptions. Where decimals do not pay, the bits do.

use alloc::vec::Vec;

use crate::float::{POWERS, double, image32, image64, single};

/// Whose bits they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Width {
    Single,
    Double,
}

impl Width {
    /// Most digits a decimal may have (rule 18: what encoders use).
    const fn digits(self) -> usize {
        match self {
            Self::Single => 10,
            Self::Double => 15,
        }
    }
}

/// How a value fares at a number of digits.
enum Fit {
    Exact(i64),
    /// Its decimal has more digits, or none.
    Inexact,
    /// The integer would be too large.
    TooLarge,
}

/// Whether `bits` are a decimal of `digits` digits: there is an integer that rule 18 turns into the very same bits.
fn fit(bits: u64, width: Width, digits: usize) -> Fit {
    let power = POWERS[digits];
    #[expect(clippy::cast_possible_truncation, reason = "FLOAT32 sits in the low 32 bits")]
    let (value, limit) = match width {
        Width::Single => (f64::from(f32::from_bits(bits as u32)), 2_147_483_648.0),
        Width::Double => (f64::from_bits(bits), 9e15),
    };
    let product = value * power;
    if product.is_nan() || product.abs() >= limit {
        return Fit::TooLarge;
    }
    // Beyond 2^52 a double is whole, and adding a half would round it to even.
    let rounded = if product.abs() < 4_503_599_627_370_496.0 { product + 0.5_f64.copysign(product) } else { product };
    #[expect(clippy::cast_possible_truncation, reason = "that is how it is rounded; within 2^53")]
    let int = rounded as i64;
    let same = match width {
        Width::Single => u64::from(single(int, power)) == bits,
        Width::Double => double(int, power) == bits,
    };
    if same { Fit::Exact(int) } else { Fit::Inexact }
}

/// Fewest digits at which `bits` are a decimal, looking first around `guess`.
fn fewest(bits: u64, width: Width, guess: usize) -> Option<usize> {
    if bits == 0 {
        return Some(0);
    }
    let mut digits = guess;
    let mut here = fit(bits, width, digits);
    if matches!(here, Fit::Inexact) {
        // Upwards: the first that is exact is the fewest, for what is exact at fewer digits is exact at more.
        while digits < width.digits() {
            digits += 1;
            match fit(bits, width, digits) {
                Fit::Exact(_) => return Some(digits),
                Fit::Inexact => {}
                Fit::TooLarge => return None,
            }
        }
        return None;
    }
    let mut found = None;
    loop {
        match here {
            Fit::Exact(_) => found = Some(digits),
            Fit::Inexact => return found,
            Fit::TooLarge => {}
        }
        let Some(fewer) = digits.checked_sub(1) else { return found };
        digits = fewer;
        here = fit(bits, width, digits);
    }
}

/// How many values need how many digits.
pub(super) struct Digits {
    counts: [usize; 16],
    /// Values that are no decimal at all.
    none: usize,
}

impl Digits {
    /// Looks at all `values`, or only at a few of them if those are no decimals.
    pub(super) fn of(values: &[u64], width: Width) -> Self {
        const SAMPLE: usize = 16;
        if values.len() > SAMPLE * 4 {
            let few = values.iter().step_by(values.len() / SAMPLE).copied();
            let sample = Self::count(few, width);
            if sample.counts.iter().all(|&count| count == 0) {
                return sample;
            }
        }
        Self::count(values.iter().copied(), width)
    }

    fn count(values: impl Iterator<Item = u64>, width: Width) -> Self {
        let (mut digits, mut guess, mut last) = (Self { counts: [0; 16], none: 0 }, 0, None);
        for bits in values {
            let need = match last {
                Some((same, need)) if same == bits => need,
                _ => fewest(bits, width, guess),
            };
            last = Some((bits, need));
            match need {
                Some(need) => {
                    digits.counts[need] += 1;
                    if bits != 0 {
                        guess = need;
                    }
                }
                None => digits.none += 1,
            }
        }
        digits
    }

    /// Numbers of digits worth trying: that of the longest value, and the one with the best estimate, in which a digit
    /// fewer saves 3.3 bits a value and an exception costs some 10 bytes.
    pub(super) fn candidates(&self) -> impl Iterator<Item = usize> {
        let longest = self.counts.iter().rposition(|&count| count > 0);
        let decimals: usize = self.counts.iter().sum();
        let mut exceptions = 0;
        let mut best = (0_isize, longest);
        if let Some(longest) = longest {
            for digits in (0..longest).rev() {
                exceptions += self.counts[digits + 1];
                // In 1/32 bytes.
                let saved = (decimals - exceptions) * (longest - digits) * 13;
                let gain = saved.cast_signed() - (exceptions * 320).cast_signed();
                if gain > best.0 {
                    best = (gain, Some(digits));
                }
            }
        }
        longest.into_iter().chain(best.1.filter(|_| best.1 != longest))
    }

    /// Whether every value is a decimal.
    pub(super) const fn all(&self) -> bool {
        self.none == 0
    }
}

/// Values as decimals of `digits` digits; the rest as exceptions.
#[derive(Default)]
pub(super) struct Decimals {
    pub(super) ints: Vec<i64>,
    pub(super) exception_rows: Vec<u32>,
    pub(super) exception_bits: Vec<u64>,
}

impl Decimals {
    pub(super) fn fill(&mut self, values: &[u64], width: Width, digits: usize) {
        self.ints.clear();
        self.exception_rows.clear();
        self.exception_bits.clear();
        let (mut before, mut last) = (0, 0);
        for (position, &bits) in (0_u32..).zip(values) {
            if let Fit::Exact(int) = fit(bits, width, digits) {
                before = int;
            } else {
                self.exception_rows.push(position - last);
                self.exception_bits.push(bits);
                last = position;
            }
            self.ints.push(before); // the slot of an exception repeats the integer before it
        }
    }

    /// Bytes of the two fields.
    pub(super) fn exception_len(&self) -> usize {
        use super::ints::varint;
        let n = self.exception_bits.len();
        if n == 0 {
            return 0;
        }
        let rows: usize = self.exception_rows.iter().map(|&row| varint(u64::from(row))).sum();
        2 + varint(rows as u64) + rows + varint(n as u64 * 8) + n * 8
    }
}

/// Images of the bits without their common trailing zeros, and how many those are (rule 20).
pub(super) fn images(values: &[u64], width: Width, ints: &mut Vec<i64>) -> u32 {
    ints.clear();
    #[expect(clippy::cast_possible_truncation, reason = "FLOAT32 sits in the low 32 bits")]
    match width {
        Width::Single => ints.extend(values.iter().map(|&bits| i64::from(image32((bits as u32).cast_signed())))),
        Width::Double => ints.extend(values.iter().map(|&bits| image64(bits.cast_signed()))),
    }
    let union = ints.iter().fold(0, |union, image| union | image);
    let shift = if union == 0 { 0 } else { union.trailing_zeros() };
    for int in ints {
        *int >>= shift;
    }
    shift
}
