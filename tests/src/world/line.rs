//! The way between agent and receiver: one connection at a time, a broker that keeps retained messages and wills, and
//! everything that can go wrong on both.

use std::collections::HashMap;

use bytes::Bytes;
use tributary_core::uplink::Channel;

/// A connection of the agent.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) id: u64,
    pub(super) will: Vec<u8>,
    /// Nothing gets through any more, and nobody is told.
    pub(super) half_open: bool,
    /// A status was published on it.
    pub(super) greeted: bool,
    /// When the last message from the agent arrives, ns: a connection keeps its order.
    pub(super) last_arrival: u64,
    /// Revision of the catalogue last published on it, by epoch.
    pub(super) catalogs: HashMap<u64, u32>,
    /// Last seq first sent on each lane, by epoch.
    pub(super) lanes: HashMap<(u64, Channel), u64>,
}

/// How bad the way is at present.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Weather {
    /// Connects that are refused, out of a thousand.
    pub(super) refuse: u32,
    /// Messages that the broker PUBACKs and forgets, out of a thousand.
    pub(super) forget: u32,
    /// Messages that the broker delivers twice, out of a thousand.
    pub(super) double: u32,
    /// Acks that are lost, doubled or late, out of a thousand each.
    pub(super) acks: u32,
    /// Most time a message takes, ms.
    pub(super) latency_ms: u64,
}

/// Link and broker.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) session: Option<Session>,
    pub(super) sessions: u64,
    /// Which try of the agent to connect is not over.
    pub(super) dialling: Option<u64>,
    /// The last session whose end the agent was told.
    pub(super) told: u64,
    pub(super) weather: Weather,
    /// No route at all.
    pub(super) down: bool,
    /// Bytes a second that the way to the broker carries; `None` = all at once.
    pub(super) rate: Option<u64>,
    /// Until when it carries what was handed to it, ns.
    busy_until: u64,
    pub(super) retained: HashMap<Channel, Bytes>,
}

impl Line {
    pub(super) fn new() -> Self {
        Self {
            session: None,
            sessions: 0,
            dialling: None,
            told: 0,
            weather: Weather { latency_ms: 20, ..Weather::default() },
            down: false,
            rate: None,
            busy_until: 0,
            retained: HashMap::new(),
        }
    }

    pub(super) fn connect(&mut self, id: u64, will: Vec<u8>, now: u64) {
        self.busy_until = now;
        self.session = Some(Session {
            id,
            will,
            half_open: false,
            greeted: false,
            last_arrival: now,
            catalogs: HashMap::new(),
            lanes: HashMap::new(),
        });
    }

    /// How long a message of so many bytes is under way behind those before it, ns.
    pub(super) fn carries(&mut self, bytes: usize, now: u64) -> u64 {
        let Some(rate) = self.rate else { return 0 };
        self.busy_until = self.busy_until.max(now) + bytes as u64 * 1_000_000_000 / rate;
        self.busy_until - now
    }

    /// The connection of that number, if it still stands.
    pub(super) fn standing(&mut self, id: u64) -> Option<&mut Session> {
        self.session.as_mut().filter(|session| session.id == id)
    }
}
