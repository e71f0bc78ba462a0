//! The field side: starts a driver for each bus and each broker, and knows which point a topic is and whose receipt a
//! number stands for.
//!
//! Drivers say what happened over bounded channels: a pipeline that is busy makes them wait, and a deadline missed
//! meanwhile is said as such. Nothing here decides anything about a reading.
//!
//! A new configuration ends only the drivers that it does not have as they are ([`Field::retire`]) and starts what is new
//! ([`Field::enter`]); the others go on and notice nothing. So requests and lines have numbers that are given once and
//! never again; which request of the model that is, is looked up when a poll comes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::ring;
use sha2::{Digest, Sha256};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tributary_core::model::PointKey;
use tributary_core::pipeline::{self, Now, Pipeline, Receipt};
use tributary_protocols::gather;
use tributary_protocols::modbus::bus::{ASKS, Bus, Memory};
use tributary_protocols::modbus::config::{BusSpec, Link};
use tributary_protocols::modbus::driver::{self as modbus, Ask};
use tributary_protocols::modbus::status::BusStatus;
use tributary_protocols::mqtt::driver::{self as mqtt, Access, Arrival, BrokerStatus, Wires};
use tributary_protocols::reading::Poll;
use tributary_protocols::time::{Clock, Mono};

use crate::clock::SystemClock;
use crate::config::{BrokerSource, BusSource, TlsVersion};
use crate::memory::{self, Memories};
use crate::socket::{self, Watched};
use crate::tls;

/// Polls that may wait for the pipeline.
const POLLS: usize = 1_024;
/// Messages that may wait for the pipeline, for each broker.
const ARRIVALS: usize = 64;

/// A message, and the line it came from.
pub struct Message {
    line: u32,
    arrival: Arrival,
}

/// What the drivers say.
pub struct Facts {
    /// Due polls that came to their end, with the moment. Their requests are numbers of the field: [`Field::request`].
    pub polls: mpsc::Receiver<(Mono, Poll)>,
    /// Messages of brokers.
    pub messages: mpsc::Receiver<Message>,
}

/// Where the drivers say it.
struct Outlets {
    polls: mpsc::Sender<(Mono, Poll)>,
    messages: mpsc::Sender<Message>,
    learnt: mpsc::UnboundedSender<(String, Memory)>,
}

/// The driver of a line.
struct Driver {
    /// What it was made from.
    made_from: Fingerprint,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Driver {
    fn spawn<T: Future<Output = ()> + Send + 'static>(
        made_from: Fingerprint,
        run: impl FnOnce(watch::Receiver<bool>) -> T,
    ) -> Self {
        let (stop, stopped) = watch::channel(false);
        Self { made_from, stop, task: tokio::spawn(run(stopped)) }
    }

    fn is_stopping(&self) -> bool {
        *self.stop.borrow()
    }
}

struct BusLine {
    driver: Driver,
    name: String,
    /// For each device of the bus its place in the model.
    keys: Vec<u32>,
    /// The number of its first request, and for each request its place in the model.
    first_request: u32,
    requests: Vec<u32>,
    planned: Planned,
    status: watch::Receiver<BusStatus>,
    asks: mpsc::Sender<Ask>,
}

/// What the plan expects of a bus.
#[derive(Clone, Copy, Debug)]
pub struct Planned {
    /// Share of the time.
    pub utilisation: f64,
    /// One round of all requests.
    pub cycle: Duration,
}

struct BrokerLine {
    driver: Driver,
    line: u32,
    source: BrokerSource,
    /// Points by the source's own numbers.
    points: BTreeMap<u32, PointKey>,
    receipts: mpsc::UnboundedSender<mqtt::Receipt>,
    status: watch::Receiver<BrokerStatus>,
}

/// All drivers.
pub struct Field {
    buses: Vec<BusLine>,
    /// The place of a bus by the number of its first request.
    lines: BTreeMap<u32, usize>,
    brokers: Vec<BrokerLine>,
    waiting: BTreeMap<u64, (u32, mqtt::Receipt)>,
    next_receipt: u64,
    next_request: u32,
    next_line: u32,
    clock: SystemClock,
    memory_file: PathBuf,
    /// `None` once all were told to end.
    outlets: Option<Outlets>,
}

