//! The JSON Schemas that `tributary schema` prints: made from the types that are read, and right by an independent
//! validator. `UPDATE_GOLDEN=1` writes them anew.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tributary::config::schema::{configuration, profile};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn printed(name: &str, made: &schemars::Schema) -> Value {
    let file = root().join("agent/daemon/schema").join(name);
    let text = serde_json::to_string_pretty(made).unwrap() + "\n";
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&file, &text).unwrap();
    }
    assert!(
        fs::read_to_string(&file).unwrap() == text,
        "{name} is not what the types say: UPDATE_GOLDEN=1 writes it anew"
    );
    serde_json::from_str(&text).unwrap()
}

/// Every TOML file below these folders, with its name.
fn files(folders: &[&str]) -> Vec<(String, Value)> {
    let mut found = Vec::new();
    for folder in folders {
        for file in fs::read_dir(root().join(folder)).unwrap().map(|file| file.unwrap().path()) {
            if file.extension().is_some_and(|ending| ending == "toml") {
                // One case is no UTF-8 on purpose.
                let text = String::from_utf8_lossy(&fs::read(&file).unwrap()).into_owned();
                let name = file.file_name().unwrap().to_string_lossy().into_owned();
                found.extend(toml::from_str::<Value>(&text).map(|value| (name, value)));
            }
        }
    }
    found
}

#[test]
fn what_the_agent_takes_is_valid_and_what_is_misspelt_is_not() {
    let schema = printed("config.schema.json", &configuration());
    let validator = jsonschema::validator_for(&schema).unwrap();
    let sample: Value = toml::from_str(&fs::read_to_string(root().join("agent/daemon/sample.toml")).unwrap()).unwrap();
    let mut good = files(&["examples"]);
    assert!(good.len() >= 2, "{}", good.len());
    good.push(("sample.toml".into(), sample.clone()));
    for (name, value) in good {
        let faults: Vec<String> =
            validator.iter_errors(&value).map(|error| format!("{}: {error}", error.instance_path())).collect();
        assert!(faults.is_empty(), "{name}: {faults:?}");
    }
    let misspelt = files(&["agent/daemon/tests/config/cases"]);
    let (_, misspelt) = misspelt.iter().find(|(name, _)| name == "key-misspelt.toml").unwrap();
    assert!(!validator.is_valid(misspelt));
    for (pointer, wrong) in
        [("/agent/site", Value::from(1)), ("/bus/0/baud", Value::from("fast")), ("/uplink/ack", Value::from("perhaps"))]
    {
        let mut value = sample.clone();
        let (table, key) = pointer.rsplit_once('/').unwrap();
        let table = value.pointer_mut(table).unwrap_or_else(|| panic!("{pointer}"));
        table.as_object_mut().unwrap().insert(key.to_owned(), wrong);
        assert!(!validator.is_valid(&value), "{pointer}");
    }
}

#[test]
fn every_profile_that_is_shipped_is_valid() {
    let schema = printed("profile.schema.json", &profile());
    let validator = jsonschema::validator_for(&schema).unwrap();
    let profiles = files(&["examples/profiles"]);
    assert!(profiles.len() >= 12);
    for (name, value) in profiles {
        let faults: Vec<String> =
            validator.iter_errors(&value).map(|error| format!("{}: {error}", error.instance_path())).collect();
        assert!(faults.is_empty(), "{name}: {faults:?}");
        let mut broken = value.clone();
        broken.pointer_mut("/point/0").unwrap().as_object_mut().unwrap().insert("adress".into(), Value::from(1));
        assert!(!validator.is_valid(&broken), "{name} with an unknown key");
    }
}
