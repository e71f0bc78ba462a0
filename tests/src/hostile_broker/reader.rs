//! Packets from a client, or whatever it sends instead.

use std::io;

use bytes::BytesMut;
use rumqttc::mqttbytes::Error;
use rumqttc::mqttbytes::v4::Packet;
use tokio::io::AsyncReadExt;
use tokio::net::tcp::OwnedReadHalf;

use super::LARGEST;

/// The way in.
pub(super) struct Reader {
    pub(super) stream: OwnedReadHalf,
    pub(super) buffer: BytesMut,
}

impl Reader {
    pub(super) async fn packet(&mut self) -> Result<Packet, Error> {
        loop {
            match Packet::read(&mut self.buffer, LARGEST) {
                Err(Error::InsufficientBytes(_)) => {}
                done => return done,
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(Error::Io(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }

    /// Reads and ignores until the peer gives up.
    pub(super) async fn drain(&mut self) -> bool {
        while self.stream.read_buf(&mut self.buffer).await.is_ok_and(|read| read > 0) {
            self.buffer.clear();
        }
        false
    }
}
