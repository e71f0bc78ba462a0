//! A row of a device map → a point and where its value stands, or every fault of the row.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;

use super::ModbusPoint;
use super::address::place;
use super::sentinel::sentinel;
use crate::fault::{Faults, one_of};
use crate::modbus::config::{Addressing, Caps, PointRow, Slice};
use crate::modbus::register::{Order, RegisterType, Table};
use crate::number::Number;
use crate::point::{self, Point};
use crate::units::Span;
use crate::value::PointType;

/// What the rows of one table have in common.
pub(super) struct Rows<'a> {
    pub(super) addressing: Option<Addressing>,
    pub(super) order: Order,
    pub(super) period: Span,
    /// Periods by name, the device's before its profile's.
    pub(super) groups: BTreeMap<&'a str, Span>,
    pub(super) caps: Caps,
}

impl Rows<'_> {
    pub(super) fn resolve(&self, row: &PointRow, faults: &mut Faults<'_>) -> Option<ModbusPoint> {
        let before = faults.count();
        let slice = slice(row, faults);
        let common = point::Row {
            name: &row.name,
            unit: &row.unit,
            scale: row.scale,
            offset: row.offset,
            scale_from: row.scale_from.as_deref(),
            valid: row.valid,
            deadband: row.deadband.as_ref(),
            heartbeat: row.heartbeat,
            window: row.window.as_ref(),
            raw: row.raw,
            labels: &row.labels,
            counter: row.counter,
            counter_modulus: row.counter_modulus,
            max_rate: row.max_rate,
            description: &row.description,
        };
        let mut point = point::check(common, point_type(row, slice), faults);
        let place = match self.addressing {
            Some(addressing) => place(row, addressing, faults),
            // Said once, at the device.
            None => row.table.map(|table| (table, 0)),
        };
        if let Some((table, _)) = place {
            self.fits(table, row.ty, faults);
        }
        if row.order.is_some() && !row.ty.has_order() {
            faults.add("order", format!("{} has no order of registers", row.ty), "remove `order`");
        }
        let order = row.order.unwrap_or(self.order);
        let period_ms = self.period(row, faults);
        for (index, bad) in row.bad.iter().enumerate() {
            match sentinel(*bad, row.ty, slice) {
                Ok(bits) => point.bad.push(bits),
                Err((message, help)) => faults.add(&format!("bad[{index}]"), message, help),
            }
        }
        modulus(row, slice, faults);
        bit_labels(row, slice, &mut point, faults);
        let (table, address) = place?;
        point.source = source(table, address, row, order, slice);
        let good = faults.count() == before;
        good.then_some(ModbusPoint { point, table, address, ty: row.ty, order, slice, period_ms })
    }

    /// Whether such a value can stand in such a table.
    fn fits(&self, table: Table, ty: RegisterType, faults: &mut Faults<'_>) {
        match (table.is_bits(), ty) {
            (true, RegisterType::Bool) => {}
            (true, ty) => faults.add("type", format!("a {} is one bit, not {ty}", table.name()), "type = \"bool\""),
            (false, RegisterType::Bool) => faults.add(
                "type",
                format!("{} registers hold 16 bits, not one", table.name()),
                "type = \"u16\" with `bit = 0` to 15, or table = \"coil\" or \"discrete\"",
            ),
            (false, ty) if ty.width() > self.caps.max_registers => faults.add(
                "type",
                format!("{ty} takes {} registers, one request at most {}", ty.width(), self.caps.max_registers),
                "a value is never read in two parts: raise limits.max_registers",
            ),
            (false, _) => {}
        }
    }

    fn period(&self, row: &PointRow, faults: &mut Faults<'_>) -> u32 {
        let period = match (&row.group, row.period) {
            (None, None) => self.period,
            (None, Some(period)) => return point::period(period, "period", faults),
            (Some(_), Some(_)) => {
                faults.add("group", "the point has a period of its own", "either `group` or `period`");
                self.period
            }
            (Some(group), None) => match self.groups.get(group.as_str()) {
                Some(period) => *period,
                None => {
                    let help = match self.groups.is_empty() {
                        true => format!("groups = {{ {group} = \"10s\" }} at the device or in its profile"),
                        false => format!("{}; or add it to `groups`", one_of(group, self.groups.keys().copied())),
                    };
                    faults.add("group", format!("no group is called {group:?}"), help);
                    self.period
                }
            },
        };
        // Faults of these are said where they stand.
        u32::try_from(period.as_millis()).unwrap_or(u32::MAX)
    }
}

