//! Keys → meaning: buses and devices that cannot be wrong, or every fault they have.
//!
//! Addresses come out zero-based, sentinels as cell bits, every limit set, so nothing behind this file asks again. All
//! faults are collected: an owner repairs a file once. A point's source text names the register as on the wire,
//! `"holding:40000:u32be"` = table, zero-based address, type and order: the same register keeps its text, and so its
//! identity (contract rule 12), when a file is rewritten in another addressing.

mod address;
mod bus;
mod relations;
mod rows;
mod sentinel;

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

pub use bus::{BusSpec, Framing, Link, SerialLine, resolve_bus};

use crate::fault::{Fault, Faults, one_of};
use crate::gather;
use relations::Placed;
use rows::Rows;

use crate::modbus::config::{Bus, Device, Limits, MAX_POINTS, Profile, Slice};
use crate::modbus::config::{DEFAULT_GAP, MAX_BITS, MAX_REGISTERS};
use crate::modbus::register::{Order, RegisterType, Table};
use crate::point::{self, Point};
use crate::units::Span;

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
    /// Times of its own.
    pub timing: Timing,
    /// Whether it is to be released between polls.
    pub release: bool,
    /// What is legal and hardly meant: values that lie across each other.
    pub doubts: Vec<Fault>,
    /// The enabled points, the profile's first.
    pub points: Vec<ModbusPoint>,
}

/// Times of a device, where they differ from its bus's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timing {
    /// How long its answer may take.
    pub timeout: Option<Duration>,
    /// After this time no answer of it comes any more.
    pub answer_max: Option<Duration>,
    /// Silence after its answer.
    pub quiet: Option<Duration>,
    /// Silence after connecting that it needs.
    pub connect_delay: Option<Duration>,
    /// How long it usually takes to answer.
    pub answer_time: Option<Duration>,
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
    /// Whether each point is asked for alone.
    pub one_request_per_point: bool,
}

impl Default for Caps {
    fn default() -> Self {
        Self { max_registers: MAX_REGISTERS, max_bits: MAX_BITS, max_gap: DEFAULT_GAP, one_request_per_point: false }
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
    /// The bits of the register value that are meant, if not all.
    pub slice: Option<Slice>,
    /// Time between two polls, 10 ms to a day.
    pub period_ms: u32,
}

/// Checks a whole plant: every bus, every device, and that they fit together. `profile` finds a profile by name.
/// Devices come out in their order, so that index i is `[[device]]` i; buses alike.
///
/// # Errors
/// Every fault there is.
pub fn resolve_plant<'a>(
    buses: &[Bus],
    devices: &[Device],
    profile: impl Fn(&str) -> Option<&'a Profile>,
) -> Result<(Vec<BusSpec>, Vec<DeviceSpec>), Vec<Fault>> {
    let mut list = Vec::new();
    let (mut bus_specs, mut device_specs) = (Vec::new(), Vec::new());
    let mut bus_names = BTreeSet::new();
    for (index, bus) in buses.iter().enumerate() {
        let path = format!("bus[{index}]");
        if !bus_names.insert(bus.name.as_str()) {
            let message = format!("a second bus is called {:?}", bus.name);
            Faults { profile: None, path: path.clone(), list: &mut list }.add(
                "name",
                message,
                "names of buses are unique",
            );
        }
        match resolve_bus(bus, &path) {
            Ok(spec) => bus_specs.push(spec),
            Err(faults) => list.extend(faults),
        }
    }
    let (mut names, mut units) = (BTreeSet::new(), BTreeMap::new());
    for (index, device) in devices.iter().enumerate() {
        let path = format!("device[{index}]");
        let mut faults = Faults { profile: None, path: path.clone(), list: &mut list };
        if !names.insert(device.name.as_str()) {
            faults.add("name", format!("a second device is called {:?}", device.name), "names of devices are unique");
        }
        if !bus_names.contains(device.bus.as_str()) {
            let help = match bus_names.is_empty() {
                true => "add a [[bus]]".into(),
                false => one_of(&device.bus, bus_names.iter().copied()),
            };
            faults.add("bus", format!("no [[bus]] is called {:?}", device.bus), help);
        }
        if let Some(first) = units.insert((device.bus.as_str(), device.unit_id), device.name.as_str()) {
            let message = format!("unit {} on bus {:?} is already {first:?}", device.unit_id, device.bus);
            faults.add("unit_id", message, "one device a unit: put all its points under one [[device]]");
        }
        let serial = bus_specs.iter().any(|bus| bus.name == device.bus && bus.link.framing() == Framing::Rtu);
        if serial && device.unit_id > 247 {
            let message = format!("{} is no unit of a serial line", device.unit_id);
            faults.add("unit_id", message, "1 to 247 (Modbus over serial line V1.02, 2.2)");
        }
        match resolve(device, &path, device.profile.as_deref().and_then(&profile)) {
            Ok(spec) => device_specs.push(spec),
            Err(faults) => list.extend(faults),
        }
    }
    if list.is_empty() { Ok((bus_specs, device_specs)) } else { Err(list) }
}

