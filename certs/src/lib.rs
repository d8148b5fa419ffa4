//! Certificates: an authority of one's own, and pairs of certificate and key that it vouches for.

mod error;

pub use error::{Error, Result};

use error::Context;
use jiff::{SignedDuration, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use std::fmt;
use std::net::IpAddr;
use std::time::SystemTime;
use time::OffsetDateTime;
use x509_parser::extensions::GeneralName;
use x509_parser::pem::parse_x509_pem;
use x509_parser::prelude::{FromDer, X509Certificate};

/// How far clocks may be behind ours: a guest's clock, or that of a machine just restored.
const CLOCKS_BEHIND: SignedDuration = SignedDuration::from_hours(24);

/// The longest common name of X.509 (ub-common-name in RFC 5280).
const COMMON_NAME_MAX: usize = 64;

/// Signs certificates.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
    ends: Timestamp,
}

/// A certificate with its private key, both PEM.
#[derive(Clone)]
pub struct Pair {
    /// The certificate.
    pub certificate: String,
    /// The private key.
    pub key: String,
    /// When the certificate expires.
    pub ends: Timestamp,
}

impl fmt::Debug for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pair")
            .field("ends", &self.ends)
            .finish_non_exhaustive()
    }
}

impl Authority {
    /// A new one, valid for `days`, as files to keep and ready for use.
    ///
    /// # Errors
    /// Where no key can be made.
    pub fn new(name: &str, days: u32) -> Result<(Self, Pair)> {
        let key = new_key()?;
        let ends = in_days(days)?;
        let mut params = params(name, Vec::new(), ends)?;
        // It signs what clients and servers show, and no other authority.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).context("make a certificate")?.pem();
        let pair = Pair {
            certificate: certificate.clone(),
            key: key.serialize_pem(),
            ends,
        };
        let authority = Self {
            issuer: Issuer::new(params, key),
            certificate,
            ends,
        };
        Ok((authority, pair))
    }

    /// One that was made before.
    ///
    /// # Errors
    /// For files that do not fit each other; [`Error::is_expired`] for one that is too old.
    pub fn from_pem(certificate: String, key: &str) -> Result<Self> {
        let key = KeyPair::from_pem(key).context("read the private key")?;
        let ends = parsed(&certificate, |parsed| {
            if *parsed.public_key().subject_public_key.data != *key.public_key_raw() {
                return Err(Error::new("the private key is not that of the certificate"));
            }
            if !parsed.is_ca() {
                return Err(Error::new("the certificate is not one of an authority"));
            }
            end_of(parsed)
        })?;
        if ends <= Timestamp::now() {
            return Err(Error::expired(format!(
                "the authority's certificate expired on {ends}"
            )));
        }
        let issuer = Issuer::from_ca_cert_pem(&certificate, key).context("read the certificate")?;
        Ok(Self {
            issuer,
            certificate,
            ends,
        })
    }

    /// Its certificate as PEM, for whoever is to trust it.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// A pair for a server that clients reach under `hosts`: DNS names and IP addresses.
    ///
    /// # Errors
    /// For hosts that cannot be in a certificate.
    pub fn server(&self, hosts: &[String], days: u32) -> Result<Pair> {
        let name = hosts.iter().find(|host| host.len() <= COMMON_NAME_MAX);
        let name = name.map_or("smc", String::as_str);
        self.pair(name, hosts.to_vec(), ExtendedKeyUsagePurpose::ServerAuth, days)
    }

    /// A pair for a client.
    ///
    /// # Errors
    /// Where no key can be made.
    pub fn client(&self, name: &str, days: u32) -> Result<Pair> {
        self.pair(name, Vec::new(), ExtendedKeyUsagePurpose::ClientAuth, days)
    }

    /// A certificate for a client that has made its key itself. Of its request (PEM), only the key is used.
    ///
    /// # Errors
    /// For what is no request, or one that is not signed with its own key.
    pub fn sign(&self, name: &str, request: &str, days: u32) -> Result<String> {
        let ends = in_days(days)?.min(self.ends);
        let mut asked = CertificateSigningRequestParams::from_pem(request).context("read the request")?;
        asked.params = pair_params(name, Vec::new(), ExtendedKeyUsagePurpose::ClientAuth, ends)?;
        Ok(asked.signed_by(&self.issuer).context("sign a certificate")?.pem())
    }

    /// Valid no longer than the authority itself.
    fn pair(
        &self,
        name: &str,
        hosts: Vec<String>,
        purpose: ExtendedKeyUsagePurpose,
        days: u32,
    ) -> Result<Pair> {
        let ends = in_days(days)?.min(self.ends);
        let params = pair_params(name, hosts, purpose, ends)?;
        let key = new_key()?;
        let signed = params
            .signed_by(&key, &self.issuer)
            .context("sign a certificate")?;
        Ok(Pair {
            certificate: signed.pem(),
            key: key.serialize_pem(),
            ends,
        })
    }
}

fn pair_params(
    name: &str,
    hosts: Vec<String>,
    purpose: ExtendedKeyUsagePurpose,
    ends: Timestamp,
) -> Result<CertificateParams> {
    let mut params = params(name, hosts, ends)?;
    params.is_ca = IsCa::ExplicitNoCa;
    // No cipher suite of today needs the second one, but QEMU refuses a certificate without it.
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyEncipherment,
    ];
    params.extended_key_usages = vec![purpose];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// The hosts for which a certificate was made.
///
/// # Errors
/// For what is no certificate.
pub fn hosts(certificate: &str) -> Result<Vec<String>> {
    parsed(certificate, |parsed| {
        let names = parsed
            .subject_alternative_name()
            .context("read the names of hosts")?;
        let names = names.map_or(&[][..], |names| &names.value.general_names);
        Ok(names.iter().filter_map(host).collect())
    })
}

fn host(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => <[u8; 4]>::try_from(*bytes)
            .map(IpAddr::from)
            .or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from))
            .ok()
            .map(|address| address.to_string()),
        _ => None,
    }
}

/// ECDSA on P-256: what every TLS library of the last ten years can do.
fn new_key() -> Result<KeyPair> {
    KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).context("make a private key")
}

fn params(name: &str, hosts: Vec<String>, ends: Timestamp) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(hosts).context("name the hosts")?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "smc");
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = wall_clock(Timestamp::now() - CLOCKS_BEHIND);
    params.not_after = wall_clock(ends);
    Ok(params)
}

fn wall_clock(time: Timestamp) -> OffsetDateTime {
    SystemTime::from(time).into()
}

/// To the second, which is as exact as a certificate.
fn in_days(days: u32) -> Result<Timestamp> {
    let span = SignedDuration::from_hours(24 * i64::from(days));
    let ends = Timestamp::now().checked_add(span).context("add so many days")?;
    Timestamp::from_second(ends.as_second()).context("add so many days")
}

/// When a certificate (PEM) expires.
///
/// # Errors
/// For what is no certificate.
pub fn valid_until(certificate: &str) -> Result<Timestamp> {
    parsed(certificate, end_of)
}

fn end_of(certificate: &X509Certificate<'_>) -> Result<Timestamp> {
    let seconds = certificate.validity().not_after.timestamp();
    Timestamp::from_second(seconds).context("read when the certificate expires")
}

/// What `look` finds in a certificate.
fn parsed<T>(certificate: &str, look: impl FnOnce(&X509Certificate<'_>) -> Result<T>) -> Result<T> {
    let (_, pem) = parse_x509_pem(certificate.as_bytes()).context("read the certificate")?;
    let (_, parsed) = X509Certificate::from_der(&pem.contents).context("read the certificate")?;
    look(&parsed)
}
