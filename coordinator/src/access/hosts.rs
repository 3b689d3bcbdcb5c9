//! Names of hosts, as settings, requests and browsers give them.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
    str::FromStr,
};

/// Longest name, in characters.
/// <https://www.rfc-editor.org/rfc/rfc1035#section-2.3.4>
const MAX_NAME_CHARS: usize = 253;

/// A host, and its port where one is named. Equal hosts are written alike:
/// names in small letters without a final dot, addresses in one form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    name: Name,
    port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Name {
    Dns(String),
    Address(IpAddr),
}

impl Host {
    /// Whether it is this machine, by its address or as `localhost`.
    pub(crate) fn is_loopback(&self) -> bool {
        match &self.name {
            Name::Dns(name) => name == "localhost",
            Name::Address(address) => address.is_loopback(),
        }
    }

    /// An address, at any port.
    pub(crate) fn at(address: IpAddr) -> Self {
        let name = Name::Address(address.to_canonical());
        Self { name, port: None }
    }

    /// Whether it is this address.
    pub(crate) fn is_at(&self, address: IpAddr) -> bool {
        Self::at(address).covers(self)
    }

    /// Whether this, as a setting has it, stands for `other`: one without a
    /// port is of all ports.
    pub(crate) fn covers(&self, other: &Self) -> bool {
        self.name == other.name && (self.port.is_none() || self.port == other.port)
    }

    /// Whether both are the same, with `default` for a port that is not named.
    pub(crate) fn is(&self, other: &Self, default: u16) -> bool {
        let port = |host: &Self| host.port.unwrap_or(default);
        self.name == other.name && port(self) == port(other)
    }
}

impl FromStr for Host {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, port) = split(text)?;
        let port = port.map(port_of).transpose()?;
        let name = match name.strip_prefix('[') {
            Some(address) => Name::Address(address_of(address)?),
            None => name_of(name)?,
        };
        Ok(Self { name, port })
    }
}

/// Name and port; an address of IPv6 keeps its opening bracket.
fn split(text: &str) -> Result<(&str, Option<&str>), String> {
    if text.contains("://") {
        return Err("it is a URL: give the host alone, as weir.example".to_owned());
    }
    if text.starts_with('[') {
        let (address, rest) = text
            .split_once(']')
            .ok_or("the bracket of its address is not closed")?;
        return match rest.strip_prefix(':') {
            None if rest.is_empty() => Ok((address, None)),
            None => Err(format!("{rest:?} follows its address")),
            port => Ok((address, port)),
        };
    }
    match text.split_once(':') {
        Some((_, port)) if port.contains(':') => Err(
            "it is neither a host nor host:port; an address of IPv6 goes in brackets".to_owned(),
        ),
        Some((name, port)) => Ok((name, Some(port))),
        None => Ok((text, None)),
    }
}

fn port_of(text: &str) -> Result<u16, String> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let port = text.parse().ok().filter(|port| digits && *port > 0);
    port.ok_or_else(|| format!("its port {text:?} is none: a number from 1 to 65535"))
}

fn address_of(text: &str) -> Result<IpAddr, String> {
    let address: Result<Ipv6Addr, _> = text.parse();
    let address = address.map_err(|_| format!("{text:?} is no address of IPv6"))?;
    Ok(IpAddr::V6(address).to_canonical())
}

fn name_of(text: &str) -> Result<Name, String> {
    let name = text.strip_suffix('.').unwrap_or(text);
    if let Ok(address) = name.parse() {
        return Ok(Name::Address(IpAddr::V4(address)));
    }
    if name.contains('*') {
        return Err("patterns are not taken: give each name".to_owned());
    }
    if name.is_empty() {
        return Err("it names no host".to_owned());
    }
    let allowed = |char: char| char.is_ascii_alphanumeric() || matches!(char, '-' | '_' | '.');
    if !name.chars().all(allowed) || name.split('.').any(str::is_empty) {
        return Err(
            "it is no name of a host: give it as weir.example or weir.example:7400".to_owned(),
        );
    }
    if name.len() > MAX_NAME_CHARS {
        return Err(format!("it is longer than {MAX_NAME_CHARS} characters"));
    }
    Ok(Name::Dns(name.to_ascii_lowercase()))
}

