//! The configuration: two arguments and a small TOML file, checked before anything is touched.
//!
//! `--broker` and `--store` say where; the file (`-c`) says who may: `prefix`, `group`, `ca`, `cert`, `key`, `username`,
//! `password_file`. Secrets are paths, never values; `credential:NAME` is a file of `$CREDENTIALS_DIRECTORY`, as systemd
//! gives it. An error names file, line, column and key and says what would be right.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;

use crate::store::StoreConfig;
use crate::topic::is_level;

/// What [`run`](crate::run) needs.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the messages come from.
    pub broker: Broker,
    /// Where the readings go.
    pub store: StoreConfig,
    /// First levels of every topic.
    pub prefix: String,
    /// Receivers of one group share the data.
    pub group: String,
}

/// The broker and how to log in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broker {
    /// Name or address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// The certificates, for `mqtts://`.
    pub tls: Option<Tls>,
    /// User name, and the file with the password.
    pub login: Option<(String, PathBuf)>,
}

/// PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// Whom to trust.
    pub ca: PathBuf,
    /// The receiver's certificate chain and its key.
    pub client: Option<(PathBuf, PathBuf)>,
}

/// What is wrong with the configuration, where, and what would be right.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {message}")]
pub struct ConfigError {
    /// An argument, or `FILE:LINE:COLUMN: KEY`.
    pub place: String,
    /// What is wrong, and what would be right.
    pub message: String,
}

impl ConfigError {
    /// An error at `place`.
    pub fn new(place: impl Into<String>, message: impl Into<String>) -> Self {
        Self { place: place.into(), message: message.into() }
    }
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct File {
    prefix: Option<Spanned<String>>,
    group: Option<Spanned<String>>,
    ca: Option<Spanned<String>>,
    cert: Option<Spanned<String>>,
    key: Option<Spanned<String>>,
    username: Option<Spanned<String>>,
    password_file: Option<Spanned<String>>,
}

/// A file's text, to say where something stands in it.
struct Source<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Source<'_> {
    fn error(&self, at: usize, key: &str, message: impl Into<String>) -> ConfigError {
        let before = self.text.get(..at).unwrap_or(self.text);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
        let key = if key.is_empty() { String::new() } else { format!(": {key}") };
        ConfigError::new(format!("{}:{line}:{column}{key}", self.path.display()), message)
    }

    /// A path must lead to a file that can be read.
    fn file(&self, key: &str, value: Option<&Spanned<String>>) -> Result<Option<PathBuf>, ConfigError> {
        let Some(value) = value else { return Ok(None) };
        let at = value.span().start;
        let path = match value.get_ref().strip_prefix("credential:") {
            None => PathBuf::from(value.get_ref()),
            Some(name) => std::env::var_os("CREDENTIALS_DIRECTORY")
                .map(|directory| PathBuf::from(directory).join(name))
                .ok_or_else(|| {
                    self.error(
                        at,
                        key,
                        "credential: needs $CREDENTIALS_DIRECTORY, which systemd sets by LoadCredential=",
                    )
                })?,
        };
        std::fs::File::open(&path).map_err(|error| self.error(at, key, format!("{}: {error}", path.display())))?;
        Ok(Some(path))
    }
}

