//! A TOML file with its places: finds the line of a key path, and turns a part of it into a struct, naming every fault.
//!
//! Serde stops at the first fault. Here a part of the document is read again and again: each time the key at fault is
//! struck out (a missing one is put in), until it fits or nothing more can be done, so that a person sees all faults of a file at once. What
//! was struck makes the part unusable; it is read on only to find what else is wrong with it.
//!
//! Limits: files up to [`LARGEST`] bytes; at most [`FAULTS`] faults a table; nesting is bounded by the parser (80).

use std::ops::Range;
use std::path::Path;

use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeInteger, DeTable, DeValue};

use super::diagnostic::{Diagnostic, Report};
use super::reader::{self, Misfit};

/// Largest configuration or profile file in bytes: 20,000 points of 200 bytes.
pub(crate) const LARGEST: u64 = 4 * 1024 * 1024;

/// Most faults named for one table.
const FAULTS: usize = 20;

/// A text with its line starts.
#[derive(Debug)]
pub(crate) struct Source {
    /// As it is named in messages.
    pub(crate) name: String,
    /// The whole text.
    pub(crate) text: String,
    starts: Vec<usize>,
}

impl Source {
    pub(crate) fn new(name: String, text: String) -> Self {
        let starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { name, text, starts }
    }

    /// Reads a file of at most [`LARGEST`] bytes as UTF-8; a byte order mark is passed over.
    pub(crate) fn read(path: &Path) -> Result<Self, Box<Diagnostic>> {
        let name = path.display().to_string();
        let fault = |message: String, help: &str| Box::new(Diagnostic::of_file(&name, message, help));
        let meta = std::fs::metadata(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => {
                fault("the file does not exist".into(), "name an existing file with -c FILE")
            }
            _ => fault(format!("the file cannot be read: {error}"), "check its permissions and those of its folders"),
        })?;
        if meta.is_dir() {
            return Err(fault("this is a folder, not a file".into(), "name the TOML file itself"));
        }
        if !meta.is_file() {
            return Err(fault("this is not an ordinary file".into(), "name the TOML file itself"));
        }
        if meta.len() > LARGEST {
            let message = format!("the file has {} bytes; the ceiling is {LARGEST} (4 MB)", meta.len());
            return Err(fault(message, "move points into profiles, which devices of one kind share"));
        }
        let bytes = std::fs::read(path).map_err(|error| {
            fault(format!("the file cannot be read: {error}"), "check its permissions and those of its folders")
        })?;
        match String::from_utf8(bytes) {
            Ok(text) => Ok(Self::new(name, text.strip_prefix('\u{feff}').map_or(text.clone(), str::to_owned))),
            Err(error) => {
                let good = error.utf8_error().valid_up_to();
                let lossy = String::from_utf8_lossy(error.as_bytes()).into_owned();
                let source = Self::new(name, lossy);
                // Up to the fault the lossy text is the file itself, so the offset is right.
                let message = format!("the file is not UTF-8: byte {good} begins no character");
                Err(Box::new(source.diagnostic(good..good + 1, String::new(), message, "save it as UTF-8".into())))
            }
        }
    }

    /// Line and column of a byte offset, both from 1, the column in characters.
    fn position(&self, offset: usize) -> (usize, usize) {
        let offset = offset.min(self.text.len());
        let line = self.starts.partition_point(|start| *start <= offset).max(1);
        let start = self.starts.get(line - 1).copied().unwrap_or(0);
        let before = self.text.as_bytes().get(start..offset).unwrap_or(&[]);
        (line, String::from_utf8_lossy(before).chars().count() + 1)
    }

    /// The fault at a place of this text.
    pub(crate) fn diagnostic(&self, span: Range<usize>, key: String, message: String, help: String) -> Diagnostic {
        let (line, column) = self.position(span.start);
        let start = self.starts.get(line - 1).copied().unwrap_or(0);
        let text = self.text.get(start..).and_then(|rest| rest.split('\n').next()).unwrap_or("");
        let text = text.trim_end_matches('\r').to_owned();
        let spanned = self.text.get(span).unwrap_or("").split('\n').next().unwrap_or("").trim_end();
        let width = spanned.chars().count().max(1);
        Diagnostic { file: self.name.clone(), line, column, key, message, help, text, width, of_shape: false }
    }
}

/// A parsed text.
pub(crate) struct Document<'a> {
    pub(crate) source: &'a Source,
    pub(crate) root: DeTable<'a>,
    /// Whether it is a register table, whose keys are columns (`table.rs`).
    pub(crate) rows_are_lines: bool,
}

