//! From reading to batch: marks, windows, deadband, and the books of who holds what.
//!
//! Stands between the drivers and the open batch, and orders filter and window: sentinel and valid range mark first,
//! then the window folds, then the deadband decides what is sent raw (contract rule 15). Each reading that comes in is
//! admitted, and ends in exactly one of: a row of its group, the ring of points on their own clock, a window, the count
//! of filtered, the count of lost.
//!
//! Which points form a group follows rule 13: those of one request that are sent at every poll.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use tributary_proto::pb::loss::Reason;
use tributary_protocols::reading::{Outcome, Poll, Sample, StampedBy, Status};
use tributary_protocols::time::{Mono, Wall};
use tributary_protocols::value::{PointType, Scale, Value};

use crate::batch::{self, Batcher, GroupKey};
use crate::filter::Verdict;
use crate::filter::counter::{Counter, Happened};
use crate::filter::deadband::Deadband;
use crate::filter::mark::Mark;
use crate::ledger::Ledger;
use crate::losses::{Losses, Whose};
use crate::model::{PointKey, Statistic};
use crate::ring::{Cell, EventReading, Refused};
use crate::sets::{SetKey, Sets};
use crate::window::accumulator::Accumulator;
use crate::window::clock::WindowClock;

mod build;
mod inherit;
mod scaled;
mod windows;

use scaled::{Factor, Scaled};

/// How a point's readings are sent raw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Raw {
    /// With its group, at every poll.
    Group,
    /// On its own clock, when the deadband passes them.
    Own,
    /// Not at all: they are folded.
    No,
}

#[derive(Debug)]
struct Point {
    id: u32,
    ty: PointType,
    scale: Scale,
    mark: Mark,
    counter: Option<Box<Counter>>,
    deadband: Option<Box<Deadband>>,
    raw: Raw,
    /// Place of its window: group and member.
    window: Option<(u32, u32)>,
    /// Its poll set, if it is polled and in no group.
    set: Option<SetKey>,
    /// If its scale stands in another register.
    scaled: Option<Box<Scaled>>,
}

#[derive(Debug)]
struct Request {
    points: Box<[PointKey]>,
    group: Option<(GroupKey, SetKey)>,
    /// Those of its points that scale others, with their places.
    factors: Box<[(u32, PointKey)]>,
}

#[derive(Debug)]
struct Member {
    point: PointKey,
    stats: Box<[Statistic]>,
    accumulator: Accumulator,
}

#[derive(Debug)]
struct Windows {
    clock: usize,
    group: GroupKey,
    members: Vec<Member>,
    set: SetKey,
    /// Of a point on its own clock: no row for a window in which nothing arrived.
    on_arrival: bool,
    /// Polls were not taken in: what it says is PARTIAL.
    missed: bool,
}

/// What came of a message's readings, for its acknowledgement (rule 23).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    /// Withheld: nothing is waited for.
    Settled,
    /// Folded or lost: safe with the next commit, whose state record counts it.
    Folded,
    /// In the open batch: safe when that is durable.
    Waiting,
}

/// A reading of a point on its own clock.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// Its point.
    pub point: PointKey,
    /// Its stamp.
    pub at: Wall,
    /// Whose stamp that is.
    pub stamped_by: StampedBy,
    /// What it says.
    pub sample: Sample,
}

/// When a reading was, who says so, and whether its message waits for its acknowledgement.
#[derive(Clone, Copy, Debug)]
struct Stamp {
    at: Wall,
    stamped_by: StampedBy,
    waits: bool,
}

/// Counts of event-driven readings in memory, for the state record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EventCounts {
    /// In the open batch, from messages that are acknowledged or need not be.
    pub unsealed: u64,
    /// In the open batch, from messages that wait for their acknowledgement.
    pub unacknowledged: u64,
    /// In open windows.
    pub folded: u64,
}

impl EventCounts {
    fn of(&mut self, waits: bool) -> &mut u64 {
        if waits { &mut self.unacknowledged } else { &mut self.unsealed }
    }
}

/// Books that the intake writes in.
pub struct Books<'a> {
    /// The law.
    pub ledger: &'a mut Ledger,
    /// Losses to be said.
    pub losses: &'a mut Losses,
    /// The open batch.
    pub batcher: &'a mut Batcher,
    /// Why a reading is lost that finds no room.
    pub overrun: Reason,
}

/// The intake.
#[derive(Debug, Default)]
pub struct Intake {
    points: Vec<Point>,
    requests: Vec<Request>,
    windows: Vec<Windows>,
    clocks: Vec<WindowClock>,
    lengths: Vec<u32>,
    devices: Vec<(u32, String)>,
    sets: Sets,
    factors: BTreeMap<PointKey, Factor>,
    /// What became of counters since it was last asked for.
    happened: Vec<(u32, PointType, Happened)>,
    /// Of the open batch of each kind, and folded ones.
    agent_events: EventCounts,
    source_events: EventCounts,
    folded_events: u64,
    folded: u64,
    row: Vec<Cell>,
}

