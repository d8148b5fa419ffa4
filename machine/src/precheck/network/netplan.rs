//! Netplan's YAML, as far as needed: keys by their indentation.
//!
//! `network: ethernets: ID: {match: {macaddress, name}, macaddress, addresses, dhcp4}`.

use super::{Kind, Profile};
use crate::files::Files;

/// Sections whose interfaces are hardware.
const HARDWARE: [&str; 2] = ["ethernets", "wifis"];

/// Deeper than any key that is looked for.
const DEPTH_MAX: usize = 16;

pub(super) fn profiles(files: &Files<'_>) -> Vec<Profile> {
    let paths = files.files("/etc/netplan", ".yaml");
    paths
        .iter()
        .flat_map(|file| parse(&files.text(file), file))
        .collect()
}

fn parse(text: &str, file: &str) -> Vec<Profile> {
    let mut profiles: Vec<(String, Profile)> = Vec::new();
    let mut above: Vec<(usize, &str)> = Vec::new();
    for line in text.lines() {
        let line = line.split(" #").next().unwrap_or_default();
        let content = line.trim_start();
        if content.is_empty() || content.starts_with(['#', '-']) || above.len() > DEPTH_MAX {
            continue;
        }
        let indent = line.len() - content.len();
        above.truncate(above.partition_point(|(outer, _)| *outer < indent));
        let Some((key, value)) = content.split_once(':') else {
            continue;
        };
        above.push((indent, unquoted(key)));
        let path: Vec<&str> = above.iter().map(|(_, key)| *key).collect();
        take(&path, value, file, &mut profiles);
    }
    profiles.into_iter().map(|(_, profile)| profile).collect()
}

/// Takes one key with its value, which may be a mapping in braces.
fn take(path: &[&str], value: &str, file: &str, profiles: &mut Vec<(String, Profile)>) {
    let (["network", section, id], property) = (
        path.first_chunk::<3>().unwrap_or(&[""; 3]),
        &path[path.len().min(3)..],
    ) else {
        return;
    };
    let is_hardware = HARDWARE.contains(section);
    if !is_hardware && !matches!(*section, "bonds" | "bridges" | "vlans") {
        return;
    }
    let profile = match profiles.iter().position(|(known, _)| known == id) {
        Some(index) => &mut profiles[index].1,
        None => {
            let profile = Profile {
                file: file.to_owned(),
                kind: Kind::Netplan,
                interface: Some((*id).to_owned()),
                ..Profile::default()
            };
            profiles.push(((*id).to_owned(), profile));
            match profiles.last_mut() {
                Some((_, profile)) => profile,
                None => return,
            }
        }
    };
    let value = unquoted(value);
    match property {
        // The id is only a label then.
        ["match"] => {
            profile.interface = None;
            for (key, value) in value
                .trim_matches(['{', '}'])
                .split(',')
                .filter_map(|pair| pair.split_once(':'))
            {
                set_match(profile, unquoted(key), unquoted(value));
            }
        }
        ["match", key] => set_match(profile, key, value),
        ["macaddress"] => profile.sets_address = Some(value.to_owned()),
        ["addresses"] => profile.is_static = value != "[]",
        _ => {}
    }
}

fn set_match(profile: &mut Profile, key: &str, value: &str) {
    match key {
        "macaddress" => profile.for_address = Some(value.to_owned()),
        "name" => profile.interface = Some(value.to_owned()),
        _ => {}
    }
}

fn unquoted(text: &str) -> &str {
    text.trim().trim_matches(|c| c == '"' || c == '\'')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found_by_their_indentation() {
        let text = "network:\n  version: 2\n  ethernets:\n    # the first\n    ens3:\n      dhcp4: true\n    uplink:\n      match:\n        macaddress: \"52:54:00:00:00:01\" # x\n      set-name: eth0\n      addresses:\n        - 1.2.3.4/24\n  bridges:\n    br0:\n      interfaces: [ens3]\n";
        let profiles = parse(text, "/f");
        assert_eq!(profiles.len(), 3);
        assert_eq!(
            (profiles[0].interface.as_deref(), profiles[0].is_static),
            (Some("ens3"), false)
        );
        assert_eq!(profiles[1].for_address.as_deref(), Some("52:54:00:00:00:01"));
        assert_eq!(
            (profiles[1].interface.as_deref(), profiles[1].is_static),
            (None, true)
        );
        assert_eq!(profiles[2].interface.as_deref(), Some("br0"));
    }

    #[test]
    fn mappings_in_braces_are_read() {
        let text = "network:\n ethernets:\n  a:\n   match: {name: \"en*\", macaddress: '52:54:00:00:00:01'}\n   addresses: []\n";
        let profiles = parse(text, "/f");
        assert_eq!(profiles[0].interface.as_deref(), Some("en*"));
        assert!(profiles[0].for_address.is_some());
        assert!(!profiles[0].is_static);
    }

    #[test]
    fn nonsense_is_survived() {
        for text in [
            "",
            ":",
            "::::",
            "network",
            "network:\n- a\n  b: c",
            "\tnetwork:\n\t\tethernets:\n",
        ] {
            assert_eq!(parse(text, "/f"), [], "{text:?}");
        }
        let deep: String = (0..2000)
            .map(|depth| format!("{}a:\n", " ".repeat(depth)))
            .collect();
        assert_eq!(parse(&deep, "/f"), []);
    }
}
