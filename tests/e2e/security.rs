//! Tokens, namespaces, quotas and rates: who may do what, and how much of it.

use std::{fs, os::unix::fs::OpenOptionsExt as _, path::Path, process::Command};

use futures::{StreamExt as _, stream};
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::time;
use tonic::{
    Code, Request, Status, Streaming, metadata::AsciiMetadataValue,
    service::interceptor::InterceptedService, transport::Channel,
};
use tonic_types::StatusExt as _;
use weir_proto::{
    limits::MAX_MESSAGE_PARTS,
    v1::{
        self, job_service_client::JobServiceClient, lease_ended::How, put_source_request::Content,
        search_service_client::SearchServiceClient, source_service_client::SourceServiceClient,
        stream_batches_request::Message as FromWorker,
        stream_batches_response::Message as ToWorker, worker_service_client::WorkerServiceClient,
    },
};
use weir_tests::{
    PATIENCE,
    certificates::text_of,
    clients::{Weir, claim_request, embedded, http, item, put_items, put_texts, until, upsert},
    cluster::{Process, Worker, binary},
    embedder::FakeEmbedder,
    postgres::TestDatabase,
    session::{Session, held, opening},
    tokens::Tokens,
};

/// Waits for what is to come about.
pub(crate) async fn soon<T>(what: impl Future<Output = T>) -> T {
    time::timeout(PATIENCE, what)
        .await
        .expect("what the test waits for comes about")
}

/// A job as it is last seen by who watches it to its end.
pub(crate) async fn last_of(watch: &mut Streaming<v1::WatchJobResponse>) -> v1::Job {
    let mut last = None;
    while let Some(state) = watch.message().await.unwrap() {
        last = state.job;
    }
    last.unwrap()
}

type WithToken = Box<dyn FnMut(Request<()>) -> Result<Request<()>, Status> + Send + Sync>;

pub(crate) fn with_token(
    token: &str,
) -> impl FnMut(Request<()>) -> Result<Request<()>, Status> + Clone + use<> {
    let value: AsciiMetadataValue = format!("Bearer {token}").parse().unwrap();
    move |mut request: Request<()>| {
        request
            .metadata_mut()
            .insert("authorization", value.clone());
        Ok(request)
    }
}

/// All clients, with a token or without.
struct Clients {
    sources: SourceServiceClient<InterceptedService<Channel, WithToken>>,
    jobs: JobServiceClient<InterceptedService<Channel, WithToken>>,
    searches: SearchServiceClient<InterceptedService<Channel, WithToken>>,
    workers: WorkerServiceClient<InterceptedService<Channel, WithToken>>,
}

fn clients(weir: &Weir, token: Option<&str>) -> Clients {
    let intercept = || -> WithToken {
        match token {
            None => Box::new(Ok),
            Some(token) => Box::new(with_token(token)),
        }
    };
    let channel = || weir.channel.clone();
    Clients {
        sources: SourceServiceClient::with_interceptor(channel(), intercept()),
        jobs: JobServiceClient::with_interceptor(channel(), intercept()),
        searches: SearchServiceClient::with_interceptor(channel(), intercept()),
        workers: WorkerServiceClient::with_interceptor(channel(), intercept()),
    }
}

impl Clients {
    async fn put(&mut self, namespace: &str, name: &str) -> Result<v1::PutSourceResponse, Status> {
        let put = v1::PutSourceRequest {
            namespace: namespace.to_owned(),
            ..put_texts(name, &["one"])
        };
        Ok(self.sources.put_source(put).await?.into_inner())
    }

    async fn list(&mut self, namespace: &str) -> Result<v1::ListJobsResponse, Status> {
        let list = v1::ListJobsRequest {
            namespace: namespace.to_owned(),
            ..v1::ListJobsRequest::default()
        };
        Ok(self.jobs.list_jobs(list).await?.into_inner())
    }

    async fn claim(&mut self) -> Result<Vec<v1::Lease>, Status> {
        let claim = v1::ClaimJobRequest {
            max_jobs: 10,
            ..claim_request()
        };
        Ok(self.workers.claim_job(claim).await?.into_inner().leases)
    }

    async fn renew(&mut self, lease: &v1::Lease) -> Result<(), Status> {
        let renew = v1::RenewLeaseRequest {
            job_id: lease.job_id,
            epoch: lease.epoch,
            ..v1::RenewLeaseRequest::default()
        };
        self.workers.renew_lease(renew).await.map(drop)
    }

    async fn release(&mut self, job_id: i64, epoch: i64) -> Result<(), Status> {
        let release = v1::ReleaseJobRequest {
            job_id,
            epoch,
            reason: "draining".to_owned(),
            ..v1::ReleaseJobRequest::default()
        };
        self.workers.release_job(release).await.map(drop)
    }

