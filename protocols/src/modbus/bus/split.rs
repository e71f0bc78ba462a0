//! A block that a device refuses is cut in two until the guilty registers are found.
//!
//! A device without one register of a block refuses the whole block (exception 2 or 3), or answers with less than was
//! asked for. All that is remembered of a request is which ranges of its points were refused, the smallest ones: a single
//! point, which the device does not have; or two parts that are good and cannot be read as one, because a register of the
//! gap between them is missing or the device cannot answer so much. What is asked follows from it ([`parts`]): the
//! longest runs of points that hold no such range.
//!
//! A cut is made at a gap, where there is one, the middle one of all; else in the middle. So k bad points of n cost about
//! k · 2 log n questions, once.
//!
//! One refusal proves little: devices refuse while they start. Only what was refused in three polls running (a range of
//! several points in two) is left out, then asked again after 10 s, 1 min, 10 min, then every hour; if the device has
//! none of the request's points, every minute, with one question for all. Until it is left out, each poll asks it anew.

use alloc::vec::Vec;
use core::time::Duration;

use crate::modbus::plan::{PlannedPoint, Request};
use crate::reading::{Sample, Status};
use crate::time::Mono;

/// Polls in which a point was refused before it is left out.
const POINT_PATIENCE: u32 = 3;
/// The same for a range of several, whose parts are good.
const RANGE_PATIENCE: u32 = 2;
const RETRY: [Duration; 4] =
    [Duration::from_secs(10), Duration::from_secs(60), Duration::from_secs(600), Duration::from_secs(3_600)];
/// Longest wait if the device has none of the points.
const RETRY_ALL_MAX: Duration = Duration::from_secs(60);

/// A run of a request's points, by their places in it: from the first on, before the second.
pub(crate) type Part = (u16, u16);

/// A range of points that was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) part: Part,
    /// Where it is cut; of a single point nowhere.
    pub(crate) cut: u16,
    /// Polls in which it was refused.
    pub(crate) times: u32,
    /// When it is asked again, once it stands.
    pub(crate) retry_at: Mono,
}

impl Refused {
    fn is_point(&self) -> bool {
        self.part.1 - self.part.0 <= 1
    }

    /// Whether it is believed.
    pub(crate) fn stands(&self) -> bool {
        self.times >= if self.is_point() { POINT_PATIENCE } else { RANGE_PATIENCE }
    }

    /// Refused once more.
    fn again(&mut self, now: Mono, all: bool) {
        self.times = self.times.saturating_add(1);
        let patience = if self.is_point() { POINT_PATIENCE } else { RANGE_PATIENCE };
        let step = usize::try_from(self.times.saturating_sub(patience)).unwrap_or(usize::MAX);
        let wait = RETRY.get(step).or(RETRY.last()).copied().unwrap_or_default();
        self.retry_at = now + if all { wait.min(RETRY_ALL_MAX) } else { wait };
    }

    /// A range that was learnt in an earlier life.
    pub(crate) fn remembered(part: Part, cut: u16, now: Mono) -> Self {
        let times = if part.1 - part.0 <= 1 { POINT_PATIENCE } else { RANGE_PATIENCE };
        let wait = RETRY.get(1).copied().unwrap_or_default();
        Self { part, cut, times: times + 1, retry_at: now + wait }
    }
}

fn within(inner: Part, outer: Part) -> bool {
    inner.0 >= outer.0 && inner.1 <= outer.1
}

/// Whether every point of `count` was refused alone.
pub(crate) fn nothing_is_left(refused: &[Refused], count: u16) -> bool {
    refused.iter().filter(|refused| refused.is_point()).count() == usize::from(count)
}

/// Whether nothing is asked at `now`, because nothing is left and it is too early to try again.
pub(crate) fn waits(refused: &[Refused], count: u16, now: Mono) -> bool {
    nothing_is_left(refused, count) && refused.iter().all(|one| one.stands() && one.retry_at > now)
}

/// What is asked for `count` points at `now`, in descending order; ranges that stand and are due are asked once more.
pub(crate) fn parts(refused: &[Refused], count: u16, now: Mono) -> Vec<Part> {
    if waits(refused, count, now) {
        return Vec::new();
    }
    if nothing_is_left(refused, count) {
        return alloc::vec![(0, count)];
    }
    let (mut points, ranges): (Vec<&Refused>, Vec<&Refused>) = refused.iter().partition(|one| one.is_point());
    crate::sort(&mut points, |one, other| one.part.0.cmp(&other.part.0));
    let cuts = |one: &&&Refused| one.stands() && one.retry_at > now;
    // One point a poll is tried again: the others wait for the next.
    let mut may_try = true;
    let (mut parts, mut from) = (Vec::new(), 0);
    let ends = points.iter().map(|one| Some(*one)).chain([None]);
    for point in ends {
        // The run up to this point, or to the end, and its cuts: behind the first no range that is cut later is whole.
        let end = point.map_or(count, |one| one.part.0);
        while from < end {
            let inside = ranges.iter().filter(|one| within(one.part, (from, end))).filter(cuts);
            let to = inside.map(|one| one.cut).min().filter(|cut| *cut > from).unwrap_or(end);
            parts.push((from, to));
            from = to;
        }
        let Some(point) = point else { break };
        let tried = point.stands() && point.retry_at <= now && core::mem::take(&mut may_try);
        if !point.stands() || tried {
            parts.push(point.part);
        }
        from = point.part.1;
    }
    parts.reverse();
    parts
}

