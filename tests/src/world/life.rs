//! What happens in the world when nothing goes wrong: polls, messages, the disk's answers, the way to the receiver and
//! back; the agent's starts and ends.

use super::*;

impl World {
    /// Tells the running agent something; the law must hold after it.
    pub(super) fn tell<T>(&mut self, what: impl FnOnce(&mut Pipeline) -> T) -> Option<T> {
        let agent = self.agent.as_mut()?;
        let answer = what(agent);
        self.law();
        Some(answer)
    }

    fn law(&self) {
        let Some((ledger, held)) = self.agent.as_ref().map(|agent| (agent.ledger(), agent.held())) else { return };
        assert!(ledger.holds(held), "the law is broken at {} ns: held {held}, {ledger:?}", self.clock.nanos());
    }

    /// Carries out what the pipeline wants until it wants nothing more.
    pub(super) fn pump(&mut self) {
        let mut outputs = 0;
        while self.agent.is_some() {
            let now = self.clock.now();
            let Some(output) = self.tell(|agent| agent.poll(now)).flatten() else { break };
            outputs += 1;
            assert!(outputs < MOST_OUTPUTS, "the pipeline does not come to rest: {output:?}");
            if self.trace {
                println!("{:.3}   {output:?}", self.clock.nanos() as f64 / 1e9);
            }
            self.carry_out(output);
        }
        let Some(agent) = &self.agent else { return };
        assert!(agent.uplink().in_flight() <= 18, "{} in flight", agent.uplink().in_flight());
        if agent.is_finished() && !self.stopped_cleanly {
            self.stopped_cleanly = true;
            let clean = self.disk.says_clean();
            // What failed is tried again after a second.
            let well = self.disk.mood == Mood::Well && self.clock.nanos() > self.disk.well_since + 2 * SECOND;
            assert!(clean || !well, "a clean stop is told to the disk");
            assert!(
                !clean || self.outstanding.is_empty(),
                "a clean stop acknowledges what it has: {:?}",
                self.outstanding
            );
        }
        let epoch = agent.spool().epoch();
        if self.epochs.last() != Some(&epoch) {
            assert!(self.rolled_back || !self.epochs.contains(&epoch), "an epoch comes back");
            self.epochs.push(epoch);
        }
    }

    fn carry_out(&mut self, output: Output) {
        match output {
            Output::Store(command) => {
                if matches!(command, tributary_core::store::StoreCommand::Commit(_)) {
                    self.snap = Some(Snap { polled: self.handed.clone(), unkept: self.unkept.len() });
                }
                if self.disk.take(command) {
                    self.schedule_disk();
                }
            }
            Output::Connect { will } => {
                let latency = self.latency();
                self.line.sessions += 1;
                self.line.dialling = Some(self.line.sessions);
                self.after(latency, Event::Dialled(self.life, self.line.sessions, will));
            }
            Output::Abort => {
                self.cut(false);
                self.line.dialling = None;
                self.after(MILLI, Event::Gone(self.life, self.line.sessions));
            }
            Output::Publish(publish) => self.publish(publish),
            Output::Disconnect => {
                // What was published before arrives before it.
                if let Some(session) = &mut self.line.session {
                    session.will.clear();
                }
            }
            Output::Release(Receipt(receipt)) => {
                assert!(self.outstanding.remove(&receipt).is_some(), "a receipt comes back that is not out");
                self.hand_over();
            }
            Output::Notice(_) => {}
        }
    }

    pub(super) fn latency(&mut self) -> u64 {
        self.rng.u64(1..=self.line.weather.latency_ms) * MILLI
    }

    // ------------------------------------------------------------------------------------------------------ plant

