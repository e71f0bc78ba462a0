//! The configuration: one TOML file and the profiles it names, checked whole before anything is touched.
//!
//! [`load`] reads, checks and builds: sections into their structs, buses, devices and brokers into the specs of
//! `tributary-protocols`, all of it into the [`Model`] of the pipeline and the lists the drivers work from. It opens no
//! socket and changes no file. Every fault is a [`Diagnostic`] with file, line, column, key, what is wrong and what
//! would be right; all of them come at once. The file alone decides: the environment only fills `credential:` names.
//!
//! | file | holds |
//! |---|---|
//! | `document.rs` | a TOML text with its places |
//! | `reader.rs` | from a part of it to a struct |
//! | `diagnostic.rs` | faults and how they are shown |
//! | `sections.rs` | `[agent] [uplink] [batch] [spool]` |
//! | `plant.rs` | `[[bus]] [[device]] [[mqtt]]` and profiles |
//! | `profiles.rs` | the files of profiles |
//! | `table.rs` | the points of a profile as CSV |
//! | `schema.rs` | the JSON Schema of both kinds of files |
//! | `build.rs` | the checked plant as the pipeline's model and the drivers' lists |
//! | `ceilings.rs` | what of it is too large, and how large the catalogue is |
//!
//! Limits: files of 4 MB (`document::LARGEST`); the ceilings of `tributary_core::limits`.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use tributary_core::model::Model;
use tributary_protocols::modbus::config::DeviceSpec;
use tributary_protocols::units::{Size, Span};

mod build;
mod ceilings;
pub mod diagnostic;
mod document;
pub mod endpoint;
mod files;
mod links;
mod plant;
mod profiles;
mod reader;
mod schedule;
#[cfg(feature = "schema")]
pub mod schema;
mod sections;
mod table;
mod topic;

pub use build::{BrokerSource, BusSource};
pub use diagnostic::{Diagnostic, Report};
pub(crate) use document::Source;
pub use endpoint::Endpoint;
pub use files::FileRef;
pub(crate) use files::exposure;
pub(crate) use profiles::profile_file;
pub(crate) use reader::{Misfit, read as read_value};
pub(crate) use schedule::ms;
pub use sections::{AckMode, AgentConfig, BatchConfig, Order, SpoolConfig, TlsVersion, UplinkConfig, WhenFull};
pub(crate) use table::{COLUMNS, separator};

use document::{Document, suggest};

/// A configuration without faults, and what follows from it.
#[derive(Clone, Debug)]
pub struct Config {
    /// The file it was read from.
    pub file: PathBuf,
    /// `[agent]`, its paths absolute or relative to the working directory.
    pub agent: AgentConfig,
    /// `[uplink]`.
    pub uplink: UplinkConfig,
    /// `[batch]`.
    pub batch: BatchConfig,
    /// `[spool]`.
    pub spool: SpoolConfig,
    /// What is measured, as the pipeline knows it.
    pub model: Model,
    /// The Modbus buses and what is asked on each.
    pub buses: Vec<BusSource>,
    /// The Modbus devices, as configured; none on [`Occasion::Run`], which needs them no more.
    pub devices: Vec<DeviceSpec>,
    /// The MQTT brokers and what is taken from each.
    pub brokers: Vec<BrokerSource>,
    /// SHA-256 of the file, the profiles and their tables as read, in lower-case hex: each preceded by its length as 8 bytes,
    /// big-endian, profiles and tables in the order of their names.
    pub sha256: String,
    /// Bytes of the first catalogue as it is published.
    pub catalog_bytes: usize,
}

/// Why a configuration is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occasion {
    /// To look at it, perhaps as another user and outside the unit.
    Check,
    /// To run it.
    Run,
    /// To work beside the agent: files of certificates and secrets are not looked at.
    Beside,
}

/// What every top-level key of the file must be.
const TOP: [(&str, bool); 7] = [
    ("agent", false),
    ("uplink", false),
    ("batch", false),
    ("spool", false),
    ("bus", true),
    ("device", true),
    ("mqtt", true),
];

/// Reads and checks the file. The report is complete either way; the configuration is there if it has no errors.
#[must_use]
pub fn load(file: &Path, occasion: Occasion) -> (Option<Config>, Report) {
    let credentials = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
    load_with(file, occasion, credentials)
}

/// The status socket that the file names, be the rest of it as it may; `None` if it is no TOML.
#[must_use]
pub fn socket(file: &Path) -> Option<PathBuf> {
    let text = std::fs::read_to_string(file).ok()?;
    let parsed = toml::de::DeTable::parse(&text).ok()?;
    let base = file.parent().unwrap_or(Path::new(""));
    let dir = |key: &str| Some(base.join(parsed.get_ref().get("agent")?.get_ref().get(key)?.get_ref().as_str()?));
    let mut agent = AgentConfig { runtime_dir: dir("runtime_dir"), ..AgentConfig::default() };
    agent.state_dir = dir("state_dir").unwrap_or(agent.state_dir);
    Some(agent.socket())
}

/// [`load`], with the folder of credentials handed in.
#[must_use]
pub fn load_with(file: &Path, occasion: Occasion, credentials: Option<PathBuf>) -> (Option<Config>, Report) {
    let mut report = Report::default();
    let name = file.display().to_string();
    let config = match Source::read(file) {
        Ok(source) => read(file, &source, occasion, credentials, &mut report),
        Err(fault) => {
            report.error(*fault);
            None
        }
    };
    if config.is_none() && report.errors.is_empty() {
        // Nothing may be refused in silence.
        report.error(Diagnostic::of_file(&name, "the configuration could not be built", "please report this"));
    }
    report.finish(&name);
    (config.filter(|_| report.ok), report)
}

