//! What came: is it the answer to the question that is out?
//!
//! On TCP a frame says where it ends and which question it answers. On a serial line the answer is looked for in all
//! that came since the question (`frame/rtu.rs`): an exact echo of the question, stale answers (`late.rs`), other
//! masters' questions and noise before it are passed over and counted. Nothing more is read into what came once the
//! answer is found: what follows it must end, by silence, before the next question.
//!
//! An echo could be the answer itself. Reading 17 to 24 bits from 0x0300 on, it is taken for that only on a line that is
//! known not to echo; writing one register, where the answer is always the question once more, on every line that is not
//! known to echo.

use core::time::Duration;

use super::{Bus, Flight, Kept, Link, What};
use crate::modbus::config::Framing;
use crate::modbus::frame::rtu::{self, Here};
use crate::modbus::frame::{self, Doubt, Expect, MAX_FRAME, Said};
use crate::modbus::patience::PATIENCE;
use crate::modbus::status::Trouble;
use crate::time::Mono;

/// Stale answers on TCP between two questions.
const MAX_STALE: u32 = 64;
/// How long bytes that nobody asked for keep a serial line from the next question.
const NOISE_MAX: Duration = Duration::from_secs(1);

impl Bus {
    /// Bytes came, cut anyhow.
    pub fn handle_bytes(&mut self, now: Mono, bytes: &[u8]) {
        match self.framing {
            Framing::Tcp => self.tcp(now, bytes),
            Framing::Rtu if self.link == Link::Up => self.rtu(now, bytes),
            Framing::Rtu => {}
        }
    }

    fn tcp(&mut self, now: Mono, mut bytes: &[u8]) {
        // Mostly it is one whole frame, which needs no copy.
        if self.buffer.is_empty() && frame::length(bytes) == Ok(Some(bytes.len())) {
            return self.handle_frame(now, bytes);
        }
        while self.link == Link::Up {
            let (taken, rest) = bytes.split_at(bytes.len().min(MAX_FRAME.saturating_sub(self.buffer.len())));
            // There is room for them.
            let _ = self.buffer.extend_from_slice(taken);
            bytes = rest;
            match frame::length(&self.buffer) {
                Ok(Some(length)) if length <= self.buffer.len() => {
                    let all = core::mem::take(&mut self.buffer);
                    let (frame, behind) = all.split_at(length);
                    let _ = self.buffer.extend_from_slice(behind);
                    self.handle_frame(now, frame);
                }
                Ok(_) if bytes.is_empty() => return,
                Ok(_) => {}
                Err(doubt) => return self.drop_in_doubt(now, doubt),
            }
        }
    }

    /// A whole frame came, as long as its header announces.
    fn handle_frame(&mut self, now: Mono, bytes: &[u8]) {
        if self.link != Link::Up {
            return;
        }
        let [t1, t0, _, _, _, _, unit, pdu @ ..] = bytes else {
            return self.drop_in_doubt(now, Doubt::Size { announced: 9, got: bytes.len() });
        };
        let its = u16::from_be_bytes([*t1, *t0]);
        let Some(flight) = self.flight.filter(|_| its == self.transaction) else {
            return self.handle_foreign(now, its);
        };
        if *unit != flight.shape.unit {
            return self.drop_in_doubt(now, Doubt::Unit { got: *unit, expected: flight.shape.unit });
        }
        self.handle_pdu(now, &flight, pdu);
    }

    /// The PDU came that answers the question that is out, if it is one at all.
    fn handle_pdu(&mut self, now: Mono, flight: &Flight, pdu: &[u8]) {
        let said = match frame::answer(pdu, flight.shape.function, flight.shape.expect) {
            // Nothing is left to be cut.
            Ok(Said::Less) if !self.may_be_cut(flight) => {
                let expected = flight.shape.expect.length(&[flight.shape.function]).unwrap_or(2).saturating_sub(2);
                Err(Doubt::ByteCount { got: pdu.len().saturating_sub(2), expected })
            }
            said => said,
        };
        match said {
            Err(doubt) if self.framing == Framing::Tcp => self.drop_in_doubt(now, doubt),
            Err(doubt) => self.fail_in_doubt(now, doubt, true),
            Ok(said) => {
                self.land(now);
                self.measure(now, flight, pdu.len());
                match flight.what {
                    What::Poll { .. } => self.answered(now, flight, said),
                    What::Ask => {
                        self.answered(now, flight, said);
                        if let Some(unit) = self.units.iter_mut().find(|unit| unit.unit == flight.shape.unit)
                            && !matches!(said, Said::No(10 | 11))
                        {
                            unit.silence.answered();
                        }
                        self.asks.reply(now, now.since(flight.sent), Ok(pdu.into()));
                    }
                }
            }
        }
    }

