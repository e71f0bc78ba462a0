//! When to ask which unit what: the schedule of one bus.
//!
//! Between plan and driver; pure, on the monotonic clock alone. The driver tells what happened (`handle_*`), asks what
//! to do ([`poll`](Bus::poll)) and until when it may sleep ([`next_deadline`](Bus::next_deadline)).
//!
//! 1. One question is out at a time. An answer is believed only if nothing is wrong with it (`frame.rs`, `answer.rs`). A
//!    late or doubled one is never taken for a fresh one: TCP numbers its questions, on a serial line `late.rs` sees to it.
//! 2. Due times are start + phase + k · period: they never drift. Phases spread the units of a bus over the period (over
//!    its first 10 s if it is longer, so that a new plant shows values soon), from one of its four quarters on; the
//!    requests of one unit stand together. A phase for each request was turned down: twice the wakings for each poll,
//!    which is most of what a poll costs. Of several due requests the one whose due time + period is earliest goes first,
//!    which keeps every period that can be kept at all (forecast.rs). A period counts as 10 s at most, and who was passed
//!    over waits since its first due time: so where a bus has too much to do slow points are served too. At the same
//!    urgency one goes first that looks unlike the last.
//! 3. Every due poll is traced, exactly once: by samples or the status of an exception, stamped by the (first) answer; or
//!    stamped by its due time: COMM_FAIL when no valid answer came, there is no connection, or the next due time came
//!    before the bus was free; OUT_OF_SERVICE when the unit is silent, its probes included, so that the statuses of a dead
//!    device are one run (contract rules 10 and 13).
//! 4. A unit that three times in a row gave no valid answer is *silent*: its polls are not sent, and one of them goes
//!    out as a probe at growing intervals, 1 s · 2ⁿ up to `probe_max`. Probes of all silent units together take at most
//!    `probe_share` of the bus. The first valid answer ends this. A unit alone on its bus harms no other and is probed
//!    every 5 s at the latest. What the connection did is not the unit's fault: after a second without one, each silent
//!    unit is probed anew.
//! 5. On TCP any doubt about an answer drops the connection: what else is in it belongs to no question. Late and doubled
//!    answers, known by their transaction, are skipped instead, 64 of them between two questions. A time-out alone keeps
//!    the connection, for other units may be behind it; three in a row drop it, probes not counted as long as another
//!    unit answers. On a serial line the bus waits for silence instead, at most a second; a connection to one is dropped
//!    if three doubts follow each other.
//! 6. After a valid answer the first reconnect is immediate; then 100 ms · 2ⁿ, at most `reconnect_max`, of which a
//!    random part between half and all is waited. A bus with `release` gives the connection up when nothing is due for
//!    250 ms, or twice the pause that it needs after connecting.
//! 7. A block that is refused is cut in two (`split.rs`), within the poll as far as other polls leave time. A busy device
//!    (exceptions 5 and 6) is asked again after 50 ms · 2ⁿ, five times at most and not beyond the period.
//! 8. Ad-hoc questions go between the polls (`adhoc.rs`).
//!
//! On a serial line time-out and `answer_max` begin and end with silence: the wire time of question and answer is added.
//!
//! Choosing looks at every request of the bus, some ns each: some thousands of requests a bus are fine.

mod adhoc;
mod answer;
mod ask;
mod late;
mod link;
mod memory;
mod poll;
mod report;
pub(crate) mod split;

use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

pub use adhoc::{ASKS, AdHoc, AskError};
pub use memory::{Memory, Refusal, RefusedBlock};

use crate::backoff::{Chance, Reconnect};
use crate::modbus::bus::adhoc::Asks;
use crate::modbus::bus::late::Late;
use crate::modbus::bus::link::Link;
use crate::modbus::bus::split::Part;
use crate::modbus::config::{self, BusSpec, DeviceSpec, Framing, Timing};
use crate::modbus::frame::rtu::Shape;
use crate::modbus::frame::{Frame, MAX_FRAME};
use crate::modbus::patience::Silence;
use crate::modbus::plan::Request;
use crate::modbus::slot::{self, Slot};
use crate::modbus::status::{AnswerTimes, Load, Trouble};
use crate::reading::Outcome;
use crate::time::Mono;

/// Silence after which what is on a serial line is over: adapters hand on what came every 16 ms.
const SETTLE_SERIAL: Duration = Duration::from_millis(20);
/// The same behind a network.
const SETTLE_NETWORK: Duration = Duration::from_millis(50);

