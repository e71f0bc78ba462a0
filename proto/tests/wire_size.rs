//! The golden table of bytes per reading, over generated sets: a change of the encoder shows as a diff of
//! `golden/wire_size.txt` that a person can read. `UPDATE_GOLDEN=1` rewrites it.

#![allow(clippy::unwrap_used, reason = "a test that panics fails, which is what it is for")]

#[path = "../examples/wire_size/measure.rs"]
mod measure;

use std::fs;
use std::path::Path;

use measure::{Series, Set, table};
use tributary_proto::pb::point::Type;

/// splitmix64: the same numbers on every machine.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Evenly from `0..n`.
    fn below(&mut self, n: u64) -> i64 {
        (self.next() % n) as i64
    }

    /// Around 0, bell-shaped, about ±`spread`.
    fn noise(&mut self, spread: u64) -> i64 {
        (0..4).map(|_| self.below(spread + 1)).sum::<i64>() / 2 - spread as i64
    }
}

const ROWS: usize = 4_000;

/// Polls a second apart, some of them late.
fn stamps(chance: &mut Chance) -> Vec<i64> {
    (0..ROWS as i64)
        .map(|row| 1_700_000_000_000 + row * 1_000 + if chance.below(20) == 0 { chance.below(30) } else { 0 })
        .collect()
}

fn series(ty: Type, stamps: &[i64], mut value: impl FnMut() -> u64) -> Series {
    Series { ty, rows: stamps.iter().map(|&at| (at, Some(value()))).collect() }
}

fn generated() -> Vec<Set> {
    let mut sets = Vec::new();
    let set = |name: &str, wide, series| Set { name: name.to_owned(), wide, series };

    // Temperatures and pressures as doubles with two to four decimals, wandering under noise.
    let mut chance = Chance(1);
    let clock = stamps(&mut chance);
    let floats = (0..8)
        .map(|point| {
            let (digits, mut level) = ([1e2, 1e3, 1e4][point % 3], 20_000_i64);
            series(Type::Float64, &clock, || {
                level += chance.noise(3);
                ((level + chance.noise(40)) as f64 / digits).to_bits()
            })
        })
        .collect();
    sets.push(set("noisy_floats", true, floats));

    // Singles without decimals behind them: nothing but their bits.
    let mut chance = Chance(2);
    let clock = stamps(&mut chance);
    let singles = (0..4)
        .map(|_| series(Type::Float32, &clock, || u64::from((50.0 + chance.noise(1 << 20) as f32 / 3e6).to_bits())))
        .collect();
    sets.push(set("raw_singles", true, singles));

    // A 12-bit converter scaled to coarse steps, with a dead spell.
    let mut chance = Chance(3);
    let clock = stamps(&mut chance);
    let mut registers: Vec<Series> = (1..=10)
        .map(|point| {
            let mut level = 2_000_i64;
            series(Type::Int, &clock, || {
                level = (level + chance.noise(6)).clamp(0, 4_095);
                (level * 5 * point).cast_unsigned()
            })
        })
        .collect();
    for register in &mut registers {
        for row in &mut register.rows[1_200..1_260] {
            row.1 = None;
        }
    }
    sets.push(set("registers", true, registers));

    let mut chance = Chance(4);
    let clock = stamps(&mut chance);
    let counters = (0..6)
        .map(|point| {
            let mut count = 7_000_000_000_u64;
            series(if point % 2 == 0 { Type::Uint64 } else { Type::Int }, &clock, || {
                count += chance.below(1 << (2 * point)) as u64;
                count
            })
        })
        .collect();
    sets.push(set("counters", true, counters));

    let mut chance = Chance(5);
    let clock = stamps(&mut chance);
    let states = (0..20)
        .map(|point| {
            let (levels, mut state) = (if point % 2 == 0 { 2 } else { 7 }, 0);
            series(if point % 2 == 0 { Type::Bool } else { Type::Enum }, &clock, || {
                if chance.below(300) == 0 {
                    state = chance.below(levels).cast_unsigned();
                }
                state
            })
        })
        .collect();
    sets.push(set("states", true, states));

    // Each on its own clock, as deadbands and publishers make them.
    let mut chance = Chance(6);
    let own = (0..5)
        .map(|_| {
            let (mut at, mut level) = (1_700_000_000_000, 500_i64);
            let row = |_| {
                at += 200 + chance.below(5_000);
                level += chance.noise(20);
                (at, Some((level as f64 / 10.0).to_bits()))
            };
            Series { ty: Type::Float64, rows: (0..ROWS).map(row).collect() }
        })
        .collect();
    sets.push(set("own_clocks", false, own));
    sets
}

#[test]
fn bytes_per_reading_are_as_before() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/wire_size.txt");
    let table = table(&generated()).unwrap();
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, &table).unwrap();
    }
    let golden = fs::read_to_string(&path).unwrap();
    assert_eq!(table, golden, "if this is meant: UPDATE_GOLDEN=1 cargo test -p tributary-proto --test wire_size");
}
