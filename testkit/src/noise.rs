//! Bytes and numbers that look random and are the same for the same seed.

/// A small generator (xorshift64*, Vigna 2016): not for secrets, the same sequence for the same seed.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The sequence of `seed`.
    pub fn new(seed: u64) -> Self {
        // The generator's state must not be zero, and near seeds should not begin alike.
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `end`; 0 where `end` is 0.
    pub fn below(&mut self, end: u64) -> u64 {
        // The upper bits are the better ones.
        (self.next_u64() >> 16) % end.max(1)
    }

    /// `len` bytes.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            bytes.extend_from_slice(&self.next_u64().to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }
}

/// `len` bytes that do not compress and repeat nowhere: the same for the same seed.
pub fn noise(len: usize, seed: u64) -> Vec<u8> {
    Random::new(seed).bytes(len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn noise_depends_on_its_seed_alone_and_a_longer_one_begins_like_a_shorter_one() {
        assert_eq!(noise(4097, 7), noise(4097, 7));
        assert_eq!(noise(100, 7), noise(4097, 7)[..100]);
        for seed in 1..100 {
            assert_ne!(noise(64, seed), noise(64, 0), "seed {seed}");
        }
    }

    #[test]
    fn no_eight_bytes_of_a_mebibyte_come_twice() {
        let noise = noise(1 << 20, 3);
        let words: HashSet<&[u8]> = noise.chunks(8).collect();
        assert_eq!(words.len(), noise.len() / 8);
    }

    #[test]
    fn numbers_are_below_their_end_and_all_of_them_come() {
        let mut random = Random::new(5);
        let seen: HashSet<u64> = (0..1000).map(|_| random.below(7)).collect();
        assert_eq!(seen, (0..7).collect());
        assert_eq!(random.below(0), 0);
    }
}
