//! The profiles under `examples/profiles/`: each means what its source says, and says what it has to say.
//!
//! A profile NAME.toml has a folder `testcases/NAME/`: `device.toml`; `registers.txt`, what the device holds, by table and
//! address as on the wire; `expected.txt`, the questions of the plan, the device's answers and what comes of them, raw and
//! real; and `real.txt`, the values as they were worked out from the source's description: point, real value, unit and
//! label, or `-` where the device says that it has none. `UPDATE_GOLDEN=1` rewrites `expected.txt`. Nothing rewrites
//! `real.txt`.
#![allow(clippy::unwrap_used, reason = "a test that panics fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use tributary_protocols::modbus::config::{self, Device, DeviceSpec, ModbusPoint, Profile};
use tributary_protocols::modbus::{decode, frame, plan};
use tributary_protocols::value::{PointType, Scale, Value};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/profiles")
}

/// Every profile under the name of its file.
fn profiles() -> BTreeMap<String, Profile> {
    let files = fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path());
    let files = files.filter(|path| path.extension().is_some_and(|ending| ending == "toml"));
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap();
        let profile = toml::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        (path.file_stem().unwrap().to_str().unwrap().to_owned(), profile)
    };
    files.map(read).collect()
}

/// The file of a profile's test case.
fn case(name: &str, file: &str) -> String {
    let path = folder().join("testcases").join(name).join(file);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn device(name: &str, profile: &Profile) -> DeviceSpec {
    #[derive(serde::Deserialize)]
    struct File {
        device: Vec<Device>,
    }
    let file: File = toml::from_str(&case(name, "device.toml")).unwrap();
    assert_eq!(file.device[0].profile.as_deref(), Some(name));
    config::resolve(&file.device[0], "device[0]", Some(profile)).unwrap_or_else(|faults| panic!("{name}: {faults:#?}"))
}

/// The value of a point in the world.
#[derive(Debug, PartialEq)]
enum Real {
    Missing,
    Number(f64),
    Bool(bool),
    Text(String),
}

impl Real {
    /// By the point's keys, from all values that were read.
    fn of(point: &ModbusPoint, values: &BTreeMap<&str, Value>) -> Self {
        let point = &point.point;
        let bits = match &values[point.name.as_str()] {
            Value::None => return Self::Missing,
            Value::Text(text) => return Self::Text(text.to_string()),
            Value::Bits(bits) if point.bad.contains(bits) => return Self::Missing,
            Value::Bits(bits) if point.ty == PointType::Bool => return Self::Bool(*bits == 1),
            Value::Bits(bits) => *bits,
        };
        let exponent = match point.scale_from.as_deref().map(|name| &values[name]) {
            Some(Value::Bits(bits)) => *bits as i32,
            _ => 0,
        };
        let scale = Scale { exponent: point.scale.exponent + exponent, ..point.scale };
        Self::Number(scale.real(point.ty, bits).unwrap())
    }

    /// `230.4 V`, `4 "MPPT"`, `"a text"`, `true` or `-`: the value and its label; the unit must be the point's.
    fn parse<'a>(text: &'a str, unit: &str) -> (Self, &'a str) {
        let (value, rest) = match text.strip_prefix('"') {
            Some(quoted) => text.split_at(quoted.find('"').unwrap() + 2),
            None => text.split_at(text.find(' ').unwrap_or(text.len())),
        };
        let real = match value {
            "-" => return (Self::Missing, ""),
            "true" | "false" => Self::Bool(value == "true"),
            quoted if quoted.starts_with('"') => Self::Text(quoted.trim_matches('"').into()),
            number => Self::Number(number.parse().unwrap_or_else(|_| panic!("{number} is no value"))),
        };
        let label = rest.trim_start().strip_prefix(unit).unwrap_or_else(|| panic!("{text}: not in {unit}"));
        (real, label.trim_start().trim_matches('"'))
    }

    /// Equal; numbers but for what a float cannot hold.
    fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Number(one), Self::Number(other)) => (one - other).abs() <= other.abs() * 1e-6,
            (one, other) => one == other,
        }
    }
}

/// A value before it is scaled.
fn raw(point: &ModbusPoint, value: &Value) -> String {
    match (value, point.point.ty) {
        (Value::None, _) => "nothing".into(),
        (Value::Text(text), _) => format!("{text:?}"),
        (Value::Bits(bits), PointType::Uint64) => bits.to_string(),
        (Value::Bits(bits), PointType::Float32) => format!("{bits:#010x}"),
        (Value::Bits(bits), PointType::Float64) => format!("{bits:#018x}"),
        (Value::Bits(bits), _) => (*bits as i64).to_string(),
    }
}

/// The name of a value, if it has one.
fn label<'a>(point: &'a ModbusPoint, value: &Value) -> Option<&'a str> {
    let Value::Bits(bits) = value else { return None };
    point.point.labels.get(&(*bits as i64)).map(String::as_str)
}

