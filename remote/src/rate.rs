//! How fast is sent.

use jiff::Zoned;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::{Instant, sleep};

const DAY_MINUTES: u16 = 24 * 60;

/// How many bytes a second may be sent, by the local time of day: `20MiB`, or `20MiB, 22:00-06:00 unlimited`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SendLimit {
    /// Bytes a second outside of all spans; 0 for no limit.
    otherwise: u64,
    spans: Vec<Span>,
}

/// A part of each day, which may go past midnight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    /// Minutes after midnight.
    from: u16,
    /// The same, not included.
    to: u16,
    /// Bytes a second; 0 for no limit.
    rate: u64,
}

impl Span {
    fn has(&self, minute: u16) -> bool {
        match self.from < self.to {
            true => (self.from..self.to).contains(&minute),
            false => minute >= self.from || minute < self.to,
        }
    }
}

impl SendLimit {
    /// The same limit all day, in bytes a second; 0 for no limit.
    pub fn always(bytes_per_second: u64) -> SendLimit {
        SendLimit {
            otherwise: bytes_per_second,
            spans: Vec::new(),
        }
    }

    /// Reads a limit as people write it: a rate, and then parts of the day with a rate of their own. `parse_rate` reads one rate.
    ///
    /// # Errors
    /// What is wrong, and how it is written.
    pub fn parse(
        text: &str,
        parse_rate: impl Fn(&str) -> std::result::Result<u64, String>,
    ) -> std::result::Result<SendLimit, String> {
        let rate = |text: &str| match text {
            "unlimited" => Ok(0),
            _ => parse_rate(text),
        };
        let mut parts = text.split(',').map(str::trim);
        let first = parts.next().unwrap_or_default();
        if first.contains(':') {
            return Err(format!(
                "before {first:?} comes the rate for the rest of the day: \"20MiB, {first}\""
            ));
        }
        let mut limit = SendLimit::always(rate(first)?);
        for part in parts {
            let span = span(part, &rate)?;
            if let Some(minute) = (0..DAY_MINUTES).find(|minute| span.has(*minute) && limit.has(*minute)) {
                return Err(format!("at {} two limits hold", clock(minute)));
            }
            limit.spans.push(span);
        }
        Ok(limit)
    }

    /// Whether a span has this minute.
    fn has(&self, minute: u16) -> bool {
        self.spans.iter().any(|span| span.has(minute))
    }

    /// Bytes a second at a minute after midnight; 0 for no limit.
    pub fn at(&self, minute: u16) -> u64 {
        let found = self.spans.iter().find(|span| span.has(minute));
        found.map_or(self.otherwise, |span| span.rate)
    }

    /// Bytes a second now; 0 for no limit.
    fn now(&self) -> u64 {
        if self.spans.is_empty() {
            return self.otherwise;
        }
        let now = Zoned::now();
        self.at(u16::from(now.hour().unsigned_abs()) * 60 + u16::from(now.minute().unsigned_abs()))
    }
}

fn clock(minute: u16) -> String {
    format!("{:02}:{:02}", minute / 60, minute % 60)
}

fn span(
    text: &str,
    rate: &impl Fn(&str) -> std::result::Result<u64, String>,
) -> std::result::Result<Span, String> {
    let how = || {
        format!(
            "{text:?} is no part of a day with its rate: write \"22:00-06:00 unlimited\" or \"8:00-18:00 5MiB\""
        )
    };
    let (times, own_rate) = text.split_once(char::is_whitespace).ok_or_else(how)?;
    let (from, to) = times.split_once('-').ok_or_else(how)?;
    let (from, to) = (minute(from).ok_or_else(how)?, minute(to).ok_or_else(how)?);
    if from == to {
        return Err(format!("{times} begins and ends at the same time"));
    }
    Ok(Span {
        from,
        to: to % DAY_MINUTES,
        rate: rate(own_rate.trim())?,
    })
}