impl<'a> Document<'a> {
    /// Parses; every syntax error goes to the report, one a line.
    pub(crate) fn parse(source: &'a Source, report: &mut Report) -> Option<Self> {
        let (root, errors) = DeTable::parse_recoverable(&source.text);
        if errors.is_empty() {
            return Some(Self { source, root: root.into_inner(), rows_are_lines: false });
        }
        let mut last_line = 0;
        for error in errors.iter().take(FAULTS) {
            let span = error.span().unwrap_or(0..0);
            let found = source.diagnostic(span, String::new(), format!("not TOML: {}", error.message()), String::new());
            if found.line != last_line {
                last_line = found.line;
                report.error(found);
            }
        }
        None
    }

    /// The place of a key path such as `device[2].point[0].address`: its value if it is there, else the key of the
    /// nearest table or list around it.
    pub(crate) fn locate(&self, path: &str) -> Range<usize> {
        let mut steps = steps(path).into_iter();
        let Some(Step::Key(first)) = steps.next() else { return 0..0 };
        let Some((key, mut value)) = self.root.get_key_value(first) else { return 0..0 };
        let mut place = place(key.span(), value);
        for step in steps {
            let next = match (step, value.get_ref()) {
                (Step::Key(key), DeValue::Table(table)) => table.get_key_value(key).map(|(k, v)| (k.span(), v)),
                (Step::Index(at), DeValue::Array(list)) => list.get(at).map(|v| (v.span(), v)),
                _ => None,
            };
            let Some((key, found)) = next else { break };
            place = self::place(key, found);
            value = found;
        }
        place
    }

    /// The fault at a key path.
    pub(crate) fn fault(&self, path: &str, message: impl Into<String>, help: impl Into<String>) -> Diagnostic {
        self.source.diagnostic(self.locate(path), path.to_owned(), message.into(), help.into())
    }

    /// Turns `value`, which stands at `path`, into a `T`, and names every fault. `None` if a value that is needed is
    /// wrong or absent; with `lenient` a wrong value whose key has a default is read as that default, so that the
    /// meaning of the other keys can be checked. Unknown keys never stand in the way.
    pub(crate) fn read<T: DeserializeOwned>(
        &self,
        path: &str,
        mut value: Spanned<DeValue<'a>>,
        lenient: bool,
        report: &mut Report,
    ) -> Option<T> {
        let mut usable = true;
        let mut struck: Vec<String> = Vec::new();
        let mut stand_ins: Vec<String> = Vec::new();
        loop {
            let (at, message, span) = match reader::read(&value) {
                Ok(read) => return usable.then_some(read),
                Err(Misfit { path, message, span }) => (path, message, span),
            };
            let fault = Fault::of(&message);
            let (key, span) = match &fault {
                Fault::Missing(name) => (join(&at, name), None),
                _ => (at.clone(), span),
            };
            let full = join(path, &key);
            let known = struck.contains(&key);
            if !known && !report.is_full() {
                let place = match (&fault, span) {
                    (Fault::Missing(_), _) => self.locate(&join(path, &at)),
                    (_, Some(span)) if !span.is_empty() => span,
                    _ => self.locate(&full),
                };
                let (message, mut help) = fault.words(&message);
                if let (Fault::Missing(name), true) = (&fault, self.rows_are_lines) {
                    help = match join(path, &at).as_str() {
                        "" => format!("add a line `# {name} = …` above the names of the columns"),
                        _ => format!("fill the cell in the column `{name}`"),
                    };
                }
                let mut diagnostic = self.source.diagnostic(place, full, message, help);
                diagnostic.of_shape = true;
                report.error(diagnostic);
            }
            let changed = match &fault {
                // A stand-in lets the reading go on past it; whatever comes of it is thrown away.
                Fault::Missing(name) => match stand_ins.iter().filter(|put| **put == key).count() {
                    0 => put(&mut value, &steps(&at), name, DeValue::String("".into())),
                    1 => put(&mut value, &steps(&at), name, DeValue::Integer(DeInteger::default())),
                    _ => false,
                },
                _ => strike(&mut value, &steps(&key)),
            };
            match fault {
                Fault::Missing(_) => {
                    usable = false;
                    stand_ins.push(key.clone());
                }
                Fault::Unknown(..) => {}
                Fault::Other => usable &= lenient,
            }
            struck.push(key);
            if !changed || struck.len() >= 3 * FAULTS {
                return None;
            }
        }
    }
}

/// Where to point for a value: at itself, or at the key if it is a table or list over several lines.
fn place(key: Range<usize>, value: &Spanned<DeValue<'_>>) -> Range<usize> {
    let span = value.span();
    match value.get_ref() {
        DeValue::Table(_) | DeValue::Array(_) if !key.is_empty() && span.is_empty() => key,
        _ => span,
    }
}