    /// What every use of a lease answers. Whatever else a stream takes comes
    /// after it was opened.
    async fn every_use(
        &mut self,
        job_id: i64,
        epoch: i64,
    ) -> Vec<(&'static str, Result<(), Status>)> {
        let workers = &mut self.workers;
        let renew = v1::RenewLeaseRequest {
            job_id,
            epoch,
            ..v1::RenewLeaseRequest::default()
        };
        let get = v1::GetBatchRequest {
            job_id,
            epoch,
            batch_size: 0,
        };
        let upsert = v1::UpsertBatchRequest {
            job_id,
            epoch,
            ..v1::UpsertBatchRequest::default()
        };
        let complete = v1::CompleteJobRequest { job_id, epoch };
        let fail = v1::FailJobRequest {
            job_id,
            epoch,
            reason: "theirs".to_owned(),
        };
        let mut answers = vec![
            ("RenewLease", workers.renew_lease(renew).await.map(drop)),
            ("GetBatch", workers.get_batch(get).await.map(drop)),
            ("UpsertBatch", workers.upsert_batch(upsert).await.map(drop)),
            (
                "CompleteJob",
                workers.complete_job(complete).await.map(drop),
            ),
            ("FailJob", workers.fail_job(fail).await.map(drop)),
            ("ReleaseJob", self.release(job_id, epoch).await),
        ];
        answers.push(("StreamBatches", self.resume(job_id, epoch).await));
        answers
    }

    /// Opens a session that says it holds a part of this lease. A lease that is lost is
    /// told in a message.
    async fn resume(&mut self, job_id: i64, epoch: i64) -> Result<(), Status> {
        let chunk = v1::Chunk {
            item_id: "0".to_owned(),
            text_hash: vec![0; 32],
            ..v1::Chunk::default()
        };
        let part = v1::BatchPart {
            seq: 1,
            job_id,
            epoch,
            chunks: vec![chunk],
            ..v1::BatchPart::default()
        };
        let open = v1::SessionOpen {
            held: held([&part]),
            ..opening(1)
        };
        let open = v1::StreamBatchesRequest {
            message: Some(FromWorker::Open(open)),
        };
        // It stays open, or what it was to be told is not said.
        let messages = stream::iter([open]).chain(stream::pending());
        let mut stream = self.workers.stream_batches(messages).await?.into_inner();
        while let Some(answer) = soon(stream.message()).await? {
            if let Some(ToWorker::Ended(_)) = answer.message {
                return Err(Status::aborted("lease lost"));
            }
        }
        Ok(())
    }
}

async fn guarded(tokens: &Tokens) -> Weir {
    Weir::with(&[("WEIR_TOKENS_FILE", text_of(&tokens.path()))]).await
}

fn code<T: std::fmt::Debug>(answer: Result<T, Status>) -> Code {
    answer.expect_err("it must be refused").code()
}

#[tokio::test]
async fn no_call_is_made_without_a_good_token_of_the_right_role() {
    let tokens = Tokens::new();
    let client = tokens.add("shop", "client", &["*"]);
    let worker = tokens.add("gpu", "worker", &["*"]);
    let weir = guarded(&tokens).await;
    for token in [None, Some("weir_guess"), Some("")] {
        let mut nobody = clients(&weir, token);
        assert_eq!(
            code(nobody.put("default", "a").await),
            Code::Unauthenticated
        );
        assert_eq!(code(nobody.list("").await), Code::Unauthenticated);
        assert_eq!(code(nobody.claim().await), Code::Unauthenticated);
        let search = v1::SearchRequest::default();
        assert_eq!(
            code(nobody.searches.search(search).await),
            Code::Unauthenticated
        );
    }
    let (mut client, mut worker) = (clients(&weir, Some(&client)), clients(&weir, Some(&worker)));
    client.put("default", "a").await.unwrap();
    assert_eq!(code(client.claim().await), Code::PermissionDenied);
    assert_eq!(
        code(worker.put("default", "b").await),
        Code::PermissionDenied
    );
    assert_eq!(code(worker.list("").await), Code::PermissionDenied);
    assert_eq!(worker.claim().await.unwrap().len(), 1);
}

/// A source of two namespaces each, and clients who may see one, both or all.
struct Neighbours {
    weir: Weir,
    all: Clients,
    one: Clients,
    two: Clients,
    /// The job of `b`, which `one` may not see.
    theirs: i64,
    /// The job of `a`, which it may.
    own: i64,
    _tokens: Tokens,
}

impl Neighbours {
    async fn start() -> Self {
        let tokens = Tokens::new();
        let all = tokens.add("all", "client", &["*"]);
        let one = tokens.add("one", "client", &["a"]);
        let two = tokens.add("two", "client", &["a", "b"]);
        let weir = guarded(&tokens).await;
        let [mut all, mut one, two] = [all, one, two].map(|token| clients(&weir, Some(&token)));
        let theirs = all.put("b", "s").await.unwrap().jobs[0].job_id;
        let own = one.put("a", "s").await.unwrap().jobs[0].job_id;
        Self {
            weir,
            all,
            one,
            two,
            theirs,
            own,
            _tokens: tokens,
        }
    }
}

