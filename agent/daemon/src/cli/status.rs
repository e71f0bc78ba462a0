//! `tributary status`: what the running agent says of itself, as JSON or in words.

use std::fmt::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use crate::config::AckMode;
use crate::socket;
use crate::status::{DeviceState, Identity, IdentityState, State, Status};

pub(super) fn status(socket: &Path, json: bool, watch: bool) -> ExitCode {
    loop {
        let text = match socket::status(socket) {
            Ok(status) if json => serde_json::to_string(&status).map(|line| line + "\n").unwrap_or_default(),
            Ok(status) => words(&status),
            Err(error) => {
                eprintln!("error: {error}");
                eprintln!(" = help: start it with `tributary run -c FILE`, and ask as the agent's user or as root");
                return ExitCode::FAILURE;
            }
        };
        if watch && !json {
            // Home, then the text, then clear what is left below: no flicker.
            print!("\x1b[H{}\x1b[J", text.replace('\n', "\x1b[K\n"));
            let _ = std::io::Write::flush(&mut std::io::stdout());
        } else {
            print!("{text}");
        }
        if !watch {
            return ExitCode::SUCCESS;
        }
        pause();
    }
}

#[expect(clippy::disallowed_methods, reason = "a command at a terminal: nothing else runs that could be held up")]
fn pause() {
    std::thread::sleep(Duration::from_secs(1));
}

/// The status for people.
pub(super) fn words(status: &Status) -> String {
    let mut out = String::new();
    let _ = write_words(status, &mut out);
    out
}

fn write_words(s: &Status, out: &mut String) -> std::fmt::Result {
    let state = match s.state {
        State::Offline => "offline",
        State::Online => "online",
        State::Stopping => "stopping",
        State::Degraded => "degraded",
    };
    writeln!(out, "{}/{} is {state} (tributary {}, up {})", s.site, s.agent, s.version, age(Some(s.uptime_ms)))?;
    if let Some(error) = &s.reload_error {
        writeln!(out, "         the new configuration is refused, the old one runs on: {}", printable(error))?;
    }
    let uplink = match (s.uplink.connected, s.uplink.healthy, s.uplink.ack) {
        (false, _, _) => "not connected".to_owned(),
        (true, false, AckMode::Receiver) => "connected; no acknowledgement on this connection yet".to_owned(),
        (true, false, AckMode::Broker) => "connected; the broker has taken nothing on this connection yet".to_owned(),
        (true, true, AckMode::Receiver) => "connected and acknowledged".to_owned(),
        (true, true, AckMode::Broker) => {
            "connected; the broker takes batches, and nobody answers for the database".to_owned()
        }
    };
    let last = s.uplink.last_ack_ms.map_or("never".to_owned(), |ms| format!("{} ago", age(Some(ms))));
    writeln!(out, "uplink   {uplink}; last acknowledgement {last}; {} reconnects", s.uplink.reconnects)?;
    if let Some(error) = s.uplink.last_error.as_ref().filter(|_| !s.uplink.healthy) {
        writeln!(out, "         {}", printable(error))?;
    }
    if let Some(identity) = &s.uplink.identity {
        write_identity(identity, out)?;
    }
    writeln!(
        out,
        "spool    {} batches, {} on disk, oldest {}; seq {} to {}, acknowledged to {}; {} quarantined{}",
        s.spool.records,
        bytes(s.spool.disk_bytes),
        age(s.spool.oldest_ms),
        s.first_retained_seq,
        s.last_seq,
        s.acked_seq,
        s.spool.quarantined,
        a_day(s.spool.written_bytes, s.uptime_ms)
    )?;
    if let Some(error) = &s.spool.last_error {
        writeln!(out, "         {}", printable(error))?;
    }
    let l = &s.ledger;
    let law = if l.balances() { "" } else { "   <- DOES NOT BALANCE: please report this" };
    writeln!(
        out,
        "ledger   {} admitted = {} delivered + {} held + {} filtered + {} lost{law}",
        l.admitted,
        l.delivered,
        l.held,
        l.filtered,
        l.lost_total()
    )?;
    for (reason, count) in l.lost.iter().filter(|(_, count)| **count > 0) {
        writeln!(out, "         lost {count}: {reason}")?;
    }
    writeln!(out, "clock    {}", format!("{:?}", s.time_quality).to_lowercase())?;
    for bus in &s.buses {
        writeln!(
            out,
            "bus      {:<20} {:>5.1} % busy, {} requests, {} time-outs{}",
            bus.name,
            bus.utilisation * 100.0,
            bus.requests,
            bus.timeouts,
            if bus.connected { "" } else { ", not connected" }
        )?;
        if bus.planned_cycle_ms > 0.0 {
            writeln!(
                out,
                "         planned {:.1} % and {:.1} ms a round, measured {:.1} ms; {} polls not sent, {} doubtful answers",
                bus.planned_utilisation * 100.0,
                bus.planned_cycle_ms,
                bus.cycle_ms,
                bus.missed,
                bus.errors + bus.crc_errors
            )?;
        }
        if let Some(error) = bus.last_error.as_ref().filter(|_| !bus.connected) {
            writeln!(out, "         {}", printable(error))?;
        }
    }
    for device in &s.devices {
        let state = match device.state {
            DeviceState::Ok => "ok",
            DeviceState::Degraded => "degraded",
            DeviceState::Silent => "silent",
            DeviceState::Disabled => "disabled",
        };
        write!(out, "device   {:<20} {state}", device.name)?;
        if device.polls_due > 0 {
            write!(out, ", {} of {} polls brought values", device.polls_ok, device.polls_due)?;
        }
        if device.answer_ms > 0.0 {
            write!(out, ", answers in {:.1} ms, at most {:.1}", device.answer_ms, device.answer_max_ms)?;
        }
        match &device.last_error {
            Some(error) => writeln!(out, "; last error: {}", printable(error))?,
            None => writeln!(out)?,
        }
        if !device.unsupported.is_empty() {
            writeln!(out, "         it does not have {}", device.unsupported.join(", "))?;
        }
    }
    Ok(())
}

