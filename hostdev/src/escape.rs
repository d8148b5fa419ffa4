//! The octal escapes of the kernel's tables.

/// Undoes the escapes of white space, backslashes and `#` in mountinfo, `/proc/swaps` and fstab: a backslash and
/// three octal digits stand for a byte (proc_pid_mountinfo(5), getmntent(3)). Anything else stays as it is.
pub fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        match after.first_chunk().filter(|_| byte == b'\\').and_then(octal) {
            Some(escaped) => {
                bytes.push(escaped);
                rest = &after[3..];
            }
            None => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    bytes
}

fn octal(digits: &[u8; 3]) -> Option<u8> {
    digits.iter().try_fold(0u8, |sum, digit| {
        let digit = digit.checked_sub(b'0').filter(|digit| *digit < 8)?;
        sum.checked_mul(8)?.checked_add(digit)
    })
}

#[cfg(test)]
mod tests {
    use super::unescape;

    #[test]
    fn escapes_are_undone_and_broken_ones_kept() {
        let cases: [(&[u8], &[u8]); 9] = [
            (br"a\040b", b"a b"),
            (br"\134", br"\"),
            (br"\134040", br"\040"),
            (br"\377\011\012\043", b"\xff\t\n#"),
            (br"\04", br"\04"),
            (br"\+12", br"\+12"),
            (br"\999\400\08 ", br"\999\400\08 "),
            (b"\xffraw", b"\xffraw"),
            (b"", b""),
        ];
        for (field, bytes) in cases {
            assert_eq!(unescape(field), bytes, "{}", field.escape_ascii());
        }
    }
}
