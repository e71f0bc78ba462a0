//! How long a bus leaves a unit alone that does not answer.
//!
//! A silent unit must not cost the others their polls, and must be back at once when it answers: the waits grow by
//! doubling and end with the first valid answer.

use core::time::Duration;

use crate::time::Mono;

/// Failures in a row after which a unit is silent, and time-outs in a row after which a connection is given up.
pub(crate) const PATIENCE: u32 = 3;
const PROBE_FIRST: Duration = Duration::from_secs(1);
/// A unit alone on its bus takes no time from others.
const PROBE_ALONE_MAX: Duration = Duration::from_secs(5);

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

    /// If it is silent, it may be probed now.
    pub(crate) fn probe_now(&mut self, now: Mono) {
        self.probe_at = self.probe_at.map(|at| at.min(now));
    }

    pub(crate) fn answered(&mut self) {
        *self = Self::default();
    }

    /// A poll had no valid answer. `least` = the shortest interval that keeps the probes within their share of the bus,
    /// `None` if it is the only unit of its bus.
    pub(crate) fn failed(&mut self, now: Mono, probe_max: Duration, least: Option<Duration>) {
        self.failures = self.failures.saturating_add(1);
        let Some(step) = self.failures.checked_sub(PATIENCE) else { return };
        let growing = PROBE_FIRST.saturating_mul(1 << step.min(20)).min(probe_max);
        let interval = match least {
            Some(least) => growing.max(least),
            None => growing.min(PROBE_ALONE_MAX),
        };
        self.probe_at = Some(now + interval);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn intervals_grow_and_keep_the_share() {
        let mut silence = Silence::default();
        let at = |silence: &Silence| silence.probe_at.map(|at| at.since(Mono::ZERO));
        for _ in 0..2 {
            silence.failed(Mono::ZERO, 30 * S, Some(10 * S));
        }
        assert!(!silence.is_silent());
        silence.failed(Mono::ZERO, 30 * S, Some(10 * S));
        assert_eq!(at(&silence), Some(10 * S));
        silence.failed(Mono::ZERO, 30 * S, Some(S / 2));
        assert_eq!(at(&silence), Some(2 * S), "doubles from 1 s");
        silence.failed(Mono::ZERO, 30 * S, Some(70 * S));
        assert_eq!(at(&silence), Some(70 * S), "the share counts more than the limit");
        for _ in 0..10 {
            silence.failed(Mono::ZERO, 30 * S, None);
        }
        assert_eq!(at(&silence), Some(5 * S), "alone");
        silence.answered();
        assert!(!silence.is_silent());
    }
}
