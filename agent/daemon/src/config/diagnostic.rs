//! What is wrong with a configuration, where, and what would be right.
//!
//! One [`Diagnostic`] a fault. It carries the place as file, line, column and key, and the text of the source line, so
//! that it can be shown long after the file was closed. `check --json` prints the six public fields and nothing else;
//! people get what a compiler would tell them, in colours if a terminal wants any:
//!
//! ```text
//! error: baud is not a rate
//!   --> agent.toml:12:8
//!    |
//! 12 | baud = "fast"
//!    |        ^^^^^^ bus[0].baud
//!    = help: try 9600
//! ```
//!
//! Drawn here, for it is one line of source and one mark: the library before drew whole files, and was 0.13 MB
//! of the binary.
//!
//! Limits: of a source line a window of 108 characters is shown; a [`Report`] keeps [`MOST`] errors and counts the rest.

use std::fmt;
use std::io::IsTerminal;
use std::ops::Range;

use serde::Serialize;
use tributary_protocols::sort;
use unicode_width::UnicodeWidthStr;

/// Longest part of a source line that is shown, in characters.
const SHOWN: usize = 108;

/// Most errors a report keeps; after as many a person begins at the top anyway.
pub const MOST: usize = 200;

/// One fault, or one warning.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// The file, as it was named.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// The key, as `device[2].point[0].address`; empty where the file as a whole, or its syntax, is at fault.
    pub key: String,
    /// What is wrong.
    pub message: String,
    /// What would be right; may be empty.
    pub help: String,
    /// The source line, for showing; empty if there is none.
    #[serde(skip)]
    pub(crate) text: String,
    /// How many characters are at fault.
    #[serde(skip)]
    pub(crate) width: usize,
    /// Whether the key could not even be read; what is then said of its meaning only follows from that.
    #[serde(skip)]
    pub(crate) of_shape: bool,
}

impl Diagnostic {
    /// A fault of a file as a whole.
    pub(crate) fn of_file(file: &str, message: impl Into<String>, help: impl Into<String>) -> Self {
        Self {
            file: file.to_owned(),
            line: 1,
            column: 1,
            key: String::new(),
            message: message.into(),
            help: help.into(),
            text: String::new(),
            width: 0,
            of_shape: false,
        }
    }

    /// Takes out what may hold a password: the source line of a URL, and a message that repeats the URL.
    pub(crate) fn hide_login(&mut self) {
        if self.key.ends_with("url") && self.text.contains('@') {
            self.text.clear();
            if self.message.contains('@') {
                self.message = "a URL may hold neither user nor password".into();
            }
        }
    }

    /// File, key, message and help, each in one line: what a file brings in may not steer a terminal, nor begin a line that
    /// looks like another fault.
    fn words(&self) -> [String; 4] {
        [&self.file, &self.key, &self.message, &self.help].map(|text| text.replace(char::is_control, " "))
    }

    /// What of the source line is shown, and which bytes of that are at fault.
    fn excerpt(&self) -> (String, Range<usize>) {
        // A window on a long line, so that the fault is inside it.
        let first = if self.column > SHOWN { self.column - SHOWN / 2 } else { 1 };
        let window = self.text.chars().skip(first - 1).take(SHOWN);
        let mut shown = window.collect::<String>().replace(char::is_control, " ").trim_end().to_owned();
        let byte = |shown: &str, nth: usize| shown.char_indices().nth(nth).map_or(shown.len(), |(at, _)| at);
        let start = byte(&shown, self.column.saturating_sub(first));
        if start == shown.len() {
            // What is missing at the end of a line is underlined there.
            shown.push(' ');
        }
        let end = byte(&shown, self.column.saturating_sub(first).saturating_add(self.width.max(1)));
        (shown, start..end.max(start + 1))
    }
}

/// How severe it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Must be put right.
    Error,
    /// Should be looked at.
    Warning,
}

/// Colours of a terminal.
struct Look {
    error: &'static str,
    warning: &'static str,
    margin: &'static str,
    end: &'static str,
}

