//! Marks sentinels and values out of range: the first thing that happens to a decoded reading, before window and
//! deadband.
//!
//! A sentinel ("not available" as the maker wrote it, such as 0x8000) is no value: the reading becomes DEVICE_ERROR and
//! loses it (contract rule 10). A real value outside the valid range is shown, but marked OUT_OF_RANGE.
//!
//! Most points have neither, and this runs for every reading: such a point's mark is one null pointer, 8 bytes.

use alloc::boxed::Box;
use alloc::vec::Vec;

use tributary_protocols::reading::{Sample, Status};
use tributary_protocols::value::{PointType, Scale, Value};

use crate::model::Point;

/// The marks of one point. Stateless: built once from the configuration.
#[derive(Clone, Debug, Default)]
pub struct Mark(Option<Box<Checks>>);

/// What there is to check, for the points that have something.
#[derive(Clone, Debug)]
struct Checks {
    ty: PointType,
    scale: Scale,
    bad: Vec<u64>,
    valid: Option<(f64, f64)>,
}

impl Mark {
    /// The marks that `point` is configured with.
    #[must_use]
    pub fn new(point: &Point) -> Self {
        if point.bad.is_empty() && point.valid.is_none() {
            return Self(None);
        }
        Self(Some(Box::new(Checks { ty: point.ty, scale: point.scale, bad: point.bad.clone(), valid: point.valid })))
    }

    /// Marks `sample` where it stands.
    ///
    /// A value with exactly the bits of a sentinel becomes a bare DEVICE_ERROR, whatever its status was. Else a real
    /// value outside `[low, high]` makes GOOD or UNCERTAIN into OUT_OF_RANGE and keeps the value; both ends are inside,
    /// and a NaN is not, since it is not between them. Other statuses say something stronger already and stay. Text has
    /// neither sentinel nor range.
    #[inline]
    pub fn apply(&self, sample: &mut Sample) {
        if let Some(checks) = &self.0 {
            checks.apply(sample);
        }
    }
}

impl Checks {
    fn apply(&self, sample: &mut Sample) {
        let Value::Bits(bits) = sample.value else { return };
        if self.bad.contains(&bits) {
            *sample = Sample::bare(Status::DeviceError);
            return;
        }
        let (Some((low, high)), Status::Good | Status::Uncertain) = (self.valid, sample.status) else { return };
        if self.scale.real(self.ty, bits).is_some_and(|real| !(low <= real && real <= high)) {
            sample.status = Status::OutOfRange;
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use proptest::prelude::*;

    use super::*;
    use crate::filter::tests::point;

    fn marked(mark: &Mark, status: Status, bits: u64) -> Sample {
        let mut sample = Sample { status, value: Value::Bits(bits) };
        mark.apply(&mut sample);
        sample
    }

    #[test]
    fn nothing_configured_marks_nothing() {
        let mark = Mark::new(&point(PointType::Float64));
        assert_eq!(marked(&mark, Status::Good, f64::NAN.to_bits()), Sample::good(f64::NAN.to_bits()));
        assert_eq!(size_of::<Mark>(), size_of::<usize>());
    }

    #[test]
    fn a_sentinel_has_no_value() {
        let mut point = point(PointType::Int);
        point.bad = vec![0x7fff, (-32_768_i64) as u64];
        let mark = Mark::new(&point);
        for status in [Status::Good, Status::Uncertain, Status::Stale] {
            assert_eq!(marked(&mark, status, (-32_768_i64) as u64), Sample::bare(Status::DeviceError));
        }
        assert_eq!(marked(&mark, Status::Good, 0x8000), Sample::good(0x8000), "32768 is another number");
    }

    #[test]
    fn a_float_sentinel_is_its_very_bits() {
        let mut point = point(PointType::Float32);
        point.bad = vec![0x7fc0_0001];
        let mark = Mark::new(&point);
        assert_eq!(marked(&mark, Status::Good, 0x7fc0_0000), Sample::good(0x7fc0_0000), "another NaN");
        assert_eq!(marked(&mark, Status::Good, 0x7fc0_0001), Sample::bare(Status::DeviceError));
    }

    #[test]
    fn the_range_is_closed_and_of_the_real_value() {
        let mut point = point(PointType::Int);
        point.scale = Scale { exponent: -1, factor: 0.0, bias: 0.0 };
        point.valid = Some((0.0, 12.0));
        let mark = Mark::new(&point);
        for (raw, status) in [
            (-1_i64, Status::OutOfRange),
            (0, Status::Good),
            (12, Status::Good),
            (120, Status::Good),
            (121, Status::OutOfRange),
        ] {
            assert_eq!(marked(&mark, Status::Good, raw as u64), Sample { status, value: Value::Bits(raw as u64) });
        }
    }

    #[test]
    fn nan_is_not_in_the_range_and_stronger_statuses_stay() {
        let mut point = point(PointType::Float64);
        point.valid = Some((f64::NEG_INFINITY, f64::INFINITY));
        point.bad = vec![7];
        let mark = Mark::new(&point);
        assert_eq!(marked(&mark, Status::Uncertain, f64::NAN.to_bits()).status, Status::OutOfRange);
        assert_eq!(marked(&mark, Status::Uncertain, f64::INFINITY.to_bits()).status, Status::Uncertain);
        assert_eq!(marked(&mark, Status::Stale, f64::NAN.to_bits()).status, Status::Stale);
        let mut bare = Sample::bare(Status::CommFail);
        mark.apply(&mut bare);
        assert_eq!(bare, Sample::bare(Status::CommFail));
        let mut text = Sample { status: Status::Good, value: Value::Text("x".into()) };
        mark.apply(&mut text);
        assert_eq!(text.status, Status::Good);
    }

    proptest! {
        /// The invariant of `Sample` holds afterwards, and a value that stays keeps its bits.
        #[test]
        fn marks_never_invent(
            bits: u64,
            bad in proptest::collection::vec(any::<u64>(), 0..3),
            valid in proptest::option::of((any::<f64>(), any::<f64>())),
            hit: bool,
            float: bool,
        ) {
            let mut point = point(if float { PointType::Float64 } else { PointType::Uint64 });
            point.bad = bad;
            point.valid = valid;
            let bits = if hit { point.bad.first().copied().unwrap_or(bits) } else { bits };
            let sample = marked(&Mark::new(&point), Status::Good, bits);
            prop_assert_eq!(sample.status.has_value(), sample.value != Value::None);
            prop_assert_eq!(sample.value == Value::None, point.bad.contains(&bits));
            if sample.status.has_value() {
                prop_assert_eq!(&sample.value, &Value::Bits(bits));
                let real = if float { f64::from_bits(bits) } else { bits as f64 };
                let inside = valid.is_none_or(|(low, high)| real >= low && real <= high);
                prop_assert_eq!(sample.status == Status::Good, inside);
            }
        }
    }
}
