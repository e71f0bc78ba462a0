//! Holds the session with a broker: subscribes, receives, acknowledges.
//!
//! The impure end of the line over rumqttc 0.25.1 (MQTT 3.1.1, which 5 brokers speak as well). Three things in it bite,
//! and shape this file (README.md has the measurements):
//! - its event loop carries what was in flight into the next connection. Here each connection has a fresh client, and a
//!   [`Receipt`] of an older one is dropped: packet ids belong to a connection, the broker sends the message again.
//! - its event loop must not be cancelled while it connects: `poll` runs in a future of its own, from connection to end.
//! - a message above its packet limit ends the connection, and a persistent session brings it again. The limit is
//!   therefore far above `max_payload`, which is held by the decoder.
//!
//! Back-pressure: while the receiver of arrivals is full nothing is read from the broker, and so no ping answered. The
//! broker then ends the connection at some time and keeps the messages.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

use rumqttc::{
    AsyncClient, ConnectionError, Event, EventLoop, Incoming, MqttOptions, NetworkOptions, Publish, QoS, StateError,
    SubscribeFilter, SubscribeReasonCode, TlsConfiguration, Transport,
};
use tokio::sync::{mpsc, watch};

use crate::backoff::Reconnect;
use crate::mqtt::config::BrokerSpec;
use crate::mqtt::decode::{Arrived, Source, SourceCounters};
use crate::time::{Clock, Mono};

/// Filters in one SUBSCRIBE: with 1,024 bytes each the packet stays below 64 KB.
const FILTERS_A_PACKET: usize = 50;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection that lived this long was good: the next one comes at once.
const GOOD_AFTER: Duration = Duration::from_secs(10);
/// For the last acknowledgements and the DISCONNECT.
const GRACE: Duration = Duration::from_millis(500);
/// Room for acknowledgements on their way to the event loop.
const REQUESTS: usize = 128;
/// Least packet limit.
const PACKET_LIMIT: usize = 1 << 20;

/// What a message brought: one or more readings.
#[derive(Debug)]
pub struct Arrival {
    /// When it arrived, on the monotonic clock.
    pub mono: Mono,
    /// Its readings, in the order of the rules; at least one.
    pub readings: Vec<Arrived>,
    /// Whether the broker had sent it before (DUP): after a lost acknowledgement it comes twice.
    pub duplicate: bool,
    /// To be handed back when all of them are durable, withheld or counted as lost; `None` for QoS 0.
    pub receipt: Option<Receipt>,
}

/// The right to acknowledge one message. It ends with its connection: the broker then sends the message again.
#[derive(Debug, PartialEq, Eq)]
pub struct Receipt {
    connection: u64,
    packet: u16,
}

/// What the shell read from files: the user's password, and TLS.
#[derive(Default)]
pub struct Access {
    /// The password, from `password_file`.
    pub password: Option<String>,
    /// With `mqtts`: the client's TLS configuration. Then required.
    pub tls: Option<TlsConfiguration>,
}

/// What there is to tell of a broker.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BrokerStatus {
    /// As configured.
    pub name: String,
    /// Whether it has a connection with all subscriptions.
    pub connected: bool,
    /// How often a connection was made.
    pub connections: u64,
    /// What came over it.
    pub counters: SourceCounters,
    /// The last thing that went wrong.
    pub last_error: Option<String>,
}

/// Where a session's facts go, and where it hears when to stop.
pub struct Wires {
    /// Readings, to the pipeline. The session ends when nobody receives them.
    pub arrivals: mpsc::Sender<Arrival>,
    /// Receipts, back from it. Unbounded in type, bounded by the messages the broker hands out unacknowledged.
    pub receipts: mpsc::UnboundedReceiver<Receipt>,
    /// Kept up to date with each message; its receivers are woken only when the connection changes.
    pub status: watch::Sender<BrokerStatus>,
    /// Says true, or loses its sender, when the session is to end.
    pub shutdown: watch::Receiver<bool>,
}

/// Why a connection ended.
enum End {
    Stopped,
    Lost(String),
}

