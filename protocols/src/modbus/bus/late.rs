//! Late and doubled answers of a serial line, which has no number for its questions.
//!
//! An answer is told by its *shape*: unit, function and byte count. The argument that a stale answer is never taken for
//! a fresh one:
//!
//! 1. A slave answers a question at most `answer_max` after it, or never. That is the one thing to be believed of it.
//! 2. A question that got no valid answer leaves its shape here until then. While it is here no question of that shape
//!    is asked: others may be, another shape or another unit. So whatever has the shape of the question that is out is
//!    not the late answer; the late answer has a shape that is remembered, and is passed over.
//! 3. An exception has no byte count: where another question to the same unit and function may still be answered, an
//!    exception says nothing, settles nothing, and is passed over.
//! 4. An answer whose header and length were there and whose CRC was wrong was the answer: nothing more will come.
//! 5. Some slaves, and lines with repeaters, answer twice. A second copy is seen when it comes while nothing of its
//!    shape is out; from then on, for a minute, every answer of that unit holds its shape back until as many copies
//!    have come as ever did, or until `answer_max`. Before that is known, an answer that equals, to the byte, the one to
//!    another question of that shape is kept for a moment: if a different one follows, that is the answer; if the same
//!    follows, none is.
//!
//! What is left: a slave that exceeds `answer_max`, a second master that asks the same unseen, a first doubled answer
//! that comes later than the moment of rule 5.
//!
//! TCP numbers its questions, so nothing of this is needed there. A gateway that puts a late serial answer into the frame
//! of the next question cannot be seen through; its own time-out must be the shorter one.
//!
//! Limits: 64 questions, 16 units that repeat themselves; if more than 64 may still be answered, the bus waits.

use alloc::vec::Vec;
use core::time::Duration;

use crate::modbus::frame::rtu::{self, Here, Shape};
use crate::time::Mono;

const GONE_MAX: usize = 64;
const REPEATERS_MAX: usize = 16;
const REPEATS_FOR: Duration = Duration::from_secs(60);

/// Questions whose answers may still come, once more or at all.
#[derive(Debug, Default)]
pub(crate) struct Late {
    /// At most [`GONE_MAX`]; never allocated on TCP.
    gone: Vec<Gone>,
    /// At most [`REPEATERS_MAX`].
    repeaters: Vec<Repeater>,
    /// Until when nothing is asked.
    closed: Mono,
}

#[derive(Clone, Copy, Debug)]
struct Gone {
    shape: Shape,
    /// Address and count.
    question: [u8; 4],
    until: Mono,
    /// The CRC of its answer, if one came.
    answer: Option<u16>,
    /// How often the answer came once more.
    copies: u8,
}

/// A unit that answers more than once.
#[derive(Clone, Copy, Debug)]
struct Repeater {
    unit: u8,
    copies: u8,
    /// As long as it is believed.
    until: Mono,
}

impl Late {
    /// A question of `shape` is out no more; until `until` an answer may come.
    pub(crate) fn gone(&mut self, now: Mono, shape: Shape, question: [u8; 4], until: Mono, answer: Option<u16>) {
        self.gone.retain(|gone| gone.until > now);
        if self.gone.len() >= GONE_MAX {
            // An answered one is the least loss, else the one that ends first.
            let worst = self.gone.iter().enumerate().min_by_key(|(_, gone)| (gone.answer.is_none(), gone.until));
            if let Some((index, _)) = worst {
                let lost = self.gone.swap_remove(index);
                if lost.answer.is_none() {
                    self.closed = self.closed.max(lost.until);
                }
            }
        }
        self.gone.push(Gone { shape, question, until, answer, copies: 0 });
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.gone.is_empty() && self.closed == Mono::ZERO
    }

    /// Copies of each answer that are to be expected of this unit.
    fn copies(&self, unit: u8, now: Mono) -> u8 {
        self.repeaters.iter().find(|one| one.unit == unit && one.until > now).map_or(0, |one| one.copies)
    }

    /// Whether this unit answers more than once.
    pub(crate) fn repeats(&self, unit: u8, now: Mono) -> bool {
        self.copies(unit, now) > 0
    }

    /// Whether something may still come of it.
    fn is_open(&self, gone: &Gone, now: Mono) -> bool {
        gone.until > now && (gone.answer.is_none() || gone.copies < self.copies(gone.shape.unit, now))
    }

    /// When a question of this shape may be asked.
    pub(crate) fn free_at(&self, shape: Shape, now: Mono) -> Mono {
        let holds = self.gone.iter().filter(|gone| gone.shape.is_like(shape) && self.is_open(gone, now));
        holds.map(|gone| gone.until).max().unwrap_or_default().max(self.closed)
    }

    /// Whether a stale answer begins here, and over how many bytes.
    pub(crate) fn take(&mut self, bytes: &[u8], now: Mono) -> Option<usize> {
        let whole = |gone: &Gone| match rtu::begins(bytes, gone.shape) {
            Here::Whole(length) if gone.until > now => bytes.get(..length),
            _ => None,
        };
        let frame = self.gone.iter().find_map(whole)?;
        if frame.get(1).is_some_and(|function| function & 0x80 != 0) {
            // Whose it is cannot be told: nothing is settled by it.
            return Some(frame.len());
        }
        let crc = rtu::crc_of(frame);
        let fits = |gone: &&mut Gone| gone.until > now && rtu::begins(bytes, gone.shape) == Here::Whole(frame.len());
        let again = self.gone.iter().any(|gone| gone.answer == Some(crc) && whole(gone).is_some());
        match self.gone.iter_mut().filter(fits).find(|gone| gone.answer.is_none()) {
            // What is still missing, or an earlier answer once more: it stays missing.
            Some(_) if again => {}
            Some(gone) => gone.answer = Some(crc),
            None => {
                // The same bytes once more, else anything of this shape.
                let rank = |gone: &&mut Gone| (gone.answer != Some(crc), gone.copies);
                let gone = self.gone.iter_mut().filter(fits).min_by_key(rank)?;
                gone.copies = gone.copies.saturating_add(1);
                let (unit, copies) = (gone.shape.unit, gone.copies);
                self.repeater(unit, copies, now);
            }
        }
        Some(frame.len())
    }

