//! OpenAPI documents.

use serde_json::json;

use super::*;

fn read_json(document: &Value) -> Ingested {
    read(Format::OpenApi, document.to_string().as_bytes(), "").unwrap()
}

fn read_yaml(document: &str) -> Ingested {
    read(Format::OpenApi, document.as_bytes(), "").unwrap()
}

/// A document of these paths.
fn with_paths(paths: &Value) -> Value {
    json!({"openapi": "3.1.0", "info": {"title": "t", "version": "1"}, "paths": paths})
}

const SHOP: &str = r#"
openapi: 3.0.3
info: {title: Shop, version: "1"}
paths:
  /orders/{order_id}:
    summary: One order
    parameters:
      - $ref: '#/components/parameters/OrderId'
      - {name: trace, in: header, description: Overridden below.}
    get:
      operationId: getOrder
      summary: Look up an order
      description: |
        Finds one order.

        With its lines.
      tags: [Orders, Reading]
      deprecated: true
      parameters:
        - {name: trace, in: header, description: An id for the logs.}
        - name: expand
          in: query
          schema: {type: string, description: What to include., enum: [lines, customer]}
      responses:
        200:
          description: The order.
          content:
            application/json:
              schema: {$ref: '#/components/schemas/Order'}
        404:
          description: No such order.
          content:
            application/json:
              schema: {properties: {secret_error_field: {description: Not told.}}}
    put:
      summary: Replace an order
      requestBody: {$ref: '#/components/requestBodies/Order'}
      responses:
        default: {$ref: '#/components/responses/Gone'}
