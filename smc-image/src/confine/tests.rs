//! Each fence alone and all together, in a process of its own that tries what it must not do.

use super::{Confinement, files, privileges, syscalls, user};
use io_uring::{IoUring, opcode, types};
use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::unistd::{Uid, geteuid, getppid, setuid};
use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::net::{TcpListener, TcpStream};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use testkit::guard::ScratchDir;

const DIR_VARIABLE: &str = "SMC_TEST_CONFINED";

/// Runs one of the helpers below in a process of its own, on a directory with a store and something beside it.
fn in_a_process(helper: &str) {
    let scratch = ScratchDir::new("smc-confine").unwrap();
    fs::create_dir(scratch.join("store")).unwrap();
    fs::write(scratch.join("store/image"), "image").unwrap();
    fs::write(scratch.join("beside"), "secret").unwrap();
    fs::create_dir(scratch.join("run")).unwrap();
    fs::write(scratch.join("run/nbd.sock"), "").unwrap();
    for private in ["store/image", "beside"] {
        fs::set_permissions(scratch.join(private), fs::Permissions::from_mode(0o600)).unwrap();
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("confine::tests::{helper}")])
        .args(["--ignored", "--nocapture"])
        .env(DIR_VARIABLE, scratch.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{output:?}");
}

/// The directory that the helper was given; `None` where somebody runs all ignored tests.
fn given() -> Option<PathBuf> {
    std::env::var_os(DIR_VARIABLE).map(PathBuf::from)
}