/// Minutes after midnight, from `22:00`; `24:00` is the end of a day.
fn minute(text: &str) -> Option<u16> {
    let (hours, minutes) = text.split_once(':')?;
    let number = |text: &str| {
        text.bytes()
            .all(|byte| byte.is_ascii_digit())
            .then(|| text.parse::<u16>().ok())?
    };
    let (hours, minutes) = (number(hours)?, number(minutes)?);
    let found = hours.checked_mul(60)?.checked_add(minutes)?;
    (minutes < 60 && found <= DAY_MINUTES).then_some(found)
}

/// A limit that all connections of a session share and that may change meanwhile.
#[derive(Debug)]
pub struct Rate(Mutex<State>);

#[derive(Debug)]
struct State {
    limit: SendLimit,
    /// Bytes that were asked for, since the beginning.
    claimed: f64,
    /// Bytes that may have been sent, since the beginning.
    allowed: f64,
    /// Until when `allowed` is reckoned.
    reckoned: Option<Instant>,
}

/// What was saved while nothing was sent counts for so long.
const BURST: Duration = Duration::from_millis(50);

/// A change of the limit counts at the latest after so long for those that wait.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

impl Default for Rate {
    fn default() -> Self {
        Rate::new(SendLimit::default())
    }
}

impl Rate {
    /// A limit.
    pub fn new(limit: SendLimit) -> Rate {
        Rate(Mutex::new(State {
            limit,
            claimed: 0.0,
            allowed: 0.0,
            reckoned: None,
        }))
    }

    /// Changes the limit, for those that wait too.
    pub fn set(&self, limit: SendLimit) {
        self.state().limit = limit;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until so many bytes may be sent.
    pub async fn take(&self, bytes: u64) {
        let at = {
            let mut state = self.state();
            let rate = state.limit.now();
            state.claim(bytes, rate, Instant::now())
        };
        let mut claim = Claim {
            rate: self,
            bytes,
            at,
            is_granted: false,
        };
        loop {
            let waits = {
                let mut state = self.state();
                let rate = state.limit.now();
                state.waits(claim.at, rate, Instant::now())
            };
            match waits {
                Some(waits) => sleep(waits.min(LOOK_AGAIN)).await,
                None => {
                    claim.is_granted = true;
                    return;
                }
            }
        }
    }
}

/// Bytes that somebody waits for. Who stops waiting gives them back to those that come after.
struct Claim<'a> {
    rate: &'a Rate,
    bytes: u64,
    at: f64,
    is_granted: bool,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        if !self.is_granted {
            self.rate.state().claimed -= self.bytes as f64;
        }
    }
}

impl State {
    /// Asks for so many bytes. They may be sent when so many are allowed as this returns.
    fn claim(&mut self, bytes: u64, rate: u64, now: Instant) -> f64 {
        // What was saved until now does not depend on what is asked for now.
        self.reckon(rate, now);
        let claim = self.claimed;
        self.claimed += bytes as f64;
        claim
    }

    /// How long somebody has to wait at this rate; `None` if it is his turn.
    fn waits(&mut self, claim: f64, rate: u64, now: Instant) -> Option<Duration> {
        self.reckon(rate, now);
        let lacks = claim - self.allowed;
        (rate > 0 && lacks > 0.0)
            .then(|| Duration::try_from_secs_f64(lacks / rate as f64).unwrap_or(LOOK_AGAIN))
    }

