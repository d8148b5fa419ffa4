//! Who may be connected: so many clients at a time and, apart from these, so many that still have to show who they are.
//!
//! Everyone who can reach a TCP port can open connections to it and say nothing. Such clients must not take the places of
//! those that have a certificate, so they wait in places of their own. When there are too many of them, a new one takes
//! the place of the one that has waited longest: a client that means it is through in a moment.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

/// Lines in a minute that clients can make the server log before they have shown who they are.
const NOTICES: u32 = 20;
const NOTICE_PERIOD: Duration = Duration::from_secs(60);

/// How many clients there may be.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Clients at a time that have shown who they are; one more is refused.
    pub connections: usize,
    /// Clients at a time that have not yet, beside those; a new one ends the one that has waited longest.
    pub handshakes: usize,
    /// How many of these may come from one network (see [`network`]).
    pub handshakes_per_network: usize,
}

/// The network of which one owner has all addresses: an IPv4 address, or 64 bits of an IPv6 address.
pub fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        address @ IpAddr::V4(_) => address,
    }
}

/// Counts the clients of a server.
pub struct Admission {
    bounds: Bounds,
    /// Called when the last client leaves.
    last_leaves: Option<Box<dyn Fn() + Send + Sync>>,
    notices: Notices,
    state: Mutex<State>,
}

impl fmt::Debug for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admission")
            .field("bounds", &self.bounds)
            .finish_non_exhaustive()
    }
}

#[derive(Default)]
struct State {
    next: u64,
    admitted: usize,
    /// In the order in which they came.
    waiting: BTreeMap<u64, Waiting>,
}

struct Waiting {
    network: Option<IpAddr>,
    /// Dropped to take the place away.
    _place: oneshot::Sender<()>,
}

/// Resolves when a place was taken away.
pub type Evicted = oneshot::Receiver<()>;

/// A client's place, until it is dropped.
#[derive(Debug)]
pub struct Place {
    admission: Arc<Admission>,
    number: u64,
    admitted: AtomicBool,
}

