//! Arithmetic of bytes and seconds, without surprises at the ends.

use std::time::Duration;

/// What a rate that is not known counts as, in bytes per second: any disk is faster.
const RATE_FLOOR: u64 = 1 << 20;

/// Bytes per second; 0 if the span is too short to tell.
pub fn rate(bytes: u64, span: Duration) -> u64 {
    let nanos = span.as_nanos();
    if nanos == 0 {
        return 0;
    }
    u64::try_from(u128::from(bytes) * 1_000_000_000 / nanos).unwrap_or(u64::MAX)
}

/// How long `bytes` take at a rate in bytes per second; 0 is a rate that is not known.
pub fn seconds(bytes: u64, rate: u64) -> f64 {
    let rate = if rate == 0 { RATE_FLOOR } else { rate };
    as_f64(bytes) / as_f64(rate)
}

/// A count as a float: exact up to 2^53, rounded above.
pub fn as_f64(count: u64) -> f64 {
    let (high, low) = (count >> 32, count & 0xffff_ffff);
    let part = |half: u64| f64::from(u32::try_from(half).unwrap_or(u32::MAX));
    part(high) * 4_294_967_296.0 + part(low)
}

/// The share of `part` in `whole`, 0 to 1; 0 of nothing.
pub fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        return 0.0;
    }
    (as_f64(part) / as_f64(whole)).clamp(0.0, 1.0)
}

/// `bytes` times a share from 0 to 1, rounded up to whole units of a millionth.
pub fn times(bytes: u64, share: f64) -> u64 {
    let millionths =
        u32::try_from(Duration::from_secs_f64(share.clamp(0.0, 1.0)).as_micros()).unwrap_or(1_000_000);
    let product = u128::from(bytes) * u128::from(millionths);
    u64::try_from(product.div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_no_surprise() {
        assert_eq!(rate(10, Duration::ZERO), 0);
        assert_eq!(rate(u64::MAX, Duration::from_millis(1)), u64::MAX);
        assert_eq!(rate(1000, Duration::from_secs(2)), 500);
        assert_eq!(rate(512, Duration::from_micros(100)), 5_120_000);
        assert!(
            seconds(512, 0) < 0.001,
            "a rate that is not known is not one byte"
        );
        assert!((as_f64(1 << 40) - 1_099_511_627_776.0).abs() < 1.0);
        assert!(share(1, 0).abs() < f64::EPSILON);
        assert_eq!(times(1000, 0.5), 500);
        assert_eq!(times(u64::MAX, 1.0), u64::MAX);
        assert_eq!(times(5, 7.0), 5);
    }
}
