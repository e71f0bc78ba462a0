//! The Modbus driver against devices on loopback: hostile ones of our own, and an independent implementation.
//!
//! What a register holds is a function of unit, table and address, so every value that comes out is checked.
#![allow(clippy::unwrap_used, reason = "a test that panics fails")]

mod support;

use std::collections::BTreeMap;
use std::future::ready;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use support::{Random, RealClock};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio_modbus::prelude::{ExceptionCode, SlaveRequest};
use tributary_protocols::modbus::bus::{Bus, BusDevice};
use tributary_protocols::modbus::config::{Device, resolve, resolve_bus};
use tributary_protocols::modbus::driver::{self, Wires};
use tributary_protocols::modbus::plan::{Request, plan};
use tributary_protocols::modbus::status::{BusStatus, DeviceState};
use tributary_protocols::reading::{Outcome, Poll, Sample, Status};
use tributary_protocols::time::{Clock, Mono};

fn register(unit: u8, function: u8, address: u16) -> u16 {
    u16::from(unit).wrapping_mul(7_919).wrapping_add(u16::from(function) * 1_009).wrapping_add(address.wrapping_mul(31))
}

fn coil(unit: u8, function: u8, address: u16) -> bool {
    register(unit, function, address).count_ones() % 2 == 1
}

/// A running bus.
struct Rig {
    polls: mpsc::Receiver<(Mono, Poll)>,
    status: watch::Receiver<BusStatus>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
    requests: BTreeMap<u32, (u8, Request)>,
}

fn device(unit: u8, period_ms: u32) -> Device {
    let text = format!(
        "name='u{unit}'\nbus='b'\nunit_id={unit}\naddressing='zero'\nperiod='{period_ms}ms'\n\
         [[point]]\nname='h0'\ntable='holding'\naddress=10\ntype='u16'\n\
         [[point]]\nname='h1'\ntable='holding'\naddress=15\ntype='u32'\n\
         [[point]]\nname='i0'\ntable='input'\naddress=400\ntype='u64'\n\
         [[point]]\nname='c0'\ntable='coil'\naddress=3\ntype='bool'\n\
         [[point]]\nname='c1'\ntable='coil'\naddress=20\ntype='bool'\n"
    );
    toml::from_str(&text).unwrap()
}

fn expected(unit: u8, request: &Request) -> Vec<Sample> {
    let function = request.table.function();
    let sample = |point: &tributary_protocols::modbus::plan::PlannedPoint| {
        let address = request.address + point.offset;
        if request.table.is_bits() {
            return Sample::good(coil(unit, function, address).into());
        }
        let registers = address..address + point.ty.width();
        Sample::good(registers.fold(0, |bits, address| bits << 16 | u64::from(register(unit, function, address))))
    };
    request.points.iter().map(sample).collect()
}

fn start(endpoint: &str, keys: &str, units: &[u8], period_ms: u32, capacity: usize) -> Rig {
    let devices: Vec<_> = units.iter().map(|unit| device(*unit, period_ms)).collect();
    start_with(endpoint, keys, &devices, capacity)
}

fn start_with(endpoint: &str, keys: &str, configured: &[Device], capacity: usize) -> Rig {
    let spec = resolve_bus(&toml::from_str(&format!("name='b'\ntcp='{endpoint}'\n{keys}")).unwrap(), "bus[0]").unwrap();
    let (mut devices, mut requests) = (Vec::new(), BTreeMap::new());
    for device in configured {
        let device = resolve(device, "device[0]", None).unwrap();
        let planned = plan(&device.points, device.caps);
        let first = u32::try_from(requests.len()).unwrap();
        requests.extend((first..).zip(planned.iter().map(|request| (device.unit, request.clone()))));
        devices.push(BusDevice::new(&device, planned, first));
    }
    let clock = Arc::new(RealClock::new());
    let bus = Bus::new(&spec, devices, clock.mono(), 7);
    let (poll_sender, polls) = mpsc::channel(capacity);
    let (status_sender, status) = watch::channel(BusStatus::default());
    let (stop, stopped) = watch::channel(false);
    let (_, asks) = mpsc::channel(1);
    let (memory, _) = mpsc::unbounded_channel();
    let wires = Wires { polls: poll_sender, asks, status: status_sender, memory, shutdown: stopped };
    let task = tokio::spawn(driver::run(spec, bus, None, clock, wires));
    Rig { polls, status, stop, task, requests }
}

