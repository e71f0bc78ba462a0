//! A simulated world around the real pipeline: one seed decides everything, an hour takes a fraction of a second.
//!
//! ```text
//! plant ─▶ Pipeline ⇄ disk          virtual time jumps to the next event, or to the pipeline's own deadline
//!             ⇅
//!     link, broker ⇄ receiver       the receiver's real decisions, over a store in memory
//! ```
//!
//! Everything that happens is an event at a time; the pipeline is told, and asked what to do until it has nothing more.
//! After each call the law `admitted = delivered + held + filtered + lost` is checked, and that the pipeline neither
//! spins nor sleeps through a deadline. At the end faults stop, the backlog drains within a bound, the agent stops
//! cleanly, and the [`oracle`] compares what went in with what arrived or was named as lost.
//!
//! What a world holds is small on purpose: some 40 points, 8 requests, 6 sensors, one agent. What it has plenty of is
//! trouble: [`Faults`] says of which kinds.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use prost::Message;
use tributary_core::model::PointKey;
use tributary_core::pipeline::{Arrival, Config, Output, Pipeline, Receipt};
use tributary_core::spool::{self, WhenFull};
use tributary_core::uplink::{AckMode, Channel, Order, Publish};
use tributary_proto::pb;
use tributary_protocols::reading::{Outcome, Poll, Sample, StampedBy};
use tributary_protocols::time::Wall;
use tributary_protocols::value::Value;
use tributary_receiver::topic::Kind;

use crate::store::MemStore;

mod broker;
mod centre;
mod clock;
mod disk;
mod faults;
mod haste;
mod life;
mod line;
mod oracle;
mod plant;
mod strange;
mod trouble;

use centre::Centre;
use clock::Clock;
use disk::{Disk, Mood};
pub use faults::Faults;
pub use haste::Haste;
use line::{Line, Weather};
use oracle::{Fate, Key, Oracle};
use plant::{Health, Plant};

const SECOND: u64 = 1_000_000_000;
const MILLI: u64 = 1_000_000;
/// How long faults happen, s; then how long the world is well before it ends.
const TROUBLE_S: u64 = 3_600;
const PEACE_S: u64 = 1_200;
/// Most outputs of the pipeline at one moment.
const MOST_OUTPUTS: u32 = 5_000;
/// What a device's broker hands out unacknowledged.
const SENSOR_WINDOW: usize = 20;

/// What a world has to tell after a good end.
#[derive(Clone, Copy, Debug, Default)]
pub struct Report {
    /// Readings handed in.
    pub entered: u64,
    /// Readings that arrived.
    pub arrived: u64,
    /// Readings that losses named, by reason.
    pub named: [u64; 8],
    /// Rollovers, resets and rejected samples of counters that events told.
    pub counted: [u64; 3],
    /// Batches sent, again ones included.
    pub sent: u64,
    /// Lives of the agent.
    pub lives: u32,
    /// Epochs of the spool.
    pub epochs: u32,
}

#[derive(Debug)]
enum Event {
    Poll(usize),
    Sensor(usize),
    DiskDone(u32),
    /// That connection attempt of that life ends.
    Dialled(u32, u64, Vec<u8>),
    /// A message of the session arrives at the broker.
    AtBroker(u64, Publish),
    /// A PUBACK of the session arrives at the agent.
    Puback(u64, u64),
    AtCentre(Kind, Bytes),
    Commit(u32),
    AtAgent(u64, Vec<u8>),
    Control(u64, Vec<u8>),
    /// The agent learns that the session is gone.
    Gone(u32, u64),
    Trouble,
    Odd,
    Reload,
    Calm(Calm),
    Start,
    Kill(bool),
    Synchronised,
}

/// What becomes well again.
#[derive(Clone, Copy, Debug)]
enum Calm {
    Link,
    Disk,
    Whims,
    Device(usize),
    Centre,
}

/// What a commit that is under way knows, should it become durable.
#[derive(Debug, Default)]
struct Snap {
    polled: Vec<u64>,
    unkept: usize,
}

/// A message of a sensor.
#[derive(Debug)]
struct Spoken {
    sensor: usize,
    n: u64,
    sent_ms: i64,
}

