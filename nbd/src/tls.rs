//! TLS by rustls: what to encrypt with, and one connection's session over a stream.
//!
//! rustls does no I/O. Reader and writer of a connection are two tasks on one thread; each
//! borrows the session for moments, never across an await, and takes turns at the socket, so
//! that records leave in the order in which they were made.

use std::cell::RefCell;
use std::fmt;
use std::io::{self, Read, Write};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection};
use tokio::sync::Mutex;

use crate::driver::Stream;
use crate::{ErrorKind, ServeError};

/// Encrypted bytes read at once: a few records of at most 16 KiB.
const INPUT_BYTES: usize = 64 << 10;
/// Plain bytes encrypted at once.
const OUTPUT_BYTES: usize = 256 << 10;

/// With what a listener encrypts, and whom it lets in. Clients without a certificate of the CA are
/// turned away, and so is everything in the clear but STARTTLS.
#[derive(Clone)]
pub struct Tls(Arc<ServerConfig>);

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").finish_non_exhaustive()
    }
}

impl Tls {
    /// Reads `ca-cert.pem`, `server-cert.pem`, `server-key.pem` and, if it exists, the revocation
    /// list `ca-crl.pem` from a directory: the names that QEMU and libnbd use. The files are not
    /// needed afterwards.
    ///
    /// # Errors
    /// When a file is missing or unusable, named in the error, and when they do not work together.
    pub fn from_directory(directory: &Path) -> Result<Self, ServeError> {
        let path = |name: &str| directory.join(name);
        let roots = certificates(&path("ca-cert.pem"))?;
        let chain = certificates(&path("server-cert.pem"))?;
        let key_path = path("server-key.pem");
        let key = PrivateKeyDer::from_pem_file(&key_path).map_err(|error| unusable(&key_path, &error))?;
        let revoked = revocations(&path("ca-crl.pem"))?;
        Self::new(roots, chain, key, revoked).map_err(|error| {
            let text = format!("the TLS files in {} do not work together", directory.display());
            ServeError::new(ErrorKind::InvalidInput, format!("{text}: {error}"))
        })
    }

    fn new(
        roots: Vec<CertificateDer<'static>>,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        revoked: Vec<CertificateRevocationListDer<'static>>,
    ) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut trusted = RootCertStore::empty();
        for root in roots {
            trusted.add(root)?;
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(trusted), Arc::clone(&provider))
            .with_crls(revoked)
            .build()?;
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)?;
        Ok(Self(Arc::new(config)))
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, ServeError> {
    let read = || CertificateDer::pem_file_iter(path)?.collect::<Result<Vec<_>, _>>();
    let found = read().map_err(|error| unusable(path, &error))?;
    if found.is_empty() {
        let text = format!("{} holds no certificate", path.display());
        return Err(ServeError::new(ErrorKind::InvalidInput, text));
    }
    Ok(found)
}

fn revocations(path: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, ServeError> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let read = || CertificateRevocationListDer::pem_file_iter(path)?.collect::<Result<_, _>>();
    read().map_err(|error| unusable(path, &error))
}

fn unusable(path: &Path, error: &rustls::pki_types::pem::Error) -> ServeError {
    let text = format!("cannot use {} for TLS", path.display());
    ServeError::new(ErrorKind::InvalidInput, format!("{text}: {error}"))
}

/// One connection's TLS.
pub(crate) struct Session {
    connection: RefCell<ServerConnection>,
    /// Encrypted input that has not been decrypted yet.
    input: RefCell<(Vec<u8>, Range<usize>)>,
    /// Whose turn it is to write to the socket.
    turn: Mutex<()>,
}

impl Session {
    pub(crate) fn new(tls: &Tls) -> io::Result<Self> {
        let mut connection = ServerConnection::new(Arc::clone(&tls.0)).map_err(io::Error::other)?;
        connection.set_buffer_limit(Some(OUTPUT_BYTES));
        Ok(Self {
            connection: RefCell::new(connection),
            input: RefCell::new((vec![0; INPUT_BYTES], 0..0)),
            turn: Mutex::new(()),
        })
    }

    /// The certificate that the client has shown, in DER.
    pub(crate) fn certificate(&self) -> Option<Arc<[u8]>> {
        let connection = self.connection.borrow();
        let shown = connection.peer_certificates()?.first()?;
        Some(Arc::from(&**shown))
    }

    /// Reads decrypted bytes to `buffer[range]`; 0 at the end of the stream. Answers what belongs
    /// to TLS itself on the way. A call that is dropped takes the input with it.
    pub(crate) async fn read(&self, stream: &Stream, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.connection.borrow_mut().reader().read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // The client closed without saying so in TLS; whether anything is missing, the
                // protocol above knows.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
                read => return read,
            }
            let decrypted = self.decrypt();
            // An alert that says why goes out as well.
            self.flush(stream).await?;
            if !decrypted? && !self.receive(stream).await? {
                return Ok(0);
            }
        }
    }

    /// Decrypts some of the input that is there; false if there is none. Not more than the
    /// session takes before it is read from.
    fn decrypt(&self) -> io::Result<bool> {
        let (bytes, range) = &mut *self.input.borrow_mut();
        let mut rest = bytes.get(range.clone()).unwrap_or_default();
        if rest.is_empty() {
            return Ok(false);
        }
        let connection = &mut *self.connection.borrow_mut();
        connection.read_tls(&mut rest)?;
        *range = range.end - rest.len()..range.end;
        connection
            .process_new_packets()
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        Ok(true)
    }

    /// Waits for input; false at the end of the stream.
    async fn receive(&self, stream: &Stream) -> io::Result<bool> {
        let (bytes, _) = std::mem::take(&mut *self.input.borrow_mut());
        let length = bytes.len();
        let (result, bytes) = stream.read(bytes, 0..length).await;
        let count = *result.as_ref().unwrap_or(&0);
        *self.input.borrow_mut() = (bytes, 0..count);
        Ok(result? > 0)
    }

    /// Encrypts and writes all of `plain`.
    pub(crate) async fn write(&self, stream: &Stream, mut plain: &[u8]) -> io::Result<()> {
        let _turn = self.turn.lock().await;
        while !plain.is_empty() {
            let taken = self.connection.borrow_mut().writer().write(plain)?;
            plain = plain.get(taken..).unwrap_or_default();
            self.send(stream).await?;
        }
        Ok(())
    }

    /// Tells the client that nothing more follows.
    pub(crate) async fn close(&self, stream: &Stream) -> io::Result<()> {
        self.connection.borrow_mut().send_close_notify();
        self.flush(stream).await
    }

    async fn flush(&self, stream: &Stream) -> io::Result<()> {
        if !self.connection.borrow().wants_write() {
            return Ok(());
        }
        let _turn = self.turn.lock().await;
        self.send(stream).await
    }

    /// Writes the records that are ready; the caller has the turn.
    async fn send(&self, stream: &Stream) -> io::Result<()> {
        let mut records = Vec::new();
        while self.connection.borrow().wants_write() {
            self.connection.borrow_mut().write_tls(&mut records)?;
        }
        let length = records.len();
        stream.write(records, 0..length).await.0
    }
}