impl Rig {
    async fn take(&mut self, count: usize) -> Vec<Poll> {
        let mut taken = Vec::new();
        while taken.len() < count {
            let poll = tokio::time::timeout(Duration::from_secs(20), self.polls.recv());
            taken.push(poll.await.expect("the bus has stalled").expect("the bus has ended").1);
        }
        taken
    }

    async fn end(mut self) -> BusStatus {
        self.stop.send_replace(true);
        // The driver has no poll that it does not hand over.
        while self.polls.recv().await.is_some() {}
        self.task.await.expect("the driver has panicked");
        self.status.borrow().clone()
    }

    /// Values are the device's, failures stand at due times; gives how many polls brought values.
    fn check(&self, polls: &[Poll], period_ms: i64) -> usize {
        let mut values = 0;
        let mut failed: BTreeMap<u32, i64> = BTreeMap::new();
        for poll in polls {
            let (unit, request) = &self.requests[&poll.request];
            match &poll.outcome {
                Outcome::Samples(samples) => {
                    // Of a block that was cut in two some points may be missing; what is there is true.
                    let truth = expected(*unit, request);
                    assert_eq!(samples.len(), truth.len());
                    for (sample, truth) in samples.iter().zip(&truth) {
                        let bare = !sample.status.has_value();
                        assert!(bare || sample == truth, "request {} of unit {unit}: {sample:?}", poll.request);
                    }
                    values += usize::from(*samples == truth);
                }
                Outcome::All(Status::CommFail | Status::OutOfService) => {
                    let first = failed.entry(poll.request).or_insert(poll.at.as_millis());
                    let off = (poll.at.as_millis() - *first).rem_euclid(period_ms);
                    assert!(off <= 3 || off >= period_ms - 3, "a failure {off} ms beside its due time");
                }
                Outcome::All(status) => assert!(matches!(status, Status::DeviceError | Status::NotConfigured)),
            }
        }
        values
    }
}

fn missed(polls: &[Poll]) -> usize {
    polls.iter().filter(|poll| poll.outcome == Outcome::All(Status::CommFail)).count()
}

const FAULTS: [&str; 21] = [
    "late",
    "doubled",
    "truncated",
    "oversized",
    "wrong transaction",
    "wrong unit",
    "wrong function",
    "wrong byte count",
    "exception 2",
    "exception 4",
    "exception 11",
    "drip",
    "close",
    "reset",
    "never",
    "garbage",
    "wrong protocol",
    "pieces",
    "length 0",
    "half then close",
    "foreign exception",
];

/// A server whose answers are good, but for `ill` in 100, which take each kind of fault in turn by a seeded choice.
struct Hostile {
    endpoint: String,
    well: Arc<AtomicBool>,
    faults: Arc<AtomicU64>,
}

async fn hostile(seed: u64, ill: u64) -> Hostile {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = listener.local_addr().unwrap().to_string();
    let (well, faults) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let (its_well, its_faults) = (well.clone(), faults.clone());
    tokio::spawn(async move {
        let (mut choice, mut noise) = (Random::new(seed), Random::new(seed));
        let mut fault_of = move || {
            let sick = !its_well.load(Ordering::Relaxed) && choice.below(100) < ill;
            its_faults.fetch_add(sick.into(), Ordering::Relaxed);
            sick.then(|| FAULTS[usize::try_from(choice.below(21)).unwrap()])
        };
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            // A connection at a time: the driver has one only.
            serve(stream, &mut fault_of, &mut noise).await;
        }
    });
    Hostile { endpoint, well, faults }
}

