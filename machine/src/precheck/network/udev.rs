//! Rules of udev that name interfaces by hardware address, such as `70-persistent-net.rules`.

use super::{Kind, Profile};
use crate::files::Files;

pub(super) fn profiles(files: &Files<'_>) -> Vec<Profile> {
    let paths = files.files("/etc/udev/rules.d", ".rules");
    paths
        .iter()
        .flat_map(|file| parse(&files.text(file), file))
        .collect()
}

/// Lines with both `ATTR{address}=="00:50:…"` and `NAME="eth0"`.
fn parse(text: &str, file: &str) -> Vec<Profile> {
    let rules = text.lines().filter(|line| !line.trim_start().starts_with('#'));
    rules
        .filter_map(|line| {
            let address = value(line, "ATTR{address}==").or_else(|| value(line, "ATTRS{address}=="))?;
            let name = value(line, " NAME=").or_else(|| value(line, ",NAME="))?;
            Some(Profile {
                file: file.to_owned(),
                kind: Kind::Naming,
                interface: Some(name.to_owned()),
                for_address: Some(address.to_owned()),
                ..Profile::default()
            })
        })
        .collect()
}

/// What stands in quotes after `key`.
fn value<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    let (_, after) = line.split_once(key)?;
    let (value, _) = after.trim_start_matches('=').strip_prefix('"')?.split_once('"')?;
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_that_name_by_address_are_found() {
        let text = "# x\nSUBSYSTEM==\"net\", ACTION==\"add\", ATTR{address}==\"00:50:56:00:00:01\", NAME=\"eth0\"\n\
                    KERNEL==\"sd*\", SYMLINK+=\"x\"\nATTR{address}==\"broken\n";
        let profiles = parse(text, "/f");
        assert_eq!(profiles.len(), 1);
        assert_eq!(profiles[0].for_address.as_deref(), Some("00:50:56:00:00:01"));
        assert_eq!(profiles[0].interface.as_deref(), Some("eth0"));
    }
}
