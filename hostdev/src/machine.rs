//! Which machine this is.

use crate::{ErrorKind, Result, Root};

/// Bytes of a machine's id.
const ID_BYTES: usize = 16;

/// What distinguishes a machine from others, and from copies of it that run elsewhere.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Machine {
    /// Made for smc of `/etc/machine-id` and the firmware's UUID of the machine. Neither can be found out from it, as
    /// machine-id(5) demands. Absent if the machine has neither, as some rescue systems.
    pub id: Option<[u8; ID_BYTES]>,
    /// Host name; empty if there is none.
    pub host_name: String,
}

impl Machine {
    /// Reads what identifies a machine.
    ///
    /// # Errors
    /// As for [`Root::attribute`]. The firmware's UUID counts as absent for a caller that may not read it.
    pub fn read(root: &Root) -> Result<Machine> {
        let installed = root.attribute("/etc/machine-id")?.filter(|id| is_machine_id(id));
        let firmware = match root.attribute("/sys/class/dmi/id/product_uuid") {
            Err(error) if error.kind() == ErrorKind::PermissionDenied => None,
            read => read?,
        };
        let firmware = firmware.filter(|uuid| is_unique(uuid));
        Ok(Machine {
            id: made_for_smc(installed.as_deref(), firmware.as_deref()),
            host_name: root.attribute("/proc/sys/kernel/hostname")?.unwrap_or_default(),
        })
    }
}

/// What machine-id(5) allows: not `uninitialized`, as in an image that was never booted.
fn is_machine_id(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|digit| digit.is_ascii_hexdigit())
}

/// Firmware without a UUID says all zeros or all ones (SMBIOS 3.7, 7.2.1).
fn is_unique(uuid: &str) -> bool {
    let digits = || uuid.chars().filter(|&digit| digit != '-');
    !digits().all(|digit| digit == '0') && !digits().all(|digit| matches!(digit, 'f' | 'F'))
}

fn made_for_smc(installed: Option<&str>, firmware: Option<&str>) -> Option<[u8; ID_BYTES]> {
    if installed.is_none() && firmware.is_none() {
        return None;
    }
    let mut hasher = blake3::Hasher::new_derive_key("smc 2026-11 machine id");
    for part in [installed, firmware] {
        hasher.update(part.unwrap_or_default().to_ascii_lowercase().as_bytes());
        hasher.update(b"/");
    }
    let mut id = [0; ID_BYTES];
    hasher.finalize_xof().fill(&mut id);
    Some(id)
}
