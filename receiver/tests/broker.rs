//! The whole receiver against a real broker: mosquitto, started by the test on a free port. Without it the test fails.

#![allow(clippy::unwrap_used, reason = "tests")]

mod databases;
mod plant;

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use databases::Database;
use plant::{EPOCH, START_MS, agent, batch, catalog, golden, renamed, status, temperatures};
use prost::Message;
use rumqttc::{AsyncClient, Event, MqttOptions, Packet, QoS};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tributary_proto::pb::{self, Verdict, agent_status::State};
use tributary_receiver::topic::AgentKey;
use tributary_receiver::{Config, RunError, run};

/// Far longer than anything here takes; reached only by a failure.
const PATIENCE: Duration = Duration::from_secs(30);

struct Mosquitto {
    child: Child,
    port: u16,
}

impl Mosquitto {
    /// On a port that was free a moment ago; another if it is taken in between.
    fn start() -> Self {
        Self::start_with(|port| vec!["-p".into(), port.to_string()])
    }

    fn start_with(arguments: impl Fn(u16) -> Vec<String>) -> Self {
        for _ in 0..10 {
            let port = free_port();
            if let Some(child) = Self::listen(port, &arguments(port)) {
                return Self { child, port };
            }
        }
        panic!("mosquitto does not start");
    }

    /// Waits until it listens on `port`; `None` if it ended instead.
    fn listen(port: u16, arguments: &[String]) -> Option<Child> {
        let program = ["/usr/sbin/mosquitto", "/usr/local/sbin/mosquitto", "/usr/bin/mosquitto"];
        let program = program.into_iter().find(|path| Path::new(path).exists());
        let program = program.expect("mosquitto not found: this test needs it; apt-get install mosquitto");
        let mut command = Command::new(program);
        let mut child = command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        loop {
            if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return Some(child);
            }
            if child.try_wait().unwrap().is_some() {
                return None;
            }
            std::thread::yield_now();
        }
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// One that was free a moment ago, and that the kernel gives to nobody meanwhile.
fn free_port() -> u16 {
    let free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    std::iter::repeat_with(|| fastrand::u16(10_000..32_768)).take(1_000).find(free).unwrap()
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A receiver at work in this process.
struct Receiver {
    stop: oneshot::Sender<()>,
    end: JoinHandle<Result<(), RunError>>,
}

impl Receiver {
    fn start(port: u16, database: &Database) -> Self {
        Self::start_as(&format!("mqtt://127.0.0.1:{port}"), database, None)
    }

    fn start_as(broker: &str, database: &Database, file: Option<&Path>) -> Self {
        let config = Config::load(broker, &database.argument(), file).unwrap();
        let (stop, stopped) = oneshot::channel();
        let end = tokio::spawn(run(config, async { drop(stopped.await) }));
        Self { stop, end }
    }

    async fn stop(self) {
        let _ = self.stop.send(());
        timeout(PATIENCE, self.end).await.expect("it ends").unwrap().unwrap();
    }
}

/// An agent's side of the wire.
struct Agent {
    key: AgentKey,
    client: AsyncClient,
    acks: mpsc::UnboundedReceiver<pb::Ack>,
    events: JoinHandle<()>,
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.events.abort();
    }
}

impl Agent {
    async fn start(port: u16, name: &str) -> Self {
        Self::connect(MqttOptions::new(format!("agent-{name}"), "127.0.0.1", port), name).await
    }

