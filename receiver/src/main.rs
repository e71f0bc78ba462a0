//! `tributary-receiver run --broker URL --store sqlite:FILE|postgres://… [-c FILE]`: arguments, log, signals, exit code.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use tributary_receiver::{Config, RunError, run};

/// Bad configuration (sysexits.h, EX_CONFIG).
const BAD_CONFIGURATION: u8 = 78;

/// The centre's side of Tributary: commits what agents send and acknowledges it.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Receives until SIGTERM or SIGINT.
    Run {
        /// mqtt://HOST[:PORT] or mqtts://HOST[:PORT]
        #[arg(long, value_name = "URL")]
        broker: String,
        /// sqlite:FILE or postgres://USER@HOST:PORT/DATABASE
        #[arg(long)]
        store: String,
        /// TOML with prefix, group, ca, cert, key, username, password_file
        #[arg(short, long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// error, warn, info, debug or trace
        #[arg(long, value_name = "LEVEL", default_value = "info")]
        log: tracing::Level,
    },
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            drop(error.print());
            return ExitCode::from(if error.use_stderr() { BAD_CONFIGURATION } else { 0 });
        }
    };
    let Command::Run { broker, store, config, log } = arguments.command;
    let colour = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(colour).with_max_level(log).init();
    let config = match Config::load(&broker, &store, config.as_deref()) {
        Ok(config) => config,
        Err(error) => return fail(&error.into()),
    };
    match receive(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

fn receive(config: Config) -> Result<(), RunError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let shutdown = async {
            tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        };
        run(config, shutdown).await
    })
}

fn fail(error: &RunError) -> ExitCode {
    eprintln!("tributary-receiver: {error}");
    ExitCode::from(if matches!(error, RunError::Config(_)) { BAD_CONFIGURATION } else { 1 })
}
