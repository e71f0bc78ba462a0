//! zstd frames: one frame in, its content out, within bounds (columns.md rule 4).
//!
//! The header of the frame is read here, not only by the library, because the contract asks more of it than zstd does:
//! no skippable frame, no dictionary, a window of at most 8 MiB, and nothing after the frame. The size that the header
//! names is a hint for the first allocation at most; the output grows as it fills and stops at the ceiling.

use alloc::vec::Vec;

use zstd_safe::{DCtx, InBuffer, OutBuffer};

/// Largest window a frame may ask for: 8 MiB (RFC 8878 section 3.1.1.1.2 recommends decoders to support it).
const MAX_WINDOW: u64 = 8 << 20;

/// First bytes of a frame, little-endian 0xFD2FB528 (RFC 8878 section 3.1.1).
const MAGIC: [u8; 4] = [0x28, 0xB5, 0x2F, 0xFD];

/// Why bytes are not one zstd frame within the bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damaged {
    /// No zstd magic at the start; skippable frames count as this too.
    #[error("not a zstd frame")]
    NotZstd,
    /// The frame asks for a dictionary.
    #[error("the zstd frame wants dictionary {0}; none may be used")]
    Dictionary(u64),
    /// The frame asks for too large a window, in bytes.
    #[error("the zstd frame wants a window of {0} bytes; at most 8388608 are given")]
    Window(u64),
    /// The content is longer than the ceiling, in bytes.
    #[error("the zstd frame inflates to more than {0} bytes")]
    TooLong(usize),
    /// The frame is damaged or ends early.
    #[error("the zstd frame is damaged or ends early")]
    Frame,
    /// That many bytes follow the frame.
    #[error("{0} bytes follow the zstd frame")]
    Trailing(usize),
}

/// What the header of a frame says (RFC 8878 section 3.1.1.1).
struct Header {
    window: u64,
    content: Option<u64>,
}

/// Reads `len` bytes at `at` as a little-endian number.
fn little_endian(bytes: &[u8], at: usize, len: usize) -> Result<u64, Damaged> {
    let field = bytes.get(at..at + len).ok_or(Damaged::Frame)?;
    Ok(field.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte)))
}

fn header(bytes: &[u8]) -> Result<Header, Damaged> {
    if bytes.get(..4) != Some(&MAGIC) {
        return Err(Damaged::NotZstd);
    }
    let descriptor = *bytes.get(4).ok_or(Damaged::Frame)?;
    let single_segment = descriptor & 0x20 != 0;
    let mut at = 5;
    let mut window = 0;
    if !single_segment {
        let byte = little_endian(bytes, at, 1)?;
        at += 1;
        let base = 1_u64 << (10 + (byte >> 3)); // at most 2^41
        window = base + base / 8 * (byte & 7);
    }
    let dictionary_len = [0, 1, 2, 4][usize::from(descriptor & 3)];
    let dictionary = little_endian(bytes, at, dictionary_len)?;
    at += dictionary_len;
    if dictionary != 0 {
        return Err(Damaged::Dictionary(dictionary));
    }
    let content = match (descriptor >> 6, single_segment) {
        (0, false) => None,
        (0, true) => Some(little_endian(bytes, at, 1)?),
        (1, _) => Some(little_endian(bytes, at, 2)? + 256),
        (2, _) => Some(little_endian(bytes, at, 4)?),
        (_, _) => Some(little_endian(bytes, at, 8)?),
    };
    Ok(Header { window: if single_segment { content.unwrap_or(0) } else { window }, content })
}

