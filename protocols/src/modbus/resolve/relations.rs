//! What the points of a device are to each other: whose scale stands in whose register, and which lie across others.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::ModbusPoint;
use crate::fault::{Fault, Faults, one_of};
use crate::value::{PointType, Scale};

/// A resolved row, and where it stands.
pub(super) struct Placed {
    pub(super) profile: Option<String>,
    pub(super) path: String,
    pub(super) enabled: bool,
    pub(super) point: ModbusPoint,
}

impl Placed {
    fn faults<'l>(&self, list: &'l mut Vec<Fault>) -> FaultsOf<'l> {
        FaultsOf { profile: self.profile.clone(), path: self.path.clone(), list }
    }
}

/// Faults of a placed row.
struct FaultsOf<'l> {
    profile: Option<String>,
    path: String,
    list: &'l mut Vec<Fault>,
}

impl FaultsOf<'_> {
    fn add(&mut self, key: &str, message: impl Into<String>, help: impl Into<String>) {
        let mut faults = Faults { profile: self.profile.as_deref(), path: self.path.clone(), list: self.list };
        faults.add(key, message, help);
    }
}

/// A scale that comes from a point needs one that can be a scale.
pub(super) fn scales(points: &[Placed], list: &mut Vec<Fault>) {
    for placed in points {
        let Some(name) = &placed.point.point.scale_from else { continue };
        let mut faults = placed.faults(list);
        let ty = placed.point.point.ty;
        if !matches!(ty, PointType::Int | PointType::Uint64 | PointType::Float32 | PointType::Float64) {
            faults.add("scale_from", "only a number is scaled", "remove `scale_from`");
            continue;
        }
        let Some(scale) = points.iter().find(|other| other.point.point.name == *name) else {
            let own = placed.point.point.name.as_str();
            let integers = points.iter().map(|other| &other.point.point).filter(|point| point.ty == PointType::Int);
            let names: Vec<&str> = integers.map(|point| point.name.as_str()).filter(|other| *other != own).collect();
            let mut help = String::from("an integer point of the same device, which holds the power of ten");
            if !names.is_empty() {
                help = format!("{help}; {}", one_of(name, names));
            }
            faults.add("scale_from", format!("the device has no point {name:?}"), help);
            continue;
        };
        let factor = &scale.point;
        let plain = factor.point.scale == Scale::default() && factor.point.scale_from.is_none();
        if factor.point.ty != PointType::Int || !plain {
            let help = "an integer point without a scale of its own: SunSpec's are i16";
            faults.add("scale_from", format!("{name:?} is no power of ten"), help);
        }
        if !scale.enabled && placed.enabled {
            faults.add(
                "scale_from",
                format!("{name:?} is not polled"),
                "enable it: without it the values mean nothing",
            );
        }
        if factor.period_ms > placed.point.period_ms {
            let message =
                format!("{name:?} is polled every {} ms, this every {} ms", factor.period_ms, placed.point.period_ms);
            faults.add("scale_from", message, "poll the scale at least as often as what it scales");
        }
    }
}

/// Values that lie across each other's registers: mostly a wrong address base, or a wrong type. One that lies within
/// another is legal: bits of a register, the halves of a number.
pub(super) fn straddles(points: &[Placed]) -> Vec<Fault> {
    let mut list = Vec::new();
    let mut order: Vec<&Placed> = points.iter().filter(|placed| placed.enabled).collect();
    let span = |placed: &Placed| {
        let start = u32::from(placed.point.address);
        (placed.point.table, start, start + u32::from(placed.point.ty.width()))
    };
    crate::sort(&mut order, |one, other| span(one).cmp(&span(other)));
    for (index, first) in order.iter().enumerate() {
        let (table, start, end) = span(first);
        for second in order.iter().skip(index + 1) {
            let (other, from, to) = span(second);
            if other != table || from >= end {
                break;
            }
            if from > start && to > end {
                let (a, b) = (&first.point, &second.point);
                let message = format!(
                    "{:?}, {} from {from} on, lies across {:?}, {} from {start} on (as on the wire)",
                    b.point.name, b.ty, a.point.name, a.ty
                );
                let help =
                    "one of the two has a wrong address or type: does the manual count registers from 0 or from 1?";
                second.faults(&mut list).add("address", message, help);
            }
        }
    }
    list
}
