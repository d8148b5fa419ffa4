//! Small JSON files that end in a line with the BLAKE3 of all before it: no flipped bit goes unseen,
//! and a person can still read them.

use crate::error::{Error, ErrorKind, Result};
use crate::format::digest::{Digest, seal_check};
use crate::format::name::{SHOWN_MAX, printable};
use crate::storage::paths::TEMPORARY;
use crate::storage::{Stamp, Storage};
use serde::de::{DeserializeOwned, IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use std::fmt;

/// What the last line starts with; 64 hexadecimal digits and a newline follow.
const SEAL_PREFIX: &str = "blake3:";
const SEAL_LEN: usize = SEAL_PREFIX.len() + 64 + 1;

/// Largest sealed file. A manifest takes some 150 bytes a layer, so this is room for 400,000 layers.
const SEALED_LEN_MAX: u64 = 64 << 20;

/// The text of a sealed file.
pub(crate) fn seal<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    let mut text = serde_json::to_vec_pretty(value)
        .map_err(|error| Error::new(ErrorKind::Invalid, "encode JSON").caused_by(error))?;
    text.push(b'\n');
    // What cannot be read again must not be written.
    if (text.len() + SEAL_LEN) as u64 > SEALED_LEN_MAX {
        return Err(Error::invalid(format!(
            "a file of {} bytes is larger than any reader takes",
            text.len()
        )));
    }
    let check = seal_check(&text);
    text.extend_from_slice(format!("{SEAL_PREFIX}{check}\n").as_bytes());
    Ok(text)
}

/// A record of a sealed file.
pub(crate) trait Sealed: DeserializeOwned {
    /// Refuses what a newer version wrote, naming the features that are unknown here.
    fn check_format(&self) -> Result<()>;
}

/// For records with the fields that every sealed file has.
macro_rules! sealed_record {
    ($record:ty) => {
        impl crate::format::sealed::Sealed for $record {
            fn check_format(&self) -> crate::error::Result<()> {
                crate::format::sealed::check_format(self.format, &self.incompatible)
            }
        }
    };
}
pub(crate) use sealed_record;

/// What every sealed file says of itself, in every version.
#[derive(Debug, Deserialize)]
pub(crate) struct Features {
    format: u32,
    #[serde(default, deserialize_with = "words")]
    incompatible: Vec<String>,
    /// What a program has to know that writes, and one that only reads has not.
    #[serde(default, deserialize_with = "words")]
    pub read_only_compatible: Vec<String>,
}
sealed_record!(Features);

/// Checks the seal and parses what is before it.
pub(crate) fn unseal<T: Sealed>(text: &[u8]) -> Result<T> {
    let (body, line) = text
        .len()
        .checked_sub(SEAL_LEN)
        .map(|at| text.split_at(at))
        .ok_or_else(|| Error::damaged(format!("file of {} bytes is cut off", text.len())))?;
    let found = std::str::from_utf8(line)
        .ok()
        .and_then(|line| line.strip_prefix(SEAL_PREFIX)?.strip_suffix('\n'))
        .filter(|hex| !hex.bytes().any(|digit| digit.is_ascii_uppercase()))
        .and_then(Digest::from_hex)
        .ok_or_else(|| Error::damaged("file does not end in its checksum: damaged or cut off"))?;
    if found != seal_check(body) {
        return Err(Error::damaged("file fails its checksum"));
    }
    let parsed = parse::<T>(body);
    // What a newer version wrote may have other fields: that it is newer says more than which of them does not fit.
    match &parsed {
        Ok(value) => value.check_format()?,
        Err(_) => parse::<Features>(body)?.check_format()?,
    }
    parsed
}

/// Feature words kept of a list: one unknown word is enough to refuse a file, and those that may be ignored
/// must not cost memory.
const WORDS_KEPT: usize = 16;

