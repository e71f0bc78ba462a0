//! Devices on TCP that answer in every wrong way there is, one way at a time and all together.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use proptest::prelude::*;
use tributary_protocols::modbus::plan::Request;
use tributary_protocols::modbus::register::Table;
use tributary_protocols::modbus::status::DeviceState;
use tributary_protocols::reading::{Outcome, Status};

use crate::plant::{Event, MS, Plant, Question, Random, S, brought_all, data, request, seed, times};

/// What is wrong with an answer.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    Exception(u8),
    Transaction,
    PreviousAgain,
    TwiceAtOnce,
    TwiceLater,
    Reversed,
    Unit,
    Function,
    Protocol,
    LengthSmall,
    LengthLarge,
    LengthMost,
    Length(u8),
    CountLow,
    CountHigh,
    CountOdd,
    Short,
    Long,
    CutThenClosed,
    CutThenSilent,
    ByteByByte,
    Segments,
    JunkAfter,
    JunkInstead,
    Flood,
    HugeFrame,
    Silence,
    Late,
    Closed,
    Unasked,
    ResetAtConnect,
    Mute,
    Banner,
}

impl Fault {
    fn all() -> Vec<Self> {
        use Fault::{
            Banner, ByteByByte, Closed, CountHigh, CountLow, CountOdd, CutThenClosed, CutThenSilent, Exception, Flood,
            Function, HugeFrame, JunkAfter, JunkInstead, Late, Length, LengthLarge, LengthMost, LengthSmall, Long,
            Mute, PreviousAgain, Protocol, ResetAtConnect, Reversed, Segments, Short, Silence, Transaction,
            TwiceAtOnce, TwiceLater, Unasked, Unit,
        };
        let codes = (0..=12).chain([255]).map(Exception);
        let others = [
            Transaction,
            PreviousAgain,
            TwiceAtOnce,
            TwiceLater,
            Reversed,
            Unit,
            Function,
            Protocol,
            LengthSmall,
            LengthLarge,
            LengthMost,
            Length(0),
            Length(1),
            CountLow,
            CountHigh,
            CountOdd,
            Short,
            Long,
            CutThenClosed,
            CutThenSilent,
            ByteByByte,
            Segments,
            JunkAfter,
            JunkInstead,
            Flood,
            HugeFrame,
            Silence,
            Late,
            Closed,
            Unasked,
            ResetAtConnect,
            Mute,
            Banner,
        ];
        codes.chain(others).collect()
    }

    /// Whether an answer with it must be accepted.
    fn is_legal(self) -> bool {
        matches!(self, Self::TwiceAtOnce | Self::TwiceLater | Self::ByteByByte | Self::Segments)
    }

    fn answer(self, question: &Question, previous: &[u8], random: &mut Random) -> Vec<Event> {
        let good = question.pack(&question.good());
        let with = |index: usize, byte: u8| {
            let mut frame = good.clone();
            frame[index] = byte;
            frame
        };
        let soon = |bytes: Vec<u8>| vec![Event::Bytes(2 * MS, bytes)];
        let (function, address, count) = (question.function(), question.address(), question.count());
        let half = good[..good.len() / 2].to_vec();
        match self {
            Self::Exception(code) => soon(question.refusal(code)),
            Self::Transaction => soon(with(1, good[1] ^ 0x5A)),
            Self::PreviousAgain => soon(previous.to_vec()),
            Self::TwiceAtOnce => soon([good.clone(), good].concat()),
            Self::TwiceLater => {
                let later = Duration::from_millis(50 + random.below(350));
                vec![Event::Bytes(2 * MS, good.clone()), Event::Bytes(later, good)]
            }
            Self::Reversed => soon([good, previous.to_vec()].concat()),
            Self::Unit => soon(with(6, good[6] ^ 1)),
            Self::Function => soon(with(7, if function == 3 { 4 } else { 3 })),
            Self::Protocol => soon(with(3, 1)),
            Self::LengthSmall => soon(with(5, good[5] - 1)),
            Self::LengthLarge => soon(with(5, good[5] + 9)),
            Self::LengthMost => soon([&good[..4], &[0xFF, 0xFF], &good[6..]].concat()),
            Self::Length(length) => soon(with(5, length)),
            Self::CountLow => soon(with(8, good[8] - 1)),
            Self::CountHigh => soon(with(8, good[8] + 2)),
            Self::CountOdd => soon(with(8, good[8] ^ 1)),
            // Fewer bytes: fewer bits in as many bytes cannot be told.
            Self::Short => match data(question.unit, function, address, (count / 2).max(1)) {
                short if short.len() < good.len() - 7 => soon(question.pack(&short)),
                _ => Vec::new(),
            },
            Self::Long => soon(question.pack(&data(question.unit, function, address, count + 8))),
            Self::CutThenClosed => vec![Event::Bytes(2 * MS, half), Event::Close(3 * MS)],
            Self::CutThenSilent => soon(half),
            Self::ByteByByte => {
                (0..).zip(good).map(|(n, byte)| Event::Bytes(Duration::from_micros(500 * n), vec![byte])).collect()
            }
            Self::Segments => (0..).zip(good.chunks(5)).map(|(n, part)| Event::Bytes(n * MS, part.to_vec())).collect(),
            Self::JunkAfter => soon([good, vec![0x55; 30]].concat()),
            Self::JunkInstead => soon((0..40).map(|_| random.byte()).collect()),
            Self::Flood => soon(vec![random.byte(); 256 << 10]),
            Self::HugeFrame => soon([&good[..4], &[0xFD, 0xE8], &[question.unit, function][..], &[9; 65_000]].concat()),
            Self::Silence | Self::Mute => Vec::new(),
            Self::Late => vec![Event::Bytes(1_500 * MS, good)],
            Self::Closed => vec![Event::Close(2 * MS)],
            Self::Unasked => {
                let [high, low] = question.transaction.wrapping_add(1).to_be_bytes();
                soon([&[high, low][..], &good[2..], &good].concat())
            }
            Self::ResetAtConnect | Self::Banner => soon(good),
        }
    }
}

