//! Foreign device maps → profiles, and profiles → their other view.
//!
//! Nothing is guessed. Where an address base, a byte order or the meaning of a type is not said by the map itself, it
//! must be said beside it, else the import is refused. What a profile cannot express is left out and named, row by row.
//!
//! | file | takes |
//! |---|---|
//! | `table.rs` | any CSV register list, told which column is what |
//! | `telegraf.rs` | `[[inputs.modbus]]` of Telegraf, register style |
//! | `sunspec.rs` | SunSpec model definitions (JSON), laid out as a device has them |
//! | `write.rs` | a profile, and gives it as TOML or register table |

pub mod sunspec;
pub mod table;
pub mod telegraf;
pub mod write;

use std::collections::BTreeMap;

use tributary_protocols::modbus::config::{Addressing, Device, Limits, PointRow, Profile, resolve};
use tributary_protocols::modbus::register::{Order, RegisterType};
use tributary_protocols::number::Number;

/// What came of a map.
#[derive(Clone, Debug, PartialEq)]
pub struct Imported {
    /// The profile; every row of it means something.
    pub profile: Profile,
    /// What it does not express, a line each.
    pub left_out: Vec<String>,
}

/// An empty profile.
#[must_use]
pub fn profile(name: &str, addressing: Addressing) -> Profile {
    Profile {
        profile: name.to_owned(),
        version: 1,
        addressing,
        order: Order::default(),
        period: None,
        groups: BTreeMap::new(),
        vendor: String::new(),
        model: String::new(),
        description: String::new(),
        limits: Limits::default(),
        point: Vec::new(),
        source: String::new(),
        quirks: Vec::new(),
        table: None,
    }
}

/// A row with what each must have.
#[must_use]
pub fn row(name: &str, address: i128, ty: RegisterType) -> PointRow {
    PointRow {
        name: name.to_owned(),
        table: None,
        address: Number::Int(address),
        ty,
        order: None,
        bit: None,
        bits: None,
        unit: String::new(),
        scale: None,
        offset: None,
        scale_from: None,
        valid: None,
        bad: Vec::new(),
        deadband: None,
        heartbeat: None,
        window: None,
        raw: None,
        period: None,
        group: None,
        description: String::new(),
        labels: BTreeMap::new(),
        bit_labels: BTreeMap::new(),
        counter: false,
        counter_modulus: None,
        max_rate: None,
        enabled: true,
    }
}

impl Imported {
    /// Takes out the rows that mean nothing, and says so. Each round takes one at least, or ends. `places` says where each
    /// row is from; without one its name tells.
    fn sound(mut profile: Profile, mut places: Vec<String>, mut left_out: Vec<String>) -> Result<Self, String> {
        let device = Device {
            name: "d".into(),
            bus: "b".into(),
            unit_id: 1,
            enabled: true,
            profile: Some(profile.profile.clone()),
            ..Device::default()
        };
        loop {
            if profile.point.is_empty() {
                let why = ["no point came of it".to_owned()].into_iter().chain(left_out);
                return Err(why.collect::<Vec<_>>().join("\n"));
            }
            let Err(faults) = resolve(&device, "device", Some(&profile)) else {
                return Ok(Self { profile, left_out });
            };
            let mut guilty: BTreeMap<usize, String> = BTreeMap::new();
            for fault in &faults {
                let row = fault.path.strip_prefix("point[").and_then(|rest| rest.split_once(']'));
                let row = row.and_then(|(row, _)| row.parse().ok()).filter(|row| *row < profile.point.len());
                match row {
                    Some(row) if fault.profile.is_some() => {
                        let key = fault.path.rsplit('.').next().unwrap_or("");
                        guilty.entry(row).or_insert(format!("{key}: {} ({})", fault.message, fault.help));
                    }
                    _ => return Err(format!("{}: {}; {}", fault.path, fault.message, fault.help)),
                }
            }
            // From the end, so that the numbers before stay.
            for (row_number, why) in guilty.into_iter().rev() {
                let row = profile.point.remove(row_number);
                let place = if row_number < places.len() { places.remove(row_number) + ": " } else { String::new() };
                left_out.push(format!("{place}{}: {why}", row.name));
            }
        }
    }
}
