//! `[[bus]]`, `[[device]]`, `[[mqtt]]` and the profiles that devices name: read entry by entry, so that a fault in one
//! hides none in another, then handed to `tributary-protocols`, which knows what they mean.
//!
//! Entries and rows with faults are left out before that, so the places that come back are counted anew;
//! [`Places`] leads from those to the places in the file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::DeValue;
use tributary_protocols::fault::Fault;
use tributary_protocols::modbus::config::{Bus, BusSpec, Device, DeviceSpec, PointRow, Profile, resolve_plant};
use tributary_protocols::mqtt;

use super::diagnostic::Report;
use super::document::{Document, Source, join};
use super::files::FileRef;
use super::{AgentConfig, Check};

/// Most buses, devices or brokers.
const MOST: usize = 10_000;

/// What the gateway is attached to, without faults.
#[derive(Debug)]
pub(super) struct Plant {
    pub(super) buses: Vec<BusSpec>,
    pub(super) devices: Vec<DeviceSpec>,
    pub(super) brokers: Vec<mqtt::config::BrokerSpec>,
}

/// Entries that could be read, and where each stands in the file: `[[device]]` number and the numbers of its rows.
struct Places<T> {
    entries: Vec<T>,
    places: Vec<(usize, Vec<usize>)>,
    whole: bool,
}

impl<T> Places<T> {
    /// `device[1].point[0].x`, counted in `entries`, as it is counted in the file.
    fn in_file(&self, kind: &str, path: &str) -> String {
        let translate = || {
            let (index, rest) = path.strip_prefix(kind)?.strip_prefix('[')?.split_once(']')?;
            let (place, rows) = self.places.get(index.parse::<usize>().ok()?)?;
            let mut found = format!("{kind}[{place}]");
            match rest.strip_prefix(".point[").and_then(|rest| rest.split_once(']')) {
                Some((row, rest)) => {
                    let row = row.parse::<usize>().ok().and_then(|row| rows.get(row)).copied()?;
                    found.push_str(&format!(".point[{row}]{rest}"));
                }
                None => found.push_str(rest),
            }
            Some(found)
        };
        translate().unwrap_or_else(|| path.to_owned())
    }
}

/// Reads all of it. The second is every profile file that was read, by name.
pub(super) fn read(
    agent: Option<&AgentConfig>,
    check: &mut Check<'_, '_>,
) -> (Option<Plant>, BTreeMap<String, Source>) {
    let buses = entries::<Bus, ()>(check, "bus", |_, _| {});
    let devices = entries::<Device, PointRow>(check, "device", |device, rows| device.point = rows);
    let brokers =
        entries::<mqtt::config::Broker, mqtt::config::PointRow>(check, "mqtt", |broker, rows| broker.point = rows);
    let folders = agent.map(|agent| agent.profiles.clone()).unwrap_or_default();
    let (sources, profiles, profiles_whole) = read_profiles(&devices, &folders, check);
    let mut whole = buses.whole && devices.whole && brokers.whole && profiles_whole;

    let found = resolve_plant(&buses.entries, &devices.entries, |name| profiles.get(name));
    let (bus_specs, device_specs) = found.unwrap_or_else(|faults| {
        whole = false;
        let named = raw_names(check.document, "bus");
        for fault in faults {
            // A bus that is there but has faults of its own is not unknown.
            let device = fault.path.strip_prefix("device[").and_then(|rest| rest.strip_suffix("].bus"));
            let bus = device.and_then(|index| index.parse().ok()).and_then(|index: usize| devices.entries.get(index));
            if fault.profile.is_none()
                && bus.is_some_and(|device| {
                    named.contains(&device.bus) && !buses.entries.iter().any(|bus| bus.name == device.bus)
                })
            {
                continue;
            }
            let path = devices.in_file("device", &buses.in_file("bus", &fault.path));
            say(check, &sources, fault, &path);
        }
        Default::default()
    });

    let id = agent.map_or("", |agent| agent.id.as_str());
    let mut names: BTreeSet<&str> = devices.entries.iter().map(|device| device.name.as_str()).collect();
    let mut broker_specs = Vec::new();
    for (index, broker) in brokers.entries.iter().enumerate() {
        let path = format!("mqtt[{index}]");
        if !names.insert(&broker.name) {
            let at = brokers.in_file("mqtt", &join(&path, "name"));
            check.error(
                &at,
                format!("a second device is called {:?}", broker.name),
                "names of devices and brokers are unique among both",
            );
            whole = false;
        }
        match mqtt::config::resolve(broker, &path, id) {
            Ok(mut spec) => {
                let at = brokers.in_file("mqtt", &path);
                files_of(&mut spec, &at, check);
                broker_specs.push(spec);
            }
            Err(faults) => {
                whole = false;
                for fault in faults {
                    let path = brokers.in_file("mqtt", &fault.path);
                    say(check, &sources, fault, &path);
                }
            }
        }
    }
    for (bus, (place, _)) in buses.entries.iter().zip(&buses.places) {
        if !devices.entries.iter().any(|device| device.bus == bus.name) && devices.whole {
            check.warning(
                &format!("bus[{place}].name"),
                format!("no device is on the bus {:?}", bus.name),
                "add a [[device]], or remove the bus",
            );
        }
    }
    if whole && devices.entries.is_empty() && brokers.entries.is_empty() {
        check.warning(
            "agent",
            "nothing is measured: there is no [[device]] and no [[mqtt]]",
            "add one; sample.toml shows how",
        );
    }
    let plant = whole.then_some(Plant { buses: bus_specs, devices: device_specs, brokers: broker_specs });
    (plant, sources)
}

