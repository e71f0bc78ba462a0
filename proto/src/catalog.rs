//! The catalogue: what resolves the group and point numbers of a body (contract rule 12).
//!
//! The decoder asks two questions only, which points a group has and which type a point is; [`Schema`] is those two
//! questions, so that a receiver may answer them from a cache of its own. [`Catalog`] is the ready answer, made from a
//! [`pb::Content`]. Within an epoch a catalogue only grows, so any revision not older than the one a batch names serves.
//!
//! On the wire a catalogue is a [`pb::Catalog`]: the content as a zstd frame, with the SHA-256 of the content before
//! compression. This crate hashes nothing: who publishes hands the hash in, who receives compares it with
//! [`pb::Catalog::content_sha256`] over the bytes of [`content_bytes`].
//!
//! Limits: 16 MiB inflated; 262,144 devices, points and groups together (a repeated message of two bytes would else
//! become some hundred bytes of memory).

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use prost::Message;

use crate::{Damaged, MAX_INFLATED, inflate, pb};

/// Most devices, points and groups together in a catalogue that is received.
const MAX_ENTRIES: usize = 1 << 18;

/// What a decoder must know of a catalogue.
pub trait Schema {
    /// The ids of the points of group `id`, in order; `None` if the catalogue has no such group.
    fn group(&self, id: u32) -> Option<&[u32]>;

    /// The type of point `id`, as the number in the catalogue (a [`pb::point::Type`], or one that is not known here);
    /// `None` if the catalogue has no such point.
    fn point_type(&self, id: u32) -> Option<i32>;
}

/// Groups and types of one revision, by id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Catalog {
    groups: BTreeMap<u32, Vec<u32>>,
    types: BTreeMap<u32, i32>,
}

impl Catalog {
    /// The groups and types of `content`.
    #[must_use]
    pub fn new(content: &pb::Content) -> Self {
        // Not by `collect`, which brings a sort of its own for each type: 6 KB of code.
        let (mut groups, mut types) = (BTreeMap::new(), BTreeMap::new());
        groups.extend(content.groups.iter().map(|group| (group.id, group.points.clone())));
        types.extend(content.points.iter().map(|point| (point.id, point.r#type)));
        Self { groups, types }
    }

    /// The groups and types of a published `pb::Catalog` message.
    ///
    /// # Errors
    /// See [`content_bytes`] and [`content`].
    pub fn from_message(message: &pb::Catalog) -> Result<Self, Unreadable> {
        Ok(Self::new(&content(&content_bytes(message)?)?))
    }
}

impl Schema for Catalog {
    fn group(&self, id: u32) -> Option<&[u32]> {
        self.groups.get(&id).map(Vec::as_slice)
    }

    fn point_type(&self, id: u32) -> Option<i32> {
        self.types.get(&id).copied()
    }
}

impl<S: Schema + ?Sized> Schema for &S {
    fn group(&self, id: u32) -> Option<&[u32]> {
        (**self).group(id)
    }

    fn point_type(&self, id: u32) -> Option<i32> {
        (**self).point_type(id)
    }
}

/// Why a published catalogue cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// Its content does not inflate.
    #[error("catalogue content: {0}")]
    Content(#[from] Damaged),
    /// It is not the protobuf message it should be.
    #[error("catalogue: {0}")]
    Protobuf(#[from] prost::DecodeError),
    /// It has more devices, points and groups than a receiver takes in.
    #[error("catalogue of more than {MAX_ENTRIES} devices, points and groups")]
    TooMany,
}

/// The catalogue message of revision `rev` (agents count from 1) of `epoch`. `content` is a serialized `pb::Content`,
/// whose bytes are always the same for the same content; `sha256` is theirs.
#[must_use]
pub fn catalog_message(epoch: u64, rev: u32, content: &[u8], sha256: [u8; 32]) -> pb::Catalog {
    let mut frame = Vec::with_capacity(zstd_safe::compress_bound(content.len()));
    // Into a buffer of that size compression cannot fail but for memory; an empty frame is refused by every reader.
    if zstd_safe::compress(&mut frame, content, crate::encode::ZSTD_LEVEL).is_err() {
        frame.clear();
    }
    frame.shrink_to_fit();
    pb::Catalog { rev, content_sha256: sha256.to_vec(), content_zstd: frame, epoch }
}

/// The bytes of the content of `message`: those its `content_sha256` is of, which is for the caller to check.
///
/// # Errors
/// Anything but one zstd frame of at most 16 MiB.
pub fn content_bytes(message: &pb::Catalog) -> Result<Vec<u8>, Unreadable> {
    Ok(inflate(&message.content_zstd, MAX_INFLATED)?)
}

/// The content that `bytes` are.
///
/// # Errors
/// Not a `Content`, or one of more than 262,144 devices, points and groups.
pub fn content(bytes: &[u8]) -> Result<pb::Content, Unreadable> {
    let mut rest = bytes;
    let mut entries = 0_usize;
    while !rest.is_empty() {
        let (tag, wire_type) = prost::encoding::decode_key(&mut rest)?;
        prost::encoding::skip_field(wire_type, tag, &mut rest, prost::encoding::DecodeContext::default())?;
        entries += 1;
        if entries > MAX_ENTRIES {
            return Err(Unreadable::TooMany);
        }
    }
    Ok(pb::Content::decode(bytes)?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use alloc::vec;

    #[test]
    fn a_message_gives_back_its_content() {
        let point = pb::Point { id: 7, r#type: pb::point::Type::Int.into(), ..Default::default() };
        let group = pb::Group { id: 3, points: vec![7], ..Default::default() };
        let whole = pb::Content { points: vec![point], groups: vec![group], ..Default::default() };
        let message = catalog_message(9, 2, &whole.encode_to_vec(), [5; 32]);
        assert_eq!((message.epoch, message.rev, message.content_sha256.as_slice()), (9, 2, &[5; 32][..]));
        assert_eq!(content_bytes(&message).unwrap(), whole.encode_to_vec());
        let catalog = Catalog::from_message(&message).unwrap();
        assert_eq!((catalog.group(3), catalog.group(4)), (Some(&[7][..]), None));
        assert_eq!((catalog.point_type(7), catalog.point_type(8)), (Some(2), None));
    }

    #[test]
    fn a_flood_of_empty_points_is_refused() {
        let flood = [0x12, 0].repeat(MAX_ENTRIES + 1);
        assert_eq!(content(&flood), Err(Unreadable::TooMany));
        assert!(content(&flood[2..]).is_ok());
    }
}
