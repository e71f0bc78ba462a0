//! SunSpec against a peer: what `tributary import sunspec` finds in a device is what pysunspec2 finds in it, point by
//! point: name, address, and the value once it is scaled.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::Value as Json;
use tokio_modbus::prelude::{Reader, Slave};
use tributary_protocols::modbus::config::{Device, Profile, resolve};
use tributary_protocols::modbus::decode::decode;
use tributary_protocols::modbus::plan::plan;
use tributary_protocols::value::Value;
use tributary_tests::evidence::Fault;
use tributary_tests::process::{Process, binary, eventually, python};

const PATIENCE: Duration = Duration::from_secs(60);
/// How often the device is imported at the most.
const IMPORTS: usize = 3;

/// A point as pysunspec2 has it: address, type, scaled value.
type Known = (u16, String, Json);

fn known(log: &str) -> BTreeMap<String, Known> {
    let points = log.lines().filter_map(|line| line.strip_prefix("point "));
    let parted = points.filter_map(|line| {
        let mut words = line.splitn(4, ' ');
        let (address, name) = (words.next()?.parse().ok()?, words.next()?.to_owned());
        Some((name, (address, words.next()?.to_owned(), serde_json::from_str(words.next()?).ok()?)))
    });
    parted.collect()
}

/// A point as the profile has it: what its registers hold, and what it has instead of a value.
struct Found {
    address: u16,
    value: Value,
    missing: bool,
    real: Option<f64>,
}

/// Every point of the profile, read as its plan says.
async fn found(profile: &Profile, device: SocketAddr) -> Result<BTreeMap<String, Found>, Fault> {
    let unit =
        Device { name: "d".into(), unit_id: 1, enabled: true, profile: Some("sunspec".into()), ..Device::default() };
    let spec = resolve(&unit, "device", Some(profile)).map_err(|faults| format!("{faults:?}"))?;
    let mut line = tokio_modbus::client::tcp::connect_slave(device, Slave(1)).await?;
    let mut samples = vec![Value::None; spec.points.len()];
    for request in plan(&spec.points, spec.caps) {
        let words = line.read_holding_registers(request.address, request.count).await??;
        let data: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
        for (point, sample) in request.points.iter().zip(decode(&request, &data)) {
            samples[usize::try_from(point.index)?] = sample.value;
        }
    }
    let exponents: BTreeMap<&str, i32> = std::iter::zip(&spec.points, &samples)
        .filter_map(|(point, value)| match value {
            Value::Bits(bits) => Some((point.point.name.as_str(), i32::try_from(bits.cast_signed()).ok()?)),
            _ => None,
        })
        .collect();
    let all = std::iter::zip(&spec.points, &samples).map(|(point, value)| {
        let at = &point.point;
        let exponent = at.scale_from.as_ref().map_or(0, |from| exponents[from.as_str()]);
        let (missing, real) = match value {
            Value::Bits(bits) => (at.bad.contains(bits), at.scale.times_ten_to(at.ty, exponent).real(at.ty, *bits)),
            _ => (false, None),
        };
        (at.name.clone(), Found { address: point.address, value: value.clone(), missing, real })
    });
    Ok(all.collect())
}

/// What is different between the two, in words.
fn difference(name: &str, (address, ty, theirs): &Known, ours: &Found) -> Option<String> {
    let same = match (ty.as_str(), theirs, &ours.value) {
        // An accumulator's "not accumulated" is 0, which a new meter shows too.
        ("acc16" | "acc32" | "acc64", Json::Null, _) => !ours.missing && ours.real == Some(0.0),
        ("string", Json::Null, Value::Text(text)) => text.is_empty(),
        ("string", Json::String(theirs), Value::Text(text)) => **text == **theirs,
        ("ipaddr", Json::Number(theirs), Value::Text(text)) => {
            **text == *format!("{:08x}", theirs.as_u64().unwrap_or_default())
        }
        // Two bytes more than an EUI-48 are in front of it.
        ("ipv6addr" | "eui48", Json::String(theirs), Value::Text(text)) => {
            text.ends_with(&theirs.replace(':', "").to_lowercase())
        }
        (_, Json::Null, Value::Bits(_)) => ours.missing,
        (_, Json::Number(theirs), Value::Bits(_)) => {
            let theirs = theirs.as_f64().unwrap_or(f64::NAN);
            !ours.missing && ours.real.is_some_and(|real| (real - theirs).abs() <= theirs.abs() * 1e-12)
        }
        _ => false,
    };
    let words = || format!("{name} ({ty}): {theirs} at {address}, here {:?} at {}", ours.value, ours.address);
    (!same || *address != ours.address).then(words)
}

#[tokio::test]
async fn live_discovery_agrees_with_pysunspec2() -> Result<(), Fault> {
    let seed = fastrand::u32(..);
    println!("seed {seed}");
    let folder = tempfile::tempdir()?;
    let mut command = Command::new(python());
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/sunspec_device.py")).arg(seed.to_string());
    let mut device = Process::start("device", folder.path(), &command)?;
    eventually("pysunspec2 to have read the device", PATIENCE, async || {
        assert!(device.ended().is_none(), "the device ended");
        device.log().ends_with("whole\n").then_some(())
    })
    .await;
    let log = device.log();
    let said = |word: &str| log.lines().find_map(|line| line.strip_prefix(word)).unwrap_or_default().to_owned();
    let address: SocketAddr = format!("127.0.0.1:{}", said("port ")).parse()?;

    let mut import = Command::new(binary("tributary"));
    import.args(["import", "sunspec", "--unit-id", "1", "--tcp", &address.to_string(), "--models", &said("models ")]);
    // It gives each of some hundred answers two seconds, which a busy machine may well exceed once: that alone is no fault.
    let output = tokio::task::spawn_blocking(move || {
        let late = |output: &Output| {
            !output.status.success() && String::from_utf8_lossy(&output.stderr).contains("no answer in time")
        };
        (1..IMPORTS).try_fold(import.output()?, |output, _| if late(&output) { import.output() } else { Ok(output) })
    })
    .await??;
    let left_out = String::from_utf8(output.stderr)?;
    assert!(output.status.success(), "{left_out}");
    let profile: Profile = toml::from_str(&String::from_utf8(output.stdout)?)?;

    let (theirs, ours) = (known(&log), found(&profile, address).await?);
    assert!(theirs.len() > 4_000, "only {} points", theirs.len());
    let mut wrong = Vec::new();
    for (name, known) in &theirs {
        match ours.get(name) {
            Some(found) => wrong.extend(difference(name, known, found)),
            // Padding says nothing, nor does a factor of no point; what does not fit a request is named.
            None if matches!(known.1.as_str(), "pad" | "sunssf") => {}
            None if left_out.contains(&format!("not expressed: {name}: ")) => {}
            None => wrong.push(format!("{name} is not there, and nothing was said of it")),
        }
    }
    let (theirs, ours): (BTreeSet<_>, BTreeSet<_>) = (theirs.keys().collect(), ours.keys().collect());
    wrong.extend(ours.difference(&theirs).map(|name| format!("{name} is not in the device")));
    assert!(wrong.is_empty(), "{} wrong, with seed {seed}:\n{}", wrong.len(), wrong.join("\n"));
    assert!(ours.len() > 4_000, "only {} points of {}", ours.len(), theirs.len());
    Ok(())
}
