//! Any CSV register list, told which of its columns is what.
//!
//! Its columns have names of their own, and its cells words of their own: [`Mapping`] says what they mean. Two columns
//! may be there that a profile has not: `function`, 1 to 4, names the table; `gain`, the number that the value was
//! multiplied with, is a scale turned over. A row whose words are not mapped is left out and named, never guessed.

use std::collections::{BTreeMap, BTreeSet};

use toml::Spanned;
use toml::de::{DeTable, DeValue};
use tributary_protocols::gather;
use tributary_protocols::modbus::config::{Addressing, PointRow};
use tributary_protocols::modbus::register::{Order, RegisterType};

use super::Imported;
use crate::config::{COLUMNS, read_value, separator};

/// What a list's columns and words mean.
#[derive(Clone, Debug, Default)]
pub struct Mapping {
    /// The column of each key: `address` → `"Register"`. A column that has the name of a key needs none.
    pub columns: BTreeMap<String, String>,
    /// What a word means in the column of a key: (`type`, `"FLOAT32"`) → `"f32"`.
    pub words: BTreeMap<(String, String), String>,
    /// The table of all rows, where no column tells.
    pub table: Option<String>,
    /// Whether addresses are hexadecimal without saying so.
    pub hex: bool,
    /// How addresses are written.
    pub addressing: Option<Addressing>,
    /// The byte order of values of several registers.
    pub order: Option<Order>,
}

/// Reads the list.
///
/// # Errors
/// What must be said beside it, or what is no list at all.
pub fn import(name: &str, text: &str, mapping: &Mapping) -> Result<Imported, String> {
    let Some(addressing) = mapping.addressing else {
        return Err("how are the addresses written? --addressing zero, one, modicon5 or modicon6".into());
    };
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(separator(text))
        .flexible(true)
        .trim(csv::Trim::All)
        .from_reader(text.as_bytes());
    let header = reader.headers().map_err(|error| format!("not CSV: {error}"))?.clone();
    if header.iter().all(str::is_empty) {
        return Err("the list is empty: its first line must name the columns".into());
    }
    let columns = columns(&header, mapping)?;
    let named = matches!(addressing, Addressing::Modicon5 | Addressing::Modicon6);
    if !named && mapping.table.is_none() && !columns.contains_key("table") && !columns.contains_key("function") {
        let help = "--table coil, discrete, input or holding, or --column table=NAME or function=NAME";
        return Err(format!("which table are its registers in? {help}"));
    }
    let mut left_out = Vec::new();
    let used: BTreeSet<usize> = gather(columns.values().copied());
    let unused: Vec<&str> = header
        .iter()
        .enumerate()
        .filter(|(at, name)| !used.contains(at) && !name.is_empty())
        .map(|(_, name)| name)
        .collect();
    if !unused.is_empty() {
        left_out.push(format!("columns that mean nothing here: {} (--column KEY=NAME maps one)", unused.join(", ")));
    }
    let mut profile = super::profile(name, addressing);
    profile.order = mapping.order.unwrap_or_default();
    let (mut lines, mut orderless) = (Vec::new(), None);
    for record in reader.records() {
        let record = record.map_err(|error| format!("not CSV: {error}"))?;
        let line = record.position().map_or(0, csv::Position::line);
        if record.iter().all(str::is_empty) {
            continue;
        }
        match row(&record, &columns, mapping) {
            Ok(row) => {
                if row.order.is_none() && row.ty.has_order() {
                    orderless.get_or_insert_with(|| row.name.clone());
                }
                profile.point.push(row);
                lines.push(format!("line {line}"));
            }
            Err(why) => left_out.push(format!("line {line}: {why}")),
        }
    }
    if let (Some(row), None) = (orderless, mapping.order) {
        let help = "--order ABCD, CDAB, BADC or DCBA, or a column `order`; probe shows which is right";
        return Err(format!("{row} takes several registers: in which order are its bytes? {help}"));
    }
    Imported::sound(profile, lines, left_out)
}

/// The column of each key.
fn columns(header: &csv::StringRecord, mapping: &Mapping) -> Result<BTreeMap<String, usize>, String> {
    let keys = || COLUMNS.iter().map(|(key, _)| *key).chain(["function", "gain"]);
    let find = |name: &str| header.iter().position(|column| column.eq_ignore_ascii_case(name));
    let mut columns = BTreeMap::new();
    for (key, name) in &mapping.columns {
        if !keys().any(|known| known == key) {
            return Err(format!("--column {key}=…: {key} is no key; {}", keys().collect::<Vec<_>>().join(", ")));
        }
        let there = || header.iter().collect::<Vec<_>>().join(", ");
        let at = find(name).ok_or_else(|| format!("no column is called {name:?}; there are: {}", there()))?;
        if header.iter().filter(|column| column.eq_ignore_ascii_case(name)).count() > 1 {
            return Err(format!("several columns are called {name:?}: which is the {key}? Rename the others"));
        }
        columns.insert(key.clone(), at);
    }
    for key in keys() {
        if let (false, Some(at)) = (columns.contains_key(key), find(key)) {
            columns.insert(key.to_owned(), at);
        }
    }
    for key in ["name", "address", "type"] {
        if !columns.contains_key(key) {
            let there = header.iter().collect::<Vec<_>>().join(", ");
            return Err(format!("which column is the {key}? --column {key}=NAME; there are: {there}"));
        }
    }
    Ok(columns)
}

