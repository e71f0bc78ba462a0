//! The Modbus driver alone against each fault of the hostile device, every time and now and then: what it makes of each
//! is exactly what [`Outcome`](tributary_tests::hostile_modbus::Outcome) says, and it recovers.
//!
//! In one process, so that thousands of polls take seconds. `hostile_devices.rs` does the same through the whole agent.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tributary::clock::SystemClock;
use tributary_protocols::modbus::bus::{Bus, BusDevice};
use tributary_protocols::modbus::status::BusStatus;
use tributary_protocols::modbus::{config, driver, plan};
use tributary_protocols::reading::{Outcome as Brought, Poll, Status};
use tributary_protocols::time::Clock;
use tributary_protocols::value::Value;
use tributary_tests::evidence::Fault as Wrong;
use tributary_tests::hostile_modbus::{Fault, HostileModbus, Outcome, Plan, Record};
use tributary_tests::modbus_device::{READ_HOLDING, READ_INPUT, register};
use tributary_tests::seed;

const SEED: u64 = 20_250_819;
/// The driver's time-out; what the devices must outlast.
const PATIENCE: Duration = Duration::from_millis(30);
/// The time-out where an answer always comes at once: none is given up because this process stood still for a moment.
const LONG: Duration = Duration::from_secs(10);
/// Four requests a period: a time-out makes its neighbour late at the most.
const PERIOD_MS: u64 = 120;
/// What is polled: four requests that could be mixed up, each address with a value of its own.
const POINTS: [(&str, u8, u16); 6] = [
    ("holding", READ_HOLDING, 3),
    ("holding", READ_HOLDING, 4),
    ("holding", READ_HOLDING, 90),
    ("input", READ_INPUT, 3),
    ("input", READ_INPUT, 4),
    ("input", READ_INPUT, 90),
];

/// A poll's points: function, address and what came of each.
type Answers = Vec<(u8, u16, Status, Option<u64>)>;

/// What came of some polls.
struct Run {
    /// What each brought.
    polls: Vec<Answers>,
    /// What the device did.
    record: Record,
    /// What the driver says.
    status: BusStatus,
}

impl Run {
    fn good(&self) -> usize {
        self.polls.iter().filter(|poll| is_good(poll)).count()
    }

    /// Polls that were asked: the others fell due while this process stood still, or while the device was left alone.
    fn asked(&self) -> usize {
        self.polls.len().saturating_sub(usize::try_from(self.status.missed).unwrap_or(usize::MAX))
    }
}

/// Whether a poll was good in all its points.
fn is_good(poll: &Answers) -> bool {
    poll.iter().all(|(_, _, status, _)| *status == Status::Good)
}

/// Polls a device that plays `plan`, with that time-out, until `polls` polls are over and so many are good; at the most ten
/// times as many, if the driver does not recover.
async fn polls(plan: Plan, timeout: Duration, polls: usize, good: usize) -> Result<Run, Wrong> {
    let device = HostileModbus::start(plan).await?;
    // Little back-off: it is the answers that are tested here.
    let text = format!(
        "name = \"bus\"\ntcp = \"{}\"\ntimeout = \"{}ms\"\nreconnect_max = \"100ms\"\nprobe_max = \"1s\"",
        device.address(),
        timeout.as_millis()
    );
    let spec = config::resolve_bus(&toml::from_str(&text)?, "bus").map_err(|faults| format!("{faults:?}"))?;
    let mut text = format!(
        "name = \"d\"\nbus = \"bus\"\nunit_id = 1\naddressing = \"zero\"\norder = \"ABCD\"\nperiod = \"{PERIOD_MS}ms\"\n"
    );
    for (number, (table, _, address)) in POINTS.iter().enumerate() {
        text += &format!(
            "[[point]]\nname = \"p{number}\"\ntable = \"{table}\"\naddress = {address}\ntype = \"u16\"\nunit = \"1\"\n"
        );
    }
    let spec_device =
        config::resolve(&toml::from_str(&text)?, "device", None).map_err(|faults| format!("{faults:?}"))?;
    let requests = plan::plan(&spec_device.points, spec_device.caps);
    let clock = Arc::new(SystemClock::new());
    let bus = Bus::new(&spec, vec![BusDevice::new(&spec_device, requests.clone(), 0)], clock.mono(), 1);
    let (sender, mut receiver) = mpsc::channel(64);
    let (status, told) = watch::channel(BusStatus::default());
    let (stop, shutdown) = watch::channel(false);
    let (asks, memory) = (mpsc::channel(1).1, mpsc::unbounded_channel().0);
    let wires = driver::Wires { polls: sender, asks, status, memory, shutdown };
    let task = tokio::spawn(driver::run(spec, bus, None, clock, wires));
    let (mut brought, mut found) = (Vec::new(), 0);
    while brought.len() < polls || (found < good && brought.len() < 10 * polls) {
        let Some((_, poll)) = receiver.recv().await else {
            return Err("the driver has ended".into());
        };
        let poll = answers(&requests, poll);
        found += usize::from(is_good(&poll));
        brought.push(poll);
    }
    // What is out is still answered or given up: then the figures fit what came.
    stop.send(true)?;
    while let Some((_, poll)) = receiver.recv().await {
        brought.push(answers(&requests, poll));
    }
    task.await?;
    let status = told.borrow().clone();
    Ok(Run { polls: brought, record: device.record(), status })
}

