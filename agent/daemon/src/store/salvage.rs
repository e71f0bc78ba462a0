//! What the bytes of a directory hold: its entries, found in the file of its database without sled.
//!
//! ```text
//! db ──[parts::find]──▶ whole entries ──▶ whole values ──▶ a new database in the directory's place
//! ```
//!
//! sled gives a directory up for one bad page near its root, and takes a hole in its log for the end of it. Worse, while
//! it opens it fills what lies behind that end with zeros. So the bytes are read before sled may touch them, and are held
//! until the opened database has shown that it has all of it. The entries are there, many of them twice, as sled writes
//! a page anew for each few that are added; each bears its own key and checksum.
//!
//! Invariants:
//! 1. Only what was committed comes back, as far as the mark or a state record tells: nothing above the last seq.
//! 2. Where two different records lie under one seq, one is from a commit that never ended. Neither comes back.
//! 3. The state record that comes back need not be the newest. So whoever goes on with it begins a new epoch.
//!
//! Memory: the payload of one directory, while it is opened.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use tributary_core::store::{Commit, DirId};
use tributary_protocols::sort;

use super::database::{Database, Found};
use super::disk::{self, Fault, at};
use super::mark::Mark;
use super::parts::{self, ENTRY, Join, Kind};

/// Bytes looked through at a time.
const WINDOW: usize = 256 * 1024;
/// Most bytes of records that are put back with one commit.
const PER_COMMIT: usize = 256 * 1024;

/// Kind, id, tag and part of an entry.
type Name = (Kind, u64, u64, u16);
/// Of how many parts it is one, and where it lies.
type Place = (u16, Range<usize>);

/// What a directory holds.
pub(super) struct Salvage {
    /// The entries, one behind the other.
    bytes: Vec<u8>,
    entries: BTreeMap<Name, Place>,
    mark: Option<Mark>,
}

impl Salvage {
    /// Looks through the directory at `path`.
    ///
    /// # Errors
    /// Of the disk only; a file that is not there holds nothing.
    pub(super) fn of(path: &Path) -> Result<Self, Fault> {
        Self { bytes: Vec::new(), entries: BTreeMap::new(), mark: Mark::read(path)? }.with_entries(path, |file| file)
    }

    /// Looks through what can be read of the directory at `path`: a page that cannot is a hole.
    ///
    /// # Errors
    /// Of the disk, if nothing can be read.
    pub(super) fn of_readable(path: &Path) -> Result<Self, Fault> {
        let mark = Mark::read(path).ok().flatten();
        Self { bytes: Vec::new(), entries: BTreeMap::new(), mark }.with_entries(path, |file| Readable {
            file,
            at: 0,
            any: mark.is_some(),
        })
    }

    fn with_entries<R: Read>(mut self, path: &Path, reader: impl FnOnce(File) -> R) -> Result<Self, Fault> {
        let data = path.join("db");
        if at(data.try_exists(), "look at", &data)? {
            at(File::open(&data).and_then(|file| self.look(reader(file))), "read", &data)?;
        }
        Ok(self)
    }

    fn look(&mut self, mut file: impl Read) -> io::Result<()> {
        let mut window = Vec::with_capacity(WINDOW + ENTRY);
        // State records are many; none before the marked one counts, but for the one in the other slot.
        let oldest = self.mark.map_or(0, |mark| mark.generation.saturating_sub(1));
        loop {
            let read = file.by_ref().take(WINDOW as u64).read_to_end(&mut window)?;
            for (at, entry) in parts::find(&window) {
                let key = (entry.kind, entry.id, entry.tag, entry.part);
                if (entry.kind == Kind::State && entry.tag < oldest) || self.entries.contains_key(&key) {
                    continue;
                }
                let from = self.bytes.len();
                self.bytes.extend_from_slice(window.get(at..at + entry.bytes).unwrap_or_default());
                self.entries.insert(key, (entry.count, from..self.bytes.len()));
            }
            if read == 0 {
                return Ok(());
            }
            // What begins in the last bytes may end in the next window.
            window.drain(..window.len().saturating_sub(ENTRY));
        }
    }

