//! The clocks of the world: one that never steps, and a wall clock that drifts, steps and may start in 1970.

use tributary_core::pipeline::Now;
use tributary_proto::pb::TimeQuality;
use tributary_protocols::time::{Mono, Wall};

/// 2026-09-21, a multiple of a day.
const TODAY_MS: i64 = 20_717 * 86_400_000;

/// Both clocks of the gateway.
#[derive(Debug)]
pub(super) struct Clock {
    nanos: u64,
    /// What the wall clock shows at the start of the world, without steps.
    origin_ms: i64,
    drift_ppm: i64,
    /// What the system says of it.
    pub(super) quality: TimeQuality,
}

impl Clock {
    pub(super) fn new(drift_ppm: i64, unsynced: bool) -> Self {
        let (origin_ms, quality) = if unsynced { (0, TimeQuality::Unsynced) } else { (TODAY_MS, TimeQuality::Synced) };
        Self { nanos: 0, origin_ms, drift_ppm, quality }
    }

    pub(super) fn advance(&mut self, nanos: u64) {
        assert!(nanos >= self.nanos, "time runs forward");
        self.nanos = nanos;
    }

    pub(super) fn nanos(&self) -> u64 {
        self.nanos
    }

    /// What the receiver's clock says: always right.
    pub(super) fn true_ms(&self) -> i64 {
        TODAY_MS + millis(self.nanos)
    }

    pub(super) fn now(&self) -> Now {
        let elapsed = millis(self.nanos);
        let wall = Wall(self.origin_ms + elapsed + elapsed * self.drift_ppm / 1_000_000);
        Now { mono: Mono::from_nanos(self.nanos), wall }
    }

    pub(super) fn step(&mut self, ms: i64) {
        self.origin_ms += ms;
    }

    /// How far the wall clock is behind the truth.
    pub(super) fn error_ms(&self) -> i64 {
        self.true_ms() - self.now().wall.0
    }
}

fn millis(nanos: u64) -> i64 {
    i64::try_from(nanos / 1_000_000).expect("a few hours")
}
