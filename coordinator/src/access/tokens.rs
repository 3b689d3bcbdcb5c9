//! The tokens file: a TOML table a token, which holds no token, only hashes.

use std::{collections::BTreeMap, fmt, sync::Arc};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use clap::ValueEnum as _;
use hex::FromHex as _;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use weir_proto::limits::{MAX_NAME_CHARS, MAX_NAMESPACE_CHARS};

use super::{Grant, Namespaces, Role};

/// How a token begins, so that one that leaked is found by a scanner.
const PREFIX: &str = "weir_";

/// SHA-256 of a token.
pub(crate) type Digest = [u8; 32];

/// One table of the file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    role: String,
    namespaces: OneOrMore,
    sha256: OneOrMore,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

impl OneOrMore {
    fn into_vec(self) -> Vec<String> {
        match self {
            Self::One(one) => vec![one],
            Self::More(more) => more,
        }
    }
}

/// Why a tokens file cannot be used. Quotes none of its values: a token may
/// have been pasted in the wrong place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not text.
    #[error("the tokens file is not UTF-8")]
    NotUtf8,
    /// Not TOML, or not tables of a token's keys.
    #[error(
        "line {line} of the tokens file cannot be read: each token is a table, [name], of role, namespaces and sha256"
    )]
    Syntax {
        /// From 1.
        line: usize,
    },
    /// No token at all: most likely a file that is being written.
    #[error(
        "there is no token in the tokens file; write it elsewhere and rename it, so that it is never read in part"
    )]
    Empty,
    /// A table says something impossible.
    #[error("[{name}]: {fault}")]
    Table {
        /// The token's name.
        name: String,
        /// What is wrong and what would be right.
        fault: String,
    },
}

/// The tokens that are good, by their hashes.
#[derive(Debug, Default)]
pub(crate) struct Tokens {
    grants: Vec<(Digest, Arc<Grant>)>,
}

impl Tokens {
    /// Reads a tokens file.
    pub(crate) fn parse(file: &[u8]) -> Result<Self, TokenError> {
        let text = std::str::from_utf8(file).map_err(|_| TokenError::NotUtf8)?;
        let tables: BTreeMap<String, Table> = toml::from_str(text).map_err(|error| {
            let before = error.span().and_then(|span| text.get(..span.start));
            TokenError::Syntax {
                line: 1 + before.unwrap_or_default().matches('\n').count(),
            }
        })?;
        let mut tokens = Self::default();
        for (name, table) in tables {
            tokens
                .add(&name, table)
                .map_err(|fault| TokenError::Table { name, fault })?;
        }
        // To take this for what was meant would end every call there is.
        if tokens.grants.is_empty() {
            return Err(TokenError::Empty);
        }
        Ok(tokens)
    }

    fn add(&mut self, name: &str, table: Table) -> Result<(), String> {
        check_name(name)?;
        let grant = Arc::new(Grant {
            name: name.to_owned(),
            role: Role::from_str(&table.role, false)
                .map_err(|_| "role must be \"client\" or \"worker\"")?,
            namespaces: namespaces(&table.namespaces.into_vec())?,
        });
        let hashes = table.sha256.into_vec();
        if hashes.is_empty() {
            return Err("sha256 is empty: give the SHA-256 of the token in hex".to_owned());
        }
        for hash in hashes {
            let digest = Digest::from_hex(&hash)
                .map_err(|_| "sha256 must be the token's SHA-256 in hex, 64 digits long")?;
            if self.grant(&digest).is_some() {
                return Err("one of its tokens is there twice".to_owned());
            }
            self.grants.push((digest, Arc::clone(&grant)));
        }
        Ok(())
    }

    /// What this token allows, and its hash. Takes as long for a wrong token as
    /// for a right one.
    pub(crate) fn find(&self, token: &[u8]) -> Option<(Digest, Arc<Grant>)> {
        let digest: Digest = Sha256::digest(token).into();
        Some((digest, self.grant(&digest)?))
    }

    /// What the token of this hash allows.
    pub(crate) fn grant(&self, digest: &Digest) -> Option<Arc<Grant>> {
        let mut found = None;
        for (known, grant) in &self.grants {
            if bool::from(known.ct_eq(digest)) {
                found = Some(Arc::clone(grant));
            }
        }
        found
    }
}

fn namespaces(names: &[String]) -> Result<Namespaces, String> {
    match names {
        [] => Err("namespaces is empty: name those it may use, or \"*\"".to_owned()),
        [all] if all == "*" => Ok(Namespaces::All),
        names => match names.iter().position(|name| !is_namespace(name)) {
            Some(at) => Err(format!(
                "namespaces[{at}] is no namespace; \"*\" alone stands for all"
            )),
            None => Ok(Namespaces::These(names.to_vec())),
        },
    }
}

fn is_namespace(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    name.len() <= MAX_NAMESPACE_CHARS
        && name.starts_with(plain)
        && name.chars().all(|c| plain(c) || "-_.".contains(c))
}

fn check_name(name: &str) -> Result<(), String> {
    let visible = name.bytes().all(|byte| byte.is_ascii_graphic());
    if name.is_empty() || name.len() > MAX_NAME_CHARS || !visible {
        return Err(format!(
            "a token's name has 1 to {MAX_NAME_CHARS} visible ASCII characters"
        ));
    }
    Ok(())
}

/// A token that was just drawn.
pub struct NewToken {
    /// The token itself, which is for its bearer alone.
    pub token: String,
    /// Its table for the tokens file.
    pub table: String,
}

