//! The field side: starts a driver for each bus and each broker, and knows which point a topic is and whose receipt a
//! number stands for.
//!
//! Drivers say what happened over bounded channels: a pipeline that is busy makes them wait, and a deadline missed
//! meanwhile is said as such. Nothing here decides anything about a reading.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::ring;
use tokio::sync::{mpsc, watch};
use tributary_core::model::PointKey;
use tributary_core::pipeline::{self, Now, Pipeline, Receipt};
use tributary_protocols::modbus::bus::{ASKS, Bus};
use tributary_protocols::modbus::config::{BusSpec, Link};
use tributary_protocols::modbus::driver::{self as modbus, Ask};
use tributary_protocols::modbus::status::BusStatus;
use tributary_protocols::mqtt::driver::{self as mqtt, Access, Arrival, BrokerStatus, Wires};
use tributary_protocols::reading::Poll;
use tributary_protocols::time::{Clock, Mono};

use crate::clock::SystemClock;
use crate::config::{BrokerSource, BusSource, TlsVersion};
use crate::memory;
use crate::socket::{self, Watched};
use crate::tls;

/// Polls that may wait for the pipeline.
const POLLS: usize = 1_024;
/// Messages that may wait for the pipeline, for each broker.
const ARRIVALS: usize = 64;

/// A message, and the broker it came from.
pub struct Message {
    broker: usize,
    arrival: Arrival,
}

impl Message {
    /// For those who watch.
    pub fn watched(&self) -> impl Iterator<Item = Watched> {
        self.arrival.readings.iter().map(|reading| Watched::Message {
            broker: u32::try_from(self.broker).unwrap_or(u32::MAX),
            rule: reading.rule,
            point: reading.name.to_string(),
            at: reading.at.as_millis(),
            sample: socket::watched(&reading.sample),
        })
    }
}

/// What the drivers say.
pub struct Facts {
    /// Due polls that came to their end, with the moment.
    pub polls: mpsc::Receiver<(Mono, Poll)>,
    /// Messages of brokers.
    pub messages: mpsc::Receiver<Message>,
}

struct BusLine {
    /// For each device of the bus its place in the model.
    keys: Vec<u32>,
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
    source: BrokerSource,
    /// Points by the source's own numbers.
    points: BTreeMap<u32, PointKey>,
    receipts: mpsc::UnboundedSender<mqtt::Receipt>,
    status: watch::Receiver<BrokerStatus>,
}