/// What kind of fault a serde message tells of.
enum Fault {
    Missing(String),
    Unknown(String, Vec<String>),
    Other,
}

impl Fault {
    /// Reads the messages of `serde::de::Error`: they are part of its documented behaviour, not of its types.
    fn of(message: &str) -> Self {
        let quoted = |text: &str| -> Vec<String> { text.split('`').skip(1).step_by(2).map(str::to_owned).collect() };
        if let Some(rest) = message.strip_prefix("missing field ") {
            if let Some(name) = quoted(rest).into_iter().next() {
                return Self::Missing(name);
            }
        } else if let Some(rest) = message.strip_prefix("unknown field ") {
            let mut names = quoted(rest).into_iter();
            if let Some(name) = names.next() {
                return Self::Unknown(name, names.collect());
            }
        }
        Self::Other
    }

    /// Message and help in the words of a configuration.
    fn words(&self, message: &str) -> (String, String) {
        match self {
            Self::Missing(name) => (format!("the key `{name}` is missing"), format!("add a line `{name} = …`")),
            Self::Unknown(name, known) => (format!("unknown key `{name}`"), suggest(name, known)),
            Self::Other => {
                let message = message.trim();
                if let Some(rest) = message.strip_prefix("unknown variant ") {
                    let names: Vec<&str> = rest.split('`').skip(1).step_by(2).collect();
                    if let Some((given, known)) = names.split_first() {
                        let known: Vec<String> = known.iter().map(|&name| name.to_owned()).collect();
                        return (format!("`{given}` is none of the choices"), suggest(given, &known));
                    }
                }
                if let Some(given) =
                    message.strip_prefix("no type is called \"").and_then(|rest| rest.split('"').next())
                {
                    return (message.to_owned(), type_meant(given));
                }
                if message == "wanted string or table" {
                    return ("wrong value: expected a string".into(), String::new());
                }
                let plain = message
                    .strip_prefix("invalid type: ")
                    .or_else(|| message.strip_prefix("invalid value: "))
                    .map(|rest| match rest.rsplit_once(", expected ") {
                        Some((given, wanted)) => format!("wrong value: {given}, expected {}", plainly(wanted)),
                        None => format!("wrong value: {rest}"),
                    });
                (plain.unwrap_or_else(|| message.to_owned()), String::new())
            }
        }
    }
}

/// Rust's types in words.
fn plainly(wanted: &str) -> &str {
    match wanted {
        "i8" | "i16" | "i32" | "i64" => "an integer",
        "u8" => "an integer from 0 to 255",
        "u16" => "an integer from 0 to 65535",
        "u32" => "an integer from 0 to 4294967295",
        "u64" => "an integer, 0 or more",
        "f32" | "f64" => "a number",
        "a boolean" => "true or false",
        "a sequence" => "a list",
        other if other.starts_with("struct ") || other == "a map" => "a table",
        other => other,
    }
}

/// What a type may be called elsewhere, where that is one type and no other: `int` is 16 bits to one and 32 to another.
fn type_meant(given: &str) -> String {
    let ty = match given.to_ascii_lowercase().as_str() {
        "bit" | "boolean" => "bool",
        "word" | "uint16" | "ushort" => "u16",
        "int16" => "i16",
        "dword" | "udint" | "uint32" => "u32",
        "dint" | "int32" => "i32",
        "lword" | "qword" | "ulint" | "uint64" => "u64",
        "lint" | "int64" => "i64",
        "float" | "float32" | "real" | "single" => "f32",
        "double" | "float64" | "lreal" => "f64",
        "string" | "ascii" | "text" => "string(N)",
        _ => return String::new(),
    };
    format!("did you mean `{ty}`?")
}

/// Names the nearest of the known words, then all of them.
pub(crate) fn suggest(given: &str, known: &[String]) -> String {
    let list = known.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    let near = known
        .iter()
        .map(|name| (strsim::damerau_levenshtein(&given.to_ascii_lowercase(), &name.to_ascii_lowercase()), name))
        .min_by_key(|(distance, _)| *distance)
        .filter(|(distance, name)| *distance <= (name.chars().count() / 3).max(1) + usize::from(given.len() > 6));
    match (near, known.is_empty()) {
        (Some((_, near)), _) => format!("did you mean `{near}`? Known here: {list}"),
        (None, false) => format!("known here: {list}"),
        (None, true) => String::new(),
    }
}

/// A step of a key path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step<'p> {
    Key(&'p str),
    Index(usize),
}