#[tokio::test]
async fn a_client_changes_its_own_namespaces_alone() {
    let Neighbours {
        weir: _weir,
        mut one,
        ..
    } = Neighbours::start().await;
    assert_eq!(code(one.put("b", "s").await), Code::PermissionDenied);
    assert_eq!(
        code(one.put("", "s").await),
        Code::PermissionDenied,
        "that is default"
    );
    let key = |namespace: &str| (namespace.to_owned(), "s".to_owned());
    let (namespace, name) = key("b");
    let get = v1::GetSourceRequest { namespace, name };
    assert_eq!(
        code(one.sources.get_source(get).await),
        Code::PermissionDenied
    );
    let (namespace, name) = key("b");
    let delete = v1::DeleteSourceRequest {
        namespace,
        name,
        ..v1::DeleteSourceRequest::default()
    };
    assert_eq!(
        code(one.sources.delete_source(delete).await),
        Code::PermissionDenied
    );
    let (namespace, name) = key("b");
    let patch = v1::PatchSourceRequest {
        namespace,
        name,
        ..v1::PatchSourceRequest::default()
    };
    assert_eq!(
        code(one.sources.patch_source(patch).await),
        Code::PermissionDenied
    );
    let (namespace, name) = key("b");
    let watch = v1::WatchSourceRequest {
        namespace,
        name,
        ..v1::WatchSourceRequest::default()
    };
    assert_eq!(
        code(one.jobs.watch_source(watch).await),
        Code::PermissionDenied
    );
    let search = v1::SearchRequest {
        namespace: "b".to_owned(),
        vector: 1f32.to_le_bytes().to_vec(),
        ..v1::SearchRequest::default()
    };
    assert_eq!(
        code(one.searches.search(search).await),
        Code::PermissionDenied
    );
    let open = v1::ImportSourceRequest {
        message: Some(v1::import_source_request::Message::Open(v1::ImportOpen {
            namespace: "b".to_owned(),
            name: "s".to_owned(),
            ..v1::ImportOpen::default()
        })),
    };
    let import = one.sources.import_source(tokio_stream::iter([open])).await;
    assert_eq!(code(import), Code::PermissionDenied);
}

#[tokio::test]
async fn by_its_id_a_job_of_others_is_not_there() {
    let Neighbours {
        weir: _weir,
        mut one,
        theirs,
        own,
        ..
    } = Neighbours::start().await;
    let not_there = Code::NotFound;
    let get = v1::GetJobRequest { job_id: theirs };
    assert_eq!(code(one.jobs.get_job(get).await), not_there);
    let watch = v1::WatchJobRequest {
        job_id: theirs,
        ..v1::WatchJobRequest::default()
    };
    assert_eq!(code(one.jobs.watch_job(watch).await), not_there);
    let cancel = v1::CancelJobRequest { job_id: theirs };
    assert_eq!(code(one.jobs.cancel_job(cancel).await), not_there);
    let retry = v1::RetryJobRequest {
        job_id: theirs,
        force: true,
    };
    assert_eq!(code(one.jobs.retry_job(retry).await), not_there);
    one.jobs
        .get_job(v1::GetJobRequest { job_id: own })
        .await
        .unwrap();
}

#[tokio::test]
async fn a_client_sees_how_its_own_namespaces_stand_alone() {
    let Neighbours {
        weir,
        mut all,
        mut one,
        mut two,
        ..
    } = Neighbours::start().await;
    let list = v1::ListChunksRequest {
        namespace: "b".to_owned(),
        name: "s".to_owned(),
        state: v1::ChunkState::Pending.into(),
        ..v1::ListChunksRequest::default()
    };
    let chunks = one.sources.list_chunks(list).await;
    assert_eq!(code(chunks), Code::PermissionDenied);
    let watch = v1::WatchStatusRequest {
        namespace: "b".to_owned(),
    };
    assert_eq!(
        code(one.jobs.watch_status(watch).await),
        Code::PermissionDenied
    );
    let activity = v1::GetActivityRequest::default();
    assert_eq!(
        code(one.jobs.get_activity(activity).await),
        Code::PermissionDenied
    );
    let failures = v1::ListFailuresRequest {
        namespace: "b".to_owned(),
        ..v1::ListFailuresRequest::default()
    };
    let failures = one.jobs.list_failures(failures).await;
    assert_eq!(code(failures), Code::PermissionDenied);
    sqlx::query(
        "INSERT INTO weir.failures (namespace, model, cause, last_error, last_job_id, last_source, occurrences)
         VALUES ('b', 'fake', 'c', 'e', 1, 's', 1)",
    )
    .execute(weir.database.pool())
    .await
    .unwrap();
    let every = v1::ListFailuresRequest::default();
    let seen = all.jobs.list_failures(every).await.unwrap();
    let failure_id = seen.into_inner().failures[0].failure_id;
    let dismiss = v1::DismissFailureRequest { failure_id };
    assert_eq!(
        code(one.jobs.dismiss_failure(dismiss).await),
        Code::NotFound
    );
    two.jobs.dismiss_failure(dismiss).await.unwrap();
    let watch = v1::WatchSourcesRequest::default();
    let watch = one.jobs.watch_sources(watch).await.unwrap();
    let page = watch.into_inner().message().await.unwrap().unwrap();
    let namespaces = page
        .sources
        .iter()
        .map(|one| one.source.as_ref().unwrap().namespace.as_str());
    assert_eq!(namespaces.collect::<Vec<_>>(), ["a"]);
}

