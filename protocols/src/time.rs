//! The two clocks of the house, as two types without a conversion between them.
//!
//! [`Mono`] drives deadlines: it never steps. [`Wall`] stamps readings: it is what the plant calls time, and it may
//! step or be wrong. A value of one can never be used where the other is meant. Neither type reads a clock: the shell
//! does, and hands the value in.

use core::time::Duration;

/// A point on the monotonic clock, in nanoseconds since a start that only the shell knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mono(u64);

impl Mono {
    /// The start of the clock.
    pub const ZERO: Self = Self(0);
    /// Later than every real moment.
    pub const MAX: Self = Self(u64::MAX);

    /// `nanos` nanoseconds after the start.
    #[must_use]
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// `millis` milliseconds after the start.
    #[must_use]
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis.saturating_mul(1_000_000))
    }

    /// Nanoseconds since the start.
    #[must_use]
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Milliseconds since the start, rounded down.
    #[must_use]
    pub const fn as_millis(self) -> u64 {
        self.0 / 1_000_000
    }

    /// How long after `earlier` this is; zero if it is not after it.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl core::ops::Add<Duration> for Mono {
    type Output = Self;

    /// Saturates at [`Mono::MAX`].
    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
    }
}

/// A stamp: milliseconds since 1970-01-01T00:00Z, signed, as on the wire (columns.md rule 21).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Wall(pub i64);

impl Wall {
    /// Milliseconds since 1970.
    #[must_use]
    pub const fn as_millis(self) -> i64 {
        self.0
    }
}

/// Both clocks, as the shell reads them. Drivers are handed one; nothing else in the house may read a clock.
pub trait Clock: Send + Sync + 'static {
    /// The monotonic clock.
    fn mono(&self) -> Mono;
    /// The wall clock.
    fn wall(&self) -> Wall;
}
