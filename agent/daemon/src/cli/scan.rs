//! `tributary scan`: which units answer on a bus, and what they say they are.
//!
//! Each number is asked once for one register. Any valid answer, an exception included, means that somebody is there;
//! silence and a gateway's "target failed to respond" mean that nobody is. Who is there is then asked who it is: by
//! device identification (function 43/14) and report server id (17), and whether it has SunSpec models. On a serial line
//! `--speeds` and `--parities` try settings in turn.
//!
//! Gentle: one question at a time with a pause behind it, reads only, and through the running agent if it owns the bus.
//! Ctrl-C ends it with what was found so far.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write as _};
use std::ops::RangeInclusive;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::json;
use tributary_protocols::modbus::bus::AskError;
use tributary_protocols::modbus::config::{Link, SerialLine};
use tributary_protocols::modbus::decode::exception_name;
use tributary_protocols::modbus::frame::read;
use tributary_protocols::sort;
use tributary_protocols::time::Clock;
use tributary_protocols::units::Span;

use super::line::{BusArgs, Line, ParityArg};
use crate::clock::SystemClock;
use crate::import::sunspec;

/// Which bus, which numbers, how patiently.
#[derive(Clone, Debug, Args)]
pub struct ScanArgs {
    #[command(flatten)]
    bus: BusArgs,
    /// Numbers to ask, as in 1-32,100 [default: 1-247]
    #[arg(long, value_name = "LIST", value_parser = units)]
    units: Option<Units>,
    /// How long an answer may take [default: 300ms, and longer on slow lines]
    #[arg(long, value_name = "TIME")]
    timeout: Option<Span>,
    /// Pause between two questions
    #[arg(long, value_name = "TIME", default_value = "20ms")]
    pause: Span,
    /// Speeds of the serial line to try, as in 9600,19200
    #[arg(long, value_name = "LIST", value_delimiter = ',', requires = "serial", conflicts_with = "baud")]
    speeds: Vec<u32>,
    /// Parities of the serial line to try, as in none,even
    #[arg(long, value_name = "LIST", value_delimiter = ',', requires = "serial", conflicts_with = "parity")]
    parities: Vec<ParityArg>,
    /// Print what was found as JSON
    #[arg(long)]
    json: bool,
}

/// Numbers of units.
#[derive(Clone, Debug)]
struct Units(Vec<u8>);

fn units(text: &str) -> Result<Units, String> {
    let one = |text: &str| {
        text.trim().parse::<u8>().ok().filter(|unit| *unit > 0).ok_or_else(|| format!("{text:?} is no unit, 1 to 255"))
    };
    let mut all = Vec::new();
    for part in text.split(',') {
        let range: RangeInclusive<u8> = match part.split_once('-') {
            Some((first, last)) => one(first)?..=one(last)?,
            None => one(part)?..=one(part)?,
        };
        if range.is_empty() {
            return Err(format!("{part:?} is empty: the smaller number comes first"));
        }
        all.extend(range);
    }
    sort(&mut all, Ord::cmp);
    all.dedup();
    Ok(Units(all))
}

/// A unit that answered.
#[derive(Clone, Debug, Default, PartialEq)]
struct Found {
    unit: u8,
    /// Speed and parity, where several were tried.
    setting: String,
    /// How it answered to a plain read.
    answer: String,
    took: Duration,
    /// What it says it is: vendor, product, revision and so on.
    identity: BTreeMap<&'static str, String>,
    /// Where its SunSpec models begin.
    sunspec: Option<u16>,
}

