//! The configuration file and its profiles, and what follows from them, the
//! flags and the environment together.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use etcetera::{BaseStrategy as _, choose_base_strategy};
use serde::Deserialize;
use weir_proto::secret::UrlText;

use crate::{args::Global, credentials::Credentials, failure::Failure};

const DEFAULT_COORDINATOR: &str = "http://127.0.0.1:7400";
const DEFAULT_NAMESPACE: &str = "default";

/// What a command needs to know to talk to a coordinator.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// Where it is.
    pub(crate) coordinator: UrlText,
    /// The namespace of the sources.
    pub(crate) namespace: String,
    /// How it is known, and who we are to it.
    pub(crate) credentials: Credentials,
    /// Whether output is JSON.
    pub(crate) json: bool,
}

/// The configuration file.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    default_profile: Option<String>,
    #[serde(default)]
    profile: BTreeMap<String, Profile>,
}

/// Settings under a name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Profile {
    coordinator: Option<String>,
    namespace: Option<String>,
    ca_file: Option<PathBuf>,
    client_cert: Option<PathBuf>,
    client_key: Option<PathBuf>,
    token_file: Option<PathBuf>,
}

impl Settings {
    /// Flags and variables before the profile, the profile before what is
    /// built in. Fails, naming file and key, when the file cannot be used.
    pub(crate) fn of(global: &Global) -> Result<Self, Failure> {
        let (_, profile) = profile(global)?;
        let given = &global.credentials;
        // A certificate and its key come from one place.
        let (client_cert, client_key) = if given.client_cert.is_some() {
            (given.client_cert.clone(), given.client_key.clone())
        } else {
            (profile.client_cert, profile.client_key)
        };
        Ok(Self {
            coordinator: global
                .coordinator
                .clone()
                .or(profile.coordinator.map(Into::into))
                .unwrap_or_else(|| DEFAULT_COORDINATOR.to_owned().into()),
            namespace: global
                .namespace
                .clone()
                .or(profile.namespace)
                .unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned()),
            credentials: Credentials {
                ca_file: given.ca_file.clone().or(profile.ca_file),
                client_cert,
                client_key,
                token_file: given.token_file.clone().or(profile.token_file),
                insecure_token: given.insecure_token,
            },
            json: global.json,
        })
    }
}

/// Which file and profile apply, in words.
pub(crate) fn describe(global: &Global) -> Result<String, Failure> {
    let (place, _) = profile(global)?;
    Ok(place)
}

/// Where the settings come from, in words, and the profile that applies; an
/// empty one where none does.
fn profile(global: &Global) -> Result<(String, Profile), Failure> {
    let (path, named) = match &global.config {
        Some(path) => (path.clone(), true),
        None => match choose_base_strategy() {
            Ok(base) => (base.config_dir().join("weir").join("config.toml"), false),
            // Without a home there is no file in it.
            Err(_) => (PathBuf::new(), false),
        },
    };
    let at = path.display();
    let (file, place) = match fs::read_to_string(&path) {
        Ok(text) => (parse(&text, &path)?, at.to_string()),
        Err(error) if error.kind() == io::ErrorKind::NotFound && !named => {
            (File::default(), format!("no file at {at}"))
        }
        Err(error) => {
            return Err(Failure::Usage(format!(
                "the configuration file {at} (--config, WEIR_CONFIG) cannot be read: {error}"
            )));
        }
    };
    let Some(wanted) = global.profile.as_ref().or(file.default_profile.as_ref()) else {
        return Ok((format!("{place}, no profile"), Profile::default()));
    };
    let Some(profile) = file.profile.get(wanted) else {
        let known: Vec<&str> = file.profile.keys().map(String::as_str).collect();
        return Err(Failure::Usage(format!(
            "there is no profile {wanted:?} (--profile, WEIR_PROFILE, default-profile) in the configuration \
             file {at}; it has {}",
            if known.is_empty() {
                "none".to_owned()
            } else {
                known.join(", ")
            }
        )));
    };
    let folder = path.parent().unwrap_or(Path::new(""));
    Ok((
        format!("{place}, profile {wanted}"),
        profile.clone().beside(folder),
    ))
}

/// Reads the file. Fails naming file, line and key.
fn parse(text: &str, path: &Path) -> Result<File, Failure> {
    let fault = |what: String| {
        Failure::Usage(format!(
            "the configuration file {}{what}; see \"The command line\" in the README",
            path.display()
        ))
    };
    let file: File = toml::from_str(text).map_err(|error| {
        let before = error.span().and_then(|span| text.get(..span.start));
        let line = before.map_or(1, |before| before.matches('\n').count() + 1);
        fault(format!(", line {line}: {}", error.message()))
    })?;
    for (name, profile) in &file.profile {
        if profile.client_cert.is_some() != profile.client_key.is_some() {
            return Err(fault(format!(
                ", [profile.{name}]: client-cert and client-key need each other"
            )));
        }
    }
    Ok(file)
}

