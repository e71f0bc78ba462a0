//! The MQTT driver against a broker of the test's own, which can be as hostile as it likes.
#![allow(clippy::unwrap_used, reason = "a test that panics fails")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use rumqttc::{ConnAck, ConnectReturnCode, Packet, PubAck, Publish, QoS, SubAck, SubscribeReasonCode};
use support::{Random, RealClock};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tributary_protocols::mqtt::config::resolve;
use tributary_protocols::mqtt::driver::{self, Access, Arrival, BrokerStatus, Receipt, Wires};
use tributary_protocols::reading::{Sample, StampedBy};
use tributary_protocols::time::Wall;

const LONG: Duration = Duration::from_secs(20);

/// A running session, and the socket that its connections come to.
struct Rig {
    listener: TcpListener,
    arrivals: mpsc::Receiver<Arrival>,
    receipts: mpsc::UnboundedSender<Receipt>,
    status: watch::Receiver<BrokerStatus>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

async fn start(keys: &str, capacity: usize) -> Rig {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let text = format!(
        "name='cell'\nurl='mqtt://{}'\nreconnect_max='100ms'\n{keys}\n\
         [[point]]\nname='temp/{{1}}'\ntopic='sensors/+/temp'\nvalue='/value'\ntime='/ts'\ntype='f64'\n\
         [[point]]\nname='count'\ntopic='count'\ntype='i64'\n",
        listener.local_addr().unwrap()
    );
    let spec = resolve(&toml::from_str(&text).unwrap(), "mqtt[0]", "gw-1").unwrap();
    let (arrival_sender, arrivals) = mpsc::channel(capacity);
    let (receipts, receipt_receiver) = mpsc::unbounded_channel();
    let (status_sender, status) = watch::channel(BrokerStatus::default());
    let (stop, shutdown) = watch::channel(false);
    let wires = Wires { arrivals: arrival_sender, receipts: receipt_receiver, status: status_sender, shutdown };
    let task = tokio::spawn(driver::run(spec, Access::default(), Arc::new(RealClock::new()), 7, wires));
    Rig { listener, arrivals, receipts, status, stop, task }
}

impl Rig {
    async fn arrival(&mut self) -> Arrival {
        tokio::time::timeout(LONG, self.arrivals.recv()).await.expect("no arrival").expect("the session has ended")
    }

    async fn settle(&mut self, count: usize) {
        for _ in 0..count {
            let arrival = self.arrival().await;
            self.receipts.send(arrival.receipt.unwrap()).unwrap();
        }
    }

    async fn peer(&self) -> Peer {
        let (stream, _) = tokio::time::timeout(LONG, self.listener.accept()).await.expect("no connection").unwrap();
        Peer { stream, buffer: BytesMut::new() }
    }

    /// A connection as a good broker makes it.
    async fn connected(&self) -> Peer {
        let mut peer = self.peer().await;
        let Packet::Connect(connect) = peer.recv().await else { panic!("no CONNECT") };
        assert_eq!((connect.client_id.as_str(), connect.clean_session), ("tributary-gw-1-cell", false));
        peer.send(Packet::ConnAck(ConnAck::new(ConnectReturnCode::Success, true))).await;
        let Packet::Subscribe(subscribe) = peer.recv().await else { panic!("no SUBSCRIBE") };
        let filters: Vec<_> = subscribe.filters.iter().map(|filter| (filter.path.as_str(), filter.qos)).collect();
        assert_eq!(filters, [("sensors/+/temp", QoS::AtLeastOnce), ("count", QoS::AtLeastOnce)]);
        let granted = vec![SubscribeReasonCode::Success(QoS::AtLeastOnce); 2];
        peer.send(Packet::SubAck(SubAck::new(subscribe.pkid, granted))).await;
        peer
    }

