//! What becomes of a poll: values, the status of an exception, parts of both, or nothing.

use alloc::vec::Vec;
use core::time::Duration;

use super::split::{self, Part};
use super::{AskError, Bus, Flight, Link, Trace, What};
use crate::modbus::decode::{decode, exception_status};
use crate::modbus::frame::Said;
use crate::modbus::plan::Request;
use crate::modbus::slot::{Last, Slot};
use crate::modbus::status::Trouble;
use crate::reading::{Outcome, Status};
use crate::time::Mono;

/// First pause for a device that is busy, and how often it is asked again.
const BUSY_PAUSE: Duration = Duration::from_millis(50);
const BUSY_TIMES: u32 = 5;

impl Bus {
    /// One due poll that is overdue, hopeless, or asks nothing.
    pub(super) fn give_up_one(&mut self, now: Mono) -> Option<Trace> {
        let over = |slot: &Slot| {
            slot.next_due() <= now
                && (slot.overdue_at() <= now || self.hopeless(slot, now) || !slot.asks_something(now))
        };
        let index = self.slots.iter().position(over)?;
        let slot = self.slots.get_mut(index)?;
        if slot.open.as_ref().is_some_and(|open| open.at.is_some()) {
            return self.finish(index);
        }
        if slot.open.is_none() && slot.overdue_at() > now && !slot.asks_something(now) {
            let due = slot.due;
            slot.due = due + slot.period;
            return Some(self.settle(index, due, Outcome::All(Status::NotConfigured)));
        }
        let due = match slot.open.take() {
            Some(open) => open.due,
            None => {
                let due = slot.due;
                slot.due = due + slot.period;
                due
            }
        };
        self.counts.missed += 1;
        let silent = self.units.get(slot.unit).is_some_and(|unit| unit.silence.is_silent());
        // A connection that we dropped ourselves, because of the silence, changes nothing.
        let trouble = if silent && self.lost_at.is_none() {
            Trouble::Silent
        } else if !matches!(self.link, Link::Up) {
            Trouble::NoConnection
        } else {
            slot.waiting.get_or_insert(due);
            Trouble::Overdue
        };
        Some(self.fail(index, due, trouble, silent))
    }

    /// A valid answer to the question that was out.
    pub(super) fn answered(&mut self, now: Mono, flight: &Flight, said: Said<'_>) {
        self.timeouts_in_row = 0;
        self.doubts_in_row = 0;
        self.reconnect.reset();
        let What::Poll { slot: index, due, part, .. } = flight.what else { return };
        // Codes 10 and 11 come from a gateway on behalf of a unit that it cannot reach.
        if matches!(said, Said::No(10 | 11)) {
            self.unit_failed(flight, now);
        } else if let Some(unit) = self.slots.get(index).and_then(|slot| self.units.get_mut(slot.unit)) {
            unit.silence.answered();
        }
        let Some(slot) = self.slots.get_mut(index) else { return };
        slot.took = now.since(flight.sent) + flight.quiet;
        let whole: Part = (0, slot.count());
        let part_or_whole = part.unwrap_or(whole);
        match said {
            Said::All(data) if part.is_none() => {
                let outcome = Outcome::Samples(decode(&slot.request, data));
                self.trace = Some(self.settle(index, now, outcome));
                return;
            }
            Said::All(data) => {
                let values = decode(&cut_out(&slot.request, part_or_whole), data);
                let stood = standing(slot);
                split::accept(&mut slot.refused, part_or_whole);
                self.memory_revision += u64::from(stood != standing(slot));
                slot.open(due, flight.sent).fill(part_or_whole, values);
            }
            Said::No(2 | 3) | Said::Less => self.refused(now, index, (due, flight.sent), part_or_whole),
            Said::No(code @ (5 | 6)) => {
                let ends = due + slot.period;
                let open = slot.open(due, flight.sent);
                let pause = BUSY_PAUSE.saturating_mul(1 << open.busy.min(8));
                open.busy += 1;
                if open.busy <= BUSY_TIMES && now + pause < ends {
                    open.queue.push(part_or_whole);
                    if let Some(unit) = self.units.get_mut(slot.unit) {
                        unit.rest_until = now + pause;
                        unit.last_error = Some(Trouble::Exception(code));
                    }
                    return;
                }
                open.set(part_or_whole, Status::DeviceError);
            }
            Said::No(_) if part.is_none() => {}
            Said::No(code) => {
                let open = slot.open(due, flight.sent);
                open.set(part_or_whole, exception_status(code));
                // The function and the gateway are the other parts' too.
                while let Some(rest) = (code != 4).then(|| open.queue.pop()).flatten() {
                    open.set(rest, exception_status(code));
                }
            }
        }
        if let Said::No(code) = said {
            if let Some(unit) = self.slots.get(index).and_then(|slot| self.units.get_mut(slot.unit)) {
                unit.last_error = Some(Trouble::Exception(code));
            }
            if part.is_none() && !matches!(code, 2 | 3 | 5 | 6) {
                self.trace = Some(self.settle(index, now, Outcome::All(exception_status(code))));
                return;
            }
        }
        let Some(slot) = self.slots.get_mut(index) else { return };
        let Some(open) = &mut slot.open else { return };
        open.at.get_or_insert(now);
        if open.queue.is_empty() || slot.due <= now {
            self.trace = self.finish(index);
        }
    }

