//! The fields of a request besides its texts.

use serde_json::{Map, Value};
use tracing::warn;

use crate::{Profile, Role};

/// The fields that a provider sends, with those of the profile and then those of
/// the role over them. `own` are the fields that the provider fills in itself.
pub(super) fn fields(
    profile: &Profile,
    role: Role,
    sent: Value,
    own: &[&str],
) -> Map<String, Value> {
    let mut fields = Map::new();
    if let Value::Object(sent) = sent {
        fields = sent;
    }
    merge(&mut fields, &profile.body);
    merge(&mut fields, &profile.role(role).body);
    fields.retain(|name, _| !own.contains(&name.as_str()));
    if cuts(&fields) {
        warn!(
            model = profile.name,
            "The body of the model's profile asks the server to cut texts that are too long. It \
             does not say which it cut: their vectors are of their beginnings, and pass for those \
             of the whole."
        );
    }
    fields
}

/// Whether `truncate` asks for it: a yes, or the end to cut at.
fn cuts(fields: &Map<String, Value>) -> bool {
    match fields.get("truncate") {
        Some(Value::Bool(cuts)) => *cuts,
        Some(Value::String(end)) => !end.eq_ignore_ascii_case("none"),
        _ => false,
    }
}

/// Puts `over` over the fields, objects in depth.
fn merge(fields: &mut Map<String, Value>, over: &Map<String, Value>) {
    for (name, value) in over {
        match (fields.get_mut(name), value) {
            (Some(Value::Object(fields)), Value::Object(over)) => merge(fields, over),
            _ => {
                fields.insert(name.clone(), value.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn objects_are_merged_in_depth_and_all_else_is_replaced() {
        let merged = |fields: Value, over: Value| {
            let (Value::Object(mut fields), Value::Object(over)) = (fields, over) else {
                panic!("objects");
            };
            merge(&mut fields, &over);
            Value::Object(fields)
        };
        let fields = json!({"a": 1, "o": {"x": 1, "y": {"z": 1}}, "l": [1, 2]});
        let over = json!({"b": 2, "o": {"x": 2, "y": {"w": 3}}, "l": [3]});
        let both = json!({"a": 1, "b": 2, "o": {"x": 2, "y": {"z": 1, "w": 3}}, "l": [3]});
        assert_eq!(merged(fields.clone(), over), both);
        assert_eq!(merged(fields, json!({"o": 1}))["o"], 1);
        assert_eq!(
            merged(json!({"o": 1}), json!({"o": {"x": 1}})),
            json!({"o": {"x": 1}})
        );
    }

    #[test]
    fn what_cuts_texts_is_known() {
        for (truncate, expected) in [
            (json!(true), true),
            (json!("END"), true),
            (json!("none"), false),
            (json!(false), false),
            (Value::Null, false),
        ] {
            let fields = Map::from_iter([("truncate".to_owned(), truncate.clone())]);
            assert_eq!(cuts(&fields), expected, "{truncate}");
        }
        assert!(!cuts(&Map::new()));
    }
}
