//! Holds readings between decode and batch, in memory whose ceiling is fixed when the program is compiled.
//!
//! A [`Ring`] keeps the rows of one catalogue group: one stamp, one status and one value for each point. An
//! [`EventRing`] keeps the readings of points on their own clock. Neither throws anything away by itself: a full ring
//! says [`Full`], and its owner seals a batch, or drops the oldest and counts them as lost (OVERRUN).
//!
//! Rows come in one at a time and go out to the encoder column by column. They are kept as rows, each of whole 64-bit
//! words, one after another in one block:
//!
//! ```text
//! │ stamp │ statuses, 8 a word │ bits, one word a point │ stamp │ …          width 50: 1 + 7 + 50 words
//! ```
//!
//! Three blocks (stamps, statuses, bits) would be as short to write, but a page of memory counts when its first byte is
//! touched, and most groups hold a few rows of a few dozen points: one page instead of three, 1.6 MB less for 200
//! groups. For the same reason [`clear`](Ring::clear) goes back to the start of the block, and the block is made on the
//! heap without being written.
//!
//! Limits: [`RING_ROWS`] rows, and [`RING_CELLS`] cells, whichever is less; 40 KB of address space a ring. An event ring
//! [`EVENT_READINGS`] readings of 24 bytes.

use alloc::boxed::Box;
use alloc::vec::Vec;

use tributary_protocols::reading::Status;
use tributary_protocols::time::Wall;

use crate::limits::{EVENT_READINGS, RING_CELLS, RING_ROWS};
use crate::model::PointKey;

/// A word has room for so many statuses.
const STATUSES: usize = 8;
/// Cells, their statuses, and for each row a stamp and what is left of the last word of statuses.
const WORDS: usize = RING_CELLS + RING_CELLS / STATUSES + 2 * RING_ROWS;
/// COMM_FAIL in every byte: what a row holds before its cells are in, so that none is ever taken for a good zero.
const UNFILLED: u64 = u64::from_ne_bytes([Status::CommFail as u8; STATUSES]);

/// The ring is full: seal what it holds, or pop the oldest, and push again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the ring is full")]
pub struct Full;

/// Why a ring cannot be made or a row does not fit into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// A group without points, or with more than a ring holds.
    #[error("a group of {width} points does not fit a ring, which holds 1 to {RING_CELLS}: split the group")]
    Group {
        /// Points of the group.
        width: usize,
    },
    /// The row is of another group.
    #[error("a row of {cells} cells in a group of {width} points")]
    Row {
        /// Cells that came.
        cells: usize,
        /// Points of the group.
        width: usize,
    },
    /// No room left.
    #[error(transparent)]
    Full(#[from] Full),
}

/// One reading of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell {
    /// Its status.
    pub status: Status,
    /// The bits of its value as in [`Value::Bits`](tributary_protocols::value::Value), for text an index that the caller
    /// gives; not read if the status has no value.
    pub bits: u64,
}

impl Cell {
    /// A status without a value.
    #[must_use]
    pub const fn bare(status: Status) -> Self {
        Self { status, bits: 0 }
    }
}

/// The rows of one group, oldest first.
#[derive(Debug)]
pub struct Ring {
    /// Slots of `row_words()` words; grows from the start, and is overwritten in a circle after rows were popped.
    words: Box<heapless::Vec<u64, WORDS>>,
    width: usize,
    /// Slot of the oldest row.
    head: usize,
    rows: usize,
}

impl Ring {
    /// An empty ring for a group of `width` points.
    ///
    /// # Errors
    /// [`Refused::Group`] if not even one row fits, or there is nothing to hold.
    pub fn new(width: usize) -> Result<Self, Refused> {
        if width == 0 || width > RING_CELLS {
            return Err(Refused::Group { width });
        }
        Ok(Self { words: Box::default(), width, head: 0, rows: 0 })
    }

    /// Points of the group: cells in a row.
    #[must_use]
    pub fn width(&self) -> usize {
        self.width
    }

    /// Rows it holds.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Most rows it can hold.
    #[must_use]
    pub fn capacity(&self) -> usize {
        (RING_CELLS / self.width).min(RING_ROWS)
    }

    /// Readings it holds: rows × width.
    #[must_use]
    pub fn readings(&self) -> usize {
        self.rows * self.width
    }

    /// Whether it holds nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// Stamp of the row that came first.
    #[must_use]
    pub fn oldest(&self) -> Option<Wall> {
        self.times().next().map(Wall)
    }

