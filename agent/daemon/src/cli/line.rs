//! A bus for a command: opened here, or asked for at the agent that owns it.
//!
//! `--tcp HOST:PORT`, `--rtu-over-tcp HOST:PORT`, `--tls HOST`, `--serial DEVICE` open a bus without polls, driven by the
//! same schedule and driver as the agent's. `-c FILE --bus NAME` takes a configured bus: if the agent runs, its questions
//! go between the polls, for a line has one owner; else it is opened here. A serial port that the agent has is locked, and
//! says so.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use tokio::sync::{mpsc, oneshot, watch};
use tributary_protocols::modbus::bus::{ASKS, Bus};
use tributary_protocols::modbus::config::{self, BusSpec, resolve_bus};
use tributary_protocols::modbus::driver::{self, Ask, Wires};
use tributary_protocols::modbus::frame::Pdu;
use tributary_protocols::modbus::status::BusStatus;
use tributary_protocols::reading::Poll;
use tributary_protocols::time::{Clock, Mono};
use tributary_protocols::units::Span;

use crate::clock::SystemClock;
use crate::config::{Occasion, load};
use crate::field::{install_crypto, modbus_tls};
use crate::socket::{self, AskError};

/// Which bus.
#[derive(Clone, Debug, Default, Args)]
#[group(skip)]
pub(super) struct BusArgs {
    /// A Modbus TCP server or gateway
    #[arg(long, value_name = "HOST:PORT", group = "link")]
    pub(super) tcp: Option<String>,
    /// A converter that passes serial frames through
    #[arg(long, value_name = "HOST:PORT", group = "link")]
    pub(super) rtu_over_tcp: Option<String>,
    /// A Modbus/TCP Security server; --ca, --cert and --key go with it
    #[arg(long, value_name = "HOST[:PORT]", group = "link")]
    pub(super) tls: Option<String>,
    /// A serial line
    #[arg(long, value_name = "DEVICE", group = "link")]
    pub(super) serial: Option<String>,
    /// The bus of this name in the configuration given by -c
    #[arg(long, value_name = "NAME", group = "link", requires = "config")]
    pub(super) bus: Option<String>,
    /// The configuration that names the bus
    #[arg(short, long = "config", value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// Bits a second of the serial line [default: 19200]
    #[arg(long, value_name = "N", requires = "serial")]
    pub(super) baud: Option<u32>,
    /// Parity of the serial line [default: even]
    #[arg(long, requires = "serial")]
    pub(super) parity: Option<ParityArg>,
    /// Stop bits of the serial line [default: 1]
    #[arg(long, value_name = "N", requires = "serial")]
    pub(super) stop_bits: Option<u8>,
    /// Authority of the server's certificate, PEM
    #[arg(long, value_name = "FILE", requires = "tls")]
    pub(super) ca: Option<String>,
    /// Certificate of ours, PEM
    #[arg(long, value_name = "FILE", requires = "tls")]
    pub(super) cert: Option<String>,
    /// Its key, PEM
    #[arg(long, value_name = "FILE", requires = "tls")]
    pub(super) key: Option<String>,
}

/// Parity of a serial line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum ParityArg {
    /// No parity bit
    None,
    /// The standard's
    Even,
    /// Odd
    Odd,
}

impl From<ParityArg> for config::Parity {
    fn from(parity: ParityArg) -> Self {
        match parity {
            ParityArg::None => Self::None,
            ParityArg::Even => Self::Even,
            ParityArg::Odd => Self::Odd,
        }
    }
}

/// A bus that answers questions.
#[derive(Debug)]
pub(super) enum Line {
    /// Through the agent that owns it.
    Agent { socket: PathBuf, bus: String },
    /// Opened here.
    Own {
        asks: mpsc::Sender<Ask>,
        stop: watch::Sender<bool>,
        task: tokio::task::JoinHandle<()>,
        /// Nobody is polled, but the driver ends when nobody would take polls.
        _polls: mpsc::Receiver<(Mono, Poll)>,
    },
}

