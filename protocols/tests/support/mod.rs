//! What the drivers' tests share: a real clock and a seeded generator.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use tributary_protocols::time::{Clock, Mono, Wall};

/// The machine's clocks.
pub(crate) struct RealClock(Instant);

impl RealClock {
    #[allow(clippy::disallowed_methods, reason = "the drivers' tests run on real time")]
    pub(crate) fn new() -> Self {
        Self(Instant::now())
    }
}

impl Clock for RealClock {
    #[allow(clippy::disallowed_methods, reason = "the drivers' tests run on real time")]
    fn mono(&self) -> Mono {
        Mono::from_nanos(u64::try_from(self.0.elapsed().as_nanos()).unwrap())
    }

    #[allow(clippy::disallowed_methods, reason = "the drivers' tests run on real time")]
    fn wall(&self) -> Wall {
        Wall(i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap())
    }
}

/// xorshift64*.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % bound
    }
}