/// For files, pipes, logs.
const PLAIN: Look = Look { error: "", warning: "", margin: "", end: "" };

/// Bold red, yellow and blue.
const COLOURED: Look = Look { error: "\x1b[1;31m", warning: "\x1b[1;33m", margin: "\x1b[1;34m", end: "\x1b[0m" };

impl Look {
    /// Draws one fault: the message, the place, the source line with the fault underlined, the help.
    fn draw(&self, kind: Kind, diagnostic: &Diagnostic, out: &mut impl fmt::Write) -> fmt::Result {
        let Self { margin, end, .. } = self;
        let Diagnostic { line, column, .. } = diagnostic;
        let [file, key, message, help] = diagnostic.words();
        let (colour, name) = match kind {
            Kind::Error => (self.error, "error"),
            Kind::Warning => (self.warning, "warning"),
        };
        writeln!(out, "{colour}{name}{end}: {message}")?;
        let gap = " ".repeat(line.to_string().len());
        write!(out, "{gap}{margin}-->{end} {file}:{line}:{column}")?;
        if diagnostic.text.is_empty() {
            let key = if key.is_empty() { String::new() } else { format!(" ({key})") };
            writeln!(out, "{key}")?;
        } else {
            let (shown, fault) = diagnostic.excerpt();
            let (before, under) = (shown[..fault.start].width(), shown[fault].width().max(1));
            let mark = format!("{}{colour}{} {key}", " ".repeat(before), "^".repeat(under));
            writeln!(out, "\n{gap} {margin}|{end}\n{margin}{line} |{end} {shown}")?;
            writeln!(out, "{gap} {margin}|{end} {}{end}", mark.trim_end())?;
        }
        if !help.is_empty() {
            writeln!(out, "{gap} {margin}={end} help: {help}")?;
        }
        Ok(())
    }
}

/// All that a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Whether the configuration can run.
    pub ok: bool,
    /// What must be put right.
    pub errors: Vec<Diagnostic>,
    /// What should be looked at.
    pub warnings: Vec<Diagnostic>,
    /// Errors beyond [`MOST`].
    #[serde(skip)]
    pub(crate) unlisted: usize,
}

impl Report {
    /// Whether another error would only be counted. Counts it: who asks has one, and need not look for its place.
    pub(crate) fn is_full(&mut self) -> bool {
        let full = self.errors.len() >= MOST;
        self.unlisted += usize::from(full);
        full
    }

    pub(crate) fn error(&mut self, diagnostic: Diagnostic) {
        let follows =
            |error: &Diagnostic| error.of_shape && error.file == diagnostic.file && error.key == diagnostic.key;
        if !diagnostic.key.is_empty() && self.errors.iter().any(follows) {
            return;
        }
        if !self.errors.contains(&diagnostic) {
            self.errors.push(diagnostic);
        }
    }

    pub(crate) fn warning(&mut self, diagnostic: Diagnostic) {
        if self.warnings.len() < MOST && !self.warnings.contains(&diagnostic) {
            self.warnings.push(diagnostic);
        }
    }

    /// Puts the findings in the order of file and line and sets `ok`.
    pub(crate) fn finish(&mut self, first_file: &str) {
        fn key(diagnostic: &Diagnostic) -> (&str, usize, usize) {
            (&diagnostic.file, diagnostic.line, diagnostic.column)
        }
        for found in [&mut self.errors, &mut self.warnings] {
            sort(found, |a, b| (a.file != first_file).cmp(&(b.file != first_file)).then_with(|| key(a).cmp(&key(b))));
        }
        self.ok = self.errors.is_empty();
    }

    /// The first error in a line, and how many there are; empty without errors.
    #[must_use]
    pub fn brief(&self) -> String {
        let Some(first) = self.errors.first() else { return String::new() };
        let ([file, key, message, help], line) = (first.words(), first.line);
        let key = if key.is_empty() { String::new() } else { format!(" {key}:") };
        let help = if help.is_empty() { String::new() } else { format!(" ({help})") };
        let more = match self.errors.len() + self.unlisted - 1 {
            0 => String::new(),
            more => format!("; {more} more: see `tributary check`"),
        };
        format!("{file}:{line}:{key} {message}{help}{more}")
    }

