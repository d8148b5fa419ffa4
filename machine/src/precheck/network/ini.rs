//! Files with sections: NetworkManager's profiles, and systemd-networkd's networks and links.

use super::{Kind, Profile};
use crate::files::Files;

/// Words of NetworkManager for an address that is not written there.
const POLICIES: [&str; 5] = ["permanent", "preserve", "random", "stable", "stable-ssid"];

pub(super) fn profiles(files: &Files<'_>) -> Vec<Profile> {
    let profiles = files.files("/etc/NetworkManager/system-connections", "");
    let profiles = profiles
        .iter()
        .filter_map(|file| network_manager(&files.text(file), file));
    let networks = files.files("/etc/systemd/network", ".network");
    let networks = networks.iter().map(|file| networkd(&files.text(file), file));
    let links = files.files("/etc/systemd/network", ".link");
    let links = links.iter().filter_map(|file| link(&files.text(file), file));
    profiles.chain(networks).chain(links).collect()
}

/// Section, key and value of each line that has one.
struct Settings<'a>(Vec<(&'a str, &'a str, &'a str)>);

impl<'a> Settings<'a> {
    fn parse(text: &'a str) -> Self {
        let mut section = "";
        let mut settings = Vec::new();
        for line in text.lines().map(str::trim) {
            if let Some(name) = line.strip_prefix('[') {
                section = name.trim_end_matches(']');
            } else if let Some((key, value)) = line.split_once('=').filter(|_| !line.starts_with(['#', ';']))
            {
                settings.push((section, key.trim(), value.trim()));
            }
        }
        Settings(settings)
    }

    /// The last value that is not empty.
    fn value(&self, section: &str, key: &str) -> Option<&'a str> {
        let mut settings = self.0.iter().rev();
        let found = settings.find(|(s, k, value)| *s == section && *k == key && !value.is_empty());
        found.map(|(_, _, value)| *value)
    }
}

/// None for what is no profile, and for the loopback interface.
fn network_manager(text: &str, file: &str) -> Option<Profile> {
    let settings = Settings::parse(text);
    let kind = settings.value("connection", "type")?;
    if kind == "loopback" || settings.value("connection", "autoconnect") == Some("false") {
        return None;
    }
    let hardware = [
        "ethernet",
        "802-3-ethernet",
        "wifi",
        "802-11-wireless",
        "infiniband",
    ];
    let address = |key: &str| hardware.iter().find_map(|section| settings.value(section, key));
    let name = settings
        .value("connection", "interface-name")
        .or(settings.value("match", "interface-name"));
    Some(Profile {
        file: file.to_owned(),
        kind: Kind::NetworkManager,
        interface: name.map(str::to_owned),
        for_address: address("mac-address").map(str::to_owned),
        sets_address: address("cloned-mac-address")
            .filter(|set| !POLICIES.contains(set))
            .map(str::to_owned),
        is_static: ["ipv4", "ipv6"]
            .iter()
            .any(|section| settings.value(section, "method") == Some("manual")),
    })
}

fn networkd(text: &str, file: &str) -> Profile {
    let settings = Settings::parse(text);
    let match_address = ["MACAddress", "PermanentMACAddress"]
        .iter()
        .find_map(|key| settings.value("Match", key));
    let has_address = [("Network", "Address"), ("Address", "Address")];
    Profile {
        file: file.to_owned(),
        kind: Kind::Networkd,
        interface: settings.value("Match", "Name").map(str::to_owned),
        for_address: match_address.map(str::to_owned),
        sets_address: settings.value("Link", "MACAddress").map(str::to_owned),
        is_static: has_address
            .iter()
            .any(|(section, key)| settings.value(section, key).is_some()),
    }
}

/// A link file that goes by a hardware address, or sets one.
fn link(text: &str, file: &str) -> Option<Profile> {
    let settings = Settings::parse(text);
    let address = ["MACAddress", "PermanentMACAddress"]
        .iter()
        .find_map(|key| settings.value("Match", key));
    let sets = settings.value("Link", "MACAddress");
    (address.is_some() || sets.is_some()).then(|| Profile {
        file: file.to_owned(),
        kind: Kind::Naming,
        interface: settings.value("Link", "Name").map(str::to_owned),
        for_address: address.map(str::to_owned),
        sets_address: sets.map(str::to_owned),
        is_static: false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn network_manager_profiles_are_read() {
        let text = "[connection]\nid=x\ntype=ethernet\ninterface-name=ens192\n\n[ethernet]\nmac-address=00:50:56:00:00:01\ncloned-mac-address=stable\n[ipv4]\nmethod=manual\naddress1=1.2.3.4/24\n";
        let profile = network_manager(text, "/f").expect("a profile");
        assert_eq!(profile.interface.as_deref(), Some("ens192"));
        assert!(profile.is_static && profile.for_address.is_some());
        assert_eq!(profile.sets_address, None);
        assert_eq!(network_manager("[connection]\nid=x\n", "/f"), None);
    }

    #[test]
    fn networkd_files_are_read() {
        let profile = networkd("[Match]\nName=en*\n[Network]\nDHCP=yes\n#Address=1.2.3.4\n", "/f");
        assert_eq!(
            (profile.interface.as_deref(), profile.is_static),
            (Some("en*"), false)
        );
        let profile = networkd(
            "[Match]\nMACAddress=00:50:56:00:00:01\n[Address]\nAddress=1.2.3.4/24\n",
            "/f",
        );
        assert!(profile.is_static && profile.for_address.is_some());
        assert_eq!(
            link("[Match]\nOriginalName=*\n[Link]\nNamePolicy=kernel\n", "/f"),
            None
        );
        assert!(link("[Match]\nMACAddress=00:50:56:00:00:01\n[Link]\nName=lan0\n", "/f").is_some());
    }
}
