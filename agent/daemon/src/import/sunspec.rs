//! SunSpec model definitions → a profile of a device that has these models.
//!
//! A definition (SunSpec Information Model Specification, JSON encoding) names the points of a model and how long they
//! are; where they stand follows from the device's chain of models: `SunS` at a base, then models one behind the other,
//! each with its number and length. [`layout`] lays them out, either along a chain that was read ([`Model::image`], then
//! counts of repeating groups are known) or along one that is stated.
//!
//! Sentinels for "not implemented" become `bad`, scale factors `scale_from`, symbols labels. An accumulator's "not
//! accumulated" is 0, which a new meter shows too: it is left a value.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use tributary_protocols::gather;
use tributary_protocols::modbus::config::{Addressing, PointRow, Profile};
use tributary_protocols::modbus::register::{RegisterType, Table};
use tributary_protocols::number::Number;

use super::Imported;

/// `SunS`, the two registers before the first model.
pub const MARK: [u16; 2] = [0x5375, 0x6E53];
/// Where a device may have it, in the order in which they are looked at (SunSpec Device Information Model, 4.1).
pub const BASES: [u16; 3] = [40_000, 50_000, 0];
/// The number of the model that ends the chain.
pub const END: u16 = 0xFFFF;

/// A definition, as SunSpec publishes it: `model_103.json`.
#[derive(Clone, Debug, Deserialize)]
pub struct Definition {
    /// The model's number.
    pub id: u16,
    group: Group,
}

#[derive(Clone, Debug, Deserialize)]
struct Group {
    name: String,
    #[serde(default)]
    count: Option<Count>,
    #[serde(default)]
    points: Vec<Point>,
    #[serde(default)]
    groups: Vec<Group>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Count {
    Number(u16),
    Point(String),
}

#[derive(Clone, Debug, Deserialize)]
struct Point {
    name: String,
    #[serde(rename = "type")]
    ty: String,
    size: u16,
    #[serde(default)]
    sf: Option<Factor>,
    #[serde(default)]
    units: Option<String>,
    #[serde(default)]
    label: Option<String>,
    #[serde(default)]
    symbols: Vec<Symbol>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Factor {
    Number(i32),
    Point(String),
}

#[derive(Clone, Debug, Deserialize)]
struct Symbol {
    name: String,
    value: i64,
}

/// A model as a device has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    /// Its number.
    pub id: u16,
    /// Where its number stands, as on the wire.
    pub address: u16,
    /// Registers behind number and length.
    pub length: u16,
    /// All its registers, number and length included, if they were read.
    pub image: Vec<u16>,
}

/// Reads a definition.
///
/// # Errors
/// What is none.
pub fn definition(text: &str) -> Result<Definition, String> {
    let found: Definition =
        serde_json::from_str(text).map_err(|error| format!("no SunSpec model definition in JSON: {error}"))?;
    match found.group.points.as_slice() {
        [id, length, ..] if id.is("ID") && length.is("L") => Ok(found),
        _ => Err("no SunSpec model definition: its first points must be ID and L, a register each".into()),
    }
}

impl Group {
    /// Registers of its own points.
    fn own(&self) -> u32 {
        self.points.iter().fold(0, |sum: u32, point| sum.saturating_add(u32::from(point.size)))
    }

