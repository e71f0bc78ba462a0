//! The agent and the receiver as their users run them: the binaries, a configuration file, signals.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use serde_json::Value;

use crate::process::{PATIENCE, Process, binary, eventually, signal};

/// Site of every agent of the tests.
pub const SITE: &str = "plant-1";

/// A configuration, written piece by piece.
#[derive(Clone, Debug)]
pub struct Configuration {
    agent: String,
    head: String,
    rest: String,
}

impl Configuration {
    /// For an agent of that id that sends to `broker`. Sends and commits often, reconnects within a second.
    #[must_use]
    pub fn new(agent: &str, broker: &str) -> Self {
        let head = format!(
            "[uplink]\nurl = \"{broker}\"\nreconnect_max = \"1s\"\n[batch]\nmax_age = \"100ms\"\n[spool]\ncommit = \"100ms\"\n"
        );
        Self { agent: agent.to_owned(), head, rest: String::new() }
    }

    /// Replaces the sections `[uplink]`, `[batch]`, `[spool]`.
    #[must_use]
    pub fn with_head(mut self, head: &str) -> Self {
        head.clone_into(&mut self.head);
        self
    }

    /// Adds a Modbus TCP bus.
    #[must_use]
    pub fn bus(mut self, name: &str, address: SocketAddr, timeout: &str) -> Self {
        // Writing to a String cannot fail; the same holds below.
        let _ = writeln!(self.rest, "[[bus]]\nname = \"{name}\"\ntcp = \"{address}\"\ntimeout = \"{timeout}\"");
        self
    }

    /// Adds a device on a bus; points follow.
    #[must_use]
    pub fn device(mut self, name: &str, bus: &str, unit: u8, period: &str) -> Self {
        let _ = writeln!(
            self.rest,
            "[[device]]\nname = \"{name}\"\nbus = \"{bus}\"\nunit_id = {unit}\naddressing = \"zero\"\norder = \"ABCD\"\n\
             period = \"{period}\""
        );
        self
    }

    /// Adds a point to the device before.
    #[must_use]
    pub fn point(mut self, name: &str, table: &str, address: u16, ty: &str) -> Self {
        let _ = writeln!(
            self.rest,
            "[[device.point]]\nname = \"{name}\"\ntable = \"{table}\"\naddress = {address}\ntype = \"{ty}\"\nunit = \"1\""
        );
        self
    }

    /// Adds anything else.
    #[must_use]
    pub fn toml(mut self, text: &str) -> Self {
        self.rest.push_str(text);
        self
    }

    /// Writes it as `agent.toml` of an agent that keeps its state in `folder`, which is made; gives its path.
    ///
    /// # Errors
    /// If the folder cannot be written.
    pub fn write(&self, folder: &Path) -> io::Result<PathBuf> {
        fs::create_dir_all(folder.join("state"))?;
        let config = folder.join("agent.toml");
        fs::write(&config, self.render(folder))?;
        Ok(config)
    }

    /// The machine's clock is trusted: without that the polls missed while the agent was down cannot be counted
    /// (contract rule 9), and machines that run tests often have no time daemon.
    fn render(&self, folder: &Path) -> String {
        let state = folder.join("state");
        format!(
            "[agent]\nsite = \"{SITE}\"\nid = \"{}\"\nstate_dir = \"{}\"\ntime_sync = \"trust\"\n{}{}",
            self.agent,
            state.display(),
            self.head,
            self.rest
        )
    }
}

/// `tributary run`, with its state in a folder of its own.
#[derive(Debug)]
pub struct Agent {
    folder: PathBuf,
    config: PathBuf,
    process: Process,
    starts: u32,
}

impl Agent {
    /// Starts one. It keeps its state in `folder`, which outlives it.
    ///
    /// # Errors
    /// If the folder cannot be written.
    ///
    /// # Panics
    /// If the binary is not there.
    pub fn start(folder: &Path, configuration: &Configuration) -> io::Result<Self> {
        let config = configuration.write(folder)?;
        let process = launch(folder, &config, Command::new(binary("tributary")))?;
        Ok(Self { folder: folder.to_path_buf(), config, process, starts: 1 })
    }