    /// The tags under which values of this kind and id were written, ascending.
    fn tags(&self, kind: Kind, id: u64) -> Vec<u64> {
        let written = self.entries.range((kind, id, 0, 0)..=(kind, id, u64::MAX, u16::MAX));
        let mut tags: Vec<_> = written.map(|((_, _, tag, _), _)| *tag).collect();
        tags.dedup();
        tags
    }

    /// A value, if all its parts are there.
    fn value(&self, kind: Kind, id: u64, tag: u64) -> Option<Vec<u8>> {
        let mut join = Join::default();
        let parts = self.entries.range((kind, id, tag, 0)..=(kind, id, tag, u16::MAX));
        for ((.., part), (_, place)) in parts {
            let entry = self.bytes.get(place.clone()).unwrap_or_default();
            if let Some((_, _, value)) = join.take(&parts::key(kind, id, *part), entry) {
                return Some(value.to_vec());
            }
        }
        None
    }

    fn newest_state(&self) -> Option<Found> {
        let of_slot = |slot| {
            let newest_first = self.tags(Kind::State, slot).into_iter().rev();
            newest_first.filter_map(move |tag| Found::parse(tag, &self.value(Kind::State, slot, tag)?)).next()
        };
        (0..2).filter_map(of_slot).max_by_key(|found| found.stamp.generation)
    }

    /// The last seq committed, as far as that can be told.
    pub(super) fn last(&self) -> Option<u64> {
        self.mark.map(|mark| mark.last).max(self.newest_state().map(|found| found.stamp.last))
    }

    /// The newest whole state record, and the catalogue it names; without one, the newest catalogue.
    pub(super) fn state(&self) -> (Option<Vec<u8>>, Option<Vec<u8>>) {
        let state = self.newest_state().filter(|found| !found.state.is_empty());
        let named = state.as_ref().map(|found| found.stamp.catalog);
        let mut tags: Vec<u64> = (0..2).flat_map(|slot| self.tags(Kind::Catalog, slot)).collect();
        tags.retain(|tag| named.is_none_or(|named| named == *tag));
        sort(&mut tags, Ord::cmp);
        let catalog = tags.into_iter().rev().find_map(|tag| self.value(Kind::Catalog, tag % 2, tag));
        (state.map(|found| found.state), catalog)
    }

    /// Seqs of which something is there, ascending, up to the last one committed.
    pub(super) fn seqs(&self) -> Vec<u64> {
        let last = self.last().unwrap_or(u64::MAX);
        let of_records = self.entries.range((Kind::Record, 0, 0, 0)..=(Kind::Record, last, u64::MAX, u16::MAX));
        let mut seqs: Vec<_> = of_records.map(|((_, seq, ..), _)| *seq).collect();
        seqs.dedup();
        seqs
    }

    /// A record, if it is whole and the only one under its seq.
    pub(super) fn record(&self, seq: u64) -> Option<Vec<u8>> {
        let whole = |tag| self.value(Kind::Record, seq, tag).filter(|record| parts::record_tag(record) == tag);
        let mut found = self.tags(Kind::Record, seq).into_iter().filter_map(whole);
        found.next().filter(|_| found.next().is_none())
    }

    /// Whether all that was committed into it, beginning with `first`, is here.
    pub(super) fn is_whole(&self, first: u64) -> bool {
        let Some(mark) = self.mark.filter(|_| !self.has_holes(first)) else { return false };
        let (state, catalog) = self.state();
        state.is_some() && catalog.is_some() && (first..=mark.last).all(|seq| self.record(seq).is_some())
    }

