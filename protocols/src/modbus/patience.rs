//! How long a bus leaves alone what does not answer: a unit, and a connection.
//!
//! A silent unit must not cost the others their polls, and must be back at once when it answers; a device that refuses
//! connections must not be hammered. Both waits grow by doubling and end with the first valid answer.

use core::time::Duration;

use crate::time::Mono;

/// Failures in a row after which a unit is silent, and time-outs in a row after which a connection is given up.
pub(crate) const PATIENCE: u32 = 3;
const PROBE_FIRST: Duration = Duration::from_secs(1);
/// A unit alone on its bus takes no time from others.
const PROBE_ALONE_MAX: Duration = Duration::from_secs(5);
/// The time-outs of probes take at most this part of the bus, of all silent units together.
const PROBE_SHARE: usize = 10;
const RECONNECT_FIRST: Duration = Duration::from_millis(100);

/// What is known of a unit's silence.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Silence {
    /// Polls without a valid answer, in a row.
    failures: u32,
    /// Once there were [`PATIENCE`] of them: when the unit may be probed.
    probe_at: Option<Mono>,
}

impl Silence {
    pub(crate) fn is_silent(&self) -> bool {
        self.probe_at.is_some()
    }

    /// Whether it is too early for a probe.
    pub(crate) fn holds(&self, now: Mono) -> bool {
        self.probe_at.is_some_and(|at| now < at)
    }

    pub(crate) fn answered(&mut self) {
        *self = Self::default();
    }

    /// A poll had no valid answer; `silent` = how many units of the bus are silent, this one included, `None` if it is
    /// the only unit of its bus.
    pub(crate) fn failed(&mut self, now: Mono, timeout: Duration, probe_max: Duration, silent: Option<usize>) {
        self.failures = self.failures.saturating_add(1);
        let Some(step) = self.failures.checked_sub(PATIENCE) else { return };
        let growing = PROBE_FIRST.saturating_mul(1 << step.min(20)).min(probe_max);
        let interval = match silent {
            Some(silent) => {
                let share = u32::try_from(silent.saturating_mul(PROBE_SHARE)).unwrap_or(u32::MAX);
                growing.max(timeout.saturating_mul(share))
            }
            None => growing.min(PROBE_ALONE_MAX),
        };
        self.probe_at = Some(now + interval);
    }
}

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

    #[test]
    fn probes_of_all_silent_units_take_a_tenth() {
        let mut silence = Silence::default();
        let at = |silence: &Silence| silence.probe_at.map(|at| at.since(Mono::ZERO));
        for _ in 0..2 {
            silence.failed(Mono::ZERO, S, 30 * S, Some(1));
        }
        assert!(!silence.is_silent());
        silence.failed(Mono::ZERO, S, 30 * S, Some(1));
        assert_eq!(at(&silence), Some(10 * S));
        silence.failed(Mono::ZERO, S / 100, 30 * S, Some(5));
        assert_eq!(at(&silence), Some(2 * S), "doubles from 1 s");
        silence.failed(Mono::ZERO, S, 30 * S, Some(7));
        assert_eq!(at(&silence), Some(70 * S), "the share counts more than the limit");
        for _ in 0..10 {
            silence.failed(Mono::ZERO, S, 30 * S, None);
        }
        assert_eq!(at(&silence), Some(5 * S), "alone");
        silence.answered();
        assert!(!silence.is_silent());
    }
}
