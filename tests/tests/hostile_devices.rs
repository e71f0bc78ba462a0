//! The agent among devices that lie: one bus for each fault, and an honest one in their midst.
//!
//! No value that the device did not have under that address, no panic, no stall, no write; every due poll leaves a trace;
//! and the honest device never notices its neighbours.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use tributary::socket;
use tributary::status::Bus;
use tributary_tests::agent::{Agent, Configuration, SITE};
use tributary_tests::evidence::{Fault as Wrong, Row, every_due_poll_left_a_trace};
use tributary_tests::hostile_broker::{self, HostileBroker};
use tributary_tests::hostile_modbus::{Fault, HostileModbus, Outcome, Plan};
use tributary_tests::hostile_receiver::{self, Books, HostileReceiver};
use tributary_tests::modbus_device::{READ_HOLDING, READ_INPUT, Registers, Simulator, register};
use tributary_tests::process::eventually_or;
use tributary_tests::seed;

const AGENT: &str = "gw-hostile";
/// An agent with the honest device alone: what it misses is the machine's fault.
const CONTROL: &str = "gw-control";
const SEED: u64 = 20_250_817;
const PERIOD_MS: i64 = 100;
/// The agent's time-out on each bus; what the devices must outlast.
const PATIENCE: Duration = Duration::from_millis(80);
/// The time-out where an answer always comes at once: none is given up because this process stood still for a moment.
const LONG: Duration = Duration::from_secs(10);
/// How often each fault must have been played.
const TIMES: u64 = 8;
/// Registers of each device: two neighbouring blocks in two tables, so that four requests could be mixed up.
const POINTS: [(&str, u8, u16); 6] = [
    ("h3", READ_HOLDING, 3),
    ("h4", READ_HOLDING, 4),
    ("h90", READ_HOLDING, 90),
    ("i3", READ_INPUT, 3),
    ("i4", READ_INPUT, 4),
    ("i90", READ_INPUT, 90),
];

fn with_device(configuration: Configuration, name: &str, address: SocketAddr, timeout: Duration) -> Configuration {
    let bus = format!("bus-{name}");
    let mut configuration = configuration.bus(&bus, address, &format!("{}ms", timeout.as_millis())).device(
        name,
        &bus,
        1,
        &format!("{PERIOD_MS}ms"),
    );
    for (point, function, address) in POINTS {
        let table = if function == READ_HOLDING { "holding" } else { "input" };
        configuration = configuration.point(point, table, address, "u16");
    }
    configuration
}

/// What an agent that keeps its state below `folder` says of its buses. It is asked beside the devices, which serve on.
async fn buses(folder: &Path) -> Result<BTreeMap<String, Bus>, Wrong> {
    let at = folder.join("state/status.sock");
    let status = tokio::task::spawn_blocking(move || socket::status(&at)).await??;
    Ok(status.buses.into_iter().map(|bus| (bus.name.clone(), bus)).collect())
}

/// The points of which nothing good has come yet.
fn never_good<'d>(books: &Books, devices: impl Iterator<Item = &'d String>) -> Vec<String> {
    let good: BTreeSet<&str> =
        books.readings().filter(|reading| reading.status == 0).map(|reading| reading.point.as_str()).collect();
    let points = devices.flat_map(|device| POINTS.map(|(point, ..)| format!("{device}/{point}")));
    points.filter(|point| !good.contains(point.as_str())).map(|point| format!("{point} was never good")).collect()
}

/// Readings of one point, in the order of their stamps.
fn rows(books: &Books, device: &str, point: &str) -> Vec<Row> {
    let name = format!("{device}/{point}");
    let mut rows: Vec<Row> = books
        .readings()
        .filter(|reading| reading.point == name && reading.statistic.is_empty())
        .map(|reading| Row {
            at_ms: reading.at_ms,
            status: i64::from(reading.status),
            value: reading.bits.map(u64::cast_signed),
        })
        .collect();
    rows.sort_by_key(|row| row.at_ms);
    rows
}