impl Profile {
    /// Paths in the file are relative to its folder.
    fn beside(self, folder: &Path) -> Self {
        let beside = |path: Option<PathBuf>| path.map(|path| folder.join(path));
        Self {
            ca_file: beside(self.ca_file),
            client_cert: beside(self.client_cert),
            client_key: beside(self.client_key),
            token_file: beside(self.token_file),
            ..self
        }
    }
}

#[cfg(test)]
impl Settings {
    /// Those of a command that is told no more than this.
    pub(crate) fn plain(coordinator: &str, namespace: &str) -> Self {
        Self {
            coordinator: coordinator.to_owned().into(),
            namespace: namespace.to_owned(),
            credentials: Credentials::default(),
            json: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"
        default-profile = "dev"
        [profile.dev]
        namespace = "mine"
        [profile.prod]
        coordinator = "https://weir.example:7400"
        ca-file = "ca.pem"
        client-cert = "/keys/cert.pem"
        client-key = "key.pem"
        token-file = "token"
    "#;

    fn settings(file: &str, change: impl FnOnce(&mut Global)) -> Result<Settings, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        fs::write(&path, file).unwrap();
        let mut global = Global {
            config: Some(path),
            ..Global::default()
        };
        change(&mut global);
        let settings = Settings::of(&global).map_err(|failure| failure.to_string());
        // Whatever lies in the folder of the file reads the same wherever that is.
        settings.map(|mut settings| {
            let relative = |path: &mut Option<PathBuf>| {
                if let Some(path) = path
                    && let Ok(inside) = path.strip_prefix(folder.path())
                {
                    *path = inside.to_owned();
                }
            };
            let credentials = &mut settings.credentials;
            for path in [
                &mut credentials.ca_file,
                &mut credentials.client_cert,
                &mut credentials.client_key,
                &mut credentials.token_file,
            ] {
                relative(path);
            }
            settings
        })
    }

    #[test]
    fn a_flag_goes_before_the_profile_and_that_before_what_is_built_in() {
        let prod = |global: &mut Global| global.profile = Some("prod".to_owned());
        let of_prod = settings(FILE, prod).unwrap();
        assert_eq!(of_prod.coordinator.as_str(), "https://weir.example:7400");
        assert_eq!(of_prod.namespace, DEFAULT_NAMESPACE);
        let path = |path: &str| Some(PathBuf::from(path));
        assert_eq!(
            of_prod.credentials,
            Credentials {
                ca_file: path("ca.pem"),
                client_cert: path("/keys/cert.pem"),
                client_key: path("key.pem"),
                token_file: path("token"),
                insecure_token: false,
            }
        );
        let told = settings(FILE, |global| {
            prod(global);
            global.coordinator = Some("http://127.0.0.1:1".to_owned().into());
            global.credentials.client_cert = path("other.pem");
            global.credentials.client_key = path("other.key");
        })
        .unwrap();
        assert_eq!(told.coordinator.as_str(), "http://127.0.0.1:1");
        assert_eq!(told.credentials.client_key, path("other.key"));
        assert_eq!(told.credentials.token_file, path("token"));

        let by_default = settings(FILE, |_| ()).unwrap();
        assert_eq!(by_default.namespace, "mine");
        assert_eq!(by_default.coordinator.as_str(), DEFAULT_COORDINATOR);
    }

    #[test]
    fn what_cannot_be_used_is_refused_with_file_and_key() {
        let named =
            |name: &'static str| move |global: &mut Global| global.profile = Some(name.to_owned());
        for (file, profile, what) in [
            (
                "\n[profile.a]\ncolour = 1",
                "a",
                "line 3: unknown field `colour`",
            ),
            ("profiles = 1", "a", "line 1: unknown field `profiles`"),
            ("[profile.a]\nnamespace = 7", "a", "line 2: invalid type"),
            (
                "[profile.a]\nclient-cert = 'c'",
                "a",
                "[profile.a]: client-cert and client-key",
            ),
            (FILE, "staging", "no profile \"staging\""),
            (FILE, "staging", "it has dev, prod"),
        ] {
            let error = settings(file, named(profile)).unwrap_err();
            assert!(
                error.contains(what) && error.contains("config.toml"),
                "{what}: {error}"
            );
        }
        let missing = Global {
            config: Some(PathBuf::from("/nowhere/config.toml")),
            ..Global::default()
        };
        let error = Settings::of(&missing).unwrap_err().to_string();
        assert!(error.contains("/nowhere/config.toml"), "{error}");
    }
}
