//! Disks that are none: a store in memory that models what an fsync is, and one that fails.
//!
//! Both are pure and deterministic: no clock, no thread, chance from a seed. The simulated world keeps a [`MemStore`]
//! across the deaths of its agent and cuts the power between [`MemStore::begin`] and [`MemStore::finish`]; the tests of
//! the spool run the same actions against them and against sled.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use fastrand::Rng;
use tributary::store::{Reserve, SledStore};
use tributary_core::limits::MAX_RECORD;
use tributary_core::store::{Commit, DirId, IndexEntry, RECORD_HEAD, Recovered, Store, StoreError, Usage};

/// Bytes on disk that a directory takes before anything is in it, and for each 4 bytes of payload 9: what sled takes.
const DIR_BYTES: u64 = 64 << 10;

#[derive(Clone, Debug, Default)]
struct Dir {
    records: BTreeMap<u64, Vec<u8>>,
    /// Bytes of all records.
    payload: usize,
    state: Option<Vec<u8>>,
    catalog: Option<Vec<u8>>,
}

impl Dir {
    fn apply(&mut self, commit: &Commit) {
        self.payload = self.payload_with(commit);
        self.records.extend(commit.records.iter().cloned());
        self.state = Some(commit.state.clone());
        self.catalog = commit.catalog.clone().or(self.catalog.take());
    }

    fn payload_with(&self, commit: &Commit) -> usize {
        commit.records.iter().fold(self.payload, |payload, (seq, record)| {
            payload + record.len() - self.records.get(seq).map_or(0, Vec::len)
        })
    }

    fn bytes(&self) -> u64 {
        on_disk(self.payload, &self.state, &self.catalog)
    }

    fn bytes_with(&self, commit: &Commit) -> u64 {
        let catalog = if commit.catalog.is_some() { &commit.catalog } else { &self.catalog };
        on_disk(self.payload_with(commit), &Some(commit.state.clone()), catalog)
    }
}

fn on_disk(payload: usize, state: &Option<Vec<u8>>, catalog: &Option<Vec<u8>>) -> u64 {
    let rest = [state, catalog].iter().filter_map(|bytes| bytes.as_ref().map(Vec::len)).sum::<usize>();
    DIR_BYTES + (payload + rest) as u64 * 9 / 4
}

/// A disk in memory. What [`commit`](Store::commit) returned `Ok` for survives [`crash`](Self::crash); what was only
/// begun is then wholly there or wholly not.
#[derive(Clone, Debug)]
pub struct MemStore {
    capacity: u64,
    /// Of that, what is kept for emptying it.
    reserve: u64,
    dirs: BTreeMap<DirId, Dir>,
    active: Option<DirId>,
    begun: Option<Commit>,
    refused: BTreeMap<(DirId, u64), Vec<u8>>,
}

impl MemStore {
    /// An empty disk of so many bytes.
    #[must_use]
    pub fn new(capacity: u64) -> Self {
        Self { capacity, reserve: 0, dirs: BTreeMap::new(), active: None, begun: None, refused: BTreeMap::new() }
    }

    /// Hands a commit to the disk without waiting for its fsync.
    ///
    /// # Errors
    /// `Full`, if it would not fit; nothing is begun then.
    ///
    /// # Panics
    /// If another commit is under way: there is one thread.
    pub fn begin(&mut self, commit: &Commit) -> Result<(), StoreError> {
        assert!(self.begun.is_none(), "one commit at a time");
        let (before, after) = match self.dirs.get(&commit.dir) {
            Some(dir) => (dir.bytes(), dir.bytes_with(commit)),
            None => (0, Dir::default().bytes_with(commit)),
        };
        let reserve = if commit.records.is_empty() || commit.frees { 0 } else { self.reserve };
        if self.used() - before + after + reserve > self.capacity {
            return Err(StoreError::Full("no space left in memory".into()));
        }
        self.begun = Some(commit.clone());
        Ok(())
    }

    /// The fsync of the commit under way returns.
    ///
    /// # Panics
    /// If there is none.
    pub fn finish(&mut self) -> Usage {
        let commit = self.begun.take().expect("a commit was begun");
        self.dirs.entry(commit.dir).or_default().apply(&commit);
        self.active = Some(commit.dir);
        self.usage()
    }

    /// The power fails and comes back.
    pub fn crash(&mut self, seed: u64) {
        if self.begun.is_some() && Rng::with_seed(seed).bool() {
            self.finish();
        }
        self.begun = None;
        self.active = None;
    }

    /// Changes how much the disk holds; what is there stays.
    pub fn resize(&mut self, capacity: u64) {
        self.capacity = capacity;
    }

    /// Others take all the room but `reserve`, which is kept for emptying it.
    pub fn fill(&mut self, reserve: u64) {
        (self.capacity, self.reserve) = (self.used() + reserve, reserve);
    }

