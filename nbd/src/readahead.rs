//! Guesses what a client reads next, so that it is ready when asked for.

use std::ops::Range;

/// Bytes read in sequence before anything is prepared.
const TRIGGER: u64 = 512 << 10;
/// How far ahead of the client is prepared.
const WINDOW: u64 = 4 << 20;
/// A read that begins this far behind the last one still belongs to the sequence: tools skip
/// holes, and share the work among connections.
const GAP: u64 = 2 << 20;

/// Watches the reads of one connection.
#[derive(Debug, Default)]
pub(crate) struct ReadAhead {
    /// Where the sequence has got to.
    end: u64,
    /// How long it is.
    run: u64,
    /// Up to where was prepared.
    prepared: u64,
}

impl ReadAhead {
    /// Notes a read; returns what to prepare now. `size` is the export's.
    pub(crate) fn observe(&mut self, offset: u64, length: u64, size: u64) -> Option<Range<u64>> {
        let end = offset.saturating_add(length);
        let continues = offset >= self.end && offset - self.end <= GAP;
        self.run = if continues {
            self.run.saturating_add(length)
        } else {
            0
        };
        self.end = end;
        if self.run < TRIGGER {
            self.prepared = 0;
            return None;
        }
        let start = self.prepared.max(end);
        let stop = end.saturating_add(WINDOW).min(size);
        // In few large pieces, not in many small ones.
        if start >= stop || (start - end > WINDOW / 2 && stop < size) {
            return None;
        }
        self.prepared = stop;
        Some(start..stop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const SIZE: u64 = 64 * MIB;

    #[test]
    fn a_sequence_is_prepared_ahead_once_and_to_the_end() {
        let mut ahead = ReadAhead::default();
        let mut ready = 0..0;
        for offset in (0..SIZE).step_by(128 << 10) {
            if let Some(found) = ahead.observe(offset, 128 << 10, SIZE) {
                assert!(found.start >= ready.end && found.end <= SIZE && !found.is_empty());
                assert!(
                    found.start >= offset + (128 << 10),
                    "what is being read is too late"
                );
                ready = found;
            }
            assert!(offset < MIB || ready.end > offset + (128 << 10) || ready.end == SIZE);
        }
        assert_eq!(ready.end, SIZE);
    }

    #[test]
    fn scattered_reads_prepare_nothing() {
        let mut ahead = ReadAhead::default();
        let mut offset = 1_u64;
        for _ in 0..10_000 {
            offset = offset
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695);
            assert_eq!(ahead.observe((offset >> 20) % SIZE, 4096, SIZE), None);
        }
    }

    #[test]
    fn backwards_is_no_sequence_and_offsets_do_not_overflow() {
        let mut ahead = ReadAhead::default();
        for offset in (0..64).rev() {
            assert_eq!(ahead.observe(offset * MIB, MIB, SIZE), None);
        }
        assert_eq!(ahead.observe(u64::MAX - 1, 1 << 20, u64::MAX), None);
    }
}
