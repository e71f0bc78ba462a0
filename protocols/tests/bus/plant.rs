//! A plant on a simulated clock: a bus on one side, on the other whatever a test wants to answer, with the time that
//! bytes take on the wire. Frames are packed here once more, apart from the bus's own code.

use std::collections::BTreeMap;
use std::time::Duration;

use tributary_protocols::modbus::bus::{AskError, Bus, BusDevice, Output, Trace};
use tributary_protocols::modbus::config::{BusSpec, Framing, Link, Timing, resolve_bus};
use tributary_protocols::modbus::plan::{PlannedPoint, Request};
use tributary_protocols::modbus::register::{Order, RegisterType, Table};
use tributary_protocols::reading::{Outcome, Sample, Status};
use tributary_protocols::time::Mono;

pub(crate) const MS: Duration = Duration::from_millis(1);
pub(crate) const S: Duration = Duration::from_secs(1);

/// What every register holds, so that a value betrays where it is from.
pub(crate) fn register(unit: u8, function: u8, address: u16) -> u16 {
    address
        .wrapping_mul(31)
        .wrapping_add(u16::from(unit) * 257)
        .wrapping_add(u16::from(function) * 4_099)
        .wrapping_add(7)
}

pub(crate) fn bit(unit: u8, function: u8, address: u16) -> bool {
    register(unit, function, address).is_multiple_of(3)
}

/// A request of `count` points of one register or bit each.
pub(crate) fn request(table: Table, address: u16, count: u16, period_ms: u32) -> Request {
    sparse(table, address, &(0..count).collect::<Vec<_>>(), period_ms)
}

/// A request of points of one register each at these offsets.
pub(crate) fn sparse(table: Table, address: u16, offsets: &[u16], period_ms: u32) -> Request {
    let ty = if table.is_bits() { RegisterType::Bool } else { RegisterType::U16 };
    let point =
        |offset: &u16| PlannedPoint { index: (*offset).into(), offset: *offset, ty, order: Order::ABCD, slice: None };
    let count = offsets.last().copied().unwrap_or(0) + 1;
    Request { table, address, count, period_ms, points: offsets.iter().map(point).collect() }
}

/// A question as a device sees it.
#[derive(Clone, Debug)]
pub(crate) struct Question {
    pub(crate) number: u64,
    pub(crate) frame: Vec<u8>,
    pub(crate) transaction: u16,
    pub(crate) unit: u8,
    pub(crate) pdu: Vec<u8>,
    pub(crate) framing: Framing,
}

impl Question {
    pub(crate) fn function(&self) -> u8 {
        self.pdu[0]
    }

    pub(crate) fn address(&self) -> u16 {
        u16::from_be_bytes([self.pdu[1], self.pdu[2]])
    }

    pub(crate) fn count(&self) -> u16 {
        u16::from_be_bytes([self.pdu[3], self.pdu[4]])
    }

    /// The right answer's PDU.
    pub(crate) fn good(&self) -> Vec<u8> {
        data(self.unit, self.function(), self.address(), self.count())
    }

    pub(crate) fn pack(&self, pdu: &[u8]) -> Vec<u8> {
        pack(self.framing, self.transaction, self.unit, pdu)
    }

    pub(crate) fn refusal(&self, code: u8) -> Vec<u8> {
        self.pack(&[self.function() | 0x80, code])
    }
}

/// An answer's PDU of functions 1 to 4.
pub(crate) fn data(unit: u8, function: u8, address: u16, count: u16) -> Vec<u8> {
    let mut bytes = Vec::new();
    if function <= 2 {
        bytes.resize(usize::from(count).div_ceil(8), 0);
        for offset in (0..count).filter(|offset| bit(unit, function, address.wrapping_add(*offset))) {
            bytes[usize::from(offset / 8)] |= 1 << (offset % 8);
        }
    } else {
        (0..count)
            .for_each(|offset| bytes.extend(register(unit, function, address.wrapping_add(offset)).to_be_bytes()));
    }
    let mut pdu = vec![function, u8::try_from(bytes.len()).unwrap()];
    pdu.extend(bytes);
    pdu
}

/// CRC-16 bit by bit, as the standard's appendix has it.
pub(crate) fn crc(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0xFFFF, |crc, byte| {
        (0..8).fold(crc ^ u16::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xA001 } else { crc >> 1 })
    })
}

pub(crate) fn pack(framing: Framing, transaction: u16, unit: u8, pdu: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    if framing == Framing::Tcp {
        frame.extend(transaction.to_be_bytes());
        frame.extend([0, 0]);
        frame.extend(u16::try_from(pdu.len() + 1).unwrap().to_be_bytes());
    }
    frame.push(unit);
    frame.extend(pdu);
    if framing == Framing::Rtu {
        frame.extend(crc(&frame).to_le_bytes());
    }
    frame
}

