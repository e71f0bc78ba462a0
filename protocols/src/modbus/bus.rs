//! When to ask which unit what: the schedule of one bus.
//!
//! Between plan and driver; pure, on the monotonic clock alone. The driver tells what happened (`handle_*`), asks what
//! to do ([`poll`](Bus::poll)) and until when it may sleep ([`next_deadline`](Bus::next_deadline)).
//!
//! 1. One question is out at a time. An answer is believed only if [`frame::check`] finds nothing wrong with it.
//! 2. Due times are start + phase + k · period: they never drift. Phases spread the units of a bus over the period (over
//!    its first 10 s if it is longer, so that a new plant shows values soon), from one of its four quarters on; the
//!    requests of one unit stand together. A phase for each request was turned down: twice the wakings for each poll,
//!    which is most of what a poll costs. Of several due requests the one whose
//!    due time + period (at most 1 s) is earliest goes first: fast points come first, slow ones do not starve.
//! 3. Every due poll is traced, exactly once: by samples or the status of an exception, stamped by the answer; or by
//!    COMM_FAIL, stamped by its due time, when no valid answer came, there is no connection, the unit is silent, or
//!    the next due time came before the bus was free (contract rules 10 and 13).
//! 4. A unit that three times in a row gave no valid answer is *silent*: its polls fail at once, and one of them goes
//!    out as a probe at growing intervals, 1 s · 2ⁿ up to `probe_max`. Probes of all silent units together take at most
//!    about a tenth of the bus. The first valid answer ends this. A unit alone on its bus harms no other and is probed
//!    every 5 s at the latest.
//! 5. Any doubt about an answer drops the connection: what else is in it belongs to no question. Late and doubled
//!    answers, known by their transaction, are skipped instead, 64 of them between two questions. A time-out alone keeps
//!    the connection, for other units may be behind it; three in a row drop it.
//! 6. After a valid answer the first reconnect is immediate; then 100 ms · 2ⁿ, at most `reconnect_max`, of which a
//!    random part between half and all is waited.
//!
//! Choosing looks at every request of the bus, some ns each: some thousands of requests a bus are fine.

mod report;

use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use crate::backoff::{Chance, Reconnect};
use crate::modbus::config::{BusSpec, DeviceSpec, Timing};
use crate::modbus::decode::{decode, exception_status};
use crate::modbus::frame::{self, Answer, Doubt, MAX_FRAME};
use crate::modbus::patience::{PATIENCE, Silence};
use crate::modbus::plan::Request;
use crate::modbus::slot::{self, Last, Slot};
use crate::modbus::status::{Load, Trouble};
use crate::reading::{Outcome, Status};
use crate::time::Mono;

/// Stale answers between two questions.
const MAX_STALE: u32 = 64;
const URGENCY_MAX: Duration = Duration::from_secs(1);

/// One bus: connection, requests with their due times, and what is known of its devices.
#[derive(Debug)]
pub struct Bus {
    name: String,
    timeout: Duration,
    connect_delay: Duration,
    reconnect_max: Duration,
    probe_max: Duration,
    units: Vec<Unit>,
    slots: Vec<Slot>,
    link: Link,
    reconnect: Reconnect,
    /// Time-outs in a row on this connection.
    timeouts_in_row: u32,
    flight: Option<Flight>,
    /// When the line has been quiet for long enough.
    free_at: Mono,
    transaction: u16,
    /// Questions asked on this connection.
    issued: u32,
    stale: u32,
    /// What came and is no whole frame yet.
    buffer: heapless::Vec<u8, MAX_FRAME>,
    trace: Option<Trace>,
    disconnect: bool,
    load: Load,
    connection_error: Option<String>,
    last_error: Option<Trouble>,
    requests: u64,
    timeouts: u64,
    errors: u64,
    missed: u64,
}

#[derive(Debug)]
struct Unit {
    name: String,
    unit: u8,
    timeout: Duration,
    quiet: Duration,
    silence: Silence,
    due: u64,
    ok: u64,
    last_error: Option<Trouble>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    Down { retry_at: Mono },
    Connecting { until: Mono },
    Up,
}

#[derive(Clone, Copy, Debug)]
struct Flight {
    slot: usize,
    due: Mono,
    sent: Mono,
    until: Mono,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Connect, within `timeout`; then say [`Bus::handle_connected`] or [`Bus::handle_connect_failed`].
    Connect {
        /// How long it may take.
        timeout: Duration,
    },
    /// Drop the connection, with whatever is still in it.
    Disconnect,
    /// Send this question.
    Ask {
        /// As on the wire.
        frame: [u8; 12],
    },
    /// Pass this poll on.
    Trace(Trace),
}

