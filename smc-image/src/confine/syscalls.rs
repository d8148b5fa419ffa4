//! Which system calls can be made: seccomp.
//!
//! The list is what a serving session was seen to make, and what the C library and Rust's may make instead on another
//! system. Anything else fails with EPERM. It does not kill: a library that tries something new after an update, and
//! does without when refused, must not take a disk away from whoever is reading it.
//!
//! Some calls fail with ENOSYS instead, so that the C library uses an older one whose arguments can be looked at.

use anyhow::Context;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter,
};
use std::collections::BTreeMap;
use std::env::consts::ARCH;

/// Calls that are allowed whatever their arguments.
const ALLOWED: &[libc::c_long] = &[
    // Files that are open; opening, for which Landlock has the say; and what is told about files.
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fadvise64,
    libc::SYS_fallocate,
    libc::SYS_fdatasync,
    libc::SYS_flock,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_ftruncate,
    libc::SYS_getcwd,
    libc::SYS_getdents64,
    libc::SYS_lseek,
    libc::SYS_newfstatat,
    libc::SYS_openat2,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_read,
    libc::SYS_readlinkat,
    libc::SYS_readv,
    libc::SYS_statx,
    libc::SYS_write,
    libc::SYS_writev,
    // Connections, which others begin.
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    // Waiting.
    libc::SYS_clock_nanosleep,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_nanosleep,
    libc::SYS_ppoll,
    libc::SYS_restart_syscall,
    // Memory.
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    // Threads and signals of this process.
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_get_robust_list,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_membarrier,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
    // Questions that change nothing.
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_getcpu,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getrandom,
    libc::SYS_getrusage,
    libc::SYS_gettimeofday,
    libc::SYS_getuid,
    libc::SYS_sysinfo,
    libc::SYS_uname,
    // Answered by the other filter.
    libc::SYS_clone3,
];

/// What older architectures have besides.
#[cfg(target_arch = "x86_64")]
const ALLOWED_HERE: &[libc::c_long] = &[
    libc::SYS_access,
    libc::SYS_epoll_wait,
    libc::SYS_getrlimit,
    libc::SYS_lstat,
    libc::SYS_poll,
    libc::SYS_readlink,
    libc::SYS_stat,
    libc::SYS_time,
];
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_HERE: &[libc::c_long] = &[];

#[cfg(target_arch = "x86_64")]
const REMOVING: &[libc::c_long] = &[libc::SYS_unlink, libc::SYS_unlinkat];
#[cfg(not(target_arch = "x86_64"))]
const REMOVING: &[libc::c_long] = &[libc::SYS_unlinkat];

/// Calls that fail as on a kernel that does not have them. Both C libraries start threads with clone then.
const UNKNOWN: &[libc::c_long] = &[libc::SYS_clone3];

/// The flags of `open` with which a file is more than read.
const WRITING: libc::c_int =
    libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC | libc::O_APPEND | (libc::O_TMPFILE & !libc::O_DIRECTORY);

/// Flags of clone that would give a thread namespaces of its own.
const NEW_NAMESPACES: libc::c_int = libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWUTS;

/// What is asked of fcntl: the flags of a descriptor and of what it stands for, and another descriptor for it.
const DESCRIPTOR_FLAGS: &[libc::c_int] = &[
    libc::F_DUPFD_CLOEXEC,
    libc::F_GETFD,
    libc::F_GETFL,
    libc::F_SETFD,
    libc::F_SETFL,
];

/// What is asked of prctl: names for threads, and for memory.
const NAMING: &[libc::c_int] = &[libc::PR_GET_NAME, libc::PR_SET_NAME, libc::PR_SET_VMA];

/// From now on this thread, and those that it starts, make the system calls that serving needs and no others.
pub(super) fn restrict(may_remove: bool) -> anyhow::Result<()> {
    let Ok(arch) = TargetArch::try_from(ARCH) else {
        tracing::warn!("system calls are not restricted: nobody has looked at those of {ARCH}");
        return Ok(());
    };
    let filters = [unknown(arch), allowed(arch, may_remove)];
    for filter in filters {
        let filter = filter.context("make a seccomp filter")?;
        if let Err(error) = apply_filter(&filter) {
            tracing::warn!("system calls are not restricted: {error}");
            return Ok(());
        }
    }
    tracing::debug!("system calls are restricted");
    Ok(())
}

