//! The open batch: rows and readings wait here until age or size seals them into bodies (contract rule 18).
//!
//! Stands between filter and window on one side and the spool on the other. Groups have a ring each, points on their
//! own clock share one; readings stamped by their source wait apart, for they never share a batch with those stamped
//! here (rule 13). Sealing takes everything: one frame a group, one a point, packed into as few bodies as
//! `max_bytes` allows.
//!
//! A body is cut by its length before compression, so it is never above `max_bytes` unless a single row is; the hard
//! cap of 120 KB holds for every row that configuration lets through.
//!
//! Texts are kept once each while the batch is open; a cell of a text point is an index into them.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::string::String;
use alloc::vec::Vec;
use core::ops::Range;
use core::time::Duration;

use prost::Message;
use tributary_proto::encode::{Encoder, Values};
use tributary_proto::pb;
use tributary_protocols::reading::{Sample, StampedBy, Status};
use tributary_protocols::time::{Mono, Wall};
use tributary_protocols::value::{PointType, Value};

use crate::limits::MAX_TEXTS;
use crate::model::PointKey;
use crate::record::Head;
use crate::ring::{Cell, EventReading, EventRing, Full, Refused, Ring};

/// Bytes of losses in one body: a quarter of it, so that readings are not starved after a long outage.
const LOSS_SHARE: usize = 4;

/// Settings of the batch.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// A batch is sealed when its first reading is this old.
    pub max_age: Duration,
    /// Cut at this many bytes of body.
    pub max_bytes: usize,
}

/// A group's place in the batcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct GroupKey(pub u32);

#[derive(Debug)]
struct Group {
    id: u32,
    types: Box<[PointType]>,
    ring: Ring,
}

/// Texts of one kind of batch, each once.
#[derive(Debug, Default)]
struct Texts {
    index: BTreeMap<String, u64>,
    list: Vec<String>,
    bytes: usize,
}