/// Checks one device with its profile; `path` is where it stands, as in `device[2]`.
///
/// # Errors
/// Every fault it has, those of its profile's rows included.
pub fn resolve(device: &Device, path: &str, profile: Option<&Profile>) -> Result<DeviceSpec, Vec<Fault>> {
    let mut list = Vec::new();
    let mut faults = Faults { profile: None, path: path.into(), list: &mut list };
    let texts = [
        ("name", &device.name, true),
        ("path", &device.path, false),
        ("vendor", &device.vendor, false),
        ("model", &device.model, false),
        ("serial", &device.serial, false),
        ("description", &device.description, false),
    ];
    for (key, text, needed) in texts {
        point::text(text, key, needed, &mut faults);
    }
    for (key, period) in &device.groups {
        point::period(*period, &format!("groups.{key}"), &mut faults);
    }
    let unit = match device.unit_id {
        0 => {
            faults.add("unit_id", "0 is broadcast: no device answers it", "the number set at the device, 1 to 255");
            0
        }
        unit => u8::try_from(unit).unwrap_or_else(|_| {
            faults.add("unit_id", format!("{unit} is no unit"), "1 to 255");
            0
        }),
    };
    if let (Some(name), None) = (&device.profile, profile) {
        faults.add(
            "profile",
            format!("there is no profile {name:?}"),
            format!("a file {name}.toml on the profile path"),
        );
    }
    if device.addressing.is_none() && !device.point.is_empty() {
        faults.add(
            "addressing",
            "is missing: the same address can mean different registers",
            "how the addresses of its points are written: \"zero\", \"one\", \"modicon5\" or \"modicon6\"",
        );
    }
    if device.point.is_empty() && device.profile.is_none() {
        faults.add("point", "the device has no points", "add [[device.point]], or `profile`");
    }
    let nothing = Limits::default();
    let caps = caps(&device.limits, profile.map_or(&nothing, |profile| &profile.limits));
    limits(&device.limits, &mut faults);

    let mut points = Vec::new();
    let period = device.period.or(profile.and_then(|profile| profile.period)).unwrap_or(Span::from_secs(1));
    if let Some(period) = device.period {
        point::period(period, "period", &mut faults);
    }
    let theirs = profile.into_iter().flat_map(|profile| &profile.groups);
    let groups = theirs.chain(&device.groups).map(|(name, period)| (name.as_str(), *period));
    let groups: BTreeMap<&str, Span> = gather(groups);
    if let Some(profile) = profile {
        let mut faults = Faults { profile: Some(&profile.profile), path: String::new(), list: &mut list };
        limits(&profile.limits, &mut faults);
        for (key, period) in &profile.groups {
            point::period(*period, &format!("groups.{key}"), &mut faults);
        }
        let groups = groups.clone();
        let rows = Rows { addressing: Some(profile.addressing), order: profile.order, period, groups, caps };
        for (index, row) in profile.point.iter().enumerate() {
            faults.path = format!("point[{index}]");
            let point = rows.resolve(row, &mut faults);
            points.extend(point.map(|point| Placed {
                profile: Some(profile.profile.clone()),
                path: faults.path.clone(),
                enabled: row.enabled,
                point,
            }));
        }
    }
    let rows = Rows { addressing: device.addressing, order: device.order.unwrap_or_default(), period, groups, caps };
    for (index, row) in device.point.iter().enumerate() {
        let path = format!("{path}.point[{index}]");
        let mut faults = Faults { profile: None, path: path.clone(), list: &mut list };
        let point = rows.resolve(row, &mut faults);
        points.extend(point.map(|point| Placed { profile: None, path, enabled: row.enabled, point }));
    }
    if points.len() > MAX_POINTS {
        let mut faults = Faults { profile: None, path: path.into(), list: &mut list };
        faults.add("point", format!("{} points", points.len()), format!("at most {MAX_POINTS} a device"));
    }
    let theirs = profile.into_iter().flat_map(|profile| {
        profile
            .point
            .iter()
            .enumerate()
            .map(|(index, row)| (row.name.as_str(), Some(profile.profile.as_str()), format!("point[{index}]")))
    });
    let own = device.point.iter().enumerate();
    let own = own.map(|(index, row)| (row.name.as_str(), None, format!("{path}.point[{index}]")));
    point::unique_names(theirs.chain(own), &mut list);
    relations::scales(&points, &mut list);
    if !list.is_empty() {
        return Err(list);
    }
    let or_profile = |own: &String, theirs: fn(&Profile) -> &String| match own.is_empty() {
        true => profile.map(theirs).cloned().unwrap_or_default(),
        false => own.clone(),
    };
    let limit = |pick: fn(&Limits) -> Option<Span>| {
        pick(&device.limits).or(profile.and_then(|profile| pick(&profile.limits))).map(Span::duration)
    };
    let doubts = relations::straddles(&points);
    let polled = points.into_iter().filter(|placed| placed.enabled && device.enabled);
    Ok(DeviceSpec {
        name: device.name.clone(),
        bus: device.bus.clone(),
        unit,
        path: device.path.clone(),
        vendor: or_profile(&device.vendor, |profile| &profile.vendor),
        model: or_profile(&device.model, |profile| &profile.model),
        serial: device.serial.clone(),
        description: or_profile(&device.description, |profile| &profile.description),
        enabled: device.enabled,
        caps,
        timing: Timing {
            timeout: limit(|limits| limits.timeout),
            answer_max: limit(|limits| limits.answer_max),
            quiet: limit(|limits| limits.quiet),
            connect_delay: limit(|limits| limits.connect_delay),
            answer_time: limit(|limits| limits.answer_time),
        },
        release: device.limits.release.or(profile.and_then(|profile| profile.limits.release)).unwrap_or(false),
        doubts,
        points: polled.map(|placed| placed.point).collect(),
    })
}