impl Config {
    /// Checks the arguments and the file. Touches neither broker nor database.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn load(broker: &str, store: &str, file: Option<&Path>) -> Result<Self, ConfigError> {
        let Some(path) = file else {
            return Self::build(broker, store, &Source { path: Path::new("(no file)"), text: "" }, File::default());
        };
        let place = || path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|error| ConfigError::new(place(), error.to_string()))?;
        let source = Source { path, text: &text };
        let file = toml::from_str(&text)
            .map_err(|error| source.error(error.span().map_or(0, |span| span.start), "", error.message().trim_end()))?;
        Self::build(broker, store, &source, file)
    }

    fn build(broker: &str, store: &str, source: &Source<'_>, file: File) -> Result<Self, ConfigError> {
        let prefix = match &file.prefix {
            Some(prefix) if !prefix.get_ref().split('/').all(is_level) => {
                let wants = "must be levels of A-Z a-z 0-9 _ - with / between, like \"edge/v1\"";
                return Err(source.error(prefix.span().start, "prefix", wants));
            }
            Some(prefix) => prefix.get_ref().clone(),
            None => "edge/v1".to_owned(),
        };
        let group = match &file.group {
            Some(group) if !is_level(group.get_ref()) => {
                let wants = "must be 1 to 64 of A-Z a-z 0-9 _ -, like \"tributary\"";
                return Err(source.error(group.span().start, "group", wants));
            }
            Some(group) => group.get_ref().clone(),
            None => "tributary".to_owned(),
        };
        Ok(Self { broker: Self::broker(broker, source, &file)?, store: store_config(store)?, prefix, group })
    }

    fn broker(url: &str, source: &Source<'_>, file: &File) -> Result<Broker, ConfigError> {
        let (host, port, secure) = broker_url(url)?;
        let ca = source.file("ca", file.ca.as_ref())?;
        let cert = source.file("cert", file.cert.as_ref())?;
        let key = source.file("key", file.key.as_ref())?;
        let at = |value: &Option<Spanned<String>>| value.as_ref().map_or(0, |value| value.span().start);
        let client = match (cert, key) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            (Some(_), None) => return Err(source.error(at(&file.cert), "cert", "key is missing beside it")),
            (None, Some(_)) => return Err(source.error(at(&file.key), "key", "cert is missing beside it")),
        };
        let tls = match (secure, ca) {
            (true, Some(ca)) => Some(Tls { ca, client }),
            (true, None) => {
                return Err(ConfigError::new(
                    "--broker",
                    "mqtts:// needs ca in the file given by -c: the PEM file of whom to trust",
                ));
            }
            (false, Some(_)) => return Err(source.error(at(&file.ca), "ca", "mqtt:// has no TLS; use mqtts://")),
            (false, None) if client.is_some() => {
                return Err(source.error(at(&file.cert), "cert", "mqtt:// has no TLS; use mqtts://"));
            }
            (false, None) => None,
        };
        let password = source.file("password_file", file.password_file.as_ref())?;
        let login = match (&file.username, password) {
            (Some(name), Some(password)) => Some((name.get_ref().clone(), password)),
            (None, None) => None,
            (Some(name), None) => {
                return Err(source.error(name.span().start, "username", "password_file is missing beside it"));
            }
            (None, Some(_)) => {
                return Err(source.error(at(&file.password_file), "password_file", "username is missing beside it"));
            }
        };
        Ok(Broker { host, port, tls, login })
    }
}

/// Host, port and whether TLS is wanted.
fn broker_url(url: &str) -> Result<(String, u16, bool), ConfigError> {
    let wrong = |message: &str| ConfigError::new("--broker", format!("{url:?}: {message}"));
    let (rest, secure) = match (url.strip_prefix("mqtt://"), url.strip_prefix("mqtts://")) {
        (Some(rest), _) => (rest, false),
        (_, Some(rest)) => (rest, true),
        _ => return Err(wrong("must be mqtt://HOST[:PORT] or mqtts://HOST[:PORT]")),
    };
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    if rest.contains('@') {
        return Err(wrong("a login belongs into the file given by -c: username and password_file"));
    }
    if rest.contains(['/', '?', '#']) {
        return Err(wrong("nothing may follow the port"));
    }
    // [::1]:1883 or host:1883
    let (host, port) = match rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, port)) => (host, port),
        None => rest.find(':').map_or((rest, ""), |colon| rest.split_at(colon)),
    };
    if host.is_empty() {
        return Err(wrong("the host is missing"));
    }
    let port = match port.strip_prefix(':') {
        None if port.is_empty() => {
            if secure {
                8883
            } else {
                1883
            }
        }
        Some(port) => {
            port.parse().ok().filter(|&port| port != 0).ok_or_else(|| wrong("the port must be 1 to 65535"))?
        }
        None => return Err(wrong("after ] only :PORT may follow")),
    };
    Ok((host.to_owned(), port, secure))
}

