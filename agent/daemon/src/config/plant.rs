//! `[[bus]]`, `[[device]]`, `[[mqtt]]` and the profiles that devices name: read entry by entry, so that a fault in one
//! hides none in another, then handed to `tributary-protocols`, which knows what they mean.
//!
//! Entries and rows with faults are left out before that, so the places that come back are counted anew;
//! [`Places`] leads from those to the places in the file.

use std::collections::{BTreeMap, BTreeSet};

use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::DeValue;
use tributary_protocols::fault::Fault;
use tributary_protocols::gather;
use tributary_protocols::modbus::config::{Bus, BusSpec, Device, DeviceSpec, PointRow, Profile, resolve_plant};
use tributary_protocols::mqtt;

use super::diagnostic::{Diagnostic, Report};
use super::document::{Document, Source, join};
use super::files::FileRef;
use super::profiles::{ProfileDocument, read_profiles};
use super::{AgentConfig, Check, links};

/// Most buses, devices or brokers.
const MOST: usize = 10_000;

/// What the gateway is attached to, without faults.
#[derive(Debug)]
pub(super) struct Plant {
    pub(super) buses: Vec<BusSpec>,
    pub(super) devices: Vec<DeviceSpec>,
    pub(super) brokers: Vec<mqtt::config::BrokerSpec>,
}

/// Entries that could be read, where each stands in the file, and whether that is all of them.
pub(super) struct Places<T> {
    pub(super) entries: Vec<T>,
    pub(super) places: Vec<Place>,
    whole: bool,
}

/// Where an entry stands: its number in the file, those of its rows, and whether all of these could be read.
pub(super) struct Place {
    pub(super) index: usize,
    rows: Vec<usize>,
    whole: bool,
}

impl<T> Places<T> {
    /// `device[1].point[0].x`, counted in `entries`, as it is counted in the file.
    fn in_file(&self, kind: &str, path: &str) -> String {
        let translate = || {
            let (index, rest) = path.strip_prefix(kind)?.strip_prefix('[')?.split_once(']')?;
            let place = self.places.get(index.parse::<usize>().ok()?)?;
            let mut found = format!("{kind}[{}]", place.index);
            match rest.strip_prefix('.').filter(|rest| rest.starts_with("point[")) {
                Some(row) => found.push_str(&format!(".{}", row_in_file(row, &place.rows)?)),
                None => found.push_str(rest),
            }
            Some(found)
        };
        translate().unwrap_or_else(|| path.to_owned())
    }
}

/// Reads all of it. The second is every file of a profile that was read, by name.
pub(super) fn read(
    agent: Option<&AgentConfig>,
    check: &mut Check<'_, '_>,
) -> (Option<Plant>, BTreeMap<String, Source>) {
    let buses = entries::<Bus, ()>(check, "bus", |_, _| {});
    let devices = entries::<Device, PointRow>(check, "device", |device, rows| device.point = rows);
    let brokers =
        entries::<mqtt::config::Broker, mqtt::config::PointRow>(check, "mqtt", |broker, rows| broker.point = rows);
    let folders = agent.map(|agent| agent.profiles.clone()).unwrap_or_default();
    let (files, profiles) = read_profiles(&devices, &folders, check);
    let documents: BTreeMap<&str, ProfileDocument<'_>> = gather(files.iter().filter_map(|(name, file)| {
        let document = Document::parse(&file.source, &mut Report::default())?;
        let table = file.table.as_ref().map(|table| table.document(&mut Report::default()));
        Some((name.as_str(), ProfileDocument { document, table, rows: &file.rows }))
    }));

    let found = resolve_plant(&buses.entries, &devices.entries, |name| profiles.get(name));
    let modbus = found.map_err(|faults| {
        let named = names(check.document, "bus");
        // Devices of one profile all bring its faults.
        let mut said = BTreeSet::new();
        for fault in faults {
            if fault.profile.is_some() && !said.insert(format!("{fault:?}")) {
                continue;
            }
            if !follows(&fault, named.as_ref(), &buses, &devices, &profiles) {
                let path = devices.in_file("device", &buses.in_file("bus", &fault.path));
                say(check, &documents, fault, &path);
            }
        }
    });

    let modbus = modbus.map(|(mut specs, device_specs)| {
        let places: Vec<usize> = buses.places.iter().map(|place| place.index).collect();
        links::check(&mut specs, &places, check);
        let mut said = BTreeSet::new();
        for doubt in device_specs.iter().flat_map(|spec| &spec.doubts) {
            if doubt.profile.is_none() || said.insert(format!("{doubt:?}")) {
                let path = devices.in_file("device", &doubt.path);
                let diagnostic = placed(check, &documents, doubt.clone(), &path);
                check.report.warning(diagnostic);
            }
        }
        (specs, device_specs)
    });

    let id = agent.map_or("", |agent| agent.id.as_str());
    let mut names: BTreeSet<&str> = gather(devices.entries.iter().map(|device| device.name.as_str()));
    let mut broker_specs = Vec::new();
    for (index, broker) in brokers.entries.iter().enumerate() {
        let path = format!("mqtt[{index}]");
        if !names.insert(&broker.name) {
            let at = brokers.in_file("mqtt", &join(&path, "name"));
            let message = format!("a second device is called {:?}", broker.name);
            check.error(&at, message, "names of devices and brokers are unique among both");
        }
        match mqtt::config::resolve(broker, &path, id) {
            Ok(mut spec) => {
                let at = brokers.in_file("mqtt", &path);
                files_of(&mut spec, &at, check);
                broker_specs.push(spec);
            }
            Err(faults) => {
                let rows_whole = brokers.places.get(index).is_none_or(|place| place.whole);
                for fault in faults {
                    if fault.path == join(&path, "point") && !rows_whole {
                        continue;
                    }
                    let path = brokers.in_file("mqtt", &fault.path);
                    say(check, &documents, fault, &path);
                }
            }
        }
    }
    for (bus, place) in buses.entries.iter().zip(&buses.places) {
        if devices.whole && !devices.entries.iter().any(|device| device.bus == bus.name) {
            let message = format!("no device is on the bus {:?}", bus.name);
            check.warning(&format!("bus[{}].name", place.index), message, "add a [[device]], or remove the bus");
        }
    }
    let empty = |kind: &str| check.document.root.get(kind).is_none();
    if agent.is_some() && empty("device") && empty("mqtt") {
        let message = "nothing is measured: there is no [[device]] and no [[mqtt]]";
        check.warning("agent", message, "add one; sample.toml shows how");
    }
    let plant = match modbus {
        Ok((buses, devices)) if check.report.errors.is_empty() => Some(Plant { buses, devices, brokers: broker_specs }),
        _ => None,
    };
    drop(documents);
    let mut texts = BTreeMap::new();
    for (name, file) in files {
        texts.extend(file.table.map(|table| (format!("{name}.csv"), table.source)));
        texts.insert(name, file.source);
    }
    (plant, texts)
}

