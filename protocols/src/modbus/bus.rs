//! When to ask which unit what: the schedule of one bus.

use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use crate::modbus::config::{BusSpec, DeviceSpec};
use crate::modbus::plan::Request;
use crate::time::Mono;

/// One bus: connection, requests with their due times, and what is known of its devices.
#[derive(Debug)]
pub struct Bus {}

/// A device on a bus, with what is asked of it.
#[derive(Clone, Debug)]
pub struct BusDevice {
    /// As configured.
    pub name: String,
    /// 1 to 255.
    pub unit: u8,
    /// How long its answer may take, if not the bus's time.
    pub timeout: Option<Duration>,
    /// Silence after its answer, if not the bus's.
    pub quiet: Option<Duration>,
    /// Requests, each with its index in the gateway's list of requests: what
    /// [`Poll::request`](crate::reading::Poll::request) will say.
    pub requests: Vec<(u32, Request)>,
}

impl BusDevice {
    /// A device with its planned requests, the first of which is number `first` in the gateway's list.
    #[must_use]
    pub fn new(device: &DeviceSpec, requests: Vec<Request>, first: u32) -> Self {
        Self {
            name: device.name.clone(),
            unit: device.unit,
            timeout: device.timeout,
            quiet: device.quiet,
            requests: (first..).zip(requests).collect(),
        }
    }
}

/// What there is to tell of a bus.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BusStatus {
    /// As configured.
    pub name: String,
    /// Whether it has a connection.
    pub connected: bool,
    /// Requests sent.
    pub requests: u64,
    /// Requests without an answer in time.
    pub timeouts: u64,
    /// Answers that could not be trusted, and connections refused or lost.
    pub errors: u64,
    /// Due polls that had to be skipped.
    pub missed: u64,
    /// How long requests were out, in all.
    pub busy: Duration,
    /// Share of the time since the start, or the last minute if longer, in which a request was out: 0 to 1.
    pub utilisation: f64,
    /// Its devices, in the order given.
    pub devices: Vec<DeviceStatus>,
}

/// What there is to tell of a device.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DeviceStatus {
    /// As configured.
    pub name: String,
    /// How it does.
    pub state: DeviceState,
    /// Polls that were due.
    pub polls_due: u64,
    /// Polls that brought values.
    pub polls_ok: u64,
    /// The last thing that went wrong.
    pub last_error: Option<String>,
}

/// How a device does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceState {
    /// Every request's last poll brought values.
    #[default]
    Ok,
    /// It answers, but not to everything.
    Degraded,
    /// It does not answer.
    Silent,
}

impl DeviceState {
    /// As `tributary status` prints it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Degraded => "degraded",
            Self::Silent => "silent",
        }
    }
}

impl Bus {
    /// A bus that starts at `now`. `seed` spreads its attempts to connect.
    #[must_use]
    pub fn new(spec: &BusSpec, devices: Vec<BusDevice>, now: Mono, seed: u64) -> Self {
        let _ = (spec, devices, now, seed);
        Self {}
    }

    /// What there is to tell.
    #[must_use]
    pub fn status(&self, now: Mono) -> BusStatus {
        let _ = now;
        BusStatus::default()
    }
}
