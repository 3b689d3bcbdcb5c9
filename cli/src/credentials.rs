//! How the command line and the coordinator know each other: TLS, and a token.

use std::{
    fs,
    path::{Path, PathBuf},
};

use clap::Args;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::Interceptor,
    transport::{Certificate, ClientTlsConfig, Identity, Uri},
};
use weir_proto::secret::is_kept_on_the_way;

use crate::failure::Failure;

const CA_FILE: &str = "--ca-file (WEIR_CA_FILE)";
const CLIENT_CERT: &str = "--client-cert (WEIR_CLIENT_CERT)";
const CLIENT_KEY: &str = "--client-key (WEIR_CLIENT_KEY)";
const TOKEN_FILE: &str = "--token-file (WEIR_TOKEN_FILE)";

/// How the coordinator is known, and who we are to it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub(crate) struct Credentials {
    /// Authorities of the coordinator's certificate, in PEM; by default the system's.
    #[arg(long, global = true, env = "WEIR_CA_FILE", value_name = "FILE")]
    pub(crate) ca_file: Option<PathBuf>,
    /// Certificate chain to show to the coordinator, in PEM.
    #[arg(
        long,
        global = true,
        env = "WEIR_CLIENT_CERT",
        value_name = "FILE",
        requires = "client_key"
    )]
    pub(crate) client_cert: Option<PathBuf>,
    /// Private key of that certificate, in PEM.
    #[arg(
        long,
        global = true,
        env = "WEIR_CLIENT_KEY",
        value_name = "FILE",
        requires = "client_cert"
    )]
    pub(crate) client_key: Option<PathBuf>,
    /// File with the token that says who we are; read with each call.
    #[arg(long, global = true, env = "WEIR_TOKEN_FILE", value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// Send the token in plain text, for whoever is on the way to read.
    #[arg(long, global = true, env = "WEIR_INSECURE_TOKEN")]
    pub(crate) insecure_token: bool,
}

impl Credentials {
    /// What TLS to the coordinator needs. Fails, naming the setting, when a
    /// file cannot be used.
    pub(crate) fn tls(&self) -> Result<ClientTlsConfig, Failure> {
        let mut tls = ClientTlsConfig::new();
        tls = match &self.ca_file {
            Some(path) => tls.ca_certificate(Certificate::from_pem(certificates(CA_FILE, path)?)),
            None => tls.with_enabled_roots(),
        };
        if let (Some(cert), Some(key)) = (&self.client_cert, &self.client_key) {
            let chain = certificates(CLIENT_CERT, cert)?;
            let pem = read(CLIENT_KEY, key)?;
            PrivateKeyDer::from_pem_slice(&pem)
                .map_err(|_| unusable(CLIENT_KEY, key, "holds no key in PEM"))?;
            tls = tls.identity(Identity::from_pem(chain, pem));
        }
        Ok(tls)
    }

    /// The token for calls to `coordinator`. Fails, naming the setting, when
    /// there is none in the file, or whoever is on the way could read it.
    pub(crate) fn token(&self, coordinator: &Uri) -> Result<Token, Failure> {
        let Some(path) = &self.token_file else {
            return Ok(Token::default());
        };
        read_token(path).map_err(Failure::Usage)?;
        let kept = is_kept_on_the_way(coordinator.scheme_str(), coordinator.host());
        if !kept && !self.insecure_token {
            return Err(Failure::Usage(format!(
                "{TOKEN_FILE}: the token would go to {coordinator} for all on the way to read: use https://, or say \
                 --insecure-token (WEIR_INSECURE_TOKEN)"
            )));
        }
        Ok(Token {
            path: Some(path.clone()),
        })
    }
}

/// Puts the token of a file on each call; nothing where there is none. The
/// file may be replaced at any time.
#[derive(Debug, Clone, Default)]
pub(crate) struct Token {
    path: Option<PathBuf>,
}

impl Interceptor for Token {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(path) = &self.path {
            let token = read_token(path).map_err(Status::unauthenticated)?;
            request.metadata_mut().insert("authorization", token);
        }
        Ok(request)
    }
}

