//! The command `tributary`: arguments in, exit code out. Everything else is in the library.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    tributary::cli::Cli::parse().run()
}