    /// Registers of its points and of all groups in it, each as often as `times` says; else that group's name.
    fn size(&self, times: &impl Fn(&Self) -> Option<u16>) -> Result<u32, &str> {
        self.groups.iter().try_fold(self.own(), |sum, inner| {
            let times_there = u32::from(times(inner).ok_or(inner.name.as_str())?);
            Ok(sum.saturating_add(inner.size(times)?.saturating_mul(times_there)))
        })
    }
}

impl Point {
    /// Whether it is the register of this name.
    fn is(&self, name: &str) -> bool {
        self.name == name && self.size == 1
    }
}

/// The chain of models of these definitions, one behind the other from `base`, repeating groups as often as `counts`
/// says (by the group's name).
///
/// # Errors
/// A repeating group of which nobody says how often.
pub fn chain(base: u16, definitions: &[Definition], counts: &BTreeMap<String, u16>) -> Result<Vec<Model>, String> {
    let mut address = base.checked_add(2).ok_or("the base is too high")?;
    let mut models = Vec::new();
    let times = |group: &Group| match (&group.count, counts.get(&group.name)) {
        (None, _) => Some(1),
        (Some(Count::Number(count @ 1..)), _) => Some(*count),
        (_, count) => count.copied(),
    };
    for definition in definitions {
        let length = definition.group.size(&times).map_err(|group| {
            let help = format!("--count {group}=N, or read it from the device: --tcp HOST --unit-id N");
            format!("model {}: how often is the group {group:?} there? {help}", definition.id)
        })?;
        // Number and length are among the definition's points.
        let length = u16::try_from(length.saturating_sub(2)).map_err(|_| "the models are too long".to_owned())?;
        models.push(Model { id: definition.id, address, length, image: Vec::new() });
        let next = address.checked_add(length).and_then(|next| next.checked_add(2));
        address = next.ok_or("the models do not fit below 65536")?;
    }
    Ok(models)
}

/// A profile of a device with these models; of one without a definition only its place is told.
///
/// # Errors
/// Nothing of it makes a point.
pub fn layout(
    name: &str,
    models: &[Model],
    definitions: &BTreeMap<u16, Definition>,
    counts: &BTreeMap<String, u16>,
) -> Result<Imported, String> {
    let mut profile = super::profile(name, Addressing::Zero);
    profile.source = "SunSpec model definitions".into();
    let mut left_out = Vec::new();
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for model in models {
        let Some(definition) = definitions.get(&model.id) else {
            let end = u32::from(model.address) + u32::from(model.length) + 1;
            left_out.push(format!("model {} at {} to {end}: no definition of it is here", model.id, model.address));
            continue;
        };
        let times = seen.entry(definition.group.name.clone()).or_default();
        *times += 1;
        let prefix = match *times {
            1 => definition.group.name.clone(),
            more => format!("{}{more}", definition.group.name),
        };
        let mut place = Place {
            model,
            counts,
            at: 0,
            short: false,
            profile: &mut profile,
            left_out: &mut left_out,
            scales: Vec::new(),
            counted: Vec::new(),
        };
        place.group(&definition.group, &prefix, true);
        let (at, end) = (place.at, place.end());
        if at != end && !place.short {
            left_out
                .push(format!("model {}: its definition ends after {at} registers, the device has {end}", model.id));
        }
    }
    let used: BTreeSet<String> = gather(profile.point.iter().filter_map(|row| row.scale_from.clone()));
    let mut found = Imported::sound(profile, Vec::new(), left_out)?;
    // Factors that no point uses say nothing.
    found.profile.point.retain(|row| row.unit != FACTOR || used.contains(&row.name));
    for row in &mut found.profile.point {
        if row.unit == FACTOR {
            row.unit.clear();
        }
    }
    Ok(found)
}

/// The unit of scale factors while a profile is made. Nothing else has it: "1" is the unit of power factors.
const FACTOR: &str = "{factor}";

struct Place<'m> {
    model: &'m Model,
    counts: &'m BTreeMap<String, u16>,
    /// Registers from the model's number on.
    at: u32,
    profile: &'m mut Profile,
    left_out: &'m mut Vec<String>,
    /// Scale factors that are known here: of the groups around, the nearest last.
    scales: Vec<(String, String)>,
    /// What the single registers of the groups around hold, the nearest last: counts are among them.
    counted: Vec<(String, u16)>,
    /// Whether the device's model has ended before its definition.
    short: bool,
}