/// The world.
pub struct World {
    rng: Rng,
    faults: Faults,
    clock: Clock,
    order: u64,
    queue: BTreeMap<(u64, u64), Event>,
    plant: Plant,
    disk: Disk,
    line: Line,
    centre: Centre,
    oracle: Oracle,
    agent: Option<Pipeline>,
    life: u32,
    stopping: bool,
    stopped_cleanly: bool,
    buried_cleanly: bool,
    /// Polls of each request so far, those handed in, and those of the present plan that a durable state record knows.
    polls: Vec<u64>,
    handed: Vec<u64>,
    known: Vec<bool>,
    /// Those that a durable state record of this life knows.
    kept: Vec<bool>,
    /// What was handed in of a request that is not among them.
    early: Vec<Vec<Key>>,
    /// Polls due since the agent was asked to stop, or died.
    due: Vec<u64>,
    snap: Option<Snap>,
    learned: u64,
    /// Readings of QoS 0 sensors that no durable commit has.
    unkept: Vec<Key>,
    sensor_queue: VecDeque<Spoken>,
    outstanding: BTreeMap<u64, (Spoken, Option<Key>)>,
    receipts: u64,
    sensor_n: Vec<u64>,
    declared: BTreeMap<usize, PointKey>,
    epochs: Vec<u64>,
    image: Option<MemStore>,
    rolled_back: bool,
    peace: bool,
    controls: u64,
    lives: u32,
    trace: bool,
    asked: strange::Asked,
    /// Stamps of the readings that arrived, and how old they were, ms; kept only where they are asked for.
    ages: Option<Vec<(i64, u64)>>,
}

impl World {
    /// Lives through the world of `seed` with its faults.
    ///
    /// # Panics
    /// When something is not as it must be.
    #[must_use]
    pub fn run(seed: u64) -> Report {
        Self::run_with(seed, Faults::of(seed))
    }

    /// Lives through the world of `seed` with these faults.
    ///
    /// # Panics
    /// When something is not as it must be.
    #[must_use]
    pub fn run_with(seed: u64, faults: Faults) -> Report {
        let mut world = Self::new(seed, faults);
        world.begin();
        world.at(30 * SECOND, Event::Trouble);
        if faults.strange.any() {
            world.at(31 * SECOND, Event::Odd);
        }
        if faults.strange.reload {
            world.at(32 * SECOND, Event::Reload);
        }
        if faults.clock {
            world.at(300 * SECOND, Event::Synchronised);
        }
        world.live_until(TROUBLE_S * SECOND);
        world.make_peace();
        // Nobody makes room: the agent lives on what it has kept.
        if faults.disk {
            world.disk.fill();
        }
        world.live_until((TROUBLE_S + PEACE_S / 4) * SECOND);
        let before = world.agent.as_ref().map_or(0, |agent| agent.spool().durable());
        world.live_until((TROUBLE_S + PEACE_S / 2) * SECOND);
        world.check_drained(before);
        world.disk.make_room();
        world.live_until((TROUBLE_S + PEACE_S) * SECOND);
        world.end()
    }

    /// The agent starts, devices are polled, sensors speak.
    fn begin(&mut self) {
        self.at(0, Event::Start);
        for request in 0..self.plant.requests.len() {
            let period = u64::from(self.plant.requests[request].period_ms) * MILLI;
            self.at(period, Event::Poll(request));
        }
        for sensor in 0..self.plant.sensors.len() {
            self.at(SECOND * (1 + sensor as u64), Event::Sensor(sensor));
        }
    }

    fn new(seed: u64, faults: Faults) -> Self {
        let mut rng = Rng::with_seed(seed);
        let plant = Plant::new(&mut rng);
        let (requests, sensors) = (plant.requests.len(), plant.sensors.len());
        let unsynced = faults.clock && rng.bool();
        let drift = if faults.clock { rng.i64(-200..200) } else { 0 };
        let mut oracle = Oracle::new(plant.points.clone());
        oracle.steady_clock = !faults.clock;
        Self {
            faults,
            clock: Clock::new(drift, unsynced),
            order: 0,
            queue: BTreeMap::new(),
            plant,
            disk: Disk::new(),
            line: Line::new(),
            centre: Centre::new(),
            oracle,
            agent: None,
            life: 0,
            stopping: false,
            stopped_cleanly: false,
            buried_cleanly: true,
            polls: vec![0; requests],
            handed: vec![0; requests],
            known: vec![false; requests],
            kept: vec![false; requests],
            early: vec![Vec::new(); requests],
            due: vec![0; requests],
            snap: None,
            learned: 0,
            unkept: Vec::new(),
            sensor_queue: VecDeque::new(),
            outstanding: BTreeMap::new(),
            receipts: 0,
            sensor_n: vec![0; sensors],
            declared: BTreeMap::new(),
            epochs: Vec::new(),
            image: None,
            rolled_back: false,
            peace: false,
            controls: 0,
            lives: 0,
            trace: std::env::var_os("TRIBUTARY_TRACE").is_some(),
            asked: strange::Asked::new(seed),
            ages: None,
            rng,
        }
    }

