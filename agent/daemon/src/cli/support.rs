//! `tributary support`: one archive with all that helps to find a fault, for who cannot come to the cabinet.
//!
//! | in the archive | is |
//! |---|---|
//! | `versions.txt` | of agent, kernel, system; uptime, memory, disk, clock |
//! | `config/…` | the configuration and the profiles it names, without secrets |
//! | `check.txt`, `plan.txt` | what `check --plan` says |
//! | `status.txt`, `status.json` | what the running agent says, or why it says nothing |
//! | `spool.txt` | the files of the spool; of a stopped agent also what `spool status` says |
//! | `files.txt` | mode, owner, size and age of the certificates, keys and password files; never their content |
//! | `events.txt` | the last lines of the journal, if there is one |
//!
//! Secrets are places in the configuration, so none should be in it. What looks like one nevertheless is taken out, also
//! of a file that cannot be parsed: PEM blocks, passwords in URLs, values of keys that are named like secrets. Each part
//! that cannot be had says why, and the others are there. Limits: [`MOST`] bytes a part, the last [`EVENTS`] events.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use clap::Args;
use toml::de::DeTable;
use tributary_protocols::sort;

use super::{FileArg, plan, spool, status};
use crate::config::{Config, Occasion, load};
use crate::socket;
use crate::store::look::Look;

/// Most bytes of one part; of events the end, of anything else the beginning.
const MOST: u64 = 4 << 20;
/// Lines of the journal.
const EVENTS: &str = "2000";
/// What a person reads first.
const README: &str = "What `tributary support` found. Secrets were taken out and are marked [removed]; names and addresses of \
                      the plant are still in it.\n";
/// Words in the names of keys whose values are secrets, unless they are places.
const SECRETS: [&str; 5] = ["password", "passphrase", "secret", "token", "psk"];

/// Of which agent, and whereto.
#[derive(Clone, Debug, Args)]
pub struct SupportArgs {
    #[command(flatten)]
    file: FileArg,
    /// The archive; it must not be there yet
    #[arg(short, long, value_name = "FILE", default_value = "tributary-support.tar")]
    output: PathBuf,
}

pub(super) fn support(args: &SupportArgs) -> ExitCode {
    match archive(&args.file.config, &args.output) {
        Ok(names) => {
            println!("{} has {}.", args.output.display(), names.join(", "));
            println!(
                "Secrets were taken out; look into it before you pass it on: names and addresses are still there."
            );
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {} cannot be written: {error}", args.output.display());
            eprintln!(" = help: name another file with -o FILE, which is not there yet");
            ExitCode::FAILURE
        }
    }
}

fn archive(file: &Path, output: &Path) -> io::Result<Vec<String>> {
    let out = File::options().write(true).create_new(true).mode(0o600).open(output)?;
    let mut tar = tar::Builder::new(out);
    let mut names = Vec::new();
    for (name, text) in parts(file) {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o600);
        tar.append_data(&mut header, format!("tributary-support/{name}"), text.as_bytes())?;
        names.push(name);
    }
    tar.into_inner()?.sync_all()?;
    Ok(names)
}

/// Name and text of each part.
fn parts(file: &Path) -> Vec<(String, String)> {
    let (config, report) = load(file, Occasion::Check);
    // A faulty certificate is no reason to leave out the plan.
    let config = config.or_else(|| load(file, Occasion::Beside).0);
    let state_dir = config.as_ref().map(|config| config.agent.state_dir.clone());
    let mut parts = vec![
        ("README.txt".to_owned(), README.to_owned()),
        ("versions.txt".to_owned(), versions(state_dir.as_deref())),
        ("check.txt".to_owned(), without_secrets(&report.render())),
    ];
    let text = read(file);
    parts.push(("config/agent.toml".into(), without_secrets(&text)));
    for path in profiles(&text, config.as_ref()) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        parts.push((format!("config/profiles/{name}"), without_secrets(&read(&path))));
    }
    parts.push(("files.txt".into(), secret_files(&text, file)));
    match &config {
        Some(config) => {
            parts.push(("plan.txt".into(), plan::summary(config) + &plan::requests(config)));
            let (words, json) = asked(config);
            parts.push(("status.txt".into(), without_secrets(&words)));
            parts.push(("status.json".into(), without_secrets(&json)));
            parts.push(("spool.txt".into(), spool_of(&config.agent.state_dir.join("spool"))));
        }
        None => parts.push(("status.txt".into(), "not asked: the configuration has faults, see check.txt\n".into())),
    }
    parts.push(("events.txt".into(), without_secrets(&events())));
    parts
}

