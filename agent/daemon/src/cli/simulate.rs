//! `tributary simulate`: the configured devices as Modbus slaves.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use serial2_tokio::{CharSize, Parity, SerialPort, Settings, StopBits};
use tokio::net::TcpListener;
use tributary_protocols::modbus::config::{self, Framing, Link, SerialLine};
use tributary_protocols::time::Clock;

use super::{BAD_CONFIGURATION, FileArg, load_or_tell};
use crate::clock::SystemClock;
use crate::config::{BusSource, Config, Occasion};
use crate::simulate::fault::Fault;
use crate::simulate::image::{Gaps, Unit};
use crate::simulate::replay::Replay;
use crate::simulate::serve::{Served, listen, serve};

/// What to serve, and how.
#[derive(Clone, Debug, Args)]
pub struct SimulateArgs {
    #[command(flatten)]
    file: FileArg,
    /// Where the first bus listens, each further one a port higher; port 0 takes free ones
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:5020")]
    listen: std::net::SocketAddr,
    /// Serve serial frames over TCP
    #[arg(long, conflicts_with = "serial")]
    rtu_over_tcp: bool,
    /// Serve on this serial line instead, at the bus's own speed (19200 8E1 if it has none)
    #[arg(long, value_name = "DEVICE")]
    serial: Option<PathBuf>,
    /// Serve this bus alone
    #[arg(long, value_name = "NAME")]
    bus: Option<String>,
    /// Let something go wrong, KIND[@UNIT][:PERCENT]: silent late slow exception-N truncate corrupt wrong-unit
    /// wrong-transaction garbage noise echo double byte-by-byte close
    #[arg(long = "fault", value_name = "FAULT")]
    faults: Vec<Fault>,
    /// Values from a CSV file: time,point,value
    #[arg(long, value_name = "FILE")]
    replay: Option<PathBuf>,
    /// What registers between points are
    #[arg(long, value_enum, default_value_t)]
    gaps: Gaps,
    /// Another seed, other values
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
}

pub(super) fn simulate(args: &SimulateArgs) -> ExitCode {
    let Some(config) = load_or_tell(&args.file, Occasion::Check) else { return ExitCode::from(BAD_CONFIGURATION) };
    crate::log::to_stderr("info");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime.map_err(|error| error.to_string()).and_then(|runtime| runtime.block_on(run(args, config))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: &SimulateArgs, config: Config) -> Result<(), String> {
    let replay = args.replay.as_ref().map(|file| {
        let text = std::fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
        Replay::parse(&text).map_err(|error| format!("{}: {error}", file.display()))
    });
    let replay = replay.transpose()?;
    let buses: Vec<&BusSource> =
        config.buses.iter().filter(|bus| args.bus.as_ref().is_none_or(|name| bus.spec.name == *name)).collect();
    if buses.is_empty() {
        let names: Vec<_> = config.buses.iter().map(|bus| bus.spec.name.as_str()).collect();
        return Err(format!("there is no such [[bus]]; there are: {}", names.join(", ")));
    }
    if args.serial.is_some() && buses.len() > 1 {
        return Err("one serial line serves one bus: name it by --bus".into());
    }
    if let Some(replay) = &replay {
        let known = |name: &str| {
            config.devices.iter().any(|device| {
                name.strip_prefix(device.name.as_str())
                    .and_then(|rest| rest.strip_prefix('/'))
                    .is_some_and(|point| device.points.iter().any(|known| known.point.name == point))
            })
        };
        for name in replay.names().filter(|name| !known(name)) {
            eprintln!("warning: {name:?} of the replayed file is no polled point of a Modbus device");
        }
    }
    let clock = SystemClock::new();
    let mut tasks = tokio::task::JoinSet::new();
    for (number, bus) in buses.into_iter().enumerate() {
        let devices = config.devices.iter().filter(|device| device.bus == bus.spec.name);
        let units: Vec<Unit> = devices.map(|device| Unit::new(device.clone(), args.gaps, args.seed)).collect();
        let lines: Vec<String> = units
            .iter()
            .map(|unit| {
                let spec = unit.spec();
                format!("  unit {:3}  {:24} {} points", spec.unit, spec.name, spec.points.len())
            })
            .collect();
        let (faults, replay) = (args.faults.clone(), replay.clone());
        let served = Arc::new(Served { units, faults, replay, seed: args.seed, start: clock.mono(), clock });
        let place = match &args.serial {
            Some(device) => {
                let port = open(device, &bus.spec.link).map_err(|error| format!("{}: {error}", device.display()))?;
                tasks.spawn(
                    async move { serve(port, Framing::Rtu, &served, fastrand::Rng::with_seed(served.seed)).await },
                );
                device.display().to_string()
            }
            None => {
                let mut address = args.listen;
                if address.port() != 0 {
                    let port = usize::from(address.port()) + number;
                    address.set_port(u16::try_from(port).map_err(|_| "there are not so many ports".to_owned())?);
                }
                let listener = TcpListener::bind(address).await.map_err(|error| format!("{address}: {error}"))?;
                let address = listener.local_addr().map_err(|error| error.to_string())?;
                let framing = if args.rtu_over_tcp { Framing::Rtu } else { Framing::Tcp };
                tasks.spawn(listen(listener, framing, served));
                let what = if args.rtu_over_tcp { "serial frames over TCP" } else { "Modbus TCP" };
                format!("{address}, {what}")
            }
        };
        println!("bus {:?} at {place}\n{}", bus.spec.name, lines.join("\n"));
    }
    tokio::select! {
        _ = tokio::signal::ctrl_c() => Ok(()),
        () = terminated() => Ok(()),
        Some(ended) = tasks.join_next() => match ended {
            Ok(Ok(())) => Err("the line has ended".into()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(error) => Err(error.to_string()),
        },
    }
}

async fn terminated() {
    match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
        Ok(mut signal) => {
            signal.recv().await;
        }
        Err(_) => std::future::pending().await,
    }
}

/// The slave's end of a line, at the speed of the bus.
fn open(device: &std::path::Path, link: &Link) -> std::io::Result<SerialPort> {
    let standard =
        SerialLine { device: String::new(), baud: 19_200, parity: config::Parity::Even, stop_bits: 1, rs485: None };
    let line = if let Link::Serial(line) = link { line.clone() } else { standard };
    SerialPort::open(device, |mut settings: Settings| {
        settings.set_raw();
        settings.set_baud_rate(line.baud)?;
        settings.set_char_size(CharSize::Bits8);
        settings.set_parity(match line.parity {
            config::Parity::None => Parity::None,
            config::Parity::Even => Parity::Even,
            config::Parity::Odd => Parity::Odd,
        });
        settings.set_stop_bits(if line.stop_bits == 2 { StopBits::Two } else { StopBits::One });
        Ok(settings)
    })
}
