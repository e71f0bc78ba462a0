//! The golden vectors of the contract: what decodes must decode as its JSON states, what is invalid must be refused with
//! the stated verdict, and neither may depend on which revision of the catalogue is at hand.

#![allow(clippy::unwrap_used, reason = "a test that panics fails, which is what it is for")]

use std::fs;
use std::path::{Path, PathBuf};

use prost::Message;
use serde_json::{Value as Json, json};
use tributary_proto::catalog::{self, Catalog, Schema};
use tributary_proto::decode::{self, Batch, Refusal, Value};
use tributary_proto::pb;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden")
}

fn read(path: impl AsRef<Path>) -> Vec<u8> {
    fs::read(golden().join(&path)).unwrap_or_else(|error| panic!("{}: {error}", path.as_ref().display()))
}

fn read_json(path: impl AsRef<Path>) -> Json {
    serde_json::from_slice(&read(path)).unwrap()
}

/// Names of the vectors in `folder`, without extension.
fn names(folder: &str) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(golden().join(folder))
        .unwrap()
        .filter_map(|entry| Some(entry.unwrap().file_name().into_string().unwrap().strip_suffix(".bin")?.to_owned()))
        .filter(|name| !name.contains(".catalog"))
        .collect();
    names.sort();
    assert!(!names.is_empty());
    names
}

/// Revision 1 from its content, revision 1 as published, revision 3 as published.
fn catalogs() -> [Catalog; 3] {
    let content = pb::Content::decode(read("plant.catalog.bin").as_slice()).unwrap();
    let published = |name| {
        let message = pb::Catalog::decode(read(name).as_slice()).unwrap();
        Catalog::from_message(&message).unwrap()
    };
    [Catalog::new(&content), published("plant.catalog-message.bin"), published("plant-rev3.catalog-message.bin")]
}

fn decoded(bytes: &[u8], schema: &impl Schema) -> Result<(pb::Envelope, Batch), Refusal> {
    let envelope = decode::open(bytes)?;
    let batch = decode::decode(&envelope, schema)?;
    Ok((envelope, batch))
}

/// The name of an enum's number, or the number where it has none.
fn named<E: TryFrom<i32>>(number: i32, name: impl Fn(&E) -> &'static str) -> Json {
    E::try_from(number).map_or(json!(number), |known| json!(name(&known)))
}

fn value_json(value: Value<'_>) -> Json {
    match value {
        Value::Bool(flag) => json!(flag),
        Value::Int(int) => json!(int.to_string()),
        Value::Uint64(int) => json!(int.to_string()),
        Value::Float32(bits) => json!(format!("{bits:#010x}")),
        Value::Float64(bits) => json!(format!("{bits:#018x}")),
        Value::Text(text) => json!(text),
    }
}

fn event_json(event: &pb::Event) -> Json {
    use pb::event::{State, Value};
    let mut json = json!({
        "point": event.point, "at_ms": event.at_ms, "code": event.code, "state": named(event.state, State::as_str_name),
        "severity": event.severity, "text": event.text, "occurrence": event.occurrence.to_string(),
    });
    let value = event.value.as_ref().map(|value| match value {
        Value::Number(number) => json!({ "number": format!("{:#018x}", number.to_bits()) }),
        Value::Integer(integer) => json!({ "integer": integer.to_string() }),
        Value::Flag(flag) => json!({ "flag": flag }),
        Value::String(string) => json!({ "string": string }),
    });
    if let Some(value) = value {
        json["value"] = value;
    }
    json
}

fn loss_json(loss: &pb::Loss) -> Json {
    json!({
        "reason": named(loss.reason, pb::loss::Reason::as_str_name), "first_seq": loss.first_seq,
        "last_seq": loss.last_seq, "group": loss.group, "point": loss.point, "from_ms": loss.from_ms,
        "to_ms": loss.to_ms, "readings": loss.readings, "epoch": loss.epoch.to_string(),
    })
}

