//! The command: what it exits with, and how soon.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Command, Stdio};

fn receiver(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tributary-receiver"));
    command.args(arguments);
    command
}

#[test]
fn a_bad_configuration_exits_with_78_and_says_what_would_be_right() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("receiver.toml");
    std::fs::write(&file, "group = \"x\"\nprefix = \"edge/+\"\n").unwrap();
    let file = file.to_str().unwrap();
    let nonsense = directory.path().join("nonsense.db");
    std::fs::write(&nonsense, "this is no database, though it is long enough to be one").unwrap();
    let nonsense = format!("sqlite:{}", nonsense.display());
    for (arguments, wanted) in [
        (&["run", "--broker", "http://x", "--store", "sqlite:x.db"][..], "--broker: \"http://x\": must be mqtt://"),
        (&["run", "--broker", "mqtt://x", "--store", "oracle:x"], "--store: must be sqlite:FILE or postgres://"),
        (
            &["run", "--broker", "mqtt://x", "--store", "sqlite:x.db", "-c", file],
            "receiver.toml:2:10: prefix: must be levels",
        ),
        (
            &["run", "--broker", "mqtt://x", "--store", "sqlite:x.db", "-c", "/nowhere.toml"],
            "/nowhere.toml: No such file",
        ),
        (&["run", "--broker", "mqtt://x", "--store", &nonsense], "--store: SQLite: file is not a database"),
        (&["run", "--broker", "mqtt://x"], "--store"),
    ] {
        let output = receiver(arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(78), "{arguments:?}: {said}");
        assert!(said.contains(wanted), "{arguments:?}: {said}");
    }
    assert_eq!(receiver(&["--version"]).output().unwrap().status.code(), Some(0));
}

#[test]
fn sigterm_and_sigint_end_it_with_0() {
    let directory = tempfile::tempdir().unwrap();
    let store = format!("sqlite:{}", directory.path().join("centre.db").display());
    // A port that nobody listens on: it says so, then waits.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    for signal in ["-TERM", "-INT"] {
        let broker = format!("mqtt://127.0.0.1:{port}");
        let mut child =
            receiver(&["run", "--broker", &broker, "--store", &store]).stderr(Stdio::piped()).spawn().unwrap();
        let mut said = String::new();
        BufReader::new(child.stderr.take().unwrap()).read_line(&mut said).unwrap();
        assert!(said.contains("no connection to the broker"), "{said}");
        assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
        assert_eq!(child.wait().unwrap().code(), Some(0), "{signal}");
    }
}
