//! A link that can be cut: a TCP relay between a client and a server, cutting at will, by a period, or after bytes.
//!
//! This is the radio link of a gateway in a tunnel: connections die in mid-packet (reset, not closed), come back, and
//! die again. It never changes a byte.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::process::pause;

/// How a link behaves.
#[derive(Clone, Copy, Debug, Default)]
pub struct Link {
    /// Cuts all connections this often.
    pub cut_every: Option<Duration>,
    /// Cuts a connection after it has carried so many bytes, both ways together.
    pub cut_after: Option<u64>,
    /// Holds each piece back for so long, each way.
    pub delay: Duration,
    /// What [`Proxy::arm`] waits for in the pieces of a client.
    pub snare: Option<&'static str>,
}

/// The relay. Stops when dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
    cutting: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    /// Counts cuts; every connection watches it.
    cuts: watch::Sender<u64>,
    connections: AtomicU64,
    bytes: AtomicU64,
    up: AtomicBool,
    /// Nothing gets through, and nobody is told.
    half_open: watch::Sender<bool>,
    armed: AtomicBool,
    caught: AtomicU64,
}

impl Proxy {
    /// Starts one that leads to `target`.
    ///
    /// # Errors
    /// If loopback has no port left.
    pub async fn start(target: SocketAddr, link: Link) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            cuts: watch::channel(0).0,
            connections: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            up: AtomicBool::new(true),
            half_open: watch::channel(false).0,
            armed: AtomicBool::new(false),
            caught: AtomicU64::new(0),
        });
        let relay_shared = Arc::clone(&shared);
        let relaying = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let shared = Arc::clone(&relay_shared);
                if !shared.up.load(Ordering::Relaxed) {
                    // An error here means that the client has gone first.
                    let _ = client.set_zero_linger();
                    continue;
                }
                shared.connections.fetch_add(1, Ordering::Relaxed);
                // What ends a connection is the link's business or its ends'; nothing is lost by not looking.
                tokio::spawn(async move { relay(client, target, link, &shared).await });
            }
        });
        let cutting = link.cut_every.map(|period| {
            let shared = Arc::clone(&shared);
            tokio::spawn(async move {
                loop {
                    pause(period).await;
                    shared.cuts.send_modify(|cuts| *cuts += 1);
                }
            })
        });
        Ok(Self { address, shared, accepting: relaying, cutting })
    }

    /// Where clients connect.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Cuts every connection now, in mid-packet.
    pub fn cut(&self) {
        self.shared.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Lets the link hold from now on: no more cuts by the period.
    pub fn stop_cutting(&self) {
        if let Some(cutting) = &self.cutting {
            cutting.abort();
        }
    }

    /// Takes the link down (cuts, and refuses new connections) or up again.
    pub fn set_up(&self, up: bool) {
        self.shared.up.store(up, Ordering::Relaxed);
        if !up {
            self.cut();
        }
    }

    /// Half open from now on: takes connections and what they say, and carries nothing; or as before, with what it took
    /// meanwhile lost.
    pub fn set_half_open(&self, half_open: bool) {
        if !half_open {
            self.cut();
        }
        self.shared.half_open.send_replace(half_open);
    }

    /// From the next piece of a client on that has the [snare](Link::snare) in it, that connection carries nothing more.
    pub fn arm(&self, armed: bool) {
        self.shared.armed.store(armed, Ordering::Relaxed);
    }

    /// How many pieces were caught.
    #[must_use]
    pub fn caught(&self) -> u64 {
        self.shared.caught.load(Ordering::Relaxed)
    }

    /// How often it has cut.
    #[must_use]
    pub fn cuts(&self) -> u64 {
        *self.shared.cuts.borrow()
    }

    /// How many connections it has taken.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// How many bytes it has carried, both ways together.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.shared.bytes.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.stop_cutting();
    }
}

async fn relay(client: TcpStream, target: SocketAddr, link: Link, shared: &Shared) -> io::Result<()> {
    let mut cut = shared.cuts.subscribe();
    cut.mark_unchanged();
    let server = TcpStream::connect(target).await?;
    for end in [&client, &server] {
        end.set_nodelay(true)?;
        // Closing resets: both ends lose what was under way, as on a link that dies.
        end.set_zero_linger()?;
    }
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let carried = AtomicU64::new(0);
    tokio::select! {
        ended = carry(&mut from_client, &mut to_server, link, &carried, shared) => ended,
        ended = carry(&mut from_server, &mut to_client, Link { snare: None, ..link }, &carried, shared) => ended,
        _ = cut.changed() => Ok(()),
    }
}

