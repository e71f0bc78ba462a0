//! What a person sees: a page that is redrawn where there is a terminal, a line now and then where there is none.
//!
//! Values, statuses and rates are those of the receiver's database: what has come through, not what the plant has. So an
//! outage shows as values that grow old. The rest is what `tributary status` says.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use tributary::status::{DeviceState, Status};

use crate::plant::now_ms;
use crate::proof;

/// Between two lines of figures where there is no terminal.
const SECONDS_A_LINE: u64 = 5;
/// The rate is of the last so many seconds.
const RATE_SECONDS: i64 = 10;
/// What a terminal that does not say its size is taken for.
const USUAL_SIZE: (usize, usize) = (30, 100);
/// Lines of the page that are neither points nor story.
const FRAME: usize = 11;
/// The story gets so many lines before points do.
const STORY: usize = 7;

/// Points of the page, the first ones even on a small terminal: device, point, statistic, unit, digits.
const SHOWN: [(&str, &str, &str, &str, usize); 18] = [
    ("press", "force", "", "kN", 1),
    ("press", "state", "", "", 0),
    ("furnace", "zone-1", "", "Cel", 1),
    ("meter", "power", "", "kW", 1),
    ("meter", "energy", "", "W.h", 0),
    ("cell", "north/temperature", "mean", "Cel", 2),
    ("press", "vibration", "max", "mm/s", 2),
    ("cell", "south/humidity", "", "%", 2),
    ("press", "strokes", "", "1", 0),
    ("press", "oil-temperature", "", "Cel", 1),
    ("furnace", "gas", "", "m3", 2),
    ("furnace", "exhaust", "mean", "Cel", 1),
    ("meter", "voltage-1", "", "V", 1),
    ("meter", "frequency", "mean", "Hz", 3),
    ("cell", "west/temperature", "mean", "Cel", 2),
    ("press", "motor-current", "", "A", 2),
    ("furnace", "draught", "", "Pa", 1),
    ("furnace", "oxygen", "", "%", 2),
];

/// How a line looks.
#[derive(Clone, Copy)]
enum Tone {
    Plain,
    Bold,
    Dim,
    Bad,
}

/// The screen.
pub(crate) struct View {
    database: PathBuf,
    /// The demo's length in seconds.
    of: u64,
    quiet: bool,
    terminal: bool,
    story: Vec<String>,
    /// The second of the last line of figures.
    told: u64,
}

impl View {
    /// Quiet prints nothing at all.
    pub(crate) fn new(database: &Path, of: u64, quiet: bool) -> Self {
        let terminal = !quiet && std::io::stdout().is_terminal();
        if terminal {
            // An empty page, without a cursor.
            print!("\x1b[2J\x1b[?25l");
        }
        Self { database: database.to_path_buf(), of, quiet, terminal, story: Vec::new(), told: 0 }
    }

    /// Says what happens now.
    pub(crate) fn say(&mut self, second: u64, what: &str) {
        let line = format!("{second:>4} s  {what}");
        if !self.quiet && !self.terminal {
            println!("{line}");
        }
        self.story.push(line);
    }

    /// Draws how things are.
    pub(crate) fn draw(&mut self, second: u64, status: Option<&Status>) {
        if self.terminal {
            let (rows, columns) = size();
            let page = self.page(second, status, rows);
            let mut text = String::from("\x1b[H");
            for (tone, line) in page.iter().take(rows.saturating_sub(1)) {
                let line: String = line.chars().take(columns).collect();
                text += &match tone {
                    Tone::Plain => line,
                    Tone::Bold => format!("\x1b[1m{line}\x1b[0m"),
                    Tone::Dim => format!("\x1b[2m{line}\x1b[0m"),
                    Tone::Bad => format!("\x1b[31m{line}\x1b[0m"),
                };
                text += "\x1b[K\n";
            }
            text += "\x1b[J";
            let mut out = std::io::stdout().lock();
            // A terminal that is gone needs no picture.
            let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        } else if !self.quiet && second >= self.told + SECONDS_A_LINE {
            self.told = second;
            if let Some(status) = status {
                println!("{second:>4} s  {}; batches waiting: {}", law(status), status.spool.records);
            }
        }
    }

    fn page(&self, second: u64, status: Option<&Status>, rows: usize) -> Vec<(Tone, String)> {
        let mut page = vec![
            (
                Tone::Bold,
                format!("Tributary: the whole line in one terminal, second {} of {}", second.min(self.of), self.of),
            ),
            (Tone::Plain, String::new()),
        ];
        page.push((
            Tone::Dim,
            format!(
                "{:<26}{:>14} {:<6}{:<12}{:>8}{:>9}",
                "IN THE DATABASE", "value", "unit", "status", "rows/s", "age"
            ),
        ));
        let room = rows.saturating_sub(1 + FRAME + STORY).clamp(6, SHOWN.len());
        page.extend(self.points(room, second));
        page.push((Tone::Plain, String::new()));
        match status {
            Some(status) => page.extend(agent(status)),
            None => {
                page.push((Tone::Bad, "agent    does not run".into()));
                page.resize(page.len() + 3, (Tone::Plain, String::new()));
            }
        }
        let sizes = proof::open(&self.database).and_then(|connection| proof::sizes(&connection));
        page.push((
            Tone::Plain,
            sizes.map_or(String::new(), |sizes| {
                format!(
                    "wire     {:.2} bytes a reading, whole envelopes; {} readings in {} batches",
                    sizes.a_reading(),
                    sizes.readings,
                    sizes.batches
                )
            }),
        ));
        page.push((Tone::Plain, String::new()));
        let left = rows.saturating_sub(1 + page.len()).max(3);
        let last = self.story.get(self.story.len().saturating_sub(left)..).unwrap_or_default();
        page.extend(last.iter().map(|line| (Tone::Plain, line.clone())));
        page
    }

