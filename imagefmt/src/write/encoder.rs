//! From a cluster's plain bytes to what is stored for it.

use crate::format::codec::{compress_cluster, encode_damaged};
use crate::format::digest::Digest;
use crate::format::pointer::Codec;
use crate::write::builder::ClusterUpdate;

/// Digests and encodes the clusters of one chain. Each thread that works for a sync has its own.
///
/// What depends on the chain and not on the place of a cluster belongs here: a key for digests, a cipher and the
/// choice of its nonces, should a chain be encrypted one day.
#[derive(Debug, Clone)]
pub struct ClusterEncoder {
    compress_level: i32,
    /// What the last cluster was encoded to, unless it is stored raw.
    encoded: Vec<u8>,
}

impl ClusterEncoder {
    /// An encoder for clusters that are not encrypted. zstd levels are 1 to 19; 0 stores everything raw.
    pub fn new(compress_level: i32) -> Self {
        Self {
            compress_level,
            encoded: Vec::new(),
        }
    }

    /// The digest of a cluster's content; null for zeros.
    pub fn digest(&self, plain: &[u8]) -> Digest {
        Digest::of_cluster(plain)
    }

    /// What to store for cluster `index`, whose content has `digest`.
    pub fn encode<'a>(&'a mut self, index: u64, digest: Digest, plain: &'a [u8]) -> ClusterUpdate<'a> {
        let codec = if digest.is_null() {
            Codec::Null
        } else {
            compress_cluster(plain, self.compress_level, &mut self.encoded)
        };
        let stored = match codec {
            Codec::Null => &[],
            Codec::Raw => plain,
            _ => &self.encoded[..],
        };
        ClusterUpdate {
            index,
            digest,
            codec,
            stored,
        }
    }

    /// What to store for cluster `index`, of which sectors could not be read: those whose bit is set in `unreadable`,
    /// the lowest bit of the first byte for the first 512 bytes.
    pub fn encode_damaged(&mut self, index: u64, plain: &[u8], unreadable: &[u8]) -> ClusterUpdate<'_> {
        let (digest, stored) = encode_damaged(plain, unreadable);
        self.encoded = stored;
        ClusterUpdate {
            index,
            digest,
            codec: Codec::Damaged,
            stored: &self.encoded,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_content_gets_its_codec() {
        let mut encoder = ClusterEncoder::new(1);
        let noise: Vec<u8> = blake3::hash(b"noise").as_bytes().to_vec();
        let contents = [
            (vec![0; 16384], Codec::Null),
            (vec![7; 16384], Codec::Zstd),
            (noise, Codec::Raw),
        ];
        for (plain, codec) in contents {
            let digest = encoder.digest(&plain);
            assert_eq!(digest, Digest::of_cluster(&plain));
            let update = encoder.encode(3, digest, &plain);
            assert_eq!((update.index, update.digest, update.codec), (3, digest, codec));
            match codec {
                Codec::Null => assert!(update.stored.is_empty()),
                Codec::Raw => assert_eq!(update.stored, plain),
                _ => assert!(update.stored.len() < plain.len()),
            }
        }
    }
}
