//! Drives the spool on a file system that is far too small for it: 6,000 records through a few MB.
//!
//! `store_full ROOT [stop]` drops the oldest directory when the disk is full; with `stop` it first tries five times more,
//! and while nothing is dropped, records must be readable and state records must still be taken: that is how a full
//! spool is emptied. Ends with an error if anything acknowledged is missing or wrong.

use std::collections::VecDeque;
use std::path::Path;

use tributary::store::{Reserve, SledStore};
use tributary_core::store::{Commit, DirId, Store, StoreError};
use tributary_tests::store::sample_record;

const RECORDS: u64 = 6_000;
const PER_COMMIT: u64 = 4;
const DIR_BYTES: usize = 2 << 20;

fn check(store: &mut SledStore, dir: DirId, last: u64) -> Result<(), Box<dyn std::error::Error>> {
    let index: Vec<u64> = store.load(dir)?.iter().map(|entry| entry.seq).collect();
    if index != (dir.first..=last).collect::<Vec<_>>() {
        return Err(format!("{dir:?}: not all of {}..={last} is there", dir.first).into());
    }
    for seq in index {
        if store.read(dir, seq)? != Some(sample_record(seq)) {
            return Err(format!("{dir:?}: {seq} is not what was written").into());
        }
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let root = args.next().ok_or("store_full ROOT [stop]")?;
    let patience = if args.next().as_deref() == Some("stop") { 5 } else { 0 };

    let mut store = SledStore::open(Path::new(&root), Reserve::default())?;
    store.recover()?;
    let (mut dirs, mut payload, mut full) = (VecDeque::from([DirId { epoch: 1, first: 1 }]), 0, 0);
    let mut seq = 0;
    while seq < RECORDS {
        if payload > DIR_BYTES {
            dirs.push_back(DirId { epoch: 1, first: seq + 1 });
            payload = 0;
        }
        let dir = *dirs.back().ok_or("a directory")?;
        let records: Vec<_> = (seq + 1..=seq + PER_COMMIT).map(|seq| (seq, sample_record(seq))).collect();
        let bytes: usize = records.iter().map(|(_, record)| record.len()).sum();
        let state = (seq + PER_COMMIT).to_be_bytes().to_vec();
        let commit = Commit { dir, records, state, catalog: Some(vec![1; 3_000]) };
        let mut tries = 0;
        while let Err(error) = store.commit(&commit) {
            if !matches!(error, StoreError::Full(_)) || tries > 50 {
                return Err(format!("after {seq} records, {tries} tries: {error}").into());
            }
            (tries, full) = (tries + 1, full + 1);
            if tries <= patience {
                let oldest = dirs[0];
                let entry = *store.load(oldest)?.first().ok_or("the oldest directory has a record")?;
                store.read(oldest, entry.seq)?.ok_or("an old record can be read")?;
                // A new directory that did not fit is not there yet.
                let written = if payload == 0 && dirs.len() > 1 { dirs[dirs.len() - 2] } else { dir };
                let state = seq.to_be_bytes().to_vec();
                store.commit(&Commit { dir: written, records: Vec::new(), state, catalog: None })?;
            } else if dirs.len() > 1 {
                store.remove(dirs.pop_front().ok_or("a directory")?)?;
            }
        }
        (seq, payload) = (seq + PER_COMMIT, payload + bytes);
    }
    drop(store);

    let mut store = SledStore::open(Path::new(&root), Reserve::default())?;
    let found = store.recover()?;
    if found.state != Some(seq.to_be_bytes().to_vec()) || !found.set_aside.is_empty() {
        return Err("the last state record is not there".into());
    }
    for (dir, last) in found.dirs {
        check(&mut store, dir, last)?;
    }
    println!("{seq} records, {full} times full, {:?}", found.usage);
    if full == 0 { Err("the file system was not too small".into()) } else { Ok(()) }
}
