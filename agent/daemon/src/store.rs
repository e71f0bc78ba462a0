//! The spool's disk: [`tributary_core::store::Store`] over sled, one database for each directory of the spool.
//!
//! ```text
//! pipeline → Command → [thread] → SledStore → [database] one directory, [parts] its entries
//!                                           → [disk]     names, sizes, removal, ballast
//! ```
//!
//! Why directories: a sled database never gives space back after an outage (188 MB stay for a drained backlog of
//! 100 MB), opens in seconds at 1 GB, and is lost whole to one bad page. A directory of 4 MB payload is deleted whole,
//! opens in milliseconds, and is all that one bad page can cost.
//!
//! Invariants beside those of the trait:
//! 1. At most two databases are open: the active one and one being read. They are handed over, not reopened.
//! 2. A handle that met an error of the disk is dropped: sled's handles never recover from one.
//! 3. Damage is never an error of the start. What does not open is set aside as `bad-…`, at most [`KEPT`] of them.
//! 4. An error of the disk is never taken for damage.
//!
//! Limits: sled costs 1.9 to 2.4 bytes on disk for a byte of payload; 2 MB of ballast; 16 MB for what is set aside and
//! 16 MB for refused records.

mod database;
mod disk;
pub mod look;
mod parts;
pub mod thread;

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use tributary_core::store::{Commit, DirId, IndexEntry, Recovered, Store, StoreError, Usage};

use database::Database;
use disk::{Fault, at};

/// Most directories set aside that are kept for the owner.
pub const KEPT: usize = 8;
/// Most refused records that are kept for the owner.
pub const KEPT_REFUSED: usize = 1000;
/// A database that nobody read during so many commits is closed: its pages take about 8 MB.
const IDLE_COMMITS: u32 = 16;
/// Backend and version of what is written here.
const FORMAT: &str = "sled 1";

/// Space that is not for records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reserve {
    /// Bytes given up when nothing else helps against a full disk, for reading, removing and state records first. Opening a database may take one sled segment of
    /// 512 KB each for two of them, and 1 MB for snapshots and the rest.
    pub ballast: u64,
    /// Most bytes of directories set aside, and again of refused records.
    pub kept: u64,
}

impl Default for Reserve {
    fn default() -> Self {
        Self { ballast: 2 * database::SEGMENT as u64 + (1 << 20), kept: 16 << 20 }
    }
}

/// The spool on disk. Every call may block; [`thread`] drives it.
pub struct SledStore {
    root: PathBuf,
    reserve: Reserve,
    active: Option<Database>,
    reading: Option<Database>,
    /// Commits since somebody last read from `reading`.
    idle: u32,
    /// Bytes of each directory; only the active one's change.
    sizes: BTreeMap<DirId, u64>,
    /// Bytes and number of what is kept for the owner.
    kept: (u64, u64),
    free: u64,
    ballast: bool,
    /// Held as long as this lives.
    lock: File,
}

