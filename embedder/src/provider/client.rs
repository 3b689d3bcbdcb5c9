//! The HTTP client of a server: its time, its proxy and whom it trusts.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use reqwest::{Certificate, Client, Proxy, Url};
use weir_proto::secret::is_loopback;

use crate::{Address, Profile};

/// Longest wait for a connection; a server that is there answers far sooner.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Makes the client that calls `url`. Fails, naming the setting, where the
/// authorities or the proxy cannot be used.
pub(super) fn client(profile: &Profile, url: &Url) -> anyhow::Result<Client> {
    // Without a process-wide provider reqwest cannot build a client. An
    // error means that there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = Client::builder();
    let is_here = url.host_str().is_some_and(is_loopback);
    if is_here {
        // A proxy of the environment could not reach it.
        builder = builder.no_proxy();
    }
    if is_here && url.scheme() == "http" {
        // Nothing goes in TLS: the authorities of the system need not be read.
        builder = builder.tls_certs_only([]);
    }
    if let Some(proxy) = &profile.proxy {
        builder = builder.proxy(explicit(profile, proxy, is_here)?);
    }
    if let Some(path) = &profile.ca_file {
        let setting = || {
            format!(
                "{} of ca-file of the profile of {}",
                path.display(),
                profile.name
            )
        };
        let pem = std::fs::read(path).with_context(|| format!("cannot read {}", setting()))?;
        let authorities = Certificate::from_pem_bundle(&pem).unwrap_or_default();
        ensure!(
            !authorities.is_empty(),
            "{} holds no certificate in PEM",
            setting()
        );
        builder = builder.tls_certs_merge(authorities);
    }
    builder
        .timeout(profile.timeout)
        // Less than the whole, so that a server that cannot be reached is
        // told from one that is slow.
        .connect_timeout(CONNECT_TIMEOUT.min(profile.timeout / 2))
        // A redirected POST would send texts and the key to another host.
        .redirect(reqwest::redirect::Policy::none())
        .user_agent(concat!("weir/", env!("CARGO_PKG_VERSION")))
        .build()
        .context("cannot set up HTTP")
}

fn explicit(profile: &Profile, proxy: &Address, is_here: bool) -> anyhow::Result<Proxy> {
    let setting = format!("proxy of the profile of {}", profile.name);
    // What is said to stay on this machine, and may go without TLS, would leave it.
    ensure!(
        !is_here,
        "{setting} is set, but its server is on this machine, which no proxy can reach: unset one"
    );
    Proxy::all(proxy.as_str()).with_context(|| format!("{setting} cannot be used"))
}