impl Texts {
    fn intern(&mut self, text: &str) -> u64 {
        if let Some(index) = self.index.get(text) {
            return *index;
        }
        let index = self.list.len() as u64;
        self.bytes += text.len();
        self.list.push(text.into());
        self.index.insert(text.into(), index);
        index
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

/// What is open for one kind of stamp.
#[derive(Debug, Default)]
struct Lot {
    events: EventRing,
    texts: Texts,
    opened: Option<Mono>,
    cells: usize,
}

/// A batch that wants its losses, events and clock quality before it becomes a body.
#[derive(Debug)]
pub struct Draft {
    /// Frames alone are set.
    pub batch: pb::Batch,
    /// Readings in it.
    pub readings: u32,
    /// Oldest stamp in it.
    pub oldest: Wall,
}

impl Draft {
    /// One without readings, for losses and events alone.
    #[must_use]
    pub fn empty() -> Self {
        Self { batch: pb::Batch::default(), readings: 0, oldest: Wall(i64::MAX) }
    }

    /// Whether there is nothing to tell.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.batch.frames.is_empty() && self.batch.losses.is_empty() && self.batch.events.is_empty()
    }
}

/// The open batch.
#[derive(Debug)]
pub struct Batcher {
    config: Config,
    encoder: Encoder,
    groups: Vec<Group>,
    dirty: Vec<GroupKey>,
    agent: Lot,
    source: Lot,
    /// Bytes a cell took in the last batches, for the estimate that cuts by size.
    bytes_per_cell: usize,
    full: bool,
    statuses: Vec<u8>,
    bits: Vec<u64>,
    ints: Vec<i64>,
    floats: Vec<u32>,
}

impl Batcher {
    /// An empty batch.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self {
            config,
            encoder: Encoder::new(),
            groups: Vec::new(),
            dirty: Vec::new(),
            agent: Lot::default(),
            source: Lot::default(),
            bytes_per_cell: 4,
            full: false,
            statuses: Vec::new(),
            bits: Vec::new(),
            ints: Vec::new(),
            floats: Vec::new(),
        }
    }

    /// Adds a group: its catalogue id and the types of its points.
    ///
    /// # Errors
    /// It has no point, or more than [`RING_CELLS`](crate::limits::RING_CELLS).
    pub fn add_group(&mut self, id: u32, types: Vec<PointType>) -> Result<GroupKey, Refused> {
        let ring = Ring::new(types.len())?;
        let key = GroupKey(u32::try_from(self.groups.len()).unwrap_or(u32::MAX));
        self.groups.push(Group { id, types: types.into(), ring });
        Ok(key)
    }

    /// The catalogue id of a group.
    #[must_use]
    pub fn group_id(&self, key: GroupKey) -> u32 {
        self.group(key).map_or(0, |group| group.id)
    }

    fn group(&self, key: GroupKey) -> Option<&Group> {
        self.groups.get(key.0 as usize)
    }

    /// Readings of a group that wait, and the oldest stamp among them.
    #[must_use]
    pub fn waiting(&self, key: GroupKey) -> (usize, Option<Wall>) {
        self.group(key).map_or((0, None), |group| (group.ring.readings(), group.ring.oldest()))
    }

    /// All readings in hand.
    #[must_use]
    pub fn held(&self) -> u64 {
        let rows: usize = self.dirty.iter().map(|key| self.waiting(*key).0).sum();
        (rows + self.agent.events.len() + self.source.events.len()) as u64
    }

    /// The cell of a sample; its text, if it has one, is kept with the batch of its kind.
    pub fn cell(&mut self, stamped_by: StampedBy, sample: &Sample) -> Cell {
        let bits = match &sample.value {
            Value::None => 0,
            Value::Bits(bits) => *bits,
            Value::Text(text) => self.lot(stamped_by).texts.intern(text),
        };
        Cell { status: sample.status, bits }
    }

    fn lot(&mut self, stamped_by: StampedBy) -> &mut Lot {
        match stamped_by {
            StampedBy::Agent => &mut self.agent,
            StampedBy::Source => &mut self.source,
        }
    }

    /// Adds a row of a group.
    ///
    /// # Errors
    /// Its ring is full: seal, or take the oldest row out.
    pub fn push_row(&mut self, now: Mono, key: GroupKey, at: Wall, row: &[Cell]) -> Result<(), Full> {
        let Some(group) = self.groups.get_mut(key.0 as usize) else { return Ok(()) };
        let was_empty = group.ring.is_empty();
        match group.ring.push(at, row.iter().copied()) {
            Ok(()) => {}
            Err(Refused::Full(full)) => return Err(full),
            Err(refused @ (Refused::Row { .. } | Refused::Group { .. })) => {
                debug_assert!(false, "rows are built as wide as their group: {refused}");
                return Err(Full);
            }
        }
        self.full |= group.ring.rows() == group.ring.capacity();
        if was_empty {
            self.dirty.push(key);
        }
        self.agent.cells += row.len();
        self.agent.opened.get_or_insert(now);
        Ok(())
    }

    /// Adds a reading of a point on its own clock.
    ///
    /// # Errors
    /// The ring is full: seal, or take the oldest reading out.
    pub fn push_event(&mut self, now: Mono, stamped_by: StampedBy, reading: EventReading) -> Result<(), Full> {
        let lot = self.lot(stamped_by);
        lot.events.push(reading)?;
        lot.cells += 2; // its stamp is a value of its own
        lot.opened.get_or_insert(now);
        Ok(())
    }

    /// Takes the oldest row of a group out: its stamp and how many readings went.
    pub fn pop_row(&mut self, key: GroupKey) -> Option<(Wall, usize)> {
        let ring = &mut self.groups.get_mut(key.0 as usize)?.ring;
        let at = ring.oldest()?;
        Some((at, ring.pop_oldest()))
    }

    /// Takes the oldest reading of points on their own clock out.
    pub fn pop_event(&mut self, stamped_by: StampedBy) -> Option<EventReading> {
        self.lot(stamped_by).events.pop_oldest()
    }

    /// Opens the batch for something that is no reading: a loss or an event.
    pub fn open(&mut self, now: Mono) {
        self.agent.opened.get_or_insert(now);
    }

    /// When a batch of this kind is to be sealed: by age, or at once if it is large enough.
    #[must_use]
    pub fn deadline(&self, stamped_by: StampedBy) -> Option<Mono> {
        let opened = self.lot_ref(stamped_by).opened?;
        Some(if self.is_large(stamped_by) { opened } else { opened + self.config.max_age })
    }

    /// Whether it is as large as a batch should be, or a ring is full.
    #[must_use]
    pub fn is_large(&self, stamped_by: StampedBy) -> bool {
        let lot = self.lot_ref(stamped_by);
        lot.cells * self.bytes_per_cell >= self.config.max_bytes
            || lot.texts.bytes >= MAX_TEXTS
            || lot.events.len() >= crate::limits::EVENT_READINGS_LARGE
            || (stamped_by == StampedBy::Agent && self.full)
    }

    fn lot_ref(&self, stamped_by: StampedBy) -> &Lot {
        match stamped_by {
            StampedBy::Agent => &self.agent,
            StampedBy::Source => &self.source,
        }
    }

    /// Whether no reading of a point on its own clock waits.
    #[must_use]
    pub fn events_sealed(&self) -> bool {
        self.agent.events.is_empty() && self.source.events.is_empty()
    }

    /// Takes everything of one kind: drafts in their order, the first to carry losses and events. None if nothing is
    /// open. `point` tells id and type of a point on its own clock.
    pub fn seal(&mut self, stamped_by: StampedBy, point: impl Fn(PointKey) -> (u32, PointType)) -> Vec<Draft> {
        if self.lot(stamped_by).opened.is_none() {
            return Vec::new();
        }
        let mut frames = Frames::new(self.config.max_bytes);
        if stamped_by == StampedBy::Agent {
            for key in core::mem::take(&mut self.dirty) {
                self.seal_group(key, &mut frames);
            }
            self.full = false;
        }
        let readings = self.lot(stamped_by).events.take_by_point();
        for run in readings.chunk_by(|a, b| a.point == b.point) {
            self.seal_point(stamped_by, run, &point, &mut frames);
        }
        let lot = self.lot(stamped_by);
        let cells = core::mem::take(&mut lot.cells);
        lot.opened = None;
        lot.texts.clear();
        if let Some(measured) = frames.bytes.checked_div(cells) {
            self.bytes_per_cell = (measured + 1).max((self.bytes_per_cell + measured).div_ceil(2)).clamp(1, 20);
        }
        frames.into_drafts()
    }

    fn seal_group(&mut self, key: GroupKey, frames: &mut Frames) {
        let Some(group) = self.groups.get_mut(key.0 as usize) else { return };
        let rows = group.ring.rows();
        let times: Vec<i64> = group.ring.times().collect();
        let mut todo = VecDeque::from_iter(core::iter::once(0..rows));
        while let Some(part) = todo.pop_front().filter(|part| !part.is_empty()) {
            // A column is a quarter of a KB before it is bytes: none that stays empty.
            let columns = Vec::with_capacity(group.types.len());
            let mut frame = pb::Frame { group: group.id, rows: length(&part), columns, ..pb::Frame::default() };
            frame.time = Some(self.encoder.time(&times[part.clone()]));
            for (column, ty) in group.types.iter().enumerate() {
                self.statuses.clear();
                self.bits.clear();
                group.ring.column(column, &mut self.statuses, &mut self.bits);
                let before = self.statuses[..part.start].iter().filter(|status| **status < 16).count();
                let within = self.statuses[part.clone()].iter().filter(|status| **status < 16).count();
                let values = Narrow { ints: &mut self.ints, floats: &mut self.floats };
                let values = values.of(*ty, &self.bits[before..before + within], &self.agent.texts.list);
                frame.columns.push(self.encoder.column(&self.statuses[part.clone()], values));
            }
            let readings = part.len() * group.types.len();
            let oldest = times[part.clone()].iter().min().copied().unwrap_or(i64::MAX);
            if let Err(whole) = frames.add(frame, readings, Wall(oldest), part) {
                let middle = whole.start + whole.len() / 2;
                todo.push_front(middle..whole.end);
                todo.push_front(whole.start..middle);
            }
        }
        group.ring.clear();
    }

    fn seal_point(
        &mut self,
        stamped_by: StampedBy,
        run: &[EventReading],
        point: &impl Fn(PointKey) -> (u32, PointType),
        frames: &mut Frames,
    ) {
        let Some((id, ty)) = run.first().map(|reading| point(reading.point)) else { return };
        let lot = match stamped_by {
            StampedBy::Agent => &self.agent,
            StampedBy::Source => &self.source,
        };
        let mut todo = VecDeque::from_iter(core::iter::once(0..run.len()));
        while let Some(part) = todo.pop_front().filter(|part| !part.is_empty()) {
            let rows = &run[part.clone()];
            let times: Vec<i64> = rows.iter().map(|reading| reading.at.0).collect();
            self.statuses.clear();
            self.statuses.extend(rows.iter().map(|reading| reading.status.code()));
            self.bits.clear();
            self.bits.extend(rows.iter().filter(|reading| reading.status.has_value()).map(|reading| reading.bits));
            let values = Narrow { ints: &mut self.ints, floats: &mut self.floats };
            let values = values.of(ty, &self.bits, &lot.texts.list);
            let frame = pb::Frame {
                point: id,
                rows: length(&part),
                time: Some(self.encoder.time(&times)),
                columns: alloc::vec![self.encoder.column(&self.statuses, values)],
                ..pb::Frame::default()
            };
            let oldest = times.iter().min().copied().unwrap_or(i64::MAX);
            if let Err(whole) = frames.add(frame, rows.len(), Wall(oldest), part) {
                let middle = whole.start + whole.len() / 2;
                todo.push_front(middle..whole.end);
                todo.push_front(whole.start..middle);
            }
        }
    }

    /// Turns a finished draft into a record of the spool.
    pub fn record(&mut self, draft: &Draft, catalog_rev: u32) -> (Head, Vec<u8>) {
        let body = self.encoder.body(&draft.batch);
        let head = Head {
            zstd: body.zstd,
            readings: draft.readings,
            catalog_rev,
            body_crc32c: body.crc32c,
            oldest: draft.oldest,
        };
        let record = head.record(&body.bytes);
        (head, record)
    }

    /// Bytes of losses that a body may carry.
    #[must_use]
    pub fn loss_bytes(&self) -> usize {
        self.config.max_bytes / LOSS_SHARE
    }
}

