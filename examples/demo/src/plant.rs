//! The simulated plant: two Modbus TCP slaves whose registers behave like real ones, and two MQTT sensors.
//!
//! It is also the witness. Registers 0 and 1 of a slave count the answers it has given, so every poll brings a number of
//! its own, and the slave writes down each number with its time. A sensor numbers its messages and writes down those
//! that its broker has acknowledged. The proof holds these notes against the database.

use std::collections::BTreeMap;
use std::future;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rumqttc::{AsyncClient, Event, MqttOptions, Outgoing, Packet, QoS};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_modbus::prelude::{ExceptionCode, Request, Response, SlaveRequest};
use tokio_modbus::server::Service;
use tokio_modbus::server::tcp::{Server, accept_tcp_connection};

/// Registers of a slave that are polled.
pub(crate) const REGISTERS: u16 = 20;

/// What a slave or sensor has seen: numbers it gave out, with their time in ms since 1970.
pub(crate) type Notes = Arc<Mutex<BTreeMap<u32, i64>>>;

/// A slave.
#[derive(Clone)]
pub(crate) struct Slave {
    pub(crate) name: &'static str,
    pub(crate) period_ms: u32,
    pub(crate) notes: Notes,
    started: Instant,
    state: Arc<Mutex<(u32, fastrand::Rng)>>,
}

impl Slave {
    /// A slave that has not been asked yet.
    #[expect(clippy::disallowed_methods, reason = "the plant is the world outside: it has a clock of its own")]
    pub(crate) fn new(name: &'static str, period_ms: u32, seed: u64) -> Self {
        let state = Arc::new(Mutex::new((0, fastrand::Rng::with_seed(seed))));
        Self { name, period_ms, notes: Notes::default(), started: Instant::now(), state }
    }

    /// Serves on a port of its own and returns it.
    ///
    /// # Errors
    /// No port.
    pub(crate) async fn serve(&self) -> io::Result<u16> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let port = listener.local_addr()?.port();
        let slave = self.clone();
        tokio::spawn(async move {
            let connected = |stream, address: SocketAddr| {
                let slave = slave.clone();
                async move { accept_tcp_connection(stream, address, move |_| Ok(Some(slave.clone()))) }
            };
            // A connection that breaks is the agent's business.
            let _ = Server::new(listener).serve(&connected, |_| {}).await;
        });
        Ok(port)
    }

    /// Registers as a machine would have them: the count of answers, noisy and slow temperatures, an energy counter, a
    /// state, a float.
    fn registers(&self) -> Vec<u16> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (served, rng) = &mut *state;
        *served += 1;
        let seconds = self.started.elapsed().as_secs_f64();
        let mut noise = |width: f64| (rng.f64() - 0.5) * width;
        let temperature = 850.0 + 40.0 * (seconds / 9.0).sin() + noise(2.0);
        let current = 12.5 + 3.0 * (seconds / 3.0).sin() + noise(0.2);
        let energy = 10_000_000 + (seconds * 420.0) as u32;
        let pressure = (3.2 + 0.4 * (seconds / 5.0).cos() + noise(0.01)) as f32;
        let mut registers = vec![0; usize::from(REGISTERS)];
        let mut put = |at: usize, value: u32| {
            registers[at] = (value >> 16) as u16;
            registers[at + 1] = value as u16;
        };
        put(0, *served);
        put(4, energy);
        put(6, pressure.to_bits());
        registers[2] = (temperature * 10.0) as u16;
        registers[3] = (current * 100.0) as u16;
        registers[8] = u16::from((seconds as u64 / 7).is_multiple_of(3));
        for (place, register) in registers.iter_mut().enumerate().skip(10) {
            *register = (200.0 + 10.0 * place as f64 + noise(6.0)) as u16;
        }
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).insert(*served, now_ms());
        registers
    }
}

impl Service for Slave {
    type Request = SlaveRequest<'static>;
    type Response = Response;
    type Exception = ExceptionCode;
    type Future = future::Ready<Result<Response, ExceptionCode>>;

    fn call(&self, request: Self::Request) -> Self::Future {
        let answer = match request.request {
            Request::ReadHoldingRegisters(0, count) if count <= REGISTERS => {
                let mut registers = self.registers();
                registers.truncate(usize::from(count));
                Ok(Response::ReadHoldingRegisters(registers))
            }
            Request::ReadHoldingRegisters(..) => Err(ExceptionCode::IllegalDataAddress),
            _ => Err(ExceptionCode::IllegalFunction),
        };
        future::ready(answer)
    }
}

/// A sensor.
pub(crate) struct Sensor {
    pub(crate) name: &'static str,
    pub(crate) notes: Notes,
    task: JoinHandle<()>,
}

impl Sensor {
    /// It falls silent: what it has published is all there will be.
    pub(crate) fn stop(&self) {
        self.task.abort();
    }
}

/// Starts a sensor that publishes `{"n": …, "value": …}` at QoS 1 every `period`.
pub(crate) fn sensor(name: &'static str, port: u16, period: Duration, seed: u64) -> Sensor {
    let notes = Notes::default();
    let acknowledged = Arc::clone(&notes);
    let task = tokio::spawn(async move {
        let mut options = MqttOptions::new(name, "127.0.0.1", port);
        options.set_keep_alive(Duration::from_secs(5));
        let (client, mut events) = AsyncClient::new(options, 64);
        let mut rng = fastrand::Rng::with_seed(seed);
        let publishing = async move {
            let mut tick = tokio::time::interval(period);
            let mut value = 21.0;
            for n in 1_u32.. {
                tick.tick().await;
                value += (rng.f64() - 0.5) * 0.2;
                let payload = format!(r#"{{"n":{n},"value":{value:.2}}}"#);
                if client.publish(format!("cell/{name}/climate"), QoS::AtLeastOnce, false, payload).await.is_err() {
                    return;
                }
            }
        };
        let listening = async move {
            // Packet ids in flight, with the number of the message they carry.
            let (mut sent, mut packets) = (0, BTreeMap::new());
            loop {
                match events.poll().await {
                    Ok(Event::Outgoing(Outgoing::Publish(packet))) => {
                        sent += 1;
                        packets.insert(packet, sent);
                    }
                    Ok(Event::Incoming(Packet::PubAck(ack))) => {
                        if let Some(n) = packets.remove(&ack.pkid) {
                            acknowledged.lock().unwrap_or_else(PoisonError::into_inner).insert(n, now_ms());
                        }
                    }
                    Ok(_) => {}
                    Err(_) => return,
                }
            }
        };
        tokio::join!(publishing, listening);
    });
    Sensor { name, notes, task }
}

/// The wall clock in ms since 1970.
#[expect(clippy::disallowed_methods, reason = "the plant is the world outside: it has a clock of its own")]
pub(crate) fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
