//! What an honest Modbus TCP device answers, and a fast simulator of many.
//!
//! ```text
//! MBAP  | transaction 2 | protocol 2 = 0 | length 2 | unit 1 |      (MODBUS Messaging on TCP/IP, 3.1.3)
//! PDU   | function 1 | address 2 | count 2 |                          request of functions 1-4
//!       | function 1 | byte count 1 | data … |                        answer
//!       | function + 0x80 | exception 1 |                             refusal
//! ```
//!
//! Written apart from the agent's own codec on purpose: a mistake made there is not repeated here.
//! The registers are a known function of unit, table and address ([`register`]), so that each exported value can be
//! checked; or plausible floats ([`Registers::Floats`]) for benchmarks.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tributary::clock::SystemClock;
use tributary_protocols::time::Clock;

use crate::process::pause;

/// Bytes of the MBAP header, unit included.
pub const MBAP: usize = 7;

/// The four tables, as the function codes that read them.
pub const READ_COILS: u8 = 1;
/// Discrete inputs.
pub const READ_DISCRETE: u8 = 2;
/// Holding registers.
pub const READ_HOLDING: u8 = 3;
/// Input registers.
pub const READ_INPUT: u8 = 4;

/// What stands in a register, as known to the device and to the check: different for any two addresses of one table.
#[must_use]
pub const fn register(unit: u8, function: u8, address: u16) -> u16 {
    address
        .wrapping_mul(31)
        .wrapping_add((unit as u16).wrapping_mul(257))
        .wrapping_add((function as u16).wrapping_mul(4_099))
        .wrapping_add(7)
}

/// What a coil or discrete input says.
#[must_use]
pub const fn bit(unit: u8, function: u8, address: u16) -> bool {
    register(unit, function, address).is_multiple_of(3)
}

/// What the registers of a device hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Registers {
    /// [`register`] and [`bit`].
    Known,
    /// Registers 0 and 1 are the number of the request as a big-endian u32, so that every poll has a value of its own;
    /// the others are known.
    Counting,
    /// Each pair of registers from an even address on is a big-endian f32: a level of its own, in steps of 0.1 that
    /// change with the number of the request, as a measured quantity of limited resolution does.
    Floats,
}

impl Registers {
    /// One register, in the `request`-th request of the device (the first is 1).
    #[must_use]
    pub fn read(self, unit: u8, function: u8, address: u16, request: u64) -> u16 {
        match self {
            Self::Counting if address == 0 => (request >> 16) as u16,
            Self::Counting if address == 1 => request as u16,
            Self::Known | Self::Counting => register(unit, function, address),
            Self::Floats => {
                let pair = u64::from(address / 2);
                let level = 20.0 + (pair % 50) as f32;
                let noise = ((request.wrapping_mul(7) + pair.wrapping_mul(13) + u64::from(unit)) % 10) as f32 * 0.1;
                let bits = (level + noise).to_bits();
                if address.is_multiple_of(2) { (bits >> 16) as u16 } else { bits as u16 }
            }
        }
    }
}

/// A request as it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// To be repeated in the answer.
    pub transaction: u16,
    /// Which device behind the address.
    pub unit: u8,
    /// The function code.
    pub function: u8,
    /// First register or bit, from zero.
    pub address: u16,
    /// How many.
    pub count: u16,
}

impl Request {
    /// Reads the next one from a connection.
    ///
    /// # Errors
    /// At the end of the stream, or if it is not Modbus.
    pub async fn read(stream: &mut (impl AsyncReadExt + Unpin)) -> io::Result<Self> {
        let mut header = [0; MBAP];
        stream.read_exact(&mut header).await?;
        let length = u16::from_be_bytes([header[4], header[5]]);
        if header[2..4] != [0, 0] || !(2..=254).contains(&length) {
            return Err(io::Error::other(format!("not a Modbus request: {header:02x?}")));
        }
        let mut pdu = vec![0; usize::from(length) - 1];
        stream.read_exact(&mut pdu).await?;
        let word = |at: usize| u16::from_be_bytes([*pdu.get(at).unwrap_or(&0), *pdu.get(at + 1).unwrap_or(&0)]);
        Ok(Self {
            transaction: u16::from_be_bytes([header[0], header[1]]),
            unit: header[6],
            function: pdu[0],
            address: word(1),
            count: word(3),
        })
    }

