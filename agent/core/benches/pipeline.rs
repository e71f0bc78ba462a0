//! What the pipeline alone takes for a reading: decode → filter → window → batch → encode → spool → uplink, on one core.
//!
//! The time is virtual, the disk is a map that commits at once, the centre acknowledges at once: what is measured is the
//! agent's own computing, without system calls. 50 devices with 200 floats each, in requests of 62; every point has a
//! valid range; answers vary as a quantity of limited resolution does.
//!
//! `cargo bench -p tributary-core --bench pipeline` prints ns a reading and readings a second. With `-- check` it is
//! short and fails if a reading takes more than [`MOST`] rounds of a loop of fixed work that is timed beside it: a
//! ratio, for the machine may have any speed.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::process::ExitCode;
use std::time::Duration;

use prost::Message;
use tributary_core::batch;
use tributary_core::model::{self, Deadband, Model, PointKey, Statistic, Window};
use tributary_core::pipeline::{Config, Now, Output, Pipeline};
use tributary_core::spool::{self, WhenFull};
use tributary_core::store::{Commit, DirId, IndexEntry, Recovered, Store, StoreError, Usage};
use tributary_core::uplink::{self, AckMode};
use tributary_proto::pb;
use tributary_protocols::modbus::decode::decode;
use tributary_protocols::modbus::plan::{PlannedPoint, Request};
use tributary_protocols::modbus::register::{Order, RegisterType, Table};
use tributary_protocols::reading::{Outcome, Poll};
use tributary_protocols::time::{Mono, Wall};
use tributary_protocols::value::{PointType, Scale};

const DEVICES: u32 = 50;
const TAGS: u16 = 200;
/// Floats of one request.
const FLOATS: u16 = 62;
/// Answers that a request gets in turn.
const ANSWERS: usize = 16;
/// Most rounds of the yardstick that a reading may take: two million readings a second where a round takes 1.44 ns.
const MOST: f64 = 350.0;

/// What is measured: how points are configured, and how often they are polled.
struct Case {
    name: &'static str,
    period_ms: u32,
    window: bool,
    raw: bool,
    deadband: Deadband,
}

const CASES: [Case; 5] = [
    Case { name: "raw, ten polls a batch", period_ms: 100, window: false, raw: true, deadband: Deadband::None },
    Case { name: "raw, one poll a batch", period_ms: 1_000, window: false, raw: true, deadband: Deadband::None },
    Case { name: "windows and raw", period_ms: 100, window: true, raw: true, deadband: Deadband::None },
    Case { name: "windows alone", period_ms: 1_000, window: true, raw: false, deadband: Deadband::None },
    Case { name: "deadband", period_ms: 1_000, window: false, raw: true, deadband: Deadband::Absolute(0.75) },
];