/// A device: what stands in its registers and, as 0 or 1, in its bits.
struct Slave(BTreeMap<(String, u16), u16>);

impl Slave {
    /// `holding 40069: 0067 0032` is two registers in hexadecimal, `coil 0: 1 0` two bits; lines with `#` are comments.
    fn parse(text: &str) -> Self {
        let mut cells = BTreeMap::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (place, content) = line.split_once(": ").unwrap();
            let (table, first) = place.split_once(' ').unwrap();
            for (address, cell) in (first.parse().unwrap()..).zip(content.split(' ')) {
                let before = cells.insert((table.to_owned(), address), u16::from_str_radix(cell, 16).unwrap());
                assert_eq!(before, None, "{table} {address} is there twice");
            }
        }
        Self(cells)
    }

    /// Its answer to a question. What no line names is 0xDEAD, so that a value that is read there shows.
    fn answer(&self, request: &plan::Request, unit: u8, transaction: u16) -> Vec<u8> {
        let cells = (request.address..=request.address + (request.count - 1))
            .map(|address| self.0.get(&(request.table.name().to_owned(), address)).copied().unwrap_or(0xDEAD));
        let data: Vec<u8> = if request.table.is_bits() {
            let mut data = vec![0; usize::from(request.count.div_ceil(8))];
            cells.enumerate().for_each(|(bit, cell)| data[bit / 8] |= u8::from(cell == 1) << (bit % 8));
            data
        } else {
            cells.flat_map(u16::to_be_bytes).collect()
        };
        let count = u8::try_from(data.len()).unwrap();
        let [high, low] = transaction.to_be_bytes();
        [vec![high, low, 0, 0, 0, count + 3, unit, request.table.function(), count], data].concat()
    }
}

/// Asks the device of the test case everything. The golden text, and all values.
fn converse<'a>(name: &str, device: &'a DeviceSpec) -> (String, BTreeMap<&'a str, Value>) {
    let requests = plan::plan(&device.points, device.caps);
    let slave = Slave::parse(&case(name, "registers.txt"));
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ");
    let (mut values, mut frames) = (BTreeMap::new(), Vec::new());
    for (transaction, request) in (1..).zip(&requests) {
        let answer = slave.answer(request, device.unit, transaction);
        match frame::check(&answer, request, device.unit, transaction) {
            Ok(frame::Answer::Data(data)) => {
                for (planned, sample) in request.points.iter().zip(decode::decode(request, data)) {
                    values.insert(device.points[planned.index as usize].point.name.as_str(), sample.value);
                }
            }
            other => panic!("{name}: {other:?}: {}", hex(&answer)),
        }
        frames.push((hex(&frame::question(request, device.unit, transaction)), hex(&answer)));
    }
    let mut text = String::new();
    for (request, (question, answer)) in requests.iter().zip(frames) {
        writeln!(text, "> {question}    {} every {} ms", request.table.name(), request.period_ms).unwrap();
        writeln!(text, "< {answer}").unwrap();
        for point in request.points.iter().map(|planned| &device.points[planned.index as usize]) {
            let value = &values[point.point.name.as_str()];
            write!(text, "{} [{}] {}", point.point.name, point.point.source, raw(point, value)).unwrap();
            match (Real::of(point, &values), label(point, value)) {
                (Real::Missing, _) => text += " = not available",
                (Real::Number(_), Some(label)) => write!(text, " = {label:?}").unwrap(),
                (Real::Number(number), None) if !point.point.unit.is_empty() => {
                    write!(text, " = {number:?} {}", point.point.unit).unwrap();
                }
                _ => {}
            }
            text.push('\n');
        }
    }
    (text, values)
}

#[test]
fn each_gives_the_values_that_were_worked_out_by_hand() {
    let (mut wrong, mut compared) = (Vec::new(), 0);
    for (name, profile) in profiles() {
        let device = device(&name, &profile);
        let (text, values) = converse(&name, &device);
        let path = folder().join("testcases").join(&name).join("expected.txt");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&path, &text).unwrap();
        }
        let expected = fs::read_to_string(&path).unwrap_or_default();
        if expected != text {
            wrong.push(format!("{}\n--- expected\n{expected}--- got\n{text}", path.display()));
        }
        let by_hand = case(&name, "real.txt");
        let mut by_hand: BTreeMap<&str, &str> = by_hand.lines().filter_map(|line| line.split_once(' ')).collect();
        by_hand.remove("#");
        for point in &device.points {
            let name = format!("{name}: {}", point.point.name);
            let Some(want) = by_hand.remove(point.point.name.as_str()) else {
                wrong.push(format!("{name} is not in real.txt"));
                continue;
            };
            let value = &values[point.point.name.as_str()];
            let (want, named) = Real::parse(want, &point.point.unit);
            let got = Real::of(point, &values);
            let label = label(point, value).filter(|_| got != Real::Missing).unwrap_or_default();
            if !got.is(&want) || label != named {
                wrong.push(format!("{name} is {got:?} {label:?}, by hand {want:?} {named:?}"));
            }
            if let (Real::Number(number), Some((low, high))) = (got, point.point.valid)
                && !(low..=high).contains(&number)
            {
                wrong.push(format!("{name} is {number}, out of its range"));
            }
            compared += 1;
        }
        wrong.extend(by_hand.keys().map(|left| format!("{name}: {left} in real.txt is no point of it")));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(compared > 400, "{compared}");
}

