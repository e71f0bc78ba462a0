//! The spool's disk: [`tributary_core::store::Store`] over sled, one database for each directory of the spool.
//!
//! ```text
//! pipeline → Command → [thread] → SledStore → [database] one directory, [parts] its entries
//!                                           → [disk]     names, sizes, removal, ballast
//!                                           → [room]     what is given up for space
//!                                           → [salvage]  what a damaged directory still holds
//! ```
//!
//! Why directories: a sled database never gives space back after an outage (188 MB stay for a drained backlog of
//! 100 MB), opens in seconds at 1 GB, and is lost whole to one bad page. A directory of 2 MB payload is deleted whole,
//! opens in milliseconds, and is the most that one bad page can cost.
//!
//! Invariants beside those of the trait:
//! 1. At most two databases are open: the active one and one being read. They are handed over, not reopened.
//! 2. A handle that met an error of the disk is dropped: sled's handles never recover from one.
//! 3. Damage is never an error of the start. A directory that does not open, or in which a committed record is not whole,
//!    is set aside as `bad-…`, at most [`KEPT`] of them; what its bytes still hold takes its place.
//! 4. An error of the disk is not taken for damage, unless it stays for [`READ_TRIES`] tries at one place: flash dies in
//!    spots, and who waited for one would wait for ever.
//!
//! Limits: sled costs 1.9 to 2.4 bytes on disk for a byte of payload; 2 MB of ballast; 16 MB for what is set aside and
//! 16 MB for refused records.

mod database;
mod disk;
pub mod look;
mod mark;
mod parts;
mod room;
mod salvage;
pub mod thread;

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use tributary_core::store::{Commit, DirId, IndexEntry, Recovered, Store, StoreError, Usage};

use database::Database;
use disk::{Fault, at};
use salvage::Salvage;

/// Most directories set aside that are kept for the owner.
pub const KEPT: usize = 8;
/// Most refused records that are kept for the owner.
pub const KEPT_REFUSED: usize = 1000;
/// A database that nobody read during so many commits is closed: its pages take about 8 MB.
const IDLE_COMMITS: u32 = 16;
/// A directory that can so often not be read while the rest of the disk can has gone bad; tries are seconds apart.
const READ_TRIES: u32 = 5;
/// How often each directory could not be read in a row.
pub type Tries = BTreeMap<DirId, u32>;

