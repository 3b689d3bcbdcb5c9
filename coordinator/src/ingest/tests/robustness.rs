//! Hostile and broken documents: refused in bounded time and memory, never a
//! panic.

use std::fmt::Write as _;

use proptest::prelude::*;
use serde_json::json;

use super::*;

const SMALL_YAML: &str = "openapi: 3.1.0\nx-a: &a {b: [1, 2.5, ~, 'q']}\npaths:\n  /p:\n    \
     post:\n      operationId: op\n      summary: |\n        Text\n      requestBody: \
     {content: {a/b: {schema: {$ref: '#/components/schemas/S'}}}}\n      responses: {200: \
     {description: ok, <<: *a}}\ncomponents: {schemas: {S: {properties: {f: {$ref: \
     '#/components/schemas/S'}}}}}\n";

const SMALL_JSON: &str = r##"{"swagger": "2.0", "paths": {"/p": {"get": {"operationId": "op",
    "parameters": [{"name": "n", "in": "body", "schema": {"$ref": "#/definitions/D"}}],
    "responses": {"default": {"description": "d\u00e9"}}}}},
    "definitions": {"D": {"allOf": [{"properties": {"f": {"enum": ["a", 1, null]}}}]}}}"##;

const SMALL_LINES: &str = "{\"item_id\": \"a\", \"text\": \"one\", \"metadata\": {\"k\": [1]}}\n\
     {\"item_id\": \"b\", \"text\": \"\\u00e9\"}\n";

#[test]
fn the_small_documents_are_valid() {
    for (format, content) in [
        (Format::OpenApi, SMALL_YAML),
        (Format::OpenApi, SMALL_JSON),
        (Format::JsonLines, SMALL_LINES),
    ] {
        assert!(read(format, content.as_bytes(), "").is_ok());
    }
}

#[test]
fn an_alias_bomb_is_refused() {
    let mut document =
        "openapi: 3.1.0\na0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol]\n".to_owned();
    for n in 1..12 {
        let alias = format!("*a{}", n - 1);
        writeln!(document, "a{n}: &a{n} [{}]", [alias.as_str(); 9].join(", ")).unwrap();
    }
    let error = refusal(Format::OpenApi, &document);
    assert!(
        error.starts_with("the content cannot be read as YAML"),
        "{error}"
    );
}

#[test]
fn aliases_of_a_large_text_are_refused_before_they_fill_the_memory() {
    let document = format!(
        "openapi: 3.1.0\na: &a {}\nb: [{}]\n",
        "x".repeat(1 << 20),
        ["*a"; 1_000].join(", ")
    );
    let error = refusal(Format::OpenApi, &document);
    assert!(
        error.contains("aliases (*name) write out to too much (line 3"),
        "{error}"
    );
}

#[test]
fn too_many_values_are_refused() {
    let zeros = vec!["0"; 2_100_000].join(",");
    let error = refusal(Format::OpenApi, format!("{{\"a\": [{zeros}]}}"));
    assert!(error.contains("more than 2000000 values"), "{error}");
}

#[test]
fn absurd_depth_is_refused() {
    for content in [
        "[".repeat(100_000),
        format!("{{\"a\": {}", "[".repeat(100_000)),
        format!("a: {}", "{a: ".repeat(100_000)),
        "- ".repeat(100_000),
        "? ".repeat(100_000),
        (0..2_000)
            .map(|depth| format!("{}a:\n", " ".repeat(depth)))
            .collect::<Vec<_>>()
            .concat(),
    ] {
        let error = refusal(Format::OpenApi, content);
        assert!(
            error.starts_with("the content cannot be read as"),
            "{error}"
        );
    }
}

#[test]
fn depth_within_the_bound_fits_on_any_stack() {
    let yaml = "- ".repeat(126);
    let json = format!("{{\"a\": {}1{}}}", "[".repeat(120), "]".repeat(120));
    std::thread::Builder::new()
        .stack_size(256 << 10)
        .spawn(move || {
            assert!(refusal(Format::OpenApi, yaml).contains("is not an object"));
            assert!(refusal(Format::OpenApi, json).contains("has neither"));
        })
        .unwrap()
        .join()
        .unwrap();
}