    async fn end(self) {
        self.stop.send_replace(true);
        tokio::time::timeout(LONG, self.task).await.expect("it does not end").expect("the driver has panicked");
    }
}

/// The broker's end of a connection.
struct Peer {
    stream: TcpStream,
    buffer: BytesMut,
}

impl Peer {
    async fn recv(&mut self) -> Packet {
        tokio::time::timeout(LONG, async {
            loop {
                match Packet::read(&mut self.buffer, 1 << 20) {
                    Ok(packet) => return packet,
                    Err(_) => assert!(self.stream.read_buf(&mut self.buffer).await.unwrap() > 0, "closed"),
                }
            }
        })
        .await
        .expect("nothing comes")
    }

    async fn send(&mut self, packet: Packet) {
        let mut bytes = BytesMut::new();
        packet.write(&mut bytes, 1 << 24).unwrap();
        self.stream.write_all(&bytes).await.unwrap();
    }

    async fn publish(&mut self, id: u16, topic: &str, payload: impl Into<Vec<u8>>) {
        let mut publish = Publish::new(topic, QoS::AtLeastOnce, payload);
        publish.pkid = id;
        self.send(Packet::Publish(publish)).await;
    }
}

fn puback(id: u16) -> Packet {
    Packet::PubAck(PubAck::new(id))
}

#[tokio::test]
async fn a_message_is_acknowledged_when_its_receipt_comes_back() {
    let mut rig = start("", 8).await;
    let mut broker = rig.connected().await;
    broker.publish(1, "sensors/a/temp", r#"{"value": 21.5, "ts": 1700000000}"#).await;
    broker.publish(2, "count", "7").await;
    let (first, second) = (rig.arrival().await, rig.arrival().await);
    let reading = &first.readings[0];
    assert_eq!(
        (&*reading.name, reading.at, reading.stamped_by),
        ("temp/a", Wall(1_700_000_000_000), StampedBy::Source)
    );
    assert_eq!(reading.sample, Sample::good(21.5_f64.to_bits()));
    assert_eq!((second.readings[0].rule, &second.readings[0].sample), (1, &Sample::good(7)));
    // One without a usable reading is acknowledged at once, before those that wait.
    broker.publish(3, "sensors/a/temp", "{").await;
    assert_eq!(broker.recv().await, puback(3));
    rig.receipts.send(second.receipt.unwrap()).unwrap();
    assert_eq!(broker.recv().await, puback(2));
    rig.receipts.send(first.receipt.unwrap()).unwrap();
    assert_eq!(broker.recv().await, puback(1));
    let status = rig.status.borrow().clone();
    assert!(status.connected && status.connections == 1);
    assert_eq!((status.counters.messages, status.counters.readings, status.counters.malformed), (3, 2, 1));
    rig.end().await;
}

#[tokio::test]
async fn a_receipt_ends_with_its_connection() {
    let mut rig = start("", 8).await;
    let mut broker = rig.connected().await;
    broker.publish(1, "count", "1").await;
    broker.publish(2, "count", "2").await;
    let (old, _) = (rig.arrival().await, rig.arrival().await);
    drop(broker);
    let mut broker = rig.connected().await;
    // The session's messages come again, and the broker is free to give number 1 to another one.
    let mut again = Publish::new("count", QoS::AtLeastOnce, "2");
    (again.pkid, again.dup) = (1, true);
    broker.send(Packet::Publish(again)).await;
    let new = rig.arrival().await;
    assert!(new.duplicate);
    rig.receipts.send(old.receipt.unwrap()).unwrap();
    broker.publish(9, "count", "3").await;
    rig.settle(1).await;
    assert_eq!(broker.recv().await, puback(9), "the old receipt for number 1 is worth nothing here");
    rig.receipts.send(new.receipt.unwrap()).unwrap();
    assert_eq!(broker.recv().await, puback(1));
    rig.end().await;
}

#[tokio::test]
async fn a_hostile_broker_stalls_nothing() {
    let seed = 4;
    println!("seed {seed}");
    let mut random = Random::new(seed);
    let mut rig = start("keep_alive='1s'", 8).await;
    for ill in 0..8 {
        let mut broker = match ill {
            0 | 1 => {
                let mut broker = rig.peer().await;
                broker.recv().await;
                let answer = match ill {
                    0 => Packet::ConnAck(ConnAck::new(ConnectReturnCode::BadUserNamePassword, false)),
                    _ => puback(1),
                };
                broker.send(answer).await;
                broker
            }
            _ => rig.connected().await,
        };
        match ill {
            2 => {
                let garbage: Vec<u8> = (0..500).map(|_| u8::try_from(random.below(256)).unwrap()).collect();
                broker.stream.write_all(&garbage).await.unwrap();
            }
            // A message that claims 200 MB.
            3 => broker.stream.write_all(&[0x32, 0x80, 0x80, 0x80, 0x60, 0, 1, b'x']).await.unwrap(),
            // Packets that only a client may send, or that answer nothing.
            4 => broker.send(puback(77)).await,
            5 => broker.stream.write_all(&[0x10, 0x00]).await.unwrap(),
            // A topic that is not UTF-8.
            6 => broker.stream.write_all(&[0x32, 6, 0, 2, 0xFF, 0xFE, 0, 1]).await.unwrap(),
            _ => {}
        }
        // Cut in the middle of a packet.
        let _ = broker.stream.write_all(&[0x32, 20, 0]).await;
    }
    let mut broker = rig.connected().await;
    broker.publish(5, "count", "1").await;
    rig.settle(1).await;
    while broker.recv().await != puback(5) {}
    assert!(rig.status.borrow().last_error.is_some());
    rig.end().await;
}

#[tokio::test]
async fn a_refused_subscription_is_told() {
    let mut rig = start("", 8).await;
    let mut broker = rig.peer().await;
    broker.recv().await;
    broker.send(Packet::ConnAck(ConnAck::new(ConnectReturnCode::Success, false))).await;
    let Packet::Subscribe(subscribe) = broker.recv().await else { panic!("no SUBSCRIBE") };
    let granted = vec![SubscribeReasonCode::Success(QoS::AtLeastOnce), SubscribeReasonCode::Failure];
    broker.send(Packet::SubAck(SubAck::new(subscribe.pkid, granted))).await;
    broker.publish(1, "sensors/a/temp", r#"{"value": 1, "ts": 1700000000}"#).await;
    rig.settle(1).await;
    assert_eq!(broker.recv().await, puback(1), "what is granted is read");
    let status = rig.status.borrow().clone();
    assert!(!status.connected && status.last_error.unwrap().contains("refuses a subscription"));
    rig.end().await;
}

#[tokio::test]
async fn a_large_message_costs_itself_only() {
    let mut rig = start("max_payload='1KB'", 8).await;
    let mut broker = rig.connected().await;
    broker.publish(1, "count", vec![b'1'; 500_000]).await;
    assert_eq!(broker.recv().await, puback(1));
    broker.publish(2, "count", "2").await;
    rig.settle(1).await;
    assert_eq!(broker.recv().await, puback(2));
    assert_eq!(rig.status.borrow().counters.too_large, 1);
    rig.end().await;
}

#[tokio::test]
async fn a_slow_pipeline_loses_nothing() {
    let mut rig = start("", 1).await;
    let mut broker = rig.connected().await;
    for id in 1..=500 {
        broker.publish(id, "count", id.to_string()).await;
    }
    for id in 1..=500 {
        let arrival = rig.arrival().await;
        assert_eq!(arrival.readings[0].sample, Sample::good(id));
        rig.receipts.send(arrival.receipt.unwrap()).unwrap();
    }
    for id in 1..=500 {
        assert_eq!(broker.recv().await, puback(id));
    }
    rig.end().await;
}

#[tokio::test]
async fn receipts_that_are_back_are_acknowledged_before_the_end() {
    let mut rig = start("", 8).await;
    let mut broker = rig.connected().await;
    broker.publish(1, "count", "1").await;
    let arrival = rig.arrival().await;
    rig.receipts.send(arrival.receipt.unwrap()).unwrap();
    rig.stop.send_replace(true);
    assert_eq!(broker.recv().await, puback(1));
    assert_eq!(broker.recv().await, Packet::Disconnect);
    rig.end().await;
    let rig = start("", 8).await;
    drop(rig.arrivals);
    tokio::time::timeout(LONG, rig.task).await.expect("nobody listens").unwrap();
}