impl fmt::Debug for NewToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewToken")
            .field("table", &self.table)
            .finish_non_exhaustive()
    }
}

impl NewToken {
    /// Makes a token of 32 `random` bytes.
    pub fn new(
        name: &str,
        role: Role,
        namespaces: &[String],
        random: [u8; 32],
    ) -> Result<Self, TokenError> {
        let token = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(random));
        let quoted: Vec<String> = namespaces.iter().map(|name| format!("{name:?}")).collect();
        let table = format!(
            "[{name:?}]\nrole = \"{}\"\nnamespaces = [{}]\nsha256 = \"{}\"\n",
            role.as_str(),
            quoted.join(", "),
            hex::encode(Sha256::digest(&token))
        );
        // What is handed out is what is read.
        Tokens::parse(table.as_bytes())?;
        Ok(Self { token, table })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(name: &str, role: Role, namespaces: &[&str], seed: u8) -> NewToken {
        let namespaces: Vec<String> = namespaces.iter().map(|&name| name.to_owned()).collect();
        NewToken::new(name, role, &namespaces, [seed; 32]).unwrap()
    }

    #[test]
    fn a_new_token_is_found_by_its_table_and_no_other_is() {
        let gpu = drawn("gpu", Role::Worker, &["*"], 1);
        let shop = drawn("shop", Role::Client, &["shop", "shop-test"], 2);
        assert!(!shop.table.contains(&shop.token));
        assert!(!format!("{shop:?}").contains(&shop.token));
        let tokens = Tokens::parse(format!("{}{}", gpu.table, shop.table).as_bytes()).unwrap();
        let (_, grant) = tokens.find(gpu.token.as_bytes()).unwrap();
        assert_eq!((grant.name.as_str(), grant.role), ("gpu", Role::Worker));
        assert!(grant.namespaces.contain("anything"));
        let (digest, grant) = tokens.find(shop.token.as_bytes()).unwrap();
        assert!(grant.namespaces.contain("shop") && !grant.namespaces.contain("default"));
        assert_eq!(tokens.grant(&digest), Some(grant));
        assert!(tokens.find(b"weir_guess").is_none());
        assert!(tokens.find(b"").is_none());
    }

    #[test]
    fn a_token_may_have_two_hashes_while_it_is_replaced() {
        let (old, new) = (
            drawn("gpu", Role::Worker, &["*"], 1),
            drawn("gpu", Role::Worker, &["*"], 2),
        );
        let hash = |table: &str| table.split('"').nth_back(1).unwrap().to_owned();
        let both = format!(
            "[gpu]\nrole = 'worker'\nnamespaces = '*'\nsha256 = ['{}', '{}']",
            hash(&old.table),
            hash(&new.table)
        );
        let tokens = Tokens::parse(both.as_bytes()).unwrap();
        for token in [old.token, new.token] {
            assert_eq!(tokens.find(token.as_bytes()).unwrap().1.name, "gpu");
        }
    }

    #[test]
    fn a_bad_table_is_refused_by_name() {
        let hash = "0".repeat(64);
        for (file, told) in [
            ("[a]\nrole = 'client'".to_owned(), "line 1"),
            ("\n\n[a\n".to_owned(), "line 3"),
            (
                format!("[a]\nrole = 'weir_secret'\nnamespaces = '*'\nsha256 = '{hash}'"),
                "[a]: role must be \"client\"",
            ),
            (
                format!(
                    "[a]\nrole = 'client'\nnamespaces = ['b', 'weir_secret!']\nsha256 = '{hash}'"
                ),
                "namespaces[1]",
            ),
            (
                format!(
                    "[a]\nrole = 'client'\nnamespaces = '*'\nsha256 = '{hash}'\n[b]\nweir_secret = 1"
                ),
                "line 6",
            ),
            ("\na = 'weir_secret'".to_owned(), "line 2"),
            (
                format!("[a]\nrole = 'client'\nnamespaces = []\nsha256 = '{hash}'"),
                "[a]: namespaces",
            ),
            (
                format!("[a]\nrole = 'client'\nnamespaces = ['*', 'b']\nsha256 = '{hash}'"),
                "\"*\" alone",
            ),
            (
                format!("[a]\nrole = 'client'\nnamespaces = 'B'\nsha256 = '{hash}'"),
                "no namespace",
            ),
            (
                "[a]\nrole = 'client'\nnamespaces = '*'\nsha256 = '0f'".to_owned(),
                "64 digits",
            ),
            (
                "[a]\nrole = 'client'\nnamespaces = '*'\nsha256 = []".to_owned(),
                "sha256 is empty",
            ),
            (
                format!("[a]\nrole = 'client'\nnamespaces = '*'\nsha256 = ['{hash}', '{hash}']"),
                "twice",
            ),
            (
                format!("[a]\nrole = 'client'\nnamespaces = '*'\nsha256 = '{hash}'\nextra = 1"),
                "line 5",
            ),
            (
                format!("['']\nrole = 'client'\nnamespaces = '*'\nsha256 = '{hash}'"),
                "visible",
            ),
        ] {
            let error = Tokens::parse(file.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(told), "{file}: {error}");
            assert!(!error.contains("weir_secret"), "{error}");
        }
        assert_eq!(Tokens::parse(b"\xff").unwrap_err(), TokenError::NotUtf8);
        for nothing in [&b""[..], b"\n# all tokens go here\n"] {
            assert_eq!(Tokens::parse(nothing).unwrap_err(), TokenError::Empty);
        }
    }
}
