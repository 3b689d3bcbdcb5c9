//! The command line: what operators are shown, what scripts are told, and who
//! it is to the coordinator.

use std::fs;

use serde_json::{Value, json};
use tokio_util::task::AbortOnDropHandle;
use weir_tests::{
    certificates::{Authority, text_of},
    cluster::{Coordinator, Process, weir_in},
    postgres::TestDatabase,
    tokens::Tokens,
};

use crate::{clients::until, world::World};

/// The first error ends a job.
const ONE_TRY: (&str, &str) = ("WEIR_MAX_ATTEMPTS", "1");

/// What a command came to.
#[derive(Debug)]
struct Ran {
    code: Option<i32>,
    said: String,
    complained: String,
}

impl Ran {
    async fn of(environment: &[(&str, &str)], args: &[&str]) -> Self {
        let output = weir_in(environment, args).await;
        Self {
            code: output.status.code(),
            said: String::from_utf8(output.stdout).unwrap(),
            complained: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// The one document that it wrote.
    fn json(&self) -> Value {
        serde_json::from_str(&self.said).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

async fn run(world: &World, args: &[&str]) -> Ran {
    Ran::of(&[("WEIR_COORDINATOR", &world.coordinator.url())], args).await
}

/// The document that a command writes that must go well.
async fn told(world: &World, args: &[&str]) -> Value {
    let ran = run(world, &[args, &["--json"]].concat()).await;
    assert_eq!(ran.code, Some(0), "{args:?}: {ran:?}");
    ran.json()
}

fn texts(count: usize) -> impl Iterator<Item = (String, String)> {
    (0..count).map(|id| (format!("{id:03}"), format!("the text of item {id}")))
}

/// A world where the jobs of these sources have failed.
async fn with_failed(names: &[&str]) -> (World, AbortOnDropHandle<()>, Vec<i64>) {
    let world = World::start(&[ONE_TRY]).await;
    let worker = world.failing_worker("out of memory").await;
    let mut jobs = Vec::new();
    for name in names {
        let job_id = world.put_items(name, texts(3)).await.jobs[0].job_id;
        world.ended(job_id).await;
        jobs.push(job_id);
    }
    (world, worker, jobs)
}

#[tokio::test]
async fn status_says_in_its_exit_code_how_all_stands() {
    let (world, _worker, jobs) = with_failed(&[]).await;
    assert_eq!(jobs, [0; 0]);
    let ran = run(&world, &["status"]).await;
    assert_eq!(
        (ran.code, ran.said.lines().next()),
        (Some(0), Some("healthy")),
        "{ran:?}"
    );

    let job_id = world.put_items("broken", texts(3)).await.jobs[0].job_id;
    world.ended(job_id).await;
    let ran = run(&world, &["status"]).await;
    assert_eq!((ran.code, &*ran.complained), (Some(4), ""), "{ran:?}");
    assert!(ran.said.starts_with("degraded: "), "{ran:?}");
    let ran = run(&world, &["status", "--json"]).await;
    assert_eq!(ran.code, Some(4), "{ran:?}");
    let status = ran.json();
    assert_eq!(status["total"]["verdict"], "degraded", "{status}");
    assert_eq!(status["namespaces"][0]["jobs_failed"], 1, "{status}");

    // Of another namespace nothing is wrong; of all of them something is.
    let ran = run(&world, &["status", "-n", "other"]).await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_eq!(run(&world, &["status", "-A"]).await.code, Some(4));

    let away = [("WEIR_COORDINATOR", "http://127.0.0.1:1")];
    let ran = Ran::of(&away, &["status"]).await;
    assert_eq!(ran.code, Some(3), "{ran:?}");
    assert!(ran.complained.contains("http://127.0.0.1:1"), "{ran:?}");
    let ran = run(&world, &["status", "--colour"]).await;
    assert_eq!(ran.code, Some(2), "{ran:?}");
}

#[tokio::test]
async fn a_failure_is_listed_dismissed_and_all_its_jobs_retried() {
    let (world, failing, jobs) = with_failed(&["a", "b"]).await;
    let failures = told(&world, &["failures"]).await;
    let [failure] = failures["failures"].as_array().unwrap().as_slice() else {
        panic!("one cause makes one failure: {failures}");
    };
    assert_eq!(failure["jobs_affected"], 2, "{failure}");
    assert!(
        failure["cause"].as_str().unwrap().contains("out of memory"),
        "{failure}"
    );
    let id = failure["failure_id"].to_string();

    // What there is to press is said, and can be said in these words.
    let ran = run(&world, &["failures"]).await;
    let press = format!("weir jobs --failure {id} · weir retry --failure {id} · weir dismiss {id}");
    assert!(ran.said.contains(&press), "{ran:?}");
    assert!(ran.said.contains("2 jobs affected"), "{ran:?}");

    let affected = told(&world, &["jobs", "--failure", &id]).await;
    let mut affected: Vec<_> = affected["jobs"].as_array().unwrap().iter().collect();
    affected.sort_by_key(|job| job["job_id"].as_i64());
    let ids: Vec<_> = affected
        .iter()
        .filter_map(|job| job["job_id"].as_i64())
        .collect();
    assert_eq!(ids, jobs);

    let dismissed = told(&world, &["dismiss", &id]).await;
    assert_eq!(
        dismissed["failure"]["failure_id"].to_string(),
        id,
        "{dismissed}"
    );
    assert_eq!(told(&world, &["failures"]).await, json!({"failures": []}));
    let all = told(&world, &["failures", "--dismissed"]).await;
    assert_eq!(all["failures"][0]["failure_id"].to_string(), id, "{all}");

    drop(failing);
    let _worker = world.worker("4");
    let retried = told(&world, &["retry", "--failure", &id]).await;
    assert_eq!(retried["jobs"].as_array().unwrap().len(), 2, "{retried}");
    for job in retried["jobs"].as_array().unwrap() {
        world.succeeded(job["job_id"].as_i64().unwrap()).await;
    }
    let ran = run(&world, &["retry", "--failure", &id]).await;
    assert_eq!(
        (ran.code, &*ran.said),
        (Some(0), "There is nothing to retry.\n"),
        "{ran:?}"
    );
}

#[tokio::test]
async fn what_is_refused_is_told_for_each_job() {
    let (world, failing, jobs) = with_failed(&["a"]).await;
    let (failed, none) = (jobs[0].to_string(), (jobs[0] + 1_000).to_string());
    let ran = run(&world, &["retry", &none, &failed, "--json"]).await;
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(
        ran.complained.contains("1 of 2 jobs refused to retry"),
        "{ran:?}"
    );
    let report = ran.json();
    assert_eq!(report["refused"][0]["job_id"].to_string(), none, "{report}");
    assert_eq!(report["jobs"].as_array().unwrap().len(), 1, "{report}");

    // The jobs of a source, by its name.
    let again = report["jobs"][0]["job_id"].as_i64().unwrap();
    world.ended(again).await;
    drop(failing);
    let retried = told(&world, &["retry", "--source", "a"]).await;
    let again = retried["jobs"][0]["job_id"].as_i64().unwrap();
    let cancelled = told(&world, &["cancel", "--source", "a"]).await;
    assert_eq!(cancelled["jobs"][0]["job_id"], again, "{cancelled}");
    assert_eq!(cancelled["jobs"][0]["state"], "cancelled", "{cancelled}");

    for args in [
        &["cancel"] as &[_],
        &["cancel", "1", "--source", "a"],
        &["retry", "--source", "a", "--force"],
    ] {
        assert_eq!(run(&world, args).await.code, Some(2), "{args:?}");
    }
}

#[tokio::test]
async fn a_job_is_shown_with_its_tries_and_a_source_with_its_chunks() {
    let (world, _worker, jobs) = with_failed(&["a"]).await;
    let id = jobs[0].to_string();
    let shown = told(&world, &["job", &id]).await;
    assert_eq!(shown["job"]["state"], "failed", "{shown}");
    let [attempt] = shown["attempts"].as_array().unwrap().as_slice() else {
        panic!("one try: {shown}");
    };
    assert_eq!(
        (&attempt["outcome"], &attempt["charged"]),
        (&json!("failed"), &json!(true))
    );
    assert!(
        attempt["error"].as_str().unwrap().contains("out of memory"),
        "{attempt}"
    );
    let ran = run(&world, &["job", &id]).await;
    let (trace, worker) = (
        shown["job"]["trace_id"].as_str().unwrap(),
        attempt["worker_id"].as_str().unwrap(),
    );
    for part in ["failed", "out of memory", trace, worker] {
        assert!(
            !part.is_empty() && ran.said.contains(part),
            "{part}: {ran:?}"
        );
    }

    let pending = told(&world, &["chunks", "a", "--state", "pending"]).await;
    assert_eq!(pending["chunks"].as_array().unwrap().len(), 3, "{pending}");
    let two = told(
        &world,
        &["chunks", "a", "--state", "pending", "--limit", "2"],
    )
    .await;
    assert_eq!(two["chunks"].as_array().unwrap().len(), 2, "{two}");
    assert_eq!(told(&world, &["chunks", "a"]).await, json!({"chunks": []}));

    // Lists are narrowed as they are asked to be.
    world.put_items("blank", texts(0)).await;
    let names = async |args: &[&str]| -> Vec<String> {
        let listed = told(&world, &[&["ls"], args].concat()).await;
        let listed = listed["sources"].as_array().unwrap().clone();
        let name = |source: &Value| source["source"]["name"].as_str().map(str::to_owned);
        listed
            .iter()
            .map(|source| name(source).unwrap_or_else(|| panic!("{source}")))
            .collect()
    };
    assert_eq!(names(&[]).await, ["a", "blank"]);
    assert_eq!(names(&["--unsettled"]).await, ["a"]);
    assert_eq!(names(&["--prefix", "bl"]).await, ["blank"]);
    assert_eq!(names(&["--model", "fake"]).await, ["a", "blank"]);
    let ran = run(&world, &["ls"]).await;
    assert!(
        ran.said
            .lines()
            .any(|line| line.starts_with("a ") && line.contains("failed")),
        "{ran:?}"
    );
    assert!(
        !ran.said.contains('\u{1b}'),
        "no colour goes into a pipe: {ran:?}"
    );
    for filter in [
        &["--state", "succeeded"] as &[_],
        &["--trigger", "retry"],
        &["--prefix", "b"],
    ] {
        let listed = told(&world, &[&["jobs"], filter].concat()).await;
        assert_eq!(listed, json!({"jobs": []}), "{filter:?}");
    }
    let listed = told(&world, &["jobs", "--state", "failed", "--trigger", "write"]).await;
    assert_eq!(listed["jobs"][0]["job_id"], jobs[0], "{listed}");
}

#[tokio::test]
async fn a_watch_survives_a_coordinator_that_starts_again() {
    let mut world = World::start(&[]).await;
    let worker = world.worker("8");
    worker.process.wait_for_event("The embedder answers.").await;
    world.embedder.close_gate();
    let put = world.put_items("long", texts(40)).await;
    let url = world.coordinator.url();
    let watch = |args: &[&str]| Process::spawn("weir", args, &[("WEIR_COORDINATOR", &url)]);
    let mut one = watch(&["watch", "long"]);
    let mut all = watch(&["watch", "--all"]);
    world.embedder.calls_started(2).await;

    let address = world.coordinator.address().to_string();
    let lines = |process: &Process| process.log().join("\n");
    until(async || lines(&one).contains("indexing") && lines(&all).contains("long")).await;
    world.coordinator.process.sigkill().await;
    until(async || lines(&one).contains("reconnecting") && lines(&all).contains("reconnecting"))
        .await;
    world.embedder.open_gate();
    let environment = [("WEIR_LISTEN", address.as_str())];
    world.coordinator = Coordinator::spawn(world.database.url(), &environment).await;
    world.succeeded(put.jobs[0].job_id).await;
    assert_eq!(one.wait().await.code(), Some(0), "{}", lines(&one));
    assert_eq!(all.wait().await.code(), Some(0), "{}", lines(&all));
    assert!(lines(&one).contains("40/40 indexed"), "{}", lines(&one));
    assert!(!lines(&one).contains('\u{1b}') && !lines(&all).contains('\u{1b}'));

    let ran = run(&world, &["watch", "long"]).await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
}

#[tokio::test]
async fn a_watch_of_what_fails_ends_with_one() {
    let (world, _worker, _) = with_failed(&["a"]).await;
    for args in [&["watch", "a"] as &[_], &["watch", "--all"], &["watch"]] {
        let ran = run(&world, args).await;
        assert_eq!(ran.code, Some(1), "{args:?}: {ran:?}");
        assert!(ran.said.contains("failed"), "{args:?}: {ran:?}");
    }
    assert_eq!(run(&world, &["watch", "nowhere"]).await.code, Some(1));
}

#[tokio::test]
async fn a_profile_says_where_and_who_over_tls_and_with_a_token() {
    let (authority, tokens, database) = (
        Authority::new(),
        Tokens::new(),
        TestDatabase::create().await,
    );
    let own = authority.issue("coordinator");
    let token = tokens.add("shop", "client", &["shop"]);
    let file = tokens.path();
    let environment = [
        ("WEIR_TLS_CERT", text_of(&own.cert)),
        ("WEIR_TLS_KEY", text_of(&own.key)),
        ("WEIR_TOKENS_FILE", text_of(&file)),
    ];
    let coordinator = Coordinator::spawn(database.url(), &environment).await;
    let url = coordinator.tls_url();
    let (ca, token_file) = (
        authority.ca(),
        tokens.write("shop.token", &format!("{token}\n")),
    );

    // By variables; without them it says what is missing.
    let by_variables = [
        ("WEIR_COORDINATOR", url.as_str()),
        ("WEIR_CA_FILE", text_of(&ca)),
        ("WEIR_TOKEN_FILE", text_of(&token_file)),
    ];
    let ran = Ran::of(&by_variables, &["ls", "-n", "shop"]).await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let ran = Ran::of(&by_variables, &["ls", "-n", "other"]).await;
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.complained.contains("not allowed"), "{ran:?}");
    let ran = Ran::of(&by_variables[..2], &["ls", "-n", "shop"]).await;
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.complained.contains("not signed in"), "{ran:?}");
    let ran = Ran::of(&by_variables[..1], &["ls"]).await;
    assert_eq!(ran.code, Some(3), "{ran:?}");
    assert!(ran.complained.contains("UnknownIssuer"), "{ran:?}");

    // By profile; a flag goes before it. Paths are relative to the file.
    let config = tokens.write(
        "config.toml",
        &format!(
            "default-profile = 'prod'\n[profile.prod]\ncoordinator = '{url}'\nnamespace = 'shop'\n\
             ca-file = '{}'\ntoken-file = 'shop.token'\n[profile.dev]\ncoordinator = 'http://127.0.0.1:1'\n",
            ca.display()
        ),
    );
    let by_file = [("WEIR_CONFIG", text_of(&config))];
    let ran = Ran::of(&by_file, &["status"]).await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let ran = Ran::of(&by_file, &["status", "--namespace", "other"]).await;
    assert_eq!(ran.code, Some(1), "{ran:?}");
    let dev = [by_file[0], ("WEIR_PROFILE", "dev")];
    assert_eq!(Ran::of(&dev, &["status"]).await.code, Some(3));
    let ran = Ran::of(&dev, &["status", "--profile", "prod"]).await;
    assert_eq!(ran.code, Some(0), "{ran:?}");

    // A token is not for all on the way to read, and the file has no room for what it does not know.
    let ran = Ran::of(
        &by_file,
        &["status", "--coordinator", "http://192.0.2.1:7400"],
    )
    .await;
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert!(ran.complained.contains("--insecure-token"), "{ran:?}");
    assert!(!ran.complained.contains(&token), "{ran:?}");
    fs::write(&config, "[profile.prod]\ncolour = 'red'\n").unwrap();
    let ran = Ran::of(&by_file, &["status", "--profile", "prod"]).await;
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert!(
        ran.complained.contains("config.toml") && ran.complained.contains("colour"),
        "{ran:?}"
    );
}

#[tokio::test]
async fn a_package_gets_completions_and_a_manual() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let ran = Ran::of(&[], &["completions", shell]).await;
        assert_eq!(ran.code, Some(0), "{ran:?}");
        assert!(ran.said.contains("failures"), "{shell}: {}", ran.said);
    }
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("man");
    let ran = Ran::of(&[], &["man", text_of(&place)]).await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    for page in ["weir.1", "weir-status.1", "weir-doctor.1"] {
        let text = fs::read_to_string(place.join(page)).unwrap();
        assert!(text.starts_with(".ie"), "{page}: {text}");
    }
}

#[tokio::test]
async fn a_retrying_source_says_why_and_when_in_the_coordinators_words() {
    let world = World::start(&[
        ("WEIR_BACKOFF_BASE", "360days"),
        ("WEIR_BACKOFF_CAP", "360days"),
    ])
    .await;
    let _worker = world.failing_worker("out of memory").await;
    world.put_items("slow", texts(3)).await;
    let badge = async || told(&world, &["get", "slow"]).await["source"]["badge"].clone();
    until(async || badge().await["state"] == "retrying").await;
    let badge = badge().await;
    assert_eq!(badge["text"], "retrying (1 try)", "{badge}");
    assert!(
        badge["last_error"]
            .as_str()
            .unwrap()
            .contains("out of memory"),
        "{badge}"
    );
    assert!(badge["next_run_time"].is_string(), "{badge}");
    let ran = run(&world, &["get", "slow"]).await;
    for part in ["retrying (1 try)", "out of memory", "next run in"] {
        assert!(ran.said.contains(part), "{part}: {ran:?}");
    }
}