    pub(super) fn poll(&mut self, request: usize) {
        let period = u64::from(self.plant.requests[request].period_ms) * MILLI;
        // Polls keep to a grid: the answer comes up to a tenth of a period after its time.
        let next = self.clock.nanos() / period * period + period;
        let jitter = self.rng.u64(0..period / 10);
        self.at(next + jitter, Event::Poll(request));
        self.polls[request] += 1;
        if self.agent.is_none() || self.stopping {
            self.due[request] += 1;
            return;
        }
        let (n, now) = (self.polls[request], self.clock.now());
        let outcome = self.plant.answer(request, n);
        let accepts = self.agent.as_ref().is_some_and(|agent| agent.spool().accepts());
        let points = self.plant.requests[request].points.clone();
        let sample_of = |place: usize| match &outcome {
            Outcome::All(status) => Sample::bare(*status),
            Outcome::Samples(samples) => samples[place].clone(),
        };
        for (place, key) in points.iter().enumerate() {
            let (index, sample) = (key.0 as usize, sample_of(place));
            if self.plant.is_factor(index) {
                self.oracle.factor(index, &sample);
            }
            if let (true, true, Value::Bits(bits)) = (self.plant.points[index].counter, accepts, &sample.value) {
                self.oracle.count(index, now.wall.0, *bits, Plant::is_glitch(n));
            }
        }
        for (place, key) in points.iter().enumerate() {
            let sample = sample_of(place);
            let (index, wall) = (key.0 as usize, now.wall.0);
            let fate = self.oracle.enter(index, (now.mono.as_nanos(), wall), wall, &sample, accepts);
            if let (Fate::Raw(key), false) = (fate, self.kept[request]) {
                self.early[request].push(key);
            }
        }
        self.handed[request] += 1;
        let poll = Poll { request: u32::try_from(request).expect("few"), at: now.wall, outcome };
        self.tell(|agent| agent.handle_poll(now, &poll));
    }

    pub(super) fn speak(&mut self, sensor: usize) {
        let every = self.plant.sensors[sensor].every_ms * MILLI;
        let next = self.rng.u64(every / 10..every * 2);
        self.after(next, Event::Sensor(sensor));
        self.sensor_n[sensor] += 1;
        let spoken = Spoken { sensor, n: self.sensor_n[sensor], sent_ms: self.clock.true_ms() };
        if self.plant.sensors[sensor].waits {
            self.sensor_queue.push_back(spoken);
            self.hand_over();
        } else if self.agent.is_some() && !self.stopping {
            self.message(spoken);
        }
    }

    /// The sensors' broker hands out what its window lets it.
    pub(super) fn hand_over(&mut self) {
        while self.agent.is_some() && !self.stopping && self.outstanding.len() < SENSOR_WINDOW {
            let Some(spoken) = self.sensor_queue.pop_front() else { return };
            self.message(spoken);
        }
    }

    fn message(&mut self, spoken: Spoken) {
        let now = self.clock.now();
        let sensor = self.plant.sensors[spoken.sensor].clone();
        let key = if sensor.dynamic {
            if let Some(key) = self.declared.get(&sensor.point) {
                *key
            } else {
                let point = self.plant.points[sensor.point].clone();
                let key = self.tell(|agent| agent.declare(now, &point)).expect("runs").expect("fits");
                self.declared.insert(sensor.point, key);
                key
            }
        } else {
            PointKey(u32::try_from(sensor.point).expect("few"))
        };
        let sample = self.plant.sample(sensor.point, spoken.n);
        let at = match sensor.stamped_by {
            StampedBy::Agent => now.wall,
            StampedBy::Source => Wall(spoken.sent_ms),
        };
        let accepts = self.agent.as_ref().is_some_and(|agent| agent.spool().accepts());
        let fate = self.oracle.enter(sensor.point, (now.mono.as_nanos(), now.wall.0), at.0, &sample, accepts);
        let raw = if let Fate::Raw(key) = fate { Some(key) } else { None };
        let arrival = Arrival { point: key, at, stamped_by: sensor.stamped_by, sample };
        let receipt = sensor.waits.then(|| {
            self.receipts += 1;
            Receipt(self.receipts)
        });
        if sensor.waits {
            self.outstanding.insert(self.receipts, (spoken, raw));
        } else {
            self.unkept.extend(raw);
        }
        self.tell(|agent| agent.handle_message(now, vec![arrival], receipt));
    }

