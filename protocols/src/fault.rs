//! What is wrong with a configuration: where, what, and what would be right.
//!
//! Checks collect every fault they find, so that an owner repairs a file once and not fault by fault. The shell knows
//! file, line and column; a fault names the key by its path, as in `device[2].point[0].address`.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {message} ({help})")]
pub struct Fault {
    /// The profile in whose file the key stands; `None` for the configuration itself.
    pub profile: Option<String>,
    /// The key, counted from 0: `device[2].point[0].address`; in a profile's file `point[0].address`.
    pub path: String,
    /// What is wrong.
    pub message: String,
    /// What would be right.
    pub help: String,
}

/// Where a check stands, and the list it adds to.
pub(crate) struct Faults<'a> {
    pub(crate) profile: Option<&'a str>,
    pub(crate) path: String,
    pub(crate) list: &'a mut Vec<Fault>,
}

impl Faults<'_> {
    /// Notes that `key` of this table is wrong; an empty key means the table itself.
    pub(crate) fn add(&mut self, key: &str, message: impl Into<String>, help: impl Into<String>) {
        let path = match (self.path.as_str(), key) {
            (path, "") => path.into(),
            ("", key) => key.into(),
            (path, key) => format!("{path}.{key}"),
        };
        self.list.push(Fault {
            profile: self.profile.map(Into::into),
            path,
            message: message.into(),
            help: help.into(),
        });
    }

    /// How many faults there are so far, here and elsewhere.
    pub(crate) fn count(&self) -> usize {
        self.list.len()
    }
}
