//! The spool on a disk whose calls do half, or fail while it is opened: nothing acknowledged is lost, and what could not be
//! read now is never taken for damage.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use tempfile::TempDir;
use tributary_tests::seed;
use tributary_tests::shim;
use tributary_tests::store::audit;

/// Runs the writer for so many commits, with a fault; gives what it said and the last seq that it was promised.
fn write(root: &Path, seed: u64, commits: u64, fault: Option<(&Path, &str, &str)>) -> (Output, u64) {
    let mut writer = Command::new(env!("CARGO_BIN_EXE_store_writer"));
    writer.arg(root).arg(seed.to_string()).arg(commits.to_string());
    if let Some((library, name, value)) = fault {
        writer.env("LD_PRELOAD", library).env(name, value);
    }
    let output = writer.output().expect("runs");
    let said = String::from_utf8(output.stdout.clone()).expect("is text");
    let lines = said.lines().rev();
    let last = lines.filter_map(|line| line.strip_prefix("acked ").or(line.strip_prefix("opened "))).next();
    (output, last.map_or(0, |seq| seq.parse().expect("a number")))
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("is made");
    for entry in fs::read_dir(from).expect("is read") {
        let entry = entry.expect("is read");
        let to = to.join(entry.file_name());
        if entry.file_type().expect("has a type").is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), &to).expect("is copied");
        }
    }
}

#[test]
fn short_writes_lose_nothing() {
    let folder = TempDir::new().expect("a directory");
    let (library, root) = (shim::library(folder.path()).expect("cc"), folder.path().join("spool"));
    let mut acked = 0;
    for seed in seed(0)..seed(0) + 3 {
        let (output, last) = write(&root, seed, 60, Some((&library, "SHORT", "1")));
        assert!(output.status.success(), "seed {seed}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(last > acked, "seed {seed}");
        acked = last;
        let found = audit(&root, acked).unwrap_or_else(|fault| panic!("seed {seed}: {fault}"));
        assert_eq!(found, acked, "seed {seed}");
    }
}

/// Every read of an opening fails once, in one start each; the next start finds all.
#[test]
fn a_read_that_fails_at_the_start_is_no_damage() {
    let folder = TempDir::new().expect("a directory");
    let (library, root) = (shim::library(folder.path()).expect("cc"), folder.path().join("spool"));
    let (_, acked) = write(&root, seed(0), 80, None);
    let (mut refused, mut reads) = (0, 1);
    loop {
        let scratch = folder.path().join("scratch");
        copy(&root, &scratch);
        let (output, _) = write(&scratch, 1, 0, Some((&library, "READ_FAILS", &reads.to_string())));
        let said = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            assert!(said.contains("os error 5") || said.contains("Input/output error"), "read {reads}: {said}");
            refused += 1;
        }
        audit(&scratch, acked).unwrap_or_else(|fault| panic!("read {reads} failed: {fault}; the start said: {said}"));
        fs::remove_dir_all(&scratch).expect("is removed");
        // The first reads are those of the program's own start; the last are behind the end of what it reads.
        if output.status.success() && reads > 40 {
            break;
        }
        reads += 1;
    }
    println!("{refused} of {reads} starts were refused for now, none took it for damage");
    assert!(refused >= 20, "{refused} of {reads}");
}
