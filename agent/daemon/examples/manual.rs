//! Writes the man pages and shell completions of `tributary` into a folder: what packages ship beside the binary.
//!
//! ```text
//! cargo run -p tributary --example manual -- DIR
//!     DIR/man/man1/tributary.1, tributary-check.1, …
//!     DIR/bash/tributary    DIR/zsh/_tributary    DIR/fish/tributary.fish
//! ```
//! An example and not a command: the binary on the gateway does not carry what makes it.

use std::fs;
use std::io;
use std::path::Path;

use clap::CommandFactory;
use clap_complete::Shell;
use tributary::cli::Cli;

fn main() -> io::Result<()> {
    let folder = std::env::args().nth(1).ok_or_else(|| io::Error::other("into which folder? manual DIR"))?;
    write(Path::new(&folder))
}

/// Writes all of it.
pub(crate) fn write(folder: &Path) -> io::Result<()> {
    let man = folder.join("man/man1");
    fs::create_dir_all(&man)?;
    clap_mangen::generate_to(Cli::command(), &man)?;
    for (shell, name) in [(Shell::Bash, "bash"), (Shell::Zsh, "zsh"), (Shell::Fish, "fish")] {
        let folder = folder.join(name);
        fs::create_dir_all(&folder)?;
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut Cli::command(), "tributary", &mut text);
        let file = match shell {
            Shell::Zsh => "_tributary",
            Shell::Fish => "tributary.fish",
            _ => "tributary",
        };
        fs::write(folder.join(file), text)?;
    }
    Ok(())
}
