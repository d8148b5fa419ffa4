//! One pipeline for whatever reads a disk from end to end: export, restore, digest, verify --against.
//!
//! Pieces of the disk, in ascending order, go to several threads, and what these make of them comes back in order. How
//! much is begun at a time is bounded, and of several failures the earliest piece's is the one that is reported.

use cli::interrupt::Interrupt;
use crossbeam_channel::{Sender, unbounded};
use std::collections::BTreeMap;
use std::iter::Enumerate;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

/// Pieces a thread that may be begun before the earliest of them is done.
const AHEAD: usize = 4;

/// How pieces are worked on.
#[derive(Debug, Clone, Copy)]
pub struct Pipeline<'a> {
    threads: usize,
    interrupt: Option<&'a Interrupt>,
}

impl<'a> Pipeline<'a> {
    /// One thread for each core: for work that computes. `interrupt`, where given, ends it early.
    pub fn on_all_cores(interrupt: Option<&'a Interrupt>) -> Self {
        let threads = thread::available_parallelism().map_or(2, usize::from);
        Self { threads, interrupt }
    }

    /// So many threads, and at least one for each core: for work that waits for a device, too.
    pub fn on_threads(threads: usize, interrupt: &'a Interrupt) -> Self {
        let cores = Self::on_all_cores(Some(interrupt));
        Self {
            threads: threads.max(cores.threads),
            ..cores
        }
    }

    /// Gives each piece to one of the threads, and what that makes of it to `done`, in order, on the calling thread.
    ///
    /// `worker` is called once on each thread: what it returns does the work, and may own a buffer.
    ///
    /// # Errors
    /// That of the earliest piece that failed: in `pieces`, in its worker, in `done`, or because of an interrupt.
    /// Pieces after it may have been worked on.
    pub fn run<P, R: Send, W: FnMut(P) -> anyhow::Result<R>>(
        self,
        pieces: impl Iterator<Item = anyhow::Result<P>> + Send,
        worker: impl Fn() -> W + Sync,
        mut done: impl FnMut(R) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let pieces = Mutex::new(pieces.enumerate());
        let window = Window::new(AHEAD * self.threads);
        thread::scope(|scope| {
            let (sender, results) = unbounded();
            for _ in 0..self.threads {
                let (sender, worker) = (sender.clone(), &worker);
                let (pieces, window) = (&pieces, &window);
                scope.spawn(move || {
                    let _guard = StopOnPanic(window);
                    self.work(pieces, window, worker(), &sender);
                });
            }
            drop(sender);
            // Whatever ends this ends the threads.
            let _guard = Stop(&window);
            let mut waiting = BTreeMap::new();
            let mut next = 0;
            for (index, result) in results {
                waiting.insert(index, result);
                while let Some(result) = waiting.remove(&next) {
                    done(result?)?;
                    next += 1;
                    window.move_to(next);
                }
            }
            Ok(())
        })
    }

    fn work<P, R, I: Iterator<Item = anyhow::Result<P>>>(
        self,
        pieces: &Mutex<Enumerate<I>>,
        window: &Window,
        mut work: impl FnMut(P) -> anyhow::Result<R>,
        results: &Sender<(usize, anyhow::Result<R>)>,
    ) {
        loop {
            // By itself, so that the lock is not held while there is work.
            let next = self.next(&mut lock(pieces), window);
            let Some((index, piece)) = next else { return };
            let result = piece.and_then(&mut work);
            if result.is_err() {
                window.stop();
            }
            // It fails only where the caller has failed already.
            let _ = results.send((index, result));
        }
    }

    /// The next piece and its number, as soon as it may be begun.
    fn next<P, I: Iterator<Item = anyhow::Result<P>>>(
        self,
        pieces: &mut Enumerate<I>,
        window: &Window,
    ) -> Option<(usize, anyhow::Result<P>)> {
        if !window.wait_for_room() {
            return None;
        }
        let (index, piece) = pieces.next()?;
        window.begin();
        let interrupted = self.interrupt.map_or(Ok(()), Interrupt::check);
        Some((index, interrupted.map_err(anyhow::Error::from).and(piece)))
    }
}

/// Which pieces may be begun.
#[derive(Debug)]
struct Window {
    state: Mutex<State>,
    moved: Condvar,
    ahead: usize,
}

#[derive(Debug, Default)]
struct State {
    begun: usize,
    done: usize,
    stopped: bool,
}