/// What comes back from the line, each after a time since the question's last byte.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// Bytes; the time is that of their first.
    Bytes(Duration, Vec<u8>),
    /// The connection ends.
    Close(Duration),
}

type Line = Box<dyn FnMut(&Question) -> Vec<Event>>;

pub(crate) struct Plant {
    pub(crate) bus: Bus,
    pub(crate) spec: BusSpec,
    pub(crate) now: Mono,
    pub(crate) start: Mono,
    pub(crate) requests: BTreeMap<u32, (u8, Request)>,
    pub(crate) line: Line,
    /// What comes back when a connection is made.
    pub(crate) greeting: Box<dyn FnMut() -> Vec<Event>>,
    pub(crate) refuse: bool,
    pub(crate) connects: u64,
    pub(crate) disconnects: u64,
    pub(crate) releases: u64,
    pub(crate) traces: Vec<Trace>,
    pub(crate) replies: Vec<(Mono, u64, Result<Vec<u8>, AskError>)>,
    pub(crate) asked: Vec<(Mono, Question)>,
    /// How long a character takes.
    pub(crate) character: Duration,
    coming: Vec<(Mono, Option<Vec<u8>>)>,
}

pub(crate) fn spec(keys: &str) -> BusSpec {
    resolve_bus(&toml::from_str(&format!("name = 'b'\n{keys}")).unwrap(), "bus[0]").unwrap()
}

pub(crate) fn devices(units: &[(u8, Vec<Request>)]) -> (Vec<BusDevice>, BTreeMap<u32, (u8, Request)>) {
    let (mut id, mut requests, mut devices) = (100, BTreeMap::new(), Vec::new());
    for (unit, list) in units {
        let mut mine = Vec::new();
        for request in list {
            requests.insert(id, (*unit, request.clone()));
            mine.push((id, request.clone()));
            id += 1;
        }
        let (name, timing) = (format!("u{unit}"), Timing::default());
        devices.push(BusDevice { name, unit: *unit, timing, release: false, requests: mine });
    }
    (devices, requests)
}

impl Plant {
    pub(crate) fn new(
        keys: &str,
        units: &[(u8, Vec<Request>)],
        line: impl FnMut(&Question) -> Vec<Event> + 'static,
    ) -> Self {
        let spec = spec(keys);
        let (devices, requests) = devices(units);
        let now = Mono::from_millis(5_000);
        let character = match &spec.link {
            Link::Serial(line) => line.time(1),
            _ => Duration::ZERO,
        };
        Self {
            bus: Bus::new(&spec, devices, now, 42),
            spec,
            now,
            start: now,
            requests,
            line: Box::new(line),
            greeting: Box::new(Vec::new),
            refuse: false,
            connects: 0,
            disconnects: 0,
            releases: 0,
            traces: Vec::new(),
            replies: Vec::new(),
            asked: Vec::new(),
            character,
            coming: Vec::new(),
        }
    }

