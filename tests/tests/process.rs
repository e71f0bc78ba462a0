//! The agent as a process: what signals, small limits and a hostile neighbourhood do to it.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tributary::clock::SystemClock;
use tributary::socket;
use tributary::status::Status;
use tributary_protocols::time::Clock;
use tributary_tests::agent::{Agent, Configuration};
use tributary_tests::broker::Mosquitto;
use tributary_tests::modbus_device::{Registers, Simulator};
use tributary_tests::process::{Process, binary, eventually, free_port, signal};

/// How long a fact may be waited for on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(30);
/// What a stop may take by the interface.
const STOP: Duration = Duration::from_secs(5);
/// Nobody listens there.
const DEAD: &str = "mqtt://127.0.0.1:9";

/// The agent's own word; it is asked on its socket.
fn status(folder: &Path) -> Option<Status> {
    socket::status(&folder.join("state/status.sock")).ok()
}

fn counting(broker: &str, device: &Simulator) -> Configuration {
    Configuration::new("gw", broker)
        .bus("bus", device.address(), "1s")
        .device("plc", "bus", 1, "20ms")
        .point("count", "holding", 0, "u32")
}

/// What is in the spool of a stopped agent, row by row, after `spool verify` found it good.
fn exported(folder: &Path) -> Vec<serde_json::Value> {
    let spool = |arguments: &[&str]| {
        let config = folder.join("agent.toml");
        Command::new(binary("tributary")).arg("spool").args(arguments).arg("-c").arg(config).output().unwrap()
    };
    let verified = spool(&["verify"]);
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stdout));
    let rows = spool(&["export", "--format", "json"]);
    assert!(rows.status.success(), "{}", String::from_utf8_lossy(&rows.stderr));
    String::from_utf8_lossy(&rows.stdout).lines().map(|row| serde_json::from_str(row).unwrap()).collect()
}

/// The device counts its requests: each that it answered is there once, but for at most `in_flight` whose answer nobody
/// waited for.
fn every_count_once(rows: &[serde_json::Value], served: u64, in_flight: u64) {
    let counts: Vec<u64> = rows.iter().filter_map(|row| row["raw"].as_u64()).collect();
    assert!(counts.is_sorted_by(|a, b| a < b), "a count is there twice, or out of order: {counts:?}");
    assert!(counts.first() >= Some(&1) && counts.last() <= Some(&served), "not a count of {served}: {counts:?}");
    assert!(counts.len() as u64 + in_flight >= served, "{} of {served} are there: {counts:?}", counts.len());
}

async fn stops_under_load(broker: &str) {
    let folder = tempfile::tempdir().unwrap();
    let device = Simulator::start(Registers::Counting, Duration::ZERO).await.unwrap();
    let mut agent = Agent::start(folder.path(), &counting(broker, &device)).unwrap();
    eventually("100 polls", PATIENCE, async || (device.requests() >= 100).then_some(())).await;
    let clock = SystemClock::new();
    let begun = clock.mono();
    let ended = agent.stop().await;
    let took = clock.mono().since(begun);
    assert_eq!(ended.code(), Some(0));
    assert!(took < STOP, "the stop took {took:?}");
    let rows = exported(folder.path());
    every_count_once(&rows, device.requests(), 1);
    println!("{broker}: stopped in {took:?}, {} rows for {} requests", rows.len(), device.requests());
}

#[tokio::test]
async fn live_sigterm_with_a_broker_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    // No receiver: nothing is confirmed, so everything is still in the spool.
    let broker = Mosquitto::start(folder.path()).await.unwrap();
    stops_under_load(&broker.url()).await;
}

#[tokio::test]
async fn live_sigterm_without_a_broker_loses_nothing() {
    stops_under_load(DEAD).await;
}

#[tokio::test]
async fn live_sigterm_with_a_silent_broker_loses_nothing() {
    // The kernel accepts; nobody ever answers.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    stops_under_load(&format!("mqtt://{}", silent.local_addr().unwrap())).await;
}

