//! A simulated MQTT sensor: JSON at QoS 1 on `cell/NAME/climate`, to the cell's own broker.
//!
//! It numbers its messages and writes down which of them its broker has acknowledged: from then on a message is the
//! broker's and the agent's to keep.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rumqttc::{AsyncClient, Event, EventLoop, MqttOptions, Outgoing, Packet, QoS};
use tokio::task::JoinHandle;

/// Between two messages of a sensor.
const PERIOD: Duration = Duration::from_millis(250);

/// Points that the agent makes of one message: `n`, `temperature`, `humidity`.
pub(crate) const POINTS: u64 = 3;

/// What a sensor has said.
#[derive(Clone, Debug, Default)]
pub(crate) struct Notes {
    /// Temperature and humidity as they stand in message `n`.
    pub(crate) published: BTreeMap<u32, [f64; 2]>,
    /// Messages that the broker acknowledged.
    pub(crate) acknowledged: BTreeSet<u32>,
}

/// A sensor, until it is dropped or stopped.
pub(crate) struct Sensor {
    pub(crate) name: &'static str,
    notes: Arc<Mutex<Notes>>,
    publishing: JoinHandle<()>,
    listening: JoinHandle<()>,
}

impl Sensor {
    /// Starts it. Must be called within a tokio runtime.
    pub(crate) fn start(name: &'static str, port: u16, seed: u64) -> Self {
        let mut options = MqttOptions::new(name, "127.0.0.1", port);
        // It would take a broker that a busy machine holds up for a lost one: nothing here is to end a connection.
        options.set_keep_alive(Duration::from_secs(60));
        let (client, events) = AsyncClient::new(options, 64);
        let notes = Arc::new(Mutex::new(Notes::default()));
        let publishing = tokio::spawn(publish(name, client, Arc::clone(&notes), fastrand::Rng::with_seed(seed)));
        let listening = tokio::spawn(listen(events, Arc::clone(&notes)));
        Self { name, notes, publishing, listening }
    }

    /// Publishes nothing more; acknowledgements still come in.
    pub(crate) fn stop(&self) {
        self.publishing.abort();
    }

    /// Whether it lost its broker, which nothing in the demo should cause.
    pub(crate) fn failed(&self) -> bool {
        self.listening.is_finished()
    }

    /// What it has said so far.
    pub(crate) fn notes(&self) -> Notes {
        lock(&self.notes).clone()
    }
}

impl Drop for Sensor {
    fn drop(&mut self) {
        self.publishing.abort();
        self.listening.abort();
    }
}

fn lock(notes: &Mutex<Notes>) -> MutexGuard<'_, Notes> {
    notes.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn publish(name: &'static str, client: AsyncClient, notes: Arc<Mutex<Notes>>, mut chance: fastrand::Rng) {
    let mut tick = tokio::time::interval(PERIOD);
    let (mut temperature, mut humidity) = (21.0, 44.0);
    for n in 1_u32.. {
        tick.tick().await;
        temperature += (chance.f64() - 0.5) * 0.2;
        humidity += (chance.f64() - 0.5) * 0.8;
        // Two digits, as such a sensor has them; what is noted is what a reader of the message sees.
        let [temperature, humidity] = [temperature, humidity].map(|value: f64| (value * 100.0).round() / 100.0);
        lock(&notes).published.insert(n, [temperature, humidity]);
        let payload = format!(r#"{{"n":{n},"temperature":{temperature},"humidity":{humidity}}}"#);
        if client.publish(format!("cell/{name}/climate"), QoS::AtLeastOnce, false, payload).await.is_err() {
            return;
        }
    }
}

async fn listen(mut events: EventLoop, notes: Arc<Mutex<Notes>>) {
    // Messages leave in the order of their numbers; packet id → number of those on their way.
    let (mut sent, mut packets) = (0, BTreeMap::new());
    loop {
        match events.poll().await {
            Ok(Event::Outgoing(Outgoing::Publish(packet))) => {
                sent += 1;
                packets.insert(packet, sent);
            }
            Ok(Event::Incoming(Packet::PubAck(ack))) => {
                if let Some(n) = packets.remove(&ack.pkid) {
                    lock(&notes).acknowledged.insert(n);
                }
            }
            Ok(_) => {}
            Err(_) => return,
        }
    }
}
