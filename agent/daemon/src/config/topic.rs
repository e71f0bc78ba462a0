//! The topic prefix (contract, Topics).

/// Longest prefix in bytes: with site, agent and `/data/l` a topic stays below 400.
const LONGEST: usize = 200;

/// Whether `prefix` can stand before site and agent.
///
/// # Errors
/// What is wrong with it, for people.
pub(super) fn prefix(prefix: &str) -> Result<(), String> {
    if prefix.is_empty() {
        return Err("the prefix is empty".into());
    }
    if prefix.len() > LONGEST {
        return Err(format!("the prefix has {} bytes; the ceiling is {LONGEST}", prefix.len()));
    }
    if let Some(bad) = prefix.chars().find(|c| matches!(c, '+' | '#' | '$') || c.is_control() || *c == ' ') {
        return Err(format!("{bad:?} cannot stand in a topic prefix"));
    }
    if prefix.split('/').any(str::is_empty) {
        return Err(format!("{prefix:?} has an empty level"));
    }
    Ok(())
}
