//! `tributary probe`: some registers, read once or a few times, in every way that they can be meant.
//!
//! It answers the three questions of somebody with a meter and a manual: which register is it (both address bases and the
//! Modicon spelling of each), how is it coded (each integer and float of 32 and 64 bits in all four orders, side by side),
//! and does it live (`--repeat` marks what moved). Nothing is guessed: what looks like a value is marked, and people
//! decide. `--point` prints the row for a device map.

mod decodings;

use std::fmt::Write;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use serde_json::json;
use tributary_protocols::gather;
use tributary_protocols::modbus::decode::exception_name;
use tributary_protocols::modbus::frame::read;
use tributary_protocols::modbus::register::{Order, RegisterType, Table};
use tributary_protocols::units::Span;

use self::decodings::{Decoding, Kind, decodings};
use super::line::{BusArgs, Line};

/// What to read, and how often.
#[derive(Clone, Debug, Args)]
pub struct ProbeArgs {
    #[command(flatten)]
    bus: BusArgs,
    /// The device's number, 1 to 255
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..))]
    unit_id: u8,
    /// coil, discrete, input or holding
    table: TableArg,
    /// First register or bit as on the wire, from 0; 0x10 is sixteen
    #[arg(value_parser = address)]
    address: u16,
    /// How many registers (up to 125) or bits (up to 2000)
    #[arg(default_value_t = 1)]
    count: u16,
    /// How long an answer may take
    #[arg(long, value_name = "TIME", default_value = "1s")]
    timeout: Span,
    /// Read so many times, and mark what moves
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    repeat: u32,
    /// Time between two reads
    #[arg(long, value_name = "TIME", default_value = "1s")]
    every: Span,
    /// Print the [[point]] row of that name, to be pasted into a device map
    #[arg(long, value_name = "NAME")]
    point: Option<String>,
    /// Its type, as in a device map: u16, f32, …
    #[arg(long = "type", value_name = "TYPE", requires = "point")]
    ty: Option<RegisterType>,
    /// Its order: ABCD, CDAB, BADC or DCBA
    #[arg(long, requires = "ty")]
    order: Option<OrderArg>,
    /// Print what was read as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum TableArg {
    Coil,
    Discrete,
    Input,
    Holding,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "UPPER")]
pub(super) enum OrderArg {
    Abcd,
    Cdab,
    Badc,
    Dcba,
}

impl TableArg {
    pub(super) const fn table(self) -> Table {
        match self {
            Self::Coil => Table::Coil,
            Self::Discrete => Table::Discrete,
            Self::Input => Table::Input,
            Self::Holding => Table::Holding,
        }
    }
}

impl OrderArg {
    pub(super) const fn order(self) -> Order {
        match self {
            Self::Abcd => Order::ABCD,
            Self::Cdab => Order::CDAB,
            Self::Badc => Order::BADC,
            Self::Dcba => Order::DCBA,
        }
    }
}

fn address(text: &str) -> Result<u16, String> {
    let number = text.strip_prefix("0x").map_or_else(|| text.parse(), |hex| u16::from_str_radix(hex, 16));
    number.map_err(|_| "as on the wire, 0 to 65535 or 0x0 to 0xFFFF; 40001 in a manual is holding 0 here".to_owned())
}

pub(super) fn probe(args: &ProbeArgs) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let done = runtime.map_err(|error| error.to_string()).and_then(|runtime| runtime.block_on(run(args)));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: &ProbeArgs) -> Result<(), String> {
    let table = args.table.table();
    let most = if table.is_bits() { 2_000 } else { 125 };
    if !(1..=most).contains(&args.count) || u32::from(args.address) + u32::from(args.count) > 0x1_0000 {
        let what = if table.is_bits() { "bits" } else { "registers" };
        return Err(format!("{} {what} from {} on; 1 to {most} fit into one answer", args.count, args.address));
    }
    let (spec, agent) = args.bus.spec(args.timeout.duration())?;
    let line = Line::open(spec, agent);
    let pdu = read(table.function(), args.address, args.count);
    let mut reads: Vec<Vec<u8>> = Vec::new();
    let mut outcome = Ok(());
    for turn in 0..args.repeat {
        if turn > 0 {
            let _ = tokio::time::timeout(args.every.duration(), std::future::pending::<()>()).await;
        }
        match line.ask(args.unit_id, &pdu, Some(args.timeout.duration())).await.and_then(|pdu| data(&pdu, args)) {
            Ok(data) => reads.push(data),
            Err(error) => {
                outcome = Err(error);
                break;
            }
        }
    }
    line.close().await;
    outcome?;
    let text = match (args.json, table.is_bits()) {
        (true, _) => as_json(args, &reads) + "\n",
        (false, true) => bits(args, &reads),
        (false, false) => registers(args, &reads),
    };
    print!("{text}");
    if let Some(name) = &args.point {
        print!("{}", point_rows(args, name, &reads)?);
    }
    Ok(())
}