/// One row, by way of the words that TOML would have for it.
fn row(record: &csv::StringRecord, columns: &BTreeMap<String, usize>, mapping: &Mapping) -> Result<PointRow, String> {
    let cell = |key: &str| {
        let text = record.get(*columns.get(key)?).filter(|text| !text.is_empty())?;
        let meant = mapping.words.get(&(key.to_owned(), text.to_owned()));
        Some(meant.map_or(text, String::as_str)).filter(|text| !text.is_empty())
    };
    let word = |text: String| Spanned::new(0..0, DeValue::String(text.into()));
    let named = |key: &'static str| Spanned::new(0..0, key.into());
    let mut table = DeTable::new();
    for (key, is_text) in COLUMNS {
        let Some(text) = cell(key) else { continue };
        let value = match key {
            "address" if mapping.hex && !text.starts_with("0x") => word(format!("0x{text}")),
            _ if is_text => word(text.to_owned()),
            _ => {
                DeValue::parse(text).map_err(|_| format!("{text:?} is no {key} as TOML has it: 0.1, [65535], true"))?
            }
        };
        table.insert(named(key), value);
    }
    let known = match cell("function") {
        None => mapping.table.as_deref(),
        Some("1" | "01") => Some("coil"),
        Some("2" | "02") => Some("discrete"),
        Some("3" | "03") => Some("holding"),
        Some("4" | "04") => Some("input"),
        Some(other) => return Err(format!("function {other} does not read a table; 1 to 4 do")),
    };
    if let (Some(known), false) = (known, table.contains_key("table")) {
        table.insert(named("table"), word(known.to_owned()));
    }
    let scale;
    if let Some(gain) = cell("gain") {
        let number = gain.parse::<f64>().ok().filter(|gain| *gain != 0.0 && gain.is_finite());
        let number = number.ok_or_else(|| format!("the gain {gain:?} is no number but 0"))?;
        if table.contains_key("scale") {
            return Err("a scale and a gain: which of the two? --column gain=… or scale=…, not both".into());
        }
        if number != 1.0 {
            scale = format!("{:?}", 1.0 / number);
            let value = DeValue::parse(&scale).map_err(|_| format!("the gain {gain:?} is too small"))?;
            table.insert(named("scale"), value);
        }
    }
    if let Some(DeValue::String(ty)) = table.get("type").map(Spanned::get_ref)
        && let Err(error) = RegisterType::try_from(ty.clone().into_owned())
    {
        return Err(format!("{error} (--map type:{ty}=…)"));
    }
    read_value(&Spanned::new(0..0, DeValue::Table(table))).map_err(|misfit| misfit.message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping() -> Mapping {
        let words = [(("type", "FLOAT32"), "f32"), (("type", "UINT16"), "u16"), (("unit", "kWh"), "kW.h")];
        Mapping {
            columns: [
                ("name", "Tag"),
                ("address", "Register"),
                ("type", "Format"),
                ("function", "FC"),
                ("unit", "Unit"),
            ]
            .map(|(key, name)| (key.to_owned(), name.to_owned()))
            .into(),
            words: words.map(|((key, word), meant)| ((key.to_owned(), word.to_owned()), meant.to_owned())).into(),
            addressing: Some(Addressing::One),
            order: Some(Order::CDAB),
            ..Mapping::default()
        }
    }

    const LIST: &str = "Tag;Register;Format;FC;Unit;Gain;Remark\n\
        energy;101;FLOAT32;4;kWh;;\nvoltage;0x10;UINT16;3;V;10;x\nstate;5;ENUM;3;;;\nwrite;6;UINT16;6;;;\n;;;;;;\nlast;0;UINT16;3;;;\n";

    #[test]
    fn a_list_is_read_as_it_is_told() {
        let found = import("acme", LIST, &mapping()).expect("a profile");
        let mut energy = super::super::row("energy", 101, "f32".parse().expect("a type"));
        (energy.table, energy.unit) = (Some(tributary_protocols::modbus::register::Table::Input), "kW.h".into());
        let mut voltage = super::super::row("voltage", 16, "u16".parse().expect("a type"));
        (voltage.table, voltage.unit) = (Some(tributary_protocols::modbus::register::Table::Holding), "V".into());
        voltage.scale = Some(0.1);
        assert_eq!(found.profile.point, [energy, voltage]);
        assert_eq!(found.profile.order, Order::CDAB);
        let said = found.left_out.join("\n");
        for part in
            ["Remark", "line 4: no type is called \"ENUM\"", "--map type:ENUM=…", "line 5: function 6", "last: address"]
        {
            assert!(said.contains(part), "{part:?} is not in\n{said}");
        }
    }

    #[test]
    fn what_is_not_said_is_asked_for() {
        let refused = |change: fn(&mut Mapping)| {
            let mut mapping = mapping();
            change(&mut mapping);
            import("acme", LIST, &mapping).expect_err("refused")
        };
        assert!(refused(|mapping| mapping.addressing = None).contains("--addressing"));
        assert!(refused(|mapping| mapping.order = None).contains("energy takes several registers"));
        assert!(refused(|mapping| drop(mapping.columns.remove("type"))).contains("which column is the type?"));
        assert!(refused(|mapping| drop(mapping.columns.insert("typ".into(), "FC".into()))).contains("typ is no key"));
        assert!(
            refused(|mapping| drop(mapping.columns.insert("bad".into(), "No".into()))).contains("no column is called")
        );
    }
}
