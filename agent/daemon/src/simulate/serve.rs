//! Serves simulated units on TCP and on serial lines, until it is told to stop.
//!
//! A unit that is not there stays silent on a serial line, and on TCP is answered for by exception 11, as a gateway does.
//! One task a connection; one question is answered at a time, as on a real bus.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tributary_protocols::modbus::config::Framing;
use tributary_protocols::modbus::frame::{self, Frame};
use tributary_protocols::time::{Clock, Mono};

use super::fault::{Fault, Kind, draw, spoil};
use super::image::{Unit, exception};
use super::replay::Replay;
use crate::clock::SystemClock;

/// Longest question that can be, and as much again.
const BUFFER: usize = 512;

/// The units of a bus, and what goes wrong.
#[derive(Debug)]
pub struct Served {
    /// Its units.
    pub units: Vec<Unit>,
    /// What goes wrong on purpose.
    pub faults: Vec<Fault>,
    /// Values from a file.
    pub replay: Option<Replay>,
    /// Where chance comes from.
    pub seed: u64,
    /// When the simulation began.
    pub start: Mono,
    /// Tells the time since then.
    pub clock: SystemClock,
}

/// Serves everyone who connects.
///
/// # Errors
/// Those of the listener.
pub async fn listen(listener: TcpListener, framing: Framing, served: Arc<Served>) -> io::Result<()> {
    let mut rng = Rng::with_seed(served.seed);
    loop {
        let (stream, peer) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tracing::info!(%peer, "a master connected");
        let (served, rng) = (Arc::clone(&served), rng.fork());
        // What a master does to its connection ends that connection alone.
        tokio::spawn(async move { serve(stream, framing, &served, rng).await });
    }
}

/// Serves one master until it goes.
///
/// # Errors
/// Those of the stream.
pub async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    framing: Framing,
    served: &Served,
    mut rng: Rng,
) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(BUFFER);
    let mut chunk = [0; 260];
    loop {
        let count = stream.read(&mut chunk).await?;
        if count == 0 {
            return Ok(());
        }
        buffer.extend_from_slice(&chunk[..count]);
        while let Some(Question { unit, transaction, pdu, bytes }) = take(framing, &mut buffer)? {
            let Some((answer, kind)) = served.answer(framing, unit, &pdu, &mut rng) else { continue };
            let answer = Frame::pack(framing, unit, &answer, transaction);
            let sent = spoil(kind, &bytes, &answer, framing, &mut rng);
            for (delay, piece) in sent.pieces {
                if delay > Duration::ZERO {
                    // The very fault is that time passes.
                    let _ = tokio::time::timeout(delay, std::future::pending::<()>()).await;
                }
                stream.write_all(&piece).await?;
                stream.flush().await?;
            }
            if sent.close {
                return Ok(());
            }
        }
        // What is no question by now will not become one.
        if buffer.len() > BUFFER {
            buffer.clear();
        }
    }
}

impl Served {
    /// The answer's PDU, and how it is to be spoilt; `None` if nobody answers.
    fn answer(&self, framing: Framing, unit: u8, pdu: &[u8], rng: &mut Rng) -> Option<(Vec<u8>, Option<Kind>)> {
        let function = pdu.first().copied().unwrap_or(0);
        let Some(found) = self.units.iter().find(|found| found.spec().unit == unit) else {
            return (framing == Framing::Tcp).then(|| (exception(function, 11), None));
        };
        let kind = draw(&self.faults, unit, rng);
        let seconds = self.clock.mono().since(self.start).as_secs_f64();
        let answer = match kind {
            Some(Kind::Exception(code)) => exception(function, code),
            _ => found.answer(pdu, seconds, self.replay.as_ref()),
        };
        Some((answer, kind))
    }
}

/// A question as it came.
struct Question {
    unit: u8,
    transaction: u16,
    pdu: Vec<u8>,
    bytes: Vec<u8>,
}

/// Takes the next question out of what came.
fn take(framing: Framing, buffer: &mut Vec<u8>) -> io::Result<Option<Question>> {
    match framing {
        Framing::Tcp => {
            let doubt = |doubt: frame::Doubt| io::Error::new(io::ErrorKind::InvalidData, doubt.to_string());
            let Some(length) = frame::length(buffer).map_err(doubt)?.filter(|length| *length <= buffer.len()) else {
                return Ok(None);
            };
            let bytes: Vec<u8> = buffer.drain(..length).collect();
            let transaction = frame::transaction(&bytes).unwrap_or(0);
            let (unit, pdu) = (bytes.get(6).copied().unwrap_or(0), bytes.get(7..).unwrap_or_default().to_vec());
            Ok(Some(Question { unit, transaction, pdu, bytes }))
        }
        // A line has no lengths: a question is what has its checksum at a length that its function can have.
        Framing::Rtu => {
            for start in 0..buffer.len() {
                let rest = buffer.get(start..).unwrap_or_default();
                for length in lengths(rest.get(1).copied().unwrap_or(0)) {
                    let Some((&unit, pdu)) = rest.get(..length - 2).and_then(|body| body.split_first()) else {
                        continue;
                    };
                    if *Frame::pack(Framing::Rtu, unit, pdu, 0) == *rest.get(..length).unwrap_or_default() {
                        let question =
                            Question { unit, transaction: 0, pdu: pdu.to_vec(), bytes: rest[..length].to_vec() };
                        buffer.drain(..start + length);
                        return Ok(Some(question));
                    }
                }
            }
            Ok(None)
        }
    }
}

/// How long a question of a function is on a serial line; of one that is not known any short length.
fn lengths(function: u8) -> std::ops::RangeInclusive<usize> {
    match function {
        1..=6 => 8..=8,
        17 => 4..=4,
        43 => 7..=7,
        _ => 4..=32,
    }
}