#[tokio::test]
async fn live_no_wrong_value_from_devices_that_lie() -> Result<(), Wrong> {
    let seed = seed(SEED);
    let folder = tempfile::tempdir()?;
    let broker = HostileBroker::start(hostile_broker::Plan::honest()).await?;
    let receiver_of = |agent: &str| {
        HostileReceiver::start(&broker, &format!("edge/v1/{SITE}/{agent}"), hostile_receiver::Plan::honest())
    };
    let (receiver, control_receiver) = (receiver_of(AGENT), receiver_of(CONTROL));

    let honest = Simulator::start(Registers::Known, Duration::ZERO).await?;
    let control = Simulator::start(Registers::Known, Duration::ZERO).await?;
    let mut configuration = Configuration::new(AGENT, &broker.url());
    configuration = with_device(configuration, "honest", honest.address(), LONG);
    let alone = with_device(Configuration::new(CONTROL, &broker.url()), "honest", control.address(), LONG);
    let mut devices = BTreeMap::new();
    for (number, fault) in (0..).zip(Fault::ALL) {
        let name = format!("fault-{number}");
        let faults = if fault.at_connect() { vec![fault, Fault::Close] } else { vec![fault] };
        let plan = Plan { seed: seed.wrapping_add(number), faults, percent: 40, patience: PATIENCE };
        let device = HostileModbus::start(plan).await?;
        let answers = matches!(fault.outcome(), Outcome::Value | Outcome::Refusal);
        let timeout = if answers { LONG } else { PATIENCE };
        configuration = with_device(configuration, &name, device.address(), timeout);
        devices.insert(name, (Some(fault), device));
    }
    let plan = Plan { seed, faults: Fault::ALL.to_vec(), percent: 50, patience: PATIENCE };
    let device = HostileModbus::start(plan).await?;
    configuration = with_device(configuration, "all-faults", device.address(), PATIENCE);
    devices.insert("all-faults".to_owned(), (None, device));

    let mut control_agent = Agent::start(&folder.path().join("control"), &alone)?;
    let mut agent = Agent::start(&folder.path().join("agent"), &configuration)?;
    eventually_or("every fault to be played and got over", Duration::from_secs(240), async || {
        agent.assert_alive();
        let too_few = |(name, (fault, device)): (&String, &(Option<Fault>, HostileModbus))| {
            let record = device.record();
            let played: u64 = record.played.values().sum();
            (played < TIMES).then(|| format!("{name} ({fault:?}) only {record:?}"))
        };
        let mut missing: Vec<String> = devices.iter().filter_map(too_few).collect();
        if missing.is_empty() {
            missing = receiver.look(|books| never_good(books, devices.keys()));
        }
        if missing.is_empty() { Ok(()) } else { Err(missing.join("\n")) }
    })
    .await;
    let buses = buses(&folder.path().join("agent")).await?;
    assert!(agent.stop().await.success());
    assert!(control_agent.stop().await.success());

    let books = receiver.books();
    assert!(books.broken.is_empty(), "{:#?}", books.broken);
    assert!(books.lost().is_empty(), "nothing was killed, so nothing may be lost: {:?}", books.lost());
    for (name, (fault, device)) in &devices {
        let record = device.record();
        assert_eq!(record.writes, 0, "{name} ({fault:?}) was written to");
        for (point, function, address) in POINTS {
            let truth = i64::from(register(1, function, address));
            let rows = rows(&books, name, point);
            for row in &rows {
                let right = if row.status < 16 { row.value == Some(truth) } else { row.value.is_none() };
                assert!(right, "{name} ({fault:?}), {point}: the register holds {truth}, the centre has {row:?}");
            }
            every_due_poll_left_a_trace(&rows, &[], PERIOD_MS, 1)
                .map_err(|wrong| format!("{name} ({fault:?}), {point}: {wrong}"))?;
            let good = rows.iter().filter(|row| row.status == 0).count();
            assert!(good > 0, "{name} ({fault:?}), {point}: never recovered in {} polls: {record:?}", rows.len());
            if let Some(fault) = fault {
                statuses_fit(*fault, &rows).map_err(|wrong| format!("{name} ({fault:?}), {point}: {wrong}"))?;
                let bus = &buses[&format!("bus-{name}")];
                // A poll that is overdue has no value either: nobody asked, so nothing was refused or overheard.
                let taken = bus.errors == 0 && bus.timeouts == 0;
                let legal = fault.outcome() == Outcome::Value;
                assert!(taken || !legal, "{fault:?}, {point}: legal answers were refused: {good} good, {bus:?}");
            }
        }
    }
    for (point, function, address) in POINTS {
        let truth = i64::from(register(1, function, address));
        let bad = |rows: &[Row]| rows.iter().filter(|row| row.status != 0 || row.value != Some(truth)).count();
        let (rows, alone) = (rows(&books, "honest", point), rows(&control_receiver.books(), "honest", point));
        // What a machine without time for us costs, it costs the one without neighbours too; one of the two agents alone
        // may stand still for a second.
        let (bad, control) = (bad(&rows), bad(&alone));
        assert!(
            bad <= 2 * control + (rows.len() / 50).max(10),
            "honest, {point}: {bad} of {} suffered from its neighbours; without any {control} of {}",
            rows.len(),
            alone.len()
        );
    }
    println!("{} readings, {} faults, none wrong", books.readings().count(), Fault::ALL.len());
    Ok(())
}

/// What a fault may leave behind, besides honest polls.
fn statuses_fit(fault: Fault, rows: &[Row]) -> Result<(), String> {
    const COMM_FAIL: i64 = 16;
    const DEVICE_ERROR: i64 = 17;
    const NOT_CONFIGURED: i64 = 19;
    let bare: Vec<i64> = rows.iter().map(|row| row.status).filter(|status| *status >= 16).collect();
    let wrong = |what: &str| Err(format!("{what}: statuses without a value are {bare:?}"));
    match fault.outcome() {
        Outcome::Value if bare.iter().any(|status| *status != COMM_FAIL) => wrong("none but an overdue poll has none"),
        Outcome::Refusal if !bare.iter().any(|status| [DEVICE_ERROR, NOT_CONFIGURED].contains(status)) => {
            wrong("an exception is what the device said")
        }
        Outcome::NoValue if bare.is_empty() => wrong("an illegal answer was taken for a value"),
        Outcome::NoValue if matches!(fault, Fault::Silence | Fault::Late) && !bare.contains(&COMM_FAIL) => {
            wrong("silence is COMM_FAIL")
        }
        _ => Ok(()),
    }
}
