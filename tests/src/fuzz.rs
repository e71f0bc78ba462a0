//! What reads bytes from outside, each as one function of bytes: nothing panics, and what decodes is itself again.
//!
//! `tests/tests/corpus.rs` replays `tests/fuzz/corpus/` through them at every run; the project in `tests/fuzz/` lets a
//! fuzzer look for more. Nothing here keeps anything between two calls, so that a file that fails fails alone.

use std::time::Duration;

use prost::Message;
use tributary::config::{Occasion, load_with};
use tributary::import::table::Mapping;
use tributary_core::pipeline::{Now, Output, Pipeline};
use tributary_core::record::Head;
use tributary_core::state::State;
use tributary_core::store::{DirId, Recovered};
use tributary_proto::catalog::{self, Catalog};
use tributary_proto::{decode as batches, pb};
use tributary_protocols::modbus::bus::{self, Bus, BusDevice};
use tributary_protocols::modbus::config::{Addressing, Framing, resolve_bus};
use tributary_protocols::modbus::decode::decode;
use tributary_protocols::modbus::frame::{self, Answer, Frame};
use tributary_protocols::modbus::plan::{PlannedPoint, Request};
use tributary_protocols::modbus::register::{Order, RegisterType, Table};
use tributary_protocols::mqtt;
use tributary_protocols::reading::{Outcome, Poll, Sample};
use tributary_protocols::time::{Mono, Wall};

use crate::settings;
use crate::store::MemStore;

/// A function of bytes that must not panic.
pub type Target = fn(&[u8]);

/// All of them, by the names of their corpora.
pub const TARGETS: [(&str, Target); 13] = [
    ("ack", ack),
    ("catalog", catalogue),
    ("config", config),
    ("control", control),
    ("envelope", envelope),
    ("modbus_rtu", modbus_rtu),
    ("modbus_tcp", modbus_tcp),
    ("mqtt", message),
    ("profile", profile),
    ("profile_table", profile_table),
    ("record", record),
    ("register_list", register_list),
    ("state", state),
];

// ---------------------------------------------------------------------------------------------------------- devices

fn point(index: u32, offset: u16, ty: RegisterType) -> PlannedPoint {
    PlannedPoint { index, offset, ty, order: Order::ABCD, slice: None }
}

fn requests() -> [Request; 2] {
    let registers = vec![point(0, 0, RegisterType::U16), point(1, 1, RegisterType::F32)];
    let bits = vec![point(2, 0, RegisterType::Bool), point(3, 8, RegisterType::Bool)];
    [
        Request { table: Table::Holding, address: 7, count: 3, period_ms: 1_000, points: registers },
        Request { table: Table::Coil, address: 0, count: 9, period_ms: 1_000, points: bits },
    ]
}

/// A bus with one device whose answers are `bytes`, cut in pieces of as many bytes as the first one says. An odd first
/// byte gives each piece the header that was asked for (TCP) or a right CRC (serial): else hardly any is looked into.
fn answers(framing: Framing, link: &str, bytes: &[u8]) {
    let Some((how, rest)) = bytes.split_first() else { return };
    let text = format!("name = 'b'\n{link}\n");
    let bus = toml::from_str(&text).expect("it is TOML");
    let spec = resolve_bus(&bus, "bus[0]").expect("a sound bus");
    let device = BusDevice {
        name: "d".into(),
        unit: 7,
        timing: tributary_protocols::modbus::config::Timing::default(),
        release: false,
        requests: (0..).zip(requests()).collect(),
    };
    let mut now = Mono::from_millis(5_000);
    let mut bus = Bus::new(&spec, vec![device], now, 1);
    let mut asked = None;
    let mut pieces = rest.chunks(usize::from(how >> 1).max(1));
    // A second each: the bus asks, gives up, connects again.
    for _ in 0..64 {
        for _ in 0..64 {
            match bus.poll(now) {
                Some(bus::Output::Connect { .. }) => bus.handle_connected(now),
                Some(bus::Output::Ask { frame }) => asked = Some(frame),
                Some(bus::Output::Trace(trace)) => {
                    if let Outcome::Samples(samples) = &trace.outcome {
                        assert_eq!(samples.len(), 2, "a sample a point");
                    }
                }
                Some(bus::Output::Disconnect | bus::Output::Release | bus::Output::Reply { .. }) => {}
                None => break,
            }
        }
        if let Some(question) = asked.take() {
            let Some(piece) = pieces.next() else { return };
            let unit = question.get(if framing == Framing::Tcp { 6 } else { 0 }).copied().unwrap_or(0);
            let transaction = frame::transaction(&question).unwrap_or(0);
            if how % 2 == 1 {
                bus.handle_bytes(now, &Frame::pack(framing, unit, piece, transaction));
            } else {
                bus.handle_bytes(now, piece);
            }
        }
        now = bus.next_deadline().map_or(now, |at| at.max(now)) + Duration::from_millis(1);
    }
    let _ = bus.status(now);
}

