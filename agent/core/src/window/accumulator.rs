//! Folds the readings of one point in one window into its statistics (contract rule 15), in constant size and one pass:
//! about 200 bytes a point, however many readings come.
//!
//! GOOD and UNCERTAIN readings count. Any other status, a NaN, or text makes the window PARTIAL and does not count.
//!
//! How each statistic is computed:
//! - `min`, `max`, `first`, `last` are readings that came, bit for bit. They are compared as raw numbers of the point's
//!   own type, where 64 bits are exact, and the other way round if the factor is negative: the smallest *real* value is
//!   what is asked for. Of equal ones the first stays.
//! - `sum` and `mean` by Neumaier's compensated summation (Neumaier 1974): as good as summing in twice the precision.
//! - `twmean` the same way over value · nanoseconds. A value stands until the next reading of any status, or the
//!   window's end; nothing is carried into the next window. Of total weight 0 it is `last`.
//! - `stddev` by Welford's recurrence (Welford 1962) over differences to the first value. Those differences lose nothing
//!   when the values lie close together, so a small spread around a large mean keeps its digits. Of one value it is NaN.
//!
//! Limits: a sum beyond ±1.8 · 10^308 is infinite, and so are the means made of it, `twmean` from values · nanoseconds of
//! that size on. Any NaN that comes out (∞ − ∞) is the canonical quiet one, on every machine.

use core::cmp::Ordering;

use tributary_protocols::reading::{Sample, Status};
use tributary_protocols::time::Mono;
use tributary_protocols::value::{PointType, Scale, Value};

use crate::model::Statistic;

/// The NaN that statistics give: quiet, positive, without payload.
const NAN_BITS: u64 = 0x7ff8_0000_0000_0000;

/// The open window of one point.
#[derive(Clone, Debug)]
pub struct Accumulator {
    ty: PointType,
    scale: Scale,
    window: Window,
}

/// What came in since the window began.
#[derive(Clone, Debug, Default)]
struct Window {
    /// Readings of any status.
    readings: u64,
    /// Those that count.
    count: u64,
    /// The last status from 16 up.
    bare: Option<Status>,
    min: u64,
    max: u64,
    first: u64,
    last: u64,
    /// Real values of `first` and `last`.
    first_real: f64,
    last_real: f64,
    sum: Sum,
    /// Value · nanoseconds, and the nanoseconds.
    weighted: Sum,
    weight: u64,
    /// Since when the last value stands, if it still does.
    stands: Option<Mono>,
    /// Mean of the differences to `first_real`, and the sum of squares about it.
    mean: f64,
    squares: f64,
}

/// A sum that carries its own rounding error along.
#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    total: f64,
    error: f64,
}

impl Accumulator {
    /// An empty window of a point of this type and scale. STRING points have nothing to fold; the configuration refuses
    /// windows on them, and here none of their readings counts.
    #[must_use]
    pub fn new(ty: PointType, scale: Scale) -> Self {
        Self { ty, scale, window: Window::default() }
    }

    /// How many readings the open window holds, of whatever status: held now, filtered when it closes (rule 9).
    #[must_use]
    pub fn readings(&self) -> u64 {
        self.window.readings
    }

    /// Adds a reading that arrived at `now`, as the filter's marks left it. A window that is due at `now` must have been
    /// closed before.
    pub fn add(&mut self, now: Mono, sample: &Sample) {
        let window = &mut self.window;
        window.readings += 1;
        window.settle(now);
        if !sample.status.has_value() {
            window.bare = Some(sample.status);
        }
        let (Status::Good | Status::Uncertain, &Value::Bits(bits)) = (sample.status, &sample.value) else { return };
        let Some(real) = self.scale.real(self.ty, bits).filter(|real| !real.is_nan()) else { return };

        window.count += 1;
        if window.count == 1 {
            (window.min, window.max, window.first, window.first_real) = (bits, bits, bits, real);
        } else {
            let (low, high) = if self.scale.factor < 0.0 {
                (Ordering::Greater, Ordering::Less)
            } else {
                (Ordering::Less, Ordering::Greater)
            };
            if compare(self.ty, bits, window.min) == low {
                window.min = bits;
            }
            if compare(self.ty, bits, window.max) == high {
                window.max = bits;
            }
        }
        (window.last, window.last_real) = (bits, real);
        window.stands = Some(now);
        window.sum.add(real);
        window.spread(real);
    }