impl Field {
    /// Starts every driver as a task of the runtime.
    #[must_use]
    pub fn start(
        buses: Vec<BusSource>,
        brokers: Vec<BrokerSource>,
        state_dir: &Path,
        clock: SystemClock,
    ) -> (Self, Facts) {
        let (poll_sender, polls) = mpsc::channel(POLLS);
        let (message_sender, messages) = mpsc::channel(ARRIVALS);
        let (learnt, learn) = mpsc::unbounded_channel();
        let memory_file = memory::path(state_dir);
        let mut memories = memory::load(&memory_file);
        memories.retain(|name, _| buses.iter().any(|bus| bus.spec.name == *name));
        tokio::spawn(memory::keep(memory_file.clone(), memories, learn));
        let mut field = Self {
            buses: Vec::new(),
            lines: BTreeMap::new(),
            brokers: Vec::new(),
            waiting: BTreeMap::new(),
            next_receipt: 0,
            next_request: 0,
            next_line: 0,
            clock,
            memory_file,
            outlets: Some(Outlets { polls: poll_sender, messages: message_sender, learnt }),
        };
        field.enter(buses, brokers);
        (field, Facts { polls, messages })
    }

    /// Tells the drivers to end that these lists do not have as they are, and gives their tasks: what they still have to
    /// say is said when those have ended.
    pub fn retire(&mut self, buses: &[BusSource], brokers: &[BrokerSource]) -> Vec<JoinHandle<()>> {
        let goes_on: BTreeSet<Fingerprint> =
            gather(buses.iter().map(Fingerprint::of_bus).chain(brokers.iter().map(Fingerprint::of_broker)));
        let drivers = self.buses.iter_mut().map(|line| &mut line.driver);
        let drivers = drivers.chain(self.brokers.iter_mut().map(|line| &mut line.driver));
        let gone = drivers.filter(|driver| !goes_on.contains(&driver.made_from));
        gone.map(|driver| {
            driver.stop.send_replace(true);
            std::mem::replace(&mut driver.task, tokio::spawn(async {}))
        })
        .collect()
    }

    /// Goes on with these lists: their numbers are the model's of now on. Starts what was not there before.
    pub fn enter(&mut self, buses: Vec<BusSource>, brokers: Vec<BrokerSource>) {
        // One start for all, so that buses whose phases agree are woken together.
        let start = self.clock.mono();
        let memories = memory::load(&self.memory_file);
        let old = std::mem::take(&mut self.buses).into_iter().filter(|line| !line.driver.is_stopping());
        let mut old: BTreeMap<_, _> = gather(old.map(|line| (line.driver.made_from, line)));
        for source in buses {
            let made_from = Fingerprint::of_bus(&source);
            let line = match old.remove(&made_from) {
                Some(line) => {
                    let requests = places(&source).collect();
                    Some(BusLine { keys: source.keys, requests, ..line })
                }
                None => self.start_bus(source, made_from, &memories, start),
            };
            self.buses.extend(line);
        }
        let asked = self.buses.iter().enumerate().filter(|(_, line)| !line.requests.is_empty());
        self.lines = gather(asked.map(|(place, line)| (line.first_request, place)));
        let old = std::mem::take(&mut self.brokers).into_iter().filter(|line| !line.driver.is_stopping());
        let mut old: BTreeMap<_, _> = gather(old.map(|line| (line.driver.made_from, line)));
        for source in brokers {
            let made_from = Fingerprint::of_broker(&source);
            let line = match old.remove(&made_from) {
                // Points that came by wildcards are declared anew.
                Some(line) => Some(BrokerLine { points: fixed(&source), source, ..line }),
                None => self.start_broker(source, made_from),
            };
            self.brokers.extend(line);
        }
        let lines: BTreeSet<u32> = gather(self.brokers.iter().map(|line| line.line));
        self.waiting.retain(|_, (line, _)| lines.contains(line));
    }

    fn start_bus(
        &mut self,
        mut source: BusSource,
        made_from: Fingerprint,
        memories: &Memories,
        start: Mono,
    ) -> Option<BusLine> {
        let outlets = self.outlets.as_ref()?;
        let name = source.spec.name.clone();
        let (tell, status) = watch::channel(BusStatus { name: name.clone(), ..BusStatus::default() });
        let (first_request, requests) = (self.next_request, places(&source).collect());
        for (number, _) in source.devices.iter_mut().flat_map(|device| &mut device.requests) {
            *number = self.next_request;
            self.next_request += 1;
        }
        let mut bus = Bus::new(&source.spec, source.devices, start, fastrand::u64(..));
        if let Some(memory) = memories.get(&name) {
            bus.remember(start, memory);
        }
        let (asks, asked) = mpsc::channel(ASKS);
        let (polls, memory) = (outlets.polls.clone(), outlets.learnt.clone());
        let clock: Arc<dyn Clock> = Arc::new(self.clock);
        let (spec, tls) = (source.spec.clone(), modbus_tls(&source.spec));
        let driver = Driver::spawn(made_from, |shutdown| {
            modbus::run(spec, bus, tls, clock, modbus::Wires { polls, asks: asked, status: tell, memory, shutdown })
        });
        let planned = Planned { utilisation: source.forecast.utilisation, cycle: source.forecast.cycle };
        Some(BusLine { driver, name, keys: source.keys, first_request, requests, planned, status, asks })
    }

