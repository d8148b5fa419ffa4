//! The I/O priority of a job, as blockio has it, and on which disks it has an effect.

use blockio::IoPriority;
use hostdev::{Node, Root};
use std::collections::BTreeSet;
use std::path::Path;

/// I/O schedulers that look at priorities. On others, every read counts the same.
const HONOURING: [&str; 2] = ["bfq", "mq-deadline"];

/// The priority for reads.
pub fn of_reads(priority: api::IoPriority) -> IoPriority {
    match priority {
        api::IoPriority::None => IoPriority::Inherited,
        api::IoPriority::BestEffort(level) => IoPriority::BestEffort(level),
        api::IoPriority::Idle => IoPriority::Idle,
    }
}

/// On which of the disks, given by name and path, a priority has no effect, and why, as a sentence; `None` if there are none.
pub fn without_effect<'a>(
    priority: api::IoPriority,
    disks: impl Iterator<Item = (&'a str, &'a Path)>,
) -> Option<String> {
    if priority == api::IoPriority::None {
        return None;
    }
    let root = Root::system();
    let ignoring: Vec<String> = disks
        .filter_map(|(name, path)| Some(format!("{name} ({})", ignored_by(&root, path)?)))
        .collect();
    (!ignoring.is_empty()).then(|| {
        format!(
            "the I/O priority {priority} has no effect on {}: only the I/O schedulers {} honour it \
             (/sys/block/DISK/queue/scheduler)",
            ignoring.join(", "),
            HONOURING.join(" and ")
        )
    })
}

/// The schedulers of a disk if none of them looks at priorities.
fn ignored_by(root: &Root, disk: &Path) -> Option<String> {
    let found = std::fs::metadata(disk)
        .map_err(anyhow::Error::from)
        .and_then(|metadata| Ok(hostdev::schedulers(root, &Node::of(disk, &metadata))?));
    match found {
        Ok(schedulers) => all_ignore(&schedulers),
        Err(error) => {
            // The sync that reads the disk reports what is wrong with it.
            tracing::debug!(disk = %disk.display(), "its I/O scheduler is not known: {error:#}");
            None
        }
    }
}

fn all_ignore(schedulers: &BTreeSet<String>) -> Option<String> {
    let is_honoured = HONOURING.iter().any(|name| schedulers.contains(*name));
    let names: Vec<&str> = schedulers.iter().map(String::as_str).collect();
    (!is_honoured && !names.is_empty()).then(|| names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_scheduler_on_the_way_to_the_disk_suffices() {
        let of = |names: &[&str]| all_ignore(&names.iter().map(|&name| name.to_owned()).collect());
        assert_eq!(of(&["none"]), Some("none".to_owned()));
        assert_eq!(of(&["kyber", "none"]), Some("kyber, none".to_owned()));
        assert_eq!(
            of(&["mq-deadline", "none"]),
            None,
            "a loop device on a file of a disk"
        );
        assert_eq!(of(&["bfq"]), None);
        assert_eq!(of(&[]), None, "not known");
    }

    #[test]
    fn without_a_priority_there_is_nothing_to_tell() {
        let disks = || std::iter::once(("vda", Path::new("/dev/null")));
        assert_eq!(without_effect(api::IoPriority::None, disks()), None);
    }
}