fn read(
    file: &Path,
    source: &Source,
    occasion: Occasion,
    credentials: Option<PathBuf>,
    report: &mut Report,
) -> Option<Config> {
    let document = Document::parse(source, report)?;
    let base = file.parent().map(Path::to_path_buf).unwrap_or_default();
    let mut check = Check { document: &document, report, base, credentials, occasion };
    check.top();
    let agent = check.section::<AgentConfig>("agent", true);
    let uplink = check.section::<UplinkConfig>("uplink", true);
    let batch = check.section::<BatchConfig>("batch", false);
    let spool = check.section::<SpoolConfig>("spool", false);
    let agent = agent.map(|mut agent| {
        agent.check(&mut check);
        agent
    });
    let uplink = uplink.map(|mut uplink| {
        uplink.check(batch.as_ref(), &mut check);
        uplink
    });
    if let Some(batch) = &batch {
        batch.check(&mut check);
    }
    if let Some(spool) = &spool {
        spool.check(&mut check);
    }
    let (plant, profiles) = plant::read(agent.as_ref(), &mut check);
    let mut plant = plant?;
    let (agent, uplink, batch, spool) = (agent?, uplink?, batch?, spool?);
    let (model, buses, brokers) = build::build(&mut plant, occasion);
    ceilings::check(&model, &plant, &mut check);
    schedule::check(&buses, &mut check);
    let catalog_bytes = ceilings::catalog(&model, &uplink, &mut check);
    let mut hash = Sha256::new();
    for text in std::iter::once(&source.text).chain(profiles.values().map(|profile| &profile.text)) {
        hash.update((text.len() as u64).to_be_bytes());
        hash.update(text.as_bytes());
    }
    let sha256 = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Some(Config {
        file: file.to_path_buf(),
        agent,
        uplink,
        batch,
        spool,
        model,
        buses,
        devices: if occasion == Occasion::Run { Vec::new() } else { plant.devices },
        brokers,
        sha256,
        catalog_bytes,
    })
}

/// What a check works with: the document, the report, and where relative paths begin.
pub(crate) struct Check<'c, 'd> {
    document: &'c Document<'d>,
    report: &'c mut Report,
    base: PathBuf,
    credentials: Option<PathBuf>,
    occasion: Occasion,
}

impl Check<'_, '_> {
    fn error(&mut self, key: &str, message: impl Into<String>, help: impl Into<String>) {
        self.report.error(self.document.fault(key, message, help));
    }

    fn warning(&mut self, key: &str, message: impl Into<String>, help: impl Into<String>) {
        self.report.warning(self.document.fault(key, message, help));
    }

    /// A path of the file, relative to the file's folder.
    fn resolve(&self, path: &Path) -> PathBuf {
        self.base.join(path)
    }

    /// Top-level keys that are unknown, or of the wrong shape.
    fn top(&mut self) {
        for (key, value) in &self.document.root {
            let name: &str = key.get_ref();
            let message = match TOP.iter().find(|(known, _)| *known == name) {
                None => {
                    let known: Vec<String> = TOP.iter().map(|(known, _)| (*known).to_owned()).collect();
                    let fault = self.document.source.diagnostic(
                        key.span(),
                        name.to_owned(),
                        format!("unknown key `{name}`"),
                        suggest(name, &known),
                    );
                    self.report.error(fault);
                    continue;
                }
                Some((_, true)) if value.get_ref().is_array() => continue,
                Some((_, false)) if value.get_ref().is_table() => continue,
                Some((_, true)) => (
                    format!("`{name}` must be a list of tables"),
                    format!("write [[{name}]], in two pairs of brackets"),
                ),
                Some((_, false)) => {
                    (format!("`{name}` must be one table"), format!("write [{name}], in one pair of brackets"))
                }
            };
            self.error(name, message.0, message.1);
        }
    }

    /// A section as its struct; an absent one takes its defaults, unless it is `needed`.
    fn section<T: serde::de::DeserializeOwned + Default>(&mut self, name: &str, needed: bool) -> Option<T> {
        match self.document.root.get(name) {
            Some(value) if value.get_ref().is_table() => self.document.read(name, value.clone(), true, self.report),
            Some(_) => None,
            None if needed => {
                self.error(
                    name,
                    format!("the section [{name}] is missing"),
                    format!("add [{name}]; sample.toml shows its keys"),
                );
                None
            }
            None => Some(T::default()),
        }
    }

    /// Whether the key does not stand in the file.
    fn absent(&self, section: &str, key: &str) -> bool {
        self.document.root.get(section).and_then(|table| table.get_ref().get(key)).is_none()
    }

    /// Notes that a required key is absent; whether it is there.
    fn required(&mut self, section: &str, key: &str) -> bool {
        if self.absent(section, key) {
            let mut fault =
                self.document.fault(section, format!("the key `{key}` is missing"), format!("add a line `{key} = …`"));
            fault.key = format!("{section}.{key}");
            self.report.error(fault);
            return false;
        }
        true
    }

    /// A duration between two others.
    fn span(&mut self, key: &str, value: Span, least: &str, most: &str) {
        if let (Ok(low), Ok(high)) = (least.parse::<Span>(), most.parse::<Span>())
            && !(low..=high).contains(&value)
        {
            self.error(key, format!("{value} is out of range"), format!("\"{least}\" to \"{most}\""));
        }
    }

    /// A size between two others.
    fn size(&mut self, key: &str, value: Size, least: &str, most: &str) {
        if let (Ok(low), Ok(high)) = (least.parse::<Size>(), most.parse::<Size>())
            && !(low..=high).contains(&value)
        {
            self.error(key, format!("{value} is out of range"), format!("\"{least}\" to \"{most}\""));
        }
    }
}