    fn start_broker(&mut self, source: BrokerSource, made_from: Fingerprint) -> Option<BrokerLine> {
        let outlets = self.outlets.as_ref()?;
        let line = self.next_line;
        self.next_line += 1;
        let (tell, status) = watch::channel(BrokerStatus { name: source.spec.name.clone(), ..BrokerStatus::default() });
        let (receipts, given_back) = mpsc::unbounded_channel();
        let (arrivals, mut arrived) = mpsc::channel(ARRIVALS);
        let access = access(&source).unwrap_or_else(|error| {
            tracing::error!(broker = %source.spec.name, %error, "the broker cannot be used");
            Access::default()
        });
        let clock: Arc<dyn Clock> = Arc::new(self.clock);
        let (spec, messages) = (source.spec.clone(), outlets.messages.clone());
        let driver = Driver::spawn(made_from, |shutdown| {
            let wires = Wires { arrivals, receipts: given_back, status: tell, shutdown };
            let run = mqtt::run(spec, access, clock, fastrand::u64(..), wires);
            let pass_on = async move {
                while let Some(arrival) = arrived.recv().await {
                    if messages.send(Message { line, arrival }).await.is_err() {
                        return;
                    }
                }
            };
            async move {
                tokio::join!(run, pass_on);
            }
        });
        let points = fixed(&source);
        Some(BrokerLine { driver, line, source, points, receipts, status })
    }

    /// Tells every driver to end; their channels close when they have.
    pub fn stop(&mut self) {
        self.outlets = None;
        let drivers = self.buses.iter().map(|line| &line.driver).chain(self.brokers.iter().map(|line| &line.driver));
        for driver in drivers {
            driver.stop.send_replace(true);
        }
    }

    /// The name of a driver that has ended though nobody told it to.
    #[must_use]
    pub fn ended(&self) -> Option<&str> {
        let ended = |driver: &Driver| driver.task.is_finished() && !driver.is_stopping();
        let bus = self.buses.iter().find(|line| ended(&line.driver)).map(|line| line.name.as_str());
        bus.or_else(|| self.brokers.iter().find(|line| ended(&line.driver)).map(|line| line.source.spec.name.as_str()))
    }

    /// The place in the model of the request that a driver polled.
    #[must_use]
    pub fn request(&self, number: u32) -> Option<u32> {
        let (first, line) = self.lines.range(..=number).next_back()?;
        self.buses.get(*line)?.requests.get(usize::try_from(number - first).ok()?).copied()
    }

    /// Takes a message into the pipeline; points that it brings for the first time are declared.
    pub fn take(&mut self, now: Now, message: Message, pipeline: &mut Pipeline) {
        let Message { line: number, arrival } = message;
        let Some(line) = self.brokers.iter_mut().find(|line| line.line == number) else { return };
        let mut arrivals = Vec::with_capacity(arrival.readings.len());
        for reading in arrival.readings {
            let Some(point) = line.point(now, &reading, pipeline) else { continue };
            let (at, stamped_by, sample) = (reading.at, reading.stamped_by, reading.sample);
            arrivals.push(pipeline::Arrival { point, at, stamped_by, sample });
        }
        let receipt = arrival.receipt.map(|receipt| {
            self.next_receipt += 1;
            self.waiting.insert(self.next_receipt, (number, receipt));
            Receipt(self.next_receipt)
        });
        pipeline.handle_message(now, arrivals, receipt);
    }

    /// For those who watch.
    pub fn watched(&self, message: &Message) -> impl Iterator<Item = Watched> {
        let broker = self.brokers.iter().position(|line| line.line == message.line);
        let broker = broker.and_then(|place| u32::try_from(place).ok()).unwrap_or(u32::MAX);
        message.arrival.readings.iter().map(move |reading| Watched::Message {
            broker,
            rule: reading.rule,
            point: reading.name.to_string(),
            at: reading.at.as_millis(),
            sample: socket::watched(&reading.sample),
        })
    }

    /// The readings of a message are safe: its broker may forget it.
    pub fn release(&mut self, receipt: Receipt) {
        if let Some((number, receipt)) = self.waiting.remove(&receipt.0)
            && let Some(line) = self.brokers.iter().find(|line| line.line == number)
        {
            let _ = line.receipts.send(receipt);
        }
    }

