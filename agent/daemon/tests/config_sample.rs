//! `sample.toml` is the manual, so it must be true: its commented defaults are the defaults, and no key is left out.

use std::collections::BTreeSet;
use std::fmt::Debug;

use serde::de::DeserializeOwned;
use tributary::config::{AgentConfig, BatchConfig, Occasion, SpoolConfig, UplinkConfig, load_with};
use tributary_protocols::{modbus, mqtt};

/// The sample as the parts of a file.
#[derive(Debug, PartialEq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    agent: AgentConfig,
    uplink: UplinkConfig,
    batch: BatchConfig,
    spool: SpoolConfig,
    bus: Vec<modbus::config::Bus>,
    device: Vec<modbus::config::Device>,
    mqtt: Vec<mqtt::config::Broker>,
}

fn sample() -> String {
    std::fs::read_to_string("sample.toml").expect("beside the package")
}

/// The sample with every `# key = value` made a line of its own, and how many there were.
fn uncommented(sample: &str) -> (String, usize) {
    let mut count = 0;
    let lines: Vec<&str> = sample
        .lines()
        .map(|line| line.strip_prefix("# ").filter(|rest| rest.contains(" = ")).inspect(|_| count += 1).unwrap_or(line))
        .collect();
    (lines.join("\n"), count)
}

#[test]
fn commented_defaults_are_the_defaults() {
    let sample = sample();
    let (full, count) = uncommented(&sample);
    assert!(count >= 40, "only {count} defaults are shown");
    let short: File = toml::from_str(&sample).expect("the sample is a configuration");
    let full: File = toml::from_str(&full).expect("its defaults are, too");
    assert_eq!(short, full);
}

#[test]
fn a_wrong_default_in_the_sample_would_be_seen() {
    let sample = sample();
    let short: File = toml::from_str(&sample).expect("the sample is a configuration");
    let (full, _) = uncommented(&sample.replace("# max_age = \"1s\"", "# max_age = \"2s\""));
    assert_ne!(short, toml::from_str::<File>(&full).expect("still a configuration"));
}

/// The keys that serde knows of `T`: it names them when it refuses another one.
fn keys<T: DeserializeOwned + Debug>() -> BTreeSet<String> {
    let error = toml::from_str::<T>("\"no such key\" = 1").expect_err("unknown keys are refused");
    error.message().split('`').skip(3).step_by(2).map(str::to_owned).collect()
}

#[test]
fn every_key_is_in_the_sample() {
    let sample = sample();
    let mut section = "";
    let mut shown: BTreeSet<(&str, &str)> = BTreeSet::new();
    for line in sample.lines() {
        if line.starts_with('[') {
            section = line.trim_matches(['[', ']']);
        }
        let text = line.trim_start_matches('#').trim_start();
        if let Some((key, _)) = text.split_once(" = ") {
            shown.insert((section, key));
        }
        // Some keys are only spoken of, in a list.
        if line.starts_with("##") {
            shown.extend(text.split([' ', ',', ':', '.', '(', ';']).map(|word| (section, word)));
        }
    }
    let mut absent = Vec::new();
    for (section, keys) in [
        ("agent", keys::<AgentConfig>()),
        ("uplink", keys::<UplinkConfig>()),
        ("batch", keys::<BatchConfig>()),
        ("spool", keys::<SpoolConfig>()),
        ("bus", keys::<modbus::config::Bus>()),
        ("device", keys::<modbus::config::Device>()),
        ("device.point", keys::<modbus::config::PointRow>()),
        ("mqtt", keys::<mqtt::config::Broker>()),
        ("mqtt.point", keys::<mqtt::config::PointRow>()),
    ] {
        assert!(keys.len() >= 2, "{section}: {keys:?}");
        absent.extend(
            keys.into_iter()
                .filter(|key| key != "point" && !shown.contains(&(section, key.as_str())))
                .map(|key| format!("[{section}] {key}")),
        );
    }
    assert!(absent.is_empty(), "the sample does not speak of {absent:?}");
}

#[test]
fn the_sample_is_accepted() {
    let (config, report) = load_with("sample.toml".as_ref(), Occasion::Check, None);
    assert!(report.ok, "{}", report.render());
    let config = config.expect("no errors");
    assert_eq!(config.model.devices.len(), 2);
    assert_eq!(config.model.points.len(), 1, "the MQTT point has a wildcard and appears while running");
    assert_eq!(config.model.requests.len(), 1);
    assert_eq!(config.sha256.len(), 64);
}
