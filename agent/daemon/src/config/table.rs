//! A register table: the points of a profile as CSV, for people who keep them in a spreadsheet.
//!
//! ```text
//! # profile = "acme-pm3"          the profile's other keys, as comments; they may be absent where a TOML file
//! # version = 1                   with `[table] csv = "FILE"` has them
//! name,address,type,scale,bad     columns are the keys of [[point]]
//! voltage_l1,40011,u16,0.1,[0xFFFF]
//! ```
//!
//! A cell holds what stands behind `key =` in TOML, texts without their quotes; an empty cell is an absent key. So table
//! and TOML say the same, and each can be made from the other without loss (`import/write.rs`). A table is read as if it
//! were a TOML document, its values at the places of their cells: faults name the cell, in the same words.
//!
//! Separators may be commas, semicolons or tabs, whichever the line of column names has most of; a byte order mark and
//! CRLF are as good as none. Numbers have a decimal point, everywhere.

use std::collections::BTreeSet;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};
use tributary_protocols::gather;

use super::diagnostic::Report;
use super::document::{Document, Source, suggest};

/// The columns, in the order in which they are written; whether a cell is a text as it stands.
pub(crate) const COLUMNS: [(&str, bool); 26] = [
    ("name", true),
    ("table", true),
    ("address", true),
    ("type", true),
    ("order", true),
    ("bit", false),
    ("bits", false),
    ("unit", true),
    ("scale", false),
    ("offset", false),
    ("scale_from", true),
    ("valid", false),
    ("bad", false),
    ("deadband", false),
    ("heartbeat", true),
    ("window", false),
    ("raw", false),
    ("period", true),
    ("group", true),
    ("description", true),
    ("labels", false),
    ("bit_labels", false),
    ("counter", false),
    ("counter_modulus", false),
    ("max_rate", false),
    ("enabled", false),
];

/// A table as read: its text, taken apart.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) source: Source,
    /// The comments before the column names, as TOML at the same places.
    head: String,
    columns: Vec<Cell>,
    rows: Vec<Vec<Cell>>,
}

#[derive(Debug)]
struct Cell {
    text: String,
    place: Range<usize>,
}

impl Table {
    /// Takes a text apart.
    pub(crate) fn read(source: Source, report: &mut Report) -> Option<Self> {
        let text = source.text.as_str();
        let (mut head, mut begin) = (String::new(), 0);
        for line in text.split_inclusive('\n') {
            let Some(comment) = line.trim_start_matches('"').strip_prefix('#') else { break };
            let mut kept = comment.trim_end().trim_end_matches([',', ';', '\t']).to_owned();
            if line.starts_with('"') {
                // A spreadsheet has put the line into quotes, and doubled those in it.
                kept = kept.strip_suffix('"').unwrap_or(&kept).replace("\"\"", "\"");
            }
            // As long as the line, so that every place stays.
            head.extend(std::iter::repeat_n(' ', line.len() - comment.len()));
            head.push_str(&kept);
            begin += line.len();
            head.extend(std::iter::repeat_n(' ', begin.saturating_sub(head.len() + 1)));
            head.push('\n');
        }
        let body = text.get(begin..).unwrap_or("");
        let separator = separator(body);
        let mut reader = csv::ReaderBuilder::new()
            .delimiter(separator)
            .has_headers(false)
            .flexible(true)
            .comment(Some(b'#'))
            .from_reader(body.as_bytes());
        let mut rows = Vec::new();
        for record in reader.records() {
            let record = match record {
                Ok(record) => record,
                Err(error) => {
                    let at = error.position().map_or(begin, |at| begin + usize::try_from(at.byte()).unwrap_or(0));
                    let message = format!("not CSV: {error}");
                    report.error(source.diagnostic(at..at, String::new(), message, String::new()));
                    return None;
                }
            };
            let from = record.position().map_or(0, |at| usize::try_from(at.byte()).unwrap_or(0));
            // A record is said to begin where the end of the last one does.
            let rest = body.get(from..).unwrap_or("");
            let mut record_text = rest.trim_start_matches(['\r', '\n']);
            while record_text.starts_with('#') {
                record_text = record_text.split_once('\n').map_or("", |(_, rest)| rest);
                record_text = record_text.trim_start_matches(['\r', '\n']);
            }
            let from = from + rest.len() - record_text.len();
            let places = places(record_text, separator);
            let cell = |(text, place): (&str, Range<usize>)| Cell {
                text: text.to_owned(),
                place: begin + from + place.start..begin + from + place.end,
            };
            let cells: Vec<Cell> = record.iter().zip(places).map(cell).collect();
            if cells.iter().any(|cell| !cell.text.trim().is_empty()) {
                rows.push(cells);
            }
        }
        if rows.is_empty() {
            let help = "its first line names the columns, such as name,table,address,type";
            report.error(source.diagnostic(begin..begin, String::new(), "the table is empty".into(), help.into()));
            return None;
        }
        let mut columns = rows.remove(0);
        for cell in &mut columns {
            cell.text = cell.text.trim().to_owned();
        }
        // A description may begin with spaces; everywhere else they are a slip.
        for cells in &mut rows {
            for (cell, column) in cells.iter_mut().zip(&columns) {
                if column.text != "description" {
                    cell.text = cell.text.trim().to_owned();
                }
            }
        }
        Some(Self { source, head, columns, rows })
    }