fn requests(unit: u8) -> Vec<Request> {
    let address = 100 * u16::from(unit);
    vec![
        request(Table::Holding, address, 6, 200),
        request(Table::Holding, address + 50, 1, 200),
        request(Table::Input, 7, 6, 200),
        request(Table::Coil, 3, 20, 200),
    ]
}

/// A plant of which one answer in five, or one connection, is ill while the first cell says so; the second says whether
/// the connection is mute.
fn ill(fault: Fault, seed: u64) -> (Plant, Rc<Cell<bool>>) {
    let (on, mute) = (Rc::new(Cell::new(true)), Rc::new(Cell::new(false)));
    let mut random = Random(seed);
    let mut previous = vec![0; 9];
    let units: Vec<_> = (1..=2).map(|unit| (unit, requests(unit))).collect();
    let keys = "tcp = 'h:502'\ntimeout = '50ms'\nreconnect_max = '100ms'\nprobe_max = '1s'";
    let (is_on, is_mute) = (Rc::clone(&on), Rc::clone(&mute));
    let mut plant = Plant::new(keys, &units, move |question| {
        let good = question.pack(&question.good());
        let now = is_on.get() && random.below(5) == 0;
        let events = match fault {
            Fault::ResetAtConnect | Fault::Banner => vec![Event::Bytes(2 * MS, good.clone())],
            // Such a device ends the connection now and then, so that there is a next one.
            Fault::Mute if is_on.get() && is_mute.get() => Vec::new(),
            Fault::Mute if now => vec![Event::Close(MS)],
            _ if now => fault.answer(question, &previous, &mut random),
            _ => vec![Event::Bytes(2 * MS, good.clone())],
        };
        previous = good;
        events
    });
    let mut random = Random(!seed);
    let is_on = Rc::clone(&on);
    plant.greeting = Box::new(move || {
        let now = is_on.get() && random.below(2) == 0;
        mute.set(now);
        match fault {
            Fault::ResetAtConnect if now => vec![Event::Close(MS / 2)],
            Fault::Banner if now => vec![Event::Bytes(MS / 2, b"login: ".to_vec())],
            // One that stays is of no use here.
            Fault::ResetAtConnect | Fault::Banner if is_on.get() => vec![Event::Close(300 * MS)],
            _ => Vec::new(),
        }
    });
    (plant, on)
}

#[test]
fn each_fault_costs_polls_but_no_truth_and_is_over_when_it_is_over() {
    let seed = seed(30);
    let polls = usize::try_from(times("TRIBUTARY_POLLS", 1_000)).unwrap();
    let (mut all, mut values) = (0, 0);
    for (number, fault) in (0..).zip(Fault::all()) {
        let (mut plant, on) = ill(fault, seed + number);
        while plant.traces.len() < polls {
            on.set(true);
            plant.run(4 * S);
            on.set(false);
            // The poll that is out, the next connection, and one poll.
            plant.run(600 * MS);
            let status = plant.bus.status(plant.now);
            let silent = status.devices.iter().any(|device| device.state == DeviceState::Silent);
            let aside = !status.devices.iter().all(|device| device.unsupported.is_empty());
            if aside {
                plant.run(11 * S);
            } else if silent {
                plant.run(3 * S);
            }
            let before = plant.traces.len();
            plant.run(S);
            for trace in &plant.traces[before..] {
                assert!(brought_all(trace), "{fault:?} is over, and at {:?} {:?}", trace.at, trace.outcome);
            }
        }
        plant.check();
        let good = plant.traces.iter().filter(|trace| brought_all(trace)).count();
        assert!(good * 3 > plant.traces.len(), "{fault:?}: {good} of {}", plant.traces.len());
        if fault.is_legal() {
            assert_eq!(good, plant.traces.len(), "{fault:?} is legal");
        } else {
            let status = plant.bus.status(plant.now);
            let seen =
                plant.traces.len() - good + usize::try_from(status.errors + status.stale + status.splits).unwrap();
            assert!(seen > 0, "{fault:?} was never noticed");
        }
        all += plant.traces.len();
        values += good;
    }
    println!("{} kinds of fault, {all} polls, {values} whole, no value wrong", Fault::all().len());
}

