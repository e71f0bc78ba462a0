//! A disk that can lose its power: what a program did to its files, as `strace` saw it, and what is left after a cut.
//!
//! One traced run gives any number of cuts. A [`Trace`] is the list of what was done below one folder, in order;
//! [`Trace::cut`] builds the folder as it may be found when the power goes after a given step:
//!
//! - Data is safe after an fsync or fdatasync of its file has returned, a name after an fsync of its directory has.
//! - What is not safe is there, or not, by [`Keep`]; data in pieces of a sector or a page, so that writes are torn and
//!   later ones survive earlier ones. Names become durable in their order, as in a journal.
//!
//! Nothing else is assumed. `sync_file_range` counts nothing: it flushes neither sizes nor the cache of the drive
//! (sync_file_range(2), warning).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Command;

use fastrand::Rng;

/// The system calls that change files; `openat` for what it creates and truncates.
const CALLS: &str = "openat,creat,pwrite64,pwritev,pwritev2,write,writev,ftruncate,truncate,fallocate,fsync,fdatasync,sync,syncfs,\
    rename,renameat,renameat2,link,linkat,symlink,symlinkat,unlink,unlinkat,mkdir,mkdirat,rmdir,copy_file_range,sendfile";

/// What of the unsafe is still there after a cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Everything: the process was killed, the machine lives on.
    All,
    /// Nothing.
    Nothing,
    /// Each piece by chance; of the names, the first so many.
    Some,
}

/// A disk that breaks its word, to show that the cuts bite.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lies {
    /// fdatasync returns and has done nothing, as if it were not called.
    pub fdatasync: bool,
    /// So many writes, by chance, were never made, though synced later.
    pub writes: usize,
}

#[derive(Clone, Debug)]
enum Step {
    Create(PathBuf),
    Truncate(PathBuf, u64),
    Write(PathBuf, u64, Vec<u8>),
    /// A sync began, or, with the step at which it did, returned.
    Sync {
        path: PathBuf,
        data_only: bool,
        began: usize,
    },
    MakeDir(PathBuf),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
    /// A line on standard output.
    Say(String),
}

/// What one run did below its folder.
#[derive(Debug)]
pub struct Trace {
    start: BTreeMap<PathBuf, Option<Vec<u8>>>,
    steps: Vec<Step>,
}

impl Trace {
    /// Runs the command to its end under `strace` and notes what it does below `root`, which must be there.
    ///
    /// # Errors
    /// `strace` cannot be started or gives what is not understood.
    pub fn of(root: &Path, command: &mut Command) -> io::Result<Self> {
        let root = root.canonicalize()?;
        let log = tempfile::NamedTempFile::new()?;
        let mut strace = Command::new(crate::process::program("strace", "strace"));
        strace.args(["-f", "--seccomp-bpf", "-y", "-xx", "-s", "1000000", "-e", &format!("trace={CALLS}"), "-o"]);
        strace.arg(log.path()).arg("--").arg(command.get_program()).args(command.get_args());
        let start = files(&root, &root)?;
        let ran = strace.output()?;
        if !ran.status.success() {
            return Err(io::Error::other(format!("{}: {}", ran.status, String::from_utf8_lossy(&ran.stderr))));
        }
        let mut reader = Reader { root, ..Reader::default() };
        for line in BufReader::new(log.reopen()?).lines() {
            let line = line?;
            reader.line(&line).ok_or_else(|| io::Error::other(format!("not understood: {:.300}", line)))?;
        }
        Ok(Self { start, steps: reader.steps })
    }

    /// How many steps there are.
    #[must_use]
    pub fn steps(&self) -> usize {
        self.steps.len()
    }

    /// What had been said on standard output when so many steps were done.
    pub fn said(&self, steps: usize) -> impl DoubleEndedIterator<Item = &str> {
        self.steps
            .iter()
            .take(steps)
            .filter_map(|step| if let Step::Say(line) = step { Some(line.as_str()) } else { None })
    }

    /// Builds in `to` what is found when the power goes after so many steps. `grain` is the size of a piece.
    ///
    /// # Errors
    /// `to` cannot be written.
    pub fn cut(&self, to: &Path, steps: usize, keep: Keep, grain: usize, lies: Lies, seed: u64) -> io::Result<()> {
        let mut disk = Disk::new(&self.start, grain);
        let mut rng = Rng::with_seed(seed);
        let writes: Vec<usize> = (0..steps).filter(|n| matches!(self.steps[*n], Step::Write(..))).collect();
        let never: BTreeSet<usize> =
            (0..lies.writes.min(writes.len())).map(|_| writes[rng.usize(..writes.len())]).collect();
        for (n, step) in self.steps.iter().take(steps).enumerate().filter(|(n, _)| !never.contains(n)) {
            disk.apply(n, step, lies);
        }
        disk.lose_power(keep, &mut rng);
        disk.write(to)
    }
}

