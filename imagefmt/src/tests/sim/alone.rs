//! Waiting for a lock in a simulation of one thread: nobody would ever release it.

use crate::store::locks::LockWait;

/// Finds a thread that waits for itself.
#[derive(Debug)]
pub struct Alone;

impl LockWait for Alone {
    fn is_wanted(&self) -> bool {
        panic!("the only thread waits for a lock that it holds itself: it would wait for ever")
    }

    fn held_up(&self, _by: Option<&str>) {}
}

#[test]
#[should_panic(expected = "it would wait for ever")]
fn waiting_for_oneself_is_seen() {
    use crate::storage::{LockMode, Storage};
    use std::sync::Arc;
    let disk = super::SimDisk::new();
    let store = crate::store::Store::create(Arc::new(disk.clone()), "sim").unwrap();
    let store = store.with_lock_wait(Arc::new(Alone));
    disk.create_dir("web01").unwrap();
    let _held = disk
        .lock("web01/reclaim.lock", LockMode::ExclusiveCreate)
        .unwrap();
    drop(store.lock_reclaim("web01"));
}