#[tokio::test]
async fn live_a_suspended_agent_resumes_and_tells_what_it_missed() {
    let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let device = Simulator::start(Registers::Counting, Duration::ZERO).await.unwrap();
    let clock = Simulator::start(Registers::Counting, Duration::ZERO).await.unwrap();
    let mut agent = Agent::start(folder.path(), &counting(DEAD, &device)).unwrap();
    // Another agent of the same period is the clock.
    let mut ticking = Agent::start(other.path(), &counting(DEAD, &clock)).unwrap();
    eventually("both to poll", PATIENCE, async || (device.requests().min(clock.requests()) >= 20).then_some(())).await;

    signal(agent.pid(), "-STOP");
    // What was on its way may still arrive; from the tenth tick on nothing may.
    let from = clock.requests();
    eventually("10 ticks", PATIENCE, async || (clock.requests() >= from + 10).then_some(())).await;
    let before = device.requests();
    let from = clock.requests();
    eventually("100 ticks", PATIENCE, async || (clock.requests() >= from + 100).then_some(())).await;
    assert_eq!(device.requests(), before, "a suspended agent polls");
    signal(agent.pid(), "-CONT");
    eventually("50 more polls", PATIENCE, async || (device.requests() >= before + 50).then_some(())).await;
    agent.assert_alive();

    let told = eventually("a status", PATIENCE, async || status(folder.path())).await;
    assert!(told.ledger.balances(), "{:?}", told.ledger);
    let lost: u64 = told.ledger.lost.values().sum();
    assert!(agent.stop().await.success() && ticking.stop().await.success());

    let rows = exported(folder.path());
    // One at the suspension, one at the stop.
    every_count_once(&rows, device.requests(), 2);
    let traced = rows.iter().filter(|row| row["raw"].is_null()).count() as u64;
    println!("{} rows, {traced} without a value, missed {}, lost {lost}", rows.len(), told.buses[0].missed);
    assert!(traced + lost >= 100, "100 polls were missed, {traced} rows and {lost} lost tell of them");
}

#[tokio::test]
async fn live_too_few_file_descriptors_are_told_and_no_panic() {
    let folder = tempfile::tempdir().unwrap();
    let devices = Simulator::start_many(40, Registers::Counting, Duration::ZERO).await.unwrap();
    let mut configuration = Configuration::new("gw", DEAD);
    for (at, device) in devices.iter().enumerate() {
        configuration = configuration
            .bus(&format!("bus{at}"), device.address(), "1s")
            .device(&format!("plc{at}"), &format!("bus{at}"), 1, "100ms")
            .point("count", "holding", 0, "u32");
    }
    // Started once for its configuration file, then with 32 descriptors for 40 buses, a spool and a socket.
    let mut whole = Agent::start(folder.path(), &configuration).unwrap();
    eventually("a status", PATIENCE, async || status(folder.path())).await;
    assert!(whole.stop().await.success());

    let mut command = Command::new("prlimit");
    command.args(["--nofile=32:32", "--"]).arg(binary("tributary"));
    command.args(["run", "-c"]).arg(folder.path().join("agent.toml"));
    let mut limited = Process::start("limited", folder.path(), &command).unwrap();
    let before: Vec<u64> = devices.iter().map(Simulator::requests).collect();
    eventually("a device to be polled 50 times", PATIENCE, async || {
        assert!(limited.ended().is_none(), "{}", limited.log());
        devices.iter().zip(&before).any(|(device, before)| device.requests() >= before + 50).then_some(())
    })
    .await;
    let polled = devices.iter().zip(&before).filter(|(device, before)| device.requests() > **before + 1).count();
    let said = limited.log();
    // The socket of the status needs a descriptor too: it may be silent, the log may not.
    let told = status(folder.path());
    let in_status = told.iter().flat_map(|told| &told.buses).filter(|bus| bus.last_error.is_some()).count();
    println!("{polled} of 40 polled, {in_status} buses tell why not; log:\n{said}");
    assert!(!said.contains("panicked"), "{said}");
    assert!((1..40).contains(&polled), "{polled} of 40 were polled: the limit shows nothing, or stops all");
    assert!(in_status > 0 || said.contains("Too many open files"), "nobody is told why");
    limited.terminate();
    assert!(limited.end(PATIENCE).await.success());
}