/// The text of a file, or why there is none.
fn read(path: &Path) -> String {
    let mut bytes = Vec::new();
    match File::open(path).and_then(|file| file.take(MOST).read_to_end(&mut bytes)) {
        Ok(_) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => format!("{} cannot be read: {error}\n", path.display()),
    }
}

fn versions(state_dir: Option<&Path>) -> String {
    let mut out = format!(
        "tributary {} for {}-{}\n",
        env!("CARGO_PKG_VERSION"),
        std::env::consts::ARCH,
        if cfg!(target_env = "musl") { "musl" } else { "gnu" }
    );
    for path in ["/proc/version", "/etc/os-release", "/proc/uptime", "/proc/loadavg"] {
        let _ = write!(out, "\n{path}\n{}", read(Path::new(path)));
    }
    let memory = read(Path::new("/proc/meminfo"));
    let _ = writeln!(out, "\n/proc/meminfo\n{}", memory.lines().take(6).collect::<Vec<_>>().join("\n"));
    if let Some(dir) = state_dir {
        let _ = match rustix::fs::statvfs(dir) {
            Ok(disk) => writeln!(
                out,
                "\n{}: {} KB of {} KB free, {} of {} inodes",
                dir.display(),
                disk.f_bavail.saturating_mul(disk.f_frsize) >> 10,
                disk.f_blocks.saturating_mul(disk.f_frsize) >> 10,
                disk.f_favail,
                disk.f_files
            ),
            Err(error) => writeln!(out, "\n{} cannot be looked at: {error}", dir.display()),
        };
    }
    for path in ["/run/systemd/timesync/synchronized", "/var/lib/chrony", "/var/lib/ntp"] {
        let there = if Path::new(path).exists() { "there" } else { "not there" };
        let _ = writeln!(out, "clock: {path} is {there}");
    }
    out
}

/// The files of the profiles that are named, also in a configuration with faults.
fn profiles(text: &str, config: Option<&Config>) -> Vec<PathBuf> {
    let folders =
        config.map_or_else(|| crate::config::AgentConfig::default().profiles, |config| config.agent.profiles.clone());
    let Ok(table) = DeTable::parse(text) else { return Vec::new() };
    let devices = table.get_ref().get("device").and_then(|list| list.get_ref().as_array());
    let devices = devices.into_iter().flat_map(|list| list.iter());
    let mut names: Vec<&str> =
        devices.filter_map(|device| device.get_ref().get("profile")?.get_ref().as_str()).collect();
    sort(&mut names, Ord::cmp);
    names.dedup();
    let plain = |name: &&str| !name.contains('/');
    names
        .into_iter()
        .filter(plain)
        .flat_map(|name| ["toml", "csv"].map(|ending| format!("{name}.{ending}")))
        .filter_map(|name| folders.iter().map(|folder| folder.join(&name)).find(|path| path.is_file()))
        .collect()
}

/// Mode, owner, size and age of what the configuration names by `ca`, `cert`, `key` and `password_file`.
fn secret_files(text: &str, file: &Path) -> String {
    let mut out = "mode, owner, group, bytes, changed (s since 1970), path\n".to_owned();
    let base = file.parent().unwrap_or(Path::new(""));
    for line in text.lines() {
        let Some((key, value)) = line.split_once('=') else { continue };
        let value = value.split('#').next().unwrap_or_default().trim().trim_matches(['"', '\'']);
        if !["ca", "cert", "key", "crl", "password_file"].contains(&key.trim()) || value.starts_with("credential:") {
            continue;
        }
        let path = base.join(value);
        let _ = match fs::metadata(&path) {
            Ok(meta) => writeln!(
                out,
                "{:04o} {} {} {} {} {}",
                meta.mode() & 0o7777,
                meta.uid(),
                meta.gid(),
                meta.len(),
                meta.mtime(),
                path.display()
            ),
            Err(error) => writeln!(out, "{}: {error}", path.display()),
        };
    }
    out
}

/// What the agent says, in words and as JSON.
fn asked(config: &Config) -> (String, String) {
    match socket::status(&config.agent.socket()) {
        Ok(said) => {
            let json = serde_json::to_string_pretty(&said).unwrap_or_else(|error| error.to_string());
            (status::words(&said), json + "\n")
        }
        Err(error) => (format!("{error}\n"), format!("{}\n", serde_json::json!({ "error": error.to_string() }))),
    }
}

