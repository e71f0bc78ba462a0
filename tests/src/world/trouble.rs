//! What goes wrong, and what becomes well again.

use tributary_proto::pb::TimeQuality;

use super::*;

impl World {
    /// Something goes wrong, of the kinds this world has; then again after a while.
    pub(super) fn trouble(&mut self) {
        if self.peace {
            return;
        }
        let next = self.rng.u64(5..120);
        self.after(next * SECOND, Event::Trouble);
        let faults = self.faults;
        let longest = [20, 60, 300][self.rng.usize(..3)];
        let lasts = self.rng.u64(1..longest) * SECOND;
        match self.rng.u32(..16) {
            0 if faults.devices => {
                let device = self.rng.usize(..self.plant.health.len());
                self.plant.health[device] = [Health::Silent, Health::Refusing, Health::Patchy][self.rng.usize(..3)];
                self.after(lasts, Event::Calm(Calm::Device(device)));
            }
            1 if faults.link => self.cut(true),
            2 if faults.link => {
                self.line.down = true;
                self.cut(true);
                let longer = if faults.quota { 8 } else { 1 };
                self.after(longer * lasts, Event::Calm(Calm::Link));
            }
            3 if faults.link => {
                if let Some(session) = &mut self.line.session {
                    session.half_open = true;
                    let id = session.id;
                    // Keep-alive notices at last.
                    self.after(90 * SECOND, Event::Gone(self.life, id));
                }
            }
            4 | 5 if faults.link || faults.broker || faults.acks => {
                let some = |rng: &mut Rng, may: bool| if may { rng.u32(..400) } else { 0 };
                self.line.weather = Weather {
                    refuse: some(&mut self.rng, faults.link),
                    forget: some(&mut self.rng, faults.broker),
                    double: some(&mut self.rng, faults.broker),
                    acks: some(&mut self.rng, faults.acks),
                    latency_ms: self.rng.u64(1..3_000),
                };
                self.after(lasts, Event::Calm(Calm::Link));
            }
            6 if faults.centre && self.centre.up => {
                self.centre.die();
                self.after(lasts, Event::Calm(Calm::Centre));
            }
            7 if faults.refuse => {
                self.centre.whims.refuse = self.rng.u32(1..300);
                self.after(lasts, Event::Calm(Calm::Whims));
            }
            8 if faults.too_new => {
                self.centre.whims.too_new = true;
                self.after(lasts, Event::Calm(Calm::Whims));
            }
            9 if faults.crash => self.kill(false),
            10 if faults.stop => self.kill(true),
            11 | 12 if faults.disk => {
                self.disk.mood = [Mood::Away, Mood::Full][self.rng.usize(..2)];
                self.after(lasts, Event::Calm(Calm::Disk));
            }
            13 if faults.damage => match self.rng.u32(..4) {
                0 if faults.crash => {
                    // The newest part of the spool is gone: what was in it cannot be told.
                    self.kill(false);
                    self.disk.lose_newest();
                    self.rolled_back = true;
                    self.oracle.forget_bodies();
                }
                0 | 1 => self.disk.lose(&mut self.rng),
                _ => self.disk.damage(&mut self.rng),
            },
            14 if faults.clock => {
                let step = self.rng.i64(-40_000..40_000);
                // Now and then by an hour: somebody set the time zone wrong.
                self.step(if step % 4 == 0 { step * 90 } else { step });
            }
            15 if faults.rollback => self.roll_back(),
            _ => {}
        }
    }

    pub(super) fn calm(&mut self, calm: Calm) {
        match calm {
            Calm::Link => {
                self.line.down = false;
                self.line.weather = Weather { latency_ms: 20, ..Weather::default() };
            }
            Calm::Disk => (self.disk.mood, self.disk.well_since) = (Mood::Well, self.clock.nanos()),
            Calm::Whims => self.centre.whims = Default::default(),
            Calm::Device(device) => self.plant.health[device] = Health::Well,
            Calm::Centre if !self.centre.up => {
                self.centre.start();
                self.after(20 * MILLI, Event::Commit(self.centre.life));
                for (channel, kind) in [(Channel::Catalog, Kind::Catalog), (Channel::Status, Kind::Status)] {
                    if let Some(payload) = self.line.retained.get(&channel).cloned() {
                        self.deliver(kind, payload);
                    }
                }
            }
            Calm::Centre => {}
        }
    }

    /// Faults are over.
    pub(super) fn make_peace(&mut self) {
        self.peace = true;
        for device in 0..self.plant.health.len() {
            self.calm(Calm::Device(device));
        }
        for calm in [Calm::Link, Calm::Disk, Calm::Whims, Calm::Centre] {
            self.calm(calm);
        }
        if self.agent.is_none() {
            self.after(SECOND, Event::Start);
        }
    }

    /// The connection breaks; the broker publishes the will. `told`: the agent notices.
    pub(super) fn cut(&mut self, told: bool) {
        let Some(session) = self.line.session.take() else { return };
        if !session.will.is_empty() {
            let will = Bytes::from(session.will);
            self.line.retained.insert(Channel::Status, will.clone());
            self.deliver(Kind::Status, will);
        }
        if told {
            let latency = self.latency();
            self.after(latency, Event::Gone(self.life, session.id));
        }
    }

    fn step(&mut self, ms: i64) {
        self.clock.step(ms);
        let now = self.clock.now();
        self.tell(|agent| agent.handle_step(now, ms));
    }

    /// The clock is set for the first time.
    pub(super) fn synchronise(&mut self) {
        let error = self.clock.error_ms();
        if error.abs() > 100 {
            self.step(error);
        }
        self.clock.quality = TimeQuality::Synced;
        let now = self.clock.now();
        self.tell(|agent| agent.handle_clock(now, TimeQuality::Synced, 0));
    }

    /// An image of the spool is taken, or the agent dies and starts from the last one.
    fn roll_back(&mut self) {
        match self.image.take() {
            None => self.image = Some(self.disk.store.clone()),
            Some(mut image) => {
                self.kill(false);
                image.crash(0);
                self.disk.restore(image);
                self.rolled_back = true;
                self.oracle.forget_bodies();
            }
        }
    }
}
