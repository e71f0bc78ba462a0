//! Carries out what the schedule of a bus says, on its link (`stream.rs`).
//!
//! The thin, impure end of the line: it connects, sends and receives bytes, sleeps until the schedule's next deadline,
//! and turns the schedule's moments into stamps. It decides nothing: what is asked when, and whether an answer is
//! believed, is [`Bus`]'s to say. One task a bus, so requests can never collide: whoever else wants to ask something on
//! it sends an [`Ask`].
//!
//! tokio-modbus is not used here: its reply checks are gone in release builds and its codec is private (README.md).
//!
//! Limits: one buffer of 260 bytes, the longest frame; whatever else arrives waits in the kernel or costs the device its
//! connection. Per answer one write, one read and one channel send; no ticking.

mod stream;

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;
use std::io;

use tokio::sync::{mpsc, oneshot, watch};

pub use stream::Tls;

use crate::modbus::bus::{AdHoc, AskError, Bus, Memory, Output, Trace};
use crate::modbus::config::BusSpec;
use crate::modbus::driver::stream::Stream;
use crate::modbus::frame::{MAX_FRAME, Pdu};
use crate::modbus::status::BusStatus;
use crate::reading::{Outcome, Poll};
use crate::time::{Clock, Mono, Wall};

/// Least time between two renewals of the status.
const STATUS_EVERY: Duration = Duration::from_secs(1);

/// A question beside the schedule.
#[derive(Debug)]
pub struct Ask {
    /// 1 to 255; need not be configured.
    pub unit: u8,
    /// Function and what belongs to it. Boxed: a channel keeps room for 32 questions a bus from the start.
    pub pdu: Box<Pdu>,
    /// How long the answer may take; as configured if `None`.
    pub timeout: Option<Duration>,
    /// Takes the answer's PDU, an exception's included.
    pub reply: oneshot::Sender<Result<Vec<u8>, AskError>>,
}

/// What a bus is connected to on our side.
#[derive(Debug)]
pub struct Wires {
    /// Takes the outcome of each due poll. The [`Mono`] is when it was known. If it is full the bus waits: deadlines
    /// missed meanwhile are reported as such.
    pub polls: mpsc::Sender<(Mono, Poll)>,
    /// Questions beside the schedule.
    pub asks: mpsc::Receiver<Ask>,
    /// Renewed at most once a second, and at the end.
    pub status: watch::Sender<BusStatus>,
    /// What the bus has learnt, with its name, whenever that changes.
    pub memory: mpsc::UnboundedSender<(String, Memory)>,
    /// Ends the bus when it says true, or when its sender is gone. The answer to a question that is out is still taken.
    pub shutdown: watch::Receiver<bool>,
}

/// Runs a bus until it is shut down, or the receiver of its polls is gone. `tls` is for a bus that needs it.
pub async fn run(spec: BusSpec, bus: Bus, tls: Option<Tls>, clock: Arc<dyn Clock>, wires: Wires) {
    let Wires { polls, asks, status, memory, mut shutdown } = wires;
    let mut driver = Driver {
        spec,
        bus,
        tls,
        clock,
        polls,
        asks: Some(asks),
        replies: BTreeMap::new(),
        asked: 0,
        stream: None,
        buffer: [0; MAX_FRAME],
        told: false,
    };
    // When the status was last renewed, and whether anything was done since.
    let (mut told_at, mut untold): (Option<Mono>, bool) = (None, true);
    let mut learnt = driver.bus.memory_revision();
    loop {
        let Some(acted) = driver.act(&mut shutdown).await else { break };
        untold |= acted;
        let now = driver.clock.mono();
        let tell_at = told_at.map_or(now, |at| at + STATUS_EVERY);
        if untold && tell_at <= now {
            status.send_replace(driver.bus.status(now));
            (told_at, untold) = (Some(now), false);
            if core::mem::replace(&mut learnt, driver.bus.memory_revision()) != learnt {
                let _ = memory.send((driver.spec.name.clone(), driver.bus.memory()));
            }
        }
        let wake_at = driver.bus.next_deadline().into_iter().chain(untold.then_some(tell_at)).min();
        if !driver.wait(wake_at, &mut shutdown).await {
            break;
        }
    }
    let _ = memory.send((driver.spec.name.clone(), driver.bus.memory()));
    status.send_replace(driver.bus.status(driver.clock.mono()));
}

struct Driver {
    spec: BusSpec,
    bus: Bus,
    tls: Option<Tls>,
    clock: Arc<dyn Clock>,
    polls: mpsc::Sender<(Mono, Poll)>,
    /// `None` once nobody can ask any more.
    asks: Option<mpsc::Receiver<Ask>>,
    /// Who waits for which reply.
    replies: BTreeMap<u64, oneshot::Sender<Result<Vec<u8>, AskError>>>,
    asked: u64,
    stream: Option<Stream>,
    buffer: [u8; MAX_FRAME],
    /// Whether the trouble with the connection has been logged since the last good answer.
    told: bool,
}

