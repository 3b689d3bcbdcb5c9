//! No call of one namespace's token tells or changes anything of another's,
//! whatever it names. The calls are made of the descriptors: every method, every
//! field of its request, over gRPC and as JSON. A field that is added needs a
//! value in [`Ours::values`], or the test fails.

mod ask;

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use futures::{StreamExt as _, stream};
use prost_reflect::{DynamicMessage, MethodDescriptor, ReflectMessage as _, Value};
use sha2::{Digest as _, Sha256};
use tonic::{service::interceptor::InterceptedService, transport::Channel};
use weir_proto::v1::{
    self, source_service_client::SourceServiceClient, worker_service_client::WorkerServiceClient,
};
use weir_tests::{
    PATIENCE,
    certificates::text_of,
    clients::{Weir, claim_request, embedded, item, put_items, upsert, vector_bytes},
    cluster::MODEL,
    tokens::Tokens,
};

use self::ask::{Asker, Told, Values, is_reading, methods, requests, words};
use crate::security::with_token;

/// The namespace that is asked after.
const OURS: &str = "tellns";

/// The namespace of whoever asks.
const THEIRS: &str = "strangens";

/// What is told of nothing but [`OURS`].
const TELLS: [&str; 13] = [
    OURS,
    "tellone",
    "telltwo",
    "tellthree",
    "tellfour",
    "tellfive",
    "tellsix",
    "tellitem",
    "telltext",
    "tellwhy",
    "tellcause",
    "tellworker",
    "tellmeta",
];

/// The ids of our jobs and failures begin so. They are ten apart, so that none
/// is the neighbour of another.
const JOBS: i64 = 771_000_000;
const FAILURES: i64 = 881_000_000;

const VECTOR: [f32; 4] = [1.0, 0.0, 0.0, 0.0];

/// How long a stranger listens to a stream that says nothing. What would come
/// later is missed, and nothing fails for it.
const LISTENED: Duration = Duration::from_millis(300);

/// Methods that tell even the owner of everything nothing of it.
const TELL_NOTHING: [&str; 1] = ["GetActivity"];

/// A coordinator with two namespaces, the tokens of both, and what is ours.
struct Ours {
    weir: Weir,
    client: String,
    worker: String,
    stranger: String,
    strange_worker: String,
    jobs: Vec<i64>,
    failure: i64,
    epoch: i64,
    _tokens: Tokens,
}

type WithToken = InterceptedService<
    Channel,
    Box<dyn FnMut(tonic::Request<()>) -> Result<tonic::Request<()>, tonic::Status> + Send + Sync>,
>;

fn with(weir: &Weir, token: &str) -> WithToken {
    InterceptedService::new(weir.channel.clone(), Box::new(with_token(token)))
}

async fn put(weir: &Weir, token: &str, namespace: &str, name: &str, mark: &str) {
    let mark = |what: &str| format!("{mark}{what}");
    let meta = prost_types::Value::from(mark("meta"));
    let items = (0..2).map(|n| v1::Item {
        metadata: Some(prost_types::Struct {
            fields: [("meta".to_owned(), meta.clone())].into(),
        }),
        ..item(&mark(&format!("item{n}")), &mark(&format!("text {n}")))
    });
    let request = v1::PutSourceRequest {
        namespace: namespace.to_owned(),
        ..put_items(name, items.collect())
    };
    let mut sources = SourceServiceClient::new(with(weir, token));
    sources.put_source(request).await.unwrap();
}

impl Ours {
    async fn start() -> Self {
        let tokens = Tokens::new();
        let client = tokens.add("ours", "client", &[OURS]);
        let worker = tokens.add("our-worker", "worker", &[OURS]);
        let stranger = tokens.add("theirs", "client", &[THEIRS]);
        let strange_worker = tokens.add("their-worker", "worker", &[THEIRS]);
        let weir = Weir::with(&[
            ("WEIR_TOKENS_FILE", text_of(&tokens.path())),
            ("WEIR_MAX_ATTEMPTS", "1"),
            ("WEIR_ORPHAN_GRACE", "1h"),
            // Which no worker of one namespace may decide on.
            ("WEIR_MODELS", "fake=4"),
        ])
        .await;
        let (jobs, failure, epoch) = seed(&weir, &client, &worker, &stranger).await;
        Self {
            weir,
            client,
            worker,
            stranger,
            strange_worker,
            jobs,
            failure,
            epoch,
            _tokens: tokens,
        }
    }