impl Admission {
    /// For a server without clients. `last_leaves` is called each time that the last one leaves.
    pub fn new(bounds: Bounds, last_leaves: Option<Box<dyn Fn() + Send + Sync>>) -> Arc<Self> {
        Arc::new(Self {
            bounds,
            last_leaves,
            notices: Notices::default(),
            state: Mutex::default(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn place(self: &Arc<Self>, number: u64, admitted: bool) -> Place {
        Place {
            admission: Arc::clone(self),
            number,
            admitted: AtomicBool::new(admitted),
        }
    }

    /// A place for a client that has yet to show who it is; where it comes from counts if that is known.
    pub fn wait(self: &Arc<Self>, network: Option<IpAddr>) -> (Place, Evicted) {
        let (sender, evicted) = oneshot::channel();
        let mut state = self.state();
        if let Some(longest) = self.in_the_way(&state, network) {
            state.waiting.remove(&longest);
        }
        let number = state.next;
        state.next += 1;
        let waiting = Waiting {
            network,
            _place: sender,
        };
        state.waiting.insert(number, waiting);
        drop(state);
        (self.place(number, false), evicted)
    }

    /// The one that has to go before another one of `network` can wait.
    fn in_the_way(&self, state: &State, network: Option<IpAddr>) -> Option<u64> {
        let mut same = state.waiting.iter().filter(|(_, one)| one.network == network);
        let first = same.next().map(|(number, _)| *number);
        if network.is_some() && 1 + same.count() >= self.bounds.handshakes_per_network {
            return first;
        }
        let is_full = state.waiting.len() >= self.bounds.handshakes;
        is_full.then(|| state.waiting.keys().next().copied()).flatten()
    }

    /// A place for a client that need not show who it is: it takes none of those that others wait in. `None` if there is none.
    pub fn admit_known(self: &Arc<Self>, client: &dyn Display) -> Option<Place> {
        let mut state = self.state();
        if state.admitted >= self.bounds.connections {
            drop(state);
            self.refuse_full(client);
            return None;
        }
        state.admitted += 1;
        Some(self.place(0, true))
    }

    fn refuse_full(&self, client: &dyn Display) {
        let limit = self.bounds.connections;
        let text = format_args!("refused, because the server has {limit} connections already");
        self.notices.warn(client, text);
    }

    /// A place beyond all bounds, for a client that the server's maker chose.
    pub fn admit_chosen(self: &Arc<Self>) -> Place {
        self.state().admitted += 1;
        self.place(0, true)
    }
}

impl Place {
    /// The client has shown who it is. False if it has no place any more, or there is none for it; true once is true
    /// for ever.
    pub fn admit(&self, client: &dyn Display) -> bool {
        if self.is_admitted() {
            return true;
        }
        let mut state = self.admission.state();
        if !state.waiting.contains_key(&self.number) {
            return false;
        }
        if state.admitted >= self.admission.bounds.connections {
            // It keeps its place among those that wait until it has the answer.
            drop(state);
            self.admission.refuse_full(client);
            return false;
        }
        state.admitted += 1;
        // Admitted before its place goes: a client that sees the place go looks here.
        self.admitted.store(true, Ordering::Release);
        state.waiting.remove(&self.number);
        true
    }

    /// Logs what a client did that may not be let in: so many lines a minute for all of them.
    pub fn warn(&self, client: &dyn Display, what: fmt::Arguments<'_>) {
        self.admission.notices.warn(client, what);
    }

    /// Whether the client has shown who it is, and there was a place for it.
    pub fn is_admitted(&self) -> bool {
        self.admitted.load(Ordering::Acquire)
    }

    /// Resolves when a client's place was given to another one: `evicted` came with the place. Never once it was admitted.
    pub async fn lost(&self, evicted: Evicted) {
        let _ = evicted.await;
        if self.is_admitted() {
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.admission.state();
        if self.is_admitted() {
            state.admitted -= 1;
        } else {
            state.waiting.remove(&self.number);
        }
        let is_last = state.admitted == 0 && state.waiting.is_empty();
        drop(state);
        if let Some(last_leaves) = self.admission.last_leaves.as_ref().filter(|_| is_last) {
            last_leaves();
        }
    }
}

/// Warnings of what anybody can do who reaches the port: so many in a minute, and how many there would have been.
#[derive(Default)]
struct Notices(Mutex<Period>);

#[derive(Default)]
struct Period {
    began: Option<Instant>,
    count: u32,
}

impl Notices {
    /// Logs what a client did that nobody has let in yet.
    fn warn(&self, client: &dyn Display, what: fmt::Arguments<'_>) {
        let (logged, left_out) = self.count(Instant::now());
        if left_out > 0 {
            tracing::warn!("{left_out} more clients were refused, which are not shown");
        }
        if logged {
            tracing::warn!("{client}: {what}");
        }
    }

    /// Counts one: whether it is logged, and how many were not in the minute that has just ended.
    fn count(&self, now: Instant) -> (bool, u32) {
        let mut period = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut left_out = 0;
        if period
            .began
            .is_none_or(|began| now.duration_since(began) >= NOTICE_PERIOD)
        {
            left_out = period.count.saturating_sub(NOTICES);
            *period = Period {
                began: Some(now),
                count: 0,
            };
        }
        period.count = period.count.saturating_add(1);
        (period.count <= NOTICES, left_out)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn admission() -> Arc<Admission> {
        let bounds = Bounds {
            connections: 2,
            handshakes: 4,
            handshakes_per_network: 3,
        };
        Admission::new(bounds, None)
    }

    fn at(address: &str) -> Option<IpAddr> {
        Some(network(address.parse().unwrap()))
    }

    #[test]
    fn an_owner_of_a_network_is_one_client_to_the_bounds() {
        let network = |text: &str| at(text).unwrap().to_string();
        assert_eq!(network("192.0.2.7"), "192.0.2.7");
        assert_eq!(network("::ffff:192.0.2.7"), "192.0.2.7");
        assert_eq!(network("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
    }

    #[test]
    fn the_last_one_that_leaves_is_noticed() {
        let left = Arc::new(AtomicBool::new(false));
        let noticed = left.clone();
        let bounds = admission().bounds;
        let admission = Admission::new(
            bounds,
            Some(Box::new(move || noticed.store(true, Ordering::Relaxed))),
        );
        let (first, second) = (admission.wait(None).0, admission.wait(None).0);
        assert!(first.admit(&"first"));
        drop(second);
        assert!(!left.load(Ordering::Relaxed));
        drop(first);
        assert!(left.load(Ordering::Relaxed));
    }

    fn is_evicted(evicted: &mut Evicted) -> bool {
        evicted.try_recv() == Err(oneshot::error::TryRecvError::Closed)
    }

    #[test]
    fn the_longest_wait_of_an_address_ends_when_it_has_too_many() {
        let admission = admission();
        let other = admission.wait(at("192.0.2.1"));
        let mut same: Vec<_> = (0..5).map(|_| admission.wait(at("192.0.2.2"))).collect();
        let evicted: Vec<bool> = same.iter_mut().map(|(_, evicted)| is_evicted(evicted)).collect();
        assert_eq!(evicted, [true, true, false, false, false]);
        assert!(
            !same[0].0.admit(&"192.0.2.1") && same[4].0.admit(&"192.0.2.1") && other.0.admit(&"192.0.2.1")
        );
    }

    #[test]
    fn the_longest_wait_of_all_ends_when_there_are_too_many() {
        let admission = admission();
        let many = (1..=6).map(|last| admission.wait(at(&format!("192.0.2.{last}"))));
        let mut many: Vec<_> = many.collect();
        let evicted: Vec<bool> = many.iter_mut().map(|(_, evicted)| is_evicted(evicted)).collect();
        assert_eq!(evicted, [true, true, false, false, false, false]);
    }

    #[test]
    fn places_are_bounded_and_come_back() {
        let admission = admission();
        let wait = || admission.wait(at("192.0.2.1")).0;
        let (first, second, third) = (wait(), wait(), wait());
        assert!(first.admit(&"192.0.2.1") && first.admit(&"192.0.2.1") && second.admit(&"192.0.2.1"));
        assert!(!third.admit(&"192.0.2.1") && !third.admit(&"192.0.2.1"));
        drop(first);
        let fourth = wait();
        assert!(fourth.admit(&"192.0.2.1"));
        // Those that need not show who they are come in by the same bound, and push nobody out who waits.
        let mut waiting: Vec<_> = (1..=4)
            .map(|last| admission.wait(at(&format!("192.0.2.{last}"))))
            .collect();
        assert!(admission.admit_known(&"process 1").is_none());
        drop(second);
        let second = admission.admit_known(&"process 1").unwrap();
        assert!(waiting.iter_mut().all(|(_, evicted)| !is_evicted(evicted)));
        drop(waiting);
        // Those that were chosen come in beyond the bound, and count.
        let chosen = admission.admit_chosen();
        drop((second, fourth));
        assert!(wait().admit(&"192.0.2.1"));
        drop(chosen);
    }

    #[test]
    fn notices_are_bounded_and_the_rest_is_counted() {
        let notices = Notices::default();
        let start = Instant::now();
        let counted: Vec<_> = (0..NOTICES + 5).map(|_| notices.count(start)).collect();
        assert_eq!(
            counted.iter().filter(|(logged, _)| *logged).count(),
            NOTICES as usize
        );
        assert_eq!(notices.count(start + NOTICE_PERIOD), (true, 5));
    }
}
