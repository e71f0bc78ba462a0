//! The driver on each kind of link, with an independent implementation at the far end: RTU over TCP, TLS, and serial
//! lines, which are pairs of pseudo-terminals here.
//!
//! A pty has no line speed, so bytes come at once; what the kernel does with a port, opening, locking, closing,
//! unplugging, is real.
#![allow(clippy::unwrap_used, reason = "a test that panics fails")]

#[allow(dead_code, reason = "no chance is needed here")]
mod support;

use std::future::{Ready, ready};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use support::RealClock;
use tokio::net::unix::pipe;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_modbus::prelude::{ExceptionCode, Request, Response, SlaveRequest};
use tokio_modbus::server;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore, ServerConfig};
use tributary_protocols::modbus::bus::{AskError, Bus, BusDevice};
use tributary_protocols::modbus::config::{resolve, resolve_bus};
use tributary_protocols::modbus::driver::{self, Ask, Tls, Wires};
use tributary_protocols::modbus::plan::plan;
use tributary_protocols::modbus::status::BusStatus;
use tributary_protocols::reading::{Outcome, Poll, Sample, Status};
use tributary_protocols::time::{Clock, Mono};

/// A slave that has unit · 1000 + address in each of a hundred holding registers.
struct Slave;

impl server::Service for Slave {
    type Request = SlaveRequest<'static>;
    type Response = Option<Response>;
    type Exception = ExceptionCode;
    type Future = Ready<Result<Option<Response>, ExceptionCode>>;

    fn call(&self, request: Self::Request) -> Self::Future {
        let unit = u16::from(request.slave);
        ready(match request.request {
            Request::ReadHoldingRegisters(address, count) if address < 100 => {
                let values = (address..address + count).map(|at| unit * 1_000 + at).collect();
                Ok(Some(Response::ReadHoldingRegisters(values)))
            }
            Request::ReadHoldingRegisters(..) => Err(ExceptionCode::IllegalDataAddress),
            _ => Err(ExceptionCode::IllegalFunction),
        })
    }
}

/// A converter: serial frames over TCP.
async fn converter() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let on_connected = |stream, address| async move {
            server::rtu_over_tcp::accept_tcp_connection(stream, address, |_| Ok(Some(Slave)))
        };
        server::rtu_over_tcp::Server::new(listener).serve(&on_connected, |_| {}).await
    });
    address
}

/// A serial line with that slave at its far end.
struct Line(JoinHandle<()>);

impl Line {
    /// Makes one, whose near end is found at `link`.
    async fn new(link: &Path) -> Self {
        let far = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&far).unwrap();
        unlockpt(&far).unwrap();
        let near = ptsname(&far, Vec::new()).unwrap();
        let _ = std::fs::remove_file(link);
        std::os::unix::fs::symlink(near.to_str().unwrap(), link).unwrap();
        let slave = TcpStream::connect(converter().await).await.unwrap();
        Self(tokio::spawn(carry(far, slave)))
    }

    /// As when the adapter is pulled.
    async fn unplug(self) {
        self.0.abort();
        let _ = self.0.await;
    }
}

/// Bytes both ways, until there are none.
async fn carry(far: OwnedFd, slave: TcpStream) {
    let mut to_near = pipe::Sender::from_owned_fd_unchecked(far.try_clone().unwrap()).unwrap();
    let mut from_near = pipe::Receiver::from_owned_fd_unchecked(far).unwrap();
    let (mut from_slave, mut to_slave) = slave.into_split();
    let _ = tokio::join!(
        async {
            // Before the near end is opened, and after it was closed, a pty says EIO.
            while tokio::io::copy(&mut from_near, &mut to_slave).await.is_err() {
                tokio::time::timeout(Duration::from_millis(5), std::future::pending::<()>()).await.unwrap_err();
            }
        },
        tokio::io::copy(&mut from_slave, &mut to_near),
    );
}

