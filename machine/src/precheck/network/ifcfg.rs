//! The `ifcfg` files of Red Hat's and SUSE's scripts: assignments as in a shell.

use super::{Kind, Profile};
use crate::files::Files;

const DIRECTORIES: [&str; 2] = ["/etc/sysconfig/network-scripts", "/etc/sysconfig/network"];

/// Copies that editors and package managers left.
const LEFT_OVER: [&str; 7] = ["~", ".bak", ".orig", ".old", ".rpmsave", ".rpmorig", ".rpmnew"];

pub(super) fn profiles(files: &Files<'_>) -> Vec<Profile> {
    let names = DIRECTORIES.iter().flat_map(|directory| {
        let names = files.names(directory).into_iter();
        names.map(move |name| (format!("{directory}/{name}"), name))
    });
    let names = names.filter(|(_, name)| !LEFT_OVER.iter().any(|suffix| name.ends_with(suffix)));
    names
        .filter_map(|(file, name)| {
            let interface = name.strip_prefix("ifcfg-")?;
            parse(&files.text(&file), &file, interface)
        })
        .collect()
}

/// None for a profile that is off.
fn parse(text: &str, file: &str, interface: &str) -> Option<Profile> {
    let values: Vec<(&str, &str)> = text
        .lines()
        .filter_map(|line| line.trim().split_once('='))
        .map(|(key, value)| (key, value.trim_matches(|c| c == '"' || c == '\'' || c == ' ')))
        .filter(|(_, value)| !value.is_empty())
        .collect();
    let value = |key: &str| {
        values
            .iter()
            .rev()
            .find(|(name, _)| *name == key)
            .map(|(_, value)| *value)
    };
    if value("ONBOOT").is_some_and(|on| on.eq_ignore_ascii_case("no")) || value("STARTMODE") == Some("off") {
        return None;
    }
    let has_address = values.iter().any(|(key, _)| key.starts_with("IPADDR"));
    let by_dhcp =
        value("BOOTPROTO").is_some_and(|protocol| protocol.to_ascii_lowercase().starts_with("dhcp"));
    // Without DEVICE=, Red Hat's file is for the address, and SUSE's for the name of the file.
    let address = value("HWADDR").map(str::to_owned);
    let device = value("DEVICE").or(address.is_none().then_some(interface));
    Some(Profile {
        file: file.to_owned(),
        kind: Kind::Ifcfg,
        interface: device.map(str::to_owned),
        for_address: address,
        sets_address: value("MACADDR").or(value("LLADDR")).map(str::to_owned),
        is_static: has_address && !by_dhcp,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn assignments_are_read() {
        let parse = |text| parse(text, "/f", "eth0");
        let fixed = parse("DEVICE=\"ens192\"\nBOOTPROTO=none\nIPADDR=1.2.3.4\nHWADDR=00:50:56:00:00:01\n");
        let fixed = fixed.expect("it is on");
        assert_eq!(fixed.interface.as_deref(), Some("ens192"));
        assert!(fixed.is_static && fixed.for_address.is_some());
        let dhcp = parse("BOOTPROTO='dhcp'\nHWADDR=\n").expect("it is on");
        assert_eq!(
            (dhcp.interface.as_deref(), dhcp.is_static, dhcp.for_address),
            (Some("eth0"), false, None)
        );
        assert_eq!(parse("ONBOOT=no\nIPADDR=1.2.3.4\n"), None);
    }
}
