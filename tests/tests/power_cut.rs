//! The power goes while the spool is written, again and again: nothing acknowledged is lost, and every start succeeds.
//!
//! `store_writer` runs under `strace`; from one run any number of cuts is built (`src/power.rs`), each with another part of
//! what was not synced. The next run goes on from where a cut left it. With everything kept a cut is a kill -9 at that very
//! system call.

use std::path::Path;
use std::process::Command;

use fastrand::Rng;
use tempfile::TempDir;
use tributary::store::{Reserve, SledStore};
use tributary_core::store::{Store, StoreError};
use tributary_tests::power::{Keep, Lies, Trace};
use tributary_tests::store::{audit, sample_record};
use tributary_tests::{count, seed};

/// Commits of one run: some directories are made and removed.
const COMMITS: u64 = 120;

fn run(root: &Path, seed: u64) -> Trace {
    let mut writer = Command::new(env!("CARGO_BIN_EXE_store_writer"));
    writer.arg(root).arg(seed.to_string()).arg(COMMITS.to_string());
    Trace::of(root, &mut writer).expect("is traced")
}

/// What was acknowledged after so many steps.
fn acked(trace: &Trace, steps: usize) -> u64 {
    let said = trace.said(steps).rev().find_map(|line| line.strip_prefix("acked ").or(line.strip_prefix("opened ")));
    said.map_or(0, |seq| seq.parse().expect("a number"))
}

/// Cuts of which the last is the beginning of the next run, with a sector or a page as the piece.
#[test]
fn nothing_acknowledged_is_lost_to_a_power_cut() {
    let (runs, first) = (count("TRIBUTARY_POWER_CUTS", 8), seed(0));
    let mut root = TempDir::new().expect("a directory");
    let (mut before, mut cuts) = (0, 0);
    for seed in first..first + runs {
        let trace = run(root.path(), seed);
        let mut rng = Rng::with_seed(seed);
        for n in 0..6 {
            // One in three falls into the start.
            let steps = if n % 3 == 0 { rng.usize(..60.min(trace.steps())) } else { rng.usize(..=trace.steps()) };
            let keep = if n % 2 == 0 { Keep::Nothing } else { Keep::Some };
            let grain = if seed % 2 == 0 { 512 } else { 4096 };
            let to = TempDir::new().expect("a directory");
            trace.cut(to.path(), steps, keep, grain, Lies::default(), rng.u64(..)).expect("is built");
            // What a start found whole it has synced before it says so.
            let acked = acked(&trace, steps).max(before);
            let last = audit(to.path(), acked).unwrap_or_else(|fault| {
                panic!("seed {seed}, cut {n} after {steps} steps, {keep:?} of {grain}: {fault}")
            });
            cuts += 1;
            if n == 5 {
                (root, before) = (to, last);
            }
        }
    }
    println!("{cuts} power cuts: {before} records acknowledged at last, none lost");
    assert!(before > 100, "the writer must get somewhere: {before}");
}

/// The process is killed at each system call that changes a file, of a start and of many commits.
#[test]
fn nothing_acknowledged_is_lost_to_a_kill_at_any_call() {
    let root = TempDir::new().expect("a directory");
    let trace = run(root.path(), seed(0));
    let every = if std::env::var_os("TRIBUTARY_POWER_CUTS").is_some() { 1 } else { 7 };
    let mut kills = 0;
    for steps in (0..100.min(trace.steps())).chain((100..=trace.steps()).step_by(every)) {
        let to = TempDir::new().expect("a directory");
        trace.cut(to.path(), steps, Keep::All, 4096, Lies::default(), 0).expect("is built");
        audit(to.path(), acked(&trace, steps)).unwrap_or_else(|fault| panic!("killed after {steps} steps: {fault}"));
        kills += 1;
    }
    println!("{kills} kills of {} steps: nothing lost", trace.steps());
}

/// The cuts bite: without the fdatasync after sled's flush, acknowledged records are lost.
#[test]
fn without_fdatasync_it_would_be_lost() {
    let root = TempDir::new().expect("a directory");
    let trace = run(root.path(), seed(0));
    let lies = Lies { fdatasync: true, ..Lies::default() };
    let mut lost = 0;
    for n in 1..=8 {
        let steps = trace.steps() * n / 8;
        let to = TempDir::new().expect("a directory");
        trace.cut(to.path(), steps, Keep::Nothing, 4096, lies, n as u64).expect("is built");
        lost += usize::from(audit(to.path(), acked(&trace, steps)).is_err());
    }
    println!("{lost} of 8 cuts lose records without fdatasync");
    assert!(lost >= 6, "{lost}");
}

/// A disk that says it wrote and did not: what is damaged may be lost, but every start succeeds and no value is wrong.
#[test]
fn a_disk_that_lies_costs_records_but_no_start() {
    let root = TempDir::new().expect("a directory");
    let first = seed(0);
    let trace = run(root.path(), first);
    let cuts = count("TRIBUTARY_POWER_CUTS", 5) * 8;
    let (mut rng, mut whole) = (Rng::with_seed(first), 0);
    for n in 0..cuts {
        let steps = rng.usize(..=trace.steps());
        let to = TempDir::new().expect("a directory");
        let lies = Lies { writes: 1 + rng.usize(..3), ..Lies::default() };
        trace.cut(to.path(), steps, Keep::Some, 512, lies, rng.u64(..)).expect("is built");
        let mut store = SledStore::open(to.path(), Reserve::default()).expect("opens");
        let found =
            store.recover().unwrap_or_else(|error| panic!("seed {first}, cut {n} after {steps} steps: {error}"));
        for (dir, last) in found.dirs {
            for seq in dir.first..=last {
                match store.read(dir, seq) {
                    Ok(None) | Err(StoreError::Damaged(_)) => {}
                    Ok(Some(record)) => {
                        assert_eq!(record, sample_record(seq), "seed {first}, cut {n} after {steps} steps: {seq}");
                        whole += 1;
                    }
                    Err(error) => panic!("seed {first}, cut {n} after {steps} steps: {seq}: {error}"),
                }
            }
        }
    }
    println!("{cuts} cuts of a disk that never made some writes: {whole} records found whole, none wrong");
    assert!(whole > 100, "{whole}");
}
