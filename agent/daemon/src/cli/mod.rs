//! The commands: what is typed, what is printed, how it ends.
//!
//! Exit codes: 0 done; 1 the agent is not running, or `run` failed; 2 wrong arguments; 78 (`EX_CONFIG`) a configuration
//! that cannot be used, after which systemd does not try again. Errors go to stderr.

mod check;
mod enroll;
mod import;
mod line;
mod plan;
mod probe;
mod scan;
mod schema;
mod seed;
mod simulate;
mod spool;
mod status;
mod support;
mod watch;

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::{Config, Occasion, load};
use crate::log;

/// `EX_CONFIG` of sysexits.h; the unit's `RestartPreventExitStatus`.
pub const BAD_CONFIGURATION: u8 = 78;

/// Polls Modbus and MQTT devices, keeps every reading until the centre has it, and accounts for each one.
#[derive(Debug, Parser)]
#[command(name = "tributary", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the agent until SIGTERM or SIGINT
    Run(FileArg),
    /// Check a configuration without touching a device
    Check {
        /// The configuration.
        #[command(flatten)]
        file: FileArg,
        /// Print what was found as JSON
        #[arg(long)]
        json: bool,
        /// Also print the requests of each bus and its load
        #[arg(long)]
        plan: bool,
    },
    /// Make this device's key, ask for its certificate, and take it
    Enroll(enroll::EnrollArgs),
    /// Turn a foreign device map into a profile, and say what it does not express
    Import(import::ImportArgs),
    /// Read registers of a device and show every way they can be meant
    Probe(Box<probe::ProbeArgs>),
    /// Find the units of a bus, and what they say they are
    Scan(Box<scan::ScanArgs>),
    /// Print the JSON Schema of a configuration or a profile, for editors
    Schema {
        /// Of which file
        of: schema::Of,
    },
    /// Take the first configuration from a file on the boot partition
    Seed(seed::SeedArgs),
    /// Serve the configured devices as Modbus slaves, for tests without hardware
    Simulate(simulate::SimulateArgs),
    /// Look into the spool of a stopped agent, or into a copy of one
    Spool(spool::SpoolArgs),
    /// Ask the running agent how it is
    Status {
        /// The configuration.
        #[command(flatten)]
        file: FileArg,
        /// Print the status as JSON
        #[arg(long)]
        json: bool,
        /// Ask again every second
        #[arg(long)]
        watch: bool,
    },
    /// Put all that helps to find a fault into one archive, without secrets
    Support(support::SupportArgs),
    /// Show live values of the running agent
    Watch(watch::WatchArgs),
}

/// `-c FILE`.
#[derive(Clone, Debug, Args)]
pub struct FileArg {
    /// The configuration, a TOML file
    #[arg(short, long = "config", value_name = "FILE")]
    pub config: PathBuf,
}

impl Cli {
    /// Does it.
    #[must_use]
    pub fn run(self) -> ExitCode {
        match self.command {
            Command::Run(file) => match load_or_tell(&file, Occasion::Run) {
                Some(config) => {
                    log::to_stderr(&config.agent.log);
                    crate::run::run(config)
                }
                None => ExitCode::from(BAD_CONFIGURATION),
            },
            Command::Check { file, json, plan } => check::check(&file.config, json, plan),
            Command::Enroll(args) => enroll::enroll(&args),
            Command::Import(args) => import::import(&args),
            Command::Probe(args) => probe::probe(&args),
            Command::Scan(args) => scan::scan(&args),
            Command::Schema { of } => schema::schema(of),
            Command::Seed(args) => seed::seed(&args),
            Command::Simulate(args) => simulate::simulate(&args),
            Command::Support(args) => support::support(&args),
            Command::Watch(args) => watch::watch(&args),
            Command::Spool(args) => spool::spool(&args),
            Command::Status { file, json, watch } => {
                let (config, report) = load(&file.config, Occasion::Beside);
                // An agent runs on under what it was started with, whatever has become of the file since.
                let runs_on = || crate::config::socket(&file.config).filter(|path| UnixStream::connect(path).is_ok());
                match config.map(|config| config.agent.socket()).or_else(runs_on) {
                    Some(socket) => status::status(&socket, json, watch),
                    None => {
                        report.tell();
                        ExitCode::from(BAD_CONFIGURATION)
                    }
                }
            }
        }
    }
}

/// The configuration, or its faults on stderr. Warnings are for `check`, and for the log of `run`.
fn load_or_tell(file: &FileArg, occasion: Occasion) -> Option<Config> {
    let (config, mut report) = load(&file.config, occasion);
    if occasion != Occasion::Run && config.is_some() {
        report.warnings.clear();
    }
    report.tell();
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