/// Puts a fault where it belongs: the profile's file, or the configuration.
fn say(check: &mut Check<'_, '_>, sources: &BTreeMap<String, Source>, fault: Fault, path: &str) {
    match fault.profile.as_ref().and_then(|name| sources.get(name)) {
        Some(source) => {
            if let Some(document) = Document::parse(source, &mut Report::default()) {
                check.report.error(document.fault(&fault.path, fault.message, fault.help));
            }
        }
        None => check.error(path, fault.message, fault.help),
    }
}

/// Reads the entries of one kind, and the rows of each apart from it.
fn entries<T: DeserializeOwned, R: DeserializeOwned>(
    check: &mut Check<'_, '_>,
    kind: &str,
    put: impl Fn(&mut T, Vec<R>),
) -> Places<T> {
    let mut found = Places { entries: Vec::new(), places: Vec::new(), whole: true };
    let Some(list) = check.document.root.get(kind) else { return found };
    let DeValue::Array(list) = list.get_ref() else {
        found.whole = false;
        return found;
    };
    if list.len() > MOST {
        check.error(kind, format!("{} entries", list.len()), format!("at most {MOST} [[{kind}]]"));
        found.whole = false;
        return found;
    }
    for (index, value) in list.iter().enumerate() {
        let path = format!("{kind}[{index}]");
        let mut value = value.clone();
        let (rows, places, rows_whole) = rows::<R>(check.document, &path, &mut value, check.report);
        found.whole &= rows_whole;
        match check.document.read::<T>(&path, value, check.report) {
            Some(mut entry) => {
                put(&mut entry, rows);
                found.entries.push(entry);
                found.places.push((index, places));
            }
            None => found.whole = false,
        }
    }
    found
}

/// Takes the rows under `point` out of `value` and reads each. A `point` of the wrong shape stays for serde to refuse.
fn rows<'d, R: DeserializeOwned>(
    document: &Document<'d>,
    path: &str,
    value: &mut Spanned<DeValue<'d>>,
    report: &mut Report,
) -> (Vec<R>, Vec<usize>, bool) {
    let mut whole = true;
    let (mut rows, mut places) = (Vec::new(), Vec::new());
    if let DeValue::Table(table) = value.get_mut()
        && table.get("point").is_some_and(|list| list.get_ref().is_array())
        && let Some(list) = table.remove("point")
        && let DeValue::Array(list) = list.into_inner()
    {
        for (index, row) in list.into_iter().enumerate() {
            match document.read(&join(path, &format!("point[{index}]")), row, report) {
                Some(row) => {
                    rows.push(row);
                    places.push(index);
                }
                None => whole = false,
            }
        }
    }
    (rows, places, whole)
}

