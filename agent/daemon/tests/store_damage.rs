//! What the spool on disk makes of damage, of its neighbours and of its own interrupted work.
//!
//! Damage may cost what lies in the damaged directory and nothing else: never a wrong value, never a panic, never a start
//! that fails.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use fastrand::Rng;
use tempfile::TempDir;
use tributary::store::{KEPT, Reserve, SledStore};
use tributary_core::limits::MAX_RECORD;
use tributary_core::store::{Commit, DirId, Recovered, Store, StoreError};

const EPOCH: u64 = 0x0123_4567_89ab_cdef;

fn dir(first: u64) -> DirId {
    DirId { epoch: EPOCH, first }
}

fn record(seq: u64) -> Vec<u8> {
    let mut rng = Rng::with_seed(seq);
    let len = [40, 300, 1_000, 5_000, 20_000][rng.usize(..5)];
    std::iter::repeat_with(|| rng.u8(..)).take(len).collect()
}

fn commit(id: DirId, seqs: std::ops::Range<u64>) -> Commit {
    let state = format!("state after {}", seqs.end - 1).into_bytes();
    let records = seqs.map(|seq| (seq, record(seq))).collect();
    Commit { dir: id, records, state, catalog: Some(b"catalogue".to_vec()), frees: false }
}

fn open(root: &Path) -> SledStore {
    SledStore::open(root, Reserve::default()).expect("opens")
}

/// Three directories of 40 records each: 1 … 40, 41 … 80, 81 … 120.
const FIRSTS: [u64; 3] = [1, 41, 81];

fn fill(root: &Path) {
    let mut store = open(root);
    store.recover().expect("recovers");
    for first in FIRSTS {
        for from in (first..first + 40).step_by(8) {
            store.commit(&commit(dir(first), from..from + 8)).expect("commits");
        }
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("makes");
    for entry in fs::read_dir(from).expect("lists") {
        let entry = entry.expect("lists");
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), &to).expect("copies");
        }
    }
}

fn place(root: &Path, first: u64) -> PathBuf {
    root.join(format!("{EPOCH:016x}")).join(format!("{first:016x}"))
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(dir)
        .expect("lists")
        .map(|entry| entry.expect("lists").path())
        .filter(|path| path.is_file())
        .collect();
    files.sort();
    files
}

/// Reads everything; panics at a wrong value. Gives what it found, and how many records came from each directory.
fn audit(root: &Path) -> (Recovered, BTreeMap<u64, usize>) {
    let mut store = open(root);
    let found = store.recover().expect("a start never fails over damage");
    let mut whole = BTreeMap::new();
    for (id, last) in &found.dirs {
        let index = match store.load(*id) {
            Ok(index) => index,
            Err(StoreError::Damaged(_)) => continue,
            Err(error) => panic!("{id:?}: {error}"),
        };
        for entry in index {
            assert!(entry.seq >= id.first && entry.seq <= *last, "{id:?} {}", entry.seq);
            if let Some(found) = store.read(*id, entry.seq).expect("reads") {
                assert_eq!(found, record(entry.seq), "a wrong value under {}", entry.seq);
                assert_eq!(found.len(), entry.bytes as usize);
                *whole.entry(id.first).or_insert(0) += 1;
            }
        }
    }
    // It goes on: a new directory takes records.
    store.commit(&commit(dir(121), 121..125)).expect("goes on");
    assert_eq!(store.read(dir(121), 124).expect("reads"), Some(record(124)));
    (found, whole)
}

/// Kinds of damage.
const KINDS: u64 = 6;