impl Place<'_> {
    /// Registers of the model, number and length included.
    fn end(&self) -> u32 {
        u32::from(self.model.length) + 2
    }

    fn group(&mut self, group: &Group, prefix: &str, top: bool) {
        let scope = (self.scales.len(), self.counted.len());
        let factors = group.points.iter().filter(|point| point.ty == "sunssf");
        self.scales.extend(factors.map(|point| (point.name.clone(), format!("{prefix}.{}", point.name))));
        for point in &group.points {
            let next = self.at.saturating_add(u32::from(point.size));
            // Behind its end the next model begins, whose registers mean something else.
            if next > self.end() {
                if point.ty != "pad" && !self.short {
                    let (id, name) = (self.model.id, &point.name);
                    self.left_out
                        .push(format!("model {id}: from {prefix}.{name} on, for the device's model is shorter"));
                    self.short = true;
                }
                return;
            }
            if !(top && matches!(point.name.as_str(), "ID" | "L")) {
                self.point(point, prefix);
            }
            let register = usize::try_from(self.at).ok().and_then(|at| self.model.image.get(at));
            if let (1, Some(register)) = (point.size, register) {
                self.counted.push((point.name.clone(), *register));
            }
            self.at = next;
        }
        for inner in &group.groups {
            let Some(times) = self.times(inner) else {
                let text = format!("model {}: group {}: how often it is there is not known", self.model.id, inner.name);
                self.left_out.push(text);
                self.short = true;
                return;
            };
            for number in 1..=times {
                let prefix = match inner.count {
                    None => format!("{prefix}.{}", inner.name),
                    Some(_) => format!("{prefix}.{}{number}", inner.name),
                };
                let before = self.at;
                self.group(inner, &prefix, false);
                if self.short {
                    return;
                }
                // However often nothing is there, it stays nothing.
                if self.at == before {
                    break;
                }
            }
        }
        self.scales.truncate(scope.0);
        self.counted.truncate(scope.1);
    }

    /// How often a group is there.
    fn times(&self, group: &Group) -> Option<u16> {
        let stated = self.counts.get(&group.name).copied();
        match &group.count {
            None => Some(1),
            Some(Count::Number(0)) => stated.or_else(|| {
                // To the end of the model.
                let each = group.size(&|inner| self.times(inner)).ok()?;
                let rest = self.end().checked_sub(self.at)?;
                u16::try_from(rest.checked_div(each)?).ok()
            }),
            Some(Count::Number(count)) => Some(*count),
            Some(Count::Point(name)) => stated.or_else(|| {
                let counted = self.counted.iter().rev().find(|(known, _)| known == name);
                counted.map(|(_, count)| *count).filter(|count| *count != 0xFFFF)
            }),
        }
    }

    fn point(&mut self, point: &Point, prefix: &str) {
        let name = format!("{prefix}.{}", point.name);
        let kind = match kind(point) {
            Ok(Some(kind)) => kind,
            Ok(None) => return,
            Err(why) => {
                self.left_out.push(format!("{name}: {why}"));
                return;
            }
        };
        if point.ty == "string" && !self.model.image.is_empty() {
            self.say_of_device(point);
        }
        let address = i128::from(self.model.address) + i128::from(self.at);
        let mut row = super::row(&name, address, kind.ty);
        row.table = Some(Table::Holding);
        row.bad = kind.bad.into_iter().map(Number::Int).collect();
        row.description = point.label.clone().unwrap_or_default();
        if let Some(units) = &point.units {
            match ucum(units) {
                Some(unit) => row.unit = unit.into(),
                None => self.left_out.push(format!("{name}: its unit {units:?}")),
            }
        }
        if point.ty == "sunssf" {
            row.unit = FACTOR.into();
        }
        match &point.sf {
            None => {}
            Some(Factor::Number(0)) => {}
            Some(Factor::Number(exponent)) => row.scale = Some(10_f64.powi(*exponent)),
            Some(Factor::Point(factor)) => match self.scales.iter().rev().find(|(known, _)| known == factor) {
                Some((_, full)) => row.scale_from = Some(full.clone()),
                None => {
                    self.left_out.push(format!("{name}: its scale factor {factor} is not there, so neither is it"));
                    return;
                }
            },
        }
        self.symbols(point, &mut row);
        if let Some(modulus) = kind.counts {
            (row.counter, row.counter_modulus) = (true, modulus);
        }
        self.profile.point.push(row);
    }

    fn symbols(&mut self, point: &Point, row: &mut PointRow) {
        for symbol in &point.symbols {
            let (value, name) = (symbol.value.to_string(), symbol.name.clone());
            match point.ty.as_str() {
                "bitfield16" | "bitfield32" | "bitfield64" => row.bit_labels.insert(value, name),
                _ => row.labels.insert(value, name),
            };
        }
    }

    /// Maker and type, from the common model's texts.
    fn say_of_device(&mut self, point: &Point) {
        let from = usize::try_from(self.at).unwrap_or(usize::MAX);
        let registers = self.model.image.get(from..from.saturating_add(usize::from(point.size))).unwrap_or(&[]);
        let bytes: Vec<u8> = registers.iter().flat_map(|register| register.to_be_bytes()).collect();
        let text = String::from_utf8_lossy(&bytes);
        let text = text.split('\0').next().unwrap_or("").trim().to_owned();
        match (self.model.id, point.name.as_str()) {
            (1, "Mn") => self.profile.vendor = text,
            (1, "Md") => self.profile.model = text,
            _ => {}
        }
    }
}

