//! The address of the database, as its setting says it.

use std::str::FromStr as _;

use sqlx::postgres::PgConnectOptions;
use tracing::warn;

/// Parameters of a URL that say how to connect.
const KNOWN: [&str; 18] = [
    "application_name",
    "dbname",
    "host",
    "hostaddr",
    "options",
    "password",
    "port",
    "ssl-ca",
    "ssl-cert",
    "ssl-key",
    "ssl-mode",
    "ssl-root-cert",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslrootcert",
    "statement-cache-capacity",
    "user",
];

/// Returns how to connect, or `None` where this is no URL of a Postgres. What it
/// says besides is told by name, for the value may be a secret.
pub(super) fn options(url: &str) -> Option<PgConnectOptions> {
    if !["postgres://", "postgresql://"]
        .iter()
        .any(|it| url.starts_with(it))
    {
        return None;
    }
    let (place, query) = url.split_once('?').unwrap_or((url, ""));
    let (known, others): (Vec<_>, Vec<_>) = query.split('&').partition(|it| is_known(name(it)));
    let options = PgConnectOptions::from_str(&format!("{place}?{}", known.join("&"))).ok()?;
    // What is behind an unescaped sign of a password is no parameter.
    let is_plain =
        |it: &&str| !it.is_empty() && it.bytes().all(|it| it.is_ascii_lowercase() || it == b'_');
    for parameter in others.into_iter().map(name).filter(is_plain) {
        warn!(
            parameter,
            "A parameter of --database-url (WEIR_DATABASE_URL) is not known, and ignored."
        );
    }
    Some(options)
}

fn name(parameter: &str) -> &str {
    parameter
        .split_once('=')
        .map_or(parameter, |(name, _)| name)
}

fn is_known(name: &str) -> bool {
    KNOWN.contains(&name) || name.starts_with("options[")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_is_taken_and_the_rest_is_not() {
        let found = options(
            "postgres://user@host:1/db?application_name=a&sslmode=require&sslpassword=hunter2\
             &options[a.b]=c&sslrootcert=f&channel_binding=require",
        );
        let found = found.unwrap();
        assert_eq!((found.get_host(), found.get_port()), ("host", 1));
        assert_eq!(found.get_database(), Some("db"));
        assert_eq!(found.get_application_name(), Some("a"));
        assert_eq!(found.get_options(), Some("-c a.b=c"));
        for url in [
            "",
            "host",
            "mysql://host/db",
            "postgres://host:port/db",
            "postgres://h/?port=p",
        ] {
            assert!(options(url).is_none(), "{url}");
        }
    }
}