    /// The whole honest answer: data, or the exception that the standard demands (MODBUS Application Protocol 1.1b3, 6).
    #[must_use]
    pub fn answer(&self, registers: Registers, request: u64) -> Vec<u8> {
        let read = |at: u16| registers.read(self.unit, self.function, self.address.wrapping_add(at), request);
        let most = match self.function {
            READ_COILS | READ_DISCRETE => 2_000,
            READ_HOLDING | READ_INPUT => 125,
            _ => return self.exception(1),
        };
        if self.count == 0 || self.count > most {
            return self.exception(3);
        }
        if u32::from(self.address) + u32::from(self.count) > 0x1_0000 {
            return self.exception(2);
        }
        let mut data = Vec::with_capacity(256);
        if most == 125 {
            (0..self.count).for_each(|at| data.extend_from_slice(&read(at).to_be_bytes()));
        } else {
            data.resize(usize::from(self.count).div_ceil(8), 0);
            for at in 0..self.count {
                if bit(self.unit, self.function, self.address.wrapping_add(at)) {
                    data[usize::from(at / 8)] |= 1 << (at % 8);
                }
            }
        }
        let mut pdu = vec![self.function, data.len() as u8];
        pdu.extend_from_slice(&data);
        self.frame(&pdu)
    }

    /// An exception answer, legal or not.
    #[must_use]
    pub fn exception(&self, code: u8) -> Vec<u8> {
        self.frame(&[self.function | 0x80, code])
    }

    /// A PDU behind the header that belongs to this request.
    #[must_use]
    pub fn frame(&self, pdu: &[u8]) -> Vec<u8> {
        let mut frame = Vec::with_capacity(MBAP + pdu.len());
        frame.extend_from_slice(&self.transaction.to_be_bytes());
        frame.extend_from_slice(&[0, 0]);
        frame.extend_from_slice(&(pdu.len() as u16 + 1).to_be_bytes());
        frame.push(self.unit);
        frame.extend_from_slice(pdu);
        frame
    }
}

/// A well-behaved device (any unit id answers), on a loopback port of its own. Stops when dropped.
#[derive(Debug)]
pub struct Simulator {
    address: SocketAddr,
    requests: Arc<AtomicU64>,
    intervals: Arc<Mutex<Vec<u32>>>,
    task: JoinHandle<()>,
}

