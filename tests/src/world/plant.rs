//! What is measured: requests that are polled and sensors that speak up. Every value is a known function of the point
//! and the number of its poll, so that a wrong value, or a right one under a wrong point, is seen.

use std::time::Duration;

use fastrand::Rng;
use tributary_core::model::{Deadband, Device, Model, Point, PointKey, Request, Statistic, Window};
use tributary_protocols::reading::{Outcome, Sample, StampedBy, Status};
use tributary_protocols::value::{PointType, Scale, Value};

const TYPES: [PointType; 7] = [
    PointType::Int,
    PointType::Float64,
    PointType::Bool,
    PointType::Uint64,
    PointType::Float32,
    PointType::Enum,
    PointType::String,
];

/// Exponents that a factor shows, in turn: one out of reach and a sentinel too.
const FACTORS: [i64; 10] = [0, -2, 1, 0, 11, -2, -10, NO_FACTOR, 10, 0];
const NO_FACTOR: i64 = -32_768;
/// A counter: where it begins anew, its step, when it is reset, and how far a glitch is off.
const MODULUS: u64 = 1_000_000;
const STEP: u64 = 40;
const RESET: u64 = 1_000;
const GLITCH: u64 = 400_000;

/// A point of a device's broker.
#[derive(Clone, Debug)]
pub(super) struct Sensor {
    /// Place in the list of points.
    pub(super) point: usize,
    /// Whether the message waits for its acknowledgement.
    pub(super) waits: bool,
    pub(super) stamped_by: StampedBy,
    /// Mean time between two messages, ms.
    pub(super) every_ms: u64,
    /// It is not configured but appears while running.
    pub(super) dynamic: bool,
}

/// How a device is at present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Health {
    Well,
    Silent,
    Refusing,
    /// Some points answer with a status of their own.
    Patchy,
}

/// Everything that is measured.
#[derive(Debug)]
pub(super) struct Plant {
    pub(super) points: Vec<Point>,
    pub(super) requests: Vec<Request>,
    pub(super) sensors: Vec<Sensor>,
    pub(super) health: Vec<Health>,
    devices: Vec<Device>,
}

impl Plant {
    pub(super) fn new(rng: &mut Rng) -> Self {
        let mut plant = Self {
            points: Vec::new(),
            requests: Vec::new(),
            sensors: Vec::new(),
            health: vec![Health::Well; 3],
            devices: (0..3)
                .map(|n| Device { name: format!("device-{n}"), protocol: "modbus".into(), ..Device::default() })
                .collect(),
        };
        plant.devices.push(Device { name: "sensors".into(), protocol: "mqtt".into(), ..Device::default() });
        for device in 0..3 {
            for _ in 0..2 {
                let points = (0..rng.usize(1..7)).map(|_| plant.add_polled(device, rng)).collect();
                let period_ms = [1_000, 2_000, 5_000, 10_000][rng.usize(..4)];
                plant.requests.push(Request { device, points, period_ms });
            }
        }
        plant.add_scaled();
        for (n, ty) in TYPES.into_iter().take(6).enumerate() {
            let point = plant.points.len();
            let mut added = blank(3, point, ty);
            if n == 1 {
                added.deadband = Deadband::Absolute(1.0);
            }
            if n == 4 {
                added.window = Some(Window { every_ms: 10_000, stats: vec![Statistic::Count, Statistic::Last] });
                added.raw = rng.bool();
            }
            plant.points.push(added);
            plant.sensors.push(Sensor {
                point,
                waits: n % 3 != 2,
                stamped_by: if n % 2 == 0 { StampedBy::Agent } else { StampedBy::Source },
                every_ms: rng.u64(500..20_000),
                dynamic: n == 5,
            });
        }
        plant
    }

    /// Points scaled by a register before and after it and in another request, and a counter.
    fn add_scaled(&mut self) {
        let first = self.points.len();
        let key = |n: usize| PointKey(u32::try_from(first + n).expect("small"));
        for n in 0..5 {
            let mut point = blank(2, first + n, PointType::Int);
            match n {
                1 => (point.scale, point.bad) = (Scale::default(), vec![NO_FACTOR.cast_unsigned()]),
                3 => {
                    (point.scale, point.counter) = (Scale::default(), true);
                    (point.counter_modulus, point.max_rate) = (MODULUS, Some(30.0));
                }
                _ => point.scale_from = Some(key(1)),
            }
            self.points.push(point);
        }
        self.requests.push(Request { device: 2, points: (0..4).map(key).collect(), period_ms: 2_000 });
        self.requests.push(Request { device: 2, points: vec![key(4)], period_ms: 5_000 });
    }

    /// Whether that point brings the exponent of others.
    pub(super) fn is_factor(&self, point: usize) -> bool {
        self.points.iter().any(|other| other.scale_from.is_some_and(|key| key.0 as usize == point))
    }

    /// Whether the `n`th sample of a counter is no count.
    pub(super) fn is_glitch(n: u64) -> bool {
        n % 97 == 50
    }