/// Modbus TCP: a frame against its question, and a connection.
pub fn modbus_tcp(bytes: &[u8]) {
    for request in requests() {
        let _ = frame::length(bytes);
        let transaction = frame::transaction(bytes).unwrap_or(0);
        if let Ok(Answer::Data(data)) = frame::check(bytes, &request, 7, transaction) {
            assert_eq!(data.len(), frame::data_length(&request));
        }
        assert_eq!(decode(&request, bytes).len(), request.points.len());
    }
    answers(Framing::Tcp, "tcp = 'h:502'", bytes);
}

/// Modbus RTU: a serial line.
pub fn modbus_rtu(bytes: &[u8]) {
    answers(Framing::Rtu, "serial = '/dev/ttyS0'\nbaud = 115200\nparity = 'none'", bytes);
}

const BROKER: &str = r#"
name = "b"
url = "mqtt://127.0.0.1:1883"
max_topics = 2
point = [
    { name = "n", topic = "a", type = "f64" },
    { name = "t", topic = "a", type = "string" },
    { name = "i", topic = "a", value = "/v", time = "/t", type = "i64" },
    { name = "f", topic = "a", value = "/f/0", type = "f32" },
    { name = "{1}", topic = "s/+", value = "/v", type = "bool" },
]
"#;

/// A message of a device's broker: its topic up to a line end, then its payload.
pub fn message(bytes: &[u8]) {
    let at = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(0);
    let (topic, payload) = bytes.split_at(at);
    let broker = toml::from_str(BROKER).expect("it is TOML");
    let spec = mqtt::config::resolve(&broker, "mqtt[0]", "gw").expect("a sound broker");
    let mut source = mqtt::decode::Source::new(&spec);
    for topic in [String::from_utf8_lossy(topic).as_ref(), "a", "s/x"] {
        let arrived = source.accept(topic, payload.get(1..).unwrap_or(payload), Wall(1_700_000_000_000));
        assert!(arrived.len() <= spec.rules.len());
    }
}

// ----------------------------------------------------------------------------------------------------------- centre

/// A batch as the centre reads it, as it is and with a right checksum: else hardly any is looked into. What can be read
/// reads the same when it is sent again.
pub fn envelope(bytes: &[u8]) {
    opened(bytes);
    let Ok(mut envelope) = pb::Envelope::decode(bytes) else { return };
    if let Some(pb::envelope::Body::Plain(body) | pb::envelope::Body::PlainZstd(body)) = &envelope.body {
        envelope.body_crc32c = tributary_proto::crc32c(body);
        opened(&envelope.encode_to_vec());
    }
}

fn opened(bytes: &[u8]) {
    let Ok(envelope) = batches::open(bytes) else { return };
    assert_eq!(batches::open(&envelope.encode_to_vec()), Ok(envelope.clone()), "an envelope is itself again");
    let content = include_bytes!("../../proto/golden/plant.catalog.bin");
    let catalog = Catalog::new(&catalog::content(content).expect("the golden catalogue"));
    if let Ok(batch) = batches::decode(&envelope, &catalog) {
        assert_eq!(batch.readings().count(), envelope.readings as usize, "as many readings as stated");
    }
}

/// A catalogue as published, and its content.
pub fn catalogue(bytes: &[u8]) {
    let message = pb::Catalog::decode(bytes).ok();
    let inflated = message.as_ref().and_then(|message| catalog::content_bytes(message).ok());
    for bytes in [Some(bytes), inflated.as_deref()].into_iter().flatten() {
        let Ok(content) = catalog::content(bytes) else { continue };
        let again = content.encode_to_vec();
        // Compared as bytes: a NaN is not itself.
        let twice = catalog::content(&again).map(|content| content.encode_to_vec());
        assert_eq!(twice.as_ref(), Ok(&again), "a content is itself again");
        let mut sha256 = [0; 32];
        sha256.copy_from_slice(&<sha2::Sha256 as sha2::Digest>::digest(&again));
        let published = catalog::catalog_message(1, 1, &again, sha256);
        assert_eq!(Catalog::from_message(&published), Ok(Catalog::new(&content)), "and so is what is published");
    }
}

// ------------------------------------------------------------------------------------------------------------ agent

/// A pipeline over what a disk held, with the disk.
struct Agent {
    pipeline: Pipeline,
    disk: MemStore,
    now: Now,
}

impl Agent {
    fn new(found: Recovered) -> Self {
        let now = Now { mono: Mono::from_millis(1_000), wall: Wall(1_700_000_000_000) };
        let pipeline = Pipeline::new(settings::usual(1), settings::one_point(), found, now).expect("a sound model");
        let mut agent = Self { pipeline, disk: MemStore::new(256 << 20), now };
        agent.pipeline.handle_clock(now, pb::TimeQuality::Synced, 0);
        agent.act();
        agent
    }

