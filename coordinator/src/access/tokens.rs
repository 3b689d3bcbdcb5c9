//! The tokens file: a TOML table a token, which holds no token, only hashes.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    ops::Range,
    sync::Arc,
};

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
    #[serde(default, rename = "priority-across")]
    priority_across: bool,
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
        "line {line} of the tokens file cannot be read: each token is a table, [name], of role, namespaces and sha256; \
         one whose priorities count across namespaces also has priority-across = true"
    )]
    Syntax {
        /// From 1.
        line: usize,
    },
    /// Nothing at all: most likely a file that is being written.
    #[error(
        "there is no token in the tokens file; write it elsewhere and rename it, so that it is never read in part. To \
         take back every token, leave their tables with sha256 = [], or a comment alone"
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

/// A table as it is in the file, whatever it says.
struct NamedTable {
    name: String,
    /// From 1.
    line: usize,
    value: toml::Value,
}

/// What the tables of a file are, by name. An empty file has none that could be
/// taken for what was meant: it may be one that is about to be written.
fn tables(file: &[u8]) -> Result<Vec<NamedTable>, TokenError> {
    let text = std::str::from_utf8(file).map_err(|_| TokenError::NotUtf8)?;
    if text.trim().is_empty() {
        return Err(TokenError::Empty);
    }
    let line_of = |span: Option<Range<usize>>| {
        let before = span.and_then(|span| text.get(..span.start));
        1 + before.unwrap_or_default().matches('\n').count()
    };
    let tables: BTreeMap<String, toml::Spanned<toml::Value>> =
        toml::from_str(text).map_err(|error| TokenError::Syntax {
            line: line_of(error.span()),
        })?;
    let tables = tables.into_iter().map(|(name, value)| NamedTable {
        name,
        line: line_of(Some(value.span())),
        value: value.into_inner(),
    });
    Ok(tables.collect())
}

impl NamedTable {
    /// What it allows, and of which hashes.
    fn read(&self) -> Result<(Arc<Grant>, Vec<Digest>), TokenError> {
        let table = Table::deserialize(self.value.clone())
            .map_err(|_| TokenError::Syntax { line: self.line })?;
        check_name(&self.name).map_err(|fault| self.fault(fault))?;
        let role = Role::from_str(&table.role, false)
            .map_err(|_| self.fault("role must be \"client\" or \"worker\""))?;
        let namespaces =
            namespaces(&table.namespaces.into_vec()).map_err(|fault| self.fault(fault))?;
        if table.priority_across && role != Role::Client {
            return Err(self.fault("priority-across is for clients: workers queue nothing"));
        }
        let digests = table.sha256.into_vec().into_iter().map(|hash| {
            Digest::from_hex(hash).map_err(|_| {
                self.fault("sha256 must be the token's SHA-256 in hex, 64 digits long")
            })
        });
        let grant = Grant {
            name: self.name.clone(),
            role,
            namespaces,
            priority_across: table.priority_across,
        };
        Ok((Arc::new(grant), digests.collect::<Result<_, _>>()?))
    }

    /// The hashes that can be read of it, whatever else is wrong.
    fn digests(&self) -> BTreeSet<Digest> {
        let hashes = self.value.get("sha256").cloned();
        let hashes = hashes.into_iter().flat_map(|hashes| match hashes {
            toml::Value::Array(hashes) => hashes,
            hash => vec![hash],
        });
        hashes
            .filter_map(|hash| Digest::from_hex(hash.as_str()?).ok())
            .collect()
    }

    fn fault(&self, fault: impl Into<String>) -> TokenError {
        TokenError::Table {
            name: self.name.clone(),
            fault: fault.into(),
        }
    }
}

/// The tokens that are good, by their hashes.
#[derive(Debug, Default)]
pub(crate) struct Tokens {
    grants: Vec<(Digest, Arc<Grant>)>,
}

impl Tokens {
    /// Reads a tokens file for the first time: whole, or not at all. A file in
    /// which every table was emptied is in order.
    pub(crate) fn parse(file: &[u8]) -> Result<Self, TokenError> {
        let tables = tables(file)?;
        if tables.is_empty() {
            return Err(TokenError::Empty);
        }
        let (tokens, faults) = Self::default().with(&tables);
        faults.into_iter().next().map_or(Ok(tokens), Err)
    }

    /// Reads a file that takes the place of the one that these are from. A token
    /// whose hash is not in it is taken back, also where something else in the
    /// file is wrong. A table that is wrong gives nothing new: of its hashes,
    /// those that are good go on to be good for what they were good for. Fails,
    /// and then all goes on to hold, when no tables can be told in it.
    pub(crate) fn replaced_by(&self, file: &[u8]) -> Result<(Self, Vec<TokenError>), TokenError> {
        tables(file).map(|tables| self.with(&tables))
    }

    /// What these tables allow, and which of them are wrong.
    fn with(&self, tables: &[NamedTable]) -> (Self, Vec<TokenError>) {
        let mut read: Vec<_> = tables.iter().map(NamedTable::read).collect();
        let mut times: HashMap<Digest, usize> = HashMap::new();
        for (table, read) in tables.iter().zip(&read) {
            let digests = match read {
                Ok((_, digests)) => digests.clone(),
                Err(_) => table.digests().into_iter().collect(),
            };
            for digest in digests {
                *times.entry(digest).or_default() += 1;
            }
        }
        let (mut tokens, mut faults) = (Self::default(), Vec::new());
        for (table, read) in tables.iter().zip(&mut read) {
            // Which of two tables is meant nobody can tell.
            if let Ok((_, digests)) = read
                && digests.iter().any(|digest| times[digest] > 1)
            {
                *read = Err(table.fault("one of its tokens is there twice"));
            }
            match read {
                Ok((grant, digests)) => {
                    let grants = digests.iter().map(|digest| (*digest, Arc::clone(grant)));
                    tokens.grants.extend(grants);
                }
                Err(fault) => {
                    faults.push(fault.clone());
                    for digest in table.digests() {
                        if let Some(grant) = self.grant(&digest) {
                            tokens.grants.push((digest, grant));
                        }
                    }
                }
            }
        }
        (tokens, faults)
    }

