//! The table of filesystems that are mounted at boot (fstab(5)).

use crate::unescape;

/// One line of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FstabLine {
    /// What is mounted: a path, or `UUID=…` and the like.
    pub device: String,
    /// Where.
    pub point: String,
    /// Filesystem type.
    pub fs_type: String,
    /// Options, with commas between them.
    pub options: String,
}

impl FstabLine {
    /// All lines of a table; what is no line of its grammar is left out.
    pub fn all(text: &str) -> Vec<FstabLine> {
        text.lines().filter_map(FstabLine::parse).collect()
    }

    fn parse(line: &str) -> Option<FstabLine> {
        let mut fields = line.split_ascii_whitespace();
        let device = fields.next().filter(|field| !field.starts_with('#'))?;
        Some(FstabLine {
            // `UUID="x"` means `UUID=x`.
            device: field(device).replace('"', ""),
            point: field(fields.next()?),
            fs_type: fields.next().unwrap_or("auto").to_owned(),
            options: fields.next().unwrap_or("defaults").to_owned(),
        })
    }

    /// The options one by one.
    pub fn each_option(&self) -> impl Iterator<Item = &str> {
        self.options.split(',')
    }

    /// Whether it is swap space.
    pub fn is_swap(&self) -> bool {
        self.fs_type == "swap"
    }

    /// Whether a boot stops when the device is not there. It continues without swap, after a time-out.
    pub fn is_required(&self) -> bool {
        let is_optional = |option| matches!(option, "nofail" | "noauto" | "x-systemd.automount");
        !self.is_swap() && !self.each_option().any(is_optional)
    }
}

/// A field with its escapes undone.
fn field(text: &str) -> String {
    String::from_utf8_lossy(&unescape(text.as_bytes())).into_owned()
}

#[cfg(test)]
mod tests {
    use super::FstabLine;

    #[test]
    fn lines_have_defaults_and_escapes() {
        let table = "# comment\n\nUUID=\"6e\" / ext4\n/dev/sdb1 /srv/a\\040b xfs nofail,ro 0 2\nlonely\n";
        let lines = FstabLine::all(table);
        let shown: Vec<_> = lines
            .iter()
            .map(|line| (&*line.device, &*line.point, &*line.options, line.is_required()))
            .collect();
        assert_eq!(
            shown,
            [
                ("UUID=6e", "/", "defaults", true),
                ("/dev/sdb1", "/srv/a b", "nofail,ro", false)
            ]
        );
    }
}