/// The bits that are meant, if not all.
fn slice(row: &PointRow, faults: &mut Faults<'_>) -> Option<Slice> {
    let (key, slice) = match (row.bit, row.bits) {
        (None, None) => return None,
        (Some(_), Some(_)) => {
            faults.add("bit", "one bit and several at once", "either `bit` or `bits`");
            return None;
        }
        (Some(bit), None) => ("bit", Slice { shift: bit, width: 1 }),
        (None, Some(slice)) => ("bits", slice),
    };
    if !row.ty.is_bit_field() {
        let help = "u8_high, u8_low, u16, u24, u32 or u64";
        faults.add(key, format!("{} has no single bits", row.ty), help);
        return None;
    }
    let end = u32::from(slice.shift) + u32::from(slice.width);
    if slice.width == 0 || end > row.ty.bits() {
        let message = match slice.width {
            0 => "no bits at all".into(),
            _ => format!("reaches up to bit {}", end - 1),
        };
        faults.add(key, message, format!("{} has bits 0 to {}", row.ty, row.ty.bits() - 1));
        return None;
    }
    Some(slice)
}

fn point_type(row: &PointRow, slice: Option<Slice>) -> PointType {
    match slice {
        _ if row.bit.is_some() => PointType::Bool,
        Some(slice) if slice.width < 64 => PointType::Int,
        _ => row.ty.point_type(),
    }
}

/// A counter rolls over where its type does, or before.
fn modulus(row: &PointRow, slice: Option<Slice>, faults: &mut Faults<'_>) {
    let Some(modulus) = row.counter_modulus else { return };
    let bits = slice.map_or(row.ty.bits(), |slice| slice.width.into());
    let most = match row.ty {
        _ if matches!(row.ty.point_type(), PointType::Float32 | PointType::Float64) => return,
        ty if ty.is_bcd() => 10_u128.pow(bits / 4),
        _ => 1_u128 << bits,
    };
    if u128::from(modulus) > most {
        let message = format!("{} cannot count to {modulus}", row.ty);
        faults.add("counter_modulus", message, format!("at most {most}: the first value that does not fit"));
    }
}

fn bit_labels(row: &PointRow, slice: Option<Slice>, point: &mut Point, faults: &mut Faults<'_>) {
    let bits = slice.map_or(row.ty.bits(), |slice| slice.width.into());
    if !row.bit_labels.is_empty() && (!row.ty.is_bit_field() || row.bit.is_some()) {
        faults.add("bit_labels", format!("{} is no bit field", row.ty), "an unsigned integer has bits to be named");
        return;
    }
    for (key, label) in &row.bit_labels {
        let bit = key.parse::<Number>().ok().and_then(Number::as_int);
        match bit.filter(|bit| (0..i128::from(bits)).contains(bit)) {
            Some(bit) => {
                point::text(label, "bit_labels", true, faults);
                if point.extra.insert(format!("bit.{bit}"), label.clone()).is_some() {
                    faults.add("bit_labels", format!("bit {bit} is named twice"), "one name a bit");
                }
            }
            None => faults.add(
                "bit_labels",
                format!("{key:?} is none of its bits"),
                format!("bit_labels = {{ 0 = \"alarm\" }}, 0 to {}", bits - 1),
            ),
        }
    }
}

/// The catalogue's source text.
fn source(table: Table, address: u16, row: &PointRow, order: Order, slice: Option<Slice>) -> String {
    let suffix = if row.ty.has_order() { order.suffix() } else { "" };
    let bits = match slice {
        None => String::new(),
        Some(Slice { shift, .. }) if row.bit.is_some() => format!(":bit{shift}"),
        Some(Slice { shift, width }) => format!(":bits{shift}+{width}"),
    };
    format!("{}:{address}:{}{suffix}{bits}", table.name(), row.ty)
}
