//! What there is to tell of a bus and its devices: the schedule fills it in, `tributary status` prints it.

use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use crate::modbus::decode::exception_name;
use crate::modbus::frame::Doubt;
use crate::modbus::register::Table;
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
    /// Requests to devices that had not answered for some time.
    pub probes: u64,
    /// Questions that a serial adapter heard itself say.
    pub echoes: u64,
    /// Answers whose checksum was wrong, or that ended in the middle.
    pub crc_errors: u64,
    /// Late and doubled answers that were passed over.
    pub stale: u64,
    /// Questions of another master on the line.
    pub foreign: u64,
    /// Blocks and parts of blocks that were refused, and cut in two.
    pub splits: u64,
    /// Questions beside the schedule.
    pub asks: u64,
    /// How long requests were out or the line kept silent after them, in all.
    pub busy: Duration,
    /// Share of the last half to one minute in which a request was out or the line kept silent after it: 0 to 1.
    pub utilisation: f64,
    /// Requests sent a second, over the same time.
    pub requests_per_second: f64,
    /// How long it takes to ask everything once: the last time of each request, silence included, added up.
    pub cycle: Duration,
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
    /// Valid answers.
    pub answers: u64,
    /// How long it takes to answer, from the question's last byte to the answer's first where the speed of the line is
    /// known, else to its last: of late, each answer one part in sixteen.
    pub answer_mean: Duration,
    /// The longest that it took.
    pub answer_max: Duration,
    /// What it does not have, and is asked for rarely.
    pub unsupported: Vec<Unsupported>,
    /// The last thing that went wrong.
    pub last_error: Option<String>,
}

/// Registers or bits that a device does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unsupported {
    /// The table.
    pub table: Table,
    /// First register or bit, as on the wire.
    pub address: u16,
    /// Registers or bits.
    pub count: u16,
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

/// How long a device takes to answer.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct AnswerTimes {
    pub(crate) count: u64,
    pub(crate) mean: Duration,
    pub(crate) max: Duration,
    /// Whether it is known to give equal answers to different questions.
    pub(crate) twins: bool,
}

impl AnswerTimes {
    pub(crate) fn add(&mut self, time: Duration) {
        self.mean = if self.count == 0 { time } else { (self.mean * 15 + time) / 16 };
        self.max = self.max.max(time);
        self.count += 1;
    }
}

/// How busy a bus was, lately: two marks at least 30 s apart, of which the older one counts.
#[derive(Debug)]
pub(crate) struct Load {
    busy: Duration,
    requests: u32,
    marks: [Mark; 2],
}

#[derive(Clone, Copy, Debug)]
struct Mark {
    at: Mono,
    busy: Duration,
    requests: u32,
}

const MARK_EVERY: Duration = Duration::from_secs(30);

impl Load {
    pub(crate) fn new(now: Mono) -> Self {
        let mark = Mark { at: now, busy: Duration::ZERO, requests: 0 };
        Self { busy: Duration::ZERO, requests: 0, marks: [mark; 2] }
    }

    /// A request was out for `time`, up to `now`.
    pub(crate) fn add(&mut self, now: Mono, time: Duration) {
        self.busy += time;
        self.requests = self.requests.wrapping_add(1);
        if now.since(self.marks[1].at) >= MARK_EVERY {
            self.marks = [self.marks[1], Mark { at: now, busy: self.busy, requests: self.requests }];
        }
    }

    pub(crate) fn busy(&self) -> Duration {
        self.busy
    }

    /// 0 to 1.
    pub(crate) fn utilisation(&self, now: Mono) -> f64 {
        let [mark, _] = self.marks;
        let span = now.since(mark.at).as_secs_f64();
        if span > 0.0 { ((self.busy - mark.busy).as_secs_f64() / span).min(1.0) } else { 0.0 }
    }

    /// Requests a second.
    pub(crate) fn rate(&self, now: Mono) -> f64 {
        let [mark, _] = self.marks;
        let span = now.since(mark.at).as_secs_f64();
        if span > 0.0 { f64::from(self.requests.wrapping_sub(mark.requests)) / span } else { 0.0 }
    }
}
