//! What is wrong with a configuration, where, and what would be right.
//!
//! One [`Diagnostic`] a fault. It carries the place as file, line, column and key, and the text of the source line, so
//! that it can be shown long after the file was closed. `check --json` prints the six public fields and nothing else;
//! people get the line with the fault underlined. The rendering is our own: twenty lines, against a dependency of
//! twenty crates.
//!
//! Limits: a source line is shown up to [`SHOWN`] characters; a [`Report`] keeps [`MOST`] errors and counts the rest.

use std::fmt;

use serde::Serialize;

/// Longest part of a source line that is shown, in characters.
const SHOWN: usize = 160;

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

    /// Writes it for people: the message, the place, the source line with the fault underlined, the help.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn render(&self, kind: &str, out: &mut impl fmt::Write) -> fmt::Result {
        writeln!(out, "{kind}: {}", self.message)?;
        let number = self.line.to_string();
        let margin = " ".repeat(number.len());
        write!(out, "{margin}--> {}:{}:{}", self.file, self.line, self.column)?;
        if !self.key.is_empty() {
            write!(out, " ({})", self.key)?;
        }
        writeln!(out)?;
        if !self.text.is_empty() {
            // A window on a long line, so that the fault is inside it.
            let first = if self.column > SHOWN { self.column - SHOWN / 2 } else { 1 };
            let shown: String =
                self.text.chars().skip(first - 1).take(SHOWN).map(|c| if c.is_control() { ' ' } else { c }).collect();
            let room = shown.chars().count() + 1;
            let indent = (self.column - first).min(room - 1);
            let width = self.width.clamp(1, (room - indent).max(1));
            writeln!(out, "{margin} |")?;
            writeln!(out, "{number} | {}", shown.trim_end())?;
            writeln!(out, "{margin} | {}{}", " ".repeat(indent), "^".repeat(width))?;
        }
        if !self.help.is_empty() {
            writeln!(out, "{margin} = help: {}", self.help)?;
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
        let order = |d: &Diagnostic| (d.file != first_file, d.file.clone(), d.line, d.column);
        self.errors.sort_by_key(order);
        self.warnings.sort_by_key(order);
        self.ok = self.errors.is_empty();
    }

    /// All of it for people, errors last, where the eye is.
    #[must_use]
    pub fn render(&self) -> String {
        let mut out = String::new();
        for warning in &self.warnings {
            let _ = warning.render("warning", &mut out);
            out.push('\n');
        }
        for error in &self.errors {
            let _ = error.render("error", &mut out);
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
        let mut out = String::new();
        fault.render("error", &mut out).expect("a string takes everything");
        assert_eq!(
            out,
            "error: baud is not a rate\n  --> agent.toml:12:8 (bus[0].baud)\n   |\n12 | baud = \"fast\"\n   |        ^^^^^^\n   = help: try 9600\n"
        );
    }

    #[test]
    fn places_outside_the_line_do_not_panic() {
        let mut fault = Diagnostic::of_file("a", "m", "");
        for (column, width, text) in [(1, 0, "x"), (500, 9, "x"), (3, usize::MAX, "ab"), (400, 4, &"y".repeat(900))] {
            fault.column = column;
            fault.width = width;
            fault.text = text.to_owned();
            fault.render("error", &mut String::new()).expect("a string takes everything");
        }
    }
}
