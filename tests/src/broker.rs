//! A real mosquitto on a port of its own, with Debian's default persistence: what it has PUBACKed is gone after SIGKILL.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::{PATIENCE, Process, eventually, free_port, listens, program};

/// Room for what a receiver that is away has not taken.
pub const QUEUE: &str = "max_queued_messages 100000";

/// mosquitto, started by the test.
#[derive(Debug)]
pub struct Mosquitto {
    port: u16,
    folder: PathBuf,
    process: Process,
}

impl Mosquitto {
    /// Starts one with its files in `folder`, and waits until it accepts connections.
    ///
    /// # Errors
    /// If its files cannot be written.
    ///
    /// # Panics
    /// If mosquitto is not installed, or does not come up within 10 s.
    pub async fn start(folder: &Path) -> io::Result<Self> {
        Self::start_with(folder, QUEUE).await
    }

    /// The same, with more lines in its configuration.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    ///
    /// # Panics
    /// As [`start`](Self::start).
    pub async fn start_with(folder: &Path, more: &str) -> io::Result<Self> {
        let port = free_port();
        fs::create_dir_all(folder)?;
        configure(folder, port, more)?;
        let process = launch(folder, port).await?;
        Ok(Self { port, folder: folder.to_path_buf(), process })
    }

    /// Ends it as its service would, and starts it with other lines in its configuration.
    ///
    /// # Errors
    /// If it cannot be started.
    ///
    /// # Panics
    /// If it does not end within a minute.
    pub async fn restart_with(&mut self, more: &str) -> io::Result<()> {
        self.process.terminate();
        self.process.end(PATIENCE).await;
        configure(&self.folder, self.port, more)?;
        self.restart().await
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Everything it has logged since it was last started.
    #[must_use]
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Where it listens.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// As the configuration files name it.
    #[must_use]
    pub fn url(&self) -> String {
        format!("mqtt://127.0.0.1:{}", self.port)
    }

    /// SIGKILL: sessions, retained and queued messages since the last autosave (30 min) are gone.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it again on the same port.
    ///
    /// # Errors
    /// If it cannot be started.
    pub async fn restart(&mut self) -> io::Result<()> {
        self.process = launch(&self.folder, self.port).await?;
        Ok(())
    }
}

fn configure(folder: &Path, port: u16, more: &str) -> io::Result<()> {
    // `user root`: stay who we are. It matters only when started by root, who owns the folder.
    let config = format!(
        "listener {port} 127.0.0.1\nallow_anonymous true\nuser root\nset_tcp_nodelay true\nlog_type all\n\
         persistence true\npersistence_location {}/\n{more}\n",
        folder.display()
    );
    fs::write(folder.join("mosquitto.conf"), config)
}

async fn launch(folder: &Path, port: u16) -> io::Result<Process> {
    let mut command = Command::new(program("mosquitto", "Debian's mosquitto"));
    command.arg("-c").arg(folder.join("mosquitto.conf"));
    let mut process = Process::start("mosquitto", folder, &command)?;
    eventually("mosquitto to listen", PATIENCE, async || {
        assert!(process.ended().is_none(), "mosquitto ended at once: {}", process.log());
        listens(port).then_some(())
    })
    .await;
    Ok(process)
}