impl SledStore {
    /// Takes the spool at `root` (made if it is not there) for this process. Opens no database yet: see
    /// [`recover`](Store::recover).
    ///
    /// # Errors
    /// `Unavailable` if another agent holds it, if it was written by another version, or if it cannot be written;
    /// `Full`.
    pub fn open(root: &Path, reserve: Reserve) -> Result<Self, StoreError> {
        if !root.is_dir() {
            at(fs::create_dir_all(root), "make", root)?;
            root.parent().filter(|parent| parent.is_dir()).map_or(Ok(()), disk::sync_dir)?;
        }
        let path = root.join("lock");
        let lock = at(File::create(&path), "open", &path)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let text =
                    format!("another agent uses the spool {}; each needs a state_dir of its own", root.display());
                return Err(StoreError::Unavailable(text));
            }
            Err(TryLockError::Error(error)) => Err(disk::sort(&error, "lock the spool"))?,
        }
        let mut this = Self {
            root: root.to_owned(),
            reserve,
            active: None,
            reading: None,
            idle: 0,
            sizes: BTreeMap::new(),
            kept: (0, 0),
            free: 0,
            ballast: disk::blocks(&root.join("ballast")) >= reserve.ballast.max(1),
            lock,
        };
        this.with_room(|this| check_format(&this.root))?;
        Ok(this)
    }

    /// Where the spool is.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Open files go with a folder that is moved or deleted: what is written there is lost to the next start.
    fn in_place(&self) -> Result<(), Fault> {
        let id = |meta: fs::Metadata| (meta.dev(), meta.ino());
        let held = at(self.lock.metadata(), "look at", &self.root)?;
        if fs::metadata(self.root.join("lock")).is_ok_and(|found| id(found) == id(held)) {
            return Ok(());
        }
        let text =
            format!("the spool {} is not in its place: put it back, or start the agent again", self.root.display());
        Err(Fault::Unavailable(text))
    }

    fn usage(&mut self) -> Usage {
        if let Ok(free) = disk::free(&self.root) {
            self.free = free;
        }
        if !self.ballast && self.reserve.ballast > 0 && self.free > 2 * self.reserve.ballast {
            match disk::make_ballast(&self.root, self.reserve.ballast) {
                Ok(()) => self.ballast = true,
                Err(fault) => {
                    tracing::warn!(?fault, "spool: no ballast can be set aside");
                    self.reserve.ballast = 0;
                }
            }
        }
        let active = self.active.as_ref().and_then(|db| self.sizes.get(&db.id())).copied();
        Usage {
            disk_bytes: self.sizes.values().sum::<u64>() + self.kept.0,
            active_bytes: active.unwrap_or(0),
            free_bytes: self.free,
            quarantined: self.kept.1,
        }
    }

    fn measure(&mut self, id: DirId) {
        let bytes = disk::blocks(&disk::place(&self.root, id));
        self.sizes.insert(id, bytes);
    }

    /// Counts what is kept for the owner, and deletes the oldest of it above the ceilings.
    fn trim_kept(&mut self, bytes: u64) -> Result<(), Fault> {
        let bad = disk::set_aside(&self.root)?;
        let mut refused: Vec<_> =
            disk::entries(&self.root.join("refused"))?.into_iter().map(|(_, path)| path).collect();
        refused.sort_unstable();
        self.kept = (0, 0);
        for (paths, most) in [(bad, KEPT), (refused, KEPT_REFUSED)] {
            let (mut sum, mut count) = (0, 0);
            for path in paths.iter().rev() {
                let size = disk::blocks(path);
                if sum + size > bytes || count == most {
                    disk::delete(path)?;
                } else {
                    sum += size;
                    count += 1;
                }
            }
            self.kept = (self.kept.0 + sum, self.kept.1 + count as u64);
        }
        Ok(())
    }

    /// Gives up directories set aside; whether there were any.
    fn drop_set_aside(&mut self) -> bool {
        let bad = disk::set_aside(&self.root).unwrap_or_default();
        let freed = bad.iter().filter(|path| disk::delete(path).is_ok()).count() > 0;
        if freed {
            tracing::warn!(directories = bad.len(), "spool: disk full, damaged directories given up");
            let _ = self.trim_kept(self.reserve.kept);
        }
        freed
    }

    /// Gives up the ballast; whether there was one.
    fn drop_ballast(&mut self) -> bool {
        let freed = self.ballast && disk::delete(&self.root.join("ballast")).is_ok();
        if freed {
            self.ballast = false;
            tracing::warn!("spool: disk full, ballast given up");
        }
        freed
    }

    /// Whether this commit may not use the ballast. On a full disk it has to last for what empties the spool: reading,
    /// removing, and state records that say what is settled. Records come after them, unless there is but one directory
    /// left and so nothing else to remove.
    fn reserved(&self, commit: &Commit) -> bool {
        !commit.records.is_empty() && self.sizes.keys().any(|id| *id != commit.dir)
    }

    /// Without the ballast its space is kept free instead, until there is enough to set it aside again.
    fn keep_free(&mut self) -> Result<(), Fault> {
        self.usage();
        if self.ballast || self.reserve.ballast == 0 || self.free > self.reserve.ballast {
            return Ok(());
        }
        Err(Fault::Full(format!("{} bytes are free, {} of them must stay so", self.free, self.reserve.ballast)))
    }

    /// Tries again on a full disk as long as something can be given up.
    fn with_room<T>(&mut self, mut attempt: impl FnMut(&mut Self) -> Result<T, Fault>) -> Result<T, Fault> {
        loop {
            match attempt(self) {
                Err(Fault::Full(_)) if self.drop_set_aside() || self.drop_ballast() => {}
                done => return done,
            }
        }
    }

    fn close(&mut self, id: DirId) {
        for slot in [&mut self.active, &mut self.reading] {
            close(slot.take_if(|db| db.id() == id));
        }
    }

    /// Sets a directory aside and says that it is lost.
    fn give_up(&mut self, id: DirId, why: &str) -> Result<(), Fault> {
        self.close(id);
        let (from, to) = (disk::place(&self.root, id), disk::bad_place(&self.root, id));
        self.sizes.remove(&id);
        if at(from.try_exists(), "look at", &from)? {
            disk::delete(&to)?;
            at(fs::rename(&from, &to), "set aside", &from)?;
            disk::sync_dir(&disk::epoch_place(&self.root, id))?;
            disk::sync_dir(&self.root)?;
            let _ = fs::remove_dir(disk::epoch_place(&self.root, id));
            tracing::error!(dir = %from.display(), to = %to.display(), why, "spool: damaged directory set aside");
        }
        self.trim_kept(self.reserve.kept)
    }

    /// An open database of the directory; damaged ones are set aside.
    fn opened(&mut self, id: DirId) -> Result<&Database, Fault> {
        let active = self.active.as_ref().is_some_and(|db| db.id() == id);
        if !active && self.reading.as_ref().is_none_or(|db| db.id() != id) {
            close(self.reading.take());
            self.in_place()?;
            match self.with_room(|this| Database::open(&this.root, id)) {
                Ok(db) => self.reading = Some(db),
                Err(Fault::Broken(why)) => {
                    self.give_up(id, &why)?;
                    return Err(Fault::Broken(why));
                }
                Err(fault) => return Err(fault),
            }
        }
        if !active {
            self.idle = 0;
        }
        let slot = if active { &self.active } else { &self.reading };
        slot.as_ref().ok_or_else(|| Fault::Unavailable("the directory is not open".into()))
    }

    /// Makes the directory the active one.
    fn activate(&mut self, id: DirId) -> Result<(), Fault> {
        if self.active.as_ref().is_some_and(|db| db.id() == id) {
            return Ok(());
        }
        if let Some(left) = self.active.take() {
            left.end();
            self.measure(left.id());
            self.idle = 0;
            if self.reading.is_none() { self.reading = Some(left) } else { close(Some(left)) }
        }
        let mut db = match self.reading.take_if(|db| db.id() == id) {
            Some(db) => db,
            None => match Database::create(&self.root, id) {
                // Nothing was ever committed into it: begin again.
                Err(Fault::Broken(_)) if !database::begun(&disk::place(&self.root, id))? => {
                    disk::remove(&self.root, id)?;
                    Database::create(&self.root, id)?
                }
                made => made?,
            },
        };
        db.resume()?;
        self.active = Some(db);
        Ok(())
    }

    fn try_commit(&mut self, commit: &Commit) -> Result<(), Fault> {
        let was_open = self.active.as_ref().is_some_and(|db| db.id() == commit.dir);
        let done = self.activate(commit.dir).and_then(|()| match &mut self.active {
            Some(db) => db.commit(commit),
            None => Ok(()),
        });
        match done {
            Ok(()) => {
                self.measure(commit.dir);
                Ok(())
            }
            Err(Fault::Broken(why)) => {
                self.close(commit.dir);
                // The handle may be to blame. What fails right after it was opened is damaged.
                if was_open {
                    return Err(Fault::Unavailable(why));
                }
                self.give_up(commit.dir, &why)?;
                Err(Fault::Broken(why))
            }
            Err(fault) => {
                self.close(commit.dir);
                Err(fault)
            }
        }
    }

    /// What a start needs to know of one directory: its last seq, and its state record and catalogue if asked for.
    /// `None` if nothing was ever committed into it; it is removed.
    fn survey(&mut self, id: DirId, want_state: bool) -> Result<Option<Survey>, Fault> {
        let path = disk::place(&self.root, id);
        if let (false, Some(last)) = (want_state, database::left(&path)) {
            return Ok(Some(Survey { last, state: None }));
        }
        let db = self.with_room(|this| Database::open(&this.root, id))?;
        let state = db.state()?;
        let last = match (db.last(), &state) {
            (Some(last), Some(_)) => last,
            // Without a state record it is worth keeping for its records only.
            (last, _) => match db.index()?.last() {
                Some(entry) => last.unwrap_or(entry.seq),
                None if db.begun() => {
                    return Err(Fault::Broken("neither its state record nor a record is whole".into()));
                }
                None => {
                    close(Some(db));
                    self.with_room(|this| disk::remove(&this.root, id))?;
                    return Ok(None);
                }
            },
        };
        close(if self.reading.is_none() { self.reading.replace(db) } else { Some(db) });
        Ok(Some(Survey { last, state: state.filter(|_| want_state) }))
    }
}