impl Window {
    fn new(ahead: usize) -> Self {
        Self {
            state: Mutex::default(),
            moved: Condvar::new(),
            ahead,
        }
    }

    /// Waits until one more piece may be begun; false where none is to be begun any more.
    fn wait_for_room(&self) -> bool {
        let full = |state: &mut State| !state.stopped && state.begun >= state.done + self.ahead;
        let state = self.moved.wait_while(lock(&self.state), full);
        !state.unwrap_or_else(PoisonError::into_inner).stopped
    }

    fn begin(&self) {
        lock(&self.state).begun += 1;
    }

    /// So many pieces are done.
    fn move_to(&self, done: usize) {
        lock(&self.state).done = done;
        self.moved.notify_all();
    }

    fn stop(&self) {
        lock(&self.state).stopped = true;
        self.moved.notify_all();
    }
}

/// Ends the pipeline when it is dropped.
struct Stop<'a>(&'a Window);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// A thread that panics leaves a piece that never gets done: nobody may wait for it.
struct StopOnPanic<'a>(&'a Window);

impl Drop for StopOnPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.stop();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::bail;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    fn pipeline() -> Pipeline<'static> {
        Pipeline {
            threads: 4,
            interrupt: None,
        }
    }

    #[test]
    fn results_come_in_the_order_of_the_pieces() {
        let mut seen = Vec::new();
        let work = || |piece: u64| Ok(piece * 2);
        let done = |result| {
            seen.push(result);
            Ok(())
        };
        pipeline().run((0..1000).map(Ok), work, done).unwrap();
        assert_eq!(seen, (0..1000).map(|piece| piece * 2).collect::<Vec<_>>());
    }

    #[test]
    fn the_earliest_failure_is_reported_and_little_is_begun_after_it() {
        for _ in 0..50 {
            let begun = AtomicUsize::new(0);
            let work = || {
                |piece: usize| {
                    begun.fetch_max(piece, Ordering::Relaxed);
                    if piece == 100 {
                        // A later one is begun, and may fail first.
                        while begun.load(Ordering::Relaxed) == 100 {
                            thread::yield_now();
                        }
                    }
                    if piece >= 100 {
                        bail!("piece {piece}");
                    }
                    Ok(piece)
                }
            };
            let mut last = None;
            let failed = pipeline().run((0..).map(Ok), work, |piece| {
                last = Some(piece);
                Ok(())
            });
            assert_eq!(failed.unwrap_err().to_string(), "piece 100");
            assert_eq!(last, Some(99));
            assert!(begun.load(Ordering::Relaxed) < 100 + AHEAD * 4);
        }
    }

    #[test]
    fn a_slow_piece_holds_up_what_is_too_far_ahead() {
        let room = AHEAD * 4 - 1;
        let (early, is_over) = (AtomicUsize::new(0), AtomicBool::new(false));
        let work = || {
            |piece: usize| {
                if piece == 0 {
                    while early.load(Ordering::SeqCst) < room {
                        thread::yield_now();
                    }
                    is_over.store(true, Ordering::SeqCst);
                } else if !is_over.load(Ordering::SeqCst) {
                    early.fetch_add(1, Ordering::SeqCst);
                }
                Ok(piece)
            }
        };
        pipeline().run((0..10 * room).map(Ok), work, |_| Ok(())).unwrap();
        assert_eq!(early.load(Ordering::SeqCst), room);
    }

    #[test]
    fn an_error_of_the_source_or_of_the_sink_ends_it() {
        let pieces = (0..).map(|piece| {
            if piece == 7 {
                bail!("cannot read")
            } else {
                Ok(piece)
            }
        });
        let failed = pipeline().run(pieces, || Ok, |_: u64| Ok(()));
        assert_eq!(failed.unwrap_err().to_string(), "cannot read");
        let full = |piece: u64| if piece == 5 { bail!("no space") } else { Ok(()) };
        let failed = pipeline().run((0..).map(Ok), || Ok, full);
        assert_eq!(failed.unwrap_err().to_string(), "no space");
    }

    #[test]
    #[should_panic(expected = "a scoped thread panicked")]
    fn a_panic_is_passed_on_and_nobody_waits() {
        let work = || |piece: u64| if piece == 3 { panic!("broken") } else { Ok(piece) };
        let _ = pipeline().run((0..).map(Ok), work, |_| Ok(()));
    }
}
