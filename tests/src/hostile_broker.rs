//! An MQTT 3.1.1 broker that breaks its promises by a seeded plan, in this process.
//!
//! It routes like a broker (subscriptions, retained messages, wills), so the real agent and the real receiver can meet in
//! it; on top of that PUBACKs come late, twice, under a wrong id or never, messages are PUBACKed and forgotten, and
//! connections die. Links that are cut by time or bytes are [`Proxy`](crate::proxy::Proxy)'s part. Retransmission and
//! sessions it has none, like a broker that has just lost its disk.

mod reader;

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::BytesMut;
use rumqttc::mqttbytes::v4::{
    ConnAck, Connect, ConnectReturnCode, Packet, PubAck, PubRec, Publish, SubAck, SubscribeReasonCode, UnsubAck,
};
use rumqttc::mqttbytes::{Error, QoS, matches};
use tokio::io::AsyncWriteExt;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinHandle;

use crate::process::pause;
use reader::Reader;

/// Largest packet it takes: 2 MB, twice the agent's own default.
const LARGEST: usize = 2 << 20;

/// What becomes of a QoS 1 publish. Unless said otherwise the message itself is passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AckFault {
    /// No PUBACK, ever.
    Missing,
    /// PUBACK after [`Plan::late`].
    Late,
    /// PUBACK twice.
    Doubled,
    /// PUBACK under another packet id.
    WrongId,
    /// PUBACK, and the message is forgotten: what mosquitto does when it is killed.
    Forgotten,
    /// The connection is reset before the PUBACK, and the message is lost with it.
    ResetBefore,
    /// The connection is reset after the PUBACK.
    ResetAfter,
    /// Two bytes of the PUBACK, then the connection is reset.
    Half,
    /// A packet of a type that does not exist.
    Garbage,
    /// A PUBREC, as for QoS 2.
    Pubrec,
    /// Nothing is read any more from this connection, which stays open.
    StopsReading,
    /// The header of a packet of 256 MB.
    Huge,
}

impl AckFault {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::Missing,
        Self::Late,
        Self::Doubled,
        Self::WrongId,
        Self::Forgotten,
        Self::ResetBefore,
        Self::ResetAfter,
        Self::Half,
        Self::Garbage,
        Self::Pubrec,
        Self::StopsReading,
        Self::Huge,
    ];
}

/// What becomes of a CONNECT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ConnectFault {
    /// CONNACK "not authorised".
    Refused,
    /// No CONNACK; the connection stays open.
    Silent,
    /// Two bytes of a CONNACK, then nothing.
    Half,
    /// Something that is not MQTT.
    Garbage,
    /// CONNACK that claims a session nobody asked for.
    ClaimsSession,
    /// Reset.
    Reset,
    /// A CONNACK whose length never ends.
    BadLength,
    /// SUBACK "failure" for every topic.
    NoSubscription,
}

impl ConnectFault {
    /// All of them.
    pub const ALL: [Self; 8] = {
        use ConnectFault::{BadLength, ClaimsSession, Garbage, Half, NoSubscription, Refused, Reset, Silent};
        [Refused, Silent, Half, Garbage, ClaimsSession, Reset, BadLength, NoSubscription]
    };
}

/// When to misbehave, and how.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Chance comes from here alone.
    pub seed: u64,
    /// Which faults QoS 1 publishes of batches meet, each as likely as the other.
    pub acks: Vec<AckFault>,
    /// How many of 100 such publishes meet one.
    pub ack_percent: u8,
    /// After how many such publishes it keeps every promise, so that what waited comes through; `None`: never.
    pub publishes: Option<u64>,
    /// Which faults connections meet.
    pub connects: Vec<ConnectFault>,
    /// How many of 100 connections meet one.
    pub connect_percent: u8,
    /// How late [`AckFault::Late`] is.
    pub late: Duration,
}

impl Plan {
    /// Keeps every promise.
    #[must_use]
    pub fn honest() -> Self {
        Self { late: Duration::from_millis(500), ..Self::default() }
    }
}

/// What it saw and did.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// CONNECTs read.
    pub connections: u64,
    /// Publishes of batches read.
    pub batches: u64,
    /// How often each fault was played.
    pub acks: BTreeMap<AckFault, u64>,
    /// How often each fault was played at connect.
    pub connects: BTreeMap<ConnectFault, u64>,
    /// Packets that are not MQTT 3.1.1, or come in the wrong place.
    pub violations: Vec<String>,
}