fn write_identity(identity: &Identity, out: &mut String) -> std::fmt::Result {
    if let (Some(subject), Some(day)) = (&identity.subject, &identity.not_after) {
        let left = match identity.days_left {
            Some(1) => "1 day left".to_owned(),
            days => format!("{} days left", days.unwrap_or(0)),
        };
        let state = match identity.state {
            IdentityState::Expired => "; EXPIRED, or the clock is wrong",
            IdentityState::RenewSoon => "; RENEW IT SOON: `tributary enroll`",
            IdentityState::Ok | IdentityState::Trouble => "",
        };
        writeln!(out, "identity {}, valid until {day}, {left}{state}", printable(subject))?;
    }
    if let Some(trouble) = &identity.trouble {
        let stays = if identity.subject.is_some() { "what was in force stays: " } else { "" };
        writeln!(out, "identity TROUBLE: {stays}{}", printable(trouble))?;
    }
    Ok(())
}

/// A text that a device may have had a hand in, without what moves a terminal's cursor.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// What so many bytes in so many ms come to in a day; in the first minute that tells nothing.
fn a_day(written: Option<u64>, uptime_ms: u64) -> String {
    const DAY_MS: u128 = 86_400_000;
    let Some(written) = written.filter(|_| uptime_ms >= 60_000) else { return String::new() };
    let a_day = u128::from(written) * DAY_MS / u128::from(uptime_ms);
    format!("; {} a day written", bytes(u64::try_from(a_day).unwrap_or(u64::MAX)))
}

fn age(ms: Option<u64>) -> String {
    let Some(ms) = ms else { return "none".into() };
    match ms / 1_000 {
        0 => format!("{ms} ms"),
        s @ 1..120 => format!("{s} s"),
        s @ 120..7_200 => format!("{} min", s / 60),
        s @ 7_200..172_800 => format!("{} h", s / 3_600),
        s => format!("{} days", s / 86_400),
    }
}

pub(super) fn bytes(n: u64) -> String {
    match n {
        0..10_240 => format!("{n} B"),
        10_240..10_485_760 => format!("{} KB", n >> 10),
        10_485_760..10_737_418_240 => format!("{} MB", n >> 20),
        _ => format!("{} GB", n >> 30),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{Bus, Device, Ledger};

    #[test]
    fn a_status_reads_as_sentences() {
        let mut status = Status {
            state: State::Online,
            version: "1.2.3".into(),
            site: "plant-1".into(),
            agent: "gw-017".into(),
            ledger: Ledger {
                admitted: 10,
                delivered: 4,
                held: 3,
                filtered: 2,
                lost: [("spool_full".into(), 1)].into(),
            },
            buses: vec![Bus {
                name: "plc-net".into(),
                utilisation: 0.25,
                requests: 9,
                timeouts: 1,
                connected: true,
                ..Bus::default()
            }],
            devices: vec![Device {
                name: "tank".into(),
                state: DeviceState::Silent,
                polls_due: 7,
                polls_ok: 5,
                last_error: Some("no answer\x1b[2J".into()),
                ..Device::default()
            }],
            uptime_ms: 500_000,
            ..Status::default()
        };
        let text = words(&status);
        assert!(text.starts_with("plant-1/gw-017 is online (tributary 1.2.3, up 8 min)\n"), "{text}");
        assert!(text.contains("ledger   10 admitted = 4 delivered + 3 held + 2 filtered + 1 lost\n"), "{text}");
        assert!(text.contains("lost 1: spool_full"), "{text}");
        assert!(
            text.contains("tank                 silent, 5 of 7 polls brought values; last error: no answer [2J"),
            "{text}"
        );
        assert!(text.contains("25.0 % busy, 9 requests, 1 time-outs\n"), "{text}");
        status.ledger.held = 99;
        assert!(words(&status).contains("DOES NOT BALANCE"));
    }

    #[test]
    fn ages_and_sizes_are_short() {
        assert_eq!(age(None), "none");
        assert_eq!(age(Some(999)), "999 ms");
        assert_eq!(age(Some(119_999)), "119 s");
        assert_eq!(age(Some(u64::MAX)), "213503982334 days");
        assert_eq!(bytes(10_239), "10239 B");
        assert_eq!(bytes(u64::MAX), "17179869183 GB");
    }
}