/// Of the one namespace, of the one that is named, of all.
#[tokio::test]
async fn lists_are_of_the_namespaces_of_whoever_asks() {
    let Neighbours {
        weir: _weir,
        mut all,
        mut one,
        mut two,
        theirs,
        own,
        ..
    } = Neighbours::start().await;
    let ids =
        |list: v1::ListJobsResponse| list.jobs.iter().map(|job| job.job_id).collect::<Vec<_>>();
    assert_eq!(ids(one.list("").await.unwrap()), [own]);
    assert_eq!(code(one.list("b").await), Code::PermissionDenied);
    assert_eq!(code(two.list("").await), Code::PermissionDenied);
    assert_eq!(ids(two.list("b").await.unwrap()), [theirs]);
    assert_eq!(ids(all.list("").await.unwrap()).len(), 2);
    let stats = one
        .jobs
        .get_queue_stats(v1::GetQueueStatsRequest::default())
        .await
        .unwrap();
    let stats = stats.into_inner().queues;
    assert!(
        stats.iter().all(|queue| queue.namespace == "a"),
        "{stats:?}"
    );
    let sources = one
        .sources
        .list_sources(v1::ListSourcesRequest::default())
        .await
        .unwrap();
    assert_eq!(sources.into_inner().sources.len(), 1);
}

#[tokio::test]
async fn a_worker_claims_in_its_namespaces_and_uses_no_lease_of_another_token() {
    let tokens = Tokens::new();
    let client = tokens.add("client", "client", &["*"]);
    let a = tokens.add("gpu-a", "worker", &["a"]);
    let both = tokens.add("gpu-ab", "worker", &["a", "b"]);
    let weir = guarded(&tokens).await;
    let [mut client, mut a, mut both] = [client, a, both].map(|token| clients(&weir, Some(&token)));
    client.put("a", "s").await.unwrap();
    client.put("b", "s").await.unwrap();
    client.put("c", "s").await.unwrap();
    let [mine] = a.claim().await.unwrap().try_into().unwrap();
    assert_eq!(mine.namespace, "a");
    let [theirs] = both.claim().await.unwrap().try_into().unwrap();
    assert_eq!(theirs.namespace, "b", "and c is nobody's");

    a.renew(&mine).await.unwrap();
    // Of a namespace that it may use, and of one that it may not.
    assert_eq!(code(both.renew(&mine).await), Code::PermissionDenied);
    assert_eq!(code(a.renew(&theirs).await), Code::NotFound);
    // A session is told of a lease that is not its own that it is lost.
    let refused = |call, refusal| match call {
        "StreamBatches" => Code::Aborted,
        _ => refusal,
    };
    for (call, answer) in both.every_use(mine.job_id, mine.epoch).await {
        assert_eq!(
            code(answer),
            refused(call, Code::PermissionDenied),
            "{call}"
        );
    }
    for (call, answer) in a.every_use(theirs.job_id, theirs.epoch).await {
        assert_eq!(code(answer), refused(call, Code::NotFound), "{call}");
    }
    // Nor does it help to know which epoch comes next, before the claim or after it.
    for claimed in [true, false] {
        if !claimed {
            a.release(mine.job_id, mine.epoch).await.unwrap();
        }
        let before = jobs(&weir).await;
        for epoch in mine.epoch - 1..=mine.epoch + 2 {
            for (call, answer) in both.every_use(mine.job_id, epoch).await {
                let code = code(answer);
                let refused = [Code::PermissionDenied, Code::Aborted, Code::InvalidArgument];
                assert!(refused.contains(&code), "{call} at {epoch}: {code:?}");
            }
        }
        assert_eq!(jobs(&weir).await, before);
    }
    let [again] = a.claim().await.unwrap().try_into().unwrap();
    a.renew(&again).await.unwrap();
    let get = v1::GetBatchRequest {
        job_id: again.job_id,
        epoch: again.epoch,
        batch_size: 0,
    };
    let batch = a.workers.get_batch(get).await.unwrap().into_inner();
    assert_eq!(batch.chunks.len(), 1, "all of it is still to be done");
}