/// What became of one due poll.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// The request, by its number in the gateway's list.
    pub request: u32,
    /// The moment that stamps it: when the answer arrived; when it was due if none did.
    pub at: Mono,
    /// What it brought.
    pub outcome: Outcome,
}

/// A device on a bus, with what is asked of it.
#[derive(Clone, Debug)]
pub struct BusDevice {
    /// As configured.
    pub name: String,
    /// 1 to 255.
    pub unit: u8,
    /// Times of its own.
    pub timing: Timing,
    /// Requests, each with its index in the gateway's list of requests: what
    /// [`Poll::request`](crate::reading::Poll::request) will say.
    pub requests: Vec<(u32, Request)>,
}

impl BusDevice {
    /// A device with its planned requests, the first of which is number `first` in the gateway's list.
    #[must_use]
    pub fn new(device: &DeviceSpec, requests: Vec<Request>, first: u32) -> Self {
        Self {
            name: device.name.clone(),
            unit: device.unit,
            timing: device.timing,
            requests: (first..).zip(requests).collect(),
        }
    }
}

impl Bus {
    /// A bus that starts at `now`. `seed` gives its phase among other buses and the jitter of its reconnects.
    #[must_use]
    pub fn new(spec: &BusSpec, devices: Vec<BusDevice>, now: Mono, seed: u64) -> Self {
        let mut units = Vec::new();
        let mut slots = Vec::new();
        for (unit, device) in devices.into_iter().enumerate() {
            units.push(Unit {
                name: device.name,
                unit: device.unit,
                timeout: device.timing.timeout.unwrap_or(spec.timeout),
                quiet: device.timing.quiet.unwrap_or(spec.quiet),
                silence: Silence::default(),
                due: 0,
                ok: 0,
                last_error: None,
            });
            slots.extend(device.requests.into_iter().map(|(id, request)| {
                let period = Duration::from_millis(request.period_ms.max(1).into());
                Slot { id, unit, request, period, due: now, last: Last::Nothing }
            }));
        }
        let mut bus = Self {
            name: spec.name.clone(),
            timeout: spec.timeout,
            connect_delay: spec.connect_delay,
            reconnect_max: spec.reconnect_max,
            probe_max: spec.probe_max,
            units,
            slots,
            link: Link::Down { retry_at: now },
            reconnect: Reconnect::new(seed),
            timeouts_in_row: 0,
            flight: None,
            free_at: now,
            transaction: 0,
            issued: 0,
            stale: 0,
            buffer: heapless::Vec::new(),
            trace: None,
            disconnect: false,
            load: Load::new(now),
            connection_error: None,
            last_error: None,
            requests: 0,
            timeouts: 0,
            errors: 0,
            missed: 0,
        };
        let mut chance = Chance::new(!seed);
        bus.transaction = u16::try_from(chance.next() & 0xFFFF).unwrap_or(0);
        slot::spread(&mut bus.slots, now, chance.next() >> 32);
        bus
    }

    /// The next thing to do at `now`; call it until there is none.
    pub fn poll(&mut self, now: Mono) -> Option<Output> {
        if self.flight.is_some_and(|flight| flight.until <= now) {
            self.handle_timeout(now);
        }
        if let Some(trace) = self.trace.take() {
            return Some(Output::Trace(trace));
        }
        if core::mem::take(&mut self.disconnect) {
            return Some(Output::Disconnect);
        }
        if self.flight.is_some() {
            return None;
        }
        if let Some(trace) = self.give_up_one(now) {
            return Some(Output::Trace(trace));
        }
        match self.link {
            Link::Connecting { .. } => None,
            Link::Down { .. } => self.slots.iter().any(|slot| slot.due <= now).then(|| {
                self.link = Link::Connecting { until: now + self.timeout };
                Output::Connect { timeout: self.timeout }
            }),
            Link::Up if now < self.free_at => None,
            // The beginning of an answer that was given up: what comes next would be taken for its end.
            Link::Up if !self.buffer.is_empty() => {
                self.handle_doubt(now, Doubt::Unasked);
                self.poll(now)
            }
            Link::Up => self.ask(now),
        }
    }