impl Simulator {
    /// Starts one that answers after `latency` (zero = at once).
    ///
    /// # Errors
    /// If loopback has no port left.
    pub async fn start(registers: Registers, latency: Duration) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let requests = Arc::new(AtomicU64::new(0));
        let intervals = Arc::<Mutex<Vec<u32>>>::default();
        let (counter, rhythm) = (Arc::clone(&requests), Arc::clone(&intervals));
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, registers, latency, Arc::clone(&counter), Arc::clone(&rhythm)));
            }
        });
        Ok(Self { address, requests, intervals, task })
    }

    /// Many of them, one port each: so many buses can be polled at once.
    ///
    /// # Errors
    /// If loopback has not that many ports left.
    pub async fn start_many(count: usize, registers: Registers, latency: Duration) -> io::Result<Vec<Self>> {
        let mut devices = Vec::with_capacity(count);
        for _ in 0..count {
            devices.push(Self::start(registers, latency).await?);
        }
        Ok(devices)
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The times between two requests for address 0 on one connection, in µs, since they were last taken.
    #[must_use]
    pub fn take_intervals(&self) -> Vec<u32> {
        std::mem::take(&mut self.intervals.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// How many requests it has answered.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }
}

/// Root of the mean square of the differences of `intervals` from `period`, all in µs.
#[must_use]
pub fn deviation(intervals: &[u32], period: u32) -> f64 {
    let squares = intervals.iter().map(|interval| f64::from(interval.abs_diff(period)).powi(2)).sum::<f64>();
    (squares / intervals.len() as f64).sqrt()
}

/// What 99 of 100 of `intervals` differ from `period` by at most, all in µs.
#[must_use]
pub fn jitter(intervals: &[u32], period: u32) -> u32 {
    let mut differences: Vec<u32> = intervals.iter().map(|interval| interval.abs_diff(period)).collect();
    differences.sort_unstable();
    differences.get(differences.len() * 99 / 100).copied().unwrap_or(u32::MAX)
}

impl Drop for Simulator {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(
    mut stream: TcpStream,
    registers: Registers,
    latency: Duration,
    requests: Arc<AtomicU64>,
    intervals: Arc<Mutex<Vec<u32>>>,
) {
    let (clock, mut cycle) = (SystemClock::new(), None);
    // Refused only on a socket that is already gone.
    let _ = stream.set_nodelay(true);
    while let Ok(request) = Request::read(&mut stream).await {
        let number = requests.fetch_add(1, Ordering::Relaxed) + 1;
        if request.address == 0 {
            let now = clock.mono();
            if let Some(before) = cycle.replace(now) {
                let interval = u32::try_from(now.since(before).as_micros()).unwrap_or(u32::MAX);
                intervals.lock().unwrap_or_else(PoisonError::into_inner).push(interval);
            }
        }
        if latency > Duration::ZERO {
            pause(latency).await;
        }
        if stream.write_all(&request.answer(registers, number)).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUEST: Request = Request { transaction: 9, unit: 1, function: READ_HOLDING, address: 2, count: 2 };

    #[test]
    fn honest_answer_is_the_standards() {
        let answer = REQUEST.answer(Registers::Known, 0);
        let (first, second) = (register(1, 3, 2).to_be_bytes(), register(1, 3, 3).to_be_bytes());
        let expected = [0, 9, 0, 0, 0, 7, 1, 3, 4, first[0], first[1], second[0], second[1]];
        assert_eq!(answer, expected);
    }

    #[test]
    fn too_much_is_refused() {
        let pdu = |request: Request| request.answer(Registers::Known, 0).split_off(MBAP);
        assert_eq!(pdu(Request { count: 126, ..REQUEST }), [0x83, 3]);
        assert_eq!(pdu(Request { address: 0xFFFF, ..REQUEST }), [0x83, 2]);
        assert_eq!(pdu(Request { function: 6, ..REQUEST }), [0x86, 1], "nothing here can be written");
    }

    #[test]
    fn intervals_deviate_from_their_period() {
        let intervals: Vec<u32> = (0..100).map(|n| if n == 7 { 150 } else { 99 }).collect();
        assert!((deviation(&intervals, 100) - (99.0_f64 / 100.0 + 25.0).sqrt()).abs() < 1e-9);
        assert_eq!((jitter(&intervals[8..], 100), jitter(&intervals, 100), jitter(&[], 100)), (1, 50, u32::MAX));
    }

    #[test]
    fn floats_are_floats() {
        let (high, low) = (Registers::Floats.read(1, 3, 10, 4), Registers::Floats.read(1, 3, 11, 4));
        let value = f32::from_bits(u32::from(high) << 16 | u32::from(low));
        assert!((25.0..26.0).contains(&value), "{value}");
    }

    #[test]
    fn no_two_addresses_look_alike() {
        let seen: std::collections::BTreeSet<u16> = (0..=u16::MAX).map(|address| register(3, 4, address)).collect();
        assert_eq!(seen.len(), 65_536);
    }
}
