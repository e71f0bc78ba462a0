//! Counters: is it growth, a rollover, a reset, or no count at all?
//!
//! Meters show totals, and consumers book differences: one wrong sample is booked twice, as a spike and as its
//! recovery. So a sample of a point with `counter = true` is believed only if it can follow from the last one believed:
//!
//! - it **grew**, by no more than the counter can: `max_rate` if that is declared, else ten times the fastest growth seen
//!   of late (nothing is known before [`LEARNT`] growths: then any growth is believed);
//! - it **rolled over**: past `counter_modulus` it goes on as far as it can have grown. Without a bound it must come from
//!   the last tenth of its range into the first. Event `counter.rollover`.
//!
//! Anything else is suspicious: it loses its value, becomes DEVICE_ERROR, and stays visible as event
//! `counter.rejected` with what was read. What comes next decides. Back on the old line: it was a glitch. Further on the
//! new line, by growth or twice unchanged: the counter was **reset**, or jumped: event `counter.reset`, and its values
//! count again from there. On a line through both, it only grew faster than it ever had, and that is learnt.
//!
//! What is left: the first sample after a start has nothing to follow from, and without `max_rate` the next few have no
//! bound. A false suspicion costs one value, which the event shows.
//!
//! It comes after the mark and before window and deadband. Points that are no counters pay one null pointer. A counter
//! takes 112 bytes; it says at most one rejection in [`QUIET`], with how many there were.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use core::time::Duration;

use tributary_protocols::reading::{Sample, Status};
use tributary_protocols::time::Mono;
use tributary_protocols::value::{PointType, Value};

use crate::model::Point;

/// So many growths make a bound.
const LEARNT: u32 = 5;
/// What grew faster than this many times the fastest is suspicious.
const FACTOR: f64 = 10.0;
/// Shortest time between two events `counter.rejected` of a counter.
const QUIET: Duration = Duration::from_secs(60);
/// Stamps may be this wrong.
const SLACK: Duration = Duration::from_secs(1);
/// Samples on a new line without growth that make it the line.
const STILL: u32 = 3;

/// What became of a counter, for an event.
#[derive(Clone, Debug, PartialEq)]
pub struct Happened {
    /// `"counter.rollover"`, `"counter.reset"` or `"counter.rejected"`.
    pub code: &'static str,
    /// What was read, as the bits of [`Value::Bits`].
    pub bits: u64,
    /// From what, in raw numbers.
    pub text: String,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    raw: f64,
    at: Mono,
}

impl Seen {
    /// Growth a second from here, and how far.
    fn to(self, next: Self) -> (f64, f64) {
        let time = next.at.since(self.at).as_secs_f64();
        (next.raw - self.raw, time)
    }
}

#[derive(Clone, Copy, Debug)]
struct Suspect {
    seen: Seen,
    times: u32,
}

/// One counter.
#[derive(Clone, Debug)]
pub struct Counter {
    ty: PointType,
    /// 0 = unknown.
    modulus: f64,
    /// Most it can grow in a second, in raw numbers, if that is declared.
    most: Option<f64>,
    last: Option<Seen>,
    suspect: Option<Suspect>,
    /// Fastest growth a second, of late.
    fastest: f64,
    growths: u32,
    /// Rejections that no event told, and when the last one did.
    unsaid: u32,
    said: Option<Mono>,
}

impl Counter {
    /// The counter that `point` is, if it is one.
    #[must_use]
    pub fn new(point: &Point) -> Option<Box<Self>> {
        // A unit of the raw number in the point's unit.
        let real = |raw: u64| point.scale.real(PointType::Int, raw);
        let step = real(1).zip(real(0)).map(|(one, zero)| (one - zero).abs()).filter(|step| *step > 0.0);
        #[expect(clippy::cast_precision_loss, reason = "a bound for plausibility")]
        let modulus = point.counter_modulus as f64;
        point.counter.then(|| {
            Box::new(Self {
                ty: point.ty,
                modulus,
                most: point.max_rate.zip(step).map(|(rate, step)| rate / step),
                last: None,
                suspect: None,
                fastest: 0.0,
                growths: 0,
                unsaid: 0,
                said: None,
            })
        })
    }