    fn may_be_cut(&self, flight: &Flight) -> bool {
        match flight.what {
            What::Poll { part: Some((from, to)), .. } => to - from > 1,
            What::Poll { slot, .. } => self.slots.get(slot).is_some_and(|slot| slot.count() > 1),
            What::Ask => false,
        }
    }

    /// A frame that does not answer the question that is out: late or doubled, or nobody's.
    fn handle_foreign(&mut self, now: Mono, its: u16) {
        let age = self.transaction.wrapping_sub(its);
        let first = u16::from(self.flight.is_some());
        let known = u16::try_from(self.issued.min(0x8000)).unwrap_or(0x8000);
        if !(first..known).contains(&age) {
            let doubt = match self.flight {
                Some(_) => Doubt::Transaction { got: its, expected: self.transaction },
                None => Doubt::Unasked,
            };
            return self.drop_in_doubt(now, doubt);
        }
        self.counts.stale += 1;
        self.stale_in_row += 1;
        if self.stale_in_row > MAX_STALE {
            self.drop_in_doubt(now, Doubt::Flood);
        }
    }

    fn rtu(&mut self, now: Mono, mut bytes: &[u8]) {
        self.heard_at = now;
        while !bytes.is_empty() {
            let room = self.buffer.capacity() - self.buffer.len();
            let (taken, rest) = bytes.split_at(bytes.len().min(room));
            let _ = self.buffer.extend_from_slice(taken);
            bytes = rest;
            match self.flight {
                Some(flight) => self.look(now, flight),
                None => self.overhear(now),
            }
            if self.buffer.is_full() {
                // What is older than the longest frame can be no beginning of one.
                self.forget(rtu::MAX);
            }
        }
    }

    /// The first `count` bytes are done with.
    fn forget(&mut self, count: usize) {
        let behind = core::mem::take(&mut self.buffer);
        let _ = self.buffer.extend_from_slice(behind.get(count..).unwrap_or_default());
    }

    /// Looks for the answer in what came since the question.
    fn look(&mut self, now: Mono, mut flight: Flight) {
        let all = core::mem::take(&mut self.buffer);
        let mut at = 0;
        // Answers that may be an earlier one once more.
        let mut copies = 0;
        // Everything before this is done with.
        let mut done = 0;
        while let Some(rest) = all.get(at..).filter(|rest| !rest.is_empty()) {
            if !flight.echoed && rest.starts_with(&self.question) && self.is_echo(&flight) {
                flight.echoed = true;
                self.counts.echoes += 1;
                self.echoing = Some(true);
                at += self.question.len();
                done = at;
                continue;
            }
            match rtu::begins(rest, flight.shape) {
                Here::Whole(length) => {
                    let refusal = rest.get(1).is_some_and(|function| function & 0x80 != 0);
                    if refusal && self.late.may_refuse(flight.shape, now) {
                        self.counts.stale += 1;
                    } else if !refusal && self.is_copy(&flight, rest.get(..length), now) {
                        copies += 1;
                    } else {
                        if copies > 0 {
                            // What came before was an earlier answer once more.
                            self.counts.stale += copies;
                            self.late.repeater(flight.shape.unit, 1, now);
                        }
                        return self.take(now, flight, rest.get(..length).unwrap_or_default());
                    }
                    at += length;
                    done = if copies > 0 { done } else { at };
                    continue;
                }
                // An exception has no byte count to be known by: it may be noise.
                Here::Damaged => flight.damaged |= rest.get(1).is_some_and(|function| function & 0x80 == 0),
                Here::Begun | Here::Not => {}
            }
            if let Some(length) = self.late.take(rest, now) {
                self.counts.stale += 1;
                at += length;
                done = if copies > 0 { done } else { at };
                continue;
            }
            if let Some(shape) = rtu::foreign_question(rest).filter(|_| !rest.starts_with(&self.question)) {
                self.counts.foreign += 1;
                let key = [0xFF; 4];
                self.late.gone(now, shape, key, now + self.answer_max, None);
                if shape.is_like(flight.shape) || shape.is_kin(flight.shape) {
                    self.flight = Some(flight);
                    return self.fail_in_doubt(now, Doubt::Master, true);
                }
                at += 8;
                done = if copies > 0 { done } else { at };
                continue;
            }
            if at == done
                && let Some(length) = rtu::other_count(rest, flight.shape)
            {
                let pdu = rest.get(1..length.saturating_sub(2)).unwrap_or_default();
                self.flight = Some(flight);
                return self.handle_pdu(now, &flight, pdu);
            }
            at += 1;
        }
        flight.kept = match flight.kept {
            None if copies > 0 => {
                let unit = self.units.iter().find(|unit| unit.unit == flight.shape.unit);
                let usual = unit.map_or(Duration::ZERO, |unit| unit.times.mean * 2);
                let until = (now + self.settle.max(usual)).min(flight.until);
                Some(Kept { at: now, until, copies })
            }
            kept => kept.map(|kept| Kept { copies, ..kept }),
        };
        self.flight = Some(flight);
        self.buffer = all;
        if copies == 0 {
            self.forget(done);
        }
    }

