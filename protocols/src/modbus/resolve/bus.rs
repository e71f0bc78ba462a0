//! A bus without faults: how its devices are reached, and the times it keeps.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use crate::endpoint::host_and_port;
use crate::fault::{Fault, Faults};
use crate::modbus::config::{Bus, Parity, Rs485};
use crate::point;

/// Port of Modbus/TCP Security (its specification, 7).
const TLS_PORT: u16 = 802;
/// Longest silence that a delay of RS-485 may ask of the kernel.
const RS485_DELAY_MAX_MS: u64 = 100;

/// A bus without faults.
#[derive(Clone, Debug, PartialEq)]
pub struct BusSpec {
    /// As configured.
    pub name: String,
    /// How its devices are reached.
    pub link: Link,
    /// How long an answer, or a connection, may take.
    pub timeout: Duration,
    /// After this time, counted from the question, no answer comes any more; at least the time-out.
    pub answer_max: Duration,
    /// Silence between an answer and the next request; on a serial line at least its 3.5 characters.
    pub quiet: Duration,
    /// Silence after connecting.
    pub connect_delay: Duration,
    /// Whether the connection is given up when nothing is due soon.
    pub release: bool,
    /// Longest time between two attempts to connect.
    pub reconnect_max: Duration,
    /// Longest time between two requests to a device that does not answer.
    pub probe_max: Duration,
    /// Most of the bus's time that silent devices may take: 0.01 to 0.5.
    pub probe_share: f64,
}

/// How the devices of a bus are reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Link {
    /// Modbus TCP. An IPv6 address has no brackets.
    Tcp {
        /// Host name or IP address.
        host: String,
        /// Not 0.
        port: u16,
    },
    /// Serial frames through a TCP connection.
    RtuOverTcp {
        /// Host name or IP address.
        host: String,
        /// Not 0.
        port: u16,
    },
    /// Modbus/TCP Security.
    Tls {
        /// Host name or IP address, as the server's certificate has it.
        host: String,
        /// Not 0.
        port: u16,
        /// PEM file of the CAs that the server's certificate may come from.
        ca: String,
        /// PEM files of the client's certificate and key.
        client: Option<(String, String)>,
    },
    /// A serial line of this machine.
    Serial(SerialLine),
}

/// A serial line: 8 data bits, as RTU needs them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SerialLine {
    /// Its node, `"/dev/serial/by-id/…"`.
    pub device: String,
    /// Bits a second, 300 to 4,000,000.
    pub baud: u32,
    /// Its parity bit.
    pub parity: Parity,
    /// 1 or 2.
    pub stop_bits: u8,
    /// How the kernel switches the line's driver, if it does.
    pub rs485: Option<Rs485>,
}

/// How a frame is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// With an MBAP header, which numbers each question.
    Tcp,
    /// With unit and CRC, its end known by its length.
    Rtu,
}

impl SerialLine {
    /// Bits that a character takes: start, 8 data, parity, stop.
    #[must_use]
    pub const fn bits_per_character(&self) -> u32 {
        1 + 8 + !matches!(self.parity, Parity::None) as u32 + self.stop_bits as u32
    }

    /// Speed and format of a character: `19200 baud 8E1`.
    #[must_use]
    pub fn mode(&self) -> String {
        let parity = match self.parity {
            Parity::None => 'N',
            Parity::Even => 'E',
            Parity::Odd => 'O',
        };
        format!("{} baud 8{parity}{}", self.baud, self.stop_bits)
    }

    /// How long `characters` take on the wire.
    #[must_use]
    pub fn time(&self, characters: u32) -> Duration {
        let bits = u64::from(characters) * u64::from(self.bits_per_character());
        Duration::from_nanos(bits.saturating_mul(1_000_000_000) / u64::from(self.baud.max(1)))
    }

    /// The silence between two frames: 3.5 characters, and 1.75 ms above 19,200 baud (V1.02, 2.5.1.1).
    #[must_use]
    pub fn silence(&self) -> Duration {
        match self.baud > 19_200 {
            true => Duration::from_micros(1_750),
            false => self.time(7) / 2,
        }
    }
}

impl Link {
    /// How its frames are packed.
    #[must_use]
    pub const fn framing(&self) -> Framing {
        match self {
            Self::Tcp { .. } | Self::Tls { .. } => Framing::Tcp,
            Self::RtuOverTcp { .. } | Self::Serial(_) => Framing::Rtu,
        }
    }
}

impl BusSpec {
    /// Where it is: `HOST:PORT`, or the serial node.
    #[must_use]
    pub fn endpoint(&self) -> String {
        match &self.link {
            Link::Tcp { host, port } | Link::RtuOverTcp { host, port } | Link::Tls { host, port, .. } => {
                match host.contains(':') {
                    true => format!("[{host}]:{port}"),
                    false => format!("{host}:{port}"),
                }
            }
            Link::Serial(line) => line.device.clone(),
        }
    }
}

