//! The uplink: what may be sent, in which order, and what an answer means. A state machine over the spool.
//!
//! Stands between the spool and the broker. The spool drives retransmission, not the MQTT client (contract rule 5): a
//! batch is handed out, and until an `Ack` covers it, it is handed out again. Nothing here holds the only copy of
//! anything; bodies come from the disk each time.
//!
//! ```text
//! Idle ──time──▶ Connecting ──connected──▶ Greeting ──Ack, or one ack timeout──▶ Open
//!   ▲                 │                        │                                   │
//!   └─────────────────┴──── lost, or no Ack for two ack timeouts: full jitter ─────┘
//! ```
//!
//! *Greeting*: ONLINE went first; data waits for its Ack, so that a rolled-back spool is noticed before it publishes
//! (rule 2). *Open*: batches up to the published mark go out, within the window; live ones first, the backlog with half
//! of it (rules 6, 7).
//!
//! Limits: at most `window_batches` entries in flight, 64 measured ack times.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;
use core::time::Duration;

use rangemap::RangeInclusiveSet;

use tributary_protocols::time::Mono;

use crate::spool::Spool;
use crate::store::{DirId, StoreCommand};

mod answers;
mod send;

/// Least and greatest ack timeout (rule 5).
const ACK_TIMEOUT: (Duration, Duration) = (Duration::from_secs(4), Duration::from_secs(30));
/// Greatest time between two sendings of a batch on one connection (rule 5).
const RESEND_MAX: Duration = Duration::from_secs(300);
/// While the receiver does not know our schema it is offered the oldest batch this often (rule 11).
const TOO_NEW_RETRY: Duration = Duration::from_secs(300);
/// A read that the disk could not do is tried again after this.
const READ_RETRY: Duration = Duration::from_secs(1);
/// Reads under way at once: bounds the bodies in memory.
const READS: usize = 4;

/// What frees a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AckMode {
    /// The receiver's `Ack` after its database commit.
    #[default]
    Receiver,
    /// The broker's PUBACK: for platforms that cannot answer.
    Broker,
}

/// Which batches go first after an outage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// New ones; the backlog beside them.
    #[default]
    LiveFirst,
    /// Strictly by age.
    OldestFirst,
}

/// Settings of the uplink.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// What frees a batch.
    pub ack: AckMode,
    /// Which go first.
    pub order: Order,
    /// Greatest delay before a reconnect.
    pub reconnect_max: Duration,
    /// Batches that may be unacknowledged.
    pub window_batches: usize,
    /// Bytes that may be unacknowledged.
    pub window_bytes: u64,
    /// Bytes a second of backlog at the most; `None` = as the window allows.
    pub backlog_rate: Option<u64>,
}

/// The topic, below `{prefix}/{site}/{agent}/`, with its rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Channel {
    /// `data/l`, QoS 1.
    Live,
    /// `data/b`, QoS 1.
    Backlog,
    /// `cat`, QoS 1, retained.
    Catalog,
    /// `stat`, QoS 1, retained.
    Status,
}

impl Channel {
    /// The last levels of the topic.
    #[must_use]
    pub const fn suffix(self) -> &'static str {
        match self {
            Self::Live => "data/l",
            Self::Backlog => "data/b",
            Self::Catalog => "cat",
            Self::Status => "stat",
        }
    }

    /// Whether the broker keeps the newest message.
    #[must_use]
    pub const fn retained(self) -> bool {
        matches!(self, Self::Catalog | Self::Status)
    }
}

/// A message for the broker, QoS 1.
#[derive(Clone, PartialEq, Eq)]
pub struct Publish {
    /// The batch it is, for a PUBACK in broker mode; 0 = none.
    pub seq: u64,
    /// Where it goes.
    pub channel: Channel,
    /// The serialized message.
    pub payload: Vec<u8>,
}

impl core::fmt::Debug for Publish {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Publish({:?}, seq {}, {} B)", self.channel, self.seq, self.payload.len())
    }
}

/// What an answer of the centre asks of the pipeline beyond the spool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consequence {
    /// Nothing.
    None,
    /// The spool's identity is in doubt: begin a new epoch (rule 2).
    NewEpoch(Doubt),
}

