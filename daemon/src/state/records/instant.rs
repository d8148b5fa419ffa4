//! How a run came to one instant: the record of the image, and what the API shows. Their fields are the same.

use api::{RunFrozen, RunInstant, RunPass};
use imagefmt::{FrozenRecord, InstantRecord, PassRecord};

/// As the API shows it.
pub fn instant_view(record: InstantRecord) -> RunInstant {
    let pass = |pass: PassRecord| RunPass {
        bytes: pass.bytes,
        dirty_bytes: pass.dirty_bytes,
        flush_ms: pass.flush_ms,
    };
    let frozen = |frozen: FrozenRecord| RunFrozen {
        mount_point: frozen.mount_point,
        fs_type: frozen.fs_type,
        freezing_us: frozen.freezing_us,
    };
    RunInstant {
        passes: record.passes.into_iter().map(pass).collect(),
        held_us: record.held_us,
        freezing_us: record.freezing_us,
        filesystems: record.filesystems.into_iter().map(frozen).collect(),
        left_out: record.left_out,
    }
}

/// As it is recorded.
pub(super) fn instant_record(view: RunInstant) -> InstantRecord {
    let pass = |pass: RunPass| PassRecord {
        bytes: pass.bytes,
        dirty_bytes: pass.dirty_bytes,
        flush_ms: pass.flush_ms,
    };
    let frozen = |frozen: RunFrozen| FrozenRecord {
        mount_point: frozen.mount_point,
        fs_type: frozen.fs_type,
        freezing_us: frozen.freezing_us,
    };
    InstantRecord {
        passes: view.passes.into_iter().map(pass).collect(),
        held_us: view.held_us,
        freezing_us: view.freezing_us,
        filesystems: view.filesystems.into_iter().map(frozen).collect(),
        left_out: view.left_out,
    }
}
