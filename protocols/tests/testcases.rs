//! The folders under `src/*/testcases/`: what was configured, what came over the wire, what must come of it.
//!
//! A folder holds `device.toml` (with `profile.toml` where the device names one) and either `error.txt`, the faults
//! of the configuration, or what came and `expected.txt`. A Modbus case has `frames.hex`: for each planned request in
//! turn the answer to transaction 1, 2, 3 …, a line each, `-` for none. An MQTT case has `messages.txt`: topic, space,
//! payload, a line each, `\xNN` for a byte; they all arrive at 1700000000000. Lines with `#` are comments.
//! `UPDATE_GOLDEN=1` rewrites what is expected: look at the difference before you believe it.
#![allow(clippy::unwrap_used, reason = "a test that panics fails")]

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use tributary_protocols::fault::Fault;
use tributary_protocols::modbus::{config as modbus, decode, frame, plan};
use tributary_protocols::mqtt::{config as mqtt, decode::Source};
use tributary_protocols::point::Point;
use tributary_protocols::reading::Sample;
use tributary_protocols::time::Wall;
use tributary_protocols::value::{PointType, Value};

fn folders(protocol: &str) -> Vec<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(protocol).join("testcases");
    let mut folders: Vec<_> = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    folders
}

fn lines(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).map(String::from).collect()
}

/// Compares, or rewrites; names what differs.
fn settle(folder: &Path, file: &str, got: &str, differing: &mut Vec<String>) {
    let path = folder.join(file);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        let other = folder.join(if file == "error.txt" { "expected.txt" } else { "error.txt" });
        let _ = fs::remove_file(other);
        fs::write(&path, got).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    if expected != got {
        differing.push(format!("{}\n--- expected\n{expected}--- got\n{got}", path.display()));
    }
}

fn show_faults(faults: &[Fault]) -> String {
    let mut text = String::new();
    for fault in faults {
        let profile = fault.profile.as_deref().map(|profile| format!("{profile}.toml: ")).unwrap_or_default();
        writeln!(text, "{profile}{}\n  {}\n  {}", fault.path, fault.message, fault.help).unwrap();
    }
    text
}

fn show(point: &Point, sample: &Sample) -> String {
    let status = format!("{:?}", sample.status);
    let value = match (&sample.value, point.ty) {
        (Value::None, _) => return status,
        (Value::Text(text), _) => return format!("{status} {text:?}"),
        (Value::Bits(bits), PointType::Uint64) => format!("{bits}"),
        (Value::Bits(bits), PointType::Float32) => {
            format!("{:?} ({bits:#010x})", f32::from_bits(u32::try_from(*bits).unwrap()))
        }
        (Value::Bits(bits), PointType::Float64) => format!("{:?} ({bits:#018x})", f64::from_bits(*bits)),
        (Value::Bits(bits), _) => format!("{}", *bits as i64),
    };
    let Value::Bits(bits) = sample.value else { unreachable!() };
    let mut text = format!("{status} {value}");
    if point.scale != Default::default() {
        write!(text, " = {:?} {}", point.scale.real(point.ty, bits).unwrap(), point.unit).unwrap();
    }
    if let Some(label) = point.labels.get(&(bits as i64)) {
        write!(text, " {label:?}").unwrap();
    }
    if point.bad.contains(&bits) {
        text += " sentinel";
    }
    text
}

#[test]
fn modbus() {
    #[derive(serde::Deserialize)]
    struct File {
        device: Vec<modbus::Device>,
    }
    let mut differing = Vec::new();
    let folders = folders("modbus");
    assert!(folders.len() >= 12);
    for folder in folders {
        let file: File = toml::from_str(&fs::read_to_string(folder.join("device.toml")).unwrap()).unwrap();
        let profile: Option<modbus::Profile> =
            fs::read_to_string(folder.join("profile.toml")).ok().map(|text| toml::from_str(&text).unwrap());
        let device = match modbus::resolve(&file.device[0], "device[0]", profile.as_ref()) {
            Ok(device) => device,
            Err(faults) => {
                settle(&folder, "error.txt", &show_faults(&faults), &mut differing);
                continue;
            }
        };
        let requests = plan::plan(&device.points, device.caps);
        let answers = lines(&folder.join("frames.hex"));
        assert_eq!(answers.len(), requests.len(), "{}: one answer a request", folder.display());
        let mut text = String::new();
        for (transaction, (request, answer)) in (1..).zip(requests.iter().zip(answers)) {
            let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ");
            let question = hex(&frame::question(request, device.unit, transaction));
            writeln!(text, "> {question}    {} every {} ms", request.table.name(), request.period_ms).unwrap();
            if answer == "-" {
                text += "no answer\n";
                continue;
            }
            let digits: String = answer.split_whitespace().collect();
            let bytes: Vec<u8> =
                (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect();
            match frame::check(&bytes, request, device.unit, transaction) {
                Err(doubt) => writeln!(text, "doubt: {doubt}").unwrap(),
                Ok(frame::Answer::Exception(code)) => {
                    let name = decode::exception_name(code);
                    writeln!(text, "exception {code}, {name}: {:?}", decode::exception_status(code)).unwrap();
                }
                Ok(frame::Answer::Data(data)) => {
                    for (planned, sample) in request.points.iter().zip(decode::decode(request, data)) {
                        let point = &device.points[planned.index as usize].point;
                        writeln!(text, "{} [{}] {}", point.name, point.source, show(point, &sample)).unwrap();
                    }
                }
            }
        }
        settle(&folder, "expected.txt", &text, &mut differing);
    }
    assert!(differing.is_empty(), "{}", differing.join("\n"));
}

#[test]
fn mqtt() {
    #[derive(serde::Deserialize)]
    struct File {
        mqtt: Vec<mqtt::Broker>,
    }
    let mut differing = Vec::new();
    let folders = folders("mqtt");
    assert!(folders.len() >= 6);
    for folder in folders {
        let file: File = toml::from_str(&fs::read_to_string(folder.join("device.toml")).unwrap()).unwrap();
        let broker = match mqtt::resolve(&file.mqtt[0], "mqtt[0]", "gw-1") {
            Ok(broker) => broker,
            Err(faults) => {
                settle(&folder, "error.txt", &show_faults(&faults), &mut differing);
                continue;
            }
        };
        let mut source = Source::new(&broker);
        let mut text = String::new();
        for message in lines(&folder.join("messages.txt")) {
            let (topic, payload) = message.split_once(' ').unwrap_or((&message, ""));
            writeln!(text, "> {topic} {payload}").unwrap();
            for reading in source.accept(topic, &unescape(payload), Wall(1_700_000_000_000)) {
                let point = &broker.rules[reading.rule as usize].point;
                let (name, at) = (&reading.name, reading.at.as_millis());
                let sample = show(point, &reading.sample);
                writeln!(text, "{name} [{}] at {at} by {:?}: {sample}", reading.source, reading.stamped_by).unwrap();
            }
        }
        writeln!(text, "{:#?}", source.counters()).unwrap();
        settle(&folder, "expected.txt", &text, &mut differing);
    }
    assert!(differing.is_empty(), "{}", differing.join("\n"));
}

fn unescape(text: &str) -> Vec<u8> {
    let mut pieces = text.split("\\x");
    let mut bytes = pieces.next().unwrap_or_default().as_bytes().to_vec();
    for piece in pieces {
        bytes.push(u8::from_str_radix(&piece[..2], 16).unwrap());
        bytes.extend(&piece.as_bytes()[2..]);
    }
    bytes
}