    /// Whether the question's bytes, come back, are an echo and no answer.
    fn is_echo(&self, flight: &Flight) -> bool {
        match flight.shape.expect {
            // What is written, or sent to be sent back, comes back.
            Expect::Fixed(_) | Expect::Open => self.echoing == Some(true),
            _ if matches!(rtu::begins(&self.question, flight.shape), Here::Whole(_)) => self.echoing != Some(false),
            _ => true,
        }
    }

    fn is_copy(&self, flight: &Flight, frame: Option<&[u8]>, now: Mono) -> bool {
        let trusted = self.units.iter().any(|unit| unit.unit == flight.shape.unit && unit.times.twins)
            && !self.late.repeats(flight.shape.unit, now);
        !trusted && self.late.is_copy(flight.shape, flight.key, frame.map_or(0, rtu::crc_of), now)
    }

    /// The frame that answers the question.
    fn take(&mut self, now: Mono, flight: Flight, frame: &[u8]) {
        if self.echoing.is_none() && !flight.echoed {
            self.echoing = Some(false);
        }
        self.flight = Some(flight);
        let pdu = frame.get(1..frame.len().saturating_sub(2)).unwrap_or_default();
        self.late.gone(now, flight.shape, flight.key, flight.late_until, Some(rtu::crc_of(frame)));
        self.handle_pdu(now, &flight, pdu);
    }

    /// Bytes came while no question is out: noise, or an answer once more.
    fn overhear(&mut self, now: Mono) {
        let all = core::mem::take(&mut self.buffer);
        let (mut at, mut done) = (0, 0);
        while let Some(rest) = all.get(at..).filter(|rest| !rest.is_empty()) {
            match self.late.take(rest, now) {
                Some(length) => {
                    self.counts.stale += 1;
                    at += length;
                    done = at;
                }
                None => at += 1,
            }
        }
        self.buffer = all;
        self.forget(done);
        let since = *self.noisy_since.get_or_insert(now);
        if now.since(since) < NOISE_MAX {
            let silence = if self.doubts_in_row + self.timeouts_in_row > 0 { self.settle } else { self.quiet };
            self.free_at = self.free_at.max(now + silence);
        } else if !self.wired {
            self.drop_in_doubt(now, Doubt::Flood);
        }
    }

    /// Whether something stands in the way of the next question: on TCP the beginning of an answer that was given up;
    /// what comes next would be taken for its end.
    pub(super) fn in_doubt(&self) -> bool {
        self.framing == Framing::Tcp && !self.buffer.is_empty()
    }

    pub(super) fn handle_unasked(&mut self, now: Mono) {
        self.drop_in_doubt(now, Doubt::Unasked);
    }

    /// When the question that is out is given up, or what came is judged.
    pub(super) fn flight_ends(&self, flight: &Flight) -> Mono {
        let mut ends = flight.until;
        if let Some(kept) = flight.kept {
            ends = ends.min(kept.until);
        }
        if flight.damaged || self.may_have_ended(flight) {
            ends = ends.min(self.heard_at + self.settle);
        }
        ends
    }

    /// Whether what came may be an answer that only silence ends: one of an unknown length, or a damaged one.
    fn may_have_ended(&self, flight: &Flight) -> bool {
        if self.framing != Framing::Rtu || self.buffer.is_empty() || flight.kept.is_some() {
            return false;
        }
        let [unit, function, ..] = *self.buffer else { return false };
        let its = unit == flight.shape.unit && function & 0x7F == flight.shape.function;
        its && (self.wired || !matches!(flight.shape.expect, Expect::Data(_) | Expect::Fixed(_)))
            && self.buffer.len() >= 5
    }

