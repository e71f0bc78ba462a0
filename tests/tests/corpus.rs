//! Every file of `tests/fuzz/corpus/` through its target, as it is and with seeded mutations: a fuzzer's findings stay
//! found without a fuzzer.

#![allow(clippy::unwrap_used, reason = "a test that panics fails")]

use std::collections::BTreeSet;
use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

use fastrand::Rng;
use tributary_tests::fuzz::{TARGETS, Target};

/// Mutations of each file.
const MUTATIONS: usize = 200;

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus")
}

/// Names and contents of a target's files, in the order of their names.
fn files(target: &str) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(corpus().join(target)).unwrap().map(|entry| entry.unwrap());
    let file = |entry: fs::DirEntry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap());
    let mut files: Vec<_> = entries.map(file).collect();
    files.sort();
    files
}

#[test]
fn every_target_has_a_corpus_and_every_corpus_a_target() {
    let folders = fs::read_dir(corpus()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let folders: BTreeSet<String> = folders.collect();
    let targets: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(folders, targets, "folders in tests/fuzz/corpus beside the targets of tests/src/fuzz.rs");
    for (name, _) in TARGETS {
        assert!(!files(name).is_empty(), "no file in tests/fuzz/corpus/{name}");
        let binary = corpus().join(format!("../fuzz_targets/{name}.rs"));
        assert!(binary.is_file(), "{} is missing: `cargo fuzz` does not know {name}", binary.display());
    }
}

/// Some changes: a bit, a byte, a cut, a repetition, a piece of another file.
fn mutated(rng: &mut Rng, bytes: &[u8], other: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for _ in 0..rng.usize(1..=4) {
        let at = rng.usize(0..=bytes.len());
        let end = rng.usize(at..=bytes.len());
        match rng.u8(0..6) {
            0 | 1 if at < bytes.len() => bytes[at] ^= 1 << rng.u8(0..8),
            2 if at < bytes.len() => bytes[at] = *rng.choice(&[0, 1, 0x7F, 0x80, 0xFF, b'"', b'\n', b'9']).unwrap(),
            3 => drop(bytes.drain(at..end)),
            4 => {
                let piece = bytes[at..end.min(at + 64)].to_vec();
                bytes.splice(at..at, piece);
            }
            _ => {
                let from = rng.usize(0..=other.len());
                let piece = &other[from..rng.usize(from..=other.len())];
                bytes.splice(at..end, piece.iter().copied());
            }
        }
    }
    bytes
}

/// Runs `target`; if it panics, leaves the bytes where a fuzzer would.
fn run(name: &str, what: &str, target: Target, bytes: &[u8]) {
    if catch_unwind(|| target(bytes)).is_err() {
        let kept = std::env::temp_dir().join(format!("tributary-{name}-{:08x}", tributary_proto::crc32c(bytes)));
        fs::write(&kept, bytes).unwrap();
        panic!("{name}: {what} panics (above); the bytes are in {}: keep them in its corpus", kept.display());
    }
}

#[test]
fn no_file_and_no_mutation_of_one_panics() {
    let seed = tributary_tests::seed(1);
    for (name, target) in TARGETS {
        let files = files(name);
        let mut rng = Rng::with_seed(seed);
        for (file, bytes) in &files {
            run(name, file, target, bytes);
            for n in 0..MUTATIONS {
                let other = &files[rng.usize(0..files.len())].1;
                let bytes = mutated(&mut rng, bytes, other);
                run(name, &format!("mutation {n} of {file}"), target, &bytes);
            }
        }
        println!("{name}: {} files and their mutations", files.len());
    }
}
