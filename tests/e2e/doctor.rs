//! `weir doctor`: what is well, and what to mend where something is not.

use serde_json::Value;
use weir_tests::{
    cluster::weir_in,
    postgres::{OwnPostgres, TestDatabase},
};

use crate::{clients::until, world::World};

/// What the doctor found of a part: ok, warning or failed, and why.
struct Visit {
    code: Option<i32>,
    findings: Vec<Value>,
}

impl Visit {
    async fn of(environment: &[(&str, &str)], args: &[&str]) -> Self {
        let output = weir_in(environment, &[&["doctor", "--json"], args].concat()).await;
        let said: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {output:?}"));
        Self {
            code: output.status.code(),
            findings: said["checks"]
                .as_array()
                .cloned()
                .unwrap_or_else(|| panic!("{said}")),
        }
    }

    fn found(&self, part: &str) -> (&str, &str) {
        let finding = self.findings.iter().find(|it| it["part"] == part);
        let finding = finding.unwrap_or_else(|| panic!("{part} is not in {:?}", self.findings));
        (
            finding["outcome"].as_str().unwrap(),
            finding["text"].as_str().unwrap(),
        )
    }

    #[track_caller]
    fn assert(&self, part: &str, outcome: &str, why: &str) {
        let (found, text) = self.found(part);
        assert_eq!(found, outcome, "{part}: {text}");
        assert!(text.contains(why), "{part}: {text}");
    }
}

#[tokio::test]
async fn all_is_well_where_it_is() {
    let world = World::start(&[]).await;
    let environment = [("WEIR_COORDINATOR", &*world.coordinator.url())];
    let embedder = world.embedder.url();
    let args = [
        "--database-url",
        world.database.url(),
        "--model",
        "fake",
        "--embedder",
        "ollama",
        "--embedder-url",
        &embedder,
    ];
    let visit = Visit::of(&environment, &args).await;
    assert_eq!(visit.code, Some(0), "{:?}", visit.findings);
    for part in [
        "configuration",
        "coordinator",
        "health",
        "access",
        "version",
        "namespace default",
        "database",
        "PostgreSQL",
        "pgvector",
        "schema",
        "permissions",
    ] {
        visit.assert(part, "ok", "");
    }
    visit.assert("embedder of fake", "ok", "vectors of 16 numbers");
    visit.assert("profile of fake", "ok", "no built-in profile");
    assert!(world.embedder.calls().len() >= 2, "it was called");

    // In words, a line each.
    let output = weir_in(&environment, &["doctor"]).await;
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.lines().all(|line| line.starts_with("ok ")), "{said}");
}

#[tokio::test]
async fn each_part_that_is_ill_says_what_to_mend() {
    let visit = Visit::of(&[("WEIR_COORDINATOR", "http://127.0.0.1:1")], &[]).await;
    assert_eq!(visit.code, Some(1), "{:?}", visit.findings);
    visit.assert("coordinator", "failed", "http://127.0.0.1:1");

    // What lies beyond is looked at all the same.
    let database = TestDatabase::create().await;
    let away = [("WEIR_COORDINATOR", "http://127.0.0.1:1")];
    let visit = Visit::of(&away, &["--database-url", database.url()]).await;
    visit.assert("database", "ok", "");
    visit.assert("schema", "warning", "steps are pending");
    let visit = Visit::of(
        &away,
        &["--database-url", "postgres://nobody@127.0.0.1:1/none"],
    )
    .await;
    visit.assert("database", "failed", "--database-url (WEIR_DATABASE_URL)");
    let visit = Visit::of(&away, &["--database-url", "mysql://a:secret@127.0.0.1/b"]).await;
    visit.assert("database", "failed", "is not a Postgres URL");
    assert!(!visit.found("database").1.contains("secret"));

    let args = [
        "--model",
        "fake",
        "--embedder",
        "ollama",
        "--embedder-url",
        "http://127.0.0.1:1",
    ];
    let visit = Visit::of(&away, &args).await;
    visit.assert("embedder of fake", "failed", "127.0.0.1:1");
    let visit = Visit::of(
        &away,
        &[
            "--embedder",
            "ollama",
            "--embedder-url",
            "http://127.0.0.1:1",
        ],
    )
    .await;
    visit.assert("embedder", "failed", "--model (WEIR_MODEL)");

    let visit = Visit::of(&[("WEIR_CONFIG", "/nowhere/config.toml")], &[]).await;
    assert_eq!(visit.code, Some(1));
    visit.assert("configuration", "failed", "/nowhere/config.toml");
}

#[tokio::test]
async fn a_coordinator_without_its_database_does_not_serve() {
    let mut postgres = OwnPostgres::start(&[]).await;
    let database = TestDatabase::create_on(&postgres).await;
    let world = World::start_on(database, &[("WEIR_DATABASE_TIMEOUT", "1s")]).await;
    postgres.kill().await;
    let environment = [("WEIR_COORDINATOR", &*world.coordinator.url())];
    let mut visit = Visit::of(&environment, &[]).await;
    until(async || {
        visit = Visit::of(&environment, &[]).await;
        visit.found("health").0 == "failed"
    })
    .await;
    visit.assert("coordinator", "ok", "");
    visit.assert("health", "failed", "its database does not answer");
    assert_eq!(visit.code, Some(1));
    postgres.start_again().await;
}

#[tokio::test]
async fn each_profile_of_a_file_is_tried_and_told() {
    let world = World::start(&[]).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap();
    let tables = |dimension| {
        format!(
            "[nomic-embed-text]\nurl = \"{0}\"\ndimension = {dimension}\n[\"own.model\"]\nurl = \"{0}\"\n\
             served-as = \"fake\"\ndocument.prompt = \"doc: \"\n[away]\nurl = \"http://127.0.0.1:1\"\n",
            world.embedder.url()
        )
    };
    std::fs::write(file.path(), tables(16)).unwrap();
    let environment = [("WEIR_COORDINATOR", &*world.coordinator.url())];
    let visit = Visit::of(&environment, &["--models-file", path]).await;
    assert_eq!(visit.code, Some(1), "{:?}", visit.findings);
    let nomic = "built-in profile: nomic-embed-text; ollama at http://";
    visit.assert("profile of nomic-embed-text", "ok", nomic);
    for prompt in [
        "\"search_document: \" before documents",
        "\"search_query: \" before queries",
    ] {
        visit.assert("profile of nomic-embed-text", "ok", prompt);
    }
    visit.assert(
        "embedder of nomic-embed-text",
        "ok",
        "vectors of 16 numbers",
    );
    visit.assert(
        "profile of own.model",
        "ok",
        "no built-in profile; served as fake",
    );
    visit.assert(
        "profile of own.model",
        "ok",
        "\"doc: \" before documents; no prompt before queries",
    );
    visit.assert("embedder of own.model", "ok", "vectors of 16 numbers");
    visit.assert("embedder of away", "failed", "127.0.0.1:1");

    // One of them alone.
    let args = ["--models-file", path, "--model", "own.model"];
    let visit = Visit::of(&environment, &args).await;
    assert_eq!(visit.code, Some(0), "{:?}", visit.findings);
    let args = ["--models-file", path, "--model", "none"];
    let visit = Visit::of(&environment, &args).await;
    visit.assert("embedder", "failed", "it has no table [\"none\"]");

    // A file that is wrong keeps the doctor from nothing else.
    std::fs::write(file.path(), tables(0)).unwrap();
    let visit = Visit::of(&environment, &["--models-file", path]).await;
    visit.assert("coordinator", "ok", "");
    visit.assert("embedder", "failed", "dimension: it is 0; 1 to 16000");
}
