//! The schedule of a bus against a simulated plant, on a simulated clock: every due poll is traced exactly once, at its
//! due time or with values that are the device's own, whatever the devices do.
#![allow(clippy::unwrap_used, reason = "a test that panics fails")]

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use proptest::prelude::*;
use tributary_protocols::modbus::bus::{Bus, BusDevice, Output, Trace};
use tributary_protocols::modbus::config::BusSpec;
use tributary_protocols::modbus::plan::{PlannedPoint, Request};
use tributary_protocols::modbus::register::{Order, RegisterType, Table};
use tributary_protocols::modbus::status::DeviceState;
use tributary_protocols::reading::{Outcome, Sample, Status};
use tributary_protocols::time::Mono;

const MS: Duration = Duration::from_millis(1);
/// What is stamped by the due time.
const LATE: Outcome = Outcome::All(Status::CommFail);
const GONE: Outcome = Outcome::All(Status::OutOfService);

/// What every register of every device holds, so that a value betrays where it is from.
fn register(unit: u8, address: u16) -> u16 {
    u16::from(unit).wrapping_mul(7_919).wrapping_add(address.wrapping_mul(31)).wrapping_add(5)
}

fn request(address: u16, count: u16, period_ms: u32) -> Request {
    let point = |offset: u16| PlannedPoint {
        index: offset.into(),
        offset,
        ty: RegisterType::U16,
        order: Order::ABCD,
        slice: None,
    };
    Request { table: Table::Holding, address, count, period_ms, points: (0..count).map(point).collect() }
}

/// How a device answers a question.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Manner {
    Well,
    Never,
    After(u64),
    Exception(u8),
    Twice,
    WrongUnit,
    WrongFunction,
    WrongTransaction,
    Short,
    Long,
    Garbage,
    Close,
    Flood,
    NextTransactionToo,
}

struct Plant {
    bus: Bus,
    now: Mono,
    start: Mono,
    requests: BTreeMap<u32, (u8, Request)>,
    manner: Box<dyn FnMut(u8, u64) -> Manner>,
    refuse: bool,
    latency: Duration,
    questions: u64,
    connects: u64,
    disconnects: u64,
    /// Bytes on their way from the devices, and whether the connection ends then.
    coming: VecDeque<(Mono, Option<Vec<u8>>)>,
    traces: Vec<Trace>,
    asked: Vec<(Mono, u8)>,
}