    /// Adds a row stamped `at`, with one cell for each point in the order of the group.
    ///
    /// # Errors
    /// [`Refused::Full`] if there is no room, [`Refused::Row`] if the number of cells is not the width. Nothing is
    /// added then.
    pub fn push(
        &mut self,
        at: Wall,
        cells: impl IntoIterator<Item = Cell, IntoIter: ExactSizeIterator>,
    ) -> Result<(), Refused> {
        let cells = cells.into_iter();
        if cells.len() != self.width {
            return Err(Refused::Row { cells: cells.len(), width: self.width });
        }
        if self.rows == self.capacity() {
            return Err(Full.into());
        }
        let words = self.row_words();
        let start = (self.head + self.rows) % self.capacity() * words;
        if start == self.words.len() {
            self.words.resize(start + words, 0).map_err(|_| Full)?;
        }
        let (_, row) = self.words.split_at_mut_checked(start).ok_or(Full)?;
        let (row, _) = row.split_at_mut_checked(words).ok_or(Full)?;
        let (stamp, row) = row.split_first_mut().ok_or(Full)?;
        let (statuses, bits) = row.split_at_mut_checked(self.width.div_ceil(STATUSES)).ok_or(Full)?;
        *stamp = at.0.cast_unsigned();
        let mut cells = cells.zip(bits);
        for word in statuses {
            let mut packed = UNFILLED.to_ne_bytes();
            for (status, (cell, bits)) in packed.iter_mut().zip(&mut cells) {
                *status = cell.status.code();
                *bits = cell.bits;
            }
            *word = u64::from_ne_bytes(packed);
        }
        self.rows += 1;
        Ok(())
    }

    /// Drops the row that came first; returns how many readings went with it.
    pub fn pop_oldest(&mut self) -> usize {
        if self.rows == 0 {
            return 0;
        }
        self.head = (self.head + 1) % self.capacity();
        self.rows -= 1;
        if self.rows == 0 {
            self.clear();
        }
        self.width
    }

    /// Drops everything and starts at the front of the block again.
    pub fn clear(&mut self) {
        self.words.clear();
        self.head = 0;
        self.rows = 0;
    }

    /// The stamps of its rows in ms since 1970, in the order they came.
    pub fn times(&self) -> impl Iterator<Item = i64> {
        self.each_row().filter_map(|row| row.first().map(|stamp| stamp.cast_signed()))
    }

    /// Appends column `index`: to `statuses` one code a row, to `bits` the values of those rows whose status has one.
    /// Nothing if there is no such column.
    pub fn column(&self, index: usize, statuses: &mut Vec<u8>, bits: &mut Vec<u64>) {
        statuses.reserve(self.rows);
        bits.reserve(self.rows);
        for (status, value) in self.cells(index) {
            statuses.push(status);
            if status < Status::CommFail.code() {
                bits.push(value);
            }
        }
    }

    /// Whether every row of column `index` is GOOD: then its statuses need not be sent.
    #[must_use]
    pub fn all_good(&self, index: usize) -> bool {
        self.cells(index).all(|(status, _)| status == Status::Good.code())
    }

    /// Status and bits of one column, row by row.
    fn cells(&self, index: usize) -> impl Iterator<Item = (u8, u64)> {
        let statuses = self.width.div_ceil(STATUSES);
        let (status, byte, bits) = (1 + index / STATUSES, index % STATUSES, 1 + statuses + index);
        self.each_row()
            .filter(move |_| index < self.width)
            .filter_map(move |row| Some((*row.get(status)?.to_ne_bytes().get(byte)?, *row.get(bits)?)))
    }

    /// Its rows, oldest first: from the head to the end of the block, and what stands before the head.
    fn each_row(&self) -> impl Iterator<Item = &[u64]> {
        let (before, from) = self.words.split_at_checked(self.head * self.row_words()).unwrap_or_default();
        from.chunks_exact(self.row_words()).chain(before.chunks_exact(self.row_words())).take(self.rows)
    }

    /// Words of a row: stamp, statuses, bits.
    fn row_words(&self) -> usize {
        1 + self.width.div_ceil(STATUSES) + self.width
    }
}

/// A reading of a point on its own clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventReading {
    /// Its point.
    pub point: PointKey,
    /// Its stamp.
    pub at: Wall,
    /// Its status.
    pub status: Status,
    /// Its message waits for its acknowledgement.
    pub waits: bool,
    /// As in [`Cell::bits`].
    pub bits: u64,
}

/// The readings of points on their own clock, in the order they came.
#[derive(Debug, Default)]
pub struct EventRing {
    readings: Box<heapless::Deque<EventReading, EVENT_READINGS>>,
}