fn errno<T>(result: io::Result<T>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

/// What every fence leaves: the store, threads, pairs of sockets, the own output.
fn reading_works(dir: &Path) {
    let mut text = String::new();
    let mut image = File::open(dir.join("store/image")).unwrap();
    image.read_to_string(&mut text).unwrap();
    assert_eq!(text, "image");
    image.lock_shared().unwrap();
    assert_eq!(fs::read_dir(dir.join("store")).unwrap().count(), 1);
    let thread = thread::Builder::new().name("named".to_owned());
    assert_eq!(thread.spawn(|| 7).unwrap().join().unwrap(), 7);
    UnixStream::pair().unwrap().0.set_nonblocking(true).unwrap();
    assert!(std::panic::catch_unwind(|| panic!("on purpose")).is_err());
}

#[test]
fn landlock_leaves_the_store_and_the_socket() {
    in_a_process("with_landlock");
}

#[test]
#[ignore = "started by landlock_leaves_the_store_and_the_socket"]
fn with_landlock() {
    let Some(dir) = given() else { return };
    files::restrict(&dir.join("store"), &[&dir.join("run")]).unwrap();
    reading_works(&dir);
    let refused = Some(libc::EACCES);
    assert_eq!(
        errno(File::open(dir.join("beside"))),
        refused,
        "is there no Landlock?"
    );
    assert_eq!(errno(File::create(dir.join("store/new"))), refused);
    assert_eq!(
        errno(OpenOptions::new().append(true).open(dir.join("store/image"))),
        refused
    );
    assert_eq!(errno(fs::remove_file(dir.join("store/image"))), refused);
    assert_eq!(errno(File::create(dir.join("run/new"))), refused);
    assert_eq!(errno(Command::new("/bin/true").status()), refused);
    assert_eq!(through_a_ring(&dir.join("beside"), libc::O_RDONLY), -libc::EACCES);
    assert_eq!(
        through_a_ring(&dir.join("store/image"), libc::O_WRONLY),
        -libc::EACCES
    );
    assert!(through_a_ring(&dir.join("store/image"), libc::O_RDONLY) >= 0);
    fs::remove_file(dir.join("run/nbd.sock")).unwrap();
}

#[test]
fn seccomp_leaves_what_reading_needs() {
    in_a_process("with_seccomp");
}

#[test]
#[ignore = "started by seccomp_leaves_what_reading_needs"]
fn with_seccomp() {
    let Some(dir) = given() else { return };
    syscalls::restrict(false).unwrap();
    reading_works(&dir);
    let refused = Some(libc::EPERM);
    assert_eq!(errno(File::create(dir.join("store/new"))), refused);
    assert_eq!(
        errno(OpenOptions::new().append(true).open(dir.join("store/image"))),
        refused
    );
    assert_eq!(errno(fs::remove_file(dir.join("run/nbd.sock"))), refused);
    assert_eq!(
        errno(fs::set_permissions(
            dir.join("beside"),
            fs::Permissions::from_mode(0o644)
        )),
        refused
    );
    assert_eq!(errno(Command::new("/bin/true").status()), refused);
    assert_eq!(errno(TcpStream::connect("127.0.0.1:1")), refused);
    assert_eq!(errno(TcpListener::bind("127.0.0.1:0")), refused);
    assert_eq!(kill(getppid(), None), Err(Errno::EPERM));
    let packet = socket(AddressFamily::Packet, SockType::Raw, SockFlag::empty(), None);
    assert_eq!(packet.err(), Some(Errno::EPERM));
    for call in [
        libc::SYS_ptrace,
        libc::SYS_mount,
        libc::SYS_bpf,
        libc::SYS_open_by_handle_at,
        libc::SYS_clone,
    ] {
        // SAFETY: arguments of zero are valid for each of these; at worst the call does what it says to this process.
        let done = unsafe { libc::syscall(call, 0, 0, 0, 0, 0) };
        assert_eq!((done, Errno::last()), (-1, Errno::EPERM), "system call {call}");
    }
    // SAFETY: maps fresh memory that nothing refers to.
    let code = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            4096,
            libc::PROT_READ | libc::PROT_EXEC,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    assert_eq!((code, Errno::last()), (libc::MAP_FAILED, Errno::EPERM));
}

#[test]
fn another_user_still_reads_what_is_roots() {
    in_a_process("as_nobody");
}

#[test]
#[ignore = "started by another_user_still_reads_what_is_roots"]
fn as_nobody() {
    let Some(dir) = given() else { return };
    let nobody = user("nobody").unwrap();
    privileges::reduce(Some(&nobody), &[&dir.join("run")]).unwrap();
    reading_works(&dir);
    assert_eq!(geteuid(), nobody.uid);
    assert_eq!(setuid(Uid::from_raw(0)), Err(Errno::EPERM));
    assert_eq!(
        errno(OpenOptions::new().append(true).open(dir.join("store/image"))),
        Some(libc::EACCES)
    );
    assert_eq!(status("CapPrm"), status("CapEff"));
    assert_eq!(status("CapEff"), "0000000000000004", "CAP_DAC_READ_SEARCH alone");
    for set in ["CapInh", "CapAmb"] {
        assert_eq!(status(set), "0000000000000000", "{set}");
    }
    assert_eq!(status("CapBnd"), "0000000000000004");
    assert_eq!(status("NoNewPrivs"), "1");
    assert_eq!(status("Groups"), "");
}

/// A line of this thread's status.
fn status(name: &str) -> String {
    let all = fs::read_to_string("/proc/thread-self/status").unwrap();
    let line = all.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim_start_matches(':').trim().to_owned()
}

#[test]
fn all_fences_stand_together() {
    in_a_process("with_everything");
}

#[test]
#[ignore = "started by all_fences_stand_together"]
fn with_everything() {
    let Some(dir) = given() else { return };
    let confinement = Confinement {
        store: &dir.join("store"),
        sockets: &[dir.join("run/nbd.sock")],
        user: None,
    };
    // Not `apply`: the test harness has a thread of its own.
    confinement.fence_in().unwrap();
    reading_works(&dir);
    assert_eq!(errno(File::open(dir.join("beside"))), Some(libc::EACCES));
    assert_eq!(errno(File::open("/proc/self/status")), Some(libc::EACCES));
    assert_eq!(errno(File::create(dir.join("store/new"))), Some(libc::EPERM));
    assert_eq!(through_a_ring(&dir.join("beside"), libc::O_RDONLY), -libc::EACCES);
    fs::remove_file(dir.join("run/nbd.sock")).unwrap();
}

/// Opens a file by io_uring, of which seccomp sees nothing; returns the descriptor, or the negative error.
fn through_a_ring(path: &Path, flags: i32) -> i32 {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    let mut ring = IoUring::new(2).unwrap();
    let open = opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), path.as_ptr())
        .flags(flags)
        .build();
    // SAFETY: the path lives until the operation has completed, which is waited for below.
    unsafe { ring.submission().push(&open) }.unwrap();
    ring.submit_and_wait(1).unwrap();
    ring.completion().next().unwrap().result()
}

#[test]
fn a_second_thread_is_told() {
    let (begin, wait) = std::sync::mpsc::channel::<()>();
    let other = thread::spawn(move || wait.recv());
    let confinement = Confinement {
        store: Path::new("/nonexistent"),
        sockets: &[],
        user: None,
    };
    let complaint = confinement.apply().unwrap_err().to_string();
    drop(begin);
    assert!(other.join().unwrap().is_err());
    assert!(complaint.contains("threads"), "{complaint}");
}

#[test]
fn unknown_users_are_told() {
    let complaint = user("no-such-user").unwrap_err().to_string();
    assert!(complaint.contains("no-such-user"), "{complaint}");
}
