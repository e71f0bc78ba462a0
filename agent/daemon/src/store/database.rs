//! One directory of the spool: one sled database, and what has to be done around it so that it keeps its word.
//!
//! ```text
//! <epoch>/<first>/
//!     db conf snap.* blobs/    sled 0.34.7's own; blobs/ stays empty because entries are small
//!     mark                     of the last commit that ended (mark.rs)
//!     doubt                    a sync failed here: the file is written anew before it is used again
//! ```
//!
//! The mark is made when the first commit is durable: a directory without one never held anything. It is written after
//! the fsync of each later commit, itself without one, for it only has to betray damage: to sled a hole in its log looks
//! like the end of it, and it goes back to an older state as if the rest had never been. A mark ahead of the state record
//! says so, and says which seqs may not be used again. It is synced when the directory is left; a start need not open
//! what was left.
//!
//! In the database: records under their seq; state record and catalogue in two slots each, by the parity of their
//! generation. A commit writes records, then the catalogue if any, then the state record, which begins with the last
//! seq committed and the generation of its catalogue. sled recovers a prefix of what was written, in that order. So the
//! newest whole state record names only what is there; records above its last seq are a commit that never ended and
//! mean nothing.
//!
//! What sled does not do by itself (each measured):
//! - `flush()` is not durable on Linux. An fdatasync of `db` follows, always. So too at opening: what only the page cache
//!   held when a process was killed must not be taken for committed.
//! - After a failed fsync the kernel forgets what it could not write, and a later fsync succeeds over the hole. So the
//!   file is copied whole before it is written again.
//! - Many buffers in flight can deadlock it: never more than [`FLUSH_BYTES`] between two flushes.
//! - It panics over some damage, so every call is caught; it holds its lock for some milliseconds after it was dropped, so
//!   opening waits; it refuses a torn `snap.*` or `conf`, both of which it can do without, so they are taken away once.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tributary_core::store::{Commit, DirId, IndexEntry, RECORD_HEAD};

use super::disk::{self, Fault, at};
use super::mark::{Mark, begun};
use super::parts::{self, Join, Kind};

/// Most bytes handed to sled between two flushes.
const FLUSH_BYTES: usize = 64 * 1024;
/// How often and how long an opening waits for an earlier handle's lock: 1 s in all.
const LOCK_TRIES: u32 = 200;
const LOCK_WAIT: Duration = Duration::from_millis(5);
/// So many failed calls, or absent seqs in a row where the last one is not known, end the search of a damaged directory.
const PROBE_MISSES: u32 = 1024;

/// sled's segment size: 17 entries of 4 KB must stay below a quarter of it.
pub(super) const SEGMENT: usize = 512 * 1024;
const _: () = assert!(17 * (parts::ENTRY + parts::KEY) < SEGMENT / 4);

/// The state record in force, as found or committed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stamp {
    pub(super) generation: u64,
    pub(super) catalog: u64,
    pub(super) last: u64,
}

/// A state record as it lies in its slot: last seq u64 BE · generation of its catalogue u64 BE · the record.
pub(super) struct Found {
    pub(super) stamp: Stamp,
    pub(super) state: Vec<u8>,
}

impl Found {
    pub(super) fn parse(generation: u64, value: &[u8]) -> Option<Self> {
        let (last, rest) = value.split_first_chunk()?;
        let (catalog, state) = rest.split_first_chunk()?;
        let stamp = Stamp { generation, catalog: u64::from_be_bytes(*catalog), last: u64::from_be_bytes(*last) };
        Some(Self { stamp, state: state.to_vec() })
    }
}

/// A state record, and the catalogue it names if that is whole.
pub(super) struct State {
    pub(super) state: Vec<u8>,
    pub(super) catalog: Option<Vec<u8>>,
}

/// An open directory.
pub(super) struct Database {
    id: DirId,
    path: PathBuf,
    db: sled::Db,
    file: File,
    mark: Option<File>,
    stamp: Option<Stamp>,
}

impl Database {
    /// Opens or makes the directory. It is not durable before its first commit.
    pub(super) fn create(root: &Path, id: DirId) -> Result<Self, Fault> {
        let path = disk::place(root, id);
        at(fs::create_dir_all(path.join("blobs")), "make", &path)?;
        Self::open_there(path, id)
    }

    /// Opens a directory that must be there.
    pub(super) fn open(root: &Path, id: DirId) -> Result<Self, Fault> {
        let path = disk::place(root, id);
        if !at(path.try_exists(), "look at", &path)? {
            return Err(Fault::Broken(format!("{} is not there", path.display())));
        }
        Self::open_there(path, id)
    }