/// The rows of all jobs.
async fn jobs(weir: &Weir) -> Vec<String> {
    let rows = sqlx::query_scalar("SELECT to_jsonb(j)::text FROM weir.jobs j ORDER BY id");
    rows.fetch_all(weir.database.pool()).await.unwrap()
}

#[tokio::test]
async fn a_token_that_is_taken_back_ends_its_streams_and_a_new_one_is_good() {
    let tokens = Tokens::new();
    let old = tokens.add("shop", "client", &["*"]);
    let weir = guarded(&tokens).await;
    let mut client = clients(&weir, Some(&old));
    let job_id = client.put("a", "s").await.unwrap().jobs[0].job_id;
    let watch = v1::WatchJobRequest {
        job_id,
        ..v1::WatchJobRequest::default()
    };
    let mut watch = client.jobs.watch_job(watch).await.unwrap().into_inner();
    assert!(watch.message().await.unwrap().is_some());

    // A broken file changes nothing.
    let whole = fs::read_to_string(tokens.path()).unwrap();
    tokens.write("tokens.toml", "[shop");
    let broken = |line: &str| line.contains("cannot be used").then_some(());
    weir.coordinator.process.wait_for_line(broken).await;
    client.list("").await.unwrap();
    until(async || !in_force(&weir).await).await;

    // Another token beside it leaves it as it is.
    tokens.write("tokens.toml", &whole);
    let new = tokens.add("other", "client", &["*"]);
    let mut other = clients(&weir, Some(&new));
    let let_in = async { while other.list("").await.is_err() {} };
    soon(let_in).await;
    client.list("").await.unwrap();
    until(async || in_force(&weir).await).await;

    let file = fs::read_to_string(tokens.path()).unwrap();
    tokens.write("tokens.toml", file.strip_prefix(&whole).unwrap());
    let ended = soon(watch.message()).await.unwrap_err();
    assert_eq!(ended.code(), Code::Unauthenticated, "{ended:?}");
    assert_eq!(code(client.list("").await), Code::Unauthenticated);
    other.list("").await.unwrap();
}

#[tokio::test]
async fn a_token_whose_namespaces_are_changed_ends_its_streams() {
    let tokens = Tokens::new();
    let token = tokens.add("shop", "client", &["a"]);
    let weir = guarded(&tokens).await;
    let mut client = clients(&weir, Some(&token));
    let watch = v1::WatchStatusRequest::default();
    let watch = client.jobs.watch_status(watch).await.unwrap();
    let mut watch = watch.into_inner();
    assert!(watch.message().await.unwrap().is_some());
    let file = fs::read_to_string(tokens.path()).unwrap();
    tokens.write("tokens.toml", &file.replace("\"a\"", "\"b\""));
    let end = async {
        loop {
            if let Err(ended) = watch.message().await {
                return ended;
            }
        }
    };
    let ended = soon(end).await;
    assert_eq!(ended.code(), Code::Unauthenticated, "{ended:?}");
    assert!(ended.message().contains("was changed"), "{ended:?}");
    assert_eq!(code(client.list("a").await), Code::PermissionDenied);
    client.list("b").await.unwrap();
}

/// Whether `/metrics` says that all of the tokens file holds.
async fn in_force(weir: &Weir) -> bool {
    let url = format!("{}/metrics", weir.coordinator.url());
    let page = http().get(url).send().await.unwrap().text().await.unwrap();
    let said = |value| {
        page.contains(&format!(
            "weir_files_in_force{{setting=\"tokens\"}} {value}\n"
        ))
    };
    assert_ne!(said(0), said(1), "{page}");
    said(1)
}

#[tokio::test]
async fn a_token_is_taken_back_by_an_empty_table_and_beside_a_broken_one() {
    let tokens = Tokens::new();
    let names = ["one", "two", "three"];
    let drawn = names.map(|name| tokens.add(name, "client", &["*"]));
    let weir = guarded(&tokens).await;
    let [mut one, mut two, mut three] = drawn.map(|token| clients(&weir, Some(&token)));
    let file = fs::read_to_string(tokens.path()).unwrap();
    let table = |name: &str| {
        let at = file.find(&format!("[\"{name}\"]")).unwrap();
        file[at..].split("\n\n").next().unwrap().to_owned()
    };
    // The first is emptied, the second damaged, the third deleted.
    let damaged = table("two").replace("\"*\"", "\"B!\"");
    let emptied = "[one]\nrole = 'client'\nnamespaces = '*'\nsha256 = []";
    tokens.write("tokens.toml", &format!("{emptied}\n{damaged}\n"));
    for gone in [&mut one, &mut three] {
        until(async || gone.list("").await.is_err()).await;
        assert_eq!(code(gone.list("").await), Code::Unauthenticated);
    }
    two.list("").await.unwrap();
    until(async || !in_force(&weir).await).await;
    // A file that is about to be written says nothing; one without a table does.
    tokens.write("tokens.toml", "");
    let broken = |line: &str| line.contains("cannot be used;").then_some(());
    weir.coordinator.process.wait_for_line(broken).await;
    two.list("").await.unwrap();
    tokens.write("tokens.toml", "# nobody\n");
    until(async || two.list("").await.is_err()).await;
    assert_eq!(code(two.list("").await), Code::Unauthenticated);
    until(async || in_force(&weir).await).await;
}

