//! What a request carries so that the server lets it in: the API key and further
//! headers, read again when their files change.

use std::{
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use anyhow::{Context as _, ensure};
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use tracing::{info, warn};
use weir_proto::secret::is_open_to_all;

use crate::{HeaderSource, Profile};

/// What stands before a key in the header that is made for it.
const BEARER: &str = "Bearer ";

/// The headers of a profile.
pub(super) struct Credentials {
    /// Those whose value is in the profile.
    fixed: HeaderMap,
    files: Vec<SecretFile>,
}

impl Credentials {
    /// Fails, naming the setting, when a file cannot be used.
    pub(super) fn open(profile: &Profile) -> anyhow::Result<Self> {
        let mut fixed = HeaderMap::new();
        let mut files = Vec::new();
        for (name, value) in &profile.headers {
            let setting = format!("headers.{name} of the profile of {}", profile.name);
            let name = header_name(name).with_context(|| setting.clone())?;
            match value {
                HeaderSource::Value(value) => {
                    let mut value = HeaderValue::from_str(value)
                        .ok()
                        .with_context(|| format!("{setting} must be one line of visible ASCII"))?;
                    value.set_sensitive(true);
                    fixed.insert(name, value);
                }
                HeaderSource::File(path) => {
                    files.push(SecretFile::open(setting, name, "", path)?);
                }
            }
        }
        if let Some(path) = &profile.key_file {
            let setting = "--embedder-api-key-file (WEIR_EMBEDDER_API_KEY_FILE)".to_owned();
            let name = header_name(&profile.key_header)
                .with_context(|| format!("key-header of the profile of {}", profile.name))?;
            let before = if name == AUTHORIZATION { BEARER } else { "" };
            files.push(SecretFile::open(setting, name, before, path)?);
        }
        Ok(Self { fixed, files })
    }

    /// The headers of a request. Their debug output shows no value.
    pub(super) fn headers(&self) -> HeaderMap {
        let mut headers = self.fixed.clone();
        for file in &self.files {
            headers.insert(file.name.clone(), file.value());
        }
        headers
    }

    /// The same after the server refused `sent`; `None` where the files still
    /// hold no other.
    pub(super) fn other_than(&self, sent: &HeaderMap) -> Option<HeaderMap> {
        for file in &self.files {
            file.read_again();
        }
        let headers = self.headers();
        (headers != *sent).then_some(headers)
    }

    /// The values among these headers that no message may show.
    pub(super) fn secrets(&self, sent: &HeaderMap) -> Vec<String> {
        let names = self.files.iter().map(|file| &file.name);
        let telling = self.fixed.keys().filter(|name| tells_secret(name.as_str()));
        let values = names.chain(telling).filter_map(|name| sent.get(name));
        let values = values.filter_map(|value| value.to_str().ok());
        let bare = |value: &str| value.strip_prefix(BEARER).unwrap_or(value).to_owned();
        values.map(bare).collect()
    }
}

/// Whether nobody may read this header: its value is in a file, or the name
/// tells that it is a secret.
pub(super) fn is_secret(name: &str, value: &HeaderSource) -> bool {
    matches!(value, HeaderSource::File(_)) || tells_secret(name)
}

fn tells_secret(name: &str) -> bool {
    const WORDS: [&str; 5] = ["authorization", "key", "token", "secret", "cookie"];
    let name = name.to_ascii_lowercase();
    WORDS.iter().any(|word| name.contains(word))
}

fn header_name(name: &str) -> anyhow::Result<HeaderName> {
    let found = HeaderName::from_bytes(name.as_bytes());
    found
        .ok()
        .with_context(|| format!("{name:?} is no name of a header"))
}

/// A header whose value is in a file.
struct SecretFile {
    /// Where the file is named.
    setting: String,
    name: HeaderName,
    /// What the value begins with before that which is in the file.
    before: &'static str,
    path: PathBuf,
    current: Mutex<Current>,
}

struct Current {
    /// When the file was written and how long it was; `None` where it is gone.
    stamp: Option<(SystemTime, u64)>,
    value: HeaderValue,
}

impl SecretFile {
    fn open(
        setting: String,
        name: HeaderName,
        before: &'static str,
        path: &Path,
    ) -> anyhow::Result<Self> {
        let stamp = stamp(path);
        let value = read(&setting, path, before)?;
        if is_open_to_all(path) {
            warn!(path = %path.display(), "Every user of this machine can read this secret of the embedder: chmod 600.");
        }
        Ok(Self {
            setting,
            name,
            before,
            path: path.to_owned(),
            current: Mutex::new(Current { stamp, value }),
        })
    }

    fn value(&self) -> HeaderValue {
        let mut current = self.current();
        // A look at one small file: no need to leave the thread for it.
        let stamp = stamp(&self.path);
        if stamp != current.stamp {
            current.stamp = stamp;
            self.reload(&mut current);
        }
        current.value.clone()
    }

    fn read_again(&self) {
        self.reload(&mut self.current());
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        // Nothing that holds this can leave it half done.
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reload(&self, current: &mut Current) {
        let path = self.path.display();
        match read(&self.setting, &self.path, self.before) {
            Ok(value) if value == current.value => {}
            Ok(value) => {
                info!(%path, "A secret of the embedder has changed.");
                current.value = value;
            }
            Err(error) => {
                let error = format!("{error:#}");
                warn!(error, %path, "A secret of the embedder cannot be read again; using the last one.");
            }
        }
    }
}

fn stamp(path: &Path) -> Option<(SystemTime, u64)> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

fn read(setting: &str, path: &Path, before: &str) -> anyhow::Result<HeaderValue> {
    let shown = path.display();
    let secret = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read {shown} of {setting}"))?;
    let secret = secret.trim();
    ensure!(!secret.is_empty(), "{shown} of {setting} is empty");
    let mut value = HeaderValue::from_str(&format!("{before}{secret}"))
        .map_err(|_| anyhow::anyhow!("{shown} of {setting} must hold one line of visible ASCII"))?;
    value.set_sensitive(true);
    Ok(value)
}
