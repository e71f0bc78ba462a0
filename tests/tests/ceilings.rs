//! The agent's ceilings: a start over a week of backlog is quick, and whatever comes in, its memory stays below 48 MiB.
//!
//! The backlog is real (`src/backlog.rs`): seven days of 1,000 points that nobody took. How densely they were polled
//! decides its size: `TRIBUTARY_BACKLOG` polls of each point. What `tests/run` can afford is 55 MB on disk; `tests/soak`
//! fills 1 GB.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rumqttc::{AsyncClient, MqttOptions, QoS};
use tokio::task::JoinHandle;
use tributary::clock::SystemClock;
use tributary::socket;
use tributary::status::Status;
use tributary_protocols::time::Clock;
use tributary_tests::agent::{Agent, Configuration, Receiver};
use tributary_tests::backlog;
use tributary_tests::broker::Mosquitto;
use tributary_tests::hostile_modbus::{Fault, HostileModbus, Plan};
use tributary_tests::modbus_device::{Registers, Simulator};
use tributary_tests::process::{eventually, eventually_or};
use tributary_tests::{count, seed};

const PATIENCE: Duration = Duration::from_secs(60);
const WEEK: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// What must come in, be published to the flooded broker, and arrive at the centre at least while memory is watched.
const READINGS: u64 = 100_000;
const MESSAGES: u64 = 2_000;
const DELIVERED: u64 = 200_000;
/// The ceiling in KiB. It is the peak of what was ever resident.
const RESIDENT: u64 = 48 * 1_024;
/// What the kernel refuses beyond: all memory of its own, touched or not, stacks of threads included.
const RESERVED: &str = "--data=100663296";

/// 1,000 points at 20 Hz, devices that answer with floods and endless frames, and a broker whose topics multiply.
fn flooded(uplink: &str, field: &str, good: &[Simulator], bad: &[HostileModbus]) -> Configuration {
    let head = format!("[uplink]\nurl = \"{uplink}\"\nreconnect_max = \"1s\"\n[spool]\nmax_disk = \"2GB\"\n");
    let mut configuration = Configuration::new("gw", uplink).with_head(&head);
    for (at, device) in good.iter().enumerate() {
        let name = format!("plc{at}");
        configuration = configuration.bus(&name, device.address(), "1s").device(&name, &name, 1, "50ms");
        for point in 0..100 {
            configuration = configuration.point(&format!("p{point}"), "holding", point * 2, "f32");
        }
    }
    for (at, device) in bad.iter().enumerate() {
        let name = format!("bad{at}");
        configuration = configuration
            .bus(&name, device.address(), "200ms")
            .device(&name, &name, 1, "50ms")
            .point("count", "holding", 0, "f32");
    }
    configuration
        .toml(&format!("[[mqtt]]\nname = \"flood\"\nurl = \"{field}\"\n"))
        .toml("[[mqtt.point]]\nname = \"n/{1}\"\ntopic = \"flood/+/n\"\nvalue = \"/value\"\ntype = \"i64\"\nunit = \"1\"\n")
        .toml("[[mqtt.point]]\nname = \"t/{1}\"\ntopic = \"flood/+/t\"\ntype = \"string\"\n")
}

/// Publishes as fast as the broker takes it: 3,000 topics of two wildcards, numbers and texts of up to 200 KB, of which
/// those above 64 KB (and texts above 4 KB) are to be dropped. Counts what was published.
fn flood(port: u16, sent: Arc<AtomicU64>) -> JoinHandle<()> {
    let mut options = MqttOptions::new("flood", "127.0.0.1", port);
    options.set_max_packet_size(1 << 20, 1 << 20);
    let (client, mut events) = AsyncClient::new(options, 16);
    tokio::spawn(async move { while events.poll().await.is_ok() {} });
    tokio::spawn(async move {
        for n in 0_u64.. {
            let size = [10, 300, 4_000, 60_000, 200_000][usize::try_from(n / 7 % 5).unwrap()];
            let (kind, payload) = match n % 2 {
                0 => ("n", format!("{{\"pad\":\"{}\",\"value\":{n}}}", "x".repeat(size))),
                _ => ("t", "y".repeat(size)),
            };
            let qos = if n % 3 == 0 { QoS::AtLeastOnce } else { QoS::AtMostOnce };
            if client.publish(format!("flood/{}/{kind}", n % 3_000), qos, false, payload).await.is_err() {
                return;
            }
            sent.fetch_add(1, Ordering::Relaxed);
        }
    })
}

/// A line of `/proc/PID/status`, in KiB.
fn kib(pid: u32, name: &str) -> u64 {
    let of = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    of.lines().find(|line| line.starts_with(name)).unwrap().split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test]
