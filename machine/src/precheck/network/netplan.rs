//! Netplan's YAML: `network: ethernets: ID: {match: {macaddress, name}, macaddress, addresses, dhcp4}`.

use super::yaml::{self, Value};
use super::{Kind, Profile};
use crate::files::Files;
use crate::precheck::findings::Findings;
use crate::text::shown;

/// Sections whose interfaces are looked at.
const SECTIONS: [&str; 5] = ["ethernets", "wifis", "bonds", "bridges", "vlans"];

/// A large network takes some kilobytes.
const TEXT_MAX_BYTES: u64 = 256 << 10;

/// The profiles of all files; a file that cannot be understood gets a line.
pub(super) fn profiles(files: &Files<'_>, out: &mut Findings) -> Vec<Profile> {
    let mut profiles = Vec::new();
    for file in files.files("/etc/netplan", ".yaml") {
        match parse(&files.text_up_to(&file, TEXT_MAX_BYTES), &file) {
            Ok(found) => profiles.extend(found),
            Err(problem) => out.warning(
                "network_config",
                format!("cannot understand {}: {}", shown(&file), shown(&problem)),
                "netplan generate shows what is wrong with it; correct that, then check again",
            ),
        }
    }
    profiles
}

fn parse(text: &str, file: &str) -> Result<Vec<Profile>, String> {
    let documents = yaml::documents(text)?;
    let networks = documents.iter().filter_map(|document| document.get("network"));
    let sections = networks.flat_map(|network| SECTIONS.iter().filter_map(|name| network.get(name)));
    // A section has settings for all its interfaces too, which are no mappings.
    let interfaces = sections.flat_map(Value::entries);
    let interfaces = interfaces.filter(|(_, settings)| settings.text().is_none());
    Ok(interfaces
        .map(|(id, settings)| profile(id, settings, file))
        .collect())
}

fn profile(id: &str, settings: &Value, file: &str) -> Profile {
    let text = |value: Option<&Value>| value.and_then(Value::text).map(str::to_owned);
    let matched = settings.get("match");
    let interface = match matched {
        // The id is only a label then.
        Some(matched) => text(matched.get("name")),
        None => Some(id.to_owned()),
    };
    Profile {
        file: file.to_owned(),
        kind: Kind::Netplan,
        interface,
        for_address: text(matched.and_then(|matched| matched.get("macaddress"))),
        sets_address: text(settings.get("macaddress")),
        is_static: settings.get("addresses").is_some_and(has_any),
    }
}

/// Whether there is an item in a list, or anything that should be one.
fn has_any(value: &Value) -> bool {
    match value {
        Value::List(items) => !items.is_empty(),
        other => other.text().is_some() || other.entries().next().is_some(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profiles(text: &str) -> Vec<Profile> {
        parse(text, "/f").unwrap_or_else(|error| panic!("{text:?}: {error}"))
    }

    #[test]
    fn keys_are_found_by_their_indentation() {
        let text = "network:\n  version: 2\n  ethernets:\n    # the first\n    ens3:\n      dhcp4: true\n    uplink:\n      match:\n        macaddress: \"52:54:00:00:00:01\" # x\n      set-name: eth0\n      addresses:\n        - 1.2.3.4/24\n  bridges:\n    br0:\n      interfaces: [ens3]\n";
        let profiles = profiles(text);
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
    fn a_fixed_address_is_found_in_every_style() {
        let texts = [
            "network:\n  ethernets:\n    ens3: {addresses: [192.0.2.7/24]}\n",
            "network: {ethernets: {ens3: {addresses: [192.0.2.7/24]}}}",
            "{\"network\": {\"ethernets\": {\"ens3\": {\"addresses\": [\"192.0.2.7/24\"]}}}}",
            "'network':\n  \"ethernets\":\n    'ens3':\n      \"addresses\": [192.0.2.7/24]\n",
            "network:\n  ethernets:\n    ens3:\n      addresses: [\n        192.0.2.7/24 ]\n",
            "network:\n  ethernets:\n    ens3: &fixed\n      addresses:\n      - 192.0.2.7/24: {label: x}\n",
            "x: &fixed\n  addresses: [192.0.2.7/24]\nnetwork:\n  ethernets:\n    ens3: *fixed\n",
        ];
        for text in texts {
            let profiles = profiles(text);
            assert_eq!(profiles.len(), 1, "{text}");
            assert_eq!(
                (profiles[0].interface.as_deref(), profiles[0].is_static),
                (Some("ens3"), true),
                "{text}"
            );
        }
    }

    #[test]
    fn mappings_in_braces_are_read() {
        let text = "network:\n ethernets:\n  a:\n   match: {name: \"en*\", macaddress: '52:54:00:00:00:01'}\n   addresses: []\n";
        let profiles = profiles(text);
        assert_eq!(profiles[0].interface.as_deref(), Some("en*"));
        assert!(profiles[0].for_address.is_some());
        assert!(!profiles[0].is_static);
    }

    #[test]
    fn settings_of_a_section_are_no_interfaces() {
        let text = "network:\n  renderer: networkd\n  ethernets:\n    renderer: NetworkManager\n    ens3:\n";
        let profiles = profiles(text);
        assert_eq!(profiles.len(), 1);
        assert_eq!(profiles[0].interface.as_deref(), Some("ens3"));
    }

    #[test]
    fn what_has_no_network_has_no_profiles_and_nonsense_is_an_error() {
        for text in [
            "",
            "network",
            "network:\n",
            "network: [a, b]",
            "a: b",
            "network: {ethernets: x}",
            "---\n---\n",
        ] {
            assert_eq!(parse(text, "/f"), Ok(Vec::new()), "{text:?}");
        }
        for text in [
            "network:\n- a\n  b: c",
            "\tnetwork:\n\t\tethernets:\n",
            "network: {ethernets: {",
        ] {
            parse(text, "/f").expect_err(text);
        }
    }
}
