//! Certificates of an authority that a test makes itself.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd,
};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use tokio_rustls::TlsAcceptor;
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

/// An authority, and a folder that everything it issues is written to.
#[derive(Debug)]
pub struct Authority {
    folder: tempfile::TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate and its key, in files.
#[derive(Debug, Clone)]
pub struct Issued {
    /// The certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl Issued {
    /// Takes connections with it.
    pub fn acceptor(&self) -> TlsAcceptor {
        let certs = CertificateDer::pem_file_iter(&self.cert).unwrap();
        let certs = certs.map(Result::unwrap).collect();
        let key = PrivateKeyDer::from_pem_file(&self.key).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(certs, key)
            .unwrap();
        TlsAcceptor::from(Arc::new(config))
    }
}

impl Authority {
    /// Makes one.
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        // Each has a name of its own, by which it is looked for.
        let name = format!("authority {:x}", rand::random::<u64>());
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("ca.pem"), issuer.pem()).unwrap();
        Self { folder, issuer }
    }

    /// Its own certificate.
    pub fn ca(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// Issues a certificate for 127.0.0.1 and localhost, and writes it to files
    /// of this name; those of an earlier one are replaced.
    pub fn issue(&self, name: &str) -> Issued {
        self.issue_until(name, 2100, &["127.0.0.1", "localhost"])
    }

    /// Issues one for another name than those by which tests call.
    pub fn issue_elsewhere(&self, name: &str) -> Issued {
        self.issue_until(name, 2100, &["elsewhere.example"])
    }

    /// Issues one that has expired long ago.
    pub fn issue_expired(&self, name: &str) -> Issued {
        self.issue_until(name, 2001, &["127.0.0.1", "localhost"])
    }

    fn issue_until(&self, name: &str, year: i32, names: &[&str]) -> Issued {
        let names = names.iter().map(|&name| name.to_owned());
        let mut params = CertificateParams::new(names.collect::<Vec<_>>()).unwrap();
        params.not_before = date_time_ymd(2000, 1, 1);
        params.not_after = date_time_ymd(year, 1, 1);
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        let issued = Issued {
            cert: self.folder.path().join(format!("{name}.pem")),
            key: self.folder.path().join(format!("{name}.key")),
        };
        fs::write(&issued.cert, cert.pem()).unwrap();
        fs::write(&issued.key, key.serialize_pem()).unwrap();
        issued
    }

    /// How a client that trusts this authority connects, with a certificate of
    /// its own or without.
    pub fn client(&self, own: Option<&Issued>) -> ClientTlsConfig {
        let trusting =
            ClientTlsConfig::new().ca_certificate(Certificate::from_pem(text(&self.ca())));
        match own {
            None => trusting,
            Some(own) => trusting.identity(Identity::from_pem(text(&own.cert), text(&own.key))),
        }
    }
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}

/// A path as an environment variable has it.
pub fn text_of(path: &Path) -> &str {
    path.to_str().expect("a temporary folder's path is text")
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}
