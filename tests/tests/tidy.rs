//! Holds the house in order: rules of the source tree that no compiler checks. Each failure says its remedy.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

/// A file past this many lines before its tests is two ideas.
const MOST_LINES: usize = 500;
/// Names that say nothing of what is inside.
const EMPTY_NAMES: [&str; 7] = ["utils", "util", "helpers", "helper", "common", "manager", "types"];
/// Text endings that are searched for what must not be committed.
const TEXTS: [&str; 10] = ["rs", "toml", "md", "sh", "py", "proto", "lock", "service", "conf", "rules"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// All files of the tree, without what git or cargo made.
fn files() -> Vec<PathBuf> {
    entries().0
}

/// Files, and whatever is neither file nor folder.
fn entries() -> (Vec<PathBuf>, Vec<PathBuf>) {
    let (mut found, mut odd) = (Vec::new(), Vec::new());
    let mut folders = vec![root()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name();
            let kind = entry.file_type().unwrap();
            if kind.is_dir() && name != "target" && name != ".git" {
                folders.push(entry.path());
            } else if kind.is_file() {
                found.push(entry.path());
            } else if !kind.is_dir() {
                odd.push(entry.path());
            }
        }
    }
    found.sort();
    assert!(found.len() > 20, "the walk found only {} files: the tree has moved", found.len());
    (found, odd)
}

fn ending(path: &Path) -> &str {
    path.extension().and_then(|ending| ending.to_str()).unwrap_or_default()
}

fn rust_files() -> impl Iterator<Item = (String, String)> {
    files()
        .into_iter()
        .filter(|path| ending(path) == "rs")
        .map(|path| (shown(&path), fs::read_to_string(&path).unwrap()))
}

/// The path from the root, as people write it.
fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap().display().to_string()
}

/// What stands before a file's unit tests.
fn before_tests(text: &str) -> &str {
    text.find("\n#[cfg(test)]").map_or(text, |end| &text[..end])
}

/// Whether a file is test code as a whole.
fn is_test(path: &str) -> bool {
    path.starts_with("tests/") || path.contains("/tests/") || path.contains("/benches/")
}

/// Collects what is wrong, so that one run shows all of it.
fn report(wrong: Vec<String>, remedy: &str) {
    assert!(wrong.is_empty(), "{}\nRemedy: {remedy}", wrong.join("\n"));
}

#[test]
fn every_rust_file_opens_with_its_module_doc() {
    let wrong = rust_files().filter(|(_, text)| !text.starts_with("//!")).map(|(path, _)| path).collect();
    report(wrong, "begin the file with `//!`: what it is, where on the line it stands, why this way, its limits");
}

#[test]
fn no_file_is_two_ideas() {
    let wrong = rust_files()
        .map(|(path, text)| (path, before_tests(&text).lines().count()))
        .filter(|(_, lines)| *lines > MOST_LINES)
        .map(|(path, lines)| format!("{path}: {lines} lines before its tests, at most {MOST_LINES}"))
        .collect();
    report(wrong, "split it where its two ideas meet");
}

#[test]
fn nothing_unfinished_and_nothing_unwrapped() {
    // Put together here, so that this file does not find itself.
    let unfinished = ["to".to_owned() + "do!(", "unimpl".to_owned() + "emented!(", "#[ig".to_owned() + "nore"];
    let mut wrong = Vec::new();
    for (path, text) in rust_files() {
        for (number, line) in text.lines().enumerate() {
            if unfinished.iter().any(|word| line.contains(word)) {
                wrong.push(format!("{path}:{}: {}", number + 1, line.trim()));
            }
        }
        if !is_test(&path) {
            for (number, line) in before_tests(&text).lines().enumerate() {
                if line.contains(".unwrap()") && !line.trim_start().starts_with("//") {
                    wrong.push(format!("{path}:{}: {}", number + 1, line.trim()));
                }
            }
        }
    }
    report(
        wrong,
        "finish it, or leave it out; outside tests return an error, or `expect` with the invariant that holds",
    );
}

#[test]
fn no_module_has_an_empty_name() {
    let wrong = files()
        .iter()
        .filter(|path| ending(path) == "rs")
        .filter(|path| {
            path.iter().filter_map(|part| part.to_str()).any(|part| EMPTY_NAMES.contains(&part.trim_end_matches(".rs")))
        })
        .map(|path| shown(path))
        .collect();
    report(wrong, "name the module after the idea that is in it");
}

#[test]
fn files_are_files() {
    let wrong = entries().1.iter().map(|path| shown(path)).collect();
    report(wrong, "put the file itself here: a link leads elsewhere on another machine");
}

#[test]
fn one_clippy_toml_at_the_root() {
    let wrong: Vec<String> = files()
        .iter()
        .filter(|path| path.file_name().is_some_and(|name| name == "clippy.toml" || name == ".clippy.toml"))
        .map(|path| shown(path))
        .filter(|path| path != "clippy.toml")
        .collect();
    report(
        wrong,
        "clippy reads only the nearest one, so this one switches the root's bans off: merge it into the root's",
    );
}

#[test]
fn nothing_names_one_machine() {
    // Put together here, so that this file does not find itself.
    let places = ["/wo".to_owned() + "rk/", "/ro".to_owned() + "ot/", "/ho".to_owned() + "me/"];
    let mut wrong = Vec::new();
    for path in files() {
        let script = path.file_name().is_some_and(|name| name == "run" || name == "soak");
        if !script && !TEXTS.contains(&ending(&path)) {
            continue;
        }
        let Ok(text) = fs::read_to_string(&path) else { continue };
        for (number, line) in text.lines().enumerate() {
            if places.iter().any(|place| line.contains(place)) {
                wrong.push(format!("{}:{}: {}", shown(&path), number + 1, line.trim()));
            }
        }
    }
    report(wrong, "use a path relative to the file, the manifest (CARGO_MANIFEST_DIR) or a temporary directory");
}

#[test]
fn every_crate_comes_from_crates_io() {
    let lock = fs::read_to_string(root().join("Cargo.lock")).unwrap();
    let wrong = lock
        .lines()
        .filter(|line| line.starts_with("source = "))
        .filter(|line| *line != r#"source = "registry+https://github.com/rust-lang/crates.io-index""#)
        .map(|line| format!("Cargo.lock: {line}"))
        .collect();
    report(wrong, "take the released crate, or vendor the code with its licence; deny.toml allows crates.io alone");
}

/// The workspace's lints hold only where a member asks for them.
#[test]
fn every_member_takes_the_workspace_lints() {
    let manifest: toml::Table = fs::read_to_string(root().join("Cargo.toml")).unwrap().parse().unwrap();
    let mut wrong = Vec::new();
    for member in manifest["workspace"]["members"].as_array().unwrap() {
        let path = Path::new(member.as_str().unwrap()).join("Cargo.toml");
        let text: toml::Table = fs::read_to_string(root().join(&path)).unwrap().parse().unwrap();
        if text.get("lints").and_then(|lints| lints.get("workspace")).and_then(toml::Value::as_bool) != Some(true) {
            wrong.push(path.display().to_string());
        }
    }
    report(wrong, "add `[lints]` with `workspace = true` to it");
}
