//! `tributary seed`: the first configuration of a gateway, from one file that an installer put on the boot partition.
//!
//! The seed is the configuration itself. Its last section, `[seed]`, is not: each of its keys is the name of a file for the
//! folder `pki`, each value what stands in it. So `ca = "pki/ca.pem"` in `[uplink]` and `"ca.pem" = """…"""` in `[seed]`
//! belong together. `seed.toml` beside `sample.toml` is one to begin with.
//!
//! Read once, by `tributary-seed.service` before the agent. All of it is checked, as `tributary check` does, in a folder of
//! its own; then the files are moved to their places, each at once and on the disk before the next; then the seed is
//! overwritten and deleted. A power cut between leaves the seed, and the next start does it again. The hash of what was
//! taken is kept, so that a boot partition that cannot be written does not bring an old seed back at every start.
//!
//! A text beside the seed says what happened and what to do, for someone with a card reader and no console. Nothing secret
//! is in it. Overwriting is all that can be done on flash memory, which may keep the old blocks: a key made on the device
//! (`tributary enroll`) needs no such trust.

use std::fmt::Write as _;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use sha2::{Digest, Sha256};
use toml::Spanned;
use toml::de::DeTable;

use super::BAD_CONFIGURATION;
use crate::config::{Diagnostic, Occasion, Report, Source, load_with};
use crate::enroll::replace;

/// Where the seed's parts are while they are checked, in the folder of the configuration.
const STAGE: &str = ".seed";
/// The hash of the seed that was taken last.
const TAKEN: &str = ".seed-taken";
/// The folder of certificates and keys.
const PKI: &str = "pki";
/// Keys whose files may come later: the pair is made on the device.
const ENROLLED: [&str; 2] = ["uplink.cert", "uplink.key"];

/// Name and content of each file.
type Files = Vec<(String, String)>;

/// Which seed, and whereto.
#[derive(Clone, Debug, Args)]
pub struct SeedArgs {
    /// Where the seed may be; the first that is there is taken
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The folder of the configuration
    #[arg(long, value_name = "DIR", default_value = "/etc/tributary")]
    to: PathBuf,
}

/// What became of the seed.
enum Outcome {
    /// It is the configuration now.
    Taken(String),
    /// It was the configuration already.
    Known,
    /// It has faults; nothing was changed.
    Refused(String),
    /// The disk refused.
    Failed(String),
}

pub(super) fn seed(args: &SeedArgs) -> ExitCode {
    let Some(file) = args.files.iter().find(|file| file.exists()) else {
        println!("no seed file: nothing to do");
        return ExitCode::SUCCESS;
    };
    let outcome = match take(file, &args.to) {
        Ok(outcome) => outcome,
        Err(error) => Outcome::Failed(error.to_string()),
    };
    let _ = fs::remove_dir_all(args.to.join(STAGE));
    let wiped = match outcome {
        Outcome::Taken(_) | Outcome::Known => wipe(file),
        _ => Ok(()),
    };
    let text = words(&outcome, file, wiped.as_ref().err());
    print!("{text}");
    if let Err(error) = beside(file, &text) {
        eprintln!("error: {} cannot be written: {error}", file.with_extension("txt").display());
    }
    match outcome {
        Outcome::Taken(_) | Outcome::Known => ExitCode::SUCCESS,
        Outcome::Refused(_) => ExitCode::from(BAD_CONFIGURATION),
        Outcome::Failed(_) => ExitCode::FAILURE,
    }
}