    /// The same counter under a new configuration: what was learnt stays, if it still counts in the same way.
    pub fn inherit(&mut self, before: Self) {
        let bounds = |counter: &Self| (counter.ty, counter.modulus.to_bits(), counter.most.map(f64::to_bits));
        if bounds(self) == bounds(&before) {
            *self = before;
        }
    }

    /// What was read before is another matter now: it begins anew.
    pub fn forget(&mut self) {
        (self.last, self.suspect, self.fastest, self.growths) = (None, None, 0.0, 0);
    }

    /// Judges `sample` where it stands; what happened, if an event should tell.
    pub fn judge(&mut self, now: Mono, sample: &mut Sample) -> Option<Happened> {
        let Value::Bits(bits) = sample.value else { return None };
        let seen = Seen { raw: raw(self.ty, bits).filter(|raw| raw.is_finite())?, at: now };
        let Some(last) = self.last else {
            self.last = Some(seen);
            return None;
        };
        let (growth, time) = last.to(seen);
        if growth >= 0.0 && self.can_grow(growth, time) {
            self.believe(seen, Some((growth, time)));
            return None;
        }
        if self.rolls_over(last.raw, seen.raw, time) {
            self.believe(seen, None);
            return Some(Happened { code: "counter.rollover", bits, text: from_to(last, seen) });
        }
        self.suspect(last, seen, bits, sample)
    }

    /// Whether it can have grown by so much in `time` seconds.
    fn can_grow(&self, growth: f64, time: f64) -> bool {
        self.bound(time).is_none_or(|bound| growth <= bound)
    }

    /// The most it can grow in `time` seconds, if that is known. One more, for it may be read just before a step.
    fn bound(&self, time: f64) -> Option<f64> {
        let learnt = (self.growths >= LEARNT).then_some(self.fastest * FACTOR);
        self.most.or(learnt).map(|rate| rate * (time + SLACK.as_secs_f64()) + 1.0)
    }

    fn rolls_over(&self, last: f64, next: f64, time: f64) -> bool {
        if self.modulus == 0.0 || next >= last || last >= self.modulus {
            return false;
        }
        match self.bound(time) {
            Some(bound) => self.modulus - last + next <= bound,
            None => last > 0.9 * self.modulus && next < 0.1 * self.modulus,
        }
    }

    fn believe(&mut self, seen: Seen, grown: Option<(f64, f64)>) {
        if let Some((growth, time)) = grown.filter(|(growth, time)| *growth > 0.0 && *time > 0.0) {
            // Slowly forgotten: a bound that is too wide is as good as none.
            self.fastest = (self.fastest * 0.999).max(growth / time);
            self.growths = self.growths.saturating_add(1);
        }
        (self.last, self.suspect) = (Some(seen), None);
    }

    /// It follows from nothing believed: does it follow from what was suspicious before?
    fn suspect(&mut self, last: Seen, seen: Seen, bits: u64, sample: &mut Sample) -> Option<Happened> {
        let mut times = 1;
        if let Some(suspect) = self.suspect {
            let ((before, time_before), (growth, time)) = (last.to(suspect.seen), suspect.seen.to(seen));
            let steady = before > 0.0 && growth > 0.0 && growth * time_before <= 2.0 * before * time.max(1e-3);
            if steady && !self.can_grow(growth, time) {
                self.believe(seen, Some((growth, time)));
                return None;
            }
            if growth >= 0.0 && self.can_grow(growth, time) {
                times = suspect.times + 1;
                if growth > 0.0 || times >= STILL {
                    self.believe(seen, None);
                    return Some(Happened { code: "counter.reset", bits, text: from_to(last, seen) });
                }
            }
        }
        self.suspect = Some(Suspect { seen, times });
        *sample = Sample::bare(Status::DeviceError);
        self.unsaid += 1;
        if self.said.is_some_and(|said| seen.at.since(said) < QUIET) {
            return None;
        }
        self.said = Some(seen.at);
        let more = match core::mem::take(&mut self.unsaid) {
            0 | 1 => String::new(),
            times => format!("; {times} times"),
        };
        Some(Happened { code: "counter.rejected", bits, text: format!("{}{more}", from_to(last, seen)) })
    }
}