    /// Where the bus of that name takes questions beside the schedule.
    #[must_use]
    pub fn asks(&self, bus: &str) -> Option<mpsc::Sender<Ask>> {
        let line = self.buses.iter().find(|line| line.name == bus)?;
        Some(line.asks.clone())
    }

    /// Every bus, with the places of its devices in the model, and what was planned.
    pub fn buses(&self) -> impl Iterator<Item = (watch::Ref<'_, BusStatus>, &[u32], Planned)> {
        self.buses.iter().map(|line| (line.status.borrow(), line.keys.as_slice(), line.planned))
    }

    /// Every broker, with its place in the model.
    pub fn brokers(&self) -> impl Iterator<Item = (watch::Ref<'_, BrokerStatus>, u32)> {
        self.brokers.iter().map(|line| (line.status.borrow(), line.source.device))
    }
}

/// What a driver was made from: with the same it need not be made anew.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// Of what is asked on a bus, without the places in the model.
    fn of_bus(source: &BusSource) -> Self {
        let devices = source.devices.iter().map(|device| {
            let requests: Vec<_> = device.requests.iter().map(|(_, request)| request).collect();
            (&device.name, device.unit, device.timing, device.release, requests)
        });
        Self::of(&(&source.spec, devices.collect::<Vec<_>>()), &[])
    }

    /// With the contents of its files: a broker's password and certificates are read when its driver starts.
    fn of_broker(source: &BrokerSource) -> Self {
        let spec = &source.spec;
        Self::of(spec, &[&spec.password_file, &spec.ca, &spec.cert, &spec.key])
    }

    fn of(configured: &impl std::fmt::Debug, files: &[&Option<String>]) -> Self {
        let mut hash = Sha256::new();
        hash.update(format!("{configured:?}"));
        for file in files.iter().copied().flatten() {
            hash.update(std::fs::read(file).unwrap_or_default());
        }
        Self(hash.finalize().into())
    }
}

/// For each request of a bus its place in the model.
fn places(source: &BusSource) -> impl Iterator<Item = u32> {
    source.devices.iter().flat_map(|device| &device.requests).map(|(place, _)| *place)
}

/// The points of a broker that need not appear first.
fn fixed(source: &BrokerSource) -> BTreeMap<u32, PointKey> {
    gather((0..).zip(source.points.iter().flatten().copied()))
}

impl BrokerLine {
    fn point(
        &mut self,
        now: Now,
        reading: &tributary_protocols::mqtt::decode::Arrived,
        pipeline: &mut Pipeline,
    ) -> Option<PointKey> {
        if let Some(point) = self.points.get(&reading.series) {
            return Some(*point);
        }
        let mut point = self.source.template(usize::try_from(reading.rule).ok()?)?;
        point.name = reading.name.to_string();
        point.source = reading.source.to_string();
        match pipeline.declare(now, &point) {
            Ok(key) => {
                self.points.insert(reading.series, key);
                Some(key)
            }
            Err(error) => {
                tracing::error!(broker = %self.source.spec.name, point = %point.name, %error, "point refused");
                None
            }
        }
    }
}

/// Our side of the handshake of a bus that has one.
pub(crate) fn modbus_tls(spec: &BusSpec) -> Option<modbus::Tls> {
    let Link::Tls { ca, client, .. } = &spec.link else { return None };
    let (ca, client) = (ca.clone(), client.clone());
    Some(Arc::new(move || {
        let client = client.as_ref().map(|(cert, key)| (cert.as_ref(), key.as_ref()));
        tls::config(tls::Files { ca: ca.as_ref(), client, crl: None }, TlsVersion::V1_2)
            .map_err(|error| error.to_string())
    }))
}

fn access(source: &BrokerSource) -> Result<Access, tls::TlsError> {
    let spec = &source.spec;
    let password = spec.password_file.as_ref().map(|path| tls::password(path.as_ref())).transpose()?;
    let tls = match (&spec.ca, spec.tls) {
        (Some(ca), true) => {
            let client = spec.cert.as_ref().zip(spec.key.as_ref());
            let client = client.map(|(cert, key)| (cert.as_ref(), key.as_ref()));
            Some(tls::client(tls::Files { ca: ca.as_ref(), client, crl: None }, TlsVersion::V1_2)?)
        }
        _ => None,
    };
    Ok(Access { password, tls })
}

/// Makes ring the provider of this process: libraries that ask for "the default" get it.
pub fn install_crypto() {
    // A second call in one process changes nothing.
    let _ = ring::default_provider().install_default();
}