    // ------------------------------------------------------------------------------------------------------- disk

    fn schedule_disk(&mut self) {
        let latency = if self.rng.u32(..50) == 0 { self.rng.u64(1..800) } else { self.rng.u64(1..20) };
        self.after(latency * MILLI, Event::DiskDone(self.life));
    }

    pub(super) fn disk_done(&mut self) {
        let Some((reply, more)) = self.disk.done(&mut self.rng) else { return };
        self.keep_up();
        if more {
            self.schedule_disk();
        }
        let now = self.clock.now();
        self.tell(|agent| agent.handle_store(now, reply));
    }

    /// If the commit under way became durable, what it knows is known.
    pub(super) fn keep_up(&mut self) {
        if self.learned == self.disk.learned {
            return;
        }
        self.learned = self.disk.learned;
        let Some(snap) = self.snap.take() else { return };
        for (request, polled) in snap.polled.iter().enumerate() {
            if *polled > 0 {
                self.known[request] = true;
                self.kept[request] = true;
                self.early[request].clear();
            }
        }
        self.unkept.drain(..snap.unkept);
    }

    // ------------------------------------------------------------------------------------------------------- line

    pub(super) fn dialled(&mut self, id: u64, will: Vec<u8>) {
        let now = self.clock.now();
        self.line.dialling = None;
        if self.line.down || self.rng.u32(..1_000) < self.line.weather.refuse {
            self.tell(|agent| agent.handle_disconnected(now));
            return;
        }
        self.check_will(&will);
        self.line.connect(id, will, self.clock.nanos());
        self.tell(|agent| agent.handle_connected(now));
    }

    fn check_will(&self, will: &[u8]) {
        let will = pb::AgentStatus::decode(will).expect("a status");
        let bare = pb::AgentStatus { epoch: will.epoch, boot_id: will.boot_id.clone(), ..Default::default() };
        assert_eq!(will, bare, "a will has state OFFLINE, epoch and boot_id");
        assert_eq!(will.boot_id.len(), 16);
        let epoch = self.agent.as_ref().map(|agent| agent.spool().epoch());
        assert_eq!(Some(will.epoch), epoch, "the will names the epoch");
    }

    fn publish(&mut self, publish: Publish) {
        let latency = self.latency() + self.line.carries(publish.payload.len(), self.clock.nanos());
        let Some(session) = &mut self.line.session else { return };
        session.last_arrival = session.last_arrival.max(self.clock.nanos() + latency);
        let (at, id) = (session.last_arrival, session.id);
        match publish.channel {
            Channel::Live | Channel::Backlog => self.check_data(&publish),
            Channel::Catalog => {
                let catalog = pb::Catalog::decode(publish.payload.as_slice()).expect("a catalogue");
                let rev = session.catalogs.entry(catalog.epoch).or_default();
                *rev = (*rev).max(catalog.rev);
            }
            Channel::Status => {
                let status = pb::AgentStatus::decode(publish.payload.as_slice()).expect("a status");
                assert!(status.first_retained_seq > 0, "first_retained_seq is never 0");
                assert_eq!(status.boot_id.len(), 16);
                let ledger = status.ledger.expect("a ledger");
                let lost: u64 = ledger.lost.iter().map(|lost| lost.readings).sum();
                assert_eq!(
                    ledger.admitted,
                    ledger.delivered + ledger.held + ledger.filtered + lost,
                    "the law, as told"
                );
                if !session.greeted {
                    assert!(oracle::greets(status.state), "ONLINE goes first, not {}", status.state);
                    session.greeted = true;
                }
            }
        }
        self.at(at, Event::AtBroker(id, publish));
    }

