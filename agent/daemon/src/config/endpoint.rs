//! Where a broker answers, as a URL says it: `mqtt://HOST[:PORT]` or `mqtts://HOST[:PORT]`.
//!
//! Nothing else of a URL has a meaning here, so anything else is refused; above all a password, which would end up in
//! listings and logs.

/// A broker's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Whether TLS is spoken.
    pub tls: bool,
    /// Host name or address; an IPv6 address without its brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl Endpoint {
    /// Whether it is this machine, by its name alone.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
    }
}

/// Reads a URL.
///
/// # Errors
/// What is wrong with it, for people.
pub fn parse(url: &str) -> Result<Endpoint, String> {
    let (scheme, rest) = url.split_once("://").ok_or_else(|| format!("{url:?} names no scheme"))?;
    let (tls, default) = match scheme {
        "mqtt" => (false, 1883),
        "mqtts" => (true, 8883),
        _ => return Err(format!("the scheme {scheme:?} is not spoken")),
    };
    if rest.contains('@') {
        return Err("a URL may hold neither user nor password: set `username` and `password_file`".into());
    }
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let (host, port) = match rest.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']').ok_or_else(|| format!("{url:?} lacks a ]"))?;
            if host.parse::<std::net::Ipv6Addr>().is_err() {
                return Err(format!("{host:?} is no IPv6 address"));
            }
            (host, port.strip_prefix(':').map(Some).or(port.is_empty().then_some(None)))
        }
        None => match rest.split_once(':') {
            Some((host, port)) => (host, Some(Some(port))),
            None => (rest, Some(None)),
        },
    };
    let port = match port {
        Some(None) => default,
        Some(Some(port)) if port.bytes().all(|b| b.is_ascii_digit()) => match port.parse() {
            Ok(port) if port > 0 => port,
            _ => return Err(format!("{port:?} is no port")),
        },
        _ => return Err(format!("{url:?} has no port where one should be")),
    };
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
    if host.is_empty() || host.len() > 253 || !host.chars().all(good) {
        return Err(format!("{host:?} is no host name"));
    }
    Ok(Endpoint { tls, host: host.to_owned(), port })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let endpoint = |tls, host: &str, port| Ok(Endpoint { tls, host: host.to_owned(), port });
        assert_eq!(parse("mqtt://broker.example"), endpoint(false, "broker.example", 1883));
        assert_eq!(parse("mqtts://10.0.0.1:9000/"), endpoint(true, "10.0.0.1", 9000));
        assert_eq!(parse("mqtts://[::1]"), endpoint(true, "::1", 8883));
        assert_eq!(parse("mqtt://[::1]:7"), endpoint(false, "::1", 7));
        assert!(parse("mqtt://[::1]:7").expect("an endpoint").is_loopback());
        assert!(!parse("mqtt://10.0.0.1").expect("an endpoint").is_loopback());
        for bad in [
            "",
            "broker",
            "http://b",
            "mqtt://",
            "mqtt://:1",
            "mqtt://b:0",
            "mqtt://b:99999",
            "mqtt://b:x",
            "mqtt://u:p@b",
            "mqtt://b/path",
            "mqtt://[::1",
            "mqtt://[x]:1",
            "mqtt://[::1]1",
            "mqtt://b:1:2",
            "mqtt://b c",
            "mqtt://b:",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
