//! How tokens and keys are kept secret: rules that all programs go by.

use std::{net::IpAddr, path::Path};

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
}
