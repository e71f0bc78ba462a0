//! `tributary schema`: the JSON Schema of a file, for editors that complete and check while one types.
//!
//! `#:schema ./config.schema.json` as a TOML file's first line names it to them. The texts are made from the types that
//! the agent reads, by a test (`config/schema.rs`), and only printed here: making them would be a tenth of the binary.

use std::process::ExitCode;

use clap::ValueEnum;

/// Of which file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Of {
    /// The agent's configuration
    Config,
    /// A device profile
    Profile,
}

pub(super) fn schema(of: Of) -> ExitCode {
    print!(
        "{}",
        match of {
            Of::Config => include_str!("../../schema/config.schema.json"),
            Of::Profile => include_str!("../../schema/profile.schema.json"),
        }
    );
    ExitCode::SUCCESS
}
