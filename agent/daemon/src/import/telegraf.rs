//! `[[inputs.modbus]]` of Telegraf, register style: byte order and address are said there, addresses as on the wire.
//!
//! Its fixed-point types (`FIXED`, `UFIXED`, and `FLOAT32`, an old name of `UFIXED`) are integers as wide as their
//! addresses with a scale. One file may have several devices: each becomes a profile.

use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeTable, DeValue};
use tributary_protocols::modbus::config::{Addressing, PointRow};
use tributary_protocols::modbus::register::{Order, RegisterType, Table};

use super::Imported;
use crate::config::{Misfit, read_value};

#[derive(Deserialize)]
struct Device {
    #[serde(default)]
    name: String,
    #[serde(default)]
    configuration_type: Option<String>,
}

/// The keys of a device that are read, its lists of fields among them.
const OF_DEVICE: [&str; 6] =
    ["name", "configuration_type", "coils", "discrete_inputs", "holding_registers", "input_registers"];

#[derive(Deserialize)]
struct Field {
    name: String,
    #[serde(default)]
    byte_order: Option<String>,
    #[serde(default)]
    data_type: Option<String>,
    #[serde(default)]
    scale: Option<f64>,
    #[serde(default)]
    bit: Option<u8>,
    address: Vec<u16>,
}

/// The keys of a field that are read; `measurement` is named among the others.
const OF_FIELD: [&str; 6] = ["name", "byte_order", "data_type", "scale", "bit", "address"];

/// The keys of a table that are not among those.
fn more<'v>(value: &'v Spanned<DeValue<'_>>, known: &[&str]) -> Vec<&'v str> {
    let keys = value.get_ref().as_table().into_iter().flat_map(|table| table.keys());
    keys.map(|key| key.get_ref().as_ref()).filter(|key| !known.contains(key)).collect()
}

fn list<'v>(value: &'v DeValue<'_>, key: &str) -> &'v [Spanned<DeValue<'v>>] {
    value.get(key).and_then(|list| list.get_ref().as_array()).map_or(&[], |list| &**list)
}

/// Reads a Telegraf configuration: a profile for each of its Modbus inputs. `name` is the first's, the others are
/// numbered.
///
/// # Errors
/// What is no such configuration.
pub fn import(name: &str, text: &str) -> Result<Vec<Imported>, String> {
    let fault = |error: String| format!("no configuration of Telegraf: {error}");
    let root = DeTable::parse(text).map_err(|error| fault(error.to_string()))?.into_inner();
    let inputs = root.get("inputs").map(|inputs| inputs.get_ref());
    let devices = inputs.map_or(&[][..], |inputs| list(inputs, "modbus"));
    if devices.is_empty() {
        return Err("no [[inputs.modbus]] is in it".into());
    }
    let devices = devices.iter().enumerate();
    devices
        .map(|(number, device)| {
            let name = if number == 0 { name.to_owned() } else { format!("{name}-{}", number + 1) };
            one(&name, device, text)
        })
        .collect()
}

fn one(name: &str, value: &Spanned<DeValue<'_>>, text: &str) -> Result<Imported, String> {
    let fault = |misfit: Misfit| {
        let before = text.get(..misfit.span.as_ref().map_or(0, |span| span.start)).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        format!("no configuration of Telegraf: line {line}, {}: {misfit}", misfit.path)
    };
    let device: Device = read_value(value).map_err(fault)?;
    if let Some(style) = device.configuration_type.as_deref().filter(|style| *style != "register") {
        return Err(format!("configuration_type = {style:?} is not read here, only \"register\" is"));
    }
    let mut profile = super::profile(name, Addressing::Zero);
    profile.description = device.name;
    let mut left_out = Vec::new();
    let keys = more(value, &OF_DEVICE);
    if !keys.is_empty() {
        left_out.push(format!("{}: these belong to [[bus]] and [[device]]", keys.join(", ")));
    }
    let tables = [
        (Table::Coil, "coils"),
        (Table::Discrete, "discrete_inputs"),
        (Table::Holding, "holding_registers"),
        (Table::Input, "input_registers"),
    ];
    for (table, key) in tables {
        for value in list(value.get_ref(), key) {
            let field: Field = read_value(value).map_err(fault)?;
            match point(table, &field) {
                Ok(point) => profile.point.push(point),
                Err(why) => left_out.push(format!("{} {}: {why}", table.name(), field.name)),
            }
            let more = more(value, &OF_FIELD);
            if !more.is_empty() {
                left_out.push(format!("{} {}: its {}", table.name(), field.name, more.join(", ")));
            }
        }
    }
    Imported::sound(profile, Vec::new(), left_out)
}

