//! Where a server is asked: the addresses that the setting may mean.

use anyhow::{Context as _, bail, ensure};
use reqwest::Url;
use weir_proto::secret::is_kept_on_the_way;

use super::secrets::is_secret;
use crate::{EmbedderKind, Profile};

const SETTING: &str = "--embedder-url (WEIR_EMBEDDER_URL)";
const OLLAMA: &str = "http://127.0.0.1:11434";

/// The addresses that texts may be sent to, the likeliest first. There is more
/// than one where it takes a probe to know.
pub(super) fn addresses(profile: &Profile) -> anyhow::Result<Vec<Url>> {
    let kind = profile.provider;
    let url = match (&profile.url, kind) {
        (Some(url), _) => Url::clone(url),
        (None, EmbedderKind::Ollama) => Url::parse(OLLAMA)?,
        (None, _) => None.with_context(|| format!("{SETTING} is not set"))?,
    };
    check(profile, &url)?;
    let path = url.path().trim_end_matches('/');
    let last = path.rsplit('/').next().unwrap_or_default();
    // What many write at the end, though it belongs to another of its APIs.
    let before = path.strip_suffix("/v1").unwrap_or(path);
    let is_whole = url.query().is_some() || path.ends_with("/embeddings");
    let paths = match kind {
        _ if is_whole => return Ok(vec![url]),
        EmbedderKind::Tei if last == "embed" => return Ok(vec![url]),
        EmbedderKind::Tei => vec![format!("{before}/embed")],
        EmbedderKind::Ollama => {
            let before = path.strip_suffix("/api/embed").unwrap_or(before);
            let before = before.strip_suffix("/api").unwrap_or(before);
            vec![
                format!("{before}/api/embed"),
                format!("{before}/api/embeddings"),
            ]
        }
        _ if path.is_empty() => vec!["/v1/embeddings".to_owned()],
        _ if last == "v1" => vec![format!("{path}/embeddings")],
        _ => vec![
            format!("{path}/embeddings"),
            format!("{path}/v1/embeddings"),
        ],
    };
    let at = |path: String| {
        let mut url = url.clone();
        url.set_path(&path);
        url
    };
    Ok(paths.into_iter().map(at).collect())
}

/// Refuses a secret that all on the way to this address could read.
fn check(profile: &Profile, url: &Url) -> anyhow::Result<()> {
    if profile.insecure_key || is_kept_on_the_way(Some(url.scheme()), url.host_str()) {
        return Ok(());
    }
    let to = shown(url);
    let to = format!(
        "would go to http://{}{to} for all on the way to read: use https://, or say \
         --insecure-embedder-api-key (WEIR_INSECURE_EMBEDDER_API_KEY)",
        url.host_str().unwrap_or_default()
    );
    ensure!(
        profile.key_file.is_none(),
        "--embedder-api-key-file (WEIR_EMBEDDER_API_KEY_FILE): the key {to}"
    );
    let mut headers = profile.headers.iter();
    if let Some((name, _)) = headers.find(|(name, value)| is_secret(name, value)) {
        bail!("headers.{name} of the profile of {} {to}", profile.name);
    }
    Ok(())
}

/// The path of an address for a message. The values of a query may be keys.
pub(super) fn shown(url: &Url) -> String {
    let names: Vec<String> = url
        .query_pairs()
        .map(|(name, _)| format!("{name}=…"))
        .collect();
    match names.as_slice() {
        [] => url.path().to_owned(),
        names => format!("{}?{}", url.path(), names.join("&")),
    }
}

/// What an address, and the proxies of the environment, hold that may be a secret:
/// the values of a query, and passwords.
pub(super) fn secrets(url: &Url) -> Vec<String> {
    let values = url.query_pairs().filter(|(name, _)| name != "api-version");
    let values = values.map(|(_, value)| value.into_owned());
    let is_proxy = |name: &str| name.to_ascii_lowercase().ends_with("_proxy");
    let proxies = std::env::vars_os().filter_map(|(name, value)| {
        let proxy = Some(value.to_str()?).filter(|_| is_proxy(&name.to_string_lossy()))?;
        Some(Url::parse(proxy).ok()?.password()?.to_owned())
    });
    values.chain(proxies).collect()
}
