//! Replays a walk-through: the commands that a README tells people to type are typed, and must answer as it says.
//!
//! Of the Markdown only two kinds of blocks count:
//!
//! ````text
//! ```toml meter.toml          a file of that name in the walk's folder
//! ```console                  `$ COMMAND`, then what it prints
//! ````
//!
//! A command that ends in `&` stays in the background until the walk ends; any other is typed again while a line is
//! missing. Expected lines must come in this order, other lines may stand between them; in a line `…` stands for anything,
//! and runs of spaces are alike. Every `127.0.0.1:PORT` becomes a port that is free, the same one wherever it stands. The
//! shell is `sh`; `tributary` is the binary under test.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::process::{Process, binary, eventually_or, free_port};

/// What one command may take on a loaded machine, until it prints what it should.
const PATIENCE: Duration = Duration::from_secs(60);

/// One step of a walk.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    File { name: String, text: String },
    Command { line: String, expected: Vec<String> },
}

/// Walks through `markdown` in `folder`. Gives the number of commands.
///
/// # Errors
/// A command that cannot be started, fails, or prints something else: which, and what it printed.
pub async fn walk(markdown: &str, folder: &Path) -> Result<usize, String> {
    let steps = steps(&with_free_ports(markdown));
    let mut background: Vec<Process> = Vec::new();
    let mut count = 0;
    for step in steps {
        match step {
            Step::File { name, text } => {
                fs::write(folder.join(&name), text).map_err(|error| format!("{name}: {error}"))?;
            }
            Step::Command { line, expected } => {
                count += 1;
                run(&line, &expected, folder, &mut background).await?;
            }
        }
    }
    Ok(count)
}

async fn run(line: &str, expected: &[String], folder: &Path, background: &mut Vec<Process>) -> Result<(), String> {
    let tributary = binary("tributary");
    let search = std::env::var_os("PATH").unwrap_or_default();
    let folders = tributary.parent().map(Path::to_path_buf).into_iter().chain(std::env::split_paths(&search));
    let search = std::env::join_paths(folders).map_err(|error| error.to_string())?;
    let mut command = Command::new("sh");
    command.current_dir(folder).env("PATH", search).env("NO_COLOR", "1");
    if let Some(line) = line.strip_suffix('&') {
        // exec: the signal at the end must reach the program itself.
        command.args(["-c", &format!("exec {line}")]);
        let name = format!("background-{}", background.len());
        let process = Process::start(&name, folder, &command).map_err(|error| format!("{line}: {error}"))?;
        let missing = async || missing(expected, &process.log()).map_or(Ok(()), |line| Err(format!("{line:?}")));
        eventually_or(&format!("what `{line}` prints"), PATIENCE, missing).await;
        background.push(process);
        return Ok(());
    }
    command.args(["-c", line]).stdin(Stdio::null());
    let mut command = tokio::process::Command::from(command);
    command.kill_on_drop(true);
    // What a device has just said or not said may be the work of a busy machine: a person would type the command again.
    let mut wrong = format!("`{line}` did not end");
    let typed = async {
        loop {
            let output = command.output().await.map_err(|error| format!("`{line}`: {error}"))?;
            let said = [output.stdout.as_slice(), output.stderr.as_slice()].map(String::from_utf8_lossy).concat();
            match missing(expected, &said) {
                Some(missing) => {
                    wrong = format!("`{line}` ({}) does not print {missing:?}, but:\n{said}", output.status);
                }
                None if output.status.success() || line.contains("||") => return Ok(()),
                None => return Err(format!("`{line}` fails ({}):\n{said}", output.status)),
            }
        }
    };
    match tokio::time::timeout(PATIENCE, typed).await {
        Ok(ended) => ended,
        Err(_) => Err(wrong),
    }
}

/// The first expected line that does not come in its turn.
fn missing<'e>(expected: &'e [String], said: &str) -> Option<&'e str> {
    let mut lines = said.lines();
    expected.iter().map(String::as_str).find(|wanted| !lines.any(|line| alike(wanted, line)))
}

