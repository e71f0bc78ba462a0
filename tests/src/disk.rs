//! A small file system of the test's own, which fails when it is told to: full, without inodes, read-only, away; and
//! system calls of a running process that fail.
//!
//! It is a tmpfs or an ext4 image, mounted where the test says and unmounted when dropped, so this wants root. Errors are
//! the kernel's own where a mount can make them, strace's where only hardware could. A mount with open files cannot be
//! made read-only, but a read-only view of it can be laid over it: then open files can still be written and nothing new
//! can be made.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::{PATIENCE, Process, eventually, program};

/// Size and inodes: a spool of 4 MB fits, with its ballast and what sled takes.
const OPTIONS: &str = "size=16m,nr_inodes=400";
/// The same, with a journal.
const IMAGE: u64 = 24 << 20;

/// Of what kind a disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Memory: says at once what it has no room for.
    Tmpfs,
    /// An image in a file: may say so only when it is synced.
    Ext4,
}

/// What is wrong with a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Somebody takes every block as soon as it is free.
    Full,
    /// Somebody takes every inode as soon as it is free.
    NoInodes,
    /// Nothing can be made, opened for writing or removed.
    ReadOnly,
    /// An empty folder is in its place.
    Away,
    /// These system calls fail with that error, as strace names both.
    Calls(&'static str, &'static str),
}

/// The file system. Unmounted when dropped.
#[derive(Debug)]
pub struct Disk {
    folder: PathBuf,
    place: PathBuf,
    /// What is mounted, in order.
    mounted: Vec<PathBuf>,
    trouble: Option<Trouble>,
    strace: Option<Process>,
}

impl Disk {
    /// Mounts one at `place`, below `folder`.
    ///
    /// # Errors
    /// Without root, or if the folders cannot be made.
    pub fn mount(folder: &Path, place: &str, kind: Kind) -> io::Result<Self> {
        let place = folder.join(place);
        let mut this =
            Self { folder: folder.to_owned(), place: place.clone(), mounted: Vec::new(), trouble: None, strace: None };
        let view = this.view();
        fs::create_dir_all(&place)?;
        fs::create_dir_all(&view)?;
        match kind {
            Kind::Tmpfs => this.lay(&["-t", "tmpfs", "-o", OPTIONS, "tmpfs"], &place)?,
            Kind::Ext4 => {
                let image = folder.join("image");
                File::create(&image)?.set_len(IMAGE)?;
                succeed(Command::new(program("mkfs.ext4", "Debian's e2fsprogs")).args(["-q", "-m", "0"]).arg(&image))?;
                this.lay(&["-o", "loop", &image.to_string_lossy()], &place)?;
            }
        }
        this.lay(&["--bind", &place.to_string_lossy()], &view)?;
        succeed(Command::new("mount").args(["-o", "remount,bind,ro"]).arg(&view))?;
        Ok(this)
    }

    /// Where it is.
    #[must_use]
    pub fn place(&self) -> &Path {
        &self.place
    }

    /// The file system, read-only, at another place.
    fn view(&self) -> PathBuf {
        self.folder.join("read-only")
    }

    fn taken(&self) -> PathBuf {
        self.place.join("taken-by-others")
    }

    fn lay(&mut self, what: &[&str], at: &Path) -> io::Result<()> {
        succeed(Command::new("mount").args(what).arg(at))?;
        self.mounted.push(at.to_owned());
        Ok(())
    }

    /// The trouble begins; `pid` is whose system calls may fail.
    ///
    /// # Errors
    /// If it cannot be made.
    ///
    /// # Panics
    /// If strace does not attach.
    pub async fn begin(&mut self, trouble: Trouble, pid: u32) -> io::Result<()> {
        self.trouble = Some(trouble);
        let place = self.place.clone();
        match trouble {
            Trouble::Full => self.take(),
            Trouble::NoInodes => {
                fs::create_dir(self.taken())?;
                self.take()
            }
            Trouble::ReadOnly => {
                let view = self.view();
                self.lay(&["--bind", &view.to_string_lossy()], &place)
            }
            Trouble::Away => self.lay(&["-t", "tmpfs", "tmpfs"], &place),
            Trouble::Calls(calls, error) => {
                let mut command = Command::new(program("strace", "Debian's strace"));
                let inject = format!("inject={calls}:error={error}");
                command.args(["-f", "-q", "-o", "/dev/null", "-e", &format!("trace={calls}"), "-e", &inject]);
                command.args(["-e", "signal=none", "-p", &pid.to_string()]);
                let strace = Process::start("strace", &self.folder, &command)?;
                eventually("strace to attach", PATIENCE, async || traced(pid).then_some(())).await;
                self.strace = Some(strace);
                Ok(())
            }
        }
    }

    /// Takes what has become free, if that is the trouble.
    ///
    /// # Errors
    /// If a file cannot be written for another reason than that the disk is full.
    pub fn take(&self) -> io::Result<()> {
        let take = || match self.trouble {
            Some(Trouble::Full) => {
                let mut file = File::options().create(true).append(true).open(self.taken())?;
                loop {
                    file.write_all(&[0; 4_096])?;
                }
            }
            Some(Trouble::NoInodes) => loop {
                File::create(self.taken().join(fastrand::u64(..).to_string()))?;
            },
            _ => Ok(()),
        };
        take().or_else(|error: io::Error| if error.kind() == io::ErrorKind::StorageFull { Ok(()) } else { Err(error) })
    }

    /// The trouble is over.
    ///
    /// # Errors
    /// If it cannot be ended.
    pub async fn mend(&mut self) -> io::Result<()> {
        match self.trouble.take() {
            Some(Trouble::Full) => fs::remove_file(self.taken())?,
            Some(Trouble::NoInodes) => fs::remove_dir_all(self.taken())?,
            Some(Trouble::ReadOnly | Trouble::Away) => {
                if let Some(at) = self.mounted.pop() {
                    succeed(Command::new("umount").arg("--lazy").arg(at))?;
                }
            }
            Some(Trouble::Calls(..)) => {
                if let Some(mut strace) = self.strace.take() {
                    // It lets go of the process before it ends.
                    strace.terminate();
                    strace.end(PATIENCE).await;
                }
            }
            None => {}
        }
        Ok(())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.strace = None;
        for at in self.mounted.drain(..).rev() {
            // Lazy: a process that still has files there does not keep the folder.
            let _ = Command::new("umount").arg("--lazy").arg(at).status();
        }
    }
}

/// Whether every thread of the process has a tracer.
fn traced(pid: u32) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return false };
    threads.flatten().all(|thread| {
        let status = fs::read_to_string(thread.path().join("status")).unwrap_or_default();
        // A thread that has ended meanwhile says nothing.
        !status.lines().any(|line| line == "TracerPid:\t0")
    })
}

fn succeed(command: &mut Command) -> io::Result<()> {
    let output = command.output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr))))
}