fn length(rows: &Range<usize>) -> u32 {
    u32::try_from(rows.len()).unwrap_or(u32::MAX)
}

/// Buffers in which bits take the width of their type.
struct Narrow<'a> {
    ints: &'a mut Vec<i64>,
    floats: &'a mut Vec<u32>,
}

impl<'a> Narrow<'a> {
    fn of<'b>(self, ty: PointType, bits: &'b [u64], texts: &'b [String]) -> Values<'b>
    where
        'a: 'b,
    {
        match ty {
            PointType::Float64 => Values::Float64(bits),
            PointType::Float32 => {
                self.floats.clear();
                #[expect(clippy::cast_possible_truncation, reason = "FLOAT32 sits in the low 32 bits")]
                self.floats.extend(bits.iter().map(|bits| *bits as u32));
                Values::Float32(self.floats)
            }
            PointType::String => {
                self.ints.clear();
                self.ints.extend(bits.iter().map(|bits| bits.cast_signed()));
                Values::Text { indices: self.ints, texts }
            }
            PointType::Bool | PointType::Int | PointType::Enum | PointType::Uint64 => {
                self.ints.clear();
                self.ints.extend(bits.iter().map(|bits| bits.cast_signed()));
                Values::Int(self.ints)
            }
        }
    }
}

