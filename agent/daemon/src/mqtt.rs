//! The wire to the central broker: MQTT 3.1.1 over rumqttc. The one file of the uplink that knows the MQTT library.
//!
//! rumqttc drops what waits in its client when a broker comes back without its session, and stalls for good after a
//! hundred missing PUBACKs. So nothing is entrusted to it: each connection has a fresh client and event loop and a clean
//! session, the pipeline hands out at most a window of batches, and what is not acknowledged is read from the spool again
//! (contract rule 5). The event loop runs in a task of its own and is never raced while it connects.
//!
//! Every event bears the number of its connection: what an old one still has to say is not heard.

use std::sync::Arc;
use std::time::Duration;

use rumqttc::{
    AsyncClient, ConnectReturnCode, ConnectionError, Event, EventLoop, LastWill, MqttOptions, NetworkOptions, Outgoing,
    Packet, QoS, StateError, SubscribeFilter, SubscribeReasonCode, TlsConfiguration, TlsError, Transport,
};
use rustls::ClientConfig;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tributary_core::uplink::{Channel, Publish};

use crate::config::{AgentConfig, Endpoint, UplinkConfig};
use crate::tls;

/// How long a connection may take to stand.
const CONNECT_TIMEOUT: u64 = 10;
/// Publishes that may wait for the event loop: the largest window, resends, status and catalogue.
const REQUESTS: usize = 512;
/// Longest packet taken in: an Ack with 1,000 refused seqs and as many ranges is below 64 KB.
const INCOMING: usize = 256 * 1024;
/// How long the goodbye on a connection may take that is replaced.
const GOODBYE: Duration = Duration::from_millis(500);
/// What topic and header add to a payload.
const OVERHEAD: usize = 1024;

/// Why a connection is dropped that brings nothing.
pub const NO_PROGRESS: &str = "no acknowledgement came in time, or a new epoch began; the connection is made anew";
/// Why one is dropped that is no longer of this identity.
pub const RENEWED: &str = "the certificates were renewed; the connection is made anew";

/// Why one is dropped that is not as configured.
pub const CHANGED: &str = "the configuration of the uplink has changed; the connection is made anew";

/// The client's side of TLS, or why there is none.
pub type Tls = Result<Arc<ClientConfig>, String>;

/// What the wire says.
#[derive(Debug)]
pub enum WireEvent {
    /// The connection stands and is subscribed.
    Connected,
    /// It ended, or did not come about.
    Disconnected(String),
    /// The broker has the message of batch `seq` (0: of none).
    Puback(u64),
    /// A message on `…/ack`.
    Ack(Vec<u8>),
    /// A message on `…/ctl`.
    Control(Vec<u8>),
}

/// The wire. Events come by the receiver that [`Wire::new`] gives.
#[derive(Debug)]
pub struct Wire {
    endpoint: Endpoint,
    client_id: String,
    base: String,
    config: UplinkConfig,
    connection: u64,
    client: Option<AsyncClient>,
    task: Option<JoinHandle<()>>,
    seqs: Option<mpsc::UnboundedSender<u64>>,
    events: mpsc::Sender<(u64, WireEvent)>,
}

impl Wire {
    /// A wire without a connection.
    #[must_use]
    pub fn new(
        agent: &AgentConfig,
        uplink: &UplinkConfig,
        endpoint: Endpoint,
    ) -> (Self, mpsc::Receiver<(u64, WireEvent)>) {
        let (events, received) = mpsc::channel(REQUESTS);
        let wire = Self {
            endpoint,
            client_id: format!("{}-{}", agent.site, agent.id),
            base: base(uplink, agent),
            config: uplink.clone(),
            connection: 0,
            client: None,
            task: None,
            seqs: None,
            events,
        };
        (wire, received)
    }

    /// Goes on with these settings, and says whether they are others. Then the connection is made anew; `Disconnected`
    /// follows.
    pub fn reload(&mut self, uplink: &UplinkConfig, endpoint: Endpoint, agent: &AgentConfig) -> bool {
        if *uplink == self.config {
            return false;
        }
        self.endpoint = endpoint;
        self.base = base(uplink, agent);
        self.config = uplink.clone();
        if self.client.is_some() {
            self.leave(CHANGED);
        }
        true
    }

    /// Whether an event is of the connection in force.
    #[must_use]
    pub fn is_current(&self, connection: u64) -> bool {
        connection == self.connection
    }

