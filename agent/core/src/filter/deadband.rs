//! Withholds what hardly changed: stands after the window, before the batch, for points that are sent by deadband.
//!
//! A deadband compares with the last reading that was *sent*, never with the last one seen, so a slow drift cannot pass
//! unnoticed: the centre is never further off than the band. What it withholds is no longer a trace of a poll; contract
//! rule 10 allows that. In return the rules that keep the picture at the centre honest come before the band itself:
//!
//! 1. The first reading after a start passes: the state is not kept across restarts.
//! 2. A change of status passes, both ways, so the end of good values is always told.
//! 3. When the heartbeat has passed since the last one sent, the next reading passes, whatever it is.
//! 4. Without a value nothing else passes: a dead device is one reading per heartbeat.
//! 5. With a value: |real − sent| > band. Equal to the band is withheld; a band of 0 passes any change, of an integer
//!    also those too small for a double. From number to NaN, to an infinity, and back passes; from one NaN to another
//!    does not. BOOL, ENUM and STRING have no distance: any change passes.
//!
//! Where the arithmetic gives no answer (a band that is NaN, values near 1.8 · 10^308) the reading passes: to send too
//! much is the harmless error.

use core::time::Duration;

use tributary_protocols::reading::Sample;
use tributary_protocols::time::Mono;
use tributary_protocols::value::{PointType, Value};

use super::Verdict;
use crate::model::{self, Point};

/// The deadband of one point and what it sent last.
#[derive(Clone, Debug)]
pub struct Deadband {
    band: Band,
    heartbeat: Option<Duration>,
    sent: Option<Sent>,
}

/// What counts as a change of value.
#[derive(Clone, Copy, Debug)]
enum Band {
    /// Any other value: the type has no distance, or it is an integer with a band of 0.
    Any,
    /// Further than this in the point's unit.
    Absolute(f64),
    /// Further than this many percent of the magnitude of the value sent last.
    Percent(f64),
}

/// The last reading that passed.
#[derive(Clone, Debug)]
struct Sent {
    at: Mono,
    real: Option<f64>,
    sample: Sample,
}

impl Deadband {
    /// The deadband that `point` is configured with, with nothing sent yet; `None` if it has none. All readings of such
    /// a point are sent, and a heartbeat has nothing to add.
    #[must_use]
    pub fn new(point: &Point) -> Option<Self> {
        let band = match point.deadband {
            model::Deadband::None => return None,
            model::Deadband::Absolute(band) => Band::Absolute(band),
            model::Deadband::Percent(percent) => Band::Percent(percent),
        };
        let integer = matches!(point.ty, PointType::Int | PointType::Uint64);
        let band = match (point.ty, band) {
            (PointType::Bool | PointType::Enum | PointType::String, _) => Band::Any,
            (_, Band::Absolute(0.0) | Band::Percent(0.0)) if integer => Band::Any,
            (_, band) => band,
        };
        Some(Self { band, heartbeat: point.heartbeat, sent: None })
    }

    /// The same point under a new configuration: what was sent stays sent.
    pub fn inherit(&mut self, before: Self) {
        self.sent = before.sent;
    }

    /// What was sent before is another matter now: the next reading passes.
    pub fn forget(&mut self) {
        self.sent = None;
    }

    /// Judges one reading that arrived at `now`: the sample as marked, and its real value by
    /// [`Scale::real`](tributary_protocols::value::Scale::real), `None` if it has no number.
    pub fn admit(&mut self, now: Mono, real: Option<f64>, sample: &Sample) -> Verdict {
        if let Some(sent) = &self.sent {
            let due = self.heartbeat.is_some_and(|heartbeat| now.since(sent.at) >= heartbeat);
            if !due && sample.status == sent.sample.status && !self.band.changed(sent, real, &sample.value) {
                return Verdict::Withhold;
            }
        }
        self.sent = Some(Sent { at: now, real, sample: sample.clone() });
        Verdict::Pass
    }
}

