//! The agent's catalogue: gives wire ids to devices, points and groups, and never takes one back (contract rule 12).
//!
//! Stands beside batch: a batch names ids, the catalogue says what they mean. Within an epoch it only grows. The same
//! meaning always gets the same id, over restarts and configuration changes too: identity is the hash of the fields
//! that may never change under an id. Fields that merely describe may change; then the entry is replaced.
//!
//! Between changes only the compressed message is kept (a tenth of the content). A change opens it: entries and their
//! identities are read, added to, and closed again as the next revision by [`Catalog::close`].

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use prost::Message;
use sha2::{Digest, Sha256};
use tributary_proto::{catalog, pb};

use crate::model;

/// Hash of what may never change under an id.
type Identity = [u8; 16];

/// What an entry is; also its field number in `Content`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Device = 1,
    Point = 2,
    Group = 3,
}

#[derive(Clone, Debug, Default)]
struct Open {
    entries: BTreeMap<(Kind, u32), Vec<u8>>,
    ids: BTreeMap<(Kind, Identity), u32>,
    changed: bool,
}

/// The catalogue.
#[derive(Clone, Debug)]
pub struct Catalog {
    epoch: u64,
    rev: u32,
    message: Vec<u8>,
    open: Option<Open>,
}

/// The stored catalogue cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the stored catalogue cannot be read: {0}")]
pub struct Unreadable(String);

impl Catalog {
    /// An empty catalogue of `epoch`; revision 1 is the first to be closed.
    #[must_use]
    pub fn new(epoch: u64) -> Self {
        Self { epoch, rev: 0, message: Vec::new(), open: Some(Open::default()) }
    }

    /// The catalogue as it was stored, opened.
    ///
    /// # Errors
    /// It is not a catalogue message, or its content does not inflate.
    pub fn restore(message: Vec<u8>) -> Result<Self, Unreadable> {
        use alloc::string::ToString;
        let parsed = pb::Catalog::decode(message.as_slice()).map_err(|error| Unreadable(error.to_string()))?;
        let open = read(&parsed).map_err(|error| Unreadable(error.to_string()))?;
        Ok(Self { epoch: parsed.epoch, rev: parsed.rev, message, open: Some(open) })
    }

    /// Revision of the last [`close`](Self::close).
    #[must_use]
    pub fn rev(&self) -> u32 {
        self.rev
    }

    /// The epoch it is of.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The serialized `Catalog`, as published and stored.
    #[must_use]
    pub fn message(&self) -> &[u8] {
        &self.message
    }

    /// The id of a device; its name is its identity.
    pub fn device(&mut self, device: &model::Device) -> u32 {
        let entry = pb::Device {
            id: 0,
            path: device.path.clone(),
            protocol: device.protocol.clone(),
            endpoint: device.endpoint.clone(),
            vendor: device.vendor.clone(),
            model: device.model.clone(),
            serial: device.serial.clone(),
            name: device.name.clone(),
        };
        self.enter(Kind::Device, identity(device.name.as_bytes()), |id| pb::Device { id, ..entry }.encode_to_vec())
    }

    /// The id of a raw point of device `device`.
    pub fn point(&mut self, device: u32, point: &model::Point) -> u32 {
        self.described(describe(device, point))
    }

    /// The id of a statistic of that point over `window_ms`.
    pub fn summary(&mut self, device: u32, point: &model::Point, statistic: model::Statistic, window_ms: u32) -> u32 {
        let raw = describe(device, point);
        let mut summary = pb::Point {
            statistic: statistic.name().into(),
            window_ms,
            counter: false,
            counter_modulus: 0,
            deadband: 0.0,
            ..raw
        };
        if !statistic.keeps_type() {
            let count = statistic == model::Statistic::Count;
            let ty = if count { pb::point::Type::Int } else { pb::point::Type::Float64 };
            summary.r#type = ty as i32;
            (summary.exponent, summary.factor, summary.bias) = (0, 0.0, 0.0);
            summary.labels.clear();
            if count {
                summary.unit = "1".into();
                (summary.low, summary.high) = (None, None);
            }
        }
        self.described(summary)
    }

    fn described(&mut self, point: pb::Point) -> u32 {
        let identity = point_identity(&point);
        self.enter(Kind::Point, identity, |id| pb::Point { id, ..point }.encode_to_vec())
    }

    /// The id of the group of `points`, in this order; the same list is the same group.
    pub fn group(&mut self, name: String, points: Vec<u32>, period_ms: u32) -> u32 {
        let identity = group_identity(&points);
        self.enter(Kind::Group, identity, |id| pb::Group { id, name, points, period_ms }.encode_to_vec())
    }

