use super::*;
use api::{RunDisk, RunFrozen, RunInstant, RunPass, RunType};
use serde_json::json;

/// The text of a note that smcd wrote before records had a version.
const NOTE_FORMAT_0: &str = include_str!("../fixtures/format-0-note.json");

#[test]
fn the_note_of_the_version_before_is_read() {
    // Its last line is its checksum.
    let (text, _) = NOTE_FORMAT_0.trim_end().rsplit_once('\n').unwrap();
    let envelope: Value = serde_json::from_str(text).unwrap();
    let note: StoredNote = serde_json::from_value(envelope["note"].clone()).unwrap();
    assert_eq!(note.check(), Ok(()));
    let job: StoredJob = parse(note.job.to_string().as_bytes()).unwrap();
    assert_eq!(job.into_job().name, "web01");
    let runs = note
        .runs
        .iter()
        .map(|run| parse::<StoredRun>(run.to_string().as_bytes()));
    assert_eq!(runs.map(|run| run.unwrap().number).collect::<Vec<_>>(), [2, 1]);
}

#[test]
fn a_note_of_format_1_is_of_a_job_without_an_id() {
    let envelope: Value = serde_json::from_str(include_str!("../fixtures/format-1-note.json")).unwrap();
    let note: StoredNote = serde_json::from_value(envelope["note"].clone()).unwrap();
    assert_eq!(note.check(), Ok(()));
    assert_eq!(note.owner, None);
    let job: StoredJob = parse(note.job.to_string().as_bytes()).unwrap();
    let job = job.into_job();
    assert_eq!(
        (job.id, job.take_over, job.request.take_over),
        (None, false, false)
    );
    assert_eq!(note.job_is_over(imagefmt::Uuid::from_bytes([1; 16])), None);
}

#[test]
fn a_note_keeps_what_a_newer_version_added_and_says_whom_it_is_for() {
    let text = json!({
        "format": 50, "min_reader": 1, "host": "h", "job": {}, "runs": [], "added": [1]
    });
    let newer: StoredNote = serde_json::from_value(text).unwrap();
    assert_eq!(newer.check(), Ok(()));
    let ours = StoredNote::new("h".to_owned(), json!({}), Vec::new()).replacing(Some(newer));
    let text = serde_json::to_value(&ours).unwrap();
    assert_eq!((&text["added"], &text["format"]), (&json!([1]), &json!(FORMAT)));
    let text = json!({ "format": 50, "min_reader": 50, "host": "h", "job": {}, "runs": [] });
    let newest: StoredNote = serde_json::from_value(text).unwrap();
    assert!(newest.check().unwrap_err().contains("format 50 or later"));
}

#[test]
fn a_run_of_before_repairs_and_instants_were_recorded_had_none() {
    let mut run = crate::service::run_begun(1, RunType::Manual, jiff::Timestamp::UNIX_EPOCH);
    run.disks.push(RunDisk {
        name: "vda".to_owned(),
        size_bytes: 1,
        method: Some("tracked".to_owned()),
        method_reason: Some("bits".to_owned()),
        compared_bytes: 1,
        audited_bytes: 1,
        dirty_bytes: 0,
        stored_bytes: 0,
        repaired_clusters: 3,
        unreadable_clusters: 0,
        digest: None,
    });
    run.instant = Some(RunInstant {
        passes: vec![RunPass {
            bytes: 4,
            dirty_bytes: 2,
            flush_ms: 3,
        }],
        held_us: 41_000,
        freezing_us: 30_000,
        filesystems: vec![RunFrozen {
            mount_point: "/srv".to_owned(),
            fs_type: "xfs".to_owned(),
            freezing_us: 29_000,
        }],
        left_out: vec!["/boot is mounted read-only".to_owned()],
    });
    let mut record = serde_json::to_value(StoredRun::new(&run, None)).unwrap();
    let read = |record: &Value| {
        parse::<StoredRun>(record.to_string().as_bytes())
            .unwrap()
            .into_run()
    };
    assert_eq!(read(&record), run);
    record["format"] = json!(1);
    record["disks"][0]
        .as_object_mut()
        .unwrap()
        .remove("repaired_clusters");
    record.as_object_mut().unwrap().remove("instant");
    assert_eq!(read(&record).disks[0].repaired_clusters, 0);
    assert_eq!(read(&record).instant, None);
}

#[test]
fn a_record_that_is_no_json_shows_what_is_left_of_it() {
    let text = br#"{"name":"web01","store":"/srv/a \"b\"","disks":[{"path":"/dev/vda"},{"path":"/dev/v"#;
    let job = Unreadable::new("web01".to_owned(), "cut off".to_owned(), text);
    assert_eq!(job.store, Some("/srv/a \"b\"".into()));
    assert_eq!(job.disks, [std::path::PathBuf::from("/dev/vda")]);
    assert_eq!((job.take_up, job.client_token, job.created), (None, None, None));
    for text in [&b""[..], b"\"path\":", b"\"path\":7", &[0xff; 40]] {
        assert!(
            Unreadable::new(String::new(), String::new(), text)
                .disks
                .is_empty()
        );
    }
}
