//! Files of models: what can be said comes back, what cannot is refused by name.

use std::{fmt::Write as _, fs};

use clap::Parser as _;
use proptest::{collection, option, prelude::*};

use super::*;
use crate::EmbedderConfig;

#[derive(clap::Parser)]
struct Flags {
    #[command(flatten)]
    config: EmbedderConfig,
}

fn flags(words: &[&str]) -> EmbedderConfig {
    let words = ["weir-worker"].iter().chain(words);
    Flags::try_parse_from(words).unwrap().config
}

fn read(text: &str) -> anyhow::Result<ModelsFile> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("models.toml");
    fs::write(&path, text).unwrap();
    ModelsFile::read(&path)
}

fn only(text: &str, words: &[&str]) -> Profile {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("models.toml");
    fs::write(&path, text).unwrap();
    let mut profiles = flags(words).profiles(Some(&path), &[]).unwrap();
    assert_eq!(profiles.len(), 1, "{text}");
    profiles.remove(0)
}

#[test]
fn a_whole_table_is_read() {
    let text = r#"
        [nomic-embed-text]
        provider = "openai"
        url = "https://x.example/openai/deployments/d/embeddings?api-version=1"
        served-as = "nomic-embed-text:v1.5"
        key-file = "/run/secrets/key"
        key-header = "API-Key"
        insecure-key = true
        encoding = "omit"
        ca-file = "/etc/ca.pem"
        proxy = "http://proxy:3128"
        dimension = 768
        send-dimension = true
        longest-input = 2048
        batch-size = 33
        batch-tokens = 16385
        concurrency = 5
        requests-per-minute = 500
        tokens-per-minute = 100000
        timeout = "6m"
        model-dir = "m"
        headers = { X-Tenant = "a b", x-secret = { file = "/run/secrets/x" } }
        body = { keep_alive = "1h", options = { num_ctx = 8192, list = [1, 2.5, true] } }
        [nomic-embed-text.document]
        prompt = "doc: "
        body = { input_type = "passage" }
        [nomic-embed-text.query]
        prompt = ""
        body = {}
    "#;
    let json = |value: serde_json::Value| Fields::from(value.as_object().unwrap().clone());
    let expected = Profile {
        name: "nomic-embed-text".into(),
        served_as: Some("nomic-embed-text:v1.5".into()),
        provider: EmbedderKind::Openai,
        url: "https://x.example/openai/deployments/d/embeddings?api-version=1"
            .parse()
            .ok(),
        key_file: Some("/run/secrets/key".into()),
        key_header: "api-key".into(),
        insecure_key: true,
        headers: BTreeMap::from([
            ("x-tenant".into(), HeaderSource::Value("a b".into())),
            (
                "x-secret".into(),
                HeaderSource::File("/run/secrets/x".into()),
            ),
        ]),
        body: json(serde_json::json!({
            "keep_alive": "1h", "options": {"num_ctx": 8192, "list": [1, 2.5, true]}
        })),
        document: RoleProfile {
            prompt: "doc: ".into(),
            body: json(serde_json::json!({"input_type": "passage"})),
        },
        query: RoleProfile::default(),
        encoding: Encoding::Omit,
        ca_file: Some("/etc/ca.pem".into()),
        proxy: "http://proxy:3128".parse().ok(),
        model_dir: Some("m".into()),
        dimension: Some(768),
        send_dimension: true,
        longest_input: Some(2048),
        batch_size: 33,
        batch_tokens: 16_385,
        concurrency: 5,
        requests_per_minute: std::num::NonZeroU32::new(500),
        tokens_per_minute: std::num::NonZeroU32::new(100_000),
        timeout: Duration::from_mins(6),
    };
    assert_eq!(only(text, &[]), expected);
}

