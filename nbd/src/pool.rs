//! Threads for calls that block.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use crossbeam_channel::{Receiver, Sender, unbounded};
use tokio::sync::oneshot;

type Job = Box<dyn FnOnce() + Send>;

/// A fixed number of threads. Its queue is bounded by its users: each connection has at most its
/// limit of requests in flight. The threads end once the pool is dropped and their job is done.
pub(crate) struct Pool {
    jobs: Sender<Job>,
}

impl Pool {
    pub(crate) fn new(threads: usize) -> io::Result<Self> {
        let (jobs, queue) = unbounded::<Job>();
        for index in 0..threads {
            let queue = queue.clone();
            thread::Builder::new()
                .name(format!("nbd-io-{index}"))
                .spawn(move || work(&queue))?;
        }
        Ok(Self { jobs })
    }

    /// Runs `call` on one of the threads; `None` if it panicked.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        call: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let (answer, result) = oneshot::channel();
        // A dropped receiver means that the connection is gone and nobody wants the answer.
        self.submit(move || drop(answer.send(call())));
        result.await.ok()
    }

    /// Runs `job` on one of the threads, some time.
    pub(crate) fn submit(&self, job: impl FnOnce() + Send + 'static) {
        // The threads hold the queue open for as long as the pool lives.
        let _ = self.jobs.send(Box::new(job));
    }
}

fn work(queue: &Receiver<Job>) {
    for job in queue {
        // The panic hook has reported it, and the asker finds its channel closed.
        let _ = catch_unwind(AssertUnwindSafe(job));
    }
}