fn from_to(last: Seen, next: Seen) -> String {
    format!("from {} to {}", last.raw, next.raw)
}

#[expect(clippy::cast_precision_loss, reason = "plausibility needs no more than 53 bits")]
#[expect(clippy::cast_possible_wrap, reason = "INT travels as the i64's own bits")]
fn raw(ty: PointType, bits: u64) -> Option<f64> {
    match ty {
        PointType::Int => Some(bits as i64 as f64),
        PointType::Uint64 => Some(bits as f64),
        #[expect(clippy::cast_possible_truncation, reason = "FLOAT32 sits in the low 32 bits")]
        PointType::Float32 => Some(f64::from(f32::from_bits(bits as u32))),
        PointType::Float64 => Some(f64::from_bits(bits)),
        PointType::Bool | PointType::Enum | PointType::String => None,
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;
    use alloc::vec::Vec;

    use proptest::prelude::*;

    use super::*;
    use crate::filter::tests::point;

    fn counter(modulus: u64, max_rate: Option<f64>) -> Box<Counter> {
        let point = Point { counter: true, counter_modulus: modulus, max_rate, ..point(PointType::Int) };
        Counter::new(&point).expect("a counter")
    }

    /// One sample a second: what is believed (`None` = rejected), and the codes of the events.
    fn run(counter: &mut Counter, values: &[u64]) -> (Vec<Option<u64>>, Vec<&'static str>) {
        let mut events = Vec::new();
        let believed = values.iter().zip(1..).map(|(value, second)| {
            let mut sample = Sample::good(*value);
            events.extend(counter.judge(Mono::ZERO + Duration::from_secs(second), &mut sample).map(|event| event.code));
            sample.status.has_value().then_some(*value)
        });
        (believed.collect(), events)
    }

    #[test]
    fn a_glitch_is_rejected_and_its_recovery_is_no_spike() {
        let steady = [100, 101, 102, 103, 104, 105, 106];
        for glitch in [0, 50, 1_000_000] {
            let mut counter = counter(1 << 32, None);
            run(&mut counter, &steady);
            let mut sample = Sample::good(glitch);
            let event = counter.judge(Mono::ZERO + Duration::from_secs(8), &mut sample).expect("an event");
            assert_eq!(
                (event.code, event.bits, sample),
                ("counter.rejected", glitch, Sample::bare(Status::DeviceError))
            );
            let mut sample = Sample::good(108);
            assert_eq!(counter.judge(Mono::ZERO + Duration::from_secs(9), &mut sample), None);
            assert_eq!(sample, Sample::good(108));
        }
        // Without a bound yet, what falls is rejected all the same.
        assert_eq!(run(&mut counter(0, None), &[100, 0, 101]).0, [Some(100), None, Some(101)]);
    }

    #[test]
    fn a_rollover_goes_on() {
        let (believed, events) = run(&mut counter(65_536, Some(10.0)), &[65_530, 65_534, 2, 7]);
        assert_eq!(believed, [65_530, 65_534, 2, 7].map(Some));
        assert_eq!(events, ["counter.rollover"]);
        assert_eq!(run(&mut counter(65_536, None), &[65_530, 2, 7]).1, ["counter.rollover"]);
        // Not from the middle; and not where nobody said that it rolls over.
        assert_eq!(run(&mut counter(65_536, None), &[30_000, 2]).0, [Some(30_000), None]);
        assert_eq!(run(&mut counter(0, None), &[65_535, 2]).0, [Some(65_535), None]);
        assert_eq!(run(&mut counter(65_536, Some(10.0)), &[60_000, 2]).0, [Some(60_000), None]);
    }

    #[test]
    fn a_reset_is_believed_once_it_is_confirmed() {
        let (believed, events) = run(&mut counter(0, None), &[1_000, 1_001, 0, 1, 2]);
        assert_eq!(believed, [Some(1_000), Some(1_001), None, Some(1), Some(2)]);
        assert_eq!(events, ["counter.rejected", "counter.reset"]);
        // A machine that stands still after it.
        let (believed, events) = run(&mut counter(0, None), &[1_000, 0, 0, 0, 0]);
        assert_eq!(believed, [Some(1_000), None, None, Some(0), Some(0)]);
        assert_eq!(events, ["counter.rejected", "counter.reset"]);
        // Two zeroes are no reset.
        assert_eq!(run(&mut counter(0, None), &[1_000, 0, 0, 1_002]).0, [Some(1_000), None, None, Some(1_002)]);
    }

    #[test]
    fn faster_growth_is_learnt_and_time_without_answers_counts() {
        let mut slow: Vec<u64> = (0..20).collect();
        slow.extend([519, 1_019, 1_519, 2_019]);
        let (believed, events) = run(&mut counter(0, None), &slow);
        assert_eq!(believed.iter().filter(|value| value.is_none()).count(), 1, "{believed:?}");
        assert_eq!(events, ["counter.rejected"]);
        let mut counter = counter(0, Some(1.0));
        run(&mut counter, &[1, 2]);
        let mut sample = Sample::good(3_000);
        assert_eq!(counter.judge(Mono::ZERO + Duration::from_secs(3_600), &mut sample), None, "an hour later");
        let mut bare = Sample::bare(Status::CommFail);
        assert_eq!(counter.judge(Mono::ZERO + Duration::from_secs(3_601), &mut bare), None);
        assert_eq!(bare, Sample::bare(Status::CommFail));
    }

    #[test]
    fn the_bound_is_in_the_points_unit() {
        let scale = tributary_protocols::value::Scale { exponent: -1, ..Default::default() };
        let point = Point { counter: true, max_rate: Some(1.0), scale, ..point(PointType::Int) };
        let mut counter = Counter::new(&point).expect("a counter");
        assert_eq!(run(&mut counter, &[100, 110, 130, 200]).0, [Some(100), Some(110), Some(130), None], "10 a second");
    }

    #[test]
    fn a_noisy_counter_says_so_once_a_minute() {
        let mut counter = counter(0, Some(1.0));
        run(&mut counter, &[100_000]);
        let noise: Vec<u64> = (0..120).map(|n| if n % 2 == 0 { n } else { 90_000 - n * 7 }).collect();
        let mut events = vec![];
        for (value, second) in noise.iter().zip(2..) {
            events.extend(counter.judge(Mono::ZERO + Duration::from_secs(second), &mut Sample::good(*value)));
        }
        let rejected = events.iter().filter(|event| event.code == "counter.rejected").count();
        assert!(rejected <= 3, "{events:?}");
    }

    proptest! {
        /// A meter that grows by at most 20 a second, rolls over, glitches at any time: what is believed and booked as
        /// differences is what it counted.
        #[test]
        fn what_is_booked_is_what_was_counted(
            steps in proptest::collection::vec((0_u64..20, 0_u8..20, 0_u64..65_536), 10..300),
            start in 0_u64..65_536,
        ) {
            let mut counter = counter(65_536, Some(20.0));
            let (mut total, mut booked, mut last) = (start, 0, None);
            let mut noise = 0;
            for ((step, glitch, wrong), second) in steps.into_iter().zip(1..) {
                total += step;
                // Never two in a row, and never the first.
                let glitched = glitch == 0 && noise == 0 && second > 1;
                noise = u8::from(glitched);
                // What is near the truth cannot be told from it.
                let far = (1_000..64_536).contains(&((wrong + 65_536 - total % 65_536) % 65_536));
                let shown = if glitched && far { wrong } else { total % 65_536 };
                let mut sample = Sample::good(shown);
                counter.judge(Mono::ZERO + Duration::from_secs(second), &mut sample);
                if sample.status.has_value() {
                    booked += last.map_or(total - start, |last| (shown + 65_536 - last) % 65_536);
                    last = Some(shown);
                    prop_assert_eq!(start + booked, total, "second {}", second);
                }
            }
        }
    }
}
