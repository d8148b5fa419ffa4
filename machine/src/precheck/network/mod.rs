//! How the network is configured, and whether that fits another machine: its interfaces have other names and
//! other hardware addresses.

mod ifcfg;
mod ifupdown;
mod ini;
mod netplan;
mod udev;
mod yaml;

use super::Context;
use super::findings::Findings;
use crate::text::{list, shown};

/// What a file says of one interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Profile {
    file: String,
    kind: Kind,
    /// The name of the interface that it is for; absent if it is for any.
    interface: Option<String>,
    /// The hardware address that it is for.
    for_address: Option<String>,
    /// The hardware address that it gives to the interface.
    sets_address: Option<String>,
    /// Whether it sets an IP address that is written there.
    is_static: bool,
}

/// Which program reads the file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Kind {
    #[default]
    Ifupdown,
    Ifcfg,
    Netplan,
    NetworkManager,
    Networkd,
    /// A rule or link file that gives names to interfaces.
    Naming,
}

pub(super) fn check(case: &Context<'_>, out: &mut Findings) {
    let mut profiles = ifupdown::profiles(&case.files);
    profiles.extend(ifcfg::profiles(&case.files));
    profiles.extend(netplan::profiles(&case.files, out));
    profiles.extend(ini::profiles(&case.files));
    profiles.extend(udev::profiles(&case.files));
    profiles.retain(|profile| profile.interface.as_deref() != Some("lo"));
    let is_by_default = ["/usr/sbin/NetworkManager", "/usr/bin/NetworkManager"]
        .iter()
        .any(|p| case.files.exists(p));
    for profile in &profiles {
        judge(case, profile, out);
    }
    if out.has("network_config") {
        return;
    }
    if !profiles.is_empty() {
        out.ok(
            "network_config",
            "the network is configured by DHCP, bound to no name or address of this hardware",
        );
    } else if is_by_default {
        out.ok(
            "network_config",
            "NetworkManager has no profile, and so uses DHCP on every interface",
        );
    } else {
        out.warning(
            "network_config",
            "how the network is configured could not be determined: there is nothing of ifupdown, ifcfg files, netplan, \
             NetworkManager or systemd-networkd",
            "make sure that the copy gets an address: test it by booting an image",
        );
    }
}

fn judge(case: &Context<'_>, profile: &Profile, out: &mut Findings) {
    let mut reasons = Vec::new();
    if let Some(address) = &profile.for_address {
        reasons.push(format!("is for the hardware address {}", shown(address)));
    }
    if let Some(address) = &profile.sets_address {
        reasons.push(format!("sets the hardware address {}", shown(address)));
    }
    let named = profile
        .interface
        .as_deref()
        .filter(|name| profile.kind != Kind::Naming && changes(case, name));
    if let Some(name) = named {
        reasons.push(format!(
            "is for the interface name {}, which may be another",
            shown(name)
        ));
    }
    let is_bound = !reasons.is_empty();
    if profile.is_static {
        let name = profile.interface.as_deref().filter(|_| named.is_none());
        let name = name.map_or_else(String::new, |name| format!(" for {}", shown(name)));
        reasons.push(format!("sets a fixed IP address{name}"));
    }
    if reasons.is_empty() {
        return;
    }
    let found = format!("{} {}", shown(&profile.file), list(reasons, 4));
    out.warning("network_config", found, advice(profile, is_bound));
}

/// What to do about a profile that is static, or bound to a name or address of this hardware.
fn advice(profile: &Profile, is_bound: bool) -> String {
    let bound = match profile.kind {
        _ if !is_bound => "",
        Kind::Ifupdown => "name the interface as it will be called (boot with net.ifnames=0 for eth0)",
        Kind::Ifcfg => "remove HWADDR= and MACADDR=, and boot with net.ifnames=0 or rename DEVICE=",
        Kind::Netplan => {
            "match by name instead: match: {name: \"e*\"}, without macaddress and set-name; then netplan generate"
        }
        Kind::NetworkManager => {
            "nmcli connection modify NAME connection.interface-name '' 802-3-ethernet.mac-address ''"
        }
        Kind::Networkd => "write Name=e* in the section [Match], without MACAddress=",
        Kind::Naming => "remove the file: the interface then gets the name that the kernel or udev give it",
    };
    let fixed = if profile.is_static {
        "check that the address is valid where the machine will run, or use DHCP there"
    } else {
        ""
    };
    let parts = [bound, fixed];
    let parts: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    parts.join("; ")
}

/// Whether an interface may be called otherwise on another machine.
fn changes(case: &Context<'_>, name: &str) -> bool {
    if name.contains(['*', '?', '[', '!']) || name.contains('/') {
        return false;
    }
    let is_there = case.files.exists(format!("/sys/class/net/{name}"));
    let is_hardware = case.files.exists(format!("/sys/class/net/{name}/device"));
    if is_there && !is_hardware {
        return false;
    }
    if is_kernel_name(name) {
        // In the order of finding: true with one card, if nothing renames it.
        let command_line = case.files.text("/proc/cmdline");
        let keeps = command_line
            .split_whitespace()
            .any(|word| word == "net.ifnames=0");
        return !keeps || name != "eth0" || hardware_interfaces(case) > 1;
    }
    is_hardware || is_hardware_name(name)
}

fn is_kernel_name(name: &str) -> bool {
    let number = name.strip_prefix("eth");
    number.is_some_and(|number| !number.is_empty() && number.chars().all(|c| c.is_ascii_digit()))
}

/// By slot, path or board, as udev or biosdevname call a card: `ens3`, `enp1s0f1`, `em1`, `p2p1`, `ib0`.
fn is_hardware_name(name: &str) -> bool {
    let follows = |prefix: &str, letters: &str| {
        let rest = name.strip_prefix(prefix).and_then(|rest| rest.chars().next());
        rest.is_some_and(|c| c.is_ascii_digit() || letters.contains(c))
    };
    follows("en", "opsxcPv")
        || follows("wl", "opsx")
        || follows("ib", "ps")
        || follows("em", "")
        || follows("p", "")
}

fn hardware_interfaces(case: &Context<'_>) -> usize {
    let names = case.files.names("/sys/class/net");
    names
        .iter()
        .filter(|name| case.files.exists(format!("/sys/class/net/{name}/device")))
        .count()
}
