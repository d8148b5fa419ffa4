//! TLS 1.3 between sources and targets: both show certificates of the target's authority.

use crate::error::{Error, ErrorKind, Result};
use ring::digest;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use std::sync::Arc;
use x509_parser::prelude::{FromDer, X509Certificate};

/// The name in the certificate of every target, whatever address it is reached at: what tells targets apart is who signed it.
pub const TARGET_NAME: &str = "smc-store";

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn unusable(what: &str, error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(ErrorKind::Invalid, format!("{what} cannot be used for TLS")).caused_by(error)
}

fn certificates(what: &str, pem: &str) -> Result<Vec<CertificateDer<'static>>> {
    let read = CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<std::result::Result<Vec<_>, _>>();
    read.map_err(|error| unusable(what, error))
}

fn key(what: &str, pem: &str) -> Result<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|error| unusable(what, error))
}

fn roots(authority: &str) -> Result<Arc<RootCertStore>> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates("the authority's certificate", authority)? {
        roots
            .add(certificate)
            .map_err(|error| unusable("the authority's certificate", error))?;
    }
    Ok(Arc::new(roots))
}

/// What the target encrypts with. Sources without a certificate are let in, to be enrolled.
///
/// # Errors
/// `Invalid` for what cannot be used. All three are PEM.
pub fn of_target(authority: &str, certificate: &str, private_key: &str) -> Result<Arc<ServerConfig>> {
    let what = "the target's certificate";
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(authority)?, provider())
        .allow_unauthenticated()
        .build()
        .map_err(|error| unusable(what, error))?;
    let mut chain = certificates(what, certificate)?;
    // A source that has only the hash of the authority's key finds the authority here.
    chain.extend(certificates(what, authority)?);
    let config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| unusable(what, error))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key(what, private_key)?)
        .map_err(|error| unusable(what, error))?;
    Ok(Arc::new(config))
}

/// What a source encrypts with that is known to the target.
///
/// # Errors
/// `Invalid` for what cannot be used. All three are PEM.
pub fn of_source(authority: &str, certificate: &str, private_key: &str) -> Result<Arc<ClientConfig>> {
    let what = "this machine's certificate for the target";
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| unusable(what, error))?
        .with_root_certificates(roots(authority)?)
        .with_client_auth_cert(certificates(what, certificate)?, key(what, private_key)?)
        .map_err(|error| unusable(what, error))?;
    Ok(Arc::new(config))
}

/// What a source encrypts with that knows no more of the target than the hash of its authority's key.
///
/// # Errors
/// `Invalid` where TLS cannot be used at all.
pub fn of_invited(authority: [u8; 32]) -> Result<Arc<ClientConfig>> {
    let pinned = Arc::new(Pinned {
        authority,
        provider: provider(),
    });
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| unusable("TLS", error))?
        .dangerous()
        .with_custom_certificate_verifier(pinned)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// The name that certificates of targets are checked for.
pub(crate) fn target_name() -> ServerName<'static> {
    ServerName::DnsName(
        rustls::pki_types::DnsName::try_from(TARGET_NAME)
            .unwrap_or_else(|_| unreachable!("it is a DNS name")),
    )
}

/// SHA-256 of a certificate's key.
///
/// # Errors
/// `Invalid` for what is no certificate.
pub fn key_hash(certificate: &[u8]) -> Result<[u8; 32]> {
    let (_, parsed) =
        X509Certificate::from_der(certificate).map_err(|error| unusable("the certificate", error))?;
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, parsed.public_key().raw).as_ref());
    Ok(hash)
}

/// SHA-256 of the key of a certificate in PEM.
///
/// # Errors
/// `Invalid` for what is no certificate.
pub fn key_hash_of_pem(pem: &str) -> Result<[u8; 32]> {
    let found = certificates("the certificate", pem)?;
    let first = found.first();
    key_hash(first.ok_or_else(|| Error::invalid("there is no certificate"))?)
}

/// Trusts the authority whose key has a hash, if the target shows it.
#[derive(Debug)]
struct Pinned {
    authority: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        let is_pinned =
            |shown: &&CertificateDer<'_>| key_hash(shown).is_ok_and(|hash| hash == self.authority);
        let authority = intermediates.iter().find(is_pinned);
        let authority = authority.ok_or(rustls::Error::InvalidCertificate(
            rustls::CertificateError::UnknownIssuer,
        ))?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        let provider = Arc::clone(&self.provider);
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build();
        let verifier = verifier.map_err(|error| rustls::Error::General(error.to_string()))?;
        verifier.verify_server_cert(end_entity, intermediates, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("only TLS 1.3 is spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
