//! How this process reads and writes disks: found out once, by trying.

use std::fmt;
use std::io;
use std::sync::OnceLock;

use io_uring::{IoUring, Probe, opcode};

/// How disks are read and written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IoMethod {
    /// Through io_uring.
    Uring,
    /// By a bounded number of threads, somewhat slower; and why.
    Threads(String),
}

impl fmt::Display for IoMethod {
    /// `io_uring`, or `threads, because ...`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            IoMethod::Uring => f.write_str("io_uring"),
            IoMethod::Threads(reason) => write!(f, "threads, because {reason}"),
        }
    }
}

/// How this process reads and writes disks.
///
/// io_uring is missing before Linux 5.1, where the sysctl `kernel.io_uring_disabled` forbids it, and in most containers
/// (a seccomp filter).
pub fn io_method() -> &'static IoMethod {
    static METHOD: OnceLock<IoMethod> = OnceLock::new();
    METHOD.get_or_init(find_out)
}

fn find_out() -> IoMethod {
    match IoUring::new(2) {
        Err(error) => IoMethod::Threads(why_refused(&error)),
        Ok(ring) if can_read_and_write(&ring) => IoMethod::Uring,
        Ok(_) => IoMethod::Threads("the io_uring of this kernel is older than Linux 5.6".to_owned()),
    }
}

/// Whether the ring has reads and writes whose buffers need no registration: from Linux 5.6, as is asking for it.
fn can_read_and_write(ring: &IoUring) -> bool {
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe).is_ok()
        && [opcode::Read::CODE, opcode::Write::CODE]
            .into_iter()
            .all(|code| probe.is_supported(code))
}

fn why_refused(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ENOSYS) => "this kernel has no io_uring".to_owned(),
        Some(libc::EPERM | libc::EACCES) => {
            "io_uring is forbidden here (the sysctl kernel.io_uring_disabled, or a container's seccomp filter)".to_owned()
        }
        Some(libc::ENOMEM) => "the limit of locked memory is too low for an io_uring (ulimit -l)".to_owned(),
        _ => format!("the kernel refuses an io_uring: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::{IoMethod, why_refused};
    use std::io;

    #[test]
    fn the_reason_names_what_to_look_at() {
        for (errno, word) in [
            (libc::EPERM, "kernel.io_uring_disabled"),
            (libc::ENOSYS, "no io_uring"),
            (libc::ENOMEM, "ulimit -l"),
            (libc::EMFILE, "Too many open files"),
        ] {
            let reason = why_refused(&io::Error::from_raw_os_error(errno));
            let shown = IoMethod::Threads(reason).to_string();
            assert!(
                shown.starts_with("threads, because ") && shown.contains(word),
                "{shown}"
            );
        }
    }
}