    /// Closes the window at `end`, its deadline, and begins the next one, empty. Gives each of `stats` to `out`, in
    /// order, and returns how many readings were folded.
    ///
    /// `partial` says that the window was shorter than it should be. Rows are PARTIAL if it was, or if a reading did not
    /// count; else GOOD, also when readings were UNCERTAIN. If none counted, every statistic, the count included, comes
    /// without a value: with the window's last status from 16 up, or DEVICE_ERROR if there was none, also when nothing
    /// arrived at all. An event-driven point has no row for a window in which nothing arrived: for such a point ask
    /// [`readings`](Self::readings) first, and do not close what is 0.
    pub fn close(
        &mut self,
        end: Mono,
        partial: bool,
        stats: &[Statistic],
        out: &mut impl FnMut(Statistic, Sample),
    ) -> u64 {
        let mut window = core::mem::take(&mut self.window);
        window.settle(end);
        let status = match (window.count, partial || window.count < window.readings) {
            (0, _) => window.bare.unwrap_or(Status::DeviceError),
            (_, true) => Status::Partial,
            (_, false) => Status::Good,
        };
        for &statistic in stats {
            let sample = match status {
                bare if !bare.has_value() => Sample::bare(bare),
                status => Sample { status, value: Value::Bits(window.bits(statistic)) },
            };
            out(statistic, sample);
        }
        window.readings
    }
}

impl Window {
    /// Ends the time for which the last value stood, if one did.
    fn settle(&mut self, now: Mono) {
        let Some(since) = self.stands.take() else { return };
        let nanos = now.as_nanos().saturating_sub(since.as_nanos());
        if nanos > 0 {
            self.weight = self.weight.saturating_add(nanos);
            self.weighted.add(self.last_real * as_double(nanos));
        }
    }

    /// Takes `real`, the `count`th value, into mean and squares.
    fn spread(&mut self, real: f64) {
        let difference = real - self.first_real;
        let before = difference - self.mean;
        self.mean += before / as_double(self.count);
        self.squares += before * (difference - self.mean);
    }

    /// A statistic of at least one value.
    fn bits(&self, statistic: Statistic) -> u64 {
        let real = match statistic {
            Statistic::Count => return self.count,
            Statistic::Min => return self.min,
            Statistic::Max => return self.max,
            Statistic::First => return self.first,
            Statistic::Last => return self.last,
            Statistic::Sum => self.sum.value(),
            Statistic::Mean => self.sum.value() / as_double(self.count),
            Statistic::Twmean if self.weight == 0 => self.last_real,
            Statistic::Twmean => self.weighted.value() / as_double(self.weight),
            Statistic::Stddev if self.count < 2 => f64::NAN,
            Statistic::Stddev => libm::sqrt(self.squares / as_double(self.count - 1)),
        };
        if real.is_nan() { NAN_BITS } else { real.to_bits() }
    }
}

impl Sum {
    fn add(&mut self, value: f64) {
        let total = self.total + value;
        // What the addition lost, taken from the smaller of the two.
        self.error +=
            if self.total.abs() >= value.abs() { (self.total - total) + value } else { (value - total) + self.total };
        self.total = total;
    }

    fn value(self) -> f64 {
        // Once an infinity is in, the error is NaN and the plain sum right.
        if self.error.is_finite() { self.total + self.error } else { self.total }
    }
}

/// Compares two values of a type, neither of them NaN.
fn compare(ty: PointType, a: u64, b: u64) -> Ordering {
    #[expect(clippy::cast_possible_wrap, reason = "INT travels as the i64's own bits")]
    #[expect(clippy::cast_possible_truncation, reason = "FLOAT32 sits in the low 32 bits")]
    match ty {
        PointType::Bool | PointType::Int | PointType::Enum => (a as i64).cmp(&(b as i64)),
        PointType::Uint64 | PointType::String => a.cmp(&b),
        PointType::Float32 => {
            f32::from_bits(a as u32).partial_cmp(&f32::from_bits(b as u32)).unwrap_or(Ordering::Equal)
        }
        PointType::Float64 => f64::from_bits(a).partial_cmp(&f64::from_bits(b)).unwrap_or(Ordering::Equal),
    }
}

