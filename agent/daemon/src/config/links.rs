//! What the links of the buses need of this machine: certificates, serial nodes, and that no line has two masters.

use std::collections::BTreeMap;

use tributary_protocols::modbus::config::{BusSpec, Link};

use super::Check;
use super::document::join;
use super::files::FileRef;

/// Looks at every bus and puts the places where its files are into its spec. `places` are the buses' numbers in the file.
pub(super) fn check(buses: &mut [BusSpec], places: &[usize], check: &mut Check<'_, '_>) {
    let mut owners: BTreeMap<String, String> = BTreeMap::new();
    for (bus, place) in buses.iter_mut().zip(places) {
        let path = format!("bus[{place}]");
        if let Some(owner) = owners.insert(bus.endpoint(), bus.name.clone()) {
            let message = format!("{:?} is the bus {owner:?} already", bus.endpoint());
            let help = "one bus a line, with all its devices: two masters disturb each other";
            match bus.link {
                Link::Serial(_) => check.error(&join(&path, "serial"), message, help),
                Link::Tcp { .. } => check.warning(&join(&path, "tcp"), message, help),
                Link::RtuOverTcp { .. } => check.error(&join(&path, "rtu_over_tcp"), message, help),
                Link::Tls { .. } => check.warning(&join(&path, "tls"), message, help),
            }
        }
        match &mut bus.link {
            Link::Tls { ca, client, .. } => {
                let certificate = "-----BEGIN CERTIFICATE-----";
                look(check, &join(&path, "ca"), ca, certificate, false);
                if let Some((cert, key)) = client {
                    look(check, &join(&path, "cert"), cert, certificate, false);
                    look(check, &join(&path, "key"), key, "PRIVATE KEY-----", true);
                }
            }
            Link::Serial(line) => {
                if !std::path::Path::new(&line.device).exists() {
                    let message = format!("there is no {} on this machine now", line.device);
                    let help = "plug the adapter in; `ls -l /dev/serial/by-id` shows names that stay";
                    check.warning(&join(&path, "serial"), message, help);
                }
            }
            Link::Tcp { .. } | Link::RtuOverTcp { .. } => {}
        }
    }
}

fn look(check: &mut Check<'_, '_>, key: &str, file: &mut String, mark: &str, secret: bool) {
    let mut found = FileRef::from(file.clone());
    check.file(key, Some(&mut found), mark, secret);
    *file = found.path().display().to_string();
}
