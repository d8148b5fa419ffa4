use super::*;
use std::collections::BTreeSet;
use std::sync::Condvar;
use testkit::process::PATIENCE;

/// Stores some of which hang until they are released.
#[derive(Debug, Clone, Default)]
pub struct Gate(Arc<(Mutex<BTreeSet<PathBuf>>, Condvar)>);

impl Gate {
    /// Nothing is heard of the store any more.
    pub fn hang(&self, path: &Path) {
        self.0.0.lock().unwrap().insert(path.to_owned());
    }

    /// Every store answers again.
    pub fn release(&self) {
        self.0.0.lock().unwrap().clear();
        self.0.1.notify_all();
    }

    fn pass(&self, path: &Path) {
        let hanging = self.0.0.lock().unwrap();
        drop(
            self.0
                .1
                .wait_while(hanging, |hanging| hanging.contains(path))
                .unwrap(),
        );
    }
}

impl Reach for Gate {
    fn identity(&self, path: &Path) -> Option<Identity> {
        self.pass(path);
        Directories.identity(path)
    }

    fn open(&self, path: &Path) -> imagefmt::Result<Store> {
        self.pass(path);
        Directories.open(path)
    }
}

fn store(dir: &Path, name: &str) -> PathBuf {
    let path = dir.join(name);
    imagefmt::Store::open_or_create(&path, false).unwrap();
    path
}

#[test]
fn a_store_is_opened_once_until_another_one_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let stores = Stores::new(Box::new(Directories));
    let path = store(dir.path(), "store");
    let first = stores.get(&path).unwrap();
    assert!(Arc::ptr_eq(&first, &stores.get(&path).unwrap()));
    fs::rename(&path, dir.path().join("away")).unwrap();
    let error = stores.get(&path).unwrap_err();
    assert_eq!(error.kind(), imagefmt::ErrorKind::NotAStore);
    store(dir.path(), "store");
    assert!(!Arc::ptr_eq(&first, &stores.get(&path).unwrap()));
}

#[test]
fn a_store_that_hangs_is_waited_for_with_patience_and_asked_by_a_few_threads() {
    let dir = tempfile::tempdir().unwrap();
    let gate = Gate::default();
    let stores = Stores::new(Box::new(gate.clone()));
    let (hanging, other) = (store(dir.path(), "a"), store(dir.path(), "b"));
    gate.hang(&hanging);
    let asked: Vec<_> = (0..QUESTIONS_MAX)
        .map(|_| stores.begin(&hanging, |store| store.notes()))
        .collect();
    let refused = stores.begin(&hanging, |store| store.notes()).wait(PATIENCE);
    assert!(matches!(refused, Err(Unanswered::Late(path)) if path == hanging));
    let late = stores.begin(&other, |store| store.notes()).wait(PATIENCE);
    assert_eq!(late.unwrap(), Vec::<String>::new());
    stores.close_idle();
    gate.release();
    for question in asked {
        assert_eq!(question.wait(PATIENCE).unwrap(), Vec::<String>::new());
    }
    let again = stores.begin(&hanging, |store| store.notes()).wait(PATIENCE);
    assert!(again.is_ok());
}

#[test]
fn a_question_that_panics_is_an_error_and_does_not_count_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let stores = Stores::new(Box::new(Directories));
    let path = store(dir.path(), "store");
    for _ in 0..2 * QUESTIONS_MAX {
        let lost: Result<(), _> = stores.begin(&path, |_| panic!("a bug")).wait(PATIENCE);
        assert!(matches!(lost, Err(Unanswered::Lost(_))), "{lost:?}");
    }
}
