//! Programs that run as on another kernel: without what this one has.

use std::collections::BTreeMap;
use std::env;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};

use crate::error::{Error, IoContext, Result};
use crate::program;

/// From its start on, the kernel refuses io_uring to the program, and to what it starts, with EPERM: as the sysctl
/// `kernel.io_uring_disabled` and most containers do.
///
/// # Errors
/// [`ErrorKind::Io`](crate::ErrorKind::Io) when no filter can be made for this processor.
pub fn without_io_uring(command: &mut Command) -> Result<&mut Command> {
    let filter = refuse(libc::SYS_io_uring_setup)
        .map_err(|error| Error::io("make a seccomp filter", io::Error::other(error)))?;
    let install = move || apply_filter(&filter).map_err(io::Error::other);
    // SAFETY: between fork and exec it makes two system calls with memory that was allocated before.
    Ok(unsafe { command.pre_exec(install) })
}

fn refuse(call: libc::c_long) -> std::result::Result<BpfProgram, seccompiler::BackendError> {
    SeccompFilter::new(
        BTreeMap::from([(call, Vec::new())]),
        SeccompAction::Allow,
        SeccompAction::Errno(libc::EPERM.unsigned_abs()),
        env::consts::ARCH.try_into()?,
    )?
    .try_into()
}

/// Becomes the calling program once more, with the same arguments, in a process without io_uring. Returns only on errors.
///
/// # Errors
/// [`ErrorKind::Io`](crate::ErrorKind::Io) when that process cannot be started.
pub fn repeat_program_without_io_uring() -> Result<()> {
    let this = env::current_exe().context(|| "find the program's path".to_owned())?;
    let mut program = Command::new(this);
    program.args(env::args_os().skip(1)).env(MARK, "1");
    Err(Error::io(
        "run the program again",
        without_io_uring(&mut program)?.exec(),
    ))
}

/// Set in a process that [`repeat_without_io_uring`] or [`repeat_program_without_io_uring`] started.
const MARK: &str = "SMC_TEST_WITHOUT_IO_URING";

/// Whether this process was started again without io_uring.
pub fn is_without_io_uring() -> bool {
    env::var_os(MARK).is_some()
}

/// Runs all tests of the calling test binary but the test `caller` once more, in a process without io_uring.
///
/// # Panics
/// When one of them fails, with what they printed.
pub fn repeat_without_io_uring(caller: &str) {
    let this = env::current_exe().expect("the test binary has a path");
    let mut tests = Command::new(this);
    tests.args(["--skip", caller]).env(MARK, "1");
    let tests = without_io_uring(&mut tests).expect("a seccomp filter can be made");
    program::run(tests).ok();
}
