//! Points whose scale stands in another register of their device (SunSpec's scale factors): real = raw · scale · 10^e.
//!
//! What an id means never changes (contract rule 12), so each exponent makes a point of its own, under the same name:
//! it is added to the catalogue when the device first shows that exponent, and found again when it comes back. A value
//! goes to the point of the exponent in force; one whose exponent is not known goes nowhere: it loses its value and
//! takes the status of its factor, under the point as configured.
//!
//! - The factor of the same answer counts, wherever in it it stands; else the last one read. One that was not read since
//!   the start, or whose last poll failed, is not known: nothing says that the device is still the same.
//! - These points are in no group, at most 21 of each are made, and lists of points would be made for all their
//!   combinations. They travel as points on their own clock; a change of scale ends their deadband, begins
//!   their count anew, and makes the summaries of that window PARTIAL.
//! - All points that stand for one are one poll set, that of the point as configured.
//!
//! A request without such points pays one comparison a poll.

use alloc::boxed::Box;
use alloc::vec::Vec;

use tributary_protocols::reading::{Poll, Status};
use tributary_protocols::time::{Mono, Wall};
use tributary_protocols::value::{Value, exponent};

use super::{Intake, sample};
use crate::batch::Batcher;
use crate::catalog::Catalog;
use crate::model::{self, PointKey};

/// A point that brings an exponent.
#[derive(Debug)]
pub(super) struct Factor {
    /// Its exponent, or the status that stands for it.
    now: Result<i32, Status>,
    /// The points that it scales, as configured.
    scaled: Vec<PointKey>,
}

/// Of a point as configured: the points that stand for it.
#[derive(Debug)]
pub(super) struct Scaled {
    configured: model::Point,
    /// By exponent, as they were first seen.
    made: Vec<(i32, PointKey)>,
    /// What its readings go to now: a point, or nothing but this status.
    pub(super) current: Result<PointKey, Status>,
}

impl Scaled {
    pub(super) fn new(point: &model::Point) -> Option<Box<Self>> {
        point.scale_from?;
        Some(Box::new(Self { configured: point.clone(), made: Vec::new(), current: Err(Status::CommFail) }))
    }
}

impl Intake {
    /// Notes which points scale which.
    pub(super) fn add_factors(&mut self, points: &[model::Point]) {
        for (index, point) in points.iter().enumerate() {
            let Some(factor) = point.scale_from else { continue };
            let key = PointKey(u32::try_from(index).unwrap_or(u32::MAX));
            let entry = self.factors.entry(factor).or_insert(Factor { now: Err(Status::CommFail), scaled: Vec::new() });
            entry.scaled.push(key);
        }
    }

    /// Takes the factors out of a poll before its values are looked at. Whether the catalogue was added to.
    pub fn handle_factors(
        &mut self,
        poll: &Poll,
        catalog: &mut Catalog,
        batcher: &mut Batcher,
        now: Mono,
        wall: Wall,
    ) -> bool {
        let Some(request) = self.requests.get(poll.request as usize) else { return false };
        if request.factors.is_empty() {
            return false;
        }
        let factors = request.factors.clone();
        let mut added = false;
        for (index, key) in factors {
            let Some(point) = self.points.get(key.0 as usize) else { continue };
            let mut sample = sample(&poll.outcome, index as usize);
            point.mark.apply(&mut sample);
            let found = if let Value::Bits(bits) = sample.value { exponent(bits) } else { None };
            let status = if sample.status.has_value() { Status::TypeError } else { sample.status };
            let found = found.ok_or(status);
            let Some(factor) = self.factors.get_mut(&key) else { continue };
            if factor.now == found {
                continue;
            }
            factor.now = found;
            for scaled in factor.scaled.clone() {
                added |= self.rescale(scaled, found, catalog, batcher, now, wall);
            }
        }
        added
    }

    /// The factor was read before under another configuration.
    pub(super) fn inherit_factor(
        &mut self,
        key: PointKey,
        before: &Factor,
        catalog: &mut Catalog,
        batcher: &mut Batcher,
        now: Mono,
        wall: Wall,
    ) {
        let Some(factor) = self.factors.get_mut(&key) else { return };
        factor.now = before.now;
        for scaled in factor.scaled.clone() {
            self.rescale(scaled, before.now, catalog, batcher, now, wall);
        }
    }