    fn config(&mut self) -> Config {
        Config { boot_id: self.rng.u128(..).to_le_bytes(), seed: self.rng.u64(..), ..self.settings() }
    }

    fn settings(&self) -> Config {
        // A directory is a sixteenth of it: small ones, so that some close within the hour.
        let quota = if self.faults.quota || self.faults.damage { 1_500 << 10 } else { 1 << 28 };
        let when_full = if self.faults.stop_polling { WhenFull::StopPolling } else { WhenFull::DropOldest };
        let mut config = crate::settings::usual(0);
        config.spool = spool::Config { max_disk: quota, when_full, ..config.spool };
        config.uplink.reconnect_max = Duration::from_secs(60);
        if self.faults.strange.oldest_first {
            config.uplink.order = Order::OldestFirst;
        }
        if self.faults.by_broker {
            config.uplink.ack = AckMode::Broker;
        }
        config.uplink.backlog_rate = self.faults.strange.backlog_rate.then_some(20_000);
        config
    }

    // ------------------------------------------------------------------------------------------------------- time

    fn at(&mut self, nanos: u64, event: Event) {
        self.order += 1;
        self.queue.insert((nanos.max(self.clock.nanos()), self.order), event);
    }

    fn after(&mut self, nanos: u64, event: Event) {
        self.at(self.clock.nanos() + nanos, event);
    }

    /// The next event, or the pipeline's deadline, until `end`.
    fn live_until(&mut self, end: u64) {
        loop {
            let event = self.queue.first_key_value().map_or(u64::MAX, |((at, _), _)| *at);
            let deadline = self.agent.as_ref().and_then(Pipeline::next_deadline).map_or(u64::MAX, |at| at.as_nanos());
            if let Some(agent) = &self.agent {
                assert!(
                    deadline > self.clock.nanos() || {
                        if self.trace {
                            println!("{agent:?}");
                        }
                        false
                    },
                    "the pipeline has a deadline at {deadline} but nothing to do at {}",
                    self.clock.nanos()
                );
            }
            // After a suspension much is late.
            let next = event.min(deadline).max(self.clock.nanos());
            if next > end {
                self.clock.advance(end.max(self.clock.nanos()));
                return;
            }
            self.clock.advance(next);
            if event <= deadline
                && let Some((_, event)) = self.queue.pop_first()
            {
                if self.trace {
                    println!("{:.3} {event:?}", self.clock.nanos() as f64 / 1e9);
                }
                self.happen(event);
            }
            self.pump();
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Poll(request) => self.poll(request),
            Event::Sensor(sensor) => self.speak(sensor),
            Event::DiskDone(life) if life == self.life => self.disk_done(),
            Event::Dialled(life, id, will) if life == self.life && self.line.dialling == Some(id) => {
                self.dialled(id, will);
            }
            Event::AtBroker(session, publish) => self.at_broker(session, publish),
            Event::Puback(session, seq) => {
                if self.line.standing(session).is_some_and(|session| !session.half_open) {
                    let now = self.clock.now();
                    self.tell(|agent| agent.handle_puback(now, seq));
                }
            }
            Event::AtCentre(kind, payload) => self.at_centre(kind, &payload),
            Event::Commit(life) if life == self.centre.life => self.commit(),
            Event::AtAgent(session, ack) => {
                if self.line.standing(session).is_some_and(|session| !session.half_open) {
                    let now = self.clock.now();
                    self.tell(|agent| agent.handle_ack(now, &ack));
                }
            }
            Event::Control(session, control) => {
                if self.line.standing(session).is_some_and(|session| !session.half_open) {
                    self.ask(&control);
                }
            }
            // An agent is told once of each connection.
            Event::Gone(life, session) if life == self.life && session > self.line.told => {
                self.line.told = session;
                if self.line.standing(session).is_some() {
                    self.cut(false);
                }
                let now = self.clock.now();
                self.tell(|agent| agent.handle_disconnected(now));
            }
            Event::DiskDone(_) | Event::Dialled(..) | Event::Commit(_) | Event::Gone(..) => {}
            Event::Trouble => self.trouble(),
            Event::Odd => self.odd(),
            Event::Reload => self.reload(),
            Event::Calm(calm) => self.calm(calm),
            Event::Start => self.start(),
            Event::Kill(clean) => self.kill(clean),
            Event::Synchronised => self.synchronise(),
        }
    }

