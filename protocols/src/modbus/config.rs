//! What a Modbus plant looks like in TOML: buses, devices, points, profiles; and what of it makes sense.
//!
//! Serde reads the keys here; [`resolve`] checks what they mean. Nothing is guessed: the addressing of every row is
//! declared, by its device or its profile. sample.toml is the manual of the keys.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::modbus::register::{Order, RegisterType, Table};
pub use crate::modbus::resolve::{
    BusSpec, Caps, DeviceSpec, Framing, Link, ModbusPoint, SerialLine, Timing, resolve, resolve_bus, resolve_plant,
};
use crate::number::Number;
use crate::point::{DeadbandRow, WindowRow};
use crate::units::Span;

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
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Bus {
    /// Unique among buses.
    pub name: String,
    /// `"HOST:PORT"` of a Modbus TCP server or gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<String>,
    /// `"HOST:PORT"` of a converter that passes serial frames through.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtu_over_tcp: Option<String>,
    /// `"HOST"` or `"HOST:PORT"` of Modbus/TCP Security; port 802 if none is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<String>,
    /// Of `tls`: PEM file of the CAs that the server's certificate may come from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
    /// Of `tls`: PEM file of the client's certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cert: Option<String>,
    /// Of `tls`: PEM file of its key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// A serial device, `"/dev/serial/by-id/…"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// Of a serial line: bits a second; 19,200 if absent, as the standard says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baud: Option<u32>,
    /// Of a serial line: `none`, `even` (the standard's) or `odd`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parity: Option<Parity>,
    /// Of a serial line: 1 or 2; 1 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_bits: Option<u8>,
    /// Of a serial line whose driver is switched by the kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rs485: Option<Rs485>,
    /// How long an answer, or a connection, may take; 10 ms to 60 s.
    #[serde(default = "Bus::default_timeout")]
    pub timeout: Span,
    /// After this time no answer comes any more, from `timeout` to 120 s; twice the time-out if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer_max: Option<Span>,
    /// Silence between an answer and the next request; at most 10 s. A serial line keeps its 3.5 characters anyway.
    #[serde(default)]
    pub quiet: Span,
    /// Silence after connecting; at most 60 s.
    #[serde(default)]
    pub connect_delay: Span,
    /// Whether the connection is given up when nothing is due soon, for devices that serve a single master.
    #[serde(default)]
    pub release: bool,
    /// Longest time between two attempts to connect; 100 ms to 1 h.
    #[serde(default = "Bus::default_reconnect_max")]
    pub reconnect_max: Span,
    /// Longest time between two requests to a device that does not answer; 1 s to 1 h.
    #[serde(default = "Bus::default_probe_max")]
    pub probe_max: Span,
    /// Most of the bus's time that silent devices may take, in percent, 1 to 50.
    #[serde(default = "Bus::default_probe_share")]
    pub probe_share: u8,
}

/// Parity of a serial line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Parity {
    /// No parity bit.
    None,
    /// The standard's (Modbus over serial line V1.02, 2.5.1).
    #[default]
    Even,
    /// Odd.
    Odd,
}

/// `rs485 = { … }`: how the kernel switches the line's driver (`TIOCSRS485`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Rs485 {
    /// RTS is high while sending; low if false.
    #[serde(default)]
    pub rts_on_send: bool,
    /// From RTS to the first bit; at most 100 ms.
    #[serde(default)]
    pub delay_before: Span,
    /// From the last bit to RTS; at most 100 ms.
    #[serde(default)]
    pub delay_after: Span,
}

impl Bus {
    /// One whose link is not said yet; everything else at its default.
    #[must_use]
    pub fn named(name: &str) -> Self {
        Self {
            name: name.into(),
            tcp: None,
            rtu_over_tcp: None,
            tls: None,
            ca: None,
            cert: None,
            key: None,
            serial: None,
            baud: None,
            parity: None,
            stop_bits: None,
            rs485: None,
            timeout: Self::default_timeout(),
            answer_max: None,
            quiet: Span::default(),
            connect_delay: Span::default(),
            release: false,
            reconnect_max: Self::default_reconnect_max(),
            probe_max: Self::default_probe_max(),
            probe_share: Self::default_probe_share(),
        }
    }

    fn default_timeout() -> Span {
        Span::from_secs(1)
    }

    fn default_reconnect_max() -> Span {
        Span::from_secs(5)
    }

    fn default_probe_max() -> Span {
        Span::from_secs(30)
    }

    fn default_probe_share() -> u8 {
        10
    }
}

/// `[[device]]`: one unit on a bus.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
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
    /// Periods of named groups of points, each before the profile's: `{ fast = "200ms", slow = "60s" }`.
    #[serde(default)]
    pub groups: BTreeMap<String, Span>,
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
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
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
    /// After this time no answer of it comes any more; default the bus's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer_max: Option<Span>,
    /// Silence after its answer; default the bus's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quiet: Option<Span>,
    /// Silence after connecting that it needs; the bus keeps the longest of its devices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect_delay: Option<Span>,
    /// How long it usually takes to answer, for the plan: from the question's last byte to the answer's first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer_time: Option<Span>,
    /// Whether each point is asked for alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub one_request_per_point: Option<bool>,
    /// Whether it serves a single master and is to be released between polls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<bool>,
}

/// How addresses are written. Always declared: 30775 alone can mean four registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
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
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
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
    /// One bit of an unsigned integer, 0 the lowest: the point is then a bool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bit: Option<u8>,
    /// Several bits of an unsigned integer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bits: Option<Slice>,
    /// UCUM.
    #[serde(default)]
    pub unit: String,
    /// real = raw · scale + offset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale: Option<f64>,
    /// real = raw · scale + offset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset: Option<f64>,
    /// Another point of the device, an integer e: real = raw · scale · 10^e (SunSpec's scale factors).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale_from: Option<String>,
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
    /// In place of a period the name of a group, whose period the device or its profile states.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// For people.
    #[serde(default)]
    pub description: String,
    /// Names of an integer's values.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Names of a bit field's bits, 0 the lowest.
    #[serde(default)]
    pub bit_labels: BTreeMap<String, String>,
    /// Whether the value only grows.
    #[serde(default)]
    pub counter: bool,
    /// Where the counter rolls over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counter_modulus: Option<u64>,
    /// Most that the counter can grow in a second, in its unit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_rate: Option<f64>,
    /// Whether it is polled.
    #[serde(default = "yes")]
    pub enabled: bool,
}

/// `bits = { shift = 4, width = 3 }`: bits 4, 5 and 6 as a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Slice {
    /// The lowest bit, 0 to 63.
    pub shift: u8,
    /// How many bits, 1 to 64.
    pub width: u8,
}

fn yes() -> bool {
    true
}

/// A profile file: what a type of device is, wherever it hangs.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
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
    /// Periods of its groups of points.
    #[serde(default)]
    pub groups: BTreeMap<String, Span>,
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
    /// Where its facts are from: title, edition and page of the maker's manual.
    #[serde(default)]
    pub source: String,
    /// What is peculiar about the device, for who installs it.
    #[serde(default)]
    pub quirks: Vec<String>,
    /// Points in a CSV file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<CsvTable>,
}

/// `[table]` of a profile.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct CsvTable {
    /// The file.
    pub csv: String,
}