struct Rig {
    polls: mpsc::Receiver<(Mono, Poll)>,
    asks: mpsc::Sender<Ask>,
    status: watch::Receiver<BusStatus>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

fn serial(node: &Path) -> String {
    format!("serial='{}'\nbaud=115200\nparity='none'", node.display())
}

fn start(link: &str, tls: Option<Tls>, units: &[u8]) -> Rig {
    let bus = format!("name='b'\n{link}\ntimeout='100ms'\nreconnect_max='100ms'");
    let spec = resolve_bus(&toml::from_str(&bus).unwrap(), "bus[0]").unwrap();
    let mut devices = Vec::new();
    for (unit, first) in units.iter().zip(0..) {
        let text = format!(
            "name='u{unit}'\nbus='b'\nunit_id={unit}\naddressing='zero'\nperiod='50ms'\n\
             [[point]]\nname='a'\ntable='holding'\naddress=7\ntype='u16'\n"
        );
        let device = resolve(&toml::from_str(&text).unwrap(), "device[0]", None).unwrap();
        devices.push(BusDevice::new(&device, plan(&device.points, device.caps), first));
    }
    let clock = Arc::new(RealClock::new());
    let bus = Bus::new(&spec, devices, clock.mono(), 7);
    let (polls, brought) = mpsc::channel(1_024);
    let (asks, asked) = mpsc::channel(4);
    let (tell, status) = watch::channel(BusStatus::default());
    let (memory, _) = mpsc::unbounded_channel();
    let (stop, shutdown) = watch::channel(false);
    let wires = Wires { polls, asks: asked, status: tell, memory, shutdown };
    let task = tokio::spawn(driver::run(spec, bus, tls, clock, wires));
    Rig { polls: brought, asks, status, stop, task }
}

impl Rig {
    /// Waits for so many polls that brought the unit's value; nothing else may come with a value.
    async fn good(&mut self, unit: u8, count: usize) {
        let mut good = 0;
        while good < count {
            let poll = tokio::time::timeout(Duration::from_secs(20), self.polls.recv());
            let (_, poll) = poll.await.expect("the bus has stalled").expect("the bus has ended");
            match poll.outcome {
                Outcome::Samples(samples) if poll.request == 0 => {
                    assert_eq!(samples, [Sample::good(u64::from(unit) * 1_000 + 7)]);
                    good += 1;
                }
                Outcome::All(status) => {
                    assert!(matches!(status, Status::CommFail | Status::OutOfService), "{status:?}")
                }
                Outcome::Samples(_) => {}
            }
        }
    }

    /// What it says has gone wrong.
    async fn error(&mut self) -> String {
        let told = tokio::time::timeout(Duration::from_secs(20), async {
            loop {
                self.status.changed().await.unwrap();
                if let Some(error) = self.status.borrow().last_error.clone() {
                    return error;
                }
            }
        });
        told.await.expect("it says why")
    }

    async fn ask(&self, unit: u8, pdu: &[u8]) -> Result<Vec<u8>, AskError> {
        let (reply, answer) = oneshot::channel();
        let pdu = Box::new(pdu.try_into().unwrap());
        self.asks.send(Ask { unit, pdu, timeout: None, reply }).await.unwrap();
        tokio::time::timeout(Duration::from_secs(20), answer).await.expect("a reply").expect("the bus lives")
    }
}

#[tokio::test]
async fn polls_and_questions_share_a_line() {
    let folder = tempfile::tempdir().unwrap();
    let node = folder.path().join("ttyS");
    let line = Line::new(&node).await;
    let mut rig = start(&serial(&node), None, &[17, 18]);
    rig.good(17, 5).await;
    assert_eq!(rig.ask(18, &[3, 0, 5, 0, 2]).await, Ok(vec![3, 4, 0x46, 0x55, 0x46, 0x56]), "18005 and 18006");
    assert_eq!(rig.ask(99, &[3, 0, 200, 0, 1]).await, Ok(vec![0x83, 2]), "an exception is an answer");
    assert_eq!(rig.ask(0, &[3, 0, 0, 0, 1]).await, Err(AskError::Broadcast));
    rig.good(17, 5).await;
    rig.stop.send_replace(true);
    rig.task.await.unwrap();
    let status = rig.status.borrow().clone();
    assert_eq!((status.timeouts, status.errors), (0, 0), "{status:?}");
    line.unplug().await;
}

#[tokio::test]
async fn an_adapter_that_is_plugged_in_again_is_found_by_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let node = folder.path().join("by-id");
    let line = Line::new(&node).await;
    let mut rig = start(&serial(&node), None, &[9]);
    rig.good(9, 3).await;
    line.unplug().await;
    // Polls fail while it is away.
    loop {
        let (_, poll) = rig.polls.recv().await.expect("the bus lives");
        if matches!(poll.outcome, Outcome::All(_)) {
            break;
        }
    }
    let line = Line::new(&node).await;
    rig.good(9, 3).await;
    rig.stop.send_replace(true);
    rig.task.await.unwrap();
    line.unplug().await;
}

