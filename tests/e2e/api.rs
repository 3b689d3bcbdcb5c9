//! The calls of the API, end to end: what is put, worked on by hand, watched,
//! searched and deleted, over one coordinator and over two.

#![expect(
    clippy::unwrap_used,
    reason = "what is not as it should be fails the test"
)]

use std::collections::VecDeque;

use futures::future::join_all;
use prost::Message as _;
use prost_types::{FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tonic::{Code, Request};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};
use weir_proto::trace::TraceContext;
use weir_proto::v1::{self, DocumentFormat, JobState, import_source_request::Message as Part};
use weir_tests::{
    PATIENCE,
    cluster::{Coordinator, Process},
    postgres::TestDatabase,
    session::{Session, embeds, result},
};

use crate::clients::{
    Weir, assert_invalid, assert_status, claim_request, embedded, http, item, put_document,
    put_items, put_texts, seconds, until, upsert, vector_bytes,
};

const SERVICES: [&str; 4] = [
    "weir.v1.JobService",
    "weir.v1.SearchService",
    "weir.v1.SourceService",
    "weir.v1.WorkerService",
];

/// So rare that a test which waits for the poll fails: notifications must do.
const NO_POLL: (&str, &str) = ("WEIR_POLL_INTERVAL", "1h");

// What every service has: reflection, health, HTTP, gRPC-Web.

#[tokio::test]
async fn reflection_lists_the_services() {
    let weir = Weir::start().await;
    let ask = |message_request| ServerReflectionRequest {
        host: String::new(),
        message_request: Some(message_request),
    };
    let requests = tokio_stream::iter([
        ask(MessageRequest::ListServices(String::new())),
        ask(MessageRequest::FileContainingSymbol(SERVICES[0].to_owned())),
    ]);
    let answer = ServerReflectionClient::new(weir.channel.clone())
        .server_reflection_info(requests)
        .await;
    let mut answers = answer.unwrap().into_inner();
    let listed = answers.message().await.unwrap().unwrap().message_response;
    let Some(MessageResponse::ListServicesResponse(listed)) = listed else {
        panic!("a list of services was due, not {listed:?}");
    };
    let names: Vec<String> = listed.service.into_iter().map(|s| s.name).collect();
    for service in SERVICES.iter().chain(&["grpc.health.v1.Health"]) {
        assert!(
            names.iter().any(|name| name == service),
            "{service}: {names:?}"
        );
    }
    let file = answers.message().await.unwrap().unwrap().message_response;
    let Some(MessageResponse::FileDescriptorResponse(files)) = file else {
        panic!("a file was due, not {file:?}");
    };
    let file = FileDescriptorProto::decode(files.file_descriptor_proto[0].as_slice()).unwrap();
    assert_eq!(file.name(), "weir/v1/job_service.proto");
}

#[tokio::test]
async fn reflection_tells_nothing_where_it_is_closed() {
    let weir = Weir::with(&[("WEIR_REFLECTION", "false")]).await;
    let list = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let answer = ServerReflectionClient::new(weir.channel.clone())
        .server_reflection_info(tokio_stream::iter([list]))
        .await;
    let status = match answer {
        Ok(answers) => answers.into_inner().message().await.unwrap_err(),
        Err(status) => status,
    };
    assert_eq!(status.code(), Code::Unimplemented);
}

/// The setting of this number that a port tells at the beginning of HTTP/2.
/// <https://www.rfc-editor.org/rfc/rfc9113#section-6.5>
async fn http2_setting(weir: &Weir, number: u16) -> u32 {
    let mut port = TcpStream::connect(weir.coordinator.address())
        .await
        .unwrap();
    // The preface, and settings that are empty.
    let greeting = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    port.write_all(greeting).await.unwrap();
    let mut frame = [0; 9];
    port.read_exact(&mut frame).await.unwrap();
    assert_eq!(frame[3], 4, "settings come first");
    let len = u32::from_be_bytes([0, frame[0], frame[1], frame[2]]);
    let mut settings = vec![0; len as usize];
    port.read_exact(&mut settings).await.unwrap();
    let mut settings = settings.chunks_exact(6).map(|it| {
        let number = u16::from_be_bytes([it[0], it[1]]);
        (number, u32::from_be_bytes([it[2], it[3], it[4], it[5]]))
    });
    settings.find(|(it, _)| *it == number).unwrap().1
}

#[tokio::test]
async fn a_connection_has_so_many_calls_and_headers_so_long() {
    let weir = Weir::with(&[("WEIR_MAX_CALLS_PER_CONNECTION", "7")]).await;
    assert_eq!(http2_setting(&weir, 3).await, 7, "calls at a time");
    assert_eq!(http2_setting(&weir, 6).await, 16 << 10, "bytes of headers");
    let mut jobs = weir.jobs();
    let mut list = Request::new(v1::ListJobsRequest::default());
    let long = "x".repeat(20_000).parse().unwrap();
    list.metadata_mut().insert("long", long);
    jobs.list_jobs(list).await.unwrap_err();
    jobs.list_jobs(v1::ListJobsRequest::default())
        .await
        .unwrap();
}

