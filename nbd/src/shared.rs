//! What all connections of a server share.

use std::sync::Arc;

use tokio::sync::{Semaphore, watch};

use crate::buffer::Spares;
use crate::pool::Pool;
use crate::{Catalog, Limits};

/// How far a server's shutdown has got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    Serving,
    /// Nothing new is begun.
    Draining,
    /// The grace time is over.
    Closing,
}

/// What all connections share.
pub(crate) struct Shared {
    pub(crate) catalog: Arc<dyn Catalog>,
    pub(crate) limits: Limits,
    pub(crate) pool: Pool,
    /// One permit for each byte of reply, or of data to be written, that may be held.
    pub(crate) memory: Arc<Semaphore>,
    pub(crate) spares: Arc<Spares>,
    pub(crate) stage: watch::Receiver<Stage>,
}

impl Shared {
    pub(crate) fn is_draining(&self) -> bool {
        *self.stage.borrow() >= Stage::Draining
    }

    /// Waits for a stage. Never returns if the server is gone, which ends the caller with it.
    pub(crate) async fn reached(&self, stage: Stage) {
        let mut watched = self.stage.clone();
        if watched.wait_for(|now| *now >= stage).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