#[test]
fn ten_hostile_devices_of_fifty_cost_the_others_nothing() {
    let seed = seed(50);
    // On buses of their own, as TCP devices are.
    let mut random = Random(seed);
    let faults = Fault::all();
    for device in 0..50_u8 {
        let hostile = device % 5 == 0;
        let fault = faults[usize::try_from(random.below(faults.len() as u64)).unwrap()];
        let (mut plant, on) = ill(fault, seed + u64::from(device));
        on.set(hostile);
        plant.run(60 * S);
        plant.check();
        assert!(hostile || plant.traces.iter().all(brought_all), "device {device}");
    }
    // Behind one gateway, where they share a connection: silent, slow, refusing, busy, out of the gateway's reach.
    let units: Vec<_> = (1..=50).map(|unit| (unit, vec![request(Table::Holding, 0, 10, 2_000)])).collect();
    let mut random = Random(seed);
    let mut plant = Plant::new("tcp = 'h:502'\ntimeout = '100ms'", &units, move |question| {
        let good = question.pack(&question.good());
        let after = |millis| Duration::from_millis(millis);
        match question.unit {
            5 | 10 | 15 => Vec::new(),
            20 => vec![Event::Bytes(after(60 + random.below(80)), good)],
            25 => vec![Event::Bytes(2 * MS, question.refusal(4))],
            30 => vec![Event::Bytes(2 * MS, question.refusal(6))],
            35 => vec![Event::Bytes(90 * MS, question.refusal(11))],
            40 => vec![Event::Bytes(2 * MS, question.refusal(2))],
            45 => vec![Event::Bytes(2 * MS, good.clone()), Event::Bytes(after(random.below(90)), good)],
            50 => vec![Event::Bytes(2 * MS, question.pack(&[4, 2, 0, 0]))],
            _ => vec![Event::Bytes(2 * MS, good)],
        }
    });
    plant.run(300 * S);
    for (id, traces) in plant.check() {
        let unit = plant.requests[&id].0;
        if !unit.is_multiple_of(5) {
            let lost = traces.iter().filter(|trace| !brought_all(trace)).count();
            assert_eq!(lost, 0, "unit {unit} lost polls");
        }
    }
}

#[test]
fn a_mute_device_is_two_runs_of_statuses() {
    // Connected all the time, or refused from some moment on.
    let units = [(1, vec![request(Table::Holding, 0, 3, 200)])];
    let mut plant = Plant::new("tcp = 'h:502'\ntimeout = '100ms'\nreconnect_max = '5s'", &units, |_| Vec::new());
    plant.run(120 * S);
    let statuses = |plant: &Plant| {
        let mut statuses: Vec<_> = plant.traces.iter().map(|trace| trace.outcome.clone()).collect();
        statuses.dedup();
        statuses
    };
    let [fail, out] = [Status::CommFail, Status::OutOfService].map(Outcome::All);
    assert_eq!(statuses(&plant), [fail.clone(), out.clone()]);
    assert!(plant.disconnects > 3);
    plant.refuse = true;
    plant.run(120 * S);
    assert_eq!(statuses(&plant), [fail.clone(), out, fail]);
    plant.check();
}

/// Bytes that look more or less like frames.
fn chunk() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        proptest::collection::vec(any::<u8>(), 1..40),
        proptest::collection::vec(prop_oneof![Just(0_u8), Just(1), Just(3), Just(5), any::<u8>()], 1..20),
        (any::<u8>(), any::<u8>(), 0_u8..8).prop_map(|(t, byte, unit)| vec![0, t, 0, 0, 0, 5, unit, 3, 2, byte, byte]),
        (any::<u8>(), any::<u8>()).prop_map(|(unit, code)| vec![unit % 4, 0x83, code, 0, 0]),
        Just(vec![0x55; 700]),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn bytes_at_any_time_are_no_value(
        chunks in proptest::collection::vec((0_u64..400, chunk(), proptest::option::of(0_u64..100)), 1..60),
        link in prop_oneof![Just("tcp = 'h:502'"), Just("rtu_over_tcp = 'h:1'"), Just("serial = '/dev/x'")],
    ) {
        let mut chunks = chunks.into_iter().cycle();
        let units: Vec<_> = (1..=3).map(|unit| (unit, vec![request(Table::Holding, 10, 3, 100), request(Table::Coil, 0, 9, 250)])).collect();
        let mut plant = Plant::new(&format!("{link}\ntimeout = '80ms'\nreconnect_max = '200ms'\nprobe_max = '1s'"), &units, move |_| {
            let (after, bytes, close) = chunks.next().unwrap();
            let bytes = Event::Bytes(Duration::from_millis(after), bytes);
            [Some(bytes), close.map(|at| Event::Close(Duration::from_millis(at)))].into_iter().flatten().collect()
        });
        plant.run(20 * S);
        plant.check();
        prop_assert!(plant.traces.iter().all(|trace| !matches!(&trace.outcome, Outcome::Samples(samples) if samples.iter().any(|sample| sample.status.has_value()))));
    }
}
