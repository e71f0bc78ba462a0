//! Writes into a spool for as long as it is let, and says on its standard output what was acknowledged: the program that
//! is killed, and whose power is cut.
//!
//! `store_writer ROOT SEED [COMMITS]` reads all that it finds and continues from there; one line a fact, each with one write:
//! `opened LAST` (highest seq found), `acked SEQ` (everything up to it is committed), `removed FIRST` (that directory).
//! After so many commits it ends as if killed. Every byte of a record follows from its seq, so that a reader needs no list of
//! what was written.

use std::io::Write;
use std::path::Path;

use fastrand::Rng;
use tributary::store::{Reserve, SledStore};
use tributary_core::store::{Commit, DirId, Store};
use tributary_tests::store::sample_record;

/// Directories are left after so many records: many creations and removals in a second.
const PER_DIR: u64 = 60;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(root), Some(seed)) = (args.next(), args.next()) else {
        return Err("store_writer ROOT SEED [COMMITS]".into());
    };
    let commits: Option<u64> = args.next().map(|commits| commits.parse()).transpose()?;
    let mut rng = Rng::with_seed(seed.parse()?);
    let mut out = std::io::stdout();

    let mut store = SledStore::open(Path::new(&root), Reserve::default())?;
    let found = store.recover()?;
    let mut dirs: Vec<DirId> = found.dirs.iter().map(|(id, _)| *id).collect();
    let mut last = found.dirs.last().map_or(0, |(_, last)| *last);
    for (dir, last) in &found.dirs {
        for seq in dir.first..=*last {
            let whole = store.read(*dir, seq)?.is_some_and(|record| record == sample_record(seq));
            if !whole {
                return Err(format!("record {seq} of {dir:?} is not what was written").into());
            }
        }
    }
    out.write_all(format!("opened {last}\n").as_bytes())?;
    for _ in 0..commits.unwrap_or(u64::MAX) {
        let dir = match dirs.last() {
            Some(dir) if last + 1 - dir.first < PER_DIR => *dir,
            _ => DirId { epoch: 1, first: last + 1 },
        };
        let next = last + 1 + rng.u64(..5);
        let records = (last + 1..next).map(|seq| (seq, sample_record(seq))).collect();
        let catalog = (dirs.last() != Some(&dir)).then(|| b"catalogue".to_vec());
        store.commit(&Commit { dir, records, state: (next - 1).to_be_bytes().to_vec(), catalog, frees: false })?;
        last = next - 1;
        out.write_all(format!("acked {last}\n").as_bytes())?;
        if dirs.last() != Some(&dir) {
            dirs.push(dir);
        }
        if dirs.len() > 4 {
            let oldest = dirs.remove(0);
            // Said before it is done: what is on its way out need not be there.
            out.write_all(format!("removed {}\n", oldest.first).as_bytes())?;
            store.remove(oldest)?;
        }
    }
    std::process::exit(0)
}
