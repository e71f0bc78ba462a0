//! A Modbus TCP device that lies, by a seeded plan: what a broken converter, a bad line or an attacker does.
//!
//! It serves the registers of [`register`](crate::modbus_device::register), so whatever the agent exports as GOOD can be
//! compared with the truth. Each fault says what an honest client must make of it ([`Fault::outcome`]). At most one fault
//! a request; the plan decides by its seed, so a failure can be played again.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::modbus_device::{MBAP, READ_INPUT, Registers, Request};
use crate::process::pause;

/// One way to misbehave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    /// The exception of that code; legal are 1–8, 10, 11.
    Exception(u8),
    /// The right answer under another transaction id.
    WrongTransaction,
    /// The answer to the request before, with its old transaction id.
    PreviousAnswer,
    /// The data of the answer before under the new transaction id, if it is as long: nothing on the wire tells. Left out
    /// of [`Fault::ALL`]; it shows what cannot be promised.
    PreviousData,
    /// The right answer, twice at once.
    DoubledAtOnce,
    /// The right answer, and the same again after half the client's patience.
    DoubledLate,
    /// Held back until the next request, and then sent after the answer to that one.
    Reversed,
    /// Another unit's number.
    WrongUnit,
    /// Another function's number.
    WrongFunction,
    /// Another protocol id in the header.
    WrongProtocol,
    /// The header's length says less than there is.
    LengthSmall,
    /// The header's length says more, and the rest never comes.
    LengthLarge,
    /// The header's length is 65,535.
    LengthMost,
    /// The header's length is 0.
    LengthZero,
    /// The header's length is 1: a unit and no function.
    LengthOne,
    /// Byte count too low for the data.
    ByteCountLow,
    /// Byte count too high for the data.
    ByteCountHigh,
    /// A byte count that no register fits.
    ByteCountOdd,
    /// A consistent answer with fewer registers than asked.
    Short,
    /// A consistent answer with more registers than asked.
    Long,
    /// Half the answer, then closed.
    TruncatedClosed,
    /// Half the answer, then nothing more.
    TruncatedSilent,
    /// The right answer, a byte at a time, longer than the client's patience.
    Drip,
    /// The right answer in small segments, quickly: legal, must be accepted.
    Segments,
    /// The right answer, and junk behind it.
    JunkAfter,
    /// Junk only.
    JunkInstead,
    /// 256 KiB of junk.
    Flood,
    /// One frame of 65 kB that says so.
    Oversized,
    /// Nothing at all.
    Silence,
    /// The right answer, after the client's patience has ended.
    Late,
    /// The connection is closed instead.
    Close,
    /// The connection is reset instead.
    Reset,
    /// An answer nobody asked for, then the right one.
    Unsolicited,
    /// At connect: reset.
    ConnectReset,
    /// At connect: accepted, never a byte, nothing is read.
    ConnectMute,
    /// At connect: a text banner.
    ConnectBanner,
}

/// What a client that trusts nothing must make of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The true value, and nothing else.
    Value,
    /// DEVICE_ERROR, or NOT_CONFIGURED for an address the device says it has not.
    Refusal,
    /// No value; what status depends on what was seen first.
    NoValue,
    /// The true value or none: both are right.
    Either,
}

impl Fault {
    /// All of them, but for the one that nothing on the wire tells.
    pub const ALL: [Self; 47] = [
        Self::Exception(1),
        Self::Exception(2),
        Self::Exception(3),
        Self::Exception(4),
        Self::Exception(5),
        Self::Exception(6),
        Self::Exception(7),
        Self::Exception(8),
        Self::Exception(9),
        Self::Exception(10),
        Self::Exception(11),
        Self::Exception(0),
        Self::Exception(12),
        Self::Exception(255),
        Self::WrongTransaction,
        Self::PreviousAnswer,
        Self::DoubledAtOnce,
        Self::DoubledLate,
        Self::Reversed,
        Self::WrongUnit,
        Self::WrongFunction,
        Self::WrongProtocol,
        Self::LengthSmall,
        Self::LengthLarge,
        Self::LengthMost,
        Self::LengthZero,
        Self::LengthOne,
        Self::ByteCountLow,
        Self::ByteCountHigh,
        Self::ByteCountOdd,
        Self::Short,
        Self::Long,
        Self::TruncatedClosed,
        Self::TruncatedSilent,
        Self::Drip,
        Self::Segments,
        Self::JunkAfter,
        Self::JunkInstead,
        Self::Flood,
        Self::Oversized,
        Self::Silence,
        Self::Late,
        Self::Close,
        Self::Reset,
        Self::Unsolicited,
        Self::ConnectReset,
        Self::ConnectBanner,
    ];

