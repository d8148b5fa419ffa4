//! Verifying in parts: stopped and resumed, in samples, and the stored results.

use super::model::Model;
use super::support::*;
use crate::storage::memory::MemoryStorage;
use crate::{
    ClusterSize, ErrorKind, Finding, Image, Sample, Scope, Store, Verdict, VerdictState, Verified, Verifier,
    VerifyPlan,
};
use std::ops::ControlFlow;

/// Clusters of the disk: 10 MiB, two levels, ten units of a sample.
const CLUSTERS: u64 = 640;

/// Two images; the second differs in some clusters. Most of it does not compress.
fn two_images() -> (MemoryStorage, Store) {
    let (storage, store) = memory_store();
    let mut model = Model::new(CLUSTERS * 16384, ClusterSize::K16);
    for index in (0..CLUSTERS).filter(|index| index % 7 != 0) {
        let bytes = match index % 3 {
            0 => text_bytes(index, 16384),
            _ => random_bytes(index, 16384),
        };
        model.set(index, bytes);
    }
    write_image(&store, "job", &[("vda", &model)]).unwrap();
    for index in [5, 300, 301, 630] {
        model.set(index, random_bytes(1000 + index, 16384));
    }
    write_image(&store, "job", &[("vda", &model)]).unwrap();
    (storage, store)
}

/// Flips a bit of what cluster `index` of image 1 is stored as.
fn damage(storage: &MemoryStorage, store: &Store, index: u64) {
    let image = open_image(store, "job", 1).unwrap();
    flip_stored(storage, &image.disks()[0].tree().cluster(index).unwrap().place);
}

