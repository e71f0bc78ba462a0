//! The receiver of the world: the real intake and settling over a store in memory, with groups, restarts and whims.

use std::sync::Arc;

use bytes::Bytes;
use fastrand::Rng;
use tributary_proto::pb;
use tributary_receiver::ingest::{Cause, Quarantined};
use tributary_receiver::intake::Intake;
use tributary_receiver::ledger::Arrival;
use tributary_receiver::store::{Group, Memory};
use tributary_receiver::topic::{AgentKey, Kind};

/// What the receiver does at present besides its duty.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Whims {
    /// Batches refused for good, out of a thousand.
    pub(super) refuse: u32,
    /// Every batch is too new.
    pub(super) too_new: bool,
}

/// The receiver.
#[derive(Debug)]
pub(super) struct Centre {
    pub(super) key: AgentKey,
    pub(super) memory: Memory,
    pub(super) up: bool,
    pub(super) whims: Whims,
    /// Of each life, so that what was scheduled for an earlier one is void.
    pub(super) life: u32,
    intake: Intake,
    group: Vec<Arrival>,
    /// Refused by whim: epoch, seq, readings.
    pub(super) refused: Vec<(u64, u64)>,
}

impl Centre {
    pub(super) fn new() -> Self {
        Self {
            key: AgentKey::new("site", "agent").expect("levels"),
            memory: Memory::new(),
            up: true,
            whims: Whims::default(),
            life: 0,
            intake: Intake::new(),
            group: Vec::new(),
            refused: Vec::new(),
        }
    }

    /// Takes a message; whether a group was opened by it.
    pub(super) fn take(&mut self, kind: Kind, payload: &Bytes, rng: &mut Rng) -> bool {
        let opens = self.group.is_empty();
        let mut arrivals = self.intake.take(&self.key, kind, payload);
        if let [Arrival::Waiting { epoch, .. }] = arrivals[..]
            && let Some(known) = self.memory.catalogs.get(&(self.key.clone(), epoch))
        {
            let message = known.message.clone();
            arrivals = self.intake.learn(&self.key, &message);
        }
        for arrival in arrivals {
            let arrival = self.whim(arrival, rng);
            self.group.push(arrival);
        }
        opens && !self.group.is_empty()
    }

    fn whim(&mut self, arrival: Arrival, rng: &mut Rng) -> Arrival {
        let Arrival::Batch(delivery) = &arrival else { return arrival };
        let (epoch, seq, message) = (delivery.epoch, delivery.seq, delivery.message.clone());
        if self.whims.too_new {
            return Arrival::TooNew { epoch };
        }
        if rng.u32(..1_000) < self.whims.refuse {
            self.refused.push((epoch, seq));
            let (cause, detail) = (Cause::BadPayload, "by whim".to_owned());
            return Arrival::Quarantine(Arc::new(Quarantined { epoch, seq, cause, detail, message }));
        }
        arrival
    }

    /// COMMIT of the open group; the Acks that follow.
    pub(super) fn commit(&mut self, now_ms: i64) -> Vec<pb::Ack> {
        if self.group.is_empty() {
            return Vec::new();
        }
        let group = Group::from([(self.key.clone(), std::mem::take(&mut self.group))]);
        self.memory.commit(&group, now_ms).into_iter().map(|(_, ack)| ack).collect()
    }

    /// Killed: what was not committed is gone.
    pub(super) fn die(&mut self) {
        self.up = false;
        self.life += 1;
        self.intake = Intake::new();
        self.group.clear();
    }

    /// Started: an Ack for the agent, if it is known.
    pub(super) fn start(&mut self) {
        self.up = true;
        if self.memory.agents.contains_key(&self.key) {
            self.group.push(Arrival::Greeting);
        }
    }
}