fn good(question: &[u8; 12]) -> Vec<u8> {
    let (unit, function) = (question[6], question[7]);
    let (address, count) =
        (u16::from_be_bytes([question[8], question[9]]), u16::from_be_bytes([question[10], question[11]]));
    let mut data = Vec::new();
    if function <= 2 {
        data.resize(usize::from(count).div_ceil(8), 0);
        for offset in (0..count).filter(|offset| coil(unit, function, address + offset)) {
            data[usize::from(offset / 8)] |= 1 << (offset % 8);
        }
    } else {
        (0..count).for_each(|offset| data.extend(register(unit, function, address + offset).to_be_bytes()));
    }
    let length = u8::try_from(data.len()).unwrap();
    [&question[..4], &[0, length + 3, unit, function, length], &data].concat()
}

#[allow(clippy::disallowed_methods, reason = "a late answer is late in real time")]
async fn serve(mut stream: TcpStream, mut fault_of: impl FnMut() -> Option<&'static str>, random: &mut Random) {
    let _ = stream.set_nodelay(true);
    let mut question = [0; 12];
    while stream.read_exact(&mut question).await.is_ok() {
        let good = good(&question);
        let fault = fault_of().unwrap_or_default();
        let with = |index: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[index] = byte;
            bytes
        };
        let exception = |code: u8| [&question[..4], &[0, 3, question[6], question[7] | 0x80, code]].concat();
        let half = good.len() / 2;
        let answer = match fault {
            "late" => {
                tokio::time::sleep(Duration::from_millis(90)).await;
                good
            }
            "doubled" => good.repeat(2),
            "truncated" | "half then close" => good[..half].to_vec(),
            "oversized" => {
                let mut bytes = with(4, 1);
                bytes.resize(400, 0xEE);
                bytes
            }
            "wrong transaction" => with(0, question[0] ^ 0x40),
            "wrong unit" => with(6, question[6] ^ 0x10),
            "wrong function" => with(7, question[7] ^ 0x07),
            "wrong byte count" => with(8, good[8].wrapping_add(2)),
            "exception 2" => exception(2),
            "exception 4" => exception(4),
            "exception 11" => exception(11),
            "foreign exception" => [&question[..4], &[0, 3, question[6], (question[7] ^ 0x07) | 0x80, 2]].concat(),
            "garbage" => (0..600).map(|_| u8::try_from(random.below(256)).unwrap()).collect(),
            "wrong protocol" => with(3, 1),
            "length 0" => with(5, 0),
            "drip" | "pieces" => {
                let pause = Duration::from_millis(20);
                for byte in &good {
                    if stream.write_all(&[*byte]).await.is_err() {
                        return;
                    }
                    if fault == "drip" { tokio::time::sleep(pause).await } else { tokio::task::yield_now().await }
                }
                Vec::new()
            }
            "close" => return,
            "reset" => {
                let _ = stream.set_zero_linger();
                return;
            }
            "never" => Vec::new(),
            _ => good,
        };
        if stream.write_all(&answer).await.is_err() || fault == "half then close" {
            return;
        }
    }
}

#[tokio::test]
async fn a_hostile_device_gives_no_wrong_value_and_stalls_nothing() {
    let seed = 20_261;
    println!("seed {seed}");
    let device = hostile(seed, 40).await;
    let mut rig = start(&device.endpoint, "timeout='60ms'\nreconnect_max='100ms'\nprobe_max='1s'", &[1, 2, 3], 40, 64);
    let polls = rig.take(900).await;
    let values = rig.check(&polls, 40);
    assert!(values > 50, "only {values} of 900 polls brought values");
    let faults = device.faults.load(Ordering::Relaxed);
    println!("{values} of 900 polls brought values, {faults} answers were ill");
    assert!(faults > 20, "only {faults} faults");
    for id in rig.requests.keys() {
        let count = polls.iter().filter(|poll| poll.request == *id).count();
        assert!(count.abs_diff(100) <= 3, "request {id} has {count} polls of 100");
    }
    // Once it behaves, so does the bus.
    device.well.store(true, Ordering::Relaxed);
    let mut last = Vec::new();
    for _ in 0..40 {
        last = rig.take(90).await;
        if rig.check(&last, 40) == 90 {
            break;
        }
    }
    assert_eq!(rig.check(&last, 40), 90, "the bus has recovered");
    let status = rig.end().await;
    assert!(status.timeouts > 0 && status.errors > 0 && status.connected);
    assert!(status.devices.iter().all(|device| device.state == DeviceState::Ok && device.polls_ok > 0));
}

