//! What the broker does with a message: passes it on, twice or not at all, and answers for it or not.

use super::*;

impl World {
    pub(super) fn at_broker(&mut self, id: u64, publish: Publish) {
        if self.line.standing(id).is_none_or(|session| session.half_open) {
            return;
        }
        let payload = Bytes::from(publish.payload);
        if publish.channel.retained() {
            self.line.retained.insert(publish.channel, payload.clone());
        }
        let weather = self.line.weather;
        if self.faults.by_broker {
            // The broker is the far end. It may lose a message unanswered; what it answered for has arrived.
            if self.rng.u32(..1_000) < weather.forget {
                return;
            }
            self.puback(id, publish.seq);
        } else {
            let latency = self.latency();
            self.after(latency, Event::Puback(id, publish.seq));
            if self.rng.u32(..1_000) < weather.forget {
                return;
            }
        }
        let kind = match publish.channel {
            Channel::Live | Channel::Backlog => Kind::Data,
            Channel::Catalog => Kind::Catalog,
            Channel::Status => Kind::Status,
        };
        self.deliver(kind, payload.clone());
        if self.rng.u32(..1_000) < weather.double {
            self.deliver(kind, payload);
        }
    }

    /// A PUBACK that counts: lost, late or doubled as Acks are elsewhere.
    fn puback(&mut self, id: u64, seq: u64) {
        let bad = self.line.weather.acks;
        if self.rng.u32(..1_000) < bad {
            return;
        }
        for _ in 0..if self.rng.u32(..1_000) < bad { 2 } else { 1 } {
            let late = if self.rng.u32(..1_000) < bad { self.rng.u64(..20_000) * MILLI } else { 0 };
            let latency = self.latency() + late;
            self.after(latency, Event::Puback(id, seq));
        }
    }

    pub(super) fn deliver(&mut self, kind: Kind, payload: Bytes) {
        let latency = self.latency();
        self.after(latency, Event::AtCentre(kind, payload));
    }
}
