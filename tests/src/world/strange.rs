//! What is out of the ordinary without being a failure: other settings of the uplink, requests of the centre, false and
//! broken messages, a suspended machine.
//!
//! It draws from a generator of its own, and only every fifth seed has any, another fifth from 100 on reloads, so that the
//! other seeds keep their meaning.

use tributary_proto::pb::control::{Replay, What};

use super::*;

/// What is out of the ordinary in a world.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Strange {
    /// `uplink.order = "oldest-first"`.
    pub oldest_first: bool,
    /// The backlog has a byte rate.
    pub backlog_rate: bool,
    /// The centre makes the window one batch, and pauses.
    pub slow: bool,
    /// The centre asks for batches and catalogues, among them for what cannot be.
    pub requests: bool,
    /// Acks of other epochs, in part, inverted, above the last seq, and bytes that are none.
    pub hostile: bool,
    /// The machine stands still for a while; both clocks go on.
    pub suspend: bool,
    /// A new configuration comes while the agent runs (SIGHUP): the same, or with another plan of the polls.
    pub reload: bool,
}

impl Strange {
    /// Those of a seed: one surely, and perhaps others.
    #[must_use]
    pub fn of(seed: u64) -> Self {
        let mut it = Self { reload: seed >= 100 && seed % 5 == 2, ..Self::default() };
        if seed % 5 != 4 {
            return it;
        }
        let mut rng = Rng::with_seed(seed ^ 0x57a6_e000);
        let all = [
            &mut it.oldest_first,
            &mut it.backlog_rate,
            &mut it.slow,
            &mut it.requests,
            &mut it.hostile,
            &mut it.suspend,
        ];
        let sure = seed / 5 % all.len() as u64;
        for (n, kind) in (0..).zip(all) {
            *kind = n == sure || rng.u32(..4) == 0;
        }
        it
    }

    pub(super) fn any(self) -> bool {
        self != Self::default()
    }
}

/// What the centre asked for.
#[derive(Debug)]
pub(super) struct Asked {
    rng: Rng,
    requests: u64,
    /// By request: the replay, the epoch and last durable seq of the agent then, and what the centre had not yet.
    open: BTreeMap<u64, (Option<Replay>, u64, Vec<u64>)>,
}

impl Asked {
    pub(super) fn new(seed: u64) -> Self {
        Self { rng: Rng::with_seed(seed ^ 0x0dd), requests: 1_000_000, open: BTreeMap::new() }
    }
}

impl World {
    /// Something out of the ordinary happens; then again after a while.
    pub(super) fn odd(&mut self) {
        if self.peace {
            return;
        }
        let next = self.asked.rng.u64(1..60);
        self.after(next * SECOND, Event::Odd);
        let it = self.faults.strange;
        let session = self.line.session.as_ref().map(|session| session.id);
        match (self.asked.rng.u32(..4), session) {
            (0, Some(session)) if it.slow => {
                let (window, pause_ms) = (1, self.asked.rng.u32(..20_000));
                let ack = pb::Ack { window, pause_ms, ..self.true_ack() };
                self.at(self.clock.nanos(), Event::AtAgent(session, ack.encode_to_vec()));
            }
            (1, Some(session)) if it.requests => {
                let control = self.request();
                self.at(self.clock.nanos(), Event::Control(session, control));
            }
            (2, Some(session)) if it.hostile => {
                let bytes = self.hostile();
                let event = if self.asked.rng.bool() { Event::AtAgent } else { Event::Control };
                self.at(self.clock.nanos(), event(session, bytes));
            }
            (3, _)
                if it.suspend
                    && self.agent.is_some()
                    && !self.stopping
                    && self.clock.nanos() < (TROUBLE_S - 600) * SECOND =>
            {
                self.suspend();
            }
            _ => {}
        }
    }

    /// The agent is given its configuration anew; then again after a while.
    pub(super) fn reload(&mut self) {
        if self.peace {
            return;
        }
        let next = self.asked.rng.u64(1..200);
        self.after(next * SECOND, Event::Reload);
        if self.agent.is_none() || self.stopping {
            return;
        }
        let f = self.faults;
        // What a crash takes in the moment of another plan has no due polls to go by.
        let lasts = !(f.crash || f.rollback || f.stop || f.disk || f.quota || f.damage || f.stop_polling);
        if lasts && self.asked.rng.bool() {
            let before = self.plant.groups();
            self.plant.replan(&mut self.asked.rng);
            for (known, (old, new)) in self.known.iter_mut().zip(before.iter().zip(self.plant.groups())) {
                *known &= *old == new;
            }
        }
        let (config, model, now) = (self.settings(), self.plant.model(), self.clock.now());
        if !self.agent.as_ref().is_some_and(Pipeline::can_reload) {
            assert!(f.disk || f.quota, "a reload waits only for a disk that is not well");
            return;
        }
        self.tell(|agent| agent.reload(now, config, &model)).expect("it runs").expect("the model fits");
        self.declared.clear();
    }

    /// What the centre may truly say at this moment: no more than it has.
    fn true_ack(&mut self) -> pb::Ack {
        let epoch = self.epochs.last().copied().unwrap_or(0);
        let first_refused = self.centre.refused.iter().filter(|(of, _)| *of == epoch).map(|(_, seq)| *seq).min();
        let facts = self.centre.memory.epochs.get(&(self.centre.key.clone(), epoch));
        let upto = facts.map_or(0, |facts| facts.contiguous_seq()).min(first_refused.map_or(u64::MAX, |seq| seq - 1));
        pb::Ack { epoch, contiguous_seq: self.asked.rng.u64(0..=upto), ..Default::default() }
    }

