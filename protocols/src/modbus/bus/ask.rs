//! The next question: which it is, and what it looks like on the wire.

use core::time::Duration;

use super::{Bus, Flight, Link, Output, What, split};
use crate::modbus::config::Framing;
use crate::modbus::frame::rtu::{self, Shape};
use crate::modbus::frame::{self, Expect, Frame};
use crate::modbus::slot::Slot;
use crate::time::Mono;

impl Bus {
    /// When `slot` may be asked.
    pub(super) fn ready_at(&self, slot: &Slot, now: Mono) -> Mono {
        let due = slot.next_due();
        let Some(unit) = self.units.get(slot.unit).filter(|_| self.link == Link::Up) else { return due };
        let at = due.max(self.free_at).max(unit.rest_until);
        match self.late.is_empty() {
            true => at,
            false => at.max(self.late.free_at(self.shape(slot, now), now)),
        }
    }

    /// What the answer to the next question of `slot` looks like.
    fn shape(&self, slot: &Slot, now: Mono) -> Shape {
        let (address, count) = slot.next_span(now);
        let function = slot.request.table.function();
        let unit = self.units.get(slot.unit).map_or(0, |unit| unit.unit);
        Shape { unit, function, expect: Expect::of(&frame::read(function, address, count)) }
    }

    /// The most urgent question.
    pub(super) fn ask(&mut self, now: Mono) -> Option<Output> {
        if self.ask_at(now).is_some_and(|at| at <= now) {
            return self.ask_beside(now);
        }
        let ready = |slot: &Slot| slot.next_due() <= now && self.ready_at(slot, now) <= now;
        let urgency = |slot: &Slot| {
            // Where questions have no number, the next answer had better look unlike the last.
            let like = self.framing == Framing::Rtu && self.last_shape == Some(self.shape(slot, now));
            (slot.urgency(), like)
        };
        let due = self.slots.iter().enumerate().filter(|(_, slot)| ready(slot));
        let (index, _) = due.min_by_key(|(_, slot)| urgency(slot))?;
        let slot = self.slots.get_mut(index)?;
        let (due, part) = slot.begin(now);
        let (address, count) = match part {
            Some(part) => split::span(&slot.request, part),
            None => (slot.request.address, slot.request.count),
        };
        let unit = self.units.get(slot.unit)?;
        let pdu = frame::read(slot.request.table.function(), address, count);
        let probe = unit.silence.is_silent();
        self.counts.probes += u64::from(probe);
        let (address, timeout, answer_max, quiet) = (unit.unit, unit.timeout, unit.answer_max, unit.quiet);
        Some(self.send(now, What::Poll { slot: index, due, part, probe }, address, &pdu, [timeout, answer_max, quiet]))
    }

    /// The next question beside the schedule.
    fn ask_beside(&mut self, now: Mono) -> Option<Output> {
        let ask = self.asks.waiting.pop_front()?;
        let timeout = self.ask_timeout(&ask);
        let unit = self.units.iter().find(|unit| unit.unit == ask.unit);
        let (answer_max, quiet) = unit.map_or((self.answer_max, self.quiet), |unit| (unit.answer_max, unit.quiet));
        self.counts.asks += 1;
        let (address, pdu) = (ask.unit, ask.pdu.clone());
        self.asks.out = Some(ask);
        Some(self.send(now, What::Ask, address, &pdu, [timeout, answer_max.max(timeout), quiet]))
    }

    /// `times`: time-out, longest time to an answer, silence behind it.
    fn send(&mut self, now: Mono, what: What, unit: u8, pdu: &[u8], times: [Duration; 3]) -> Output {
        let [timeout, answer_max, quiet] = times;
        self.transaction = self.transaction.wrapping_add(1);
        let frame = Frame::pack(self.framing, unit, pdu, self.transaction);
        let shape = Shape::of(unit, pdu);
        let wire = match self.character {
            Duration::ZERO => Duration::ZERO,
            character => character.saturating_mul(wire_characters(frame.len(), shape.expect)),
        };
        let mut key = [0; 4];
        key.iter_mut().zip(pdu.iter().skip(1)).for_each(|(to, from)| *to = *from);
        self.flight = Some(Flight {
            what,
            shape,
            key,
            sent: now,
            until: now + timeout + wire,
            late_until: now + answer_max + wire,
            quiet,
            echoed: false,
            damaged: false,
            kept: None,
        });
        if self.framing == Framing::Rtu {
            self.question = frame.clone();
            self.buffer.clear();
        }
        self.last_shape = Some(shape);
        self.noisy_since = None;
        self.issued = self.issued.saturating_add(1);
        self.stale_in_row = 0;
        self.counts.requests += 1;
        Output::Ask { frame }
    }
}

/// Characters of a question and of the longest answer to it.
fn wire_characters(question: usize, expect: Expect) -> u32 {
    let answer = match expect {
        Expect::Data(count) => usize::from(count) + 5,
        Expect::Fixed(count) => usize::from(count) + 4,
        Expect::Counted | Expect::Identification | Expect::Open => rtu::MAX,
    };
    u32::try_from(question + answer).unwrap_or(u32::MAX)
}
