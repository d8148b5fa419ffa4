//! A fuzzer's bytes as numbers and choices; past their end there are zeros.

use crate::format::pointer::RawPointer;

pub(super) struct Input<'a>(pub &'a [u8]);

/// Numbers at which arithmetic and checks turn.
const EDGES: [u64; 24] = [
    0,
    1,
    2,
    33,
    300,
    4095,
    4096,
    4097,
    12_320,
    16_383,
    16_384,
    16_385,
    65_536,
    262_144,
    (1 << 24) - 1,
    (1 << 31) - 1,
    (1 << 32) - 1,
    1 << 32,
    1 << 40,
    (1 << 62) - 1,
    1 << 62,
    (1 << 63) - 1,
    1 << 63,
    u64::MAX,
];

impl<'a> Input<'a> {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn rest(&mut self, max: usize) -> &'a [u8] {
        let (taken, left) = self.0.split_at(self.0.len().min(max));
        self.0 = left;
        taken
    }

    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        let taken = self.rest(N);
        bytes[..taken.len()].copy_from_slice(taken);
        bytes
    }

    pub fn byte(&mut self) -> u8 {
        let [byte] = self.bytes();
        byte
    }

    pub fn short(&mut self) -> u16 {
        u16::from_le_bytes(self.bytes())
    }

    pub fn long(&mut self) -> u32 {
        u32::from_le_bytes(self.bytes())
    }

    /// Any number: an edge, one beside an edge, a small one or a random one.
    pub fn number(&mut self) -> u64 {
        let kind = self.byte();
        let edge = EDGES[usize::from(kind >> 2) % EDGES.len()];
        match kind % 4 {
            0 => edge,
            1 => edge.wrapping_add(u64::from(self.byte())),
            2 => edge.wrapping_sub(u64::from(self.short())),
            _ => u64::from_le_bytes(self.bytes()),
        }
    }

    /// One of `count` things; 0 where there is none.
    pub fn choose(&mut self, count: usize) -> usize {
        usize::from(self.short()) % count.max(1)
    }

    /// Changes one field of a pointer.
    pub fn change_pointer(&mut self, pointer: &mut RawPointer) {
        match self.byte() % 6 {
            0 => pointer.digest[usize::from(self.byte() % 32)] ^= self.byte(),
            1 => pointer.layer = self.long().into(),
            2 => {
                let [a, b, c, ..] = self.number().to_le_bytes();
                pointer.stored_len = [a, b, c];
            }
            3 => pointer.codec = self.byte(),
            4 => pointer.offset = self.number().into(),
            _ => *pointer = crate::Pointer::NULL.to_raw(),
        }
    }
}
