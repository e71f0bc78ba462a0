//! The golden vectors of the contract, through the store and back out of the tables; the invalid ones into quarantine.

#![allow(clippy::unwrap_used, reason = "tests")]

mod databases;
mod plant;

use std::collections::BTreeMap;

use bytes::Bytes;
use databases::Database;
use plant::{EPOCH, GOLDEN, agent, golden, renamed};
use serde_json::Value;
use tributary_receiver::intake::Intake;
use tributary_receiver::store::Group;
use tributary_receiver::topic::Kind;

fn names(directory: &str) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(directory)
        .unwrap()
        .filter_map(|file| Some(file.unwrap().file_name().to_str()?.strip_suffix(".json")?.to_owned()))
        .filter(|name| !name.starts_with("plant"))
        .collect();
    names.sort();
    names
}

fn json(file: &str) -> Value {
    serde_json::from_slice(&golden(file)).unwrap()
}

/// What the tables must hold of one reading: at_ms, status, value_num as text of its bits, value_int, value_text. Said here
/// on its own, from the JSON: only point 1 of the golden catalogue has a scale, and it divides by ten.
fn wanted(reading: &Value, statuses: &BTreeMap<&str, i64>) -> String {
    let (point, at_ms) = (reading["point"].as_i64().unwrap(), reading["at_ms"].as_i64().unwrap());
    let status = statuses[reading["status"].as_str().unwrap()];
    let (num, int, text) = match (reading["type"].as_str().unwrap_or(""), &reading["value"]) {
        (_, Value::Null) => (None, None, None),
        ("INT" | "ENUM", value) => {
            let int: i64 = value.as_str().unwrap().parse().unwrap();
            (Some(if point == 1 { int as f64 / 10.0 } else { int as f64 }), Some(int), None)
        }
        ("UINT64", value) => {
            let int: u64 = value.as_str().unwrap().parse().unwrap();
            (Some(int as f64), i64::try_from(int).ok(), None)
        }
        ("BOOL", value) => {
            let int = i64::from(value.as_bool().unwrap());
            (Some(int as f64), Some(int), None)
        }
        ("FLOAT32", value) => {
            let bits = u32::from_str_radix(value.as_str().unwrap().trim_start_matches("0x"), 16).unwrap();
            (Some(f64::from(f32::from_bits(bits))), None, None)
        }
        ("FLOAT64", value) => {
            let bits = u64::from_str_radix(value.as_str().unwrap().trim_start_matches("0x"), 16).unwrap();
            (Some(f64::from_bits(bits)), None, None)
        }
        ("STRING", value) => (None, None, Some(value.as_str().unwrap().to_owned())),
        (ty, value) => panic!("{ty} {value}"),
    };
    let shown = |value: Option<String>| value.unwrap_or_else(|| "-".into());
    // "+ bias" with bias 0 turns −0.0 into 0.0; SQLite knows no NaN.
    let num = num.filter(|num| !num.is_nan()).map(|num| (num + 0.0).to_string());
    format!("{at_ms}|{status}|{}|{}|{}", shown(num), shown(int.map(|int| int.to_string())), shown(text))
}

#[tokio::test]
async fn every_vector_comes_out_of_sqlite_as_it_should() {
    let codes = [
        ("GOOD", 0),
        ("UNCERTAIN", 1),
        ("STALE", 2),
        ("SUBSTITUTED", 3),
        ("OUT_OF_RANGE", 4),
        ("PARTIAL", 5),
        ("COMM_FAIL", 16),
        ("DEVICE_ERROR", 17),
        ("OUT_OF_SERVICE", 18),
        ("NOT_CONFIGURED", 19),
        ("TYPE_ERROR", 20),
    ];
    let statuses = BTreeMap::from(codes);
    for message in ["plant.catalog-message.bin", "plant-rev3.catalog-message.bin"] {
        let database = Database::sqlite();
        let (mut intake, mut store, key) = (Intake::new(), database.open(), agent("gw-1"));
        let mut arrivals = intake.take(&key, Kind::Catalog, &golden(message).into());
        let vectors = names(GOLDEN);
        assert!(vectors.len() >= 14, "{vectors:?}");
        for (seq, name) in (1..).zip(&vectors) {
            let message = renamed(&golden(&format!("{name}.bin")), EPOCH, seq, 1);
            arrivals.extend(intake.take(&key, Kind::Data, &message));
        }
        let acks = store.commit(&Group::from([(key, arrivals)]), 0).await.unwrap();
        assert_eq!((acks[0].1.contiguous_seq, acks[0].1.refused.len()), (vectors.len() as u64, 0));
        for (seq, name) in (1..).zip(&vectors) {
            let rows = database
                .rows(&format!(
                    "SELECT at_ms, status, value_num, value_int, value_text FROM reading WHERE seq = {seq} ORDER BY idx"
                ))
                .await;
            let vector = json(&format!("{name}.json"));
            let readings = vector["readings"].as_array().unwrap();
            let wanted: Vec<String> = readings.iter().map(|reading| wanted(reading, &statuses)).collect();
            assert_eq!(rows, wanted, "{name}");
        }
    }
}

#[tokio::test]
async fn every_invalid_vector_is_refused_or_left_at_the_edge() {
    let database = Database::sqlite();
    let (mut intake, mut store, key) = (Intake::new(), database.open(), agent("gw-1"));
    let catalog = intake.take(&key, Kind::Catalog, &golden("plant.catalog-message.bin").into());
    store.commit(&Group::from([(key.clone(), catalog)]), 0).await.unwrap();
    let mut bad = 0;
    let vectors = names(&format!("{GOLDEN}/invalid"));
    assert!(vectors.len() > 40);
    for name in vectors {
        let arrivals = intake.take(&key, Kind::Data, &Bytes::from(golden(&format!("invalid/{name}.bin"))));
        let acks = store.commit(&Group::from([(key.clone(), arrivals)]), 0).await.unwrap();
        let verdict = json(&format!("invalid/{name}.json"))["verdict"].as_str().unwrap().to_owned();
        if let Some((_, ack)) = acks.first() {
            assert_eq!(ack.verdict().as_str_name(), verdict, "{name}");
        }
        bad += u32::from(verdict == "BAD_PAYLOAD");
    }
    assert_eq!(database.one("SELECT count(*) FROM quarantine WHERE reason = 'bad_payload'").await, bad.to_string());
    assert_eq!(database.one("SELECT count(*) FROM reading").await, "0");
}
