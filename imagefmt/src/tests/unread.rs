//! "Cannot be read" is not "is not there": each operation of a disk that reads fails once, or from then on, with each
//! error that a filesystem gives. Every answer is then the right one, an error, or says that something is left out.

use super::model::Model;
use super::sim::{Failure, Fault, SimDisk};
use super::support::*;
use crate::{
    ClusterSize, Consistency, Error, ErrorKind, Owner, Result, Store, TakeOver, Uuid, Verifier, WriteRequest,
};
use std::collections::BTreeSet;
use std::fmt::Debug;
use std::sync::Arc;

const ERRORS: [Failure; 4] = [Failure::Eio, Failure::Eacces, Failure::Estale, Failure::Emfile];

/// What a question was answered with.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    text: String,
    /// Whether it says that something is left out.
    incomplete: bool,
}

impl Answer {
    fn whole(answer: impl Debug) -> Result<Self> {
        let text = format!("{answer:?}");
        Ok(Self {
            text,
            incomplete: false,
        })
    }
}

type Question = (&'static str, fn(&Store) -> Result<Answer>);

fn resolve(store: &Store, image: &str) -> Result<Answer> {
    match store.resolve(&image.parse()?) {
        // That there is no such image is an answer too.
        Err(error) if error.kind() == ErrorKind::NotFound => Answer::whole(error.to_string()),
        found => Answer::whole(found?),
    }
}

/// All that `ls` shows.
fn list(store: &Store) -> Result<Answer> {
    let (jobs, unread) = store.readable_jobs()?;
    let mut incomplete = !unread.is_empty();
    let mut text = String::new();
    for id in jobs.values().flat_map(crate::JobImages::ids) {
        let said = store.manifest(&id).and_then(|manifest| {
            let verdict = store.verdict(&id, &manifest)?;
            Ok((id.to_string(), manifest.id, verdict, store.pins(&id)?))
        });
        incomplete |= said.is_err();
        text += &format!("{:?} ", said.ok());
    }
    for job in jobs.keys() {
        let unfinished = store.unfinished(job);
        incomplete |= unfinished.is_err();
        text += &format!(
            "{job} {:?} ",
            unfinished.ok().flatten().map(|found| found.sequence)
        );
    }
    Ok(Answer { text, incomplete })
}

fn verify(store: &Store) -> Result<Answer> {
    let (jobs, unread) = store.readable_jobs()?;
    let mut incomplete = !unread.is_empty();
    let mut verifier = Verifier::new();
    let mut verified = Vec::new();
    for id in jobs.values().flat_map(crate::JobImages::ids) {
        let findings = store
            .open_image(&id)
            .map(|image| verify_all(&mut verifier, &image));
        incomplete |= !findings.as_ref().is_ok_and(Vec::is_empty);
        verified.push(id.to_string());
    }
    let text = format!("{verified:?}");
    Ok(Answer { text, incomplete })
}

/// What the next sync of a job is made from.
fn begin(store: &Store, job: &str) -> Result<Answer> {
    let image = store.begin(job, Some(ClusterSize::K16), &["vda".to_owned()])?;
    let parent = image.parent().map(|parent| parent.id().to_string());
    Answer::whole((parent, image.sequence(), image.resumed().is_some()))
}

const QUESTIONS: [Question; 17] = [
    ("ls", list),
    ("verify", verify),
    ("jobs", |store| Answer::whole(store.jobs()?)),
    ("web01/latest", |store| resolve(store, "web01/latest")),
    ("web02/latest", |store| resolve(store, "web02/latest")),
    ("db/latest", |store| resolve(store, "db/latest")),
    ("db/9", |store| resolve(store, "db/9")),
    ("nobody/1", |store| resolve(store, "nobody/1")),
    ("images of web02", |store| {
        Answer::whole(store.images_of("web02")?)
    }),
    ("images of nobody", |store| {
        Answer::whole(store.images_of("nobody")?)
    }),
    ("parent", |store| {
        let latest = store.resolve(&"web02/3".parse()?)?;
        Answer::whole(store.parent(&latest)?)
    }),
    ("notes", |store| {
        let notes = store.notes()?;
        let texts = notes.iter().map(|name| store.note::<String>(name));
        Answer::whole(texts.collect::<Result<Vec<_>>>()?)
    }),
    ("writer", |store| Answer::whole(store.owner("web01")?)),
    ("sync of db", |store| begin(store, "db")),
    ("sync of web02", |store| begin(store, "web02")),
    ("sync of web01", |store| match begin(store, "web01") {
        Err(error) if error.kind() == ErrorKind::Invalid => Answer::whole(error.to_string()),
        begun => begun,
    }),
    ("sync of a new job", |store| begin(store, "new")),
];

/// Chain `web01` with images of two jobs, pins and a verdict, and `db` with an unfinished sync; copies of neither.
fn disk() -> SimDisk {
    let disk = SimDisk::new();
    let store = Store::create(Arc::new(disk.clone()), "sim").unwrap();
    let mut model = Model::new(40 * 16384, ClusterSize::K16);
    for (job, seed) in [("web01", 1), ("web01", 2), ("db", 3), ("db", 4)] {
        model.set(seed, random_bytes(seed, 16384));
        write_image(&store, job, &[("vda", &model)]).unwrap();
    }
    let mut writer = store.take_up("web02", "web01", &["vda".to_owned()]).unwrap();
    write_disk(&mut writer, "vda", &model, 0..40).unwrap();
    writer.commit(Consistency::Crash, "test").unwrap();
    let mut writer = store.begin("db", None, &["vda".to_owned()]).unwrap();
    model.set(30, random_bytes(30, 16384));
    pass_over::<Error>(&mut writer, meta("vda", model.size), |pass| {
        pass.push_plain(30, &model.get(30))?;
        pass.checkpoint().map(|_| ())
    })
    .unwrap();
    drop(writer);
    store.pin(&store.image_id("db", 1), "audit").unwrap();
    store.put_note("web01", &"a note").unwrap();
    let image = open_image(&store, "db", 2).unwrap();
    let verdict = crate::Verdict::new(image.manifest());
    store.keep_verdict(&image, &verdict).unwrap();
    disk
}

/// The answer on a disk of which this operation fails.
fn ask(
    disk: &SimDisk,
    question: &Question,
    fault: impl FnOnce(usize) -> Option<Fault>,
) -> (SimDisk, Result<Answer>) {
    let disk = disk.fork();
    let store = Store::open_on(Arc::new(disk.clone()), "sim").unwrap();
    let first = disk.ops().len();
    disk.fail(fault(first));
    let answer = question.1(&store);
    disk.fail(None);
    (disk, answer)
}

#[test]
fn a_failing_read_changes_no_answer_silently() {
    let disk = disk();
    for question in &QUESTIONS {
        let first = ask(&disk, question, |_| None).0.ops().len();
        let (asked, right) = ask(&disk, question, |_| None);
        let right = right.unwrap_or_else(|error| panic!("{}: {error:?}", question.0));
        assert!(!right.incomplete, "{}: {right:?}", question.0);
        let store_opened = disk.ops().len() + 1;
        let ops = asked.ops();
        assert_eq!(ops.len(), first);
        let mut failed = BTreeSet::new();
        for at in (store_opened..ops.len()).filter(|&at| !ops[at].kind.changes()) {
            for (failure, sticky) in ERRORS
                .into_iter()
                .flat_map(|failure| [(failure, false), (failure, true)])
            {
                let (_, answer) = ask(&disk, question, |_| Some(Fault { at, failure, sticky }));
                let what = format!(
                    "{}: {:?} as {} fails with {failure:?}, sticky {sticky}",
                    question.0, ops[at], at
                );
                match answer {
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::Io, "{what}: {error:?}");
                        failed.insert(at);
                    }
                    Ok(answer) => assert!(
                        answer.incomplete || answer == right,
                        "{what}: {answer:?}, not {right:?}"
                    ),
                }
            }
        }
        assert!(
            !failed.is_empty() || ["ls", "verify"].contains(&question.0),
            "{}: nothing matters",
            question.0
        );
    }
}

