//! Man pages and completions are made for every command.
#![allow(clippy::unwrap_used)]

use std::fs;

use clap::CommandFactory;
use tributary::cli::Cli;

#[path = "../examples/manual.rs"]
#[allow(dead_code, reason = "its main is not run here")]
mod manual;

#[test]
fn every_command_has_a_page_and_is_completed() {
    let folder = tempfile::tempdir().unwrap();
    manual::write(folder.path()).unwrap();
    let read = |file: &str| fs::read_to_string(folder.path().join(file)).unwrap();
    let shells = [read("bash/tributary"), read("zsh/_tributary"), read("fish/tributary.fish")];
    let command = Cli::command();
    let commands: Vec<&str> = command.get_subcommands().map(|command| command.get_name()).collect();
    for name in ["run", "check", "status", "probe", "scan", "watch", "simulate", "import", "schema"] {
        assert!(commands.contains(&name), "there is no {name}");
    }
    for name in commands {
        assert!(read(&format!("man/man1/tributary-{name}.1")).contains(".SH SYNOPSIS"), "{name}");
        for shell in &shells {
            assert!(shell.contains(name), "{name}");
        }
    }
    assert!(read("man/man1/tributary.1").contains("tributary"));
}
