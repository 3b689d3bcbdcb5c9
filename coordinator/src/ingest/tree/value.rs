//! A tree of values that takes little memory: a third of `serde_json`'s own.

use std::{
    collections::HashSet,
    hash::{BuildHasher as _, RandomState},
};

use serde_json::Number;

/// Entries up to which an object is searched from one end to the other.
const FEW: usize = 8;

/// A value of a document.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::ingest) enum Value {
    Null,
    Bool(bool),
    Number(Number),
    String(Box<str>),
    Array(Box<[Value]>),
    Object(Box<Object>),
}

/// The entries of an object, in the order of the document.
#[derive(Debug, Clone, PartialEq, Default)]
pub(in crate::ingest) struct Object {
    entries: Box<[(Box<str>, Value)]>,
    /// The places of the entries by key, where they are many.
    by_key: Box<[u32]>,
}

impl Value {
    pub(in crate::ingest) fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            _ => None,
        }
    }

    pub(in crate::ingest) fn as_array(&self) -> Option<&[Self]> {
        match self {
            Self::Array(values) => Some(values),
            _ => None,
        }
    }

    pub(in crate::ingest) fn as_object(&self) -> Option<&Object> {
        match self {
            Self::Object(object) => Some(object),
            _ => None,
        }
    }

    /// The entry of an object; `None` also where this is none.
    pub(in crate::ingest) fn get(&self, key: &str) -> Option<&Self> {
        self.as_object()?.get(key)
    }

    /// What a JSON pointer leads to.
    /// <https://www.rfc-editor.org/rfc/rfc6901>
    pub(in crate::ingest) fn pointer(&self, pointer: &str) -> Option<&Self> {
        if pointer.is_empty() {
            return Some(self);
        }
        let tokens = pointer.strip_prefix('/')?.split('/');
        tokens
            .map(|it| it.replace("~1", "/").replace("~0", "~"))
            .try_fold(self, |value, token| match value {
                Self::Object(object) => object.get(&token),
                Self::Array(values) => values.get(token.parse::<usize>().ok()?),
                _ => None,
            })
    }
}

impl Object {
    pub(in crate::ingest) fn get(&self, key: &str) -> Option<&Value> {
        let at = if self.by_key.is_empty() {
            self.entries.iter().position(|(it, _)| **it == *key)?
        } else {
            let found = self
                .by_key
                .binary_search_by(|&at| (*self.entries[at as usize].0).cmp(key));
            self.by_key[found.ok()?] as usize
        };
        Some(&self.entries[at].1)
    }

    pub(in crate::ingest) fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(key, value)| (&**key, value))
    }
}

/// Gathers the entries of an object.
#[derive(Default)]
pub(super) struct ObjectBuilder {
    entries: Vec<(Box<str>, Value)>,
    /// Of the keys, where they are many.
    hashes: HashSet<u64>,
    hasher: RandomState,
}

impl ObjectBuilder {
    /// Whether the object has this key. It is about to be pushed otherwise.
    pub(super) fn has(&mut self, key: &str) -> bool {
        let found = |entries: &[(Box<str>, Value)]| entries.iter().any(|(it, _)| **it == *key);
        if self.entries.len() < FEW {
            return found(&self.entries);
        }
        if self.hashes.is_empty() {
            let hashes = self
                .entries
                .iter()
                .map(|(it, _)| self.hasher.hash_one(&**it));
            self.hashes = hashes.collect();
        }
        !self.hashes.insert(self.hasher.hash_one(key)) && found(&self.entries)
    }

    pub(super) fn push(&mut self, key: Box<str>, value: Value) {
        self.entries.push((key, value));
    }

    pub(super) fn finish(self) -> Value {
        let entries = self.entries.into_boxed_slice();
        let mut by_key = Vec::new();
        if entries.len() > FEW {
            by_key.extend(0..entries.len() as u32);
            by_key.sort_unstable_by(|one, other| {
                entries[*one as usize].0.cmp(&entries[*other as usize].0)
            });
        }
        Value::Object(Box::new(Object {
            entries,
            by_key: by_key.into(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_found_in_small_and_in_large_objects() {
        for size in [1, FEW, FEW + 1, 1_000] {
            let mut entries = ObjectBuilder::default();
            for number in 0..size {
                let key = format!("k{number}");
                assert!(!entries.has(&key));
                entries.push(key.into(), Value::Number(number.into()));
            }
            assert!(entries.has("k0") && entries.has(&format!("k{}", size - 1)));
            let object = entries.finish();
            for number in 0..size {
                let found = object.get(&format!("k{number}"));
                assert_eq!(found, Some(&Value::Number(number.into())));
            }
            assert_eq!(object.get("k"), None);
            let keys = object.as_object().unwrap().iter().map(|(key, _)| key);
            assert!(keys.eq((0..size).map(|number| format!("k{number}"))));
        }
    }

    #[test]
    fn pointers_lead_through_lists_and_escaped_keys() {
        let mut inner = ObjectBuilder::default();
        inner.push(
            "a/b~".into(),
            Value::Array(vec![Value::Null, Value::Bool(true)].into()),
        );
        let root = inner.finish();
        assert_eq!(root.pointer("/a~1b~0/1"), Some(&Value::Bool(true)));
        assert_eq!(root.pointer(""), Some(&root));
        for nothing in ["/a~1b~0/2", "/a~1b~0/x", "a", "/b"] {
            assert_eq!(root.pointer(nothing), None, "{nothing}");
        }
    }
}