/// Every file and directory below `at`, by its path from `root`.
fn files(at: &Path, root: &Path) -> io::Result<BTreeMap<PathBuf, Option<Vec<u8>>>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(at)? {
        let path = entry?.path();
        let name = path.strip_prefix(root).map_err(io::Error::other)?.to_owned();
        if path.is_dir() {
            found.insert(name, None);
            found.extend(files(&path, root)?);
        } else {
            found.insert(name, Some(fs::read(&path)?));
        }
    }
    Ok(found)
}

/// Understands strace's lines.
#[derive(Default)]
struct Reader {
    root: PathBuf,
    steps: Vec<Step>,
    /// Where the next plain write of a descriptor goes.
    offsets: BTreeMap<u64, u64>,
    /// Calls that have begun and not returned, by thread.
    begun: BTreeMap<String, (String, usize)>,
}

impl Reader {
    /// `None` if the line is not understood.
    fn line(&mut self, line: &str) -> Option<()> {
        let (thread, rest) = line.split_once(' ')?;
        let rest = rest.trim_start();
        if rest.starts_with("+++") || rest.starts_with("---") {
            return Some(());
        }
        if let Some(call) = rest.strip_suffix(" <unfinished ...>") {
            self.begun.insert(thread.to_owned(), (call.to_owned(), self.steps.len()));
            return Some(());
        }
        if let Some(resumed) = rest.strip_prefix("<... ") {
            let (_, rest) = resumed.split_once("resumed>")?;
            let (call, began) = self.begun.remove(thread)?;
            return self.call(&format!("{call}{rest}"), began);
        }
        self.call(rest, self.steps.len())
    }

    fn call(&mut self, call: &str, began: usize) -> Option<()> {
        let (call, result) = call.rsplit_once(" = ")?;
        if result.starts_with('-') || result.starts_with('?') {
            return Some(()); // it failed, or never returned
        }
        let (name, rest) = call.trim_end().strip_suffix(')')?.split_once('(')?;
        let args: Vec<&str> = rest.split(", ").collect();
        let step = match name {
            "openat" => {
                let path = self.at(args.first()?, args.get(1)?)?;
                let flags = args.get(2)?;
                self.offsets.insert(descriptor(result)?, 0);
                let Some(path) = path else { return Some(()) };
                if flags.contains("O_APPEND") {
                    return None;
                }
                if flags.contains("O_CREAT") {
                    self.steps.push(Step::Create(path.clone()));
                }
                if !flags.contains("O_TRUNC") {
                    return Some(());
                }
                Step::Truncate(path, 0)
            }
            "write" => {
                let fd = descriptor(args.first()?)?;
                let bytes = text(args.get(1)?)?;
                let length = usize::try_from(result.parse::<u64>().ok()?).ok()?;
                let bytes = bytes.get(..length)?.to_vec();
                if fd == 1 {
                    self.steps.extend(String::from_utf8_lossy(&bytes).lines().map(|line| Step::Say(line.to_owned())));
                    return Some(());
                }
                let offset = self.offsets.entry(fd).or_default();
                let at = *offset;
                *offset += length as u64;
                let Some(path) = self.place(args.first()?)? else { return Some(()) };
                Step::Write(path, at, bytes)
            }
            "pwrite64" => {
                let Some(path) = self.place(args.first()?)? else { return Some(()) };
                let length = usize::try_from(result.parse::<u64>().ok()?).ok()?;
                Step::Write(path, args.get(3)?.parse().ok()?, text(args.get(1)?)?.get(..length)?.to_vec())
            }
            "ftruncate" => {
                let Some(path) = self.place(args.first()?)? else { return Some(()) };
                Step::Truncate(path, args.get(1)?.parse().ok()?)
            }
            // Space that is reserved holds nothing.
            "fallocate" => return Some(()),
            "fsync" | "fdatasync" => {
                let Some(path) = self.place(args.first()?)? else { return Some(()) };
                Step::Sync { path, data_only: name == "fdatasync", began }
            }
            "mkdir" => {
                let Some(path) = self.below(&text(args.first()?)?) else { return Some(()) };
                Step::MakeDir(path)
            }
            "rename" => {
                let (from, to) = (self.below(&text(args.first()?)?), self.below(&text(args.get(1)?)?));
                let (Some(from), Some(to)) = (from, to) else { return Some(()) };
                Step::Rename(from, to)
            }
            "unlink" | "rmdir" => {
                let Some(path) = self.below(&text(args.first()?)?) else { return Some(()) };
                Step::Remove(path)
            }
            "unlinkat" => {
                let Some(path) = self.at(args.first()?, args.get(1)?)? else { return Some(()) };
                Step::Remove(path)
            }
            // What the model does not know must not pass unseen.
            _ => return None,
        };
        self.steps.push(step);
        Some(())
    }