    /// Whether an exception to a question of this shape may be another's.
    pub(crate) fn may_refuse(&self, shape: Shape, now: Mono) -> bool {
        self.gone.iter().any(|gone| self.is_open(gone, now) && gone.shape.is_kin(shape))
    }

    /// Whether an answer with this CRC is the copy of the answer to another question of its shape.
    pub(crate) fn is_copy(&self, shape: Shape, question: [u8; 4], answer: u16, now: Mono) -> bool {
        self.gone.iter().any(|gone| {
            gone.until > now && gone.shape == shape && gone.question != question && gone.answer == Some(answer)
        })
    }

    /// This unit has answered once more, so many times to one question.
    pub(crate) fn repeater(&mut self, unit: u8, copies: u8, now: Mono) {
        let copies = copies.max(self.copies(unit, now));
        self.repeaters.retain(|one| one.unit != unit && one.until > now);
        if self.repeaters.len() >= REPEATERS_MAX {
            self.repeaters.remove(0);
        }
        self.repeaters.push(Repeater { unit, copies, until: now + REPEATS_FOR });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::modbus::config::Framing;
    use crate::modbus::frame::{Frame, read};

    const MS: Duration = Duration::from_millis(1);

    fn shape(count: u16) -> Shape {
        Shape::of(7, &read(3, 0, count))
    }

    fn answer(value: u8) -> Frame {
        Frame::pack(Framing::Rtu, 7, &[3, 2, 0, value], 0)
    }

    #[test]
    fn a_shape_is_held_until_its_answer_came_or_cannot_come() {
        let (mut late, now) = (Late::default(), Mono::from_millis(100));
        late.gone(now, shape(1), [0, 0, 0, 1], now + 50 * MS, None);
        assert_eq!(late.free_at(shape(1), now), now + 50 * MS);
        assert_eq!(late.free_at(shape(2), now), Mono::ZERO, "another byte count");
        assert_eq!(late.free_at(Shape { unit: 8, ..shape(1) }, now), Mono::ZERO, "another unit");
        assert!(late.may_refuse(shape(2), now), "an exception could be its");
        let refusal = Frame::pack(Framing::Rtu, 7, &[0x83, 2], 0);
        assert_eq!(late.take(&refusal, now), Some(5));
        assert_eq!(late.free_at(shape(1), now), now + 50 * MS, "whose refusal that was nobody knows");
        assert_eq!(late.take(&answer(1), now), Some(7));
        assert_eq!(late.free_at(shape(1), now), Mono::ZERO);
        late.gone(now, shape(1), [0, 0, 0, 1], now + 50 * MS, None);
        assert_eq!(late.free_at(shape(1), now + 50 * MS), Mono::ZERO);
        assert_eq!(late.take(&answer(2), now + 50 * MS), None);
    }

    #[test]
    fn one_that_repeats_itself_is_waited_for() {
        let (mut late, now) = (Late::default(), Mono::from_millis(100));
        let gone = |late: &mut Late, now: Mono, value: u8| {
            late.gone(now, shape(1), [0, value, 0, 1], now + 50 * MS, Some(rtu::crc_of(&answer(value))));
        };
        gone(&mut late, now, 1);
        assert_eq!(late.free_at(shape(1), now), Mono::ZERO, "nothing is known against it");
        assert!(late.is_copy(shape(1), [0, 2, 0, 1], rtu::crc_of(&answer(1)), now));
        assert!(!late.is_copy(shape(1), [0, 1, 0, 1], rtu::crc_of(&answer(1)), now), "the same question");
        late.take(&answer(1), now);
        let next = now + 10 * MS;
        gone(&mut late, next, 2);
        assert_eq!(late.free_at(shape(1), next), next + 50 * MS, "the copy is still to come");
        late.take(&answer(2), next);
        assert_eq!(late.free_at(shape(1), next), Mono::ZERO);
    }

    #[test]
    fn an_answer_that_may_be_either_settles_nothing() {
        let (mut late, now) = (Late::default(), Mono::from_millis(100));
        late.gone(now, shape(1), [0, 0, 0, 1], now + 30 * MS, Some(rtu::crc_of(&answer(1))));
        late.gone(now, shape(1), [0, 0, 0, 1], now + 50 * MS, None);
        late.take(&answer(1), now);
        assert_eq!(late.free_at(shape(1), now), now + 50 * MS);
    }

    #[test]
    fn what_cannot_be_remembered_closes_the_line() {
        let (mut late, now) = (Late::default(), Mono::from_millis(100));
        for unit in 0..65 {
            late.gone(now, Shape { unit, ..shape(1) }, [0; 4], now + MS * u32::from(unit + 1), None);
        }
        assert_eq!(late.free_at(Shape { unit: 200, ..shape(1) }, now), now + MS, "until the first may be forgotten");
    }
}
