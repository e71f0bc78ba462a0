//! The JSON Schemas that `tributary schema` prints: made from the types that are read, and right by an independent
//! validator. `UPDATE_GOLDEN=1` writes them anew.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use tributary::config::schema::{configuration, profile};
use tributary_tests::process::python;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A schema as it is printed, which must be what the types say.
fn printed(name: &str, made: &schemars::Schema) -> Value {
    let file = root().join("agent/daemon/schema").join(name);
    let text = serde_json::to_string_pretty(made).unwrap() + "\n";
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&file, &text).unwrap();
    }
    let same = fs::read_to_string(&file).unwrap() == text;
    assert!(same, "{name} is not what the types say: UPDATE_GOLDEN=1 writes it anew");
    serde_json::from_str(&text).unwrap()
}

/// What is wrong with each document; empty if nothing is.
fn faults(schema: &Value, documents: &[Value]) -> Vec<String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/validate.py");
    let mut python = Command::new(python());
    let mut python = python.arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let lines: String = std::iter::once(schema).chain(documents).map(|json| format!("{json}\n")).collect();
    python.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    let output = python.wait_with_output().unwrap();
    assert!(output.status.success());
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(said.lines().count(), documents.len(), "{said}");
    said.lines().map(str::to_owned).collect()
}

/// Every TOML file in a folder, with its name.
fn files(folder: &str) -> (Vec<String>, Vec<Value>) {
    let files = fs::read_dir(root().join(folder)).unwrap().map(|file| file.unwrap().path());
    let toml = files.filter(|file| file.extension().is_some_and(|ending| ending == "toml"));
    toml.map(|file| {
        let value = toml::from_str::<Value>(&fs::read_to_string(&file).unwrap()).unwrap();
        (file.file_name().unwrap().to_string_lossy().into_owned(), value)
    })
    .unzip()
}

fn with(document: &Value, table: &str, key: &str, value: Value) -> Value {
    let mut document = document.clone();
    document.pointer_mut(table).unwrap().as_object_mut().unwrap().insert(key.to_owned(), value);
    document
}

#[test]
fn what_the_agent_takes_is_valid_and_what_is_misspelt_is_not() {
    let schema = printed("config.schema.json", &configuration());
    let sample: Value = toml::from_str(&fs::read_to_string(root().join("agent/daemon/sample.toml")).unwrap()).unwrap();
    let (mut names, mut good) = files("examples");
    assert!(good.len() >= 2, "{names:?}");
    names.push("sample.toml".into());
    good.push(sample.clone());
    for (name, fault) in names.iter().zip(faults(&schema, &good)) {
        assert_eq!(fault, "", "{name}");
    }
    let wrong = [
        ("/agent", "site", Value::from(1)),
        ("/agent", "stie", Value::from("a")),
        ("/bus/0", "baud", Value::from("fast")),
        ("/uplink", "ack", Value::from("perhaps")),
        ("/device/0/point/0", "adress", Value::from(1)),
        ("/spool", "commit", Value::from(1)),
    ];
    let documents: Vec<Value> =
        wrong.iter().map(|(table, key, value)| with(&sample, table, key, value.clone())).collect();
    for ((_, key, _), fault) in wrong.iter().zip(faults(&schema, &documents)) {
        assert!(fault.contains(key), "{key}: {fault:?}");
    }
}

#[test]
fn every_profile_that_is_shipped_is_valid() {
    let schema = printed("profile.schema.json", &profile());
    let (names, profiles) = files("examples/profiles");
    assert!(profiles.len() >= 12);
    for (name, fault) in names.iter().zip(faults(&schema, &profiles)) {
        assert_eq!(fault, "", "{name}");
    }
    let broken: Vec<Value> = profiles.iter().map(|one| with(one, "/point/0", "adress", Value::from(1))).collect();
    assert!(faults(&schema, &broken).iter().all(|fault| fault.contains("adress")));
}
