//! Reading no faster than asked.

use cli::interrupt::Interrupt;
use std::ops::ControlFlow;
use std::thread;
use std::time::{Duration, Instant};

/// How long a wait goes on before somebody's wish to stop is looked up again.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Holds whoever reads until as much time has passed as the bytes read so far may take.
#[derive(Debug)]
pub struct Throttle {
    bytes_per_second: Option<u64>,
    begun: Instant,
    /// Of the images before this one.
    before: u64,
    /// Of this image.
    read_bytes: u64,
}

impl Throttle {
    /// At most so many bytes a second; any number where none is given.
    pub fn new(bytes_per_second: Option<u64>) -> Self {
        Self {
            bytes_per_second,
            begun: Instant::now(),
            before: 0,
            read_bytes: 0,
        }
    }

    /// The bytes of the next image are counted from 0 again.
    pub fn next_image(&mut self) {
        self.before = self.before.saturating_add(std::mem::take(&mut self.read_bytes));
    }

    /// Waits until `read_bytes` of this image may have been read; breaks as soon as somebody asks to stop.
    pub fn wait(&mut self, read_bytes: u64, interrupt: &Interrupt) -> ControlFlow<()> {
        self.read_bytes = read_bytes;
        while !interrupt.is_set() {
            let due = self.bytes_per_second.map_or(Duration::ZERO, |rate| {
                time_of(self.before.saturating_add(read_bytes), rate)
            });
            match due.checked_sub(self.begun.elapsed()) {
                Some(left) if !left.is_zero() => thread::sleep(left.min(POLL_INTERVAL)),
                _ => return ControlFlow::Continue(()),
            }
        }
        ControlFlow::Break(())
    }
}

/// How long so many bytes take at a rate.
fn time_of(bytes: u64, bytes_per_second: u64) -> Duration {
    let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(bytes_per_second.max(1));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_take_the_time_that_the_rate_gives_them() {
        assert_eq!(time_of(0, 5), Duration::ZERO);
        assert_eq!(time_of(100 << 20, 50 << 20), Duration::from_secs(2));
        assert_eq!(time_of(1, 4), Duration::from_millis(250));
        assert_eq!(time_of(u64::MAX, 1), Duration::from_nanos(u64::MAX));
    }
}
