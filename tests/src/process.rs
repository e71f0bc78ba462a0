//! Processes of the end-to-end tests: found, started, killed, and waited for by facts instead of by sleeping.
//!
//! Every process is a child of the test, is ended by its own pid alone, dies with the test (parent death signal), and
//! writes to a log of its own that is shown when the test fails. Turned down: service managers and containers, which
//! want to be running already.

use std::fmt::Display;
use std::fs::{self, File};
use std::future::pending;
use std::io;
use std::iter;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use tokio::time::MissedTickBehavior;

/// What a start, an end or a word may take on a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// How much of a log is shown when a test fails.
const SHOWN_LOG: usize = 6_000;
/// How often a fact is looked at while waiting for it.
const LOOK: Duration = Duration::from_millis(50);

/// A child process with a log.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    /// Where in the log its own words begin: those of the program that it takes the place of stand before.
    begins: usize,
}

impl Process {
    /// Starts `command`, its output appended to `folder/name.log`. It is killed when the calling thread ends.
    ///
    /// # Errors
    /// If the log cannot be opened, or the program not be started.
    pub fn start(name: &str, folder: &Path, command: &Command) -> io::Result<Self> {
        let log = folder.join(format!("{name}.log"));
        let output = File::options().create(true).append(true).open(&log)?;
        let begins = fs::read(&log)?.len();
        let mut guarded = Command::new("setpriv");
        guarded.args(["--pdeathsig", "KILL", "--"]).arg(command.get_program()).args(command.get_args());
        for (key, value) in command.get_envs() {
            match value {
                Some(value) => guarded.env(key, value),
                None => guarded.env_remove(key),
            };
        }
        if let Some(folder) = command.get_current_dir() {
            guarded.current_dir(folder);
        }
        let child = guarded.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).spawn()?;
        Ok(Self { name: name.to_owned(), child, log, begins })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(&mut self) {
        // An error means that it had ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// SIGTERM: asks it to end.
    pub fn terminate(&self) {
        // An error means that it had ended by itself.
        let _ = Command::new("kill").args(["-TERM", &self.pid().to_string()]).status();
    }

    /// Its exit status, if it has ended.
    #[must_use]
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Waits until it ends by itself.
    ///
    /// # Panics
    /// If it does not within `limit`.
    pub async fn end(&mut self, limit: Duration) -> ExitStatus {
        let what = format!("{} (pid {}) to end", self.name, self.pid());
        eventually(&what, limit, async || self.ended()).await
    }

    /// Everything it has said so far, without what was said under its name before it was started.
    #[must_use]
    pub fn log(&self) -> String {
        String::from_utf8_lossy(self.logs().get(self.begins..).unwrap_or_default()).into_owned()
    }

    /// What was said under its name, in all its starts.
    fn logs(&self) -> Vec<u8> {
        fs::read(&self.log).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if thread::panicking() {
            let log = self.logs();
            let end = &log[log.len().saturating_sub(SHOWN_LOG)..];
            eprintln!("---- end of the log of {}:\n{}", self.name, String::from_utf8_lossy(end));
        }
    }
}

/// Waits until `fact` gives something, by looking every 50 ms.
///
/// # Panics
/// If it still gives nothing after `limit`; the message says what was waited for.
pub async fn eventually<T>(what: &str, limit: Duration, mut fact: impl AsyncFnMut() -> Option<T>) -> T {
    eventually_or(what, limit, async || fact().await.ok_or("it has not come yet")).await
}

/// As [`eventually`], for a fact that can say what is still missing.
///
/// # Panics
/// If it is still missing after `limit`; the message says what, as the last look saw it.
pub async fn eventually_or<T, E: Display>(
    what: &str,
    limit: Duration,
    mut fact: impl AsyncFnMut() -> Result<T, E>,
) -> T {
    let mut looks = tokio::time::interval(LOOK);
    // Looks that come late are not made up for, one after the other: devices and brokers live in this thread too.
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut missing = None;
    let waiting = async {
        loop {
            looks.tick().await;
            match fact().await {
                Ok(found) => return found,
                Err(error) => missing = Some(error),
            }
        }
    };
    match tokio::time::timeout(limit, waiting).await {
        Ok(found) => found,
        Err(_) => {
            panic!("waited {limit:?} in vain for {what}: {}", missing.map_or_else(String::new, |m| m.to_string()))
        }
    }
}

/// Lets time pass: for what a fault *is* (a late answer, a scheduled cut), never to wait for a fact.
pub async fn pause(time: Duration) {
    let _ = tokio::time::timeout(time, pending::<()>()).await;
}

/// Sends a process a signal, as in `signal(pid, "-STOP")`.
///
/// # Panics
/// If it is not there.
pub fn signal(pid: u32, name: &str) {
    let sent = Command::new("kill").args([name, &pid.to_string()]).status();
    assert!(sent.is_ok_and(|status| status.success()), "{name} to {pid}");
}

/// A port on loopback that was free a moment ago, for programs that cannot be given port 0. It is none of those that the
/// kernel gives to others meanwhile.
///
/// # Panics
/// If the machine has no free port.
#[must_use]
pub fn free_port() -> u16 {
    let free = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    iter::repeat_with(|| fastrand::u16(10_000..32_768)).take(1_000).find(free).expect("loopback has a free port")
}

/// Whether somebody accepts connections there.
#[must_use]
pub fn listens(port: u16) -> bool {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    TcpStream::connect_timeout(&address, Duration::from_millis(500)).is_ok()
}

/// A binary of this workspace: from `TRIBUTARY_BIN_DIR` (where `tests/run` puts the release build of the agent), else built now.
///
/// # Panics
/// If it is not there, or cannot be built.
#[must_use]
pub fn binary(name: &str) -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let folder = match std::env::var_os("TRIBUTARY_BIN_DIR") {
        Some(folder) => PathBuf::from(folder),
        None => BUILT.get_or_init(build).clone(),
    };
    let path = folder.join(name);
    assert!(
        path.is_file(),
        "{} is not there: run tests/run, or unset TRIBUTARY_BIN_DIR to have it built",
        path.display()
    );
    path
}