    /// What reaches into our namespace, by the name of the field it is for.
    fn values(&self) -> Values {
        let text = |texts: &[&str]| -> Vec<Value> {
            texts
                .iter()
                .map(|it| Value::String((*it).to_owned()))
                .collect()
        };
        let bytes = |bytes: &[u8]| vec![Value::Bytes(bytes.to_vec().into())];
        let mut values = Values::from([
            ("namespace", text(&[OURS, THEIRS])),
            ("name", text(&["tellone", "telltwo"])),
            ("source", text(&["tellone", "telltwo"])),
            ("name_prefix", text(&["tell"])),
            ("source_prefix", text(&["tell"])),
            ("model", text(&[MODEL])),
            ("models", text(&[MODEL])),
            ("worker_id", text(&["tellworker"])),
            ("version", text(&["1.0"])),
            ("busy_with", text(&[THEIRS])),
            ("item_id", text(&["tellitem0"])),
            ("delete_item_ids", text(&["tellitem1"])),
            ("text", text(&["words"])),
            ("reason", text(&["words"])),
            ("page_token", text(&[""])),
            ("cursor", text(&[""])),
            ("content", bytes(b"words")),
            ("document_part", bytes(b"words")),
            ("vector", bytes(&vector_bytes(&VECTOR))),
            ("text_hash", bytes(&Sha256::digest("telltext 0"))),
            (
                "job_id",
                self.jobs.iter().copied().map(Value::I64).collect(),
            ),
            ("failure_id", vec![Value::I64(self.failure)]),
            ("epoch", vec![Value::I64(self.epoch)]),
            ("seq", vec![Value::I64(1)]),
            ("expected_revision", vec![Value::I64(1)]),
            ("max_chunks", vec![Value::I64(1)]),
        ]);
        for (name, number) in [
            ("page_size", 1),
            ("limit", 10),
            ("minutes", 60),
            ("priority", 1),
            ("chunks", 1),
            ("dimension", 4),
            ("longest_input", 100),
            ("batch_size", 1),
            ("truncated_to", 1),
            ("max_jobs", 10),
            ("chunk_index", 0),
        ] {
            values.insert(name, vec![Value::I32(number)]);
        }
        values
    }

    /// All rows of our namespace, but for what the reconciler notes.
    async fn rows(&self) -> BTreeSet<String> {
        let of_namespace = |table| {
            format!(
                "SELECT '{table} ' || (to_jsonb(t) - 'checked_at')::text FROM weir.{table} t WHERE namespace = '{OURS}'"
            )
        };
        let of_source = |table| {
            format!(
                "SELECT '{table} ' || to_jsonb(t)::text FROM weir.{table} t WHERE source_id IN (
                     SELECT id FROM weir.sources WHERE namespace = '{OURS}')"
            )
        };
        let mut parts: Vec<String> = ["sources", "jobs", "failures"].map(of_namespace).into();
        parts.extend(
            [
                "items",
                "chunks",
                "embeddings",
                "rejections",
                "rejection_counts",
            ]
            .map(of_source),
        );
        parts.push(format!(
            "SELECT 'attempts ' || to_jsonb(t)::text FROM weir.attempts t WHERE job_id IN (
                 SELECT id FROM weir.jobs WHERE namespace = '{OURS}')"
        ));
        let rows: Vec<String> = sqlx::query_scalar(sqlx::AssertSqlSafe(parts.join(" UNION ALL ")))
            .fetch_all(self.weir.database.pool())
            .await
            .unwrap();
        rows.into_iter().collect()
    }

    /// Takes away what a stranger made under our names in its own namespace, for
    /// it may.
    async fn tidy(&self) {
        let made = format!(
            "SELECT id FROM weir.sources WHERE namespace <> '{OURS}' AND name LIKE 'tell%'"
        );
        let parts = [
            "items",
            "chunks",
            "embeddings",
            "rejections",
            "rejection_counts",
            "jobs",
        ];
        let parts =
            parts.map(|table| format!("DELETE FROM weir.{table} WHERE source_id IN ({made});"));
        let sources = format!("DELETE FROM weir.sources WHERE id IN ({made})");
        let sql = parts.concat() + &sources;
        let pool = self.weir.database.pool();
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql))
            .execute(pool)
            .await
            .unwrap();
    }
}

