//! Databases for tests: an SQLite file, and a PostgreSQL server of the test's own.
//!
//! The server is started once per test binary, in a directory of its own with a Unix socket and no port, as the user
//! `postgres` (it refuses to run as root); each test gets a database. A shell stands between: when the test binary ends,
//! however it ends, the shell's input ends too, and it stops the server and removes the directory. PostgreSQL that is not
//! installed is a failure, not a skip.

#![allow(dead_code, reason = "each test takes what it needs")]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use tributary_receiver::Config;
use tributary_receiver::store::{Store, StoreConfig};

/// A database and where it is.
pub(crate) enum Database {
    Sqlite(tempfile::TempDir),
    Postgres(String),
}

impl Database {
    pub(crate) fn sqlite() -> Self {
        Self::Sqlite(tempfile::tempdir().expect("a directory"))
    }

    /// A new database on the test's server.
    pub(crate) async fn postgres() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let server = server();
        let name = format!("centre_{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let (client, connection) = tokio_postgres::connect(&url(server, "postgres"), tokio_postgres::NoTls)
            .await
            .expect("the test's PostgreSQL");
        tokio::spawn(connection);
        client.batch_execute(&format!("CREATE DATABASE {name}")).await.expect("CREATE DATABASE");
        Self::Postgres(url(server, &name))
    }

    /// As `--store` takes it.
    pub(crate) fn argument(&self) -> String {
        match self {
            Self::Sqlite(directory) => format!("sqlite:{}", directory.path().join("centre.db").display()),
            Self::Postgres(url) => url.clone(),
        }
    }

    pub(crate) fn config(&self) -> StoreConfig {
        Config::load("mqtt://127.0.0.1", &self.argument(), None).expect("a store").store
    }

    pub(crate) fn open(&self) -> Store {
        Store::open(&self.config()).expect("a store")
    }

    /// The rows that `sql` finds, columns joined by `|`, NULL as `-`.
    pub(crate) async fn rows(&self, sql: &str) -> Vec<String> {
        match self {
            Self::Sqlite(directory) => sqlite_rows(&directory.path().join("centre.db"), sql),
            Self::Postgres(url) => {
                let (client, connection) =
                    tokio_postgres::connect(url, tokio_postgres::NoTls).await.expect("PostgreSQL");
                tokio::spawn(connection);
                let messages = client.simple_query(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
                let rows = messages.iter().filter_map(|message| match message {
                    tokio_postgres::SimpleQueryMessage::Row(row) => {
                        let columns: Vec<&str> = (0..row.len()).map(|n| row.get(n).unwrap_or("-")).collect();
                        Some(columns.join("|"))
                    }
                    _ => None,
                });
                rows.collect()
            }
        }
    }

    /// The single value that `sql` finds.
    pub(crate) async fn one(&self, sql: &str) -> String {
        let rows = self.rows(sql).await;
        assert_eq!(rows.len(), 1, "{sql}: {rows:?}");
        rows.into_iter().next().unwrap_or_default()
    }
}

fn sqlite_rows(path: &Path, sql: &str) -> Vec<String> {
    use rusqlite::types::ValueRef;
    let connection = rusqlite::Connection::open(path).expect("the file");
    let mut statement = connection.prepare(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
    let columns = statement.column_count();
    let rows = statement.query_map([], |row| {
        let text = |n| match row.get_ref(n).expect("a column") {
            ValueRef::Null => "-".to_owned(),
            ValueRef::Integer(integer) => integer.to_string(),
            ValueRef::Real(real) => real.to_string(),
            ValueRef::Text(text) => String::from_utf8_lossy(text).into_owned(),
            ValueRef::Blob(blob) => format!("{} bytes", blob.len()),
        };
        Ok((0..columns).map(text).collect::<Vec<_>>().join("|"))
    });
    rows.expect("rows").map(|row| row.expect("a row")).collect()
}

fn url(directory: &Path, database: &str) -> String {
    let host = directory.display().to_string().replace('/', "%2F");
    format!("postgres://postgres@{host}:5432/{database}")
}

/// Where the programs are: Debian keeps them out of PATH.
fn program(name: &str) -> PathBuf {
    let mut places: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .map(|versions| versions.flatten().map(|version| version.path().join("bin")).collect())
        .unwrap_or_default();
    places.sort();
    places.extend(std::env::var_os("PATH").iter().flat_map(std::env::split_paths));
    places.iter().rev().map(|place| place.join(name)).find(|path| path.exists()).unwrap_or_else(|| {
        panic!("{name} not found: these tests need PostgreSQL 15 or later; apt-get install postgresql")
    })
}

/// The directory of the server, which holds its socket.
fn server() -> &'static Path {
    static SERVER: OnceLock<(PathBuf, Child, ChildStdin)> = OnceLock::new();
    let (directory, ..) = SERVER.get_or_init(|| {
        let directory = tempfile::Builder::new().prefix("tributary-postgres-").tempdir().expect("a directory").keep();
        let data = directory.join("data");
        let root = std::fs::metadata("/proc/self").map(|own| std::os::unix::fs::MetadataExt::uid(&own)).unwrap_or(0) == 0;
        let become_postgres =
            if root { "setpriv --reuid postgres --regid postgres --clear-groups" } else { "" };
        if root {
            let done = Command::new("chown").arg("postgres").arg(&directory).status().expect("chown");
            assert!(done.success(), "chown postgres {}: is there a user postgres?", directory.display());
        }
        let script = format!(
            "cd '{directory}'
             {become_postgres} '{initdb}' -D '{data}' -U postgres -A trust -N --no-instructions -E UTF8 --locale C >initdb.log 2>&1 &&
             {become_postgres} '{pg_ctl}' -D '{data}' -l server.log -o \"-k '{directory}' -c listen_addresses= -c fsync=off\" start >/dev/null &&
             echo ready && {{ read end; true; }} || cat initdb.log server.log >&2
             {become_postgres} '{pg_ctl}' -D '{data}' -m immediate stop >/dev/null; cd /; rm -rf '{directory}'",
            directory = directory.display(),
            data = data.display(),
            initdb = program("initdb").display(),
            pg_ctl = program("pg_ctl").display(),
        );
        let mut shell = Command::new("sh");
        let mut shell = shell.arg("-c").arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("sh");
        let input = shell.stdin.take().expect("its input");
        let mut said = String::new();
        BufReader::new(shell.stdout.take().expect("its output")).read_line(&mut said).expect("a line");
        assert_eq!(said, "ready\n", "PostgreSQL does not start; its log is above");
        (directory, shell, input)
    });
    directory
}
