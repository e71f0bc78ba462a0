//! What is wrong with a configuration, where, and what would be right.
//!
//! One [`Diagnostic`] a fault. It carries the place as file, line, column and key, and the text of the source line, so
//! that it can be shown long after the file was closed. `check --json` prints the six public fields and nothing else;
//! people get what miette makes of it: the line with the fault underlined by its key, and the help. A terminal gets
//! colours and drawn lines; a file, a pipe, a terminal that wants no colours and every test get plain ASCII.
//!
//! Limits: messages are wrapped at [`WIDTH`] columns, and as much of a source line is shown; a [`Report`] keeps [`MOST`]
//! errors and counts the rest.

use std::fmt;
use std::io::IsTerminal;
use std::ops::Range;

use miette::{
    GraphicalReportHandler, GraphicalTheme, LabeledSpan, MietteError, MietteSpanContents, Severity, SourceCode,
    SourceSpan, SpanContents,
};
use serde::Serialize;

/// Columns that a report takes at most, but for words and paths that are longer.
const WIDTH: usize = 120;

/// Longest part of a source line that is shown, in characters: what of [`WIDTH`] the margin leaves.
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

    /// What of the source line is shown, and which bytes of that are at fault.
    fn excerpt(&self) -> (String, Range<usize>) {
        // A window on a long line, so that the fault is inside it.
        let first = if self.column > SHOWN { self.column - SHOWN / 2 } else { 1 };
        let window = self.text.chars().skip(first - 1).take(SHOWN);
        let shown: String = window.map(|c| if c.is_control() { ' ' } else { c }).collect();
        let mut shown = shown.trim_end().to_owned();
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

/// How a report is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    /// ASCII without colours, for files, pipes, logs.
    Plain,
    /// Coloured, with drawn lines.
    Coloured,
}

impl Look {
    /// Draws one fault: the message, the place, the source line with the fault underlined, the help.
    fn draw(self, kind: Kind, diagnostic: &Diagnostic, out: &mut impl fmt::Write) -> fmt::Result {
        let mut theme = match self {
            Self::Plain => GraphicalTheme::none(),
            Self::Coloured => GraphicalTheme::unicode(),
        };
        theme.characters.error = "error:".into();
        theme.characters.warning = "warning:".into();
        let handler = GraphicalReportHandler::new_themed(theme)
            .with_width(WIDTH)
            .with_break_words(false)
            .without_syntax_highlighting();
        let (shown, fault) = diagnostic.excerpt();
        handler.render_report(out, &Drawn { kind, diagnostic, shown: &shown, fault })
    }
}

/// A fault as miette asks for it. Its only source line is the one at fault: the rest of the file is closed by now.
#[derive(Debug)]
struct Drawn<'d> {
    kind: Kind,
    diagnostic: &'d Diagnostic,
    shown: &'d str,
    fault: Range<usize>,
}

impl fmt::Display for Drawn<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.diagnostic.message)
    }
}

impl std::error::Error for Drawn<'_> {}

impl miette::Diagnostic for Drawn<'_> {
    /// The place, where no source line tells it.
    fn code<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        let Diagnostic { file, line, column, key, text, .. } = self.diagnostic;
        let key = if key.is_empty() { String::new() } else { format!(" ({key})") };
        text.is_empty().then(|| Box::new(format!("{file}:{line}:{column}{key}")) as _)
    }

    fn severity(&self) -> Option<Severity> {
        Some(match self.kind {
            Kind::Error => Severity::Error,
            Kind::Warning => Severity::Warning,
        })
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        (!self.diagnostic.help.is_empty()).then(|| Box::new(&self.diagnostic.help) as _)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        (!self.diagnostic.text.is_empty()).then_some(self)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let key = (!self.diagnostic.key.is_empty()).then(|| self.diagnostic.key.clone());
        let label = LabeledSpan::new_primary_with_span(key, self.fault.clone());
        (!self.diagnostic.text.is_empty()).then(|| Box::new(std::iter::once(label)) as _)
    }
}

impl SourceCode for Drawn<'_> {
    fn read_span<'a>(
        &'a self,
        _: &SourceSpan,
        before: usize,
        after: usize,
    ) -> Result<Box<dyn SpanContents<'a> + 'a>, MietteError> {
        // Asked without lines around it, it is the place for the head line that is wanted.
        let column = if before + after == 0 { self.diagnostic.column.saturating_sub(1) } else { 0 };
        let line = self.diagnostic.line.saturating_sub(1);
        let whole = SourceSpan::from(0..self.shown.len());
        let name = self.diagnostic.file.clone();
        Ok(Box::new(MietteSpanContents::new_named(name, self.shown.as_bytes(), whole, line, column, 1)))
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
        let order = |d: &Diagnostic| (d.file != first_file, d.file.clone(), d.line, d.column);
        self.errors.sort_by_key(order);
        self.warnings.sort_by_key(order);
        self.ok = self.errors.is_empty();
    }

    /// The first error in a line, and how many there are; empty without errors.
    #[must_use]
    pub fn brief(&self) -> String {
        let Some(Diagnostic { file, line, key, message, help, .. }) = self.errors.first() else { return String::new() };
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
        let look = if wanted && std::io::stderr().is_terminal() { Look::Coloured } else { Look::Plain };
        eprint!("{}", self.draw(look));
    }

    /// All of it in plain text.
    #[must_use]
    pub fn render(&self) -> String {
        self.draw(Look::Plain)
    }

    /// Errors last, where the eye is.
    fn draw(&self, look: Look) -> String {
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

    fn drawn(fault: &Diagnostic, look: Look) -> String {
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
        let plain = drawn(&fault, Look::Plain);
        assert_eq!(
            plain,
            "  error: baud is not a rate\n    ,-[agent.toml:12:8]\n 12 | baud = \"fast\"\n    :        ^^^|^^\n    :           `-- bus[0].baud\n    `----\n  help: try 9600\n"
        );
        let coloured = drawn(&fault, Look::Coloured);
        assert!(coloured.contains("\x1b[31m") && coloured.contains('│'), "{coloured}");
    }

    #[test]
    fn places_outside_the_line_do_not_panic() {
        let mut fault = Diagnostic::of_file("a", "m", "");
        assert!(drawn(&fault, Look::Plain).contains("a:1:1"));
        let long = "y".repeat(900);
        for (column, width, text) in
            [(1, 0, "x"), (500, 9, "x"), (3, usize::MAX, "ab"), (400, 4, &long), (0, 1, "\t\u{85}é"), (2, 1, "  ")]
        {
            (fault.column, fault.width, fault.text) = (column, width, text.to_owned());
            for look in [Look::Plain, Look::Coloured] {
                let out = drawn(&fault, look);
                assert!(out.contains(&format!("a:1:{}", column.max(1))), "{out}");
                assert!(out.lines().all(|line| look == Look::Coloured || line.chars().count() <= WIDTH), "{out}");
            }
        }
    }
}
