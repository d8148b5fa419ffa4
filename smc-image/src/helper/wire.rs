//! What the helper guest and the process that serves the disks say to each other. Both are this program, so there is one version
//! of it. First a message in JSON each way, then requests and answers with numbers in little-endian order.
//!
//! The guest reads what somebody else wrote to disks, and may have been taken over by that: nothing it says is trusted.

use anyhow::{Context, ensure};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::{Read, Write};

/// Messages in JSON are shorter.
const MESSAGE_LEN_MAX: usize = 1 << 20;

/// What a request reads or writes at most.
pub const PIECE_LEN_MAX: u32 = 4 << 20;

/// The virtio port that both are connected by: QEMU's machine has it for the guest agent.
pub const PORT: &str = "org.qemu.guest_agent.0";

/// The serial number of each disk starts so; its place among the image's disks follows.
pub const SERIAL: &str = "smc";

/// What the guest is told.
#[derive(Debug, Serialize, Deserialize)]
pub struct Order {
    /// The names of the disks that it has.
    pub disks: Vec<String>,
    /// What opens LUKS containers, if anything.
    pub key: Option<Vec<u8>>,
}

/// What the guest has put together.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {
    /// Volumes that nothing else is put together from.
    pub volumes: Vec<Volume>,
    /// What could not be opened, and why.
    pub problems: Vec<String>,
}

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Its name, as disks of images can have it: `vg0-root`, `md0`, `luks-UUID`.
    pub name: String,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Its logical block size in bytes.
    pub block_bytes: u32,
    /// Paths by which the imaged machine may know it: `/dev/vg0/root`.
    pub aliases: Vec<String>,
    /// What of the image it lies on.
    pub parts: Vec<Part>,
}

/// A disk of the image or a partition of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// The disk's name in the image.
    pub disk: String,
    /// The partition's number; `None` for the whole disk.
    pub partition: Option<u32>,
}

impl Volume {
    /// Whether it lies, in part at least, on this disk, and on this partition if one is named.
    pub fn lies_on(&self, disk: Option<&str>, partition: Option<u32>) -> bool {
        self.parts.iter().any(|part| {
            disk.is_none_or(|disk| disk == part.disk) && (partition.is_none() || partition == part.partition)
        })
    }
}

/// Sends a message.
///
/// # Errors
/// A line that is gone.
pub fn send(line: &mut impl Write, message: &impl Serialize) -> anyhow::Result<()> {
    let text = serde_json::to_vec(message)?;
    let length = u32::try_from(text.len())?;
    line.write_all(&length.to_le_bytes())?;
    line.write_all(&text)?;
    Ok(line.flush()?)
}

/// Waits for a message.
///
/// # Errors
/// A line that is gone, and what is no message.
pub fn receive<T: DeserializeOwned>(line: &mut impl Read) -> anyhow::Result<T> {
    let length = u32::from_le_bytes(read_array(line)?);
    let length = usize::try_from(length)?;
    ensure!(
        length <= MESSAGE_LEN_MAX,
        "a message of {length} bytes is too long"
    );
    let mut text = vec![0; length];
    line.read_exact(&mut text)?;
    serde_json::from_slice(&text).context("read a message")
}

fn read_array<const N: usize>(line: &mut impl Read) -> std::io::Result<[u8; N]> {
    let mut bytes = [0; N];
    line.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// A request; what is to be written follows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Its answer has the same.
    pub id: u64,
    /// Which of the volumes.
    pub volume: u16,
    /// Whether it writes; it reads otherwise.
    pub writes: bool,
    /// First byte.
    pub offset: u64,
    /// How many bytes.
    pub length: u32,
}

impl Request {
    /// It as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = self.id.to_le_bytes().to_vec();
        bytes.extend(self.volume.to_le_bytes());
        bytes.extend(u16::from(self.writes).to_le_bytes());
        bytes.extend(self.offset.to_le_bytes());
        bytes.extend(self.length.to_le_bytes());
        bytes
    }

    /// The next one.
    ///
    /// # Errors
    /// A line that is gone.
    pub fn read(line: &mut impl Read) -> std::io::Result<Self> {
        Ok(Self {
            id: u64::from_le_bytes(read_array(line)?),
            volume: u16::from_le_bytes(read_array(line)?),
            writes: u16::from_le_bytes(read_array(line)?) != 0,
            offset: u64::from_le_bytes(read_array(line)?),
            length: u32::from_le_bytes(read_array(line)?),
        })
    }
}

/// An answer; what was read follows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// That of the request.
    pub id: u64,
    /// The number of the error; 0 for none.
    pub errno: i32,
    /// How many bytes follow.
    pub length: u32,
}

impl Answer {
    /// It as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = self.id.to_le_bytes().to_vec();
        bytes.extend(self.errno.to_le_bytes());
        bytes.extend(self.length.to_le_bytes());
        bytes
    }

    /// The next one.
    ///
    /// # Errors
    /// A line that is gone.
    pub fn read(line: &mut impl Read) -> std::io::Result<Self> {
        Ok(Self {
            id: u64::from_le_bytes(read_array(line)?),
            errno: i32::from_le_bytes(read_array(line)?),
            length: u32::from_le_bytes(read_array(line)?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_is_received() {
        let request = Request {
            id: 7,
            volume: 3,
            writes: true,
            offset: 1 << 40,
            length: 4096,
        };
        assert_eq!(Request::read(&mut &request.encode()[..]).unwrap(), request);
        let answer = Answer {
            id: u64::MAX,
            errno: 5,
            length: 0,
        };
        assert_eq!(Answer::read(&mut &answer.encode()[..]).unwrap(), answer);
        let order = Order {
            disks: vec!["vda".to_owned()],
            key: Some(b"\n\0".to_vec()),
        };
        let mut line = Vec::new();
        send(&mut line, &order).unwrap();
        let received: Order = receive(&mut &line[..]).unwrap();
        assert_eq!(
            (received.disks, received.key),
            (order.disks, Some(b"\n\0".to_vec()))
        );
    }

    #[test]
    fn a_message_that_never_ends_is_refused() {
        let error = receive::<Opened>(&mut &[0xff; 64][..]).unwrap_err();
        assert!(error.to_string().contains("too long"), "{error}");
        receive::<Opened>(&mut &[9, 0, 0, 0, b'{'][..]).unwrap_err();
    }
}
