//! The API key, read again when its file changes.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use anyhow::{Context as _, ensure};
use reqwest::header::HeaderValue;
use tracing::{info, warn};
use weir_proto::secret::is_open_to_all;

const SETTING: &str = "--embedder-api-key-file (WEIR_EMBEDDER_API_KEY_FILE)";

/// A key in a file.
pub(super) struct ApiKey {
    path: PathBuf,
    current: Mutex<Current>,
}

struct Current {
    /// When the file was written and how long it was; `None` where it is gone.
    stamp: Option<(SystemTime, u64)>,
    header: HeaderValue,
}

impl ApiKey {
    /// Fails, naming the setting, when the file holds no key.
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        let stamp = stamp(path);
        let current = Current {
            stamp,
            header: read(path)?,
        };
        if is_open_to_all(path) {
            warn!(path = %path.display(), "Every user of this machine can read the embedder's API key: chmod 600.");
        }
        Ok(Self {
            path: path.to_owned(),
            current: Mutex::new(current),
        })
    }

    /// The value of the authorization header. Its debug output does not show
    /// the key.
    pub(super) fn header(&self) -> HeaderValue {
        let mut current = self.current();
        // A look at one small file: no need to leave the thread for it.
        let stamp = stamp(&self.path);
        if stamp != current.stamp {
            current.stamp = stamp;
            self.reload(&mut current);
        }
        current.header.clone()
    }

    /// The same after the server refused `header`; `None` where the file still
    /// holds no other.
    pub(super) fn other_than(&self, header: &HeaderValue) -> Option<HeaderValue> {
        let mut current = self.current();
        if current.header == header {
            self.reload(&mut current);
        }
        (current.header != header).then(|| current.header.clone())
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        // Nothing that holds this can leave it half done.
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reload(&self, current: &mut Current) {
        match read(&self.path) {
            Ok(header) if header == current.header => {}
            Ok(header) => {
                info!(path = %self.path.display(), "The embedder's API key has changed.");
                current.header = header;
            }
            Err(error) => {
                let error = format!("{error:#}");
                warn!(
                    error,
                    "The embedder's API key cannot be read again; using the last one."
                );
            }
        }
    }
}

fn stamp(path: &Path) -> Option<(SystemTime, u64)> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

fn read(path: &Path) -> anyhow::Result<HeaderValue> {
    let shown = path.display();
    let key = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read {shown} of {SETTING}"))?;
    let key = key.trim();
    ensure!(!key.is_empty(), "{shown} of {SETTING} is empty");
    let mut header = HeaderValue::from_str(&format!("Bearer {key}"))
        .map_err(|_| anyhow::anyhow!("{shown} of {SETTING} must hold one line of visible ASCII"))?;
    header.set_sensitive(true);
    Ok(header)
}
