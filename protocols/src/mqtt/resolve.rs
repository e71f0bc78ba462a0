//! Keys → meaning: a broker and its rules that cannot be wrong, or every fault they have.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use crate::endpoint::host_and_port;
use crate::fault::{Fault, Faults};
use crate::mqtt::config::{Broker, PointRow, ValueType};
use crate::mqtt::{payload, topic};
use crate::number::Number;
use crate::point::{self, Point};
use crate::value::PointType;

/// Rules of one broker.
const MAX_RULES: usize = 1_000;

/// A broker without faults.
#[derive(Clone, Debug, PartialEq)]
pub struct BrokerSpec {
    /// As configured.
    pub name: String,
    /// ISA-95 asset path.
    pub path: String,
    /// Host name or IP address, an IPv6 address without its brackets.
    pub host: String,
    /// TCP port, not 0.
    pub port: u16,
    /// Whether to speak TLS.
    pub tls: bool,
    /// The session's name.
    pub client_id: String,
    /// Where the broker asks for one.
    pub username: Option<String>,
    /// The path of the password's file.
    pub password_file: Option<String>,
    /// Path of the authority's certificate.
    pub ca: Option<String>,
    /// Path of the client's certificate.
    pub cert: Option<String>,
    /// Path, or credential, of the client's key.
    pub key: Option<String>,
    /// Silence after which the connection is tested.
    pub keep_alive: Duration,
    /// Largest payload in bytes.
    pub max_payload: usize,
    /// Most points that wildcards may make.
    pub max_topics: usize,
    /// Longest time between two attempts to connect.
    pub reconnect_max: Duration,
    /// For people.
    pub description: String,
    /// What to pick out, in the order of the rows.
    pub rules: Vec<Rule>,
}

impl BrokerSpec {
    /// `mqtt://HOST:PORT` or `mqtts://HOST:PORT`.
    #[must_use]
    pub fn endpoint(&self) -> String {
        let scheme = if self.tls { "mqtts" } else { "mqtt" };
        match self.host.contains(':') {
            true => format!("{scheme}://[{}]:{}", self.host, self.port),
            false => format!("{scheme}://{}:{}", self.host, self.port),
        }
    }
}

/// A row without faults.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// What the points mean; with wildcards its `name` and `source` are templates.
    pub point: Point,
    /// The topic filter.
    pub filter: String,
    /// JSON pointer to the value, `""` for the payload itself.
    pub value: String,
    /// JSON pointer to the stamp.
    pub time: Option<String>,
    /// What the value is.
    pub ty: ValueType,
    /// Whether the filter has wildcards, so that points appear while running.
    pub wildcard: bool,
}

