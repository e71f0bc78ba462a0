//! The floor that the agent is measured against: tokio-modbus polls, rumqttc publishes, one thread, nothing between.
//!
//! ```text
//! bare_loop BROKER_PORT TOPIC TAGS PERIOD_MS DEVICE_PORT…
//! ```
//!
//! Every device is asked for its floats (holding registers from 0, ABCD) by as few requests as the standard allows, and
//! each poll of a device is one QoS 1 message: ms since 1970 as a big-endian u64, then the floats as they came. It
//! neither filters, nor keeps anything, nor reconnects: it ends at the first error. Written as one would write it in an
//! hour, not to lose: the connections have TCP_NODELAY, and messages leave without waiting for the one before.

use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use rumqttc::{AsyncClient, MqttOptions, NetworkOptions, QoS};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_modbus::client::{Reader, tcp};
use tokio_modbus::slave::Slave;
use tributary::clock::SystemClock;
use tributary_protocols::time::Clock;

type Fault = Box<dyn Error + Send + Sync>;

/// Registers of one request: at most 125, and no float is split (MODBUS Application Protocol 1.1b3, 6.3).
const REGISTERS: u16 = 124;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Fault> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [broker, topic, tags, period, ports @ ..] = arguments.as_slice() else {
        return Err("usage: bare_loop BROKER_PORT TOPIC TAGS PERIOD_MS DEVICE_PORT…".into());
    };
    let (tags, period): (u16, u64) = (tags.parse()?, period.parse()?);
    let mut options = MqttOptions::new("bare-loop", Ipv4Addr::LOCALHOST.to_string(), broker.parse()?);
    options.set_max_packet_size(1 << 20, 1 << 20).set_inflight(1_000);
    let (client, mut event_loop) = AsyncClient::new(options, 1_000);
    let mut network = NetworkOptions::new();
    network.set_tcp_nodelay(true);
    event_loop.set_network_options(network);

    let mut tasks = JoinSet::new();
    for port in ports {
        let device = SocketAddr::from((Ipv4Addr::LOCALHOST, port.parse()?));
        tasks.spawn(poll(device, tags, Duration::from_millis(period), client.clone(), topic.clone()));
    }
    tasks.spawn(async move {
        loop {
            event_loop.poll().await?;
        }
    });
    tasks.join_next().await.unwrap_or(Ok(Ok(())))?
}

async fn poll(
    device: SocketAddr,
    tags: u16,
    period: Duration,
    client: AsyncClient,
    topic: String,
) -> Result<(), Fault> {
    let stream = TcpStream::connect(device).await?;
    stream.set_nodelay(true)?;
    let mut device = tcp::attach_slave(stream, Slave(1));
    let clock = SystemClock::new();
    let mut due = tokio::time::interval(period);
    loop {
        due.tick().await;
        let mut message = Vec::with_capacity(8 + usize::from(tags) * 4);
        message.extend_from_slice(&clock.wall().0.to_be_bytes());
        for address in (0..2 * tags).step_by(usize::from(REGISTERS)) {
            let count = REGISTERS.min(2 * tags - address);
            let words = device.read_holding_registers(address, count).await??;
            message.extend(words.iter().flat_map(|word| word.to_be_bytes()));
        }
        client.publish(&topic, QoS::AtLeastOnce, false, message).await?;
    }
}