impl Driver {
    /// Does all there is to do now. `None` if the driver is to end, else whether anything was done.
    async fn act(&mut self, shutdown: &mut watch::Receiver<bool>) -> Option<bool> {
        let mut acted = false;
        loop {
            // What arrived before a question is sent cannot be its answer: it is read first.
            self.drain();
            let Some(output) = self.bus.poll(self.clock.mono()) else { return Some(acted) };
            acted = true;
            match output {
                Output::Trace(trace) => {
                    if matches!(trace.outcome, Outcome::Samples(_)) {
                        self.told = false;
                    }
                    let poll = self.stamp(trace);
                    self.polls.send(poll).await.ok()?;
                }
                Output::Disconnect => {
                    self.stream = None;
                    self.tell("connection dropped");
                }
                Output::Release => self.stream = None,
                Output::Reply { id, result } => {
                    if let Some(reply) = self.replies.remove(&id) {
                        // Who asked may have lost patience.
                        let _ = reply.send(result);
                    }
                }
                Output::Ask { .. } if *shutdown.borrow() => return None,
                Output::Ask { frame } => {
                    let timeout = self.spec.timeout;
                    let Some(stream) = &mut self.stream else { continue };
                    // Twelve bytes fit into every socket's buffer, unless the device has stopped to take any.
                    let sent = tokio::time::timeout(timeout, stream.send(&frame)).await;
                    if let Err(error) = sent.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                        self.close(&error);
                    }
                }
                Output::Connect { timeout } => {
                    let connect = Stream::open(&self.spec.link, self.tls.as_ref());
                    let connect = tokio::time::timeout(timeout, connect);
                    let connected = tokio::select! {
                        connected = connect => connected,
                        () = stopped(shutdown) => return None,
                        () = self.polls.closed() => return None,
                    };
                    match connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                        Ok(stream) => {
                            self.stream = Some(stream);
                            self.bus.handle_connected(self.clock.mono());
                            tracing::debug!(bus = %self.spec.name, "connected");
                        }
                        Err(error) => {
                            self.bus.handle_connect_failed(self.clock.mono(), &error.to_string());
                            self.tell("no connection");
                        }
                    }
                }
            }
        }
    }

    /// Sleeps until `wake_at`, or until bytes or a question come. Whether to go on.
    async fn wait(&mut self, wake_at: Option<Mono>, shutdown: &mut watch::Receiver<bool>) -> bool {
        let now = self.clock.mono();
        if wake_at.is_some_and(|at| at <= now) {
            // A flood of traces may keep the bus from sleeping, but not the other tasks from running.
            tokio::task::yield_now().await;
            return (self.bus.is_asking() || !*shutdown.borrow()) && !self.polls.is_closed();
        }
        let nap = async {
            match wake_at {
                #[allow(clippy::disallowed_methods, reason = "the bus is silent until the schedule's deadline")]
                Some(at) => tokio::time::sleep(at.since(now)).await,
                None => core::future::pending().await,
            }
        };
        let read = async {
            match &mut self.stream {
                Some(stream) => stream.read(&mut self.buffer).await,
                None => core::future::pending().await,
            }
        };
        let ask = async {
            match &mut self.asks {
                Some(asks) => asks.recv().await,
                None => core::future::pending().await,
            }
        };
        let read = tokio::select! {
            read = read => read,
            ask = ask => {
                self.ask(ask);
                return true;
            }
            () = nap => return true,
            () = stopped(shutdown), if !self.bus.is_asking() => return false,
            () = self.polls.closed() => return false,
        };
        self.received(read);
        true
    }

    fn ask(&mut self, ask: Option<Ask>) {
        let Some(Ask { unit, pdu, timeout, reply }) = ask else {
            self.asks = None;
            return;
        };
        self.asked += 1;
        let id = self.asked;
        match self.bus.handle_ask(self.clock.mono(), AdHoc { id, unit, pdu: *pdu, timeout }) {
            Ok(()) => {
                self.replies.insert(id, reply);
            }
            Err(error) => {
                let _ = reply.send(Err(error));
            }
        }
    }

    /// Reads what is there, without waiting.
    fn drain(&mut self) {
        while let Some(stream) = &mut self.stream {
            let read = stream.try_read(&mut self.buffer);
            if matches!(&read, Err(error) if error.kind() == io::ErrorKind::WouldBlock) {
                return;
            }
            self.received(read);
            if self.bus.next_deadline() == Some(Mono::ZERO) {
                // An outcome is ready: it goes first, a flood behind it waits.
                return;
            }
        }
    }

    /// So many bytes came, or the connection ended.
    fn received(&mut self, read: io::Result<usize>) {
        match read {
            Ok(0) => self.close(&io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                let now = self.clock.mono();
                self.bus.handle_bytes(now, self.buffer.get(..count).unwrap_or_default());
            }
            Err(error) => self.close(&error),
        }
    }

    fn close(&mut self, error: &io::Error) {
        self.stream = None;
        self.bus.handle_closed(self.clock.mono(), &error.to_string());
        tracing::debug!(bus = %self.spec.name, %error, "connection closed");
    }

    /// Once for each time that the bus was well, then only counted.
    fn tell(&mut self, what: &str) {
        if !core::mem::replace(&mut self.told, true) {
            let error = self.bus.status(self.clock.mono()).last_error.unwrap_or_default();
            tracing::warn!(bus = %self.spec.name, endpoint = %self.spec.endpoint(), %error, "{what}");
        }
    }

    /// The moment of a trace on the wall clock, by what both clocks say now.
    fn stamp(&self, trace: Trace) -> (Mono, Poll) {
        let (mono, wall) = (self.clock.mono(), self.clock.wall());
        let ago = i64::try_from(mono.since(trace.at).as_millis()).unwrap_or(i64::MAX);
        let at = Wall(wall.as_millis().saturating_sub(ago));
        let known = if matches!(trace.outcome, Outcome::Samples(_)) { trace.at } else { mono };
        (known, Poll { request: trace.request, at, outcome: trace.outcome })
    }
}

/// Until `shutdown` says true or nobody can say it any more.
async fn stopped(shutdown: &mut watch::Receiver<bool>) {
    let _ = shutdown.wait_for(|stop| *stop).await;
}
