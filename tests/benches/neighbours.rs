//! What hostile and dead devices cost the good ones: polls missed, and how regular the others are.
//!
//! ```text
//! 40 good devices ─────────────────────▶ tributary ─┐
//! 40 good, 5 hostile, 5 that never answer ▶ tributary ─┴▶ mosquitto (nobody acknowledges: the spool takes it)
//! ```
//!
//! Both agents run at the same time, so that both see the same machine. What is compared is seen at the good devices: the
//! times between two polls. `cargo bench -p tributary-tests --bench neighbours` prints the figures of 30 s; with
//! `-- check` it takes 10 s and fails if a good device was not polled, or if the 99th percentile of jitter is more than
//! 10 ms above that of the quiet plant, three times in a row.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use tributary_tests::agent::{Agent, Configuration};
use tributary_tests::broker::Mosquitto;
use tributary_tests::hostile_modbus::{Fault, HostileModbus, Plan};
use tributary_tests::modbus_device::{Registers, Simulator, jitter};
use tributary_tests::process::{eventually, pause};

type Failure = Box<dyn std::error::Error + Send + Sync>;

const GOOD: usize = 40;
const PERIOD_US: u32 = 100_000;
/// Most that the neighbours may add to the 99th percentile of jitter, in µs.
const ADDED: u32 = 10_000;

fn main() -> ExitCode {
    let check = std::env::args().any(|argument| argument == "check");
    let time = Duration::from_secs(if check { 10 } else { 30 });
    let measured = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::from);
    let measured = measured.and_then(|runtime| {
        println!("{GOOD} good devices, a poll each 100 ms, {} s; jitter = difference from the period", time.as_secs());
        let mut broken = Vec::new();
        for _ in 0..if check { 3 } else { 1 } {
            // Neighbours on the machine only add to a figure: a bar that is really missed is missed every time.
            broken = runtime.block_on(measure(time))?;
            if broken.is_empty() {
                break;
            }
        }
        Ok(broken)
    });
    match measured {
        Ok(broken) if broken.is_empty() || !check => ExitCode::SUCCESS,
        Ok(broken) => {
            eprintln!("neighbours: {}", broken.join("\n            "));
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("neighbours: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Gives the bars that are broken.
async fn measure(time: Duration) -> Result<Vec<String>, Failure> {
    let folder = tempfile::tempdir()?;
    let broker = Mosquitto::start(&folder.path().join("broker")).await?;
    let mut bad = Vec::new();
    for seed in 0..10 {
        let (faults, percent) = if seed < 5 { (Fault::ALL.to_vec(), 60) } else { (vec![Fault::Silence], 100) };
        bad.push(HostileModbus::start(Plan { seed, faults, percent, patience: Duration::from_millis(80) }).await?);
    }
    let quiet = Subject::start("quiet", folder.path(), &broker, &[]).await?;
    let among = Subject::start("among hostile", folder.path(), &broker, &bad).await?;
    let polled = async |subject: &Subject| subject.good.iter().all(|device| device.requests() > 20).then_some(());
    eventually("every good device to be polled", Duration::from_secs(30), async || {
        polled(&quiet).await?;
        polled(&among).await
    })
    .await;
    let subjects = [&quiet, &among];
    for subject in subjects {
        subject.intervals();
    }
    pause(time).await;
    let mut broken = Vec::new();
    let mut floor = None;
    println!("plant            polls   missed   jitter p99 ms");
    for subject in subjects {
        let intervals = subject.intervals();
        // Phases are kept, so an interval of two periods and more is a poll that was not asked.
        let missed = intervals.iter().map(|interval| (interval + PERIOD_US / 2) / PERIOD_US - 1).sum::<u32>();
        let p99 = jitter(&intervals, PERIOD_US);
        println!("{:14} {:7} {missed:8} {:15.2}", subject.name, intervals.len(), f64::from(p99) / 1e3);
        let floor = *floor.get_or_insert(p99);
        if missed > 0 {
            broken.push(format!("{}: {missed} polls of good devices were missed", subject.name));
        }
        if p99 > floor + ADDED {
            broken
                .push(format!("{}: the 99th percentile of jitter is {p99} µs, {floor} µs without them", subject.name));
        }
    }
    let played: u64 = bad.iter().map(|device| device.record().played.values().sum::<u64>()).sum();
    println!("{played} faults");
    Ok(broken)
}

struct Subject {
    name: &'static str,
    good: Vec<Simulator>,
    _agent: Agent,
}

impl Subject {
    async fn start(
        name: &'static str,
        folder: &Path,
        broker: &Mosquitto,
        bad: &[HostileModbus],
    ) -> Result<Self, Failure> {
        let good = Simulator::start_many(GOOD, Registers::Known, Duration::ZERO).await?;
        let addresses = good.iter().map(Simulator::address).chain(bad.iter().map(HostileModbus::address));
        let id = name.replace(' ', "-");
        let mut configuration = Configuration::new(&id, &broker.url());
        for (n, address) in addresses.enumerate() {
            let (bus, device) = (format!("bus-{n}"), format!("device-{n}"));
            configuration = configuration.bus(&bus, address, "80ms").device(&device, &bus, 1, "100ms");
            for register in 0..20 {
                configuration = configuration.point(&format!("p{register}"), "holding", register, "u16");
            }
        }
        let agent = Agent::start(&folder.join(id), &configuration)?;
        Ok(Self { name, good, _agent: agent })
    }

    fn intervals(&self) -> Vec<u32> {
        self.good.iter().flat_map(Simulator::take_intervals).collect()
    }
}