/// Whether a fault only follows from another that is named already: the bus is there but could not be read, the profile
/// could not, or the rows could not.
fn follows(
    fault: &Fault,
    named: Option<&BTreeSet<String>>,
    buses: &Places<Bus>,
    devices: &Places<Device>,
    profiles: &BTreeMap<String, Profile>,
) -> bool {
    let entry = || {
        let (index, key) = fault.path.strip_prefix("device[")?.split_once("].")?;
        let index = index.parse::<usize>().ok()?;
        Some((devices.entries.get(index)?, devices.places.get(index)?, key))
    };
    let (None, Some((device, place, key))) = (&fault.profile, entry()) else { return false };
    let profile_unread = device.profile.as_ref().is_some_and(|name| !profiles.contains_key(name));
    match key {
        "bus" => {
            let there = named.is_none_or(|named| named.contains(&device.bus));
            there && !buses.entries.iter().any(|bus| bus.name == device.bus)
        }
        "profile" => profile_unread,
        "point" => profile_unread || !place.whole,
        _ => false,
    }
}

/// An error where it belongs.
fn say(check: &mut Check<'_, '_>, profiles: &BTreeMap<&str, ProfileDocument<'_>>, fault: Fault, path: &str) {
    if !check.report.is_full() {
        let diagnostic = placed(check, profiles, fault, path);
        check.report.error(diagnostic);
    }
}

/// Puts a fault where it belongs: the profile's file, or the configuration.
fn placed(
    check: &Check<'_, '_>,
    profiles: &BTreeMap<&str, ProfileDocument<'_>>,
    mut fault: Fault,
    path: &str,
) -> Diagnostic {
    // Faults of a key may leave out their subject.
    if ["is ", "has ", "holds ", "says ", "needs ", "belongs "].iter().any(|verb| fault.message.starts_with(verb)) {
        let key = path.rsplit('.').next().unwrap_or(path);
        fault.message = format!("`{key}` {}", fault.message);
    }
    match fault.profile.as_ref().and_then(|name| profiles.get(name.as_str())) {
        Some(ProfileDocument { document, table, rows }) => match (row_in_file(&fault.path, rows), table) {
            (Some(path), Some(table)) => table.fault(&path, fault.message, fault.help),
            (Some(path), None) => document.fault(&path, fault.message, fault.help),
            (None, _) => document.fault(&fault.path, fault.message, fault.help),
        },
        None => {
            let mut diagnostic = check.document.fault(path, fault.message, fault.help);
            diagnostic.hide_login();
            diagnostic
        }
    }
}

/// `point[1].x`, counted among the rows that could be read, as it is counted in the file.
fn row_in_file(path: &str, rows: &[usize]) -> Option<String> {
    let (row, rest) = path.strip_prefix("point[")?.split_once(']')?;
    let row = rows.get(row.parse::<usize>().ok()?)?;
    Some(format!("point[{row}]{rest}"))
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
        match check.document.read::<T>(&path, value, false, check.report) {
            Some(mut entry) => {
                put(&mut entry, rows);
                found.entries.push(entry);
                found.places.push(Place { index, rows: places, whole: rows_whole });
            }
            None => found.whole = false,
        }
    }
    found
}

/// Takes the rows under `point` out of `value` and reads each. A `point` of the wrong shape stays for serde to refuse.
pub(super) fn rows<'d, R: DeserializeOwned>(
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
            match document.read(&join(path, &format!("point[{index}]")), row, false, report) {
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

/// The names of all entries of a kind as they stand in the file; `None` if it is no list.
fn names(document: &Document<'_>, kind: &str) -> Option<BTreeSet<String>> {
    let Some(list) = document.root.get(kind) else { return Some(BTreeSet::new()) };
    let name = |entry: &Spanned<DeValue<'_>>| entry.get_ref().get("name")?.get_ref().as_str().map(str::to_owned);
    Some(list.get_ref().as_array()?.iter().filter_map(name).collect())
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
