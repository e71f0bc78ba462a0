//! Nanoseconds a reading to encode (columns to `Envelope`) and to decode (`Envelope` to readings), at about 1,000 readings
//! a batch, per kind of signal. The bar is 300 each.
//!
//!     cargo bench -p tributary-proto
//!
//! Plain, without a harness: the median of some rounds on this machine, to be read, not to fail a build.

use std::hint::black_box;
use std::time::Instant;

use tributary_proto::catalog::Catalog;
use tributary_proto::decode;
use tributary_proto::encode::{Encoder, Header, Values, envelope};
use tributary_proto::pb::{self, point::Type};

const ROWS: usize = 100;
const POINTS: usize = 10;
const ROUNDS: usize = 200;

enum Signal {
    Ints(Vec<i64>),
    Singles(Vec<u32>),
    Doubles(Vec<u64>),
}

fn signals(name: &str, seed: u64) -> Signal {
    let mut state = seed;
    let mut random = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as i64
    };
    let rows = 0..ROWS as i64;
    match name {
        "decimals" => Signal::Doubles(rows.map(|_| ((20_000 + random() % 300) as f64 / 100.0).to_bits()).collect()),
        "long decimals" => Signal::Doubles(rows.map(|_| ((random() % 300_000_000) as f64 / 1e8).to_bits()).collect()),
        "noise" => Signal::Doubles(rows.map(|_| (random() as f64 / 7.0).to_bits()).collect()),
        "singles" => Signal::Singles(rows.map(|_| (random() as f32 / 1e9).to_bits()).collect()),
        "registers" => Signal::Ints(rows.map(|_| random() % 4_096 * 5).collect()),
        "counters" => Signal::Ints(
            rows.scan(1 << 40, |at, _| {
                *at += random() % 50;
                Some(*at)
            })
            .collect(),
        ),
        _ => Signal::Ints(rows.map(|row| row / 40 % 2).collect()),
    }
}

fn main() {
    let points: Vec<u32> = (1..=POINTS as u32).collect();
    println!("{:<16}{:>12}{:>12}{:>12}", "ns a reading", "encode", "decode", "bytes");
    for name in ["decimals", "long decimals", "noise", "singles", "registers", "counters", "states"] {
        let columns: Vec<Signal> = (0..POINTS as u64).map(|point| signals(name, point + 1)).collect();
        let ty = match columns.first() {
            Some(Signal::Singles(_)) => Type::Float32,
            Some(Signal::Doubles(_)) => Type::Float64,
            _ => Type::Int,
        };
        let catalog = Catalog::new(&pb::Content {
            points: points.iter().map(|&id| pb::Point { id, r#type: ty.into(), ..Default::default() }).collect(),
            groups: vec![pb::Group { id: 1, points: points.clone(), ..Default::default() }],
            ..Default::default()
        });
        let stamps: Vec<i64> = (0..ROWS as i64).map(|row| 1_700_000_000_000 + row * 1_000).collect();
        let header = Header {
            epoch: 1,
            seq: 1,
            first_retained_seq: 1,
            lane: pb::Lane::Live,
            catalog_rev: 1,
            readings: (ROWS * POINTS) as u32,
        };
        let mut encoder = Encoder::new();
        let mut encode = || {
            let columns = columns.iter().map(|column| match column {
                Signal::Ints(ints) => encoder.column(&[], Values::Int(ints)),
                Signal::Singles(bits) => encoder.column(&[], Values::Float32(bits)),
                Signal::Doubles(bits) => encoder.column(&[], Values::Float64(bits)),
            });
            let columns = columns.collect();
            let time = Some(encoder.time(&stamps));
            let frame = pb::Frame { group: 1, point: 0, rows: ROWS as u32, time, columns };
            envelope(&header, &encoder.body(&pb::Batch { frames: vec![frame], ..Default::default() }))
        };
        let message = encode();
        let encoding = median(|| drop(black_box(encode())));
        let decoding = median(|| {
            let batch = decode::open(black_box(&message)).and_then(|opened| decode::decode(&opened, &catalog));
            black_box(batch.map(|batch| batch.readings().map(|reading| reading.at_ms).sum::<i64>()).unwrap_or(0));
        });
        let each = (ROWS * POINTS) as f64;
        println!("{name:<16}{:>12.1}{:>12.1}{:>12.3}", encoding / each, decoding / each, message.len() as f64 / each);
    }
}

/// Median nanoseconds of `work`.
fn median(mut work: impl FnMut()) -> f64 {
    let mut times: Vec<u128> = (0..ROUNDS)
        .map(|_| {
            #[expect(clippy::disallowed_methods, reason = "a benchmark measures time")]
            let start = Instant::now();
            work();
            start.elapsed().as_nanos()
        })
        .collect();
    times.sort_unstable();
    times.get(ROUNDS / 2).copied().unwrap_or_default() as f64
}
