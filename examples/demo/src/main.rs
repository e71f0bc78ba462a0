//! The main job in one terminal: a simulated plant, an embedded broker, the real agent and the real receiver on SQLite.
//!
//! ```text
//! slaves ───Modbus TCP───▶ ┌───────┐ ──MQTT──▶ broker ──▶ receiver ──▶ SQLite
//! sensors ──▶ cell ─MQTT─▶ │ agent │ ◀──────── Ack ──────────┘           │
//!    │                     └───────┘                                     ▼
//!    └───── notes of what was answered and acknowledged ──────────────▶ proof
//! ```
//!
//! The one binary runs itself again for each part, so that a SIGKILL is real. Part-way a slave falls silent, the broker is
//! killed and stays away for a while, then the agent is killed; at the end everything is read back from the receiver's
//! database and held against what the plant itself wrote down. Exit code 1 if the law or the database disagrees.
//!
//! It needs nothing: no broker, no database, no network beyond loopback. It leaves nothing, unless told to `--keep`.
//!
//! | module | is |
//! |---|---|
//! | `story` | the course of it: start, break, stop |
//! | `parts` | brokers, agent and receiver as processes |
//! | `machines`, `plant`, `sensors` | the plant, which is also the witness |
//! | `gateway` | the agent's configuration |
//! | `narrator`, `view` | what a person reads |
//! | `proof` | database against notes |

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod gateway;
mod machines;
mod narrator;
mod parts;
mod plant;
mod proof;
mod sensors;
mod story;
mod view;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Shows Tributary's main job with everything embedded, breaks it on purpose, and proves that nothing went missing.
#[derive(Parser)]
#[command(name = "tributary-demo", version)]
struct Arguments {
    /// How long the plant runs, in seconds
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(15..=3_600))]
    seconds: u64,
    /// Print one JSON object with the figures and nothing else
    #[arg(long)]
    json: bool,
    /// Keep the working directory (configuration, spool, database, logs) and say where it is
    #[arg(long)]
    keep: bool,
    #[command(subcommand)]
    part: Option<Part>,
}

/// What the binary is when it runs itself.
#[derive(Subcommand)]
#[command(hide = true)]
enum Part {
    /// A broker.
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
    if arguments.part.is_some() {
        parts::end_with_the_parent();
    }
    match arguments.part {
        Some(Part::Broker { port }) => parts::broker(port),
        Some(Part::Agent { config }) => parts::agent(&config),
        Some(Part::Receiver { port, database }) => parts::receiver(port, &database),
        None => story::tell(arguments.seconds, arguments.json, arguments.keep),
    }
}