/// Draws a token into a file of this mode; returns what was complained of.
fn drawn_into(folder: &Path, mode: u32) -> String {
    let file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(folder.join(format!("{mode:o}")));
    let drawn = Command::new(binary("weir-coordinator"))
        .args(["token", "gpu", "worker", "*"])
        .stdout(file.unwrap())
        .output()
        .unwrap();
    assert!(drawn.status.success(), "{drawn:?}");
    String::from_utf8(drawn.stderr).unwrap()
}

#[test]
fn a_token_that_lands_where_others_can_read_it_is_told_of() {
    let folder = tempfile::tempdir().unwrap();
    for mode in [0o604, 0o640] {
        let told = drawn_into(folder.path(), mode);
        assert!(told.starts_with("# The token of gpu was written"), "{told}");
        // It goes to the tokens file with the table.
        let table = told.split_once('\n').unwrap().1;
        assert!(table.starts_with("[\"gpu\"]\n"), "{told}");
    }
    let told = drawn_into(folder.path(), 0o600);
    assert!(!told.contains('#'), "{told}");
}

#[tokio::test]
async fn a_worker_sends_its_token_nowhere_in_plain_text_unasked() {
    let tokens = Tokens::new();
    let file = tokens.write("gpu.token", "weir_secret");
    let (file, elsewhere) = (text_of(&file), "http://192.0.2.1:7400");
    let refused = Command::new(binary("weir-worker"))
        .args(["--model", "fake", "--coordinator", elsewhere])
        .args(["--token-file", file])
        .output()
        .unwrap();
    assert!(!refused.status.success());
    let told = String::from_utf8(refused.stderr).unwrap();
    assert!(
        told.contains("--insecure-token (WEIR_INSECURE_TOKEN)"),
        "{told}"
    );
    assert!(!told.contains("weir_secret"), "{told}");
}

#[tokio::test]
async fn a_worker_goes_on_with_the_token_that_its_file_has_now() {
    let tokens = Tokens::new();
    let client = tokens.add("client", "client", &["*"]);
    let good = tokens.add("gpu", "worker", &["*"]);
    let weir = guarded(&tokens).await;
    let file = tokens.write("gpu.token", "weir_old");
    let embedder = FakeEmbedder::start().await;
    let environment = [("WEIR_TOKEN_FILE", text_of(&file))];
    let worker = Worker::spawn(&weir.coordinator.url(), &embedder.url(), &environment);
    let refused = |line: &str| line.contains("no longer, good").then_some(());
    worker.process.wait_for_line(refused).await;
    tokens.write("gpu.token", &format!("{good}\n"));
    let mut client = clients(&weir, Some(&client));
    let job_id = client.put("a", "s").await.unwrap().jobs[0].job_id;
    let watch = v1::WatchJobRequest {
        job_id,
        ..v1::WatchJobRequest::default()
    };
    let mut watch = client.jobs.watch_job(watch).await.unwrap().into_inner();
    let last = soon(last_of(&mut watch)).await;
    assert_eq!(last.state(), v1::JobState::Succeeded);
}

async fn post(weir: &Weir, token: Option<&str>, call: &str, request: &Value) -> reqwest::Response {
    let url = format!("{}/api/{call}", weir.coordinator.url());
    let mut post = http().post(url).header("content-type", "application/json");
    if let Some(token) = token {
        post = post.bearer_auth(token);
    }
    post.body(request.to_string()).send().await.unwrap()
}

