//! The target's authority and its own certificate, made at the first start and kept in the state directory.

use crate::registry::private_file;
use anyhow::{Context, Result};
use certs::{Authority, Pair};
use remote::tls;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

/// How long certificates of sources are good; they are renewed after two thirds of that.
pub const SOURCE_DAYS: u32 = 90;
const AUTHORITY_DAYS: u32 = 7300;

/// Key and certificate of the authority.
#[derive(Serialize, Deserialize)]
struct Kept {
    certificate: String,
    key: String,
}

/// Signs, and shows what it has signed for the target itself.
#[derive(Debug)]
pub struct Identity {
    /// Signs the certificates of sources.
    pub authority: Authority,
    /// The target's own pair.
    pub target: Pair,
}

impl Identity {
    /// Reads the authority, or makes one where there is none.
    ///
    /// # Errors
    /// Files that cannot be read, written or used.
    pub fn open(state_dir: &Path) -> Result<Identity> {
        let path = state_dir.join("authority.json");
        let kept: Kept = match fs::read(&path) {
            Ok(bytes) => {
                serde_json::from_slice(&bytes).with_context(|| format!("{} is damaged", path.display()))?
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => make(state_dir, &path)?,
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        };
        let authority = Authority::from_pem(kept.certificate, &kept.key)
            .with_context(|| format!("{} cannot be used", path.display()))?;
        // The key is only in memory: each start makes another one.
        let target = authority.server(&[tls::TARGET_NAME.to_owned()], AUTHORITY_DAYS)?;
        Ok(Identity { authority, target })
    }

    /// What TLS is made of.
    ///
    /// # Errors
    /// Certificates that cannot be used.
    pub fn tls(&self) -> Result<std::sync::Arc<rustls::ServerConfig>> {
        let Pair { certificate, key, .. } = &self.target;
        Ok(tls::of_target(self.authority.certificate(), certificate, key)?)
    }
}

fn make(state_dir: &Path, path: &Path) -> Result<Kept> {
    let (_, pair) = Authority::new("smc target", AUTHORITY_DAYS)?;
    let kept = Kept {
        certificate: pair.certificate,
        key: pair.key,
    };
    let written = || -> Result<()> {
        let mut file = private_file(state_dir)?;
        file.write_all(&serde_json::to_vec(&kept)?)?;
        file.as_file().sync_all()?;
        // Two that start at once: one of them fails, and finds the other one's when it starts again.
        file.persist_noclobber(path)?;
        Ok(File::open(state_dir)?.sync_all()?)
    };
    written().with_context(|| format!("write {}", path.display()))?;
    Ok(kept)
}