/// Whether a unit is made of the UCUM atoms that devices have, with `.`, `/`, prefixes and annotations in braces.
fn is_ucum(unit: &str) -> bool {
    const ATOMS: [&str; 16] =
        ["1", "%", "V", "A", "W", "Hz", "Cel", "Ohm", "lx", "g", "m3", "s", "min", "h", "[ppm]", "[ppb]"];
    unit.trim_start_matches('/').split(['.', '/']).all(|part| {
        let (atom, annotation) = part.split_at(part.find('{').unwrap_or(part.len()));
        let prefixed = |prefix| atom.strip_prefix(prefix).is_some_and(|atom| ATOMS.contains(&atom));
        let known = ATOMS.contains(&atom) || ["k", "M", "m"].into_iter().any(prefixed) || atom == "dB[SPL]";
        known && (annotation.is_empty() || annotation.ends_with('}'))
    })
}

#[test]
fn each_says_where_it_is_from_and_what_is_peculiar() {
    let profiles = profiles();
    assert!(profiles.len() >= 14, "{}", profiles.len());
    for (name, profile) in &profiles {
        assert_eq!(&profile.profile, name);
        assert!(profile.version >= 1, "{name}");
        for (key, text) in
            [("vendor", &profile.vendor), ("model", &profile.model), ("description", &profile.description)]
        {
            assert!(!text.is_empty(), "{name}: {key}");
        }
        // A maker's document by its title, or a public template with its licence.
        assert!(profile.source.len() > 40, "{name}: {}", profile.source);
        let foreign = profile.source.contains("template") || profile.source.contains("compared with");
        let licences = ["MIT", "BSD-3-Clause", "Apache-2.0"];
        let licensed = licences.iter().any(|licence| profile.source.contains(licence));
        assert!(!foreign || licensed, "{name}: {}", profile.source);
        let words = ["ddresses are", "egister numbers are", "egisters are numbered", "ffsets are", "start address"];
        let base = |quirk: &String| words.iter().any(|word| quirk.contains(word));
        assert!(profile.quirks.iter().any(base), "{name}: no quirk says how it counts its registers");
        for row in &profile.point {
            let at = format!("{name}: {}", row.name);
            let words = row.name.chars().all(|letter| matches!(letter, 'a'..='z' | '0'..='9' | '_'));
            assert!(words && row.name.starts_with(|letter: char| letter.is_ascii_lowercase()), "{at}");
            assert!(row.unit.is_empty() || is_ucum(&row.unit), "{at}: {}", row.unit);
            assert!(row.group.as_ref().is_none_or(|group| profile.groups.contains_key(group)), "{at}");
            assert!(row.labels.is_empty() || row.unit.is_empty(), "{at}: names and a unit");
        }
    }
    assert!(is_ucum("kV.A.h{reactive}") && is_ucum("/min") && !is_ucum("kWh") && !is_ucum("°C") && !is_ucum("var"));
}

#[test]
fn a_name_means_the_same_in_all_of_them() {
    let mut units: BTreeMap<String, BTreeMap<String, Vec<String>>> = BTreeMap::new();
    for (name, profile) in profiles() {
        for row in profile.point {
            units.entry(row.name).or_default().entry(row.unit).or_default().push(name.clone());
        }
    }
    units.retain(|_, units| units.len() > 1);
    assert!(units.is_empty(), "{units:#?}");
}

#[test]
fn each_has_a_test_case_and_a_row_in_the_readme() {
    let profiles = profiles();
    let cases = fs::read_dir(folder().join("testcases")).unwrap();
    let cases: BTreeSet<String> = cases.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(profiles.keys().cloned().collect::<BTreeSet<_>>(), cases);
    let readme = fs::read_to_string(folder().join("../README.md")).unwrap();
    for (name, profile) in profiles {
        let begins = format!("| [{name}](profiles/{name}.toml) |");
        let row = readme.lines().find(|line| line.starts_with(&begins)).unwrap_or_else(|| panic!("{name} has no row"));
        assert!(row.contains(&format!("| {} |", profile.point.len())), "{row}: it has {} points", profile.point.len());
    }
}