    /// Opens the directory at a place that need not be its own.
    pub(super) fn open_there(path: PathBuf, id: DirId) -> Result<Self, Fault> {
        let (begun, data) = (begun(&path)?, path.join("db"));
        if begun && fs::metadata(&data).map_or(true, |meta| meta.len() == 0) {
            return Err(Fault::Broken(format!("{} is empty", data.display())));
        }
        let doubt = path.join("doubt");
        if doubt.exists() {
            write_anew(&data)?;
            disk::delete(&doubt)?;
        }
        let db = open_sled(&path).or_else(|fault| {
            let Fault::Broken(text) = fault else { return Err(fault) };
            tracing::warn!(dir = %path.display(), error = text, "spool: directory does not open, tried without its snapshot");
            for (name, path) in disk::entries(&path)? {
                if name == "conf" || name.starts_with("snap.") {
                    disk::delete(&path)?;
                }
            }
            open_sled(&path)
        })?;
        let file = at(File::open(&data), "open", &data)?;
        let mark = Mark::path(&path);
        let mark = if begun { Some(at(File::options().write(true).open(&mark), "open", &mark)?) } else { None };
        let mut this = Self { id, path, db, file, mark, stamp: None };
        this.sync()?;
        match this.find_stamp() {
            Ok(stamp) => this.stamp = stamp,
            Err(fault) => {
                super::close(Some(this));
                return Err(fault);
            }
        }
        Ok(this)
    }

    /// Where the database stands by its own state record, if that is as new as the mark beside it says.
    fn find_stamp(&self) -> Result<Option<Stamp>, Fault> {
        let state = self.newest_state()?.map(|found| found.stamp);
        let marked = Mark::read(&self.path)?.map(|mark| mark.generation);
        if self.begun() && state.is_none() || state.map(|state| state.generation) < marked {
            return Err(Fault::Broken(format!("{}: its last commit is not there", self.path.display())));
        }
        Ok(state)
    }

    pub(super) fn id(&self) -> DirId {
        self.id
    }

    /// Whether a commit into it has ever ended.
    fn begun(&self) -> bool {
        self.mark.is_some()
    }

    /// Last seq committed; `None` if neither a state record nor the mark is whole.
    pub(super) fn last(&self) -> Option<u64> {
        self.stamp.map(|stamp| stamp.last)
    }

    /// Goes on after so many commits, the last of them with this seq, that are no longer there.
    pub(super) fn resume_at(&mut self, generation: u64, last: Option<u64>) {
        self.stamp = last.map(|last| Stamp { generation, catalog: 0, last });
    }

    /// Reads all that was committed.
    ///
    /// # Errors
    /// `Broken` if a record is not whole; those of the disk.
    pub(super) fn check(&self) -> Result<(), Fault> {
        let last = self.last().unwrap_or_else(|| self.id.first.saturating_sub(1));
        if self.index()?.len() as u64 >= last.saturating_add(1).saturating_sub(self.id.first) {
            return Ok(());
        }
        Err(Fault::Broken(format!("{}: a record is not whole", self.path.display())))
    }

    /// Takes away what a commit that never ended left above the last seq, and the note that the directory was left.
    pub(super) fn resume(&mut self) -> Result<(), Fault> {
        let Some(Stamp { generation, last, .. }) = self.stamp else { return Ok(()) };
        if Mark::read(&self.path)?.is_some_and(|mark| mark.left) {
            disk::write_synced(&Mark::path(&self.path), &Mark { generation, last, left: false }.encode())?;
        }
        let from = parts::prefix(Kind::Record, last.saturating_add(1));
        guarded(&self.path, || {
            for (n, key) in self.db.range(from..).keys().enumerate() {
                self.db.remove(key?)?;
                if n % 64 == 63 {
                    self.db.flush()?;
                }
            }
            Ok(())
        })
    }

