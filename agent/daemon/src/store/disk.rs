//! The spool's place in the file system: names, syncing of directories, sizes, free space, ballast and removal.
//!
//! ```text
//! spool/
//!     SPOOL_FORMAT                 backend and version
//!     lock                         held while an agent uses the spool
//!     ballast                      space that can be given up when the disk is full
//!     <epoch:016x>/<first:016x>/   a directory of the spool
//!     <epoch:016x>/x<first:016x>/  one on its way out, or not yet whole
//!     bad-<epoch>-<first>/         one that could not be read, kept for the owner
//!     refused/<epoch>-<seq>        a refused record, kept for the owner
//! ```
//!
//! Anything else in there is foreign: left alone, said once at the start.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use tributary_core::store::{DirId, StoreError};

/// Backend and version of what is written here.
const FORMAT: &str = "sled 3";

/// Why something could not be done, by what has to follow.
#[derive(Debug)]
pub(super) enum Fault {
    /// A database is still held by an earlier handle; a few milliseconds help.
    Locked(String),
    /// No space or no inode.
    Full(String),
    /// The disk failed: no damage of the data, as long as it may come back.
    Unavailable(String),
    /// Written by another version.
    Foreign(String),
    /// The data is damaged, or sled panicked over it.
    Broken(String),
}

impl From<Fault> for StoreError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Full(text) => Self::Full(text),
            Fault::Locked(text) | Fault::Unavailable(text) => Self::Unavailable(text),
            Fault::Foreign(text) => Self::Foreign(text),
            Fault::Broken(text) => Self::Damaged(text),
        }
    }
}

/// Sorts an I/O error. A file shorter than its own contents say is damage: no waiting mends it. Everything else that is
/// not lack of space is the disk's.
pub(super) fn sort(error: &io::Error, what: &str) -> Fault {
    let text = format!("{what}: {error}");
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => Fault::Full(text),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData => Fault::Broken(text),
        _ => Fault::Unavailable(text),
    }
}

/// Names the failed step and the place in an I/O error.
pub(super) fn at<T>(result: io::Result<T>, what: &str, path: &Path) -> Result<T, Fault> {
    result.map_err(|error| sort(&error, &format!("{what} {}", path.display())))
}

/// `<epoch:016x>/<first:016x>`, below the spool.
pub(super) fn place(root: &Path, id: DirId) -> PathBuf {
    epoch_place(root, id).join(format!("{:016x}", id.first))
}

/// `<epoch:016x>`, below the spool.
pub(super) fn epoch_place(root: &Path, id: DirId) -> PathBuf {
    root.join(format!("{:016x}", id.epoch))
}

/// Where a directory is on its way out, or a new one on its way in: deleted at the next start.
pub(super) fn leaving_place(root: &Path, id: DirId) -> PathBuf {
    epoch_place(root, id).join(format!("x{:016x}", id.first))
}

/// Where a directory that cannot be read is set aside.
pub(super) fn bad_place(root: &Path, id: DirId) -> PathBuf {
    root.join(format!("bad-{:016x}-{:016x}", id.epoch, id.first))
}

fn hex(name: &str) -> Option<u64> {
    let digits = name.len() == 16 && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    digits.then(|| u64::from_str_radix(name, 16).ok()).flatten()
}

/// What lies in the spool.
#[derive(Debug, Default)]
pub(super) struct Listing {
    /// Directories, oldest first.
    pub(super) dirs: Vec<DirId>,
    /// Directories on their way out.
    pub(super) leaving: Vec<PathBuf>,
    /// Epoch directories with nothing in them.
    pub(super) empty: Vec<PathBuf>,
    /// What nobody here made.
    pub(super) foreign: Vec<PathBuf>,
}

/// Looks through the spool.
pub(super) fn list(root: &Path) -> Result<Listing, Fault> {
    let mut listing = Listing::default();
    for (name, path) in entries(root)? {
        let known = matches!(name.as_str(), "SPOOL_FORMAT" | "lock" | "ballast" | "refused");
        match hex(&name) {
            Some(epoch) if path.is_dir() => {
                let inside = entries(&path)?;
                if inside.is_empty() {
                    listing.empty.push(path);
                }
                for (name, path) in inside {
                    match (hex(&name), name.strip_prefix('x').and_then(hex)) {
                        (Some(first), _) if path.is_dir() => listing.dirs.push(DirId { epoch, first }),
                        (_, Some(_)) => listing.leaving.push(path),
                        _ => listing.foreign.push(path),
                    }
                }
            }
            _ if known || bad_id(&name).is_some() => {}
            _ => listing.foreign.push(path),
        }
    }
    tributary_protocols::sort(&mut listing.dirs, Ord::cmp);
    Ok(listing)
}

pub(super) fn bad_id(name: &str) -> Option<DirId> {
    let (epoch, first) = name.strip_prefix("bad-")?.split_once('-')?;
    Some(DirId { epoch: hex(epoch)?, first: hex(first)? })
}

pub(super) fn bad_path_id(path: &Path) -> Option<DirId> {
    path.file_name().and_then(|name| bad_id(&name.to_string_lossy()))
}

