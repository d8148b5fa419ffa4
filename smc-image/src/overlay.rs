//! How much may be written to overlays.

use cli::units::parse_size;

/// What overlays keep in memory before they use their file.
const MEMORY_BYTES: u64 = 64 << 20;

/// What the first byte written takes.
const LIMIT_MIN_BYTES: u64 = 64 << 10;

/// The largest size of overlays, in bytes, as people write it.
///
/// # Errors
/// What is no size, or too small for any write.
pub fn parse_limit(text: &str) -> Result<u64, String> {
    match parse_size(text)? {
        limit if limit < LIMIT_MIN_BYTES => Err("an overlay takes 64KiB at least".to_owned()),
        limit => Ok(limit),
    }
}

/// How many bytes of `limit_bytes` overlays keep in memory; the rest lies in a file.
pub fn memory_bytes(limit_bytes: u64) -> u64 {
    MEMORY_BYTES.min(limit_bytes)
}
