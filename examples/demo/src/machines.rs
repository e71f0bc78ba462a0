//! What the simulated machines measure: their points, how each is coded in registers, and how it behaves over time.
//!
//! One table serves three readers: the slave that answers with it, the agent's configuration, and the proof, which knows
//! from it what must be in the database. All points of a machine stand side by side, so they are one request.
//!
//! The first point of each machine is `n`, the number of the answer: it makes every poll one of a kind.

use Coding::{F32, U16, U32};

/// A kind of machine.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) name: &'static str,
    pub(crate) period_ms: u32,
    pub(crate) points: &'static [Point],
}

/// A point, in holding registers.
#[derive(Debug)]
pub(crate) struct Point {
    pub(crate) name: &'static str,
    pub(crate) coding: Coding,
    /// real = raw × scale.
    pub(crate) scale: f64,
    /// UCUM, or nothing.
    pub(crate) unit: &'static str,
    pub(crate) signal: Signal,
    pub(crate) sent: Sent,
}

/// How registers hold a value, high word first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Coding {
    U16,
    U32,
    F32,
}

/// How a value behaves, `t` in seconds.
#[derive(Debug)]
pub(crate) enum Signal {
    /// The number of this answer.
    Number,
    /// middle + swing · sin(t / slow) + noise of this width.
    Wave { middle: f64, swing: f64, slow: f64, noise: f64 },
    /// from + t · rate.
    Total { from: f64, rate: f64 },
    /// 0, 1 … `of` − 1, each for so many seconds.
    State { of: u32, seconds: f64 },
}

/// What the agent is told to do with it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Sent {
    /// Send it at every poll.
    Each,
    /// Send it when it moved by more than this, and every 10 s.
    Moved(f64),
    /// Fold 5 s into mean, min and max.
    Folded,
}

impl Coding {
    /// Registers of one value.
    pub(crate) const fn width(self) -> u16 {
        match self {
            U16 => 1,
            U32 | F32 => 2,
        }
    }
}

impl Point {
    /// The raw value at `seconds`: the register, both registers, or the bits of the float.
    pub(crate) fn raw(&self, number: u32, seconds: f64, chance: &mut fastrand::Rng) -> u32 {
        let real = match self.signal {
            Signal::Number => return number,
            Signal::State { of, seconds: each } => return (seconds / each) as u32 % of,
            Signal::Wave { middle, swing, slow, noise } => {
                middle + swing * (seconds / slow).sin() + noise * (chance.f64() - 0.5)
            }
            Signal::Total { from, rate } => from + seconds * rate,
        };
        match self.coding {
            U16 => u32::from((real / self.scale).round() as u16),
            U32 => (real / self.scale).floor() as u32,
            F32 => (real as f32).to_bits(),
        }
    }
}

impl Machine {
    /// Points with the address of each.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = (u16, &'static Point)> {
        self.points.iter().scan(0, |next, point| {
            let address = *next;
            *next += point.coding.width();
            Some((address, point))
        })
    }
}

const fn each(name: &'static str, coding: Coding, scale: f64, unit: &'static str, signal: Signal) -> Point {
    Point { name, coding, scale, unit, signal, sent: Sent::Each }
}

const fn wave(middle: f64, swing: f64, slow: f64, noise: f64) -> Signal {
    Signal::Wave { middle, swing, slow, noise }
}

const NUMBER: Point = each("n", U32, 1.0, "", Signal::Number);

/// A press, polled ten times a second.
pub(crate) const PRESS: Machine = Machine {
    name: "press",
    period_ms: 100,
    points: &[
        NUMBER,
        each("force", F32, 1.0, "kN", wave(812.0, 60.0, 0.4, 4.0)),
        each("oil-pressure", U16, 0.1, "bar", wave(182.0, 6.0, 2.0, 0.8)),
        each("motor-current", U16, 0.01, "A", wave(12.5, 3.0, 3.0, 0.2)),
        each("motor-speed", U16, 1.0, "/min", wave(1_460.0, 12.0, 3.0, 4.0)),
        each("ram-position", U16, 0.01, "mm", wave(300.0, 290.0, 0.8, 0.05)),
        each("strokes", U32, 1.0, "1", Signal::Total { from: 4_183_220.0, rate: 0.8 }),
        each("state", U16, 1.0, "", Signal::State { of: 3, seconds: 7.0 }),
        Point { sent: Sent::Moved(0.5), ..each("oil-temperature", U16, 0.1, "Cel", wave(46.0, 3.0, 9.0, 0.2)) },
        Point { sent: Sent::Folded, ..each("vibration", U16, 0.01, "mm/s", wave(2.8, 0.4, 1.1, 1.5)) },
    ],
};

