//! The broker: messages in, Acks out. The one file that knows the MQTT library.
//!
//! MQTT 5 first: there `$share/GROUP/…` lets receivers divide the data between them, and a receive maximum bounds what is
//! under way. A broker that speaks 3.1.1 only (NATS, RabbitMQ 3.10) gets a plain subscription: every receiver then sees
//! all data, and the ledger sorts it out. `cat` and `stat` go to every receiver in either case.
//!
//! The session is always clean: a persistent one strands shared messages on a dead member. PUBACK is sent by hand, after
//! COMMIT, or once a message is known not to be committed; it frees nothing at the edge, only the broker's window, so no
//! message may keep it back for ever.
//!
//! A client and its event loop live for one connection; a receipt belongs to the connection it came by and is worth nothing
//! on the next, so it holds that connection's client. `poll` runs in a task of its own and is never raced: while it
//! connects, giving up on it and calling it again would open one socket after another.
//!
//! Limits: 512 messages unacknowledged (MQTT 5), 4 MiB a message (longer ones are dropped), 64 MiB in all between broker
//! and store; beyond these the broker waits.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rumqttc::{NetworkOptions, TlsConfiguration, Transport, v5};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::timeout;

use crate::config::Broker;
use crate::tls;

/// Most messages that the broker may have under way to a receiver (MQTT 5).
const RECEIVE_MAXIMUM: u16 = 512;

/// Longest message: a catalogue may have 4 MB (contract rule 12), and topic and header need room.
const MAX_MESSAGE: usize = 4 << 20;
const MAX_PACKET: u32 = (4 << 20) + (64 << 10);

/// What an MQTT packet can be at most. Taken under 3.1.1, where nobody tells the broker a limit: a longer packet would end
/// the connection, and a retained one would end it again each time.
const LONGEST_PACKET: usize = 268_435_460;

/// Bytes between broker and store, counted by KiB.
const BUDGET_KIB: u32 = 64 << 10;

/// Requests that wait for the event loop.
const REQUESTS: usize = 1_024;

/// Longest wait before the next try to connect. Receivers are few, and while they are away everyone waits.
const MAX_BACKOFF: Duration = Duration::from_secs(3);

const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// A message from the broker.
pub(crate) struct Message {
    pub(crate) topic: String,
    pub(crate) payload: Bytes,
    /// To be given once the message is settled.
    pub(crate) receipt: Receipt,
    /// Its share of the budget, given back when dropped.
    _budget: OwnedSemaphorePermit,
}

/// The PUBACK that a message waits for.
pub(crate) enum Receipt {
    None,
    V4(rumqttc::AsyncClient, u16),
    V5(v5::AsyncClient, u16),
}

impl Receipt {
    /// Sends it, if the connection that the message came by is still there.
    pub(crate) async fn give(self) {
        match self {
            Self::None => {}
            Self::V4(client, pkid) => {
                let mut publish = rumqttc::Publish::new("", rumqttc::QoS::AtLeastOnce, Vec::new());
                publish.pkid = pkid;
                drop(client.ack(&publish).await);
            }
            Self::V5(client, pkid) => {
                use v5::mqttbytes::{QoS, v5::Publish};
                let mut publish = Publish::new("", QoS::AtLeastOnce, Vec::new(), None);
                publish.pkid = pkid;
                drop(client.ack(&publish).await);
            }
        }
    }
}

/// A connection that is up.
#[derive(Clone)]
pub(crate) enum Link {
    V4(rumqttc::AsyncClient),
    V5(v5::AsyncClient),
}

impl Link {
    /// Publishes at QoS 0, not retained. A connection that has just gone takes it along.
    pub(crate) async fn publish(&self, topic: &str, payload: Vec<u8>) {
        match self {
            Self::V4(client) => drop(client.publish(topic, rumqttc::QoS::AtMostOnce, false, payload).await),
            Self::V5(client) => drop(client.publish(topic, v5::mqttbytes::QoS::AtMostOnce, false, payload).await),
        }
    }