/// Whether `line` is `wanted`, in which `…` stands for anything.
fn alike(wanted: &str, line: &str) -> bool {
    let even = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let (wanted, line) = (even(wanted), even(line));
    let mut rest = line.as_str();
    let pieces: Vec<&str> = wanted.split('…').map(str::trim).collect();
    for (n, piece) in pieces.iter().enumerate() {
        let Some(at) = rest.find(piece) else { return false };
        if n == 0 && at > 0 {
            return false;
        }
        rest = &rest[at + piece.len()..];
    }
    rest.is_empty() || pieces.last().is_some_and(|last| last.is_empty() || line.ends_with(last))
}

/// Files and commands, in their order.
fn steps(markdown: &str) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut lines = markdown.lines();
    while let Some(line) = lines.next() {
        let Some(fence) = line.trim_start().strip_prefix("```") else { continue };
        let indent = line.len() - line.trim_start().len();
        let block: Vec<&str> = lines
            .by_ref()
            .take_while(|line| !line.trim_start().starts_with("```"))
            .map(|line| line.get(indent..).unwrap_or(""))
            .collect();
        match fence.split_once(' ') {
            Some((_, name)) if !name.contains(char::is_whitespace) => {
                steps.push(Step::File { name: name.to_owned(), text: block.join("\n") + "\n" });
            }
            _ if fence == "console" => {
                for line in block {
                    match (line.strip_prefix("$ "), steps.last_mut()) {
                        (Some(command), _) => {
                            steps.push(Step::Command { line: command.trim().to_owned(), expected: Vec::new() });
                        }
                        (None, Some(Step::Command { expected, .. })) if !line.trim().is_empty() => {
                            expected.push(line.to_owned());
                        }
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    steps
}

/// Each `127.0.0.1:PORT` with a port that is free now.
fn with_free_ports(text: &str) -> String {
    const HOST: &str = "127.0.0.1:";
    let mut ports: BTreeMap<&str, u16> = BTreeMap::new();
    let mut pieces = text.split(HOST);
    let mut out = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let (port, rest) = piece.split_at(piece.bytes().take_while(u8::is_ascii_digit).count());
        out += HOST;
        if !port.is_empty() {
            out += &ports.entry(port).or_insert_with(free_port).to_string();
        }
        out += rest;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_become_steps() {
        let text = "# A\n```toml a.toml\nx = 1\n```\n```text\n$ no\n```\n```console\n$ one &\nready\n$ two\n\n```\n";
        let command = |line: &str, expected: &[&str]| Step::Command {
            line: line.into(),
            expected: expected.iter().map(|line| (*line).to_owned()).collect(),
        };
        let file = Step::File { name: "a.toml".into(), text: "x = 1\n".into() };
        assert_eq!(steps(text), [file, command("one &", &["ready"]), command("two", &[])]);
    }

    #[test]
    fn lines_are_alike_but_for_what_is_left_open() {
        for (wanted, line) in [("a  b", "a b"), ("a … c", "a b c"), ("…b", "a b"), ("a…", "a b c"), ("…", "")] {
            assert!(alike(wanted, line), "{wanted} {line}");
        }
        for (wanted, line) in [("a", "a b"), ("b…", "a b"), ("a … d", "a b c"), ("a…b", "a b c")] {
            assert!(!alike(wanted, line), "{wanted} {line}");
        }
        let expected = ["a".to_owned(), "c".to_owned()];
        assert_eq!(missing(&expected, "a\nb\nc"), None);
        assert_eq!(missing(&expected, "c\na"), Some("c"));
    }

    #[test]
    fn a_port_is_the_same_wherever_it_stands() {
        let text = with_free_ports("127.0.0.1:5020, 127.0.0.1:5021, 127.0.0.1:5020, 127.0.0.1:0x");
        let ports: Vec<&str> = text.split(", ").collect();
        assert!(ports[0] == ports[2] && ports[0] != ports[1], "{text}");
    }
}