fn damage(path: &Path, kind: u64, rng: &mut Rng) -> &'static str {
    let mut bytes = fs::read(path).expect("reads");
    let len = bytes.len();
    if len == 0 || kind == 0 {
        fs::remove_file(path).expect("deletes");
        return "deleted";
    }
    let from = rng.usize(..len);
    let said = match kind {
        1 => {
            bytes[from] ^= 1 << rng.u8(..8);
            "a bit flipped"
        }
        2 => {
            bytes.truncate(from);
            "truncated"
        }
        3 => {
            bytes.fill(0);
            "zeroed"
        }
        4 => {
            let until = len.min(from + 4096);
            bytes[from..until].fill(0);
            "a page zeroed"
        }
        _ => {
            for _ in 0..16 {
                let at = rng.usize(..len);
                bytes[at] = rng.u8(..);
            }
            "16 bytes changed"
        }
    };
    fs::write(path, bytes).expect("writes");
    said
}

#[test]
fn damage_costs_its_own_directory_at_most() {
    let healthy = TempDir::new().expect("a directory");
    fill(healthy.path());
    // So many of each kind; tests/soak says more.
    let each =
        std::env::var("TRIBUTARY_DAMAGES").map_or(20, |text| text.parse().expect("TRIBUTARY_DAMAGES is a number"));
    let mut lost: BTreeMap<&str, usize> = BTreeMap::new();
    for seed in 0..KINDS * each {
        let scratch = TempDir::new().expect("a directory");
        copy(healthy.path(), scratch.path());
        let mut rng = Rng::with_seed(seed);
        let hit = FIRSTS[rng.usize(..3)];
        let files = files(&place(scratch.path(), hit));
        let any = &files[rng.usize(..files.len())];
        let path = if rng.bool() { any } else { &any.with_file_name("db") };
        let said = damage(path, seed % KINDS, &mut rng);
        let what = format!("seed {seed}: {} {said}", path.display());

        let (found, whole) = audit(scratch.path());
        for first in FIRSTS.into_iter().filter(|first| *first != hit) {
            assert_eq!(whole.get(&first), Some(&40), "{what}: a neighbour suffered: {whole:?} {found:?}");
        }
        let left = whole.get(&hit).copied().unwrap_or(0);
        *lost.entry(said).or_default() += 40 - left;
        if hit != 81 {
            assert_eq!(found.state.as_deref(), Some(&b"state after 120"[..]), "{what}");
        } else {
            // Set aside, or known to have lost something: an older state record never comes back as if it were the last.
            let last = found.dirs.iter().find(|(id, _)| *id == dir(81)).map(|(_, last)| *last);
            assert!(last == Some(120) || found.set_aside == [dir(81)], "{what}: {found:?}");
            let state = found.state.as_deref().expect("an older directory has one");
            assert!(last == Some(120) || state == b"state after 80", "{what}");
        }
    }
    println!("records lost, by kind, of {} in the damaged directories of each: {lost:?}", each * 40);
    assert!(lost["zeroed"] > 0, "the damage must be able to do damage");
    // Found again in the raw bytes, whatever sled makes of them.
    for small in ["a bit flipped", "a page zeroed", "16 bytes changed"] {
        assert!(lost[small] * 20 <= each as usize * 40, "{small}: {lost:?}");
    }
}

/// The power goes between the exchange of a damaged directory for what was salvaged and its setting aside: the next start
/// sets it aside, for else nobody would know that the newest state record may be missing.
#[test]
fn what_was_salvaged_stays_known_after_a_crash() {
    let root = TempDir::new().expect("a directory");
    fill(root.path());
    let (there, leaving) = (place(root.path(), 81), place(root.path(), 81).with_file_name(format!("x{:016x}", 81)));
    copy(&there, &leaving);
    assert_eq!(open(root.path()).recover().expect("starts").set_aside, [], "one that is whole leaves nothing behind");
    assert!(!leaving.exists());
    copy(&there, &leaving);
    fs::write(there.join("salvaged"), []).expect("writes");
    for _ in 0..2 {
        assert_eq!(open(root.path()).recover().expect("starts").set_aside, [dir(81)]);
        assert!(!leaving.exists());
    }
}

