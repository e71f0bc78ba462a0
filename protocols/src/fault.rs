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

/// Most names that a help lists, and that are looked at for the nearest.
const NAMES: usize = 40;

/// Longest name, in characters, that is compared with another.
const COMPARED: usize = 40;

/// Which of the known names may be meant, then all of them: "did you mean `net`? One of: line, net".
pub(crate) fn one_of<'a>(given: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let mut known = known.into_iter();
    let names: Vec<&str> = known.by_ref().take(NAMES).collect();
    let more = match known.count() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let near = names
        .iter()
        .map(|name| (distance(given, name), name))
        .min_by_key(|(distance, _)| *distance)
        .filter(|(distance, name)| *distance <= ((name.chars().count() + 1) / 3).max(1));
    let list = names.join(", ");
    match near {
        Some((_, near)) => format!("did you mean `{near}`? One of: {list}{more}"),
        None => format!("one of: {list}{more}"),
    }
}

/// How many characters must be put in, taken out, changed or swapped to make one of the other, letters of either case
/// alike.
fn distance(a: &str, b: &str) -> usize {
    let lower = |text: &str| -> Vec<char> { text.chars().take(COMPARED + 1).map(|c| c.to_ascii_lowercase()).collect() };
    let (a, b) = (lower(a), lower(b));
    if a.len().max(b.len()) > COMPARED {
        return usize::MAX;
    }
    let at = |row: &[usize], place: usize| row.get(place).copied().unwrap_or(usize::MAX / 2);
    let mut older: Vec<usize> = Vec::new();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    let mut before = None;
    for (above, x) in a.iter().enumerate() {
        let mut next = Vec::from([above + 1]);
        for (left, y) in b.iter().enumerate() {
            let changed = at(&row, left) + usize::from(x != y);
            let mut best = changed.min(at(&row, left + 1) + 1).min(at(&next, left) + 1);
            let swapped = before == Some(y) && left.checked_sub(1).and_then(|left| b.get(left)) == Some(x);
            if swapped {
                best = best.min(at(&older, left - 1) + 1);
            }
            next.push(best);
        }
        older = core::mem::replace(&mut row, next);
        before = Some(x);
    }
    at(&row, b.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_offered() {
        for (a, b, away) in [
            ("", "", 0),
            ("", "abc", 3),
            ("abc", "", 3),
            ("kitten", "sitting", 3),
            ("NET", "net", 0),
            ("fats", "fast", 1),
        ] {
            assert_eq!(distance(a, b), away, "{a} {b}");
        }
        assert_eq!(one_of("nett", ["line", "net"]), "did you mean `net`? One of: line, net");
        assert_eq!(one_of("west", ["line", "net"]), "one of: line, net");
        assert_eq!(one_of(&"x".repeat(1_000_000), ["x"]), "one of: x");
        assert!(one_of("a", core::iter::repeat_n("b", 100)).ends_with("b and 60 more"));
    }
}