    async fn connect(mut options: MqttOptions, name: &str) -> Self {
        let key = agent(name);
        options.set_max_packet_size(1 << 20, 1 << 20);
        let (client, mut events) = AsyncClient::new(options, 1_000);
        client.subscribe(key.ack_topic("edge/v1"), QoS::AtMostOnce).await.unwrap();
        let (out, acks) = mpsc::unbounded_channel();
        let (ready, subscribed) = oneshot::channel();
        let events = tokio::spawn(async move {
            let mut ready = Some(ready);
            loop {
                match events.poll().await {
                    Ok(Event::Incoming(Packet::SubAck(_))) => drop(ready.take().map(|ready| ready.send(()))),
                    Ok(Event::Incoming(Packet::Publish(publish))) => {
                        drop(out.send(pb::Ack::decode(publish.payload).unwrap()))
                    }
                    Ok(_) => {}
                    Err(_) => return,
                }
            }
        });
        timeout(PATIENCE, subscribed).await.expect("the broker answers").unwrap();
        Self { key, client, acks, events }
    }

    async fn publish(&self, kind: &str, retain: bool, message: Bytes) {
        let topic = format!("edge/v1/{}/{kind}", self.key);
        self.client.publish(topic, QoS::AtLeastOnce, retain, message).await.unwrap();
    }

    /// ONLINE and the catalogue, as after each connect; a receiver that is there answers.
    async fn hello(&mut self, at: i64) -> pb::Ack {
        self.publish("cat", true, catalog(EPOCH, 1)).await;
        let online = status(State::Online, EPOCH, START_MS + at, 0);
        self.publish("stat", true, online.encode_to_vec().into()).await;
        self.ack(|_| true).await
    }