#[tokio::test]
async fn each_fault_alone_costs_no_truth() {
    FAULTS.map(one_fault).into_iter().collect::<JoinSet<_>>().join_all().await;
}

async fn one_fault(fault: &'static str) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            serve(stream, || Some(fault), &mut Random::new(3)).await;
        }
    });
    let harmless = ["doubled", "pieces"].contains(&fault);
    let timeout = if harmless { "2s" } else { "50ms" };
    let mut rig = start(&endpoint, &format!("timeout='{timeout}'\nreconnect_max='100ms'"), &[9], 30, 64);
    let polls = rig.take(30).await;
    let values = rig.check(&polls, 30);
    let status = rig.end().await;
    if harmless {
        // Some fall due while this process stands still; an answer that was not taken would end in a time-out.
        assert!(status.timeouts == 0 && values + missed(&polls) >= 25 && values >= 5, "{fault}: {values}, {status:?}");
    } else {
        // On a machine too busy to notice the time-out in time, a late answer may still be the answer.
        let late = if ["late", "drip"].contains(&fault) { 3 } else { 0 };
        assert!(values <= late, "{fault}: {values} of 30");
    }
}

#[tokio::test]
async fn a_flood_of_stale_answers_stalls_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut question = [0; 12];
            if stream.read_exact(&mut question).await.is_err() {
                continue;
            }
            let answer = good(&question);
            while stream.write_all(&answer.repeat(50)).await.is_ok() {}
        }
    });
    let mut rig = start(&endpoint, "timeout='60ms'\nreconnect_max='100ms'", &[1], 20, 64);
    let polls = rig.take(300).await;
    rig.check(&polls, 20);
    let status = rig.end().await;
    assert!(status.errors > 3, "the flood costs the device its connection");
}

/// Long answers, so that what comes behind one does not fit into the driver's buffer with it; and a bus without a pause,
/// so that the next question follows at once.
#[tokio::test]
#[allow(clippy::disallowed_methods, reason = "the device is slow in real time")]
async fn an_answer_that_comes_before_its_question_is_none() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut question = [0; 12];
            let mut asked: Vec<[u8; 12]> = Vec::new();
            while stream.read_exact(&mut question).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(8)).await;
                let mut answer = good(&question);
                // Requests take turns: what was asked before the last one comes next. Foretold, with wrong values.
                if let [.., next, _] = asked[..] {
                    let id = (u16::from_be_bytes([question[0], question[1]]) + 1).to_be_bytes();
                    let mut foretold = good(&next);
                    foretold[..2].copy_from_slice(&id);
                    foretold[9..].iter_mut().for_each(|byte| *byte ^= 0x55);
                    answer.extend(foretold);
                }
                asked.push(question);
                if stream.write_all(&answer).await.is_err() {
                    break;
                }
            }
        }
    });
    let rows = (0..375).map(|n| format!("[[point]]\nname='{n}'\ntable='holding'\naddress={n}\ntype='u16'\n"));
    let keys = "name='u1'\nbus='b'\nunit_id=1\naddressing='zero'\nperiod='10ms'\n";
    let device = toml::from_str(&format!("{keys}{}", rows.collect::<String>())).unwrap();
    let mut rig = start_with(&endpoint, "reconnect_max='100ms'", &[device], 64);
    let polls = rig.take(600).await;
    assert!(rig.check(&polls, 10) > 10, "what is asked is answered");
    assert!(rig.end().await.errors > 3, "what is not asked costs the connection");
}

#[tokio::test]
async fn without_a_device_every_due_poll_is_a_failure() {
    // Port 1 of loopback: nobody listens there.
    let mut rig = start("127.0.0.1:1", "reconnect_max='200ms'", &[1, 2], 20, 64);
    let polls = rig.take(300).await;
    assert_eq!(rig.check(&polls, 20), 0);
    assert!(polls.iter().all(|poll| poll.outcome == Outcome::All(Status::CommFail)));
    let status = rig.end().await;
    assert!(!status.connected && status.requests == 0);
    assert!(status.devices[0].last_error.as_deref().unwrap().starts_with("no connection: "), "{status:?}");
    assert_eq!(status.devices[0].state, DeviceState::Silent);
}

