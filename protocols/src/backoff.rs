//! How long to wait before the next attempt to connect, and the chance that spreads such waits.
//!
//! A peer that refuses connections must not be hammered, and a whole plant must not come back in the same millisecond.

use core::time::Duration;

const RECONNECT_FIRST: Duration = Duration::from_millis(100);

/// Waits before the next attempt to connect.
#[derive(Debug)]
pub(crate) struct Reconnect {
    /// Attempts that failed and connections that were lost, since the last valid answer.
    failures: u32,
    chance: Chance,
}

impl Reconnect {
    pub(crate) fn new(seed: u64) -> Self {
        Self { failures: 0, chance: Chance::new(seed) }
    }

    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }

    /// An attempt failed, so that not even the next one is immediate.
    pub(crate) fn failed(&mut self) {
        self.failures = self.failures.max(1);
    }

    /// How long to wait now: nothing the first time, then between half and all of 100 ms · 2ⁿ, at most `max`.
    pub(crate) fn wait(&mut self, max: Duration) -> Duration {
        let wait = match self.failures.checked_sub(1) {
            None => Duration::ZERO,
            Some(n) => RECONNECT_FIRST.saturating_mul(1 << n.min(20)).min(max),
        };
        self.failures = self.failures.saturating_add(1);
        let half = wait / 2;
        let nanos = u64::try_from(half.as_nanos()).unwrap_or(u64::MAX);
        half + Duration::from_nanos(if nanos == 0 { 0 } else { self.chance.next() % nanos })
    }
}

/// splitmix64, seeded: for phases and jitter only, a few lines rather than a dependency.
#[derive(Debug)]
pub(crate) struct Chance(u64);

impl Chance {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn reconnects_wait_longer_and_longer_with_jitter() {
        let mut reconnect = Reconnect::new(1);
        assert_eq!(reconnect.wait(5 * S), Duration::ZERO, "after a good time at once");
        for most in [100, 200, 400, 800, 1_600, 3_200, 5_000, 5_000] {
            let (wait, most) = (reconnect.wait(5 * S), Duration::from_millis(most));
            assert!(most / 2 <= wait && wait < most, "{wait:?} of {most:?}");
        }
        reconnect.reset();
        reconnect.failed();
        assert!(reconnect.wait(5 * S) >= Duration::from_millis(50), "a refusal is not asked again at once");
    }
}