components:
  parameters:
    OrderId: {name: order_id, in: path, required: true, description: The order's number.}
  requestBodies:
    Order:
      description: The order as it shall be.
      content:
        application/json:
          schema: {$ref: '#/components/schemas/Order'}
  responses:
    Gone:
      description: It is replaced.
      content:
        application/json:
          schema: {type: object, properties: {replaced_at: {description: When.}}}
  schemas:
    Order:
      type: object
      properties:
        buyer:
          description: Who pays.
          allOf: [{$ref: '#/components/schemas/Person'}]
        lines:
          type: array
          items: {$ref: '#/components/schemas/Line'}
        parent: {$ref: '#/components/schemas/Order'}
    Person:
      properties:
        name: {type: string, description: "Full\n  name."}
    Line:
      oneOf:
        - properties: {sku: {description: What was bought.}}
        - properties: {voucher: {title: Voucher code}}
"#;

#[test]
fn an_operation_becomes_a_text_with_the_telling_things_first() {
    let ingested = read_yaml(SHOP);
    assert_eq!(ingested.warnings, []);
    assert_eq!(item_ids(&ingested), ["getOrder", "PUT /orders/{order_id}"]);
    assert_eq!(
        ingested.items[0].text,
        "Look up an order\n\
         Finds one order.\n\
         \n\
         With its lines.\n\
         GET /orders/{order_id}\n\
         Tags: Orders, Reading\n\
         Parameters:\n\
         trace (header): An id for the logs.\n\
         expand (query): What to include. (one of lines, customer)\n\
         order_id (path): The order's number.\n\
         Responses:\n\
         200: The order.\n\
         Response fields:\n\
         buyer: Who pays.\n\
         lines\n\
         parent\n\
         buyer.name: Full name.\n\
         lines.sku: What was bought.\n\
         lines.voucher: Voucher code"
    );
    assert_eq!(
        ingested.items[1].text,
        "Replace an order\n\
         PUT /orders/{order_id}\n\
         Parameters:\n\
         order_id (path): The order's number.\n\
         trace (header): Overridden below.\n\
         Request body: The order as it shall be.\n\
         buyer: Who pays.\n\
         lines\n\
         parent\n\
         buyer.name: Full name.\n\
         lines.sku: What was bought.\n\
         lines.voucher: Voucher code\n\
         Responses:\n\
         default: It is replaced.\n\
         Response fields:\n\
         replaced_at: When."
    );
}

#[test]
fn metadata_says_where_an_operation_is() {
    let ingested = read_yaml(SHOP);
    assert_eq!(
        Value::from(ingested.items[0].metadata.clone()),
        json!({
            "method": "GET",
            "path": "/orders/{order_id}",
            "summary": "Look up an order",
            "tags": ["Orders", "Reading"],
            "deprecated": true,
        })
    );
    assert_eq!(
        Value::from(ingested.items[1].metadata.clone()),
        json!({"method": "PUT", "path": "/orders/{order_id}", "summary": "Replace an order"})
    );
}

#[test]
fn json_and_yaml_of_the_same_document_are_the_same() {
    let tree: Value = serde_saphyr::from_str(SHOP).unwrap();
    assert_eq!(read_json(&tree), read_yaml(SHOP));
}

#[test]
fn openapi_2_has_its_body_among_the_parameters() {
    let ingested = read_yaml(
        r"
swagger: 2.0
paths:
  /pets:
    post:
      parameters:
        - {name: photo, in: formData, type: file, description: A picture.}
        - {name: pet, in: body, description: The new pet., schema: {$ref: '#/definitions/Pet'}}
      responses:
        201: {description: Added., schema: {$ref: '#/definitions/Pet'}}
definitions:
  Pet: {properties: {name: {description: What it answers to.}}}
",
    );
    assert_eq!(
        ingested.items[0].text,
        "POST /pets\n\
         Parameters:\n\
         photo (form): A picture.\n\
         Request body: The new pet.\n\
         name: What it answers to.\n\
         Responses:\n\
         201: Added.\n\
         Response fields:\n\
         name: What it answers to."
    );
}

#[test]
fn versions_are_told_apart() {
    for version in ["2.0", "3.0", "3.0.0", "3.0.4", "3.1.0", "3.1.1-rc0"] {
        let document = json!({"openapi": version, "paths": {"/": {"get": {}}}});
        assert_eq!(item_ids(&read_json(&document)), ["GET /"]);
    }
    for version in ["1.2", "3.2.0", "3.10", "3", "4.0.0", "latest"] {
        let document = json!({"openapi": version, "paths": {"/": {"get": {}}}});
        assert_eq!(
            refusal(Format::OpenApi, document.to_string()),
            format!("OpenAPI version {version:?} is not supported; 2.0, 3.0 and 3.1 are")
        );
    }
    // Without quotes YAML makes it a number.
    assert_eq!(
        read_yaml("openapi: 3.1\npaths: {/: {get: {}}}").items.len(),
        1
    );
}

#[test]
fn what_is_not_an_openapi_document_is_refused() {
    for (content, expected) in [
        ("just some words", "it is not an object"),
        ("- a\n- b", "it is not an object"),
        ("name: x\npaths: {}", "it has neither an \"openapi\" nor"),
        (r#"{"paths": {}}"#, "it has neither an \"openapi\" nor"),
    ] {
        let error = refusal(Format::OpenApi, content);
        assert!(
            error.starts_with("the content is not an OpenAPI document") && error.contains(expected),
            "{error}"
        );
    }
}

#[test]
fn a_document_without_operations_is_refused() {
    for content in [
        "openapi: 3.1.0",
        "openapi: 3.1.0\npaths:",
        "openapi: 3.1.0\npaths: {}",
        "openapi: 3.1.0\npaths: {/a: , x-b: {get: {}}, /c: {summary: Nothing}}",
        "openapi: 3.1.0\nwebhooks: {created: {post: {summary: Sent on creation}}}",
    ] {
        assert_eq!(
            read(Format::OpenApi, content.as_bytes(), ""),
            Err(IngestError::NoOperations)
        );
    }
}

#[test]
fn broken_json_and_yaml_are_refused_with_the_place() {
    assert_eq!(
        refusal(Format::OpenApi, "{\"openapi\": \"3.1.0\",\n \"paths\": {"),
        "the content cannot be read as JSON: EOF while parsing an object (line 2, column 11)"
    );
    let error = refusal(Format::OpenApi, "openapi: 3.1.0\npaths:\n  /a: [get, {\n");
    assert!(
        error.starts_with("the content cannot be read as YAML: ") && error.contains("line"),
        "{error}"
    );
    let error = refusal(Format::OpenApi, "openapi: 3.1.0\n\tpaths: {}\n");
    assert!(error.contains("tab"), "{error}");
    assert!(refusal(Format::OpenApi, "{} trailing").contains("trailing characters"));
    assert!(refusal(Format::OpenApi, "a: 1\n---\nb: 2").contains("YAML"));
}

#[test]
fn a_key_that_occurs_twice_is_refused() {
    let json = r#"{"openapi": "3.1.0", "paths": {"/a": {"get": {}}, "/a": {"put": {}}}}"#;
    assert!(refusal(Format::OpenApi, json).contains("\"/a\" occurs twice"));
    let yaml = "openapi: 3.1.0\npaths:\n  /a: {get: {}}\n  /a: {put: {}}\n";
    let error = refusal(Format::OpenApi, yaml);
    assert!(error.contains("/a") && error.contains("line 4"), "{error}");
}

#[test]
fn operations_that_share_an_id_are_kept_apart_and_reported() {
    let ingested = read_json(&with_paths(&json!({
        "/v1/things": {"post": {"operationId": "createThing"}},
        "/v2/things": {"post": {"operationId": "createThing"}},
        // What the second would be called.
        "/v3/things": {"post": {"operationId": "createThing (POST /v2/things)"}},
        "/v4/things": {"post": {"operationId": "createThing"}, "get": {"operationId": " "}},
    })));
    assert_eq!(
        item_ids(&ingested),
        [
            "createThing",
            "createThing (POST /v2/things) #2",
            "createThing (POST /v2/things)",
            "GET /v4/things",
            "createThing (POST /v4/things)",
        ]
    );
    let warned: Vec<&str> = ingested
        .warnings
        .iter()
        .map(|warning| warning.item_id.as_str())
        .collect();
    assert_eq!(
        warned,
        [
            "createThing (POST /v2/things) #2",
            "createThing (POST /v4/things)"
        ]
    );
    assert!(ingested.warnings[0].message.contains("POST /v2/things"));
}

#[test]
fn ids_are_made_to_obey_the_limits() {
    let long = "x".repeat(600);
    let ingested = read_json(&with_paths(&json!({
        "/a": {"get": {"operationId": format!("{long}1")}},
        "/b": {"get": {"operationId": format!("{long}2")}},
        "/c": {"get": {"operationId": "é".repeat(300)}},
        "/d": {"get": {"operationId": "two\nlines"}},
        "/e\n": {"get": {}},
    })));
    assert_eq!(ingested.warnings.len(), 5);
    let ids = item_ids(&ingested);
    assert!(ids[0].len() <= MAX_ITEM_ID_BYTES && ids[0].len() > 500);
    assert_ne!(ids[0], ids[1]);
    assert_eq!(&ids[3..], ["two lines", "GET /e "]);
    for (item, warning) in ingested.items.iter().zip(&ingested.warnings) {
        assert_eq!(check_item_id(&item.item_id), Ok(()));
        assert_eq!(item.item_id, warning.item_id);
    }
}

#[test]
fn references_that_lead_nowhere_are_skipped_and_reported_once() {
    let missing = json!({"$ref": "#/components/schemas/Missing"});
    let body = json!({"content": {"application/json": {"schema": missing}}});
    let ingested = read_json(&with_paths(&json!({
        "/a": {"post": {"operationId": "a", "requestBody": body}},
        "/b": {"post": {"operationId": "b", "requestBody": body}},
        "/c": {"$ref": "other.yaml#/paths/c"},
        "/d": {"post": {"operationId": "d", "parameters": [{"$ref": "#/paths/~1d/post/parameters/0"}]}},
    })));
    assert_eq!(item_ids(&ingested), ["a", "b", "d"]);
    let messages: Vec<String> = ingested
        .warnings
        .iter()
        .map(|warning| format!("{:?}: {}", warning.item_id, warning.message))
        .collect();
    assert_eq!(
        messages,
        [
            "\"\": $ref \"other.yaml#/paths/c\" points outside the document; it was skipped",
            "\"a\": $ref \"#/components/schemas/Missing\" points to nothing in the document; it \
             was skipped",
            "\"d\": $ref \"#/paths/~1d/post/parameters/0\" leads in a circle; it was skipped",
        ]
    );
}

#[test]
fn path_items_may_be_referenced_and_names_escaped() {
    let mut document = with_paths(&json!({"/a": {"$ref": "#/components/pathItems/a~1b%20c"}}));
    document["components"] = json!({"pathItems": {"a/b c": {
        "summary": "Shared words", "get": {"operationId": "shared"}}}});
    let ingested = read_json(&document);
    assert_eq!(ingested.items[0].text, "Shared words\nGET /a");
    assert_eq!(ingested.warnings, []);
}

#[test]
fn warnings_are_bounded() {
    let paths: Map<String, Value> = (0..1_500)
        .map(|n| (format!("/{n}"), json!({"get": {"operationId": "same"}})))
        .collect();
    let ingested = read_json(&with_paths(&paths.into()));
    assert_eq!(ingested.items.len(), 1_500);
    assert_eq!(ingested.warnings.len(), MAX_WARNINGS);
    let last = ingested.warnings.last().unwrap();
    assert_eq!(last.message, "500 more findings were left out");
}

#[test]
fn operations_of_the_wrong_shape_are_skipped_and_reported() {
    let ingested = read_yaml("openapi: 3.1.0\npaths:\n  /a: {get: , put: {}}\n  /b: oops\n");
    assert_eq!(item_ids(&ingested), ["PUT /a"]);
    assert_eq!(ingested.warnings.len(), 2);
}

#[test]
fn a_nul_written_as_an_escape_is_refused_where_it_would_be_stored() {
    let error = refusal(
        Format::OpenApi,
        with_paths(&json!({"/a": {"get": {"summary": "a\0b"}}})).to_string(),
    );
    assert_eq!(
        error,
        "GET /a: text has a NUL character at byte 1; remove it"
    );
    // Many documents have one in a pattern, which no text shows.
    let ingested = read_json(&with_paths(&json!({
        "/a": {"get": {"parameters": [{"name": "p", "in": "query", "schema": {"pattern": "\0"}}]}}
    })));
    assert_eq!(ingested.items.len(), 1);
}

#[test]
fn yaml_keys_and_values_that_are_not_strings_are_taken_as_written() {
    let ingested = read_yaml(
        "openapi: 3.1.0\npaths:\n  /a:\n    get:\n      operationId: 7\n      summary: on\n      \
         x-big: 123456789012345678901234567890\n      x-nan: .nan\n      x-inf: -.inf\n      \
         responses:\n        200: {description: yes, content: {j: {schema: {properties: {on: {description: 'no'}}}}}}\n",
    );
    assert_eq!(item_ids(&ingested), ["7"]);
    assert_eq!(
        ingested.items[0].text,
        "on\nGET /a\nResponses:\n200: yes\nResponse fields:\non: no"
    );
}

#[test]
fn anchors_in_moderate_use_work() {
    use std::fmt::Write as _;
    let mut document = "openapi: 3.1.0\nx-shared: &ok {200: {description: Fine.}}\n\
         x-base: &base {summary: Shared}\npaths:\n"
        .to_owned();
    for n in 0..500 {
        writeln!(
            document,
            "  /{n}: {{get: {{<<: *base, operationId: op{n}, responses: *ok}}}}"
        )
        .unwrap();
    }
    let ingested = read_yaml(&document);
    assert_eq!(ingested.items.len(), 500);
    assert_eq!(
        ingested.items[499].text,
        "Shared\nGET /499\nResponses:\n200: Fine."
    );
}

#[test]
fn the_example_reads_without_a_warning() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../examples/logistics.openapi.yaml"
    );
    let ingested = read(Format::OpenApi, &std::fs::read(path).unwrap(), "").unwrap();
    assert_eq!(ingested.items.len(), 148);
    assert_eq!(ingested.warnings, []);
    for item in &ingested.items {
        let metadata = item.metadata.as_ref().unwrap();
        assert!(metadata.contains_key("summary"), "{}", item.item_id);
        assert!(!item.item_id.contains(' '), "{}", item.item_id);
    }
}

#[test]
fn the_other_examples_read_too() {
    let example = |name: &str| {
        std::fs::read(format!("{}/../examples/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
    };
    let products = read(Format::JsonLines, &example("products.jsonl"), "").unwrap();
    assert_eq!(products.items.len(), 20);
    let handbook = read(Format::Markdown, &example("handbook.md"), "handbook").unwrap();
    assert_eq!(handbook.items.len(), 1);
}
