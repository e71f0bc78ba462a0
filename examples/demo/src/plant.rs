//! A simulated Modbus TCP slave. It is also a witness: it writes down every answer it gives, with its number, its time and
//! all its values, and the proof holds these notes against the database.
//!
//! While it is silent it takes requests and answers none, as a device does whose processor hangs.

use std::collections::BTreeMap;
use std::future;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use tokio::net::TcpListener;
use tokio_modbus::prelude::{ExceptionCode, Request, Response, SlaveRequest};
use tokio_modbus::server::Service;
use tokio_modbus::server::tcp::{Server, accept_tcp_connection};

use crate::machines::Machine;

/// What a slave answered, by the number of the answer.
pub(crate) type Notes = BTreeMap<u32, Answer>;

/// One answer.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    /// When it was given, in ms since 1970.
    pub(crate) at_ms: i64,
    /// The raw value of each point of the machine, in their order.
    pub(crate) raw: Vec<u32>,
}

/// A slave: one machine, on a port of its own.
pub(crate) struct Slave {
    pub(crate) machine: &'static Machine,
    began: Instant,
    state: Mutex<State>,
}

struct State {
    notes: Notes,
    silent: bool,
    chance: fastrand::Rng,
}

impl Slave {
    /// Serves `machine`; gives the slave and its port.
    ///
    /// # Errors
    /// No port.
    #[expect(clippy::disallowed_methods, reason = "the plant is the world outside: it has a clock of its own")]
    pub(crate) async fn serve(machine: &'static Machine, seed: u64) -> io::Result<(Arc<Self>, u16)> {
        let state = State { notes: Notes::new(), silent: false, chance: fastrand::Rng::with_seed(seed) };
        let slave = Arc::new(Self { machine, began: Instant::now(), state: Mutex::new(state) });
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let port = listener.local_addr()?.port();
        let service = Arc::clone(&slave);
        tokio::spawn(async move {
            let connected = |stream, address: SocketAddr| {
                let service = Arc::clone(&service);
                async move { accept_tcp_connection(stream, address, move |_| Ok(Some(Arc::clone(&service)))) }
            };
            // A connection that breaks is the agent's business.
            let _ = Server::new(listener).serve(&connected, |_| {}).await;
        });
        Ok((slave, port))
    }

    /// Falls silent, or speaks again.
    pub(crate) fn be_silent(&self, silent: bool) {
        self.state().silent = silent;
    }

    /// What it has answered so far.
    pub(crate) fn notes(&self) -> Notes {
        self.state().notes.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The registers of one answer, which is written down; none while silent.
    fn registers(&self) -> Option<Vec<u16>> {
        let state = &mut *self.state();
        if state.silent {
            return None;
        }
        let number = state.notes.last_key_value().map_or(1, |(last, _)| last + 1);
        let seconds = self.began.elapsed().as_secs_f64();
        let points = self.machine.points;
        let raw: Vec<u32> = points.iter().map(|point| point.raw(number, seconds, &mut state.chance)).collect();
        let registers = points.iter().zip(&raw).flat_map(|(point, raw)| {
            let words = [(raw >> 16) as u16, *raw as u16];
            words.into_iter().skip(2 - usize::from(point.coding.width()))
        });
        let registers = registers.collect();
        state.notes.insert(number, Answer { at_ms: now_ms(), raw });
        Some(registers)
    }
}

impl Service for Slave {
    type Request = SlaveRequest<'static>;
    type Response = Option<Response>;
    type Exception = ExceptionCode;
    type Future = future::Ready<Result<Self::Response, Self::Exception>>;

    fn call(&self, request: Self::Request) -> Self::Future {
        let all: u16 = self.machine.points.iter().map(|point| point.coding.width()).sum();
        future::ready(match request.request {
            // The plan is one request for everything; with two of them a poll would have two numbers.
            Request::ReadHoldingRegisters(0, count) if count == all => {
                Ok(self.registers().map(Response::ReadHoldingRegisters))
            }
            Request::ReadHoldingRegisters(..) => Err(ExceptionCode::IllegalDataAddress),
            _ => Err(ExceptionCode::IllegalFunction),
        })
    }
}

/// The wall clock in ms since 1970.
#[expect(clippy::disallowed_methods, reason = "the plant is the world outside: it has a clock of its own")]
pub(crate) fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