#[test]
fn schemas_that_refer_to_each_other_end() {
    let schemas: Map<String, Value> = (0..50)
        .map(|n| {
            let others: Vec<Value> = (0..50)
                .map(|m| json!({"$ref": format!("#/components/schemas/S{m}")}))
                .collect();
            let schema = json!({"allOf": others, "properties": {format!("f{n}"): {"items":
                {"$ref": format!("#/components/schemas/S{}", (n + 1) % 50)}}}});
            (format!("S{n}"), schema)
        })
        .collect();
    let body = json!({"content": {"a/b": {"schema": {"$ref": "#/components/schemas/S0"}}}});
    let document = json!({"openapi": "3.0.0", "paths": {"/a": {"post": {"requestBody": body}}},
        "components": {"schemas": schemas}});
    let ingested = read(Format::OpenApi, document.to_string().as_bytes(), "").unwrap();
    let text = &ingested.items[0].text;
    assert!(text.contains("\nf0\n") && text.contains("\nf49"));
    assert_eq!(text.matches("f7").count(), 1, "{text}");
}

#[test]
fn a_huge_schema_leaves_a_text_of_useful_size() {
    let properties: Map<String, Value> = (0..10_000)
        .map(|n| {
            (
                format!("f{n}"),
                json!({"description": "word ".repeat(1_000)}),
            )
        })
        .collect();
    let document = json!({"openapi": "3.0.0", "paths": {"/a": {"post": {"requestBody":
        {"content": {"a/b": {"schema": {"properties": properties}}}}}}}});
    let ingested = read(Format::OpenApi, document.to_string().as_bytes(), "").unwrap();
    let text = &ingested.items[0].text;
    assert!(text.contains("f79: word") && !text.contains("f80: word"));
    assert!(text.len() < 40_000, "{}", text.len());
}

#[test]
fn many_paths_may_not_share_a_large_path_item() {
    // Words would fill the memory; blanks leave no text, but cost time to read.
    for word in ["long ", "     "] {
        let paths: Map<String, Value> = (0..400)
            .map(|n| (format!("/{n}"), json!({"$ref": "#/components/pathItems/P"})))
            .collect();
        let document = json!({"openapi": "3.1.0", "paths": paths, "components": {"pathItems":
            {"P": {"get": {"description": word.repeat(200_000)}}}}});
        let error = refusal(Format::OpenApi, document.to_string());
        assert!(error.contains("too many operations"), "{error}");
    }
}

#[test]
fn more_operations_than_allowed_are_refused() {
    let paths: Map<String, Value> = (0..100_001)
        .map(|n| (format!("/{n}"), json!({"get": {}})))
        .collect();
    let document = json!({"openapi": "3.1.0", "paths": paths});
    let error = refusal(Format::OpenApi, document.to_string());
    assert!(error.contains("(at GET /100000)"), "{error}");
}

#[test]
fn the_work_is_in_proportion_to_the_document() {
    let all: Vec<Value> = (0..900).map(|n| json!({"title": n.to_string()})).collect();
    let content = json!({"content": {"a/b": {"schema": {"allOf": all}}}});
    let post = json!({"requestBody": content, "responses": {"200": content}});
    let read = |operations| {
        let path = json!({"$ref": "#/components/pathItems/P"});
        let paths: Map<String, Value> = (0..operations)
            .map(|n| (format!("/{n}"), path.clone()))
            .collect();
        let document = json!({"openapi": "3.1.0", "paths": paths, "components": {"pathItems": {"P": {"post": post}}}});
        read(Format::OpenApi, document.to_string().as_bytes(), "")
    };
    assert_eq!(read(100).unwrap().items.len(), 100);
    // Twenty times the work, and not three times the document.
    let refused = read(2_000).unwrap_err().to_string();
    assert!(refused.contains("share too much"), "{refused}");
}

#[test]
fn aliases_write_out_to_no_more_than_the_document_allows() {
    // Without aliases it would be twice as long as it is.
    let list = vec!["word"; 200].join(", ");
    let few = format!("openapi: 3.1.0\na: &a [{list}]\nb: *a\npaths: {{/a: {{get: {{}}}}}}\n");
    assert!(read(Format::OpenApi, few.as_bytes(), "").is_ok());
    let many = ["*a"; 400].join(", ");
    let many = format!("openapi: 3.1.0\na: &a [{list}]\nb: [{many}]\n");
    let refused = refusal(Format::OpenApi, many);
    assert!(refused.contains("aliases"), "{refused}");
}

