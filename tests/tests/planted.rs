//! The planted bugs (`tests/planted/`) keep up with the tree: the patch applies, each bug of the table is in it once, its
//! test is there, and tests/README.md shows the same table. `tests/planted/run` plants them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tree").to_path_buf()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The rows that begin with a number: number, what is planted, file and test.
fn rows(text: &str) -> Vec<[String; 4]> {
    let cells = |line: &str| {
        let cells: Vec<_> = line.strip_prefix("| ")?.strip_suffix(" |")?.split(" | ").map(str::to_owned).collect();
        <[String; 4]>::try_from(cells).ok().filter(|row| row[0].parse::<u32>().is_ok())
    };
    text.lines().filter_map(cells).collect()
}

#[test]
fn the_patch_applies() {
    let check = ["apply", "--check", "tests/planted/planted.patch"];
    let output = Command::new("git").args(check).current_dir(root()).output().expect("git runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}Remedy: plant the bugs anew in what has changed, with `git diff -U1`");
}

#[test]
fn each_bug_is_in_the_patch_in_the_table_and_in_the_readme() {
    let table = rows(&read("tests/planted/table"));
    assert_eq!(table, rows(&read("tests/README.md")), "tests/README.md shows another table than tests/planted/table");
    assert!(table.len() >= 20, "{} bugs", table.len());
    let numbers: Vec<u32> = table.iter().map(|row| row[0].parse().expect("a number")).collect();
    let patch = read("tests/planted/planted.patch");
    let added = patch.lines().filter(|line| line.starts_with('+')).flat_map(|line| line.split("planted(").skip(1));
    let mut planted: Vec<u32> = added.filter_map(|call| call.split(')').next()?.parse().ok()).collect();
    planted.sort_unstable();
    assert_eq!(planted, numbers, "planted in the patch, and in the table");
}

#[test]
fn each_test_is_where_the_table_says() {
    let mut wrong = BTreeSet::new();
    for [_, _, file, test] in rows(&read("tests/planted/table")) {
        let (file, test) = (file.trim_matches('`'), test.trim_matches('`'));
        let test = test.rsplit("::").next().unwrap_or(test);
        if !read(file).contains(&format!("fn {test}(")) {
            wrong.insert(format!("{file}: no {test}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