    /// Makes a commit durable.
    pub(super) fn commit(&mut self, commit: &Commit) -> Result<(), Fault> {
        let stamp = self.stamp.unwrap_or(Stamp { generation: 0, catalog: 0, last: self.id.first.saturating_sub(1) });
        let last = commit.records.last().map_or(stamp.last, |(seq, _)| stamp.last.max(*seq));
        let generation = stamp.generation.wrapping_add(1);
        let catalog = if commit.catalog.is_some() { stamp.catalog.wrapping_add(1) } else { stamp.catalog };

        let mut unflushed = 0;
        for (seq, record) in &commit.records {
            self.put(Kind::Record, *seq, parts::record_tag(record), record, &mut unflushed)?;
        }
        if let Some(bytes) = &commit.catalog {
            self.put(Kind::Catalog, catalog % 2, catalog, bytes, &mut unflushed)?;
        }
        let mut state = Vec::with_capacity(16 + commit.state.len());
        state.extend_from_slice(&last.to_be_bytes());
        state.extend_from_slice(&catalog.to_be_bytes());
        state.extend_from_slice(&commit.state);
        self.put(Kind::State, generation % 2, generation, &state, &mut unflushed)?;
        self.sync()?;
        self.stamp = Some(Stamp { generation, catalog, last });
        let mark = Mark { generation, last, left: false }.encode();
        match &self.mark {
            Some(file) => {
                if let Err(error) = file.write_all_at(&mark, 0) {
                    tracing::warn!(dir = %self.path.display(), %error, "spool: a commit could not be marked");
                }
                Ok(())
            }
            None => self.begin(&mark),
        }
    }

    fn put(&self, kind: Kind, id: u64, tag: u64, value: &[u8], unflushed: &mut usize) -> Result<(), Fault> {
        let entries = parts::split(kind, id, tag, value)
            .ok_or_else(|| Fault::Unavailable(format!("a value of {} bytes is too long for the spool", value.len())))?;
        guarded(&self.path, || {
            for (key, entry) in entries {
                if *unflushed + entry.len() > FLUSH_BYTES {
                    self.db.flush()?;
                    *unflushed = 0;
                }
                *unflushed += entry.len();
                self.db.insert(key, entry)?;
            }
            Ok(())
        })
    }

    fn sync(&self) -> Result<(), Fault> {
        guarded(&self.path, || self.db.flush().map(drop))?;
        at(self.file.sync_data(), "sync", &self.path).inspect_err(|_| {
            if let Err(error) = File::create(self.path.join("doubt")) {
                tracing::error!(dir = %self.path.display(), %error, "spool: a failed sync could not be noted");
            }
        })
    }

    /// The first commit is durable as data; now the names that lead to it. The mark comes last: who finds it later, after
    /// an error here, must not have to do any of this again.
    fn begin(&mut self, mark: &[u8]) -> Result<(), Fault> {
        let conf = self.path.join("conf");
        at(File::open(&conf).and_then(|conf| conf.sync_all()), "sync", &conf)?;
        disk::sync_dir(&self.path.join("blobs"))?;
        for dir in self.path.ancestors().take(3) {
            disk::sync_dir(dir)?;
        }
        let path = Mark::path(&self.path);
        disk::write_synced(&path, mark)?;
        disk::sync_dir(&self.path)?;
        self.mark = Some(at(File::options().write(true).open(&path), "open", &path)?);
        Ok(())
    }

    /// Notes that the directory is left. Only spares the next start an opening: an error is no harm.
    pub(super) fn end(&self) {
        if !disk::entries(&self.path.join("blobs")).is_ok_and(|blobs| blobs.is_empty()) {
            tracing::error!(dir = %self.path.display(), "spool: sled keeps blob files, which are not durable; this is a bug");
        }
        let Some(Stamp { generation, last, .. }) = self.stamp else { return };
        let mark = Mark { generation, last, left: true }.encode();
        if let Err(fault) = disk::write_synced(&Mark::path(&self.path), &mark) {
            tracing::warn!(dir = %self.path.display(), ?fault, "spool: that a directory was left could not be noted");
        }
    }

    /// The state record in force, and the catalogue it names, if whole.
    pub(super) fn state(&self) -> Result<Option<State>, Fault> {
        let Some(Found { stamp, state }) = self.newest_state()?.filter(|found| !found.state.is_empty()) else {
            return Ok(None);
        };
        let catalog = match self.get(Kind::Catalog, stamp.catalog % 2) {
            Err(Fault::Broken(_)) => None,
            catalog => catalog?,
        };
        let catalog = catalog.filter(|(tag, _)| *tag == stamp.catalog).map(|(_, bytes)| bytes);
        Ok(Some(State { state, catalog }))
    }

    fn newest_state(&self) -> Result<Option<Found>, Fault> {
        let mut newest: Option<Found> = None;
        for slot in 0..2 {
            // Damage in one slot leaves the other.
            let value = match self.get(Kind::State, slot) {
                Err(Fault::Broken(_)) => None,
                value => value?,
            };
            let found = value.and_then(|(generation, value)| Found::parse(generation, &value));
            newest = [newest, found].into_iter().flatten().max_by_key(|found| found.stamp.generation);
        }
        Ok(newest)
    }