/// Two sources and failures of theirs, to page through; of ours jobs of each
/// kind: running, succeeded, failed with a rejected chunk, queued.
async fn seed(weir: &Weir, client: &str, worker: &str, stranger: &str) -> (Vec<i64>, i64, i64) {
    put(weir, stranger, THEIRS, "one", "their").await;
    put(weir, stranger, THEIRS, "two", "their").await;
    let set_up = format!(
        "INSERT INTO weir.failures (namespace, model, cause, last_error, last_job_id, last_source, occurrences)
         VALUES ('{THEIRS}', '{MODEL}', 'c', 'e', 1, 'one', 1), ('{THEIRS}', '{MODEL}', 'd', 'e', 1, 'one', 1);
         INSERT INTO weir.workers (session, worker_id, version, replica, namespaces, models)
         SELECT repeat(digit, 32), worker_id, '', 'r', ARRAY[namespace], '[{{\"name\": \"{MODEL}\"}}]' FROM (VALUES
             ('a', 'tellworker', '{OURS}'), ('b', 'tellworker', '{OURS}'), ('c', 'w', '{THEIRS}'), ('d', 'w', '{THEIRS}'))
             AS it(digit, worker_id, namespace);
         ALTER TABLE weir.jobs ALTER COLUMN id SET INCREMENT BY 10 RESTART WITH {JOBS};
         ALTER TABLE weir.failures ALTER COLUMN id SET INCREMENT BY 10 RESTART WITH {FAILURES}"
    );
    let pool = weir.database.pool();
    sqlx::raw_sql(sqlx::AssertSqlSafe(set_up))
        .execute(pool)
        .await
        .unwrap();

    let mut workers = WorkerServiceClient::new(with(weir, worker));
    let mut leases = Vec::new();
    for name in ["tellone", "telltwo", "tellthree", "tellfour", "tellfive"] {
        put(weir, client, OURS, name, "tell").await;
        let claim = v1::ClaimJobRequest {
            worker_id: "tellworker".to_owned(),
            ..claim_request()
        };
        let claimed = workers.claim_job(claim).await.unwrap().into_inner();
        let [lease] = claimed.leases.try_into().unwrap();
        let batch = v1::GetBatchRequest {
            job_id: lease.job_id,
            epoch: lease.epoch,
            batch_size: 0,
        };
        let batch = workers.get_batch(batch).await.unwrap().into_inner();
        leases.push((lease, batch.chunks));
    }
    put(weir, client, OURS, "tellsix", "tell").await;
    // What is running has but to be completed: once for each of the ways to end it.
    let mut epoch = 0;
    for (lease, chunks) in leases.iter().filter(|(lease, _)| lease.source != "telltwo") {
        let vectors = chunks.iter().map(|chunk| embedded(chunk, &VECTOR));
        let vectors = upsert(lease, vectors.collect());
        workers.upsert_batch(vectors).await.unwrap();
        epoch = lease.epoch;
    }
    let [(done, _), (failed, rejected), ..] = &leases[..] else {
        panic!("five leases");
    };
    let complete = v1::CompleteJobRequest {
        job_id: done.job_id,
        epoch: done.epoch,
    };
    workers.complete_job(complete).await.unwrap();
    let reject = v1::UpsertBatchRequest {
        rejected: vec![v1::RejectedChunk {
            item_id: rejected[0].item_id.clone(),
            chunk_index: rejected[0].chunk_index,
            text_hash: rejected[0].text_hash.clone(),
            reason: "tellwhy".to_owned(),
        }],
        ..upsert(failed, Vec::new())
    };
    workers.upsert_batch(reject).await.unwrap();
    let fail = v1::FailJobRequest {
        job_id: failed.job_id,
        epoch: failed.epoch,
        reason: "tellcause".to_owned(),
    };
    workers.fail_job(fail).await.unwrap();
    let jobs: Vec<i64> = sqlx::query_scalar(
        "SELECT id FROM weir.jobs WHERE namespace = $1 ORDER BY state = 'running' DESC, id",
    )
    .bind(OURS)
    .fetch_all(pool)
    .await
    .unwrap();
    assert_eq!(jobs.len(), 6);
    let failure: i64 = sqlx::query_scalar("SELECT id FROM weir.failures WHERE namespace = $1")
        .bind(OURS)
        .fetch_one(pool)
        .await
        .unwrap();
    sqlx::raw_sql("ALTER TABLE weir.jobs ALTER COLUMN id RESTART WITH 991000000")
        .execute(pool)
        .await
        .unwrap();
    (jobs, failure, epoch)
}