/// All drivers.
pub struct Field {
    buses: Vec<BusLine>,
    brokers: Vec<BrokerLine>,
    waiting: BTreeMap<u64, (usize, mqtt::Receipt)>,
    next_receipt: u64,
    stop: watch::Sender<bool>,
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
        let clock: Arc<dyn Clock> = Arc::new(clock);
        let (stop, stopped) = watch::channel(false);
        let (poll_sender, polls) = mpsc::channel(POLLS);
        let (message_sender, messages) = mpsc::channel(ARRIVALS);
        let mut field =
            Self { buses: Vec::new(), brokers: Vec::new(), waiting: BTreeMap::new(), next_receipt: 0, stop };
        // One start for all, so that buses whose phases agree are woken together.
        let start = clock.mono();
        let memory_file = memory::path(state_dir);
        let mut memories = memory::load(&memory_file);
        memories.retain(|name, _| buses.iter().any(|bus| bus.spec.name == *name));
        let (learn, learnt) = mpsc::unbounded_channel();
        tokio::spawn(memory::keep(memory_file, memories.clone(), learnt));
        for source in buses {
            let (tell, status) = watch::channel(BusStatus { name: source.spec.name.clone(), ..BusStatus::default() });
            let mut bus = Bus::new(&source.spec, source.devices, start, fastrand::u64(..));
            if let Some(memory) = memories.get(&source.spec.name) {
                bus.remember(start, memory);
            }
            let (asks, asked) = mpsc::channel(ASKS);
            let wires = modbus::Wires {
                polls: poll_sender.clone(),
                asks: asked,
                status: tell,
                memory: learn.clone(),
                shutdown: stopped.clone(),
            };
            tokio::spawn(modbus::run(source.spec.clone(), bus, modbus_tls(&source.spec), Arc::clone(&clock), wires));
            let planned = Planned { utilisation: source.forecast.utilisation, cycle: source.forecast.cycle };
            field.buses.push(BusLine { keys: source.keys, planned, status, asks });
        }
        for (broker, source) in brokers.into_iter().enumerate() {
            let (tell, status) =
                watch::channel(BrokerStatus { name: source.spec.name.clone(), ..BrokerStatus::default() });
            let (receipts, given_back) = mpsc::unbounded_channel();
            let (arrivals, mut arrived) = mpsc::channel(ARRIVALS);
            let wires = Wires { arrivals, receipts: given_back, status: tell, shutdown: stopped.clone() };
            let access = access(&source).unwrap_or_else(|error| {
                tracing::error!(broker = %source.spec.name, %error, "the broker cannot be used");
                Access::default()
            });
            tokio::spawn(mqtt::run(source.spec.clone(), access, Arc::clone(&clock), fastrand::u64(..), wires));
            let sender = message_sender.clone();
            tokio::spawn(async move {
                while let Some(arrival) = arrived.recv().await {
                    if sender.send(Message { broker, arrival }).await.is_err() {
                        return;
                    }
                }
            });
            let fixed = source.points.iter().flatten();
            let points = (0..).zip(fixed.copied()).collect();
            field.brokers.push(BrokerLine { source, points, receipts, status });
        }
        (field, Facts { polls, messages })
    }

    /// Tells every driver to end; their channels close when they have.
    pub fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// Takes a message into the pipeline; points that it brings for the first time are declared.
    pub fn take(&mut self, now: Now, message: Message, pipeline: &mut Pipeline) {
        let Message { broker, arrival } = message;
        let Some(line) = self.brokers.get_mut(broker) else { return };
        let mut arrivals = Vec::with_capacity(arrival.readings.len());
        for reading in arrival.readings {
            let Some(point) = line.point(now, &reading, pipeline) else { continue };
            let (at, stamped_by, sample) = (reading.at, reading.stamped_by, reading.sample);
            arrivals.push(pipeline::Arrival { point, at, stamped_by, sample });
        }
        let receipt = arrival.receipt.map(|receipt| {
            self.next_receipt += 1;
            self.waiting.insert(self.next_receipt, (broker, receipt));
            Receipt(self.next_receipt)
        });
        pipeline.handle_message(now, arrivals, receipt);
    }

    /// The readings of a message are safe: its broker may forget it.
    pub fn release(&mut self, receipt: Receipt) {
        if let Some((broker, receipt)) = self.waiting.remove(&receipt.0)
            && let Some(line) = self.brokers.get(broker)
        {
            let _ = line.receipts.send(receipt);
        }
    }

    /// Where the bus of that name takes questions beside the schedule.
    #[must_use]
    pub fn asks(&self, bus: &str) -> Option<mpsc::Sender<Ask>> {
        let line = self.buses.iter().find(|line| line.status.borrow().name == bus)?;
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
        tls::config(tls::Files { ca: ca.as_ref(), client }, TlsVersion::V1_2).map_err(|error| error.to_string())
    }))
}

fn access(source: &BrokerSource) -> Result<Access, tls::TlsError> {
    let spec = &source.spec;
    let password = spec.password_file.as_ref().map(|path| tls::password(path.as_ref())).transpose()?;
    let tls = match (&spec.ca, spec.tls) {
        (Some(ca), true) => {
            let client = spec.cert.as_ref().zip(spec.key.as_ref());
            let client = client.map(|(cert, key)| (cert.as_ref(), key.as_ref()));
            Some(tls::client(tls::Files { ca: ca.as_ref(), client }, TlsVersion::V1_2)?)
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