#[test]
fn many_small_objects_take_no_more_than_they_may() {
    let objects = vec![r#"{"a":{}}"#; 900_000].join(",");
    let refused = refusal(Format::OpenApi, format!("{{\"a\":[{objects}]}}"));
    assert!(refused.contains("bytes of memory"), "{refused}");
}

#[test]
fn json_lines_have_so_many_items_and_no_more() {
    let mut lines = Lines::default();
    let line = r#"{"item_id": "a", "text": "b"}"#;
    assert!(lines.read(line).unwrap().is_some());
    lines.items = weir_proto::limits::MAX_DOCUMENT_ITEMS;
    assert_eq!(lines.read(" ").unwrap(), None);
    let refused = lines.read(line).unwrap_err().to_string();
    assert!(
        refused.starts_with("line 3: ") && refused.contains("1000000 items"),
        "{refused}"
    );
}

/// Small valid documents with some bytes replaced, removed or repeated.
fn mutated(document: &'static str) -> impl Strategy<Value = Vec<u8>> {
    let edit = (
        0..document.len(),
        0usize..12,
        proptest::collection::vec(any::<u8>(), 0..4),
    );
    let syntax_edit = (
        0..document.len(),
        0usize..3,
        prop_oneof![
            Just(b"\n".to_vec()),
            Just(b"*a".to_vec()),
            Just(b"&a ".to_vec()),
            Just(b"<<: *a".to_vec()),
            Just(b"!!int ".to_vec()),
            Just(b"? ".to_vec()),
            Just(b"{".to_vec()),
            Just(b"]".to_vec()),
            Just(b"\"".to_vec()),
            Just(b"\\u0000".to_vec()),
            Just(b"1e999".to_vec()),
            Just(b"| ".to_vec()),
            Just("é\u{2028}".as_bytes().to_vec()),
        ],
    );
    proptest::collection::vec(prop_oneof![edit, syntax_edit], 0..6).prop_map(move |edits| {
        let mut bytes = document.as_bytes().to_vec();
        for (at, removed, inserted) in edits {
            let at = at.min(bytes.len());
            let end = (at + removed).min(bytes.len());
            bytes.splice(at..end, inserted);
        }
        bytes
    })
}

/// Every outcome is lawful: items within the limits and each id once, or an
/// error of a sentence.
fn check_lawful(result: &Result<Ingested, IngestError>) -> Result<(), TestCaseError> {
    match result {
        Ok(ingested) => {
            let mut ids = item_ids(ingested);
            ids.sort_unstable();
            ids.dedup();
            prop_assert_eq!(ids.len(), ingested.items.len());
            for item in &ingested.items {
                prop_assert_eq!(
                    check_item(&item.item_id, &item.text, item.metadata.as_ref()),
                    Ok(())
                );
            }
        }
        Err(error) => prop_assert!(error.to_string().len() < 1_500),
    }
    Ok(())
}

/// Values of all kinds, in each other.
fn values() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "[a-z]{0,3}".prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 200, 20, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..20).prop_map(Value::from),
            proptest::collection::btree_map("[a-z]{0,2}", inner, 0..20)
                .prop_map(|map| Value::from(Map::from_iter(map))),
        ]
    })
}

proptest! {
    #[test]
    fn a_document_without_aliases_may_take_what_it_takes(value in values()) {
        let value = json!({"a": value});
        let yaml = serde_saphyr::to_string(&value).unwrap();
        for text in [value.to_string(), yaml] {
            let taken = tree::taken(&text);
            prop_assert!(taken <= tree::estimate(text.as_bytes()), "{taken} bytes of {text}");
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        for format in [Format::OpenApi, Format::Markdown, Format::Text, Format::JsonLines] {
            check_lawful(&read(format, &bytes, "id"))?;
        }
    }

    #[test]
    fn arbitrary_texts_never_panic(text in "\\PC{0,200}", item_id in "\\PC{0,600}") {
        for format in [Format::OpenApi, Format::Markdown, Format::Text, Format::JsonLines] {
            check_lawful(&read(format, text.as_bytes(), &item_id))?;
        }
    }

    #[test]
    fn mutated_yaml_never_panics(bytes in mutated(SMALL_YAML)) {
        check_lawful(&read(Format::OpenApi, &bytes, ""))?;
    }

    #[test]
    fn mutated_json_never_panics(bytes in mutated(SMALL_JSON)) {
        check_lawful(&read(Format::OpenApi, &bytes, ""))?;
    }

    #[test]
    fn mutated_lines_never_panic(bytes in mutated(SMALL_LINES)) {
        check_lawful(&read(Format::JsonLines, &bytes, ""))?;
    }
}
