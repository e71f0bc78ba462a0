//! A catalogue as the centre holds it: what decodes a batch, and what gives its numbers their names.
//!
//! The newest revision of an epoch decodes every batch of that epoch (contract rule 12), so one per epoch is kept, here
//! in memory and, as the message that came, in the database.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message;
use sha2::{Digest, Sha256};
use tributary_proto::catalog::{self, Schema, Unreadable};
use tributary_proto::pb;

use crate::scale::Scale;

/// One revision.
#[derive(Clone, Debug)]
pub struct Catalog {
    /// The epoch within which revisions and ids count.
    pub epoch: u64,
    /// The revision, from 1.
    pub rev: u32,
    /// The points by id.
    pub points: BTreeMap<u32, Point>,
    /// The message as it came.
    pub message: Bytes,
    schema: catalog::Catalog,
}

/// A point and the device it belongs to.
#[derive(Clone, Debug)]
pub struct Point {
    /// `Device.name`; empty if the catalogue names no such device.
    pub device: String,
    /// `Device.path`.
    pub path: String,
    /// `Point.name`.
    pub name: String,
    /// Empty for the readings themselves, else the statistic.
    pub statistic: String,
    /// UCUM.
    pub unit: String,
    /// A `Point.Type`.
    pub ty: i32,
    /// For humans.
    pub description: String,
    /// From raw to real.
    pub scale: Scale,
}

/// Why a catalogue is not taken.
#[derive(Debug, thiserror::Error)]
pub enum BadCatalog {
    /// Not the message, or its content is damaged.
    #[error("{0}")]
    Unreadable(#[from] Unreadable),
    /// Not the message.
    #[error("catalogue: {0}")]
    Protobuf(#[from] prost::DecodeError),
    /// Revisions and epochs count from 1; epoch 0 is for files.
    #[error("catalogue of epoch {epoch}, revision {rev}: neither may be 0")]
    Zero {
        /// As it came.
        epoch: u64,
        /// As it came.
        rev: u32,
    },
    /// The content is not what the sender hashed.
    #[error("content_sha256 does not fit the content")]
    Hash,
}

impl Catalog {
    /// Reads a `Catalog` message.
    ///
    /// # Errors
    /// If it is damaged or its content has another SHA-256 than it says.
    pub fn read(message: Bytes) -> Result<Self, BadCatalog> {
        let parsed = pb::Catalog::decode(message.clone())?;
        let pb::Catalog { epoch, rev, ref content_sha256, .. } = parsed;
        if epoch == 0 || rev == 0 {
            return Err(BadCatalog::Zero { epoch, rev });
        }
        let bytes = catalog::content_bytes(&parsed)?;
        if Sha256::digest(&bytes)[..] != content_sha256[..] {
            return Err(BadCatalog::Hash);
        }
        let content = catalog::content(&bytes)?;
        let schema = catalog::Catalog::new(&content);
        let devices: BTreeMap<u32, &pb::Device> = content.devices.iter().map(|device| (device.id, device)).collect();
        let points = content.points.iter().map(|point| {
            let device = devices.get(&point.device);
            let named = Point {
                device: device.map(|device| device.name.clone()).unwrap_or_default(),
                path: device.map(|device| device.path.clone()).unwrap_or_default(),
                name: point.name.clone(),
                statistic: point.statistic.clone(),
                unit: point.unit.clone(),
                ty: point.r#type,
                description: point.description.clone(),
                scale: Scale::new(point.exponent, point.factor, point.bias),
            };
            (point.id, named)
        });
        Ok(Self { epoch, rev, points: points.collect(), message, schema })
    }
}

impl Schema for Catalog {
    fn group(&self, id: u32) -> Option<&[u32]> {
        self.schema.group(id)
    }

    fn point_type(&self, id: u32) -> Option<i32> {
        self.schema.point_type(id)
    }
}
