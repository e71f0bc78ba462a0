//! The disk of the spool against a simple model: the same actions on memory, on the faulty store without faults, and on
//! sled. After every start exactly what was committed is there.

use std::collections::BTreeMap;
use std::path::Path;

use proptest::prelude::*;
use tempfile::TempDir;
use tributary::store::{Reserve, SledStore};
use tributary_core::store::{Commit, DirId, Store, StoreError};
use tributary_tests::store::{Faults, FaultyStore, MemStore};

#[derive(Clone, Debug)]
enum Action {
    /// Records of these lengths, a catalogue or not.
    Commit(Vec<usize>, bool),
    /// The next commit goes into a new directory.
    Rotate,
    /// … of a new epoch, where seq begins again.
    Renew,
    Load(prop::sample::Index),
    Read(prop::sample::Index, prop::sample::Index),
    Remove(prop::sample::Index),
    Quarantine(prop::sample::Index, prop::sample::Index),
    Reopen,
    Kill,
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    use prop::sample::Index;
    let len = prop_oneof![8 => 0usize..1_500, 2 => 4_000usize..9_000, 1 => 60_000usize..122_904];
    let action = prop_oneof![
        8 => (prop::collection::vec(len, 0..5), prop::bool::weighted(0.2)).prop_map(|(l, c)| Action::Commit(l, c)),
        3 => Just(Action::Rotate),
        1 => Just(Action::Renew),
        2 => any::<Index>().prop_map(Action::Load),
        2 => any::<(Index, Index)>().prop_map(|(d, s)| Action::Read(d, s)),
        2 => any::<Index>().prop_map(Action::Remove),
        1 => any::<(Index, Index)>().prop_map(|(d, s)| Action::Quarantine(d, s)),
        1 => Just(Action::Reopen),
        1 => Just(Action::Kill),
    ];
    prop::collection::vec(action, 1..24)
}

/// Where a store lives: how to open it, and again after its process ended well or badly.
trait Place {
    type Store: Store;
    fn open(&mut self) -> Self::Store;
    fn reopen(&mut self, store: Self::Store) -> Self::Store;
    fn kill(&mut self, store: Self::Store) -> Self::Store;
}

struct Memory;
impl Place for Memory {
    type Store = MemStore;
    fn open(&mut self) -> MemStore {
        MemStore::new(1 << 30)
    }
    fn reopen(&mut self, store: MemStore) -> MemStore {
        store
    }
    fn kill(&mut self, mut store: MemStore) -> MemStore {
        store.crash(1);
        store
    }
}

struct Faulty;
impl Place for Faulty {
    type Store = FaultyStore<MemStore>;
    fn open(&mut self) -> Self::Store {
        FaultyStore::new(MemStore::new(1 << 30), Faults::default(), 7)
    }
    fn reopen(&mut self, store: Self::Store) -> Self::Store {
        store
    }
    fn kill(&mut self, mut store: Self::Store) -> Self::Store {
        store.inner_mut().crash(1);
        store
    }
}

struct Disk(TempDir);
impl Place for Disk {
    type Store = SledStore;
    fn open(&mut self) -> SledStore {
        SledStore::open(self.0.path(), Reserve::default()).expect("opens")
    }
    fn reopen(&mut self, store: SledStore) -> SledStore {
        drop(store);
        self.open()
    }
    /// What the page cache holds while the process is still there is what the next one finds.
    fn kill(&mut self, store: SledStore) -> SledStore {
        let image = TempDir::new().expect("a directory");
        copy(self.0.path(), image.path());
        drop(store);
        self.0 = image;
        self.open()
    }
}

fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).expect("lists") {
        let entry = entry.expect("lists");
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            std::fs::create_dir(&to).expect("makes");
            copy(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), &to).expect("copies");
        }
    }
}

/// What must be there.
#[derive(Default)]
struct Model {
    dirs: BTreeMap<DirId, Kept>,
    next: u64,
    active: Option<DirId>,
    epoch: u64,
    commits: u64,
}

#[derive(Default)]
struct Kept {
    records: BTreeMap<u64, Vec<u8>>,
    state: Vec<u8>,
    catalog: Option<Vec<u8>>,
}