/// Checks the seed whole, and only then moves its parts to their places.
fn take(file: &Path, to: &Path) -> io::Result<Outcome> {
    let source = match Source::read(file) {
        Ok(source) => source,
        Err(fault) => {
            return Ok(Outcome::Refused(Report { errors: vec![*fault], ..Report::default() }.render()));
        }
    };
    let hash: String = Sha256::digest(source.text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
    if fs::read_to_string(to.join(TAKEN)).is_ok_and(|taken| taken.trim() == hash) && to.join("agent.toml").exists() {
        return Ok(Outcome::Known);
    }
    let (configuration, files) = match parts(&source) {
        Ok(parts) => parts,
        Err(fault) => return Ok(Outcome::Refused(fault)),
    };

    let stage = to.join(STAGE);
    match fs::remove_dir_all(&stage) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    for folder in [to.join(PKI), stage.join(PKI)] {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    // Under the seed's own name, which is then the one in messages.
    let staged = stage.join(file.file_name().unwrap_or_default());
    replace(&staged, configuration.as_bytes(), 0o644, None)?;
    for (name, content) in &files {
        replace(&stage.join(PKI).join(name), content.as_bytes(), mode(content), None)?;
    }
    let (config, mut report) = load_with(&staged, Occasion::Check, None);
    let missing = |report: &Report| report.errors.iter().chain(&report.warnings).any(of_pair);
    let without_pair = missing(&report);
    report.errors.retain(|error| !of_pair(error));
    report.warnings.retain(|warning| !of_pair(warning) && warning.key != "agent.state_dir");
    let shown = report.render().replace(&format!("{}/", stage.display()), "");
    if !report.errors.is_empty() || (config.is_none() && !without_pair) {
        return Ok(Outcome::Refused(shown));
    }

    // Root's, for the agent's group: that is the folder's.
    let owner = fs::metadata(to.join(PKI))?;
    for (name, _) in &files {
        let staged = stage.join(PKI).join(name);
        chown(&staged, None, Some(owner.gid()))?;
        fs::rename(staged, to.join(PKI).join(name))?;
    }
    sync(&to.join(PKI))?;
    let place = to.join("agent.toml");
    if fs::read_to_string(&place).is_ok_and(|old| old != configuration) {
        let old = to.join("agent.toml.old");
        let _ = fs::remove_file(&old);
        fs::hard_link(&place, old)?;
    }
    fs::rename(&staged, &place)?;
    sync(to)?;
    replace(&to.join(TAKEN), hash.as_bytes(), 0o600, None)?;

    let pair_missing = without_pair && missing(&load_with(&place, Occasion::Check, None).1);
    let mut said = gateway(configuration);
    for (name, _) in &files {
        let _ = writeln!(said, "file      {}", to.join(PKI).join(name).display());
    }
    if pair_missing {
        let _ = write!(said, "\n{}", ENROL.replace("FILE", &place.display().to_string()));
    }
    if !shown.is_empty() {
        let _ = write!(said, "\nWorth a look:\n\n{shown}");
    }
    Ok(Outcome::Taken(said))
}

/// The pair is not there yet.
fn of_pair(fault: &Diagnostic) -> bool {
    ENROLLED.contains(&fault.key.as_str()) && fault.message.ends_with("does not exist")
}

/// What a person recognises the gateway by.
fn gateway(configuration: &str) -> String {
    let table = DeTable::parse(configuration).map(Spanned::into_inner).unwrap_or_default();
    let text = |section: &str, key: &str| {
        let section = table.get(section).map(Spanned::get_ref)?;
        section.get(key)?.get_ref().as_str().map(str::to_owned)
    };
    let text = |section: &str, key: &str| text(section, key).unwrap_or_default();
    let count = |list: &str| table.get(list).and_then(|list| list.get_ref().as_array()).map_or(0, |list| list.len());
    format!(
        "gateway   {}/{}\nbroker    {}\ndevices   {} of Modbus, {} brokers of MQTT devices\n",
        text("agent", "site"),
        text("agent", "id"),
        text("uplink", "url"),
        count("device"),
        count("mqtt")
    )
}

/// What is missing when the pair is to be made on the device.
const ENROL: &str = "STILL TO DO: this gateway has no certificate yet, so nothing is sent. On the gateway,\n\
                     \x20   sudo tributary enroll -c FILE\n\
                     makes a key that never leaves it, and says what to do with its request.\n";

/// The configuration and the files of a seed; what is wrong with it, in words.
fn parts(source: &Source) -> Result<(&str, Files), String> {
    let say = |at: std::ops::Range<usize>, key: &str, message: &str, help: &str| {
        let fault = source.diagnostic(at, key.to_owned(), message.to_owned(), help.to_owned());
        Report { errors: vec![fault], ..Report::default() }.render()
    };
    let text = source.text.as_str();
    // What is no TOML at all is told by the check, with all else that is wrong.
    let Ok(whole) = DeTable::parse(text) else { return Ok((text, Vec::new())) };
    let Some((key, section)) = whole.get_ref().get_key_value("seed") else { return Ok((text, Vec::new())) };
    // From the beginning of its line.
    let start = text.get(..key.span().start).and_then(|before| before.rfind('\n')).map_or(0, |end| end + 1);
    let at = start..key.span().end;
    let Some(section) = section.get_ref().as_table() else {
        return Err(say(
            at,
            "seed",
            "`seed` must be one table",
            "write [seed], with a line \"NAME\" = \"CONTENT\" each",
        ));
    };
    // Nothing of it stands before, and nothing else behind.
    let configuration = text.get(..start).unwrap_or_default();
    let ends = section.iter().map(|(_, value)| value.span().end).max().unwrap_or(at.end);
    let behind = text.get(ends..).unwrap_or_default();
    let headers = |part: &str| part.lines().any(|line| line.trim_start().starts_with('['));
    if headers(behind) || !DeTable::parse(configuration).is_ok_and(|table| !table.get_ref().contains_key("seed")) {
        return Err(say(at, "seed", "[seed] is not the last section", "move it to the end of the file"));
    }
    let mut files = Vec::new();
    for (name, content) in section {
        let name: &str = name.get_ref();
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        let key = format!("seed.{name}");
        if name.is_empty() || name.len() > 64 || name.starts_with('.') || !name.chars().all(good) {
            let message = format!("{name:?} cannot be the name of a file");
            return Err(say(content.span(), &key, &message, "1 to 64 of A-Z a-z 0-9 . _ -, as in \"ca.pem\""));
        }
        match content.get_ref().as_str().filter(|text| !text.trim().is_empty()) {
            Some(text) => files.push((name.to_owned(), text.to_owned())),
            None => {
                let message = format!("{name:?} has no content");
                let help = "the text of the file, in three pairs of quotation marks";
                return Err(say(content.span(), &key, &message, help));
            }
        }
    }
    Ok((configuration, files))
}

/// Certificates are for everyone; anything else for root and the agent's group.
fn mode(content: &str) -> u32 {
    let public = content.contains("-----BEGIN CERTIFICATE-----") || content.contains("-----BEGIN X509 CRL-----");
    if public && !content.contains("PRIVATE KEY") { 0o644 } else { 0o640 }
}

fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Overwrites the seed and deletes it.
fn wipe(file: &Path) -> io::Result<()> {
    let mut seed = OpenOptions::new().write(true).open(file)?;
    let length = usize::try_from(seed.metadata()?.len()).unwrap_or(0);
    seed.write_all(&vec![b'\n'; length])?;
    seed.sync_all()?;
    fs::remove_file(file)?;
    file.parent().map_or(Ok(()), |folder| sync(if folder.as_os_str().is_empty() { Path::new(".") } else { folder }))
}

/// The text beside the seed, with the line ends of the computer that it is read on.
fn beside(file: &Path, text: &str) -> io::Result<()> {
    let mut out = File::create(file.with_extension("txt"))?;
    out.write_all(text.replace('\n', "\r\n").as_bytes())?;
    out.sync_all()
}

fn words(outcome: &Outcome, file: &Path, unwiped: Option<&io::Error>) -> String {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let mut text = match outcome {
        Outcome::Taken(said) => format!(
            "Tributary {}: {name} was taken.\n\n{said}\nIt is the gateway's configuration now. To see how it is, on the \
             gateway:\n    tributary status -c /etc/tributary/agent.toml\n",
            env!("CARGO_PKG_VERSION")
        ),
        Outcome::Known => format!("Tributary: {name} is the one that was taken before. Nothing was changed.\n"),
        Outcome::Refused(faults) => format!(
            "Tributary: {name} was NOT taken, and nothing was changed.\n\n{faults}\nPut right what is named above, and \
             start the gateway with the file again. It is still here, with all that stands in it.\n"
        ),
        Outcome::Failed(reason) => format!(
            "Tributary: {name} was NOT taken: {reason}.\n\nNothing is wrong with the file; the gateway could not write to \
             its own disk. Start it again; if this text comes again, the disk may be full, read-only or worn.\n"
        ),
    };
    if let Outcome::Taken(_) | Outcome::Known = outcome {
        text.push_str(&match unwiped {
            None => format!("\n{name} was overwritten and deleted here. A copy elsewhere still has what was in it.\n"),
            Some(error) => format!(
                "\n{name} could NOT be deleted: {error}. Delete it by hand: what is secret in it can still be read here.\n"
            ),
        });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEED: &str = "[agent]\nsite = \"s\"\nid = \"gw\"\n[uplink]\nurl = \"mqtts://b\"\nca = \"pki/ca.pem\"\n# kept\n\
                        [seed]\n\"ca.pem\" = '''\n-----BEGIN CERTIFICATE-----\nx\n'''\n\"word\" = \"secret\"\n";

    fn parted(text: &str) -> Result<(String, Files), String> {
        let source = Source::new("seed.toml".into(), text.into());
        parts(&source).map(|(configuration, files)| (configuration.to_owned(), files))
    }

    #[test]
    fn the_last_section_is_cut_off_and_becomes_files() {
        let (configuration, files) = parted(SEED).unwrap();
        assert!(configuration.ends_with("# kept\n"), "{configuration}");
        assert_eq!(files.len(), 2);
        assert_eq!((mode(&files[0].1), mode(&files[1].1)), (0o644, 0o640));
        assert_eq!(mode("-----BEGIN CERTIFICATE-----\n-----BEGIN PRIVATE KEY-----"), 0o640);
    }

    #[test]
    fn what_cannot_be_a_seed_is_refused_with_its_line() {
        for (text, said) in [
            ("[seed]\n\"a\" = \"x\"\n[agent]\nid = \"x\"\n", "not the last section"),
            ("[agent]\nid = \"x\"\n[seed]\n\"../key\" = \"x\"\n", "cannot be the name"),
            ("[agent]\nid = \"x\"\n[seed]\n\".a\" = \"x\"\n", "cannot be the name"),
            ("[agent]\nid = \"x\"\n[seed]\na = 1\n", "has no content"),
            ("seed = 1\n", "one table"),
        ] {
            let refused = parted(text).unwrap_err();
            assert!(refused.contains(said) && refused.contains("seed.toml:"), "{refused}");
        }
    }
}
