//! The main job in one terminal: a simulated plant, an embedded broker, the real agent and the real receiver on SQLite.
//!
//! The one binary runs itself again for each part, so that a SIGKILL is real. Part-way the broker is killed and stays
//! away for a while, then the agent is killed; at the end everything is read back from the receiver's database and held
//! against what the plant itself saw. Exit code 1 if the law or the database disagrees.
//!
//! Takes what it needs from nowhere: no broker, database or network beyond loopback.

mod parts;
mod plant;
mod proof;
mod story;
mod view;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Shows Tributary's main job with everything embedded, breaks it on purpose, and proves that nothing went missing.
#[derive(Parser)]
#[command(name = "tributary-demo", version)]
struct Arguments {
    /// How long the plant runs, 15 at the least
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Print one JSON object with the figures and nothing else
    #[arg(long)]
    json: bool,
    /// Keep the working directory and say where it is
    #[arg(long)]
    keep: bool,
    #[command(subcommand)]
    part: Option<Part>,
}

/// What the binary is when it runs itself.
#[derive(Subcommand)]
#[command(hide = true)]
enum Part {
    /// The broker.
    #[command(hide = true)]
    Broker {
        /// Its TCP port on loopback.
        port: u16,
    },
    /// The agent.
    #[command(hide = true)]
    Agent {
        /// Its configuration.
        config: PathBuf,
    },
    /// The receiver.
    #[command(hide = true)]
    Receiver {
        /// The broker's port.
        port: u16,
        /// The database.
        database: PathBuf,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match arguments.part {
        Some(Part::Broker { port }) => parts::broker(port),
        Some(Part::Agent { config }) => parts::agent(&config),
        Some(Part::Receiver { port, database }) => parts::receiver(port, &database),
        None => story::tell(arguments.seconds.max(15), arguments.json, arguments.keep),
    }
}