/// What the model asks for and a ceiling forbids.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unbuildable {
    /// A group or a set of summaries is wider than a ring.
    #[error("{what} has too many columns: {refused}")]
    Width {
        /// Which group.
        what: String,
        /// The ceiling.
        refused: Refused,
    },
    /// The model names a device or point that it does not have.
    #[error("the model names a device or point that it does not have")]
    Dangling,
}

impl Intake {
    /// Wire id and type of a point.
    #[must_use]
    pub fn point(&self, key: PointKey) -> (u32, PointType) {
        self.points.get(key.0 as usize).map_or((0, PointType::Int), |point| (point.id, point.ty))
    }

    /// The poll sets.
    pub fn sets(&mut self) -> &mut Sets {
        &mut self.sets
    }

    /// Poll sets for the state record.
    #[must_use]
    pub fn save_sets(&self, batcher: &Batcher) -> Vec<crate::state::Set> {
        self.sets.save(batcher)
    }

    /// Event-driven readings in memory.
    #[must_use]
    pub fn event_counts(&self) -> EventCounts {
        let (agent, source) = (&self.agent_events, &self.source_events);
        EventCounts {
            unsealed: agent.unsealed + source.unsealed,
            unacknowledged: agent.unacknowledged + source.unacknowledged,
            folded: self.folded_events,
        }
    }

    fn events(&mut self, stamped_by: StampedBy) -> &mut EventCounts {
        match stamped_by {
            StampedBy::Agent => &mut self.agent_events,
            StampedBy::Source => &mut self.source_events,
        }
    }

    /// Readings that are in open windows and nowhere else.
    #[must_use]
    pub fn held(&self) -> u64 {
        self.folded
    }

    /// A due poll came to its end. `accepts`: the spool takes readings; else all of them are lost.
    pub fn handle_poll(&mut self, now: Mono, poll: &Poll, synced: bool, accepts: bool, mut books: Books<'_>) {
        let Some(request) = self.requests.get(poll.request as usize) else { return };
        let points = request.points.clone();
        let group = request.group;
        books.ledger.admitted += points.len() as u64;
        if let Some((_, set)) = group {
            self.sets.handle_poll(set, poll.at, synced, books.ledger, books.losses);
        }
        let mut row = core::mem::take(&mut self.row);
        row.clear();
        for (index, key) in points.iter().enumerate() {
            let Some(mut point) = self.points.get(key.0 as usize) else { continue };
            if let Some(set) = point.set {
                self.sets.handle_poll(set, poll.at, synced, books.ledger, books.losses);
            }
            let (mut key, mut unscaled) = (*key, None);
            match point.scaled.as_ref().map(|scaled| scaled.current) {
                None => {}
                Some(Ok(made)) => (key, point) = (made, self.points.get(made.0 as usize).unwrap_or(point)),
                Some(Err(status)) => unscaled = Some(status),
            }
            if !accepts {
                if let Some(windows) = point.window.and_then(|(group, _)| self.windows.get_mut(group as usize)) {
                    windows.missed = true;
                }
                if let Some(set) = point.set {
                    lose(&mut books, Reason::StoreUnavailable, self.sets.whose(set), poll.at, 1);
                }
                continue;
            }
            let mut sample = sample(&poll.outcome, index);
            if let Some(status) = unscaled.filter(|_| sample.status.has_value()) {
                sample = Sample::bare(status);
            }
            point.mark.apply(&mut sample);
            let in_group = point.raw == Raw::Group;
            if point.counter.is_some() {
                self.count(now, key, &mut sample);
            }
            if in_group {
                row.push(books.batcher.cell(StampedBy::Agent, &sample));
            }
            let stamp = Stamp { at: poll.at, stamped_by: StampedBy::Agent, waits: false };
            self.take(now, key, stamp, sample, &mut books);
        }
        if let Some((key, set)) = group {
            if accepts {
                self.push_row(now, key, poll.at, &row, self.sets.whose(set), &mut books);
            } else {
                let points = points.len() - self.own_sets(&points);
                lose(&mut books, Reason::StoreUnavailable, self.sets.whose(set), poll.at, points as u64);
            }
        }
        self.row = row;
    }

    fn own_sets(&self, points: &[PointKey]) -> usize {
        points.iter().filter_map(|key| self.points.get(key.0 as usize)).filter(|point| point.set.is_some()).count()
    }