/// A furnace with four zones, polled five times a second.
pub(crate) const FURNACE: Machine = Machine {
    name: "furnace",
    period_ms: 200,
    points: &[
        NUMBER,
        each("zone-1", U16, 0.1, "Cel", wave(845.0, 4.0, 9.0, 1.2)),
        each("zone-2", U16, 0.1, "Cel", wave(862.0, 4.0, 8.0, 1.2)),
        each("zone-3", U16, 0.1, "Cel", wave(871.0, 3.0, 7.0, 1.2)),
        each("zone-4", U16, 0.1, "Cel", wave(858.0, 5.0, 6.0, 1.2)),
        each("burner", U16, 0.1, "%", wave(61.0, 9.0, 4.0, 0.5)),
        each("oxygen", U16, 0.01, "%", wave(3.2, 0.3, 3.0, 0.1)),
        each("draught", F32, 1.0, "Pa", wave(-18.0, 2.0, 2.0, 0.6)),
        each("gas", U32, 0.01, "m3", Signal::Total { from: 88_120.0, rate: 0.11 }),
        each("state", U16, 1.0, "", Signal::State { of: 2, seconds: 11.0 }),
        Point { sent: Sent::Moved(1.0), ..each("shell", U16, 0.1, "Cel", wave(64.0, 4.0, 10.0, 0.3)) },
        Point { sent: Sent::Folded, ..each("exhaust", U16, 0.1, "Cel", wave(412.0, 12.0, 3.0, 6.0)) },
    ],
};

/// An electricity meter, polled five times a second: the one that falls silent.
pub(crate) const METER: Machine = Machine {
    name: "meter",
    period_ms: 200,
    points: &[
        NUMBER,
        each("voltage-1", U16, 0.1, "V", wave(231.0, 0.8, 5.0, 0.6)),
        each("voltage-2", U16, 0.1, "V", wave(230.2, 0.8, 6.0, 0.6)),
        each("voltage-3", U16, 0.1, "V", wave(231.6, 0.8, 7.0, 0.6)),
        each("current-1", U16, 0.01, "A", wave(84.0, 8.0, 2.5, 0.5)),
        each("current-2", U16, 0.01, "A", wave(81.0, 8.0, 2.5, 0.5)),
        each("current-3", U16, 0.01, "A", wave(86.0, 8.0, 2.5, 0.5)),
        each("power", F32, 1.0, "kW", wave(56.2, 5.0, 2.5, 0.4)),
        each("energy", U32, 1.0, "W.h", Signal::Total { from: 10_482_113.0, rate: 15.6 }),
        Point { sent: Sent::Folded, ..each("frequency", U16, 0.001, "Hz", wave(50.0, 0.012, 6.0, 0.01)) },
    ],
};

#[cfg(test)]
mod tests {
    use super::*;

    /// A request is at most 125 registers, and no value may leave its coding.
    #[test]
    fn every_machine_is_one_request_and_every_value_fits() {
        for machine in [&PRESS, &FURNACE, &METER] {
            let registers: u16 = machine.points.iter().map(|point| point.coding.width()).sum();
            assert!(registers <= 125, "{}: {registers} registers", machine.name);
            assert_eq!(machine.points[0].name, "n", "{}: every poll has a number", machine.name);
            let mut chance = fastrand::Rng::with_seed(1);
            for point in machine.points.iter().filter(|point| point.coding == U16) {
                for second in 0..3_600 {
                    let raw = point.raw(1, f64::from(second), &mut chance);
                    let cut = matches!(point.signal, Signal::Wave { .. }) && (raw == 0 || raw == 0xFFFF);
                    assert!(!cut, "{}/{} at {second} s", machine.name, point.name);
                }
            }
        }
    }
}