    /// The newest row of the first `room` points.
    fn points(&self, room: usize, second: u64) -> Vec<(Tone, String)> {
        let now = now_ms();
        let span = i64::try_from(second).unwrap_or(RATE_SECONDS).clamp(1, RATE_SECONDS);
        let Ok(connection) = proof::open(&self.database) else { return Vec::new() };
        let sql = "SELECT value_num, status, max(at_ms), sum(at_ms > ?4) FROM reading \
                   WHERE device = ?1 AND point = ?2 AND statistic = ?3";
        let Ok(mut newest) = connection.prepare_cached(sql) else { return Vec::new() };
        let mut lines = Vec::new();
        for (device, point, statistic, unit, digits) in SHOWN.iter().take(room) {
            let name = format!("{device}/{point} {statistic}");
            let found = newest.query_row((device, point, statistic, now - 1_000 * span), |row| {
                Ok((row.get::<_, Option<f64>>(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?, row.get::<_, i64>(3)?))
            });
            lines.push(match found {
                Ok((value, status, at, recent)) => {
                    let value = value.map_or("-".to_owned(), |value| format!("{value:.digits$}"));
                    let (rate, age) = (recent as f64 / span as f64, (now - at).max(0) as f64 / 1e3);
                    let tone = if status >= 16 { Tone::Bad } else { Tone::Plain };
                    (tone, format!("{name:<26}{value:>14} {unit:<6}{:<12}{rate:>8.1}{age:>7.1} s", word(status)))
                }
                Err(_) => (Tone::Dim, format!("{name:<26}{:>14}", "-")),
            });
        }
        lines
    }
}

impl Drop for View {
    fn drop(&mut self) {
        if self.terminal {
            print!("\x1b[?25h");
        }
    }
}

/// Four lines of what the agent says of itself.
fn agent(status: &Status) -> [(Tone, String); 4] {
    let devices: Vec<_> =
        status.devices.iter().map(|device| format!("{} {}", device.name, state(device.state))).collect();
    let acks = match status.uplink.last_ack_ms {
        Some(ms) => format!("last Ack {:.1} s ago", ms as f64 / 1e3),
        None => "no Ack yet".to_owned(),
    };
    let link = if status.uplink.connected { "connected" } else { "NO BROKER" };
    [
        (Tone::Plain, format!("plant    {}", devices.join(", "))),
        (if status.ledger.balances() { Tone::Bold } else { Tone::Bad }, format!("ledger   {}", law(status))),
        (
            if status.uplink.connected { Tone::Plain } else { Tone::Bad },
            format!(
                "uplink   {link}, {acks}; batch {} of {} acknowledged; {} reconnects",
                status.acked_seq, status.last_seq, status.uplink.reconnects
            ),
        ),
        (
            Tone::Plain,
            format!(
                "spool    batches waiting: {}, {} KB on disk",
                status.spool.records,
                status.spool.disk_bytes / 1_024
            ),
        ),
    ]
}

/// The law in figures.
fn law(status: &Status) -> String {
    let ledger = &status.ledger;
    let verdict = if ledger.balances() { "holds" } else { "DOES NOT HOLD" };
    format!(
        "{} admitted = {} delivered + {} held + {} filtered + {} lost: {verdict}",
        ledger.admitted,
        ledger.delivered,
        ledger.held,
        ledger.filtered,
        ledger.lost_total()
    )
}

fn state(state: DeviceState) -> &'static str {
    match state {
        DeviceState::Ok => "ok",
        DeviceState::Degraded => "degraded",
        DeviceState::Silent => "SILENT",
        DeviceState::Disabled => "disabled",
    }
}

/// A status by its number (`Status` in edge.proto).
fn word(status: i64) -> &'static str {
    match status {
        0 => "good",
        4 => "range",
        5 => "partial",
        16 => "COMM FAIL",
        17 => "DEVICE",
        18 => "NOT ASKED",
        _ => "other",
    }
}

/// Rows and columns of the terminal.
fn size() -> (usize, usize) {
    match rustix::termios::tcgetwinsize(std::io::stdout()) {
        Ok(size) if size.ws_row > 0 && size.ws_col > 0 => (size.ws_row.into(), size.ws_col.into()),
        _ => USUAL_SIZE,
    }
}