    /// Readings of a message from a device's broker. `waits`: the message is acknowledged when they are safe.
    pub fn handle_reading(
        &mut self,
        now: Mono,
        arrival: Arrival,
        waits: bool,
        accepts: bool,
        mut books: Books<'_>,
    ) -> Fate {
        let Arrival { point: key, at, stamped_by, mut sample } = arrival;
        let Some(point) = self.points.get(key.0 as usize) else { return Fate::Settled };
        books.ledger.admitted += 1;
        if !accepts {
            if let Some(windows) = point.window.and_then(|(group, _)| self.windows.get_mut(group as usize)) {
                windows.missed = true;
            }
            lose(&mut books, Reason::StoreUnavailable, Whose::Point(point.id), at, 1);
            return Fate::Folded;
        }
        point.mark.apply(&mut sample);
        if point.counter.is_some() {
            self.count(now, key, &mut sample);
        }
        let fate = self.take(now, key, Stamp { at, stamped_by, waits }, sample, &mut books);
        if fate == Fate::Waiting {
            *self.events(stamped_by).of(waits) += 1;
        }
        fate
    }

    /// Judges a sample of a counter.
    fn count(&mut self, now: Mono, key: PointKey, sample: &mut Sample) {
        let Some(point) = self.points.get_mut(key.0 as usize) else { return };
        let happened = point.counter.as_mut().and_then(|counter| counter.judge(now, sample));
        self.happened.extend(happened.map(|happened| (point.id, point.ty, happened)));
    }

    /// What became of counters since this was last asked for: the point's id and type, and what.
    pub fn take_happened(&mut self) -> Vec<(u32, PointType, Happened)> {
        core::mem::take(&mut self.happened)
    }

    /// Window, then deadband, of a marked sample. A group's cell was taken before.
    fn take(&mut self, now: Mono, key: PointKey, stamp: Stamp, sample: Sample, books: &mut Books<'_>) -> Fate {
        let Stamp { at, stamped_by, waits } = stamp;
        let Some(point) = self.points.get_mut(key.0 as usize) else { return Fate::Settled };
        if let Some((group, member)) = point.window
            && let Some(member) =
                self.windows.get_mut(group as usize).and_then(|group| group.members.get_mut(member as usize))
        {
            member.accumulator.add(now, &sample);
        }
        match point.raw {
            Raw::Group => Fate::Waiting,
            Raw::No => {
                self.folded += 1;
                match point.set {
                    Some(set) => self.sets.fold(set, at),
                    None => self.folded_events += 1,
                }
                Fate::Folded
            }
            Raw::Own => {
                let sample = if batch::fits(&sample) { sample } else { batch::TOO_LONG };
                if let Some(deadband) = &mut point.deadband {
                    let real = match sample.value {
                        Value::Bits(bits) => point.scale.real(point.ty, bits),
                        Value::None | Value::Text(_) => None,
                    };
                    if deadband.admit(now, real, &sample) == Verdict::Withhold {
                        books.ledger.filtered += 1;
                        return Fate::Settled;
                    }
                }
                let set = point.set;
                let cell = books.batcher.cell(stamped_by, &sample);
                let reading = EventReading { point: key, at, status: cell.status, waits, bits: cell.bits };
                self.push_event(now, stamped_by, reading, books);
                if let Some(set) = set {
                    self.sets.hold(set, at);
                }
                Fate::Waiting
            }
        }
    }

    /// Adds a row; if there is no room the oldest row of the group goes, counted.
    fn push_row(&mut self, now: Mono, key: GroupKey, at: Wall, row: &[Cell], whose: Whose, books: &mut Books<'_>) {
        while books.batcher.push_row(now, key, at, row).is_err() {
            let Some((stamp, readings)) = books.batcher.pop_row(key) else { return };
            lose(books, books.overrun, whose, stamp, readings as u64);
        }
    }

    fn push_event(&mut self, now: Mono, stamped_by: StampedBy, reading: EventReading, books: &mut Books<'_>) {
        while books.batcher.push_event(now, stamped_by, reading).is_err() {
            let Some(oldest) = books.batcher.pop_event(stamped_by) else { return };
            let Some(point) = self.points.get(oldest.point.0 as usize) else { continue };
            let id = point.id;
            match point.set {
                Some(set) => self.sets.drop_one(set),
                None => {
                    let count = self.events(stamped_by).of(oldest.waits);
                    *count = count.saturating_sub(1);
                }
            }
            lose(books, books.overrun, Whose::Point(id), oldest.at, 1);
        }
    }

    /// The open batch of this kind was sealed.
    pub fn sealed(&mut self, stamped_by: StampedBy) {
        if stamped_by == StampedBy::Agent {
            self.sets.sealed();
        }
        *self.events(stamped_by) = EventCounts::default();
    }
}

fn sample(outcome: &Outcome, index: usize) -> Sample {
    match outcome {
        Outcome::All(status) => Sample::bare(*status),
        Outcome::Samples(samples) => samples.get(index).cloned().unwrap_or(Sample::bare(Status::TypeError)),
    }
}

fn lose(books: &mut Books<'_>, reason: Reason, whose: Whose, at: Wall, readings: u64) {
    books.ledger.lose(reason, readings);
    books.losses.add_span(reason, whose, at, at, readings);
}
