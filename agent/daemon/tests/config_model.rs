//! What a good configuration becomes: the pipeline's model, and the drivers' lists with the same numbers.

use std::path::Path;

use sha2::{Digest, Sha256};
use tributary::config::{Config, Occasion, load_with};
use tributary_core::model::{Deadband, PointKey, Statistic};
use tributary_protocols::value::PointType;

const PLANT: &str = r#"
[agent]
site = "plant-1"
id = "gw-017"
state_dir = "state"
runtime_dir = "/run/tributary"
profiles = ["profiles"]
[uplink]
url = "mqtt://127.0.0.1:1884"
[[bus]]
name = "a"
tcp = "192.0.2.10:502"
[[bus]]
name = "b"
tcp = "[2001:db8::1]:503"
[[device]]
name = "first"
bus = "b"
unit_id = 7
profile = "meter"
[[device]]
name = "off"
bus = "a"
unit_id = 1
addressing = "zero"
enabled = false
[[device.point]]
name = "x"
table = "coil"
address = 3
type = "bool"
[[device]]
name = "second"
bus = "b"
unit_id = 8
path = "acme/plant-1/hall/second"
addressing = "zero"
period = "250ms"
[[device.point]]
name = "far"
table = "holding"
address = 500
type = "i16"
scale = 0.1
bad = [0x8000]
deadband = { percent = 2.0 }
heartbeat = "60s"
window = { every = "10s", stats = ["max", "mean", "min"] }
[[device.point]]
name = "near"
table = "holding"
address = 0
type = "f32"
[[mqtt]]
name = "cell"
url = "mqtt://127.0.0.1"
[[mqtt.point]]
name = "t/{1}"
topic = "s/+/t"
type = "f64"
[[mqtt.point]]
name = "door"
topic = "s/door"
type = "bool"
"#;

const PROFILE: &str = r#"
profile = "meter"
version = 1
addressing = "modicon5"
vendor = "Acme"
model = "PM3"
[[point]]
name = "u"
address = 40001
type = "f32"
unit = "V"
"#;

fn load(dir: &Path) -> Config {
    let (config, report) = load_with(&dir.join("agent.toml"), Occasion::Check, None);
    config.unwrap_or_else(|| panic!("{}", report.render()))
}

fn plant() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::create_dir(dir.path().join("profiles")).expect("made");
    std::fs::write(dir.path().join("agent.toml"), PLANT).expect("written");
    std::fs::write(dir.path().join("profiles/meter.toml"), PROFILE).expect("written");
    dir
}

#[test]
fn devices_points_and_requests_are_numbered_alike_everywhere() {
    let dir = plant();
    let config = load(dir.path());
    let model = &config.model;
    let names: Vec<_> = model.devices.iter().map(|device| (device.name.as_str(), device.endpoint.as_str())).collect();
    assert_eq!(
        names,
        [
            ("first", "[2001:db8::1]:503#7"),
            ("off", "192.0.2.10:502#1"),
            ("second", "[2001:db8::1]:503#8"),
            ("cell", "mqtt://127.0.0.1:1883")
        ]
    );
    assert_eq!((model.devices[0].vendor.as_str(), model.devices[0].model.as_str()), ("Acme", "PM3"));
    let points: Vec<_> = model.points.iter().map(|point| (point.device, point.name.as_str())).collect();
    assert_eq!(points, [(0, "u"), (2, "far"), (2, "near"), (3, "door")]);

    // The planner sorts by address, the model keeps the order of the file: requests name the right points.
    let requests: Vec<_> =
        model.requests.iter().map(|request| (request.device, request.points.clone(), request.period_ms)).collect();
    assert_eq!(
        requests,
        [(0, vec![PointKey(0)], 1_000), (2, vec![PointKey(2)], 250), (2, vec![PointKey(1)], 250)],
        "500 registers apart: two requests"
    );
    assert_eq!(config.buses[0].devices.len(), 0, "a disabled device is not asked");
    let bus = &config.buses[1];
    assert_eq!(bus.keys, [0, 2]);
    let asked: Vec<_> = bus
        .devices
        .iter()
        .map(|device| device.requests.iter().map(|(number, _)| *number).collect::<Vec<_>>())
        .collect();
    assert_eq!(asked, [vec![0], vec![1, 2]]);
    for (device, key) in bus.devices.iter().zip(&bus.keys) {
        for (number, request) in &device.requests {
            let known = &model.requests[*number as usize];
            assert_eq!((known.device, known.points.len()), (*key, request.points.len()));
        }
    }

    assert_eq!(config.brokers[0].device, 3);
    assert_eq!(config.brokers[0].points, [None, Some(PointKey(3))], "points of a wildcard appear while running");
    assert_eq!(config.brokers[0].template(0).expect("a rule").name, "t/{1}");
    assert!(config.brokers[0].template(2).is_none());
}

#[test]
fn what_a_point_means_reaches_the_model() {
    let dir = plant();
    let config = load(dir.path());
    let far = &config.model.points[1];
    assert_eq!(far.ty, PointType::Int);
    assert_eq!((far.scale.exponent, far.scale.factor), (-1, 0.0));
    assert_eq!(far.bad, [(-32_768_i64) as u64], "a sentinel is the bits of the value");
    assert_eq!(far.deadband, Deadband::Percent(2.0));
    assert_eq!(far.heartbeat.map(|heartbeat| heartbeat.as_secs()), Some(60));
    let window = far.window.as_ref().expect("configured");
    assert_eq!(window.every_ms, 10_000);
    assert_eq!(window.stats, [Statistic::Min, Statistic::Max, Statistic::Mean], "in the contract's order");
    assert!(!far.raw && config.model.points[2].raw);
}

#[test]
fn paths_begin_at_the_configuration() {
    let dir = plant();
    let config = load(dir.path());
    assert_eq!(config.agent.state_dir, dir.path().join("state"));
    assert_eq!(config.agent.socket(), Path::new("/run/tributary/status.sock"));
    let endpoint = config.uplink.endpoint().expect("checked");
    assert_eq!((endpoint.host.as_str(), endpoint.port, endpoint.tls), ("127.0.0.1", 1884, false));
}

#[test]
fn the_hash_is_of_the_file_and_its_profiles() {
    let dir = plant();
    let mut hash = Sha256::new();
    for text in [PLANT, PROFILE] {
        hash.update((text.len() as u64).to_be_bytes());
        hash.update(text);
    }
    let hex: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(load(dir.path()).sha256, hex);
    std::fs::write(dir.path().join("profiles/meter.toml"), format!("{PROFILE}# another edition\n")).expect("written");
    assert_ne!(load(dir.path()).sha256, hex);
}