/// Checks one broker; `path` is where it stands, as in `mqtt[0]`, `agent` the agent's id.
///
/// # Errors
/// Every fault it has.
pub fn resolve(broker: &Broker, path: &str, agent: &str) -> Result<BrokerSpec, Vec<Fault>> {
    let mut list = Vec::new();
    let mut faults = Faults { profile: None, path: path.into(), list: &mut list };
    for (key, text, needed) in
        [("name", &broker.name, true), ("path", &broker.path, false), ("description", &broker.description, false)]
    {
        point::text(text, key, needed, &mut faults);
    }
    let (tls, address) = match (broker.url.strip_prefix("mqtt://"), broker.url.strip_prefix("mqtts://")) {
        (Some(rest), _) => (false, host_and_port(rest.strip_suffix('/').unwrap_or(rest), Some(1_883))),
        (_, Some(rest)) => (true, host_and_port(rest.strip_suffix('/').unwrap_or(rest), Some(8_883))),
        _ => (false, None),
    };
    if address.is_none() {
        let help = match broker.url.contains('@') {
            true => "no user or password in it: `username` and `password_file` are for that",
            false => "mqtt://HOST:PORT, or mqtts://HOST:PORT with TLS",
        };
        faults.add("url", format!("{:?} is no broker's address", broker.url), help);
    }
    if !tls {
        for (key, given) in [("ca", &broker.ca), ("cert", &broker.cert), ("key", &broker.key)] {
            if given.is_some() {
                faults.add(key, "has no use without TLS", "an mqtts:// URL");
            }
        }
    }
    match (&broker.cert, &broker.key) {
        (Some(_), None) => faults.add("cert", "comes without its key", "add `key`"),
        (None, Some(_)) => faults.add("key", "comes without its certificate", "add `cert`"),
        _ => {}
    }
    if broker.password_file.is_some() && broker.username.is_none() {
        faults.add("password_file", "comes without a user", "add `username`");
    }
    let client_id = broker.client_id.clone().unwrap_or_else(|| format!("tributary-{agent}-{}", broker.name));
    if client_id.is_empty() || client_id.len() > 128 || client_id.chars().any(char::is_control) {
        faults.add("client_id", format!("{client_id:?} is no client id"), "1 to 128 printable characters");
    }
    let keep_alive = point::span(broker.keep_alive, "keep_alive", 1_000..=64_800_000, "\"1s\" to \"18h\"", &mut faults);
    let reconnect_max =
        point::span(broker.reconnect_max, "reconnect_max", 100..=3_600_000, "\"100ms\" to \"1h\"", &mut faults);
    if !(1..=1 << 20).contains(&broker.max_payload.bytes()) {
        faults.add("max_payload", format!("{} is out of range", broker.max_payload), "\"1B\" to \"1MB\"");
    }
    if !(1..=100_000).contains(&broker.max_topics) {
        faults.add("max_topics", format!("{} is out of range", broker.max_topics), "1 to 100,000");
    }
    match broker.point.len() {
        0 => faults.add("point", "the broker has no points", "add [[mqtt.point]]"),
        count if count > MAX_RULES => faults.add("point", format!("{count} rows"), format!("at most {MAX_RULES}")),
        _ => {}
    }
    let mut rules = Vec::new();
    for (index, row) in broker.point.iter().enumerate() {
        let mut faults = Faults { profile: None, path: format!("{path}.point[{index}]"), list: &mut list };
        rules.push(rule(row, &mut faults));
    }
    let names = broker.point.iter().enumerate();
    point::unique_names(
        names.map(|(index, row)| (row.name.as_str(), None, format!("{path}.point[{index}]"))),
        &mut list,
    );
    match address {
        Some((host, port)) if list.is_empty() => Ok(BrokerSpec {
            name: broker.name.clone(),
            path: broker.path.clone(),
            host,
            port,
            tls,
            client_id,
            username: broker.username.clone(),
            password_file: broker.password_file.clone(),
            ca: broker.ca.clone(),
            cert: broker.cert.clone(),
            key: broker.key.clone(),
            keep_alive,
            max_payload: broker.max_payload.as_len(),
            max_topics: usize::try_from(broker.max_topics).unwrap_or(usize::MAX),
            reconnect_max,
            description: broker.description.clone(),
            rules,
        }),
        _ => Err(list),
    }
}

fn rule(row: &PointRow, faults: &mut Faults<'_>) -> Rule {
    let common = point::Row {
        name: &row.name,
        unit: &row.unit,
        scale: row.scale,
        offset: row.offset,
        scale_from: None,
        valid: row.valid,
        deadband: row.deadband.as_ref(),
        heartbeat: row.heartbeat,
        window: row.window.as_ref(),
        raw: row.raw,
        labels: &row.labels,
        counter: row.counter,
        counter_modulus: row.counter_modulus,
        max_rate: None,
        description: &row.description,
    };
    let mut point = point::check(common, wire_type(row.ty), faults);
    let wildcards = topic::wildcards(&row.topic).unwrap_or_else(|error| {
        faults.add("topic", format!("{:?} {error}", row.topic), "as in \"sensors/+/temp\" or \"plant/#\"");
        0
    });
    if let Err(error) = topic::check_template(&row.name, wildcards) {
        faults.add(
            "name",
            format!("{:?} {error}", row.name),
            "{1} stands for what the first + or # matches, {2} for the second",
        );
    }
    pointer(&row.value, "value", faults);
    match row.time.as_deref() {
        Some("") => faults.add("time", "is empty", "a JSON pointer like \"/ts\"; without `time` arrival is the stamp"),
        Some(time) => pointer(time, "time", faults),
        None => {}
    }
    for (index, bad) in row.bad.iter().enumerate() {
        match sentinel(*bad, row.ty) {
            Some(bits) => point.bad.push(bits),
            None => faults.add(
                &format!("bad[{index}]"),
                format!("{bad} is no value of type {}", row.ty.name()),
                "a value as the device publishes it",
            ),
        }
    }
    point.source = topic::source(&row.topic, &row.value);
    Rule {
        point,
        filter: row.topic.clone(),
        value: row.value.clone(),
        time: row.time.clone(),
        ty: row.ty,
        wildcard: wildcards > 0,
    }
}

/// RFC 6901: empty, or levels that each begin with `/`; `~` only as `~0` and `~1`.
fn pointer(text: &str, key: &str, faults: &mut Faults<'_>) {
    let begins = text.is_empty() || text.starts_with('/');
    let escapes = text.split('~').skip(1).all(|rest| rest.starts_with(['0', '1']));
    if !begins || !escapes || text.len() > topic::MAX_TOPIC {
        faults.add(key, format!("{text:?} is no JSON pointer"), "as in \"/data/0/value\"; \"\" is the payload itself");
    }
}

