//! Markdown, plain text, JSON Lines and the limits of items.

use serde_json::json;

use super::*;

#[test]
fn a_markdown_document_is_one_item() {
    let ingested = read(
        Format::Markdown,
        b"\xef\xbb\xbf# Title\n\nText\n",
        "handbook",
    )
    .unwrap();
    assert_eq!(
        ingested.items,
        [Item {
            item_id: "handbook".to_owned(),
            text: "# Title\n\nText\n".to_owned(),
            kind: TextKind::Markdown,
            heading: String::new(),
            metadata: None,
        }]
    );
    assert_eq!(ingested.warnings, []);
}

#[test]
fn a_plain_text_is_one_item_to_be_split_as_plain() {
    let ingested = read(Format::Text, b"# not a heading", "note").unwrap();
    assert_eq!(ingested.items[0].kind, TextKind::Plain);
}

#[test]
fn blank_documents_are_refused() {
    for content in ["", " \n\t\r\n", "\u{feff}  "] {
        for format in [
            Format::OpenApi,
            Format::Markdown,
            Format::Text,
            Format::JsonLines,
        ] {
            assert_eq!(
                read(format, content.as_bytes(), "id"),
                Err(IngestError::Blank)
            );
        }
    }
}

#[test]
fn invalid_utf8_is_refused_with_its_offset() {
    for format in [Format::OpenApi, Format::Markdown, Format::JsonLines] {
        assert_eq!(
            read(format, b"openapi: \xff", "id"),
            Err(IngestError::NotUtf8 { offset: 9 })
        );
    }
}

#[test]
fn a_nul_byte_is_refused_with_its_offset() {
    for format in [Format::OpenApi, Format::Text, Format::JsonLines] {
        assert_eq!(
            read(format, b"ab\0c", "id"),
            Err(IngestError::Nul { offset: 2 })
        );
    }
}

#[test]
fn the_id_of_a_document_is_checked() {
    let error = read(Format::Text, b"text", "a\nb").unwrap_err().to_string();
    assert_eq!(
        error,
        "the document: item_id has the control character U+000A at byte 1; remove it"
    );
}

#[test]
fn too_long_a_document_is_refused() {
    let text = "a".repeat(MAX_ITEM_TEXT_BYTES + 1);
    assert!(refusal(Format::Text, &text).contains("at most 33554432 are allowed"));
    assert!(read(Format::Text, &text.as_bytes()[1..], "id").is_ok());
}

#[test]
fn json_lines_are_items() {
    let content = "\u{feff}{\"item_id\": \"a\", \"text\": \"one\"}\r\n\n  \n\
         {\"item_id\": \"b\", \"text\": \"two\", \"metadata\": {\"n\": 1}}\n\
         {\"item_id\": \"c\", \"text\": \"three\", \"metadata\": null}";
    let ingested = read(Format::JsonLines, content.as_bytes(), "ignored").unwrap();
    assert_eq!(item_ids(&ingested), ["a", "b", "c"]);
    assert_eq!(ingested.items[0].metadata, None);
    assert_eq!(
        ingested.items[1].metadata,
        json!({"n": 1}).as_object().cloned()
    );
    assert_eq!(ingested.items[2].metadata, None);
    assert_eq!(ingested.items[1].kind, TextKind::Plain);
}

