//! Debian's `/etc/network/interfaces`.

use super::{Kind, Profile};
use crate::files::Files;

/// Stanzas such as `iface eth0 inet static`, with `hwaddress` among their lines.
pub(super) fn profiles(files: &Files<'_>) -> Vec<Profile> {
    let mut paths = vec!["/etc/network/interfaces".to_owned()];
    paths.extend(files.files("/etc/network/interfaces.d", ""));
    paths
        .iter()
        .flat_map(|file| parse(&files.text(file), file))
        .collect()
}

fn parse(text: &str, file: &str) -> Vec<Profile> {
    let mut profiles: Vec<Profile> = Vec::new();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        match words.next() {
            Some("iface") => {
                let (name, method) = (words.next(), words.nth(1));
                profiles.push(Profile {
                    file: file.to_owned(),
                    kind: Kind::Ifupdown,
                    interface: name.map(str::to_owned),
                    is_static: method == Some("static"),
                    ..Profile::default()
                });
            }
            Some("hwaddress") => {
                if let (Some(profile), Some(address)) = (profiles.last_mut(), words.next_back()) {
                    profile.sets_address = Some(address.to_owned());
                }
            }
            _ => {}
        }
    }
    profiles
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stanzas_are_read() {
        let text = "auto lo eth0\n# iface x inet static\niface eth0 inet static\n  address 1.2.3.4\n  hwaddress ether 02:00:00:00:00:01\niface eth0 inet6 auto\niface\n";
        let profiles = parse(text, "/f");
        assert_eq!(profiles.len(), 3);
        assert!(profiles[0].is_static);
        assert_eq!(profiles[0].sets_address.as_deref(), Some("02:00:00:00:00:01"));
        assert!(!profiles[1].is_static);
        assert_eq!(profiles[2].interface, None);
    }
}