fn point(table: Table, field: &Field) -> Result<PointRow, String> {
    let first = *field.address.first().ok_or("no address")?;
    let count = field.address.len();
    let in_a_row = field.address.iter().enumerate().all(|(n, at)| usize::from(*at) == usize::from(first) + n);
    if !in_a_row {
        return Err(format!("addresses {:?} do not follow each other", field.address));
    }
    let bits = matches!(table, Table::Coil | Table::Discrete);
    let data_type = match (&field.data_type, bits) {
        (None, true) => "BOOL",
        (Some(ty), _) => ty.as_str(),
        (None, false) => return Err("no data_type".into()),
    };
    let fixed = |signed: &str| format!("{signed}{}", 16 * count);
    let ty = match data_type {
        "BOOL" if bits => "bool".to_owned(),
        "BIT" => fixed("u"),
        "UINT8H" => "u8_high".into(),
        "UINT8L" => "u8_low".into(),
        "INT8H" => "i8_high".into(),
        "INT8L" => "i8_low".into(),
        "UINT16" | "UINT32" | "UINT64" => data_type.replace("UINT", "u"),
        "INT16" | "INT32" | "INT64" => data_type.replace("INT", "i"),
        "FLOAT16-IEEE" => "f16".into(),
        "FLOAT32-IEEE" => "f32".into(),
        "FLOAT64-IEEE" => "f64".into(),
        "UFIXED" | "FLOAT32" => fixed("u"),
        "FIXED" => fixed("i"),
        "STRING" => format!("string({})", 2 * count),
        other => return Err(format!("data_type {other:?}")),
    };
    let ty = RegisterType::try_from(ty).map_err(|error| error.to_string())?;
    if usize::from(ty.width()) != count {
        return Err(format!("{data_type} takes {} registers, not {count}", ty.width()));
    }
    // One that is of another length was meant for something else.
    let bytes = field.byte_order.as_deref().map_or(2 * count, str::len);
    if ty.has_order() && bytes != 2 * count {
        return Err(format!("a byte_order of {bytes} bytes, but {data_type} has {}", 2 * count));
    }
    let mut row = super::row(&field.name, i128::from(first), ty);
    row.table = Some(table);
    let order = match field.byte_order.as_deref() {
        None if bits => None,
        None if ty.has_order() => return Err("no byte_order: ABCD, CDAB, BADC or DCBA".into()),
        None => None,
        Some("AB" | "ABCD" | "ABCDEFGH") => Some(Order::ABCD),
        Some("CDAB" | "GHEFCDAB") => Some(Order::CDAB),
        Some("BADC" | "BADCFEHG") => Some(Order::BADC),
        Some("DCBA" | "HGFEDCBA") => Some(Order::DCBA),
        Some("BA") if matches!(ty, RegisterType::String(..)) => {
            row.ty =
                RegisterType::try_from(format!("string_swapped({})", 2 * count)).map_err(|error| error.to_string())?;
            None
        }
        Some("BA") => return Err("byte_order \"BA\": the bytes of a single register stay in their order here".into()),
        Some(other) => return Err(format!("byte_order {other:?}: ABCD, CDAB, BADC or DCBA")),
    };
    row.order = order.filter(|_| ty.has_order());
    row.scale = field.scale.filter(|scale| *scale != 1.0 && *scale != 0.0);
    if data_type == "BIT" {
        row.bit = Some(field.bit.ok_or("BIT without `bit`")?);
    }
    Ok(row)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"
        [agent]
        interval = "10s"
        [[inputs.modbus]]
        name = "meter"
        slave_id = 1
        controller = "tcp://localhost:502"
        discrete_inputs = [{ name = "door", address = [3] }]
        holding_registers = [
          { name = "power", byte_order = "CDAB", data_type = "INT32", scale = 0.1, address = [10, 11] },
          { name = "level", byte_order = "AB", data_type = "UFIXED", scale = 0.01, address = [12] },
          { name = "energy", byte_order = "HGFEDCBA", data_type = "UINT64", scale = 1.0, address = [20, 21, 22, 23] },
          { name = "text", byte_order = "BA", data_type = "STRING", scale = 1.0, address = [30, 31] },
          { name = "alarm", byte_order = "AB", data_type = "BIT", bit = 3, address = [32] },
          { name = "swapped", byte_order = "BA", data_type = "UINT16", scale = 1.0, address = [40] },
          { name = "apart", byte_order = "ABCD", data_type = "UINT32", scale = 1.0, address = [41, 43] },
          { name = "short", byte_order = "ABCD", data_type = "FLOAT32-IEEE", scale = 1.0, address = [44] },
          { name = "odd", byte_order = "AB", data_type = "WORD", scale = 1.0, address = [45], tags = { a = "b" } },
          { name = "other", byte_order = "AB", data_type = "INT32", scale = 1.0, address = [50, 51] },
        ]
        [[inputs.modbus]]
        input_registers = [{ name = "t", byte_order = "ABCD", data_type = "FLOAT32-IEEE", address = [0, 1] }]
    "#;

    #[test]
    fn registers_are_read_as_they_are_described() {
        let found = import("acme", FILE).expect("profiles");
        assert_eq!(found.iter().map(|one| one.profile.profile.as_str()).collect::<Vec<_>>(), ["acme", "acme-2"]);
        let text = super::super::write::csv(&found[0].profile);
        let (_, rows) = text.split_once("\n\n").unwrap_or(("", text.as_str()));
        for row in [
            "door,discrete,3,bool,,,",
            "power,holding,10,i32,CDAB,,0.1",
            "level,holding,12,u16,,,0.01",
            "energy,holding,20,u64,DCBA,,",
            "text,holding,30,string_swapped(4),,,",
            "alarm,holding,32,u16,,3,",
        ] {
            assert!(rows.contains(row), "{row:?} is not in\n{rows}");
        }
        let said = found[0].left_out.join("\n");
        for part in [
            "swapped: byte_order \"BA\"",
            "apart: addresses",
            "short: FLOAT32-IEEE takes 2",
            "odd: data_type",
            "odd: its tags",
            "other: a byte_order of 2 bytes, but INT32 has 4",
            "controller, slave_id: these belong to [[bus]] and [[device]]",
        ] {
            assert!(said.contains(part), "{part:?} is not in\n{said}");
        }
        assert_eq!(found[0].left_out.len(), 7, "{said}");
    }

    #[test]
    fn what_is_no_such_file_is_refused() {
        for text in [
            "",
            "[agent]",
            "[[inputs.modbus]]\nconfiguration_type = \"request\"",
            "[[inputs.modbus]]\ncoils = [{ name = 1 }]",
        ] {
            assert!(import("acme", text).is_err(), "{text}");
        }
    }
}