    fn enter(&mut self, kind: Kind, identity: Identity, entry: impl FnOnce(u32) -> Vec<u8>) -> u32 {
        let open = self.opened();
        let next = || open.entries.range(..=(kind, u32::MAX)).next_back().filter(|((k, _), _)| *k == kind);
        let known = open.ids.get(&(kind, identity)).copied();
        let id = known.unwrap_or_else(|| next().map_or(1, |((_, last), _)| last + 1));
        let bytes = entry(id);
        if open.entries.get(&(kind, id)) != Some(&bytes) {
            open.entries.insert((kind, id), bytes);
            open.ids.insert((kind, identity), id);
            open.changed = true;
        }
        id
    }

    fn opened(&mut self) -> &mut Open {
        let message = &self.message;
        self.open.get_or_insert_with(|| {
            // Our own message, closed by us: it reads back. Were it not to, ids would begin anew in `new_epoch`.
            pb::Catalog::decode(message.as_slice()).ok().and_then(|parsed| read(&parsed).ok()).unwrap_or_default()
        })
    }

    /// Ends a change: if anything is new, the next revision. Whether there is one.
    pub fn close(&mut self) -> bool {
        let Some(open) = self.open.take() else { return false };
        if !open.changed && self.rev > 0 {
            return false;
        }
        self.rev += 1;
        self.write(&open);
        true
    }

    /// Everything under the same ids as revision 1 of `epoch`. Closes an open change into it.
    pub fn new_epoch(&mut self, epoch: u64) {
        self.opened();
        let open = self.open.take().unwrap_or_default();
        self.epoch = epoch;
        self.rev = 1;
        self.write(&open);
    }

    fn write(&mut self, open: &Open) {
        let mut content = Vec::with_capacity(open.entries.values().map(|entry| entry.len() + 6).sum());
        for ((kind, _), entry) in &open.entries {
            let wire_type = prost::encoding::WireType::LengthDelimited;
            prost::encoding::encode_key(*kind as u32, wire_type, &mut content);
            prost::encoding::encode_varint(entry.len() as u64, &mut content);
            content.extend_from_slice(entry);
        }
        let sha256: [u8; 32] = Sha256::digest(&content).into();
        self.message = catalog::catalog_message(self.epoch, self.rev, &content, sha256).encode_to_vec();
    }
}

fn describe(device: u32, point: &model::Point) -> pb::Point {
    pb::Point {
        id: 0,
        device,
        name: point.name.clone(),
        r#type: point.ty as i32,
        unit: point.unit.clone(),
        exponent: point.scale.exponent,
        factor: point.scale.factor,
        bias: point.scale.bias,
        description: point.description.clone(),
        source: point.source.clone(),
        statistic: String::new(),
        window_ms: 0,
        counter: point.counter,
        counter_modulus: point.counter_modulus,
        labels: point.labels.clone(),
        low: point.valid.map(|(low, _)| low),
        high: point.valid.map(|(_, high)| high),
        deadband: match point.deadband {
            model::Deadband::Absolute(width) => width,
            model::Deadband::None | model::Deadband::Percent(_) => 0.0,
        },
        extra: point.extra.clone(),
    }
}

/// Hash of the fields that rule 12 binds to the id.
fn point_identity(point: &pb::Point) -> Identity {
    let bound = pb::Point {
        id: 0,
        description: String::new(),
        low: None,
        high: None,
        deadband: 0.0,
        extra: BTreeMap::new(),
        ..point.clone()
    };
    identity(&bound.encode_to_vec())
}

fn group_identity(points: &[u32]) -> Identity {
    let mut hash = Sha256::new();
    for point in points {
        hash.update(point.to_le_bytes());
    }
    shorten(hash)
}

fn identity(bytes: &[u8]) -> Identity {
    shorten(Sha256::new().chain_update(bytes))
}

fn shorten(hash: Sha256) -> Identity {
    let full: [u8; 32] = hash.finalize().into();
    let mut short = [0; 16];
    short.copy_from_slice(&full[..16]);
    short
}

