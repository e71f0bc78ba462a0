//! The agent as a process: what signals, small limits and a hostile neighbourhood do to it.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tributary::clock::SystemClock;
use tributary::socket;
use tributary::status::Status;
use tributary_protocols::time::{Clock, Mono};
use tributary_tests::agent::{Agent, Configuration};
use tributary_tests::broker::Mosquitto;
use tributary_tests::hostile_modbus::{Fault, HostileModbus, Plan};
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
        .bus("bus", device.address(), "30s")
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

/// What else the machine does may delay one stop, but not each.
async fn stops_under_load(broker: &str) {
    for _ in 0..3 {
        let took = stop_under_load(broker).await;
        if took < STOP {
            return;
        }
        println!("the stop took {took:?}");
    }
    panic!("no stop in {STOP:?}");
}

/// How long it took.
async fn stop_under_load(broker: &str) -> Duration {
    let folder = tempfile::tempdir().unwrap();
    let device = Simulator::start(Registers::Counting, Duration::ZERO).await.unwrap();
    let mut agent = Agent::start(folder.path(), &counting(broker, &device)).unwrap();
    eventually("100 polls", PATIENCE, async || (device.requests() >= 100).then_some(())).await;
    let clock = SystemClock::new();
    let begun = clock.mono();
    let ended = agent.stop().await;
    let took = clock.mono().since(begun);
    assert_eq!(ended.code(), Some(0));
    let rows = exported(folder.path());
    every_count_once(&rows, device.requests(), 1);
    println!("{broker}: stopped in {took:?}, {} rows for {} requests", rows.len(), device.requests());
    took
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

/// What the process has used of the processors.
fn cpu(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    // In ticks of 10 ms: user, system.
    Duration::from_millis([fields[11], fields[12]].iter().map(|ticks| ticks.parse::<u64>().unwrap() * 10).sum())
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
    // For 40 buses, a spool, a socket and its clients.
    let mut limited = Agent::start_under(folder.path(), &configuration, &["prlimit", "--nofile=32:32", "--"]).unwrap();
    let polled_50_times = async |limited: &mut Agent| {
        let before: Vec<u64> = devices.iter().map(Simulator::requests).collect();
        eventually("a device to be polled 50 times", PATIENCE, async || {
            limited.assert_alive();
            devices.iter().zip(&before).any(|(device, before)| device.requests() >= before + 50).then_some(())
        })
        .await;
    };
    polled_50_times(&mut limited).await;
    let started = cpu(limited.pid());
    polled_50_times(&mut limited).await;
    let usual = cpu(limited.pid()) - started;
    // A client that cannot be let in must not keep the agent busy.
    let waiting = UnixStream::connect(folder.path().join("state/status.sock")).unwrap();
    polled_50_times(&mut limited).await;
    let busy = cpu(limited.pid()) - started - usual;
    drop(waiting);
    let polled = devices.iter().filter(|device| device.requests() > 1).count();
    let said = limited.log();
    // The socket of the status needs a descriptor too: it may be silent, the log may not.
    let told = status(folder.path());
    let in_status: BTreeMap<&str, usize> = told
        .iter()
        .flat_map(|told| &told.buses)
        .filter_map(|bus| bus.last_error.as_deref())
        .fold(BTreeMap::new(), |mut errors, error| {
            *errors.entry(error).or_default() += 1;
            errors
        });
    println!("{polled} of 40 polled, busy {busy:?}, usually {usual:?}; errors of buses: {in_status:?}; log:\n{said}");
    assert!(busy < usual * 2 + Duration::from_millis(200), "busy {busy:?}, usually {usual:?}");
    assert!(!said.contains("panicked"), "{said}");
    assert!((1..40).contains(&polled), "{polled} of 40 were polled: the limit shows nothing, or stops all");
    assert!(said.contains("Too many open files"), "nobody is told why");
    assert!(limited.stop().await.success());
}

/// Root is never refused a thread: the agent is another user, with a copy of the binary that this one may read.
fn start_with_threads(folder: &Path, threads: u32, configuration: &Configuration) -> Process {
    let config = configuration.write(folder).unwrap();
    let copy = folder.join("tributary");
    fs::copy(binary("tributary"), &copy).unwrap();
    let user = (61_200 + threads).to_string();
    let mut command = if fs::metadata(folder).unwrap().uid() == 0 {
        let owned = Command::new("chown").args(["-R", &user]).arg(folder).status().unwrap();
        assert!(owned.success());
        let mut command = Command::new("setpriv");
        command.args(["--reuid", &user, "--regid", &user, "--clear-groups", "--pdeathsig", "KILL", "--"]);
        command
    } else {
        // Counted from nothing in a namespace of its own.
        let mut command = Command::new("unshare");
        command.args(["--user", "--"]);
        command
    };
    command.args(["prlimit", &format!("--nproc={threads}"), "--"]).arg(&copy).args(["run", "-c"]).arg(config);
    Process::start("agent", folder, &command).unwrap()
}

#[tokio::test]
async fn live_too_few_threads_end_it_with_a_word_or_do_no_harm() {
    let mut agents = Vec::new();
    for threads in 1..=6 {
        let folder = tempfile::tempdir().unwrap();
        let device = Simulator::start(Registers::Counting, Duration::ZERO).await.unwrap();
        let process = start_with_threads(folder.path(), threads, &counting(DEAD, &device));
        agents.push((threads, folder, device, process));
    }
    let mut ran = Vec::new();
    for (threads, _folder, device, process) in &mut agents {
        let ended = eventually("50 polls, or the end", PATIENCE, async || {
            process.ended().map(Some).or_else(|| (device.requests() >= 50).then_some(None))
        })
        .await;
        let log = process.log();
        println!("{threads} threads: {ended:?}, {} polls; {log}", device.requests());
        assert!(!log.contains("panicked"), "{log}");
        match ended {
            Some(status) => assert!(!status.success() && log.contains("ERROR"), "{status}: {log}"),
            None => {
                process.terminate();
                assert!(process.end(PATIENCE).await.success());
                ran.push(*threads);
            }
        }
    }
    assert!(!ran.contains(&1) && ran.contains(&6), "runs with {ran:?} threads: the limit shows nothing");
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

/// What is said once while a fault stays is said again each time that it comes.
#[tokio::test]
async fn live_faults_that_come_and_go_do_not_fill_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let mut configuration = Configuration::new("gw", DEAD);
    let mut devices = Vec::new();
    for at in 0..120 {
        let faults = vec![Fault::JunkInstead];
        let plan = Plan { seed: at, faults, percent: 50, patience: Duration::from_secs(1) };
        let device = HostileModbus::start(plan).await.unwrap();
        let name = format!("bus{at}");
        configuration = configuration
            .bus(&name, device.address(), "1s")
            .toml("reconnect_max = \"100ms\"\n")
            .device(&name, &name, 1, "20ms")
            .point("count", "holding", 0, "u32");
        devices.push(device);
    }
    let clock = SystemClock::new();
    let mut agent = Agent::start(folder.path(), &configuration).unwrap();
    // Those after a value are a line of more than 120 bytes each.
    let played = || devices.iter().map(|device| device.record().played.values().sum::<u64>()).sum::<u64>();
    eventually("faults for twice what is allowed at once", PATIENCE, async || (played() >= 2_500).then_some(())).await;
    agent.assert_alive();
    assert!(agent.stop().await.success());
    let (log, took) = (agent.log(), clock.mono().since(Mono::ZERO));
    println!("{} faults in {took:?}: {} lines, {} bytes", played(), log.lines().count(), log.len());
    // 1 MB a day, of which a tenth may come at once.
    assert!(log.len() < 105_000, "{} bytes", log.len());
    assert!(log.contains("the agent ended"), "its last word is not there");
}
