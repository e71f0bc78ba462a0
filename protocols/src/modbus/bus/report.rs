//! What a schedule has to tell of its bus and devices.

use alloc::string::ToString;

use super::{Bus, Link};
use crate::modbus::slot;
use crate::modbus::status::{BusStatus, DeviceState, DeviceStatus, Trouble};
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
            let lasts = self.slots.iter().filter(|slot| slot.unit == index).map(|slot| slot.last);
            let state = if unit.silence.is_silent() { DeviceState::Silent } else { slot::state(lasts) };
            DeviceStatus {
                name: unit.name.clone(),
                state,
                polls_due: unit.due,
                polls_ok: unit.ok,
                last_error: unit.last_error.as_ref().map(show),
            }
        });
        BusStatus {
            name: self.name.clone(),
            connected: self.link == Link::Up,
            requests: self.requests,
            timeouts: self.timeouts,
            errors: self.errors,
            missed: self.missed,
            busy: self.load.busy(),
            utilisation: self.load.utilisation(now),
            last_error: self.last_error.as_ref().map(show),
            devices: devices.collect(),
        }
    }
}
