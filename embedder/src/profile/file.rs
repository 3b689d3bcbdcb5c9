//! The file of models, which worker, command line and coordinator read.

use std::{fs, path::Path};

use anyhow::{Context as _, bail, ensure};

use super::{Partial, Profile, value};

/// The models of a file, in its order.
#[derive(Debug, Clone)]
pub struct ModelsFile {
    /// The setting and the file, for messages.
    place: String,
    tables: Vec<(String, Partial)>,
}

impl ModelsFile {
    /// Reads a file. Fails, naming setting, file, model and key, when anything
    /// in it cannot be used.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let place = format!("--models-file (WEIR_MODELS_FILE) {}", path.display());
        let text = fs::read_to_string(path).context("it cannot be read");
        let tables = text.and_then(|text| tables(&text));
        let tables = tables.with_context(|| place.clone())?;
        Ok(Self { place, tables })
    }

    /// Returns the names of the models.
    pub fn names(&self) -> Vec<String> {
        self.tables.iter().map(|(name, _)| name.clone()).collect()
    }

    /// Returns the profiles of all models, where no flag says anything.
    pub fn profiles(&self) -> Vec<Profile> {
        let profile = |(name, table): &(String, Partial)| table.clone().resolve(name);
        self.tables.iter().map(profile).collect()
    }

    /// Returns the profile of a model, over what is said of all models. Fails
    /// when the file has no such model.
    pub(crate) fn profile(&self, name: &str, below: Partial) -> anyhow::Result<Profile> {
        let Some((_, table)) = self.tables.iter().find(|(it, _)| it == name) else {
            let there = self.names().join(", ");
            bail!(
                "{}: it has no table [{name:?}]; there are {there}",
                self.place
            );
        };
        Ok(table.clone().over(below).resolve(name))
    }
}

fn tables(text: &str) -> anyhow::Result<Vec<(String, Partial)>> {
    let tables: toml::Table = text.parse().map_err(|error| place_of(text, &error))?;
    ensure!(!tables.is_empty(), "it names no model");
    let tables = tables.into_iter().map(|(name, table)| {
        let partial = table_of(&name, &table);
        let partial = partial.with_context(|| format!("model {name:?}"))?;
        Ok((name, partial))
    });
    tables.collect()
}

fn table_of(name: &str, table: &toml::Value) -> anyhow::Result<Partial> {
    ensure!(
        table.is_table(),
        "this is no table; settings follow a line [the-model]"
    );
    value::model_name(name).map_err(anyhow::Error::msg)?;
    let read: Result<Partial, _> = table.clone().try_into();
    read.map_err(|error| in_words(name, table, &error))
}

/// Where a text is not TOML. The line itself is not shown, for it may hold a
/// secret.
fn place_of(text: &str, error: &toml::de::Error) -> anyhow::Error {
    let before = error.span().and_then(|span| text.get(..span.start));
    let line = before.map_or(0, |before| before.matches('\n').count()) + 1;
    anyhow::anyhow!("line {line} is not TOML: {}", error.message())
}

/// The key, before what is wrong with it.
fn in_words(name: &str, table: &toml::Value, error: &toml::de::Error) -> anyhow::Error {
    let text = error.to_string();
    let what = unquoted(error.message()).replace("unknown field", "there is no key");
    if let Some((_, key)) = text.trim_end().rsplit_once("\nin `") {
        return anyhow::anyhow!("{}: {what}", key.trim_end_matches('`'));
    }
    let key = what.split('`').nth(1).unwrap_or_default();
    let hint = if table.get(key).is_some_and(toml::Value::is_table) {
        format!("; a name with a dot in it stands in quotes: [\"{name}.{key}\"]")
    } else {
        String::new()
    };
    anyhow::anyhow!("{what}{hint}")
}

/// What is wrong with a string, without the string, which may be a secret.
fn unquoted(message: &str) -> String {
    match (message.find(" string \""), message.rfind("\", expected")) {
        (Some(start), Some(end)) => {
            let before = message.get(..start).unwrap_or_default();
            let after = message.get(end + 1..).unwrap_or_default();
            format!("{before} string{after}")
        }
        _ => message.to_owned(),
    }
}