    /// A record as it lies there.
    #[must_use]
    pub fn record(&self, dir: DirId, seq: u64) -> Option<&[u8]> {
        self.dirs.get(&dir)?.records.get(&seq).map(Vec::as_slice)
    }

    /// Refused records kept for the owner.
    pub fn refused(&self) -> impl Iterator<Item = &[u8]> {
        self.refused.values().map(Vec::as_slice)
    }

    fn used(&self) -> u64 {
        let refused: usize = self.refused.values().map(Vec::len).sum();
        self.dirs.values().map(Dir::bytes).sum::<u64>() + refused as u64
    }

    /// What it holds now.
    #[must_use]
    pub fn usage(&self) -> Usage {
        let active = self.active.and_then(|id| self.dirs.get(&id));
        Usage {
            disk_bytes: self.used(),
            active_bytes: active.map_or(0, Dir::bytes),
            free_bytes: self.capacity.saturating_sub(self.used()),
            quarantined: self.refused.len() as u64,
        }
    }

    fn dir(&self, id: DirId) -> Result<&Dir, StoreError> {
        self.dirs.get(&id).ok_or_else(|| StoreError::Damaged(format!("{id:?} is not there")))
    }
}

impl Store for MemStore {
    fn recover(&mut self) -> Result<Recovered, StoreError> {
        let last = |(id, dir): (&DirId, &Dir)| {
            (*id, dir.records.last_key_value().map_or(id.first.saturating_sub(1), |(seq, _)| *seq))
        };
        let newest = self.dirs.values().rev().find(|dir| dir.state.is_some());
        Ok(Recovered {
            dirs: self.dirs.iter().map(last).collect(),
            state: newest.and_then(|dir| dir.state.clone()),
            catalog: newest.and_then(|dir| dir.catalog.clone()),
            set_aside: Vec::new(),
            usage: self.usage(),
        })
    }

    fn commit(&mut self, commit: &Commit) -> Result<Usage, StoreError> {
        self.begin(commit)?;
        Ok(self.finish())
    }

    fn load(&mut self, dir: DirId) -> Result<Vec<IndexEntry>, StoreError> {
        let entry = |(seq, record): (&u64, &Vec<u8>)| {
            let mut head = [0; RECORD_HEAD];
            let known = record.len().min(RECORD_HEAD);
            head[..known].copy_from_slice(&record[..known]);
            IndexEntry { seq: *seq, head, bytes: record.len() as u32 }
        };
        Ok(self.dir(dir)?.records.iter().map(entry).collect())
    }

    fn read(&mut self, dir: DirId, seq: u64) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.dir(dir)?.records.get(&seq).cloned())
    }

    fn remove(&mut self, dir: DirId) -> Result<Usage, StoreError> {
        self.dirs.remove(&dir);
        Ok(self.usage())
    }

    fn quarantine(&mut self, dir: DirId, seq: u64) -> Result<Usage, StoreError> {
        if let Some(record) = self.read(dir, seq)? {
            self.refused.insert((dir, seq), record);
        }
        Ok(self.usage())
    }
}

/// How often what goes wrong, in calls, records or directories out of a thousand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Commits that find the disk full.
    pub full: u32,
    /// Calls that find the disk unusable. Half of the commits among them are there all the same.
    pub unavailable: u32,
    /// Records that are damaged: absent from then on, in the index and when read.
    pub damaged: u32,
    /// Directories that are lost: at the next start, or when next loaded.
    pub lost: u32,
}

/// A store that fails, by a seed. Which records and directories are damaged depends on the seed and their names alone,
/// so they stay damaged, and a record is damaged whoever asks.
#[derive(Clone, Debug)]
pub struct FaultyStore<S> {
    inner: S,
    faults: Faults,
    seed: u64,
    rng: Rng,
    lost: BTreeSet<DirId>,
}

impl<S: Store> FaultyStore<S> {
    /// `inner`, with faults.
    #[must_use]
    pub fn new(inner: S, faults: Faults, seed: u64) -> Self {
        Self { inner, faults, seed, rng: Rng::with_seed(seed), lost: BTreeSet::new() }
    }

    /// Other faults from now on.
    pub fn set_faults(&mut self, faults: Faults) {
        self.faults = faults;
    }

    /// The store that does not fail.
    pub fn inner_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    /// Whether this record is damaged. Calls for no chance: the same for ever.
    #[must_use]
    pub fn is_damaged(&self, dir: DirId, seq: u64) -> bool {
        self.chosen(self.faults.damaged, dir, seq.wrapping_add(1))
    }

    fn chosen(&self, per_mille: u32, dir: DirId, n: u64) -> bool {
        if per_mille == 0 {
            return false;
        }
        let mixed = [dir.epoch, dir.first, n].iter().fold(self.seed, |seed, part| Rng::with_seed(seed ^ part).u64(..));
        mixed % 1_000 < u64::from(per_mille)
    }

    fn draw(&mut self, per_mille: u32) -> bool {
        per_mille > 0 && self.rng.u32(..1_000) < per_mille
    }

