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
};

const SETTING: &str = "--token-file (WEIR_TOKEN_FILE)";

/// Puts the token of a file on each call; nothing where there is none.
#[derive(Debug, Clone)]
pub(crate) struct Token {
    path: Option<PathBuf>,
}

impl Token {
    /// Fails, naming the setting, when the file holds no token.
    pub(super) fn open(path: Option<&Path>) -> anyhow::Result<Self> {
        path.map(read).transpose()?;
        Ok(Self {
            path: path.map(Path::to_owned),
        })
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