/// First register or bit and their number, for these points of the request.
pub(crate) fn span(request: &Request, part: Part) -> (u16, u16) {
    let points = points(request, part);
    let from = points.iter().map(|point| point.offset).min().unwrap_or(0);
    let to = points.iter().map(end).max().unwrap_or(0);
    (request.address.wrapping_add(from), to.saturating_sub(from))
}

pub(crate) fn points(request: &Request, part: Part) -> &[PlannedPoint] {
    request.points.get(usize::from(part.0)..usize::from(part.1)).unwrap_or_default()
}

fn end(point: &PlannedPoint) -> u16 {
    point.offset.saturating_add(point.ty.width())
}

/// Where a range of several points is cut: at its middle gap, or in its middle.
fn cut(request: &Request, part: Part) -> u16 {
    let mut gaps: Vec<u16> = Vec::new();
    let mut reached = 0;
    for (place, point) in (part.0..).zip(points(request, part)) {
        if place > part.0 && point.offset > reached {
            gaps.push(place);
        }
        reached = reached.max(end(point));
    }
    gaps.get(gaps.len() / 2).copied().unwrap_or(part.0 + (part.1 - part.0) / 2)
}

/// A poll that takes several questions.
#[derive(Debug)]
pub(crate) struct Open {
    /// When it was due.
    pub(crate) due: Mono,
    /// When its last question went out.
    pub(crate) asked: Mono,
    /// When the first answer came, which stamps it.
    pub(crate) at: Option<Mono>,
    pub(crate) samples: Vec<Sample>,
    /// What is still to ask, the next one last.
    pub(crate) queue: Vec<Part>,
    /// How often the device was busy.
    pub(crate) busy: u32,
}

impl Open {
    /// Of a request with these refusals. What is left out is NOT_CONFIGURED from the beginning, what is never asked
    /// COMM_FAIL to the end.
    pub(crate) fn new(due: Mono, asked: Mono, request: &Request, refused: &[Refused], queue: Vec<Part>) -> Self {
        let mut open = Self {
            due,
            asked,
            at: None,
            samples: alloc::vec![Sample::bare(Status::CommFail); request.points.len()],
            queue,
            busy: 0,
        };
        for one in refused.iter().filter(|one| one.is_point() && one.stands()) {
            open.set(one.part, Status::NotConfigured);
        }
        open
    }

    /// The same status for these points.
    pub(crate) fn set(&mut self, part: Part, status: Status) {
        for sample in self.samples.get_mut(usize::from(part.0)..usize::from(part.1)).unwrap_or_default() {
            *sample = Sample::bare(status);
        }
    }

    /// These points have values.
    pub(crate) fn fill(&mut self, part: Part, values: Vec<Sample>) {
        let places = self.samples.get_mut(usize::from(part.0)..usize::from(part.1)).unwrap_or_default();
        for (place, value) in places.iter_mut().zip(values) {
            *place = value;
        }
    }
}

/// A part was refused: what is known now, and what of it is asked next goes to `open`.
pub(crate) fn refuse(refused: &mut Vec<Refused>, open: &mut Open, request: &Request, part: Part, now: Mono) {
    let count = u16::try_from(request.points.len()).unwrap_or(u16::MAX);
    let all = nothing_is_left(refused, count);
    if part.1 - part.0 <= 1 && !refused.iter().any(|one| one.part == part) {
        refused.push(Refused { part, cut: part.0, times: 0, retry_at: now });
    }
    if part.1 - part.0 <= 1 || all {
        refused.iter_mut().filter(|one| within(one.part, part)).for_each(|one| one.again(now, all));
        open.set(part, Status::NotConfigured);
        return;
    }
    // A point in it that was refused before is the reason, and is asked alone.
    let inside = |one: &&mut Refused| within(one.part, part) && !one.is_point();
    let cut = match refused.iter_mut().filter(inside).min_by_key(|one| one.part.1 - one.part.0) {
        Some(known) => {
            known.again(now, false);
            known.cut
        }
        None => {
            let mut one = Refused { part, cut: cut(request, part), times: 0, retry_at: now };
            one.again(now, false);
            refused.push(one);
            one.cut
        }
    };
    open.queue.push((cut, part.1));
    open.queue.push((part.0, cut));
}

/// A part was answered: nothing in it is refused.
pub(crate) fn accept(refused: &mut Vec<Refused>, part: Part) {
    refused.retain(|one| !within(one.part, part));
}

/// The poll is over: only the smallest ranges are reasons.
pub(crate) fn prune(refused: &mut Vec<Refused>) {
    let all: Vec<Part> = refused.iter().map(|one| one.part).collect();
    refused.retain(|one| one.is_point() || !all.iter().any(|other| *other != one.part && within(*other, one.part)));
}
