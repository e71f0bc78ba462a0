//! Whatever goes into the encoder comes out of the decoder, bit for bit; and whatever comes to the decoder, it does not
//! panic. Random columns are made of the patterns that tempt a coding: constants, runs, few levels, steps, counters,
//! decimals, every class of float, and plain noise.

#![allow(clippy::unwrap_used, reason = "a test that panics fails, which is what it is for")]

use std::fs;
use std::path::Path;

use proptest::collection::vec;
use proptest::prelude::*;
use tributary_proto::catalog::Catalog;
use tributary_proto::decode::{self, Batch};
use tributary_proto::encode::{Encoder, Header, Values, envelope};
use tributary_proto::pb::{self, point::Type};

/// What one row of a point holds: a status, and the bits or text index if it has a value.
type Row = (u8, u64);

const TEXTS: [&str; 6] = ["", "A-12", "Grün ✓", "A-12", "unused", "x"];

fn known_statuses() -> impl Strategy<Value = u8> {
    prop_oneof![8 => Just(0_u8), 1 => 1..6_u8, 1 => 16..21_u8]
}

/// Integers as registers have them, and as they do not.
fn integers(rows: usize) -> impl Strategy<Value = Vec<i64>> {
    let edge = prop_oneof![Just(i64::MIN), Just(i64::MAX), Just(0), Just(-1), Just(1), any::<i64>()];
    let counter = (any::<i64>(), vec(0..1_000_i64, rows)).prop_map(|(from, steps)| {
        steps
            .into_iter()
            .scan(from, |at, step| {
                *at = at.wrapping_add(step);
                Some(*at)
            })
            .collect()
    });
    let stepped = (any::<i32>(), 1..5_000_i64, vec(-300..300_i64, rows))
        .prop_map(|(offset, step, values)| values.into_iter().map(|value| i64::from(offset) + step * value).collect());
    let levels = (vec(any::<i64>(), 1..6), vec(any::<prop::sample::Index>(), rows))
        .prop_map(|(levels, picks)| picks.iter().map(|pick| levels[pick.index(levels.len())]).collect());
    let ramp = (any::<i64>(), any::<i32>(), vec(-2..3_i64, rows)).prop_map(|(from, slope, noise)| {
        let value = |(i, noise): (i64, i64)| from.wrapping_add(i64::from(slope).wrapping_mul(i)).wrapping_add(noise);
        (0..).zip(noise).map(value).collect()
    });
    prop_oneof![
        edge.prop_map(move |value| vec![value; rows]),
        vec(any::<i64>(), rows),
        vec(prop_oneof![Just(i64::MIN), Just(i64::MAX), Just(0), Just(-1)], rows),
        vec(-70..70_i64, rows),
        counter,
        stepped,
        levels,
        ramp,
        held(rows),
    ]
}

/// Values that stand for some rows each.
fn held(rows: usize) -> impl Strategy<Value = Vec<i64>> {
    vec((any::<i64>(), 1..20_usize), rows.max(1)).prop_map(move |runs| {
        runs.into_iter().flat_map(|(value, run)| std::iter::repeat_n(value, run)).take(rows).collect()
    })
}

fn special64() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(0),
        Just(1 << 63),
        Just(f64::INFINITY.to_bits()),
        Just(f64::NEG_INFINITY.to_bits()),
        Just(0x7FF0_0000_0000_0001), // signalling NaN
        Just(0xFFF8_0000_0000_BEEF),
        Just(u64::MAX),
        Just(1), // least subnormal
        Just(0x800F_FFFF_FFFF_FFFF),
        Just(f64::MAX.to_bits()),
        any::<u64>(),
    ]
}

fn doubles(rows: usize) -> impl Strategy<Value = Vec<u64>> {
    let decimal = (0..17_i32, vec(-30_000..30_000_i64, rows), any::<i32>()).prop_map(|(digits, ints, base)| {
        let value = |int: i64| ((i64::from(base) + int) as f64 / 10_f64.powi(digits)).to_bits();
        ints.into_iter().map(value).collect::<Vec<_>>()
    });
    let large = vec((0..18_i32, any::<i64>()), rows).prop_map(|values| {
        values.into_iter().map(|(digits, int)| ((int >> 8) as f64 / 10_f64.powi(digits)).to_bits()).collect::<Vec<_>>()
    });
    let singles = vec(any::<f32>(), rows)
        .prop_map(|floats| floats.into_iter().map(|float| f64::from(float).to_bits()).collect::<Vec<_>>());
    let some =
        (decimal.clone(), vec(prop::option::weighted(0.1, special64()), rows)).prop_map(|(decimals, specials)| {
            decimals.into_iter().zip(specials).map(|(decimal, special)| special.unwrap_or(decimal)).collect::<Vec<_>>()
        });
    prop_oneof![decimal, large, singles, some, vec(special64(), rows), vec(any::<u64>(), rows)]
}