    /// Does what the pipeline wants, and lets seconds pass with a poll each.
    fn live(&mut self, seconds: u32) {
        for n in 0..seconds {
            let outcome = Outcome::Samples(vec![Sample::good(u64::from(n))]);
            self.pipeline.handle_poll(self.now, &Poll { request: 0, at: self.now.wall, outcome });
            self.now.mono = self.now.mono + Duration::from_secs(1);
            self.now.wall = Wall(self.now.wall.0 + 1_000);
            self.act();
        }
    }

    fn act(&mut self) {
        for _ in 0..1_000 {
            let Some(output) = self.pipeline.poll(self.now) else { break };
            match output {
                Output::Store(command) => {
                    let reply = command.run(&mut self.disk);
                    self.pipeline.handle_store(self.now, reply);
                }
                Output::Connect { .. } => self.pipeline.handle_connected(self.now),
                _ => {}
            }
        }
        let _ = self.pipeline.next_deadline();
    }

    fn law(&self) {
        let (ledger, held) = (self.pipeline.ledger(), self.pipeline.held());
        assert!(ledger.holds(held), "the law is broken: held {held}, {ledger:?}");
    }
}

fn told(tell: impl Fn(&mut Pipeline, Now)) {
    let mut agent = Agent::new(Recovered::default());
    agent.live(4);
    for _ in 0..2 {
        tell(&mut agent.pipeline, agent.now);
        agent.act();
        agent.law();
        agent.live(2);
        agent.law();
    }
}

/// What an acknowledgement does to an agent with batches under way, as it is and in the agent's epoch: else it is hardly
/// looked into.
pub fn ack(bytes: &[u8]) {
    told(|pipeline, now| {
        pipeline.handle_ack(now, bytes);
        let Ok(mut ack) = pb::Ack::decode(bytes) else { return };
        ack.epoch = pipeline.spool().epoch();
        pipeline.handle_ack(now, &ack.encode_to_vec());
    });
}

/// What a control message does, likewise.
pub fn control(bytes: &[u8]) {
    told(|pipeline, now| {
        pipeline.handle_control(now, bytes);
        let Ok(mut control) = pb::Control::decode(bytes) else { return };
        if let Some(pb::control::What::Replay(replay)) = &mut control.what {
            replay.epoch = pipeline.spool().epoch();
        }
        pipeline.handle_control(now, &control.encode_to_vec());
    });
}

/// A record of the spool: head and body are the record again.
pub fn record(bytes: &[u8]) {
    let Some((head, body)) = Head::split(bytes) else { return };
    let again = head.record(body);
    assert_eq!(Head::split(&again), Some((head, body)), "a record is itself again");
}

/// A start over a state record: its directories are there, and hold nothing of what it says.
pub fn state(bytes: &[u8]) {
    let saved = State::decode(bytes).unwrap_or_default();
    let dirs = saved.extents.iter().take(8);
    let dirs = dirs.map(|extent| (DirId { epoch: extent.dir_epoch, first: extent.dir_first }, extent.dir_first));
    let content = catalog::catalog_message(saved.epoch, 1, &[], [0; 32]);
    let found = Recovered {
        dirs: dirs.collect(),
        state: Some(bytes.to_vec()),
        catalog: Some(content.encode_to_vec()),
        ..Recovered::default()
    };
    Agent::new(found).live(4);
}

// ---------------------------------------------------------------------------------------------------- configuration

/// Reads `main` in a folder with `beside`.
fn check(main: &[u8], beside: &[(&str, &[u8])]) {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("tributary.toml");
    std::fs::write(&file, main).expect("it can be written");
    for (name, bytes) in beside {
        std::fs::write(folder.path().join(name), bytes).expect("it can be written");
    }
    let (config, report) = load_with(&file, Occasion::Check, None);
    assert_eq!(config.is_some(), report.errors.is_empty(), "a configuration comes back, or errors do");
    let _ = report.render();
}

const DEVICE: &str = r#"
agent = { site = "works", id = "gw-1", profiles = ["."] }
uplink = { url = "mqtt://127.0.0.1:1883" }
bus = [{ name = "b", tcp = "192.0.2.1:502" }]
device = [{ name = "d", bus = "b", unit_id = 1, profile = "p" }]
"#;

const TABLE: &str = r#"
profile = "p"
version = 2
addressing = "modicon5"
table = { csv = "p.csv" }
"#;

/// A configuration.
pub fn config(bytes: &[u8]) {
    check(bytes, &[]);
}

/// A profile that a configuration uses.
pub fn profile(bytes: &[u8]) {
    check(DEVICE.as_bytes(), &[("p.toml", bytes)]);
}

/// A profile whose points are a table.
pub fn profile_table(bytes: &[u8]) {
    check(DEVICE.as_bytes(), &[("p.toml", TABLE.as_bytes()), ("p.csv", bytes)]);
}

/// Any CSV register list, as `import` reads it.
pub fn register_list(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let mapping = Mapping {
        table: Some("holding".into()),
        addressing: Some(Addressing::Zero),
        order: Some(Order::ABCD),
        ..Mapping::default()
    };
    let _ = tributary::import::table::import("p", &text, &mapping);
    let _ = tributary::import::telegraf::import("p", &text);
}