/// Garbage to whoever connects, in pieces of that size, for as long as it is taken.
async fn garbage(size: usize) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut peer, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (piece, mut asked) = (vec![0xA5; size], [0; 512]);
                // One piece for each question; the peer's end is the end.
                while peer.read(&mut asked).await.is_ok_and(|got| got > 0) && peer.write_all(&piece).await.is_ok() {}
            });
        }
    });
    address
}

#[tokio::test]
async fn live_a_fault_that_stays_is_said_once() {
    let folder = tempfile::tempdir().unwrap();
    let good = Simulator::start(Registers::Counting, Duration::ZERO).await.unwrap();
    let mut configuration = counting(DEAD, &good);
    for at in 0..20 {
        let address = if at % 2 == 0 { garbage(64).await } else { ([127, 0, 0, 1], free_port()).into() };
        configuration = configuration
            .bus(&format!("bad{at}"), address, "100ms")
            .device(&format!("bad{at}"), &format!("bad{at}"), 1, "50ms")
            .point("count", "holding", 0, "u32");
    }
    let mut agent = Agent::start(folder.path(), &configuration).unwrap();
    eventually("100 polls", PATIENCE, async || (good.requests() >= 100).then_some(())).await;
    fs::rename(folder.path().join("state/spool"), folder.path().join("moved")).unwrap();
    eventually("that the spool is gone", PATIENCE, async || agent.log().contains("is not in its place").then_some(()))
        .await;
    let clock = SystemClock::new();
    let (first, begun) = (agent.log(), clock.mono());
    let at = good.requests();
    eventually("300 more polls", PATIENCE, async || (good.requests() >= at + 300).then_some(())).await;
    agent.assert_alive();
    let (then, took) = (agent.log(), clock.mono().since(begun));
    let later = &then[first.len()..];
    println!(
        "first {} lines, {} bytes; then {} lines, {} bytes in {took:?}:\n{first}----\n{later}",
        first.lines().count(),
        first.len(),
        later.lines().count(),
        later.len()
    );
    assert!(!then.contains("panicked"), "{then}");
    // 1 MB a day is some 70 bytes in this time: a line that is due at growing spacing may fall into it, no more.
    assert!(later.lines().count() <= 2 && first.lines().count() <= 60, "a log storm");

    // Put back, it takes what was kept in memory meanwhile.
    fs::rename(folder.path().join("moved"), folder.path().join("state/spool")).unwrap();
    eventually("that the spool is back", PATIENCE, async || agent.log().contains("again").then_some(())).await;
    assert!(agent.stop().await.success());
    let rows = exported(folder.path());
    every_count_once(&rows, good.requests(), 1);
}

#[tokio::test]
async fn live_memory_stays_below_its_ceiling_while_a_backlog_builds() {
    let folder = tempfile::tempdir().unwrap();
    let devices = Simulator::start_many(10, Registers::Floats, Duration::ZERO).await.unwrap();
    let mut configuration = Configuration::new("gw", DEAD);
    for (at, device) in devices.iter().enumerate() {
        let name = format!("plc{at}");
        configuration = configuration.bus(&name, device.address(), "1s").device(&name, &name, 1, "50ms");
        for point in 0..100 {
            configuration = configuration.point(&format!("p{point}"), "holding", point * 2, "f32");
        }
    }
    for at in 0..5 {
        let name = format!("bad{at}");
        configuration = configuration
            .bus(&name, garbage(65_536).await, "100ms")
            .device(&name, &name, 1, "50ms")
            .point("count", "holding", 0, "u32");
    }
    let mut agent = Agent::start_as_service(folder.path(), &configuration).unwrap();
    let told = eventually("200,000 readings", PATIENCE, async || {
        status(folder.path()).filter(|told| told.ledger.admitted >= 200_000)
    })
    .await;
    agent.assert_alive();
    let of = fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    let peak: u64 =
        of.lines().find(|line| line.starts_with("VmHWM")).unwrap().split_whitespace().nth(1).unwrap().parse().unwrap();
    println!("VmHWM {peak} KiB, {} readings, spool {} bytes", told.ledger.admitted, told.spool.disk_bytes);
    assert!(told.ledger.balances(), "{:?}", told.ledger);
    assert!(peak <= 48 * 1_024, "{peak} KiB");
    assert!(agent.stop().await.success());
}