fn singles(rows: usize) -> impl Strategy<Value = Vec<u64>> {
    let decimal = (0..12_i32, vec(-30_000..30_000_i64, rows)).prop_map(|(digits, ints)| {
        ints.into_iter().map(|int| ((int as f64 / 10_f64.powi(digits)) as f32).to_bits()).collect::<Vec<_>>()
    });
    let special = prop_oneof![
        Just(0_u32),
        Just(1 << 31),
        Just(f32::INFINITY.to_bits()),
        Just(0x7F80_0001),
        Just(u32::MAX),
        Just(1),
        any::<u32>()
    ];
    let some =
        (decimal.clone(), vec(prop::option::weighted(0.1, special.clone()), rows)).prop_map(|(all, specials)| {
            all.into_iter().zip(specials).map(|(decimal, special)| special.unwrap_or(decimal)).collect::<Vec<_>>()
        });
    prop_oneof![decimal, some, vec(special, rows), vec(any::<u32>(), rows)]
        .prop_map(|bits| bits.into_iter().map(u64::from).collect())
}

fn bits(ty: Type, rows: usize) -> BoxedStrategy<Vec<u64>> {
    match ty {
        Type::Bool => vec(0..2_u64, rows).boxed(),
        Type::Float32 => singles(rows).boxed(),
        Type::Float64 => doubles(rows).boxed(),
        Type::String => vec(0..TEXTS.len() as u64, rows).boxed(),
        _ => integers(rows).prop_map(|ints| ints.into_iter().map(i64::cast_unsigned).collect()).boxed(),
    }
}

fn point(rows: usize) -> impl Strategy<Value = (Type, Vec<Row>)> {
    let statuses = prop_oneof![
        2 => Just(vec![0; rows]),
        3 => vec(known_statuses(), rows),
        1 => Just(vec![16; rows]),
    ];
    let types = [Type::Bool, Type::Int, Type::Uint64, Type::Float32, Type::Float64, Type::String, Type::Enum];
    (prop::sample::select(types.to_vec()), statuses).prop_flat_map(move |(ty, statuses)| {
        bits(ty, rows).prop_map(move |bits| (ty, statuses.iter().copied().zip(bits).collect()))
    })
}

/// A frame: stamps and points.
fn frame() -> impl Strategy<Value = (Vec<i64>, Vec<(Type, Vec<Row>)>)> {
    (prop_oneof![1..4_usize, 1..200_usize]).prop_flat_map(|rows| (integers(rows), vec(point(rows), 1..4)))
}

fn encode_column(encoder: &mut Encoder, ty: Type, rows: &[Row]) -> pb::Column {
    let all_good = rows.iter().all(|row| row.0 == 0);
    let statuses: Vec<u8> = if all_good { Vec::new() } else { rows.iter().map(|row| row.0).collect() };
    let bits: Vec<u64> = rows.iter().filter(|row| row.0 < 16).map(|row| row.1).collect();
    let ints: Vec<i64> = bits.iter().map(|bits| bits.cast_signed()).collect();
    match ty {
        Type::Float32 => {
            encoder.column(&statuses, Values::Float32(&bits.iter().map(|&bits| bits as u32).collect::<Vec<_>>()))
        }
        Type::Float64 => encoder.column(&statuses, Values::Float64(&bits)),
        Type::String => {
            let texts = TEXTS.map(str::to_owned);
            encoder.column(&statuses, Values::Text { indices: &ints, texts: &texts })
        }
        _ => encoder.column(&statuses, Values::Int(&ints)),
    }
}

