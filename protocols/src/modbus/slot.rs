//! A request's place in the schedule of its bus: its due time, and what became of its last poll.

use alloc::vec::Vec;
use core::time::Duration;

use crate::modbus::plan::Request;
use crate::modbus::status::DeviceState;
use crate::time::Mono;

/// Longest time over which the units of one period are spread.
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

/// Phase k/n of the period for the requests of the k-th of n units with that period, from a start that differs by bus:
/// the quarter of the period that `chance` picks. What one unit is asked stands together: its values are of one moment,
/// and one waking serves them. So do buses that picked the same quarter.
pub(crate) fn spread(slots: &mut [Slot], now: Mono, chance: u64) {
    // Each period, and the units that have it.
    let mut seen: Vec<(Duration, Vec<usize>)> = Vec::new();
    for slot in &*slots {
        match seen.iter_mut().find(|(period, _)| *period == slot.period) {
            Some((_, units)) if units.contains(&slot.unit) => {}
            Some((_, units)) => units.push(slot.unit),
            None => seen.push((slot.period, alloc::vec![slot.unit])),
        }
    }
    for slot in slots {
        let Some((_, units)) = seen.iter().find(|(period, _)| *period == slot.period) else { continue };
        let place = units.iter().position(|unit| *unit == slot.unit).unwrap_or(0);
        let span = slot.period.min(SPREAD_MAX);
        let count = u32::try_from(units.len().max(1)).unwrap_or(u32::MAX);
        let phase =
            span / 4 * u32::try_from(chance % 4).unwrap_or(0) + span / count * u32::try_from(place).unwrap_or(0);
        slot.due = now + if phase < span { phase } else { phase - span };
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