    /// Whether no token is good.
    pub(crate) fn is_empty(&self) -> bool {
        self.grants.is_empty()
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

/// Whether a namespace can have this name.
pub(crate) fn is_namespace(name: &str) -> bool {
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
    fn a_clients_token_may_say_that_its_priorities_count_across_namespaces() {
        let parse = |role, more| {
            let drawn = drawn("t", role, &["a"], 1);
            let tokens = Tokens::parse(format!("{}{more}", drawn.table).as_bytes())?;
            let (_, grant) = tokens.find(drawn.token.as_bytes()).unwrap();
            Ok::<_, TokenError>(grant.priority_across)
        };
        assert_eq!(parse(Role::Client, ""), Ok(false));
        assert_eq!(parse(Role::Client, "priority-across = true"), Ok(true));
        let error = parse(Role::Worker, "priority-across = true").unwrap_err();
        assert!(error.to_string().contains("for clients"), "{error}");
        let error = parse(Role::Client, "priority-across = 'yes'").unwrap_err();
        assert!(matches!(error, TokenError::Syntax { .. }), "{error}");
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
                "line 5",
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
                format!("[a]\nrole = 'client'\nnamespaces = '*'\nsha256 = ['{hash}', '{hash}']"),
                "twice",
            ),
            (
                format!("[a]\nrole = 'client'\nnamespaces = '*'\nsha256 = '{hash}'\nextra = 1"),
                "line 1",
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

    #[test]
    fn a_table_that_was_emptied_starts_with_no_token_of_it() {
        let file = b"[gone]\nrole = 'worker'\nnamespaces = '*'\nsha256 = []\n";
        assert!(Tokens::parse(file).unwrap().is_empty());
    }

    /// Which of some tokens are good after a file was replaced: `w` of them for
    /// workers, `c` for clients, `-` for nothing. And how many faults there are.
    fn after(before: &Tokens, drawn: &[NewToken], file: &str) -> (String, usize) {
        let (tokens, faults) = before.replaced_by(file.as_bytes()).unwrap();
        let good = drawn
            .iter()
            .map(|it| match tokens.find(it.token.as_bytes()) {
                None => '-',
                Some((_, grant)) if grant.role == Role::Worker => 'w',
                Some(_) => 'c',
            });
        let told = format!("{faults:?}");
        assert!(!told.contains("weir_"), "{told}");
        (good.collect(), faults.len())
    }

    #[test]
    fn what_is_not_in_the_file_any_more_is_taken_back_whatever_else_is_wrong() {
        let drawn = [
            drawn("a", Role::Worker, &["*"], 1),
            drawn("b", Role::Worker, &["*"], 2),
            drawn("c", Role::Worker, &["*"], 3),
        ];
        let [a, b, c] = drawn.each_ref().map(|it| it.table.as_str());
        let new = c.replace("worker", "client");
        let hash_of_b = b.split('"').nth_back(1).unwrap();
        let tokens = Tokens::parse(format!("{a}{b}").as_bytes()).unwrap();
        let emptied = "[a]\nrole = 'worker'\nnamespaces = '*'\nsha256 = []\n";
        let bad = |table: &str| table.replace("\"*\"", "\"B!\"");
        for (file, good, faults) in [
            (format!("{a}{b}"), "ww-", 0),
            (format!("{emptied}{b}"), "-w-", 0),
            (b.to_owned(), "-w-", 0),
            ("# none is left\n".to_owned(), "---", 0),
            (emptied.to_owned(), "---", 0),
            // A table that is wrong takes nothing from the others, and keeps what it gave.
            (format!("{}{b}{new}", bad(a)), "wwc", 1),
            (format!("{}{new}", bad(b)), "-wc", 1),
            (format!("{}{}", bad(a), bad(&new)), "w--", 2),
            // Nothing new comes of it, and nothing of what it has no more.
            (
                bad(&b.replace(hash_of_b, &hash_of_b.replace('a', "b"))),
                "---",
                1,
            ),
            (b.replace("sha256", "sha265"), "---", 1),
            (b.replace(hash_of_b, &hash_of_b[1..]), "---", 1),
            (format!("{b}extra = 'weir_secret'\n"), "-w-", 1),
            ("a = 'weir_secret'\n".to_owned(), "---", 1),
            // Of two that say otherwise of one hash neither is believed.
            (
                format!(
                    "{b}{}",
                    b.replace("[\"b\"]", "[z]").replace("worker", "client")
                ),
                "-w-",
                2,
            ),
            (format!("{c}{}", new.replace("[\"c\"]", "[z]")), "---", 2),
            (
                format!(
                    "{}{}",
                    bad(b),
                    b.replace("[\"b\"]", "[z]").replace("worker", "client")
                ),
                "-w-",
                2,
            ),
        ] {
            assert_eq!(
                after(&tokens, &drawn, &file),
                (good.to_owned(), faults),
                "{file}"
            );
        }
        // Where nothing can be told, all goes on to hold.
        for unreadable in ["", " \n", "[a", "[a]\n[a]\n"] {
            tokens.replaced_by(unreadable.as_bytes()).unwrap_err();
        }
    }
}