fn value_bits(value: decode::Value<'_>) -> u64 {
    match value {
        decode::Value::Bool(flag) => u64::from(flag),
        decode::Value::Int(int) => int.cast_unsigned(),
        decode::Value::Uint64(bits) | decode::Value::Float64(bits) => bits,
        decode::Value::Float32(bits) => u64::from(bits),
        decode::Value::Text(text) => TEXTS.iter().position(|other| *other == text).unwrap() as u64,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn what_goes_in_comes_out(frames in vec(frame(), 0..4)) {
        let mut encoder = Encoder::new();
        let mut content = pb::Content::default();
        let mut batch = pb::Batch::default();
        let mut expected = Vec::new();
        for (stamps, points) in &frames {
            let mut columns = Vec::new();
            let mut ids = Vec::new();
            for (ty, rows) in points {
                let id = content.points.len() as u32 + 1;
                ids.push(id);
                content.points.push(pb::Point { id, r#type: (*ty).into(), ..Default::default() });
                columns.push(encode_column(&mut encoder, *ty, rows));
                for (&at, &(status, bits)) in stamps.iter().zip(rows) {
                    // Two texts of the table are the same.
                    let bits = if *ty == Type::String && bits == 3 { 1 } else { bits };
                    expected.push((id, at, status, (status < 16).then_some(bits)));
                }
            }
            let (group, point) = if let &[point] = ids.as_slice() { (0, point) } else {
                content.groups.push(pb::Group { id: ids[0], points: ids.clone(), ..Default::default() });
                (ids[0], 0)
            };
            let time = Some(encoder.time(stamps));
            batch.frames.push(pb::Frame { group, point, rows: stamps.len() as u32, time, columns });
        }
        let header = Header {
            epoch: 7, seq: 3, first_retained_seq: 2, lane: pb::Lane::Backlog, catalog_rev: 5, readings: expected.len() as u32,
        };
        let body = encoder.body(&batch);
        prop_assert_eq!(&body, &Encoder::new().body(&batch), "the same batch, the same bytes");
        let opened = decode::open(&envelope(&header, &body)).unwrap();
        prop_assert_eq!((opened.epoch, opened.seq, opened.first_retained_seq), (7, 3, 2));
        prop_assert_eq!((opened.lane(), opened.schema, opened.catalog_rev), (pb::Lane::Backlog, 1, 5));
        let decoded = decode::decode(&opened, &Catalog::new(&content)).unwrap();
        let readings: Vec<_> = decoded
            .readings()
            .map(|reading| (reading.point, reading.at_ms, reading.status, reading.value.map(value_bits)))
            .collect();
        prop_assert_eq!(readings, expected);
        prop_assert!(decoded.readings().map(|reading| reading.index).eq(0..header.readings));
    }
}

// ------------------------------------------------------------------------------------------- hostile bytes

fn plant() -> Catalog {
    use prost::Message;
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/plant.catalog.bin");
    Catalog::new(&pb::Content::decode(fs::read(path).unwrap().as_slice()).unwrap())
}

fn vectors() -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden");
    let mut paths: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths
        .retain(|path| path.extension().is_some_and(|ext| ext == "bin") && !path.to_string_lossy().contains("catalog"));
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

/// Decodes a body with a header that fits it, so that the mutation reaches the inner rules.
fn decode_body(body: Vec<u8>, readings: u32, zstd: bool, catalog: &Catalog) -> Result<Batch, decode::Refusal> {
    let body_crc32c = tributary_proto::crc32c(&body);
    let body = if zstd { pb::envelope::Body::PlainZstd(body) } else { pb::envelope::Body::Plain(body) };
    let header = pb::Envelope { epoch: 1, seq: 1, first_retained_seq: 1, schema: 1, readings, ..Default::default() };
    decode::decode(&pb::Envelope { body_crc32c, body: Some(body), ..header }, catalog)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_do_not_panic(bytes in vec(any::<u8>(), 0..200), readings in 0..50_u32, zstd in any::<bool>()) {
        if let Ok(envelope) = decode::open(&bytes) {
            let _ = decode::decode(&envelope, &plant());
        }
        let _ = decode_body(bytes, readings, zstd, &plant());
    }

    #[test]
    fn mutated_vectors_do_not_panic(
        pick in any::<prop::sample::Index>(),
        edits in vec((any::<prop::sample::Index>(), any::<u8>(), 0..3_u8), 1..6),
        readings in prop::option::of(0..100_u32),
    ) {
        let vectors = vectors();
        let bytes = &vectors[pick.index(vectors.len())];
        let edit = |bytes: &mut Vec<u8>| {
            for (at, byte, kind) in &edits {
                let at = at.index(bytes.len().max(1));
                match kind {
                    0 if at < bytes.len() => bytes[at] = *byte,
                    1 if at < bytes.len() => { bytes.remove(at); }
                    _ => bytes.insert(at.min(bytes.len()), *byte),
                }
            }
        };
        let mut whole = bytes.clone();
        edit(&mut whole);
        if let Ok(envelope) = decode::open(&whole) {
            let _ = decode::decode(&envelope, &plant());
        }
        let envelope = decode::open(bytes).unwrap();
        let (mut body, zstd) = match envelope.body.unwrap() {
            pb::envelope::Body::Plain(body) => (body, false),
            pb::envelope::Body::PlainZstd(body) => (body, true),
            pb::envelope::Body::Dense(_) => unreachable!(),
        };
        edit(&mut body);
        if let Ok(batch) = decode_body(body, readings.unwrap_or(envelope.readings), zstd, &plant()) {
            // What is accepted is whole.
            prop_assert_eq!(batch.readings().count() as u32, readings.unwrap_or(envelope.readings));
            prop_assert!(batch.readings().all(|reading| (reading.status < 16) == reading.value.is_some()));
        }
    }
}