#[tokio::test]
async fn health_and_streams_tell_of_the_stop() {
    let mut weir = Weir::start().await;
    let mut health = HealthClient::new(weir.channel.clone());
    let ask = |service: &str| HealthCheckRequest {
        service: service.to_owned(),
    };
    for service in SERVICES.iter().chain(&[""]) {
        // The first report comes when the database has answered it.
        until(async || match health.clone().check(ask(service)).await {
            Ok(answer) => answer.into_inner().status() == ServingStatus::Serving,
            Err(status) => {
                assert_eq!(status.code(), Code::NotFound, "{service}: {status:?}");
                false
            }
        })
        .await;
    }
    let http = http();
    for page in ["livez", "readyz"] {
        let url = format!("{}/{page}", weir.coordinator.url());
        let answer = http.get(url).send().await.unwrap();
        assert_eq!(answer.status().as_u16(), 200, "{page}");
        assert_eq!(answer.text().await.unwrap(), "ok");
    }

    weir.put("source", &["one"]).await;
    let mut watched = health.watch(ask("")).await.unwrap().into_inner();
    let status = watched.message().await.unwrap().unwrap();
    assert_eq!(status.status(), ServingStatus::Serving);
    let request = v1::WatchSourceRequest {
        name: "source".to_owned(),
        ..v1::WatchSourceRequest::default()
    };
    let mut changes = weir.jobs().watch_source(request).await.unwrap();
    changes.get_mut().message().await.unwrap().unwrap();
    let mut session = Session::open(&weir, 1).await;
    session.grant(1);
    session.part().await;
    let mut worker = weir.worker();
    let waiting = tokio::spawn(async move {
        let mut claim = claim_request();
        claim.wait = Some(seconds(60));
        worker.claim_job(claim).await
    });
    // The claim is sent first, and this answered after.
    tokio::task::yield_now().await;
    weir.source("source").await.unwrap();

    weir.coordinator.process.sigterm();
    let status = watched.message().await.unwrap().unwrap();
    assert_eq!(status.status(), ServingStatus::NotServing);
    let status = waiting.await.unwrap().unwrap_err();
    assert_status(&status, Code::Unavailable, "stopping");
    let status = session.over().await.unwrap_err();
    assert_status(&status, Code::Unavailable, "stopping");
    let status = loop {
        match changes.get_mut().message().await {
            Ok(state) => assert!(state.is_some(), "the watch ended as if all were done"),
            Err(status) => break status,
        }
    };
    assert_status(&status, Code::Unavailable, "stopping");
    drop((watched, changes, session, health));
    assert!(weir.coordinator.process.wait().await.success());
}

#[tokio::test]
async fn grpc_web_reaches_the_services() {
    let weir = Weir::start().await;
    weir.put("source", &["one"]).await;
    let url = format!(
        "{}/weir.v1.JobService/GetQueueStats",
        weir.coordinator.url()
    );
    let answer = http()
        .post(url)
        .header("content-type", "application/grpc-web+proto")
        .body(vec![0; 5])
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status().as_u16(), 200);
    assert_eq!(answer.version(), reqwest::Version::HTTP_11);
    assert_eq!(
        answer.headers()["content-type"],
        "application/grpc-web+proto"
    );
    let body = answer.bytes().await.unwrap();
    let length = u32::from_be_bytes(body[1..5].try_into().unwrap()) as usize;
    let stats = v1::GetQueueStatsResponse::decode(&body[5..5 + length]).unwrap();
    assert_eq!(stats.queues[0].jobs_ready, 1);
    let trailers = &body[5 + length..];
    assert_eq!(trailers[0], 0x80);
    let trailers = std::str::from_utf8(&trailers[5..]).unwrap();
    assert!(trailers.contains("grpc-status:0"), "{trailers:?}");
}

// Sources.

fn list(page_size: i32, page_token: String) -> v1::ListSourcesRequest {
    v1::ListSourcesRequest {
        page_size,
        page_token,
        ..v1::ListSourcesRequest::default()
    }
}

