//! What there is to tell of a bus and its devices: the schedule fills it in, `tributary status` prints it.

use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use crate::modbus::decode::exception_name;
use crate::modbus::frame::Doubt;
use crate::time::Mono;

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
    /// Answers that could not be trusted, and connections refused or lost in mid-request.
    pub errors: u64,
    /// Due polls that were not sent: overdue, without a connection, or to a silent device.
    pub missed: u64,
    /// How long requests were out, in all.
    pub busy: Duration,
    /// Share of the last half to one minute in which a request was out: 0 to 1.
    pub utilisation: f64,
    /// The last thing that went wrong.
    pub last_error: Option<String>,
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
    /// Polls that were due and are over.
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

/// Why a poll brought no values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Trouble {
    #[error("no answer in time")]
    NoAnswer,
    #[error("no connection")]
    NoConnection,
    #[error("the connection was closed")]
    Closed,
    #[error("not asked, because it has not answered for some time")]
    Silent,
    #[error("the bus was not free before the next poll was due")]
    Overdue,
    #[error("an answer that cannot be trusted: {0}")]
    Doubt(Doubt),
    #[error("exception {0}, {name}", name = exception_name(*.0))]
    Exception(u8),
}

/// How busy a bus was, lately: two marks at least 30 s apart, of which the older one counts.
#[derive(Debug)]
pub(crate) struct Load {
    busy: Duration,
    marks: [(Mono, Duration); 2],
}

const MARK_EVERY: Duration = Duration::from_secs(30);

impl Load {
    pub(crate) fn new(now: Mono) -> Self {
        Self { busy: Duration::ZERO, marks: [(now, Duration::ZERO); 2] }
    }

    /// A request was out for `time`, up to `now`.
    pub(crate) fn add(&mut self, now: Mono, time: Duration) {
        self.busy += time;
        if now.since(self.marks[1].0) >= MARK_EVERY {
            self.marks = [self.marks[1], (now, self.busy)];
        }
    }

    pub(crate) fn busy(&self) -> Duration {
        self.busy
    }

    /// 0 to 1.
    pub(crate) fn utilisation(&self, now: Mono) -> f64 {
        let [(since, before), _] = self.marks;
        let span = now.since(since).as_secs_f64();
        if span > 0.0 { ((self.busy - before).as_secs_f64() / span).min(1.0) } else { 0.0 }
    }
}