impl Plant {
    fn new(spec: &str, units: &[(u8, Vec<Request>)], manner: impl FnMut(u8, u64) -> Manner + 'static) -> Self {
        let text = format!("name = 'b'\ntcp = 'h:502'\n{spec}");
        let spec: BusSpec =
            tributary_protocols::modbus::config::resolve_bus(&toml::from_str(&text).unwrap(), "bus[0]").unwrap();
        let (mut id, mut requests, mut devices) = (100, BTreeMap::new(), Vec::new());
        for (unit, list) in units {
            let mut mine = Vec::new();
            for request in list {
                requests.insert(id, (*unit, request.clone()));
                mine.push((id, request.clone()));
                id += 1;
            }
            let name = format!("u{unit}");
            devices.push(BusDevice { name, unit: *unit, timing: Default::default(), release: false, requests: mine });
        }
        let now = Mono::from_millis(5_000);
        Self {
            bus: Bus::new(&spec, devices, now, 42),
            now,
            start: now,
            requests,
            manner: Box::new(manner),
            refuse: false,
            latency: 2 * MS,
            questions: 0,
            connects: 0,
            disconnects: 0,
            coming: VecDeque::new(),
            traces: Vec::new(),
            asked: Vec::new(),
        }
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            let mut steps = 0;
            while let Some(output) = self.bus.poll(self.now) {
                steps += 1;
                assert!(steps < 100_000, "the bus does not come to rest");
                match output {
                    Output::Trace(trace) => self.traces.push(trace),
                    Output::Disconnect => {
                        self.disconnects += 1;
                        self.coming.clear();
                    }
                    Output::Connect { .. } => {
                        self.connects += 1;
                        if self.refuse {
                            self.bus.handle_connect_failed(self.now, "refused");
                        } else {
                            self.bus.handle_connected(self.now);
                        }
                    }
                    Output::Ask { frame } => self.answer(&frame),
                    Output::Release | Output::Reply { .. } => unreachable!("nobody wants that"),
                }
            }
            let arrival = self.coming.front().map_or(Mono::MAX, |(at, _)| *at);
            let deadline = self.bus.next_deadline().unwrap_or(Mono::MAX);
            assert!(deadline > self.now || arrival <= self.now, "the bus wants to be polled again at once, in vain");
            self.now = arrival.min(deadline).min(end).max(self.now);
            // As the driver does: what has arrived is read before anything is asked.
            while self.coming.front().is_some_and(|(at, _)| *at <= self.now) {
                match self.coming.pop_front().unwrap().1 {
                    Some(bytes) => self.bus.handle_bytes(self.now, &bytes),
                    None => {
                        self.coming.clear();
                        self.bus.handle_closed(self.now, "closed");
                    }
                }
            }
        }
    }

    fn answer(&mut self, question: &[u8]) {
        let unit = question[6];
        let manner = (self.manner)(unit, self.questions);
        self.questions += 1;
        self.asked.push((self.now, unit));
        let (address, count) =
            (u16::from_be_bytes([question[8], question[9]]), u16::from_be_bytes([question[10], question[11]]));
        let frame = |transaction: u16, unit: u8, function: u8, count: u16| {
            let mut body = vec![unit, function, u8::try_from(count * 2).unwrap()];
            for offset in 0..count {
                body.extend(register(unit, address + offset).to_be_bytes());
            }
            let mut frame = transaction.to_be_bytes().to_vec();
            frame.extend([0, 0]);
            frame.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
            frame.extend(body);
            frame
        };
        let id = u16::from_be_bytes([question[0], question[1]]);
        let good = frame(id, unit, 3, count);
        let mut say = |after: Duration, bytes: Vec<u8>| self.coming.push_back((self.now + after, Some(bytes)));
        let soon = self.latency;
        match manner {
            Manner::Well => say(soon, good),
            Manner::Never => {}
            Manner::After(millis) => say(Duration::from_millis(millis), good),
            Manner::Exception(code) => {
                say(soon, [&question[..4], &[0, 3, unit, 0x83, code]].concat());
            }
            Manner::Twice => {
                say(soon, good.clone());
                say(soon, good);
            }
            Manner::WrongUnit => say(soon, frame(id, unit ^ 1, 3, count)),
            Manner::WrongFunction => say(soon, frame(id, unit, 4, count)),
            Manner::WrongTransaction => say(soon, frame(id.wrapping_add(77), unit, 3, count)),
            Manner::Short => say(soon, frame(id, unit, 3, count - 1)),
            Manner::Long => say(soon, frame(id, unit, 3, count + 1)),
            Manner::Garbage => say(soon, vec![0x55; 20]),
            Manner::Close => self.coming.push_back((self.now + soon, None)),
            Manner::Flood => (0..200).for_each(|_| say(soon, frame(id.wrapping_sub(1), unit, 3, count))),
            Manner::NextTransactionToo => {
                say(soon, good);
                say(soon, frame(id.wrapping_add(1), unit ^ 1, 3, count));
            }
        }
        self.coming.make_contiguous().sort_by_key(|(at, _)| *at);
    }

    /// The traces of each request, checked: one for each due time, in order, failures stamped by it, values true.
    fn check(&self) -> BTreeMap<u32, Vec<&Trace>> {
        let mut by_request: BTreeMap<u32, Vec<&Trace>> = BTreeMap::new();
        for trace in &self.traces {
            by_request.entry(trace.request).or_default().push(trace);
        }
        for (id, (unit, request)) in &self.requests {
            let traces = by_request.get(id).map_or(&[][..], Vec::as_slice);
            let period = Duration::from_millis(request.period_ms.into());
            // The phase is the bus's own; a failure tells it exactly, else the earliest answer bounds it.
            let exact = traces.iter().position(|trace| matches!(trace.outcome, LATE | GONE));
            for (k, trace) in traces.iter().enumerate() {
                match &trace.outcome {
                    &(LATE | GONE) => {
                        let first = exact.unwrap();
                        let steps = u32::try_from(k - first).unwrap();
                        assert_eq!(
                            trace.at,
                            traces[first].at + period * steps,
                            "request {id}, poll {k} is not at its due time"
                        );
                    }
                    Outcome::All(_) => {}
                    Outcome::Samples(samples) => {
                        let good = (0..request.count)
                            .map(|offset| Sample::good(register(*unit, request.address + offset).into()))
                            .collect::<Vec<_>>();
                        let true_or_none =
                            |(sample, good): (&Sample, &Sample)| sample == good || !sample.status.has_value();
                        assert!(samples.iter().zip(&good).all(true_or_none), "request {id} brought another's values");
                    }
                }
            }
            let ran = self.now.since(self.start);
            let due = (ran.as_millis() / period.as_millis()) as usize;
            // The phase, the poll that is out, and those that a question of at most 100 ms (200 ms) keeps waiting.
            let open = 2 + usize::try_from(200 / period.as_millis()).unwrap();
            assert!(
                (due.saturating_sub(open)..=due + 1).contains(&traces.len()),
                "request {id}: {} traces of about {due} due polls",
                traces.len()
            );
        }
        by_request
    }
}