fn answers(requests: &[plan::Request], poll: Poll) -> Answers {
    let points = &requests[poll.request as usize].points;
    let named = |point: &plan::PlannedPoint, status, bits| {
        let (_, function, address) = POINTS[point.index as usize];
        (function, address, status, bits)
    };
    match poll.outcome {
        Brought::All(status) => points.iter().map(|point| named(point, status, None)).collect(),
        Brought::Samples(samples) => {
            assert_eq!(samples.len(), points.len(), "a sample a point");
            let bits = |value| if let Value::Bits(bits) = value { Some(bits) } else { None };
            points.iter().zip(samples).map(|(point, sample)| named(point, sample.status, bits(sample.value))).collect()
        }
    }
}

/// Whether every value is the register's, and no status without a value has one.
fn true_to_the_registers(polls: &[Answers]) -> Result<(), String> {
    for (function, address, status, bits) in polls.iter().flatten() {
        let truth = u64::from(register(1, *function, *address));
        let right = if status.has_value() { *bits == Some(truth) } else { bits.is_none() };
        if !right {
            return Err(format!("function {function}, address {address} holds {truth}: {status:?} {bits:?}"));
        }
    }
    Ok(())
}

#[tokio::test]
async fn each_fault_every_time_is_what_it_is() -> Result<(), Wrong> {
    let seed = seed(SEED);
    let runs = Fault::ALL.map(|fault| {
        let plan = Plan { seed, faults: vec![fault], percent: 100, patience: PATIENCE };
        let answers = matches!(fault.outcome(), Outcome::Value | Outcome::Refusal);
        (fault, tokio::spawn(polls(plan, if answers { LONG } else { PATIENCE }, 40, 0)))
    });
    for (fault, run) in runs {
        let run = run.await??;
        let Run { polls, record, status: bus } = &run;
        true_to_the_registers(polls).map_err(|wrong| format!("{fault:?}: {wrong}"))?;
        assert!(record.played.contains_key(&fault), "{fault:?} was never played: {record:?}");
        assert_eq!(record.writes, 0, "{fault:?}");
        let statuses = || polls.iter().flatten().map(|(_, _, status, _)| *status);
        let fits = match fault.outcome() {
            // Each that was asked is good, and no answer was refused or overheard.
            Outcome::Value => run.good() > 0 && run.good() >= run.asked() && bus.errors == 0 && bus.timeouts == 0,
            Outcome::Refusal if matches!(fault, Fault::Exception(2 | 3)) => {
                statuses().any(|status| status == Status::NotConfigured)
            }
            Outcome::Refusal => statuses().any(|status| status == Status::DeviceError),
            Outcome::NoValue => statuses().all(|status| !status.has_value()),
            Outcome::Either => true,
        };
        let seen: std::collections::BTreeSet<Status> = statuses().collect();
        assert!(fits, "{fault:?} must come to {:?}, but came to {seen:?}: {bus:?}", fault.outcome());
    }
    Ok(())
}

#[tokio::test]
async fn each_fault_now_and_then_is_survived() -> Result<(), Wrong> {
    let seed = seed(SEED);
    let runs = Fault::ALL.map(|fault| {
        let plan = Plan { seed, faults: vec![fault], percent: 5, patience: PATIENCE };
        (fault, tokio::spawn(polls(plan, PATIENCE, 200, 40)))
    });
    for (fault, run) in runs {
        let run = run.await??;
        true_to_the_registers(&run.polls).map_err(|wrong| format!("{fault:?}: {wrong}"))?;
        // Of 100 polls 95 are honest; some faults cost the next poll, too. Three failures in a row make the driver leave
        // the device alone for a second or more, and this process may stand still: what was not asked does not count.
        let (good, asked) = (run.good(), run.asked());
        let survived = good >= 40 && good * 5 >= asked;
        assert!(survived, "{fault:?}: {good} good polls of {asked}: {:?} {:?}", run.record, run.status);
    }
    Ok(())
}

#[tokio::test]
async fn all_faults_at_once_bring_no_wrong_value() -> Result<(), Wrong> {
    let seed = seed(SEED);
    let runs: Vec<_> = (0..8)
        .map(|number| {
            let seed = seed.wrapping_add(number);
            let plan = Plan { seed, faults: Fault::ALL.to_vec(), percent: 10, patience: PATIENCE };
            tokio::spawn(polls(plan, PATIENCE, 300, 60))
        })
        .collect();
    for run in runs {
        let run = run.await??;
        true_to_the_registers(&run.polls)?;
        let (good, asked) = (run.good(), run.asked());
        assert!(good >= 60 && good * 5 >= asked, "{good} good polls of {asked}: {:?} {:?}", run.record, run.status);
    }
    Ok(())
}
