//! The line by which a source is enrolled: `smc-store enrol` prints it, `smcd target add` takes it.

use crate::error::{Error, Result};
use std::fmt;
use std::str::FromStr;

/// What a source needs to become known to a target. Whoever has it can enrol once, within its time.
///
/// Displayed and parsed as `smc-store:HOST:PORT:SOURCE:CA:SECRET`, where CA is the SHA-256 of the target's authority's key and SECRET
/// 16 random bytes, both in hexadecimal digits.
#[derive(Clone, PartialEq, Eq)]
pub struct Invitation {
    /// Where the target is reached: a host name or an address, and a port.
    pub address: String,
    /// The name that the source is to have there.
    pub source: String,
    /// SHA-256 of the key (subjectPublicKeyInfo in DER) of the authority that signs the target's certificate.
    pub authority: [u8; 32],
    /// What shows the target that the source was invited.
    pub secret: [u8; 16],
}

const PREFIX: &str = "smc-store:";

impl fmt::Display for Invitation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Invitation { address, source, .. } = self;
        let (authority, secret) = (hex::encode(self.authority), hex::encode(self.secret));
        write!(f, "{PREFIX}{address}:{source}:{authority}:{secret}")
    }
}

impl fmt::Debug for Invitation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Invitation of {} to {}", self.source, self.address)
    }
}

impl FromStr for Invitation {
    type Err = Error;

    fn from_str(line: &str) -> Result<Invitation> {
        let wrong = |what: &str| {
            Error::invalid(format!(
                "{what}: an invitation is the line that `smc-store enrol SOURCE` prints on the target"
            ))
        };
        let rest = line.trim().strip_prefix(PREFIX);
        let rest = rest.ok_or_else(|| wrong("this is no invitation"))?;
        let mut parts = rest.rsplitn(4, ':');
        let mut next = || parts.next().ok_or_else(|| wrong("the invitation is cut off"));
        let (secret, authority, source, address) = (next()?, next()?, next()?, next()?);
        let mut invitation = Invitation {
            address: address.to_owned(),
            source: source.to_owned(),
            authority: [0; 32],
            secret: [0; 16],
        };
        hex::decode_to_slice(authority, &mut invitation.authority)
            .and_then(|()| hex::decode_to_slice(secret, &mut invitation.secret))
            .map_err(|_| wrong("the invitation is cut off or changed"))?;
        imagefmt::check_name("source", source).map_err(|error| wrong(&error.to_string()))?;
        check_address(address)?;
        Ok(invitation)
    }
}

/// Refuses what is not `HOST:PORT`.
///
/// # Errors
/// `Invalid`, with an example.
pub fn check_address(address: &str) -> Result<()> {
    let port = address.rsplit_once(':').filter(|(host, _)| !host.is_empty());
    match port.map(|(_, port)| port.parse::<u16>()) {
        Some(Ok(1..)) => Ok(()),
        _ => Err(Error::invalid(format!(
            "{address:?} is no address of a target: HOST:PORT is, as in backup.example.com:7310 or [2001:db8::7]:7310"
        ))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn a_line_says_what_it_was_made_from() {
        for address in ["backup.example.com:7310", "192.0.2.7:1", "[2001:db8::7]:7310"] {
            let invitation = Invitation {
                address: address.to_owned(),
                source: "web01".to_owned(),
                authority: [7; 32],
                secret: [9; 16],
            };
            let line = format!(" {invitation}\n");
            assert_eq!(line.parse::<Invitation>().unwrap(), invitation);
            assert!(
                !format!("{invitation:?}").contains("0909"),
                "the secret is not for logs"
            );
            let cut = &invitation.to_string()[..invitation.to_string().len() - 1];
            assert!(cut.parse::<Invitation>().is_err());
        }
        for line in [
            "",
            "smc-store:",
            "smc-store:a:b:c:d",
            "https://backup.example.com",
        ] {
            let error = line.parse::<Invitation>().unwrap_err();
            assert!(error.to_string().contains("smc-store enrol SOURCE"), "{error}");
        }
    }
}
