//! What smcd itself needs: rights, a kernel that is new enough, io_uring, BPF.

use nix::errno::Errno;

use super::Context;
use super::findings::Findings;
use crate::text::shown;

/// From this release on the tracker of changes works.
const TRACKER_RELEASE: (u32, u32) = (5, 15);

/// CAP_SYS_ADMIN of linux/capability.h, which freezing and BPF need.
const CAP_SYS_ADMIN: u32 = 21;

const SLOWER: &str = "without it every sync reads the disks completely, which is correct but slower";

pub(super) fn check(case: &Context<'_>, out: &mut Findings) {
    privileges(case, out);
    container(case, out);
    architecture(case, out);
    release(case, out);
    io_uring(case, out);
    bpf(case, out);
}

fn privileges(case: &Context<'_>, out: &mut Findings) {
    let uid = case.answers.effective_uid;
    if uid != 0 {
        out.critical(
            "privileges",
            format!("runs as user {uid}, who cannot read disks"),
            "run it as root",
        );
        return;
    }
    let status = case.files.text("/proc/self/status");
    let capabilities = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let capabilities = capabilities.and_then(|text| u64::from_str_radix(text.trim(), 16).ok());
    match capabilities {
        Some(set) if set & (1 << CAP_SYS_ADMIN) == 0 => out.critical(
            "privileges",
            "runs as root, but without the capability CAP_SYS_ADMIN",
            "start it by systemd or from a root shell of the machine itself, not from a confined one",
        ),
        _ => out.ok("privileges", "runs as root"),
    }
}

fn container(case: &Context<'_>, out: &mut Findings) {
    let marks = ["/run/systemd/container", "/.dockerenv", "/run/.containerenv"];
    match marks.iter().find(|mark| case.files.exists(mark)) {
        Some(mark) => out.warning(
            "container",
            format!("runs in a container ({mark} exists): the files seen here are not the machine's"),
            "run it on the machine itself",
        ),
        None => out.ok("container", "runs on the machine itself, in no container"),
    }
}

fn architecture(case: &Context<'_>, out: &mut Findings) {
    let architecture = shown(&case.answers.architecture);
    let found = format!("the machine is {architecture}: the target must be {architecture} too");
    match case.answers.architecture.as_str() {
        "x86_64" | "aarch64" => out.ok("architecture", found),
        _ => out.warning(
            "architecture",
            found,
            "make sure that the target environment has such machines",
        ),
    }
}

fn release(case: &Context<'_>, out: &mut Findings) {
    let release = shown(&case.release);
    match parse_release(&case.release) {
        Some(version) if version >= TRACKER_RELEASE => out.ok("kernel", format!("Linux {release}")),
        Some(_) => out.warning(
            "kernel",
            format!("Linux {release} is too old to track changes: {SLOWER}"),
            "use a kernel from 5.15 on where syncs take too long",
        ),
        None => out.warning(
            "kernel",
            "the kernel's release could not be read",
            "mount procfs at /proc",
        ),
    }
}

/// The first two numbers of a release.
fn parse_release(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn io_uring(case: &Context<'_>, out: &mut Findings) {
    let Err(errno) = case.answers.io_uring else {
        out.ok("io_uring", "an io_uring can be set up");
        return;
    };
    let disabled = case
        .files
        .number("/proc/sys/kernel/io_uring_disabled")
        .filter(|value| *value > 0);
    let found = format!(
        "no io_uring can be set up ({}): threads read the disks instead, which is correct but somewhat slower",
        errno.desc()
    );
    let sysctl = disabled.map_or_else(String::new, |value| {
        format!("; the sysctl kernel.io_uring_disabled is {value}")
    });
    let advice = match (disabled, errno) {
        (Some(_), _) => "sysctl -w kernel.io_uring_disabled=0 if the full speed matters",
        (None, Errno::ENOSYS) => "use a kernel with CONFIG_IO_URING, from 5.6 on, if the full speed matters",
        (None, Errno::ENOMEM) => "raise the limit of locked memory (ulimit -l)",
        (None, _) => "run it outside of containers and other sandboxes if the full speed matters",
    };
    out.warning("io_uring", format!("{found}{sysctl}"), advice);
}

fn bpf(case: &Context<'_>, out: &mut Findings) {
    let lockdown = case.files.text("/sys/kernel/security/lockdown");
    if let Err(errno) = case.answers.bpf {
        let found = format!("changes cannot be tracked: no BPF ({}); {SLOWER}", errno.desc());
        out.warning(
            "bpf",
            found,
            "use a kernel with CONFIG_BPF_SYSCALL, and run as root outside of containers",
        );
    } else if !case.files.exists("/sys/kernel/btf/vmlinux") {
        let found =
            format!("changes cannot be tracked: the kernel has no BTF (/sys/kernel/btf/vmlinux); {SLOWER}");
        out.warning("bpf", found, "use a kernel with CONFIG_DEBUG_INFO_BTF");
    } else if lockdown.contains("[confidentiality]") {
        let found =
            format!("changes cannot be tracked: the kernel is locked down for confidentiality; {SLOWER}");
        out.warning("bpf", found, "boot with lockdown=integrity");
    } else if !case.inventory.mounts().iter().any(|mount| mount.fs_type == "bpf") {
        let found = format!("changes cannot be tracked: no BPF filesystem is mounted; {SLOWER}");
        out.warning("bpf", found, "mount -t bpf bpf /sys/fs/bpf");
    } else {
        out.ok(
            "bpf",
            "BPF, BTF and a BPF filesystem are available to track changes",
        );
    }
}

/// What confines programs: told because a copy starts with the same.
pub(super) fn check_security_module(case: &Context<'_>, out: &mut Findings) {
    let enforcing = case.files.attribute("/sys/fs/selinux/enforce");
    let apparmor = case.files.attribute("/sys/module/apparmor/parameters/enabled");
    let found = match (enforcing.as_deref(), apparmor.as_deref()) {
        (Some("1"), _) => "SELinux is enforcing",
        (Some(_), _) => "SELinux is permissive",
        (None, Some("Y")) => "AppArmor is on",
        _ => "neither SELinux nor AppArmor is on",
    };
    out.ok("security_module", found);
}

#[cfg(test)]
mod tests {
    use super::parse_release;

    #[test]
    fn releases_are_read_and_others_refused() {
        let cases = [
            ("6.1.0-18-amd64", Some((6, 1))),
            ("5.15", Some((5, 15))),
            ("3.10.0-1160.el7.x86_64", Some((3, 10))),
            ("", None),
            ("six.one", None),
            ("99999999999.1", None),
        ];
        for (text, release) in cases {
            assert_eq!(parse_release(text), release, "{text}");
        }
    }
}