#[test]
fn a_spool_of_nothing_but_zeros_starts() {
    let root = TempDir::new().expect("a directory");
    fill(root.path());
    for first in FIRSTS {
        for path in files(&place(root.path(), first)) {
            let len = fs::metadata(&path).expect("is there").len();
            fs::write(&path, vec![0; len as usize]).expect("writes");
        }
    }
    for name in ["SPOOL_FORMAT", "ballast", "lock"] {
        fs::write(root.path().join(name), [0; 64]).expect("writes");
    }
    fs::write(root.path().join("notes.txt"), "foreign").expect("writes");
    fs::create_dir(root.path().join("lost+found")).expect("makes");
    let (found, whole) = audit(root.path());
    assert!(whole.is_empty() && found.state.is_none(), "{found:?}");
    assert!(root.path().join("notes.txt").exists() && root.path().join("lost+found").exists());
}

#[test]
fn a_torn_snapshot_costs_nothing() {
    let root = TempDir::new().expect("a directory");
    fill(root.path());
    drop(open(root.path()).recover().expect("recovers"));
    for first in FIRSTS {
        fs::write(place(root.path(), first).join("snap.00000000FFFFFFFF"), []).expect("writes");
    }
    let (found, whole) = audit(root.path());
    assert!(found.set_aside.is_empty());
    assert_eq!(whole, BTreeMap::from([(1, 40), (41, 40), (81, 40)]));
}

#[test]
fn what_is_set_aside_has_a_ceiling() {
    let root = TempDir::new().expect("a directory");
    let mut store = open(root.path());
    store.recover().expect("recovers");
    for n in 1..=KEPT as u64 + 4 {
        store.commit(&commit(dir(n), n..n + 1)).expect("commits");
    }
    drop(store);
    for n in 1..=KEPT as u64 + 3 {
        fs::remove_file(place(root.path(), n).join("db")).expect("deletes");
    }
    let mut store = open(root.path());
    let found = store.recover().expect("recovers");
    assert_eq!(found.set_aside.len(), KEPT);
    assert_eq!(found.dirs, vec![(dir(KEPT as u64 + 4), KEPT as u64 + 4)]);
    assert_eq!(found.usage.quarantined, KEPT as u64);
    let kept = fs::read_dir(root.path()).expect("lists");
    let bad = kept.filter(|e| e.as_ref().expect("lists").file_name().to_string_lossy().starts_with("bad-")).count();
    assert_eq!(bad, KEPT);
}

#[test]
fn the_largest_records_make_no_blob_files() {
    let root = TempDir::new().expect("a directory");
    let mut store = open(root.path());
    store.recover().expect("recovers");
    let big = |seq: u64| vec![seq as u8; MAX_RECORD];
    for seq in 1..=24 {
        let state = vec![seq as u8; 100_000];
        let commit = Commit {
            dir: dir(1),
            records: vec![(seq, big(seq))],
            state,
            catalog: Some(vec![7; 120_000]),
            frees: false,
        };
        store.commit(&commit).expect("commits");
    }
    for seq in 1..=24 {
        assert_eq!(store.read(dir(1), seq).expect("reads"), Some(big(seq)));
    }
    assert_eq!(fs::read_dir(place(root.path(), 1).join("blobs")).expect("lists").count(), 0);
    drop(store);
    let found = open(root.path()).recover().expect("recovers");
    assert_eq!((found.state, found.catalog), (Some(vec![24; 100_000]), Some(vec![7; 120_000])));
}

#[test]
fn one_directory_opened_a_hundred_times_in_a_row() {
    let root = TempDir::new().expect("a directory");
    for n in 1..=100 {
        let mut store = open(root.path());
        let found = store.recover().expect("recovers");
        assert!(found.set_aside.is_empty());
        assert_eq!(found.dirs.first().map(|(_, last)| *last), (n > 1).then_some(n - 1));
        store.commit(&commit(dir(1), n..n + 1)).expect("commits");
    }
}