impl Model {
    fn pick(&self, index: prop::sample::Index) -> Option<DirId> {
        (!self.dirs.is_empty()).then(|| *self.dirs.keys().nth(index.index(self.dirs.len())).expect("in range"))
    }

    fn check(&self, store: &mut impl Store) {
        let found = store.recover().expect("recovers");
        let dirs: Vec<_> = self
            .dirs
            .iter()
            .map(|(id, kept)| (*id, kept.records.last_key_value().map_or(id.first - 1, |(seq, _)| *seq)))
            .collect();
        assert_eq!(found.dirs, dirs);
        assert!(found.set_aside.is_empty(), "{found:?}");
        let newest = self.dirs.values().next_back();
        assert_eq!(found.state.as_ref(), newest.map(|kept| &kept.state));
        assert_eq!(found.catalog.as_ref(), newest.and_then(|kept| kept.catalog.as_ref()));
        for (id, kept) in &self.dirs {
            self.check_index(store, *id);
            for (seq, record) in &kept.records {
                assert_eq!(store.read(*id, *seq).expect("reads").as_ref(), Some(record), "{id:?} {seq}");
            }
        }
    }

    fn check_index(&self, store: &mut impl Store, id: DirId) {
        let index = store.load(id).expect("loads");
        let records = &self.dirs[&id].records;
        assert_eq!(index.len(), records.len(), "{id:?}");
        for (entry, (seq, record)) in index.iter().zip(records) {
            let known = record.len().min(entry.head.len());
            assert_eq!((entry.seq, entry.bytes as usize), (*seq, record.len()));
            assert_eq!(entry.head[..known], record[..known]);
        }
    }
}

fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(seed);
    std::iter::repeat_with(|| rng.u8(..)).take(len).collect()
}

