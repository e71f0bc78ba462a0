//! Profile files: read from the profile path, with the register tables they name.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::DeValue;
use tributary_protocols::modbus::config::{Device, PointRow, Profile};
use tributary_protocols::{gather, sort};

use super::Check;
use super::diagnostic::Report;
use super::document::{Document, Source, suggest};
use super::plant::{Places, rows};
use super::table::Table;

/// A profile's file: its text, and the numbers in it of the rows that could be read.
pub(super) struct ProfileFile {
    pub(super) source: Source,
    pub(super) rows: Vec<usize>,
    /// The register table that its rows stand in.
    pub(super) table: Option<Table>,
}

/// Its file and its table as documents.
pub(super) struct ProfileDocument<'f> {
    pub(super) document: Document<'f>,
    pub(super) table: Option<Document<'f>>,
    pub(super) rows: &'f [usize],
}

/// Reads every profile that a device names, once each, from the first folder that has it.
pub(super) fn read_profiles(
    devices: &Places<Device>,
    folders: &[PathBuf],
    check: &mut Check<'_, '_>,
) -> (BTreeMap<String, ProfileFile>, BTreeMap<String, Profile>) {
    let (mut files, mut profiles) = (BTreeMap::new(), BTreeMap::new());
    for (device, place) in devices.entries.iter().zip(&devices.places) {
        let Some(name) = &device.profile else { continue };
        let key = format!("device[{}].profile", place.index);
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        if name.is_empty() || name.len() > 128 || name.starts_with('.') || !name.chars().all(good) {
            let help = "a file name without folder and without .toml: A-Z a-z 0-9 _ - .";
            check.error(&key, format!("{name:?} is no name of a profile"), help);
            continue;
        }
        if files.contains_key(name) {
            continue;
        }
        let file = format!("{name}.toml");
        let Some(path) = folders.iter().map(|folder| folder.join(&file)).find(|path| path.exists()) else {
            let searched = folders.iter().map(|folder| folder.display().to_string()).collect::<Vec<_>>().join(", ");
            let message = format!("there is no profile {file} in {searched}");
            let mut help = "put it there, or add its folder to agent.profiles".to_owned();
            let there = names_in(folders);
            if !there.is_empty() {
                help = format!("{}; or {help}", suggest(name, &there));
            }
            check.error(&key, message, help);
            continue;
        };
        match Source::read(&path) {
            Ok(source) => {
                let mut rows = Vec::new();
                let profile = read_profile(name, &source, &mut rows, check.report);
                let (profile, table) = with_table(profile, &source, &mut rows, check.report);
                if let Some(profile) = profile {
                    profiles.insert(name.clone(), profile);
                }
                files.insert(name.clone(), ProfileFile { source, rows, table });
            }
            Err(fault) => check.report.error(*fault),
        }
    }
    (files, profiles)
}

/// The profiles that are there, some of them at least.
fn names_in(folders: &[PathBuf]) -> Vec<String> {
    let files = folders.iter().filter_map(|folder| std::fs::read_dir(folder).ok()).flatten().take(200).flatten();
    let mut names: Vec<String> =
        files.filter_map(|file| Some(file.file_name().to_str()?.strip_suffix(".toml")?.to_owned())).collect();
    sort(&mut names, Ord::cmp);
    names.dedup();
    names
}

/// A profile, and in `places` the numbers in its file of the rows that could be read.
fn read_profile(name: &str, source: &Source, places: &mut Vec<usize>, report: &mut Report) -> Option<Profile> {
    let document = Document::parse(source, report)?;
    let mut profile = profile_in(&document, places, report)?;
    if profile.profile != name {
        let message = format!("the file {name}.toml holds the profile {:?}", profile.profile);
        report.error(document.fault("profile", message, format!("profile = \"{name}\", or rename the file")));
    }
    if profile.table.is_some() && !profile.point.is_empty() {
        let help = "keep the points in one of them";
        report.error(document.fault("table", "a profile with both [table] and [[point]]", help));
        profile.table = None;
    }
    Some(profile)
}

/// The profile that a document is.
fn profile_in(document: &Document<'_>, places: &mut Vec<usize>, report: &mut Report) -> Option<Profile> {
    let mut value = Spanned::new(0..0, DeValue::Table(document.root.clone()));
    let (rows, found, _) = rows::<PointRow>(document, "", &mut value, report);
    *places = found;
    let mut profile = document.read::<Profile>("", value, false, report)?;
    profile.point = rows;
    Some(profile)
}

/// The profile with the rows of its table, if it has one; and the table.
fn with_table(
    profile: Option<Profile>,
    source: &Source,
    places: &mut Vec<usize>,
    report: &mut Report,
) -> (Option<Profile>, Option<Table>) {
    let Some(mut profile) = profile else { return (None, None) };
    let Some(csv) = &profile.table else { return (Some(profile), None) };
    let file = Path::new(&source.name).parent().unwrap_or(Path::new("")).join(&csv.csv);
    let table = match Source::read(&file) {
        Ok(source) => Table::read(source, report),
        Err(fault) => {
            report.error(*fault);
            None
        }
    };
    let Some(table) = table else { return (None, None) };
    let good = read_table(&table, &mut profile, source, places, report);
    (good.then_some(profile), Some(table))
}

/// Reads the rows of a profile's table. What the table says of the profile itself must be what the profile says.
fn read_table(
    table: &Table,
    profile: &mut Profile,
    source: &Source,
    places: &mut Vec<usize>,
    report: &mut Report,
) -> bool {
    let before = report.errors.len();
    let document = table.document(report);
    let head = Document::parse(source, &mut Report::default());
    for (key, value) in document.root.iter().filter(|(key, _)| key.get_ref() != "point") {
        let theirs = head.as_ref().and_then(|head| head.root.get(&**key.get_ref()));
        if theirs.map(|value| plain(value.get_ref())) != Some(plain(value.get_ref())) {
            let message = format!("`{}` is not what {} says", key.get_ref(), source.name);
            let help = "change one of them; what the table says of the profile may also be left out";
            report.error(document.source.diagnostic(value.span(), key.get_ref().to_string(), message, help.into()));
        }
    }
    let mut value = Spanned::new(0..0, DeValue::Table(document.root.clone()));
    let (rows, found, whole) = rows::<PointRow>(&document, "", &mut value, report);
    (profile.point, *places) = (rows, found);
    whole && report.errors.len() == before
}

/// A value without its places.
fn plain(value: &DeValue<'_>) -> String {
    match value {
        DeValue::Array(list) => format!("{:?}", list.iter().map(|value| plain(value.get_ref())).collect::<Vec<_>>()),
        DeValue::Table(table) => {
            let values: BTreeMap<&str, String> =
                gather(table.iter().map(|(key, value)| (&**key.get_ref(), plain(value.get_ref()))));
            format!("{values:?}")
        }
        other => format!("{other:?}"),
    }
}

/// Reads a whole profile from its TOML file or, with `csv`, from a register table that says all of it.
pub(crate) fn profile_file(source: Source, csv: bool, report: &mut Report) -> Option<Profile> {
    let mut rows = Vec::new();
    let before = report.errors.len();
    let profile = if csv {
        let table = Table::read(source, report)?;
        profile_in(&table.document(report), &mut rows, report)
    } else {
        let profile = profile_in(&Document::parse(&source, report)?, &mut rows, report);
        with_table(profile, &source, &mut rows, report).0.map(|profile| Profile { table: None, ..profile })
    };
    profile.filter(|_| report.errors.len() == before)
}
