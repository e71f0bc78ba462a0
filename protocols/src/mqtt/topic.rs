//! Topic filters, and the names that their wildcards give to points (MQTT 3.1.1, 4.7).

use alloc::string::String;
use alloc::vec::Vec;

/// Longest filter or topic, in bytes; the protocol would allow 65,535.
pub(crate) const MAX_TOPIC: usize = 1_024;

/// Why a filter is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FilterError {
    #[error("is empty")]
    Empty,
    #[error("is longer than {MAX_TOPIC} bytes")]
    Long,
    #[error("holds a control character")]
    Control,
    #[error("has a \"+\" that is not a whole level")]
    Plus,
    #[error("has a \"#\" that is not the whole last level")]
    Hash,
    #[error("is a shared subscription, of which one agent would see a part only")]
    Shared,
}

/// How many wildcards a filter has.
pub(crate) fn wildcards(filter: &str) -> Result<usize, FilterError> {
    if filter.is_empty() {
        return Err(FilterError::Empty);
    }
    if filter.len() > MAX_TOPIC {
        return Err(FilterError::Long);
    }
    if filter.chars().any(char::is_control) {
        return Err(FilterError::Control);
    }
    if filter.starts_with("$share/") {
        return Err(FilterError::Shared);
    }
    let mut count = 0;
    let mut levels = filter.split('/').peekable();
    while let Some(level) = levels.next() {
        match level {
            "+" => count += 1,
            "#" if levels.peek().is_none() => count += 1,
            level if level.contains('#') => return Err(FilterError::Hash),
            level if level.contains('+') => return Err(FilterError::Plus),
            _ => {}
        }
    }
    Ok(count)
}

/// What the wildcards of `filter` match in `topic`, in order; `None` if it does not match.
pub(crate) fn captures<'t>(filter: &str, topic: &'t str) -> Option<Vec<&'t str>> {
    if topic.starts_with('$') && filter.starts_with(['+', '#']) {
        return None;
    }
    let mut found = Vec::new();
    let (mut filter, mut rest) = (filter.split('/'), Some(topic));
    loop {
        match (filter.next(), rest) {
            (Some("#"), rest) => {
                found.push(rest.unwrap_or_default());
                return Some(found);
            }
            (Some(pattern), Some(levels)) => {
                let (level, behind) =
                    levels.split_once('/').map_or((levels, None), |(level, rest)| (level, Some(rest)));
                match pattern {
                    "+" => found.push(level),
                    pattern if pattern == level => {}
                    _ => return None,
                }
                rest = behind;
            }
            (None, None) => return Some(found),
            _ => return None,
        }
    }
}

/// Why a template is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TemplateError {
    #[error("has a brace that is not part of a {{1}}")]
    Brace,
    #[error("names wildcard {{{0}}}, which the topic does not have")]
    Unknown(usize),
    #[error("does not name wildcard {{{0}}}, so that several topics would share one point")]
    Unnamed(usize),
}

/// Checks a name: it uses each of `wildcards` wildcards, and no other.
pub(crate) fn check_template(template: &str, wildcards: usize) -> Result<(), TemplateError> {
    let mut used = alloc::vec![false; wildcards];
    for piece in pieces(template) {
        match piece? {
            Piece::Text(_) => {}
            Piece::Wildcard(number) => {
                *used.get_mut(number.wrapping_sub(1)).ok_or(TemplateError::Unknown(number))? = true;
            }
        }
    }
    match used.iter().position(|used| !used) {
        Some(index) => Err(TemplateError::Unnamed(index + 1)),
        None => Ok(()),
    }
}

/// The name that a checked template gives.
pub(crate) fn fill(template: &str, captures: &[&str]) -> String {
    let text = |piece| match piece {
        Ok(Piece::Text(text)) => text,
        Ok(Piece::Wildcard(number)) => captures.get(number.wrapping_sub(1)).copied().unwrap_or_default(),
        Err(_) => "",
    };
    pieces(template).map(text).collect()
}

/// A filter with its wildcards filled in is the topic; this marks the value in it: `"sensors/a/temp#/value"`.
pub(crate) fn source(topic: &str, pointer: &str) -> String {
    if pointer.is_empty() { topic.into() } else { [topic, "#", pointer].concat() }
}

enum Piece<'a> {
    Text(&'a str),
    Wildcard(usize),
}

fn pieces(template: &str) -> impl Iterator<Item = Result<Piece<'_>, TemplateError>> {
    let mut rest = template;
    core::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let piece = match rest.find(['{', '}']) {
            None => Ok(Piece::Text(core::mem::take(&mut rest))),
            Some(0) => match rest.strip_prefix('{').and_then(|behind| behind.split_once('}')) {
                Some((number, behind)) if number.len() < 3 && number.bytes().all(|byte| byte.is_ascii_digit()) => {
                    rest = behind;
                    number.parse().map(Piece::Wildcard).map_err(|_| TemplateError::Brace)
                }
                _ => {
                    rest = "";
                    Err(TemplateError::Brace)
                }
            },
            Some(at) => {
                let (text, behind) = rest.split_at(at);
                rest = behind;
                Ok(Piece::Text(text))
            }
        };
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_match_as_the_standard_says() {
        for (filter, topic, expected) in [
            ("a/b", "a/b", Some(&[][..])),
            ("a/b", "a/b/", None),
            ("a/b", "a", None),
            ("a/+/c", "a/b/c", Some(&["b"][..])),
            ("a/+/c", "a//c", Some(&[""][..])),
            ("+/+", "/x", Some(&["", "x"][..])),
            ("+", "/x", None),
            ("a/#", "a", Some(&[""][..])),
            ("a/#", "a/b/c", Some(&["b/c"][..])),
            ("a/+/#", "a/b", Some(&["b", ""][..])),
            ("#", "a/b", Some(&["a/b"][..])),
            ("#", "$SYS/x", None),
            ("+/x", "$SYS/x", None),
            ("$SYS/+", "$SYS/x", Some(&["x"][..])),
        ] {
            assert_eq!(captures(filter, topic).as_deref(), expected, "{filter} {topic}");
        }
    }

    #[test]
    fn wildcards_are_whole_levels() {
        assert_eq!(wildcards("a/+/b/#"), Ok(2));
        assert_eq!(wildcards("a/b"), Ok(0));
        assert_eq!(wildcards("a/b+"), Err(FilterError::Plus));
        assert_eq!(wildcards("a/#/b"), Err(FilterError::Hash));
        assert_eq!(wildcards("a#"), Err(FilterError::Hash));
        assert_eq!(wildcards(""), Err(FilterError::Empty));
        assert_eq!(wildcards("a\0"), Err(FilterError::Control));
        assert_eq!(wildcards("$share/g/a"), Err(FilterError::Shared));
    }

    #[test]
    fn templates_name_every_wildcard() {
        assert_eq!(check_template("{2}/x{1}", 2), Ok(()));
        assert_eq!(fill("{2}/x{1}", &["a", "b"]), "b/xa");
        assert_eq!(check_template("x", 1), Err(TemplateError::Unnamed(1)));
        assert_eq!(check_template("{3}{1}{2}", 2), Err(TemplateError::Unknown(3)));
        assert_eq!(check_template("{0}", 1), Err(TemplateError::Unknown(0)));
        for template in ["{", "}", "{}", "{a}", "{1", "{123}"] {
            assert_eq!(check_template(template, 1), Err(TemplateError::Brace), "{template}");
        }
    }
}