/// Reads the entries of a catalogue message and their identities.
fn read(message: &pb::Catalog) -> Result<Open, catalog::Unreadable> {
    let content = catalog::content_bytes(message)?;
    let mut open = Open::default();
    let mut rest = content.as_slice();
    while !rest.is_empty() {
        let (tag, wire_type) = prost::encoding::decode_key(&mut rest)?;
        if wire_type != prost::encoding::WireType::LengthDelimited {
            prost::encoding::skip_field(wire_type, tag, &mut rest, prost::encoding::DecodeContext::default())?;
            continue;
        }
        let length = usize::try_from(prost::encoding::decode_varint(&mut rest)?).unwrap_or(usize::MAX);
        let Some((entry, after)) = rest.split_at_checked(length) else {
            return Err(pb::Content::decode(rest).map_or_else(Into::into, |_| catalog::Unreadable::TooMany));
        };
        rest = after;
        let (kind, id, identity) = match tag {
            1 => {
                let device = pb::Device::decode(entry)?;
                (Kind::Device, device.id, identity(device.name.as_bytes()))
            }
            2 => {
                let point = pb::Point::decode(entry)?;
                (Kind::Point, point.id, point_identity(&point))
            }
            3 => {
                let group = pb::Group::decode(entry)?;
                (Kind::Group, group.id, group_identity(&group.points))
            }
            _ => continue,
        };
        open.ids.insert((kind, identity), id);
        open.entries.insert((kind, id), entry.to_vec());
    }
    Ok(open)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;
    use alloc::vec;
    use tributary_protocols::value::{PointType, Scale};

    fn point(name: &str) -> model::Point {
        model::Point {
            device: 0,
            name: name.to_string(),
            ty: PointType::Int,
            unit: "V".into(),
            scale: Scale { exponent: -1, factor: 0.0, bias: 0.0 },
            description: String::new(),
            source: "holding:0:u16".into(),
            counter: false,
            counter_modulus: 0,
            max_rate: None,
            scale_from: None,
            labels: BTreeMap::new(),
            extra: BTreeMap::new(),
            valid: None,
            bad: vec![],
            deadband: model::Deadband::None,
            heartbeat: None,
            window: None,
            raw: true,
        }
    }

    fn content(catalog: &Catalog) -> pb::Content {
        let message = pb::Catalog::decode(catalog.message()).expect("a catalogue");
        catalog::content(&catalog::content_bytes(&message).expect("inflates")).expect("a content")
    }

    #[test]
    fn the_same_meaning_keeps_its_id_over_a_restart() {
        let mut first = Catalog::new(9);
        let device = first.device(&model::Device { name: "meter".into(), ..model::Device::default() });
        let (a, b) = (first.point(device, &point("a")), first.point(device, &point("b")));
        let group = first.group("g".into(), vec![a, b], 1000);
        assert!(first.close());
        assert_eq!((a, b, group, first.rev()), (1, 2, 1, 1));

        let mut second = Catalog::restore(first.message().to_vec()).expect("restores");
        let device = second.device(&model::Device { name: "meter".into(), ..model::Device::default() });
        assert_eq!(second.point(device, &point("b")), b);
        let mut other = point("a");
        other.scale.exponent = -2;
        let c = second.point(device, &other);
        assert_eq!(c, 3, "another scale is another meaning");
        assert_eq!(second.group("g".into(), vec![a, b], 1000), group);
        assert_eq!(second.group("g".into(), vec![c, b], 1000), 2);
        assert!(second.close());
        assert_eq!(second.rev(), 2);
        assert_eq!(content(&second).points.len(), 3, "it only grows");

        let mut third = Catalog::restore(second.message().to_vec()).expect("restores");
        third.point(1, &point("a"));
        assert!(!third.close(), "nothing is new");
        let mut described = point("a");
        described.description = "phase 1".into();
        third.point(1, &described);
        assert!(third.close());
        assert_eq!(content(&third).points[0].description, "phase 1");
        assert_eq!(third.rev(), 3);
        third.new_epoch(10);
        assert_eq!((third.rev(), third.epoch(), content(&third).points.len()), (1, 10, 3));
    }

    #[test]
    fn a_statistic_of_another_type_is_not_scaled() {
        let mut catalog = Catalog::new(1);
        let mean = catalog.summary(1, &point("a"), model::Statistic::Mean, 10_000);
        let max = catalog.summary(1, &point("a"), model::Statistic::Max, 10_000);
        catalog.close();
        let content = content(&catalog);
        let of = |id: u32| content.points.iter().find(|point| point.id == id).expect("there").clone();
        assert_eq!((of(mean).r#type(), of(mean).exponent), (pb::point::Type::Float64, 0));
        assert_eq!((of(max).r#type(), of(max).exponent), (pb::point::Type::Int, -1));
        assert_eq!(of(max).window_ms, 10_000);
    }
}
