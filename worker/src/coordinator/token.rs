//! The worker's token, read with each call.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::Interceptor,
    transport::Uri,
};
use tracing::warn;
use weir_proto::secret;

use crate::config::Credentials;

const SETTING: &str = "--token-file (WEIR_TOKEN_FILE)";

/// Puts the token of a file on each call; nothing where there is none.
#[derive(Debug, Clone)]
pub(crate) struct Token {
    path: Option<PathBuf>,
}

impl Token {
    /// The token for calls to `coordinator`. Fails, naming the setting, when the
    /// file holds none, or whoever is on the way could read it.
    pub(super) fn open(credentials: &Credentials, coordinator: &Uri) -> anyhow::Result<Self> {
        let path = credentials.token_file.clone();
        if let Some(path) = &path {
            read(path)?;
            let (scheme, host) = (coordinator.scheme_str(), coordinator.host());
            ensure!(
                credentials.insecure_token || secret::is_kept_on_the_way(scheme, host),
                "{SETTING}: the token would go to {coordinator} for all on the way to read: use https://, or say \
                 --insecure-token (WEIR_INSECURE_TOKEN)"
            );
            if secret::is_open_to_all(path) {
                warn!(path = %path.display(), "Every user of this machine can read the worker's token: chmod 600.");
            }
        }
        Ok(Self { path })
    }
}

impl Interceptor for Token {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(path) = &self.path {
            // A small file, once a call and not once a message: no need to leave the thread for it.
            let token =
                read(path).map_err(|error| Status::unauthenticated(format!("{error:#}")))?;
            request.metadata_mut().insert("authorization", token);
        }
        Ok(request)
    }
}

fn read(path: &Path) -> anyhow::Result<MetadataValue<Ascii>> {
    let text = fs::read_to_string(path)
        .with_context(|| format!("{SETTING}: cannot read {}", path.display()))?;
    let token = text.trim();
    ensure!(
        !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic()),
        "{SETTING}: {} must hold a token and nothing else",
        path.display()
    );
    let mut value: MetadataValue<Ascii> = format!("Bearer {token}").parse()?;
    // Its debug output does not show it.
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_not_sent_for_all_to_read() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "weir_secret").unwrap();
        let mut credentials = Credentials {
            token_file: Some(file.path().to_owned()),
            ..Credentials::default()
        };
        let elsewhere = Uri::from_static("http://weir.example:7400");
        for kept in ["http://127.0.0.1:7400", "https://weir.example:7400"] {
            Token::open(&credentials, &Uri::from_static(kept)).unwrap();
        }
        let refused = Token::open(&credentials, &elsewhere).unwrap_err();
        let told = refused.to_string();
        assert!(
            told.contains("--insecure-token (WEIR_INSECURE_TOKEN)"),
            "{told}"
        );
        assert!(!told.contains("weir_secret"), "{told}");
        credentials.insecure_token = true;
        Token::open(&credentials, &elsewhere).unwrap();
        // Without a token there is nothing to keep.
        Token::open(&Credentials::default(), &elsewhere).unwrap();
    }
}