pub(super) fn scan(args: &ScanArgs) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let mut found = Vec::new();
    let done = runtime.map_err(|error| error.to_string()).and_then(|runtime| {
        runtime.block_on(async {
            tokio::select! {
                done = run(args, &mut found) => done,
                _ = tokio::signal::ctrl_c() => Err("interrupted: the list is not whole".to_owned()),
            }
        })
    });
    if std::io::stderr().is_terminal() {
        eprint!("\r\x1b[K");
    }
    if args.json {
        for one in &found {
            let millis = u64::try_from(one.took.as_millis()).unwrap_or(u64::MAX);
            println!(
                "{}",
                json!({ "unit": one.unit, "setting": one.setting, "answer": one.answer, "ms": millis,
                        "identity": one.identity, "sunspec": one.sunspec })
            );
        }
    } else if done.is_ok() || !found.is_empty() {
        print!("{}", words(&found));
    }
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn words(found: &[Found]) -> String {
    let mut text = String::new();
    for one in found {
        let setting = if one.setting.is_empty() { String::new() } else { format!(" at {}", one.setting) };
        text.push_str(&format!("unit {}{setting}: {} in {} ms", one.unit, one.answer, one.took.as_millis()));
        let names = one.identity.iter().map(|(key, value)| format!("{key} {value:?}"));
        let sunspec = one.sunspec.map(|base| format!("SunSpec models from {base} on"));
        for more in names.chain(sunspec) {
            text.push_str("; ");
            text.push_str(&more);
        }
        text.push('\n');
    }
    let count = match found.len() {
        0 => "nobody answered: look at wiring, speed, parity, and the numbers set at the devices".to_owned(),
        1 => "1 unit answered".to_owned(),
        more => format!("{more} units answered"),
    };
    text + &count + "\n"
}

async fn run(args: &ScanArgs, found: &mut Vec<Found>) -> Result<(), String> {
    let speeds: Vec<Option<u32>> = match args.speeds.as_slice() {
        [] => vec![args.bus.baud],
        speeds => speeds.iter().copied().map(Some).collect(),
    };
    let parities: Vec<Option<ParityArg>> = match args.parities.as_slice() {
        [] => vec![args.bus.parity],
        parities => parities.iter().copied().map(Some).collect(),
    };
    let settings: Vec<_> = speeds.iter().flat_map(|speed| parities.iter().map(|parity| (*speed, *parity))).collect();
    let units = args.units.clone().unwrap_or_else(|| Units((1..=247).collect()));
    let clock = SystemClock::new();
    let (began, all, mut asked) = (clock.mono(), settings.len() * units.0.len(), 0_u32);
    for (baud, parity) in &settings {
        let bus = BusArgs { baud: *baud, parity: *parity, ..args.bus.clone() };
        let (spec, agent) = bus.spec(Duration::from_millis(300))?;
        let (setting, wire) = match &spec.link {
            Link::Serial(line) => (setting(line, settings.len()), line.time(20)),
            _ => (String::new(), Duration::ZERO),
        };
        let timeout = args.timeout.map_or(Duration::from_millis(300) + wire * 2, |timeout| timeout.duration());
        let line = Line::open(spec, agent);
        for unit in &units.0 {
            let asks = clock.mono();
            let mut answer = line.ask(*unit, &read(3, 0, 1), Some(timeout)).await;
            // A server that was connected once may have ended the connection, and be slow to take another.
            for _ in 0..if asked > 0 { RETRIES } else { 0 } {
                if !answer.as_ref().is_err_and(|error| error.starts_with(NO_CONNECTION)) {
                    break;
                }
                rest(RETRY).await;
                answer = line.ask(*unit, &read(3, 0, 1), Some(timeout)).await;
            }
            let took = clock.mono().since(asks);
            asked += 1;
            if let Some(answer) = said(answer)? {
                let mut one = Found { unit: *unit, setting: setting.clone(), answer, took, ..Found::default() };
                who(&line, &mut one, timeout, args.pause.duration()).await?;
                found.push(one);
            }
            let left = clock.mono().since(began) / asked * u32::try_from(all).unwrap_or(u32::MAX).saturating_sub(asked);
            progress(&format!("unit {unit} {setting}: {} answered; {} s left", found.len(), left.as_secs()));
            rest(args.pause.duration()).await;
        }
        line.close().await;
    }
    Ok(())
}

fn setting(line: &SerialLine, of: usize) -> String {
    let parity = match line.parity {
        tributary_protocols::modbus::config::Parity::None => "none",
        tributary_protocols::modbus::config::Parity::Even => "even",
        tributary_protocols::modbus::config::Parity::Odd => "odd",
    };
    if of > 1 { format!("{} baud, parity {parity}", line.baud) } else { String::new() }
}