    /// A block or part was refused.
    fn refused(&mut self, now: Mono, index: usize, (due, sent): (Mono, Mono), part: Part) {
        let Some(slot) = self.slots.get_mut(index) else { return };
        let stood = standing(slot);
        slot.open(due, sent);
        let Some(open) = &mut slot.open else { return };
        self.counts.splits += u64::from(part.1 - part.0 > 1);
        split::refuse(&mut slot.refused, open, &slot.request, part, now);
        self.memory_revision += u64::from(stood != standing(slot));
    }

    /// The poll under way is over.
    fn finish(&mut self, index: usize) -> Option<Trace> {
        let slot = self.slots.get_mut(index)?;
        let open = slot.open.take()?;
        let stood = standing(slot);
        split::prune(&mut slot.refused);
        self.memory_revision += u64::from(stood != standing(slot));
        let at = open.at.unwrap_or(open.due);
        let first = open.samples.first().map_or(Status::CommFail, |sample| sample.status);
        // COMM_FAIL for all is what stands at a due time.
        let one =
            !first.has_value() && first != Status::CommFail && open.samples.iter().all(|sample| sample.status == first);
        let outcome = if one { Outcome::All(first) } else { Outcome::Samples(open.samples) };
        Some(self.settle(index, at, outcome))
    }

    /// A poll that somebody answered.
    fn settle(&mut self, index: usize, at: Mono, outcome: Outcome) -> Trace {
        let mut request = 0;
        if let Some(slot) = self.slots.get_mut(index) {
            request = slot.id;
            let (some, all) = match &outcome {
                Outcome::All(status) => (status.has_value(), status.has_value()),
                Outcome::Samples(samples) => (
                    samples.iter().any(|sample| sample.status.has_value()),
                    slot.refused.is_empty() || samples.iter().all(|sample| sample.status.has_value()),
                ),
            };
            slot.last = if all { Last::Values } else { Last::Exception };
            if let Some(unit) = self.units.get_mut(slot.unit) {
                unit.due += 1;
                unit.ok += u64::from(some);
            }
        }
        Trace { request, at, outcome }
    }

    /// A poll without values, traced by its due time; `quarantined`: of a unit that is known to be silent.
    fn fail(&mut self, index: usize, due: Mono, trouble: Trouble, quarantined: bool) -> Trace {
        let mut request = 0;
        self.last_error = Some(trouble);
        if let Some(slot) = self.slots.get_mut(index) {
            request = slot.id;
            slot.last = Last::Failed;
            slot.open = None;
            if let Some(unit) = self.units.get_mut(slot.unit) {
                unit.due += 1;
                // That it is silent says less than what made it so.
                if trouble != Trouble::Silent {
                    unit.last_error = Some(trouble);
                }
            }
        }
        let status = match trouble {
            Trouble::Closed | Trouble::NoConnection => Status::CommFail,
            _ if quarantined => Status::OutOfService,
            _ => Status::CommFail,
        };
        Trace { request, at: due, outcome: Outcome::All(status) }
    }

    /// The question that was out got no valid answer, and will get none.
    pub(super) fn flight_failed(&mut self, now: Mono, flight: &Flight, trouble: Trouble) {
        match flight.what {
            What::Poll { slot, due, probe, .. } => {
                let answered =
                    self.slots.get(slot).and_then(|slot| slot.open.as_ref()).is_some_and(|open| open.at.is_some());
                if answered {
                    self.last_error = Some(trouble);
                    if let Some(unit) = self.slots.get(slot).and_then(|slot| self.units.get_mut(slot.unit)) {
                        unit.last_error = Some(trouble);
                    }
                    self.trace = self.finish(slot);
                } else {
                    self.trace = Some(self.fail(slot, due, trouble, probe));
                }
            }
            What::Ask => {
                let error = match trouble {
                    Trouble::NoAnswer => AskError::NoAnswer,
                    Trouble::Doubt(doubt) => AskError::Doubt(doubt),
                    _ => AskError::Closed,
                };
                self.asks.reply(now, now.since(flight.sent), Err(error));
            }
        }
    }

    /// The unit of this flight did not answer, or not validly.
    pub(super) fn unit_failed(&mut self, flight: &Flight, now: Mono) {
        let What::Poll { slot, .. } = flight.what else { return };
        let Some(index) = self.slots.get(slot).map(|slot| slot.unit) else { return };
        let silent = |(i, unit): &(usize, &super::Unit)| *i == index || unit.silence.is_silent();
        let silent = self.units.iter().enumerate().filter(silent).count();
        let alone = self.units.len() == 1;
        // Each of n silent units takes one part in n of their share.
        let cost = now.since(flight.sent).max(flight.until.since(flight.sent)) + self.settle.max(flight.quiet);
        let times = u32::try_from(silent).unwrap_or(u32::MAX);
        let floor = cost.saturating_mul(times).as_secs_f64() / self.probe_share;
        let floor = Duration::try_from_secs_f64(floor).unwrap_or(self.probe_max);
        let Some(unit) = self.units.get_mut(index) else { return };
        unit.silence.failed(now, self.probe_max, (!alone).then_some(floor));
    }
}

/// How many ranges are believed to be refused: what [`Bus::memory`] tells.
fn standing(slot: &Slot) -> usize {
    slot.refused.iter().filter(|one| one.stands()).count()
}

/// A request for these points of it alone.
fn cut_out(request: &Request, part: Part) -> Request {
    let (address, count) = split::span(request, part);
    let from = address.wrapping_sub(request.address);
    let mut points: Vec<_> = split::points(request, part).to_vec();
    for point in &mut points {
        point.offset = point.offset.saturating_sub(from);
    }
    Request { table: request.table, address, count, period_ms: request.period_ms, points }
}