    /// A whole value and its tag.
    fn get(&self, kind: Kind, id: u64) -> Result<Option<(u64, Vec<u8>)>, Fault> {
        guarded(&self.path, || {
            let mut join = Join::default();
            for entry in self.db.scan_prefix(parts::prefix(kind, id)) {
                let (key, entry) = entry?;
                if let Some((_, tag, value)) = join.take(&key, &entry) {
                    return Ok(Some((tag, value.to_vec())));
                }
            }
            Ok(None)
        })
    }

    /// One committed record.
    pub(super) fn read(&self, seq: u64) -> Result<Option<Vec<u8>>, Fault> {
        if self.last().is_some_and(|last| last < seq) {
            return Ok(None);
        }
        Ok(self.get(Kind::Record, seq)?.map(|(_, record)| record))
    }

    /// The index of all committed records that are whole. Damage on the way is walked round, one seq at a time.
    pub(super) fn index(&self) -> Result<Vec<IndexEntry>, Fault> {
        let scanned = guarded(&self.path, || {
            let (mut index, mut join) = (Vec::new(), Join::default());
            for entry in self.db.scan_prefix([Kind::Record as u8]) {
                let (key, entry) = entry?;
                if let Some((seq, _, record)) = join.take(&key, &entry) {
                    index.push(index_entry(seq, record));
                }
            }
            Ok(index)
        });
        let mut index = match scanned {
            Err(Fault::Broken(text)) => {
                tracing::warn!(dir = %self.path.display(), error = text, "spool: directory is damaged, records are looked up one by one");
                self.probe()?
            }
            scanned => scanned?,
        };
        index.retain(|entry| self.last().is_none_or(|last| entry.seq <= last));
        Ok(index)
    }

    fn probe(&self) -> Result<Vec<IndexEntry>, Fault> {
        let (mut index, mut misses, mut broken) = (Vec::new(), 0u32, 0u32);
        let last = self.last();
        for seq in self.id.first..=last.unwrap_or(u64::MAX) {
            let found = match self.read(seq) {
                Err(Fault::Broken(_)) => {
                    broken += 1;
                    None
                }
                found => found?,
            };
            misses = if found.is_some() { 0 } else { misses + 1 };
            index.extend(found.map(|record| index_entry(seq, &record)));
            if broken >= PROBE_MISSES || last.is_none() && misses >= PROBE_MISSES {
                break;
            }
        }
        Ok(index)
    }
}

fn index_entry(seq: u64, record: &[u8]) -> IndexEntry {
    let mut head = [0; RECORD_HEAD];
    let known = record.len().min(RECORD_HEAD);
    head[..known].copy_from_slice(&record[..known]);
    IndexEntry { seq, head, bytes: u32::try_from(record.len()).unwrap_or(u32::MAX) }
}

/// Waits until no handle holds the file, then puts a copy in its place: every page is written again.
fn write_anew(data: &Path) -> Result<(), Fault> {
    let held = at(File::open(data), "open", data)?;
    let free = (0..LOCK_TRIES).any(|n| {
        if n > 0 {
            std::thread::park_timeout(LOCK_WAIT);
        }
        held.try_lock().is_ok()
    });
    if !free {
        return Err(Fault::Unavailable(format!("{} is still in use", data.display())));
    }
    let copy = data.with_extension("copy");
    at(fs::copy(data, &copy).and_then(|_| File::open(&copy)?.sync_all()), "copy", data)?;
    at(fs::rename(&copy, data), "replace", data)?;
    data.parent().map_or(Ok(()), disk::sync_dir)
}

fn open_sled(path: &Path) -> Result<sled::Db, Fault> {
    let config = sled::Config::new()
        .path(path)
        .segment_size(SEGMENT)
        .cache_capacity(1 << 20)
        .mode(sled::Mode::LowSpace)
        .use_compression(false)
        .flush_every_ms(None);
    for _ in 0..LOCK_TRIES {
        match guarded(path, || config.open()) {
            Err(Fault::Locked(_)) => std::thread::park_timeout(LOCK_WAIT),
            opened => return opened,
        }
    }
    Err(Fault::Unavailable(format!("{} is still in use", path.display())))
}

/// Calls sled. No error type and no panic of it gets past here.
fn guarded<T>(path: &Path, call: impl FnOnce() -> sled::Result<T>) -> Result<T, Fault> {
    let place = path.display();
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(sled::Error::Io(error))) if error.to_string().contains("could not acquire lock") => {
            Err(Fault::Locked(format!("{place}: {error}")))
        }
        Ok(Err(sled::Error::Io(error))) => Err(disk::sort(&error, &place.to_string())),
        Ok(Err(error)) => Err(Fault::Broken(format!("{place}: {error}"))),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no text");
            Err(Fault::Broken(format!("{place}: sled panicked: {text}")))
        }
    }
}