/// What an answer says of the unit; `None` if nobody is there.
fn said(answer: Result<Vec<u8>, String>) -> Result<Option<String>, String> {
    match answer {
        // A gateway says that nobody is there.
        Ok(pdu) if matches!(pdu.as_slice(), [function, 10 | 11] if function & 0x80 != 0) => Ok(None),
        Ok(pdu) => Ok(Some(match pdu.as_slice() {
            [function, code] if function & 0x80 != 0 => {
                format!("answered with exception {code}, {}", exception_name(*code))
            }
            _ => "answered".to_owned(),
        })),
        // Some servers end the connection rather than answer for a unit that is not there.
        Err(error) if [AskError::NoAnswer, AskError::Closed].iter().any(|one| one.to_string() == error) => Ok(None),
        // It is there, but what it says is no answer: a wrong speed, two units of one number.
        Err(error) if error.starts_with(DOUBT) => Ok(Some(format!("something came: {error}"))),
        Err(error) => Err(error),
    }
}

/// How [`AskError::NoConnection`] begins, how often it is tried again, and after what pause.
const NO_CONNECTION: &str = "no connection";
const RETRIES: u32 = 5;
const RETRY: Duration = Duration::from_millis(500);
/// How [`AskError::Doubt`] begins.
const DOUBT: &str = "an answer that cannot be trusted";

/// Asks a unit who it is.
async fn who(line: &Line, one: &mut Found, timeout: Duration, pause: Duration) -> Result<(), String> {
    const OBJECTS: [&str; 7] = ["vendor", "product", "revision", "url", "product name", "model", "application"];
    rest(pause).await;
    if let Ok(pdu) = line.ask(one.unit, &[0x2B, 0x0E, 1, 0], Some(timeout)).await
        && let [0x2B, 0x0E, _, _, _, _, count, objects @ ..] = pdu.as_slice()
    {
        let mut objects = objects;
        for _ in 0..*count {
            let [id, length, rest @ ..] = objects else { break };
            let (text, rest) = rest.split_at(usize::from(*length).min(rest.len()));
            let text = plain(text);
            if let Some(name) = OBJECTS.get(usize::from(*id)).filter(|_| !text.is_empty()) {
                one.identity.insert(name, text);
            }
            objects = rest;
        }
    }
    rest(pause).await;
    if let Ok(pdu) = line.ask(one.unit, &[0x11], Some(timeout)).await
        && let [0x11, count, id @ ..] = pdu.as_slice()
    {
        let id = id.get(..usize::from(*count)).unwrap_or(id);
        one.identity.insert("server id", plain(id));
    }
    for base in sunspec::BASES {
        rest(pause).await;
        if let Ok(pdu) = line.ask(one.unit, &read(3, base, 2), Some(timeout)).await
            && let [3, 4, a, b, c, d] = pdu.as_slice()
            && [u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d])] == sunspec::MARK
        {
            one.sunspec = Some(base);
            break;
        }
    }
    Ok(())
}

/// A text that a device gave: what cannot be shown is a point.
fn plain(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.trim_matches(|c: char| c.is_control() || c == ' ')
        .chars()
        .map(|c| if c.is_control() { '.' } else { c })
        .collect()
}

async fn rest(pause: Duration) {
    let _ = tokio::time::timeout(pause, std::future::pending::<()>()).await;
}

fn progress(text: &str) {
    if std::io::stderr().is_terminal() {
        eprint!("\r{text}\x1b[K");
        let _ = std::io::stderr().flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_units() {
        assert_eq!(units("1-3,7").map(|units| units.0), Ok(vec![1, 2, 3, 7]));
        assert_eq!(units("5,5,4").map(|units| units.0), Ok(vec![4, 5]));
        for wrong in ["", "0", "256", "3-1", "a", "1-"] {
            assert!(units(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn who_is_there_and_who_is_not() {
        assert_eq!(said(Ok(vec![3, 2, 0, 1])), Ok(Some("answered".into())));
        assert_eq!(said(Ok(vec![0x83, 2])), Ok(Some("answered with exception 2, illegal data address".into())));
        assert_eq!(said(Ok(vec![0x83, 11])), Ok(None));
        assert_eq!(said(Err(AskError::NoAnswer.to_string())), Ok(None));
        assert!(said(Err("no connection".into())).is_err());
        let doubt = AskError::Doubt(tributary_protocols::modbus::frame::Doubt::Protocol(1)).to_string();
        assert!(said(Err(doubt)).is_ok_and(|found| found.is_some()));
    }
}
