//! `tributary enroll`: the key is made on this device, a request for its certificate goes out, the certificate is taken.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use tributary_protocols::time::{Clock, Wall};

use super::{BAD_CONFIGURATION, FileArg, load_or_tell};
use crate::clock::SystemClock;
use crate::config::{Config, FileRef, Occasion};
use crate::enroll::{Asked, EnrollError, Places};
use crate::machine::Machine;

/// How long before its last day a certificate warns: a third of its life.
const LIFE: &str = "a third of its life before that";

/// Arguments of `enroll`.
#[derive(Debug, Args)]
pub struct EnrollArgs {
    /// The configuration.
    #[command(flatten)]
    file: FileArg,
    /// The certificate that answers the request, with its chain, PEM: check it and put it in force
    #[arg(long, value_name = "FILE")]
    certificate: Option<PathBuf>,
    /// The authorities that sign agents, if they are not those in `uplink.ca`, PEM
    #[arg(long, value_name = "FILE", requires = "certificate")]
    issuer: Option<PathBuf>,
    /// Folder of key and certificate, where the configuration names systemd credentials
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Say how the state of another machine came to be on this one
    #[arg(long, value_enum, conflicts_with = "certificate")]
    machine: Option<How>,
}

/// How the state came here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum How {
    /// The same gateway on another board: go on with its identity and its readings
    Moved,
    /// A copy of another gateway, under an id of its own: new key, empty spool
    Copied,
}

pub(super) fn enroll(args: &EnrollArgs) -> ExitCode {
    let Some(config) = load_or_tell(&args.file, Occasion::Beside) else { return ExitCode::from(BAD_CONFIGURATION) };
    match act(args, &config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn act(args: &EnrollArgs, config: &Config) -> Result<(), String> {
    match args.machine {
        Some(How::Moved) => return moved(config),
        Some(How::Copied) => copied(args, config)?,
        None => {}
    }
    let places = places(args, config)?;
    let id = &config.agent.id;
    let file = args.file.config.display();
    match &args.certificate {
        None => {
            let Asked { text, file: request, key } = places.ask(id).map_err(|error| error.to_string())?;
            print!("{text}");
            eprintln!("The key is in {}; it stays on this machine. Nothing else has changed.", key.display());
            eprintln!("Have the authority sign the request above, which is also in {}, for {id:?}.", request.display());
            eprintln!("Then: tributary enroll -c {file} --certificate FILE");
        }
        Some(chain) => {
            let ca = config.uplink.ca.as_ref().map(FileRef::path);
            let authorities =
                args.issuer.as_deref().or(ca).ok_or("name the authority that signed it: --issuer FILE")?;
            let taken = places.take(id, chain, authorities, wall()).map_err(|error| told(&error, args))?;
            println!("{} is in force until {}, and warns {LIFE}.", taken.subject, taken.last_day());
            println!(
                "A running agent takes it within seconds; one that reads credentials of systemd, at its next start."
            );
        }
    }
    Ok(())
}

fn told(error: &EnrollError, args: &EnrollArgs) -> String {
    match error {
        EnrollError::Refused(why) if why.contains("no authority") && args.issuer.is_none() => {
            format!("{error}\n = help: if another authority signs agents than brokers: --issuer FILE")
        }
        error => error.to_string(),
    }
}

/// Where the configuration has key and certificate.
fn places(args: &EnrollArgs, config: &Config) -> Result<Places, String> {
    let (Some(cert), Some(key)) = (&config.uplink.cert, &config.uplink.key) else {
        return Err("[uplink] names no `cert` and `key`: add both, they need not be there yet".into());
    };
    let place = |file: &FileRef| match (&args.out, file.credential()) {
        (Some(out), credential) => {
            let name = credential.map(Path::new).or(file.path().file_name().map(Path::new));
            name.map(|name| out.join(name)).ok_or_else(|| format!("{file:?} has no name"))
        }
        (None, Some(name)) => {
            Err(format!("{name:?} is a credential of systemd: --out DIR names the folder that the unit takes it from"))
        }
        (None, None) => Ok(file.path().to_path_buf()),
    };
    Ok(Places { key: place(key)?, cert: place(cert)?, owner: Places::owner_of(&config.agent.state_dir) })
}

fn moved(config: &Config) -> Result<(), String> {
    let dir = &config.agent.state_dir;
    Machine::this(&config.agent).note(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    println!("The state in {} is this machine's from now on. Start the agent: nothing kept is lost.", dir.display());
    println!("The card or disk that it was copied from must not run again as {:?}.", config.agent.id);
    Ok(())
}

fn copied(args: &EnrollArgs, config: &Config) -> Result<(), String> {
    let dir = &config.agent.state_dir;
    let this = Machine::this(&config.agent);
    if Machine::known(dir).is_none_or(|known| known.agent == this.agent) {
        return Err(format!("a copy needs an `id` of its own, and the configuration still says {:?}", config.agent.id));
    }
    // The other gateway sends what is in this spool; here it would come under another name.
    let spool = dir.join("spool");
    if spool.exists() {
        let aside = (1..).map(|n: u32| dir.join(format!("spool-copied-{n}"))).find(|aside| !aside.exists());
        let aside = aside.ok_or("there is no name left for the copied spool")?;
        std::fs::rename(&spool, &aside).map_err(|error| format!("{}: {error}", spool.display()))?;
        eprintln!("The spool of the other gateway is set aside in {}.", aside.display());
    }
    if config.uplink.key.is_some() {
        places(args, config)?.forget().map_err(|error| error.to_string())?;
    }
    this.note(dir).map_err(|error| format!("{}: {error}", dir.display()))
}

fn wall() -> Wall {
    SystemClock::new().wall()
}