#[test]
fn a_table_is_over_flags_and_flags_over_what_is_built_in() {
    let words = [
        "--embedder=openai",
        "--embedder-url=http://a",
        "--batch-size=16",
        "--embed-timeout=1m",
    ];
    // The built-in profile alone.
    let known = flags(&[]).profile("Qwen/Qwen3-Embedding-0.6B");
    assert_eq!(known.built_in(), Some("qwen3-embedding"));
    assert_eq!(
        (known.longest_input, known.batch_size),
        (Some(32_768), 32),
        "{known:?}"
    );
    // A table says what it says, as a whole, and flags the rest.
    let text = "[voyage-3]\nbatch-size = 8\nquery.body = { task = 'q' }\nbody = {}";
    let voyage = only(text, &words);
    assert_eq!(
        (voyage.provider, voyage.batch_size, voyage.timeout),
        (EmbedderKind::Openai, 8, Duration::from_mins(1))
    );
    let fields = |role: &RoleProfile| serde_json::to_string(&*role.body).unwrap();
    assert_eq!(fields(&voyage.query), r#"{"task":"q"}"#);
    assert_eq!(fields(&voyage.document), r#"{"input_type":"document"}"#);
    assert!(voyage.body.is_empty());
    // Flags are over the built-in profile.
    assert_eq!(flags(&words).profile("voyage-3").batch_size, 16);
    assert_eq!(flags(&[]).profile("voyage-3").batch_size, 128);
    // Fields of one API are not sent to the servers of another.
    let tei = only("[voyage-3]\nprovider = 'tei'\nurl = 'http://a'", &words);
    assert!(tei.body.is_empty() && tei.query.body.is_empty() && tei.document.body.is_empty());
    // An empty prompt is a prompt.
    let nomic = only("[nomic-embed-text]\ndocument.prompt = ''", &[]);
    assert_eq!(
        (nomic.document.prompt.as_str(), nomic.query.prompt.as_str()),
        ("", "search_query: ")
    );
}

#[test]
fn well_known_models_are_known_by_the_names_that_people_use() {
    for (name, known, document, query) in [
        (
            "nomic-embed-text",
            "nomic-embed-text",
            "search_document: ",
            "search_query: ",
        ),
        (
            "nomic-ai/nomic-embed-text-v1.5",
            "nomic-embed-text",
            "search_document: ",
            "search_query: ",
        ),
        (
            "hf.co/nomic-ai/nomic-embed-text-v1.5-GGUF:Q4_K_M",
            "nomic-embed-text",
            "search_document: ",
            "search_query: ",
        ),
        ("all-MiniLM-L6-v2", "all-minilm", "", ""),
        ("all-minilm:l12", "all-minilm", "", ""),
        (
            "BAAI/bge-small-en-v1.5",
            "bge-en-v1.5",
            "",
            "Represent this sentence for searching relevant passages: ",
        ),
        ("bge-m3:latest", "bge-m3", "", ""),
        (
            "intfloat/multilingual-e5-base",
            "e5",
            "passage: ",
            "query: ",
        ),
        ("E5-Large-v2", "e5", "passage: ", "query: "),
        (
            "snowflake-arctic-embed2:568m",
            "snowflake-arctic-embed-v2",
            "",
            "query: ",
        ),
        ("text-embedding-3-small", "text-embedding", "", ""),
        ("nvidia/nv-embedqa-e5-v5", "nv-embedqa", "", ""),
    ] {
        let profile = EmbedderConfig::default().profile(name);
        assert_eq!(profile.built_in(), Some(known), "{name}");
        assert_eq!(profile.document.prompt, document, "{name}");
        assert_eq!(profile.query.prompt, query, "{name}");
        assert_eq!(document_prompt(name), document, "{name}");
    }
    for name in [
        "",
        "my-nomic-embed-text",
        "nomic-embed-texts",
        "e5",
        "/",
        ":",
    ] {
        let profile = EmbedderConfig::default().profile(name);
        assert_eq!(profile.built_in(), None, "{name}");
        assert_eq!(profile.document, RoleProfile::default(), "{name}");
    }
    // By the name at the server, where its own says nothing.
    let text = "[docs]\nserved-as = 'intfloat/e5-base-v2'";
    assert_eq!(only(text, &[]).document.prompt, "passage: ");
    let text = "[e5-base-v2]\nserved-as = 'deployment-1'";
    assert_eq!(only(text, &[]).query.prompt, "query: ");
}

/// What is built in must not say where a model is, nor refuse its vectors.
#[test]
fn what_is_built_in_reaches_nobody_and_refuses_nothing() {
    let mut names = std::collections::BTreeSet::new();
    for known in known::all() {
        let says = &known.says;
        let kept_to = Partial {
            body: says.body.clone(),
            document: says.document.clone(),
            query: says.query.clone(),
            longest_input: says.longest_input,
            batch_size: says.batch_size,
            ..Partial::default()
        };
        assert_eq!(says, &kept_to, "{}", known.name);
        assert!(!known.names.is_empty(), "{}", known.name);
        for name in &known.names {
            assert!(names.insert(name), "{name} is there twice");
            assert_eq!(&known::plain(name), name);
            assert_eq!(known::of(name, None).unwrap().name, known.name);
        }
        let prompt = says.document.prompt.is_some() || says.query.prompt.is_some();
        let body = says.document.body.is_some() || says.query.body.is_some();
        assert!(!(prompt && body), "{}: a prompt twice", known.name);
    }
    // The page has them all.
    let page = include_str!("../../../docs/models.md");
    for name in names {
        assert!(
            page.contains(&format!("`{name}`")),
            "docs/models.md: {name}"
        );
    }
}

#[test]
fn nothing_that_may_be_secret_is_shown() {
    let text = "[m]\nurl = 'http://a/embed?key=hunter2'\nkey-file = 'key'\nheaders = { x-key = 'hunter2' }\n\
                body = { pass = 'hunter2' }\nquery.body = { pass = { word = 'hunter2' } }";
    let file = read(text).unwrap();
    let flags = flags(&["--embedder-url", "http://a/embed?key=hunter2"]);
    let profile = flags.profile("m");
    let shown = format!("{file:?} {:?} {flags:?} {profile:?}", file.profiles());
    assert!(!shown.contains("hunter2"), "{shown}");
    for part in ["http://a/embed?…", "\"key\"", "\"x-key\"", "\"pass\""] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
}

/// What a table says, and what is said of it.
const BAD: &[(&str, &str)] = &[
    (
        "ulr = 'http://a'",
        "there is no key `ulr`, expected one of `provider`, `url`",
    ),
    (
        "embedder-url = 'http://a'",
        "there is no key `embedder-url`",
    ),
    (
        "document.promt = ''",
        "document: there is no key `promt`, expected `prompt` or `body`",
    ),
    (
        "provider = 'oracle'",
        "provider: unknown variant `oracle`, expected one of `ollama`",
    ),
    ("provider = 1", "provider: "),
    ("url = 'a'", "url: it is not a URL"),
    ("url = 'ftp://a'", "url: it must begin with http://"),
    ("url = 'http://'", "url: "),
    ("url = 'http://u:hunter2@a'", "url: it must not hold a user"),
    ("url = 'http://a/#b'", "url: it must not have a fragment"),
    ("proxy = 'socks5://a'", "proxy: it must begin with http://"),
    (
        "proxy = 'http://a/b'",
        "proxy: it must end after host and port",
    ),
    ("served-as = ' '", "served-as: it must not be blank"),
    (
        "served-as = \"a\\nb\"",
        "served-as: it must not have control",
    ),
    ("key-file = ''", "key-file: it is not a path"),
    ("key-file = 5", "key-file: "),
    ("ca-file = ''", "ca-file: "),
    ("model-dir = ''", "model-dir: "),
    ("key-header = 'a b'", "key-header: a header's name"),
    (
        "key-header = 'Content-Type'",
        "key-header: the header content-type belongs",
    ),
    ("insecure-key = 'hunter2'", "insecure-key: "),
    ("batch-size = 'hunter2\", expected'", "batch-size: "),
    ("encoding = 'base32'", "encoding: unknown variant"),
    ("dimension = 0", "dimension: it is 0; 1 to 16000"),
    ("dimension = 16001", "dimension: it is 16001"),
    ("dimension = -1", "dimension: "),
    ("dimension = 7.5", "dimension: "),
    ("send-dimension = 1", "send-dimension: "),
    ("longest-input = 0", "longest-input: it is 0"),
    ("batch-size = 0", "batch-size: it is 0; 1 to 10000"),
    ("batch-size = 10001", "batch-size: "),
    ("batch-size = [1]", "batch-size: "),
    ("batch-size = true", "batch-size: "),
    ("batch-tokens = 4294967296", "batch-tokens: "),
    ("concurrency = 257", "concurrency: it is 257; 1 to 256"),
    ("requests-per-minute = 0", "requests-per-minute: "),
    ("tokens-per-minute = -5", "tokens-per-minute: "),
    ("timeout = '0s'", "timeout: it must be more than zero"),
    (
        "timeout = '25h'",
        "timeout: it must be more than zero and at most a day",
    ),
    ("timeout = 'soon'", "timeout: "),
    ("timeout = 5", "timeout: "),
    (
        "headers = 'hunter2'",
        "headers: invalid type: string, expected a map",
    ),
    (
        "headers = { 'a b' = 'c' }",
        "headers: \"a b\": a header's name",
    ),
    (
        "headers = { host = 'c' }",
        "headers: \"host\": the header host belongs",
    ),
    (
        "headers = { Content-Length = '1' }",
        "the header content-length belongs",
    ),
    (
        "headers = { a = \"hunter2\\n\" }",
        "headers: \"a\": a header's value is one line",
    ),
    (
        "headers = { a = 'hunter2ä' }",
        "headers: \"a\": a header's value is one line",
    ),
    ("headers = { a = '' }", "headers: \"a\": "),
    (
        "headers = { a = 72 }",
        "headers: \"a\": a header is a string, or { file =",
    ),
    (
        "headers = { a = { file = '' } }",
        "headers: \"a\": it is not a path",
    ),
    (
        "headers = { a = { fil = 'hunter2' } }",
        "headers: \"a\": a header is",
    ),
    (
        "headers = { a = { file = 'b', more = 1 } }",
        "headers: \"a\": a header is",
    ),
    (
        "headers = { a = 'b', A = 'c' }",
        "headers: \"A\": the header is there twice",
    ),
    ("body = 'hunter2'", "body: invalid type: string, expected"),
    ("body = [1]", "body: "),
    ("body = { model = 'a' }", "body: \"model\" is not to be set"),
    ("body = { input = 'a' }", "body: \"input\""),
    ("query.body = { inputs = 'a' }", "query.body: \"inputs\""),
    (
        "document.body = { prompt = 'a' }",
        "document.body: \"prompt\"",
    ),
    (
        "body = { a = [nan] }",
        "body: \"a\": JSON has no such number",
    ),
    (
        "query.prompt = \"a\\u0000\"",
        "query.prompt: it must not hold a NUL",
    ),
    ("query.prompt = ['hunter2']", "query.prompt: "),
    ("query = 'a'", "query: "),
];

#[test]
fn a_bad_file_is_refused_by_file_model_and_key() {
    let long = format!("document.prompt = '{}'", "x".repeat(4097));
    let long = [(&*long, "document.prompt: it has 4097 bytes")];
    for (table, told) in BAD.iter().chain(&long) {
        let error = read(&format!("[m]\n{table}\n")).unwrap_err();
        let error = format!("{error:#}");
        assert!(error.contains(told), "{table}: {error}");
        for named in [
            "--models-file (WEIR_MODELS_FILE)",
            "models.toml",
            "model \"m\"",
        ] {
            assert!(error.contains(named), "{table}: {error}");
        }
        assert!(!error.contains("hunter2"), "{table}: {error}");
        assert!(!error.contains('\n'), "{table}: {error}");
    }
}

#[test]
fn a_file_that_is_no_file_of_models_is_refused() {
    let long = format!("['{}']", "m".repeat(201));
    for (text, told) in [
        ("", "it names no model"),
        ("# nothing", "it names no model"),
        ("[m", "line 1 is not TOML"),
        ("[m]\nkey-file = \"hunter2", "line 2 is not TOML"),
        ("[m]\nurl = 'a'\nurl = 'b'", "line 3 is not TOML"),
        ("batch-size = 3", "this is no table"),
        ("[['m']]", "this is no table"),
        ("['']", "a model's name has 1 to 200"),
        ("[' m']", "a model's name has 1 to 200"),
        (&long, "a model's name has 1 to 200"),
        ("['a,b']", "a model's name has no comma"),
        ("[\"a\\nb\"]", "a model's name has no comma"),
        ("[embed-v4.0]", "stands in quotes: [\"embed-v4.0\"]"),
    ] {
        let error = format!("{:#}", read(text).unwrap_err());
        assert!(error.contains(told), "{text}: {error}");
        assert!(error.contains("WEIR_MODELS_FILE"), "{text}: {error}");
        assert!(!error.contains("hunter2"), "{text}: {error}");
    }
    let error = format!("{:#}", ModelsFile::read("/no/file".as_ref()).unwrap_err());
    assert!(error.contains("/no/file: it cannot be read"), "{error}");
}

#[tokio::test]
async fn contradictions_are_refused_by_name_when_an_embedder_is_built() {
    for (table, told) in [
        ("provider = 'local'", "model-dir (--local-model-dir"),
        (
            "provider = 'local'\nmodel-dir = 'm'\nurl = 'http://a'",
            "url (--embedder-url",
        ),
        (
            "provider = 'local'\nmodel-dir = 'm'\nkey-file = 'k'",
            "key-file (--embedder-api-key-file",
        ),
        (
            "provider = 'local'\nmodel-dir = 'm'\nheaders = { a = 'b' }",
            "headers is set",
        ),
        (
            "provider = 'local'\nmodel-dir = 'm'\nbody = { a = 'b' }",
            "body is set",
        ),
        (
            "provider = 'local'\nmodel-dir = 'm'\nquery.body = { a = 'b' }",
            "query.body is set",
        ),
        (
            "provider = 'local'\nmodel-dir = 'm'\nproxy = 'http://a'",
            "proxy is set",
        ),
        (
            "provider = 'local'\nmodel-dir = 'm'\nca-file = 'a'",
            "ca-file is set",
        ),
        ("provider = 'openai'", "url (--embedder-url"),
        ("provider = 'tei'", "url (--embedder-url"),
        ("encoding = 'float'", "encoding is for the openai"),
        (
            "dimension = 5\nsend-dimension = true",
            "send-dimension, or --dimensions",
        ),
        (
            "provider = 'openai'\nurl = 'http://a'\nsend-dimension = true",
            "dimension does not say",
        ),
        (
            "key-file = 'k'\nkey-header = 'X-Key'\nheaders = { x-key = 'a' }",
            "headers has \"x-key\", which carries the key",
        ),
    ] {
        let profile = only(&format!("[m]\n{table}\n"), &[]);
        let error = match crate::build(&profile, Role::Document).await {
            Ok(_) => panic!("{table} was taken"),
            Err(error) => format!("{error:#}"),
        };
        assert!(error.contains(told), "{table}: {error}");
    }
}

/// A string as TOML has it. JSON escapes the same, but for one character.
fn quoted(text: &str) -> String {
    serde_json::to_string(text)
        .unwrap()
        .replace('\u{7f}', "\\u007F")
}

fn toml_of(value: &serde_json::Value) -> String {
    use serde_json::Value;
    match value {
        Value::String(text) => quoted(text),
        Value::Array(values) => {
            let values: Vec<String> = values.iter().map(toml_of).collect();
            format!("[{}]", values.join(", "))
        }
        Value::Object(fields) => object_of(fields),
        other => other.to_string(),
    }
}

fn object_of(fields: &serde_json::Map<String, serde_json::Value>) -> String {
    let field = |(key, value): (&String, _)| format!("{} = {}", quoted(key), toml_of(value));
    let fields: Vec<String> = fields.iter().map(field).collect();
    format!("{{ {} }}", fields.join(", "))
}

/// A profile as its file has it, every key said.
fn written(profile: &Profile) -> String {
    let mut text = format!("[{}]\n", quoted(&profile.name));
    let mut say = |key: &str, value: String| writeln!(text, "{key} = {value}").unwrap();
    let path = |path: &PathBuf| quoted(path.to_str().unwrap());
    say("provider", quoted(profile.provider.as_str()));
    if let Some(url) = &profile.url {
        say("url", quoted(url.as_str()));
    }
    if let Some(name) = &profile.served_as {
        say("served-as", quoted(name));
    }
    for (key, file) in [
        ("key-file", &profile.key_file),
        ("ca-file", &profile.ca_file),
        ("model-dir", &profile.model_dir),
    ] {
        if let Some(file) = file {
            say(key, path(file));
        }
    }
    say("key-header", quoted(&profile.key_header));
    say("insecure-key", profile.insecure_key.to_string());
    say(
        "encoding",
        quoted(&format!("{:?}", profile.encoding).to_lowercase()),
    );
    if let Some(proxy) = &profile.proxy {
        say("proxy", quoted(proxy.as_str()));
    }
    for (key, number) in [
        ("dimension", profile.dimension.map(u32::from)),
        ("longest-input", profile.longest_input),
        ("batch-size", Some(profile.batch_size)),
        ("batch-tokens", Some(profile.batch_tokens)),
        ("concurrency", Some(profile.concurrency)),
        (
            "requests-per-minute",
            profile.requests_per_minute.map(Into::into),
        ),
        (
            "tokens-per-minute",
            profile.tokens_per_minute.map(Into::into),
        ),
    ] {
        if let Some(number) = number {
            say(key, number.to_string());
        }
    }
    say("send-dimension", profile.send_dimension.to_string());
    let timeout = humantime::format_duration(profile.timeout).to_string();
    say("timeout", quoted(&timeout));
    let headers = profile.headers.iter().map(|(name, source)| match source {
        HeaderSource::Value(value) => format!("{} = {}", quoted(name), quoted(value)),
        HeaderSource::File(file) => format!("{} = {{ file = {} }}", quoted(name), path(file)),
    });
    let headers: Vec<String> = headers.collect();
    say("headers", format!("{{ {} }}", headers.join(", ")));
    say("body", object_of(&profile.body));
    for (key, role) in [("document", &profile.document), ("query", &profile.query)] {
        say(&format!("{key}.prompt"), quoted(&role.prompt));
        say(&format!("{key}.body"), object_of(&role.body));
    }
    text
}

fn any_json() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        (-1e9..1e9_f64).prop_map(Into::into),
        any::<String>().prop_map(Into::into),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            collection::vec(inner.clone(), 0..3).prop_map(serde_json::Value::Array),
            collection::btree_map(any::<String>(), inner, 0..3)
                .prop_map(|fields| serde_json::Value::Object(fields.into_iter().collect())),
        ]
    })
}

