//! What clients share and find again: it stays while one of them uses it and, where a connection broke, for a grace time
//! in which the client may come back.

use super::locked;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::thread;
use std::time::{Duration, Instant};

/// How much is kept at a time for clients that are not connected; beyond that, what would go next goes at once.
const AWAITED_MAX: usize = 256;

/// Things by their keys.
#[derive(Debug)]
pub(super) struct Kept<K, V>(Arc<Inner<K, V>>);

#[derive(Debug)]
struct Inner<K, V> {
    grace: Duration,
    state: Mutex<State<K, V>>,
}

#[derive(Debug)]
struct State<K, V> {
    entries: BTreeMap<K, Entry<V>>,
    /// A thread looks after what is awaited.
    swept: bool,
}

#[derive(Debug)]
struct Entry<V> {
    value: Arc<V>,
    users: usize,
    /// Until when each user whose connection broke may come back; the earliest first.
    awaited: Vec<Instant>,
}

/// One user's part in something kept. Dropping it without [`leave`](Self::leave) means that the user may come back.
#[derive(Debug)]
pub(super) struct Use<K: Ord, V> {
    kept: Arc<Inner<K, V>>,
    key: K,
    value: Arc<V>,
    left: AtomicBool,
}

impl<K: Ord + Clone + Send + 'static, V: Send + Sync + 'static> Kept<K, V> {
    /// Nothing yet; what a broken connection used stays for `grace`.
    pub fn new(grace: Duration) -> Self {
        let state = State {
            entries: BTreeMap::new(),
            swept: false,
        };
        Self(Arc::new(Inner {
            grace,
            state: Mutex::new(state),
        }))
    }

    /// What is kept by this key.
    pub fn get(&self, key: &K) -> Option<Arc<V>> {
        let mut state = locked(&self.0.state);
        let expired = state.expire(Instant::now());
        let found = state.entries.get(key).map(|entry| entry.value.clone());
        drop(state);
        drop(expired);
        found
    }

    /// Uses what is kept by this key, or what `make` makes. The lock is held meanwhile: two that come at once get the
    /// same.
    ///
    /// # Errors
    /// That of `make`.
    pub fn attach<E>(&self, key: &K, make: impl FnOnce() -> Result<V, E>) -> Result<Use<K, V>, E> {
        let mut state = locked(&self.0.state);
        let expired = state.expire(Instant::now());
        let value = match state.entries.get_mut(key) {
            Some(entry) => {
                entry.users += 1;
                // It takes the place of one that broke.
                entry.awaited.drain(..entry.awaited.len().min(1));
                entry.value.clone()
            }
            None => {
                let value = Arc::new(make()?);
                let entry = Entry {
                    value: value.clone(),
                    users: 1,
                    awaited: Vec::new(),
                };
                state.entries.insert(key.clone(), entry);
                value
            }
        };
        let needs_sweeper = !self.0.grace.is_zero() && !std::mem::replace(&mut state.swept, true);
        drop(state);
        drop(expired);
        if needs_sweeper {
            self.start_sweeper();
        }
        Ok(Use {
            kept: self.0.clone(),
            key: key.clone(),
            value,
            left: AtomicBool::new(false),
        })
    }
}

impl<K: Ord + Clone + Send + 'static, V: Send + Sync + 'static> Kept<K, V> {
    /// Has a thread take out what is not awaited any more, as long as there is something.
    fn start_sweeper(&self) {
        let kept = Arc::downgrade(&self.0);
        let started = thread::Builder::new()
            .name("grace".to_owned())
            .spawn(move || sweep(&kept));
        if let Err(error) = started {
            // The next client tries again; until then, whatever a client does takes out what is over.
            tracing::warn!("cannot start a thread: {error}");
            locked(&self.0.state).swept = false;
        }
    }
}

fn sweep<K: Ord, V>(kept: &Weak<Inner<K, V>>) {
    while let Some(inner) = kept.upgrade() {
        let now = Instant::now();
        let mut state = locked(&inner.state);
        let expired = state.expire(now);
        if state.entries.is_empty() {
            state.swept = false;
            return;
        }
        let awaited = state.entries.values().filter_map(|entry| entry.awaited.first());
        // Who leaves meanwhile is awaited for longer than that.
        let wait = awaited
            .min()
            .map_or(inner.grace, |until| until.duration_since(now));
        drop(state);
        drop(expired);
        drop(inner);
        thread::sleep(wait);
    }
}

impl<K: Ord, V> Use<K, V> {
    /// What is used.
    pub fn value(&self) -> &Arc<V> {
        &self.value
    }

    /// The user says that it will not come back.
    pub fn leave(&self) {
        self.left.store(true, Ordering::Relaxed);
    }
}