    /// The same, where `/etc/hosts` is that file and nobody is asked for other names: in a mount namespace of its own.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_among(folder: &Path, configuration: &Configuration, hosts: &Path) -> io::Result<Self> {
        let config = configuration.write(folder)?;
        let mut command = Command::new("unshare");
        command.args(["--map-root-user", "--mount", "sh", "-c", AMONG, "sh"]).arg(hosts).arg(binary("tributary"));
        let process = launch(folder, &config, command)?;
        Ok(Self { folder: folder.to_path_buf(), config, process, starts: 1 })
    }

    /// The same, in the environment that the service gives it (`systemd/tributary.service`).
    ///
    /// # Errors
    /// As [`start`](Self::start); the unit cannot be read.
    pub fn start_as_service(folder: &Path, configuration: &Configuration) -> io::Result<Self> {
        Self::start_under(folder, configuration, &[])
    }

    /// The same, by a program that limits it and then becomes it: `prlimit …`, `setpriv …`.
    ///
    /// # Errors
    /// As [`start_as_service`](Self::start_as_service).
    pub fn start_under(folder: &Path, configuration: &Configuration, limits: &[&str]) -> io::Result<Self> {
        let unit = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../systemd/tributary.service"))?;
        let lines = unit.lines().filter_map(|line| line.strip_prefix("Environment="));
        let environment: Vec<_> = lines.flat_map(str::split_whitespace).filter_map(|set| set.split_once('=')).collect();
        let config = configuration.write(folder)?;
        let mut command = limits.split_first().map_or_else(
            || Command::new(binary("tributary")),
            |(program, rest)| {
                let mut command = Command::new(program);
                command.args(rest).arg(binary("tributary"));
                command
            },
        );
        command.envs(environment);
        let process = launch(folder, &config, command)?;
        Ok(Self { folder: folder.to_path_buf(), config, process, starts: 1 })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it again with what it left.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn restart(&mut self) -> io::Result<()> {
        self.process = launch(&self.folder, &self.config, Command::new(binary("tributary")))?;
        self.starts += 1;
        Ok(())
    }

    /// Writes another configuration and sends SIGHUP.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn reload(&self, configuration: &Configuration) -> io::Result<()> {
        configuration.write(&self.folder)?;
        signal(self.pid(), "-HUP");
        Ok(())
    }

    /// How often it was started.
    #[must_use]
    pub fn starts(&self) -> u32 {
        self.starts
    }

    /// SIGTERM, and waits for its end.
    ///
    /// # Panics
    /// If it does not end within a minute.
    pub async fn stop(&mut self) -> ExitStatus {
        self.process.terminate();
        self.process.end(PATIENCE).await
    }

    /// Asserts that it is alive: it has not panicked, nor given up.
    ///
    /// # Panics
    /// If it has ended.
    pub fn assert_alive(&mut self) {
        if let Some(status) = self.process.ended() {
            panic!("the agent ended by itself: {status}");
        }
    }

    /// Its exit status, if it has ended.
    #[must_use]
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.process.ended()
    }

    /// What `tributary status --json` says; `None` while it cannot be reached.
    #[must_use]
    pub fn status(&self) -> Option<Value> {
        let output =
            Command::new(binary("tributary")).args(["status", "--json", "-c"]).arg(&self.config).output().ok()?;
        output.status.success().then(|| serde_json::from_slice(&output.stdout).ok())?
    }

    /// Everything it has logged since it was last started.
    #[must_use]
    pub fn log(&self) -> String {
        self.process.log()
    }
}

/// Mounts its own files over what names are looked up in, then becomes the program.
const AMONG: &str = "mount --bind \"$1\" /etc/hosts && mount --bind /dev/null /etc/resolv.conf && shift && \
                     exec setpriv --pdeathsig KILL -- \"$@\"";

fn launch(folder: &Path, config: &Path, mut command: Command) -> io::Result<Process> {
    command.args(["run", "-c"]).arg(config).env("RUST_BACKTRACE", "1");
    Process::start("agent", folder, &command)
}

/// `tributary-receiver run`.
#[derive(Debug)]
pub struct Receiver {
    name: String,
    folder: PathBuf,
    broker: String,
    store: String,
    process: Process,
}

impl Receiver {
    /// Starts one between a broker and a store (`sqlite:FILE` or `postgres://…`); its log goes to `folder/name.log`.
    ///
    /// # Errors
    /// If it cannot be started.
    ///
    /// # Panics
    /// If the binary is not there.
    pub fn start(name: &str, folder: &Path, broker: &str, store: &str) -> io::Result<Self> {
        let process = launch_receiver(name, folder, broker, store)?;
        let (broker, store) = (broker.to_owned(), store.to_owned());
        Ok(Self { name: name.to_owned(), folder: folder.to_path_buf(), broker, store, process })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it again.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn restart(&mut self) -> io::Result<()> {
        self.process = launch_receiver(&self.name, &self.folder, &self.broker, &self.store)?;
        Ok(())
    }

    /// Asserts that it is alive.
    ///
    /// # Panics
    /// If it has ended.
    pub fn assert_alive(&mut self) {
        if let Some(status) = self.process.ended() {
            panic!("{} ended by itself: {status}", self.name);
        }
    }

    /// SIGTERM, and waits for its end.
    ///
    /// # Panics
    /// If it does not end within a minute.
    pub async fn stop(&mut self) -> ExitStatus {
        self.process.terminate();
        eventually("the receiver to end", PATIENCE, async || self.process.ended()).await
    }
}

fn launch_receiver(name: &str, folder: &Path, broker: &str, store: &str) -> io::Result<Process> {
    let mut command = Command::new(binary("tributary-receiver"));
    command.args(["run", "--broker", broker, "--store", store]).env("RUST_BACKTRACE", "1");
    Process::start(name, folder, &command)
}