/// What a decoder made of a vector, in the form of its JSON.
fn told(envelope: &pb::Envelope, batch: &Batch, schema: &impl Schema) -> Json {
    let readings: Vec<Json> = batch
        .readings()
        .map(|reading| {
            let ty = schema.point_type(reading.point).unwrap();
            let mut json = json!({
                "point": reading.point, "at_ms": reading.at_ms,
                "status": named(i32::from(reading.status), pb::Status::as_str_name),
                "type": named(ty, pb::point::Type::as_str_name),
            });
            if let Some(value) = reading.value {
                json["value"] = value_json(value);
            }
            json
        })
        .collect();
    let body = match &envelope.body {
        Some(pb::envelope::Body::Plain(_)) => "plain",
        Some(pb::envelope::Body::PlainZstd(_)) => "plain_zstd",
        _ => "?",
    };
    json!({
        "envelope": {
            "epoch": envelope.epoch.to_string(), "seq": envelope.seq,
            "first_retained_seq": envelope.first_retained_seq, "lane": named(envelope.lane, pb::Lane::as_str_name),
            "schema": envelope.schema, "catalog_rev": envelope.catalog_rev, "readings": envelope.readings,
            "body_crc32c": format!("{:#010x}", envelope.body_crc32c), "agent_id": envelope.agent_id, "body": body,
        },
        "time_quality": named(batch.time_quality, pb::TimeQuality::as_str_name),
        "time_error_ms": batch.time_error_ms,
        "losses": batch.losses.iter().map(loss_json).collect::<Vec<_>>(),
        "events": batch.events.iter().map(event_json).collect::<Vec<_>>(),
        "readings": readings,
    })
}

#[test]
fn every_vector_decodes_as_stated() {
    for name in names("") {
        let mut stated = read_json(format!("{name}.json"));
        for about in ["name", "about", "catalog"] {
            stated.as_object_mut().unwrap().remove(about);
        }
        for (revision, catalog) in catalogs().iter().enumerate() {
            let (envelope, batch) = decoded(&read(format!("{name}.bin")), catalog)
                .unwrap_or_else(|refusal| panic!("{name} refused: {refusal}"));
            let told = told(&envelope, &batch, catalog);
            for (key, told) in told.as_object().unwrap() {
                assert_eq!(told, &stated[key], "{name}, catalogue {revision}: {key}");
            }
            assert_eq!(told, stated, "{name}");
        }
    }
}

#[test]
fn every_invalid_vector_is_refused_for_the_stated_rule() {
    for name in names("invalid") {
        let stated = read_json(format!("invalid/{name}.json"));
        for catalog in &catalogs() {
            let refusal = decoded(&read(format!("invalid/{name}.bin")), catalog).expect_err(&name);
            assert_eq!(refusal.verdict().as_str_name(), stated["verdict"], "{name}: {refusal}");
            let rule = match refusal.rule() {
                decode::Rule::Number(number) => json!(number),
                decode::Rule::Types => json!("table in 5"),
            };
            assert_eq!(rule, stated["rule"], "{name}: {refusal}");
        }
    }
}

#[test]
fn the_published_catalogue_is_its_content() {
    let about = read_json("plant.catalog.json");
    let message = pb::Catalog::decode(read("plant.catalog-message.bin").as_slice()).unwrap();
    let bytes = catalog::content_bytes(&message).unwrap();
    assert_eq!(bytes, read("plant.catalog.bin"));
    assert_eq!(json!(message.rev), about["rev"]);
    assert_eq!(json!(message.epoch.to_string()), about["epoch"]);
    let hex: String = message.content_sha256.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(json!(hex), about["content_sha256"]);
    // Ours of the same content reads back the same.
    let ours = catalog::catalog_message(message.epoch, 1, &bytes, [0; 32]);
    assert_eq!(catalog::content_bytes(&ours).unwrap(), bytes);
}
