//! A request's place in the schedule of its bus: its due time, the poll that is under way, and what became of the last.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::time::Duration;

use crate::modbus::bus::split::{self, Open, Part, Refused};
use crate::modbus::plan::Request;
use crate::modbus::status::DeviceState;
use crate::time::Mono;

/// Longest time over which the units of one period are spread.
const SPREAD_MAX: Duration = Duration::from_secs(10);

/// Where a bus has too much to do, slow points are served that often too.
const URGENCY_MAX: Duration = Duration::from_secs(10);

/// A request on its schedule.
#[derive(Debug)]
pub(crate) struct Slot {
    /// Its number in the gateway's list of requests.
    pub(crate) id: u32,
    /// Whom it asks, an index in the bus's units.
    pub(crate) unit: usize,
    pub(crate) request: Request,
    pub(crate) period: Duration,
    /// The next poll that has no trace, is not out and is not under way.
    pub(crate) due: Mono,
    /// The first due time of those in a row that the bus had no time for.
    pub(crate) waiting: Option<Mono>,
    pub(crate) last: Last,
    /// Ranges of its points that the device refuses, mostly none.
    pub(crate) refused: Vec<Refused>,
    /// The poll under way, if it takes several questions.
    pub(crate) open: Option<Box<Open>>,
    /// How long its last poll kept the bus, silence included.
    pub(crate) took: Duration,
}

impl Slot {
    pub(crate) fn new(id: u32, unit: usize, request: Request, now: Mono) -> Self {
        let period = Duration::from_millis(request.period_ms.max(1).into());
        let (refused, open) = (Vec::new(), None);
        let (waiting, last, took) = (None, Last::Nothing, Duration::ZERO);
        Self { id, unit, request, period, due: now, waiting, last, refused, open, took }
    }

    /// When the next question was or is due.
    pub(crate) fn next_due(&self) -> Mono {
        self.open.as_ref().map_or(self.due, |open| open.due)
    }

    /// When the next question ought to be asked at the latest. A part of a cut block counts as due when the one before
    /// it went out: however long a block takes, it is as urgent as its period says. Who was passed over waits since then.
    pub(crate) fn urgency(&self) -> Mono {
        let since = self.open.as_ref().map_or(self.waiting.unwrap_or(self.due), |open| open.asked);
        since + self.period.min(URGENCY_MAX)
    }

    /// When it is too late for it: at the next due time.
    pub(crate) fn overdue_at(&self) -> Mono {
        if self.open.is_some() { self.due } else { self.due + self.period }
    }

    /// Points, as far as a part can count them.
    pub(crate) fn count(&self) -> u16 {
        u16::try_from(self.request.points.len()).unwrap_or(u16::MAX)
    }

    /// Whether a poll at `now` would ask anything: not if the device has none of the points.
    pub(crate) fn asks_something(&self, now: Mono) -> bool {
        self.refused.is_empty() || self.open.is_some() || !split::waits(&self.refused, self.count(), now)
    }

    /// First register or bit and their number, of the next question.
    pub(crate) fn next_span(&self, now: Mono) -> (u16, u16) {
        let next = match &self.open {
            Some(open) => open.queue.last().copied(),
            None if self.refused.is_empty() => None,
            None => split::parts(&self.refused, self.count(), now).last().copied(),
        };
        next.map_or((self.request.address, self.request.count), |part| split::span(&self.request, part))
    }

    /// Begins or continues a poll: when it was due, and the part that is asked now, if not the whole.
    pub(crate) fn begin(&mut self, now: Mono) -> (Mono, Option<Part>) {
        if let Some(open) = &mut self.open {
            open.asked = now;
            return (open.due, open.queue.pop());
        }
        let due = self.due;
        self.due = due + self.period;
        self.waiting = None;
        if self.refused.is_empty() {
            return (due, None);
        }
        let mut queue = split::parts(&self.refused, self.count(), now);
        let part = queue.pop();
        self.open = Some(Box::new(Open::new(due, now, &self.request, &self.refused, queue)));
        (due, part)
    }

    /// The poll under way; begun here if it was the whole that was asked.
    pub(crate) fn open(&mut self, due: Mono, asked: Mono) -> &mut Open {
        let new = || Box::new(Open::new(due, asked, &self.request, &self.refused, Vec::new()));
        self.open.get_or_insert_with(new)
    }
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