#[tokio::test]
#[allow(clippy::disallowed_methods, reason = "the pipeline is slow in real time")]
async fn a_full_channel_loses_no_poll() {
    let device = hostile(1, 0).await;
    let mut rig = start(&device.endpoint, "", &[1], 20, 1);
    let mut polls = rig.take(30).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    polls.extend(rig.take(120).await);
    rig.check(&polls, 20);
    let missed = missed(&polls);
    assert!(missed >= 20, "{missed} polls of 3 requests in 300 ms");
    // A machine that stands still meanwhile costs more polls, but not all that come after.
    assert!(polls.len() - missed >= 20, "{missed} of {} polls", polls.len());
    for id in rig.requests.keys() {
        let stamps: Vec<_> = polls.iter().filter(|poll| poll.request == *id).map(|poll| poll.at.as_millis()).collect();
        let steps = (stamps.last().unwrap() - stamps[0] + 10) / 20;
        assert!(steps.abs_diff(i64::try_from(stamps.len() - 1).unwrap()) <= 1, "request {id}: a due poll has no trace");
    }
    rig.end().await;
}

#[tokio::test]
async fn it_ends_when_told_and_when_nobody_listens() {
    let device = hostile(1, 0).await;
    let mut rig = start(&device.endpoint, "", &[1], 20, 4);
    rig.take(10).await;
    rig.stop.send_replace(true);
    tokio::time::timeout(Duration::from_secs(5), rig.task).await.expect("told to stop").unwrap();
    let rig = start(&device.endpoint, "", &[1], 60_000, 4);
    drop(rig.polls);
    tokio::time::timeout(Duration::from_secs(5), rig.task).await.expect("nobody listens").unwrap();
}

/// An independent implementation on the other side.
struct Peer;

impl tokio_modbus::server::Service for Peer {
    type Request = SlaveRequest<'static>;
    type Response = tokio_modbus::Response;
    type Exception = ExceptionCode;
    type Future = std::future::Ready<Result<Self::Response, Self::Exception>>;

    fn call(&self, asked: Self::Request) -> Self::Future {
        use tokio_modbus::{Request, Response};
        let unit = asked.slave;
        let registers =
            |function, address, count| (address..address + count).map(|a| register(unit, function, a)).collect();
        ready(match asked.request {
            Request::ReadCoils(address, count) => {
                Ok(Response::ReadCoils((address..address + count).map(|a| coil(unit, 1, a)).collect()))
            }
            Request::ReadHoldingRegisters(address, count) => {
                Ok(Response::ReadHoldingRegisters(registers(3, address, count)))
            }
            Request::ReadInputRegisters(..) if unit == 2 => Err(ExceptionCode::IllegalDataAddress),
            Request::ReadInputRegisters(address, count) => {
                Ok(Response::ReadInputRegisters(registers(4, address, count)))
            }
            _ => Err(ExceptionCode::IllegalFunction),
        })
    }
}

#[tokio::test]
async fn an_independent_device_is_read_as_it_is() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        let server = tokio_modbus::server::tcp::Server::new(listener);
        let on_connected = |stream, address| async move {
            tokio_modbus::server::tcp::accept_tcp_connection(stream, address, |_| Ok(Some(Peer)))
        };
        server.serve(&on_connected, |_| {}).await
    });
    let mut rig = start(&endpoint, "timeout='10s'", &[1, 2], 50, 64);
    let polls = rig.take(120).await;
    let values = rig.check(&polls, 50);
    let refused = polls.iter().filter(|poll| poll.outcome == Outcome::All(Status::NotConfigured)).count();
    let missed = missed(&polls); // while this process stood still
    assert_eq!(values + refused + missed, 120, "a block without registers costs only its own points");
    assert!(refused >= 5 && values >= 4 * refused, "{values} values, {refused} refused");
    let status = rig.end().await;
    assert_eq!((status.errors, status.timeouts), (0, 0));
    assert_eq!(status.devices[1].state, DeviceState::Degraded);
    let said = status.devices[1].last_error.as_deref();
    assert!(said == Some("exception 2, illegal data address") || missed > 0, "{said:?}");
}