async fn carry(
    from: &mut (impl AsyncReadExt + Unpin),
    to: &mut (impl AsyncWriteExt + Unpin),
    link: Link,
    carried: &AtomicU64,
    shared: &Shared,
) -> io::Result<()> {
    let mut piece = vec![0; 16 * 1024];
    loop {
        let read = from.read(&mut piece).await?;
        if read == 0 {
            return to.shutdown().await;
        }
        if let Some(snare) = link.snare.filter(|_| shared.armed.load(Ordering::Relaxed))
            && piece[..read].windows(snare.len()).any(|part| part == snare.as_bytes())
        {
            shared.armed.store(false, Ordering::Relaxed);
            shared.caught.fetch_add(1, Ordering::Relaxed);
            // Until the connection is cut, or its client has gone: what it says then goes nowhere.
            while from.read(&mut piece).await? > 0 {}
            return Ok(());
        }
        // An error would mean that the proxy is gone, and this task with it.
        let _ = shared.half_open.subscribe().wait_for(|half_open| !half_open).await;
        if link.delay > Duration::ZERO {
            pause(link.delay).await;
        }
        let before = carried.fetch_add(read as u64, Ordering::Relaxed);
        let left = link.cut_after.map_or(u64::MAX, |limit| limit.saturating_sub(before));
        let passed = read.min(usize::try_from(left).unwrap_or(usize::MAX));
        shared.bytes.fetch_add(passed as u64, Ordering::Relaxed);
        to.write_all(&piece[..passed]).await?;
        if passed < read {
            shared.cuts.send_modify(|cuts| *cuts += 1);
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::modbus_device::{Registers, Simulator};
    use crate::process::eventually;

    const PATIENCE: Duration = Duration::from_secs(30);
    const ASK: [u8; 12] = [0, 1, 0, 0, 0, 6, 1, 3, 0, 0, 0, 2];

    async fn ask(stream: &mut TcpStream) -> io::Result<[u8; 13]> {
        let mut answer = [0; 13];
        stream.write_all(&ASK).await?;
        stream.read_exact(&mut answer).await?;
        Ok(answer)
    }

    #[tokio::test]
    async fn carries_until_cut() {
        let device = Simulator::start(Registers::Known, Duration::ZERO).await.expect("loopback");
        let proxy = Proxy::start(device.address(), Link::default()).await.expect("loopback");
        let mut stream = TcpStream::connect(proxy.address()).await.expect("it listens");
        assert!(ask(&mut stream).await.is_ok());
        proxy.cut();
        let ended = ask(&mut stream).await;
        assert!(ended.is_err(), "still alive after the cut: {ended:?}");
        let mut again = TcpStream::connect(proxy.address()).await.expect("it listens again");
        assert!(ask(&mut again).await.is_ok());
        assert_eq!((proxy.cuts(), proxy.connections(), proxy.bytes()), (1, 2, 50));
    }

    #[tokio::test]
    async fn half_open_and_snared_connections_carry_nothing() {
        let device = Simulator::start(Registers::Known, Duration::ZERO).await.expect("loopback");
        let link = Link { snare: Some("\u{3}"), ..Link::default() };
        let proxy = Proxy::start(device.address(), link).await.expect("loopback");
        let mut stream = TcpStream::connect(proxy.address()).await.expect("it listens");
        assert!(ask(&mut stream).await.is_ok());
        proxy.set_half_open(true);
        let silence = tokio::time::timeout(Duration::from_millis(50), ask(&mut stream)).await;
        assert!(silence.is_err(), "something came: {silence:?}");
        proxy.set_half_open(false);
        assert!(ask(&mut stream).await.is_err(), "what stood meanwhile is cut");
        let mut again = TcpStream::connect(proxy.address()).await.expect("it listens again");
        proxy.arm(true);
        again.write_all(&ASK).await.expect("it reads");
        eventually("the piece", PATIENCE, async || (proxy.caught() == 1).then_some(())).await;
        let silence = tokio::time::timeout(Duration::from_millis(50), again.read(&mut [0])).await;
        assert!(silence.is_err(), "{silence:?}");
        let mut other = TcpStream::connect(proxy.address()).await.expect("it listens on");
        assert!(ask(&mut other).await.is_ok(), "one alone is snared");
    }

    #[tokio::test]
    async fn cuts_after_bytes_and_refuses_when_down() {
        let device = Simulator::start(Registers::Known, Duration::ZERO).await.expect("loopback");
        let link = Link { cut_after: Some(30), ..Link::default() };
        let proxy = Proxy::start(device.address(), link).await.expect("loopback");
        let mut stream = TcpStream::connect(proxy.address()).await.expect("it listens");
        assert!(ask(&mut stream).await.is_ok(), "25 bytes pass");
        assert!(ask(&mut stream).await.is_err(), "the 31st does not");
        proxy.set_up(false);
        let refused = match TcpStream::connect(proxy.address()).await {
            Ok(mut stream) => ask(&mut stream).await.is_err(),
            Err(_) => true,
        };
        assert!(refused);
    }
}