    // -------------------------------------------------------------------------------------------------------- end

    /// `before`: what was durable five minutes ago.
    fn check_drained(&mut self, before: u64) {
        let agent = self.agent.as_ref().expect("the agent runs in peace");
        let durable = agent.spool().durable();
        let (backlog, healthy) = (agent.spool().backlog(), agent.uplink().healthy());
        assert!(
            durable > before,
            "nothing became durable in five minutes of peace: {backlog} batches wait, the uplink is healthy: {healthy}"
        );
        assert!(healthy, "ten minutes after the last fault the uplink is not healthy");
        assert!(backlog < 30, "ten minutes after the last fault {backlog} batches wait");
    }

    /// Nothing is lost for a reason that this world does not have.
    fn check_reasons(&self) {
        let f = self.faults;
        let (disk, identity) = (f.disk || f.quota, f.crash || f.rollback);
        // Worlds with damage have the small quota too.
        let full = disk || f.damage;
        let down = identity || f.disk && f.stop;
        let may = [false, full, f.damage || disk && identity, f.disk, down, false, disk, f.refuse];
        for (reason, (named, may)) in self.oracle.named_by_reason().into_iter().zip(may).enumerate() {
            assert!(may || named == 0, "{named} readings are lost for reason {reason}, which nothing here explains");
        }
    }

    fn end(mut self) -> Report {
        self.stop();
        self.pump();
        self.live_until(self.clock.nanos() + 6 * SECOND);
        assert!(self.stopped_cleanly, "the agent has not stopped in its time");
        self.live_until(self.clock.nanos() + 10 * SECOND);
        let ended = self.agent.take().expect("it stopped, but is still looked at");
        let (ledger, spool) = (ended.ledger(), ended.spool());
        assert_eq!((ended.held(), spool.backlog()), (0, 0), "everything was sent before the end");
        let epoch = spool.epoch();
        let row = &self.centre.memory.agents[&self.centre.key];
        let told = (row.epoch, row.state.as_str(), row.admitted, row.delivered, row.filtered, row.lost, row.held);
        let so = (epoch, "offline", ledger.admitted, ledger.delivered, ledger.filtered, ledger.lost(), 0);
        assert_eq!(told, so, "the receiver's row, and the agent's ledger");
        let facts = &self.centre.memory.epochs[&(self.centre.key.clone(), epoch)];
        assert_eq!(facts.contiguous_seq(), spool.durable(), "everything is settled");
        for seq in facts.gaps().seqs_from(0) {
            assert!(self.oracle.is_named(epoch, seq), "seq {seq} is a gap that no loss names");
        }
        let exact = !self.faults.clock && !self.rolled_back;
        let mut polled = vec![false; self.plant.points.len()];
        for key in self.plant.requests.iter().flat_map(|request| &request.points) {
            polled[key.0 as usize] = true;
        }
        self.oracle.settle(ledger, epoch, self.epochs.len() == 1, exact, &polled);
        self.check_reasons();
        self.check_answers();
        let clean = self.disk.is_clean();
        assert!(clean, "the last state record says that this was a clean stop");
        Report {
            entered: self.oracle.entered,
            arrived: self.oracle.arrived,
            named: self.oracle.named_by_reason(),
            counted: ["counter.rollover", "counter.reset", "counter.rejected"]
                .map(|code| self.oracle.counted.get(code).copied().unwrap_or(0)),
            sent: self.oracle.bodies_sent,
            lives: self.lives,
            epochs: u32::try_from(self.epochs.len()).expect("few"),
        }
    }
}