fn wire_type(ty: ValueType) -> PointType {
    match ty {
        ValueType::Bool => PointType::Bool,
        ValueType::U16 | ValueType::I16 | ValueType::U32 | ValueType::I32 | ValueType::I64 => PointType::Int,
        ValueType::U64 => PointType::Uint64,
        ValueType::F32 => PointType::Float32,
        ValueType::F64 => PointType::Float64,
        ValueType::String => PointType::String,
    }
}

/// A sentinel as published → the bits that such a value will have.
fn sentinel(number: Number, ty: ValueType) -> Option<u64> {
    match (ty, number) {
        (ValueType::F64, Number::Int(number)) => Some((number as f64).to_bits()),
        (ValueType::F64, Number::Float(number)) => Some(number.to_bits()),
        (ValueType::F32, Number::Int(number)) => payload::f32_bits(number as f64),
        (ValueType::F32, Number::Float(number)) => payload::f32_bits(number),
        (ty, Number::Int(number)) => payload::integer(number, ty),
        (_, Number::Float(_)) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broker(keys: &str, row: &str) -> Result<BrokerSpec, Vec<Fault>> {
        let text = format!("name='b'\n{keys}\n[[point]]\n{row}");
        resolve(&toml::from_str(&text).expect(&text), "mqtt[0]", "gw-1")
    }

    const URL: &str = "url='mqtt://broker'";
    const ROW: &str = "name='temp/{1}'\ntopic='sensors/+/temp'\nvalue='/value'\ntime='/ts'\ntype='f64'";

    #[test]
    fn a_good_broker_comes_out_whole() {
        let spec = broker(URL, &format!("{ROW}\nbad=[-9999, 1.5]")).expect("no fault");
        assert_eq!((spec.host.as_str(), spec.port, spec.tls), ("broker", 1_883, false));
        assert_eq!(spec.client_id, "tributary-gw-1-b");
        assert_eq!((spec.max_payload, spec.max_topics, spec.keep_alive), (65_536, 1_000, Duration::from_secs(30)));
        assert_eq!(spec.rules[0].point.source, "sensors/+/temp#/value");
        assert_eq!(spec.rules[0].point.bad, [(-9_999.0_f64).to_bits(), 1.5_f64.to_bits()]);
        let spec = broker("url='mqtts://[::1]:8884/'\nca='ca.pem'", ROW).expect("TLS");
        assert_eq!(spec.endpoint(), "mqtts://[::1]:8884");
    }

    #[test]
    fn each_rule_is_checked() {
        for (keys, path) in [
            ("url='broker:1883'", "url"),
            ("url='mqtt://user:secret@broker'", "url"),
            ("url='mqtt://broker:0'", "url"),
            ("url='mqtt://b'\nca='x'", "ca"),
            ("url='mqtts://b'\ncert='x'", "cert"),
            ("url='mqtts://b'\nkey='x'", "key"),
            ("url='mqtt://b'\npassword_file='x'", "password_file"),
            ("url='mqtt://b'\nclient_id=''", "client_id"),
            ("url='mqtt://b'\nkeep_alive='999ms'", "keep_alive"),
            ("url='mqtt://b'\nmax_payload='2MB'", "max_payload"),
            ("url='mqtt://b'\nmax_topics=0", "max_topics"),
            ("url='mqtt://b'\nreconnect_max='1ms'", "reconnect_max"),
        ] {
            let faults = broker(keys, ROW).expect_err(keys);
            assert_eq!(faults[0].path, format!("mqtt[0].{path}"), "{faults:?}");
        }
        for (row, path) in [
            ("name='t'\ntopic='a/+'\ntype='f64'", "name"),
            ("name='t/{2}'\ntopic='a/+'\ntype='f64'", "name"),
            ("name='t'\ntopic='a/#/b'\ntype='f64'", "topic"),
            ("name='t'\ntopic='a'\nvalue='x'\ntype='f64'", "value"),
            ("name='t'\ntopic='a'\nvalue='/~2'\ntype='f64'", "value"),
            ("name='t'\ntopic='a'\ntime=''\ntype='f64'", "time"),
            ("name='t'\ntopic='a'\ntype='u16'\nbad=[65536]", "bad[0]"),
            ("name='t'\ntopic='a'\ntype='string'\nbad=[1]", "bad[0]"),
            ("name='t'\ntopic='a'\ntype='u16'\nscale=0", "scale"),
        ] {
            let faults = broker(URL, row).expect_err(row);
            assert_eq!(faults[0].path, format!("mqtt[0].point[0].{path}"), "{faults:?}");
        }
        let twice = format!("{ROW}\n[[point]]\n{ROW}");
        assert_eq!(broker(URL, &twice).expect_err("twice")[0].path, "mqtt[0].point[1].name");
    }
}
