//! The agent running.

use std::process::ExitCode;

use crate::config::Config;

/// Runs the agent until a signal.
#[must_use]
pub fn run(config: Config) -> ExitCode {
    let _ = config;
    ExitCode::FAILURE
}