/// Runs a broker's session until it is told to stop or nobody receives its arrivals. At the end receipts that have
/// already come back are still acknowledged, within half a second. `seed` spreads its attempts to connect.
pub async fn run(spec: BrokerSpec, access: Access, clock: Arc<dyn Clock>, seed: u64, mut wires: Wires) {
    let mut source = Source::new(&spec);
    let mut reconnect = Reconnect::new(seed);
    let mut told = false;
    wires.status.send_modify(|status| status.name.clone_from(&spec.name));
    for connection in 1.. {
        let began = clock.mono();
        let error = match session(&spec, &access, &*clock, connection, &mut source, &mut wires).await {
            End::Stopped => break,
            End::Lost(error) => error,
        };
        if clock.mono().since(began) >= GOOD_AFTER {
            reconnect.reset();
            told = false;
        }
        if !core::mem::replace(&mut told, true) {
            tracing::warn!(broker = %spec.name, endpoint = %spec.endpoint(), %error, "no connection");
        }
        wires.status.send_modify(|status| {
            status.connected = false;
            status.last_error = Some(error);
        });
        #[allow(clippy::disallowed_methods, reason = "the silence between two attempts to connect")]
        let nap = tokio::time::sleep(reconnect.wait(spec.reconnect_max));
        tokio::select! {
            () = nap => {}
            () = stopped(&mut wires.shutdown) => break,
            () = wires.arrivals.closed() => break,
        }
    }
    wires.status.send_modify(|status| status.connected = false);
}

/// One connection, from its beginning to its end.
async fn session(
    spec: &BrokerSpec,
    access: &Access,
    clock: &dyn Clock,
    connection: u64,
    source: &mut Source,
    wires: &mut Wires,
) -> End {
    let options = match options(spec, access) {
        Ok(options) => options,
        Err(error) => return End::Lost(error),
    };
    let packets = spec.rules.len().div_ceil(FILTERS_A_PACKET);
    let (client, mut events) = AsyncClient::new(options, REQUESTS + packets);
    let mut network = NetworkOptions::new();
    network.set_connection_timeout(CONNECT_TIMEOUT.as_secs());
    network.set_tcp_nodelay(true);
    events.set_network_options(network);
    // Messages that made no reading are acknowledged from here; the client's own channel may be full of receipts.
    let (unusable, mut acknowledge) = mpsc::unbounded_channel();
    let (arrivals, status) = (&wires.arrivals, &wires.status);
    let mut receiver = Receiver { spec, clock, connection, source, arrivals, status, alive: false };
    let end = tokio::select! {
        error = receiver.receive(&client, &mut events, &unusable) => error.map_or(End::Stopped, End::Lost),
        () = settle(&client, connection, &mut wires.receipts, &mut acknowledge) => End::Stopped,
        () = stopped(&mut wires.shutdown) => End::Stopped,
        () = wires.arrivals.closed() => End::Stopped,
    };
    if matches!(end, End::Stopped) && receiver.alive {
        farewell(&client, &mut events, connection, &mut wires.receipts).await;
    }
    end
}

fn options(spec: &BrokerSpec, access: &Access) -> Result<MqttOptions, String> {
    // rumqttc joins host and port by a colon; the TLS name has no brackets.
    let host = if spec.host.contains(':') && !spec.tls { format!("[{}]", spec.host) } else { spec.host.clone() };
    let mut options = MqttOptions::new(spec.client_id.clone(), host, spec.port);
    let limit = PACKET_LIMIT.max(spec.max_payload.saturating_mul(2));
    options.set_clean_session(false).set_manual_acks(true).set_keep_alive(spec.keep_alive);
    options.set_max_packet_size(limit, PACKET_LIMIT);
    if let Some(username) = &spec.username {
        options.set_credentials(username.clone(), access.password.clone().unwrap_or_default());
    }
    if spec.tls {
        let tls = access.tls.clone().ok_or("an mqtts:// URL without a TLS configuration")?;
        options.set_transport(Transport::tls_with_config(tls));
    }
    Ok(options)
}

struct Receiver<'a> {
    spec: &'a BrokerSpec,
    clock: &'a dyn Clock,
    connection: u64,
    source: &'a mut Source,
    arrivals: &'a mpsc::Sender<Arrival>,
    status: &'a watch::Sender<BrokerStatus>,
    /// Whether the broker has accepted the connection.
    alive: bool,
}

