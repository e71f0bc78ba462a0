//! System calls that do not do what they should: a library to be preloaded, made by the C compiler that the README wants.
//!
//! Each fault has an environment variable:
//!
//! ```text
//! HANG=FILE       fdatasync waits as long as FILE is there
//! SHORT=1         write and pwrite write half of what they are given, and say so
//! READ_FAILS=N    the Nth read or pread of a file fails with EIO
//! BAD_SPOT=I:AT   the page at AT of the file with inode I cannot be read: EIO, always
//! ```

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

const SOURCE: &str = r#"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static int is_file(int fd) {
    struct stat about;
    return fstat(fd, &about) == 0 && S_ISREG(about.st_mode);
}

int fdatasync(int fd) {
    const char *hang = getenv("HANG");
    while (hang && access(hang, F_OK) == 0) pause();
    return syscall(SYS_fdatasync, fd);
}

static size_t some(int fd, size_t bytes) {
    return getenv("SHORT") && bytes > 1 && is_file(fd) ? bytes / 2 : bytes;
}

ssize_t write(int fd, const void *from, size_t bytes) { return syscall(SYS_write, fd, from, some(fd, bytes)); }
ssize_t pwrite64(int fd, const void *from, size_t bytes, off_t at) {
    return syscall(SYS_pwrite64, fd, from, some(fd, bytes), at);
}

static int is_bad(int fd, size_t bytes, off_t at) {
    unsigned long inode;
    long spot;
    struct stat about;
    const char *bad = getenv("BAD_SPOT");
    return bad && sscanf(bad, "%lu:%ld", &inode, &spot) == 2 && fstat(fd, &about) == 0 && about.st_ino == inode &&
           at < spot + 4096 && at + (off_t)bytes > spot;
}

static int is_nth(int fd) {
    static int reads = 0;
    const char *nth = getenv("READ_FAILS");
    return nth && is_file(fd) && __atomic_add_fetch(&reads, 1, __ATOMIC_SEQ_CST) == atoi(nth);
}

static ssize_t failed(void) {
    errno = EIO;
    return -1;
}

ssize_t read(int fd, void *to, size_t bytes) {
    if (is_nth(fd) || is_bad(fd, bytes, lseek(fd, 0, SEEK_CUR))) return failed();
    return syscall(SYS_read, fd, to, bytes);
}
ssize_t pread64(int fd, void *to, size_t bytes, off_t at) {
    if (is_nth(fd) || is_bad(fd, bytes, at)) return failed();
    return syscall(SYS_pread64, fd, to, bytes, at);
}
"#;

/// Makes the library in a folder.
///
/// # Errors
/// The folder cannot be written, or there is no C compiler.
pub fn library(folder: &Path) -> io::Result<PathBuf> {
    let (source, library) = (folder.join("shim.c"), folder.join("shim.so"));
    std::fs::write(&source, SOURCE)?;
    let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&library, &source]).status()?;
    if built.success() { Ok(library) } else { Err(io::Error::other("cc failed")) }
}