    /// The path below the root, if it is.
    fn below(&self, path: &[u8]) -> Option<PathBuf> {
        let path = PathBuf::from(String::from_utf8_lossy(path).into_owned());
        path.strip_prefix(&self.root).ok().map(Path::to_owned)
    }

    /// Where `4<path>` is.
    fn place(&self, fd: &str) -> Option<Option<PathBuf>> {
        let (_, path) = fd.split_once('<')?;
        let path = path.trim_end_matches("(deleted)").strip_suffix('>')?;
        Some(unhex(path).and_then(|path| self.below(&path)))
    }

    fn at(&self, dir: &str, name: &str) -> Option<Option<PathBuf>> {
        let name = text(name)?;
        if name.first() == Some(&b'/') {
            return Some(self.below(&name));
        }
        let name = String::from_utf8_lossy(&name).into_owned();
        Some(self.place(dir)?.map(|dir| dir.join(name)))
    }
}

fn descriptor(text: &str) -> Option<u64> {
    text.split('<').next()?.trim().parse().ok()
}

/// A string as strace -xx prints it.
fn text(quoted: &str) -> Option<Vec<u8>> {
    unhex(quoted.strip_prefix('"')?.strip_suffix('"')?)
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    text.as_bytes()
        .chunks(4)
        .map(|chunk| match chunk {
            [b'\\', b'x', high, low] => Some(digit(*high)? << 4 | digit(*low)?),
            _ => None,
        })
        .collect()
}

/// A file: what is safe, and what was done since.
#[derive(Clone, Debug, Default)]
struct File {
    safe: Vec<u8>,
    since: Vec<(usize, Change)>,
}

#[derive(Clone, Debug)]
enum Change {
    Size(u64),
    Data(u64, Vec<u8>),
}

impl Change {
    fn apply(&self, data: &mut Vec<u8>) {
        match self {
            Self::Size(size) => data.resize(usize::try_from(*size).unwrap_or(0), 0),
            Self::Data(at, bytes) => {
                let at = usize::try_from(*at).unwrap_or(usize::MAX);
                if data.len() < at + bytes.len() {
                    data.resize(at + bytes.len(), 0);
                }
                data[at..at + bytes.len()].copy_from_slice(bytes);
            }
        }
    }
}

/// A change of names, and whether it is safe.
#[derive(Clone, Debug)]
struct Naming {
    what: What,
    safe: bool,
}

#[derive(Clone, Debug)]
enum What {
    Dir(PathBuf),
    File(PathBuf, usize),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
}

impl What {
    /// The directories whose fsync makes it safe: any of them.
    fn touches(&self, dir: &Path) -> bool {
        match self {
            Self::Dir(path) | Self::File(path, _) | Self::Remove(path) => path.parent() == Some(dir),
            Self::Rename(from, to) => to.parent() == Some(dir) || from.parent() == Some(dir),
        }
    }

    fn apply(&self, tree: &mut BTreeMap<PathBuf, Option<usize>>) {
        match self {
            Self::Dir(path) => drop(tree.insert(path.clone(), None)),
            Self::File(path, file) => drop(tree.insert(path.clone(), Some(*file))),
            Self::Remove(path) => drop(tree.remove(path)),
            Self::Rename(from, to) => {
                let moved: Vec<_> = tree.keys().filter(|path| path.starts_with(from)).cloned().collect();
                if !moved.is_empty() {
                    tree.remove(to);
                }
                for path in moved {
                    if let (Some(node), Ok(rest)) = (tree.remove(&path), path.strip_prefix(from)) {
                        // Joining nothing would add a slash.
                        let to = if rest.as_os_str().is_empty() { to.clone() } else { to.join(rest) };
                        tree.insert(to, node);
                    }
                }
            }
        }
    }
}

