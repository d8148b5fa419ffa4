//! Where this machine has a firmware for UEFI guests.

use std::ffi::CString;
use std::fs;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::error::{Error, ErrorKind, Result};

/// Code and variable store that belong together, as distributions install them: Debian and Ubuntu, Fedora and RHEL,
/// openSUSE, Arch. None of these starts only what is signed.
const PLACES: [(&str, &str); 7] = [
    (
        "/usr/share/OVMF/OVMF_CODE_4M.fd",
        "/usr/share/OVMF/OVMF_VARS_4M.fd",
    ),
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
    (
        "/usr/share/edk2/ovmf/OVMF_CODE.fd",
        "/usr/share/edk2/ovmf/OVMF_VARS.fd",
    ),
    (
        "/usr/share/qemu/ovmf-x86_64-4m-code.bin",
        "/usr/share/qemu/ovmf-x86_64-4m-vars.bin",
    ),
    (
        "/usr/share/qemu/ovmf-x86_64-code.bin",
        "/usr/share/qemu/ovmf-x86_64-vars.bin",
    ),
    (
        "/usr/share/edk2/x64/OVMF_CODE.4m.fd",
        "/usr/share/edk2/x64/OVMF_VARS.4m.fd",
    ),
    (
        "/usr/share/edk2-ovmf/x64/OVMF_CODE.fd",
        "/usr/share/edk2-ovmf/x64/OVMF_VARS.fd",
    ),
];

/// A firmware for UEFI guests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ovmf {
    /// Its code, which is only read.
    pub(crate) code: PathBuf,
    /// The variables of a machine that was never started. Every guest gets a copy of its own, in memory.
    variables: PathBuf,
}

impl Ovmf {
    /// The firmware of this machine.
    ///
    /// # Errors
    /// [`ErrorKind::Missing`] where none is installed.
    pub fn find() -> Result<Self> {
        Self::find_among(&PLACES).ok_or_else(|| {
            let what = "no UEFI firmware for guests (OVMF) is installed";
            Error::new(ErrorKind::Missing, what)
        })
    }

    fn find_among(places: &[(&str, &str)]) -> Option<Self> {
        let there =
            |(code, variables): &&(&str, &str)| Path::new(code).is_file() && Path::new(variables).is_file();
        let (code, variables) = places.iter().find(there)?;
        Some(Self {
            code: PathBuf::from(code),
            variables: PathBuf::from(variables),
        })
    }

    /// A variable store that is gone with the guest.
    pub(crate) fn variable_store(&self) -> Result<OwnedFd> {
        let content = fs::read(&self.variables)
            .map_err(|source| Error::io(format!("read {}", self.variables.display()), source))?;
        filled_memory_file("smc-uefi-variables", &content)
    }
}

/// A file in memory with this content.
pub(crate) fn filled_memory_file(label: &str, content: &[u8]) -> Result<OwnedFd> {
    let mut file = fs::File::from(memory_file(label)?);
    file.write_all(content)
        .map_err(|source| Error::io(format!("copy {label} to memory"), source))?;
    Ok(file.into())
}

/// A file in memory, without a name in any directory.
pub(crate) fn memory_file(label: &str) -> Result<OwnedFd> {
    let label = CString::new(label).unwrap_or_default();
    memfd_create(label.as_c_str(), MFdFlags::MFD_CLOEXEC)
        .map_err(|errno| Error::io("make a file in memory", errno.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn a_pair_counts_only_if_both_files_are_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        let (code, variables, absent) = (path("code"), path("vars"), path("absent"));
        fs::write(&code, "code").unwrap();
        fs::write(&variables, "variables").unwrap();
        assert_eq!(Ovmf::find_among(&[(&code, &absent), (&absent, &variables)]), None);
        let found = Ovmf::find_among(&[(&code, &absent), (&code, &variables)]).unwrap();
        assert_eq!(found.code, Path::new(&code));

        let store = found.variable_store().unwrap();
        let mut text = String::new();
        let again = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&store));
        fs::File::open(again).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "variables");
    }
}