    /// From now on readings of this point go where its factor says. Whether the catalogue was added to.
    fn rescale(
        &mut self,
        key: PointKey,
        exponent: Result<i32, Status>,
        catalog: &mut Catalog,
        batcher: &mut Batcher,
        now: Mono,
        wall: Wall,
    ) -> bool {
        let Some(point) = self.points.get(key.0 as usize) else { return false };
        let (set, Some(scaled)) = (point.set, &point.scaled) else { return false };
        let known = exponent.map(|e| (e, scaled.made.iter().find(|(made, _)| *made == e).map(|(_, key)| *key)));
        let mut added = false;
        let current = match known {
            Err(status) => Err(status),
            Ok((_, Some(made))) => Ok(made),
            Ok((e, None)) => {
                let configured = &scaled.configured;
                let scale = configured.scale.times_ten_to(configured.ty, e);
                let made = model::Point { scale, scale_from: None, ..configured.clone() };
                added = true;
                // No wider than one point can be: it fits.
                self.declare(&made, catalog, batcher, now, wall).map_err(|_| Status::TypeError)
            }
        };
        if let Ok(made) = current
            && let Some(point) = self.points.get_mut(made.0 as usize)
        {
            point.set = set;
            if let Some(counter) = &mut point.counter {
                counter.forget();
            }
            if let Some(deadband) = &mut point.deadband {
                deadband.forget();
            }
        }
        let Some(point) = self.points.get_mut(key.0 as usize) else { return added };
        if let Some(deadband) = &mut point.deadband {
            deadband.forget();
        }
        let Some(scaled) = &mut point.scaled else { return added };
        if let (Ok((e, None)), Ok(made)) = (known, current) {
            scaled.made.push((e, made));
        }
        let before = core::mem::replace(&mut scaled.current, current);
        // Readings of one window are in two places now.
        for changed in [before, current] {
            self.miss_window(changed.unwrap_or(key));
        }
        added
    }