struct Kind {
    ty: RegisterType,
    bad: Option<i128>,
    /// Of an accumulator: where it rolls over, if that is a number below 2^64.
    counts: Option<Option<u64>>,
}

/// What a type of SunSpec is here; `None` for padding.
fn kind(point: &Point) -> Result<Option<Kind>, String> {
    let (ty, bad, counts) = match point.ty.as_str() {
        "pad" => return Ok(None),
        "int16" | "sunssf" => ("i16", Some(0x8000), None),
        "uint16" | "enum16" | "bitfield16" => ("u16", Some(0xFFFF), None),
        "count" => ("u16", None, None),
        "acc16" => ("u16", None, Some(Some(1 << 16))),
        "int32" => ("i32", Some(0x8000_0000), None),
        "uint32" | "enum32" | "bitfield32" => ("u32", Some(0xFFFF_FFFF), None),
        "acc32" => ("u32", None, Some(Some(1 << 32))),
        "int64" => ("i64", Some(0x8000_0000_0000_0000), None),
        "uint64" | "bitfield64" => ("u64", Some(0xFFFF_FFFF_FFFF_FFFF), None),
        "acc64" => ("u64", None, Some(None)),
        "float32" => ("f32", Some(0x7FC0_0000), None),
        "float64" => ("f64", Some(0x7FF8_0000_0000_0000), None),
        "string" => {
            let ty = RegisterType::try_from(format!("string({})", u32::from(point.size) * 2));
            return ty.map(|ty| Some(Kind { ty, bad: None, counts: None })).map_err(|error| error.to_string());
        }
        "ipaddr" | "ipv6addr" | "eui48" => {
            let ty = RegisterType::try_from(format!("bytes({})", u32::from(point.size) * 2));
            return ty.map(|ty| Some(Kind { ty, bad: None, counts: None })).map_err(|error| error.to_string());
        }
        other => return Err(format!("type {other:?}")),
    };
    let ty = RegisterType::try_from(ty.to_owned()).map_err(|error| error.to_string())?;
    if ty.width() != point.size {
        return Err(format!("{} of {} registers", point.ty, point.size));
    }
    Ok(Some(Kind { ty, bad, counts }))
}