    /// Whether anything of it, beginning with `first`, is not whole though its commit was marked as ended. What is newer
    /// may be a commit that never ended.
    pub(super) fn has_holes(&self, first: u64) -> bool {
        let Some(state) = self.newest_state() else { return true };
        let (last, generation) = self.mark.map_or((state.stamp.last, 0), |mark| (mark.last, mark.generation));
        let stale = state.stamp.generation < generation;
        let has_parts = |seq: &u64| {
            self.tags(Kind::Record, *seq).into_iter().any(|tag| {
                let parts = self.entries.range((Kind::Record, *seq, tag, 0)..=(Kind::Record, *seq, tag, u16::MAX));
                let (mut have, mut want) = (0, 0);
                for (_, (count, _)) in parts {
                    (have, want) = (have + 1, usize::from(*count));
                }
                have == want
            })
        };
        let seqs = self.seqs();
        let whole = seqs.iter().filter(|seq| (first..=last).contains(seq)).filter(|seq| has_parts(seq)).count() as u64;
        stale || whole < last.saturating_add(1).saturating_sub(first)
    }

    /// Makes a directory at `path` of what there is; whether there was anything. If that is not `whole`, the directory
    /// says so.
    pub(super) fn rebuild(&self, path: &Path, id: DirId, whole: bool) -> Result<bool, Fault> {
        disk::delete(path)?;
        at(fs::create_dir_all(path.join("blobs")), "make", path)?;
        let mut db = Database::open_there(path.to_owned(), id)?;
        let done = self.put_into(&mut db, id);
        super::close(Some(db));
        let any = done?;
        if any && !whole {
            disk::write_synced(&path.join("salvaged"), &[])?;
            disk::sync_dir(path)?;
        }
        Ok(any)
    }

    fn put_into(&self, db: &mut Database, id: DirId) -> Result<bool, Fault> {
        let generation = self.newest_state().map(|found| found.stamp.generation);
        db.resume_at(generation.max(self.mark.map(|mark| mark.generation)).unwrap_or(0), self.last());
        let (state, catalog) = self.state();
        // An empty state record is none: an older directory has the last one that is whole.
        let mut commit =
            Commit { dir: id, records: Vec::new(), state: state.unwrap_or_default(), catalog, frees: false };
        let (mut bytes, mut records) = (0, 0_u64);
        for seq in self.seqs().into_iter().filter(|seq| *seq >= id.first) {
            let Some(record) = self.record(seq) else { continue };
            (bytes, records) = (bytes + record.len(), records + 1);
            commit.records.push((seq, record));
            if bytes > PER_COMMIT {
                db.commit(&commit)?;
                (bytes, commit.catalog) = (0, None);
                commit.records.clear();
            }
        }
        if records == 0 && commit.state.is_empty() {
            return Ok(false);
        }
        db.commit(&commit)?;
        tracing::warn!(records, "spool: written anew from a directory that does not open");
        Ok(true)
    }
}

/// A file of which some pages cannot be read: they come as zeroes.
struct Readable {
    file: File,
    at: u64,
    /// Something of the directory could be read.
    any: bool,
}

impl Read for Readable {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        const PAGE: usize = 4096;
        let left = PAGE - (self.at % PAGE as u64) as usize;
        let most = to.len().min(left);
        let to = &mut to[..most];
        let read = match self.file.read_at(to, self.at) {
            Ok(read) => {
                self.any |= read > 0;
                read
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Err(error),
            Err(error) => {
                let length = self.file.metadata()?.len();
                // The last page, and no other came: the disk is away, not a spot of it.
                if !self.any && self.at + PAGE as u64 >= length {
                    return Err(error);
                }
                let read = usize::try_from(length.saturating_sub(self.at)).map_or(most, |rest| rest.min(most));
                to[..read].fill(0);
                read
            }
        };
        self.at += read as u64;
        Ok(read)
    }
}

/// Whether the directory was made of what was left of a damaged one: holes in it are no news.
pub(super) fn is_salvaged(path: &Path) -> bool {
    path.join("salvaged").exists()
}