fn caps(own: &Limits, theirs: &Limits) -> Caps {
    Caps {
        max_registers: own.max_registers.or(theirs.max_registers).unwrap_or(MAX_REGISTERS),
        max_bits: own.max_bits.or(theirs.max_bits).unwrap_or(MAX_BITS),
        max_gap: own.max_gap.or(theirs.max_gap).unwrap_or(DEFAULT_GAP),
        one_request_per_point: own.one_request_per_point.or(theirs.one_request_per_point).unwrap_or(false),
    }
}

fn limits(limits: &Limits, faults: &mut Faults<'_>) {
    let counts = [
        ("limits.max_registers", limits.max_registers, 1, MAX_REGISTERS),
        ("limits.max_bits", limits.max_bits, 1, MAX_BITS),
        ("limits.max_gap", limits.max_gap, 0, MAX_REGISTERS - 1),
    ];
    for (key, given, low, high) in counts {
        if given.is_some_and(|count| !(low..=high).contains(&count)) {
            faults.add(key, format!("{} is out of range", given.unwrap_or(0)), format!("{low} to {high}"));
        }
    }
    if let Some(timeout) = limits.timeout {
        point::span(timeout, "limits.timeout", 10..=60_000, "\"10ms\" to \"60s\"", faults);
    }
    if let Some(quiet) = limits.quiet {
        point::span(quiet, "limits.quiet", 0..=10_000, "\"0ms\" to \"10s\"", faults);
    }
    if let Some(delay) = limits.connect_delay {
        point::span(delay, "limits.connect_delay", 0..=60_000, "\"0ms\" to \"60s\"", faults);
    }
    if let Some(time) = limits.answer_time {
        point::span(time, "limits.answer_time", 0..=60_000, "\"0ms\" to \"60s\"", faults);
    }
    if let Some(max) = limits.answer_max {
        bus::answer_max(max, limits.timeout.unwrap_or_default().duration(), "limits.answer_max", faults);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::PointType;

    fn device(toml: &str) -> Device {
        toml::from_str(toml).expect("keys are right")
    }

    fn point(keys: &str) -> Result<ModbusPoint, Vec<Fault>> {
        let text = format!(
            "name='d'\nbus='b'\nunit_id=1\naddressing='zero'\n[[point]]\nname='p'\ntable='holding'\naddress=0\n{keys}"
        );
        resolve(&device(&text), "device[0]", None).map(|mut device| device.points.remove(0))
    }

    fn paths(faults: &[Fault]) -> Vec<&str> {
        faults.iter().map(|fault| fault.path.as_str()).collect()
    }

    #[test]
    fn addresses_of_all_conventions_mean_the_same_register() {
        for (addressing, address) in
            [("zero", "107"), ("zero", "'0x6B'"), ("one", "108"), ("modicon5", "40108"), ("modicon6", "'400108'")]
        {
            let text = format!(
                "name='d'\nbus='b'\nunit_id=1\naddressing='{addressing}'\n[[point]]\nname='p'\ntable='holding'\naddress={address}\ntype='f32'"
            );
            let spec = resolve(&device(&text), "device[0]", None).expect(addressing);
            assert_eq!(spec.points[0].address, 107, "{addressing} {address}");
            assert_eq!(spec.points[0].point.source, "holding:107:f32be");
        }
    }

    #[test]
    fn addresses_out_of_range_are_refused() {
        let cases = [
            ("zero", "65536", "holding", "u16"),
            ("zero", "-1", "holding", "u16"),
            ("zero", "65535", "holding", "f32"),
            ("one", "0", "holding", "u16"),
            ("one", "65537", "holding", "u16"),
            ("modicon5", "400001", "holding", "u16"),
            ("modicon5", "40000", "holding", "u16"),
            ("modicon5", "20001", "holding", "u16"),
            ("modicon5", "30001", "holding", "u16"),
            ("modicon5", "107", "holding", "u16"),
            ("modicon6", "465537", "holding", "u16"),
            ("modicon6", "465536", "holding", "u32"),
            ("modicon6", "40001", "holding", "u16"),
            ("modicon6", "500001", "holding", "u16"),
            ("zero", "1.5", "holding", "u16"),
        ];
        for (addressing, address, table, ty) in cases {
            let text = format!(
                "name='d'\nbus='b'\nunit_id=1\naddressing='{addressing}'\n[[point]]\nname='p'\ntable='{table}'\naddress={address}\ntype='{ty}'"
            );
            let faults = resolve(&device(&text), "device[3]", None).expect_err(address);
            assert_eq!(paths(&faults), ["device[3].point[0].address"], "{addressing} {address}: {faults:?}");
        }
    }

    #[test]
    fn modicon_names_the_table() {
        for (address, table, register) in [
            ("'00001'", Table::Coil, 0),
            ("10002", Table::Discrete, 1),
            ("30001", Table::Input, 0),
            ("49999", Table::Holding, 9998),
        ] {
            let ty = if table.is_bits() { "bool" } else { "u16" };
            let text = format!(
                "name='d'\nbus='b'\nunit_id=1\naddressing='modicon5'\n[[point]]\nname='p'\naddress={address}\ntype='{ty}'"
            );
            let spec = resolve(&device(&text), "device[0]", None).expect(address);
            assert_eq!((spec.points[0].table, spec.points[0].address), (table, register));
        }
    }

    #[test]
    fn sentinels_become_cell_bits() {
        let cases: [(&str, &str, u64); 8] = [
            ("i16", "0x8000", (-32_768_i64) as u64),
            ("i16", "-32768", (-32_768_i64) as u64),
            ("u16", "0xFFFF", 0xFFFF),
            ("u32", "0xFFFF_FFFF", 0xFFFF_FFFF),
            ("i32", "0x80000000", i64::from(i32::MIN) as u64),
            ("f32", "0x7FC00000", 0x7FC0_0000),
            ("u64", "'0xFFFFFFFFFFFFFFFF'", u64::MAX),
            ("i64", "'0x8000000000000000'", i64::MIN as u64),
        ];
        for (ty, bad, bits) in cases {
            let point = point(&format!("type='{ty}'\nbad=[{bad}]")).expect(ty);
            assert_eq!(point.point.bad, [bits], "{ty} {bad}");
        }
        for (ty, bad) in [("i16", "0x10000"), ("i16", "-32769"), ("u16", "-1"), ("f32", "-9999.0"), ("string(4)", "0")]
        {
            let faults = point(&format!("type='{ty}'\nbad=[{bad}]")).expect_err(bad);
            assert_eq!(paths(&faults), ["device[0].point[0].bad[0]"]);
        }
    }

    #[test]
    fn scale_goes_to_exponent_or_factor() {
        let scale = |keys: &str| point(keys).map(|point| point.point.scale);
        for (keys, exponent, factor) in [
            ("type='u16'", 0, 0.0),
            ("type='u16'\nscale=1", 0, 0.0),
            ("type='u16'\nscale=0.1", -1, 0.0),
            ("type='i32'\nscale=0.001", -3, 0.0),
            ("type='u64'\nscale=1000", 3, 0.0),
            ("type='u16'\nscale=0.5", 0, 0.5),
            ("type='i16'\nscale=-1", 0, -1.0),
            ("type='i16'\nscale=-0.1", 0, -0.1),
            ("type='f32'\nscale=0.1", 0, 0.1),
        ] {
            let got = scale(keys).expect(keys);
            assert_eq!((got.exponent, got.factor), (exponent, factor), "{keys}");
        }
        for keys in
            ["type='u16'\nscale=0", "type='u16'\nscale=nan", "type='f32'\nscale=inf", "type='string(2)'\nscale=2"]
        {
            assert_eq!(paths(&scale(keys).expect_err(keys)), ["device[0].point[0].scale"], "{keys}");
        }
    }

    #[test]
    fn each_rule_of_a_point_is_checked() {
        for (keys, path) in [
            ("type='bool'", "type"),
            ("type='u16'\nvalid=[5, 1]", "valid"),
            ("type='u16'\nvalid=[nan, 1]", "valid"),
            ("type='u16'\nheartbeat='60s'", "heartbeat"),
            ("type='u16'\ndeadband={abs=1,percent=1}", "deadband"),
            ("type='u16'\ndeadband={}", "deadband"),
            ("type='u16'\ndeadband={abs=-1}", "deadband"),
            ("type='string(3)'\ndeadband={abs=0}", "deadband"),
            ("type='u16'\nperiod='9ms'", "period"),
            ("type='u16'\nperiod='2d'", "period"),
            ("type='u16'\nwindow={every='10s',stats=['median']}", "window.stats"),
            ("type='u16'\nwindow={every='10s',stats=[]}", "window.stats"),
            ("type='u16'\nwindow={every='0s',stats=['mean']}", "window.every"),
            ("type='u16'\nraw=false", "raw"),
            ("type='u16'\norder='CDAB'", "order"),
            ("type='f32'\nlabels={0='off'}", "labels"),
            ("type='u16'\nlabels={x='off'}", "labels"),
            ("type='string(4)'\ncounter=true", "counter"),
            ("type='u16'\ncounter_modulus=10", "counter_modulus"),
            ("type='u16'\nunit=\"a\\u0007\"", "unit"),
        ] {
            let faults = point(keys).expect_err(keys);
            assert_eq!(paths(&faults), [format!("device[0].point[0].{path}")], "{keys}: {faults:?}");
        }
    }

    #[test]
    fn a_good_point_comes_out_whole() {
        let point = point(
            "type='i16'\nunit='Cel'\nscale=0.1\noffset=-40\nvalid=[-20, 60]\ndeadband={percent=1}\nheartbeat='60s'\n\
             window={every='10s',stats=['max','mean','max']}\nraw=true\nperiod='500ms'\ncounter=true\ncounter_modulus=65536",
        )
        .expect("no fault");
        assert_eq!(point.point.scale.bias, -40.0);
        assert_eq!(point.point.window.as_ref().map(|window| window.stats.as_slice()), Some(["max", "mean"].as_slice()));
        assert_eq!((point.period_ms, point.point.raw, point.point.ty), (500, true, PointType::Int));
        let labelled = self::point("type='u16'\nlabels={0='off','0x10'='on'}").expect("labels");
        assert_eq!(labelled.point.ty, PointType::Enum);
        assert_eq!(labelled.point.labels[&16], "on");
    }

    #[test]
    fn every_fault_is_found_at_once() {
        let device = device(
            "name=''\nbus='b'\nunit_id=0\n[limits]\nmax_registers=126\n[[point]]\nname='a'\naddress=1\ntype='u16'\nscale=0\n\
             [[point]]\nname='a'\naddress=1\ntype='u16'",
        );
        let faults = resolve(&device, "device[0]", None).expect_err("many");
        assert_eq!(
            paths(&faults),
            [
                "device[0].name",
                "device[0].unit_id",
                "device[0].addressing",
                "device[0].limits.max_registers",
                "device[0].point[0].scale",
                "device[0].point[1].name",
            ]
        );
    }

    #[test]
    fn a_profile_gives_what_the_device_leaves_open() {
        let profile: Profile = toml::from_str(
            "profile='acme'\nversion=3\naddressing='modicon5'\norder='CDAB'\nperiod='2s'\nvendor='Acme'\n[limits]\nmax_gap=0\nmax_registers=60\n\
             [[point]]\nname='v'\naddress=40011\ntype='u32'\n[[point]]\nname='off'\naddress=40013\ntype='u16'\nenabled=false",
        )
        .expect("profile");
        let own = device("name='d'\nbus='b'\nunit_id=7\nprofile='acme'\nlimits={max_registers=20,timeout='400ms'}");
        let spec = resolve(&own, "device[0]", Some(&profile)).expect("no fault");
        assert_eq!(spec.caps, Caps { max_registers: 20, max_gap: 0, ..Caps::default() });
        assert_eq!((spec.points.len(), spec.points[0].order, spec.points[0].period_ms), (1, Order::CDAB, 2_000));
        assert_eq!((spec.vendor.as_str(), spec.timing.timeout), ("Acme", Some(Duration::from_millis(400))));

        let faults = resolve(&own, "device[0]", None).expect_err("no such profile");
        assert_eq!(paths(&faults), ["device[0].profile"]);

        let mut broken = profile;
        broken.point[0].scale = Some(0.0);
        broken.table = Some(crate::modbus::config::CsvTable { csv: "a.csv".into() });
        let faults = resolve(&own, "device[0]", Some(&broken)).expect_err("broken");
        assert_eq!(paths(&faults), ["point[0].scale"]);
        assert!(faults.iter().all(|fault| fault.profile.as_deref() == Some("acme")));
    }

    #[test]
    fn a_plant_fits_together() {
        let buses: Vec<Bus> =
            ["a", "a"].map(|name| toml::from_str(&format!("name='{name}'\ntcp='h:502'")).expect("bus")).into();
        let text = "name='d'\nbus='BUS'\nunit_id=1\naddressing='zero'\n[[point]]\nname='p'\ntable='coil'\naddress=0\ntype='bool'";
        let devices: Vec<Device> = ["a", "a", "c"].map(|bus| device(&text.replace("BUS", bus))).into();
        let faults = resolve_plant(&buses, &devices, |_| None).expect_err("three");
        assert_eq!(
            paths(&faults),
            ["bus[1].name", "device[1].name", "device[1].unit_id", "device[2].name", "device[2].bus"]
        );
        let (specs, devices) = resolve_plant(&buses[..1], &devices[..1], |_| None).expect("fits");
        assert_eq!((specs.len(), devices.len()), (1, 1));
    }
}
