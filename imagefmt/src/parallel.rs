//! Work on many small things by all cores.

use std::panic::resume_unwind;
use std::thread;

/// Fewer items than this are not worth a thread.
const ITEMS_PER_THREAD_MIN: usize = 32;

/// The results of `work` on each item, in the order of the items. A few items are worked on one after another, by the
/// calling thread.
pub(crate) fn map<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let threads = cores.min(items.len() / ITEMS_PER_THREAD_MIN);
    if threads < 2 {
        return items.iter().map(work).collect();
    }
    let work = &work;
    // Neighbours go to different threads: in a chain, later manifests are longer.
    let of_thread = |first: usize| {
        move || {
            items
                .iter()
                .skip(first)
                .step_by(threads)
                .map(work)
                .collect::<Vec<R>>()
        }
    };
    let mut parts: Vec<_> = thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|first| scope.spawn(of_thread(first))).collect();
        let joined = running
            .into_iter()
            .map(|part| part.join().unwrap_or_else(|panic| resume_unwind(panic)));
        joined.map(Vec::into_iter).collect()
    });
    (0..items.len())
        .filter_map(|at| parts[at % threads].next())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_in_the_order_of_the_items() {
        for count in [0, 1, 31, 63, 64, 65, 1000, 1001] {
            let items: Vec<usize> = (0..count).collect();
            let expected: Vec<usize> = items.iter().map(|item| item * 3).collect();
            assert_eq!(map(&items, |item| item * 3), expected);
        }
    }

    #[test]
    fn a_panic_of_the_work_is_one_of_the_caller() {
        let items: Vec<usize> = (0..1000).collect();
        let caught = std::panic::catch_unwind(|| map(&items, |item| assert_ne!(*item, 500)));
        assert!(caught.is_err());
    }
}