fn failures(traces: &[&Trace]) -> usize {
    traces.iter().filter(|trace| matches!(trace.outcome, Outcome::All(_))).count()
}

#[test]
fn a_healthy_bus_polls_without_drift() {
    let units = [(1, vec![request(0, 10, 1_000), request(100, 5, 100)]), (2, vec![request(0, 3, 250)])];
    let mut plant = Plant::new("", &units, |_, _| Manner::Well);
    plant.run(Duration::from_secs(600));
    let traces = plant.check();
    for (id, (_, request)) in &plant.requests {
        let traces = &traces[id];
        assert_eq!(failures(traces), 0);
        let period = Duration::from_millis(request.period_ms.into());
        let first = traces[0].at;
        for (k, trace) in traces.iter().enumerate() {
            let due = first + period * u32::try_from(k).unwrap();
            let off = trace.at.since(due).max(due.since(trace.at));
            assert!(off <= 8 * MS, "request {id}, poll {k} is {off:?} off");
        }
    }
    let status = plant.bus.status(plant.now);
    assert_eq!((plant.connects, status.timeouts, status.errors, status.missed), (1, 0, 0, 0));
    assert!(status.devices.iter().all(|device| device.state == DeviceState::Ok && device.polls_due == device.polls_ok));
    let expected = (1.0 + 10.0 + 4.0) * 0.002;
    assert!((status.utilisation - expected).abs() < 0.003, "{} is not about {expected}", status.utilisation);
}

#[test]
fn units_are_spread_over_the_period() {
    let units: Vec<_> = (1..=10).map(|unit| (unit, vec![request(0, 1, 1_000), request(200, 1, 1_000)])).collect();
    let mut plant = Plant::new("", &units, |_, _| Manner::Well);
    plant.run(Duration::from_secs(3));
    for pair in plant.asked.chunks_exact(2).collect::<Vec<_>>().windows(2) {
        assert_eq!(pair[0][0].1, pair[0][1].1, "the questions to a unit stand together");
        assert!(pair[1][0].0.since(pair[0][0].0) >= 99 * MS, "two units stand together");
    }
}

#[test]
fn a_dead_device_costs_the_others_nothing() {
    let units: Vec<_> = (1..=5).map(|unit| (unit, vec![request(0, 4, 500), request(200, 4, 500)])).collect();
    let mut plant =
        Plant::new("timeout = '200ms'", &units, |unit, _| if unit == 3 { Manner::Never } else { Manner::Well });
    plant.run(Duration::from_secs(600));
    let traces = plant.check();
    for (id, (unit, _)) in &plant.requests {
        let failed = failures(&traces[id]);
        assert_eq!(failed, if *unit == 3 { traces[id].len() } else { 0 }, "unit {unit}");
    }
    let probes = plant.asked.iter().filter(|(_, unit)| *unit == 3).count();
    assert!((20..=60).contains(&probes), "{probes} probes in 10 minutes");
    let status = plant.bus.status(plant.now);
    assert_eq!(status.devices[2].state, DeviceState::Silent);
    assert_eq!(status.devices[2].last_error.as_deref(), Some("no answer in time"));
    assert_eq!(plant.disconnects, 0, "the others are behind the same connection");
}

#[test]
fn a_device_that_comes_back_is_polled_at_once() {
    let units: Vec<_> = (1..=2).map(|unit| (unit, vec![request(0, 4, 500), request(9, 1, 500)])).collect();
    let back = 500;
    let mut plant = Plant::new("timeout = '200ms'\nprobe_max = '8s'", &units, move |unit, question| {
        if unit == 1 && question < back { Manner::Never } else { Manner::Well }
    });
    plant.run(Duration::from_secs(600));
    plant.check();
    let times: Vec<_> = plant.asked.iter().filter(|(_, unit)| *unit == 1).map(|(at, _)| *at).collect();
    let gaps: Vec<_> = times.windows(2).map(|pair| pair[1].since(pair[0])).collect();
    let longest = gaps.iter().max().unwrap();
    assert!(*longest >= Duration::from_secs(8) && *longest < Duration::from_secs(9), "{longest:?}");
    assert!(gaps.iter().rev().take(100).all(|gap| *gap <= 501 * MS), "every poll is sent again");
    assert_eq!(plant.bus.status(plant.now).devices[0].state, DeviceState::Ok);
}

#[test]
fn an_overloaded_bus_skips_and_says_so() {
    let units = [(1, vec![request(0, 1, 20), request(100, 1, 20), request(200, 1, 60_000)])];
    let mut plant = Plant::new("", &units, |_, _| Manner::After(30));
    plant.run(Duration::from_secs(300));
    let traces = plant.check();
    assert_eq!(failures(&traces[&102]), 0, "the slow request does not starve");
    let failed = failures(&traces[&100]) + failures(&traces[&101]);
    let all = traces[&100].len() + traces[&101].len();
    assert_eq!(plant.bus.status(plant.now).missed, failed as u64);
    assert!(failed * 3 > all * 2 - 100 && failed < all, "{failed} of {all}: one in three fits");
}