    /// The first Ack that `is` it.
    async fn ack(&mut self, is: impl Fn(&pb::Ack) -> bool) -> pb::Ack {
        timeout(PATIENCE, async {
            loop {
                let ack = self.acks.recv().await.expect("the connection stands");
                if is(&ack) {
                    return ack;
                }
            }
        })
        .await
        .expect("an Ack like that")
    }
}

/// Catalogue, golden batches, a damaged one: committed or refused, acknowledged; far more messages than the broker hands out
/// without a PUBACK (20 under 3.1.1, 512 under 5); a restart is noticed.
async fn a_batch_is_acknowledged_after_commit(port: u16, database: Database) {
    let receiver = Receiver::start(port, &database);
    let mut agent = Agent::start(port, "gw-1").await;
    assert_eq!(agent.hello(1).await.contiguous_seq, 0);
    agent.publish("data/l", false, golden("01-group.bin").into()).await;
    let ack = agent.ack(|ack| ack.contiguous_seq == 1).await;
    assert_eq!((ack.epoch, ack.verdict(), ack.also.len()), (EPOCH, Verdict::Ok, 0));
    assert_eq!(database.one("SELECT count(*) FROM reading").await, "16");
    for seq in 2..=600 {
        let lane = if seq % 2 == 0 { "data/l" } else { "data/b" };
        agent.publish(lane, false, batch(EPOCH, seq, 1, &temperatures(seq.cast_signed() * 1_000, &[1]))).await;
    }
    agent.publish("data/l", false, renamed(&golden("invalid/readings.bin"), EPOCH, 601, 1)).await;
    let ack = agent.ack(|ack| ack.contiguous_seq == 601).await;
    assert_eq!((ack.refused.as_slice(), ack.verdict()), ([601].as_slice(), Verdict::BadPayload));
    assert_eq!(database.one("SELECT count(*) FROM reading").await, "615");
    assert_eq!(database.one("SELECT state, contiguous_seq FROM agent").await, "online|601");
    receiver.stop().await;

    // Whoever starts greets the agents in the database, though nothing is sent to it.
    let receiver = Receiver::start(port, &database);
    assert_eq!(agent.ack(|_| true).await.contiguous_seq, 601);
    receiver.stop().await;
}

#[tokio::test]
async fn a_batch_is_acknowledged_after_its_commit_to_sqlite() {
    let broker = Mosquitto::start();
    a_batch_is_acknowledged_after_commit(broker.port, Database::sqlite()).await;
}

#[tokio::test]
async fn a_batch_is_acknowledged_after_its_commit_to_postgresql() {
    let broker = Mosquitto::start();
    a_batch_is_acknowledged_after_commit(broker.port, Database::postgres().await).await;
}

/// A broker that speaks 3.1.1 only answers an MQTT 5 CONNECT with "unacceptable protocol version" and hangs up.
#[tokio::test]
async fn a_broker_of_3_1_1_gets_a_plain_subscription() {
    let broker = Mosquitto::start();
    let front = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = front.local_addr().unwrap().port();
    let behind = broker.port;
    let proxy = tokio::spawn(async move {
        loop {
            let (mut socket, _) = front.accept().await.unwrap();
            tokio::spawn(async move {
                // Fixed header of one length byte, "MQTT" with its length, then the level.
                let mut connect = [0; 9];
                if socket.read_exact(&mut connect).await.is_err() {
                    return;
                }
                if connect[8] == 5 {
                    drop(socket.write_all(&[0x20, 2, 0, 1]).await);
                    return;
                }
                let mut broker = tokio::net::TcpStream::connect(("127.0.0.1", behind)).await.unwrap();
                broker.write_all(&connect).await.unwrap();
                drop(copy_bidirectional(&mut socket, &mut broker).await);
            });
        }
    });
    a_batch_is_acknowledged_after_commit(port, Database::sqlite()).await;
    proxy.abort();
}

/// Two receivers of one group share the data of six agents; one goes, the other goes on.
#[tokio::test]
async fn two_receivers_share_the_data() {
    let broker = Mosquitto::start();
    let database = Database::postgres().await;
    let (one, two) = (Receiver::start(broker.port, &database), Receiver::start(broker.port, &database));
    let mut agents = Vec::new();
    for number in 0..6 {
        let mut agent = Agent::start(broker.port, &format!("gw-{number}")).await;
        agent.hello(1).await;
        agents.push(agent);
    }
    let send = async |agents: &mut Vec<Agent>, seqs: std::ops::RangeInclusive<u64>| {
        for agent in &mut *agents {
            for seq in seqs.clone() {
                agent
                    .publish("data/l", false, batch(EPOCH, seq, 1, &temperatures(seq.cast_signed() * 1_000, &[1])))
                    .await;
            }
        }
        for agent in agents {
            agent.ack(|ack| ack.contiguous_seq == *seqs.end()).await;
        }
    };
    send(&mut agents, 1..=50).await;
    one.stop().await;
    send(&mut agents, 51..=60).await;
    two.stop().await;
    assert_eq!(database.one("SELECT count(*) FROM reading").await, "360");
    assert_eq!(database.one("SELECT count(*) FROM batch").await, "360");
    assert_eq!(database.one("SELECT count(*) FROM gap").await, "0");
}

/// Two receivers on one PostgreSQL, one of them killed with SIGKILL in every round of batches and started again: what was
/// acknowledged is in the database, once, and nothing is taken for lost.
#[tokio::test]
async fn receivers_may_be_killed_at_any_moment() {
    const BATCHES: u64 = 400;
    const WINDOW: u64 = 40;
    let broker = Mosquitto::start();
    let database = Database::postgres().await;
    let start = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tributary-receiver"));
        command.args([
            "run",
            "--broker",
            &format!("mqtt://127.0.0.1:{}", broker.port),
            "--store",
            &database.argument(),
        ]);
        Killed(command.stderr(Stdio::null()).spawn().unwrap())
    };
    let mut receivers = [start(), start()];
    let mut agent = Agent::start(broker.port, "gw-1").await;
    agent.hello(1).await;
    let mut settled = std::collections::BTreeSet::new();
    let (mut kills, mut heard) = (0, true);
    let end = tokio::time::Instant::now() + 8 * PATIENCE;
    while settled.len() < BATCHES as usize {
        let open: Vec<u64> = (1..=BATCHES).filter(|seq| !settled.contains(seq)).take(WINDOW as usize).collect();
        for seq in &open {
            agent
                .publish("data/l", false, batch(EPOCH, *seq, open[0], &temperatures(seq.cast_signed() * 1_000, &[1])))
                .await;
        }
        // None is killed before any has been heard since the last kill: it may take its time to come up.
        if std::mem::take(&mut heard) {
            receivers[kills % 2] = start(); // the old one dies as it is dropped
            kills += 1;
        }
        assert!(tokio::time::Instant::now() < end, "{} of {BATCHES} settled, {kills} kills", settled.len());
        // As long as Acks come; then whatever is missing is sent again.
        while let Ok(Some(ack)) = timeout(Duration::from_millis(300), agent.acks.recv()).await {
            heard = true;
            assert!(ack.verdict() == Verdict::Ok && ack.refused.is_empty(), "{ack:?}");
            settled.extend(1..=ack.contiguous_seq);
            settled.extend(ack.also.iter().flat_map(|range| range.first..=range.last));
            if open.iter().all(|seq| settled.contains(seq)) {
                break;
            }
        }
    }
    assert!(kills >= 10, "{kills} kills");
    assert_eq!(database.one("SELECT count(*), count(DISTINCT at_ms) FROM reading").await, "400|400");
    assert_eq!(database.one("SELECT count(*) FROM batch").await, "400");
    assert_eq!(database.one("SELECT count(*) FROM gap").await, "0");
    assert_eq!(database.one("SELECT count(*) FROM quarantine").await, "0");
}

