//! What is used as swap: `/proc/swaps` (proc_swaps(5)).

use std::path::{Path, PathBuf};

use crate::error::if_present;
use crate::root::path_of;
use crate::{Result, Root, unescape};

/// A device or file in use as swap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Swap {
    /// As the kernel names it: the path that swapon(8) was given, links followed.
    pub path: PathBuf,
    /// Whether it is a file on a filesystem and not a device.
    pub is_file: bool,
}

impl Swap {
    fn parse(line: &[u8]) -> Option<Swap> {
        let mut fields = line
            .split(|byte| byte.is_ascii_whitespace())
            .filter(|field| !field.is_empty());
        Some(Swap {
            path: path_of(unescape(fields.next()?)),
            is_file: fields.next()? == b"file",
        })
    }
}

/// All swap areas in use. A kernel without swap has no table, and no swap areas.
///
/// # Errors
/// `PermissionDenied`, `TooLarge`, `WrongType`, `Io`: there is a table that cannot be read.
pub fn swaps(root: &Root) -> Result<Vec<Swap>> {
    let table = if_present(root.bytes_up_to(Path::new("/proc/swaps"), 4 << 20))?.unwrap_or_default();
    // The first line is a heading.
    let lines = table.split(|byte| *byte == b'\n').skip(1);
    Ok(lines.filter_map(Swap::parse).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;
    use std::fs;

    #[test]
    fn areas_are_read_with_their_escapes() {
        let tree = tempfile::tempdir().expect("a directory");
        let root = Root::at(tree.path());
        assert_eq!(swaps(&root).expect("a kernel without swap"), []);
        fs::create_dir(root.join("/proc")).expect("made");
        let table = b"Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n\
            /dev/vda3                               partition\t1048572\t\t0\t\t-2\n\
            /swap\\040file\\134\\+1 file 4 0 -3\nbroken\n\n/\xff partition 1 0 -4\n";
        fs::write(root.join("/proc/swaps"), table).expect("written");
        let found = swaps(&root).expect("a table");
        let expected = [
            ("/dev/vda3".into(), false),
            (r"/swap file\\+1".into(), true),
            (path_of(b"/\xff".to_vec()), false),
        ];
        let expected = expected.map(|(path, is_file)| Swap { path, is_file });
        assert_eq!(found, expected);
    }

    #[test]
    fn a_table_that_cannot_be_read_is_not_an_empty_one() {
        let tree = tempfile::tempdir().expect("a directory");
        let root = Root::at(tree.path());
        fs::create_dir_all(root.join("/proc/swaps")).expect("made");
        assert_eq!(
            swaps(&root).expect_err("a directory").kind(),
            ErrorKind::WrongType
        );
    }
}