/// Reads a list of feature words of any length and keeps the first ones.
pub(crate) fn words<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<Vec<String>, D::Error> {
    struct Words;
    impl<'de> Visitor<'de> for Words {
        type Value = Vec<String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of feature words")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> std::result::Result<Vec<String>, A::Error> {
            let mut kept = Vec::new();
            while kept.len() < WORDS_KEPT {
                match list.next_element()? {
                    Some(word) => kept.push(word),
                    None => return Ok(kept),
                }
            }
            while list.next_element::<IgnoredAny>()?.is_some() {}
            Ok(kept)
        }
    }
    deserializer.deserialize_seq(Words)
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T> {
    serde_json::from_slice(body).map_err(|error| {
        let (said, place) = (printable(&error.to_string(), SAID_MAX), excerpt(body, &error));
        Error::damaged(format!("parse JSON: {said}, in {place}"))
    })
}

/// Characters of a file's own text that a message repeats.
const SAID_MAX: usize = 200;
/// Bytes shown before the place of an error, which names the field if nothing else does.
const EXCERPT_BEFORE: usize = 80;

/// The text around the place where an error was noticed. Files are written a field a line.
fn excerpt(body: &[u8], error: &serde_json::Error) -> String {
    let line = body
        .split(|&byte| byte == b'\n')
        .nth(error.line().saturating_sub(1));
    let line = line.unwrap_or_default();
    let end = error.column().min(line.len());
    let shown = &line[end.saturating_sub(EXCERPT_BEFORE)..end];
    printable(String::from_utf8_lossy(shown).trim(), SAID_MAX)
}

/// Reads a sealed file.
pub(crate) fn read<T: Sealed>(storage: &dyn Storage, path: &str) -> Result<T> {
    read_with_stamp(storage, path).map(|(value, _)| value)
}

/// Reads a sealed file that may be absent.
pub(crate) fn read_if_there<T: Sealed>(storage: &dyn Storage, path: &str) -> Result<Option<T>> {
    match read(storage, path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        read => read.map(Some),
    }
}

/// As [`read`], with the file's stamp, where the storage has stamps.
pub(crate) fn read_with_stamp<T: Sealed>(storage: &dyn Storage, path: &str) -> Result<(T, Option<Stamp>)> {
    let read = storage.read_with_stamp(path, SEALED_LEN_MAX);
    let (text, stamp) = read.map_err(|error| error.about_file(path))?;
    let value = unseal(&text).map_err(|error| error.in_file(path))?;
    Ok((value, stamp))
}

/// Puts a sealed file in place so that after a crash either the old or the new one is there.
///
/// `dir` is the directory of `path`; when this returns, content and name are durable.
pub(crate) fn replace<T: Serialize>(storage: &dyn Storage, dir: &str, path: &str, value: &T) -> Result<()> {
    let temporary = write_temporary(storage, path, value)?;
    put_in_place(storage, dir, &temporary, path)
}

/// The first half of [`replace`]: durable content under a temporary name, which is returned.
pub(crate) fn write_temporary<T: Serialize>(storage: &dyn Storage, path: &str, value: &T) -> Result<String> {
    let temporary = format!("{path}{TEMPORARY}");
    match storage.write(&temporary, &seal(value)?) {
        Ok(()) => Ok(temporary),
        Err(error) => {
            // Half of it may be there; without its last line it would be refused, and here it is in the way.
            let _ = storage.remove(&temporary);
            Err(error)
        }
    }
}

/// The second half of [`replace`].
pub(crate) fn put_in_place(storage: &dyn Storage, dir: &str, temporary: &str, path: &str) -> Result<()> {
    storage.rename(temporary, path)?;
    storage.sync_dir(dir)
}

/// Refuses what a newer version wrote, naming the features that are unknown here.
pub(crate) fn check_format(version: u32, incompatible: &[String]) -> Result<()> {
    if version != 1 {
        let what =
            format!("format version {version} is newer than this smc, which reads version 1: upgrade smc");
        return Err(Error::new(ErrorKind::Unsupported, what));
    }
    // No incompatible feature exists in version 1.
    if incompatible.is_empty() {
        return Ok(());
    }
    let names = names(incompatible);
    let what = format!("needs features that this smc does not know: {names}: upgrade smc");
    Err(Error::new(ErrorKind::Unsupported, what))
}