    /// Dials, with `will` on the status topic; `tls` is for an endpoint that has it. Every call is answered by `Connected`
    /// or `Disconnected`.
    pub fn connect(&mut self, will: Vec<u8>, tls: Option<Tls>) {
        self.drop_connection();
        let options = match self.options(will, tls) {
            Ok(options) => options,
            Err(error) => return self.say(WireEvent::Disconnected(error)),
        };
        let (client, mut event_loop) = AsyncClient::new(options, REQUESTS);
        let mut network = NetworkOptions::new();
        network.set_tcp_nodelay(true);
        network.set_connection_timeout(CONNECT_TIMEOUT);
        event_loop.set_network_options(network);
        let (seqs, order) = mpsc::unbounded_channel();
        let session = Session {
            connection: self.connection,
            broker: format!("{}:{}", self.endpoint.host, self.endpoint.port),
            ack: format!("{}/ack", self.base),
            control: format!("{}/ctl", self.base),
            client: client.clone(),
            order,
            waiting: std::collections::BTreeMap::new(),
            events: self.events.clone(),
        };
        self.task = Some(tokio::spawn(session.run(event_loop)));
        self.client = Some(client);
        self.seqs = Some(seqs);
    }

    fn options(&self, will: Vec<u8>, tls: Option<Tls>) -> Result<MqttOptions, String> {
        let mut options = MqttOptions::new(&self.client_id, &self.endpoint.host, self.endpoint.port);
        options
            .set_clean_session(true)
            .set_keep_alive(self.config.keep_alive.duration().max(Duration::from_secs(1)))
            .set_max_packet_size(
                INCOMING,
                usize::try_from(self.config.max_packet.bytes()).unwrap_or(usize::MAX) + OVERHEAD,
            )
            .set_last_will(LastWill::new(self.topic(Channel::Status), will, QoS::AtLeastOnce, true));
        if let Some(user) = &self.config.username {
            let password = self.config.password_file.as_ref().map(|file| tls::password(file.path())).transpose();
            options.set_credentials(user, password.map_err(|error| error.to_string())?.unwrap_or_default());
        }
        if self.endpoint.tls {
            let tls = tls.ok_or("mqtts:// without certificates")??;
            options.set_transport(Transport::Tls(TlsConfiguration::Rustls(tls)));
        }
        Ok(options)
    }

    fn topic(&self, channel: Channel) -> String {
        format!("{}/{}", self.base, channel.suffix())
    }

    /// Hands a message to the connection, if there is one. A client whose channel is full makes no progress: the pipeline
    /// notices by the missing Acks, and the message comes again.
    pub fn publish(&mut self, publish: Publish) {
        let topic = self.topic(publish.channel);
        let (Some(client), Some(seqs)) = (&self.client, &self.seqs) else { return };
        if client.try_publish(topic, QoS::AtLeastOnce, publish.channel.retained(), publish.payload).is_ok() {
            // In the order of publishing: the event loop gives packet ids in the same order.
            let _ = seqs.send(publish.seq);
        }
    }

    /// Drops the connection; `Disconnected` with the reason follows.
    pub fn abort(&mut self, reason: &str) {
        self.drop_connection();
        self.say(WireEvent::Disconnected(reason.into()));
    }

    /// Says goodbye on a connection that is in order, so that the broker tells nobody that this agent is gone, and drops it;
    /// `Disconnected` with the reason follows at once.
    pub fn leave(&mut self, reason: &str) {
        if let Some((client, mut task)) = self.client.take().zip(self.task.take()) {
            tokio::spawn(async move {
                let goodbye = async { client.try_disconnect().is_ok() && (&mut task).await.is_ok() };
                if tokio::time::timeout(GOODBYE, goodbye).await != Ok(true) {
                    task.abort();
                }
            });
        }
        self.abort(reason);
    }

    fn drop_connection(&mut self) {
        self.connection += 1;
        self.client = None;
        self.seqs = None;
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }

    /// The channel has room for what a handful of connections say; one that is full is being read.
    fn say(&self, event: WireEvent) {
        if let Err(mpsc::error::TrySendError::Full(event)) = self.events.try_send((self.connection, event)) {
            let events = self.events.clone();
            tokio::spawn(async move { events.send(event).await });
        }
    }

    /// Says goodbye after everything published and waits until that is on its way.
    pub async fn disconnect(&mut self) {
        let Some(client) = self.client.take() else { return };
        if client.disconnect().await.is_ok()
            && let Some(task) = self.task.take()
        {
            let _ = task.await;
        }
    }
}

/// What all topics begin with.
fn base(uplink: &UplinkConfig, agent: &AgentConfig) -> String {
    format!("{}/{}/{}", uplink.prefix, agent.site, agent.id)
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.drop_connection();
    }
}

/// One connection.
struct Session {
    connection: u64,
    /// Who it leads to, for people.
    broker: String,
    ack: String,
    control: String,
    client: AsyncClient,
    /// Seqs of the publishes, in their order.
    order: mpsc::UnboundedReceiver<u64>,
    /// Seqs by packet id.
    waiting: std::collections::BTreeMap<u16, u64>,
    events: mpsc::Sender<(u64, WireEvent)>,
}