#[test]
fn removal_gives_the_space_back_and_an_interrupted_one_is_finished() {
    let root = TempDir::new().expect("a directory");
    fill(root.path());
    let mut store = open(root.path());
    let before = store.recover().expect("recovers").usage;
    let after = store.remove(dir(1)).expect("removes");
    assert!(after.disk_bytes + 500_000 < before.disk_bytes, "{before:?} {after:?}");
    assert!(!place(root.path(), 1).exists());
    drop(store);

    let leaving = root.path().join(format!("{EPOCH:016x}")).join(format!("x{:016x}", 41));
    fs::rename(place(root.path(), 41), &leaving).expect("renames");
    fs::remove_file(leaving.join("conf")).expect("deletes");
    let half_made = place(root.path(), 121);
    fs::create_dir_all(half_made.join("blobs")).expect("makes");
    let mut store = open(root.path());
    let found = store.recover().expect("recovers");
    assert_eq!(found.dirs, vec![(dir(81), 120)]);
    assert!(found.set_aside.is_empty());
    assert!(!leaving.exists() && !half_made.exists());

    let usage = store.remove(dir(81)).expect("removes");
    assert_eq!(usage.disk_bytes, 0);
    assert!(!root.path().join(format!("{EPOCH:016x}")).exists(), "an epoch without directories goes too");
}

#[test]
fn a_second_agent_is_refused_at_once() {
    let root = TempDir::new().expect("a directory");
    let first = open(root.path());
    let second = SledStore::open(root.path(), Reserve::default());
    let Err(StoreError::Foreign(text)) = second.map(drop) else { panic!("two agents on one spool") };
    assert!(text.contains("another agent"), "{text}");
    drop(first);
    open(root.path());
}

#[test]
fn a_newer_format_is_left_alone() {
    let root = TempDir::new().expect("a directory");
    fill(root.path());
    let path = root.path().join("SPOOL_FORMAT");
    let line = |format: &str| {
        format!("{format} {:08x}\n", crc::Crc::<u32>::new(&crc::CRC_32_ISCSI).checksum(format.as_bytes()))
    };
    assert_eq!(fs::read_to_string(&path).expect("reads"), line("sled 3"));
    fs::write(&path, line("log 2")).expect("writes");
    let Err(StoreError::Foreign(text)) = SledStore::open(root.path(), Reserve::default()).map(drop) else {
        panic!("opened")
    };
    assert!(text.contains("log 2") && text.contains("sled 3"), "{text}");
    fs::write(&path, "sled 7 00000000\n").expect("writes");
    assert_eq!(open(root.path()).recover().expect("damage to the line is no other version").dirs.len(), 3);
}

#[test]
fn a_refused_record_is_kept_for_the_owner() {
    let root = TempDir::new().expect("a directory");
    fill(root.path());
    let mut store = open(root.path());
    store.recover().expect("recovers");
    assert_eq!(store.quarantine(dir(41), 42).expect("keeps").quarantined, 1);
    assert_eq!(store.quarantine(dir(41), 42).expect("twice is once").quarantined, 1);
    store.remove(dir(41)).expect("removes");
    let path = root.path().join("refused").join(format!("{EPOCH:016x}-{:016x}", 42));
    assert_eq!(fs::read(path).expect("is there"), record(42));
}

#[test]
fn a_doubtful_directory_is_written_anew() {
    use std::os::unix::fs::MetadataExt;
    let root = TempDir::new().expect("a directory");
    fill(root.path());
    let data = place(root.path(), 81).join("db");
    let inode = fs::metadata(&data).expect("is there").ino();
    fs::write(place(root.path(), 81).join("doubt"), []).expect("writes");
    let (found, whole) = audit(root.path());
    assert_eq!(found.dirs.last(), Some(&(dir(81), 120)));
    assert_eq!(whole.get(&81), Some(&40));
    assert_ne!(fs::metadata(&data).expect("is there").ino(), inode);
    assert!(!place(root.path(), 81).join("doubt").exists());
}
