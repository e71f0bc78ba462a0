//! What a schedule has to tell of its bus and devices.

use alloc::string::ToString;
use alloc::vec::Vec;

use super::{Bus, Link, split};
use crate::modbus::slot::{self, Slot};
use crate::modbus::status::{BusStatus, DeviceState, DeviceStatus, Trouble, Unsupported};
use crate::time::Mono;

impl Bus {
    /// What there is to tell.
    #[must_use]
    pub fn status(&self, now: Mono) -> BusStatus {
        let show = |trouble: &Trouble| match (trouble, &self.connection_error) {
            (Trouble::NoConnection | Trouble::Closed, Some(error)) => alloc::format!("{trouble}: {error}"),
            _ => trouble.to_string(),
        };
        let devices = self.units.iter().enumerate().map(|(index, unit)| {
            let slots = || self.slots.iter().filter(|slot| slot.unit == index);
            let state = match unit.silence.is_silent() {
                true => DeviceState::Silent,
                false => slot::state(slots().map(|slot| slot.last)),
            };
            DeviceStatus {
                name: unit.name.clone(),
                state,
                polls_due: unit.due,
                polls_ok: unit.ok,
                answers: unit.times.count,
                answer_mean: unit.times.mean,
                answer_max: unit.times.max,
                unsupported: slots().flat_map(unsupported).collect(),
                last_error: unit.last_error.as_ref().map(show),
            }
        });
        let counts = self.counts;
        BusStatus {
            name: self.name.clone(),
            connected: self.link == Link::Up,
            requests: counts.requests,
            timeouts: counts.timeouts,
            errors: counts.errors,
            missed: counts.missed,
            probes: counts.probes,
            echoes: counts.echoes,
            crc_errors: counts.damaged,
            stale: counts.stale,
            foreign: counts.foreign,
            splits: counts.splits,
            asks: counts.asks,
            busy: self.load.busy(),
            utilisation: self.load.utilisation(now),
            requests_per_second: self.load.rate(now),
            cycle: self.slots.iter().map(|slot| slot.took).sum(),
            last_error: self.last_error.as_ref().map(show),
            devices: devices.collect(),
        }
    }
}

/// The points of a request that its device does not have, neighbours together.
fn unsupported(slot: &Slot) -> Vec<Unsupported> {
    let points = slot.refused.iter().filter(|one| one.stands() && one.part.1 - one.part.0 == 1);
    let mut parts: Vec<_> = points.map(|one| one.part).collect();
    crate::sort(&mut parts, Ord::cmp);
    let mut ranges: Vec<Unsupported> = Vec::new();
    for part in parts {
        let (address, count) = split::span(&slot.request, part);
        let end = u32::from(address) + u32::from(count);
        match ranges.last_mut() {
            Some(last) if u32::from(last.address) + u32::from(last.count) >= u32::from(address) => {
                let reached = end.saturating_sub(last.address.into());
                last.count = last.count.max(u16::try_from(reached).unwrap_or(u16::MAX));
            }
            _ => ranges.push(Unsupported { table: slot.request.table, address, count }),
        }
    }
    ranges
}