    fn add_polled(&mut self, device: u32, rng: &mut Rng) -> PointKey {
        let index = self.points.len();
        let mut point = blank(device, index, TYPES[rng.usize(..TYPES.len())]);
        let text = point.ty == PointType::String;
        match rng.u32(..6) {
            0 => {
                point.deadband = Deadband::Absolute(f64::from(rng.u32(..3)));
                point.heartbeat = rng.bool().then(|| Duration::from_secs(60));
            }
            1 | 2 if !text => {
                let stats = Statistic::ALL.into_iter().filter(|_| rng.bool()).chain([Statistic::Stddev]);
                let mut stats: Vec<_> = stats.collect();
                stats.dedup();
                let every_ms = [10_000, 60_000][rng.usize(..2)];
                point.window = Some(Window { every_ms, stats });
                point.raw = rng.bool();
            }
            _ => {}
        }
        if point.ty == PointType::Int && rng.bool() {
            point.valid = Some((0.0, 1e6));
            point.bad = vec![value_bits(PointType::Int, index, 7)];
        }
        self.points.push(point);
        PointKey(u32::try_from(index).expect("small"))
    }

    /// The model as configured now: without the points that only appear.
    pub(super) fn model(&self) -> Model {
        let dynamic = self.sensors.iter().filter(|sensor| sensor.dynamic).count();
        Model {
            devices: self.devices.clone(),
            points: self.points[..self.points.len() - dynamic].to_vec(),
            requests: self.requests.clone(),
        }
    }

    /// Another plan of the same points: two requests of a device exchange a point, or a period changes.
    pub(super) fn replan(&mut self, rng: &mut Rng) {
        let at = rng.usize(..3) * 2;
        if self.requests[at].points.len() > 1 {
            let moved = self.requests[at].points.pop().expect("more than one");
            self.requests[at + 1].points.push(moved);
        } else {
            let moved = self.requests[at + 1].points.remove(0);
            self.requests[at].points.push(moved);
            if self.requests[at + 1].points.is_empty() {
                let back = self.requests[at].points.remove(0);
                self.requests[at + 1].points.push(back);
            }
        }
    }

    /// Of each request the points that are sent at every poll.
    pub(super) fn groups(&self) -> Vec<Vec<PointKey>> {
        let sent = |key: &&PointKey| {
            let point = &self.points[key.0 as usize];
            point.deadband == Deadband::None && (point.window.is_none() || point.raw)
        };
        self.requests.iter().map(|request| request.points.iter().filter(sent).copied().collect()).collect()
    }

    /// What request `index` answers at its `n`th poll.
    pub(super) fn answer(&self, index: usize, n: u64) -> Outcome {
        let request = &self.requests[index];
        match self.health[request.device as usize] {
            Health::Silent => Outcome::All(Status::CommFail),
            Health::Refusing => Outcome::All(Status::DeviceError),
            health => Outcome::Samples(
                request
                    .points
                    .iter()
                    .map(|key| {
                        let point = key.0 as usize;
                        if health == Health::Patchy && (point as u64 + n / 8).is_multiple_of(3) {
                            Sample::bare(Status::NotConfigured)
                        } else {
                            self.sample(point, n)
                        }
                    })
                    .collect(),
            ),
        }
    }

    /// The `n`th sample of a point.
    pub(super) fn sample(&self, point: usize, n: u64) -> Sample {
        let value = match self.points[point].ty {
            PointType::String => Value::Text(format!("p{point} {}", n / 5).into()),
            _ if self.points[point].counter => Value::Bits(count(n)),
            _ if self.is_factor(point) => Value::Bits(FACTORS[(n / 16 % 10) as usize].cast_unsigned()),
            ty => Value::Bits(value_bits(ty, point, n)),
        };
        let status = if n % 41 == 40 { Status::Uncertain } else { Status::Good };
        Sample { status, value }
    }
}

fn blank(device: u32, index: usize, ty: PointType) -> Point {
    Point {
        device,
        name: format!("p{index}"),
        ty,
        unit: "1".into(),
        scale: if ty == PointType::Int { Scale { exponent: -1, ..Scale::default() } } else { Scale::default() },
        description: String::new(),
        source: format!("holding:{index}:u16"),
        counter: false,
        counter_modulus: 0,
        max_rate: None,
        scale_from: None,
        labels: Default::default(),
        extra: Default::default(),
        valid: None,
        bad: Vec::new(),
        deadband: Deadband::None,
        heartbeat: None,
        window: None,
        raw: true,
    }
}

/// The `n`th sample of a counter: it rolls over once, is reset once, and glitches now and then.
fn count(n: u64) -> u64 {
    let true_count = if n < RESET { MODULUS - 10_000 + n * STEP } else { (n - RESET) * STEP };
    let off = if Plant::is_glitch(n) { GLITCH } else { 0 };
    (true_count + off) % MODULUS
}

/// The bits of the `n`th value of a point.
fn value_bits(ty: PointType, point: usize, n: u64) -> u64 {
    let place = point as u64;
    match ty {
        PointType::Bool => n / 3 % 2,
        PointType::Enum => (n / 2 + place) % 5,
        // Below zero at first: out of range where a range is configured.
        PointType::Int => (place * 100_000 + n * 3).wrapping_sub(900_000),
        PointType::Uint64 => u64::MAX - place * 1_000_000 - n,
        #[expect(clippy::cast_precision_loss, reason = "small")]
        PointType::Float32 => u64::from((place as f32 * 1_000.0 + n as f32 * 0.25).to_bits()),
        PointType::Float64 if n % 29 == 28 => f64::NAN.to_bits() | place,
        #[expect(clippy::cast_precision_loss, reason = "small")]
        PointType::Float64 => (place as f64 * 1_000.0 + (n as f64) / 10.0).to_bits(),
        PointType::String => 0,
    }
}