/// The data of an answer, or what the device said instead.
fn data(pdu: &[u8], args: &ProbeArgs) -> Result<Vec<u8>, String> {
    match pdu {
        [function, code] if function & 0x80 != 0 => {
            let help = match code {
                1 => {
                    "try another table: input registers are often to be found as holding ones, and the other way round"
                }
                2 => "try fewer registers, an address one lower (the manual may count from one), or another table",
                3 => "try fewer registers",
                5 | 6 => "try again later",
                10 | 11 => "the gateway answers and the unit behind it does not: try another unit id",
                _ => "the device's manual says what it means",
            };
            Err(format!(
                "unit {} answers with exception {code}, {}\n = help: {help}",
                args.unit_id,
                exception_name(*code)
            ))
        }
        [_, count, data @ ..] if usize::from(*count) == data.len() => Ok(data.to_vec()),
        _ => Err(format!("unit {} gave an answer that is none: {pdu:02x?}", args.unit_id)),
    }
}

/// A number as the three conventions write it.
fn spellings(table: Table, address: u16) -> (u32, String) {
    let one = u32::from(address) + 1;
    let width = if one > 9_999 { 5 } else { 4 };
    (one, format!("{}{one:0width$}", table.modicon()))
}

fn heading(args: &ProbeArgs, out: &mut String) {
    let table = args.table.table();
    let last = u32::from(args.address) + u32::from(args.count) - 1;
    let (first_one, first) = spellings(table, args.address);
    let (last_one, last_modicon) = spellings(table, u16::try_from(last).unwrap_or(u16::MAX));
    let _ = writeln!(
        out,
        "unit {}, {} {}..={last} on the wire; one-based {first_one}..={last_one}, modicon {first}..={last_modicon}\n",
        args.unit_id,
        table.name(),
        args.address
    );
}

fn bits(args: &ProbeArgs, reads: &[Vec<u8>]) -> String {
    let mut out = String::new();
    heading(args, &mut out);
    let bit = |data: &[u8], at: u16| data.get(usize::from(at / 8)).is_some_and(|byte| byte >> (at % 8) & 1 == 1);
    let Some(last) = reads.last() else { return out };
    out += " zero    one  modicon  bit\n";
    for at in 0..args.count {
        let address = args.address.wrapping_add(at);
        let (one, modicon) = spellings(args.table.table(), address);
        let moved = reads.iter().any(|data| bit(data, at) != bit(last, at));
        let moved = if moved { "  moved" } else { "" };
        let _ = writeln!(out, "{address:5}  {one:5}  {modicon:>7}  {}{moved}", u8::from(bit(last, at)));
    }
    out
}