    /// The table as the document that it is another view of. Faults of its shape go to the report.
    pub(crate) fn document(&self, report: &mut Report) -> Document<'_> {
        let (root, errors) = DeTable::parse_recoverable(&self.head);
        if let Some(error) = errors.first() {
            let message = format!("not TOML, behind the #: {}", error.message());
            let place = error.span().unwrap_or(0..0);
            report.error(self.source.diagnostic(place, String::new(), message, String::new()));
        }
        let mut root = root.into_inner();
        let known = self.known(report);
        let mut points = DeArray::new();
        for cells in &self.rows {
            let mut point = DeTable::new();
            for (number, cell) in cells.iter().enumerate().filter(|(_, cell)| !cell.text.is_empty()) {
                let Some(column) = self.columns.get(number) else {
                    let message = format!("cell {} of a table of {} columns", number + 1, self.columns.len());
                    let help = "a cell with separators in it stands in double quotes";
                    report.error(self.source.diagnostic(cell.place.clone(), String::new(), message, help.into()));
                    break;
                };
                let Some(Some((key, is_text))) = known.get(number) else { continue };
                let value = match is_text {
                    true => DeValue::String(cell.text.as_str().into()),
                    false => match self.value(key, cell, report) {
                        Some(value) => value,
                        None => continue,
                    },
                };
                let key = Spanned::new(column.place.clone(), (*key).into());
                point.insert(key, Spanned::new(cell.place.clone(), value));
            }
            let place = cells.first().map_or(0..0, |cell| cell.place.clone());
            points.push(Spanned::new(place, DeValue::Table(point)));
        }
        root.insert(Spanned::new(0..0, "point".into()), Spanned::new(0..0, DeValue::Array(points)));
        Document { source: &self.source, root, rows_are_lines: true }
    }

    /// The key of each column, those that are known once.
    fn known(&self, report: &mut Report) -> Vec<Option<(&'static str, bool)>> {
        let mut seen = BTreeSet::new();
        let names: Vec<String> = COLUMNS.iter().map(|(key, _)| (*key).to_owned()).collect();
        let mut key_of = |cell: &Cell| {
            let found = COLUMNS.iter().find(|(key, _)| *key == cell.text);
            let (message, help) = match found {
                Some((key, _)) if !seen.insert(*key) => {
                    (format!("a second column is called `{key}`"), "keep one of them".to_owned())
                }
                Some(found) => return Some(*found),
                None if cell.text.is_empty() => return None,
                None => (format!("unknown column `{}`", cell.text), suggest(&cell.text, &names)),
            };
            report.error(self.source.diagnostic(cell.place.clone(), cell.text.clone(), message, help));
            None
        };
        self.columns.iter().map(&mut key_of).collect()
    }

    /// What a cell means that is no text.
    fn value<'t>(&self, key: &str, cell: &'t Cell, report: &mut Report) -> Option<DeValue<'t>> {
        let text = cell.text.as_str();
        // Spreadsheets shout.
        match text {
            "TRUE" => return Some(DeValue::Boolean(true)),
            "FALSE" => return Some(DeValue::Boolean(false)),
            _ => {}
        }
        match DeValue::parse(text) {
            Ok(value) => Some(moved(value.into_inner(), &cell.place)),
            Err(_) => {
                let help = match key {
                    _ if text.contains(',') && text.replace(',', ".").parse::<f64>().is_ok() => {
                        format!("write it with a decimal point: {}", text.replace(',', "."))
                    }
                    "valid" => "two numbers: [0.0, 400.0]".into(),
                    "bad" => "a list: [0x8000, 0xFFFF]".into(),
                    "labels" | "bit_labels" => "a table: { 0 = \"off\", 1 = \"on\" }".into(),
                    "deadband" => "a table: { abs = 0.5 } or { percent = 1.0 }".into(),
                    "window" => "a table: { every = \"10s\", stats = [\"mean\"] }".into(),
                    "bits" => "a table: { shift = 4, width = 3 }".into(),
                    "raw" | "counter" | "enabled" => "true or false".into(),
                    _ => "a number, such as 0.1".into(),
                };
                let message = format!("`{text}` is no value of `{key}`");
                report.error(self.source.diagnostic(cell.place.clone(), key.to_owned(), message, help));
                None
            }
        }
    }
}