/// A process that gets SIGKILL when it is dropped.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// The broker dies and comes back: the receiver finds it again.
#[tokio::test]
async fn a_broker_that_comes_back_is_found_again() {
    let mut broker = Mosquitto::start();
    let database = Database::sqlite();
    let receiver = Receiver::start(broker.port, &database);
    let mut agent = Agent::start(broker.port, "gw-1").await;
    agent.hello(1).await;
    broker.kill();
    let arguments = ["-p".into(), broker.port.to_string()];
    broker.child = Mosquitto::listen(broker.port, &arguments).expect("the port is free again");
    let mut agent = Agent::start(broker.port, "gw-1").await;
    agent.hello(2).await;
    agent.publish("data/l", false, batch(EPOCH, 1, 1, &temperatures(0, &[1]))).await;
    // No receiver yet means that the broker threw it away: then it is sent again, as an agent does.
    while timeout(Duration::from_secs(2), agent.ack(|ack| ack.contiguous_seq == 1)).await.is_err() {
        agent.publish("data/l", false, batch(EPOCH, 1, 1, &temperatures(0, &[1]))).await;
    }
    receiver.stop().await;
}

/// What the database will not take goes to quarantine alone; its neighbours in the group are committed.
#[tokio::test]
async fn what_the_database_refuses_blocks_nothing() {
    let broker = Mosquitto::start();
    let database = Database::postgres().await;
    let receiver = Receiver::start(broker.port, &database);
    let mut agent = Agent::start(broker.port, "gw-1").await;
    agent.hello(1).await;
    database.rows("ALTER TABLE reading_row ADD CHECK (value_int <> 666)").await;
    for (seq, value) in [(1, 1), (2, 666), (3, 3)] {
        agent.publish("data/l", false, batch(EPOCH, seq, 1, &temperatures(seq.cast_signed() * 1_000, &[value]))).await;
    }
    let ack = agent.ack(|ack| ack.contiguous_seq == 3).await;
    assert_eq!(ack.refused, [2]);
    receiver.stop().await;
    assert_eq!(database.one("SELECT sum(value_int) FROM reading").await, "4");
    assert_eq!(database.one("SELECT seq, reason FROM quarantine").await, "2|database");
}

/// Broker and database both away: it waits, and ends when it is told to.
#[tokio::test]
async fn it_waits_for_what_is_away_and_ends_when_told() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let away = Database::Postgres(format!("postgres://postgres@127.0.0.1:{nobody}/x"));
    let receiver = Receiver::start(nobody, &away);
    receiver.stop().await;
}