fn run<P: Place>(mut place: P, actions: &[Action]) {
    let mut store = place.open();
    let mut model = Model { next: 1, epoch: 9, ..Model::default() };
    model.check(&mut store);
    for action in actions {
        match action {
            Action::Commit(lens, catalog) => {
                let dir = *model.active.get_or_insert(DirId { epoch: model.epoch, first: model.next });
                let first = !model.dirs.contains_key(&dir);
                model.commits += 1;
                let records: Vec<_> = (model.next..).zip(lens.iter().map(|len| bytes(model.commits, *len))).collect();
                let state = bytes(model.commits, model.commits as usize * 701 % 9_000);
                let catalog =
                    (first || *catalog).then(|| bytes(model.commits + 1, model.commits as usize * 397 % 10_000));
                let usage = store
                    .commit(&Commit {
                        dir,
                        records: records.clone(),
                        state: state.clone(),
                        catalog: catalog.clone(),
                        frees: false,
                    })
                    .expect("commits");
                assert!(usage.disk_bytes >= usage.active_bytes && usage.active_bytes > 0, "{usage:?}");
                model.next += records.len() as u64;
                let kept = model.dirs.entry(dir).or_default();
                kept.records.extend(records);
                kept.state = state;
                kept.catalog = catalog.or(kept.catalog.take());
            }
            Action::Rotate => {
                // Two directories may not have one name.
                let named = DirId { epoch: model.epoch, first: model.next };
                if !model.dirs.contains_key(&named) {
                    model.active = None;
                }
            }
            Action::Renew => {
                model.epoch += 1;
                (model.active, model.next) = (None, 1);
            }
            Action::Load(dir) => {
                if let Some(dir) = model.pick(*dir) {
                    model.check_index(&mut store, dir);
                }
            }
            Action::Read(dir, seq) => {
                if let Some(dir) = model.pick(*dir) {
                    let seq = dir.first + seq.index(12) as u64;
                    let record = store.read(dir, seq).expect("reads");
                    assert_eq!(record.as_ref(), model.dirs[&dir].records.get(&seq));
                }
            }
            Action::Remove(dir) => {
                if let Some(dir) = model.pick(*dir).filter(|dir| Some(*dir) != model.active) {
                    store.remove(dir).expect("removes");
                    model.dirs.remove(&dir);
                    assert!(matches!(store.load(dir), Err(StoreError::Damaged(_))));
                    store.remove(dir).expect("what is gone is no error");
                }
            }
            Action::Quarantine(dir, seq) => {
                if let Some(dir) = model.pick(*dir) {
                    let seq = dir.first + seq.index(12) as u64;
                    let usage = store.quarantine(dir, seq).expect("keeps");
                    assert!(usage.quarantined > 0 || !model.dirs[&dir].records.contains_key(&seq));
                }
            }
            Action::Reopen => {
                store = place.reopen(store);
                model.check(&mut store);
            }
            Action::Kill => {
                store = place.kill(store);
                model.check(&mut store);
            }
        }
    }
    store = place.kill(store);
    model.check(&mut store);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn memory_keeps_what_was_committed(actions in actions()) {
        run(Memory, &actions);
    }

    #[test]
    fn the_faulty_store_without_faults_keeps_what_was_committed(actions in actions()) {
        run(Faulty, &actions);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn sled_keeps_what_was_committed(actions in actions()) {
        run(Disk(TempDir::new().expect("a directory")), &actions);
    }
}

fn commit(dir: DirId, seqs: std::ops::Range<u64>) -> Commit {
    Commit {
        dir,
        records: seqs.clone().map(|seq| (seq, bytes(seq, 300))).collect(),
        state: seqs.end.to_be_bytes().to_vec(),
        catalog: Some(vec![1]),
        frees: false,
    }
}

#[test]
fn a_commit_under_way_is_wholly_there_or_wholly_not() {
    let dir = DirId { epoch: 1, first: 1 };
    let mut seen = [0, 0];
    for seed in 0..64 {
        let mut store = MemStore::new(1 << 20);
        store.commit(&commit(dir, 1..3)).expect("commits");
        store.begin(&commit(dir, 3..9)).expect("begins");
        store.crash(seed);
        let found = store.recover().expect("recovers");
        let last = found.dirs[0].1;
        assert_eq!(found.state, Some((last + 1).to_be_bytes().to_vec()));
        seen[usize::from(last == 8)] += 1;
        assert!(last == 8 || last == 2);
    }
    assert!(seen[0] > 0 && seen[1] > 0, "{seen:?}");
}

#[test]
fn memory_is_full_when_it_is_full() {
    let mut store = MemStore::new(200 << 10);
    let mut next = 1;
    let full = loop {
        let dir = DirId { epoch: 1, first: next };
        match store.commit(&commit(dir, next..next + 8)) {
            Ok(usage) => assert!(usage.disk_bytes + usage.free_bytes == 200 << 10),
            Err(error) => break error,
        }
        next += 8;
    };
    assert!(matches!(full, StoreError::Full(_)));
    assert_eq!(store.recover().expect("recovers").dirs.len(), 2);
    store.remove(DirId { epoch: 1, first: 1 }).expect("removes");
    store.commit(&commit(DirId { epoch: 1, first: next }, next..next + 8)).expect("there is room again");
}

#[test]
fn faults_come_as_often_as_asked_and_repeat_by_seed() {
    let faults = Faults { full: 100, unavailable: 100, damaged: 100, lost: 100 };
    let outcome = |seed| {
        let mut store = FaultyStore::new(MemStore::new(1 << 30), faults, seed);
        let mut log = Vec::new();
        for n in 0..400u64 {
            let dir = DirId { epoch: 1, first: n * 4 + 1 };
            log.push(store.commit(&commit(dir, dir.first..dir.first + 4)).map(|_| 0).map_err(|e| e.to_string()));
            log.push(store.load(dir).map(|index| index.len()).map_err(|e| e.to_string()));
        }
        log
    };
    let log = outcome(3);
    assert_eq!(log, outcome(3));
    assert_ne!(log, outcome(4));
    for (text, about) in [("full", 40), ("on purpose", 160), ("damaged: lost", 30)] {
        let seen = log.iter().filter(|r| r.as_ref().is_err_and(|e| e.contains(text))).count();
        assert!((about / 2..about * 2).contains(&seen), "{text}: {seen}");
    }
    assert!(log.contains(&Ok(3)), "a damaged record is left out");
}
