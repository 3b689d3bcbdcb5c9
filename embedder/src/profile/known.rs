//! The models that are known by their names, from `known.toml`.

use std::sync::LazyLock;

use super::Partial;

/// What is known of a model that many use.
#[derive(Debug)]
pub(super) struct Known {
    /// What it is called in messages.
    pub(super) name: String,
    /// The names that it is known by, in lower case.
    pub(super) names: Vec<String>,
    /// What is to be known of it. Never where it is or who may call it.
    pub(super) says: Partial,
}

static KNOWN: LazyLock<Vec<Known>> = LazyLock::new(|| {
    #[expect(
        clippy::expect_used,
        reason = "the file is part of the program, and a test reads it"
    )]
    read(include_str!("known.toml")).expect("the built-in profiles can be read")
});

/// Returns what is known of a model, by its name or else by that at its server.
pub(super) fn of(name: &str, served_as: Option<&str>) -> Option<&'static Known> {
    let by = |name: &str| {
        let plain = plain(name);
        KNOWN.iter().find(|known| known.names.contains(&plain))
    };
    by(name).or_else(|| served_as.and_then(by))
}

/// Returns all that are known.
#[cfg(test)]
pub(super) fn all() -> &'static [Known] {
    &KNOWN
}

/// The name without its owner, tag and format, in lower case.
pub(super) fn plain(name: &str) -> String {
    let name = name.trim_end_matches('/');
    let name = name.rsplit('/').next().unwrap_or(name);
    let name = name.split(':').next().unwrap_or(name).to_lowercase();
    name.strip_suffix("-gguf").unwrap_or(&name).to_owned()
}

fn read(text: &str) -> Result<Vec<Known>, toml::de::Error> {
    let tables: toml::Table = text.parse()?;
    let known = tables.into_iter().map(|(name, table)| {
        let mut table: toml::Table = table.try_into()?;
        let names = table.remove("names").map(toml::Value::try_into);
        Ok(Known {
            name,
            names: names.transpose()?.unwrap_or_default(),
            says: toml::Value::Table(table).try_into()?,
        })
    });
    known.collect()
}