    /// Says goodbye, so that the broker gives this receiver's share to the others at once.
    pub(crate) async fn disconnect(&self) {
        match self {
            Self::V4(client) => drop(client.disconnect().await),
            Self::V5(client) => drop(client.disconnect().await),
        }
    }

    async fn subscribe(&self, filters: &[String]) {
        match self {
            Self::V4(client) => {
                let filters = filters
                    .iter()
                    .map(|filter| rumqttc::SubscribeFilter::new(filter.clone(), rumqttc::QoS::AtLeastOnce));
                drop(client.subscribe_many(filters).await);
            }
            Self::V5(client) => {
                use v5::mqttbytes::{QoS, v5::Filter};
                let filters = filters.iter().map(|filter| Filter::new(filter.clone(), QoS::AtLeastOnce));
                drop(client.subscribe_many(filters).await);
            }
        }
    }

    fn receipt(&self, pkid: u16) -> Receipt {
        match self {
            _ if pkid == 0 => Receipt::None, // QoS 0
            Self::V4(client) => Receipt::V4(client.clone(), pkid),
            Self::V5(client) => Receipt::V5(client.clone(), pkid),
        }
    }
}

/// What an event loop has to say, whichever version it speaks.
enum Incoming {
    Connected,
    Subscribed { all: bool },
    Publish { topic: String, payload: Bytes, pkid: u16 },
    Other,
}

