//! What changed, for every listener: the schedule, the service's end, later clients that watch jobs.
//!
//! A listener has a queue of its own, so that a slow one holds up nobody and sees every event in order. One that lets its
//! queue fill learns once that it missed some, and reads everything again.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

/// Events that wait for one listener.
const QUEUE_MAX: usize = 1000;

/// Something that others may see now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The job of this name was written down as it is now: a new one, or one that changed.
    Saved(String),
    /// The sync of the job of this name got further, or ended.
    Progressed(String),
    /// The job of this name is gone.
    Removed(String),
    /// Some events came faster than they were taken.
    Missed,
}

/// Where events come from.
#[derive(Debug, Default)]
pub struct Events {
    listeners: Mutex<Vec<Weak<Queue>>>,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: Mutex<VecDeque<Event>>,
    came: Condvar,
}

/// One who listens, from now on until it is dropped.
#[derive(Debug)]
pub struct Listener(Arc<Queue>);

impl Events {
    /// Begins to listen.
    pub fn listen(&self) -> Listener {
        let queue = Arc::new(Queue::default());
        self.listeners().push(Arc::downgrade(&queue));
        Listener(queue)
    }

    /// Hands an event to everybody who listens.
    pub fn send(&self, event: &Event) {
        self.listeners().retain(|listener| {
            let Some(queue) = listener.upgrade() else {
                return false;
            };
            queue.put(event);
            true
        });
    }

    fn listeners(&self) -> MutexGuard<'_, Vec<Weak<Queue>>> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn put(&self, event: &Event) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() < QUEUE_MAX {
            waiting.push_back(event.clone());
        } else if waiting.back() != Some(&Event::Missed) {
            waiting.push_back(Event::Missed);
        }
        self.came.notify_all();
    }
}

impl Listener {
    /// What came since it was asked last; waits up to `time` if that is nothing.
    pub fn wait(&self, time: Duration) -> Vec<Event> {
        let waiting = self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self
            .0
            .came
            .wait_timeout_while(waiting, time, |waiting| waiting.is_empty());
        let (mut waiting, _) = waited.unwrap_or_else(PoisonError::into_inner);
        waiting.drain(..).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use testkit::process::PATIENCE;

    #[test]
    fn every_listener_sees_every_event_in_order() {
        let events = Events::default();
        let (one, two) = (events.listen(), events.listen());
        let sent = [
            Event::Saved("web01".to_owned()),
            Event::Progressed("web01".to_owned()),
            Event::Removed("web01".to_owned()),
        ];
        sent.iter().for_each(|event| events.send(event));
        assert_eq!(one.wait(PATIENCE), sent);
        assert_eq!(two.wait(PATIENCE), sent);
        assert_eq!(one.wait(Duration::ZERO), []);
        drop(one);
        events.send(&sent[0]);
        assert_eq!(two.wait(PATIENCE), sent[..1]);
        assert_eq!(events.listeners().len(), 1);
    }

    #[test]
    fn a_listener_that_sleeps_learns_that_it_missed_some() {
        let events = Events::default();
        let listener = events.listen();
        for _ in 0..QUEUE_MAX + 50 {
            events.send(&Event::Saved("web01".to_owned()));
        }
        let seen = listener.wait(PATIENCE);
        assert_eq!((seen.len(), seen.last()), (QUEUE_MAX + 1, Some(&Event::Missed)));
    }

    #[test]
    fn an_event_wakes_who_waits_for_it() {
        let events = Events::default();
        let listener = events.listen();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| listener.wait(PATIENCE));
            events.send(&Event::Removed("db".to_owned()));
            assert_eq!(waiter.join().unwrap(), [Event::Removed("db".to_owned())]);
        });
    }
}
