//! A real PostgreSQL in a temporary directory, as an ordinary user, on a port of its own; never the one of the system.
//!
//! The server refuses to run as root, so a test that runs as root gives it to the user `postgres` that the Debian
//! package made. `fsync` is off: the tests kill processes, not machines, and what a process wrote the kernel keeps.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;
use tokio_postgres::{Client, NoTls};

use crate::process::{Process, eventually, free_port, program};

/// The user the server runs as when the test runs as root.
const SERVER_USER: &str = "postgres";

/// PostgreSQL, started by the test.
#[derive(Debug)]
pub struct Postgres {
    port: u16,
    // In this order: the server ends before its directory is removed.
    process: Process,
    folder: TempDir,
}

impl Postgres {
    /// Makes an empty cluster and starts it; waits until it answers.
    ///
    /// # Errors
    /// If the cluster cannot be made.
    ///
    /// # Panics
    /// If PostgreSQL is not installed, or does not answer within 30 s.
    pub async fn start() -> io::Result<Self> {
        let folder = tempfile::Builder::new().prefix("tributary-postgres-").tempdir()?;
        if is_root()? {
            let (user, group) = user_and_group(SERVER_USER)?;
            chown(folder.path(), Some(user), Some(group))?;
        }
        let mut init = server(folder.path(), "initdb")?;
        init.args(["--username", "tributary", "--auth", "trust", "--encoding", "UTF8", "--locale", "C", "--no-sync"]);
        let made = init.arg("-D").arg(folder.path().join("data")).output()?;
        assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        let port = free_port();
        let process = launch(folder.path(), port)?;
        let server = Self { port, process, folder };
        server.answers().await;
        Ok(server)
    }

    /// As `--store` takes it.
    #[must_use]
    pub fn url(&self) -> String {
        format!("postgres://tributary@127.0.0.1:{}/postgres", self.port)
    }

    /// SIGKILL to the postmaster. Its children see that and end without a checkpoint: a crash.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it again on the same directory and port, and waits until it has recovered.
    ///
    /// # Errors
    /// If it cannot be started.
    pub async fn restart(&mut self) -> io::Result<()> {
        // Children of the killed one may still hold the shared memory, and a start then fails: so try until it holds.
        self.process = launch(self.folder.path(), self.port)?;
        eventually("PostgreSQL to start again", Duration::from_secs(60), async || {
            if self.process.ended().is_some() {
                self.process = launch(self.folder.path(), self.port).ok()?;
            }
            self.connect().await.ok().map(|_| ())
        })
        .await;
        Ok(())
    }

    /// A connection for queries.
    ///
    /// # Errors
    /// If the server does not take it.
    pub async fn connect(&self) -> Result<Client, tokio_postgres::Error> {
        let (client, connection) = tokio_postgres::connect(&self.url(), NoTls).await?;
        // It ends with the client, or with the server's death, which the next query reports.
        tokio::spawn(connection);
        Ok(client)
    }

    async fn answers(&self) {
        eventually("PostgreSQL to answer", Duration::from_secs(30), async || self.connect().await.ok().map(|_| ()))
            .await;
    }
}

fn launch(folder: &Path, port: u16) -> io::Result<Process> {
    let mut command = server(folder, "postgres")?;
    command.arg("-D").arg(folder.join("data")).args(["-p", &port.to_string(), "-k", "", "-h", "127.0.0.1"]);
    command.args(["-c", "fsync=off", "-c", "shared_buffers=16MB", "-c", "max_connections=40"]);
    Process::start("postgres", folder, &command)
}

/// One of the server's programs, as a user it accepts.
fn server(folder: &Path, name: &str) -> io::Result<Command> {
    let path = program(name, "Debian's postgresql");
    let mut command = if is_root()? {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", SERVER_USER, "--regid", SERVER_USER, "--clear-groups", "--pdeathsig", "KILL", "--"]);
        command.arg(path);
        command
    } else {
        Command::new(path)
    };
    command.current_dir(folder);
    Ok(command)
}

/// Whether this process runs as root.
fn is_root() -> io::Result<bool> {
    Ok(fs::metadata("/proc/self")?.uid() == 0)
}

/// A user's ids, from the system's list.
fn user_and_group(name: &str) -> io::Result<(u32, u32)> {
    let list = fs::read_to_string("/etc/passwd")?;
    let numbers = list.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| Some((fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?)))?
    });
    numbers.ok_or_else(|| io::Error::other(format!("no user {name}: install Debian's postgresql")))
}
