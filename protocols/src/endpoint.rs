//! Network addresses as people write them.

use alloc::string::String;

/// `HOST:PORT` or `[IPV6]:PORT`, the port perhaps left to its default; the port is not 0.
pub(crate) fn host_and_port(text: &str, default: Option<u16>) -> Option<(String, u16)> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']')?;
            host.parse::<core::net::Ipv6Addr>().ok()?;
            (host, if rest.is_empty() { None } else { Some(rest.strip_prefix(':')?) })
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let port = match port {
        Some(port) if port.bytes().all(|byte| byte.is_ascii_digit()) => port.parse().ok(),
        Some(_) => None,
        None => default,
    };
    let named = |character: char| character.is_ascii_alphanumeric() || "-._:".contains(character);
    let good = !host.is_empty() && host.len() <= 253 && host.chars().all(named);
    port.filter(|port| *port != 0 && good).map(|port| (host.into(), port))
}