/// A text with all that is encoded in it beside it: tokens and cursors.
fn unfold(text: &str) -> String {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-' || c == '_'));
    let long = words.filter(|word| word.len() > 12);
    let decoded = long.filter_map(|word| URL_SAFE_NO_PAD.decode(word).ok());
    let decoded: Vec<String> = decoded
        .map(|it| String::from_utf8_lossy(&it).into_owned())
        .collect();
    format!("{text} {}", decoded.join(" "))
}

/// What an answer tells of ours that its request did not say itself.
fn told(ours: &Ours, request: &DynamicMessage, answer: &Told) -> Option<String> {
    let ids = ours.jobs.iter().chain([&ours.failure]).map(i64::to_string);
    let tells = TELLS.iter().map(|it| (*it).to_owned()).chain(ids);
    let (asked, answered) = (unfold(&words(request)), unfold(&answer.text));
    let mut news = tells.filter(|tell| answered.contains(tell) && !asked.contains(tell));
    news.next()
}

/// The tokens and cursors in the answers to all that `asker` may ask of a method.
async fn positions(asker: &Asker, method: &MethodDescriptor, values: &Values) -> Vec<String> {
    let mut found = Vec::new();
    for mut request in requests(method, values) {
        if request
            .descriptor()
            .get_field_by_name("page_size")
            .is_some()
        {
            request.set_field_by_name("page_size", Value::I32(1));
        }
        let answer: serde_json::Value = match asker.grpc(method, &request).await {
            Told { ok: true, text } if !text.is_empty() => serde_json::from_str(&text).unwrap(),
            _ => continue,
        };
        for name in ["nextPageToken", "cursor"] {
            let position = answer[name].as_str().unwrap_or_default().to_owned();
            if !position.is_empty() && !found.contains(&position) {
                found.push(position);
            }
        }
        if found.len() >= 2 {
            break;
        }
    }
    found
}

/// Our positions as they are, and in tokens of the stranger's own queries.
fn forged(ours: &[String], theirs: &[String]) -> Vec<Value> {
    let bytes = |token: &String| URL_SAFE_NO_PAD.decode(token).unwrap();
    let mut forged = ours.to_vec();
    for (token, own) in ours
        .iter()
        .flat_map(|token| theirs.iter().map(move |own| (token, own)))
    {
        let (position, own) = (bytes(token)[8..].to_vec(), bytes(own)[..8].to_vec());
        let back = String::from_utf8(position.clone())
            .unwrap()
            .replace("After", "Before");
        forged.push(URL_SAFE_NO_PAD.encode([own.clone(), position].concat()));
        forged.push(URL_SAFE_NO_PAD.encode([own, back.into_bytes()].concat()));
    }
    forged.dedup();
    forged.into_iter().map(Value::String).collect()
}