/// The model: files, the tree as the program sees it, and how it came to be.
struct Disk {
    grain: usize,
    files: Vec<File>,
    start: BTreeMap<PathBuf, Option<usize>>,
    now: BTreeMap<PathBuf, Option<usize>>,
    namings: Vec<Naming>,
}

impl Disk {
    fn new(start: &BTreeMap<PathBuf, Option<Vec<u8>>>, grain: usize) -> Self {
        let mut files = Vec::new();
        let tree: BTreeMap<_, _> = start
            .iter()
            .map(|(path, contents)| {
                let file = contents.as_ref().map(|contents| {
                    files.push(File { safe: contents.clone(), since: Vec::new() });
                    files.len() - 1
                });
                (path.clone(), file)
            })
            .collect();
        Self { grain, files, start: tree.clone(), now: tree, namings: Vec::new() }
    }

    fn name(&mut self, what: What) {
        what.apply(&mut self.now);
        self.namings.push(Naming { what, safe: false });
    }

    fn file(&mut self, path: &Path) -> Option<&mut File> {
        let file = (*self.now.get(path)?)?;
        self.files.get_mut(file)
    }

    fn apply(&mut self, n: usize, step: &Step, lies: Lies) {
        match step {
            Step::Create(path) => {
                if !self.now.contains_key(path) {
                    self.files.push(File::default());
                    self.name(What::File(path.clone(), self.files.len() - 1));
                }
            }
            Step::Truncate(path, size) => {
                self.file(path).into_iter().for_each(|file| file.since.push((n, Change::Size(*size))));
            }
            Step::Write(path, at, bytes) => {
                let grain = self.grain as u64;
                let Some(file) = self.file(path) else { return };
                let (mut at, mut left) = (*at, bytes.as_slice());
                while !left.is_empty() {
                    let room = usize::try_from(grain - at % grain).unwrap_or(usize::MAX);
                    let (piece, rest) = left.split_at(room.min(left.len()));
                    file.since.push((n, Change::Data(at, piece.to_vec())));
                    (at, left) = (at + piece.len() as u64, rest);
                }
            }
            Step::Sync { data_only: true, .. } if lies.fdatasync => {}
            Step::Sync { path, began, .. } => {
                if let Some(file) = self.file(path) {
                    let since = std::mem::take(&mut file.since);
                    for (done, change) in since {
                        if done < *began { change.apply(&mut file.safe) } else { file.since.push((done, change)) }
                    }
                } else {
                    self.namings
                        .iter_mut()
                        .filter(|naming| naming.what.touches(path))
                        .for_each(|naming| naming.safe = true);
                }
            }
            Step::MakeDir(path) => self.name(What::Dir(path.clone())),
            Step::Rename(from, to) => self.name(What::Rename(from.clone(), to.clone())),
            Step::Remove(path) => self.name(What::Remove(path.clone())),
            Step::Say(_) => {}
        }
    }

    fn lose_power(&mut self, keep: Keep, rng: &mut Rng) {
        let unsafe_ones = self.namings.iter().filter(|naming| !naming.safe).count();
        let mut kept = match keep {
            Keep::All => unsafe_ones,
            Keep::Nothing => 0,
            Keep::Some => rng.usize(..=unsafe_ones),
        };
        self.now = self.start.clone();
        for naming in &self.namings {
            let there = naming.safe || kept > 0;
            if !naming.safe {
                kept = kept.saturating_sub(1);
            }
            if there {
                naming.what.apply(&mut self.now);
            }
        }
        for file in &mut self.files {
            for (_, change) in std::mem::take(&mut file.since) {
                if keep == Keep::All || keep == Keep::Some && rng.bool() {
                    change.apply(&mut file.safe);
                }
            }
        }
    }

    fn write(&self, to: &Path) -> io::Result<()> {
        fs::create_dir_all(to)?;
        for (path, file) in &self.now {
            let at = to.join(path);
            // A name below a directory that is not there is not there.
            match file {
                _ if !path
                    .ancestors()
                    .skip(1)
                    .all(|above| above.as_os_str().is_empty() || self.now.contains_key(above)) => {}
                None => fs::create_dir_all(at)?,
                Some(file) => fs::write(at, &self.files[*file].safe)?,
            }
        }
        Ok(())
    }
}
