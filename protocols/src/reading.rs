//! The reading: one value, or status, of one point at one time. The vocabulary that protocols own and core speaks.

use alloc::vec::Vec;

use crate::time::Wall;
use crate::value::Value;

/// How far a reading can be trusted. Codes below 16 come with a value, codes from 16 on without (edge.proto, `Status`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Status {
    /// As the device gave it.
    #[default]
    Good = 0,
    /// The device itself doubts it.
    Uncertain = 1,
    /// Older than it should be.
    Stale = 2,
    /// Not measured but put in its place.
    Substituted = 3,
    /// Outside the configured valid range; the value is still shown.
    OutOfRange = 4,
    /// A summary over a window with missing readings.
    Partial = 5,
    /// No answer, or none that is valid.
    CommFail = 16,
    /// The device answered with an exception, or with its sentinel for "not available".
    DeviceError = 17,
    /// Not polled on purpose.
    OutOfService = 18,
    /// The device says that it has no such register.
    NotConfigured = 19,
    /// The answer does not fit the point's type.
    TypeError = 20,
}

impl Status {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Good,
        Self::Uncertain,
        Self::Stale,
        Self::Substituted,
        Self::OutOfRange,
        Self::Partial,
        Self::CommFail,
        Self::DeviceError,
        Self::OutOfService,
        Self::NotConfigured,
        Self::TypeError,
    ];

    /// The contract's name of it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Good => "GOOD",
            Self::Uncertain => "UNCERTAIN",
            Self::Stale => "STALE",
            Self::Substituted => "SUBSTITUTED",
            Self::OutOfRange => "OUT_OF_RANGE",
            Self::Partial => "PARTIAL",
            Self::CommFail => "COMM_FAIL",
            Self::DeviceError => "DEVICE_ERROR",
            Self::OutOfService => "OUT_OF_SERVICE",
            Self::NotConfigured => "NOT_CONFIGURED",
            Self::TypeError => "TYPE_ERROR",
        }
    }

    /// The status of that number.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.code() == code)
    }

    /// The number on the wire.
    #[must_use]
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// Whether a reading of this status carries a value.
    #[must_use]
    pub const fn has_value(self) -> bool {
        self.code() < 16
    }
}

/// What one point had to say at one moment: the invariant is `status.has_value() == (value != Value::None)`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// How far to trust it.
    pub status: Status,
    /// The value, if the status comes with one.
    pub value: Value,
}

impl Sample {
    /// A value that the device gave without complaint.
    #[must_use]
    pub const fn good(bits: u64) -> Self {
        Self { status: Status::Good, value: Value::Bits(bits) }
    }

    /// A status without a value. `status` must be one that has none.
    #[must_use]
    pub const fn bare(status: Status) -> Self {
        debug_assert!(!status.has_value());
        Self { status, value: Value::None }
    }
}

/// The outcome of one due request of a bus: every due poll yields exactly one of these (contract rule 10).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Poll {
    /// Which planned request, an index into the gateway's list of requests.
    pub request: u32,
    /// When the answer arrived; the due time if none did (contract rules 13 and 17).
    pub at: Wall,
    /// What came of it.
    pub outcome: Outcome,
}

/// What a request brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// One sample for each point of the request, in the request's order.
    Samples(Vec<Sample>),
    /// The same bare status for every point of the request.
    All(Status),
}

/// Who set a reading's stamp: readings of the two kinds never share a batch (contract rule 13).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum StampedBy {
    /// The agent, at arrival.
    Agent,
    /// The device or publisher.
    Source,
}