fn read_token(path: &Path) -> Result<MetadataValue<Ascii>, String> {
    let at = path.display();
    let text = fs::read_to_string(path)
        .map_err(|error| format!("{TOKEN_FILE}: {at} cannot be read: {error}"))?;
    let token = text.trim();
    let fault = || format!("{TOKEN_FILE}: {at} must hold a token and nothing else");
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(fault());
    }
    let value: Result<MetadataValue<Ascii>, _> = format!("Bearer {token}").parse();
    let mut value = value.map_err(|_| fault())?;
    // Its debug output does not show it.
    value.set_sensitive(true);
    Ok(value)
}

fn certificates(setting: &str, path: &Path) -> Result<Vec<u8>, Failure> {
    let pem = read(setting, path)?;
    let mut found = CertificateDer::pem_slice_iter(&pem).peekable();
    if found.peek().is_none() || found.any(|certificate| certificate.is_err()) {
        return Err(unusable(setting, path, "holds no certificates in PEM"));
    }
    Ok(pem)
}

fn read(setting: &str, path: &Path) -> Result<Vec<u8>, Failure> {
    fs::read(path).map_err(|error| unusable(setting, path, &format!("cannot be read: {error}")))
}

fn unusable(setting: &str, path: &Path, what: &str) -> Failure {
    Failure::Usage(format!("{setting}: {} {what}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_token(text: &str) -> (tempfile::TempDir, Credentials) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        fs::write(&path, text).unwrap();
        let credentials = Credentials {
            token_file: Some(path),
            ..Credentials::default()
        };
        (folder, credentials)
    }

    #[test]
    fn a_token_is_not_sent_for_all_to_read() {
        let (_folder, mut credentials) = with_token("secret\n");
        let refused = |credentials: &Credentials, uri: &str| {
            let token = credentials.token(&uri.parse().unwrap());
            token.err().map(|failure| failure.to_string())
        };
        for uri in [
            "http://127.0.0.1:7400",
            "http://[::1]:7400",
            "http://localhost:7400",
            "https://weir.example",
        ] {
            assert_eq!(refused(&credentials, uri), None, "{uri}");
        }
        for uri in [
            "http://weir.example",
            "http://10.0.0.1:7400",
            "http://127.example",
        ] {
            let told = refused(&credentials, uri).unwrap();
            assert!(told.contains("--insecure-token"), "{told}");
            assert!(!told.contains("secret"), "{told}");
        }
        credentials.insecure_token = true;
        assert_eq!(refused(&credentials, "http://weir.example"), None);
    }

    #[test]
    fn each_call_reads_the_token_anew() {
        let (folder, credentials) = with_token(" one \n");
        let mut token = credentials
            .token(&Uri::from_static("http://[::1]"))
            .unwrap();
        let mut sent = || {
            let request = token.call(Request::new(()));
            request.map(|request| {
                let value = request.metadata().get("authorization").unwrap();
                (value.to_str().unwrap().to_owned(), format!("{value:?}"))
            })
        };
        let (value, shown) = sent().unwrap();
        assert_eq!(value, "Bearer one");
        assert!(!shown.contains("one"), "{shown}");
        let path = folder.path().join("token");
        fs::write(&path, "two").unwrap();
        assert_eq!(sent().unwrap().0, "Bearer two");
        fs::write(&path, "two words").unwrap();
        let status = sent().unwrap_err();
        assert!(status.message().contains(TOKEN_FILE), "{status:?}");
        assert!(!status.message().contains("two"), "{status:?}");
    }

    #[test]
    fn files_that_hold_something_else_are_refused_by_setting() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "nothing of use").unwrap();
        let file = || Some(path.clone());
        let missing = Some(folder.path().join("missing"));
        let none = Credentials::default;
        for (credentials, setting) in [
            (
                Credentials {
                    ca_file: file(),
                    ..none()
                },
                CA_FILE,
            ),
            (
                Credentials {
                    ca_file: missing.clone(),
                    ..none()
                },
                CA_FILE,
            ),
            (
                Credentials {
                    client_cert: file(),
                    client_key: file(),
                    ..none()
                },
                CLIENT_CERT,
            ),
        ] {
            let told = credentials.tls().unwrap_err().to_string();
            assert!(told.starts_with(setting), "{told}");
        }
        let lost = Credentials {
            token_file: missing,
            ..none()
        };
        let told = lost.token(&Uri::from_static("https://a")).unwrap_err();
        assert!(told.to_string().starts_with(TOKEN_FILE), "{told}");
        none().tls().unwrap();
    }
}