    /// Prints it on stderr, coloured if that is a terminal and `NO_COLOR` is not set (no-color.org).
    pub fn tell(&self) {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let look = if wanted && std::io::stderr().is_terminal() { COLOURED } else { PLAIN };
        eprint!("{}", self.draw(&look));
    }

    /// All of it in plain text.
    #[must_use]
    pub fn render(&self) -> String {
        self.draw(&PLAIN)
    }

    /// Errors last, where the eye is.
    fn draw(&self, look: &Look) -> String {
        let mut out = String::new();
        let warnings = self.warnings.iter().map(|warning| (Kind::Warning, warning));
        for (kind, diagnostic) in warnings.chain(self.errors.iter().map(|error| (Kind::Error, error))) {
            // A string takes everything.
            let _ = look.draw(kind, diagnostic, &mut out);
            out.push('\n');
        }
        if self.unlisted > 0 {
            out.push_str(&format!("and {} more errors\n", self.unlisted));
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(fault: &Diagnostic, look: &Look) -> String {
        let mut out = String::new();
        look.draw(Kind::Error, fault, &mut out).expect("a string takes everything");
        out
    }

    #[test]
    fn a_fault_is_shown_with_its_line_underlined() {
        let fault = Diagnostic {
            file: "agent.toml".into(),
            line: 12,
            column: 8,
            key: "bus[0].baud".into(),
            message: "baud is not a rate".into(),
            help: "try 9600".into(),
            text: "baud = \"fast\"".into(),
            width: 6,
            of_shape: false,
        };
        assert_eq!(
            drawn(&fault, &PLAIN),
            "error: baud is not a rate\n  --> agent.toml:12:8\n   |\n12 | baud = \"fast\"\n   |        ^^^^^^ bus[0].baud\n   = help: try 9600\n"
        );
        let coloured = drawn(&fault, &COLOURED);
        assert!(coloured.contains("\x1b[1;31m^^^^^^ bus[0].baud\x1b[0m\n"), "{coloured:?}");
    }

    #[test]
    fn what_a_file_brings_in_stays_in_its_line_and_steers_nothing() {
        let fault =
            Diagnostic { key: "x\nWATCHDOG=1\u{1b}[2J".into(), ..Diagnostic::of_file("a\r", "m\ny", "\u{9b}h") };
        assert_eq!(drawn(&fault, &PLAIN), "error: m y\n --> a :1:1 (x WATCHDOG=1 [2J)\n  = help:  h\n");
        let brief = Report { errors: vec![fault], ..Report::default() }.brief();
        assert_eq!(brief, "a :1: x WATCHDOG=1 [2J: m y ( h)");
    }

    #[test]
    fn the_mark_is_under_the_fault_behind_wide_characters() {
        let mut fault = Diagnostic::of_file("a", "m", "");
        (fault.column, fault.width, fault.text) = (16, 6, "{ name = \"温度\", adress = 3 }".into());
        let out = drawn(&fault, &PLAIN);
        assert!(out.ends_with("1 | { name = \"温度\", adress = 3 }\n  |                  ^^^^^^\n"), "{out}");
    }

    #[test]
    fn places_outside_the_line_do_not_panic() {
        let mut fault = Diagnostic::of_file("a", "m", "");
        assert!(drawn(&fault, &PLAIN).contains("a:1:1"));
        let long = "y".repeat(900);
        for (column, width, text) in
            [(1, 0, "x"), (500, 9, "x"), (3, usize::MAX, "ab"), (400, 4, &long), (0, 1, "\t\u{85}é"), (2, 1, "  ")]
        {
            (fault.column, fault.width, fault.text) = (column, width, text.to_owned());
            let out = drawn(&fault, &PLAIN);
            assert!(out.contains(&format!("a:1:{column}")), "{out}");
            assert!(out.lines().all(|line| line.chars().count() <= SHOWN + 4), "{out}");
        }
    }
}