/// Of which directory `x…` is the rest.
pub(super) fn leaving_path_id(path: &Path) -> Option<DirId> {
    let first = path.file_name()?.to_str()?.strip_prefix('x').and_then(hex)?;
    let epoch = path.parent()?.file_name()?.to_str().and_then(hex)?;
    Some(DirId { epoch, first })
}

/// Directories set aside, oldest first.
pub(super) fn set_aside(root: &Path) -> Result<Vec<PathBuf>, Fault> {
    let mut found: Vec<_> =
        entries(root)?.into_iter().filter_map(|(name, path)| bad_id(&name).map(|id| (id, path))).collect();
    tributary_protocols::sort(&mut found, Ord::cmp);
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

/// Names and paths in a directory; empty if it is not there.
pub(super) fn entries(dir: &Path) -> Result<Vec<(String, PathBuf)>, Fault> {
    let read = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        read => at(read, "list", dir)?,
    };
    read.map(|entry| at(entry, "list", dir).map(|e| (e.file_name().to_string_lossy().into_owned(), e.path()))).collect()
}

/// Makes names in a directory durable.
pub(super) fn sync_dir(dir: &Path) -> Result<(), Fault> {
    at(File::open(dir).and_then(|file| file.sync_all()), "sync", dir)
}

/// Writes a small file and makes its contents durable; its name is durable after [`sync_dir`].
pub(super) fn write_synced(path: &Path, contents: &[u8]) -> Result<(), Fault> {
    let write = || {
        let mut file = File::create(path)?;
        io::Write::write_all(&mut file, contents)?;
        file.sync_all()
    };
    at(write(), "write", path)
}

/// Bytes that a file, or everything below a directory, takes by its blocks. What vanishes meanwhile counts nothing.
pub(super) fn blocks(path: &Path) -> u64 {
    let Ok(meta) = fs::symlink_metadata(path) else { return 0 };
    let below: u64 = match meta.is_dir() {
        true => entries(path).unwrap_or_default().iter().map(|(_, path)| blocks(path)).sum(),
        false => 0,
    };
    meta.blocks() * 512 + below
}

/// Bytes the file system still has for an unprivileged process.
pub(super) fn free(root: &Path) -> Result<u64, Fault> {
    let stat = at(rustix::fs::statvfs(root).map_err(io::Error::from), "ask for free space of", root)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Takes a directory out of the spool in one step and then deletes it. After the rename is durable it is gone, whatever
/// happens; the deletion itself needs no sync, the next start finishes it.
pub(super) fn remove(root: &Path, id: DirId) -> Result<(), Fault> {
    let (from, to, epoch) = (place(root, id), leaving_place(root, id), epoch_place(root, id));
    delete(&to)?;
    match fs::rename(&from, &to) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        renamed => at(renamed, "remove", &from)?,
    }
    sync_dir(&epoch)?;
    delete(&to)?;
    // Other directories of the epoch keep it; then this fails, and should.
    if fs::remove_dir(&epoch).is_ok() {
        sync_dir(root)?;
    }
    Ok(())
}

/// Deletes a file or directory; that it is not there is no error.
pub(super) fn delete(path: &Path) -> Result<(), Fault> {
    let deleted = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match deleted {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        deleted => at(deleted, "delete", path),
    }
}

/// Puts two directories in each other's place, at once: whatever comes in between finds one of them there. `false` if the
/// file system cannot.
pub(super) fn exchange(one: &Path, other: &Path) -> Result<bool, Fault> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    use rustix::io::Errno;
    match renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE) {
        Err(Errno::INVAL | Errno::NOSYS) => Ok(false),
        exchanged => at(exchanged.map_err(io::Error::from), "put back", other).map(|()| true),
    }
}

/// Reserves space that can be given back when the disk is full. Where the file system cannot reserve, zeros are written.
pub(super) fn make_ballast(root: &Path, bytes: u64) -> Result<(), Fault> {
    let path = root.join("ballast");
    let make = || {
        let file = File::create(&path)?;
        match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes) {
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {
                io::copy(&mut io::Read::take(io::repeat(0), bytes), &mut &file)?;
            }
            reserved => reserved?,
        }
        file.sync_all()
    };
    at(make(), "reserve", &path).inspect_err(|_| drop(fs::remove_file(&path)))
}

/// Writes the format of a new spool; refuses that of another version. The line bears its checksum, so that damage to it
/// is not taken for another version.
pub(super) fn check_format(root: &Path) -> Result<(), Fault> {
    let path = root.join("SPOOL_FORMAT");
    let line = |format: &str| format!("{format} {:08x}\n", super::parts::crc32c(format.as_bytes()));
    let found = fs::read_to_string(&path).unwrap_or_default();
    if found == line(FORMAT) {
        return Ok(());
    }
    let format = found.trim_end().rsplit_once(' ').map_or("", |(format, _)| format);
    if found == line(format) {
        let text = format!("the spool {} has format `{format}`; this version reads `{FORMAT}`", root.display());
        return Err(Fault::Foreign(text));
    }
    write_synced(&path, line(FORMAT).as_bytes())?;
    sync_dir(root)
}
