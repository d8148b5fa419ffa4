//! Names of the files of a store, relative to it (docs/format.md, "Directory layout").

/// What the files that lie beside one another for an image end in, behind its number and a dot. Whoever adds one adds it
/// here: a deletion and `gc` remove whatever has the number of an image that is gone.
mod beside {
    pub const MANIFEST: &str = "json";
    pub const DELETING: &str = "deleting";
    pub const PINS: &str = "pins";
    pub const VERIFIED: &str = "verified";
    pub const BOOT: &str = "boot";
}

/// What a file beside a manifest is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Beside {
    Manifest,
    Deleting,
    Pins,
    Verified,
    Boot,
    /// Of a newer version. It goes with its image all the same.
    Unknown,
}

/// What the file is that ends in `extension`, behind the number of its image and a dot.
pub(crate) fn beside_of(extension: &str) -> Beside {
    match extension {
        beside::MANIFEST => Beside::Manifest,
        beside::DELETING => Beside::Deleting,
        beside::PINS => Beside::Pins,
        beside::VERIFIED => Beside::Verified,
        beside::BOOT => Beside::Boot,
        _ => Beside::Unknown,
    }
}

/// What the name of a file ends in until it has its final one.
pub(crate) const TEMPORARY: &str = ".tmp";

const IMAGES_DIR: &str = "images";
const LAYERS_DIR: &str = "layers";
/// The chain's record.
pub(crate) const CHAIN_FILE: &str = "chain.json";
const CHECKPOINT_FILE: &str = "checkpoint.json";
const WRITER_LOCK: &str = "writer.lock";
const RECLAIM_LOCK: &str = "reclaim.lock";

/// What a chain's directory holds as long as nothing is begun and not ended.
pub(crate) const OF_CHAIN: [&str; 6] = [
    IMAGES_DIR,
    LAYERS_DIR,
    CHAIN_FILE,
    CHECKPOINT_FILE,
    WRITER_LOCK,
    RECLAIM_LOCK,
];

/// The directory of a chain's images.
pub(crate) fn images_dir(chain: &str) -> String {
    format!("{chain}/{IMAGES_DIR}")
}

/// The directory of a chain's layers.
pub(crate) fn layers_dir(chain: &str) -> String {
    format!("{chain}/{LAYERS_DIR}")
}

/// The manifest: an image exists when this does.
pub(crate) fn manifest_path(chain: &str, sequence: u64) -> String {
    beside_image(chain, sequence, beside::MANIFEST)
}

/// The manifest of an image that is being deleted: it exists no more, but its space may.
pub(crate) fn deleting_path(chain: &str, sequence: u64) -> String {
    beside_image(chain, sequence, beside::DELETING)
}

/// Who wants an image kept.
pub(crate) fn pins_path(chain: &str, sequence: u64) -> String {
    beside_image(chain, sequence, beside::PINS)
}

/// What verifications of an image have come to.
pub(crate) fn verified_path(chain: &str, sequence: u64) -> String {
    beside_image(chain, sequence, beside::VERIFIED)
}

/// What booting an image came to.
pub(crate) fn boot_path(chain: &str, sequence: u64) -> String {
    beside_image(chain, sequence, beside::BOOT)
}

fn beside_image(chain: &str, sequence: u64, extension: &str) -> String {
    format!("{chain}/{IMAGES_DIR}/{sequence:06}.{extension}")
}

/// A layer.
pub(crate) fn layer_path(chain: &str, id: u32) -> String {
    format!("{chain}/{LAYERS_DIR}/{id:08x}.layer")
}

/// What the chain's next writer needs.
pub(crate) fn chain_path(chain: &str) -> String {
    format!("{chain}/{CHAIN_FILE}")
}

/// The unfinished sync.
pub(crate) fn checkpoint_path(chain: &str) -> String {
    format!("{chain}/{CHECKPOINT_FILE}")
}

/// File name of the unfinished sync that is being dropped.
pub(crate) const DROPPED_CHECKPOINT: &str = "checkpoint.deleting";

/// The unfinished sync that is being dropped.
pub(crate) fn dropped_checkpoint_path(chain: &str) -> String {
    format!("{chain}/{DROPPED_CHECKPOINT}")
}

/// Whoever writes to the chain holds it.
pub(crate) fn writer_lock_path(chain: &str) -> String {
    format!("{chain}/{WRITER_LOCK}")
}

/// Whoever changes the set of roots, or frees what none of them points to, holds it.
pub(crate) fn reclaim_lock_path(chain: &str) -> String {
    format!("{chain}/{RECLAIM_LOCK}")
}

/// The image that a file of `images/` is about, and which of its files it is; `None` for every other name.
pub(crate) fn image_file(name: &str) -> Option<(u64, &str)> {
    let (digits, extension) = name.split_once('.')?;
    let sequence = digits.parse().ok()?;
    // Exactly the name that the file gets: no sign, no other count of zeros.
    (format!("{sequence:06}") == digits).then_some((sequence, extension))
}

/// Whether an extension is that of a manifest, be it of an image or of one that is being deleted.
pub(crate) fn is_manifest(extension: &str) -> bool {
    matches!(extension, beside::MANIFEST | beside::DELETING)
}

/// The number in the file name of a manifest whose image is being deleted; `None` for every other file.
pub(crate) fn deleting_of(name: &str) -> Option<u64> {
    image_file(name).and_then(|(sequence, extension)| (extension == beside::DELETING).then_some(sequence))
}

/// The number in a manifest's file name; `None` for every other file.
pub(crate) fn sequence_of(name: &str) -> Option<u64> {
    image_file(name).and_then(|(sequence, extension)| (extension == beside::MANIFEST).then_some(sequence))
}

/// The number in the name of a file of verifications; `None` for every other file.
pub(crate) fn verified_of(name: &str) -> Option<u64> {
    image_file(name).and_then(|(sequence, extension)| (extension == beside::VERIFIED).then_some(sequence))
}

/// The id in a layer's file name; `None` for every other file.
pub(crate) fn layer_of(name: &str) -> Option<u32> {
    let digits = name.strip_suffix(".layer")?;
    let id = u32::from_str_radix(digits, 16).ok()?;
    (format!("{id:08x}") == digits).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_exact_names_count() {
        assert_eq!(sequence_of("000007.json"), Some(7));
        assert_eq!(sequence_of("1000007.json"), Some(1_000_007));
        for name in [
            "7.json",
            "+00007.json",
            "000007.pins",
            "000007.json.tmp",
            "000007",
        ] {
            assert_eq!(sequence_of(name), None, "{name}");
        }
        assert_eq!(image_file("000007.json.tmp"), Some((7, "json.tmp")));
        assert_eq!(layer_of("0000001a.layer"), Some(26));
        for name in ["1a.layer", "0000001A.layer", "+000001a.layer", "0000001a"] {
            assert_eq!(layer_of(name), None, "{name}");
        }
    }
}