/// Mutual TLS, a login and access lists by certificate name: the receiver gets in and acknowledges, and an agent that forges
/// an Ack is not heard (contract rule 20). The list is the README's.
#[tokio::test]
async fn over_tls_only_the_receiver_may_acknowledge() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).display().to_string();
    let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).unwrap();
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let mut ca = rcgen::CertificateParams::new(vec![]).unwrap();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    write("ca.pem", &ca.self_signed(&ca_key).unwrap().pem());
    let issuer = rcgen::Issuer::new(ca, ca_key);
    for (name, names) in [("broker", vec!["127.0.0.1".to_owned()]), ("receiver", vec![]), ("gw-1", vec![])] {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(names).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        write(&format!("{name}.pem"), &params.signed_by(&key, &issuer).unwrap().pem());
        write(&format!("{name}.key"), &key.serialize_pem());
    }
    write(
        "acl",
        "user receiver\ntopic read edge/v1/#\ntopic write edge/v1/+/+/ack\n\n\
         pattern write edge/v1/plant-1/%u/data/+\npattern write edge/v1/plant-1/%u/cat\n\
         pattern write edge/v1/plant-1/%u/stat\npattern read edge/v1/plant-1/%u/ack\n",
    );
    let broker = Mosquitto::start_with(|port| {
        let lines = [
            format!("listener {port} 127.0.0.1"),
            format!("cafile {}\ncertfile {}\nkeyfile {}", path("ca.pem"), path("broker.pem"), path("broker.key")),
            "require_certificate true\nuse_identity_as_username true".into(),
            format!("acl_file {}\nuser root", path("acl")),
        ];
        write("mosquitto.conf", &lines.join("\n"));
        vec!["-c".into(), path("mosquitto.conf")]
    });
    let files = |name: &str| {
        format!(
            "ca = {:?}\ncert = {:?}\nkey = {:?}\n",
            path("ca.pem"),
            path(&format!("{name}.pem")),
            path(&format!("{name}.key"))
        )
    };
    write("password", "not asked for\n");
    write(
        "receiver.toml",
        &format!("{}username = \"receiver\"\npassword_file = {:?}\n", files("receiver"), path("password")),
    );
    let database = Database::sqlite();
    let url = format!("mqtts://127.0.0.1:{}", broker.port);
    let receiver = Receiver::start_as(&url, &database, Some(&directory.path().join("receiver.toml")));

    let read = |name: &str| std::fs::read(directory.path().join(name)).unwrap();
    let mut options = MqttOptions::new("gw-1", "127.0.0.1", broker.port);
    options.set_transport(agent_tls(&read("ca.pem"), &read("gw-1.pem"), &read("gw-1.key")));
    let mut agent = Agent::connect(options, "gw-1").await;
    agent.hello(1).await;
    let forged = pb::Ack { epoch: EPOCH, contiguous_seq: 99, ..Default::default() };
    agent.publish("ack", false, forged.encode_to_vec().into()).await;
    agent.publish("data/l", false, batch(EPOCH, 1, 1, &temperatures(0, &[1]))).await;
    let ack = agent.ack(|ack| ack.contiguous_seq != 0).await;
    assert_eq!(ack.contiguous_seq, 1, "the forged Ack came before this one, had it come at all");
    receiver.stop().await;
}

fn agent_tls(ca: &[u8], cert: &[u8], key: &[u8]) -> rumqttc::Transport {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca).unwrap()).unwrap();
    let provider = rustls::crypto::ring::default_provider();
    let config = rustls::ClientConfig::builder_with_provider(provider.into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(
            vec![CertificateDer::from_pem_slice(cert).unwrap()],
            PrivateKeyDer::from_pem_slice(key).unwrap(),
        )
        .unwrap();
    rumqttc::Transport::Tls(rumqttc::TlsConfiguration::Rustls(config.into()))
}
