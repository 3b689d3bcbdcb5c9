//! Reads vectors in every form in which servers write them.

use std::fmt;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::de::{DeserializeOwned, Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// A vector: numbers, or base64 of little-endian f32. A number that is null is
/// read as NaN, so that whoever checks the vector can say which it was.
#[derive(Debug, PartialEq)]
pub(super) struct Vector(pub(super) Vec<f32>);

impl<'de> Deserialize<'de> for Vector {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(VectorVisitor)
    }
}

struct VectorVisitor;

impl<'de> Visitor<'de> for VectorVisitor {
    type Value = Vector;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("numbers, or base64 of them")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut numbers: A) -> Result<Vector, A::Error> {
        let mut vector = Vec::new();
        while let Some(number) = numbers.next_element::<Option<f32>>()? {
            vector.push(number.unwrap_or(f32::NAN));
        }
        Ok(Vector(vector))
    }

    /// No vector at all: whoever checks it finds that it holds nothing.
    fn visit_unit<E: Error>(self) -> Result<Vector, E> {
        Ok(Vector(Vec::new()))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Vector, E> {
        let bytes = BASE64_STANDARD
            .decode(text)
            .map_err(|_| E::custom("not base64"))?;
        let (numbers, rest) = bytes.as_chunks::<4>();
        if !rest.is_empty() {
            return Err(E::custom("not base64 of 4-byte numbers"));
        }
        let numbers = numbers.iter().map(|bytes| f32::from_le_bytes(*bytes));
        Ok(Vector(numbers.collect()))
    }
}

/// Reads JSON in which numbers may also be `NaN` or `Infinity`, as Python
/// writes them: they become null.
pub(super) fn parse<T: DeserializeOwned>(body: &[u8]) -> serde_json::Result<T> {
    serde_json::from_slice(body).or_else(|error| match without_bare_words(body) {
        Some(body) if error.is_syntax() => serde_json::from_slice(&body),
        _ => Err(error),
    })
}

/// `None` where there is nothing to replace.
fn without_bare_words(body: &[u8]) -> Option<Vec<u8>> {
    const WORDS: [&[u8]; 3] = [b"NaN", b"Infinity", b"-Infinity"];
    let mut out = Vec::with_capacity(body.len() + body.len() / 3);
    let (mut rest, mut in_string, mut replaced) = (body, false, false);
    while let Some((&byte, tail)) = rest.split_first() {
        let word = WORDS.iter().find_map(|word| rest.strip_prefix(*word));
        match (word, tail) {
            (Some(tail), _) if !in_string => {
                out.extend_from_slice(b"null");
                rest = tail;
                replaced = true;
                continue;
            }
            // What is escaped does not end the string.
            (_, [escaped, tail @ ..]) if in_string && byte == b'\\' => {
                out.extend_from_slice(&[byte, *escaped]);
                rest = tail;
                continue;
            }
            _ => in_string ^= byte == b'"',
        }
        out.push(byte);
        rest = tail;
    }
    replaced.then_some(out)
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_that_are_none_become_nan() {
        for body in ["[1, null]", "[1,NaN]", "[1, -Infinity]", "[1,Infinity]"] {
            let Vector(vector) = parse(body.as_bytes()).unwrap();
            assert_eq!(vector[0].to_bits(), 1_f32.to_bits());
            assert!(vector[1].is_nan(), "{body}");
        }
    }

    #[test]
    fn words_within_strings_stay() {
        let body = br#"{"model": "a \" NaN", "v": [NaN]}"#;
        let value: serde_json::Value = parse(body).unwrap();
        assert_eq!(value["model"], "a \" NaN");
        assert!(value["v"][0].is_null());
    }

    #[test]
    fn what_is_not_numbers_is_refused() {
        for body in [
            r#"["1.0"]"#,
            r#""AAA""#,
            r#""AAAA""#,
            "true",
            "[NaN",
            "[nan]",
        ] {
            parse::<Vector>(body.as_bytes()).unwrap_err();
        }
    }

    proptest! {
        #[test]
        fn both_forms_give_the_same_vector(numbers in vec(-1e9_f32..1e9, 0..50)) {
            let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
            let text = serde_json::to_vec(&numbers).unwrap();
            let packed = serde_json::to_vec(&BASE64_STANDARD.encode(bytes)).unwrap();
            prop_assert_eq!(parse::<Vector>(&text).unwrap(), Vector(numbers.clone()));
            prop_assert_eq!(parse::<Vector>(&packed).unwrap(), Vector(numbers));
        }

        #[test]
        fn no_body_is_too_odd(body in ".{0,60}") {
            let _ = parse::<Vector>(body.as_bytes());
        }
    }
}