/// Checks one bus; `path` is where it stands, as in `bus[0]`.
///
/// # Errors
/// Every fault it has.
pub fn resolve_bus(bus: &Bus, path: &str) -> Result<BusSpec, Vec<Fault>> {
    let mut list = Vec::new();
    let mut faults = Faults { profile: None, path: path.into(), list: &mut list };
    point::text(&bus.name, "name", true, &mut faults);
    let link = link(bus, &mut faults);
    let timeout = point::span(bus.timeout, "timeout", 10..=60_000, "\"10ms\" to \"60s\"", &mut faults);
    let answer_max = match bus.answer_max {
        Some(span) => answer_max(span, timeout, "answer_max", &mut faults),
        None => timeout * 2,
    };
    let quiet = point::span(bus.quiet, "quiet", 0..=10_000, "\"0ms\" to \"10s\"", &mut faults);
    let connect_delay = point::span(bus.connect_delay, "connect_delay", 0..=60_000, "\"0ms\" to \"60s\"", &mut faults);
    let reconnect_max =
        point::span(bus.reconnect_max, "reconnect_max", 100..=3_600_000, "\"100ms\" to \"1h\"", &mut faults);
    let probe_max = point::span(bus.probe_max, "probe_max", 1_000..=3_600_000, "\"1s\" to \"1h\"", &mut faults);
    if !(1..=50).contains(&bus.probe_share) {
        let help = "1 to 50 percent of the bus's time; 10 is usual";
        faults.add("probe_share", format!("{} is out of range", bus.probe_share), help);
    }
    match link {
        Some(link) if list.is_empty() => {
            let quiet = match &link {
                Link::Serial(line) => quiet.max(line.silence()),
                _ => quiet,
            };
            Ok(BusSpec {
                name: bus.name.clone(),
                link,
                timeout,
                answer_max,
                quiet,
                connect_delay,
                release: bus.release,
                reconnect_max,
                probe_max,
                probe_share: f64::from(bus.probe_share) / 100.0,
            })
        }
        _ => Err(list),
    }
}

/// A time after which no answer comes any more.
pub(super) fn answer_max(span: crate::units::Span, timeout: Duration, key: &str, faults: &mut Faults<'_>) -> Duration {
    let span = point::span(span, key, 10..=120_000, "the time-out to \"120s\"", faults);
    if span < timeout {
        let help = "an answer that comes after the time-out can still be taken for the next one's until answer_max";
        faults.add(key, format!("is shorter than the time-out of {} ms", timeout.as_millis()), help);
    }
    span
}

fn link(bus: &Bus, faults: &mut Faults<'_>) -> Option<Link> {
    let links = [("tcp", &bus.tcp), ("rtu_over_tcp", &bus.rtu_over_tcp), ("tls", &bus.tls), ("serial", &bus.serial)];
    let mut given = links.into_iter().filter_map(|(key, link)| link.as_deref().map(|text| (key, text)));
    let first = given.next();
    if first.is_none() {
        let help = "add `tcp = \"192.0.2.10:502\"`, or `serial = \"/dev/serial/by-id/…\"`";
        faults.add("", "says nowhere how its devices are reached", help);
    }
    if given.next().is_some() {
        faults.add("", "says twice how its devices are reached", "exactly one of tcp, rtu_over_tcp, tls, serial");
    }
    foreign(bus, faults);
    let (key, text) = first?;
    if key == "serial" {
        return Some(Link::Serial(line(bus, text, faults)));
    }
    let default = (key == "tls").then_some(TLS_PORT);
    let Some((host, port)) = host_and_port(text, default) else {
        let help = match default {
            Some(_) => "a host, with a port if it is not 802, as in \"plc-7.example\"",
            None => "host and port, as in \"192.0.2.10:502\" or \"[2001:db8::1]:502\"",
        };
        faults.add(key, format!("{text:?} is no address"), help);
        return None;
    };
    Some(match key {
        "tcp" => Link::Tcp { host, port },
        "rtu_over_tcp" => Link::RtuOverTcp { host, port },
        _ => Link::Tls { host, port, ca: bus.ca.clone().unwrap_or_default(), client: client(bus, faults) },
    })
}

/// Keys that belong to another kind of link, or are missing for this one.
fn foreign(bus: &Bus, faults: &mut Faults<'_>) {
    if bus.serial.is_none() {
        let line = [
            ("baud", bus.baud.is_some()),
            ("parity", bus.parity.is_some()),
            ("stop_bits", bus.stop_bits.is_some()),
            ("rs485", bus.rs485.is_some()),
        ];
        for (key, _) in line.into_iter().filter(|(_, given)| *given) {
            faults.add(key, "belongs to a serial line", format!("remove `{key}`"));
        }
    }
    if bus.tls.is_none() {
        let files = [("ca", bus.ca.is_some()), ("cert", bus.cert.is_some()), ("key", bus.key.is_some())];
        for (key, _) in files.into_iter().filter(|(_, given)| *given) {
            faults.add(key, "belongs to a bus with `tls`", format!("remove `{key}`"));
        }
    } else if bus.ca.is_none() {
        faults.add(
            "ca",
            "is missing: the server's certificate is always checked",
            "`ca = \"/etc/tributary/pki/plc-ca.pem\"`",
        );
    }
}