/// One bus: connection, requests with their due times, and what is known of its devices.
#[derive(Debug)]
pub struct Bus {
    name: String,
    framing: Framing,
    /// Whether the link is a line of this machine, which cannot be dropped.
    wired: bool,
    /// How long a character takes on the wire; zero where that is not ours to know.
    character: Duration,
    /// Silence after which the line is believed to be at rest.
    settle: Duration,
    timeout: Duration,
    answer_max: Duration,
    quiet: Duration,
    connect_delay: Duration,
    release: bool,
    reconnect_max: Duration,
    probe_max: Duration,
    probe_share: f64,
    units: Vec<Unit>,
    slots: Vec<Slot>,
    link: Link,
    /// Since when the connection is away that was not given up by us.
    lost_at: Option<Mono>,
    reconnect: Reconnect,
    /// Time-outs, or doubts, in a row on this connection.
    timeouts_in_row: u32,
    doubts_in_row: u32,
    flight: Option<Flight>,
    /// The last question, to know its echo.
    question: Frame,
    /// What the last question's answer looked like.
    last_shape: Option<Shape>,
    /// When it was last asked what to do.
    seen_at: Mono,
    /// When the line has been quiet for long enough.
    free_at: Mono,
    /// When something came last.
    heard_at: Mono,
    /// Since when something comes that nobody asked for.
    noisy_since: Option<Mono>,
    /// Whether the line lets us hear ourselves; `None`: not known yet.
    echoing: Option<bool>,
    late: Late,
    transaction: u16,
    /// Questions asked on this connection.
    issued: u32,
    stale_in_row: u32,
    /// What came and is no whole frame yet.
    buffer: heapless::Vec<u8, { 2 * MAX_FRAME }>,
    trace: Option<Trace>,
    disconnect: bool,
    asks: Asks,
    memory_revision: u64,
    load: Load,
    connection_error: Option<String>,
    last_error: Option<Trouble>,
    counts: Counts,
}

/// What happened so often.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    requests: u64,
    timeouts: u64,
    errors: u64,
    missed: u64,
    probes: u64,
    echoes: u64,
    damaged: u64,
    stale: u64,
    foreign: u64,
    splits: u64,
    asks: u64,
}

#[derive(Debug)]
struct Unit {
    name: String,
    unit: u8,
    timeout: Duration,
    answer_max: Duration,
    quiet: Duration,
    silence: Silence,
    /// Until when it is left in peace, because it was busy.
    rest_until: Mono,
    times: AnswerTimes,
    due: u64,
    ok: u64,
    last_error: Option<Trouble>,
}

/// The question that is out.
#[derive(Clone, Copy, Debug)]
struct Flight {
    what: What,
    shape: Shape,
    /// What is behind the function: address and count.
    key: [u8; 4],
    sent: Mono,
    until: Mono,
    /// Until when its answer may come.
    late_until: Mono,
    quiet: Duration,
    /// Whether its echo was heard.
    echoed: bool,
    /// Whether the answer came and was damaged.
    damaged: bool,
    /// What came may be an earlier answer once more.
    kept: Option<Kept>,
}

/// An answer that equals the one to another question, and is believed if nothing else comes.
#[derive(Clone, Copy, Debug)]
struct Kept {
    /// When it came.
    at: Mono,
    until: Mono,
    /// How often it came.
    copies: u64,
}

#[derive(Clone, Copy, Debug)]
enum What {
    /// A poll, or a part of one.
    Poll {
        slot: usize,
        due: Mono,
        part: Option<Part>,
        /// Whether the unit was silent before.
        probe: bool,
    },
    /// A question beside the schedule.
    Ask,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "a frame is copied once and never boxed: polls allocate nothing for it")]
pub enum Output {
    /// Connect, within `timeout`; then say [`Bus::handle_connected`] or [`Bus::handle_connect_failed`].
    Connect {
        /// How long it may take.
        timeout: Duration,
    },
    /// Drop the connection, with whatever is still in it: something is wrong with it.
    Disconnect,
    /// Give the connection up: nothing is due soon, and the devices want it so.
    Release,
    /// Send this question.
    Ask {
        /// As on the wire.
        frame: Frame,
    },
    /// Pass this poll on.
    Trace(Trace),
    /// What came of an ad-hoc question.
    Reply {
        /// The question's.
        id: u64,
        /// The answer's PDU, an exception's included: function, or function + 0x80, and what is behind it.
        result: Result<Vec<u8>, AskError>,
    },
}

/// What became of one due poll.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// The request, by its number in the gateway's list.
    pub request: u32,
    /// The moment that stamps it: when the (first) answer arrived; when it was due if none did.
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
    /// Whether it wants the connection to be given up between polls.
    pub release: bool,
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
            release: device.release,
            requests: (first..).zip(requests).collect(),
        }
    }
}