    fn request(&mut self) -> Vec<u8> {
        let epoch = self.epochs.last().copied().unwrap_or(0);
        let last = self.agent.as_ref().map_or(0, |agent| agent.spool().durable());
        let rng = &mut self.asked.rng;
        let (a, b) = (rng.u64(0..last + 20), rng.u64(0..last + 20));
        let other = [epoch ^ 1, self.epochs.first().copied().unwrap_or(0), 0][rng.usize(..3)];
        let (epoch, first_seq, last_seq) = match rng.u32(..6) {
            0 => (other, a.min(b), a.max(b)),
            1 => (other, a.max(b), a.min(b)),
            2 => (epoch, a.max(b), a.min(b)),
            3 => (epoch, 0, u64::MAX),
            _ => (epoch, a.min(b), a.max(b)),
        };
        let replay = What::Replay(Replay { epoch, first_seq, last_seq });
        let what = if rng.u32(..5) == 0 { What::SendCatalog(true) } else { replay };
        self.asked.requests += 1;
        pb::Control { request: self.asked.requests, what: Some(what) }.encode_to_vec()
    }

    fn hostile(&mut self) -> Vec<u8> {
        let mut ack = self.true_ack();
        let last = self.agent.as_ref().map_or(0, |agent| agent.spool().last_seq());
        let upto = ack.contiguous_seq;
        let rng = &mut self.asked.rng;
        match rng.u32(..12) {
            0 | 1 => ack = pb::Ack { epoch: rng.u64(..), contiguous_seq: last, refused: vec![last], ..ack },
            2 | 3 => {
                let epoch = self.epochs[rng.usize(..self.epochs.len())];
                if epoch != ack.epoch {
                    ack = pb::Ack { epoch, contiguous_seq: u64::MAX, ..ack };
                }
            }
            4 | 5 => {
                let first = rng.u64(0..=upto);
                ack.also = vec![pb::Range { first, last: upto }];
                ack.contiguous_seq = 0;
            }
            6 | 7 => ack.also = vec![pb::Range { first: u64::MAX, last: 0 }, pb::Range { first: upto + 2, last: upto }],
            8 => ack.contiguous_seq = if rng.bool() { u64::MAX } else { last + 1_000 },
            _ => return (0..rng.usize(..64)).map(|_| 0xff - rng.u8(..16)).collect(),
        }
        ack.encode_to_vec()
    }

    /// Nobody gets time for a while: what was due comes late, a poll once.
    fn suspend(&mut self) {
        let seconds = self.asked.rng.u64(1..=600);
        self.clock.advance(self.clock.nanos() + seconds * SECOND);
        for request in &self.plant.requests {
            // Should the agent die before its next commit, its loss reckons with the polls of this time.
            let polls = seconds * 1_000 / u64::from(request.period_ms) + 1;
            for point in &request.points {
                self.oracle.slack[point.0 as usize] += polls;
            }
        }
    }

    /// A request arrives at the agent.
    pub(super) fn ask(&mut self, control: &[u8]) {
        let Some(agent) = &self.agent else { return };
        let (epoch, durable) = (agent.spool().epoch(), agent.spool().durable());
        if let Ok(pb::Control { request, what: Some(what) }) = pb::Control::decode(control) {
            let replay = if let What::Replay(replay) = what { Some(replay) } else { None };
            let missing = (1..=durable).filter(|seq| !self.oracle.there.contains(&(epoch, *seq))).collect();
            self.asked.open.insert(request, (replay, epoch, missing));
        }
        let now = self.clock.now();
        self.tell(|agent| agent.handle_control(now, control));
    }

    /// Every request is answered once, and rightly (rule 24).
    pub(super) fn check_answers(&mut self) {
        for (request, text) in std::mem::take(&mut self.oracle.answers) {
            let Some(pb::event::Value::Integer(request)) = request else { panic!("an answer to no request: {text}") };
            let Some((replay, epoch, missing)) = self.asked.open.remove(&request.cast_unsigned()) else {
                assert!(self.rolled_back, "request {request} was not made, or is answered twice: {text}");
                continue;
            };
            let gone: Vec<(u64, u64)> = text.split(',').filter(|part| !part.is_empty()).map(range).collect();
            let Some(replay) = replay.filter(|replay| replay.first_seq <= replay.last_seq) else {
                assert_eq!(text, "", "request {request} asked for nothing");
                continue;
            };
            if replay.epoch != epoch {
                assert_eq!(gone, [(replay.first_seq, replay.last_seq)], "request {request}: {replay:?} in {epoch}");
            }
            let mut before = None;
            for (first, last) in gone {
                assert!(first <= last && Some(first) > before, "request {request}: {text}");
                assert!(replay.first_seq <= first && last <= replay.last_seq, "{replay:?} is answered by {text}");
                before = Some(last);
                for seq in missing.iter().filter(|seq| (first..=last).contains(seq) && replay.epoch == epoch) {
                    let explained = self.rolled_back || self.oracle.is_named(epoch, *seq);
                    assert!(explained, "seq {seq} is told as gone, never arrived and no loss names it");
                }
            }
        }
        let f = self.faults;
        let safe = !(f.crash || f.rollback || f.stop || f.disk || f.quota || f.damage || f.refuse);
        assert!(!safe || self.asked.open.is_empty(), "without an answer: {:?}", self.asked.open.keys());
    }
}

fn range(text: &str) -> (u64, u64) {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    (first.parse().expect("a seq"), last.parse().expect("a seq"))
}