fn any_body() -> impl Strategy<Value = Fields> {
    // None of them is one of those that are not to be set.
    let fields = collection::btree_map("x.{0,8}", any_json(), 0..3);
    fields.prop_map(|fields| Fields::from(fields.into_iter().collect::<serde_json::Map<_, _>>()))
}

fn any_role() -> impl Strategy<Value = RoleProfile> {
    let prompt = any::<String>().prop_map(|text| text.replace('\0', ""));
    (prompt, any_body()).prop_map(|(prompt, body)| RoleProfile { prompt, body })
}

prop_compose! {
    fn any_profile()(
        name in prop_oneof!["[a-z0-9.:/-]{1,20}".boxed(), Just("e5-base".to_owned()).boxed()],
        served_as in option::of("[ -~]{0,9}[!-~]"),
        provider in prop_oneof![
            Just(EmbedderKind::Ollama), Just(EmbedderKind::Openai), Just(EmbedderKind::Tei), Just(EmbedderKind::Local),
        ],
        places in (
            option::of("https?://[a-z]{1,9}(:[1-9][0-9]{0,3})?/[a-z/]{0,9}(\\?[a-z]=[a-z0-9]{0,5})?"),
            option::of("http://[a-z]{1,9}:[1-9][0-9]{0,3}/?"),
        ),
        files in (option::of("[^\0]{1,12}"), option::of("[^\0]{1,12}"), option::of("[^\0]{1,12}")),
        key in ("x-[a-z0-9]{1,9}", any::<bool>()),
        headers in collection::btree_map("y-[a-z0-9]{1,9}", prop_oneof![
            "[ -~]{0,9}[!-~]".prop_map(HeaderSource::Value),
            "[^\0]{1,12}".prop_map(|path| HeaderSource::File(path.into())),
        ], 0..3),
        body in any_body(),
        roles in (any_role(), any_role()),
        encoding in prop_oneof![
            Just(Encoding::Auto), Just(Encoding::Base64), Just(Encoding::Float), Just(Encoding::Omit),
        ],
        dimension in (option::of(1..=16_000_u16), any::<bool>()),
        longest_input in option::of(1..=u32::MAX),
        sizes in (1..=10_000_u32, 1..=u32::MAX, 1..=256_u32),
        quotas in (any::<u32>(), any::<u32>()),
        timeout in 1..=86_400_000_u64,
    ) -> Profile {
        Profile {
            name,
            served_as,
            provider,
            url: places.0.and_then(|url| url.parse().ok()),
            proxy: places.1.and_then(|url| url.parse().ok()),
            key_file: files.0.map(Into::into),
            ca_file: files.1.map(Into::into),
            model_dir: files.2.map(Into::into),
            key_header: key.0,
            insecure_key: key.1,
            headers,
            body,
            document: roles.0,
            query: roles.1,
            encoding,
            dimension: dimension.0,
            send_dimension: dimension.1,
            longest_input,
            batch_size: sizes.0,
            batch_tokens: sizes.1,
            concurrency: sizes.2,
            requests_per_minute: std::num::NonZeroU32::new(quotas.0),
            tokens_per_minute: std::num::NonZeroU32::new(quotas.1),
            timeout: Duration::from_millis(timeout),
        }
    }
}

proptest! {
    #[test]
    fn a_profile_that_is_written_reads_back_the_same(profile in any_profile()) {
        // What a built-in profile says below shows only where the file is silent.
        prop_assume!(profile.longest_input.is_some() || profile.built_in().is_none());
        let text = written(&profile);
        let file = read(&text).map_err(|error| TestCaseError::fail(format!("{error:#}\n{text}")))?;
        prop_assert_eq!(file.profiles(), vec![profile]);
    }

    #[test]
    fn no_file_brings_its_reader_down(text in ".{0,200}") {
        let _ = read(&text);
        let _ = read(&format!("[m]\n{text}"));
    }
}
