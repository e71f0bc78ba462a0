//! What carries the bytes of a bus: a TCP connection, a TLS session, a serial line.
//!
//! Serial ports are opened by serial2: it needs no C library, sets any line speed, and switches RS-485 drivers by
//! `TIOCSRS485`, which tokio-serial's port does not. A port is taken for this process alone, and what was in its buffers
//! is thrown away, since it answers no question of ours.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use core::pin::Pin;
use core::task::{Context, Poll, Waker};
use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use serial2_tokio::rs4xx::Rs485Config;
use serial2_tokio::{CharSize, FlowControl, Parity, SerialPort, Settings, StopBits};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

use crate::modbus::config::{self, Link, SerialLine};

/// Our side of a TLS handshake, made anew for each connection: certificates are renewed while the agent runs.
pub type Tls = Arc<dyn Fn() -> Result<Arc<ClientConfig>, String> + Send + Sync>;

/// An open link.
#[derive(Debug)]
pub(super) enum Stream {
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    /// With the lock that keeps others off.
    Serial(SerialPort, #[expect(dead_code, reason = "held, not used")] OwnedFd),
}

impl Stream {
    /// Connects, or opens the port.
    pub(super) async fn open(link: &Link, tls: Option<&Tls>) -> io::Result<Self> {
        match link {
            Link::Tcp { host, port } | Link::RtuOverTcp { host, port } => tcp(host, *port).await.map(Self::Tcp),
            Link::Tls { host, port, .. } => {
                let config = tls.ok_or_else(|| io::Error::other("no certificates are at hand"))?();
                let connector = TlsConnector::from(config.map_err(io::Error::other)?);
                let name = ServerName::try_from(host.clone()).map_err(io::Error::other)?;
                let session = connector.connect(name, tcp(host, *port).await?).await?;
                Ok(Self::Tls(Box::new(session)))
            }
            Link::Serial(line) => {
                let lock = lock(&line.device)?;
                Ok(Self::Serial(serial(line)?, lock))
            }
        }
    }

    pub(super) async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.write_all(bytes).await,
            Self::Tls(stream) => {
                stream.write_all(bytes).await?;
                stream.flush().await
            }
            Self::Serial(port, _) => port.write_all(bytes).await,
        }
    }

    /// Waits for bytes; 0 = the end.
    pub(super) async fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buffer).await,
            Self::Tls(stream) => stream.read(buffer).await,
            Self::Serial(port, _) => port.read(buffer).await,
        }
    }

    /// What is there, without waiting; `WouldBlock` if there is nothing.
    pub(super) fn try_read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_read(buffer),
            Self::Tls(stream) => read_now(Pin::new(stream.as_mut()), buffer),
            Self::Serial(port, _) => read_now(Pin::new(port), buffer),
        }
    }
}

/// One read that does not wait. Who waits later asks to be woken anew.
fn read_now(stream: Pin<&mut impl AsyncRead>, buffer: &mut [u8]) -> io::Result<usize> {
    let mut buffer = ReadBuf::new(buffer);
    match stream.poll_read(&mut Context::from_waker(Waker::noop()), &mut buffer) {
        Poll::Ready(read) => read.map(|()| buffer.filled().len()),
        Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
    }
}

async fn tcp(host: &str, port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect((host, port)).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Two masters on one line are no master. The lock is what terminal programs honour too; it ends with the descriptor.
fn lock(device: &str) -> io::Result<OwnedFd> {
    let node = rustix::fs::open(device, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY, Mode::empty())?;
    let taken = |_| io::Error::new(io::ErrorKind::ResourceBusy, "another program has the port");
    flock(&node, FlockOperation::NonBlockingLockExclusive).map_err(taken)?;
    Ok(node)
}

fn serial(line: &SerialLine) -> io::Result<SerialPort> {
    let port = SerialPort::open(&line.device, |mut settings: Settings| {
        settings.set_raw();
        settings.set_baud_rate(line.baud)?;
        settings.set_char_size(CharSize::Bits8);
        settings.set_parity(match line.parity {
            config::Parity::None => Parity::None,
            config::Parity::Even => Parity::Even,
            config::Parity::Odd => Parity::Odd,
        });
        settings.set_stop_bits(if line.stop_bits == 2 { StopBits::Two } else { StopBits::One });
        settings.set_flow_control(FlowControl::None);
        Ok(settings)
    })?;
    if let Some(rs485) = line.rs485 {
        let mut mode = Rs485Config::new();
        mode.set_invert_rts(!rs485.rts_on_send);
        mode.set_delay_before_send(rs485.delay_before.duration());
        mode.set_delay_after_send(rs485.delay_after.duration());
        port.set_rs4xx_mode(mode).map_err(|error| {
            io::Error::new(error.kind(), format!("the port's driver takes no RS-485 mode: {error}"))
        })?;
    }
    port.discard_buffers()?;
    Ok(port)
}