struct Survey {
    last: u64,
    state: Option<database::State>,
}

impl Store for SledStore {
    fn recover(&mut self) -> Result<Recovered, StoreError> {
        close(self.active.take());
        close(self.reading.take());
        self.sizes.clear();
        let listing = disk::list(&self.root)?;
        for path in &listing.foreign {
            tracing::warn!(path = %path.display(), "spool: not ours, left alone");
        }
        for path in listing.leaving {
            if let Err(fault) = disk::delete(&path) {
                tracing::warn!(?fault, "spool: a removal could not be finished");
            }
            let _ = path.parent().map(fs::remove_dir);
        }
        for path in listing.empty {
            let _ = fs::remove_dir(path);
        }

        let mut found = Recovered::default();
        let mut next: Option<DirId> = None;
        for id in listing.dirs.into_iter().rev() {
            let below = next.filter(|next| next.epoch == id.epoch).map(|next| next.first.saturating_sub(1));
            let last = match self.survey(id, found.state.is_none()) {
                Ok(None) => continue,
                Ok(Some(survey)) => {
                    if let Some(newest) = survey.state {
                        (found.state, found.catalog) = (Some(newest.state), newest.catalog);
                    }
                    survey.last.min(below.unwrap_or(u64::MAX))
                }
                Err(Fault::Broken(why)) => {
                    self.give_up(id, &why)?;
                    found.set_aside.push(id);
                    continue;
                }
                // Without its state record nothing can go on; a mere reader of old records waits for the disk.
                Err(fault) if found.state.is_none() => return Err(fault.into()),
                Err(fault) => {
                    tracing::warn!(dir = %disk::place(&self.root, id).display(), ?fault, "spool: not readable now");
                    below.unwrap_or_else(|| id.first.saturating_sub(1))
                }
            };
            self.measure(id);
            found.dirs.push((id, last));
            next = Some(id);
        }
        found.dirs.reverse();
        found.set_aside.reverse();
        self.trim_kept(self.reserve.kept)?;
        found.usage = self.usage();
        Ok(found)
    }