    /// The window of that point is not whole.
    fn miss_window(&mut self, key: PointKey) {
        let window = self.points.get(key.0 as usize).and_then(|point| point.window);
        if let Some(windows) = window.and_then(|(group, _)| self.windows.get_mut(group as usize)) {
            windows.missed = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::collections::VecDeque;
    use alloc::string::String;
    use alloc::vec;
    use core::time::Duration;

    use tributary_proto::pb;
    use tributary_proto::pb::loss::Reason;
    use tributary_protocols::reading::{Outcome, Sample, StampedBy};
    use tributary_protocols::value::{PointType, Scale};

    use super::*;
    use crate::filter::tests::point;
    use crate::intake::Books;
    use crate::intake::windows::tests::summaries;
    use crate::ledger::Ledger;
    use crate::losses::Losses;
    use crate::model::{Deadband as Band, Device, Model, Request};

    struct Rig {
        catalog: Catalog,
        batcher: Batcher,
        intake: Intake,
        ledger: Ledger,
        losses: Losses,
    }

    /// Request 0: a value, its factor, a point of no factor; request 1: a value with a deadband and the same factor.
    fn rig(catalog: Catalog) -> Rig {
        let named = |name: &str| model::Point { name: String::from(name), ..point(PointType::Int) };
        let tenth = Scale { exponent: -1, ..Scale::default() };
        let scaled = |name: &str| model::Point { scale_from: Some(PointKey(1)), scale: tenth, ..named(name) };
        let model = Model {
            devices: vec![Device { name: "d".into(), ..Device::default() }],
            points: vec![
                model::Point { valid: Some((0.0, 500.0)), ..scaled("v") },
                model::Point { bad: vec![-32_768_i64 as u64], ..named("sf") },
                named("other"),
                model::Point { deadband: Band::Absolute(1.0), ..scaled("w") },
            ],
            requests: vec![
                Request { device: 0, points: vec![PointKey(0), PointKey(1), PointKey(2)], period_ms: 1_000 },
                Request { device: 0, points: vec![PointKey(3)], period_ms: 1_000 },
            ],
        };
        let mut catalog = catalog;
        let mut batcher = Batcher::new(crate::batch::Config { max_age: Duration::from_secs(1), max_bytes: 48 * 1024 });
        let intake = Intake::new(&model, &mut catalog, &mut batcher, Mono::ZERO, Wall(0)).expect("a model");
        catalog.close();
        Rig { catalog, batcher, intake, ledger: Ledger::default(), losses: Losses::default() }
    }

    impl Rig {
        /// Takes a poll; gives id, real value (by the catalogue) and status of what goes out on its own clock.
        fn poll(&mut self, request: u32, outcome: Outcome) -> Vec<(u32, Option<f64>, Status)> {
            let poll = Poll { request, at: Wall(1), outcome };
            let Self { catalog, batcher, intake, ledger, losses } = self;
            intake.handle_factors(&poll, catalog, batcher, Mono::ZERO, Wall(1));
            let books = Books { ledger, losses, batcher, overrun: Reason::Overrun };
            intake.handle_poll(Mono::ZERO, &poll, true, true, books);
            catalog.close();
            let entries = entries(catalog);
            core::iter::from_fn(|| batcher.pop_event(StampedBy::Agent))
                .map(|reading| {
                    let (id, ty) = intake.point(reading.point);
                    let entry = entries.iter().find(|entry| entry.id == id).expect("in the catalogue");
                    let scale = Scale { exponent: entry.exponent, factor: entry.factor, bias: entry.bias };
                    let real = scale.real(ty, reading.bits).filter(|_| reading.status.has_value());
                    (id, real, reading.status)
                })
                .collect()
        }

        fn values(&mut self, value: u64, factor: i64) -> Vec<(u32, Option<f64>, Status)> {
            let samples = [value, factor as u64, 7].map(Sample::good).to_vec();
            self.poll(0, Outcome::Samples(samples))
        }
    }

    fn entries(catalog: &Catalog) -> Vec<pb::Point> {
        use prost::Message;
        let message = pb::Catalog::decode(catalog.message()).expect("a message");
        let content = tributary_proto::catalog::content_bytes(&message).expect("inflates");
        tributary_proto::catalog::content(&content).expect("reads").points
    }

    #[test]
    fn each_exponent_is_a_point_of_its_own_and_comes_back_to_it() {
        let mut rig = rig(Catalog::new(1));
        let first = rig.values(2_300, 0);
        assert_eq!(first.len(), 1, "the factor and the other point are in their group");
        assert_eq!((first[0].1, first[0].2), (Some(230.0), Status::Good));
        let second = rig.values(23, 2);
        assert_eq!((second[0].1, second[0].2), (Some(230.0), Status::Good), "the factor of the same answer counts");
        assert_ne!(second[0].0, first[0].0, "another meaning is another id");
        assert_eq!(rig.values(2_301, 0)[0].0, first[0].0, "it is back");
        assert_eq!(rig.values(99, 2)[0].2, Status::OutOfRange, "990 V, by the scale in force");
        assert_eq!(entries(&rig.catalog).iter().filter(|entry| entry.name == "v").count(), 2, "{:?}", rig.catalog);
        // After a restart nothing is known, and the ids are the same.
        let stored = rig.catalog.message().to_vec();
        let mut rig = self::rig(Catalog::restore(stored).expect("reads"));
        assert_eq!(rig.poll(1, Outcome::Samples(vec![Sample::good(5)]))[0].2, Status::CommFail);
        assert_eq!(rig.values(2_300, 0)[0].0, first[0].0);
    }

    #[test]
    fn a_value_without_its_scale_takes_the_status_of_the_factor() {
        let mut rig = rig(Catalog::new(1));
        for (factor, status) in [(-32_768, Status::DeviceError), (11, Status::TypeError), (-11, Status::TypeError)] {
            let found = rig.values(2_300, factor);
            assert_eq!((found[0].1, found[0].2), (None, status), "{factor}");
        }
        rig.values(2_300, 0);
        assert_eq!(
            rig.poll(1, Outcome::Samples(vec![Sample::good(50)]))[0].1,
            Some(5.0),
            "by another request's factor"
        );
        let failed = rig.poll(0, Outcome::All(Status::CommFail));
        assert_eq!((failed[0].1, failed[0].2), (None, Status::CommFail));
        assert_eq!(rig.poll(1, Outcome::Samples(vec![Sample::good(50)]))[0].2, Status::CommFail, "unknown again");
        assert_eq!(rig.ledger.admitted, 3 * 3 + 3 + 1 + 3 + 1);
    }

    #[test]
    fn a_change_of_scale_passes_the_deadband() {
        let mut rig = rig(Catalog::new(1));
        rig.values(1, 0);
        let sent = |rig: &mut Rig, value| rig.poll(1, Outcome::Samples(vec![Sample::good(value)])).len();
        assert_eq!([sent(&mut rig, 100), sent(&mut rig, 101)], [1, 0]);
        rig.values(1, 1);
        assert_eq!([sent(&mut rig, 10), sent(&mut rig, 10)], [1, 0]);
        rig.values(1, 0);
        assert_eq!([sent(&mut rig, 100), sent(&mut rig, 100)], [1, 0], "though 100 was the last that this id sent");
        rig.poll(0, Outcome::All(Status::CommFail));
        assert_eq!([sent(&mut rig, 100), sent(&mut rig, 100)], [1, 0], "without a value");
        assert_eq!(rig.ledger.filtered, 4);
    }

    #[test]
    fn a_window_in_which_the_scale_changed_is_partial() {
        let named = |name: &str| model::Point { name: String::from(name), ..point(PointType::Int) };
        let window = model::Window { every_ms: 10_000, stats: vec![model::Statistic::Max] };
        let windowed = model::Point { scale_from: Some(PointKey(1)), window: Some(window), raw: false, ..named("v") };
        let model = Model {
            devices: vec![Device { name: "d".into(), ..Device::default() }],
            points: vec![windowed, named("sf")],
            requests: vec![Request { device: 0, points: vec![PointKey(0), PointKey(1)], period_ms: 1_000 }],
        };
        let mut catalog = Catalog::new(1);
        let mut batcher = Batcher::new(crate::batch::Config { max_age: Duration::from_secs(1), max_bytes: 48 * 1024 });
        let (mut ledger, mut losses) = (Ledger::default(), Losses::default());
        let mut intake = Intake::new(&model, &mut catalog, &mut batcher, Mono::ZERO, Wall(0)).expect("a model");
        let mut seen = Vec::new();
        let mut polls = VecDeque::from([(1, 5, 0), (2, 6, 0), (12, 7, 0), (13, 1, 1), (22, 2, 1)]);
        for second in 0..=30 {
            let (now, wall) = (Mono::ZERO + Duration::from_secs(second), Wall(second as i64 * 1_000));
            let books =
                Books { ledger: &mut ledger, losses: &mut losses, batcher: &mut batcher, overrun: Reason::Overrun };
            intake.close_windows(now, wall, true, books);
            let Some((_, value, factor)) = polls.pop_front_if(|poll| poll.0 == second) else { continue };
            let samples = [value, factor].map(Sample::good).to_vec();
            let poll = Poll { request: 0, at: wall, outcome: Outcome::Samples(samples) };
            intake.handle_factors(&poll, &mut catalog, &mut batcher, now, wall);
            let books =
                Books { ledger: &mut ledger, losses: &mut losses, batcher: &mut batcher, overrun: Reason::Overrun };
            intake.handle_poll(now, &poll, true, true, books);
            seen.push(intake.held());
        }
        assert_eq!(seen, [1, 2, 1, 2, 1], "each is in exactly one window");
        catalog.close();
        let entries = entries(&catalog);
        let ids: Vec<(u32, i32)> =
            entries.iter().filter(|e| e.statistic == "max").map(|e| (e.id, e.exponent)).collect();
        assert_eq!(
            ids.iter().map(|id| id.1).collect::<Vec<_>>(),
            [0, 1],
            "one an exponent, and the same meaning is the same id"
        );
        let said = summaries(&intake, &catalog, &mut batcher);
        let said: Vec<_> = said.iter().map(|(id, at, status)| (*id == ids[1].0, *at, *status)).collect();
        let (partial, good) = (Status::Partial as u8, Status::Good as u8);
        let expected = [(false, 0, partial), (false, 10_000, partial), (true, 10_000, partial), (true, 20_000, good)];
        assert_eq!(said, expected, "the first began late, the second ended early, its other half began late");
    }
}