/// Why a connection ended or did not come about.
#[derive(Debug, thiserror::Error)]
enum LinkError {
    #[error("{0}")]
    V4(#[from] Box<rumqttc::ConnectionError>),
    #[error("{0}")]
    V5(#[from] Box<v5::ConnectionError>),
    #[error("{0}")]
    Config(#[from] crate::config::ConfigError),
    #[error("the broker refuses the subscription to {0}; its access list must allow it")]
    Refused(String),
    #[error("the receiver is ending")]
    Ending,
}

impl LinkError {
    /// Whether an MQTT 5 CONNECT may have failed because it was one. Old brokers answer with a CONNACK of their own form,
    /// with silence, or by hanging up; what cannot be that is a host that is not there, TLS, or a login refused.
    fn may_be_the_version(&self) -> bool {
        use std::io::ErrorKind as Kind;
        use v5::mqttbytes::v5::ConnectReturnCode as Code;
        let Self::V5(error) = self else { return false };
        match &**error {
            v5::ConnectionError::Io(error) => matches!(
                error.kind(),
                Kind::ConnectionReset | Kind::ConnectionAborted | Kind::UnexpectedEof | Kind::BrokenPipe
            ),
            v5::ConnectionError::ConnectionRefused(code) => matches!(
                code,
                Code::RefusedProtocolVersion
                    | Code::UnsupportedProtocolVersion
                    | Code::ProtocolError
                    | Code::MalformedPacket
            ),
            v5::ConnectionError::Tls(_) => false,
            _ => true,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    V4,
    V5,
}

enum EventLoop {
    V4(Box<rumqttc::EventLoop>),
    V5(Box<v5::EventLoop>),
}

impl EventLoop {
    fn new(version: Version, broker: &Broker) -> Result<(Link, Self), LinkError> {
        // Unique, or two receivers would throw each other out; at most 23 of these characters, as MQTT 3.1.1 guarantees.
        let id = format!("tributary-{:012x}", fastrand::u64(..) >> 16);
        let transport = match &broker.tls {
            None => Transport::Tcp,
            Some(tls) => Transport::Tls(TlsConfiguration::Rustls(tls::client_config(tls)?)),
        };
        let login =
            broker.login.as_ref().map(|(user, path)| password(path).map(|password| (user, password))).transpose()?;
        let mut network = NetworkOptions::new();
        network.set_tcp_nodelay(true);
        Ok(match version {
            Version::V4 => {
                let mut options = rumqttc::MqttOptions::new(id, &broker.host, broker.port);
                options
                    .set_transport(transport)
                    .set_clean_session(true)
                    .set_manual_acks(true)
                    .set_keep_alive(KEEP_ALIVE);
                options.set_max_packet_size(LONGEST_PACKET, MAX_PACKET as usize);
                if let Some((user, password)) = login {
                    options.set_credentials(user, password);
                }
                let (client, mut events) = rumqttc::AsyncClient::new(options, REQUESTS);
                events.set_network_options(network);
                (Link::V4(client), Self::V4(Box::new(events)))
            }
            Version::V5 => {
                let mut options = v5::MqttOptions::new(id, &broker.host, broker.port);
                options.set_transport(transport).set_clean_start(true).set_manual_acks(true).set_keep_alive(KEEP_ALIVE);
                options.set_session_expiry_interval(Some(0)).set_receive_maximum(Some(RECEIVE_MAXIMUM));
                options.set_max_packet_size(Some(MAX_PACKET)).set_outgoing_inflight_upper_limit(16);
                options.set_network_options(network);
                if let Some((user, password)) = login {
                    options.set_credentials(user, password);
                }
                let (client, events) = v5::AsyncClient::new(options, REQUESTS);
                (Link::V5(client), Self::V5(Box::new(events)))
            }
        })
    }

    async fn poll(&mut self) -> Result<Incoming, LinkError> {
        Ok(match self {
            Self::V4(events) => {
                use rumqttc::{Event, Packet, SubscribeReasonCode};
                match events.poll().await.map_err(Box::new)? {
                    Event::Incoming(Packet::ConnAck(_)) => Incoming::Connected,
                    Event::Incoming(Packet::SubAck(ack)) => {
                        let all = ack.return_codes.iter().all(|code| matches!(code, SubscribeReasonCode::Success(_)));
                        Incoming::Subscribed { all }
                    }
                    Event::Incoming(Packet::Publish(publish)) => {
                        Incoming::Publish { topic: publish.topic, payload: publish.payload, pkid: publish.pkid }
                    }
                    _ => Incoming::Other,
                }
            }
            Self::V5(events) => {
                use v5::Event;
                use v5::mqttbytes::v5::{Packet, SubscribeReasonCode};
                match events.poll().await.map_err(Box::new)? {
                    Event::Incoming(Packet::ConnAck(_)) => Incoming::Connected,
                    Event::Incoming(Packet::SubAck(ack)) => {
                        let all = ack.return_codes.iter().all(|code| matches!(code, SubscribeReasonCode::Success(_)));
                        Incoming::Subscribed { all }
                    }
                    Event::Incoming(Packet::Publish(publish)) => {
                        let topic = String::from_utf8_lossy(&publish.topic).into_owned();
                        Incoming::Publish { topic, payload: publish.payload, pkid: publish.pkid }
                    }
                    _ => Incoming::Other,
                }
            }
        })
    }
}

/// The password in a file, without the line end.
pub(crate) fn password(path: &std::path::Path) -> Result<String, crate::config::ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        crate::config::ConfigError::new(format!("password_file: {}", path.display()), error.to_string())
    })?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

/// What to listen to, in this order: catalogues should be there before the data they decode.
struct Topics {
    plain: Vec<String>,
    shared_data: String,
    data: String,
}

/// Connects, for ever, and hands messages on; `link` holds the connection while one is up.
pub(crate) async fn run(
    broker: Broker,
    prefix: String,
    group: String,
    messages: mpsc::Sender<Message>,
    link: watch::Sender<Option<Link>>,
) {
    let data = format!("{prefix}/+/+/data/+");
    let topics = Topics {
        plain: vec![format!("{prefix}/+/+/cat"), format!("{prefix}/+/+/stat")],
        shared_data: format!("$share/{group}/{data}"),
        data,
    };
    let budget = Arc::new(Semaphore::new(BUDGET_KIB as usize));
    let (mut tries, mut said) = (0_u32, String::new());
    loop {
        let mut up = false;
        let mut error = session(Version::V5, &broker, &topics, &messages, &budget, &link, &mut up).await;
        if !up && error.may_be_the_version() {
            tracing::debug!(%error, "no MQTT 5; trying 3.1.1");
            error = session(Version::V4, &broker, &topics, &messages, &budget, &link, &mut up).await;
        }
        link.send_replace(None);
        if matches!(error, LinkError::Ending) {
            return;
        }
        tries = if up { 0 } else { tries.saturating_add(1) };
        let text = error.to_string();
        if up || text != said {
            tracing::warn!(
                broker = broker.host,
                port = broker.port,
                error = text,
                "no connection to the broker; trying again"
            );
            said = text;
        }
        if timeout(backoff(tries), messages.closed()).await.is_ok() {
            return;
        }
    }
}

/// Full jitter: random(0, min(3 s, 1 s · 2ⁿ)), so that receivers and agents do not storm a broker that comes back.
fn backoff(tries: u32) -> Duration {
    let most = Duration::from_secs(1).saturating_mul(1 << tries.min(5)).min(MAX_BACKOFF);
    most.mul_f64(fastrand::f64())
}

/// One connection, from CONNECT to its end. `up` says whether it ever stood.
async fn session(
    version: Version,
    broker: &Broker,
    topics: &Topics,
    messages: &mpsc::Sender<Message>,
    budget: &Arc<Semaphore>,
    link: &watch::Sender<Option<Link>>,
    up: &mut bool,
) -> LinkError {
    let (client, mut events) = match EventLoop::new(version, broker) {
        Ok(both) => both,
        Err(error) => return error,
    };
    let mut data = if version == Version::V5 { &topics.shared_data } else { &topics.data };
    let mut subscribed = 0;
    loop {
        let incoming = match events.poll().await {
            Ok(incoming) => incoming,
            Err(error) => return error,
        };
        match incoming {
            Incoming::Connected => {
                client.subscribe(&topics.plain).await;
                client.subscribe(std::slice::from_ref(data)).await;
            }
            Incoming::Subscribed { all } => {
                subscribed += 1;
                match (subscribed, all) {
                    (1, false) => return LinkError::Refused(topics.plain.join(", ")),
                    (1, true) => {}
                    (_, true) => {
                        *up = true;
                        tracing::info!(broker = broker.host, port = broker.port, ?version, data, "listening");
                        link.send_replace(Some(client.clone()));
                    }
                    (_, false) if *data == topics.shared_data => {
                        data = &topics.data;
                        client.subscribe(std::slice::from_ref(data)).await;
                    }
                    (_, false) => return LinkError::Refused(data.clone()),
                }
            }
            Incoming::Publish { topic, payload, pkid } => {
                let receipt = client.receipt(pkid);
                if payload.len() > MAX_MESSAGE {
                    tracing::warn!(topic, bytes = payload.len(), "message dropped: longer than {MAX_MESSAGE} bytes");
                    tokio::spawn(receipt.give()); // not waited for: it is this loop that sends it
                    continue;
                }
                let kib = u32::try_from(payload.len() / 1_024 + 1).unwrap_or(BUDGET_KIB);
                let Ok(share) = Arc::clone(budget).acquire_many_owned(kib).await else { return LinkError::Ending };
                if messages.send(Message { topic, payload, receipt, _budget: share }).await.is_err() {
                    return LinkError::Ending;
                }
            }
            Incoming::Other => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_grows_to_its_cap_and_no_further() {
        for tries in 0..40 {
            let most = Duration::from_secs(1 << tries.min(5)).min(MAX_BACKOFF);
            assert!((0..100).all(|_| backoff(tries) <= most), "after {tries} tries");
        }
    }
}