/// Refuses to write where a newer version needs features of writers that are unknown here, naming them.
pub(crate) fn check_writable(read_only_compatible: &[String]) -> Result<()> {
    // No such feature exists in version 1.
    if read_only_compatible.is_empty() {
        return Ok(());
    }
    let names = names(read_only_compatible);
    let what = format!(
        "can be read, but not changed by this smc, which does not know these features: {names}: upgrade smc"
    );
    Err(Error::new(ErrorKind::Unsupported, what))
}

fn names(features: &[String]) -> String {
    let names: Vec<String> = features.iter().map(|name| printable(name, SHOWN_MAX)).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    impl Sealed for Value {
        fn check_format(&self) -> Result<()> {
            let features = Features::deserialize(self).map_err(|error| Error::damaged(error.to_string()))?;
            features.check_format()
        }
    }

    fn sample() -> Value {
        json!({ "format": 1, "disks": ["vda"] })
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let text = seal(&sample()).unwrap();
        assert_eq!(unseal::<Value>(&text).unwrap(), sample());
        for bit in 0..text.len() * 8 {
            let mut flipped = text.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(
                unseal::<Value>(&flipped).is_err(),
                "flip of bit {bit} goes unseen"
            );
        }
    }

    #[test]
    fn every_truncation_is_found() {
        let text = seal(&sample()).unwrap();
        for len in 0..text.len() {
            assert!(unseal::<Value>(&text[..len]).is_err());
        }
    }

    #[derive(Debug, Deserialize)]
    struct Sample {
        format: u32,
        #[serde(default)]
        incompatible: Vec<String>,
        #[allow(dead_code, reason = "what is parsed into it does not fit")]
        disks: Vec<u64>,
    }
    sealed_record!(Sample);

    /// The words of a hostile file must not steer a terminal, nor fill it.
    #[test]
    fn messages_repeat_little_of_a_file_and_nothing_that_a_terminal_obeys() {
        let steer = "\u{1b}[2J\u{202e}".repeat(1 << 16);
        let hostile = [
            json!({ "format": 1, "incompatible": [steer] }),
            json!({ "format": steer }),
            json!({ "format": 1, "disks": steer }),
            json!({ "format": 1, "disks": [steer] }),
        ];
        for value in hostile {
            let error = unseal::<Sample>(&seal(&value).unwrap()).unwrap_err();
            let text = format!("{error:?}");
            assert!(text.len() < 3000, "{} bytes", text.len());
            assert!(!text.contains(['\u{1b}', '\u{202e}', '\n']), "{text}");
        }
    }

    #[test]
    fn of_many_feature_words_few_are_kept() {
        #[derive(Deserialize)]
        struct Words {
            format: u32,
            #[serde(default, deserialize_with = "words")]
            incompatible: Vec<String>,
            #[serde(default, deserialize_with = "words")]
            compatible: Vec<String>,
        }
        sealed_record!(Words);
        let many: Vec<String> = (0..100_000).map(|n| n.to_string()).collect();
        let text = seal(&json!({ "format": 1, "compatible": many })).unwrap();
        assert_eq!(unseal::<Words>(&text).unwrap().compatible, many[..WORDS_KEPT]);
        let text = seal(&json!({ "format": 1, "incompatible": many })).unwrap();
        assert_eq!(
            unseal::<Words>(&text).err().map(|error| error.kind()),
            Some(ErrorKind::Unsupported)
        );
    }

    #[test]
    fn newer_versions_and_features_are_named() {
        assert!(
            check_format(2, &[])
                .unwrap_err()
                .to_string()
                .contains("version 2")
        );
        let error = check_format(1, &["encryption".to_owned()]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("encryption"));
    }
}