    /// The question that is out has come to its end, by time or by silence.
    pub(super) fn handle_deadline(&mut self, now: Mono) {
        let Some(flight) = self.flight else { return };
        if let Some(Kept { at, copies, .. }) = flight.kept {
            if copies > 1 {
                // One of them is too many, and which cannot be told.
                self.counts.stale += copies;
                self.late.repeater(flight.shape.unit, 1, now);
                return self.fail_in_doubt(now, Doubt::Unasked, true);
            }
            // No other answer followed: it is no copy.
            return self.take_kept(at, flight);
        }
        if self.framing == Framing::Rtu && flight.until > now {
            if self.may_have_ended(&flight)
                && !matches!(flight.shape.expect, Expect::Data(_) | Expect::Fixed(_))
                && rtu::intact(&self.buffer)
            {
                let all = core::mem::take(&mut self.buffer);
                return self.take(now, flight, &all);
            }
            self.counts.damaged += 1;
            return self.fail_in_doubt(now, Doubt::Crc, !flight.damaged);
        }
        self.land(now);
        self.counts.timeouts += 1;
        self.late_is_possible(now, &flight);
        let probe = matches!(flight.what, What::Poll { probe: true, .. }) || matches!(flight.what, What::Ask);
        let others = self.units.iter().any(|unit| !unit.silence.is_silent());
        self.unit_failed(&flight, now);
        self.flight_failed(now, &flight, Trouble::NoAnswer);
        if !(probe && others) {
            self.timeouts_in_row += 1;
        }
        if self.timeouts_in_row >= PATIENCE && !self.wired {
            self.disconnect = true;
            self.link_down(now);
        }
    }

    /// The answer that may have been a copy is none.
    fn take_kept(&mut self, now: Mono, flight: Flight) {
        let all = core::mem::take(&mut self.buffer);
        let mut rest = all.as_slice();
        while !rest.is_empty() {
            if let Here::Whole(length) = rtu::begins(rest, flight.shape) {
                if let Some(unit) = self.units.iter_mut().find(|unit| unit.unit == flight.shape.unit) {
                    unit.times.twins = true;
                }
                return self.take(now, flight, rest.get(..length).unwrap_or_default());
            }
            rest = rest.get(1..).unwrap_or_default();
        }
    }

    /// On a serial line: the question that is out gets no answer that can be believed. `more`: it may still come.
    fn fail_in_doubt(&mut self, now: Mono, doubt: Doubt, more: bool) {
        let Some(flight) = self.land(now) else { return };
        self.counts.errors += 1;
        self.doubts_in_row += 1;
        if more {
            self.late_is_possible(now, &flight);
        }
        // A damaged answer is the line's fault: the unit is there.
        if !flight.damaged {
            self.unit_failed(&flight, now);
        }
        self.flight_failed(now, &flight, Trouble::Doubt(doubt));
        self.free_at = self.free_at.max(now + self.settle);
        if self.doubts_in_row >= PATIENCE && !self.wired {
            self.disconnect = true;
            self.link_down(now);
        }
    }

    /// This question's answer may still come.
    pub(super) fn late_is_possible(&mut self, now: Mono, flight: &Flight) {
        if self.framing == Framing::Rtu && flight.late_until > now {
            self.late.gone(now, flight.shape, flight.key, flight.late_until, None);
        }
        if self.framing == Framing::Rtu {
            self.free_at = self.free_at.max(now + self.settle);
        }
    }

    /// The question that was out is out no more.
    pub(super) fn land(&mut self, now: Mono) -> Option<Flight> {
        let flight = self.flight.take()?;
        self.load.add(now, now.since(flight.sent) + flight.quiet);
        self.free_at = now + flight.quiet;
        Some(flight)
    }

    /// From the question's last byte to the answer's first, as far as that can be known.
    fn measure(&mut self, now: Mono, flight: &Flight, pdu: usize) {
        let characters =
            self.character.saturating_mul(u32::try_from(self.question.len() + pdu + rtu::AROUND).unwrap_or(0));
        let took = now.since(flight.sent).saturating_sub(characters);
        if let Some(unit) = self.units.iter_mut().find(|unit| unit.unit == flight.shape.unit) {
            unit.times.add(took);
        }
    }
}