#[tokio::test]
async fn the_same_holds_for_json_and_health_is_open() {
    let tokens = Tokens::new();
    let (a, worker) = (
        tokens.add("a", "client", &["a"]),
        tokens.add("w", "worker", &["*"]),
    );
    let weir = guarded(&tokens).await;
    let list = |namespace: &str| json!({ "namespace": namespace });
    for (token, namespace, status) in [
        (None, "a", StatusCode::UNAUTHORIZED),
        (Some("weir_guess"), "a", StatusCode::UNAUTHORIZED),
        (Some(worker.as_str()), "a", StatusCode::FORBIDDEN),
        (Some(a.as_str()), "b", StatusCode::FORBIDDEN),
        (Some(a.as_str()), "a", StatusCode::OK),
    ] {
        let answer = post(&weir, token, "JobService/ListJobs", &list(namespace)).await;
        assert_eq!(answer.status(), status, "{token:?} {namespace}");
        if status == StatusCode::UNAUTHORIZED {
            assert_eq!(answer.headers()["www-authenticate"], "Bearer");
            let body: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
            assert_eq!(body["code"], "UNAUTHENTICATED");
        }
    }
    let url = format!("{}/api/JobService/WatchSource", weir.coordinator.url());
    let watch = http().get(url).send().await.unwrap();
    assert_eq!(watch.status(), StatusCode::UNAUTHORIZED);
    for page in ["livez", "readyz"] {
        let url = format!("{}/{page}", weir.coordinator.url());
        assert_eq!(
            http().get(url).send().await.unwrap().status(),
            StatusCode::OK
        );
    }
}

#[tokio::test]
async fn a_caller_that_calls_too_often_is_told_when_to_come_back() {
    let tokens = Tokens::new();
    let (one, other) = (
        tokens.add("one", "client", &["*"]),
        tokens.add("two", "client", &["*"]),
    );
    let weir = Weir::with(&[
        ("WEIR_TOKENS_FILE", text_of(&tokens.path())),
        ("WEIR_REQUESTS_PER_SECOND", "1"),
    ])
    .await;
    let mut client = clients(&weir, Some(&one));
    let mut refused = None;
    for _ in 0..1_000 {
        refused = refused.or(client.list("").await.err());
    }
    let refused = refused.unwrap();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    let retry = refused
        .get_details_retry_info()
        .unwrap()
        .retry_delay
        .unwrap();
    assert!(retry.as_millis() <= 1_000, "{retry:?}");
    clients(&weir, Some(&other)).list("").await.unwrap();
    for _ in 0..1_000 {
        let answer = post(&weir, Some(&one), "JobService/ListJobs", &json!({})).await;
        if answer.status() == StatusCode::TOO_MANY_REQUESTS {
            assert_eq!(answer.headers()["retry-after"], "1");
            return;
        }
    }
    panic!("it could call as often as it liked");
}

#[tokio::test]
async fn a_namespace_has_no_more_than_its_quota() {
    let weir = Weir::with(&[
        ("WEIR_MAX_SOURCES_PER_NAMESPACE", "2"),
        ("WEIR_MAX_PENDING_CHUNKS_PER_NAMESPACE", "3"),
    ])
    .await;
    let mut client = clients(&weir, None);
    client.put("a", "one").await.unwrap();
    client.put("a", "two").await.unwrap();
    let refused = client.put("a", "three").await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(
        refused.message().contains("may have 2 sources"),
        "{refused:?}"
    );
    client.put("b", "three").await.unwrap();
    client.put("a", "one").await.unwrap();

    let put = |texts: &[&str]| v1::PutSourceRequest {
        namespace: "a".to_owned(),
        ..put_texts("one", texts)
    };
    client
        .sources
        .put_source(put(&["one", "two"]))
        .await
        .unwrap();
    let refused = client
        .sources
        .put_source(put(&["one", "two", "three"]))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(
        refused
            .message()
            .contains("4 chunks to embed, and may have 3"),
        "{refused:?}"
    );
    assert_eq!(
        client
            .list("a")
            .await
            .unwrap()
            .jobs
            .iter()
            .filter(|job| job.state() == v1::JobState::Queued)
            .map(|job| job.chunks_total)
            .sum::<i64>(),
        3
    );
    client.sources.put_source(put(&["one"])).await.unwrap();
}

#[tokio::test]
async fn a_message_of_very_many_items_is_refused_before_it_is_taken_in() {
    let weir = Weir::start().await;
    let put = put_items("many", vec![v1::Item::default(); MAX_MESSAGE_PARTS]);
    let refused = weir.sources().put_source(put).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    assert!(refused.message().contains("in several"), "{refused:?}");
    let items = vec![json!({}); MAX_MESSAGE_PARTS];
    let request = json!({ "name": "many", "items": { "items": items } });
    let answer = post(&weir, None, "SourceService/PutSource", &request).await;
    assert_eq!(answer.status(), StatusCode::TOO_MANY_REQUESTS);

    // One that is too large by its bytes is refused as well, and no other call suffers.
    let large = put_items("large", vec![item("a", &"x".repeat(65 << 20))]);
    let refused = weir.sources().put_source(large).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    let Some(Content::Items(_)) = put_texts("small", &["one"]).content else {
        panic!("texts are put as items");
    };
    weir.put("small", &["one"]).await;
}