/// The broker, on a loopback port of its own. Stops when dropped.
#[derive(Clone, Debug)]
pub struct HostileBroker {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    plan: Plan,
    state: Mutex<State>,
    accepting: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
struct State {
    rng: fastrand::Rng,
    record: Record,
    retained: BTreeMap<String, Publish>,
    subscribers: Vec<Subscriber>,
    next: u64,
}

/// One connection, or a tap of this process.
#[derive(Debug)]
struct Subscriber {
    connection: u64,
    filters: Vec<String>,
    out: UnboundedSender<Out>,
}

/// What a connection's writer does next.
#[derive(Debug)]
enum Out {
    Packet(Packet),
    Bytes(Vec<u8>),
    Reset,
}

/// A subscription from within this process.
#[derive(Debug)]
pub struct Tap(UnboundedReceiver<Out>);

impl Tap {
    /// The next message, `None` once the broker is gone.
    pub async fn next(&mut self) -> Option<Publish> {
        loop {
            if let Out::Packet(Packet::Publish(message)) = self.0.recv().await? {
                return Some(message);
            }
        }
    }
}

impl HostileBroker {
    /// Starts one.
    ///
    /// # Errors
    /// If loopback has no port left.
    pub async fn start(plan: Plan) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let state = State {
            rng: fastrand::Rng::with_seed(plan.seed),
            record: Record::default(),
            retained: BTreeMap::new(),
            subscribers: Vec::new(),
            next: 0,
        };
        let shared = Arc::new(Shared { plan, state: Mutex::new(state), accepting: Mutex::new(None) });
        let serving = Arc::downgrade(&shared);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Some(shared) = serving.upgrade() else { return };
                tokio::spawn(connection(stream, shared));
            }
        });
        *shared.accepting.lock().unwrap_or_else(PoisonError::into_inner) = Some(task);
        Ok(Self { address, shared })
    }

    /// As configuration files name it.
    #[must_use]
    pub fn url(&self) -> String {
        format!("mqtt://{}", self.address)
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it saw and did so far.
    #[must_use]
    pub fn record(&self) -> Record {
        self.shared.state().record.clone()
    }

    /// Publishes as if a client had.
    pub fn publish(&self, topic: &str, payload: Vec<u8>) {
        self.shared.state().route(&Publish::new(topic, QoS::AtMostOnce, payload));
    }

    /// Subscribes as if a client had, retained messages included.
    #[must_use]
    pub fn tap(&self, filter: &str) -> Tap {
        let (out, messages) = unbounded_channel();
        let mut state = self.shared.state();
        let connection = state.connection();
        state.subscribers.push(Subscriber { connection, filters: Vec::new(), out });
        state.subscribe(connection, filter);
        Tap(messages)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Some(task) = self.accepting.lock().unwrap_or_else(PoisonError::into_inner).take() {
            task.abort();
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Draws what becomes of the next CONNECT.
    fn connect_fault(&self) -> Option<ConnectFault> {
        let mut state = self.state();
        state.record.connections += 1;
        let fault = state.draw(&self.plan.connects, self.plan.connect_percent)?;
        *state.record.connects.entry(fault).or_default() += 1;
        Some(fault)
    }

    /// Draws what becomes of a publish.
    fn ack_fault(&self, publish: &Publish) -> Option<AckFault> {
        if !publish.topic.contains("/data/") {
            return None;
        }
        let mut state = self.state();
        state.record.batches += 1;
        if self.plan.publishes.is_some_and(|most| state.record.batches > most) {
            return None;
        }
        let fault = state.draw(&self.plan.acks, self.plan.ack_percent)?;
        *state.record.acks.entry(fault).or_default() += 1;
        Some(fault)
    }
}

impl State {
    fn draw<F: Copy>(&mut self, faults: &[F], percent: u8) -> Option<F> {
        (!faults.is_empty() && self.rng.u8(0..100) < percent).then(|| faults[self.rng.usize(0..faults.len())])
    }

    fn connection(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn route(&mut self, publish: &Publish) {
        if publish.retain {
            if publish.payload.is_empty() {
                self.retained.remove(&publish.topic);
            } else {
                self.retained.insert(publish.topic.clone(), publish.clone());
            }
        }
        for subscriber in &self.subscribers {
            if subscriber.filters.iter().any(|filter| matches(&publish.topic, filter)) {
                let message = Publish::from_bytes(&publish.topic, QoS::AtMostOnce, publish.payload.clone());
                // A subscriber that has just gone misses it, as QoS 0 does.
                let _ = subscriber.out.send(Out::Packet(Packet::Publish(message)));
            }
        }
    }

    fn subscribe(&mut self, connection: u64, filter: &str) {
        let Some(subscriber) = self.subscribers.iter_mut().find(|one| one.connection == connection) else { return };
        subscriber.filters.push(filter.to_owned());
        for message in self.retained.values().filter(|message| matches(&message.topic, filter)) {
            let mut message = Publish::from_bytes(&message.topic, QoS::AtMostOnce, message.payload.clone());
            message.retain = true;
            // As in `route`.
            let _ = subscriber.out.send(Out::Packet(Packet::Publish(message)));
        }
    }
}

/// One connection, from CONNECT to its end.
async fn connection(stream: TcpStream, shared: Arc<Shared>) {
    // Refused only on a socket that is already gone.
    let _ = stream.set_nodelay(true);
    let (reading, writing) = stream.into_split();
    let mut reader = Reader { stream: reading, buffer: BytesMut::new() };
    let Ok(Packet::Connect(connect)) = reader.packet().await else {
        shared.state().record.violations.push("the first packet is no CONNECT of MQTT 3.1.1".to_owned());
        return;
    };
    let (out, orders) = unbounded_channel();
    let writer = tokio::spawn(write(writing, orders));
    let id = {
        let mut state = shared.state();
        let id = state.connection();
        state.subscribers.push(Subscriber { connection: id, filters: Vec::new(), out: out.clone() });
        id
    };
    let clean = serve(&mut reader, &out, &connect, id, &shared).await;
    drop(out);
    {
        let mut state = shared.state();
        state.subscribers.retain(|one| one.connection != id);
        if let (false, Some(will)) = (clean, &connect.last_will) {
            let mut message = Publish::from_bytes(&will.topic, will.qos, will.message.clone());
            message.retain = will.retain;
            state.route(&message);
        }
    }
    // The writer ends by itself once its orders are done.
    let _ = writer.await;
}

/// Answers until the connection ends; true after a DISCONNECT.
async fn serve(
    reader: &mut Reader,
    out: &UnboundedSender<Out>,
    connect: &Connect,
    id: u64,
    shared: &Arc<Shared>,
) -> bool {
    // A send fails only when the writer has died with the connection; the next read sees that too.
    let send = |order: Out| drop(out.send(order));
    let accepted = |session| Out::Packet(Packet::ConnAck(ConnAck::new(ConnectReturnCode::Success, session)));
    let fault = shared.connect_fault();
    match fault {
        None | Some(ConnectFault::NoSubscription) => send(accepted(false)),
        Some(ConnectFault::ClaimsSession) => send(accepted(true)),
        Some(ConnectFault::Refused) => {
            send(Out::Packet(Packet::ConnAck(ConnAck::new(ConnectReturnCode::NotAuthorized, false))));
            return false;
        }
        Some(ConnectFault::Silent) => return reader.drain().await,
        Some(ConnectFault::Half) => {
            send(Out::Bytes(vec![0x20, 0x02]));
            return reader.drain().await;
        }
        Some(ConnectFault::Garbage) => send(Out::Bytes(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec())),
        Some(ConnectFault::Reset) => {
            send(Out::Reset);
            return false;
        }
        Some(ConnectFault::BadLength) => send(Out::Bytes(vec![0x20, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF])),
    }
    loop {
        match reader.packet().await {
            Ok(Packet::Publish(publish)) => {
                let fault = shared.ack_fault(&publish);
                if !matches!(fault, Some(AckFault::Forgotten | AckFault::ResetBefore)) {
                    shared.state().route(&publish);
                }
                if publish.qos == QoS::AtMostOnce {
                    continue;
                }
                let ack = |pkid| Out::Packet(Packet::PubAck(PubAck::new(pkid)));
                match fault {
                    None | Some(AckFault::Forgotten) => send(ack(publish.pkid)),
                    Some(AckFault::Missing) => {}
                    Some(AckFault::Late) => {
                        let (out, late, pkid) = (out.clone(), shared.plan.late, publish.pkid);
                        tokio::spawn(async move {
                            pause(late).await;
                            // The connection may have gone meanwhile.
                            let _ = out.send(Out::Packet(Packet::PubAck(PubAck::new(pkid))));
                        });
                    }
                    Some(AckFault::Doubled) => {
                        send(ack(publish.pkid));
                        send(ack(publish.pkid));
                    }
                    Some(AckFault::WrongId) => send(ack(publish.pkid.wrapping_add(7).max(1))),
                    Some(AckFault::ResetBefore) => {
                        send(Out::Reset);
                        return false;
                    }
                    Some(AckFault::ResetAfter) => {
                        send(ack(publish.pkid));
                        send(Out::Reset);
                        return false;
                    }
                    Some(AckFault::Half) => {
                        send(Out::Bytes(vec![0x40, 0x02]));
                        send(Out::Reset);
                        return false;
                    }
                    Some(AckFault::Garbage) => send(Out::Bytes(vec![0xF0, 0x03, 1, 2, 3])),
                    Some(AckFault::Pubrec) => send(Out::Packet(Packet::PubRec(PubRec::new(publish.pkid)))),
                    Some(AckFault::StopsReading) => std::future::pending().await,
                    Some(AckFault::Huge) => send(Out::Bytes(vec![0x30, 0xFF, 0xFF, 0xFF, 0x7F, 0, 4])),
                }
            }
            Ok(Packet::Subscribe(subscribe)) => {
                let refused = fault == Some(ConnectFault::NoSubscription);
                let granted = SubscribeReasonCode::Success(QoS::AtMostOnce);
                let code = if refused { SubscribeReasonCode::Failure } else { granted };
                send(Out::Packet(Packet::SubAck(SubAck::new(subscribe.pkid, vec![code; subscribe.filters.len()]))));
                let mut state = shared.state();
                subscribe.filters.iter().filter(|_| !refused).for_each(|filter| state.subscribe(id, &filter.path));
            }
            Ok(Packet::Unsubscribe(unsubscribe)) => {
                send(Out::Packet(Packet::UnsubAck(UnsubAck::new(unsubscribe.pkid))))
            }
            Ok(Packet::PingReq) => send(Out::Packet(Packet::PingResp)),
            Ok(Packet::Disconnect) => return true,
            // A client may well give up on a peer like this one.
            Ok(Packet::PubRel(_) | Packet::PubAck(_)) => {}
            Ok(other) => {
                let client = &connect.client_id;
                shared.state().record.violations.push(format!("{client} sent what only a broker sends: {other:?}"));
                return false;
            }
            Err(Error::Io(_)) => return false,
            Err(error) => {
                shared.state().record.violations.push(format!("{} sent no MQTT: {error}", connect.client_id));
                return false;
            }
        }
    }
}

/// The way out: does its orders until the last sender is gone.
async fn write(mut stream: OwnedWriteHalf, mut orders: UnboundedReceiver<Out>) -> io::Result<()> {
    while let Some(order) = orders.recv().await {
        match order {
            Out::Packet(packet) => {
                let mut bytes = BytesMut::new();
                packet.write(&mut bytes, LARGEST).map_err(io::Error::other)?;
                stream.write_all(&bytes).await?;
            }
            Out::Bytes(bytes) => stream.write_all(&bytes).await?,
            // The reading half is dropped next, and what then closes is a reset.
            Out::Reset => return stream.as_ref().set_zero_linger(),
        }
    }
    stream.shutdown().await
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;
    use crate::process::eventually;

    const PATIENCE: Duration = Duration::from_secs(30);

    /// A client that connects and publishes one message at QoS 1; gives what the broker said: so much at the least, and
    /// its faults are played. Time is given only to what should not come.
    async fn publish(broker: &HostileBroker, least: usize) -> Vec<u8> {
        let mut stream = TcpStream::connect(broker.address()).await.expect("it listens");
        let mut bytes = BytesMut::new();
        let mut message = Publish::new("edge/v1/s/a/data/l", QoS::AtLeastOnce, *b"body");
        message.pkid = 3;
        for packet in [Packet::Connect(Connect::new("client")), Packet::Publish(message)] {
            packet.write(&mut bytes, LARGEST).expect("a small packet");
        }
        stream.write_all(&bytes).await.expect("it reads");
        let mut said = BytesMut::new();
        let reading =
            async { while said.len() < least && stream.read_buf(&mut said).await.is_ok_and(|read| read > 0) {} };
        tokio::time::timeout(PATIENCE, reading).await.expect("it answers");
        let faults = broker.shared.plan.acks.len() + broker.shared.plan.connects.len();
        eventually("its faults", PATIENCE, async || {
            let record = broker.record();
            (record.acks.values().chain(record.connects.values()).sum::<u64>() == faults as u64).then_some(())
        })
        .await;
        let more = async { while stream.read_buf(&mut said).await.is_ok_and(|read| read > 0) {} };
        // Silence is an answer too.
        let _ = tokio::time::timeout(Duration::from_millis(100), more).await;
        said.to_vec()
    }

    /// What it says, of which so many bytes are waited for, and whether it passed the message on.
    async fn with(acks: Vec<AckFault>, connects: Vec<ConnectFault>, least: usize) -> (Vec<u8>, bool) {
        let late = Duration::from_millis(5);
        let plan = Plan { seed: 1, acks, ack_percent: 100, connects, connect_percent: 100, late, ..Plan::honest() };
        let broker = HostileBroker::start(plan).await.expect("loopback");
        let mut tap = broker.tap("edge/v1/+/+/data/+");
        let said = publish(&broker, least).await;
        let passed_on = tokio::time::timeout(Duration::from_millis(1), tap.next()).await.is_ok();
        (said, passed_on)
    }

    const CONNACK: [u8; 4] = [0x20, 2, 0, 0];
    const PUBACK: [u8; 4] = [0x40, 2, 0, 3];

    #[tokio::test]
    async fn each_fault_is_what_it_says() {
        let right = [CONNACK, PUBACK].concat();
        assert_eq!(with(vec![], vec![], 8).await, (right.clone(), true));
        assert_eq!(with(vec![AckFault::Missing], vec![], 4).await, (CONNACK.to_vec(), true));
        assert_eq!(with(vec![AckFault::Late], vec![], 8).await, (right.clone(), true));
        assert_eq!(with(vec![AckFault::Doubled], vec![], 12).await, ([CONNACK, PUBACK, PUBACK].concat(), true));
        assert_eq!(with(vec![AckFault::WrongId], vec![], 8).await.0[4..], [0x40, 2, 0, 10]);
        assert_eq!(with(vec![AckFault::Forgotten], vec![], 8).await, (right, false), "PUBACKed and gone");
        assert!(!with(vec![AckFault::ResetBefore], vec![], 0).await.1);
        assert_eq!(with(vec![AckFault::Pubrec], vec![], 8).await.0[4..], [0x50, 2, 0, 3]);
        assert_eq!(with(vec![AckFault::Huge], vec![], 6).await.0[4..6], [0x30, 0xFF]);
        assert_eq!(with(vec![], vec![ConnectFault::Refused], 4).await, (vec![0x20, 2, 0, 5], false));
        assert_eq!(with(vec![], vec![ConnectFault::Silent], 0).await, (vec![], false));
        assert_eq!(with(vec![], vec![ConnectFault::ClaimsSession], 4).await.0[..4], [0x20, 2, 1, 0]);
    }

    #[tokio::test]
    async fn retained_messages_and_wills_are_kept() {
        let broker = HostileBroker::start(Plan::honest()).await.expect("loopback");
        let mut connect = Connect::new("client");
        let will = rumqttc::mqttbytes::v4::LastWill::new("edge/v1/s/a/stat", *b"gone", QoS::AtLeastOnce, true);
        connect.last_will = Some(will);
        let mut bytes = BytesMut::new();
        Packet::Connect(connect).write(&mut bytes, LARGEST).expect("a small packet");
        let mut stream = TcpStream::connect(broker.address()).await.expect("it listens");
        stream.write_all(&bytes).await.expect("it reads");
        let mut tap = broker.tap("edge/v1/+/+/stat");
        let mut connack = [0; 4];
        stream.read_exact(&mut connack).await.expect("CONNACK");
        drop(stream);
        assert_eq!(tap.next().await.expect("the will").payload, "gone");
        let retained = broker.tap("edge/v1/s/a/stat").next().await.expect("the retained will");
        assert!(retained.retain);
    }
}
