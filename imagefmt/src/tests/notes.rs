//! Notes are found again, replaced whole, and never taken for a chain.

use super::support::memory_store;
use crate::ErrorKind;
use crate::storage::Storage;

#[test]
fn notes_are_kept_replaced_listed_and_removed() {
    let (_, store) = memory_store();
    assert_eq!(store.notes().unwrap(), Vec::<String>::new());
    assert_eq!(
        store.note::<u32>("web01").unwrap_err().kind(),
        ErrorKind::NotFound
    );
    store.put_note("web01", &vec![1, 2]).unwrap();
    store.put_note("db", &"text").unwrap();
    store.put_note("web01", &vec![3]).unwrap();
    assert_eq!(store.notes().unwrap(), ["db", "web01"]);
    assert_eq!(store.note::<Vec<u32>>("web01").unwrap(), [3]);
    assert_eq!(store.chains().unwrap().names, Vec::<String>::new());
    store.remove_note("web01").unwrap();
    store.remove_note("web01").unwrap();
    assert_eq!(store.notes().unwrap(), ["db"]);
}

#[test]
fn a_name_that_leaves_the_notes_is_refused_and_a_damaged_note_told() {
    let (storage, store) = memory_store();
    for name in ["../x", "a/b", "", ".x"] {
        assert_eq!(store.put_note(name, &1).unwrap_err().kind(), ErrorKind::Invalid);
    }
    store.put_note("web01", &7).unwrap();
    let bytes = storage.read(".notes/web01.json", 1 << 20).unwrap();
    let mut flipped = bytes.clone();
    flipped[3] ^= 1;
    storage.write(".notes/web01.json", &flipped).unwrap();
    assert_eq!(store.note::<u32>("web01").unwrap_err().kind(), ErrorKind::Damaged);
}