/// SunSpec's units in UCUM; `None` for those that are not known here.
fn ucum(units: &str) -> Option<&'static str> {
    Some(match units.trim() {
        "A" => "A",
        "V" => "V",
        "W" => "W",
        "Wh" | "WH" => "W.h",
        "kWh" => "kW.h",
        "VA" => "V.A",
        "VAh" => "V.A.h",
        "var" | "Var" => "V.A{reactive}",
        "varh" | "Varh" => "V.A.h{reactive}",
        "Hz" => "Hz",
        "Hz/s" => "Hz/s",
        "C" => "Cel",
        "Pct" | "WMaxPct" | "VarPct" | "VNomPct" => "%",
        // Percent of a rating.
        percent if percent.starts_with('%') && !percent.contains('/') => "%",
        "Secs" | "Sec" | "S" | "Tms" => "s",
        "mSecs" => "ms",
        "Ah" | "AH" => "A.h",
        "kAH" => "kA.h",
        "ohms" => "Ohm",
        "kO" => "kOhm",
        "deg" | "Degrees" => "deg",
        "cos()" | "PF" | "SF" => "1",
        "W/m2" | "W/m^2" => "W/m2",
        "m/s" | "mps" => "m/s",
        "HPa" => "hPa",
        "mm" => "mm",
        "meters" => "m",
        "bps" => "bit/s",
        "Mbps" => "Mbit/s",
        "V/s" => "V/s",
        "W/s" => "W/s",
        "A/s" => "A/s",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A model of our own in SunSpec's form: two phases, one of which has a factor, and a group with a count.
    const MODEL: &str = r#"{ "id": 64001, "group": { "name": "own", "type": "group",
        "points": [
            { "name": "ID", "type": "uint16", "size": 1 }, { "name": "L", "type": "uint16", "size": 1 },
            { "name": "A", "type": "uint16", "size": 1, "sf": "A_SF", "units": "A", "label": "Amps" },
            { "name": "A_SF", "type": "sunssf", "size": 1 }, { "name": "B_SF", "type": "sunssf", "size": 1 },
            { "name": "WH", "type": "acc32", "size": 2, "units": "Wh", "sf": 2 },
            { "name": "St", "type": "enum16", "size": 1, "symbols": [{ "name": "OFF", "value": 1 }] },
            { "name": "Pad", "type": "pad", "size": 1 }, { "name": "X", "type": "raw", "size": 3, "units": "furlong" },
            { "name": "Y", "type": "uint16", "size": 1, "sf": "none" },
            { "name": "N", "type": "count", "size": 1 } ],
        "groups": [{ "name": "part", "type": "group", "count": "N",
            "points": [{ "name": "V", "type": "int16", "size": 1, "sf": "A_SF" }] }] } }"#;

    #[test]
    fn points_stand_where_the_chain_has_them() {
        let definitions: BTreeMap<u16, Definition> = [(64001, definition(MODEL).expect("a definition"))].into();
        let mut image = vec![0; 16];
        image[13] = 2;
        let models = [
            Model { id: 64001, address: 40_070, length: 14, image },
            Model { id: 7, address: 9, length: 1, image: vec![] },
        ];
        let found = layout("own", &models, &definitions, &BTreeMap::new()).expect("a profile");
        let text = super::super::write::csv(&found.profile);
        for row in [
            "own.A,holding,40072,u16,A,,own.A_SF,[65535],Amps",
            "own.A_SF,holding,40073,i16,,,,[32768]",
            "own.WH,holding,40075,u32,W.h,100.0,,,,,true,4294967296",
            "own.St,holding,40077,u16,,,,[65535],,\"{ 1 = \"\"OFF\"\" }\"",
            "own.N,holding,40083,u16",
            "own.part1.V,holding,40084,i16,,,own.A_SF",
            "own.part2.V,holding,40085,i16,,,own.A_SF",
        ] {
            assert!(text.contains(row), "{row:?} is not in\n{text}");
        }
        assert!(!text.contains("B_SF"), "a factor of nothing\n{text}");
        let said = found.left_out.join("\n");
        for part in ["own.X: type \"raw\"", "own.Y: its scale factor none", "model 7 at 9 to 11: no definition"] {
            assert!(said.contains(part), "{part:?} is not in\n{said}");
        }
    }

    #[test]
    fn a_stated_chain_needs_the_counts() {
        let definitions = [definition(MODEL).expect("a definition")];
        let error = chain(40_000, &definitions, &BTreeMap::new()).expect_err("no count");
        assert!(error.contains("--count part=N"), "{error}");
        let models = chain(40_000, &definitions, &[("part".to_owned(), 3)].into()).expect("a chain");
        assert_eq!((models[0].address, models[0].length), (40_002, 15));
        assert!(definition("{}").is_err());
    }

    /// Curves as in models 705 to 712: how many points each has stands beside how many curves there are.
    const CURVES: &str = r#"{ "id": 64002, "group": { "name": "curves", "points": [
            { "name": "ID", "type": "uint16", "size": 1 }, { "name": "L", "type": "uint16", "size": 1 },
            { "name": "NPt", "type": "uint16", "size": 1 }, { "name": "NCrv", "type": "uint16", "size": 1 } ],
        "groups": [{ "name": "Crv", "count": "NCrv", "points": [{ "name": "St", "type": "enum16", "size": 1 }],
            "groups": [{ "name": "Pt", "count": "NPt", "points": [{ "name": "V", "type": "uint16", "size": 1, "units": "cos()" }] }] }] } }"#;

    fn curves(length: u16, image: &[u16]) -> Imported {
        let definitions = [(64002, definition(CURVES).expect("a definition"))].into();
        let model = Model { id: 64002, address: 100, length, image: image.to_vec() };
        layout("own", &[model], &definitions, &BTreeMap::new()).expect("a profile")
    }

    #[test]
    fn a_group_within_a_group_is_counted_by_whoever_is_around() {
        let image = [64002, 10, 3, 2, 0, 0, 0, 0, 0, 0, 0, 0];
        let found = curves(10, &image);
        assert_eq!(found.left_out, [""; 0]);
        let last = found.profile.point.last().expect("points");
        assert_eq!((last.name.as_str(), &last.address), ("curves.Crv2.Pt3.V", &Number::Int(111)));
        assert_eq!(last.unit, "1", "a number without a dimension is no scale factor");
        assert_eq!(found.profile.point.len(), 10);
        let definitions = [definition(CURVES).expect("a definition")];
        let counts = [("Crv".to_owned(), 2), ("Pt".to_owned(), 3)].into();
        assert_eq!(chain(98, &definitions, &counts).map(|models| models[0].length), Ok(10));
        let counts = [("Crv".to_owned(), u16::MAX), ("Pt".to_owned(), u16::MAX)].into();
        assert!(chain(98, &definitions, &counts).expect_err("too long").contains("too long"));
    }

    #[test]
    fn nothing_is_taken_from_behind_a_models_end() {
        // It says 2 curves of 3, but has registers for one: what follows is another model's.
        let found = curves(6, &[64002, 6, 3, 2, 0, 0, 0, 0]);
        assert_eq!(found.profile.point.len(), 6);
        assert_eq!(found.left_out, ["model 64002: from curves.Crv2.St on, for the device's model is shorter"]);
        // Counts that are nonsense end there too.
        assert_eq!(curves(6, &[64002, 6, 0xFFFE, 0xFFFE, 0, 0, 0, 0]).profile.point.len(), 6);
        let said = curves(6, &[64002, 6, 3, 0xFFFF, 0, 0, 0, 0]).left_out;
        assert_eq!(said, ["model 64002: group Crv: how often it is there is not known"]);
    }

    #[test]
    fn groups_of_nothing_are_over_at_once() {
        let empty = r#"{ "name": "a", "count": 65535, "groups": [{ "name": "b", "count": 65535, "groups": [] }] }"#;
        let text = format!(
            r#"{{ "id": 1, "group": {{ "name": "g", "points": [{{ "name": "ID", "type": "uint16", "size": 1 }},
            {{ "name": "L", "type": "uint16", "size": 1 }}, {{ "name": "X", "type": "uint16", "size": 1 }}], "groups": [{empty}] }} }}"#
        );
        let definitions: BTreeMap<u16, Definition> = [(1, definition(&text).expect("a definition"))].into();
        let model = Model { id: 1, address: 2, length: 1, image: vec![] };
        assert_eq!(layout("g", &[model], &definitions, &BTreeMap::new()).expect("a profile").profile.point.len(), 1);
    }

    #[test]
    fn what_is_no_definition_is_refused_with_what_would_be_right() {
        for (text, part) in [
            ("", "line 1 column 0"),
            ("{ \"id\": 70000, \"group\": { \"name\": \"a\" } }", "expected u16"),
            ("{ \"id\": 1 }", "missing field `group`"),
            ("{ \"id\": 1, \"group\": { \"name\": \"a\" } }", "its first points must be ID and L"),
            (&MODEL.replace("\"size\": 2", "\"size\": -2"), "invalid value: integer `-2`"),
        ] {
            let error = definition(text).expect_err("no definition");
            assert!(error.contains(part), "{part:?} is not in {error}");
        }
    }
}