impl BusArgs {
    /// The bus that is meant, and the agent's socket if it is a configured one.
    ///
    /// # Errors
    /// What is wrong with the arguments, or with the configuration.
    pub(super) fn spec(&self, timeout: Duration) -> Result<(BusSpec, Option<PathBuf>), String> {
        if let (Some(name), Some(file)) = (&self.bus, &self.config) {
            let (config, report) = load(file, Occasion::Check);
            let config = config.ok_or_else(|| report.render())?;
            let names: Vec<_> = config.buses.iter().map(|bus| bus.spec.name.as_str()).collect();
            let known = names.join(", ");
            let bus = config.buses.iter().find(|bus| bus.spec.name == *name);
            let bus = bus.ok_or_else(|| format!("no [[bus]] is called {name:?}; there are: {known}"))?;
            return Ok((bus.spec.clone(), Some(config.agent.socket())));
        }
        if [&self.tcp, &self.rtu_over_tcp, &self.tls, &self.serial].iter().all(|link| link.is_none()) {
            return Err("which bus? One of --tcp, --rtu-over-tcp, --tls, --serial, or -c FILE --bus NAME".into());
        }
        let millis = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        let bus = config::Bus {
            tcp: self.tcp.clone(),
            rtu_over_tcp: self.rtu_over_tcp.clone(),
            tls: self.tls.clone(),
            serial: self.serial.clone(),
            ca: self.ca.clone(),
            cert: self.cert.clone(),
            key: self.key.clone(),
            baud: self.baud,
            parity: self.parity.map(Into::into),
            stop_bits: self.stop_bits,
            timeout: Span::from_millis(millis),
            ..config::Bus::named("bus")
        };
        let spec = resolve_bus(&bus, "").map_err(|faults| {
            let words = faults.iter().map(|fault| {
                let key =
                    if fault.path.is_empty() { String::new() } else { format!("--{}: ", fault.path.replace('_', "-")) };
                format!("{key}{}; {}", fault.message, fault.help)
            });
            words.collect::<Vec<_>>().join("\n")
        })?;
        Ok((spec, None))
    }
}

impl Line {
    /// Opens it, within a runtime.
    pub(super) fn open(spec: BusSpec, agent: Option<PathBuf>) -> Self {
        if let Some(socket) = agent
            && !matches!(socket::status(&socket), Err(AskError::NotRunning { .. }))
        {
            return Self::Agent { socket, bus: spec.name };
        }
        install_crypto();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let bus = Bus::new(&spec, Vec::new(), clock.mono(), fastrand::u64(..));
        let (asks, asked) = mpsc::channel(ASKS);
        let (stop, shutdown) = watch::channel(false);
        let (polls, _polls) = mpsc::channel(1);
        let wires = Wires {
            polls,
            asks: asked,
            status: watch::channel(BusStatus::default()).0,
            memory: mpsc::unbounded_channel().0,
            shutdown,
        };
        let tls = modbus_tls(&spec);
        let task = tokio::spawn(driver::run(spec, bus, tls, clock, wires));
        Self::Own { asks, stop, task, _polls }
    }

    /// Asks `unit`: function and what belongs to it, and the answer's, an exception's included.
    ///
    /// # Errors
    /// Why there is no answer, in words.
    pub(super) async fn ask(&self, unit: u8, pdu: &[u8], timeout: Option<Duration>) -> Result<Vec<u8>, String> {
        match self {
            Self::Agent { socket, bus } => {
                let (socket, bus, pdu) = (socket.clone(), bus.clone(), pdu.to_vec());
                let asked = tokio::task::spawn_blocking(move || socket::question(&socket, &bus, unit, &pdu, timeout));
                asked.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?
            }
            Self::Own { asks, .. } => {
                let (reply, answer) = oneshot::channel();
                let pdu: Pdu = pdu.try_into().map_err(|_| "a PDU has at most 253 bytes".to_owned())?;
                let pdu = Box::new(pdu);
                asks.send(Ask { unit, pdu, timeout, reply }).await.map_err(|_| "the bus has ended".to_owned())?;
                answer.await.map_err(|_| "the bus has ended".to_owned())?.map_err(|error| error.to_string())
            }
        }
    }

    /// Closes it.
    pub(super) async fn close(self) {
        if let Self::Own { stop, task, .. } = self {
            stop.send_replace(true);
            let _ = task.await;
        }
    }
}