    fn check_data(&mut self, publish: &Publish) {
        let envelope = tributary_proto::decode::open(&publish.payload).expect("an envelope");
        let (epoch, seq) = (envelope.epoch, envelope.seq);
        let body = match &envelope.body {
            Some(pb::envelope::Body::Plain(body) | pb::envelope::Body::PlainZstd(body)) => body.as_slice(),
            _ => &[],
        };
        assert!(self.disk.is_durable(body), "{seq} of {epoch:x} is sent before its commit returned");
        assert!(
            self.disk.mark.0 == epoch && seq <= self.disk.mark.1,
            "{seq} of {epoch:x} is above the published mark {:x?}",
            self.disk.mark
        );
        assert!(body.len() <= 48 * 1024 + 4096, "a body of {} bytes", body.len());
        let first = self.oracle.body(epoch, seq, body);
        let session = self.line.session.as_mut().expect("there is one");
        assert!(session.greeted, "data before ONLINE");
        let rev = session.catalogs.get(&epoch).copied().unwrap_or(0);
        assert!(envelope.catalog_rev <= rev, "{seq} needs revision {}, published is {rev}", envelope.catalog_rev);
        assert!(envelope.catalog_rev > 0, "a revision is named");
        let lane = if envelope.lane() == pb::Lane::Live { Channel::Live } else { Channel::Backlog };
        assert_eq!(lane, publish.channel, "lane and topic");
        // A read that failed is made up for later, and so is what was under way when the centre said TOO_NEW.
        if first && !self.faults.disk && !self.faults.too_new {
            let last = session.lanes.entry((epoch, lane)).or_default();
            assert!(*last < seq, "{seq} is first sent after {last} on {lane:?}");
            *last = seq;
        }
    }

    // ----------------------------------------------------------------------------------------------------- centre

    pub(super) fn at_centre(&mut self, kind: Kind, payload: &Bytes) {
        if self.centre.up && self.centre.take(kind, payload, &mut self.rng) {
            let open = self.rng.u64(5..60) * MILLI;
            self.after(open, Event::Commit(self.centre.life));
        }
    }

    pub(super) fn commit(&mut self) {
        let acks = self.centre.commit(self.clock.true_ms());
        for (_, batch) in std::mem::take(&mut self.centre.memory.batches) {
            self.note_ages(&batch);
            self.oracle.receive(&batch);
        }
        if self.faults.by_broker {
            return; // nobody answers
        }
        for ack in acks {
            self.answer(ack);
        }
    }

    /// An Ack on its way, as QoS 0 goes.
    fn answer(&mut self, mut ack: pb::Ack) {
        let Some(session) = self.line.session.as_ref().map(|session| session.id) else { return };
        let acks = self.line.weather.acks;
        if self.rng.u32(..1_000) < acks {
            return;
        }
        if self.faults.centre && !self.peace && self.rng.u32(..200) == 0 {
            (ack.window, ack.pause_ms) = (self.rng.u32(..4), self.rng.u32(..5_000));
        }
        for _ in 0..if self.rng.u32(..1_000) < acks { 2 } else { 1 } {
            let late = if self.rng.u32(..1_000) < acks { self.rng.u64(..20_000) * MILLI } else { 0 };
            let latency = self.latency() + late;
            self.after(latency, Event::AtAgent(session, ack.encode_to_vec()));
        }
        if self.faults.centre && !self.peace && self.rng.u32(..400) == 0 {
            let control = self.control(&ack);
            self.after(50 * MILLI, Event::Control(session, control.encode_to_vec()));
        }
    }

    fn control(&mut self, ack: &pb::Ack) -> pb::Control {
        use pb::control::{Replay, What};
        self.controls += 1;
        let first_seq = self.rng.u64(0..=ack.contiguous_seq + 2);
        let last_seq = first_seq + self.rng.u64(0..30);
        let replay = Replay { epoch: ack.epoch, first_seq, last_seq };
        let what = if self.rng.bool() { What::Replay(replay) } else { What::SendCatalog(true) };
        pb::Control { request: self.controls, what: Some(what) }
    }

    // ------------------------------------------------------------------------------------------------------ lives