impl EventRing {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Readings it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.readings.len()
    }

    /// Whether it holds nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.readings.is_empty()
    }

    /// The reading that came first.
    #[must_use]
    pub fn oldest(&self) -> Option<&EventReading> {
        self.readings.front()
    }

    /// Adds a reading.
    ///
    /// # Errors
    /// [`Full`] if there is no room; the reading is not added.
    pub fn push(&mut self, reading: EventReading) -> Result<(), Full> {
        self.readings.push_back(reading).map_err(|_| Full)
    }

    /// Takes the reading that came first.
    pub fn pop_oldest(&mut self) -> Option<EventReading> {
        self.readings.pop_front()
    }

    /// Its readings, in the order they came.
    pub fn iter(&self) -> impl Iterator<Item = &EventReading> {
        self.readings.iter()
    }

    /// Takes everything, sorted by point and within a point in the order it came: ready for
    /// `chunk_by(|a, b| a.point == b.point)`, one point frame each. At most 96 KB, freed with the batch.
    #[must_use]
    pub fn take_by_point(&mut self) -> Vec<EventReading> {
        let mut readings: Vec<EventReading> = self.readings.iter().copied().collect();
        self.clear();
        readings.sort_by_key(|reading| reading.point);
        readings
    }

    /// Drops everything.
    pub fn clear(&mut self) {
        self.readings.clear();
    }
}

#[cfg(test)]
mod tests {
    use alloc::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    fn status(code: u8) -> Status {
        [Status::Good, Status::Uncertain, Status::Partial, Status::CommFail, Status::TypeError][usize::from(code % 5)]
    }