    /// Until when nothing will be to do, if nothing happens before. `None`: the bus has no requests.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Mono> {
        if self.trace.is_some() || self.disconnect {
            return Some(Mono::ZERO);
        }
        if let Some(flight) = self.flight {
            return Some(flight.until);
        }
        if let Link::Connecting { until } = self.link {
            return Some(until);
        }
        let at = |slot: &Slot| match self.hopeless(slot, slot.due) {
            true => slot.due,
            false if self.link == Link::Up => slot.due.max(self.free_at),
            false => slot.due,
        };
        self.slots.iter().map(at).min()
    }

    /// Whether a poll of `slot` at `now` fails without being tried.
    fn hopeless(&self, slot: &Slot, now: Mono) -> bool {
        self.units.get(slot.unit).is_some_and(|unit| unit.silence.holds(now))
            || matches!(self.link, Link::Down { retry_at } if now < retry_at)
    }

    /// One due poll that is overdue or hopeless, as a failure.
    fn give_up_one(&mut self, now: Mono) -> Option<Trace> {
        let overdue = |slot: &Slot| slot.due + slot.period <= now;
        let index =
            self.slots.iter().position(|slot| slot.due <= now && (overdue(slot) || self.hopeless(slot, now)))?;
        let slot = self.slots.get_mut(index)?;
        let due = slot.due;
        let no_link = !matches!(self.link, Link::Up);
        let silent = self.units.get(slot.unit).is_some_and(|unit| unit.silence.is_silent());
        slot.due = due + slot.period;
        self.missed += 1;
        let trouble = if no_link {
            Trouble::NoConnection
        } else if silent {
            Trouble::Silent
        } else {
            Trouble::Overdue
        };
        Some(self.fail(index, due, trouble))
    }

    /// The most urgent question.
    fn ask(&mut self, now: Mono) -> Option<Output> {
        let due = self.slots.iter().enumerate().filter(|(_, slot)| slot.due <= now);
        let (index, _) = due.min_by_key(|(_, slot)| slot.due + slot.period.min(URGENCY_MAX))?;
        let slot = self.slots.get_mut(index)?;
        let unit = self.units.get_mut(slot.unit)?;
        self.transaction = self.transaction.wrapping_add(1);
        let frame = frame::question(&slot.request, unit.unit, self.transaction);
        self.flight = Some(Flight { slot: index, due: slot.due, sent: now, until: now + unit.timeout });
        slot.due = slot.due + slot.period;
        self.issued = self.issued.saturating_add(1);
        self.stale = 0;
        self.requests += 1;
        Some(Output::Ask { frame })
    }

    /// There is a connection.
    pub fn handle_connected(&mut self, now: Mono) {
        self.link = Link::Up;
        self.buffer.clear();
        self.free_at = now + self.connect_delay;
        self.issued = 0;
        self.stale = 0;
        self.timeouts_in_row = 0;
    }

    /// There is none, because of `error`.
    pub fn handle_connect_failed(&mut self, now: Mono, error: &str) {
        self.errors += 1;
        self.reconnect.failed();
        self.connection_error = Some(error.into());
        self.last_error = Some(Trouble::NoConnection);
        self.link_down(now);
    }

    /// The connection ended, because of `error`.
    pub fn handle_closed(&mut self, now: Mono, error: &str) {
        if self.link == Link::Up {
            self.connection_error = Some(error.into());
            self.lose(now, Trouble::Closed);
        }
    }

    /// What came cannot be a frame.
    fn handle_doubt(&mut self, now: Mono, doubt: Doubt) {
        if self.link == Link::Up {
            self.disconnect = true;
            self.lose(now, Trouble::Doubt(doubt));
        }
    }

    /// Bytes came.
    pub fn handle_bytes(&mut self, now: Mono, mut bytes: &[u8]) {
        // Mostly it is one whole frame, which needs no copy.
        if self.buffer.is_empty() && frame::length(bytes) == Ok(Some(bytes.len())) {
            return self.handle_frame(now, bytes);
        }
        while self.link == Link::Up {
            let (taken, rest) = bytes.split_at(bytes.len().min(MAX_FRAME - self.buffer.len()));
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
                Err(doubt) => return self.handle_doubt(now, doubt),
            }
        }
    }

    /// A whole frame came, as long as its header announces.
    fn handle_frame(&mut self, now: Mono, bytes: &[u8]) {
        if self.link != Link::Up {
            return;
        }
        let Some(its) = frame::transaction(bytes) else {
            return self.handle_doubt(now, Doubt::Size { announced: 9, got: bytes.len() });
        };
        let flight = self.flight.filter(|_| its == self.transaction);
        let Some((flight, slot)) = flight.and_then(|flight| self.slots.get(flight.slot).map(|slot| (flight, slot)))
        else {
            return self.handle_foreign(now, its);
        };
        let unit = self.units.get(slot.unit).map_or(0, |unit| unit.unit);
        match frame::check(bytes, &slot.request, unit, its) {
            Err(doubt) => self.handle_doubt(now, doubt),
            Ok(Answer::Data(data)) => {
                let outcome = Outcome::Samples(decode(&slot.request, data));
                self.answered(now, flight, outcome, None);
            }
            Ok(Answer::Exception(code)) => {
                self.answered(now, flight, Outcome::All(exception_status(code)), Some(code));
            }
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
            return self.handle_doubt(now, doubt);
        }
        self.stale += 1;
        if self.stale > MAX_STALE {
            self.handle_doubt(now, Doubt::Flood);
        }
    }

    fn handle_timeout(&mut self, now: Mono) {
        let Some(flight) = self.land(now) else { return };
        self.timeouts += 1;
        self.timeouts_in_row += 1;
        self.unit_failed(flight, now);
        self.trace = Some(self.fail(flight.slot, flight.due, Trouble::NoAnswer));
        if self.timeouts_in_row >= PATIENCE {
            self.disconnect = true;
            self.link_down(now);
        }
    }

    /// The connection is worth nothing any more.
    fn lose(&mut self, now: Mono, trouble: Trouble) {
        if let Some(flight) = self.land(now) {
            self.errors += 1;
            self.unit_failed(flight, now);
            self.trace = Some(self.fail(flight.slot, flight.due, trouble));
        } else if trouble != Trouble::Closed {
            self.errors += 1;
        }
        self.last_error = Some(trouble);
        self.link_down(now);
    }

    fn link_down(&mut self, now: Mono) {
        let wait = self.reconnect.wait(self.reconnect_max);
        self.link = Link::Down { retry_at: now + wait };
    }

    /// The question that was out is out no more.
    fn land(&mut self, now: Mono) -> Option<Flight> {
        let flight = self.flight.take()?;
        self.load.add(now, now.since(flight.sent));
        let quiet = self.slots.get(flight.slot).and_then(|slot| self.units.get(slot.unit)).map(|unit| unit.quiet);
        self.free_at = now + quiet.unwrap_or_default();
        Some(flight)
    }

    /// A valid answer.
    fn answered(&mut self, now: Mono, flight: Flight, outcome: Outcome, exception: Option<u8>) {
        self.land(now);
        self.timeouts_in_row = 0;
        self.reconnect.reset();
        let Some(slot) = self.slots.get_mut(flight.slot) else { return };
        let request = slot.id;
        slot.last = if exception.is_some() { Last::Exception } else { Last::Values };
        if let Some(unit) = self.units.get_mut(slot.unit) {
            unit.due += 1;
            if let Some(code) = exception {
                unit.last_error = Some(Trouble::Exception(code));
            } else {
                unit.ok += 1;
            }
            // Codes 10 and 11 come from a gateway on behalf of a unit that it cannot reach.
            if matches!(exception, Some(10 | 11)) {
                self.unit_failed(flight, now);
            } else {
                unit.silence.answered();
            }
        }
        self.trace = Some(Trace { request, at: now, outcome });
    }

    /// A poll without values, traced by its due time.
    fn fail(&mut self, index: usize, due: Mono, trouble: Trouble) -> Trace {
        let mut request = 0;
        self.last_error = Some(trouble);
        if let Some(slot) = self.slots.get_mut(index) {
            request = slot.id;
            slot.last = Last::Failed;
            if let Some(unit) = self.units.get_mut(slot.unit) {
                unit.due += 1;
                // That it is silent says less than what made it so.
                if trouble != Trouble::Silent {
                    unit.last_error = Some(trouble);
                }
            }
        }
        Trace { request, at: due, outcome: Outcome::All(Status::CommFail) }
    }

    /// The unit of this flight did not answer, or not validly.
    fn unit_failed(&mut self, flight: Flight, now: Mono) {
        let Some(index) = self.slots.get(flight.slot).map(|slot| slot.unit) else { return };
        let silent = |(i, unit): &(usize, &Unit)| *i == index || unit.silence.is_silent();
        let silent = self.units.iter().enumerate().filter(silent).count();
        let alone = self.units.len() == 1;
        let Some(unit) = self.units.get_mut(index) else { return };
        unit.silence.failed(now, unit.timeout, self.probe_max, (!alone).then_some(silent));
    }
}