/// Frames packed into drafts.
struct Frames {
    max_bytes: usize,
    bytes: usize,
    drafts: Vec<Draft>,
    room: usize,
}

impl Frames {
    fn new(max_bytes: usize) -> Self {
        Self { max_bytes, bytes: 0, drafts: Vec::new(), room: 0 }
    }

    /// Adds a frame, to a new draft if it does not fit; gives its rows back if they are better cut in two.
    fn add(&mut self, frame: pb::Frame, readings: usize, oldest: Wall, rows: Range<usize>) -> Result<(), Range<usize>> {
        let bytes = frame.encoded_len() + 4;
        if bytes > self.max_bytes && rows.len() > 1 {
            return Err(rows);
        }
        if bytes > self.room || self.drafts.is_empty() {
            // The first body keeps room for losses and events.
            let reserve = if self.drafts.is_empty() { self.max_bytes / LOSS_SHARE } else { 0 };
            self.drafts.push(Draft::empty());
            self.room = self.max_bytes - reserve;
        }
        self.room = self.room.saturating_sub(bytes);
        self.bytes += bytes;
        if let Some(draft) = self.drafts.last_mut() {
            draft.batch.frames.push(frame);
            draft.readings += u32::try_from(readings).unwrap_or(u32::MAX);
            draft.oldest = draft.oldest.min(oldest);
        }
        Ok(())
    }

    fn into_drafts(mut self) -> Vec<Draft> {
        if self.drafts.is_empty() {
            self.drafts.push(Draft::empty());
        }
        self.drafts
    }
}

/// Whether a text is short enough to travel.
#[must_use]
pub fn fits(sample: &Sample) -> bool {
    !matches!(&sample.value, Value::Text(text) if text.len() > MAX_TEXTS)
}

