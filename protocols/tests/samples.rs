//! The samples are the manual, so they must be true: their commented defaults are the defaults, and no key is left out.
#![allow(clippy::unwrap_used, reason = "a test that panics fails")]

use std::collections::BTreeSet;
use std::fmt::Debug;

use serde::de::DeserializeOwned;
use tributary_protocols::modbus::config as modbus;
use tributary_protocols::mqtt::config as mqtt;

const MODBUS: &str = include_str!("../src/modbus/sample.toml");
const MQTT: &str = include_str!("../src/mqtt/sample.toml");

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Modbus {
    bus: Vec<modbus::Bus>,
    device: Vec<modbus::Device>,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Mqtt {
    mqtt: Vec<mqtt::Broker>,
}

/// The sample with its defaults made lines of their own.
fn spelled_out(sample: &str) -> String {
    let default = |line: &str| line.strip_prefix("# ").map_or(line.to_owned(), str::to_owned);
    sample.lines().map(default).collect::<Vec<_>>().join("\n")
}

fn plant(sample: &str) -> (Vec<modbus::BusSpec>, Vec<modbus::DeviceSpec>) {
    let file: Modbus = toml::from_str(sample).unwrap();
    modbus::resolve_plant(&file.bus, &file.device, |_| None).unwrap()
}

fn broker(sample: &str) -> mqtt::BrokerSpec {
    let file: Mqtt = toml::from_str(sample).unwrap();
    mqtt::resolve(&file.mqtt[0], "mqtt[0]", "gw-017").unwrap()
}

#[test]
fn commented_defaults_are_the_defaults() {
    // An order on a value of one register would be refused, so the sample's point has two.
    assert_eq!(plant(MODBUS), plant(&spelled_out(MODBUS)));
    assert_eq!(broker(MQTT), broker(&spelled_out(MQTT)));
}

#[test]
fn a_wrong_default_would_be_seen() {
    for (right, wrong) in [
        ("# timeout = \"1s\"", "# timeout = \"2s\""),
        ("max_gap = 8", "max_gap = 9"),
        ("# scale = 1.0", "# scale = 2.0"),
    ] {
        assert!(MODBUS.contains(right));
        assert_ne!(plant(MODBUS), plant(&spelled_out(&MODBUS.replacen(right, wrong, 1))), "{wrong}");
    }
}

/// The keys that serde knows of `T`: it names them when it refuses another one.
fn keys<T: DeserializeOwned + Debug>() -> BTreeSet<String> {
    let error = toml::from_str::<T>("\"no such key\" = 1").unwrap_err();
    error.message().split('`').skip(3).step_by(2).map(str::to_owned).collect()
}

#[test]
fn every_key_is_explained() {
    let said = |sample: &str| -> BTreeSet<String> {
        sample.split(|letter: char| !letter.is_alphanumeric() && letter != '_').map(str::to_owned).collect()
    };
    let modbus = [
        keys::<modbus::Bus>(),
        keys::<modbus::Device>(),
        keys::<modbus::PointRow>(),
        keys::<modbus::Profile>(),
        keys::<modbus::Limits>(),
    ];
    for keys in modbus {
        assert!(keys.len() > 3);
        assert_eq!(keys.difference(&said(MODBUS)).collect::<Vec<_>>(), Vec::<&String>::new());
    }
    for keys in [keys::<mqtt::Broker>(), keys::<mqtt::PointRow>()] {
        assert!(keys.len() > 3);
        assert_eq!(keys.difference(&said(MQTT)).collect::<Vec<_>>(), Vec::<&String>::new());
    }
}