    /// What must become of a request that meets it.
    #[must_use]
    pub const fn outcome(self) -> Outcome {
        match self {
            Self::Segments => Outcome::Value,
            Self::Exception(1..=8 | 10 | 11) => Outcome::Refusal,
            Self::DoubledAtOnce | Self::DoubledLate | Self::JunkAfter | Self::Unsolicited => Outcome::Either,
            // A client that reconnects at once gets the answer of the next connection.
            Self::Close | Self::Reset | Self::ConnectReset | Self::ConnectMute | Self::ConnectBanner => Outcome::Either,
            _ => Outcome::NoValue,
        }
    }

    /// Whether it happens to a connection instead of a request: a device must drop connections to show it again.
    #[must_use]
    pub const fn at_connect(self) -> bool {
        matches!(self, Self::ConnectReset | Self::ConnectMute | Self::ConnectBanner)
    }
}

/// When to misbehave, and how.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Chance comes from here alone.
    pub seed: u64,
    /// Which faults, each as likely as the other; empty = honest.
    pub faults: Vec<Fault>,
    /// How many of 100 requests (for faults at connect: connections) meet one.
    pub percent: u8,
    /// The client's time-out: what [`Fault::Late`] and its like must outlast.
    pub patience: Duration,
}

impl Plan {
    /// Always right.
    #[must_use]
    pub fn honest() -> Self {
        Self { seed: 0, faults: Vec::new(), percent: 0, patience: Duration::from_secs(1) }
    }
}

/// What it saw and did.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// Connections accepted.
    pub connections: u64,
    /// Requests read.
    pub requests: u64,
    /// Requests of another function than 1–4: an agent that only reads sends none.
    pub writes: u64,
    /// How often each fault was played.
    pub played: BTreeMap<Fault, u64>,
}

/// A hostile device on a loopback port of its own. Stops when dropped.
#[derive(Debug)]
pub struct HostileModbus {
    address: SocketAddr,
    state: Arc<State>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct State {
    plan: Plan,
    shared: Mutex<(fastrand::Rng, Record)>,
}

impl HostileModbus {
    /// Starts one.
    ///
    /// # Errors
    /// If loopback has no port left.
    pub async fn start(plan: Plan) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let shared = Mutex::new((fastrand::Rng::with_seed(plan.seed), Record::default()));
        let state = Arc::new(State { plan, shared });
        let server = Arc::clone(&state);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let state = Arc::clone(&server);
                // What a peer does to its connection ends that connection alone.
                tokio::spawn(async move { serve(stream, &state).await });
            }
        });
        Ok(Self { address, state, task })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it saw and did so far.
    #[must_use]
    pub fn record(&self) -> Record {
        self.state.shared.lock().unwrap_or_else(PoisonError::into_inner).1.clone()
    }
}

impl Drop for HostileModbus {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl State {
    /// Draws the fault of the next request or connection, and counts.
    fn draw(&self, at_connect: bool, count: impl FnOnce(&mut Record)) -> Option<Fault> {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let (rng, record) = &mut *shared;
        count(record);
        let fitting: Vec<Fault> =
            self.plan.faults.iter().copied().filter(|fault| fault.at_connect() == at_connect).collect();
        if fitting.is_empty() || rng.u8(0..100) >= self.plan.percent {
            return None;
        }
        let fault = fitting[rng.usize(0..fitting.len())];
        *record.played.entry(fault).or_default() += 1;
        Some(fault)
    }

    fn junk(&self, bytes: usize) -> Vec<u8> {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        (0..bytes).map(|_| shared.0.u8(..)).collect()
    }
}

/// What one connection remembers between requests.
#[derive(Default)]
struct Line {
    /// The answer before.
    previous: Option<Vec<u8>>,
    /// Held back by [`Fault::Reversed`].
    held: Option<Vec<u8>>,
}

async fn serve(stream: TcpStream, state: &State) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let fault = state.draw(true, |record| record.connections += 1);
    if fault == Some(Fault::ConnectReset) {
        return stream.set_zero_linger();
    }
    let (mut reading, writing) = stream.into_split();
    let mut out = Writer(writing);
    match fault {
        Some(Fault::ConnectMute) => {
            pause(state.plan.patience * 20).await;
            return Ok(());
        }
        Some(Fault::ConnectBanner) => out.send(b"220 device ready, login:\r\n").await?,
        _ => {}
    }
    let mut line = Line::default();
    loop {
        let request = Request::read(&mut reading).await?;
        let fault = state.draw(false, |record| {
            record.requests += 1;
            record.writes += u64::from(request.function == 0 || request.function > READ_INPUT);
        });
        let answer = request.answer(Registers::Known, 0);
        let held = line.held.take();
        play(fault, &request, &answer, &mut line, &mut out, state).await?;
        if let Some(held) = held {
            out.send(&held).await?;
        }
        line.previous = Some(answer);
    }
}