fn store_config(store: &str) -> Result<StoreConfig, ConfigError> {
    let wrong = |message: String| ConfigError::new("--store", message);
    if let Some(path) = store.strip_prefix("sqlite:") {
        let path = PathBuf::from(path);
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if path.file_name().is_none() || path.is_dir() {
            return Err(wrong(format!(
                "{}: must be a file, like sqlite:/var/lib/tributary-receiver/centre.db",
                path.display()
            )));
        }
        if !directory.is_dir() {
            return Err(wrong(format!("the directory {} is not there; make it first", directory.display())));
        }
        return Ok(StoreConfig::Sqlite(path));
    }
    if store.starts_with("postgres://") || store.starts_with("postgresql://") {
        // The URL may hold a password: it is not repeated.
        let config: tokio_postgres::Config = store
            .parse()
            .map_err(|error| wrong(format!("{error}; must be like postgres://USER@HOST:5432/DATABASE")))?;
        if config.get_ssl_mode() == tokio_postgres::config::SslMode::Require {
            return Err(wrong("sslmode=require: this receiver speaks to PostgreSQL without TLS; use a Unix socket, the same host or a tunnel".into()));
        }
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            return Err(wrong("the host is missing; must be like postgres://USER@HOST:5432/DATABASE".into()));
        }
        return Ok(StoreConfig::Postgres(Box::new(config)));
    }
    Err(wrong("must be sqlite:FILE or postgres://USER@HOST:PORT/DATABASE".into()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn from_file(broker: &str, text: &str) -> Result<Config, ConfigError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("receiver.toml");
        std::fs::write(&path, text).unwrap();
        Config::load(broker, "sqlite:x.db", Some(&path))
            .map_err(|error| ConfigError { place: error.place.replace(&path.display().to_string(), "FILE"), ..error })
    }

    #[test]
    fn the_defaults() {
        let config = Config::load("mqtt://broker.example", "sqlite:x.db", None).unwrap();
        assert_eq!((config.prefix.as_str(), config.group.as_str()), ("edge/v1", "tributary"));
        assert_eq!(
            (config.broker.host.as_str(), config.broker.port, config.broker.tls),
            ("broker.example", 1883, None)
        );
        assert_eq!(broker_url("mqtts://[::1]"), Ok(("::1".into(), 8883, true)));
        assert_eq!(broker_url("mqtt://10.0.0.1:99/"), Ok(("10.0.0.1".into(), 99, false)));
    }

    #[test]
    fn an_error_says_where_and_what_would_be_right() {
        let cases = [
            ("prefix = \"edge/v1\"\ngroup = \"a b\"", "FILE:2:9: group: must be 1 to 64"),
            ("prefix = \"edge//v1\"", "FILE:1:10: prefix: must be levels"),
            ("\nca = 7", "FILE:2:6: invalid type: integer `7`, expected a string"),
            ("groups = \"x\"", "FILE:1:1: unknown field `groups`"),
            ("group = ", "FILE:1:"),
            ("username = \"x\"", "FILE:1:12: username: password_file is missing"),
            ("ca = \"/nowhere/ca.pem\"", "FILE:1:6: ca: /nowhere/ca.pem: No such file"),
            ("key = \"credential:x\"", "FILE:1:7: key: credential: needs"),
        ];
        for (text, wanted) in cases {
            let error = from_file("mqtt://h", text).unwrap_err().to_string();
            assert!(error.starts_with(wanted), "{text:?}: {error}");
        }
        for (broker, wanted) in [
            ("tcp://h", "must be mqtt://"),
            ("mqtt://", "host is missing"),
            ("mqtt://h:0", "the port must be"),
            ("mqtt://u:secret@h", "a login belongs"),
            ("mqtt://h/x", "nothing may follow"),
            ("mqtts://h", "needs ca"),
        ] {
            let error = from_file(broker, "").unwrap_err().to_string();
            assert!(error.starts_with("--broker") && error.contains(wanted), "{broker}: {error}");
        }
        for (store, wanted) in [
            ("mysql://h", "must be sqlite:"),
            ("sqlite:", "must be a file"),
            ("sqlite:/nowhere/at/all/x.db", "make it first"),
            ("postgres:///x", "host is missing"),
            ("postgres://h:port/x", "must be like"),
            ("postgres://u@h/x?sslmode=require", "without TLS"),
        ] {
            let error = Config::load("mqtt://h", store, None).unwrap_err().to_string();
            assert!(error.starts_with("--store") && error.contains(wanted), "{store}: {error}");
        }
    }

    #[test]
    fn debug_hides_the_password() {
        let config = Config::load("mqtt://h", "postgres://u:geheim@h/x", None).unwrap();
        assert!(!format!("{config:?}").contains("geheim"));
    }
}