    fn commit(&mut self, commit: &Commit) -> Result<Usage, StoreError> {
        let reserved = self.reserved(commit);
        self.in_place()?;
        let room = if reserved && !self.ballast { self.keep_free() } else { Ok(()) };
        let mut done = room.and_then(|()| self.try_commit(commit));
        while matches!(done, Err(Fault::Full(_))) && (self.drop_set_aside() || !reserved && self.drop_ballast()) {
            done = self.try_commit(commit);
        }
        done?;
        self.idle = self.idle.saturating_add(1);
        if self.idle >= IDLE_COMMITS {
            close(self.reading.take());
        }
        Ok(self.usage())
    }

    fn load(&mut self, dir: DirId) -> Result<Vec<IndexEntry>, StoreError> {
        let db = self.opened(dir)?;
        let (index, last) = (db.index(), db.last());
        let nothing = index.as_ref().is_ok_and(Vec::is_empty) && last.is_none_or(|last| last >= dir.first);
        if nothing && db.begun() {
            let why = "none of its records is whole";
            self.give_up(dir, why)?;
            return Err(StoreError::Damaged(why.into()));
        }
        Ok(index.inspect_err(|_| self.close(dir))?)
    }

    fn read(&mut self, dir: DirId, seq: u64) -> Result<Option<Vec<u8>>, StoreError> {
        match self.opened(dir)?.read(seq) {
            Err(Fault::Broken(_)) => Ok(None),
            record => Ok(record.inspect_err(|_| self.close(dir))?),
        }
    }

    fn remove(&mut self, dir: DirId) -> Result<Usage, StoreError> {
        self.in_place()?;
        self.close(dir);
        self.with_room(|this| disk::remove(&this.root, dir))?;
        self.sizes.remove(&dir);
        Ok(self.usage())
    }

    fn quarantine(&mut self, dir: DirId, seq: u64) -> Result<Usage, StoreError> {
        if let Some(record) = self.read(dir, seq)? {
            let kept = self.root.join("refused");
            at(fs::create_dir_all(&kept), "make", &kept)?;
            disk::write_synced(&kept.join(format!("{:016x}-{seq:016x}", dir.epoch)), &record)?;
            disk::sync_dir(&kept)?;
            disk::sync_dir(&self.root)?;
            self.trim_kept(self.reserve.kept)?;
        }
        Ok(self.usage())
    }
}

/// A database that has panicked may do so again while it is dropped.
fn close(db: Option<Database>) {
    drop(catch_unwind(AssertUnwindSafe(|| drop(db))));
}

/// Writes the format of a new spool; refuses that of another version. The line bears its checksum, so that damage to it
/// is not taken for another version.
fn check_format(root: &Path) -> Result<(), Fault> {
    let path = root.join("SPOOL_FORMAT");
    let line = |format: &str| format!("{format} {:08x}\n", parts::crc32c(format.as_bytes()));
    let found = fs::read_to_string(&path).unwrap_or_default();
    if found == line(FORMAT) {
        return Ok(());
    }
    let format = found.trim_end().rsplit_once(' ').map_or("", |(format, _)| format);
    if found == line(format) {
        let text = format!("the spool {} has format `{format}`; this version reads `{FORMAT}`", root.display());
        return Err(Fault::Unavailable(text));
    }
    disk::write_synced(&path, line(FORMAT).as_bytes())?;
    disk::sync_dir(root)
}