#[test]
fn without_a_connection_every_due_poll_fails_at_its_time() {
    let units = [(1, vec![request(0, 1, 100)])];
    let mut plant = Plant::new("reconnect_max = '2s'", &units, |_, _| Manner::Well);
    plant.refuse = true;
    plant.run(Duration::from_secs(60));
    let traces = plant.check();
    assert_eq!(failures(&traces[&100]), traces[&100].len());
    assert!((25..=70).contains(&plant.connects), "{} attempts in a minute", plant.connects);
    let status = plant.bus.status(plant.now);
    assert_eq!(status.last_error.as_deref(), Some("no connection: refused"));
    assert_eq!(status.devices[0].state, DeviceState::Silent);
    plant.refuse = false;
    plant.run(Duration::from_secs(60));
    let traces = plant.check();
    assert!(failures(&traces[&100]) <= 600 + 21, "back within reconnect_max");
}

#[test]
fn quiet_and_connect_delay_are_kept() {
    let units = [(1, vec![request(0, 1, 50), request(10, 1, 50)])];
    let mut plant = Plant::new("quiet = '15ms'\nconnect_delay = '300ms'", &units, |_, _| Manner::Well);
    plant.run(Duration::from_secs(10));
    plant.check();
    assert!(plant.asked[0].0.since(plant.start) >= 300 * MS);
    for pair in plant.asked.windows(2) {
        assert!(pair[1].0.since(pair[0].0) >= 17 * MS);
    }
}

#[test]
fn each_ill_manner_costs_one_poll_and_no_truth() {
    use Manner::{
        Close, Flood, Garbage, Long, Never, NextTransactionToo, Short, Twice, WrongFunction, WrongTransaction,
        WrongUnit,
    };
    for (ill, lost, dropped) in [
        (Twice, 0, false),
        (Manner::After(80), 0, false),
        (Manner::After(150), 1, false),
        (Never, 1, false),
        (Manner::Exception(4), 1, false),
        (WrongUnit, 1, true),
        (WrongFunction, 1, true),
        (WrongTransaction, 1, true),
        (Short, 0, false),
        (Long, 1, true),
        (Garbage, 1, true),
        (Flood, 1, true),
        (Close, 1, false),
        (NextTransactionToo, 0, true),
    ] {
        let units = [(1, vec![request(0, 3, 200), request(50, 3, 200)])];
        let mut plant = Plant::new(
            "timeout = '100ms'",
            &units,
            move |_, question| if question % 20 == 10 { ill } else { Manner::Well },
        );
        plant.run(Duration::from_secs(60));
        let traces = plant.check();
        let episodes = plant.questions / 20;
        let failed = failures(&traces[&100]) + failures(&traces[&101]);
        assert!(failed.abs_diff(lost * episodes as usize) <= 1, "{ill:?}: {failed} polls lost in {episodes} episodes");
        assert_eq!(plant.disconnects > 0, dropped, "{ill:?}");
        if ill == Manner::Exception(4) {
            let status = Outcome::All(Status::DeviceError);
            assert_eq!(plant.traces.iter().filter(|trace| trace.outcome == status).count(), failed);
            assert!(plant.bus.status(plant.now).devices[0].last_error.as_deref().unwrap().starts_with("exception 4"));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn whatever_devices_do_every_due_poll_is_traced_truly(
        seed in any::<u64>(),
        ill_of_ten in 0_u64..=10,
        periods in proptest::collection::vec(prop_oneof![Just(50_u32), Just(100), Just(333), Just(1_000)], 1..6),
    ) {
        let units: Vec<_> = periods.iter().enumerate().map(|(index, period)| {
            let unit = u8::try_from(index).unwrap() + 1;
            (unit, vec![request(u16::from(unit) * 10, 3, *period), request(500, 2, *period)])
        }).collect();
        let mut state = seed;
        let mut random = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state >> 33
        };
        let manners = [
            Manner::Never, Manner::After(90), Manner::After(130), Manner::After(450), Manner::Exception(2),
            Manner::Exception(11), Manner::Twice, Manner::WrongUnit, Manner::WrongFunction, Manner::WrongTransaction,
            Manner::Short, Manner::Long, Manner::Garbage, Manner::Close, Manner::Flood, Manner::NextTransactionToo,
        ];
        let mut plant = Plant::new("timeout = '100ms'", &units, move |_, _| {
            if random() % 10 < ill_of_ten { manners[random() as usize % manners.len()] } else { Manner::Well }
        });
        plant.run(Duration::from_secs(60));
        plant.check();
    }
}