/// Sends what the fault makes of the answer; an error ends the connection.
async fn play(
    fault: Option<Fault>,
    request: &Request,
    answer: &[u8],
    line: &mut Line,
    out: &mut Writer,
    state: &State,
) -> io::Result<()> {
    let patience = state.plan.patience;
    let changed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut frame = answer.to_vec();
        change(&mut frame);
        frame
    };
    let length = |value: u16| changed(&|frame| frame[4..6].copy_from_slice(&value.to_be_bytes()));
    let said = u16::from_be_bytes([answer[4], answer[5]]);
    let data = answer.get(MBAP + 2..).unwrap_or_default();
    let counted = |data: &[u8]| request.frame(&[&[request.function, data.len() as u8], data].concat());
    match fault {
        None => out.send(answer).await,
        Some(Fault::Exception(code)) => out.send(&request.exception(code)).await,
        Some(Fault::WrongTransaction) => out.send(&changed(&|frame| frame[1] ^= 0x55)).await,
        Some(Fault::PreviousAnswer) => out.send(line.previous.as_deref().unwrap_or_default()).await,
        Some(Fault::PreviousData) => {
            let mut frame = line.previous.clone().unwrap_or_else(|| answer.to_vec());
            frame[..2].copy_from_slice(&answer[..2]);
            out.send(&frame).await
        }
        Some(Fault::DoubledAtOnce) => out.send(&[answer, answer].concat()).await,
        Some(Fault::DoubledLate) => {
            out.send(answer).await?;
            pause(patience / 2).await;
            out.send(answer).await
        }
        Some(Fault::Reversed) => {
            line.held = Some(answer.to_vec());
            Ok(())
        }
        Some(Fault::WrongUnit) => out.send(&changed(&|frame| frame[6] = frame[6].wrapping_add(1))).await,
        Some(Fault::WrongFunction) => out.send(&changed(&|frame| frame[7] = if frame[7] == 3 { 4 } else { 3 })).await,
        Some(Fault::WrongProtocol) => out.send(&changed(&|frame| frame[3] = 1)).await,
        Some(Fault::LengthSmall) => out.send(&length(said - 2)).await,
        Some(Fault::LengthLarge) => out.send(&length(said + 5)).await,
        Some(Fault::LengthMost) => out.send(&length(u16::MAX)).await,
        Some(Fault::LengthZero) => out.send(&length(0)).await,
        Some(Fault::LengthOne) => out.send(&length(1)).await,
        Some(Fault::ByteCountLow) => out.send(&changed(&|frame| frame[8] = frame[8].saturating_sub(2))).await,
        Some(Fault::ByteCountHigh) => out.send(&changed(&|frame| frame[8] = frame[8].saturating_add(2))).await,
        Some(Fault::ByteCountOdd) => out.send(&changed(&|frame| frame[8] ^= 1)).await,
        Some(Fault::Short) => out.send(&counted(&data[..data.len().saturating_sub(2)])).await,
        Some(Fault::Long) => out.send(&counted(&[data, &[0xAB, 0xCD]].concat())).await,
        Some(Fault::TruncatedClosed) => {
            out.send(&answer[..answer.len() / 2]).await?;
            Err(io::ErrorKind::ConnectionAborted.into())
        }
        Some(Fault::TruncatedSilent) => out.send(&answer[..answer.len() / 2]).await,
        Some(Fault::Drip) => out.drip(answer, patience.mul_f32(1.5) / answer.len() as u32).await,
        Some(Fault::Segments) => {
            for part in answer.chunks(3) {
                out.send(part).await?;
                tokio::task::yield_now().await;
            }
            Ok(())
        }
        Some(Fault::JunkAfter) => out.send(&[answer, &state.junk(32)].concat()).await,
        Some(Fault::JunkInstead) => out.send(&state.junk(64)).await,
        Some(Fault::Flood) => out.send(&state.junk(256 * 1024)).await,
        Some(Fault::Oversized) => out.send(&[&length(u16::MAX)[..], &state.junk(65_536)].concat()).await,
        Some(Fault::Silence) => Ok(()),
        Some(Fault::Late) => {
            pause(patience.mul_f32(1.3)).await;
            out.send(answer).await
        }
        Some(Fault::Close) => Err(io::ErrorKind::ConnectionAborted.into()),
        Some(Fault::Reset) => {
            out.0.as_ref().set_zero_linger()?;
            Err(io::ErrorKind::ConnectionReset.into())
        }
        Some(Fault::Unsolicited) => {
            let stale = changed(&|frame| {
                frame[0] = frame[0].wrapping_sub(1);
                frame.iter_mut().skip(MBAP + 2).for_each(|byte| *byte = !*byte);
            });
            out.send(&[&stale, answer].concat()).await
        }
        Some(Fault::ConnectReset | Fault::ConnectMute | Fault::ConnectBanner) => out.send(answer).await,
    }
}

