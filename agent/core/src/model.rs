//! What the gateway measures, as the pipeline knows it: devices, points, planned requests.
//!
//! The shell builds a [`Model`] from configuration and plans, once; [`PointKey`]s are places in its list of points. Wire
//! ids are another matter: they belong to the catalogue, outlive the process and are given in `catalog.rs`. Points of
//! an MQTT wildcard appear while running and are added at the end.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use tributary_protocols::value::{PointType, Scale};

/// A point's place in [`Model::points`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PointKey(pub u32);

/// Everything the gateway measures.
#[derive(Clone, Debug, Default)]
pub struct Model {
    /// Devices, the brokers of MQTT points among them.
    pub devices: Vec<Device>,
    /// Points in the order of the configuration.
    pub points: Vec<Point>,
    /// Planned requests; [`Poll::request`](tributary_protocols::reading::Poll) counts in this list.
    pub requests: Vec<Request>,
}

/// A device, as the catalogue tells of it.
#[derive(Clone, Debug, Default)]
pub struct Device {
    /// As configured; unique.
    pub name: String,
    /// ISA-95 asset path.
    pub path: String,
    /// `"modbus"` or `"mqtt"`.
    pub protocol: String,
    /// Where it answers, without secrets.
    pub endpoint: String,
    /// Maker, if known.
    pub vendor: String,
    /// Type, if known.
    pub model: String,
    /// Serial number, if known.
    pub serial: String,
}

/// A point: what it means, how it is filtered, what becomes of its readings.
#[derive(Clone, Debug)]
pub struct Point {
    /// Index in [`Model::devices`].
    pub device: u32,
    /// As configured, without the device's name.
    pub name: String,
    /// Its type on the wire.
    pub ty: PointType,
    /// UCUM.
    pub unit: String,
    /// From raw to real.
    pub scale: Scale,
    /// A point of the same device that brings an integer e: the scale is then times 10^e (SunSpec's scale factors).
    pub scale_from: Option<PointKey>,
    /// For people.
    pub description: String,
    /// `"holding:40001:u32be"`, or topic and JSON pointer.
    pub source: String,
    /// Whether the value only grows, but for rollover.
    pub counter: bool,
    /// Where a counter rolls over; 0 = unknown.
    pub counter_modulus: u64,
    /// Most that a counter can grow in a second, as real value.
    pub max_rate: Option<f64>,
    /// Names of enum values.
    pub labels: BTreeMap<i64, String>,
    /// Anything else the catalogue should carry.
    pub extra: BTreeMap<String, String>,
    /// Real values outside are marked OUT_OF_RANGE: `[low, high]`.
    pub valid: Option<(f64, f64)>,
    /// Sentinels for "not available", as the bits of [`Value::Bits`](tributary_protocols::value::Value) (so an i16's
    /// 0x8000 stands here as the bits of −32768).
    pub bad: Vec<u64>,
    /// Withholds what hardly changed.
    pub deadband: Deadband,
    /// At the latest after this long a reading passes the deadband.
    pub heartbeat: Option<Duration>,
    /// Folds readings into summaries.
    pub window: Option<Window>,
    /// With a window: also send the readings themselves. Without a window they are always sent.
    pub raw: bool,
}

/// A deadband on the real value.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Deadband {
    /// Everything passes.
    #[default]
    None,
    /// Passes if |real − last sent| > this, in the point's unit. 0 passes any change.
    Absolute(f64),
    /// Passes if |real − last sent| > this many percent of |last sent|.
    Percent(f64),
}

/// A window: its length and the statistics it gives, in the order of [`Statistic`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// Length in ms, at least 1; windows begin on multiples of it on the wall clock.
    pub every_ms: u32,
    /// Sorted, without repetition, not empty.
    pub stats: Vec<Statistic>,
}

/// What a window can say of its readings (contract rule 15).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Statistic {
    /// How many readings counted. INT, unit "1".
    Count,
    /// The smallest, in the point's type and scale.
    Min,
    /// The largest, in the point's type and scale.
    Max,
    /// Mean of the real values, FLOAT64.
    Mean,
    /// Mean weighted by how long each value stood, FLOAT64.
    Twmean,
    /// Sum of the real values, FLOAT64.
    Sum,
    /// The first, in the point's type and scale.
    First,
    /// The last, in the point's type and scale.
    Last,
    /// Sample standard deviation of the real values, FLOAT64.
    Stddev,
}

impl Statistic {
    /// All of them, in order.
    pub const ALL: [Self; 9] =
        [Self::Count, Self::Min, Self::Max, Self::Mean, Self::Twmean, Self::Sum, Self::First, Self::Last, Self::Stddev];

    /// Its name in configuration and catalogue.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Count => "count",
            Self::Min => "min",
            Self::Max => "max",
            Self::Mean => "mean",
            Self::Twmean => "twmean",
            Self::Sum => "sum",
            Self::First => "first",
            Self::Last => "last",
            Self::Stddev => "stddev",
        }
    }

    /// The statistic of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|statistic| statistic.name() == name)
    }

    /// Whether it keeps type and scale of the point; the others are real FLOAT64, or the INT count.
    #[must_use]
    pub const fn keeps_type(self) -> bool {
        matches!(self, Self::Min | Self::Max | Self::First | Self::Last)
    }
}

/// One planned request on one schedule: what is polled together and stamped together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Index in [`Model::devices`].
    pub device: u32,
    /// Its points, in the order of the samples. A polled point is in exactly one request.
    pub points: Vec<PointKey>,
    /// Time between two polls, at least 1 ms.
    pub period_ms: u32,
}