#[tokio::test]
async fn an_open_door_has_to_be_asked_for_in_so_many_words() {
    let database = TestDatabase::create().await;
    let environment = [
        ("WEIR_DATABASE_URL", database.url()),
        ("WEIR_MODELS", "fake"),
        ("WEIR_LISTEN", "0.0.0.0:0"),
    ];
    let mut refused = Process::spawn("weir-coordinator", &[], &environment);
    assert!(!refused.wait().await.success());
    let said = refused.log().join("\n");
    assert!(said.contains("--insecure (WEIR_INSECURE=true)"), "{said}");
}

/// Gets the first text of a lease and returns what becomes of a vector of this
/// many numbers for it.
async fn embed(
    worker: &mut Clients,
    lease: &v1::Lease,
    dimension: usize,
) -> Result<v1::UpsertBatchResponse, Status> {
    let (job_id, epoch) = (lease.job_id, lease.epoch);
    let get = v1::GetBatchRequest {
        job_id,
        epoch,
        batch_size: 1,
    };
    let chunks = worker.workers.get_batch(get).await?.into_inner().chunks;
    let vector = vec![1.0; dimension];
    let vectors = chunks.iter().map(|it| embedded(it, &vector));
    let upsert = upsert(lease, vectors.collect());
    Ok(worker.workers.upsert_batch(upsert).await?.into_inner())
}

/// How many numbers the vectors of a model have is for all namespaces, so no
/// worker of some says so.
#[tokio::test]
async fn a_worker_of_some_namespaces_fixes_no_dimension_for_all() {
    let tokens = Tokens::new();
    let client = tokens.add("client", "client", &["*"]);
    let a = tokens.add("gpu-a", "worker", &["a"]);
    let b = tokens.add("gpu-b", "worker", &["b"]);
    let all = tokens.add("gpu", "worker", &["*"]);
    let weir = guarded(&tokens).await;
    let [mut client, mut a, mut all] = [client, a, all].map(|token| clients(&weir, Some(&token)));
    let theirs = client.put("a", "s").await.unwrap().jobs[0].job_id;
    client.put("b", "s").await.unwrap();
    let [lease] = a.claim().await.unwrap().try_into().unwrap();
    let refused = embed(&mut a, &lease, 3).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    let said = refused.message();
    assert!(said.contains("--models fake=3 (WEIR_MODELS)"), "{said}");
    // The job goes back uncharged, and says why.
    let get = v1::GetJobRequest { job_id: theirs };
    let job = client.jobs.get_job(get).await.unwrap().into_inner().job;
    let job = job.unwrap();
    assert_eq!((job.state(), job.attempt), (v1::JobState::Queued, 0));
    assert!(job.last_error.contains("--models fake=3"), "{job:?}");
    assert!(a.claim().await.unwrap().is_empty(), "it waits a while");
    // On a session it is the same, and the session goes on.
    let mut session = Session::open_as(&weir.channel, Some(&b), opening(1)).await;
    session.grant(2);
    let part = session.part().await;
    session.embed(&part);
    let How::Refused(refused) = session.ended(part.job_id).await else {
        panic!("its result is not to be taken");
    };
    assert!(refused.contains("--models fake=16"), "{refused}");
    let get = v1::GetJobRequest {
        job_id: part.job_id,
    };
    let job = client.jobs.get_job(get).await.unwrap().into_inner().job;
    let job = job.unwrap();
    assert_eq!((job.state(), job.attempt), (v1::JobState::Queued, 0));
    assert!(session.is_quiet());

    // A worker of all says so, for all.
    client.put("c", "s").await.unwrap();
    let [lease] = all.claim().await.unwrap().try_into().unwrap();
    assert_eq!(embed(&mut all, &lease, 4).await.unwrap().done, 1);
    let retry = v1::RetryJobRequest {
        job_id: theirs,
        ..v1::RetryJobRequest::default()
    };
    client.jobs.retry_job(retry).await.unwrap();
    let [lease] = a.claim().await.unwrap().try_into().unwrap();
    let refused = embed(&mut a, &lease, 3).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("has 3 numbers") && refused.message().contains("have 4"));
    assert_eq!(embed(&mut a, &lease, 4).await.unwrap().done, 1);
}

#[tokio::test]
async fn where_the_operator_says_the_dimension_every_worker_may_be_first() {
    let tokens = Tokens::new();
    let client = tokens.add("client", "client", &["*"]);
    let a = tokens.add("gpu-a", "worker", &["a"]);
    let file = tokens.path();
    let settings = [
        ("WEIR_TOKENS_FILE", text_of(&file)),
        ("WEIR_MODELS", "fake=4"),
    ];
    let weir = Weir::with(&settings).await;
    let [mut client, mut a] = [client, a].map(|token| clients(&weir, Some(&token)));
    client.put("a", "s").await.unwrap();
    let [lease] = a.claim().await.unwrap().try_into().unwrap();
    let refused = embed(&mut a, &lease, 3).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(
        refused
            .message()
            .contains("have 4, as the coordinator was told")
    );
    assert_eq!(embed(&mut a, &lease, 4).await.unwrap().done, 1);
}