/// Builds the binaries as they are now, so that no test ever runs an old one; gives their folder.
fn build() -> PathBuf {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    // Benchmarks measure what is shipped.
    let profile = if cfg!(debug_assertions) { "dev" } else { "release" };
    let output = Command::new(cargo)
        .args(["build", "--bins", "-p", "tributary", "-p", "tributary-receiver", "--message-format", "json"])
        .args(["--profile", profile])
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")))
        .output()
        .expect("cargo can be started");
    assert!(output.status.success(), "building the binaries: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter_map(|message| message["executable"].as_str().map(PathBuf::from))
        .find_map(|path| path.parent().map(Path::to_path_buf))
        .expect("cargo names what it built")
}

/// A program of the system: on the search path or where Debian keeps it.
///
/// # Panics
/// If it is not installed; the message says how to get it.
#[must_use]
pub fn program(name: &str, package: &str) -> PathBuf {
    let search = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&search).collect();
    folders.push("/usr/sbin".into());
    // PostgreSQL's server programs are not on the search path; the newest version wins.
    let mut versions: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .map(|entries| entries.filter_map(|entry| Some(entry.ok()?.path().join("bin"))).collect())
        .unwrap_or_default();
    versions.sort();
    folders.extend(versions.into_iter().rev());
    folders
        .into_iter()
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
        .unwrap_or_else(|| panic!("`{name}` is not installed: run tests/run once as root, or install {package}"))
}

/// A Python that has pymodbus: from `TRIBUTARY_PYTHON` (which `tests/run` sets), else the one on the search path.
///
/// # Panics
/// If it has no pymodbus.
#[must_use]
pub fn python() -> PathBuf {
    let python = std::env::var_os("TRIBUTARY_PYTHON").map_or_else(|| PathBuf::from("python3"), PathBuf::from);
    let found = Command::new(&python).args(["-c", "import pymodbus"]).output();
    assert!(
        found.is_ok_and(|output| output.status.success()),
        "{} has no pymodbus: run tests/run once, then set TRIBUTARY_PYTHON to the venv's bin/python it names",
        python.display()
    );
    python
}
