//! TLS to the coordinator, with files that are read for each connection.

use std::{fs, future::Future, io, path::Path, pin::Pin, sync::Arc};

use anyhow::{Context as _, ensure};
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};
use tokio::{net::TcpStream, task::spawn_blocking};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::Uri;
use tower::{Service, service_fn};

use crate::config::Credentials;

type Connection = TokioIo<TlsStream<TcpStream>>;
type Connecting = Pin<Box<dyn Future<Output = io::Result<Connection>> + Send>>;

/// The address as the transport is to see it, which has no part in TLS here.
pub(super) fn plain(uri: &Uri) -> Uri {
    let authority = uri
        .authority()
        .filter(|_| uri.scheme_str() == Some("https"));
    let plain = authority.map(|authority| {
        let port = authority.port_u16().unwrap_or(443);
        format!("http://{}:{port}", authority.host()).parse()
    });
    plain.and_then(Result::ok).unwrap_or_else(|| uri.clone())
}

/// Connects to the coordinator in TLS. Fails at once, naming the setting, when
/// a file cannot be used.
pub(super) fn connector(
    uri: &Uri,
    credentials: &Credentials,
) -> anyhow::Result<
    impl Service<Uri, Response = Connection, Error = io::Error, Future = Connecting> + Send + use<>,
> {
    let host = uri.host().unwrap_or_default();
    // IPv6 stands in brackets in a URL, and nowhere else.
    let name =
        ServerName::try_from(host.trim_matches(['[', ']']).to_owned()).with_context(|| {
            format!("--coordinator (WEIR_COORDINATOR): {host:?} is no name that a certificate has")
        })?;
    let address = format!("{host}:{}", uri.port_u16().unwrap_or(443));
    client_config(credentials)?;
    let credentials = Arc::new(credentials.clone());
    Ok(service_fn(move |_| -> Connecting {
        let (credentials, name, address) =
            (Arc::clone(&credentials), name.clone(), address.clone());
        Box::pin(async move {
            let config = spawn_blocking(move || client_config(&credentials))
                .await
                .map_err(io::Error::other)?
                // In one line, for whoever asks for the cause asks for the deepest.
                .map_err(|error| io::Error::other(format!("{error:#}")))?;
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            let connector = TlsConnector::from(Arc::new(config));
            let stream = connector.connect(name, stream).await.map_err(explained)?;
            Ok(TokioIo::new(stream))
        })
    }))
}

/// Says what is most likely wrong where TLS itself does not.
fn explained(error: io::Error) -> io::Error {
    use rustls::{Error, InvalidMessage};
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref());
    match cause {
        Some(Error::InvalidMessage(InvalidMessage::InvalidContentType)) => {
            io::Error::other("the coordinator does not speak TLS there: use http://")
        }
        Some(cause) => io::Error::other(format!("no connection in TLS: {cause}")),
        None => error,
    }
}

fn client_config(credentials: &Credentials) -> anyhow::Result<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots(credentials.ca_file.as_deref())?);
    let identity = credentials
        .client_cert
        .as_deref()
        .zip(credentials.client_key.as_deref());
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some((cert, key)) => {
            let chain = certificates("--client-cert (WEIR_CLIENT_CERT)", cert)?;
            let key = private_key("--client-key (WEIR_CLIENT_KEY)", key)?;
            builder.with_client_auth_cert(chain, key).context(
                "--client-cert (WEIR_CLIENT_CERT): certificate and key do not belong together",
            )?
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

fn roots(file: Option<&Path>) -> anyhow::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    let Some(file) = file else {
        // Some of a system's may be of a kind that is not understood; the others do.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        return Ok(roots);
    };
    let setting = "--ca-file (WEIR_CA_FILE)";
    for authority in certificates(setting, file)? {
        roots
            .add(authority)
            .with_context(|| format!("{setting}: {}", file.display()))?;
    }
    Ok(roots)
}

fn certificates(setting: &str, path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let pem = read(setting, path)?;
    let found = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<Vec<_>, _>>()
        .with_context(|| format!("{setting}: {}", path.display()))?;
    ensure!(
        !found.is_empty(),
        "{setting}: there is no certificate in PEM in {}",
        path.display()
    );
    Ok(found)
}

fn private_key(setting: &str, path: &Path) -> anyhow::Result<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_slice(&read(setting, path)?)
        .with_context(|| format!("{setting}: there is no key in PEM in {}", path.display()))
}

fn read(setting: &str, path: &Path) -> anyhow::Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("{setting}: cannot read {}", path.display()))
}
