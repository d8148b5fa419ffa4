//! Threads on which the catalog and the exports are called, which may block.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use tokio::sync::oneshot;

type Job = Box<dyn FnOnce() + Send>;

/// A fixed number of threads that do jobs in the order in which they came. They end when the pool
/// is dropped and its jobs are done.
pub(crate) struct Pool(Arc<Queue>);

#[derive(Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    more: Condvar,
}

#[derive(Default)]
struct Waiting {
    jobs: VecDeque<Job>,
    closed: bool,
}

impl Pool {
    pub(crate) fn new(threads: usize) -> io::Result<Self> {
        let pool = Self(Arc::default());
        for index in 0..threads {
            let queue = Arc::clone(&pool.0);
            thread::Builder::new()
                .name(format!("nbd-io-{index}"))
                .spawn(move || queue.work())?;
        }
        Ok(pool)
    }

    /// Runs `call` on one of the threads; `None` if it panicked.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        call: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let (answer, result) = oneshot::channel();
        self.submit(move || drop(answer.send(call())));
        result.await.ok()
    }

    /// Runs `job` on one of the threads, some time.
    pub(crate) fn submit(&self, job: impl FnOnce() + Send + 'static) {
        self.0.lock().jobs.push_back(Box::new(job));
        self.0.more.notify_one();
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.0.lock().closed = true;
        self.0.more.notify_all();
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A thread that finds nothing to do sleeps at once: to look again and again for a while, as
    /// channels do, takes time from the threads that drive connections.
    fn work(&self) {
        while let Some(job) = self.next() {
            // The panic hook has reported it, and the asker finds its channel closed.
            let _ = catch_unwind(AssertUnwindSafe(job));
        }
    }

    fn next(&self) -> Option<Job> {
        let mut waiting = self.lock();
        loop {
            if let Some(job) = waiting.jobs.pop_front() {
                return Some(job);
            }
            if waiting.closed {
                return None;
            }
            waiting = self.more.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }
}