fn registers(args: &ProbeArgs, reads: &[Vec<u8>]) -> String {
    let mut out = String::new();
    heading(args, &mut out);
    let Some(last) = reads.last() else { return out };
    out += " zero    one  modicon     hex    u16     i16  text  bits               \n";
    for (pair, at) in last.chunks_exact(2).zip(0_u16..) {
        let word = u16::from_be_bytes([pair[0], pair[1]]);
        let address = args.address.wrapping_add(at);
        let (one, modicon) = spellings(args.table.table(), address);
        let letter = |byte: u8| if (b' '..=b'~').contains(&byte) { char::from(byte) } else { '.' };
        let (signed, text) = (word.cast_signed(), format!("{}{}", letter(pair[0]), letter(pair[1])));
        let words = reads.iter().filter_map(|data| data.get(usize::from(at) * 2..)?.first_chunk::<2>().copied());
        let words: Vec<u16> = words.map(u16::from_be_bytes).collect();
        let (low, high) = (words.iter().min().copied().unwrap_or(0), words.iter().max().copied().unwrap_or(0));
        let note = match word {
            _ if low != high => format!("  moved, {low} to {high}"),
            0xFFFF | 0x8000 | 0x7FFF => "  n/a?".to_owned(),
            _ => String::new(),
        };
        let line = format!(
            "{address:5}  {one:5}  {modicon:>7}  0x{word:04x}  {word:5}  {signed:6}  {text:4}  {word:016b}{note}"
        );
        let _ = writeln!(out, "{}", line.trim_end());
    }
    for width in [2, 4] {
        if args.count < width {
            break;
        }
        let bits = width * 16;
        let _ = writeln!(
            out,
            "\n{:>8}  {:<6}{}",
            format!("{bits} bits"),
            "",
            Order::ALL.map(|order| format!("{:>26}", format!("{order:?}"))).concat()
        );
        for start in 0..=(args.count - width) {
            let address = args.address.wrapping_add(start);
            for kind in Kind::of_width(width) {
                let cells = Order::ALL.map(|order| {
                    let cell = decodings(reads, start, kind, order);
                    format!("{:>26}", cell.show())
                });
                let _ = writeln!(out, "{address:>8}  {:<6}{}", kind.name(), cells.concat());
            }
        }
    }
    if args.count >= 2 {
        out += "\n* may be a value   ~ moved smoothly   ! moved by leaps   n/a: a usual mark of \"not available\"\n";
    }
    out
}

fn as_json(args: &ProbeArgs, reads: &[Vec<u8>]) -> String {
    let table = args.table.table();
    let registers: Vec<_> = match table.is_bits() {
        true => Vec::new(),
        false => (0..args.count)
            .map(|at| {
                let address = args.address.wrapping_add(at);
                let (one, modicon) = spellings(table, address);
                let wide = Kind::ALL.into_iter().filter(|kind| at + kind.width() <= args.count).map(|kind| {
                    let orders = Order::ALL.map(|order| {
                        let Decoding { text, plausible, .. } = decodings(reads, at, kind, order);
                        (format!("{order:?}"), json!({ "value": text, "plausible": plausible }))
                    });
                    (kind.name().to_owned(), serde_json::Value::Object(gather(orders)))
                });
                let word = reads.last().and_then(|data| data.get(usize::from(at) * 2..)?.first_chunk::<2>().copied());
                json!({
                    "address": address, "one_based": one, "modicon": modicon,
                    "u16": word.map(u16::from_be_bytes), "i16": word.map(i16::from_be_bytes),
                    "decodings": serde_json::Value::Object(gather(wide)),
                })
            })
            .collect(),
    };
    let reads: Vec<String> = reads.iter().map(|data| crate::socket::to_hex(data)).collect();
    let whole = json!({
        "unit_id": args.unit_id, "table": table.name(), "address": args.address, "count": args.count,
        "reads": reads, "registers": registers,
    });
    serde_json::to_string_pretty(&whole).unwrap_or_default()
}

/// The row to paste; without a type one for each decoding that may be meant, to choose from.
fn point_rows(args: &ProbeArgs, name: &str, reads: &[Vec<u8>]) -> Result<String, String> {
    let table = args.table.table();
    let row = |ty: &RegisterType, order: Option<Order>| {
        let order =
            order.filter(|_| ty.has_order()).map(|order| format!("order = \"{order:?}\"\n")).unwrap_or_default();
        let quoted = serde_json::to_string(name).unwrap_or_default();
        format!(
            "[[point]]\nname = {quoted}\ntable = \"{}\"\naddress = {}                # addressing = \"zero\"\ntype = \"{ty}\"\n{order}",
            table.name(),
            args.address
        )
    };
    if let Some(ty) = &args.ty {
        if !table.is_bits() && ty.width() > args.count {
            return Err(format!("{ty} takes {} registers, and {} were read", ty.width(), args.count));
        }
        return Ok(format!("\n{}", row(ty, Some(args.order.map_or(Order::ABCD, OrderArg::order)))));
    }
    if table.is_bits() {
        return Ok(format!("\n{}", row(&RegisterType::Bool, None)));
    }
    let mut out = String::from("\n# one of these; --type and --order print one alone\n");
    out += &row(&RegisterType::U16, None);
    for kind in Kind::ALL.into_iter().filter(|kind| kind.width() <= args.count) {
        for order in Order::ALL {
            let decoding = decodings(reads, 0, kind, order);
            if decoding.plausible {
                out += &format!("\n# {}\n{}", decoding.text, row(&kind.register_type(), Some(order)));
            }
        }
    }
    Ok(out)
}