    fn usable(&mut self) -> Result<(), StoreError> {
        match self.draw(self.faults.unavailable) {
            true => Err(StoreError::Unavailable("input/output error, on purpose".into())),
            false => Ok(()),
        }
    }

    fn lose(&mut self, dir: DirId) -> Result<bool, StoreError> {
        let lost = self.chosen(self.faults.lost, dir, 0) && self.lost.insert(dir);
        if lost {
            self.inner.remove(dir)?;
        }
        Ok(lost)
    }
}

impl<S: Store> Store for FaultyStore<S> {
    fn recover(&mut self) -> Result<Recovered, StoreError> {
        let mut set_aside = Vec::new();
        for (dir, _) in self.inner.recover()?.dirs {
            if self.lose(dir)? {
                set_aside.push(dir);
            }
        }
        let mut found = self.inner.recover()?;
        found.set_aside.extend(set_aside);
        Ok(found)
    }

    fn commit(&mut self, commit: &Commit) -> Result<Usage, StoreError> {
        if self.draw(self.faults.full) {
            return Err(StoreError::Full("no space left, on purpose".into()));
        }
        if let Err(error) = self.usable() {
            if self.rng.bool() {
                self.inner.commit(commit)?;
            }
            return Err(error);
        }
        self.inner.commit(commit)
    }

    fn load(&mut self, dir: DirId) -> Result<Vec<IndexEntry>, StoreError> {
        self.usable()?;
        if self.lose(dir)? {
            return Err(StoreError::Damaged("lost, on purpose".into()));
        }
        let mut index = self.inner.load(dir)?;
        index.retain(|entry| !self.is_damaged(dir, entry.seq));
        Ok(index)
    }

    fn read(&mut self, dir: DirId, seq: u64) -> Result<Option<Vec<u8>>, StoreError> {
        self.usable()?;
        let record = self.inner.read(dir, seq)?;
        Ok(record.filter(|_| !self.is_damaged(dir, seq)))
    }

    fn remove(&mut self, dir: DirId) -> Result<Usage, StoreError> {
        self.usable()?;
        self.inner.remove(dir)
    }

    fn quarantine(&mut self, dir: DirId, seq: u64) -> Result<Usage, StoreError> {
        self.usable()?;
        self.inner.quarantine(dir, seq)
    }
}

/// The record under a seq in the tests that kill: its bytes and its length, mostly short, at times the longest, follow
/// from the seq.
#[must_use]
pub fn sample_record(seq: u64) -> Vec<u8> {
    let mut rng = Rng::with_seed(seq ^ 0x5eed);
    let longest = [200, 1_000, 4_000, 16_000, MAX_RECORD][[0, 0, 1, 1, 1, 2, 2, 3, 3, 4][rng.usize(..10)]];
    let len = rng.usize(24..=longest);
    std::iter::repeat_with(|| rng.u8(..)).take(len).collect()
}

/// Opens the spool that `store_writer` left at `root`, and reads all of it: gives the last seq.
///
/// # Errors
/// A start that fails, anything set aside, a hole, a wrong value, an old state record; fewer than `acked` records.
pub fn audit(root: &Path, acked: u64) -> Result<u64, String> {
    let told = |error: StoreError| error.to_string();
    let mut store = SledStore::open(root, Reserve { ballast: 0, ..Reserve::default() }).map_err(told)?;
    let found = store.recover().map_err(told)?;
    if !found.set_aside.is_empty() {
        return Err(format!("set aside: {:?}", found.set_aside));
    }
    let last = found.dirs.last().map_or(0, |(_, last)| *last);
    if last < acked {
        return Err(format!("{acked} was acknowledged, {last} is there"));
    }
    // The first commit into a directory may have left records and no state record: nothing of it was acknowledged then, and
    // the state record is that of the directory before.
    let state = found.state.and_then(|state| state.try_into().ok()).map(u64::from_be_bytes);
    let before = found.dirs.last().map_or(0, |(dir, _)| dir.first - 1);
    if state.map_or(acked > 0, |state| state != last && (state != before || acked > before)) {
        return Err(format!("the state record is that of {state:?}, the last commit {last}"));
    }
    let mut next = None;
    for (dir, last) in found.dirs {
        if next.is_some_and(|next| next != dir.first) {
            return Err(format!("a hole before {dir:?}"));
        }
        let index: Vec<u64> = store.load(dir).map_err(told)?.iter().map(|entry| entry.seq).collect();
        if index != (dir.first..=last).collect::<Vec<_>>() {
            return Err(format!("{dir:?} up to {last} holds {index:?}"));
        }
        for seq in index {
            if store.read(dir, seq).map_err(told)? != Some(sample_record(seq)) {
                return Err(format!("{dir:?}: {seq} is not what was written"));
            }
        }
        next = Some(last + 1);
    }
    Ok(state.unwrap_or(last))
}
