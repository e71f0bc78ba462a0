//! A request's place in the schedule of its bus: its due time, and what became of its last poll.

use alloc::vec::Vec;
use core::time::Duration;

use crate::modbus::plan::Request;
use crate::modbus::status::DeviceState;
use crate::time::Mono;

/// Longest time over which the requests of one period are spread.
const SPREAD_MAX: Duration = Duration::from_secs(10);

/// A request on its schedule.
#[derive(Debug)]
pub(crate) struct Slot {
    /// Its number in the gateway's list of requests.
    pub(crate) id: u32,
    /// Whom it asks, an index in the bus's units.
    pub(crate) unit: usize,
    pub(crate) request: Request,
    pub(crate) period: Duration,
    /// The next poll that has no trace and is not out.
    pub(crate) due: Mono,
    pub(crate) last: Last,
}

/// What became of a request's last poll.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Last {
    Nothing,
    Values,
    Exception,
    Failed,
}

/// Phase k/n of the period for the k-th of n requests with that period, from a start that differs by bus: `base` is in
/// thousandths of a period.
pub(crate) fn spread(slots: &mut [Slot], now: Mono, base: u64) {
    // Period, how many have it, how many of them have their phase.
    let mut seen: Vec<(Duration, u64, u64)> = Vec::new();
    for slot in &*slots {
        match seen.iter_mut().find(|(period, ..)| *period == slot.period) {
            Some((_, count, _)) => *count += 1,
            None => seen.push((slot.period, 1, 0)),
        }
    }
    for slot in slots {
        let Some((_, count, next)) = seen.iter_mut().find(|(period, ..)| *period == slot.period) else { continue };
        let span = u64::try_from(slot.period.min(SPREAD_MAX).as_nanos()).unwrap_or(u64::MAX);
        let shift = (span / 1_000).saturating_mul(base);
        let phase = shift.saturating_add((span / *count).saturating_mul(*next)) % span.max(1);
        *next += 1;
        slot.due = now + Duration::from_nanos(phase);
    }
}

/// How a device does that is not known to be silent, by the last polls of its requests.
pub(crate) fn state(lasts: impl Iterator<Item = Last>) -> DeviceState {
    let (mut failed, mut other, mut ill) = (false, false, false);
    for last in lasts {
        failed |= last == Last::Failed;
        other |= last != Last::Failed;
        ill |= matches!(last, Last::Failed | Last::Exception);
    }
    match (ill, failed && !other) {
        (_, true) => DeviceState::Silent,
        (true, _) => DeviceState::Degraded,
        (false, _) => DeviceState::Ok,
    }
}