async fn live_a_start_over_a_week_of_backlog_is_quick_and_memory_stays_below_its_ceiling() {
    let folder = tempfile::tempdir().unwrap();
    let mut broker = Mosquitto::start(&folder.path().join("broker")).await.unwrap();
    let field = Mosquitto::start(&folder.path().join("field")).await.unwrap();
    let store = format!("sqlite:{}", folder.path().join("centre.db").display());
    let mut receiver = Receiver::start("receiver", folder.path(), &broker.url(), &store).unwrap();
    let good = Simulator::start_many(10, Registers::Floats, Duration::ZERO).await.unwrap();
    let seed = seed(7);
    let mut bad = Vec::new();
    for n in 0..5 {
        let faults = vec![Fault::Flood, Fault::Oversized, Fault::LengthMost, Fault::JunkInstead, Fault::Drip];
        let plan = Plan { seed: seed + n, faults, percent: 100, patience: Duration::from_millis(200) };
        bad.push(HostileModbus::start(plan).await.unwrap());
    }
    let home = folder.path().join("agent");
    let configuration = flooded(&broker.url(), &field.url(), &good, &bad);
    let clock = SystemClock::new();

    let polls = u32::try_from(count("TRIBUTARY_BACKLOG", 10_000)).unwrap();
    let config = configuration.write(&home).unwrap();
    let made = tokio::task::spawn_blocking(move || backlog::fill(&config, polls, WEEK)).await.unwrap();
    println!("{made:?} in {:?}", clock.mono());

    let status = || -> Option<Status> { socket::status(&home.join("state/status.sock")).ok() };
    // What else the machine does may delay one start, but not each.
    let (mut starts, mut delivered) = (0, 0);
    let (mut agent, first_poll, first_batch) = loop {
        let polled: Vec<u64> = good.iter().map(Simulator::requests).collect();
        let all_polled = || good.iter().zip(&polled).all(|(device, before)| device.requests() > *before).then_some(());
        let begun = clock.mono();
        let agent = Agent::start_under(&home, &configuration, &["prlimit", RESERVED, "--"]).unwrap();
        eventually("the first polls", PATIENCE, async || all_polled()).await;
        let first_poll = clock.mono().since(begun);
        let told = async || status().filter(|told| told.ledger.delivered > delivered);
        delivered = eventually("the first batch", PATIENCE, told).await.ledger.delivered;
        let first_batch = clock.mono().since(begun);
        println!("first poll after {first_poll:?}, first batch at the centre after {first_batch:?}");
        starts += 1;
        if starts == 3 || first_poll <= Duration::from_secs(1) && first_batch <= Duration::from_secs(3) {
            break (agent, first_poll, first_batch);
        }
    };
    let peak = |agent: &Agent| (kib(agent.pid(), "VmHWM"), kib(agent.pid(), "VmData"));
    println!("after the start: VmHWM, VmData {:?} KiB", peak(&agent));

    let sent = Arc::new(AtomicU64::new(0));
    let flooding = flood(field.port(), Arc::clone(&sent));
    let gets_through = async |what: &str, delivers: bool, agent: &mut Agent| {
        let before = eventually("a status", PATIENCE, async || status()).await;
        let messages = sent.load(Ordering::Relaxed);
        let told = eventually_or(what, PATIENCE, async || {
            agent.assert_alive();
            let told = status().ok_or("no status")?;
            let readings = told.ledger.admitted - before.ledger.admitted;
            let flooded = sent.load(Ordering::Relaxed) - messages;
            let delivered = told.ledger.delivered - before.ledger.delivered;
            let enough = readings >= READINGS && flooded >= MESSAGES && (!delivers || delivered >= DELIVERED);
            if enough {
                Ok(told)
            } else {
                Err(format!("{readings} readings, {flooded} messages, {delivered} delivered"))
            }
        })
        .await;
        assert!(told.ledger.balances(), "{:?}", told.ledger);
        println!("{what}: VmHWM, VmData {:?} KiB, {} in {:?}", peak(agent), told.spool.disk_bytes, told.ledger);
    };
    gets_through("a flood while the backlog drains", true, &mut agent).await;
    broker.kill();
    gets_through("a flood without a broker", false, &mut agent).await;
    broker.restart().await.unwrap();
    gets_through("a flood while it drains again", true, &mut agent).await;
    receiver.kill();
    gets_through("a flood without a receiver", false, &mut agent).await;
    flooding.abort();

    let (resident, _) = peak(&agent);
    let played: u64 = bad.iter().map(|device| device.record().played.values().sum::<u64>()).sum();
    assert!(played >= 20, "{played} huge frames: the test shows little");
    assert!(!agent.log().contains("panicked"), "{}", agent.log());
    assert!(first_poll <= Duration::from_secs(1), "the first poll came after {first_poll:?}");
    assert!(first_batch <= Duration::from_secs(3), "the first batch came after {first_batch:?}");
    assert!(resident <= RESIDENT, "{resident} KiB");
    assert!(agent.stop().await.success());
}