#[tokio::test]
async fn sources_are_put_patched_listed_and_deleted() {
    let weir = Weir::start().await;
    let put = weir.put("b", &["one", "two", "three"]).await;
    let change = put.change.unwrap();
    assert_eq!((change.items_added, change.chunks_pending), (3, 3));
    assert_eq!(put.jobs.len(), 1);
    let again = weir.put("b", &["one", "two", "three"]).await;
    assert_eq!(again.change.unwrap().items_unchanged, 3);
    assert_eq!(again.source.unwrap().revision, 1);

    let patch = v1::PatchSourceRequest {
        name: "b".to_owned(),
        upsert: vec![item("0", "uno"), item("9", "nine")],
        delete_item_ids: vec!["1".to_owned(), "not there".to_owned()],
        ..v1::PatchSourceRequest::default()
    };
    let patched = weir.sources().patch_source(patch.clone()).await.unwrap();
    let change = patched.into_inner().change.unwrap();
    assert_eq!(
        (
            change.items_added,
            change.items_changed,
            change.items_deleted
        ),
        (1, 1, 1)
    );
    let mut missing = patch;
    missing.name = "nobody".to_owned();
    let status = weir.sources().patch_source(missing.clone()).await;
    assert_status(&status.unwrap_err(), Code::NotFound, "\"nobody\"");
    missing.delete_item_ids = vec!["0".to_owned()];
    let status = weir.sources().patch_source(missing).await.unwrap_err();
    assert_invalid(&status, "upsert[0].item_id", "both upserted and deleted");
    let source = weir.source("b").await.unwrap();
    assert_eq!((source.items, source.revision), (3, 2));
    assert_status(
        &weir.source("nobody").await.unwrap_err(),
        Code::NotFound,
        "\"nobody\"",
    );

    for name in ["a", "c", "d", "e"] {
        weir.put(name, &["x"]).await;
    }
    let mut other = put_texts("a", &["x"]);
    other.namespace = "another".to_owned();
    weir.sources().put_source(other).await.unwrap();
    let (mut names, mut token, mut pages) = (Vec::new(), String::new(), 0);
    loop {
        let page = weir.sources().list_sources(list(2, token)).await.unwrap();
        let page = page.into_inner();
        pages += 1;
        names.extend(page.sources.into_iter().map(|summary| {
            let source = summary.source.unwrap();
            assert_eq!(summary.job.unwrap().source, source.name);
            format!("{}/{}", source.namespace, source.name)
        }));
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert!(pages >= 3);
    let all = ["another/a", "default/a", "default/b", "default/c"];
    assert_eq!(names[..4], all);
    assert_eq!(names[4..], ["default/d", "default/e"]);

    let request = v1::DeleteSourceRequest {
        name: "b".to_owned(),
        ..v1::DeleteSourceRequest::default()
    };
    let deleted = weir.sources().delete_source(request.clone()).await.unwrap();
    assert_eq!(deleted.into_inner().items_deleted, 3);
    let status = weir.sources().delete_source(request).await.unwrap_err();
    assert_status(&status, Code::NotFound, "\"b\"");
    assert_eq!(weir.rows("sources").await, 5);
}

#[tokio::test]
async fn imports_come_in_several_messages() {
    let weir = Weir::start().await;
    let open = |name: &str, format: DocumentFormat| {
        Part::Open(v1::ImportOpen {
            name: name.to_owned(),
            format: format.into(),
            ..v1::ImportOpen::default()
        })
    };
    let items = |items| Part::Items(v1::ItemList { items });
    let import = async |parts: Vec<Part>| {
        let parts = parts.into_iter().map(|part| v1::ImportSourceRequest {
            message: Some(part),
        });
        let parts: Vec<_> = parts.collect();
        let answer = weir
            .sources()
            .import_source(tokio_stream::iter(parts))
            .await;
        answer.unwrap().into_inner()
    };
    weir.put("items", &["old"]).await;
    let answer = import(vec![
        open("items", DocumentFormat::Unspecified),
        items(vec![item("c", "three"), item("a", "one")]),
        items(vec![]),
        items(vec![item("b", "two")]),
    ])
    .await;
    let change = answer.change.unwrap();
    assert_eq!((change.items_added, change.items_deleted), (3, 1));
    assert_eq!(answer.source.unwrap().revision, 2);

    // Parts of a document may be cut anywhere, in the middle of a character too.
    let document = "# Überschrift\n\nEin kurzer Text.\n".as_bytes();
    let mut parts = vec![open("document", DocumentFormat::Markdown)];
    parts.extend(
        document
            .chunks(3)
            .map(|part| Part::DocumentPart(part.into())),
    );
    assert_eq!(import(parts).await.source.unwrap().items, 1);
    let text: String =
        sqlx::query_scalar("SELECT text FROM weir.chunks WHERE item_id = 'document'")
            .fetch_one(weir.database.pool())
            .await
            .unwrap();
    assert!(text.contains("Überschrift"), "{text:?}");

    // Lines are read as they come; the last may end without an end.
    let lines = "\u{feff}{\"item_id\":\"ä\",\"text\":\"ö\",\"metadata\":{\"k\":[1]}}\n\n\
        {\"item_id\":\"b\",\"text\":\"two\"}";
    for (size, name) in [(1, "by bytes"), (5, "by fives"), (1_000, "at once")] {
        let name = name.replace(' ', "-");
        let mut parts = vec![open(&name, DocumentFormat::JsonLines)];
        let cut = lines.as_bytes().chunks(size);
        parts.extend(cut.map(|part| Part::DocumentPart(part.into())));
        let answer = import(parts).await;
        assert_eq!(answer.source.unwrap().items, 2, "{name}");
        let metadata: Vec<Option<String>> = sqlx::query_scalar(
            "SELECT metadata::text FROM weir.items i JOIN weir.sources s ON s.id = i.source_id
             WHERE s.name = $1 ORDER BY item_id",
        )
        .bind(&name)
        .fetch_all(weir.database.pool())
        .await
        .unwrap();
        assert_eq!(metadata, [None, Some(r#"{"k": [1]}"#.to_owned())]);
    }
    assert_eq!(weir.rows("import_items").await, 0);
}

#[tokio::test]
#[expect(clippy::print_stderr, reason = "says why nothing was tested")]
async fn a_large_real_document_comes_through() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../shared/data/openai-openapi.yml"
    );
    let Ok(content) = std::fs::read(path) else {
        eprintln!("{path} is not there; it is optional, and nothing was tested.");
        return;
    };
    let weir = Weir::start().await;
    let request = put_document("large", DocumentFormat::Openapi, content);
    let answer = weir.sources().put_source(request).await.unwrap();
    assert_eq!(answer.into_inner().source.unwrap().items, 271);
    assert_eq!(weir.rows("items").await, 271);
}

// Jobs.

#[tokio::test]
async fn jobs_are_listed_by_filter_and_page() {
    let weir = Weir::start().await;
    for namespace in ["default", "other"] {
        for name in ["a", "b", "c"] {
            let mut request = put_texts(name, &["x"]);
            request.namespace = namespace.to_owned();
            weir.sources().put_source(request).await.unwrap();
        }
    }
    let lease = weir.claim().await;
    let list = async |namespace: &str, source: &str, states: &[JobState], page_size: i32| {
        let mut request = v1::ListJobsRequest {
            namespace: namespace.to_owned(),
            source: source.to_owned(),
            states: states.iter().map(|state| i32::from(*state)).collect(),
            page_size,
            ..v1::ListJobsRequest::default()
        };
        let mut ids = Vec::new();
        loop {
            let page = weir.jobs().list_jobs(request.clone()).await.unwrap();
            let page = page.into_inner();
            assert!(page_size == 0 || page.jobs.len() <= page_size as usize);
            ids.extend(page.jobs.iter().map(|job| job.job_id));
            request.page_token = page.next_page_token;
            if request.page_token.is_empty() {
                break ids;
            }
        }
    };
    let all = list("", "", &[], 0).await;
    assert_eq!(all.len(), 6);
    assert!(all.is_sorted_by(|newer, older| newer > older));
    assert_eq!(list("", "", &[], 2).await, all);
    assert_eq!(list("other", "", &[], 1).await, all[..3]);
    // A source without a namespace is one in "default".
    assert_eq!(list("", "a", &[], 0).await, all[5..]);
    assert_eq!(list("other", "a", &[], 0).await, all[2..3]);
    let running = list("", "", &[JobState::Running], 0).await;
    assert_eq!(running, [lease.job_id]);
    let open = [JobState::Queued, JobState::Running];
    assert_eq!(list("", "", &open, 4).await, all);
    assert!(list("", "", &[JobState::Failed], 0).await.is_empty());
    let status = weir
        .jobs()
        .get_job(v1::GetJobRequest { job_id: 4711 })
        .await;
    assert_status(&status.unwrap_err(), Code::NotFound, "4711");

    let request = v1::GetQueueStatsRequest::default();
    let answer = weir.jobs().get_queue_stats(request).await.unwrap();
    let queues = answer.into_inner().queues;
    let ready: Vec<_> = queues
        .iter()
        .map(|queue| {
            (
                queue.namespace.as_str(),
                queue.jobs_ready,
                queue.jobs_running,
            )
        })
        .collect();
    assert_eq!(ready, [("default", 2, 1), ("other", 3, 0)]);
}

/// The next state of a watch; `None` when it ended well.
async fn state<T>(watch: &mut tonic::Streaming<T>) -> Option<T> {
    let message = tokio::time::timeout(PATIENCE, watch.message()).await;
    message.unwrap().unwrap()
}

/// Embeds and completes what a lease covers, a chunk at a time.
async fn work_off(weir: &Weir, lease: &v1::Lease) {
    for chunk in weir.batch(lease).await {
        let request = upsert(lease, vec![embedded(&chunk, &[1.0, 0.0])]);
        weir.worker().upsert_batch(request).await.unwrap();
    }
    let request = v1::CompleteJobRequest {
        job_id: lease.job_id,
        epoch: lease.epoch,
    };
    weir.worker().complete_job(request).await.unwrap();
}

#[tokio::test]
async fn watchers_on_any_replica_see_the_work_to_its_end() {
    let weir = Weir::with(&[NO_POLL]).await;
    let replica = Coordinator::spawn(weir.database.url(), &[NO_POLL]).await;
    let job_id = weir.put("source", &["one", "two"]).await.jobs[0].job_id;
    let watch_source = |until_idle| v1::WatchSourceRequest {
        name: "source".to_owned(),
        until_idle,
        ..v1::WatchSourceRequest::default()
    };
    let mut watches = Vec::new();
    for channel in [weir.channel.clone(), replica.connect().await] {
        let mut jobs = v1::job_service_client::JobServiceClient::new(channel);
        let request = v1::WatchJobRequest {
            job_id,
            ..v1::WatchJobRequest::default()
        };
        let job = jobs.watch_job(request).await;
        let idle = jobs.watch_source(watch_source(true)).await;
        let on = jobs.watch_source(watch_source(false)).await;
        let (mut job, mut idle, mut on) = (
            job.unwrap().into_inner(),
            idle.unwrap().into_inner(),
            on.unwrap().into_inner(),
        );
        // The present comes first.
        let first = state(&mut job).await.unwrap().job.unwrap();
        assert_eq!(first.state(), JobState::Queued);
        for watch in [&mut idle, &mut on] {
            let first = state(watch).await.unwrap();
            assert_eq!(first.source.unwrap().chunks_embedded, 0);
            assert_eq!(first.jobs[0].job_id, job_id);
        }
        watches.push((job, idle, on));
    }

    let lease = weir.claim().await;
    let chunk = weir.batch(&lease).await.remove(0);
    let request = upsert(&lease, vec![embedded(&chunk, &[1.0, 0.0])]);
    weir.worker().upsert_batch(request).await.unwrap();
    for (job, ..) in &mut watches {
        while state(job).await.unwrap().job.unwrap().chunks_done < 1 {}
    }
    work_off(&weir, &lease).await;
    for (job, idle, on) in &mut watches {
        let mut last = None;
        while let Some(state) = state(job).await {
            last = state.job;
        }
        let last = last.unwrap();
        assert_eq!((last.state(), last.chunks_done), (JobState::Succeeded, 2));
        let mut last = None;
        while let Some(state) = state(idle).await {
            last = state.source;
        }
        assert_eq!(last.unwrap().chunks_embedded, 2);
        // This one goes on.
        while !state(on).await.unwrap().jobs.is_empty() {}
    }
    let request = v1::DeleteSourceRequest {
        name: "source".to_owned(),
        ..v1::DeleteSourceRequest::default()
    };
    weir.sources().delete_source(request).await.unwrap();
    for (_, _, on) in &mut watches {
        let status = on.message().await.unwrap_err();
        assert_status(&status, Code::NotFound, "\"source\"");
    }
    let status = weir.jobs().watch_source(watch_source(true)).await;
    assert_status(&status.unwrap_err(), Code::NotFound, "\"source\"");
}

#[tokio::test]
async fn a_put_on_one_replica_wakes_a_claim_on_the_other() {
    let weir = Weir::with(&[NO_POLL]).await;
    let replica = Coordinator::spawn(weir.database.url(), &[NO_POLL]).await;
    let channel = replica.connect().await;
    let mut worker = v1::worker_service_client::WorkerServiceClient::new(channel.clone());
    let waiting = tokio::spawn(async move {
        let mut claim = claim_request();
        claim.wait = Some(seconds(60));
        worker.claim_job(claim).await
    });
    // The claim is sent first, and this answered after.
    tokio::task::yield_now().await;
    let mut jobs = v1::job_service_client::JobServiceClient::new(channel);
    let request = v1::GetQueueStatsRequest::default();
    jobs.get_queue_stats(request).await.unwrap();
    let job_id = weir.put("source", &["one"]).await.jobs[0].job_id;
    let leases = waiting.await.unwrap().unwrap().into_inner().leases;
    assert_eq!(leases.len(), 1, "the claim was not woken");
    assert_eq!(leases[0].job_id, job_id);
}

#[tokio::test]
async fn the_trace_context_of_a_write_reaches_the_worker() {
    let weir = Weir::start().await;
    let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let upper = good.to_uppercase();
    for (name, sent) in [
        ("a", good),
        ("b", "00-4bf9-00f0-01"),
        ("c", upper.as_str()),
        ("d", "nonsense"),
    ] {
        let mut request = Request::new(put_texts(name, &["x"]));
        let metadata = request.metadata_mut();
        metadata.insert("traceparent", sent.parse().unwrap());
        weir.sources().put_source(request).await.unwrap();
        let lease = weir.claim().await;
        assert_eq!(lease.source, name);
        // One that is not well-formed is none: a trace begins here, for logs alone.
        let seen = TraceContext::read(&lease.traceparent).unwrap();
        assert_eq!(lease.traceparent == good, sent == good, "{sent}");
        assert_eq!(seen.sampled, sent == good, "{sent}");
    }
}

// Workers.

#[tokio::test]
async fn the_unary_calls_of_a_worker_do_a_whole_job() {
    let weir = Weir::start().await;
    let job_id = weir.put("source", &["three", "a", "bb"]).await.jobs[0].job_id;
    let lease = weir.claim().await;
    assert_eq!((lease.job_id, lease.epoch, lease.attempt), (job_id, 1, 0));
    assert_eq!(lease.lease_duration, Some(seconds(600)));
    assert_eq!(lease.chunks_pending, 3);
    let job = weir.job(job_id).await;
    assert_eq!(
        (job.state(), job.worker_id.as_str()),
        (JobState::Running, "by-hand")
    );

    let chunks = weir.batch(&lease).await;
    let texts: Vec<&str> = chunks.iter().map(|chunk| chunk.text.as_str()).collect();
    assert_eq!(texts, ["a", "bb", "three"], "shortest first");
    assert_eq!(weir.batch(&lease).await, chunks, "until they are persisted");
    let renew = v1::RenewLeaseRequest {
        job_id,
        epoch: lease.epoch,
        lease_duration: None,
    };
    let renewed = weir.worker().renew_lease(renew).await.unwrap();
    assert_eq!(renewed.into_inner().lease_duration, lease.lease_duration);

    let complete = v1::CompleteJobRequest {
        job_id,
        epoch: lease.epoch,
    };
    let status = weir.worker().complete_job(complete).await.unwrap_err();
    assert_status(&status, Code::FailedPrecondition, "3");
    let outcome = vec![embedded(&chunks[0], &[1.0, 0.0])];
    for _ in 0..2 {
        // Sending the same again changes nothing.
        let request = upsert(&lease, outcome.clone());
        let answer = weir.worker().upsert_batch(request).await.unwrap();
        let answer = answer.into_inner();
        assert_eq!((answer.done, answer.total), (1, 3));
    }
    let status = weir.worker().complete_job(complete).await.unwrap_err();
    assert_status(&status, Code::FailedPrecondition, "2");
    let mut request = upsert(&lease, vec![embedded(&chunks[1], &[0.0, 1.0])]);
    request.embedded[0].truncated_to = 1;
    request.rejected = vec![v1::RejectedChunk {
        item_id: chunks[2].item_id.clone(),
        chunk_index: chunks[2].chunk_index,
        text_hash: chunks[2].text_hash.clone(),
        reason: "too odd".to_owned(),
    }];
    weir.worker().upsert_batch(request).await.unwrap();
    assert!(weir.batch(&lease).await.is_empty());
    for _ in 0..2 {
        // At the same epoch again it is harmless.
        let answer = weir.worker().complete_job(complete).await.unwrap();
        let answer = answer.into_inner();
        assert_eq!((answer.chunks_done, answer.chunks_rejected), (2, 1));
        assert_eq!(answer.chunks_truncated, 1);
    }
    assert_eq!(weir.job(job_id).await.chunks_truncated, 1);
    let source = weir.source("source").await.unwrap();
    assert_eq!((source.chunks_embedded, source.chunks_rejected), (2, 1));
    assert_eq!(source.chunks_truncated, 1);
    let stored: Vec<(String, pgvector::Vector)> =
        sqlx::query_as("SELECT item_id, embedding FROM weir.embeddings ORDER BY item_id")
            .fetch_all(weir.database.pool())
            .await
            .unwrap();
    let stored: Vec<(&str, &[f32])> = stored
        .iter()
        .map(|(id, vector)| (id.as_str(), vector.as_slice()))
        .collect();
    assert_eq!(stored, [("1", &[1.0, 0.0][..]), ("2", &[0.0, 1.0])]);
}

#[tokio::test]
async fn failed_and_released_jobs_come_again() {
    let weir = Weir::with(&[("WEIR_MAX_ATTEMPTS", "2"), ("WEIR_BACKOFF_BASE", "1ms")]).await;
    let job_id = weir.put("source", &["one"]).await.jobs[0].job_id;
    let lease = weir.claim().await;
    let request = v1::ReleaseJobRequest {
        job_id,
        epoch: lease.epoch,
        reason: "draining".to_owned(),
        ..v1::ReleaseJobRequest::default()
    };
    weir.worker().release_job(request).await.unwrap();
    let job = weir.job(job_id).await;
    assert_eq!((job.state(), job.attempt), (JobState::Queued, 0));
    assert_eq!(job.last_error, "draining");

    // Claimable at once.
    let lease = weir.claim().await;
    assert_eq!((lease.job_id, lease.epoch), (job_id, 2));
    let fail = |epoch| v1::FailJobRequest {
        job_id,
        epoch,
        reason: "x".repeat(3_000),
    };
    let answer = weir.worker().fail_job(fail(2)).await.unwrap().into_inner();
    assert!(!answer.failed);
    assert!(answer.retry_delay.unwrap().nanos <= 1_000_000);
    let job = weir.job(job_id).await;
    assert_eq!((job.state(), job.attempt), (JobState::Queued, 1));
    assert_eq!(job.last_error, "x".repeat(2_000));
    let status = weir.worker().fail_job(fail(2)).await.unwrap_err();
    assert_status(&status, Code::Aborted, "lease lost");

    // Its delay is over soon, and the long poll sees that.
    let mut claim = claim_request();
    claim.wait = Some(seconds(60));
    let leases = weir.worker().claim_job(claim).await.unwrap();
    assert_eq!(leases.into_inner().leases[0].attempt, 1);
    let answer = weir.worker().fail_job(fail(3)).await.unwrap().into_inner();
    assert!(answer.failed && answer.retry_delay.is_none());
    assert_eq!(weir.job(job_id).await.state(), JobState::Failed);
    assert_eq!(weir.source("source").await.unwrap().chunks, 1);
}

#[tokio::test]
async fn a_session_hands_out_no_more_than_its_credit_and_the_shortest_first() {
    let weir = Weir::start().await;
    let texts: Vec<String> = (1..=7).rev().map(|length| "x".repeat(length)).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let job_id = weir.put("source", &texts).await.jobs[0].job_id;
    let mut session = Session::open(&weir, 2).await;
    // Two batches of two each are outstanding at most.
    session.grant(4);
    let mut lengths = Vec::new();
    let mut held = VecDeque::from([session.part().await, session.part().await]);
    while let Some(part) = held.pop_front() {
        lengths.extend(part.chunks.iter().map(|chunk| chunk.text.len()));
        let mut answer = embeds(&part);
        for chunk in &mut answer.embedded {
            chunk.truncated_to = 1;
        }
        session.send(result([answer]));
        let ack = session.ack(part.seq).await;
        assert_eq!(ack.late, 0);
        if lengths.len() < 4 {
            session.grant(3);
            held.extend([session.part().await, session.part().await]);
        }
    }
    let finished = session.finished(job_id).await;
    assert_eq!((finished.chunks_done, finished.chunks_rejected), (7, 0));
    // A text of one character is whole.
    assert_eq!(finished.chunks_truncated, 6);
    assert_eq!(lengths, [1, 2, 3, 4, 5, 6, 7]);
}

// Search.

#[tokio::test]
async fn search_finds_the_nearest_in_exact_order() {
    let weir = Weir::start().await;
    let vectors = [
        ("near", [1.0, 0.0], 0.0),
        ("close", [0.8, 0.6], 0.2),
        ("square", [0.0, 2.0], 1.0),
        ("far", [-1.0, 0.0], 2.0),
    ];
    for (index, (text, vector, _)) in vectors.iter().enumerate() {
        let name = ["even", "odd"][index % 2];
        let mut own = item(text, text);
        let place = prost_types::Value {
            kind: Some(prost_types::value::Kind::NumberValue(index as f64)),
        };
        own.metadata = Some(prost_types::Struct {
            fields: [("place".to_owned(), place)].into(),
        });
        if index < 2 {
            weir.sources()
                .put_source(put_items(name, vec![own]))
                .await
                .unwrap();
        } else {
            let patch = v1::PatchSourceRequest {
                name: name.to_owned(),
                upsert: vec![own],
                ..v1::PatchSourceRequest::default()
            };
            weir.sources().patch_source(patch).await.unwrap();
        }
        let lease = weir.claim().await;
        let chunk = weir.batch(&lease).await.remove(0);
        let request = upsert(&lease, vec![embedded(&chunk, vector)]);
        weir.worker().upsert_batch(request).await.unwrap();
        let request = v1::CompleteJobRequest {
            job_id: lease.job_id,
            epoch: lease.epoch,
        };
        weir.worker().complete_job(request).await.unwrap();
    }
    let search = async |source: &str, limit: i32, vector: &[f32]| {
        let request = v1::SearchRequest {
            source: source.to_owned(),
            limit,
            vector: vector_bytes(vector),
            ..v1::SearchRequest::default()
        };
        let answer = weir.searches().search(request).await?;
        Ok::<_, tonic::Status>(answer.into_inner().hits)
    };
    let hits = search("", 0, &[3.0, 0.0]).await.unwrap();
    assert_eq!(hits.len(), 4);
    for (index, (hit, (text, _, distance))) in hits.iter().zip(&vectors).enumerate() {
        assert_eq!(
            (&hit.item_id, &hit.text),
            (&(*text).to_owned(), &(*text).to_owned())
        );
        assert!((hit.distance - distance).abs() < 1e-6, "{hit:?}");
        let place = hit.metadata.as_ref().unwrap().fields["place"].kind.clone();
        let expected = prost_types::value::Kind::NumberValue(index as f64);
        assert_eq!(place, Some(expected));
    }
    let ids =
        |hits: Vec<v1::SearchHit>| hits.into_iter().map(|hit| hit.item_id).collect::<Vec<_>>();
    assert_eq!(
        ids(search("odd", 0, &[1.0, 0.0]).await.unwrap()),
        ["close", "far"]
    );
    assert_eq!(ids(search("", 1, &[-1.0, 0.0]).await.unwrap()), ["far"]);
    let status = search("nobody", 0, &[1.0, 0.0]).await.unwrap_err();
    assert_status(&status, Code::NotFound, "\"nobody\"");
    let status = search("", 0, &[1.0, 0.0, 0.0]).await.unwrap_err();
    assert_invalid(&status, "vector", "have 2");
    let status = search("", 0, &[0.0, 0.0]).await.unwrap_err();
    assert_invalid(&status, "vector", "all zero");
    let status = search("", 1_001, &[1.0, 0.0]).await.unwrap_err();
    assert_invalid(&status, "limit", "1 to 1000");
}

// Start.

#[tokio::test]
async fn an_empty_database_is_migrated_only_when_asked() {
    let database = TestDatabase::create().await;
    let environment = [
        ("WEIR_DATABASE_URL", database.url()),
        ("WEIR_LISTEN", "127.0.0.1:0"),
        ("WEIR_MODELS", "fake"),
        ("WEIR_MIGRATE", "false"),
    ];
    let mut process = Process::spawn("weir-coordinator", &[], &environment);
    let line = process.wait_for_line(|line| line.contains("WEIR_MIGRATE").then(|| line.to_owned()));
    assert!(line.await.contains("weir-coordinator migrate"));
    assert!(!process.wait().await.success());
    let there = "SELECT to_regnamespace('weir') IS NOT NULL";
    let there: bool = sqlx::query_scalar(there)
        .fetch_one(database.pool())
        .await
        .unwrap();
    assert!(!there, "the refusal left something behind");

    // Several at once take turns, and it is harmless again.
    for _ in 0..2 {
        let mut processes: Vec<Process> = (0..2)
            .map(|_| Process::spawn("weir-coordinator", &["migrate"], &environment[..1]))
            .collect();
        let ended = join_all(processes.iter_mut().map(Process::wait)).await;
        assert!(ended.iter().all(std::process::ExitStatus::success));
    }
    Coordinator::spawn(database.url(), &[("WEIR_MIGRATE", "false")]).await;
}

#[tokio::test]
async fn bad_settings_are_named_at_the_start() {
    let url = ("WEIR_DATABASE_URL", "postgres://nobody@127.0.0.1:9/none");
    let models = ("WEIR_MODELS", "fake");
    let cases: [(&[(&str, &str)], &str); 7] = [
        (&[models], "WEIR_DATABASE_URL"),
        (&[url], "WEIR_MODELS"),
        (&[url, ("WEIR_MODELS", "a,a")], "WEIR_MODELS"),
        (
            &[url, models, ("WEIR_LEASE_DURATION", "0s")],
            "--lease-duration",
        ),
        (
            &[url, models, ("WEIR_LEASE_DURATION", "soon")],
            "--lease-duration",
        ),
        (&[url, models, ("WEIR_LISTEN", "here")], "--listen"),
        (
            &[("WEIR_DATABASE_URL", "nonsense"), models],
            "WEIR_DATABASE_URL",
        ),
    ];
    for (environment, setting) in cases {
        let mut process = Process::spawn("weir-coordinator", &[], environment);
        process
            .wait_for_line(|line| line.contains(setting).then_some(()))
            .await;
        assert!(!process.wait().await.success(), "{setting}");
    }
}

// The contract.

#[test]
fn everything_in_the_contract_is_documented() {
    let files = FileDescriptorSet::decode(v1::FILE_DESCRIPTOR_SET).unwrap();
    let (mut seen, mut bare) = (0, Vec::new());
    for file in files.file.iter().filter(|file| file.package() == "weir.v1") {
        for (path, name) in declarations(file) {
            let comment = file
                .source_code_info
                .iter()
                .flat_map(|info| &info.location)
                .find(|location| location.path == path)
                .map_or("", |location| location.leading_comments());
            seen += 1;
            if comment.trim().is_empty() {
                bare.push(format!("{}: {name}", file.name()));
            }
        }
    }
    assert!(seen > 250, "only {seen} declarations were looked at");
    assert!(bare.is_empty(), "without a comment: {bare:#?}");
}

/// Everything a file declares, by its path in the descriptor and its name.
/// <https://protobuf.com/docs/descriptors#source-code-info>
fn declarations(file: &FileDescriptorProto) -> Vec<(Vec<i32>, String)> {
    let mut found = Vec::new();
    let mut add = |path: &[usize], name: &str| {
        found.push((path.iter().map(|n| *n as i32).collect(), name.to_owned()));
    };
    for (m, message) in file.message_type.iter().enumerate() {
        assert!(message.nested_type.is_empty() && message.enum_type.is_empty());
        add(&[4, m], message.name());
        for (f, field) in message.field.iter().enumerate() {
            add(
                &[4, m, 2, f],
                &format!("{}.{}", message.name(), field.name()),
            );
        }
        for (o, oneof) in message.oneof_decl.iter().enumerate() {
            // An optional field is in one that nobody wrote.
            let is_of_it = |it: &&FieldDescriptorProto| it.oneof_index == Some(o as i32);
            let mut fields = message.field.iter().filter(is_of_it);
            if fields.any(FieldDescriptorProto::proto3_optional) {
                continue;
            }
            add(
                &[4, m, 8, o],
                &format!("{}.{}", message.name(), oneof.name()),
            );
        }
    }
    for (e, list) in file.enum_type.iter().enumerate() {
        add(&[5, e], list.name());
        for (v, value) in list.value.iter().enumerate() {
            add(&[5, e, 2, v], value.name());
        }
    }
    for (s, service) in file.service.iter().enumerate() {
        add(&[6, s], service.name());
        for (m, method) in service.method.iter().enumerate() {
            add(
                &[6, s, 2, m],
                &format!("{}.{}", service.name(), method.name()),
            );
        }
    }
    found
}