#[tokio::test]
async fn a_port_has_one_master() {
    let folder = tempfile::tempdir().unwrap();
    let node = folder.path().join("ttyS");
    let line = Line::new(&node).await;
    let mut first = start(&serial(&node), None, &[1]);
    first.good(1, 1).await;
    let mut second = start(&serial(&node), None, &[1]);
    let error = second.error().await;
    assert!(error.contains("another program has the port"), "{error}");
    first.good(1, 3).await;
    line.unplug().await;
}

#[tokio::test]
async fn serial_frames_pass_through_a_converter() {
    let mut rig = start(&format!("rtu_over_tcp='{}'", converter().await), None, &[33, 34]);
    rig.good(33, 5).await;
    assert_eq!(rig.ask(34, &[3, 0, 1, 0, 1]).await, Ok(vec![3, 2, 0x84, 0xD1]), "34001");
    rig.stop.send_replace(true);
    rig.task.await.unwrap();
}

/// A server behind TLS that wants to see a certificate, and what its clients need.
struct Secured {
    address: SocketAddr,
    ca: rcgen::Issuer<'static, rcgen::KeyPair>,
    roots: Arc<RootCertStore>,
}

impl Secured {
    async fn start() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let root = params.self_signed(&key).unwrap().der().clone();
        let ca = rcgen::Issuer::new(params, key);
        let mut roots = RootCertStore::empty();
        roots.add(root).unwrap();
        let roots = Arc::new(roots);
        let (chain, key) = certificate(&ca);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let clients = rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), provider.clone());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = config.with_client_cert_verifier(clients.build().unwrap()).with_single_cert(chain, key).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let plain = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let inner = plain.local_addr().unwrap();
        tokio::spawn(async move {
            let on_connected = |stream, address| async move {
                server::tcp::accept_tcp_connection(stream, address, |_| Ok(Some(Slave)))
            };
            server::tcp::Server::new(plain).serve(&on_connected, |_| {}).await
        });
        let acceptor = TlsAcceptor::from(Arc::new(config));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let Ok(mut session) = acceptor.accept(stream).await else { return };
                    let mut slave = TcpStream::connect(inner).await.unwrap();
                    let _ = tokio::io::copy_bidirectional(&mut session, &mut slave).await;
                });
            }
        });
        Self { address, ca, roots }
    }

    fn client(&self, known: bool) -> Tls {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = config.with_root_certificates(Arc::clone(&self.roots));
        let config = Arc::new(if known {
            let (chain, key) = certificate(&self.ca);
            config.with_client_auth_cert(chain, key).unwrap()
        } else {
            config.with_no_client_auth()
        });
        Arc::new(move || Ok(Arc::clone(&config)))
    }
}

type Chain = Vec<rustls::pki_types::CertificateDer<'static>>;

fn certificate(ca: &rcgen::Issuer<'_, rcgen::KeyPair>) -> (Chain, rustls::pki_types::PrivateKeyDer<'static>) {
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["localhost".into()]).unwrap();
    let certificate = params.signed_by(&key, ca).unwrap();
    (vec![certificate.der().clone()], rustls::pki_types::PrivateKeyDer::Pkcs8(key.serialize_der().into()))
}

#[tokio::test]
async fn modbus_over_tls_shows_a_certificate_and_checks_the_servers() {
    let server = Secured::start().await;
    let link = format!("tls='localhost:{}'\nca='given by the test'", server.address.port());
    let mut rig = start(&link, Some(server.client(true)), &[21]);
    rig.good(21, 3).await;
    // Without a certificate of ours the server ends it; of a server that we do not know we want nothing.
    let mut unknown = start(&link, Some(server.client(false)), &[21]);
    let error = unknown.error().await;
    assert!(error.contains("CertificateRequired"), "{error}");
    let mut astray = start(&link, Some(Secured::start().await.client(true)), &[21]);
    let error = astray.error().await;
    assert!(error.contains("invalid peer certificate"), "{error}");
}
