//! Thirty days with an outage each day: neither memory nor disk grows from one day to the next.
//!
//! The real pipeline, driven at simulated time over the disk in memory; a centre that acknowledges at once, except for
//! two hours a day. At the same hour of each day it is written down how long the pipeline is in full (every list of every
//! stage is in its `Debug`), what the disk takes, and what the kernel says of this process's memory; once in three
//! days the agent is killed and starts again. `TRIBUTARY_DAYS` says how many days.

use std::fs;
use std::time::Duration;

use prost::Message;
use tributary::config::{Occasion, load};
use tributary_core::model::Model;
use tributary_core::pipeline::{Now, Output, Pipeline};
use tributary_core::store::Store;
use tributary_proto::pb;
use tributary_protocols::reading::{Outcome, Poll, Sample, Status};
use tributary_protocols::time::{Mono, Wall};
use tributary_tests::agent::Configuration;
use tributary_tests::store::MemStore;
use tributary_tests::{count, seed, settings};

const DAY: u32 = 86_400;
/// Seconds between two polls.
const PERIOD: u32 = 60;
const REQUESTS: u8 = 4;
const POINTS: u16 = 10;
/// The outage of each day, in seconds of it; the day ends eight hours later, long after all was made up for.
const OUTAGE: std::ops::Range<u32> = 50_400..57_600;

fn model() -> Model {
    let mut configuration = Configuration::new("gw", "mqtt://127.0.0.1").bus("bus", ([127, 0, 0, 1], 502).into(), "1s");
    for device in 1..=REQUESTS {
        configuration = configuration.device(&format!("plc{device}"), "bus", device, &format!("{PERIOD}s"));
        for point in 0..POINTS {
            configuration = configuration.point(&format!("p{point}"), "holding", 2 * point, "f32");
        }
    }
    let folder = tempfile::tempdir().expect("a folder");
    let file = configuration.write(folder.path()).expect("written");
    let model = load(&file, Occasion::Run).0.expect("a sound configuration").model;
    assert_eq!(model.requests.len(), usize::from(REQUESTS));
    model
}

struct Month {
    store: MemStore,
    pipeline: Pipeline,
    rng: fastrand::Rng,
    now: Now,
    connected: bool,
    outage: bool,
}

impl Month {
    fn start(mut store: MemStore, now: Now, rng: &mut fastrand::Rng) -> (MemStore, Pipeline) {
        let found = store.recover().expect("memory");
        let mut config = settings::usual(rng.u64(..));
        // Directories of 256 KB: some come and go each day.
        config.spool.max_disk = 4 << 20;
        let mut pipeline = Pipeline::new(config, model(), found, now).expect("a sound model");
        pipeline.handle_clock(now, pb::TimeQuality::Synced, 0);
        (store, pipeline)
    }

    /// Does all that is due until `until`.
    fn live(&mut self, until: Mono) {
        loop {
            while let Some(output) = self.pipeline.poll(self.now) {
                self.act(output);
            }
            let deadline = self.pipeline.next_deadline().map_or(until, |at| at.min(until)).max(self.now.mono);
            self.now.wall.0 += i64::try_from(deadline.since(self.now.mono).as_millis()).expect("short");
            self.now.mono = deadline;
            if deadline >= until {
                return;
            }
        }
    }

    fn act(&mut self, output: Output) {
        let now = self.now;
        match output {
            Output::Store(command) => {
                let reply = command.run(&mut self.store);
                self.pipeline.handle_store(now, reply);
            }
            Output::Connect { .. } if self.outage => self.pipeline.handle_disconnected(now),
            Output::Connect { .. } => {
                self.connected = true;
                self.pipeline.handle_connected(now);
            }
            Output::Publish(publish) if self.connected && publish.seq > 0 => {
                let epoch = self.pipeline.spool().epoch();
                // Live before backlog leaves gaps: the centre says what it has beyond them.
                let seq = publish.seq;
                let also = vec![pb::Range { first: seq, last: seq }];
                let first = self.pipeline.spool().first_retained();
                let ack = pb::Ack { epoch, contiguous_seq: first - 1, also, ..pb::Ack::default() };
                self.pipeline.handle_ack(now, &ack.encode_to_vec());
            }
            Output::Abort => self.cut(),
            _ => {}
        }
    }

    fn cut(&mut self) {
        if std::mem::take(&mut self.connected) {
            self.pipeline.handle_disconnected(self.now);
        }
    }

    fn day(&mut self) {
        for second in (0..DAY).step_by(usize::try_from(PERIOD).expect("small")) {
            self.outage = OUTAGE.contains(&second);
            if self.outage {
                self.cut();
            }
            for request in 0..u32::from(REQUESTS) {
                let sample = |_| match self.rng.u32(..1_000) {
                    0 => Sample::bare(Status::CommFail),
                    n => Sample::good(u64::from((n as f32).to_bits())),
                };
                let outcome = Outcome::Samples((0..POINTS).map(sample).collect());
                self.pipeline.handle_poll(self.now, &Poll { request, at: self.now.wall, outcome });
            }
            self.live(self.now.mono + Duration::from_secs(PERIOD.into()));
        }
    }
}

#[test]
fn days_with_outages_leave_nothing_behind() {
    let days = count("TRIBUTARY_DAYS", 30);
    let mut rng = fastrand::Rng::with_seed(seed(30));
    let now = Now { mono: Mono::from_millis(1_000), wall: Wall(1_800_000_000_000) };
    let (store, pipeline) = Month::start(MemStore::new(1 << 30), now, &mut rng);
    let mut month = Month { store, pipeline, rng, now, connected: false, outage: false };
    let mut seen = Vec::new();
    for day in 0..days {
        month.day();
        assert_eq!(month.pipeline.ledger().lost(), 0, "day {day}");
        let backlog = month.pipeline.spool().backlog();
        assert!(backlog < 10, "{backlog} batches wait at the end of day {day}");
        let held = format!("{:?}", month.pipeline).len();
        seen.push([held as u64, month.store.usage().disk_bytes, resident()]);
        if day % 3 == 2 {
            // Everything is handed in and acknowledged; a kill at this moment costs nothing.
            month.live(month.now.mono + Duration::from_secs(5));
            month.connected = false;
            (month.store, month.pipeline) = Month::start(month.store.clone(), month.now, &mut month.rng);
        }
    }
    println!("{} readings; [pipeline, disk, resident] of each day: {seen:?}", month.pipeline.ledger().admitted);
    let (first, rest) = seen.split_at(seen.len() / 3);
    let most = |days: &[[u64; 3]], n: usize| days.iter().map(|day| day[n]).max().expect("days");
    // The directory in use may be anywhere between empty and full; an allocator keeps pieces.
    for (n, what, room) in [(0, "the pipeline", 4_096), (1, "the disk", 1 << 20), (2, "resident memory", 4 << 20)] {
        let (early, late) = (most(first, n), most(rest, n));
        assert!(late <= early * 11 / 10 + room, "{what}: {late} bytes, {early} in the first days");
    }
}

/// Memory of this process in bytes, as the kernel counts it.
fn resident() -> u64 {
    let of = fs::read_to_string("/proc/self/status").expect("it is there");
    let line = of.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("it is told");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
}
