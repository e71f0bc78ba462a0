//! A profile as its two views, TOML and register table. Neither says less than the other.
//!
//! Keys at their defaults are left out: an absent key and its default are the same. Numbers and lists are written alike
//! in both.

use std::fmt::Write as _;

use toml::{Table, Value};
use tributary_protocols::modbus::config::Profile;

use crate::config::COLUMNS;

/// The profile as a TOML file.
#[must_use]
pub fn toml(profile: &Profile) -> String {
    let mut text = head(profile, "");
    for row in &profile.point {
        text.push_str("\n[[point]]\n");
        let row = keys(row);
        for (key, value) in COLUMNS.iter().filter_map(|(key, _)| Some((key, row.get(*key)?))) {
            line(&mut text, "", key, value);
        }
    }
    text
}

/// The profile as a register table.
#[must_use]
pub fn csv(profile: &Profile) -> String {
    let mut text = head(profile, "# ");
    let rows: Vec<Table> = profile.point.iter().map(keys).collect();
    let used: Vec<&(&str, bool)> =
        COLUMNS.iter().filter(|(key, _)| rows.iter().any(|row| row.contains_key(*key))).collect();
    let mut writer = csv::WriterBuilder::new().comment(Some(b'#')).from_writer(Vec::new());
    let names = used.iter().map(|(key, _)| (*key).to_owned()).collect();
    let cells = rows.iter().map(|row| used.iter().map(|(key, is_text)| cell(row.get(*key), *is_text)).collect());
    for record in std::iter::once::<Vec<String>>(names).chain(cells) {
        // Into memory, and all records are of one length: it cannot fail.
        let _ = writer.write_record(&record);
    }
    text.push_str(&String::from_utf8_lossy(&writer.into_inner().unwrap_or_default()));
    text
}

/// What a profile says of itself, each line behind `mark`.
fn head(profile: &Profile, mark: &str) -> String {
    let mut text = String::new();
    let mut table = keys(&Profile { point: Vec::new(), table: None, ..profile.clone() });
    let order = [
        "profile",
        "version",
        "vendor",
        "model",
        "description",
        "source",
        "quirks",
        "addressing",
        "order",
        "period",
        "groups",
        "limits",
    ];
    for key in order {
        if let Some(value) = table.remove(key) {
            line(&mut text, mark, key, &value);
        }
    }
    for (key, value) in &table {
        line(&mut text, mark, key, value);
    }
    text
}

fn line(text: &mut String, mark: &str, key: &str, value: &Value) {
    // Writing into a String cannot fail.
    let _ = writeln!(text, "{mark}{key} = {value}");
}

/// The keys that are not at their defaults.
fn keys(of: &impl serde::Serialize) -> Table {
    let mut table = Table::try_from(of).unwrap_or_default();
    table.retain(|key, value| match value {
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Table(table) => !table.is_empty(),
        Value::Boolean(false) => key != "counter",
        Value::Boolean(true) => key != "enabled",
        _ => true,
    });
    table
}

fn cell(value: Option<&Value>, is_text: bool) -> String {
    match value {
        None => String::new(),
        Some(Value::String(text)) if is_text => text.clone(),
        Some(value) => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::{Report, Source, profile_file};

    fn read(text: String, csv: bool) -> Profile {
        let mut report = Report::default();
        let profile = profile_file(Source::new("p".into(), text), csv, &mut report);
        profile.unwrap_or_else(|| panic!("{:?}", report.errors))
    }

    #[test]
    fn every_profile_that_is_shipped_is_the_same_in_both_views() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/profiles");
        let mut count = 0;
        for file in std::fs::read_dir(folder).expect("profiles").flatten().map(|file| file.path()) {
            if file.extension().is_none_or(|extension| extension != "toml") {
                continue;
            }
            let profile = read(std::fs::read_to_string(&file).expect("a profile"), false);
            let (as_toml, as_csv) = (toml(&profile), csv(&profile));
            assert_eq!(read(as_toml.clone(), false), profile, "{}", file.display());
            assert_eq!(read(as_csv.clone(), true), profile, "{}:\n{as_csv}", file.display());
            assert_eq!(csv(&read(as_toml, false)), as_csv);
            count += 1;
        }
        assert!(count >= 12, "{count}");
    }

    #[test]
    fn every_key_of_a_point_is_a_column() {
        let row = r##"
            name = "#1, \"a\""
            table = "input"
            address = "0x10"
            type = "u32"
            order = "CDAB"
            bits = { shift = 4, width = 3 }
            unit = "V"
            scale = 1e-7
            offset = -0.0
            scale_from = "e"
            valid = [-1.0, 1e300]
            bad = [1, -1, "0xFFFFFFFFFFFFFFFF"]
            deadband = { percent = 0.5 }
            heartbeat = "1m"
            window = { every = "10s", stats = ["mean", "max"] }
            raw = false
            period = "250ms"
            description = " two\nlines; "
            labels = { 0 = "off", "-1" = "a,b" }
            bit_labels = { 3 = "door" }
            counter = true
            counter_modulus = 1000000
            max_rate = 0.1
            enabled = false
        "##;
        let text = format!(
            "profile = \"p\"\nversion = 7\naddressing = \"one\"\nquirks = [\"a, b;\", \"c\"]\n[limits]\ntimeout = \"2s\"\n[[point]]\n{row}"
        );
        let text = text.replace(" two\nlines; ", "two\\nlines;");
        let profile = read(text, false);
        assert_eq!(read(toml(&profile), false), profile);
        assert_eq!(read(csv(&profile), true), profile, "{}", csv(&profile));
        // As a spreadsheet writes it.
        let spread = csv(&profile).replace('\n', "\r\n");
        let spread = spread.replace("two\r\nlines", "two\nlines");
        assert_eq!(read(spread, true), profile);
    }
}