fn main() -> ExitCode {
    let check = std::env::args().any(|argument| argument == "check");
    let readings = if check { 3_000_000 } else { 10_000_000 };
    let round = yardstick();
    println!("a round of the yardstick takes {round:.2} ns");
    println!("{:24}   ns/reading   readings/s   rounds", "");
    let mut worst: f64 = 0.0;
    for case in &CASES {
        let each = case.run(readings);
        println!("{:24} {each:12.1} {:12.0} {:8.0}", case.name, 1e9 / each, each / round);
        worst = worst.max(each / round);
    }
    if check && worst > MOST {
        eprintln!("pipeline: a reading takes {worst:.0} rounds, at most {MOST:.0} are allowed");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// How many ns a round of fixed work takes: one step of a generator of 64 bits, each needing the one before.
fn yardstick() -> f64 {
    const ROUNDS: u64 = 50_000_000;
    let times = (0..5).map(|seed| {
        let begin = cpu_ns();
        let end = (0..ROUNDS).fold(black_box(seed), |state: u64, _| {
            (state ^ (state >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9).wrapping_add(1)
        });
        black_box(end);
        (cpu_ns() - begin) as f64 / ROUNDS as f64
    });
    times.fold(f64::INFINITY, f64::min)
}

/// CPU time of this thread, as the scheduler has counted it: what else the machine does is not in it. It is brought up
/// to date at each tick, so some ms off.
fn cpu_ns() -> u64 {
    let counted = std::fs::read_to_string("/proc/thread-self/schedstat").expect("the kernel counts");
    counted.split(' ').next().and_then(|ns| ns.parse().ok()).expect("ns come first")
}

impl Case {
    /// ns a reading.
    fn run(&self, readings: u64) -> f64 {
        let mut line = Line::new(self);
        let cycles = readings / u64::from(DEVICES * u32::from(TAGS));
        // Buffers have their size and the first window is closed before it is measured.
        for cycle in 0..10_000 / u64::from(self.period_ms) + 2 {
            line.cycle(cycle);
        }
        let before = line.pipeline.ledger().admitted;
        let begin = cpu_ns();
        for cycle in 0..cycles {
            line.cycle(cycle);
        }
        let took = (cpu_ns() - begin) as f64;
        let admitted = line.pipeline.ledger().admitted - before;
        assert!(admitted >= cycles * u64::from(DEVICES * u32::from(TAGS)), "every reading is admitted");
        assert_eq!(line.pipeline.ledger().lost(), 0, "nothing is lost");
        assert!(line.pipeline.ledger().delivered > 0 || self.window, "readings arrive");
        took / (cycles * u64::from(DEVICES * u32::from(TAGS))) as f64
    }

    fn model(&self, requests: &[Request]) -> Model {
        let point = |device: u32, tag: u32| model::Point {
            device,
            name: format!("tag-{tag:03}"),
            ty: PointType::Float32,
            unit: "Cel".into(),
            scale: Scale::default(),
            description: String::new(),
            source: format!("holding:{}:f32", 2 * tag),
            counter: false,
            counter_modulus: 0,
            max_rate: None,
            scale_from: None,
            labels: BTreeMap::new(),
            extra: BTreeMap::new(),
            valid: Some((-50.0, 500.0)),
            bad: vec![0x7FC0_0000],
            deadband: self.deadband,
            heartbeat: None,
            window: self
                .window
                .then(|| Window { every_ms: 10_000, stats: vec![Statistic::Min, Statistic::Max, Statistic::Mean] }),
            raw: self.raw,
        };
        let request = |(device, request): (u32, &Request)| model::Request {
            device,
            points: request.points.iter().map(|point| PointKey(device * u32::from(TAGS) + point.index)).collect(),
            period_ms: request.period_ms,
        };
        Model {
            devices: (0..DEVICES)
                .map(|n| model::Device {
                    name: format!("meter-{n:02}"),
                    protocol: "modbus".into(),
                    ..Default::default()
                })
                .collect(),
            points: (0..DEVICES).flat_map(|device| (0..u32::from(TAGS)).map(move |tag| point(device, tag))).collect(),
            requests: (0..DEVICES)
                .flat_map(|device| requests.iter().map(move |request| (device, request)))
                .map(request)
                .collect(),
        }
    }
}

/// As `check` would have them by default.
fn settings() -> Config {
    Config {
        batch: batch::Config { max_age: Duration::from_secs(1), max_bytes: 48 << 10 },
        spool: spool::Config { max_disk: 256 << 20, commit: Duration::from_secs(1), when_full: WhenFull::DropOldest },
        uplink: uplink::Config {
            ack: AckMode::Receiver,
            order: uplink::Order::LiveFirst,
            reconnect_max: Duration::from_secs(300),
            window_batches: 16,
            window_bytes: 64 << 10,
            backlog_rate: None,
        },
        version: "0".into(),
        config_sha256: String::new(),
        boot_id: [1; 16],
        seed: 1,
    }
}

/// The pipeline with a world that does everything at once.
struct Line {
    pipeline: Pipeline,
    store: AtOnce,
    requests: Vec<Request>,
    /// For each request the data of some answers.
    answers: Vec<Vec<Vec<u8>>>,
    now: Now,
    period: Duration,
}

impl Line {
    fn new(case: &Case) -> Self {
        let requests: Vec<Request> = (0..TAGS)
            .step_by(usize::from(FLOATS))
            .map(|first| {
                let floats = FLOATS.min(TAGS - first);
                let point = |n: u16| PlannedPoint {
                    index: u32::from(first + n),
                    offset: 2 * n,
                    ty: RegisterType::F32,
                    order: Order::ABCD,
                    slice: None,
                };
                let points = (0..floats).map(point).collect();
                let (address, count) = (2 * first, 2 * floats);
                Request { table: Table::Holding, address, count, period_ms: case.period_ms, points }
            })
            .collect();
        let answer = |request: &Request, turn: usize| -> Vec<u8> {
            let value = |point: &PlannedPoint| {
                let tag = point.index as usize;
                20.0 + (tag % 50) as f32 + ((turn * 7 + tag * 13) % 10) as f32 * 0.1
            };
            request.points.iter().flat_map(|point| value(point).to_be_bytes()).collect()
        };
        let answers = requests.iter().map(|request| (0..ANSWERS).map(|turn| answer(request, turn)).collect()).collect();
        let now = Now { mono: Mono::from_millis(1_000), wall: Wall(1_700_000_000_000) };
        let pipeline =
            Pipeline::new(settings(), case.model(&requests), Recovered::default(), now).expect("a sound model");
        let period = Duration::from_millis(case.period_ms.into());
        let mut line = Self { pipeline, store: AtOnce::default(), requests, answers, now, period };
        line.pipeline.handle_clock(now, pb::TimeQuality::Synced, 0);
        line.act();
        line
    }

    /// Every device is polled once.
    fn cycle(&mut self, cycle: u64) {
        for device in 0..DEVICES {
            for (n, request) in self.requests.iter().enumerate() {
                let turn = (cycle as usize + device as usize) % ANSWERS;
                let samples = decode(request, &self.answers[n][turn]);
                let request = device * self.requests.len() as u32 + n as u32;
                let poll = Poll { request, at: self.now.wall, outcome: Outcome::Samples(samples) };
                self.pipeline.handle_poll(self.now, &poll);
            }
        }
        self.act();
        self.now.mono = self.now.mono + self.period;
        self.now.wall = Wall(self.now.wall.0 + self.period.as_millis() as i64);
    }

    fn act(&mut self) {
        while let Some(output) = self.pipeline.poll(self.now) {
            match output {
                Output::Store(command) => {
                    let reply = command.run(&mut self.store);
                    self.pipeline.handle_store(self.now, reply);
                }
                Output::Connect { .. } => self.pipeline.handle_connected(self.now),
                Output::Publish(publish) => {
                    let epoch = self.pipeline.spool().epoch();
                    let ack = pb::Ack { epoch, contiguous_seq: publish.seq, ..pb::Ack::default() };
                    self.pipeline.handle_ack(self.now, &ack.encode_to_vec());
                }
                Output::Abort | Output::Disconnect | Output::Release(_) | Output::Notice(_) => {}
            }
        }
    }
}

/// A disk that does everything at once.
#[derive(Default)]
struct AtOnce {
    records: BTreeMap<(DirId, u64), Vec<u8>>,
}

impl Store for AtOnce {
    fn recover(&mut self) -> Result<Recovered, StoreError> {
        Ok(Recovered::default())
    }

    fn commit(&mut self, commit: &Commit) -> Result<Usage, StoreError> {
        self.records.extend(commit.records.iter().map(|(seq, record)| ((commit.dir, *seq), record.clone())));
        black_box((&commit.state, &commit.catalog));
        Ok(Usage::default())
    }

    fn load(&mut self, _: DirId) -> Result<Vec<IndexEntry>, StoreError> {
        Ok(Vec::new())
    }

    fn read(&mut self, dir: DirId, seq: u64) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.records.get(&(dir, seq)).cloned())
    }

    fn remove(&mut self, dir: DirId) -> Result<Usage, StoreError> {
        self.records.retain(|(other, _), _| *other != dir);
        Ok(Usage::default())
    }

    fn quarantine(&mut self, _: DirId, _: u64) -> Result<Usage, StoreError> {
        Ok(Usage::default())
    }
}
