//! How tokens and keys are kept secret: rules that all programs go by.

use std::{ffi::OsStr, fmt, net::IpAddr, path::Path};

use clap::{
    Arg, Command,
    builder::TypedValueParser,
    error::ErrorKind::{InvalidUtf8, ValueValidation},
};

/// Whether nobody on the way can read what is sent to this scheme and host: by
/// TLS, or because it never leaves the machine. Hosts of IPv6 may have their
/// brackets.
pub fn is_kept_on_the_way(scheme: Option<&str>, host: Option<&str>) -> bool {
    scheme == Some("https") || host.is_some_and(is_loopback)
}

/// Whether what goes to this host stays on the machine. A name that would have to
/// be looked up does not, but for `localhost`.
pub fn is_loopback(host: &str) -> bool {
    let host = host.trim_matches(['[', ']']);
    host.eq_ignore_ascii_case("localhost") || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

/// Whether every user of the machine can read this file. Nothing is said of its
/// group, through which Kubernetes hands secrets to a pod; a file that cannot be
/// looked at is for whoever reads it to complain of.
pub fn is_open_to_all(path: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::metadata(path).is_ok_and(|file| file.permissions().mode() & 0o004 != 0)
    }
    #[cfg(not(unix))]
    {
        let _ = path;
        false
    }
}

/// Shows a URL, or what was meant for one, without what may be a secret: user and
/// password, and the query.
pub fn shown(url: &str) -> String {
    let (scheme, rest) = match url.split_once("://") {
        Some((scheme, rest)) => (format!("{scheme}://"), rest),
        None => (String::new(), url),
    };
    // A password may hold anything where nobody escaped it.
    let (user, rest) = match rest.rsplit_once('@') {
        Some((_, rest)) => ("…@", rest),
        None => ("", rest),
    };
    let (place, query) = match rest.find(['?', '#']) {
        Some(at) => (&rest[..at], "?…"),
        None => (rest, ""),
    };
    format!("{scheme}{user}{place}{query}")
}

/// The text of a URL that may hold a secret. It is shown without.
#[derive(Clone, PartialEq, Eq)]
pub struct UrlText(String);

impl UrlText {
    /// Returns all of it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<String> for UrlText {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Display for UrlText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&shown(&self.0))
    }
}

impl fmt::Debug for UrlText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Reads the URL of a setting on the command line or in the environment. The
/// message about one that cannot be it shows no secret.
#[derive(Debug, Clone, Copy)]
pub struct UrlParser<T>(pub fn(&str) -> Result<T, String>);

impl<T: Clone + Send + Sync + 'static> TypedValueParser for UrlParser<T> {
    type Value = T;

    fn parse_ref(
        &self,
        command: &Command,
        setting: Option<&Arg>,
        value: &OsStr,
    ) -> Result<T, clap::Error> {
        let text = value
            .to_str()
            .ok_or_else(|| clap::Error::new(InvalidUtf8).with_cmd(command))?;
        (self.0)(text).map_err(|what| {
            let setting = setting.map(ToString::to_string).unwrap_or_default();
            let message = format!("invalid value '{}' for '{setting}': {what}\n", shown(text));
            clap::Error::raw(ValueValidation, message).with_cmd(command)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stays_here_or_is_encrypted_is_kept() {
        for (scheme, host, kept) in [
            ("https", "weir.example", true),
            ("http", "127.0.0.1", true),
            ("http", "127.9.9.9", true),
            ("http", "[::1]", true),
            ("http", "::1", true),
            ("http", "LocalHost", true),
            ("http", "weir.example", false),
            ("http", "10.0.0.1", false),
            ("http", "0.0.0.0", false),
            ("http", "127.example", false),
            ("http", "localhost.example", false),
            ("http", "[::2]", false),
            ("http", "", false),
            ("HTTPS", "weir.example", false),
        ] {
            let found = is_kept_on_the_way(Some(scheme), Some(host));
            assert_eq!(found, kept, "{scheme}://{host}");
        }
        assert!(!is_kept_on_the_way(None, None));
    }

    #[test]
    fn a_url_is_shown_without_what_may_be_secret() {
        for (url, expected) in [
            ("http://host:1/path", "http://host:1/path"),
            ("http://user:p@ss/w?rd@host:1/path", "http://…@host:1/path"),
            ("https://key@host?a=b@c", "https://…@c"),
            ("postgres://host/db?password=p", "postgres://host/db?…"),
            ("http://host/#p", "http://host/?…"),
            ("user:p@host", "…@host"),
            ("localhost:7400", "localhost:7400"),
            ("", ""),
        ] {
            assert_eq!(shown(url), expected, "{url}");
            let text = UrlText::from(url.to_owned());
            assert_eq!(format!("{text} {text:?}"), format!("{expected} {expected}"));
        }
    }
}
