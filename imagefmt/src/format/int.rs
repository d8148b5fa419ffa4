//! The one place where 64-bit lengths and memory indices meet.

const _: () = assert!(
    usize::BITS >= u64::BITS,
    "smc addresses disks and memory with 64 bits"
);

/// A length or index that is known to fit memory.
#[allow(clippy::cast_possible_truncation)]
pub(crate) const fn to_usize(value: u64) -> usize {
    // Lossless by the assertion above.
    value as usize
}