impl Session {
    async fn run(mut self, mut event_loop: EventLoop) {
        // A broker that takes the connection and then says nothing is no broker. Giving up on a poll is safe here:
        // the connection is given up with it.
        let patience = Duration::from_secs(CONNECT_TIMEOUT);
        let mut subscribed = false;
        loop {
            let polled = if subscribed {
                event_loop.poll().await
            } else {
                let polled = tokio::time::timeout(patience, event_loop.poll()).await;
                polled.unwrap_or(Err(ConnectionError::NetworkTimeout))
            };
            let event = match polled {
                Ok(event) => event,
                Err(error) => {
                    let _ = self.say(WireEvent::Disconnected(self.reason(&error))).await;
                    return;
                }
            };
            subscribed |= matches!(event, Event::Incoming(Packet::SubAck(_)));
            let said = match event {
                Event::Incoming(Packet::ConnAck(_)) => self.subscribe(),
                // Without the topic of the Acks nothing would ever be freed.
                Event::Incoming(Packet::SubAck(ack))
                    if ack.return_codes.first() == Some(&SubscribeReasonCode::Failure) =>
                {
                    let reason = format!("{} does not let this agent subscribe to {}", self.broker, self.ack);
                    let _ = self.say(WireEvent::Disconnected(reason)).await;
                    return;
                }
                Event::Incoming(Packet::SubAck(_)) => Some(WireEvent::Connected),
                Event::Incoming(Packet::Publish(message)) if message.topic == self.ack => {
                    Some(WireEvent::Ack(message.payload.into()))
                }
                Event::Incoming(Packet::Publish(message)) if message.topic == self.control => {
                    Some(WireEvent::Control(message.payload.into()))
                }
                Event::Incoming(Packet::PubAck(ack)) => self.waiting.remove(&ack.pkid).map(WireEvent::Puback),
                Event::Outgoing(Outgoing::Publish(packet)) => {
                    if let Some(seq) = self.order.recv().await {
                        self.waiting.insert(packet, seq);
                    }
                    None
                }
                Event::Incoming(_) | Event::Outgoing(_) => None,
            };
            if let Some(said) = said
                && !self.say(said).await
            {
                return;
            }
        }
    }

    fn subscribe(&self) -> Option<WireEvent> {
        // QoS 0 on acknowledgements: on NATS each QoS 1 subscription is a consumer, and an Ack is repeated anyway.
        let filters = [
            SubscribeFilter::new(self.ack.clone(), QoS::AtMostOnce),
            SubscribeFilter::new(self.control.clone(), QoS::AtLeastOnce),
        ];
        let failed = self.client.try_subscribe_many(filters).err()?;
        Some(WireEvent::Disconnected(failed.to_string()))
    }

    async fn say(&self, event: WireEvent) -> bool {
        self.events.send((self.connection, event)).await.is_ok()
    }

    /// What went wrong, without what varies from try to try.
    fn reason(&self, error: &ConnectionError) -> String {
        let what = match error {
            ConnectionError::NetworkTimeout
            | ConnectionError::FlushTimeout
            | ConnectionError::MqttState(StateError::AwaitPingResp) => "no answer".into(),
            ConnectionError::ConnectionRefused(
                code @ (ConnectReturnCode::BadUserNamePassword | ConnectReturnCode::NotAuthorized),
            ) => {
                format!("the login is refused ({code:?}): user name, password or certificate is not one it knows")
            }
            ConnectionError::ConnectionRefused(code) => format!("the login is refused ({code:?})"),
            ConnectionError::Tls(TlsError::Io(error)) => match io_reason(error) {
                reason if reason == CLOSED => format!("{CLOSED} in the TLS handshake: is this its port for TLS?"),
                reason => reason,
            },
            ConnectionError::Tls(TlsError::TLS(error)) => tls::handshake(error),
            ConnectionError::Io(error)
            | ConnectionError::MqttState(
                StateError::Io(error) | StateError::Deserialization(rumqttc::mqttbytes::Error::Io(error)),
            ) => io_reason(error),
            ConnectionError::MqttState(StateError::ConnectionAborted) => CLOSED.into(),
            ConnectionError::MqttState(error) => error.to_string(),
            other => other.to_string(),
        };
        format!("{}: {what}", self.broker)
    }
}

const CLOSED: &str = "the broker, or something on the way to it, closed the connection";

/// One way to say it for the many in which a connection ends.
fn io_reason(error: &std::io::Error) -> String {
    use std::io::ErrorKind;
    if let Some(error) = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>()) {
        return tls::handshake(error);
    }
    match error.kind() {
        ErrorKind::ConnectionReset
        | ErrorKind::ConnectionAborted
        | ErrorKind::BrokenPipe
        | ErrorKind::UnexpectedEof => CLOSED.into(),
        _ => error.to_string(),
    }
}
