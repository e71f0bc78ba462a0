//! The parts as processes: what each is, and how it is started, killed and asked to stop.
//!
//! A part ends when its handle is dropped, by its own process id; and, through a pipe that it reads, when the demo itself
//! is gone, however that came. It has a process group of its own, so that Ctrl-C reaches the demo alone.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process};

/// Lines of a part's log that are shown when something went wrong.
const LAST_LINES: usize = 12;

/// A port of loopback that nobody holds now.
///
/// # Errors
/// The system has none.
pub(crate) fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// A part.
pub(crate) struct Process {
    name: &'static str,
    arguments: Vec<String>,
    log: PathBuf,
    child: Child,
    /// It was killed, or asked to stop.
    unwanted: bool,
}

impl Process {
    /// Runs this very binary as another part; what it logs goes to `NAME.log` in `folder`.
    ///
    /// # Errors
    /// It cannot be started.
    pub(crate) fn start(name: &'static str, arguments: Vec<String>, folder: &Path) -> io::Result<Self> {
        let log = folder.join(format!("{name}.log"));
        let child = spawn(&arguments, &log)?;
        Ok(Self { name, arguments, log, child, unwanted: false })
    }

    /// SIGKILL: no warning, no last word.
    ///
    /// # Errors
    /// Those of the system.
    pub(crate) fn kill(&mut self) -> io::Result<()> {
        self.unwanted = true;
        self.child.kill()?;
        self.child.wait().map(drop)
    }

    /// Starts it anew, as it was.
    ///
    /// # Errors
    /// It cannot be started.
    pub(crate) fn restart(&mut self) -> io::Result<()> {
        self.child = spawn(&self.arguments, &self.log)?;
        self.unwanted = false;
        Ok(())
    }

    /// SIGTERM: a clean stop.
    ///
    /// # Errors
    /// It is gone.
    pub(crate) fn ask_to_stop(&mut self) -> io::Result<()> {
        self.unwanted = true;
        Ok(kill_process(Pid::from_child(&self.child), Signal::TERM)?)
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// Those of the system.
    pub(crate) fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// That it runs, unless it is not wanted.
    ///
    /// # Errors
    /// It has ended unasked.
    pub(crate) fn look(&mut self) -> anyhow::Result<()> {
        match self.ended()? {
            Some(status) if !self.unwanted => anyhow::bail!("the {} has ended unasked: {status}", self.name),
            _ => Ok(()),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // An error says that it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The end of each part's log, for a person who has to find out what went wrong.
pub(crate) fn last_words(folder: &Path) -> String {
    let mut words = String::new();
    for name in ["broker", "cell", "receiver", "agent"] {
        let text = std::fs::read_to_string(folder.join(format!("{name}.log"))).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        let last = lines.get(lines.len().saturating_sub(LAST_LINES)..).unwrap_or_default();
        words.extend(last.iter().map(|line| format!("{name}: {line}\n")));
    }
    words
}

fn spawn(arguments: &[String], log: &Path) -> io::Result<Child> {
    let log = File::options().create(true).append(true).open(log)?;
    Command::new(std::env::current_exe()?)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0)
        .spawn()
}

/// Ends this process when the other end of its standard input is closed.
pub(crate) fn end_with_the_parent() {
    std::thread::spawn(|| {
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        std::process::exit(1);
    });
}

/// The broker: rumqttd with one listener on loopback, messages up to 8 MB. It keeps everything in memory.
pub(crate) fn broker(port: u16) -> ExitCode {
    let config = format!(
        r#"
        id = 0
        [router]
        id = 0
        max_connections = 32
        max_outgoing_packet_count = 200
        max_segment_size = 16777216
        max_segment_count = 8
        [v4.1]
        name = "v4"
        listen = "127.0.0.1:{port}"
        next_connection_delay_ms = 1
        [v4.1.connections]
        connection_timeout_ms = 10000
        max_payload_size = 8388608
        max_inflight_count = 200
        dynamic_filters = true
        "#
    );
    let config = match toml::from_str(&config) {
        Ok(config) => config,
        Err(error) => return failed("broker", &error),
    };
    match rumqttd::Broker::new(config).start() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed("broker", &error),
    }
}

/// The agent, as its own command runs it.
pub(crate) fn agent(config: &Path) -> ExitCode {
    use clap::Parser;
    let words = ["tributary".as_ref(), "run".as_ref(), "-c".as_ref(), config.as_os_str()];
    tributary::cli::Cli::parse_from(words).run()
}

/// The receiver on SQLite, until it is told to stop.
pub(crate) fn receiver(port: u16, database: &Path) -> ExitCode {
    tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_ansi(false)
        .with_max_level(tracing_subscriber::filter::LevelFilter::INFO)
        .init();
    let (broker, store) = (format!("mqtt://127.0.0.1:{port}"), format!("sqlite:{}", database.display()));
    let config = match tributary_receiver::Config::load(&broker, &store, None) {
        Ok(config) => config,
        Err(error) => return failed("receiver", &error),
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed("receiver", &error),
    };
    // The demo ends it by a kill: that is what it must bear.
    match runtime.block_on(tributary_receiver::run(config, std::future::pending())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed("receiver", &error),
    }
}

fn failed(part: &str, error: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("{part}: {error}");
    ExitCode::FAILURE
}
