//! A spool as a person looks into it: that of a stopped agent, or a copy from a dead gateway.
//!
//! Nothing of it is changed. Opening a sled database may write, so each directory (some 10 MB) is copied to a temporary
//! place first and opened there; what an agent would set aside at its start is only named here. Directories that were
//! set aside before, `bad-…`, are read as far as their checksums hold. Where sled does not find all that was committed, the
//! raw bytes are looked through for the rest.
//!
//! A spool that an agent holds is refused: what it writes meanwhile would look like damage.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use tributary_core::store::{DirId, StoreError};
use tributary_protocols::{gather, sort};

use super::database::Database;
use super::disk::{self, at};
use super::salvage::Salvage;

/// The directories of a spool, those set aside included, oldest first within each.
#[derive(Debug)]
pub struct Look {
    places: Vec<(DirId, PathBuf, bool)>,
    /// Files of refused records.
    pub refused: Vec<PathBuf>,
    /// Bytes on disk, by blocks.
    pub disk_bytes: u64,
    scratch: PathBuf,
    _lock: Option<File>,
}

/// What is in one directory.
#[derive(Debug)]
pub struct Directory {
    /// Which.
    pub id: DirId,
    /// It was set aside as damaged.
    pub aside: bool,
    /// Bytes on disk, by blocks.
    pub disk_bytes: u64,
    /// State record and catalogue, as far as they are whole.
    pub state: Option<(Vec<u8>, Option<Vec<u8>>)>,
    /// The last seq committed, if that can be told.
    pub last: Option<u64>,
    /// The records that bear their checksums, ascending by seq.
    pub records: Vec<(u64, Vec<u8>)>,
    /// Why it cannot be opened at all.
    pub fault: Option<String>,
}

impl Directory {
    /// Ranges of seqs that were committed and are not here.
    #[must_use]
    pub fn missing(&self) -> Vec<(u64, u64)> {
        let mut missing = Vec::new();
        let mut next = self.id.first;
        let ends = self.records.iter().map(|(seq, _)| *seq).chain(self.last.and_then(|last| last.checked_add(1)));
        for seq in ends {
            if seq > next {
                missing.push((next, seq - 1));
            }
            next = next.max(seq.saturating_add(1));
        }
        missing
    }
}

impl Look {
    /// Looks into the spool at `root`.
    ///
    /// # Errors
    /// `Foreign` if an agent holds it; `Unavailable` if there is none, or if no copy can be made.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        if !root.is_dir() {
            return Err(StoreError::Unavailable(format!("there is no spool at {}", root.display())));
        }
        let path = root.join("lock");
        let lock = match File::open(&path) {
            // Taken out of the copy: an agent's spool has one.
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            lock => Some(at(lock, "open", &path)?),
        };
        if let Some(Err(TryLockError::WouldBlock)) = lock.as_ref().map(File::try_lock) {
            let text = format!("an agent uses the spool {}: stop it, or look into a copy", root.display());
            return Err(StoreError::Foreign(text));
        }
        let listing = disk::list(root)?;
        let mut places: Vec<_> = listing.dirs.into_iter().map(|id| (id, disk::place(root, id), false)).collect();
        for path in disk::set_aside(root)? {
            places.extend(disk::bad_path_id(&path).map(|id| (id, path, true)));
        }
        let mut refused: Vec<_> = disk::entries(&root.join("refused"))?.into_iter().map(|(_, path)| path).collect();
        sort(&mut refused, Ord::cmp);
        let scratch =
            std::env::temp_dir().join(format!("tributary-spool-{}-{:016x}", std::process::id(), fastrand::u64(..)));
        Ok(Self { places, refused, disk_bytes: disk::blocks(root), scratch, _lock: lock })
    }

    /// Reads one directory after the other: those of the spool, or those set aside.
    pub fn directories(&self, aside: bool) -> impl DoubleEndedIterator<Item = Directory> {
        self.places.iter().filter(move |place| place.2 == aside).map(|(id, path, aside)| {
            let mut found = Directory {
                id: *id,
                aside: *aside,
                disk_bytes: disk::blocks(path),
                state: None,
                last: None,
                records: Vec::new(),
                fault: None,
            };
            if let Err(fault) = self.read(path, &mut found) {
                found.fault = Some(StoreError::from(fault).to_string());
            }
            if let Err(error) = fs::remove_dir_all(&self.scratch) {
                tracing::debug!(%error, "no copy was made, or it stays");
            }
            found
        })
    }

    fn read(&self, path: &Path, found: &mut Directory) -> Result<(), disk::Fault> {
        let read = copy(path, &self.scratch).and_then(|()| self.read_database(found));
        if read.is_err() || !found.missing().is_empty() {
            read_rest(path, found)?;
        }
        read
    }

    fn read_database(&self, found: &mut Directory) -> Result<(), disk::Fault> {
        let db = Database::open_there(self.scratch.clone(), found.id)?;
        let read = (|| {
            found.state = db.state()?.map(|state| (state.state, state.catalog));
            found.last = db.last();
            for entry in db.index()? {
                match db.read(entry.seq) {
                    Ok(record) => found.records.extend(record.map(|record| (entry.seq, record))),
                    Err(disk::Fault::Broken(_)) => {}
                    Err(fault) => return Err(fault),
                }
            }
            Ok(())
        })();
        super::close(Some(db));
        read
    }
}

/// Adds what the raw bytes hold beside what the database gave.
fn read_rest(path: &Path, found: &mut Directory) -> Result<(), disk::Fault> {
    let rest = Salvage::of_readable(path)?;
    found.last = found.last.max(rest.last());
    if found.state.is_none() {
        let (state, catalog) = rest.state();
        found.state = state.map(|state| (state, catalog));
    }
    let known: BTreeSet<u64> = gather(found.records.iter().map(|(seq, _)| *seq));
    for seq in rest.seqs().into_iter().filter(|seq| !known.contains(seq)) {
        found.records.extend(rest.record(seq).map(|record| (seq, record)));
    }
    sort(&mut found.records, |one, other| one.0.cmp(&other.0));
    Ok(())
}

impl Drop for Look {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.scratch));
    }
}

/// Copies a directory, those in it included, for the owner's eyes only.
fn copy(from: &Path, to: &Path) -> Result<(), disk::Fault> {
    at(DirBuilder::new().mode(0o700).create(to), "make", to)?;
    for (name, path) in disk::entries(from)? {
        let to = to.join(name);
        if path.is_dir() {
            copy(&path, &to)?;
        } else {
            at(fs::copy(&path, &to), "copy", &path)?;
        }
    }
    Ok(())
}
