//! Windows: fold the readings of a span of time into a few statistics. They stand after the marks of the filter and
//! before the batch.
//!
//! Two halves that do not know each other. A [`WindowClock`](clock::WindowClock) says when windows begin and end; one
//! serves all points with the same window. An [`Accumulator`](accumulator::Accumulator) per point folds what arrives in
//! between, in constant size. Whoever owns both closes windows that are due *before* it adds the next reading: a reading
//! belongs to the window that is open when it arrives, whatever its own stamp says (contract rule 15), and one that
//! arrives at the very deadline belongs to the next.

pub mod accumulator;
pub mod clock;