impl<K: Ord, V> Drop for Use<K, V> {
    fn drop(&mut self) {
        let now = Instant::now();
        let back = (!self.left.load(Ordering::Relaxed)).then(|| now + self.kept.grace);
        let mut state = locked(&self.kept.state);
        if let Some(entry) = state.entries.get_mut(&self.key) {
            entry.users -= 1;
            entry.awaited.extend(back);
        }
        let gone = state.expire(now);
        drop(state);
        // What goes may take a while to free.
        drop(gone);
    }
}

impl<K: Ord, V> State<K, V> {
    /// Takes out what nobody uses and nobody is awaited for.
    fn expire(&mut self, now: Instant) -> Vec<Arc<V>> {
        let mut gone = Vec::new();
        for entry in self.entries.values_mut() {
            entry.awaited.retain(|until| *until > now);
        }
        self.entries.retain(|_, entry| {
            let stays = entry.users > 0 || !entry.awaited.is_empty();
            if !stays {
                gone.push(entry.value.clone());
            }
            stays
        });
        self.take_out_beyond(AWAITED_MAX, &mut gone);
        gone
    }

    /// Takes out what nobody uses, if that is more than `most`: first what would go first.
    fn take_out_beyond(&mut self, most: usize, gone: &mut Vec<Arc<V>>) {
        let unused = |entry: &Entry<V>| entry.users == 0;
        let mut ends: Vec<Instant> = self
            .entries
            .values()
            .filter(|entry| unused(entry))
            .filter_map(|entry| entry.awaited.last().copied())
            .collect();
        if ends.len() <= most {
            return;
        }
        ends.sort_unstable();
        let last = ends[ends.len() - most - 1];
        self.entries.retain(|_, entry| {
            let stays = !unused(entry) || entry.awaited.last().is_some_and(|end| *end > last);
            if !stays {
                gone.push(entry.value.clone());
            }
            stays
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use testkit::process::wait_for;

    const LONG: Duration = Duration::from_secs(3600);

    fn kept(grace: Duration) -> Kept<u32, u32> {
        Kept::new(grace)
    }

    fn attach(kept: &Kept<u32, u32>, key: u32, value: u32) -> Use<u32, u32> {
        kept.attach::<()>(&key, || Ok(value)).unwrap()
    }

    #[test]
    fn users_share_it_and_it_goes_with_the_last_that_leaves() {
        let kept = kept(LONG);
        let (first, second) = (attach(&kept, 1, 10), attach(&kept, 1, 20));
        assert_eq!((**first.value(), **second.value()), (10, 10));
        first.leave();
        drop(first);
        assert_eq!(kept.get(&1).as_deref(), Some(&10));
        second.leave();
        drop(second);
        assert_eq!(kept.get(&1), None);
    }

    #[test]
    fn it_waits_for_as_many_as_broke_off() {
        let kept = kept(LONG);
        let users = [attach(&kept, 1, 10), attach(&kept, 1, 0)];
        drop(users);
        // One is back and leaves; the other one is still awaited.
        let back = attach(&kept, 1, 20);
        back.leave();
        drop(back);
        let back = attach(&kept, 1, 30);
        assert_eq!(**back.value(), 10);
        back.leave();
        drop(back);
        assert_eq!(kept.get(&1), None);
    }

    #[test]
    fn nobody_is_awaited_for_longer_than_the_grace_time() {
        let none = kept(Duration::ZERO);
        drop(attach(&none, 1, 10));
        assert_eq!(none.get(&1), None);
        let short = kept(Duration::from_millis(20));
        let value = Arc::downgrade(attach(&short, 1, 10).value());
        // Without anybody asking.
        wait_for("the value is freed", || value.strong_count() == 0);
        let value = Arc::downgrade(attach(&short, 1, 20).value());
        wait_for("the next one too", || value.strong_count() == 0);
    }

    #[test]
    fn the_number_of_what_is_awaited_is_bounded() {
        let kept = kept(LONG);
        let used = attach(&kept, u32::MAX, 0);
        let most = u32::try_from(AWAITED_MAX).unwrap();
        for key in 0..most + 10 {
            drop(attach(&kept, key, key));
        }
        assert_eq!(kept.get(&9), None);
        assert_eq!(kept.get(&10).as_deref(), Some(&10));
        assert_eq!(kept.get(&(most + 9)).as_deref(), Some(&(most + 9)));
        assert_eq!(kept.get(&u32::MAX).as_deref(), Some(&**used.value()));
    }

    #[test]
    fn what_cannot_be_made_is_not_kept() {
        let kept = kept(LONG);
        assert_eq!(kept.attach(&1, || Err("no")).err(), Some("no"));
        assert_eq!(kept.get(&1), None);
    }
}
