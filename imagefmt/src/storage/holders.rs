//! Who holds a `flock` on a file: found in /proc, for messages only.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;

/// The processes that hold a lock on `file`, as "smc-image (pid 4711)"; those that cannot be seen are left out.
pub fn of(file: &File) -> Vec<String> {
    let Ok(wanted) = file.metadata().map(|metadata| (metadata.dev(), metadata.ino())) else {
        return Vec::new();
    };
    let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
    let pids: BTreeSet<u32> = locks
        .lines()
        .filter_map(|line| flock_of(line, wanted.1))
        .filter(|pid| has_open(*pid, wanted))
        .collect();
    pids.into_iter().map(in_words).collect()
}

/// The process of a line of /proc/locks (proc_locks(5)) that is about a `flock` on `inode`.
///
/// The line's device number is not compared: on btrfs it is not the one that stat(2) tells.
fn flock_of(line: &str, inode: u64) -> Option<u32> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let [_, "FLOCK", _, _, pid, file, ..] = fields[..] else {
        return None;
    };
    let same = file.rsplit(':').next()?.parse() == Ok(inode);
    same.then(|| pid.parse().ok())?
}

fn has_open(pid: u32, wanted: (u64, u64)) -> bool {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        // Another user's, or one of a process that has gone: the line in /proc/locks is all there is.
        return fs::metadata(format!("/proc/{pid}")).is_ok();
    };
    entries
        .flatten()
        .filter_map(|entry| fs::metadata(entry.path()).ok())
        .any(|metadata| (metadata.dev(), metadata.ino()) == wanted)
}

fn in_words(pid: u32) -> String {
    let suspended = if is_suspended(pid) { "suspended " } else { "" };
    match fs::read_to_string(format!("/proc/{pid}/comm")) {
        Ok(name) => format!("{suspended}{} (pid {pid})", name.trim_end().escape_debug()),
        Err(_) => format!("{suspended}pid {pid}"),
    }
}

/// Whether a process was suspended, by Ctrl-Z for example: it holds what it holds until somebody continues or kills it.
fn is_suspended(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let state = status.lines().find_map(|line| line.strip_prefix("State:"));
    state.is_some_and(|state| state.trim_start().starts_with('T'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_proc_locks_are_read() {
        let line = "3: FLOCK  ADVISORY  READ  2611 00:1b:45 0 EOF";
        assert_eq!(flock_of(line, 45), Some(2611));
        assert_eq!(flock_of(line, 46), None);
        assert_eq!(flock_of("1: POSIX  ADVISORY  WRITE 7 00:1b:45 0 EOF", 45), None);
        assert_eq!(
            flock_of("1: -> FLOCK  ADVISORY  WRITE 7 00:1b:45 0 EOF", 45),
            None
        );
        assert_eq!(flock_of("", 45), None);
    }

    #[test]
    fn a_holder_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = File::create(dir.path().join("lock")).unwrap();
        assert_eq!(of(&file), Vec::<String>::new());
        let held = blockio::LockedFile::try_lock_shared(file).unwrap();
        let named = of(&held);
        assert_eq!(named.len(), 1, "{named:?}");
        assert!(
            named[0].contains(&format!("pid {}", std::process::id())),
            "{named:?}"
        );
    }
}