/// Space that is not for records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reserve {
    /// Bytes given up when nothing else helps against a full disk, for what empties the spool. Opening a database may take
    /// one sled segment of 512 KB each for two of them, and 1 MB for snapshots and the rest.
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
    /// How often each directory could not be read in a row.
    unreadable: Tries,
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
    /// `Foreign` if another agent holds it or if it was written by another version; `Unavailable` if it cannot be
    /// written; `Full`.
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
                return Err(StoreError::Foreign(text));
            }
            Err(TryLockError::Error(error)) => Err(disk::sort(&error, "lock the spool"))?,
        }
        let mut this = Self {
            root: root.to_owned(),
            reserve,
            active: None,
            reading: None,
            idle: 0,
            unreadable: Tries::new(),
            sizes: BTreeMap::new(),
            kept: (0, 0),
            free: 0,
            ballast: disk::blocks(&root.join("ballast")) >= reserve.ballast.max(1),
            lock,
        };
        this.with_room(|this| disk::check_format(&this.root))?;
        Ok(this)
    }

    /// Goes on counting where an earlier handle stood: a spot that has gone bad is known by many tries.
    #[must_use]
    pub fn after(mut self, earlier: Tries) -> Self {
        self.unreadable = earlier;
        self
    }

    /// Closes it; what a later handle may go on from.
    #[must_use]
    pub fn tries(self) -> Tries {
        self.unreadable
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

    fn measure(&mut self, id: DirId) {
        let bytes = disk::blocks(&disk::place(&self.root, id));
        self.sizes.insert(id, bytes);
    }

    fn close(&mut self, id: DirId) {
        for slot in [&mut self.active, &mut self.reading] {
            close(slot.take_if(|db| db.id() == id));
        }
    }

    /// Sets a directory aside, and puts what it still holds in its place; if that is the `whole` of it, the old one goes.
    ///
    /// # Errors
    /// `Broken` if it holds nothing any more.
    fn repair(&mut self, id: DirId, left: &Salvage, whole: bool, why: &str) -> Result<(), Fault> {
        self.close(id);
        self.sizes.remove(&id);
        let (from, to) = (disk::place(&self.root, id), disk::bad_place(&self.root, id));
        let built = disk::leaving_place(&self.root, id);
        if at(from.try_exists(), "look at", &from)? {
            let rebuilt = match self.with_room(|_| left.rebuild(&built, id, whole)) {
                // What is set aside can still be salvaged by hand.
                Err(Fault::Full(_) | Fault::Broken(_)) => false,
                rebuilt => rebuilt?,
            };
            let exchanged = rebuilt && disk::exchange(&built, &from)?;
            disk::delete(&to)?;
            at(fs::rename(if exchanged { &built } else { &from }, &to), "set aside", &from)?;
            if rebuilt && !exchanged {
                at(fs::rename(&built, &from), "put back", &built)?;
            }
            disk::sync_dir(&disk::epoch_place(&self.root, id))?;
            disk::sync_dir(&self.root)?;
            disk::delete(&built)?;
            if rebuilt && whole {
                disk::delete(&to)?;
                tracing::warn!(dir = %from.display(), why, "spool: a directory did not open, and was written anew whole");
            } else {
                tracing::error!(dir = %from.display(), to = %to.display(), why, "spool: damaged directory set aside");
            }
            let _ = fs::remove_dir(disk::epoch_place(&self.root, id));
        }
        self.trim_kept(self.reserve.kept)?;
        if at(from.try_exists(), "look at", &from)? {
            self.measure(id);
            return Ok(());
        }
        Err(Fault::Broken(why.to_owned()))
    }

    /// Opens a directory that must be there. A damaged one is repaired.
    fn open_whole(&mut self, id: DirId) -> Result<Database, Fault> {
        let path = disk::place(&self.root, id);
        // Before sled, which destroys what it does not understand.
        let (left, bad_spot) = match Salvage::of(&path) {
            Err(Fault::Unavailable(why)) if self.stays_unreadable(id) => (Salvage::of_readable(&path)?, Some(why)),
            left => (left?, None),
        };
        let news = mark::begun(&path)? && !salvage::is_salvaged(&path);
        let opened = if let Some(why) = bad_spot {
            // sled reads a page when it is wanted: it might open, and fail at each later use.
            Err(Fault::Broken(why))
        } else if news && left.has_holes(id.first) {
            Err(Fault::Broken("something that was committed is not whole".into()))
        } else {
            self.with_room(|this| Database::open(&this.root, id)).and_then(|db| match news.then(|| db.check()) {
                None | Some(Ok(())) => Ok(db),
                Some(Err(fault)) => {
                    close(Some(db));
                    Err(fault)
                }
            })
        };
        let why = match opened {
            Err(Fault::Broken(why)) => why,
            Err(Fault::Unavailable(why)) if self.stays_unreadable(id) => why,
            opened => {
                if opened.is_ok() {
                    self.unreadable.remove(&id);
                }
                return opened;
            }
        };
        // sled takes an error of the disk for the end of its log, and then nothing is missing.
        self.repair(id, &left, left.is_whole(id.first), &why)?;
        self.with_room(|this| Database::open(&this.root, id))
    }

    /// The disk fails at this directory, again: whether that is a spot of it that has gone bad. Who is away comes back, or
    /// fails as a whole.
    fn stays_unreadable(&mut self, id: DirId) -> bool {
        let tries = self.unreadable.entry(id).or_default();
        *tries = tries.saturating_add(1);
        *tries > READ_TRIES
    }

    /// An open database of the directory.
    fn opened(&mut self, id: DirId) -> Result<&Database, Fault> {
        let active = self.active.as_ref().is_some_and(|db| db.id() == id);
        if !active && self.reading.as_ref().is_none_or(|db| db.id() != id) {
            close(self.reading.take());
            self.in_place()?;
            self.reading = Some(self.open_whole(id)?);
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
            None if mark::begun(&disk::place(&self.root, id))? => self.open_whole(id)?,
            None => match Database::create(&self.root, id) {
                // Nothing was ever committed into it: begin again.
                Err(Fault::Broken(_)) => {
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
                let path = disk::place(&self.root, commit.dir);
                let again = salvage::is_salvaged(&path);
                self.repair(commit.dir, &Salvage::of(&path)?, false, &why)?;
                // What was salvaged and fails again will not be better the third time: another directory has to do.
                Err(if again { Fault::Broken(why) } else { Fault::Unavailable(why) })
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
        if let (false, Some(last)) = (want_state, mark::left(&path)) {
            return Ok(Some(Survey { last, state: None }));
        }
        let db = match self.open_whole(id) {
            // Its room is wanted.
            Err(Fault::Full(_)) if !mark::begun(&path)? => {
                disk::remove(&self.root, id)?;
                return Ok(None);
            }
            db => db?,
        };
        let last = match db.last() {
            Some(last) => last,
            None => match db.index()?.last() {
                Some(entry) => entry.seq,
                None => {
                    close(Some(db));
                    self.with_room(|this| disk::remove(&this.root, id))?;
                    return Ok(None);
                }
            },
        };
        let state = db.state()?;
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
            // What was to be set aside when the power went: without it nobody would know that something is missing.
            if let Some(id) =
                disk::leaving_path_id(&path).filter(|id| salvage::is_salvaged(&disk::place(&self.root, *id)))
            {
                let bad = disk::bad_place(&self.root, id);
                if !bad.exists() && path.join("mark").exists() && fs::rename(&path, &bad).is_ok() {
                    disk::sync_dir(&self.root)?;
                    continue;
                }
            }
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
                Err(Fault::Broken(_)) => continue,
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
        self.trim_kept(self.reserve.kept)?;
        // An earlier start may have set one aside and then come to no commit.
        found.set_aside = disk::set_aside(&self.root)?.iter().filter_map(|path| disk::bad_path_id(path)).collect();
        found.usage = self.usage();
        Ok(found)
    }

    fn commit(&mut self, commit: &Commit) -> Result<Usage, StoreError> {
        let reserved = Self::reserved(commit);
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
        let index = db.index();
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