/// The content of `bytes`, which must be exactly one zstd frame, if it is at most `max` bytes long.
///
/// # Errors
/// Anything but one whole frame without a dictionary, with a window of at most 8 MiB, and nothing after it.
pub fn inflate(bytes: &[u8], max: usize) -> Result<Vec<u8>, Damaged> {
    let header = header(bytes)?;
    let hint = match header.content {
        Some(len) if len > max as u64 => return Err(Damaged::TooLong(max)),
        Some(len) => usize::try_from(len).unwrap_or(max),
        None => bytes.len().saturating_mul(8).max(1024),
    };
    if header.window > MAX_WINDOW {
        return Err(Damaged::Window(header.window));
    }
    let frame = zstd_safe::find_frame_compressed_size(bytes).map_err(|_| Damaged::Frame)?;
    if frame > bytes.len() {
        return Err(Damaged::Frame);
    }
    if frame < bytes.len() {
        return Err(Damaged::Trailing(bytes.len() - frame));
    }

    let mut context = DCtx::try_create().ok_or(Damaged::Frame)?;
    let mut content: Vec<u8> = Vec::new();
    if header.content.is_some() {
        content.reserve_exact(hint);
        context.decompress(&mut content, bytes).map_err(|_| Damaged::Frame)?;
        return Ok(content);
    }
    let mut input = InBuffer::around(bytes);
    let mut room = hint;
    loop {
        // One byte above the ceiling, so that a content of exactly `max` bytes is told from a longer one.
        content.reserve_exact(room.min(max + 1) - content.len());
        let filled = content.len();
        let mut output = OutBuffer::around_pos(&mut content, filled);
        let want = context.decompress_stream(&mut output, &mut input).map_err(|_| Damaged::Frame)?;
        if content.len() > max {
            return Err(Damaged::TooLong(max));
        }
        if want == 0 {
            return Ok(content);
        }
        let full = content.len() == content.capacity();
        if !full && input.pos() == bytes.len() {
            return Err(Damaged::Frame);
        }
        if full {
            room = content.len().saturating_mul(2);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use alloc::vec;

    fn squeeze(content: &[u8]) -> Vec<u8> {
        let mut frame = Vec::with_capacity(zstd_safe::compress_bound(content.len()));
        zstd_safe::compress(&mut frame, content, 3).unwrap();
        frame
    }

    #[test]
    fn content_comes_back_and_the_ceiling_is_exact() {
        let content: Vec<u8> = (0..100_000_u32).map(|i| (i.wrapping_mul(i) >> 7) as u8).collect();
        let frame = squeeze(&content);
        assert_eq!(inflate(&frame, content.len()).unwrap(), content);
        assert_eq!(inflate(&frame, content.len() - 1), Err(Damaged::TooLong(content.len() - 1)));
        assert_eq!(inflate(&squeeze(&[]), 0).unwrap(), []);
    }

    #[test]
    fn a_frame_without_a_size_inflates_up_to_the_ceiling() {
        let content = vec![7_u8; 1 << 20];
        let mut context = zstd_safe::CCtx::create();
        context.set_parameter(zstd_safe::CParameter::ContentSizeFlag(false)).unwrap();
        let mut frame = Vec::with_capacity(4096);
        context.compress2(&mut frame, &content).unwrap();
        assert_eq!(inflate(&frame, 1 << 20).unwrap(), content);
        assert_eq!(inflate(&frame, (1 << 20) - 1), Err(Damaged::TooLong((1 << 20) - 1)));
    }

    #[test]
    fn nothing_but_one_whole_frame() {
        let frame = squeeze(b"some content that is long enough to be compressed, compressed, compressed");
        for cut in 0..frame.len() {
            assert!(inflate(&frame[..cut], 1 << 20).is_err(), "cut at {cut}");
        }
        let mut longer = frame.clone();
        longer.push(0);
        assert_eq!(inflate(&longer, 1 << 20), Err(Damaged::Trailing(1)));
        let skippable = [0x50, 0x2A, 0x4D, 0x18, 1, 0, 0, 0, 9];
        assert_eq!(inflate(&skippable, 1 << 20), Err(Damaged::NotZstd));
    }

    #[test]
    fn a_wide_window_is_refused() {
        let mut frame = vec![0x28, 0xB5, 0x2F, 0xFD, 0, (14 << 3) | 1]; // 16 MiB and an eighth
        frame.extend([1, 0, 0]); // an empty last block
        assert_eq!(inflate(&frame, 1 << 20), Err(Damaged::Window((16 << 20) + (2 << 20))));
    }
}
