//! LVM's own lists of disks: a PV on a disk that is not listed is not used.

use super::Context;
use super::findings::Findings;
use super::names::Stability;
use crate::text::shown;

const DEVICES_FILE: &str = "/etc/lvm/devices/system.devices";
const CONFIG: &str = "/etc/lvm/lvm.conf";

pub(super) fn check(case: &Context<'_>, out: &mut Findings) {
    if case.inventory.volume_groups().is_empty() {
        return;
    }
    devices_file(case, out);
    filters(case, out);
}

/// Lines such as `IDTYPE=sys_wwid IDNAME=naa.5000 DEVNAME=/dev/sda2 PVID=…`: numbers of the disk's hardware.
fn devices_file(case: &Context<'_>, out: &mut Findings) {
    let text = case.files.text(DEVICES_FILE);
    // These types go by what is written on the disks below.
    let by_content = ["IDTYPE=lvmlv_uuid", "IDTYPE=md_uuid", "IDTYPE=crypt_uuid"];
    let by_hardware = text.lines().filter(|line| {
        let kind = line
            .split_ascii_whitespace()
            .find(|word| word.starts_with("IDTYPE="));
        kind.is_some_and(|kind| !by_content.contains(&kind))
    });
    match by_hardware.count() {
        0 => out.ok("lvm_devices", "LVM searches every disk for its PVs"),
        number => out.warning(
            "lvm_devices",
            format!("LVM uses only the disks listed in {DEVICES_FILE}, and {number} of them by numbers of this hardware"),
            "after the move, if volumes are missing: vgimportdevices -a, or remove the file from a rescue system; then dracut -f",
        ),
    }
}

/// `filter = [ "a|/dev/sda.*|", "r|.*|" ]`.
fn filters(case: &Context<'_>, out: &mut Findings) {
    let text = case.files.text(CONFIG);
    for line in text.lines() {
        let Some((key, value)) = line.split_once('=') else {
            continue;
        };
        if !matches!(key.trim(), "filter" | "global_filter") {
            continue;
        }
        let ends = |c: char| !(c.is_ascii_alphanumeric() || c == '/' || c == '-' || c == '_');
        let mut names = value.split(ends).filter(|word| word.starts_with("/dev/"));
        // A pattern such as /dev/sd.* is cut off before its first letter of a disk.
        if let Some(name) = names.find(|name| Stability::of(name) != Stability::Stable || is_driver(name)) {
            let found = format!(
                "a filter in {CONFIG} uses the name {}, which will change",
                shown(name)
            );
            out.warning("lvm_filter", found, "let the filter accept every disk, or patterns in /dev/disk/by-id that start with lvm-pv-uuid");
        }
    }
}

fn is_driver(name: &str) -> bool {
    ["/dev/sd", "/dev/nvme", "/dev/xvd", "/dev/hd", "/dev/vd"].contains(&name)
}