    pub(crate) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.act();
            let arrival = self.coming.first().map_or(Mono::MAX, |(at, _)| *at);
            let deadline = self.bus.next_deadline().unwrap_or(Mono::MAX);
            assert!(deadline > self.now || arrival <= self.now, "the bus wants to be polled again at once, in vain");
            self.now = arrival.min(deadline).min(end).max(self.now);
            // As the driver does: what has arrived is read before anything is asked.
            while self.coming.first().is_some_and(|(at, _)| *at <= self.now) {
                match self.coming.remove(0).1 {
                    Some(bytes) => self.bus.handle_bytes(self.now, &bytes),
                    None => {
                        self.coming.clear();
                        self.bus.handle_closed(self.now, "closed");
                    }
                }
            }
        }
    }

    fn act(&mut self) {
        let mut steps = 0;
        while let Some(output) = self.bus.poll(self.now) {
            steps += 1;
            assert!(steps < 100_000, "the bus does not come to rest");
            match output {
                Output::Trace(trace) => self.traces.push(trace),
                Output::Reply { id, result } => self.replies.push((self.now, id, result)),
                Output::Disconnect => {
                    self.disconnects += 1;
                    self.coming.clear();
                }
                Output::Release => {
                    self.releases += 1;
                    self.coming.clear();
                }
                Output::Connect { .. } => {
                    self.connects += 1;
                    match self.refuse {
                        true => self.bus.handle_connect_failed(self.now, "refused"),
                        false => {
                            self.bus.handle_connected(self.now);
                            let events = (self.greeting)();
                            self.expect(self.now, events);
                        }
                    }
                }
                Output::Ask { frame } => self.put(&frame),
            }
        }
    }

    fn put(&mut self, frame: &[u8]) {
        let framing = self.spec.link.framing();
        let (transaction, unit, pdu) = match framing {
            Framing::Tcp => (u16::from_be_bytes([frame[0], frame[1]]), frame[6], frame[7..].to_vec()),
            Framing::Rtu => {
                assert_eq!(crc(&frame[..frame.len() - 2]).to_le_bytes(), frame[frame.len() - 2..]);
                (0, frame[0], frame[1..frame.len() - 2].to_vec())
            }
        };
        let number = self.asked.len() as u64;
        let question = Question { number, frame: frame.to_vec(), transaction, unit, pdu, framing };
        let heard = self.now + self.character * u32::try_from(frame.len()).unwrap();
        let events = (self.line)(&question);
        self.expect(heard, events);
        self.asked.push((self.now, question));
    }

    fn expect(&mut self, from: Mono, events: Vec<Event>) {
        for event in events {
            match event {
                Event::Bytes(after, bytes) => {
                    let end = from + after + self.character * u32::try_from(bytes.len()).unwrap();
                    self.coming.push((end, Some(bytes)));
                }
                Event::Close(after) => self.coming.push((from + after, None)),
            }
        }
        self.coming.sort_by_key(|(at, _)| *at);
    }

    /// The traces of each request, checked: one for each due time, in order, failures stamped by it, values true.
    pub(crate) fn check(&self) -> BTreeMap<u32, Vec<&Trace>> {
        let mut by_request: BTreeMap<u32, Vec<&Trace>> = BTreeMap::new();
        for trace in &self.traces {
            by_request.entry(trace.request).or_default().push(trace);
        }
        for (id, (unit, request)) in &self.requests {
            let traces = by_request.entry(*id).or_default();
            let period = Duration::from_millis(request.period_ms.into());
            // The phase is the bus's own; a failure tells it exactly.
            let exact = traces.iter().position(|trace| stands_at_due(trace));
            for (k, trace) in traces.iter().enumerate() {
                if stands_at_due(trace) {
                    let first = exact.unwrap();
                    let due = traces[first].at + period * u32::try_from(k - first).unwrap();
                    assert_eq!(trace.at, due, "request {id}, poll {k} is not at its due time");
                }
                for (point, sample) in request.points.iter().zip(samples(trace, request)) {
                    let truth = truth(*unit, request, point.offset);
                    assert!(
                        !sample.status.has_value() || sample == truth,
                        "request {id}, poll {k}, offset {}: {sample:?} instead of {truth:?}",
                        point.offset
                    );
                }
            }
            let due = (self.now.since(self.start).as_millis() / period.as_millis()) as usize;
            // The phase, the poll that is out, and those that one question keeps waiting.
            let open = 2 + usize::try_from(self.spec.timeout.as_millis() * 3 / period.as_millis()).unwrap();
            assert!(
                (due.saturating_sub(open)..=due + 1).contains(&traces.len()),
                "request {id}: {} traces of about {due} due polls",
                traces.len()
            );
        }
        by_request
    }

    /// The last trace of a request.
    pub(crate) fn last(&self, id: u32) -> Vec<Sample> {
        let trace = self.traces.iter().rev().find(|trace| trace.request == id).unwrap();
        samples(trace, &self.requests[&id].1)
    }
}

fn stands_at_due(trace: &Trace) -> bool {
    matches!(trace.outcome, Outcome::All(Status::CommFail | Status::OutOfService))
}

pub(crate) fn truth(unit: u8, request: &Request, offset: u16) -> Sample {
    let (function, address) = (request.table.function(), request.address.wrapping_add(offset));
    Sample::good(match request.table.is_bits() {
        true => u64::from(bit(unit, function, address)),
        false => u64::from(register(unit, function, address)),
    })
}

/// One sample for each point.
pub(crate) fn samples(trace: &Trace, request: &Request) -> Vec<Sample> {
    match &trace.outcome {
        Outcome::All(status) => vec![Sample::bare(*status); request.points.len()],
        Outcome::Samples(samples) => {
            assert_eq!(samples.len(), request.points.len(), "a sample a point");
            samples.clone()
        }
    }
}

/// Whether a poll brought the value of every point.
pub(crate) fn brought_all(trace: &Trace) -> bool {
    matches!(&trace.outcome, Outcome::Samples(samples) if samples.iter().all(|sample| sample.status.has_value()))
}

/// splitmix64.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub(crate) fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }
}

/// The seed of a test, `TRIBUTARY_SEED` if it is given; printed when the test fails.
pub(crate) fn seed(default: u64) -> u64 {
    let seed = std::env::var("TRIBUTARY_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(default);
    println!("TRIBUTARY_SEED={seed}");
    seed
}

/// How often, `variable` if it is given.
pub(crate) fn times(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}
