//! `tributary import`: a foreign device map as a profile, on stdout; what it does not express, on stderr.
//!
//! `import profile` and `import table` read our own two views and give the other one. `import sunspec` with a bus reads
//! the chain of models from the device itself. Everything is asked for that a map does not say.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use tributary_protocols::gather;
use tributary_protocols::modbus::config::Addressing;
use tributary_protocols::modbus::decode::exception_name;
use tributary_protocols::modbus::frame::read;

use super::line::{BusArgs, Line};
use super::probe::{OrderArg, TableArg};
use crate::config::{Report, Source, profile_file};
use crate::import::{Imported, sunspec, table, telegraf, write};

/// What is imported, and how.
#[derive(Clone, Debug, Args)]
pub struct ImportArgs {
    #[command(subcommand)]
    format: Format,
    /// As a TOML profile, or as a register table
    #[arg(long, global = true, value_enum)]
    to: Option<View>,
    /// Into this file instead of to stdout
    #[arg(short, long, global = true, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum View {
    Toml,
    Csv,
}

#[derive(Clone, Debug, Subcommand)]
enum Format {
    /// A profile of ours; its register table unless --to says otherwise
    Profile {
        /// The TOML file
        file: PathBuf,
    },
    /// A register table of ours, whose first lines say the profile's name, version and addressing
    Table {
        /// The CSV file
        file: PathBuf,
    },
    /// Any CSV list of registers
    Csv(CsvArgs),
    /// The [[inputs.modbus]] of a Telegraf configuration, register style
    Telegraf {
        /// The configuration
        file: PathBuf,
        /// Name of the profile [default: the file's]
        #[arg(long)]
        name: Option<String>,
    },
    /// SunSpec models: of a device that is asked, or of definitions that follow each other
    Sunspec(Box<SunspecArgs>),
}

#[derive(Clone, Debug, Args)]
struct CsvArgs {
    /// The list
    file: PathBuf,
    /// Name of the profile [default: the file's]
    #[arg(long)]
    name: Option<String>,
    /// How its addresses are written
    #[arg(long, value_enum)]
    addressing: Option<AddressingArg>,
    /// Byte order of values of several registers
    #[arg(long, value_enum)]
    order: Option<OrderArg>,
    /// Table of all its registers, where no column says it
    #[arg(long, value_enum)]
    table: Option<TableArg>,
    /// Its addresses are hexadecimal without saying so
    #[arg(long)]
    hex: bool,
    /// Which column holds a key: address=Register. Keys are those of [[point]], and function, gain
    #[arg(long, value_name = "KEY=NAME", value_parser = pair)]
    column: Vec<(String, String)>,
    /// What a word means in the column of a key: type:FLOAT32=f32
    #[arg(long, value_name = "KEY:WORD=MEANING", value_parser = word)]
    map: Vec<((String, String), String)>,
}

#[derive(Clone, Debug, Args)]
struct SunspecArgs {
    #[command(flatten)]
    bus: BusArgs,
    /// The device's number on the bus
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..), requires = "models")]
    unit_id: Option<u8>,
    /// Folder with the definitions, model_1.json and so on
    #[arg(long, value_name = "DIR")]
    models: Option<PathBuf>,
    /// Definitions in the order in which the device has them
    #[arg(conflicts_with_all = ["link", "unit_id"])]
    file: Vec<PathBuf>,
    /// Where the device has its mark `SunS`: 40000, 50000 or 0
    #[arg(long, value_name = "ADDRESS")]
    base: Option<u16>,
    /// How often a repeating group is there
    #[arg(long, value_name = "GROUP=N", value_parser = pair)]
    count: Vec<(String, String)>,
    /// Name of the profile [default: sunspec]
    #[arg(long)]
    name: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum AddressingArg {
    Zero,
    One,
    Modicon5,
    Modicon6,
}

impl AddressingArg {
    const fn addressing(self) -> Addressing {
        match self {
            Self::Zero => Addressing::Zero,
            Self::One => Addressing::One,
            Self::Modicon5 => Addressing::Modicon5,
            Self::Modicon6 => Addressing::Modicon6,
        }
    }
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("written as KEY=VALUE")?;
    Ok((key.trim().to_owned(), value.trim().to_owned()))
}