/// Exact up to 2^53: that many readings, or 104 days in nanoseconds.
#[expect(clippy::cast_precision_loss, reason = "rounded to the nearest double beyond 2^53")]
fn as_double(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    /// Everything a window gives, in the order of [`Statistic::ALL`], and the number folded.
    fn close(accumulator: &mut Accumulator, end: u64, partial: bool) -> (Vec<Sample>, u64) {
        let mut rows = Vec::new();
        let folded = accumulator.close(Mono::from_nanos(end), partial, &Statistic::ALL, &mut |statistic, sample| {
            assert_eq!(statistic, Statistic::ALL[rows.len()]);
            rows.push(sample);
        });
        (rows, folded)
    }

    fn real(rows: &[Sample], statistic: Statistic) -> f64 {
        f64::from_bits(bits(rows, statistic))
    }

    fn bits(rows: &[Sample], statistic: Statistic) -> u64 {
        match rows[statistic as usize].value {
            Value::Bits(bits) => bits,
            ref other => panic!("{statistic:?} is {other:?}"),
        }
    }

    fn window(values: &[(u64, f64)]) -> Accumulator {
        let mut accumulator = Accumulator::new(PointType::Float64, Scale::default());
        for &(nanos, value) in values {
            accumulator.add(Mono::from_nanos(nanos), &Sample::good(value.to_bits()));
        }
        accumulator
    }

    #[test]
    fn three_values() {
        let mut accumulator = window(&[(100, 2.0), (200, 4.0), (500, 9.0)]);
        assert_eq!(accumulator.readings(), 3);
        let (rows, folded) = close(&mut accumulator, 600, false);
        assert_eq!(folded, 3);
        assert!(rows.iter().all(|row| row.status == Status::Good));
        assert_eq!(bits(&rows, Statistic::Count), 3);
        for (statistic, expected) in [
            (Statistic::Min, 2.0),
            (Statistic::Max, 9.0),
            (Statistic::Mean, 5.0),
            (Statistic::Twmean, (2.0 * 100.0 + 4.0 * 300.0 + 9.0 * 100.0) / 500.0),
            (Statistic::Sum, 15.0),
            (Statistic::First, 2.0),
            (Statistic::Last, 9.0),
            (Statistic::Stddev, 13.0_f64.sqrt()),
        ] {
            assert_eq!(real(&rows, statistic), expected, "{statistic:?}");
        }
    }

    #[test]
    fn nothing_is_carried_into_the_next_window() {
        let mut accumulator = window(&[(0, 100.0)]);
        close(&mut accumulator, 1_000, false);
        assert_eq!(accumulator.readings(), 0);
        accumulator.add(Mono::from_nanos(1_500), &Sample::good(1.0_f64.to_bits()));
        let (rows, folded) = close(&mut accumulator, 2_000, false);
        assert_eq!((folded, real(&rows, Statistic::Twmean), real(&rows, Statistic::Max)), (1, 1.0, 1.0));
    }

    #[test]
    fn a_reading_of_any_status_ends_the_time_of_the_value_before() {
        let mut accumulator = window(&[(0, 10.0)]);
        accumulator.add(Mono::from_nanos(100), &Sample::bare(Status::CommFail));
        accumulator.add(Mono::from_nanos(900), &Sample::good(20.0_f64.to_bits()));
        let (rows, _) = close(&mut accumulator, 1_000, false);
        assert_eq!(real(&rows, Statistic::Twmean), 15.0, "100 ns of each; the 800 between count for nothing");
        assert!(rows.iter().all(|row| row.status == Status::Partial));
        assert_eq!(bits(&rows, Statistic::Count), 2);
    }

    #[test]
    fn without_weight_twmean_is_last() {
        let (rows, _) = close(&mut window(&[(0, 10.0), (0, 20.0), (50, 40.0)]), 50, false);
        assert_eq!(real(&rows, Statistic::Twmean), 20.0, "20 stood for 50 ns");
        let (rows, _) = close(&mut window(&[(50, 10.0), (50, 30.0)]), 50, false);
        assert_eq!(real(&rows, Statistic::Twmean), 30.0);
        let (rows, _) = close(&mut window(&[(50, 7.0)]), 20, false);
        assert_eq!(real(&rows, Statistic::Twmean), 7.0, "an end before the reading weighs nothing");
    }

    #[test]
    fn status_says_what_is_missing() {
        let value = Value::Bits(1.0_f64.to_bits());
        for (status, expected) in [
            (Status::Good, Status::Good),
            (Status::Uncertain, Status::Good),
            (Status::Stale, Status::Partial),
            (Status::OutOfRange, Status::Partial),
        ] {
            let mut accumulator = window(&[(0, 1.0)]);
            accumulator.add(Mono::ZERO, &Sample { status, value: value.clone() });
            assert_eq!(close(&mut accumulator, 9, false).0[0].status, expected, "{status:?}");
        }
        let (rows, _) = close(&mut window(&[(0, 1.0), (0, f64::NAN)]), 9, false);
        assert_eq!((rows[0].status, bits(&rows, Statistic::Count)), (Status::Partial, 1));
        assert_eq!(real(&rows, Statistic::Max), 1.0);
        assert_eq!(close(&mut window(&[(0, 1.0)]), 9, true).0[0].status, Status::Partial);
    }

    #[test]
    fn without_a_value_the_last_status_speaks() {
        let mut accumulator = window(&[]);
        assert_eq!(close(&mut accumulator, 1, false), ([const { Sample::bare(Status::DeviceError) }; 9].into(), 0));
        for status in [Status::DeviceError, Status::CommFail] {
            accumulator.add(Mono::ZERO, &Sample::bare(status));
        }
        accumulator.add(Mono::ZERO, &Sample { status: Status::Stale, value: Value::Bits(0) });
        assert_eq!(close(&mut accumulator, 1, true), ([const { Sample::bare(Status::CommFail) }; 9].into(), 3));
        accumulator.add(Mono::ZERO, &Sample::good(f64::NAN.to_bits()));
        assert_eq!(close(&mut accumulator, 1, false), ([const { Sample::bare(Status::DeviceError) }; 9].into(), 1));
    }

    #[test]
    fn one_value_has_no_deviation_and_every_nan_is_canonical() {
        let (rows, _) = close(&mut window(&[(0, 5.0)]), 9, false);
        assert_eq!((rows[8].status, bits(&rows, Statistic::Stddev)), (Status::Good, NAN_BITS));
        let (rows, _) = close(&mut window(&[(0, f64::INFINITY), (1, f64::NEG_INFINITY)]), 2, false);
        for statistic in [Statistic::Sum, Statistic::Mean, Statistic::Twmean, Statistic::Stddev] {
            assert_eq!(bits(&rows, statistic), NAN_BITS, "{statistic:?}");
        }
        let (rows, _) = close(&mut window(&[(0, f64::INFINITY), (1, 3.0)]), 2, false);
        assert_eq!(real(&rows, Statistic::Sum), f64::INFINITY);
        assert_eq!((real(&rows, Statistic::Min), real(&rows, Statistic::Max)), (3.0, f64::INFINITY));
    }

    #[test]
    fn scale_applies_to_what_is_real_and_only_there() {
        let mut accumulator = Accumulator::new(PointType::Int, Scale { exponent: 0, factor: -0.5, bias: 10.0 });
        for raw in [-4_i64, 6, 2] {
            accumulator.add(Mono::ZERO, &Sample::good(raw as u64));
        }
        let (rows, _) = close(&mut accumulator, 1, false);
        assert_eq!(bits(&rows, Statistic::Min), 6, "raw 6 is 7, the smallest real value");
        assert_eq!(bits(&rows, Statistic::Max), (-4_i64) as u64);
        assert_eq!(bits(&rows, Statistic::First), (-4_i64) as u64);
        assert_eq!(real(&rows, Statistic::Sum), 12.0 + 7.0 + 9.0);
    }

    #[test]
    fn equal_values_keep_the_first_and_its_bits() {
        let (rows, _) = close(&mut window(&[(0, -0.0), (1, 0.0)]), 2, false);
        assert_eq!(bits(&rows, Statistic::Min), (-0.0_f64).to_bits());
        assert_eq!(bits(&rows, Statistic::Max), (-0.0_f64).to_bits());
        assert_eq!(bits(&rows, Statistic::Last), 0);
    }

    /// A small linear congruential generator, so that a million values need no list.
    fn noise(state: &mut u64) -> i64 {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*state >> 40) as i64 - (1 << 23)
    }

    /// 10^6 values of 10^9 ± 4 in steps of 2^-21: what naive sums lose is 10^5 times what is asked for here.
    #[test]
    fn a_million_values_keep_their_digits() {
        const STEP: f64 = 1.0 / 2_097_152.0;
        let (mut accumulator, mut state) = (window(&[]), 20_261_125);
        let (mut sum, mut squares, mut weighted) = (0_i128, 0_i128, 0_i128);
        let count = 1_000_000_i128;
        for i in 0..1_000_000_u64 {
            let value = noise(&mut state);
            let nanos = i * 1_000 + i % 7;
            accumulator.add(Mono::from_nanos(nanos), &Sample::good((1e9 + value as f64 * STEP).to_bits()));
            sum += i128::from(value);
            squares += i128::from(value) * i128::from(value);
            let stood = if i == 999_999 { 1_000_000_000 - nanos } else { 1_000 + (i + 1) % 7 - i % 7 };
            weighted += i128::from(value) * i128::from(stood);
        }
        let (rows, _) = close(&mut accumulator, 1_000_000_000, false);
        let mean = 1e9 + sum as f64 / 1e6 * STEP;
        let twmean = 1e9 + weighted as f64 / 1e9 * STEP;
        let variance = (count * squares - sum * sum) as f64 / (count * (count - 1)) as f64;
        assert_eq!(bits(&rows, Statistic::Count), 1_000_000);
        assert_eq!(real(&rows, Statistic::Sum), 1e15 + sum as f64 * STEP);
        assert_eq!(real(&rows, Statistic::Mean), mean);
        assert!((real(&rows, Statistic::Twmean) - twmean).abs() <= 1.2e-7 * 2.0, "within two units in the last place");
        let stddev = variance.sqrt() * STEP;
        assert!((real(&rows, Statistic::Stddev) / stddev - 1.0).abs() < 1e-12);
    }

    /// A reading of the model: time since the one before in ns, kind, and a number.
    type Reading = (u64, u8, i64);

    fn sample(kind: u8, number: i64) -> Sample {
        match kind {
            0 => Sample::bare(Status::CommFail),
            1 => Sample::bare(Status::OutOfService),
            2 => Sample { status: Status::OutOfRange, value: Value::Bits(1e300_f64.to_bits()) },
            3 => Sample::good(f64::NAN.to_bits()),
            4 => Sample { status: Status::Uncertain, value: Value::Bits((number as f64 / 1_024.0).to_bits()) },
            _ => Sample::good((number as f64 / 1_024.0).to_bits()),
        }
    }

    fn readings() -> impl Strategy<Value = Vec<Reading>> {
        let number = prop_oneof![-20_i64..20, -(1_i64 << 40)..(1_i64 << 40), Just(1 << 52), Just(-(1 << 52))];
        proptest::collection::vec((0_u64..3_000_000_000, 0_u8..16, number), 0..60)
    }

    proptest! {
        /// Against the same statistics in exact integers, over several windows of the one accumulator.
        #[test]
        fn agrees_with_exact_integers(windows in proptest::collection::vec((readings(), 0_u64..1_000_000, any::<bool>()), 1..4)) {
            let mut accumulator = Accumulator::new(PointType::Float64, Scale::default());
            let mut now = 0;
            for (readings, rest, partial) in windows {
                // (number, nanoseconds it stood) of what counts.
                let mut counted: Vec<(i128, i128)> = Vec::new();
                let (mut stands, mut last_bare) = (false, None);
                for &(step, kind, number) in &readings {
                    if stands && let Some(last) = counted.last_mut() {
                        last.1 += i128::from(step);
                    }
                    now += step;
                    accumulator.add(Mono::from_nanos(now), &sample(kind, number));
                    stands = kind > 3;
                    if stands {
                        counted.push((i128::from(number), 0));
                    } else if kind < 2 {
                        last_bare = Some(sample(kind, 0).status);
                    }
                }
                now += rest;
                if stands && let Some(last) = counted.last_mut() {
                    last.1 += i128::from(rest);
                }
                let (rows, folded) = close(&mut accumulator, now, partial);
                prop_assert_eq!(folded, readings.len() as u64);
                prop_assert_eq!(rows.len(), 9);

                let n = counted.len() as i128;
                let status = match counted.len() {
                    0 => last_bare.unwrap_or(Status::DeviceError),
                    _ if partial || counted.len() < readings.len() => Status::Partial,
                    _ => Status::Good,
                };
                prop_assert!(rows.iter().all(|row| row.status == status), "{:?}", rows);
                if n == 0 {
                    prop_assert!(rows.iter().all(|row| row.value == Value::None));
                    continue;
                }
                let exact = |number: i128| number as f64 / 1_024.0;
                let numbers = || counted.iter().map(|c| c.0);
                prop_assert_eq!(bits(&rows, Statistic::Count), n as u64);
                prop_assert_eq!(real(&rows, Statistic::Min), exact(numbers().min().unwrap()));
                prop_assert_eq!(real(&rows, Statistic::Max), exact(numbers().max().unwrap()));
                prop_assert_eq!(real(&rows, Statistic::First), exact(counted[0].0));
                prop_assert_eq!(real(&rows, Statistic::Last), exact(counted[counted.len() - 1].0));
                let sum: i128 = numbers().sum();
                prop_assert_eq!(real(&rows, Statistic::Sum), exact(sum), "partial sums need up to 58 bits");
                prop_assert_eq!(real(&rows, Statistic::Mean), exact(sum) / n as f64);

                let weight: i128 = counted.iter().map(|c| c.1).sum();
                let twmean = real(&rows, Statistic::Twmean);
                if weight == 0 {
                    prop_assert_eq!(twmean, exact(counted[counted.len() - 1].0));
                } else {
                    let product: i128 = counted.iter().map(|c| c.0 * c.1).sum();
                    let size: i128 = counted.iter().map(|c| (c.0 * c.1).abs()).sum();
                    let allowed = 4.0 * f64::EPSILON * exact(size) / weight as f64;
                    prop_assert!((twmean - exact(product) / weight as f64).abs() <= allowed);
                }
                let stddev = real(&rows, Statistic::Stddev);
                if n == 1 {
                    prop_assert!(stddev.is_nan());
                } else {
                    let squares: i128 = numbers().map(|v| v * v).sum();
                    let variance = (n * squares - sum * sum) as f64 / (n * (n - 1)) as f64;
                    let expected = variance.sqrt() / 1_024.0;
                    prop_assert!((stddev - expected).abs() <= 1e-12 * expected, "{} for {}", stddev, expected);
                }
            }
        }

        /// min, max, first and last are readings that came, bit for bit, and ordered as numbers of their type.
        #[test]
        fn keeps_bits_of_every_type(
            ty in proptest::sample::select(&[PointType::Int, PointType::Uint64, PointType::Float32, PointType::Float64][..]),
            values in proptest::collection::vec(prop_oneof![any::<u64>(), 0_u64..3, Just(1 << 63)], 1..30),
        ) {
            let mut accumulator = Accumulator::new(ty, Scale::default());
            let mut counted: Vec<u64> = Vec::new();
            for &value in &values {
                let value = if ty == PointType::Float32 { value >> 32 } else { value };
                accumulator.add(Mono::ZERO, &Sample::good(value));
                if !Scale::default().real(ty, value).unwrap().is_nan() {
                    counted.push(value);
                }
            }
            let (rows, _) = close(&mut accumulator, 0, false);
            let Some(&first) = counted.first() else { return Ok(()) };
            // The order of the numbers, as integers of 65 bits or as doubles.
            let less = |a: u64, b: u64| match ty {
                PointType::Int => (a as i64) < b as i64,
                PointType::Uint64 => a < b,
                _ => Scale::default().real(ty, a) < Scale::default().real(ty, b),
            };
            let min = counted.iter().fold(first, |min, &value| if less(value, min) { value } else { min });
            let max = counted.iter().fold(first, |max, &value| if less(max, value) { value } else { max });
            prop_assert_eq!(bits(&rows, Statistic::Min), min);
            prop_assert_eq!(bits(&rows, Statistic::Max), max);
            prop_assert_eq!(bits(&rows, Statistic::First), first);
            prop_assert_eq!(bits(&rows, Statistic::Last), counted[counted.len() - 1]);
        }
    }
}