/// The values of a method's fields, with the tokens and cursors there are.
async fn values_for(
    ours: &Ours,
    method: &MethodDescriptor,
    owner: &Asker,
    stranger: &Asker,
) -> Values {
    let mut values = ours.values();
    let input = method.input();
    for field in ["page_token", "cursor"] {
        if input.get_field_by_name(field).is_none() {
            continue;
        }
        let of_us = positions(owner, method, &values).await;
        assert!(
            !of_us.is_empty(),
            "{} gave us no {field}",
            method.full_name()
        );
        let found = if field == "page_token" {
            let mut own = ours.values();
            own.insert("name", vec![Value::String("one".to_owned())]);
            own.insert("namespace", vec![Value::String(THEIRS.to_owned())]);
            let of_them = positions(stranger, method, &own).await;
            assert!(
                !of_them.is_empty(),
                "{} gave them no {field}",
                method.full_name()
            );
            forged(&of_us, &of_them)
        } else {
            of_us.into_iter().map(Value::String).collect()
        };
        values.insert(field, found);
    }
    values
}

/// Asks everything of a method that a stranger may think of. None of it tells or
/// changes anything of ours.
async fn pry(ours: &Ours, stranger: &Asker, method: &MethodDescriptor, asked: &[DynamicMessage]) {
    let as_json =
        method.parent_service().name() != "WorkerService" && !method.is_client_streaming();
    let before = ours.rows().await;
    let one = async |request: &DynamicMessage| {
        let mut answers = vec![stranger.grpc(method, request).await];
        if as_json {
            answers.push(stranger.json(method, request).await);
        }
        for answer in &answers {
            if let Some(tell) = told(ours, request, answer) {
                panic!(
                    "{} of {} tells {tell}: {}",
                    method.full_name(),
                    words(request),
                    answer.text
                );
            }
        }
        answers.iter().any(|answer| answer.ok)
    };
    if is_reading(method) {
        let asking = stream::iter(asked).map(one).buffer_unordered(8);
        asking.collect::<Vec<bool>>().await;
        return;
    }
    for request in asked {
        let done = one(request).await;
        assert_eq!(
            before,
            ours.rows().await,
            "{} of {}",
            method.full_name(),
            words(request)
        );
        if done {
            ours.tidy().await;
        }
    }
}

/// Asserts that one of the requests does, with the token of the owner, what none
/// may with a stranger's.
async fn own(ours: &Ours, owner: &Asker, method: &MethodDescriptor, asked: &[DynamicMessage]) {
    let before = ours.rows().await;
    for request in asked {
        let answer = owner.grpc(method, request).await;
        let changed = async {
            while before == ours.rows().await {
                tokio::task::yield_now().await;
            }
        };
        let works = if is_reading(method) {
            told(ours, request, &answer).is_some()
        } else if method.is_server_streaming() {
            // What it does may come after its first answer.
            tokio::time::timeout(LISTENED, changed).await.is_ok()
        } else {
            before != ours.rows().await
        };
        if works {
            return;
        }
    }
    panic!(
        "{} does nothing for its owner: what it is asked is of no use",
        method.full_name()
    );
}

async fn walk(services: &[&str], pick: fn(&Ours) -> (&str, &str)) {
    let ours = Ours::start().await;
    let (owner, stranger) = pick(&ours);
    let owner = Asker::new(&ours.weir, owner, PATIENCE);
    let stranger = Asker::new(&ours.weir, stranger, LISTENED);
    let mut asked = HashMap::new();
    let methods = methods(services);
    for method in &methods {
        let values = values_for(&ours, method, &owner, &stranger).await;
        let requests = requests(method, &values);
        pry(&ours, &stranger, method, &requests).await;
        asked.insert(method.full_name().to_owned(), requests);
    }
    for method in methods {
        if !TELL_NOTHING.contains(&method.name()) {
            own(&ours, &owner, &method, &asked[method.full_name()]).await;
        }
    }
}

#[tokio::test]
async fn no_call_of_a_client_reaches_into_another_namespace() {
    let services = ["JobService", "SearchService", "SourceService"];
    walk(&services, |ours| (&ours.client, &ours.stranger)).await;
}

#[tokio::test]
async fn no_call_of_a_worker_reaches_into_another_namespace() {
    walk(&["WorkerService"], |ours| {
        (&ours.worker, &ours.strange_worker)
    })
    .await;
}