/// Takes `device[2].point[0].address` apart. A part that is no index is taken as a key.
fn steps(path: &str) -> Vec<Step<'_>> {
    let mut steps = Vec::new();
    for part in path.split('.').filter(|part| !part.is_empty()) {
        let (key, indices) = part.split_at(part.find('[').unwrap_or(part.len()));
        if !key.is_empty() {
            steps.push(Step::Key(key));
        }
        steps.extend(indices.split(['[', ']']).filter_map(|index| index.parse().ok()).map(Step::Index));
    }
    steps
}

/// `a` and `b` as one path.
pub(crate) fn join(a: &str, b: &str) -> String {
    match (a.is_empty(), b.is_empty() || b.starts_with('[')) {
        (true, _) => b.to_owned(),
        (false, true) => format!("{a}{b}"),
        (false, false) => format!("{a}.{b}"),
    }
}

fn walk<'v, 'a>(value: &'v mut Spanned<DeValue<'a>>, steps: &[Step<'_>]) -> Option<&'v mut DeValue<'a>> {
    let mut value = value.get_mut();
    for step in steps {
        value = match (step, value) {
            (Step::Key(key), DeValue::Table(table)) => table.get_mut(*key)?.get_mut(),
            (Step::Index(at), DeValue::Array(list)) => list.get_mut(*at)?.get_mut(),
            _ => return None,
        };
    }
    Some(value)
}

/// Takes the value at the path out of its table; one in a list takes the list with it.
fn strike(value: &mut Spanned<DeValue<'_>>, steps: &[Step<'_>]) -> bool {
    for length in (1..=steps.len()).rev() {
        let Some(Step::Key(key)) = steps.get(length - 1) else { continue };
        if let Some(DeValue::Table(table)) = walk(value, steps.get(..length - 1).unwrap_or(&[]))
            && table.remove(*key).is_some()
        {
            return true;
        }
    }
    false
}

/// Puts a stand-in under `name` into the table at the path.
fn put<'a>(value: &mut Spanned<DeValue<'a>>, steps: &[Step<'_>], name: &str, stand_in: DeValue<'a>) -> bool {
    match walk(value, steps) {
        Some(DeValue::Table(table)) => {
            table.insert(Spanned::new(0..0, name.to_owned().into()), Spanned::new(0..0, stand_in));
            true
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only its reading is tested")]
    struct Bus {
        name: String,
        baud: u32,
        #[serde(default)]
        parity: Option<Parity>,
        #[serde(default)]
        inner: Vec<Inner>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Parity {
        Even,
        Odd,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only its reading is tested")]
    struct Inner {
        a: u8,
    }

    fn faults(text: &str) -> Vec<(usize, usize, String, String, String)> {
        let source = Source::new("t.toml".into(), text.to_owned());
        let mut report = Report::default();
        let document = Document::parse(&source, &mut report).expect("these are TOML");
        let list = document.root.get("bus").expect("has buses").get_ref().as_array().expect("is a list").clone();
        for (at, value) in list.into_iter().enumerate() {
            let _ = document.read::<Bus>(&format!("bus[{at}]"), value, false, &mut report);
        }
        report.errors.into_iter().map(|d| (d.line, d.column, d.key, d.message, d.help)).collect()
    }

    #[test]
    fn every_fault_of_a_table_is_named_at_its_place() {
        let found = faults(
            "# a\n[[bus]]\nname = 7\nbuad = 9600\nparity = \"evne\"\n\n[[bus]]\nname = \"x\"\nbaud = 1\ninner = [{ a = 1 }, { a = 999, b = 2 }]\n",
        );
        let places: Vec<_> = found.iter().map(|f| (f.0, f.1, f.2.as_str())).collect();
        assert_eq!(
            places,
            [
                (4, 1, "bus[0].buad"),
                (3, 8, "bus[0].name"),
                (5, 10, "bus[0].parity"),
                (2, 1, "bus[0].baud"),
                (10, 27, "bus[1].inner[1].a"),
                (10, 32, "bus[1].inner[1].b"),
            ],
            "{found:#?}"
        );
        assert!(found[0].4.starts_with("did you mean `baud`?"), "{}", found[0].4);
        assert!(found[2].4.starts_with("did you mean `even`?"), "{}", found[2].4);
    }

    #[test]
    fn a_path_that_leads_nowhere_points_at_what_is_around_it() {
        let source = Source::new("t".into(), "x = 1\n[[bus]]\nname = \"a\"\n[[bus]]\nname = \"b\"\n".into());
        let document = Document::parse(&source, &mut Report::default()).expect("is TOML");
        let line = |path: &str| document.fault(path, "", "").line;
        assert_eq!(line("bus[1].name"), 5);
        assert_eq!(line("bus[1].missing.deeper[3]"), 4);
        assert_eq!(line("nothing"), 1);
        assert_eq!(line("[[[..]"), 1);
    }
}