impl fmt::Display for Host {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Name::Dns(name) => to.write_str(name)?,
            Name::Address(IpAddr::V4(address)) => address.fmt(to)?,
            Name::Address(IpAddr::V6(address)) => write!(to, "[{address}]")?,
        }
        self.port.map_or(Ok(()), |port| write!(to, ":{port}"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn hosts_are_read_in_one_form() {
        for (text, read) in [
            ("localhost", "localhost"),
            ("LocalHost.:7400", "localhost:7400"),
            ("weir_coordinator.shop", "weir_coordinator.shop"),
            ("127.0.0.1:80", "127.0.0.1:80"),
            ("127.0.0.1.", "127.0.0.1"),
            ("[::1]", "[::1]"),
            ("[0:0:0:0:0:0:0:1]:1", "[::1]:1"),
            ("[::ffff:127.0.0.1]", "127.0.0.1"),
        ] {
            let host: Host = text.parse().unwrap();
            assert_eq!(host.to_string(), read, "{text}");
        }
        for (text, told) in [
            ("", "no host"),
            (".", "no host"),
            (":80", "no host"),
            ("*", "patterns"),
            ("*.example", "patterns"),
            ("http://weir.example", "URL"),
            ("weir.example/", "no name"),
            ("me@localhost", "no name"),
            ("local host", "no name"),
            (" localhost", "no name"),
            ("a..b", "no name"),
            ("löcal", "no name"),
            ("%6cocalhost", "no name"),
            ("localhost:", "port"),
            ("localhost:+80", "port"),
            ("localhost:0", "port"),
            ("localhost:65536", "port"),
            ("::1", "brackets"),
            ("[::1", "not closed"),
            ("[::1]x", "follows"),
            ("[localhost]", "no address"),
            ("[127.0.0.1]", "no address"),
        ] {
            let error = text.parse::<Host>().unwrap_err();
            assert!(error.contains(told), "{text}: {error}");
        }
        let long = ["a"; 128].join(".");
        assert!(long.parse::<Host>().unwrap_err().contains("longer"));
    }

    #[test]
    fn only_this_machine_is_loopback() {
        let loopback = |text: &str| text.parse::<Host>().unwrap().is_loopback();
        for text in [
            "localhost",
            "LOCALHOST.:1",
            "127.0.0.1",
            "127.9.9.9",
            "[::1]:7400",
            "[::ffff:127.0.0.1]",
        ] {
            assert!(loopback(text), "{text}");
        }
        // Browsers take other spellings of an address for that address, and never send them.
        for text in [
            "localhost.evil.example",
            "a.localhost",
            "127.0.0.1.evil.example",
            "127.1",
            "2130706433",
            "0x7f.1",
            "0.0.0.0",
            "128.0.0.1",
            "[::]",
            "[::2]",
        ] {
            assert!(!loopback(text), "{text}");
        }
    }

    #[test]
    fn a_port_that_is_not_named_is_any_for_a_setting_and_the_default_for_an_origin() {
        let host = |text: &str| text.parse::<Host>().unwrap();
        let (any, one) = (host("weir.example"), host("weir.example:7400"));
        assert!(any.covers(&any) && any.covers(&one) && one.covers(&one));
        assert!(!one.covers(&any) && !one.covers(&host("weir.example:7401")));
        assert!(!any.covers(&host("eir.example")) && !any.covers(&host("x.weir.example")));
        assert!(any.is(&host("weir.example:443"), 443) && !any.is(&host("weir.example:443"), 80));
        assert!(host("[::1]:1").is_at("::1".parse().unwrap()));
        assert!(host("10.0.0.1").is_at("::ffff:10.0.0.1".parse().unwrap()));
        assert!(!host("ten.example").is_at("10.0.0.1".parse().unwrap()));
    }

    proptest! {
        #[test]
        fn whatever_is_read_is_read_the_same_again(text in "\\PC*|[a-z0-9.:\\[\\]-]{0,12}") {
            if let Ok(host) = text.parse::<Host>() {
                prop_assert_eq!(host.to_string().parse::<Host>(), Ok(host));
            }
        }
    }
}
