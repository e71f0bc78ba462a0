//! The parts as processes: what each is, and how it is started, killed and asked to stop.
//!
//! A part is ended by its own process id only, and at the latest when its handle is dropped.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

/// A port of loopback that nobody holds now.
///
/// # Errors
/// The system has none.
pub(crate) fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// A running part.
pub(crate) struct Process {
    child: Child,
    arguments: Vec<String>,
    log: PathBuf,
}

impl Process {
    /// Runs this very binary as another part; what it logs goes to `log`.
    ///
    /// # Errors
    /// It cannot be started.
    pub(crate) fn start(arguments: Vec<String>, log: PathBuf) -> io::Result<Self> {
        let file = File::options().create(true).append(true).open(&log)?;
        let child = Command::new(std::env::current_exe()?)
            .args(&arguments)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()?;
        Ok(Self { child, arguments, log })
    }

    /// SIGKILL: no warning, no last word.
    ///
    /// # Errors
    /// Those of the system.
    pub(crate) fn kill(&mut self) -> io::Result<()> {
        self.child.kill()?;
        self.child.wait().map(drop)
    }

    /// Starts it anew, as it was.
    ///
    /// # Errors
    /// It cannot be started.
    pub(crate) fn restart(&mut self) -> io::Result<()> {
        *self = Self::start(self.arguments.clone(), self.log.clone())?;
        Ok(())
    }

    /// SIGTERM: a clean stop.
    ///
    /// # Errors
    /// No such command, or no such process.
    pub(crate) fn ask_to_stop(&self) -> io::Result<()> {
        let status = Command::new("kill").arg(self.child.id().to_string()).status()?;
        if status.success() { Ok(()) } else { Err(io::Error::other("the process could not be asked to stop")) }
    }

    /// Whether it has ended, and how.
    ///
    /// # Errors
    /// Those of the system.
    pub(crate) fn ended(&mut self) -> io::Result<Option<i32>> {
        Ok(self.child.try_wait()?.map(|status| status.code().unwrap_or(-1)))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The broker: rumqttd with one listener on loopback, messages up to 8 MB.
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
    let path = config.display().to_string();
    tributary::cli::Cli::parse_from(["tributary", "run", "-c", &path]).run()
}

/// The receiver on SQLite, until it is told to stop.
pub(crate) fn receiver(port: u16, database: &Path) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed("receiver", &error),
    };
    let (broker, store) = (format!("mqtt://127.0.0.1:{port}"), format!("sqlite:{}", database.display()));
    let config = match tributary_receiver::Config::load(&broker, &store, None) {
        Ok(config) => config,
        Err(error) => return failed("receiver", &error),
    };
    let outcome = runtime.block_on(async {
        use tokio::signal::unix::{SignalKind, signal};
        let mut terminate = match signal(SignalKind::terminate()) {
            Ok(terminate) => terminate,
            Err(error) => return Err(error.to_string()),
        };
        let stop = async move {
            terminate.recv().await;
        };
        tributary_receiver::run(config, stop).await.map_err(|error| error.to_string())
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed("receiver", &error),
    }
}

fn failed(part: &str, error: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("{part}: {error}");
    ExitCode::FAILURE
}
