//! What a person sees: a page that is redrawn, or a line now and then where there is no terminal.

use std::io::{IsTerminal, Write};
use std::path::Path;

use tributary::status::Status;

use crate::proof;

/// The screen.
pub(crate) struct View {
    quiet: bool,
    terminal: bool,
    story: Vec<String>,
    drawn: u64,
}

impl View {
    /// Quiet prints nothing at all.
    pub(crate) fn new(quiet: bool) -> Self {
        Self { quiet, terminal: std::io::stdout().is_terminal(), story: Vec::new(), drawn: 0 }
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
    pub(crate) fn draw(&mut self, second: u64, of: u64, status: Option<&Status>, database: &Path) {
        if self.quiet {
            return;
        }
        if !self.terminal {
            if second >= self.drawn + 5
                && let Some(status) = status
            {
                self.drawn = second;
                println!("{second:>4} s  {}", law(status));
            }
            return;
        }
        let mut page = format!("\x1b[H\x1b[2JTributary: the main job, {second} of {of} s\n\n");
        page += "point                          value  status      rows  rows/s\n";
        for (point, value, status, rows) in points(database).unwrap_or_default() {
            let rate = rows as f64 / second.max(1) as f64;
            page += &format!("{point:<26}{value:>12}  {:<10}{rows:>6}  {rate:>6.1}\n", word(status));
        }
        match status {
            Some(status) => {
                page += &format!("\nlaw      {}\n", law(status));
                let acks = status.uplink.last_ack_ms.map_or("none yet".into(), |ms| format!("{ms} ms ago"));
                let link = if status.uplink.connected { "connected" } else { "no broker" };
                page += &format!("uplink   {link}, last acknowledgement {acks}\n");
                page += &format!(
                    "spool    {} batches waiting, {} KB on disk\n",
                    status.spool.records,
                    status.spool.disk_bytes / 1024
                );
            }
            None => page += "\nlaw      the agent does not run\n",
        }
        if let Some((bytes, readings)) = wire(database) {
            page += &format!("wire     {:.2} bytes of body a reading\n", bytes as f64 / readings.max(1) as f64);
        }
        page += "\n";
        for line in self.story.iter().rev().take(8).rev() {
            page += line;
            page.push('\n');
        }
        let mut out = std::io::stdout().lock();
        let _ = out.write_all(page.as_bytes()).and_then(|()| out.flush());
    }
}

fn law(status: &Status) -> String {
    let ledger = &status.ledger;
    let (admitted, delivered, held, filtered) = (ledger.admitted, ledger.delivered, ledger.held, ledger.filtered);
    let verdict = if ledger.balances() { "holds" } else { "DOES NOT HOLD" };
    format!(
        "{admitted} admitted = {delivered} delivered + {held} held + {filtered} filtered + {} lost: {verdict}",
        ledger.lost_total()
    )
}

/// The newest row of each point: name, value, status, rows.
fn points(database: &Path) -> Option<Vec<(String, String, i64, i64)>> {
    let connection = proof::open(database).ok()?;
    let sql = "SELECT device || '/' || point || CASE statistic WHEN '' THEN '' ELSE ' ' || statistic END AS name, \
               value_num, status, max(at_ms), count(*) FROM reading GROUP BY 1 ORDER BY 1 LIMIT 24";
    let mut statement = connection.prepare(sql).ok()?;
    let rows = statement
        .query_map([], |row| {
            let value: Option<f64> = row.get(1)?;
            let value = value.map_or("-".to_owned(), |value| format!("{value:.3}"));
            Ok((row.get(0)?, value, row.get(2)?, row.get(4)?))
        })
        .ok()?;
    rows.collect::<Result<_, _>>().ok()
}

fn wire(database: &Path) -> Option<(i64, i64)> {
    let connection = proof::open(database).ok()?;
    let sql = "SELECT sum(length(body)), sum(readings) FROM batch";
    connection.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?))).ok()
}

fn word(status: i64) -> &'static str {
    match status {
        0 => "good",
        4 => "range",
        5 => "partial",
        16 => "comm fail",
        17 => "device",
        _ => "other",
    }
}