    /// Allows what the time since the last time is worth.
    fn reckon(&mut self, rate: u64, now: Instant) {
        let since = self
            .reckoned
            .replace(now)
            .map_or(Duration::ZERO, |before| now - before);
        if rate == 0 {
            self.allowed = self.allowed.max(self.claimed);
            return;
        }
        let rate = rate as f64;
        let most = self.claimed + rate * BURST.as_secs_f64();
        self.allowed = (self.allowed + rate * since.as_secs_f64()).min(most);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn parse(text: &str) -> std::result::Result<SendLimit, String> {
        let rate = |text: &str| text.parse().map_err(|_| format!("{text:?} is no rate"));
        SendLimit::parse(text, rate)
    }

    #[test]
    fn bytes_go_at_the_rate_and_without_one_at_once() {
        let mut state = Rate::new(SendLimit::default()).0.into_inner().unwrap();
        let start = Instant::now();
        let first = state.claim(500, 1000, start);
        assert_eq!(state.waits(first, 1000, start), None);
        let second = state.claim(500, 1000, start);
        let half = Duration::from_millis(500);
        assert_eq!(state.waits(second, 1000, start), Some(half));
        assert_eq!(state.waits(second, 1000, start + half), None);
        // A limit that is higher counts for what waits already.
        let third = state.claim(1 << 40, 1000, start + half);
        let fourth = state.claim(10, 1000, start + half);
        assert!(state.waits(fourth, 1000, start + half).unwrap() > Duration::from_hours(10));
        assert_eq!(state.waits(third, 1000, start + 2 * half), None);
        assert_eq!(state.waits(fourth, 0, start + 2 * half), None);
    }

    #[test]
    fn what_nobody_waits_for_any_more_costs_those_that_come_after_nothing() {
        let rate = Rate::new(SendLimit::always(1000));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        runtime.block_on(async {
            rate.take(1 << 40).await;
            let claimed = rate.state().claimed;
            let lost = tokio::time::timeout(Duration::from_millis(10), rate.take(500)).await;
            assert!(lost.is_err(), "it would wait for years");
            assert!((rate.state().claimed - claimed).abs() < 1.0);
        });
    }

    #[test]
    fn little_is_saved_while_nothing_is_sent() {
        let mut state = Rate::new(SendLimit::default()).0.into_inner().unwrap();
        let start = Instant::now();
        let first = state.claim(100, 1000, start);
        assert_eq!(state.waits(first, 1000, start), None);
        let late = start + Duration::from_secs(10);
        let (second, third) = (state.claim(100, 1000, late), state.claim(100, 1000, late));
        assert_eq!(state.waits(second, 1000, late), None);
        assert!(state.waits(third, 1000, late).is_some());
    }

    #[test]
    fn a_limit_may_depend_on_the_time_of_day() {
        let limit = parse("20, 22:00-06:00 unlimited,8:30-24:00  7").unwrap_err();
        assert_eq!(limit, "at 22:00 two limits hold");
        let limit = parse("20, 22:00-06:00 unlimited, 8:30-12:00 7").unwrap();
        let at = |text: &str| limit.at(minute(text).unwrap());
        assert_eq!(
            ["21:59", "22:00", "23:59", "0:00", "5:59", "6:00"].map(at),
            [20, 0, 0, 0, 0, 20]
        );
        assert_eq!(["8:29", "8:30", "11:59", "12:00"].map(at), [20, 7, 7, 20]);
        let until_midnight = parse("1, 20:00-24:00 2").unwrap();
        assert_eq!(
            [0, 1199, 1200, 1439].map(|minute| until_midnight.at(minute)),
            [1, 1, 2, 2]
        );
        assert_eq!(parse("30"), Ok(SendLimit::always(30)));
        assert_eq!(parse("unlimited"), Ok(SendLimit::default()));
    }

    #[test]
    fn what_is_no_limit_is_refused_with_the_way_to_write_one() {
        for text in [
            "20, 22-6 0",
            "20, 22:00-06:00",
            "20,",
            "20, 25:00-26:00 1",
            "20, 22:60-23:00 1",
            "20, +1:00-2:00 1",
        ] {
            assert!(
                parse(text).unwrap_err().contains("22:00-06:00 unlimited"),
                "{text}"
            );
        }
        assert_eq!(parse("much").unwrap_err(), "\"much\" is no rate");
        assert_eq!(parse("20, 1:00-2:00 much").unwrap_err(), "\"much\" is no rate");
        assert!(parse("20, 7:00-7:00 1").unwrap_err().contains("same time"));
        assert!(
            parse("22:00-06:00 unlimited")
                .unwrap_err()
                .contains("rest of the day")
        );
    }
}
