//! How the values of a table are read. Messages show no value: it may be a
//! secret.

use std::{collections::BTreeMap, num::NonZeroU32, path::PathBuf, time::Duration};

use reqwest::header::HeaderValue;
use serde::{Deserialize, Deserializer, de::Error as _};
use serde_json::{Map, Value};
use weir_proto::limits::MAX_DIMENSION;

use super::{Address, Fields, HeaderSource, value};

/// Most bytes of a prompt.
const MAX_PROMPT_BYTES: usize = 4096;

/// Fields of a request that are the text's and the model's.
const NOT_IN_BODY: [&str; 4] = ["model", "input", "inputs", "prompt"];

fn read<'de, D: Deserializer<'de>, T>(
    from: D,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<Option<T>, D::Error> {
    let text = String::deserialize(from)?;
    parse(&text).map(Some).map_err(D::Error::custom)
}

pub(super) fn url<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Address>, D::Error> {
    read(from, str::parse)
}

pub(super) fn proxy<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Address>, D::Error> {
    read(from, value::proxy)
}

pub(super) fn header_name<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    read(from, value::header_name)
}

pub(super) fn timeout<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    read(from, value::timeout)
}

pub(super) fn path<'de, D: Deserializer<'de>>(from: D) -> Result<Option<PathBuf>, D::Error> {
    read(from, path_of)
}

pub(super) fn served_as<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    let checked = |text: &str| match text {
        _ if text.trim().is_empty() => Err("it must not be blank".to_owned()),
        _ if text.chars().any(char::is_control) => {
            Err("it must not have control characters".to_owned())
        }
        _ => Ok(text.to_owned()),
    };
    read(from, checked)
}

pub(super) fn prompt<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    let checked = |text: &str| match text.len() {
        length if length > MAX_PROMPT_BYTES => Err(format!(
            "it has {length} bytes; {MAX_PROMPT_BYTES} are possible"
        )),
        _ if text.contains('\0') => Err("it must not hold a NUL".to_owned()),
        _ => Ok(text.to_owned()),
    };
    read(from, checked)
}

fn number<'de, D: Deserializer<'de>, T: TryFrom<i64>>(
    from: D,
    most: i64,
) -> Result<Option<T>, D::Error> {
    let number = i64::deserialize(from)?;
    let fits = (1..=most).contains(&number).then_some(number);
    fits.and_then(|it| it.try_into().ok())
        .map(Some)
        .ok_or_else(|| D::Error::custom(format!("it is {number}; 1 to {most} is possible")))
}

pub(super) fn dimension<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u16>, D::Error> {
    number(from, MAX_DIMENSION as i64)
}

pub(super) fn batch_size<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u32>, D::Error> {
    number(from, value::MAX_BATCH_SIZE)
}

pub(super) fn concurrency<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u32>, D::Error> {
    number(from, value::MAX_CONCURRENCY)
}

pub(super) fn count<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u32>, D::Error> {
    number(from, i64::from(u32::MAX))
}

pub(super) fn quota<'de, D: Deserializer<'de>>(from: D) -> Result<Option<NonZeroU32>, D::Error> {
    Ok(count(from)?.and_then(NonZeroU32::new))
}

pub(super) fn headers<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<BTreeMap<String, HeaderSource>>, D::Error> {
    let mut headers = BTreeMap::new();
    for (name, source) in toml::Table::deserialize(from)? {
        let at = |what: &str| D::Error::custom(format!("{name:?}: {what}"));
        let source = source_of(source).map_err(|what| at(&what))?;
        let known = value::header_name(&name).map_err(|what| at(&what))?;
        if headers.insert(known, source).is_some() {
            return Err(at("the header is there twice"));
        }
    }
    Ok(Some(headers))
}

fn source_of(source: toml::Value) -> Result<HeaderSource, String> {
    const SHAPE: &str = "a header is a string, or { file = \"…\" }";
    match source {
        toml::Value::String(value) => {
            let visible = value.bytes().all(|it| matches!(it, b' '..=b'~'));
            if !visible || HeaderValue::from_str(&value).is_err() || value.is_empty() {
                return Err("a header's value is one line of visible ASCII".to_owned());
            }
            Ok(HeaderSource::Value(value))
        }
        toml::Value::Table(table) => match table.get("file") {
            Some(toml::Value::String(path)) if table.len() == 1 => {
                path_of(path).map(HeaderSource::File)
            }
            _ => Err(SHAPE.to_owned()),
        },
        _ => Err(SHAPE.to_owned()),
    }
}

fn path_of(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() || text.contains('\0') {
        return Err("it is not a path".to_owned());
    }
    Ok(text.into())
}

pub(super) fn body<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Fields>, D::Error> {
    let table = toml::Table::deserialize(from)?;
    if let Some(key) = NOT_IN_BODY.iter().find(|key| table.contains_key(**key)) {
        return Err(D::Error::custom(format!(
            "{key:?} is not to be set: a request has its own"
        )));
    }
    let fields = object(table).map_err(D::Error::custom)?;
    Ok(Some(fields.into()))
}

fn object(table: toml::Table) -> Result<Map<String, Value>, String> {
    let json = |(key, value)| {
        let value = json(value).map_err(|what| format!("{key:?}: {what}"))?;
        Ok((key, value))
    };
    table.into_iter().map(json).collect()
}

/// A date is a string in JSON; a number that it cannot say is refused.
fn json(value: toml::Value) -> Result<Value, String> {
    Ok(match value {
        toml::Value::String(text) => text.into(),
        toml::Value::Integer(number) => number.into(),
        toml::Value::Float(number) => serde_json::Number::from_f64(number)
            .ok_or("JSON has no such number")?
            .into(),
        toml::Value::Boolean(said) => said.into(),
        toml::Value::Datetime(date) => date.to_string().into(),
        toml::Value::Array(values) => {
            Value::Array(values.into_iter().map(json).collect::<Result<_, _>>()?)
        }
        toml::Value::Table(table) => object(table)?.into(),
    })
}