/// The way out of a connection.
struct Writer(OwnedWriteHalf);

impl Writer {
    async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes).await
    }

    async fn drip(&mut self, bytes: &[u8], spacing: Duration) -> io::Result<()> {
        for byte in bytes {
            self.send(&[*byte]).await?;
            pause(spacing).await;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;
    use crate::modbus_device::{READ_HOLDING, register};

    const ASK: [u8; 12] = [0, 1, 0, 0, 0, 6, 1, READ_HOLDING, 0, 0, 0, 2];

    const PATIENCE: Duration = Duration::from_secs(30);

    /// Asks once on each of so many connections. What it answered, as soon as its record has the question or what became
    /// of the connection: time is given only to what comes late or never.
    async fn ask(plan: Plan, times: usize) -> (Vec<Vec<u8>>, Record) {
        let device = HostileModbus::start(plan).await.expect("loopback");
        let mut answers = Vec::new();
        for _ in 0..times {
            let done = |record: &Record| {
                let ended =
                    record.played.iter().filter(|(fault, _)| fault.at_connect() && **fault != Fault::ConnectBanner);
                record.requests + ended.map(|(_, times)| times).sum::<u64>()
            };
            let before = done(&device.record());
            let mut stream = TcpStream::connect(device.address()).await.expect("it listens");
            let mut answer = vec![0; 64];
            let sent = stream.write_all(&ASK).await;
            let played = async {
                while done(&device.record()) == before {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(PATIENCE, played).await.expect("it reads the question");
            let read = tokio::time::timeout(Duration::from_millis(50), stream.read(&mut answer)).await;
            answer.truncate(sent.ok().and(read.ok()).and_then(Result::ok).unwrap_or(0));
            answers.push(answer);
        }
        (answers, device.record())
    }

    #[tokio::test]
    async fn honest_without_faults() {
        let (answers, record) = ask(Plan::honest(), 3).await;
        let right =
            [&[0, 1, 0, 0, 0, 7, 1, 3, 4][..], &register(1, 3, 0).to_be_bytes(), &register(1, 3, 1).to_be_bytes()];
        assert!(answers.iter().all(|answer| *answer == right.concat()), "{answers:02x?}");
        assert_eq!((record.requests, record.writes, record.played.len()), (3, 0, 0));
    }

    /// Every fault can be seen on the wire: none is an honest answer by mistake.
    #[tokio::test]
    async fn each_fault_differs_from_the_truth() {
        let right = ask(Plan::honest(), 1).await.0.remove(0);
        for fault in Fault::ALL {
            let patience = Duration::from_millis(200);
            let (answers, record) = ask(Plan { seed: 1, faults: vec![fault], percent: 100, patience }, 1).await;
            assert_eq!(record.played.get(&fault), Some(&1), "{fault:?}");
            // These begin honestly; what is wrong follows, or precedes the next request.
            let honest_start = matches!(fault, Fault::DoubledLate | Fault::Segments);
            assert!(answers[0] != right || honest_start, "{fault:?} looks like the truth");
        }
    }

    #[tokio::test]
    async fn the_seed_decides() {
        let plan = || Plan { seed: 7, faults: Fault::ALL.to_vec(), percent: 50, patience: Duration::from_millis(1) };
        let (first, second) = (ask(plan(), 20).await, ask(plan(), 20).await);
        assert_eq!(first.1.played, second.1.played);
    }
}