/// The names of all entries of a kind as they stand in the file.
fn raw_names(document: &Document<'_>, kind: &str) -> BTreeSet<String> {
    let list = document.root.get(kind).and_then(|list| list.get_ref().as_array());
    list.into_iter()
        .flatten()
        .filter_map(|entry| entry.get_ref().get("name")?.get_ref().as_str().map(str::to_owned))
        .collect()
}

/// Reads every profile that a device names, once each, from the first folder that has it.
fn read_profiles(
    devices: &Places<Device>,
    folders: &[PathBuf],
    check: &mut Check<'_, '_>,
) -> (BTreeMap<String, Source>, BTreeMap<String, Profile>, bool) {
    let (mut sources, mut profiles, mut whole) = (BTreeMap::new(), BTreeMap::new(), true);
    for (device, (place, _)) in devices.entries.iter().zip(&devices.places) {
        let Some(name) = &device.profile else { continue };
        let key = format!("device[{place}].profile");
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        if name.is_empty() || name.len() > 128 || name.starts_with('.') || !name.chars().all(good) {
            check.error(
                &key,
                format!("{name:?} is no name of a profile"),
                "a file name without folder and without .toml: A-Z a-z 0-9 _ - .",
            );
            whole = false;
            continue;
        }
        if sources.contains_key(name) {
            continue;
        }
        let file = format!("{name}.toml");
        let Some(path) = folders.iter().map(|folder| folder.join(&file)).find(|path| path.exists()) else {
            let searched = folders.iter().map(|folder| folder.display().to_string()).collect::<Vec<_>>().join(", ");
            check.error(
                &key,
                format!("there is no profile {file} in {searched}"),
                "put it there, or add its folder to agent.profiles",
            );
            whole = false;
            continue;
        };
        match Source::read(&path) {
            Ok(source) => {
                match read_profile(name, &source, check.report) {
                    Some(profile) => {
                        profiles.insert(name.clone(), profile);
                    }
                    None => whole = false,
                }
                sources.insert(name.clone(), source);
            }
            Err(fault) => {
                check.report.error(*fault);
                whole = false;
            }
        }
    }
    (sources, profiles, whole)
}

fn read_profile(name: &str, source: &Source, report: &mut Report) -> Option<Profile> {
    let document = Document::parse(source, report)?;
    let mut value = Spanned::new(0..0, DeValue::Table(document.root.clone()));
    let (rows, _, whole) = rows::<PointRow>(&document, "", &mut value, report);
    let mut profile: Profile = document.read("", value, report)?;
    profile.point = rows;
    if profile.profile != name {
        report.error(document.fault(
            "profile",
            format!("the file {name}.toml holds the profile {:?}", profile.profile),
            format!("profile = \"{name}\", or rename the file"),
        ));
        return None;
    }
    whole.then_some(profile)
}

/// Looks at the files a broker names and puts the places where they are into `spec`.
fn files_of(spec: &mut mqtt::config::BrokerSpec, path: &str, check: &mut Check<'_, '_>) {
    let certificate = "-----BEGIN CERTIFICATE-----";
    for (key, file, mark, secret) in [
        ("ca", &mut spec.ca, certificate, false),
        ("cert", &mut spec.cert, certificate, false),
        ("key", &mut spec.key, "PRIVATE KEY-----", true),
        ("password_file", &mut spec.password_file, "", true),
    ] {
        if let Some(given) = file {
            let mut found = FileRef::from(given.clone());
            check.file(&join(path, key), Some(&mut found), mark, secret);
            *given = found.path().display().to_string();
        }
    }
}