/// What a text that is too long becomes.
pub const TOO_LONG: Sample = Sample::bare(Status::TypeError);

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use tributary_proto::decode;

    struct Schema;

    impl tributary_proto::catalog::Schema for Schema {
        fn group(&self, id: u32) -> Option<&[u32]> {
            (id == 5).then_some(&[1, 2])
        }

        fn point_type(&self, id: u32) -> Option<i32> {
            match id {
                1 => Some(PointType::Int as i32),
                2 | 3 => Some(PointType::String as i32),
                _ => None,
            }
        }
    }

    fn batcher(max_bytes: usize) -> (Batcher, GroupKey) {
        let mut batcher = Batcher::new(Config { max_age: Duration::from_secs(1), max_bytes });
        let group = batcher.add_group(5, alloc::vec![PointType::Int, PointType::String]).expect("a group");
        (batcher, group)
    }

    fn text(text: &str) -> Sample {
        Sample { status: Status::Good, value: Value::Text(text.into()) }
    }

    /// Readings of the drafts as a receiver decodes them: point, stamp, status.
    pub(crate) fn decoded(
        batcher: &mut Batcher,
        drafts: &[Draft],
        schema: &impl tributary_proto::catalog::Schema,
    ) -> Vec<(u32, i64, u8)> {
        let mut readings = Vec::new();
        for draft in drafts {
            let (head, record) = batcher.record(draft, 1);
            let (_, body) = Head::split(&record).expect("a record");
            let body =
                tributary_proto::encode::Body { bytes: body.to_vec(), zstd: head.zstd, crc32c: head.body_crc32c };
            let header = tributary_proto::encode::Header {
                epoch: 1,
                seq: 1,
                first_retained_seq: 1,
                lane: pb::Lane::Live,
                catalog_rev: 1,
                readings: head.readings,
            };
            let envelope = decode::open(&tributary_proto::encode::envelope(&header, &body)).expect("opens");
            let batch = decode::decode(&envelope, schema).expect("decodes");
            for frame in &batch.frames {
                for column in &frame.columns {
                    for (at, status) in frame.times.iter().zip(&column.statuses) {
                        readings.push((column.point, *at, *status));
                    }
                }
            }
        }
        readings
    }

    #[test]
    fn rows_and_events_come_out_as_they_went_in() {
        let (mut batcher, group) = batcher(48 * 1024);
        for row in 0..3_u32 {
            let bad = Cell::bare(Status::CommFail);
            let name = batcher.cell(StampedBy::Agent, &text("on"));
            let cells = [Cell { status: Status::Good, bits: u64::from(row) }, if row == 1 { bad } else { name }];
            batcher.push_row(Mono::ZERO, group, Wall(i64::from(row) * 1000), &cells).expect("room");
        }
        let cell = batcher.cell(StampedBy::Source, &text("x"));
        let event =
            EventReading { point: PointKey(9), at: Wall(77), status: cell.status, waits: false, bits: cell.bits };
        batcher.push_event(Mono::ZERO, StampedBy::Source, event).expect("room");
        assert_eq!(batcher.held(), 7);
        assert_eq!(batcher.deadline(StampedBy::Agent), Some(Mono::from_millis(1000)));

        let drafts = batcher.seal(StampedBy::Agent, |_| (3, PointType::String));
        let good = 0;
        let expected = [(1, 0, good), (1, 1000, good), (1, 2000, good), (2, 0, good), (2, 1000, 16), (2, 2000, good)];
        assert_eq!(decoded(&mut batcher, &drafts, &Schema), expected);
        assert_eq!((drafts[0].readings, drafts[0].oldest), (6, Wall(0)));
        let drafts = batcher.seal(StampedBy::Source, |_| (3, PointType::String));
        assert_eq!(decoded(&mut batcher, &drafts, &Schema), [(3, 77, 0)]);
        assert_eq!(batcher.held(), 0);
        assert!(batcher.seal(StampedBy::Agent, |_| (3, PointType::String)).is_empty(), "nothing is open");
    }

    #[test]
    fn bodies_are_cut_at_max_bytes() {
        let (mut batcher, group) = batcher(600);
        let mut noise = fastrand::Rng::with_seed(7);
        for row in 0..200_u64 {
            let name = batcher.cell(StampedBy::Agent, &text("on"));
            let cells = [Cell { status: Status::Good, bits: noise.u64(..) }, name];
            let at = Wall(i64::try_from(row).expect("small") * 1000);
            batcher.push_row(Mono::ZERO, group, at, &cells).expect("room");
        }
        assert_eq!(batcher.deadline(StampedBy::Agent), Some(Mono::ZERO), "large enough to go at once");
        let drafts = batcher.seal(StampedBy::Agent, |_| (3, PointType::String));
        assert!(drafts.len() > 3);
        for draft in &drafts {
            let (_, record) = batcher.record(draft, 1);
            assert!(record.len() <= 600 + crate::store::RECORD_HEAD, "{}", record.len());
        }
        assert_eq!(decoded(&mut batcher, &drafts, &Schema).len(), 400);
    }
}