    /// A row made of one number, its cells all different.
    fn row(width: usize, seed: u64, good: bool) -> Vec<Cell> {
        (0..width as u64)
            .map(|i| seed.wrapping_add(i.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
            .map(|bits| Cell { status: if good { Status::Good } else { status((bits >> 60) as u8) }, bits })
            .collect()
    }

    /// What the ring should hold, row by row.
    fn same(ring: &Ring, model: &VecDeque<(i64, Vec<Cell>)>) -> Result<(), TestCaseError> {
        prop_assert_eq!(ring.rows(), model.len());
        prop_assert_eq!(ring.readings(), model.len() * ring.width());
        prop_assert_eq!(ring.is_empty(), model.is_empty());
        prop_assert_eq!(ring.oldest(), model.front().map(|row| Wall(row.0)));
        prop_assert!(ring.times().eq(model.iter().map(|row| row.0)));
        for index in [0, 1, ring.width() / 2, ring.width() - 1, ring.width()] {
            let cells: Vec<Cell> = model.iter().filter_map(|row| row.1.get(index).copied()).collect();
            let (mut statuses, mut bits) = (Vec::new(), Vec::new());
            ring.column(index, &mut statuses, &mut bits);
            let good = cells.iter().all(|cell| cell.status == Status::Good);
            prop_assert_eq!(statuses, cells.iter().map(|cell| cell.status.code()).collect::<Vec<_>>());
            let values = cells.iter().filter(|cell| cell.status.has_value()).map(|cell| cell.bits);
            prop_assert_eq!(bits, values.collect::<Vec<_>>());
            prop_assert_eq!(ring.all_good(index), good);
        }
        Ok(())
    }

    #[test]
    fn widths_that_fit() {
        assert_eq!(Ring::new(0).unwrap_err(), Refused::Group { width: 0 });
        assert_eq!(Ring::new(RING_CELLS + 1).unwrap_err(), Refused::Group { width: 4_097 });
        for width in 1..=RING_CELLS {
            let ring = Ring::new(width).unwrap();
            assert!(ring.capacity() >= 1);
            assert!(ring.capacity() * ring.row_words() <= WORDS, "{width}");
        }
    }

    #[test]
    fn a_row_of_another_width_is_refused() {
        let mut ring = Ring::new(3).unwrap();
        assert_eq!(ring.push(Wall(0), row(2, 0, true)), Err(Refused::Row { cells: 2, width: 3 }));
        assert_eq!(ring.push(Wall(0), row(4, 0, true)), Err(Refused::Row { cells: 4, width: 3 }));
        assert!(ring.is_empty());
        ring.push(Wall(1), core::iter::repeat_n(Cell::bare(Status::CommFail), 3)).unwrap();
        assert_eq!((ring.rows(), ring.all_good(0)), (1, false));
    }

    #[test]
    fn the_widest_row_fits_once() {
        let mut ring = Ring::new(RING_CELLS).unwrap();
        ring.push(Wall(1), row(RING_CELLS, 7, false)).unwrap();
        assert_eq!(ring.push(Wall(2), row(RING_CELLS, 8, false)), Err(Refused::Full(Full)));
        same(&ring, &[(1, row(RING_CELLS, 7, false))].into()).unwrap();
        assert_eq!(ring.pop_oldest(), RING_CELLS);
        assert_eq!(ring.pop_oldest(), 0);
        ring.push(Wall(2), row(RING_CELLS, 8, true)).unwrap();
        same(&ring, &[(2, row(RING_CELLS, 8, true))].into()).unwrap();
    }

    #[test]
    fn after_clear_only_the_front_is_used() {
        let mut ring = Ring::new(10).unwrap();
        for cycle in 0..1_000 {
            for i in 0..5 {
                ring.push(Wall(i), row(10, cycle, true)).unwrap();
            }
            assert_eq!(ring.words.len(), 5 * ring.row_words());
            if cycle % 2 == 0 {
                ring.clear();
            } else {
                while ring.pop_oldest() > 0 {}
            }
        }
    }

    /// What is done to a ring.
    #[derive(Clone, Debug)]
    enum Step {
        Push(i64, u64, bool),
        Pop,
        Clear,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            20 => (any::<i64>(), any::<u64>(), any::<bool>()).prop_map(|(at, seed, good)| Step::Push(at, seed, good)),
            8 => Just(Step::Pop),
            1 => Just(Step::Clear),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Against a deque of rows.
        #[test]
        fn a_ring_is_a_bounded_queue_of_rows(
            width in prop_oneof![1_usize..20, 400_usize..2_100], steps in proptest::collection::vec(step(), 1..60), fill: bool
        ) {
            let mut ring = Ring::new(width).unwrap();
            let mut model: VecDeque<(i64, Vec<Cell>)> = VecDeque::new();
            if fill {
                for i in 0..ring.capacity() as u64 {
                    ring.push(Wall(i as i64), row(width, i, false)).unwrap();
                    model.push_back((i as i64, row(width, i, false)));
                }
            }
            for step in steps {
                match step {
                    Step::Push(at, seed, good) => {
                        let pushed = ring.push(Wall(at), row(width, seed, good));
                        if model.len() < (RING_CELLS / width).min(RING_ROWS) {
                            prop_assert_eq!(pushed, Ok(()));
                            model.push_back((at, row(width, seed, good)));
                        } else {
                            prop_assert_eq!(pushed, Err(Refused::Full(Full)));
                        }
                    }
                    Step::Pop => prop_assert_eq!(ring.pop_oldest(), model.pop_front().map_or(0, |row| row.1.len())),
                    Step::Clear => {
                        ring.clear();
                        model.clear();
                    }
                }
                same(&ring, &model)?;
            }
        }

        /// Against a vector.
        #[test]
        fn an_event_ring_keeps_order_and_groups_by_point(
            readings in proptest::collection::vec((0_u32..20, any::<i64>(), any::<u8>(), any::<u64>()), 0..300),
            before in 0_usize..EVENT_READINGS,
        ) {
            let mut ring = EventRing::new();
            let filler = EventReading { point: PointKey(9), at: Wall(0), status: Status::CommFail, waits: false, bits: 0 };
            for _ in 0..before {
                ring.push(filler).unwrap();
            }
            while ring.pop_oldest().is_some() {}
            let mut model = Vec::new();
            for (point, at, code, bits) in readings {
                let reading = EventReading { point: PointKey(point), at: Wall(at), status: status(code), waits: false, bits };
                ring.push(reading).unwrap();
                model.push(reading);
            }
            prop_assert_eq!(ring.len(), model.len());
            prop_assert_eq!(ring.oldest(), model.first());
            prop_assert!(ring.iter().eq(model.iter()));
            let taken = ring.take_by_point();
            prop_assert!(ring.is_empty());
            let grouped: Vec<EventReading> =
                (0..20).flat_map(|point| model.iter().filter(move |r| r.point == PointKey(point)).copied()).collect();
            prop_assert_eq!(taken, grouped);
        }
    }

    #[test]
    fn a_full_event_ring_says_so() {
        let mut ring = EventRing::new();
        let reading = |i: usize| EventReading {
            point: PointKey(0),
            at: Wall(i as i64),
            status: Status::Good,
            waits: false,
            bits: 0,
        };
        for i in 0..EVENT_READINGS {
            ring.push(reading(i)).unwrap();
        }
        assert_eq!(ring.push(reading(0)), Err(Full));
        assert_eq!(ring.pop_oldest(), Some(reading(0)));
        ring.push(reading(EVENT_READINGS)).unwrap();
        assert_eq!(ring.oldest(), Some(&reading(1)));
        assert_eq!(size_of::<EventReading>(), 24);
    }
}