impl Band {
    fn changed(self, sent: &Sent, real: Option<f64>, value: &Value) -> bool {
        let (Some(old), Some(new)) = (sent.real, real) else { return *value != sent.sample.value };
        if let Self::Any = self {
            return *value != sent.sample.value;
        }
        if !(old.is_finite() && new.is_finite()) {
            return !(old == new || old.is_nan() && new.is_nan());
        }
        // Multiplied rather than divided: with whole numbers both sides are exact, and so is the boundary.
        let (change, band) = match self {
            Self::Any | Self::Absolute(0.0) | Self::Percent(0.0) => return old != new,
            Self::Absolute(band) => ((new - old).abs(), band),
            Self::Percent(percent) => ((new - old).abs() * 100.0, old.abs() * percent),
        };
        old != new && !(change <= band && band.is_finite())
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use proptest::prelude::*;
    use tributary_protocols::reading::Status;
    use tributary_protocols::value::Scale;

    use super::*;
    use crate::filter::tests::point;

    fn deadband(ty: PointType, band: model::Deadband, heartbeat_ms: Option<u64>) -> Deadband {
        let mut point = point(ty);
        point.deadband = band;
        point.heartbeat = heartbeat_ms.map(Duration::from_millis);
        Deadband::new(&point).expect("a deadband is configured")
    }

    fn passes(filter: &mut Deadband, ms: u64, sample: &Sample, ty: PointType) -> bool {
        let real = match sample.value {
            Value::Bits(bits) => Scale::default().real(ty, bits),
            _ => None,
        };
        filter.admit(Mono::from_millis(ms), real, sample) == Verdict::Pass
    }

    fn float(filter: &mut Deadband, ms: u64, value: f64) -> bool {
        passes(filter, ms, &Sample::good(value.to_bits()), PointType::Float64)
    }

    #[test]
    fn no_deadband_is_none() {
        let mut point = point(PointType::Int);
        point.heartbeat = Some(Duration::from_secs(1));
        assert!(Deadband::new(&point).is_none());
    }

    #[test]
    fn equal_to_the_band_is_withheld_and_drift_adds_up() {
        let mut filter = deadband(PointType::Float64, model::Deadband::Absolute(0.5), None);
        assert!(float(&mut filter, 0, 10.0));
        assert!(!float(&mut filter, 1, 10.5));
        assert!(!float(&mut filter, 2, 9.5));
        assert!(float(&mut filter, 3, 10.75), "measured from 10, the last one sent");
        assert!(!float(&mut filter, 4, 10.25));
        assert!(!float(&mut filter, 5, 11.25));
        assert!(float(&mut filter, 6, 11.375));
    }

    #[test]
    fn percent_is_of_the_last_sent_magnitude() {
        let mut filter = deadband(PointType::Float64, model::Deadband::Percent(10.0), None);
        assert!(float(&mut filter, 0, -70.0));
        assert!(!float(&mut filter, 1, -77.0));
        assert!(!float(&mut filter, 2, -63.0));
        assert!(float(&mut filter, 3, -77.1));
        assert!(float(&mut filter, 4, 0.0));
        assert!(!float(&mut filter, 5, -0.0), "no change");
        assert!(float(&mut filter, 6, 1e-300), "of 0 any change");
    }

    #[test]
    fn zero_passes_any_change_even_beyond_doubles() {
        let mut filter = deadband(PointType::Int, model::Deadband::Absolute(0.0), None);
        let big = 1_u64 << 60;
        assert!(passes(&mut filter, 0, &Sample::good(big), PointType::Int));
        assert!(!passes(&mut filter, 1, &Sample::good(big), PointType::Int));
        assert!(passes(&mut filter, 2, &Sample::good(big + 1), PointType::Int));
    }

    #[test]
    fn not_a_number_and_infinities() {
        for band in [model::Deadband::Absolute(1e300), model::Deadband::Percent(50.0)] {
            let mut filter = deadband(PointType::Float64, band, None);
            for (value, expected) in [
                (1.0, true),
                (f64::NAN, true),
                (-f64::NAN, false),
                (2.0, true),
                (f64::INFINITY, true),
                (f64::INFINITY, false),
                (f64::NEG_INFINITY, true),
                (3.0, true),
                (3.0, false),
            ] {
                assert_eq!(float(&mut filter, 0, value), expected, "{value} with {band:?}");
            }
        }
    }

    #[test]
    fn a_dead_device_is_told_once_and_by_heartbeat() {
        let mut filter = deadband(PointType::Float64, model::Deadband::Absolute(1.0), Some(1_000));
        let dead = Sample::bare(Status::CommFail);
        assert!(float(&mut filter, 0, 5.0));
        assert!(passes(&mut filter, 100, &dead, PointType::Float64));
        assert!(!passes(&mut filter, 200, &dead, PointType::Float64));
        assert!(!passes(&mut filter, 1_099, &dead, PointType::Float64));
        assert!(passes(&mut filter, 1_100, &dead, PointType::Float64), "heartbeat");
        assert!(passes(&mut filter, 1_200, &Sample::bare(Status::DeviceError), PointType::Float64));
        assert!(float(&mut filter, 1_300, 5.0), "back, and the same value as before is told again");
        assert!(!float(&mut filter, 2_299, 5.5));
        assert!(float(&mut filter, 2_300, 5.5), "heartbeat");
        assert!(!float(&mut filter, 2_400, 6.5), "what the heartbeat sent is what counts from now on");
    }

    #[test]
    fn bools_enums_and_texts_pass_any_change() {
        for ty in [PointType::Bool, PointType::Enum] {
            let mut filter = deadband(ty, model::Deadband::Absolute(10.0), None);
            assert!(passes(&mut filter, 0, &Sample::good(0), ty));
            assert!(!passes(&mut filter, 1, &Sample::good(0), ty));
            assert!(passes(&mut filter, 2, &Sample::good(1), ty));
        }
        let mut filter = deadband(PointType::String, model::Deadband::Percent(10.0), None);
        let text = |text: &str| Sample { status: Status::Good, value: Value::Text(text.into()) };
        assert!(passes(&mut filter, 0, &text("a"), PointType::String));
        assert!(!passes(&mut filter, 1, &text("a"), PointType::String));
        assert!(passes(&mut filter, 2, &text("b"), PointType::String));
    }

    #[test]
    fn no_band_that_makes_sense_passes_every_change() {
        for band in [f64::NAN, f64::INFINITY, -1.0] {
            let mut filter = deadband(PointType::Float64, model::Deadband::Absolute(band), None);
            assert!(float(&mut filter, 0, 1.0));
            assert!(!float(&mut filter, 1, 1.0));
            assert!(float(&mut filter, 2, 1.5));
        }
        let mut filter = deadband(PointType::Float64, model::Deadband::Percent(200.0), None);
        assert!(float(&mut filter, 0, f64::MAX));
        assert!(float(&mut filter, 1, f64::MIN), "overflow passes");
    }

    /// One reading of the property test: time after the last one, status and value.
    fn readings() -> impl Strategy<Value = Vec<(u64, u8, i16)>> {
        proptest::collection::vec((0_u64..400, 0_u8..6, -8_i16..8), 1..200)
    }

    proptest! {
        /// Whatever arrives, what the centre holds is never wrong by more than the band, never of another status, and
        /// never older than the heartbeat when a reading came; and nothing passes without a reason.
        #[test]
        fn the_centre_is_never_further_off_than_the_band(
            readings in readings(), quarters in 0_u8..12, percent: bool, heartbeat in proptest::option::of(1_u64..2_000)
        ) {
            let limit = f64::from(quarters) / 4.0;
            let band = if percent { model::Deadband::Percent(limit * 20.0) } else { model::Deadband::Absolute(limit) };
            let mut filter = deadband(PointType::Float64, band, heartbeat);
            let mut ms = 0;
            let mut centre: Option<(u64, Sample)> = None;
            for (step, status, value) in readings {
                ms += step;
                let sample = match status {
                    0 => Sample::bare(Status::CommFail),
                    1 => Sample::bare(Status::DeviceError),
                    2 => Sample { status: Status::Stale, value: Value::Bits(f64::from(value).to_bits()) },
                    3 => Sample::good(f64::NAN.to_bits()),
                    _ => Sample::good((f64::from(value) / 4.0).to_bits()),
                };
                let reason = centre.as_ref().is_none_or(|(at, last)| {
                    let far = match (&last.value, &sample.value) {
                        (Value::Bits(a), Value::Bits(b)) => {
                            let (a, b) = (f64::from_bits(*a), f64::from_bits(*b));
                            let allowed = if percent { a.abs() * (limit / 5.0) } else { limit };
                            a.is_nan() != b.is_nan() || (a - b).abs() > allowed + 1e-12
                        }
                        _ => false,
                    };
                    last.status != sample.status || heartbeat.is_some_and(|h| ms - at >= h) || far
                });
                let passed = passes(&mut filter, ms, &sample, PointType::Float64);
                prop_assert_eq!(passed, reason);
                if passed {
                    centre = Some((ms, sample));
                }
            }
        }
    }
}