/// The files of the spool, and what is in it if no agent holds it.
fn spool_of(root: &Path) -> String {
    let mut out = Vec::new();
    match Look::open(root) {
        Ok(look) => {
            // A vector takes everything.
            let _ = spool::status(&look, &mut out);
        }
        Err(error) => out.extend_from_slice(format!("what is in it cannot be told: {error}\n").as_bytes()),
    }
    let mut out = String::from_utf8_lossy(&out).into_owned();
    out.push_str("\nbytes, path\n");
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(meta) if meta.is_dir() => folders.push(entry.path()),
                Ok(meta) => {
                    let _ = writeln!(out, "{:>10} {}", meta.len(), entry.path().display());
                }
                Err(_) => {}
            }
        }
    }
    out
}

/// The last lines of the units, by the program that can read the journal.
fn events() -> String {
    let said = Command::new("journalctl")
        .args(["--no-pager", "--output=short-iso", "--unit=tributary", "--unit=tributary-seed", "--lines", EVENTS])
        .output();
    match said {
        Ok(output) if output.status.success() => {
            let from = output.stdout.len().saturating_sub(usize::try_from(MOST).unwrap_or(usize::MAX));
            String::from_utf8_lossy(output.stdout.get(from..).unwrap_or_default()).into_owned()
        }
        Ok(output) => format!("journalctl says: {}\n", String::from_utf8_lossy(&output.stderr).trim()),
        Err(error) => format!("there is no journal to be had: journalctl: {error}\n"),
    }
}

/// The text without PEM blocks, passwords in URLs, and values of keys that are named like secrets.
fn without_secrets(text: &str) -> String {
    const REMOVED: &str = "[removed]";
    let mut out = String::with_capacity(text.len());
    let mut in_pem = false;
    for line in text.split_inclusive('\n') {
        if let Some((before, _)) = line.split_once("-----BEGIN ") {
            in_pem = true;
            out.push_str(before);
            out.push_str(REMOVED);
            out.push('\n');
        }
        if in_pem {
            // On one line, as in JSON, both marks are there.
            in_pem = !line.contains("-----END ");
            continue;
        }
        out.push_str(&without_values(&without_logins(line, REMOVED), REMOVED));
    }
    out
}

/// `scheme://user:password@host` without what stands before the `@`.
fn without_logins(line: &str, mark: &str) -> String {
    let mut out = String::new();
    let mut rest = line;
    while let Some((before, after)) = rest.split_once("://") {
        out.push_str(before);
        out.push_str("://");
        let end = after.find(['/', '"', '\'', ' ', '\n']).unwrap_or(after.len());
        let authority = after.get(..end).unwrap_or_default();
        match authority.rfind('@') {
            Some(at) => {
                out.push_str(mark);
                rest = after.get(at..).unwrap_or_default();
            }
            None => rest = after,
        }
    }
    out.push_str(rest);
    out
}

/// `password = …` and `"token": …` without the value.
fn without_values(line: &str, mark: &str) -> String {
    for (at, _) in line.match_indices(['=', ':']) {
        let (key, value) = line.split_at(at);
        let name = key.trim_end().rsplit([' ', '.', '{', ',']).next().unwrap_or_default();
        let name = name.trim_matches(['"', '\'']).to_lowercase();
        let secret = SECRETS.iter().any(|word| name.contains(word)) && !name.ends_with("_file");
        let value = value.get(1..).unwrap_or_default().trim();
        if secret && !value.is_empty() && !value.trim_start_matches('"').starts_with("credential:") {
            return format!("{key}{} {mark}\n", line.get(at..=at).unwrap_or_default());
        }
    }
    line.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_looks_like_a_secret_is_taken_out() {
        let text = "url = \"mqtts://me:p4ss@host:8883\"\nother = \"https://a/b@c\"\npassword = \"p4ss\"\n\
                    api_token = 'p4ss'\npassword_file = \"pki/password\"\nkey = \"pki/client.key\"\n\
                    x = '''-----BEGIN PRIVATE KEY-----\np4ss\n-----END PRIVATE KEY-----'''\nlog = \"info\"\n\
                    \"secret\": \"p4ss\",\n2026-11-30 error: psk: p4ss\nbroken mqtt://u:p4ss@h\n";
        let clean = without_secrets(text);
        assert!(!clean.contains("p4ss"), "{clean}");
        for kept in ["[removed]@host:8883\"", "https://a/b@c", "pki/password", "pki/client.key", "log = \"info\""] {
            assert!(clean.contains(kept), "{kept} is gone from\n{clean}");
        }
    }

    #[test]
    fn a_log_line_keeps_what_is_no_secret() {
        let line = "2026-11-30T10:00:00 gw tributary[7]: WARN token bucket: 3 left\n";
        assert_eq!(without_secrets(line), line);
    }
}