impl Bus {
    /// A bus that starts at `now`. `seed` gives its phase among other buses and the jitter of its reconnects.
    #[must_use]
    pub fn new(spec: &BusSpec, devices: Vec<BusDevice>, now: Mono, seed: u64) -> Self {
        let (mut units, mut slots) = (Vec::new(), Vec::new());
        let delays = devices.iter().filter_map(|device| device.timing.connect_delay);
        let connect_delay = delays.fold(spec.connect_delay, Duration::max);
        let release = spec.release || devices.iter().any(|device| device.release);
        for (unit, device) in devices.into_iter().enumerate() {
            let timeout = device.timing.timeout.unwrap_or(spec.timeout);
            units.push(Unit {
                name: device.name,
                unit: device.unit,
                timeout,
                answer_max: device.timing.answer_max.unwrap_or(spec.answer_max).max(timeout),
                // A device may want more silence than its line needs, never less.
                quiet: device.timing.quiet.map_or(spec.quiet, |quiet| match &spec.link {
                    config::Link::Serial(line) => quiet.max(line.silence()),
                    _ => quiet,
                }),
                silence: Silence::default(),
                rest_until: now,
                times: AnswerTimes::default(),
                due: 0,
                ok: 0,
                last_error: None,
            });
            slots.extend(device.requests.into_iter().map(|(id, request)| Slot::new(id, unit, request, now)));
        }
        let (wired, character) = match &spec.link {
            config::Link::Serial(line) => (true, line.time(1)),
            _ => (false, Duration::ZERO),
        };
        let mut chance = Chance::new(!seed);
        let transaction = u16::try_from(chance.next() & 0xFFFF).unwrap_or(0);
        slot::spread(&mut slots, now, chance.next() >> 32);
        Self {
            name: spec.name.clone(),
            framing: spec.link.framing(),
            wired,
            character,
            settle: if wired { SETTLE_SERIAL } else { SETTLE_NETWORK }.max(spec.quiet),
            timeout: spec.timeout,
            answer_max: spec.answer_max,
            quiet: spec.quiet,
            connect_delay,
            release,
            reconnect_max: spec.reconnect_max,
            probe_max: spec.probe_max,
            probe_share: spec.probe_share.clamp(0.01, 0.5),
            units,
            slots,
            link: Link::Down { retry_at: now },
            lost_at: None,
            reconnect: Reconnect::new(seed),
            timeouts_in_row: 0,
            doubts_in_row: 0,
            flight: None,
            question: Frame::default(),
            last_shape: None,
            seen_at: now,
            free_at: now,
            heard_at: now,
            noisy_since: None,
            echoing: None,
            late: Late::default(),
            transaction,
            issued: 0,
            stale_in_row: 0,
            buffer: heapless::Vec::new(),
            trace: None,
            disconnect: false,
            asks: Asks::default(),
            memory_revision: 0,
            load: Load::new(now),
            connection_error: None,
            last_error: None,
            counts: Counts::default(),
        }
    }

    /// The next thing to do at `now`; call it until there is none.
    pub fn poll(&mut self, now: Mono) -> Option<Output> {
        self.seen_at = now;
        if self.flight.is_some_and(|flight| self.flight_ends(&flight) <= now) {
            self.handle_deadline(now);
        }
        if let Some(trace) = self.trace.take() {
            return Some(Output::Trace(trace));
        }
        if let Some(reply) = self.next_reply() {
            return Some(reply);
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
            Link::Down { .. } => self.connect(now),
            Link::Up if now < self.free_at => None,
            Link::Up if self.in_doubt() => {
                self.handle_unasked(now);
                self.poll(now)
            }
            Link::Up => self.ask(now).or_else(|| self.release(now)),
        }
    }

    /// Whether a question is out.
    #[must_use]
    pub fn is_asking(&self) -> bool {
        self.flight.is_some()
    }

    /// Until when nothing will be to do, if nothing happens before. `None`: the bus has no requests.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Mono> {
        if self.trace.is_some() || self.disconnect || !self.asks.replies.is_empty() {
            return Some(Mono::ZERO);
        }
        if let Some(flight) = self.flight {
            return Some(self.flight_ends(&flight));
        }
        let ask = match self.link {
            Link::Connecting { until } => return Some(until),
            Link::Down { .. } if self.asks.waiting.is_empty() => None,
            Link::Down { .. } => return Some(Mono::ZERO),
            Link::Up => self.ask_at(self.free_at.max(self.seen_at)),
        };
        // Once the line is quiet, it may be given up.
        let release = (self.release && self.link == Link::Up && self.free_at > self.seen_at).then_some(self.free_at);
        let mut first = ask.into_iter().chain(release).min();
        for slot in &self.slots {
            // Nothing happens to a poll before it is due, so most need no closer look.
            let due = slot.next_due();
            if first.is_some_and(|first| first <= due) {
                continue;
            }
            let seen = due.max(self.seen_at);
            let at = match self.hopeless(slot, seen) || !slot.asks_something(seen) {
                true => due,
                false => self.ready_at(slot, self.seen_at).min(slot.overdue_at()),
            };
            first = Some(first.map_or(at, |first| first.min(at)));
        }
        first
    }
}