/// Everything inside a cell stands where the cell stands.
fn moved<'t>(value: DeValue<'t>, place: &Range<usize>) -> DeValue<'t> {
    let at = |inner: Spanned<DeValue<'t>>| Spanned::new(place.clone(), moved(inner.into_inner(), place));
    match value {
        DeValue::Array(list) => DeValue::Array(list.into_iter().map(at).collect()),
        DeValue::Table(table) => DeValue::Table(gather(
            table.into_iter().map(|(key, value)| (Spanned::new(place.clone(), key.into_inner()), at(value))),
        )),
        other => other,
    }
}

/// What separates the cells: of comma, semicolon and tab the one that the first line has most of.
pub(crate) fn separator(text: &str) -> u8 {
    let names = text.trim_start().lines().next().unwrap_or("");
    let count = |separator: &u8| names.bytes().filter(|byte| byte == separator).count();
    [b'\t', b';', b','].into_iter().max_by_key(count).unwrap_or(b',')
}

/// Where the cells of the record stand that `text` begins with; the csv crate tells only where records do.
fn places(text: &str, separator: u8) -> Vec<Range<usize>> {
    let (mut places, mut start, mut quoted) = (Vec::new(), 0, false);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'"' => quoted = !quoted,
            b'\n' | b'\r' if !quoted => {
                places.push(start..at);
                return places;
            }
            _ if byte == separator && !quoted => {
                places.push(start..at);
                start = at + 1;
            }
            _ => {}
        }
    }
    places.push(start..text.len());
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (Vec<String>, Vec<String>) {
        let mut report = Report::default();
        let table = Table::read(Source::new("a.csv".into(), text.into()), &mut report);
        let rows = table.as_ref().map_or(Vec::new(), |table| {
            let document = table.document(&mut report);
            let points = document.root.get("point").and_then(|list| list.get_ref().as_array());
            points.into_iter().flatten().map(|point| format!("{:?}", point.get_ref().get("name"))).collect()
        });
        let said = |fault: &super::super::Diagnostic| format!("{}:{} {}", fault.line, fault.column, fault.message);
        (rows, report.errors.iter().map(said).collect())
    }

    #[test]
    fn separators_quotes_and_ends_of_lines_of_all_kinds() {
        for text in
            ["name,scale\na,0.1\nb,1\n", "name;scale\r\na;0.1\r\nb;1\r\n", "\"name\"\tscale\n\"a\"\t0.1\n;\nb\t1"]
        {
            let (rows, faults) = read(text);
            assert!(faults.is_empty() || text.contains(";\n"), "{faults:?}");
            assert!(rows.len() >= 2, "{rows:?}");
        }
    }

    #[test]
    fn a_fault_names_its_cell() {
        let (_, faults) = read("# version = 1;;\nname;scael;scale;scale\na;;0,1;\n\"b\";;x;;;9\n");
        assert_eq!(
            faults,
            [
                "2:6 unknown column `scael`",
                "2:18 a second column is called `scale`",
                "3:4 `0,1` is no value of `scale`",
                "4:6 `x` is no value of `scale`",
                "4:10 cell 6 of a table of 4 columns",
            ]
        );
        assert_eq!(read("").1, ["1:1 the table is empty"]);
        assert_eq!(read("# version = 1").1, ["1:14 the table is empty"]);
        assert_eq!(read("# version = \nname\na").1.len(), 1);
    }
}