fn client(bus: &Bus, faults: &mut Faults<'_>) -> Option<(String, String)> {
    match (&bus.cert, &bus.key) {
        (Some(cert), Some(key)) => Some((cert.clone(), key.clone())),
        (None, None) => None,
        (Some(_), None) => {
            faults.add("key", "is missing", "the key of `cert`");
            None
        }
        (None, Some(_)) => {
            faults.add("cert", "is missing", "the certificate of `key`");
            None
        }
    }
}

fn line(bus: &Bus, device: &str, faults: &mut Faults<'_>) -> SerialLine {
    point::text(device, "serial", true, faults);
    let baud = bus.baud.unwrap_or(19_200);
    if !(300..=4_000_000).contains(&baud) {
        faults.add("baud", format!("{baud} is no line speed"), "9600, 19200, 38400, 57600, 115200 are usual");
    }
    let stop_bits = bus.stop_bits.unwrap_or(1);
    if !(1..=2).contains(&stop_bits) {
        faults.add("stop_bits", format!("{stop_bits} stop bits"), "1 or 2");
    }
    if let Some(rs485) = bus.rs485 {
        let range = 0..=RS485_DELAY_MAX_MS;
        point::span(rs485.delay_before, "rs485.delay_before", range.clone(), "\"0ms\" to \"100ms\"", faults);
        point::span(rs485.delay_after, "rs485.delay_after", range, "\"0ms\" to \"100ms\"", faults);
    }
    SerialLine { device: device.into(), baud, parity: bus.parity.unwrap_or_default(), stop_bits, rs485: bus.rs485 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bus_says_once_how_it_is_reached() {
        let bus = |keys: &str| resolve_bus(&toml::from_str(&format!("name='b'\n{keys}")).expect(keys), "bus[0]");
        let spec = bus("tcp='plc.example:502'").expect("good");
        assert_eq!((spec.endpoint().as_str(), spec.timeout), ("plc.example:502", Duration::from_secs(1)));
        assert_eq!(bus("tcp='[2001:db8::1]:502'").expect("v6").endpoint(), "[2001:db8::1]:502");
        for (keys, path) in [
            ("", "bus[0]"),
            ("tcp='h:1'\nserial='/dev/ttyUSB0'", "bus[0]"),
            ("serial='/dev/ttyUSB0'\nbaud=9", "bus[0].baud"),
            ("serial='/dev/ttyUSB0'\nstop_bits=3", "bus[0].stop_bits"),
            ("serial='/dev/ttyUSB0'\nrs485={delay_before='1s'}", "bus[0].rs485.delay_before"),
            ("serial='/dev/ttyUSB0'\nca='x'", "bus[0].ca"),
            ("tls='h:802'", "bus[0].ca"),
            ("tls='h'\nca='x'\ncert='c'", "bus[0].key"),
            ("rtu_over_tcp='h'", "bus[0].rtu_over_tcp"),
            ("tcp='h:1'\nanswer_max='500ms'", "bus[0].answer_max"),
            ("tcp='h:1'\nprobe_share=0", "bus[0].probe_share"),
            ("tcp='h'", "bus[0].tcp"),
            ("tcp='h:0'", "bus[0].tcp"),
            ("tcp='h:65536'", "bus[0].tcp"),
            ("tcp='a b:502'", "bus[0].tcp"),
            ("tcp='fe80::1:502'", "bus[0].tcp"),
            ("tcp='h:1'\nbaud=9600", "bus[0].baud"),
            ("tcp='h:1'\ntimeout='1ms'", "bus[0].timeout"),
        ] {
            assert_eq!(bus(keys).expect_err(keys)[0].path, path, "{keys}");
        }
    }

    #[test]
    fn a_serial_line_keeps_its_silence() {
        let bus =
            |keys: &str| resolve_bus(&toml::from_str(&format!("name='b'\nserial='/dev/x'\n{keys}")).expect(keys), "b");
        let quiet = |keys| bus(keys).expect(keys).quiet;
        // 11 bits a character: 3.5 of them at 9,600 baud.
        assert_eq!(quiet("baud=9600"), Duration::from_nanos(4_010_416));
        assert_eq!(quiet("baud=9600\nparity='none'"), Duration::from_nanos(3_645_833));
        assert_eq!(quiet("baud=115200"), Duration::from_micros(1_750));
        assert_eq!(quiet("baud=115200\nquiet='5ms'"), Duration::from_millis(5));
        let spec = bus("").expect("the standard's line");
        let Link::Serial(line) = &spec.link else { panic!("a line") };
        assert_eq!((line.baud, line.parity, line.stop_bits), (19_200, Parity::Even, 1));
        assert_eq!((spec.endpoint().as_str(), spec.link.framing()), ("/dev/x", Framing::Rtu));
    }
}