    pub(super) fn start(&mut self) {
        if self.agent.is_some() {
            return;
        }
        self.lives += 1;
        let (config, found, now) = (self.config(), self.disk.recover(), self.clock.now());
        self.agent = Some(Pipeline::new(config, self.plant.model(), found, now).expect("the model fits"));
        self.stopping = false;
        self.stopped_cleanly = false;
        self.oracle.forget_filters();
        self.declared.clear();
        for (request, due) in self.plant.requests.iter().zip(&mut self.due) {
            let due = std::mem::take(due);
            if self.buried_cleanly {
                continue; // nothing was due
            }
            for point in &request.points {
                self.oracle.down_due[point.0 as usize] += due;
            }
        }
        self.law();
        let quality = self.clock.quality;
        self.tell(|agent| agent.handle_clock(now, quality, 0));
        self.hand_over();
    }

    /// The agent is asked to stop.
    pub(super) fn stop(&mut self) {
        for (request, handed) in self.handed.iter().enumerate() {
            if *handed == 0 && self.known[request] {
                // Never polled since a crash: how many polls were due until now is told to one poll more or less.
                for point in &self.plant.requests[request].points {
                    self.oracle.slack[point.0 as usize] += 1;
                }
            }
        }
        let now = self.clock.now();
        self.stopping = true;
        self.tell(|agent| agent.stop(now, Duration::from_secs(5)));
    }

    /// The end of a life: a clean one, or the process is gone.
    pub(super) fn kill(&mut self, clean: bool) {
        if self.agent.is_none() {
            return;
        }
        if clean && !self.stopped_cleanly {
            // Asked to stop; looked after again when its time is over.
            if !self.stopping {
                self.stop();
                self.after(6 * SECOND, Event::Kill(true));
                return;
            }
            assert!(self.disk.mood != Mood::Well, "the agent has not stopped in its time");
        }
        let clean = self.stopped_cleanly;
        self.agent = None;
        self.life += 1;
        self.cut(!clean);
        self.disk.crash(&mut self.rng);
        self.keep_up();
        self.snap = None;
        let began_cleanly = self.buried_cleanly;
        self.buried_cleanly = self.disk.is_clean();
        self.bury(clean && self.disk.says_clean(), began_cleanly);
        if clean && self.disk.says_clean() && self.faults.replan && !self.peace {
            let before = self.plant.groups();
            self.plant.replan(&mut self.rng);
            for (known, (old, new)) in self.known.iter_mut().zip(before.iter().zip(self.plant.groups())) {
                *known &= *old == new; // another group was never polled
            }
        }
        let away = if self.peace { 1 } else { self.rng.u64(1..90) };
        self.after(away * SECOND, Event::Start);
    }

    /// What was in memory alone is gone; polls that were due count from now on if a loss will name them.
    fn bury(&mut self, clean: bool, began_cleanly: bool) {
        for request in 0..self.known.len() {
            let early = std::mem::take(&mut self.early[request]);
            // Nothing durable tells that this life ever polled it.
            let untold = !self.known[request] || self.buried_cleanly;
            if untold && !clean {
                early.iter().for_each(|key| self.oracle.strike(key));
            } else if !self.kept[request] && began_cleanly {
                // What is due counts from the start of that life: one poll more or less.
                for point in &self.plant.requests[request].points {
                    self.oracle.slack[point.0 as usize] += 1;
                }
            }
            if untold {
                self.due[request] = 0;
            }
        }
        self.kept.fill(false);
        self.handed.fill(0);
        if !clean {
            for key in std::mem::take(&mut self.unkept) {
                self.oracle.strike(&key);
            }
        }
        self.unkept.clear();
        let outstanding = std::mem::take(&mut self.outstanding);
        for (_, (spoken, key)) in outstanding.into_iter().rev() {
            if let Some(key) = key {
                self.oracle.excuse(&key);
            }
            self.sensor_queue.push_front(spoken);
        }
    }
}