#[test]
fn a_chain_that_cannot_be_listed_is_told_and_hides_no_other() {
    let disk = disk();
    let store = Store::open_on(Arc::new(disk.clone()), "sim").unwrap();
    let ops_before = disk.ops().len();
    store.jobs().unwrap();
    let ops = disk.ops();
    let listed = |at: &usize| ops[*at].path == "web01/images";
    let at = (ops_before..ops.len()).find(listed).unwrap();
    disk.fail(Some(Fault {
        at: disk.ops().len() + at - ops_before,
        failure: Failure::Estale,
        sticky: true,
    }));
    let (jobs, unread) = store.readable_jobs().unwrap();
    assert_eq!(jobs.keys().collect::<Vec<_>>(), ["db"]);
    let [unread] = unread.try_into().unwrap();
    assert!(
        unread
            .full_message()
            .contains("chain web01 of store sim cannot be listed"),
        "{unread:?}"
    );
    assert!(resolve(&store, "db/latest").is_ok());
    for image in ["web01/latest", "web01/1", "web02/latest", "nobody/1"] {
        assert_eq!(
            resolve(&store, image).unwrap_err().kind(),
            ErrorKind::Io,
            "{image}"
        );
    }
}

/// A damaged manifest says nothing of its job; the images beside it do.
#[test]
fn a_damaged_manifest_changes_nothing_about_whose_images_the_others_are() {
    let (storage, store) = memory_store();
    let mut model = Model::new(40 * 16384, ClusterSize::K16);
    for (job, seed) in [
        ("web01", 1),
        ("web01", 2),
        ("web02", 3),
        ("web02", 4),
        ("web02", 5),
    ] {
        model.set(seed, random_bytes(seed, 16384));
        let disks = ["vda".to_owned()];
        let begun = match (job, seed) {
            ("web02", 3) => store.take_up(job, "web01", &disks),
            _ => store.begin(job, Some(ClusterSize::K16), &disks),
        };
        let mut writer = begun.unwrap();
        write_disk(&mut writer, "vda", &model, 0..40).unwrap();
        writer.commit(Consistency::Crash, "test").unwrap();
    }
    let flip = |sequence: u64| {
        let path = format!("web01/images/{sequence:06}.json");
        storage.files.lock().unwrap().get_mut(&path).unwrap()[10] ^= 1;
    };
    let images = |job: &str| store.job(job).unwrap().sequences().to_vec();
    let begin = |job: &str| store.begin(job, None, &["vda".to_owned()]);
    for damaged in 1..=5 {
        flip(damaged);
        // That of the first image of a job could be of the job before: nothing tells.
        let (of_first, of_second) = match damaged {
            3 => (vec![1, 2, 3], vec![4, 5]),
            _ => (vec![1, 2], vec![3, 4, 5]),
        };
        assert_eq!(
            (images("web01"), images("web02")),
            (of_first, of_second),
            "{damaged}"
        );
        assert_eq!(
            begin("web01").unwrap_err().kind(),
            ErrorKind::Invalid,
            "{damaged}"
        );
        begin("web02").unwrap();
        flip(damaged);
    }
}