fn word(text: &str) -> Result<((String, String), String), String> {
    let (key, rest) = text.split_once(':').ok_or("written as KEY:WORD=MEANING, such as type:FLOAT32=f32")?;
    // A word may hold a =, what it means hardly.
    let (word, meaning) = rest.rsplit_once('=').ok_or("written as KEY:WORD=MEANING, such as type:FLOAT32=f32")?;
    Ok(((key.trim().to_owned(), word.trim().to_owned()), meaning.trim().to_owned()))
}

pub(super) fn import(args: &ImportArgs) -> ExitCode {
    match imported(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn imported(args: &ImportArgs) -> Result<(), String> {
    let (found, usual) = match &args.format {
        Format::Profile { file } => (vec![ours(file, false)?], View::Csv),
        Format::Table { file } => (vec![ours(file, true)?], View::Toml),
        Format::Csv(csv) => (vec![foreign_table(csv)?], View::Toml),
        Format::Telegraf { file, name } => {
            let all = telegraf::import(&named(name.as_ref(), file), &text(file)?);
            (all.map_err(|why| format!("{}: {why}", file.display()))?, View::Toml)
        }
        Format::Sunspec(sunspec) => (vec![sunspec_models(sunspec)?], View::Toml),
    };
    if let (Some(_), 2..) = (&args.output, found.len()) {
        let count = found.len();
        return Err(format!(
            "it has {count} devices, and a file holds one profile: without --output they follow each other"
        ));
    }
    for (number, one) in found.iter().enumerate() {
        let Imported { profile, left_out } = one;
        let view = match args.to.unwrap_or(usual) {
            View::Toml => write::toml(profile),
            View::Csv => write::csv(profile),
        };
        match &args.output {
            Some(file) => std::fs::write(file, view).map_err(|error| format!("{}: {error}", file.display()))?,
            None if number > 0 => print!("\n{view}"),
            None => print!("{view}"),
        }
        eprintln!("{}: {} points", profile.profile, profile.point.len());
        for line in left_out {
            eprintln!("not expressed: {line}");
        }
    }
    if found.len() > 1 {
        eprintln!("{} profiles: each into a file of its own, named as `profile` says", found.len());
    }
    Ok(())
}

fn text(file: &Path) -> Result<String, String> {
    Source::read(file).map(|source| source.text).map_err(|fault| format!("{}: {}", fault.file, fault.message))
}

fn named(name: Option<&String>, file: &Path) -> String {
    let stem = || file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    name.cloned().unwrap_or_else(stem)
}

/// One of our own, complete.
fn ours(file: &Path, csv: bool) -> Result<Imported, String> {
    let mut report = Report::default();
    let profile = match Source::read(file) {
        Ok(source) => profile_file(source, csv, &mut report),
        Err(fault) => {
            report.error(*fault);
            None
        }
    };
    let refused = || format!("it cannot be used\n{}", report.render());
    Ok(Imported { profile: profile.ok_or_else(refused)?, left_out: Vec::new() })
}

fn foreign_table(args: &CsvArgs) -> Result<Imported, String> {
    let mapping = table::Mapping {
        columns: gather(args.column.iter().cloned()),
        words: gather(args.map.iter().cloned()),
        table: args.table.map(|table| table.table().name().to_owned()),
        hex: args.hex,
        addressing: args.addressing.map(AddressingArg::addressing),
        order: args.order.map(OrderArg::order),
    };
    let found = table::import(&named(args.name.as_ref(), &args.file), &text(&args.file)?, &mapping);
    found.map_err(|why| format!("{}: {why}", args.file.display()))
}

fn sunspec_models(args: &SunspecArgs) -> Result<Imported, String> {
    let name = args.name.clone().unwrap_or_else(|| "sunspec".to_owned());
    let mut counts = BTreeMap::new();
    for (group, count) in &args.count {
        let count = count.parse().map_err(|_| format!("--count {group}={count}: expected a number"))?;
        counts.insert(group.clone(), count);
    }
    if let Some(unit) = args.unit_id {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let models = runtime.map_err(|error| error.to_string())?.block_on(discover(args, unit))?;
        let folder = args.models.clone().unwrap_or_default();
        let mut definitions = BTreeMap::new();
        for model in &models {
            let file = folder.join(format!("model_{}.json", model.id));
            if file.exists() {
                let definition =
                    sunspec::definition(&text(&file)?).map_err(|why| format!("{}: {why}", file.display()))?;
                if definition.id != model.id {
                    return Err(format!("{}: defines model {}, not {}", file.display(), definition.id, model.id));
                }
                definitions.insert(model.id, definition);
            }
        }
        return sunspec::layout(&name, &models, &definitions, &counts);
    }
    if args.file.is_empty() {
        let live = "a device: --tcp HOST:PORT --unit-id N --models DIR";
        return Err(format!("of what? {live}; or definitions and --base ADDRESS"));
    }
    let base = args.base.ok_or("where does the device have its mark `SunS`? --base 40000, 50000 or 0")?;
    let read = |file: &PathBuf| {
        text(file).and_then(|text| sunspec::definition(&text)).map_err(|why| format!("{}: {why}", file.display()))
    };
    let definitions: Vec<sunspec::Definition> = args.file.iter().map(read).collect::<Result<_, _>>()?;
    let models = sunspec::chain(base, &definitions, &counts)?;
    let definitions = gather(definitions.into_iter().map(|definition| (definition.id, definition)));
    sunspec::layout(&name, &models, &definitions, &counts)
}

/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Registers a question, as many as every device can answer.
const BLOCK: u16 = 100;
/// Most models a device has.
const MODELS: usize = 200;

/// Reads the chain of models of a device, with all their registers.
async fn discover(args: &SunspecArgs, unit: u8) -> Result<Vec<sunspec::Model>, String> {
    let (spec, agent) = args.bus.spec(TIMEOUT)?;
    let line = Line::open(spec, agent);
    let models = chain_of(&line, unit, args.base).await;
    line.close().await;
    models
}

async fn chain_of(line: &Line, unit: u8, base: Option<u16>) -> Result<Vec<sunspec::Model>, String> {
    let bases = base.map_or(sunspec::BASES.to_vec(), |base| vec![base]);
    let (mut begin, mut trouble) = (None, Vec::new());
    for base in bases {
        match registers(line, unit, base, 2).await {
            Ok(mark) if mark == sunspec::MARK => {
                begin = Some(base);
                break;
            }
            Ok(other) => trouble.push(format!("at {base}: {other:04X?}")),
            Err(why) => trouble.push(format!("at {base}: {why}")),
        }
    }
    let begin = begin.ok_or_else(|| format!("no mark `SunS`, which begins SunSpec models; {}", trouble.join("; ")))?;
    let mut models = Vec::new();
    let mut address = begin.checked_add(2).ok_or("no model has place behind that base")?;
    while models.len() < MODELS {
        let head = registers(line, unit, address, 2).await?;
        let (id, length) = (head.first().copied().unwrap_or(sunspec::END), head.get(1).copied().unwrap_or(0));
        if id == sunspec::END {
            return Ok(models);
        }
        let end = u32::from(address) + u32::from(length) + 2;
        if end > 0xFFFE {
            return Err(format!("model {id} at {address} has {length} registers, past the last there can be"));
        }
        eprintln!("model {id} at {address}, {length} registers");
        let mut image = Vec::new();
        while image.len() < usize::from(length) + 2 {
            let got = u16::try_from(image.len()).unwrap_or(u16::MAX);
            image.extend(registers(line, unit, address + got, BLOCK.min(length + 2 - got)).await?);
        }
        models.push(sunspec::Model { id, address, length, image });
        address += length + 2;
    }
    Err(format!("more than {MODELS} models"))
}

async fn registers(line: &Line, unit: u8, address: u16, count: u16) -> Result<Vec<u16>, String> {
    let answer = line.ask(unit, &read(3, address, count), Some(TIMEOUT)).await?;
    match answer.as_slice() {
        [3, _, data @ ..] if data.len() == 2 * usize::from(count) => {
            Ok(data.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect())
        }
        [_, code] => Err(format!("registers {address} and {count} on: exception {code}, {}", exception_name(*code))),
        _ => Err(format!("registers {address} and {count} on: an answer that is none")),
    }
}
