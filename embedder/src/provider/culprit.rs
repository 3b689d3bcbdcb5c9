//! Which of the texts of a call a server names when it refuses all of them.

use serde_json::Value;

/// The place that a refusal names, counted from 0:
///
/// - OpenAI: `"Invalid 'input[3]': maximum input length is 8192 tokens."`;
/// - servers made with `FastAPI`: `"loc": ["body", "input", 3]`.
///
/// It is a hint and no proof: a server may count otherwise, or quote.
pub(super) fn named(refusal: &Value) -> Option<usize> {
    let error = refusal.get("error").unwrap_or(refusal);
    let said = [
        error,
        &error["message"],
        &error["param"],
        &refusal["message"],
        &refusal["detail"],
    ];
    let mut said = said.into_iter().filter_map(Value::as_str);
    from_path(&refusal["detail"][0]["loc"]).or_else(|| said.find_map(from_words))
}

fn from_path(path: &Value) -> Option<usize> {
    let path = path.as_array()?;
    let texts = |part: &Value| matches!(part.as_str(), Some("input" | "inputs"));
    let at = path.iter().position(texts)?;
    path.get(at + 1)?.as_u64()?.try_into().ok()
}

fn from_words(message: &str) -> Option<usize> {
    let (_, after) = message
        .split_once("input[")
        .or_else(|| message.split_once("inputs["))?;
    let (place, _) = after.split_once(']')?;
    place.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_read_from_words_and_from_paths() {
        for (body, place) in [
            (
                r#"{"error":{"message":"Invalid 'input[22]': maximum input length is 8192 tokens."}}"#,
                Some(22),
            ),
            (r#"{"error":{"message":"bad","param":"input[1]"}}"#, Some(1)),
            (r#"{"error":"'$.inputs[3]' is invalid"}"#, Some(3)),
            (
                r#"{"detail":[{"loc":["body","input",3],"msg":"too short"}]}"#,
                Some(3),
            ),
            (
                r#"{"detail":[{"loc":["body","model"],"msg":"missing"}]}"#,
                None,
            ),
            (r#"{"error":{"message":"'$.input' is invalid."}}"#, None),
            (r#"{"error":"input[]"}"#, None),
            (r#"{"error":"input[-1]"}"#, None),
            (r#"{"error":"input[3"}"#, None),
        ] {
            assert_eq!(named(&body.parse().unwrap()), place, "{body}");
        }
    }
}