fn verify(image: &Image, plan: &VerifyPlan, steps: usize) -> Verified {
    let mut left = steps;
    Verifier::new().verify(image, plan, &mut |_| {
        left = left.saturating_sub(1);
        if left == 0 {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    })
}

fn texts(findings: &[Finding]) -> Vec<String> {
    findings.iter().map(Finding::to_string).collect()
}

/// Verifies in pieces of so many steps, through the record, until it is done. A leaf that was begun is begun again,
/// so there must be more steps than one takes.
fn in_pieces(image: &Image, steps: usize) -> (Verdict, Verified) {
    let mut verdict = Verdict::new(image.manifest());
    let sizes = [CLUSTERS * 16384];
    for _ in 0..1000 {
        let plan = verdict.resume().unwrap_or_default();
        let verified = verify(image, &plan, steps);
        verdict.add(&plan, span(), &sizes, &verified);
        if verified.stopped.is_none() {
            return (verdict, verified);
        }
        assert!(matches!(
            verdict.state(),
            VerdictState::Stopped(0..=100) | VerdictState::Damaged(_)
        ));
    }
    panic!("it never ends");
}

#[test]
fn a_verification_that_is_stopped_anywhere_finds_what_an_uninterrupted_one_does() {
    let (storage, store) = two_images();
    let image = open_image(&store, "job", 1).unwrap();
    let mut steps = 0;
    Verifier::new().verify(&image, &VerifyPlan::default(), &mut |_| {
        steps += 1;
        ControlFlow::Continue(())
    });
    for stop in 1..=steps {
        let verified = verify(&image, &VerifyPlan::default(), stop);
        assert_eq!(
            texts(&verified.findings),
            NOTHING,
            "a good image, stopped at step {stop}"
        );
        let (verdict, done) = in_pieces(&image, stop.max(12));
        assert_eq!(texts(&done.findings), NOTHING, "in pieces of {stop} steps");
        assert_eq!(done.progress.checked_bytes, CLUSTERS * 16384);
        assert!(matches!(verdict.state(), VerdictState::Good(_)));
    }
    for index in [1, 299, 639] {
        damage(&storage, &store, index);
    }
    let whole = verify(&image, &VerifyPlan::default(), usize::MAX);
    assert_eq!(whole.findings.len(), 3);
    for stop in 12..=steps.max(13) {
        let (verdict, done) = in_pieces(&image, stop);
        assert_eq!(
            texts(&done.findings),
            texts(&whole.findings),
            "in pieces of {stop} steps"
        );
        assert!(matches!(verdict.state(), VerdictState::Damaged(_)));
    }
}

#[test]
fn samples_together_find_what_is_damaged_wherever_it_is() {
    for index in [1, 64, 333, 639] {
        let (storage, store) = two_images();
        damage(&storage, &store, index);
        let image = open_image(&store, "job", 1).unwrap();
        let mut verdict = Verdict::new(image.manifest());
        let mut found = 0;
        let mut read = 0;
        for slice in 0..5 {
            let plan = verdict.next(Some(5));
            assert_eq!(plan.scope, Scope::Sample(Sample::new(slice, 5).unwrap()));
            let verified = verify(&image, &plan, usize::MAX);
            assert!(verified.stopped.is_none());
            read += verified.progress.checked_bytes;
            found += verified.findings.len();
            verdict.add(&plan, span(), &[CLUSTERS * 16384], &verified);
        }
        assert_eq!((found, read), (1, CLUSTERS * 16384), "cluster {index}");
        assert!(matches!(verdict.state(), VerdictState::Damaged(_)));
        assert_eq!(verdict.complete.as_ref().unwrap().samples, Some(5));
    }
}

#[test]
fn a_verdict_is_kept_beside_its_image_and_goes_with_it() {
    let (storage, store) = two_images();
    let image = open_image(&store, "job", 1).unwrap();
    assert_eq!(store.verdict(image.id(), image.manifest()).unwrap(), None);
    let (verdict, _) = in_pieces(&image, usize::MAX);
    store.keep_verdict(&image, &verdict).unwrap();
    assert_eq!(
        store.verdict(image.id(), image.manifest()).unwrap(),
        Some(verdict)
    );

    // A record about another image, and one that is damaged, say nothing, and are replaced.
    let path = "job/images/000001.verified";
    let whole = storage.files.lock().unwrap()[path].clone();
    storage
        .files
        .lock()
        .unwrap()
        .insert("job/images/000002.verified".to_owned(), whole.clone());
    let second = open_image(&store, "job", 2).unwrap();
    assert_eq!(
        store.verdict(second.id(), second.manifest()).unwrap_err().kind(),
        ErrorKind::Damaged
    );
    for len in [0, 10, whole.len() - 1] {
        storage
            .files
            .lock()
            .unwrap()
            .insert(path.to_owned(), whole[..len].to_vec());
        assert_eq!(
            store.verdict(image.id(), image.manifest()).unwrap_err().kind(),
            ErrorKind::Damaged
        );
    }
    let (again, _) = in_pieces(&second, usize::MAX);
    store.keep_verdict(&second, &again).unwrap();
    assert_eq!(
        store.verdict(second.id(), second.manifest()).unwrap(),
        Some(again)
    );
    drop((image, second));
    store.delete(&store.image_id("job", 1)).unwrap();
    assert!(!storage.files.lock().unwrap().contains_key(path));
}

/// Keeps a verdict that says so.
fn judge(store: &Store, sequence: u64, good: bool) {
    let image = open_image(store, "job", sequence).unwrap();
    let mut verified = verify(&image, &VerifyPlan::default(), usize::MAX);
    verified.findings.clear();
    if !good {
        verified.findings.push(Finding {
            image: image.id().to_string(),
            disk: Some("vda".to_owned()),
            clusters: 1..2,
            offset: 16384,
            what: "damaged".to_owned(),
            cause: "damaged".to_owned(),
        });
    }
    let mut verdict = Verdict::new(image.manifest());
    verdict.add(&VerifyPlan::default(), span(), &[CLUSTERS * 16384], &verified);
    store.keep_verdict(&image, &verdict).unwrap();
}

#[test]
fn the_last_image_that_may_be_good_is_known_while_a_newer_one_is_damaged() {
    let (storage, store) = two_images();
    let mut model = Model::new(CLUSTERS * 16384, ClusterSize::K16);
    for index in [3, 4, 5] {
        model.set(index, random_bytes(index, 16384));
        write_image(&store, "job", &[("vda", &model)]).unwrap();
    }
    let fallback = || {
        let found = store.fallback(&store.image_id("job", 1)).unwrap()?;
        Some((found.image.sequence(), found.damaged.sequence()))
    };
    assert_eq!(fallback(), None, "nothing is known of any image");
    judge(&store, 3, false);
    assert_eq!(fallback(), Some((2, 3)), "2 is not known to be damaged");
    judge(&store, 1, true);
    assert_eq!(fallback(), Some((1, 3)), "1 is known to be good");
    judge(&store, 2, false);
    judge(&store, 4, false);
    assert_eq!(fallback(), Some((1, 4)));
    judge(&store, 5, true);
    assert_eq!(fallback(), None, "5 is good");
    judge(&store, 5, false);
    assert_eq!(fallback(), Some((1, 5)));
    judge(&store, 2, true);
    assert_eq!(fallback(), Some((2, 5)));
    // What cannot be read may have said that the image is damaged.
    for sequence in 3..=5 {
        judge(&store, sequence, true);
    }
    assert_eq!(fallback(), None);
    let flip = |path: &str| storage.files.lock().unwrap().get_mut(path).unwrap()[7] ^= 1;
    flip("job/images/000005.verified");
    assert_eq!(fallback(), Some((4, 5)));
    flip("job/images/000005.verified");
    flip("job/images/000005.json");
    assert_eq!(fallback(), Some((4, 5)));
}
