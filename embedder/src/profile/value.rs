//! The values that settings of a profile may have, in flags as in a file.

use std::time::Duration;

use reqwest::header::HeaderName;
use weir_proto::limits::MAX_MODEL_CHARS;

use super::Address;

/// Most texts that a call may be allowed.
pub(crate) const MAX_BATCH_SIZE: i64 = weir_proto::limits::MAX_BATCH_SIZE as i64;
/// Most calls at a time that may be allowed.
pub(crate) const MAX_CONCURRENCY: i64 = 256;

/// Texts in a call where nothing is said.
pub(super) const BATCH_SIZE: u32 = 32;
/// Estimated tokens in a call where nothing is said.
pub(super) const BATCH_TOKENS: u32 = 16_384;
/// Calls at a time where nothing is said.
pub(super) const CONCURRENCY: u32 = 4;
/// How long a call may take where nothing is said.
pub(super) const TIMEOUT: Duration = Duration::from_mins(5);

/// Longest time that a call may be given.
const MAX_TIMEOUT: Duration = Duration::from_hours(24);

/// Headers that belong to the HTTP client.
const NOT_TO_BE_SET: [&str; 8] = [
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "host",
    "te",
    "transfer-encoding",
    "upgrade",
];

/// Checks the name of a model.
pub fn model_name(text: &str) -> Result<(), String> {
    let chars = text.chars().count();
    if text.trim() != text || chars == 0 || chars > MAX_MODEL_CHARS {
        return Err(format!(
            "a model's name has 1 to {MAX_MODEL_CHARS} characters, and no white space around it"
        ));
    }
    if text.chars().any(|it| it.is_control() || it == ',') {
        return Err("a model's name has no comma and no control characters".to_owned());
    }
    Ok(())
}

/// Reads the address of a proxy.
pub(crate) fn proxy(text: &str) -> Result<Address, String> {
    let proxy: Address = text.parse()?;
    if !matches!(proxy.path(), "" | "/") || proxy.query().is_some() {
        return Err("it must end after host and port".to_owned());
    }
    Ok(proxy)
}

/// Reads the name of the header that carries the key.
pub(crate) fn header_name(text: &str) -> Result<String, String> {
    let name = HeaderName::try_from(text)
        .map_err(|_| "a header's name is of letters, digits and hyphens".to_owned())?;
    if NOT_TO_BE_SET.contains(&name.as_str()) {
        return Err(format!("the header {name} belongs to the HTTP client"));
    }
    Ok(name.as_str().to_owned())
}

/// Reads how long a call may take.
pub(crate) fn timeout(text: &str) -> Result<Duration, String> {
    let timeout = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if timeout.is_zero() || timeout > MAX_TIMEOUT {
        return Err("it must be more than zero and at most a day".to_owned());
    }
    Ok(timeout)
}