#[test]
fn a_wrong_line_is_named() {
    let good = "{\"item_id\": \"a\", \"text\": \"one\"}\n\n";
    for (line, expected) in [
        ("{\"item_id\": \"b\", ", "EOF while parsing"),
        ("[1]", "invalid type: integer `1`, expected a string"),
        ("{\"item_id\": \"b\"}", "missing field `text`"),
        ("{\"text\": \"b\"}", "missing field `item_id`"),
        (
            r#"{"item_id": "b", "text": "t", "meta": {}}"#,
            "unknown field `meta`, expected one of `item_id`, `text`, `metadata`",
        ),
        (
            r#"{"item_id": "b", "item_id": "c", "text": "t"}"#,
            "duplicate field `item_id`",
        ),
        (r#"{"item_id": "", "text": "t"}"#, "item_id is empty"),
        (
            r#"{"item_id": "b", "text": " \n"}"#,
            "text is blank: there is nothing to embed",
        ),
        (
            r#"{"item_id": "b", "text": "x\u0000"}"#,
            "text has a NUL character at byte 1",
        ),
        (
            r#"{"item_id": "b\u0000", "text": "x"}"#,
            "item_id has the control character U+0000 at byte 1",
        ),
        (
            r#"{"item_id": "b", "text": "t", "metadata": [1]}"#,
            "metadata must be an object, not \"[1]\"",
        ),
        (
            r#"{"item_id": "b", "text": "t", "metadata": {"a": ["\u0000"]}}"#,
            "metadata has a NUL character in a key or string",
        ),
        (
            r#"{"item_id": "b", "text": "t", "metadata": {"a": {"\u0000": 1}}}"#,
            "metadata has a NUL character in a key or string",
        ),
        (
            r#"{"item_id": "a", "text": "again"}"#,
            "item_id \"a\" is already on line 1; each may occur once",
        ),
    ] {
        let error = refusal(Format::JsonLines, format!("{good}{line}\n"));
        assert!(
            error.starts_with(&format!("line 3: {expected}")),
            "{line} gave {error}"
        );
    }
}

#[test]
fn a_fault_in_a_line_names_the_column() {
    let error = refusal(Format::JsonLines, r#"{"item_id": 7, "text": "t"}"#);
    assert_eq!(
        error,
        "line 1: invalid type: integer `7`, expected a string (column 13)"
    );
}

#[test]
fn metadata_may_have_sixteen_kibibytes() {
    let line = |bytes: usize| {
        let fill = "x".repeat(bytes - r#"{"a":""}"#.len());
        format!(r#"{{"item_id":"i","text":"t","metadata":{{"a":"{fill}"}}}}"#)
    };
    let most = line(MAX_METADATA_BYTES);
    assert!(read(Format::JsonLines, most.as_bytes(), "").is_ok());
    assert!(
        refusal(Format::JsonLines, line(MAX_METADATA_BYTES + 1))
            .contains("metadata is 16385 bytes of JSON; at most 16384 are allowed")
    );
    // As it is written, for it is not parsed before.
    let blanks = " ".repeat(MAX_METADATA_BYTES);
    let spaced = format!(r#"{{"item_id":"i","text":"t","metadata":{{{blanks}}}}}"#);
    assert!(refusal(Format::JsonLines, spaced).contains("metadata is 16386 bytes"));
    let items = json!({"a": "x".repeat(MAX_METADATA_BYTES - 7)});
    let fault = check_item("i", "t", items.as_object()).unwrap_err();
    assert_eq!(
        fault.to_string(),
        "metadata is 16385 bytes of JSON; at most 16384 are allowed"
    );
}

#[test]
fn refusals_do_not_echo_large_payloads() {
    let huge = "secret".repeat(100_000);
    for content in [
        format!(r#"{{"{huge}": 1}}"#),
        format!(r#"{{"item_id": "i", "text": "t", "metadata": "{huge}"}}"#),
        format!(r#"{{"item_id": {{"a": "{huge}"}}}}"#),
        format!(r#""{huge}""#),
        format!("{{\"item_id\":\"{huge}\",\"text\":\"t\"}}"),
    ] {
        let error = refusal(Format::JsonLines, &content);
        assert!(error.len() < 1_000, "{} bytes", error.len());
        let error = refusal(Format::OpenApi, &content);
        assert!(error.len() < 1_000, "{} bytes", error.len());
    }
    let error = refusal(Format::OpenApi, format!("{huge}: 1\n{huge}: 2\n"));
    assert!(error.len() < 1_000, "{} bytes", error.len());
    let error = refusal(Format::OpenApi, format!("openapi: {huge}"));
    assert!(error.len() < 1_000, "{} bytes", error.len());
}

#[test]
fn items_of_a_client_are_checked_field_by_field() {
    let field = |result: Result<(), ItemFault>| result.unwrap_err().field;
    assert_eq!(check_item("a", "text", None), Ok(()));
    assert_eq!(check_item(&"é".repeat(256), "text", None), Ok(()));
    assert_eq!(field(check_item("", "text", None)), "item_id");
    assert_eq!(field(check_item(&"é".repeat(257), "text", None)), "item_id");
    assert_eq!(field(check_item("a\u{85}", "text", None)), "item_id");
    assert_eq!(field(check_item("a", "\u{3000}", None)), "text");
    let metadata = json!({"a": "\0"});
    assert_eq!(
        field(check_item("a", "t", metadata.as_object())),
        "metadata"
    );
}
