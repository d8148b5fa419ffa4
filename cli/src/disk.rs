//! A disk on the command line: `[NAME=]DEV`.

/// The disk's name in its job, where one is given, and the path of the device or file.
///
/// A path may contain `=` too: what stands before it is a name only if it is no path.
pub fn name_and_device(text: &str) -> (Option<&str>, &str) {
    match text.split_once('=') {
        Some((name, device)) if !name.contains('/') => (Some(name), device),
        _ => (None, text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_from_paths() {
        assert_eq!(name_and_device("vda=/dev/loop0"), (Some("vda"), "/dev/loop0"));
        assert_eq!(
            name_and_device("/dev/disk/by-id/a=b"),
            (None, "/dev/disk/by-id/a=b")
        );
        assert_eq!(name_and_device("disk.raw"), (None, "disk.raw"));
        assert_eq!(name_and_device("vda="), (Some("vda"), ""));
    }
}