/// Why a new epoch begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// The newest part of the spool could not be read.
    Damaged,
    /// The centre holds another body under one of our seqs.
    Forked,
    /// The centre acknowledged a seq that this spool never published.
    AboveMark {
        /// What it named.
        seq: u64,
        /// What was published at the most.
        mark: u64,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    Idle { retry_at: Mono },
    Connecting,
    Greeting { until: Mono },
    Open,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lane {
    Live,
    Backlog,
    /// Settled already: asked for by a replay.
    Again,
}

#[derive(Clone, Copy, Debug)]
struct Flight {
    lane: Lane,
    bytes: u64,
    /// When it was handed out last; `None` while its body is being read.
    sent: Option<Mono>,
    due: Mono,
    doublings: u32,
    resent: bool,
}

/// What the uplink does next.
#[derive(Debug)]
pub enum Step {
    /// Dial the broker.
    Connect,
    /// Drop the connection: it makes no progress, or its will is out of date.
    Abort,
    /// Read a body.
    Read(StoreCommand),
    /// Publish the catalogue first.
    Catalog,
}

/// The uplink.
#[derive(Debug)]
pub struct Uplink {
    config: Config,
    link: Link,
    attempts: u32,
    flight: BTreeMap<u64, Flight>,
    /// Bodies being read: directory, stored seq, seq, and the revision that resolves it if its record does not say.
    reading: VecDeque<(DirId, u64, u64, u32)>,
    /// Settled batches that the centre wants again.
    replay: RangeInclusiveSet<u64>,
    /// Seqs from here on are live; below is backlog.
    live_from: u64,
    next_live: u64,
    next_backlog: u64,
    window: Option<usize>,
    pause_until: Mono,
    read_at: Mono,
    backlog_at: Mono,
    hold_until: Option<Mono>,
    ack_times: heapless::HistoryBuf<u32, 64>,
    healthy: bool,
    last_ack: Option<Mono>,
    /// Since when batches are in flight without any Ack.
    waiting_since: Option<Mono>,
    catalog_sent: u32,
    /// Acks in a row that want the catalogue.
    catalog_wanted: u32,
    reconnects: u64,
    abort: bool,
}

impl Uplink {
    /// A disconnected uplink that dials at once.
    #[must_use]
    pub fn new(config: Config, now: Mono) -> Self {
        Self {
            config,
            link: Link::Idle { retry_at: now },
            attempts: 0,
            flight: BTreeMap::new(),
            reading: VecDeque::new(),
            replay: RangeInclusiveSet::new(),
            live_from: 1,
            next_live: 1,
            next_backlog: 1,
            window: None,
            pause_until: now,
            read_at: now,
            backlog_at: now,
            hold_until: None,
            ack_times: heapless::HistoryBuf::new(),
            healthy: false,
            last_ack: None,
            waiting_since: None,
            catalog_sent: 0,
            catalog_wanted: 0,
            reconnects: 0,
            abort: false,
        }
    }

    /// Goes on under other settings. What the connection itself is made of, and whose acknowledgement counts, is for
    /// the next connection.
    pub fn reload(&mut self, config: Config) {
        self.config = config;
    }

    /// Whether there is a connection.
    #[must_use]
    pub fn connected(&self) -> bool {
        matches!(self.link, Link::Greeting { .. } | Link::Open)
    }

    /// Whether data may flow: a commit now may raise the published mark.
    #[must_use]
    pub fn open(&self) -> bool {
        self.link == Link::Open && !self.abort
    }

    /// Whether an Ack came on this connection (rule 21).
    #[must_use]
    pub fn healthy(&self) -> bool {
        self.healthy
    }

    /// When the last Ack came, on any connection.
    #[must_use]
    pub fn last_ack(&self) -> Option<Mono> {
        self.last_ack
    }

    /// Connections made after the first.
    #[must_use]
    pub fn reconnects(&self) -> u64 {
        self.reconnects.saturating_sub(1)
    }

    /// Batches handed out and not acknowledged.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.flight.len()
    }

    /// Four times the slowest of the last 64 Acks (their 99th percentile by nearest rank), 4 s to 30 s (rule 5).
    #[must_use]
    pub fn ack_timeout(&self) -> Duration {
        let slowest = self.ack_times.iter().max().copied().unwrap_or(0);
        Duration::from_millis(u64::from(slowest) * 4).clamp(ACK_TIMEOUT.0, ACK_TIMEOUT.1)
    }

    /// The connection stands; ONLINE is being published.
    pub fn handle_connected(&mut self, now: Mono, spool: &mut Spool) {
        self.reconnects += 1;
        (self.catalog_sent, self.catalog_wanted) = (0, 0);
        self.healthy = false;
        self.window = None;
        self.hold_until = None;
        self.pause_until = now;
        self.link = match self.config.ack {
            AckMode::Receiver => Link::Greeting { until: now + self.ack_timeout() },
            AckMode::Broker => Link::Open,
        };
        self.forget();
        if self.open() {
            self.begin(spool);
        }
    }

    /// The connection is gone, or could not be made. Returns when it is tried again.
    pub fn handle_disconnected(&mut self, now: Mono, rng: &mut fastrand::Rng) -> Mono {
        let ceiling = Duration::from_secs(1).saturating_mul(1 << self.attempts.min(20)).min(self.config.reconnect_max);
        self.attempts = self.attempts.saturating_add(1);
        let nanos = u64::try_from(ceiling.as_nanos()).unwrap_or(u64::MAX);
        let retry_at = now + Duration::from_nanos(rng.u64(0..=nanos));
        self.link = Link::Idle { retry_at };
        self.healthy = false;
        self.forget();
        retry_at
    }

    /// Who this agent is to the broker has changed: a connection is made anew, and without one the next try comes soon.
    pub fn handle_renewal(&mut self, now: Mono, rng: &mut fastrand::Rng) {
        self.abort |= !matches!(self.link, Link::Idle { .. });
        self.healthy = false; // no Ack has come under the new ones
        self.hasten(now, rng);
    }

    /// What kept connections from coming about may be over: the next try comes within a second, by chance so that not
    /// all agents of a plant come at once.
    pub fn hasten(&mut self, now: Mono, rng: &mut fastrand::Rng) {
        self.attempts = 0;
        if let Link::Idle { retry_at } = &mut self.link {
            *retry_at = (*retry_at).min(now + Duration::from_millis(rng.u64(0..=1_000)));
        }
    }

    fn forget(&mut self) {
        self.flight.clear();
        self.reading.clear();
        self.replay.clear();
        self.waiting_since = None;
        self.abort = false;
    }

    /// A new epoch began: the connection, also one that is being made, is dropped, so that the will names it (rule 2).
    pub fn handle_new_epoch(&mut self) {
        self.forget();
        self.abort = !matches!(self.link, Link::Idle { .. });
    }

    /// Everything unacknowledged is sent again, in order within each lane (rule 5); what comes after now is live.
    fn begin(&mut self, spool: &mut Spool) {
        self.live_from = spool.last_seq() + 1;
        self.next_live = self.live_from;
        self.next_backlog = 1;
        spool.hurry();
    }

    /// When `poll` has something to do next.
    #[must_use]
    pub fn next_deadline(&self, spool: &Spool) -> Option<Mono> {
        if self.abort {
            return Some(Mono::ZERO);
        }
        match self.link {
            Link::Idle { retry_at } => Some(retry_at),
            Link::Connecting => None,
            Link::Greeting { until } => Some(until),
            Link::Open => {
                let busy = self.reading.len() >= READS;
                let resend = self.flight.values().filter(|flight| !busy && flight.sent.is_some());
                let resend = resend.map(|flight| flight.due).min();
                let stalled = self.waiting_since.map(|since| since + self.ack_timeout() * 2);
                let send = self.sendable(spool).map(|(_, at)| at.max(self.gate()));
                [resend.map(|at| at.max(self.gate())), stalled, send].into_iter().flatten().min()
            }
        }
    }

    /// Nothing is sent before this.
    fn gate(&self) -> Mono {
        self.pause_until.max(self.read_at).max(self.hold_until.unwrap_or(Mono::ZERO))
    }

    /// What to do at `now`, if anything.
    pub fn poll(&mut self, now: Mono, spool: &mut Spool, catalog_rev: u32) -> Option<Step> {
        if core::mem::take(&mut self.abort) {
            return Some(Step::Abort);
        }
        match self.link {
            Link::Idle { retry_at } if now >= retry_at => {
                self.link = Link::Connecting;
                Some(Step::Connect)
            }
            Link::Idle { .. } | Link::Connecting => None,
            Link::Greeting { until } if now >= until => {
                self.link = Link::Open;
                self.begin(spool);
                self.poll_open(now, spool, catalog_rev)
            }
            Link::Greeting { .. } => None,
            Link::Open => self.poll_open(now, spool, catalog_rev),
        }
    }

    /// An index was read: what waited for it may go on.
    pub fn handle_loaded(&mut self, now: Mono) {
        self.read_at = self.read_at.min(now);
    }

    /// The catalogue is to be published again before anything else.
    pub fn want_catalog(&mut self) {
        self.catalog_sent = 0;
    }

    /// The catalogue was published in this revision.
    pub fn catalog_published(&mut self, rev: u32) {
        self.catalog_sent = rev;
    }

    /// How many Acks in a row wanted the catalogue, on this connection.
    #[must_use]
    pub fn catalog_wanted(&self) -> u32 {
        self.catalog_wanted
    }

    /// The revision last published on this connection; 0 = none.
    #[must_use]
    pub fn catalog_sent(&self) -> u32 {
        self.catalog_sent
    }
}