/// Of what two filters say, the kernel takes what is stricter: this one's ENOSYS over the other's consent.
fn unknown(arch: TargetArch) -> Result<BpfProgram, seccompiler::BackendError> {
    let rules = UNKNOWN.iter().map(|call| (*call, Vec::new())).collect();
    compile(rules, SeccompAction::Allow, errno(libc::ENOSYS), arch)
}

fn allowed(arch: TargetArch, may_remove: bool) -> Result<BpfProgram, seccompiler::BackendError> {
    let removing = if may_remove { REMOVING } else { &[] };
    let always = [ALLOWED, ALLOWED_HERE, removing].concat();
    let mut rules: BTreeMap<_, _> = always.into_iter().map(|call| (call, Vec::new())).collect();
    rules.extend(by_arguments()?);
    compile(rules, errno(libc::EPERM), SeccompAction::Allow, arch)
}

fn compile(
    rules: BTreeMap<libc::c_long, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    matched: SeccompAction,
    arch: TargetArch,
) -> Result<BpfProgram, seccompiler::BackendError> {
    SeccompFilter::new(rules, otherwise, matched, arch)?.try_into()
}

fn errno(errno: libc::c_int) -> SeccompAction {
    SeccompAction::Errno(errno.unsigned_abs())
}

type Rules = Vec<(libc::c_long, Vec<SeccompRule>)>;

/// Calls that are allowed with some arguments.
fn by_arguments() -> Result<Rules, seccompiler::BackendError> {
    let own_pid = std::process::id();
    Ok(vec![
        (libc::SYS_openat, vec![without(2, WRITING)?]),
        #[cfg(target_arch = "x86_64")]
        (libc::SYS_open, vec![without(1, WRITING)?]),
        // No code but what was there at the start.
        (libc::SYS_mmap, vec![without(2, libc::PROT_EXEC)?]),
        (libc::SYS_mprotect, vec![without(2, libc::PROT_EXEC)?]),
        // Threads, but no processes.
        (
            libc::SYS_clone,
            vec![masked(
                0,
                libc::CLONE_THREAD | NEW_NAMESPACES,
                libc::CLONE_THREAD,
            )?],
        ),
        // How a process aborts.
        (libc::SYS_tgkill, vec![is(0, own_pid)?]),
        (libc::SYS_prlimit64, vec![is(0, 0u32)?, is(0, own_pid)?]),
        (libc::SYS_socketpair, vec![is(0, libc::AF_UNIX.unsigned_abs())?]),
        (libc::SYS_prctl, any_of(0, NAMING)?),
        (libc::SYS_fcntl, any_of(1, DESCRIPTOR_FLAGS)?),
        // To make a socket non-blocking, and to ask whether a file is a terminal.
        (libc::SYS_ioctl, vec![is(1, libc::FIONBIO)?, is(1, libc::TCGETS)?]),
    ])
}

/// The argument has none of these bits.
fn without(argument: u8, bits: libc::c_int) -> Result<SeccompRule, seccompiler::BackendError> {
    masked(argument, bits, 0)
}

/// Of these bits, the argument has those of `value`.
fn masked(
    argument: u8,
    bits: libc::c_int,
    value: libc::c_int,
) -> Result<SeccompRule, seccompiler::BackendError> {
    let operator = SeccompCmpOp::MaskedEq(bits.unsigned_abs().into());
    rule(argument, operator, value.unsigned_abs().into())
}

fn is(argument: u8, value: impl Into<u64>) -> Result<SeccompRule, seccompiler::BackendError> {
    rule(argument, SeccompCmpOp::Eq, value.into())
}

fn any_of(argument: u8, values: &[libc::c_int]) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    values
        .iter()
        .map(|value| is(argument, value.unsigned_abs()))
        .collect()
}

fn rule(argument: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompRule, seccompiler::BackendError> {
    let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)?;
    SeccompRule::new(vec![condition])
}
