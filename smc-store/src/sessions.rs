//! The sessions that there are.

use crate::serve::NOT_ENROLLED;
use crate::session::Session;
use jiff::Timestamp;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use wire::Id128;
use wire::message::Refusal;

/// All sessions of a target.
#[derive(Debug, Default)]
pub struct Sessions {
    by_id: Mutex<HashMap<Id128, Arc<Session>>>,
}

fn room_in(all: &HashMap<Id128, Arc<Session>>, source: &str, max: usize, max_of_source: usize) -> bool {
    let own = all.values().filter(|other| other.source == source).count();
    all.len() < max && own < max_of_source
}

impl Sessions {
    fn all(&self) -> MutexGuard<'_, HashMap<Id128, Arc<Session>>> {
        let mut all = self.by_id.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, session| !session.is_over());
        all
    }

    /// The session with this id of a source that was enrolled at this time.
    pub fn find(&self, source: &str, enrolled: Timestamp, id: Id128) -> Option<Arc<Session>> {
        self.all()
            .get(&id)
            .filter(|session| session.source == source && session.enrolled == enrolled)
            .cloned()
    }

    /// Adds a session, unless there are as many as there may be. Returns whether it did.
    pub fn add(&self, session: &Arc<Session>, max: usize, max_of_source: usize) -> bool {
        let mut all = self.all();
        let has_room = room_in(&all, &session.source, max, max_of_source);
        if has_room {
            all.insert(session.id, session.clone());
        }
        has_room
    }

    /// Whether a source may have another one.
    pub fn has_room(&self, source: &str, max: usize, max_of_source: usize) -> bool {
        room_in(&self.all(), source, max, max_of_source)
    }

    /// Ends all but those of sources which may have them, by name and by the time when the source was enrolled.
    pub fn end_others(&self, may: impl Fn(&str, Timestamp) -> bool) {
        let all = self.all();
        let others = all
            .values()
            .filter(|session| !may(&session.source, session.enrolled));
        others.for_each(|session| session.end(Refusal::Rights, NOT_ENROLLED));
    }

    /// Ends the sessions of a job whose source has no connection any more: it begins anew. They end with a checkpoint.
    pub fn end_lost(&self, source: &str, job: &str) {
        let all = self.all();
        let lost = all
            .values()
            .filter(|session| session.source == source && session.is_of(job) && !session.is_connected());
        lost.for_each(|session| session.close());
    }

    /// How many syncs each source has.
    pub fn by_source(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for session in self.all().values() {
            *counts.entry(session.source.clone()).or_default() += 1;
        }
        counts
    }

    /// Ends all sessions.
    pub fn close(&self) {
        self.all().values().for_each(|session| session.close());
    }

    /// Whether none is left.
    pub fn is_empty(&self) -> bool {
        self.all().is_empty()
    }
}

/// How many connections each source has.
#[derive(Debug, Default)]
pub struct Counts {
    by_source: Mutex<HashMap<String, usize>>,
}

/// One of them.
#[derive(Debug)]
pub struct Counted {
    counts: Arc<Counts>,
    source: String,
}

impl Counts {
    fn all(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.by_source.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connections of all sources.
    pub fn count_all(&self) -> usize {
        self.all().values().sum()
    }

    /// Counts one more of a source, unless it has as many as it may have.
    pub fn count(self: &Arc<Self>, source: &str, max: usize) -> Option<Counted> {
        let mut all = self.all();
        let count = all.entry(source.to_owned()).or_default();
        if *count >= max {
            return None;
        }
        *count += 1;
        Some(Counted {
            counts: self.clone(),
            source: source.to_owned(),
        })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut all = self.counts.all();
        if let Some(count) = all.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_has_no_more_connections_than_it_may_have() {
        let counts = Arc::new(Counts::default());
        let held: Vec<_> = (0..3).map(|_| counts.count("web01", 2)).collect();
        assert!(held[1].is_some() && held[2].is_none());
        assert!(counts.count("web02", 2).is_some());
        drop(held);
        assert!(counts.count("web01", 2).is_some());
        assert!(counts.all().is_empty());
    }
}