/// Then only chain.json tells which job writes to the chain.
#[test]
fn a_job_whose_only_image_is_damaged_still_owns_its_chain() {
    let (storage, store) = memory_store();
    let model = Model::new(40 * 16384, ClusterSize::K16);
    let request = |job: &str, take_up: Option<&str>| WriteRequest {
        job: job.to_owned(),
        take_up: take_up.map(str::to_owned),
        cluster_size: None,
        disks: vec!["vda".to_owned()],
        owner: Some(Owner {
            machine: Uuid::from_bytes([1; 16]),
            host: "host".to_owned(),
            job: job.to_owned(),
            job_id: None,
        }),
        take_over: TakeOver::Always,
        may_shrink: false,
    };
    for (job, take_up) in [("web01", None), ("web01", None), ("web02", Some("web01"))] {
        let mut writer = store.begin_write(&request(job, take_up)).unwrap();
        write_disk(&mut writer, "vda", &model, 0..10).unwrap();
        writer.commit(Consistency::Crash, "test").unwrap();
    }
    let path = "web01/images/000003.json";
    storage.files.lock().unwrap().get_mut(path).unwrap()[10] ^= 1;
    assert_eq!(store.owner("web01").unwrap(), "web02");
    let mut of_finished = request("web01", None);
    of_finished.take_over = TakeOver::default();
    assert_eq!(
        store.begin_write(&of_finished).unwrap_err().kind(),
        ErrorKind::Invalid
    );
    let next = store.begin_write(&request("web02", Some("web01"))).unwrap();
    assert_eq!(next.parent().unwrap().id().to_string(), "web01/2");
}