impl Receiver<'_> {
    /// Connects, subscribes and receives until the connection is lost, with the reason; `None` if nobody listens.
    async fn receive(
        &mut self,
        client: &AsyncClient,
        events: &mut EventLoop,
        unusable: &mpsc::UnboundedSender<Receipt>,
    ) -> Option<String> {
        let (mut subscribing, mut refused) = (0_i64, false);
        loop {
            match events.poll().await {
                Ok(Event::Incoming(Incoming::ConnAck(_))) => {
                    for rules in self.spec.rules.chunks(FILTERS_A_PACKET) {
                        let filters =
                            rules.iter().map(|rule| SubscribeFilter::new(rule.filter.clone(), QoS::AtLeastOnce));
                        if let Err(error) = client.try_subscribe_many(filters) {
                            return Some(error.to_string());
                        }
                        subscribing += 1;
                    }
                    self.alive = true;
                    self.status.send_modify(|status| status.connections += 1);
                }
                Ok(Event::Incoming(Incoming::SubAck(ack))) => {
                    subscribing -= 1;
                    refused |= ack.return_codes.contains(&SubscribeReasonCode::Failure);
                    self.status.send_modify(|status| {
                        status.connected = subscribing == 0 && !refused;
                        if refused {
                            let error = "the broker refuses a subscription: its access list must allow the topics";
                            status.last_error = Some(error.into());
                        }
                    });
                }
                Ok(Event::Incoming(Incoming::Publish(publish))) => {
                    let mono = self.clock.mono();
                    let readings = self.source.accept(&publish.topic, &publish.payload, self.clock.wall());
                    self.status.send_if_modified(|status| {
                        status.counters = self.source.counters();
                        false
                    });
                    let receipt = (publish.qos == QoS::AtLeastOnce)
                        .then_some(Receipt { connection: self.connection, packet: publish.pkid });
                    if readings.is_empty() {
                        receipt.map(|receipt| unusable.send(receipt));
                        continue;
                    }
                    let arrival = Arrival { mono, readings, duplicate: publish.dup, receipt };
                    self.arrivals.send(arrival).await.ok()?;
                }
                Ok(_) => {}
                Err(error) => return Some(explain(&error)),
            }
        }
    }
}

/// What the client's errors mean for the owner.
fn explain(error: &ConnectionError) -> String {
    match error {
        ConnectionError::MqttState(StateError::Deserialization(rumqttc::Error::PayloadSizeLimitExceeded(size))) => {
            format!("a message of {size} bytes is too large to be received: limit the size of messages at the broker")
        }
        other => other.to_string(),
    }
}

/// Acknowledges what comes back, until the client is gone.
async fn settle(
    client: &AsyncClient,
    connection: u64,
    receipts: &mut mpsc::UnboundedReceiver<Receipt>,
    unusable: &mut mpsc::UnboundedReceiver<Receipt>,
) {
    loop {
        let receipt = tokio::select! {
            Some(receipt) = receipts.recv() => receipt,
            Some(receipt) = unusable.recv() => receipt,
            else => return core::future::pending().await,
        };
        if receipt.connection == connection && client.ack(&packet(&receipt)).await.is_err() {
            return core::future::pending().await;
        }
    }
}

/// rumqttc acknowledges messages, and looks at nothing but their number.
fn packet(receipt: &Receipt) -> Publish {
    let mut publish = Publish::new("", QoS::AtLeastOnce, Vec::new());
    publish.pkid = receipt.packet;
    publish
}

/// The last acknowledgements and a DISCONNECT, as far as they go quickly. The broker keeps the session.
async fn farewell(
    client: &AsyncClient,
    events: &mut EventLoop,
    connection: u64,
    receipts: &mut mpsc::UnboundedReceiver<Receipt>,
) {
    while let Ok(receipt) = receipts.try_recv() {
        if receipt.connection == connection && client.try_ack(&packet(&receipt)).is_err() {
            break;
        }
    }
    if client.try_disconnect().is_ok() {
        let sent = async {
            while !matches!(events.poll().await, Err(_) | Ok(Event::Outgoing(rumqttc::Outgoing::Disconnect))) {}
        };
        let _ = tokio::time::timeout(GRACE, sent).await;
    }
}

/// Until `shutdown` says true or nobody can say it any more.
async fn stopped(shutdown: &mut watch::Receiver<bool>) {
    let _ = shutdown.wait_for(|stop| *stop).await;
}
